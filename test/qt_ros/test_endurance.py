# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Half an hour of the robot's time in lock step, through policy and guard."""

import dataclasses
import json
import select
from pathlib import Path

import pytest
from diagnostic_msgs.msg import DiagnosticArray
from std_msgs.msg import String

from qt_ros.graphs import GRAPHS
from qt_ros.nodes.node_support import LATCHED
from qt_ros.up import running
from test.qt_ros.rig import arm, with_parameters
from test.qt_ros.untrained import save_untrained

SENTENCES = ('touch the red block', 'touch the blue block')
MINUTE = 600  # control steps
MINUTES = 30
WARM = 4  # minutes until everything has its size
GROWTH = 1024  # KiB; 67 bytes a control step. Without a leak it was about 100
DEADLINE = 150.0  # s for a minute of the robot's, on a machine with much else to do


def memory(pid):
    """Give resident memory in KiB and the number of threads."""
    lines = Path(f'/proc/{pid}/status').read_text().splitlines()
    values = dict(line.split(':', 1) for line in lines)
    return int(values['VmRSS'].split()[0]), int(values['Threads'])


@pytest.fixture
def lock_step(peer, contract, tmp_path):
    """Run policy, guard and an arm; give what does so many more steps, and the processes."""
    camera = dataclasses.replace(contract.cameras[0], height=32, width=32)
    contract = dataclasses.replace(contract, cameras=(camera,))
    file = tmp_path / 'contract.yaml'
    file.write_text(contract.to_text())
    checkpoint = save_untrained(tmp_path / 'checkpoint', contract, sentences=SENTENCES)
    graph = with_parameters(
        GRAPHS['policy'].processes(checkpoint=str(checkpoint), use_sim_time=True),
        'policy',
        trigger='observation',
        stamp_commands=True,
    )
    instructions = peer.node.create_publisher(String, 'instruction', LATCHED)

    def told(sentence):
        return peer.call('policy/reset') == (True, {'instruction': sentence})

    with (
        running(graph) as processes,
        arm(file, lock_step=True, cameras={camera.name: {'size': [32, 32]}}) as robot,
    ):
        done = 0

        def episode(sentence, steps, **options):
            """Do what begins an episode, and then so many steps."""
            nonlocal done
            done += steps
            peer.call('guard/hold')
            instructions.publish(String(data=sentence))
            peer.spin_until(lambda: told(sentence), 'the sentence')
            assert peer.call('guard/policy') == (True, {'source': 'policy'})
            robot.tell(steps=done, **options)
            stdout = robot.process.stdout
            assert select.select([stdout], [], [], DEADLINE)[0], f'not {done} steps'
            assert json.loads(stdout.readline()) == {'steps': done}

        yield episode, processes


@pytest.mark.timeout(1200)
def test_half_an_hour_takes_no_more_memory_than_the_first_minutes(lock_step, peer):
    episode, processes = lock_step
    reports = peer.listen(DiagnosticArray, '/diagnostics', 10)
    used = []
    for minute in range(MINUTES):
        episode(SENTENCES[minute % 2], MINUTE)
        used.append({child.name: memory(child.pid) for child in processes.children})
    for child in processes.children:
        (before, threads), (after, threads_after) = (
            used[WARM - 1][child.name],
            used[-1][child.name],
        )
        course = [minute[child.name] for minute in used]
        assert after - before < GROWTH, (child.name, course)
        assert threads_after == threads, (child.name, course)
    # All along it was the policy that drove, and nothing was held for want of anything.
    reports.clear()
    peer.spin_until(lambda: {r.status[0].name for r in reports} >= {'guard: guard'}, 'reports')
    status = next(r.status[0] for r in reports if r.status[0].name == 'guard: guard')
    values = {item.key: item.value for item in status.values}
    assert 'holds: watchdog' not in values
    assert 'holds: joint states' not in values
    assert values['malformed commands'] == '0'


def test_an_answer_that_gets_lost_is_given_again(lock_step):
    episode, _ = lock_step
    episode(SENTENCES[0], 40, lost=[0, 7, 8, 39])
