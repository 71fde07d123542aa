# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`qt-ros teleop` as a person uses it at a terminal: the keys, the guard and the recorder."""

import dataclasses
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import numpy as np
import pytest
from sensor_msgs.msg import JointState
from std_msgs.msg import String
from trajectory_msgs.msg import JointTrajectory

from qt_core.contract import RobotContract
from qt_core.share import share_path
from qt_ros.conversions import command_targets, is_hold
from qt_ros.nodes.node_support import COMMAND, LATCHED, SENSOR

CONTRACT = RobotContract.load(share_path('config/contracts/tabletop.yaml'))
PATIENCE = 3.0  # s
JOINTS = list(CONTRACT.action.joints)
POSE = np.array([0.1, 0.2, 1.0, 0.4, 0.1, 0.2, 0.01])
URDF = ('--urdf', share_path('config/robots/tabletop_arm.urdf'), '--tip', 'hand_link')
DEADLINE = 40.0  # s
ROOT = Path(__file__).parents[3]


class Seat:
    """A person at a terminal, and the arm in this process."""

    def __init__(self, peer, contract, *words):
        self.peer = peer
        self.terminal, theirs = pty.openpty()
        self.before = termios.tcgetattr(self.terminal)
        self.process = subprocess.Popen(
            [sys.executable, '-m', 'qt_ros', 'teleop', '--contract', contract, *words],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            cwd=ROOT,
            start_new_session=True,
        )
        os.close(theirs)
        self.text, self.commands, self.said = '', [], []
        self.closed = False
        self.states = peer.node.create_publisher(JointState, 'joint_states', SENSOR)
        peer.node.create_subscription(JointTrajectory, 'teleop/command', self.on_command, COMMAND)
        peer.node.create_subscription(String, 'guard/source', self.on_source, LATCHED)
        peer.node.create_timer(0.03, self.publish)

    def publish(self):
        state = JointState(name=JOINTS, position=POSE.tolist())
        state.header.stamp = self.peer.node.get_clock().now().to_msg()
        self.states.publish(state)

    def on_command(self, message):
        hold = is_hold(message, CONTRACT.action)
        self.commands.append(None if hold else command_targets(message, CONTRACT.action))

    def on_source(self, message):
        self.said.append(message.data)

    def press(self, key):
        os.write(self.terminal, key.encode())

    def hold(self, key, done, what):
        """Keep a key pressed, as a terminal repeats it, until `done()`."""
        due = 0.0

        def repeat():
            nonlocal due
            if time.monotonic() > due:
                self.press(key)
                due = time.monotonic() + 0.05
            return done()

        self.until_done(repeat, what)

    def until_done(self, done, what):
        def read():
            self.read()
            return done()

        self.peer.spin_until(read, what)

    def until(self, pattern):
        """Spin and read until a pattern shows up; the text before it is dropped."""
        found = []

        def shown():
            found[:] = [re.search(pattern, self.text)]
            return found[0]

        self.until_done(shown, pattern)
        self.text = self.text[found[0].end() :]

    def read(self):
        while not self.closed and select.select([self.terminal], [], [], 0)[0]:
            try:
                data = os.read(self.terminal, 4096)
            except OSError:  # the other end is closed
                data = b''
            self.closed = not data
            self.text += data.decode(errors='replace')

    def until_ended(self, code):
        self.until_done(lambda: self.process.poll() is not None, 'the end')
        assert self.process.returncode == code

    def hang_up(self):
        """Close the terminal, as an ssh connection that breaks does."""
        os.close(self.terminal)
        self.terminal = None
        self.closed = True

    def close(self):
        """End it, whatever it is doing."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(20)
        if self.terminal is not None:
            os.close(self.terminal)


@pytest.fixture
def patient(tmp_path):
    """A contract whose joint states may be late, as those of a busy machine are."""
    state = dataclasses.replace(CONTRACT.state, max_age=PATIENCE)
    path = tmp_path / 'contract.yaml'
    path.write_text(dataclasses.replace(CONTRACT, state=state).to_text())
    return path


@pytest.fixture
def seat(peer, patient):
    """Give what seats a person."""
    seated = []

    def sit(*words):
        seated.append(Seat(peer, patient, *words))
        return seated[-1]

    yield sit
    for each in seated:
        each.close()


@pytest.fixture
def guard(node_process, patient):
    """A guard, with the policy in control."""
    return node_process('guard_node', contract=patient, source='policy')


def test_a_key_drives_while_it_is_repeated_and_the_recorder_is_at_hand(
    seat, guard, node_process, patient, tmp_path
):
    node_process('recorder_node', contract=patient, output=tmp_path / 'bags')
    person = seat(*URDF)
    person.until('SPACE E-STOP')
    person.until('the policy drives .* tip along base, speed 100% .* recorder')
    person.hold('\x1b[A', lambda: len(person.commands) > 5, 'driving forward')
    person.until('you drive')
    count = len(person.commands)
    # Nobody says that the key was let go: it ceases to come.
    person.until_done(lambda: person.commands[-1] is None, 'the hold')
    assert len(person.commands) < count + 15
    moved = np.array(person.commands[:-1])
    assert (moved[:, 1] > POSE[1]).any()
    assert moved[:, 6] == pytest.approx(POSE[6])

    person.press('2')
    person.until('joint 2/7 shoulder_lift')
    count = len(person.commands)
    person.hold('k', lambda: len(person.commands) > count + 3, 'driving a joint')
    assert person.commands[-1][1] < POSE[1]
    assert np.delete(person.commands[-1], 1) == pytest.approx(np.delete(POSE, 1))
    person.press('-')
    person.until('speed 80%')
    person.press('s')
    person.until('start refused: ')
    person.press('x')
    person.until("'x' means nothing")

    person.press('p')
    person.until('guard: the policy drives')
    person.press(' ')
    person.until('guard: E-STOP')
    person.until(r'E-STOP \(E releases it\)')
    person.press('p')
    person.until('policy refused: stopped')
    person.press('E')
    person.until('guard: holding')
    person.press('q')
    person.until_ended(0)
    assert termios.tcgetattr(person.terminal) == person.before


@pytest.mark.parametrize('ending', ['q', '\x04', signal.SIGINT, signal.SIGTERM, 'hang up'])
def test_however_it_ends_in_the_midst_of_driving_the_arm_is_held(seat, guard, ending):
    person = seat()
    person.until('the policy drives')
    person.hold('i', lambda: len(person.commands) > 3, 'driving')
    person.press('i')
    if ending == 'hang up':
        person.hang_up()
    elif isinstance(ending, str):
        person.press(ending)
    else:
        person.process.send_signal(ending)
    person.until_ended(0)
    person.until_done(lambda: person.commands[-1] is None, 'the hold')
    assert person.commands[-2][0] > POSE[0]
    if person.terminal is not None:
        assert termios.tcgetattr(person.terminal) == person.before


def test_handing_over_and_leaving_at_once_hands_over(seat, guard):
    person = seat()
    person.until('the policy drives')
    person.hold('i', lambda: person.said[-1:] == ['teleop'], 'driving')
    person.press('pq')
    person.until_ended(0)
    person.until_done(lambda: person.said[-1] == 'policy', 'the policy')


def test_without_a_guard_it_says_so_in_one_line(seat):
    person = seat('--guard-timeout', '0.5')
    person.until(r"qt-ros: no guard '/guard' within 0\.5 s: start `qt-ros up teleop`")
    person.until_ended(1)
    assert 'Traceback' not in person.text
    assert termios.tcgetattr(person.terminal) == person.before
