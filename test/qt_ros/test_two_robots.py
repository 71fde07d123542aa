# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Two robots in one graph, each in its namespace: what one is told, the other does not do."""

import dataclasses
from contextlib import ExitStack

import numpy as np
import pytest

from qt_ros.graphs import GRAPHS
from qt_ros.up import running
from test.qt_ros.rig import Witness, with_parameters
from test.qt_ros.untrained import SENTENCE, save_untrained

pytestmark = pytest.mark.timeout(300)  # many processes, on a machine with much else to do
JOINT = 'wrist_3'  # touches nothing, and has far to go
SHARED = {'/clock', '/diagnostics', '/parameter_events', '/rosout'}
MOVED, STILL = 0.2, 0.03  # rad


@pytest.fixture
def robots(peer, contract, tmp_path):
    """Run two simulators, policies and guards; give what is seen of the robots, by name.

    Both simulators publish /clock, so nobody may follow it: streams are of the time they come.
    """
    camera = dataclasses.replace(contract.cameras[0], height=32, width=32, stamp='receive')
    state = dataclasses.replace(contract.state, stamp='receive')
    contract = dataclasses.replace(contract, cameras=(camera,), state=state)
    file = tmp_path / 'contract.yaml'
    file.write_text(contract.to_text())
    checkpoint = str(save_untrained(tmp_path / 'checkpoint', contract, {JOINT: 4}))
    witnesses = {side: Witness(peer, contract, side) for side in ('left', 'right')}
    with ExitStack() as stack:
        for side in witnesses:
            robot = GRAPHS['sim'].processes(namespace=side, contract=str(file), use_sim_time=False)
            policy = GRAPHS['policy'].processes(namespace=side, checkpoint=checkpoint)
            processes = with_parameters(
                [*robot, *policy], 'simulator', camera_height=32, camera_width=32
            )
            # A rendered picture has no noise, and is the same again while nothing moves.
            stack.enter_context(running(with_parameters(processes, 'policy', frozen_after=0.0)))
        yield witnesses


def until_moved(robot, start):
    """Wait until the joint is elsewhere than at the pose `start`."""
    at = robot.contract.action.joints.index(JOINT)
    robot.until(lambda: robot.pose()[at] - start[at] > MOVED, f'{robot.prefix} moves')


def still(robot, start):
    """Whether the arm is where it was."""
    return bool(np.abs(robot.pose() - start).max() < STILL)


def test_each_robot_is_told_stopped_and_seen_alone(robots, peer):
    left, right = robots['left'], robots['right']
    for robot in (left, right):
        robot.until(lambda r=robot: r.positions, 'joint states')
        robot.until_says('no instruction')
        # Whom to call on: each has its own name.
        assert robot.until_says('holding: no command from policy yet', 'guard: guard')
        assert (len(robot.bins), len(robot.commands)) == (0, 0)

    left_start, right_start = left.pose(), right.pose()
    left.say(SENTENCE)
    until_moved(left, left_start)
    assert still(right, right_start)
    assert (len(right.bins), len(right.commands)) == (0, 0)
    assert left.bins
    values = left.until_says('acting')
    assert values['instruction'] == SENTENCE
    assert values['graph'] == 'complete'
    assert right.until_says('no instruction')['instruction'] == ''

    # One is stopped, the other goes on.
    right.say(SENTENCE)
    until_moved(right, right_start)
    assert peer.call('left/guard/estop') == (True, {'source': 'estop'})
    left.until_says('stopped', 'guard: guard')
    left.until_says('waiting: the guard is stopped')
    stopped, commands = left.pose(), len(left.commands)
    until_moved(right, right.pose())
    assert still(left, stopped)
    assert len(left.commands) == commands
    right.until_says('policy drives', 'guard: guard')

    # And the other way round.
    assert peer.call('left/guard/estop_reset') == (True, {'source': 'hold'})
    assert peer.call('right/guard/hold') == (True, {'source': 'hold'})
    assert peer.call('left/guard/policy') == (True, {'source': 'policy'})
    right.until_says('waiting: the guard holds')
    held, commands = right.pose(), len(right.commands)
    until_moved(left, left.pose())
    assert still(right, held)
    assert len(right.commands) == commands

    # Everything but what all robots share is in a robot's namespace.
    node = peer.node
    names = [name for name, _ in node.get_topic_names_and_types()]
    assert {'/left/policy/command', '/right/policy/command', '/left/guard/source'} <= set(names)
    names += [
        name
        for name, _ in node.get_service_names_and_types()
        if not name.startswith(f'/{node.get_name()}/')
    ]
    assert '/right/policy/change_state' in names
    absolute = {name for name in names if not name.startswith(('/left/', '/right/'))}
    assert absolute <= SHARED
