# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`qt-ros say` and `qt-ros call` as processes, to nodes of this one and of another."""

import subprocess
import sys

import pytest
from std_msgs.msg import String

from qt_core.share import share_path
from qt_ros.nodes.node_support import subscribe_instruction

CONTRACT = share_path('config/contracts/tabletop.yaml')


@pytest.fixture
def qt_ros(peer):
    """Run `qt-ros` while the peer spins."""

    def run(*words):
        process = subprocess.Popen(
            [sys.executable, '-m', 'qt_ros', *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        peer.spin_until(lambda: process.poll() is not None, 'end of the process')
        out, error = process.communicate()
        return process.returncode, out, error

    return run


def test_a_sentence_reaches_who_listens(qt_ros, peer):
    latched_or_not, volatile = [], peer.listen(String, 'left/order', 1)
    subscribe_instruction(peer.node, 'left/order', latched_or_not.append)
    words = ('say', 'touch the red block', '--topic', 'order', '--namespace', 'left')
    assert qt_ros(*words) == (0, '', '')
    peer.spin_until(lambda: volatile and latched_or_not, 'sentence')
    assert {m.data for m in [*volatile, *latched_or_not]} == {'touch the red block'}


def test_a_service_is_called_and_its_refusal_is_the_exit_status(qt_ros, node_process):
    node_process('simulator_node', contract=CONTRACT, lock_step=True)
    status, out, _ = qt_ros('call', 'simulator/reset', '--timeout', '30')
    assert status == 0
    assert '"seed": 0' in out
    assert qt_ros('call', 'simulator/success')[0] == 1
    assert qt_ros('call', 'simulator/start')[:2] == (0, 'done\n')
    status, _, error = qt_ros('call', 'simulator/start')
    assert status == 1
    assert error == ('qt-ros: simulator/start: the episode is running; call ~/reset first\n')


def test_nobody_there_is_one_line(qt_ros):
    status, _, error = qt_ros('say', 'hello', '--timeout', '0.5')
    assert (status, error) == (1, "qt-ros: nobody listens on '/instruction' within 0.5 s\n")
    status, _, error = qt_ros('call', 'recorder/start', '--timeout', '0.5')
    assert (status, error) == (1, "qt-ros: service '/recorder/start' is not there within 0.5 s\n")
