# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from qt_ros.teleoperation import Jog, Speeds, TeleoperationError
from qt_ros.teleoperation.leader import Leader

PERIOD = 0.1
FIRST = np.eye(7)[0]
MEASURED = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.01])


@pytest.fixture
def jog(contract):
    return Jog(contract)


@pytest.fixture
def speeds(contract):
    return Speeds.of(contract, 0.25, 0.1, 0.5)  # 0.03 rad a period


def named(contract, values):
    return dict(zip(contract.action.joints, np.broadcast_to(values, 7), strict=True))


def test_relative_begins_where_the_robot_is_and_moves_by_as_much(contract, jog, speeds):
    leader = Leader(contract, 'relative')
    leader.take(named(contract, 1.0), 0.0)
    leader.engage()
    assert leader.step(jog, MEASURED, PERIOD, speeds) == pytest.approx(MEASURED)
    moved = np.array([0.05, -0.05, 0.1, 0, 0, 0, 0.005])
    leader.take(named(contract, 1.0 + moved), 0.1)
    assert leader.step(jog, MEASURED, PERIOD, speeds) == pytest.approx(MEASURED + moved)


def test_after_it_was_let_go_the_displacement_begins_anew(contract, jog, speeds):
    leader = Leader(contract, 'relative')
    leader.take(named(contract, 0.0), 0.0)
    leader.engage()
    leader.step(jog, MEASURED, PERIOD, speeds)
    jog.release()
    leader.take(named(contract, 0.4), 0.2)  # moved by hand to a better place
    assert leader.step(jog, MEASURED, PERIOD, speeds) == pytest.approx(MEASURED)


def test_absolute_goes_there_slowly_and_then_follows_at_full_speed(contract, jog, speeds):
    leader = Leader(contract, 'absolute')
    there = MEASURED + 0.2 * FIRST
    leader.take(named(contract, there), 0.0)
    leader.engage()
    pose, steps = MEASURED, []
    for _ in range(12):
        target = leader.step(jog, pose, PERIOD, speeds)
        steps.append(target[0] - pose[0])
        pose = target
    assert max(steps[:6]) == pytest.approx(0.03)
    assert pose == pytest.approx(there)
    leader.take(named(contract, there + 0.1 * FIRST), 1.0)
    assert leader.step(jog, pose, PERIOD, speeds)[0] == pytest.approx(there[0] + 0.1)
    jog.release()
    assert leader.step(jog, MEASURED, PERIOD, speeds)[0] == pytest.approx(MEASURED[0] + 0.03)


def test_a_leader_beyond_the_limits_is_caught_up_with_at_the_limit(contract, jog, speeds):
    leader = Leader(contract, 'absolute')
    high = np.array(contract.safety.position_high)
    leader.take(named(contract, high + 1.0), 0.0)
    leader.engage()
    pose = high - 0.02 * np.array([1, 1, 1, 1, 1, 1, 0.1])
    for _ in range(5):
        pose = leader.step(jog, pose, PERIOD, speeds)
    assert pose == pytest.approx(high)
    assert leader.describe() == 'following the leader arm, absolute'


def test_a_jump_of_the_leader_is_not_one_of_the_robot(contract, jog, speeds):
    leader = Leader(contract, 'relative')
    leader.take(named(contract, 0.0), 0.0)
    leader.engage()
    leader.step(jog, MEASURED, PERIOD, speeds)
    leader.take(named(contract, 1.0), 0.1)
    target = leader.step(jog, MEASURED, PERIOD, speeds)
    assert (target - MEASURED <= np.array(contract.safety.max_step) + 1e-9).all()
    assert target[0] - MEASURED[0] == pytest.approx(contract.safety.max_step[0])


def test_names_signs_and_offsets(contract, jog, speeds):
    names = ['a', 'b', 'c', 'd', 'e', 'f', '']
    scale = [-1, 1, 1, 1, 1, 1, 1]
    leader = Leader(contract, 'absolute', names, scale, [0.5, *[0.0] * 6])
    leader.take(dict(zip('abcdef', [0.39, 0.2, 0.3, 0.4, 0.5, 0.6], strict=True)), 0.0)
    leader.engage()
    target = leader.step(jog, MEASURED, PERIOD, speeds)
    assert target == pytest.approx([0.11, 0.2, 0.3, 0.4, 0.5, 0.6, 0.01])


def test_it_is_lost_when_it_is_silent_or_another_arm(contract):
    leader = Leader(contract)
    assert leader.lost(0.0) == 'no joint state of the leader yet'
    leader.take(named(contract, 0.0), 1.0)
    assert leader.lost(1.2) == ''
    assert leader.lost(1.5) == 'the leader arm is silent for 0.5 s'
    leader.take({'x': 0.0}, 2.0)
    assert leader.lost(2.0) == "the leader has no joint 'shoulder_pan', only x"


def test_it_is_engaged_until_it_is_dropped(contract):
    leader = Leader(contract)
    assert not leader.pressed(0.0)
    leader.engage()
    assert leader.pressed(0.0)
    leader.drop()
    assert not leader.pressed(0.0)


@pytest.mark.parametrize(
    ('given', 'problem'),
    [
        ({'mode': 'mirror'}, "leader_mode is 'mirror', expected relative or absolute"),
        ({'joints': ['a']}, r"leader_joints is \['a'\], expected one for each of shoulder_pan"),
        ({'scale': [1.0, 2.0]}, r'leader_scale is \[1.0, 2.0\], expected one finite number, or 7'),
        ({'offset': [np.nan]}, r'leader_offset is \[nan\]'),
    ],
)
def test_what_does_not_fit_says_why(contract, given, problem):
    with pytest.raises(TeleoperationError, match=problem):
        Leader(contract, **given)
