# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from qt_ros.cli import record
from qt_ros.teleoperation import Speeds
from qt_ros.teleoperation.keys import COMMANDS, HELP_WANTED, QUIT, TIP, UNKNOWN, Keys

JOINTS = (*(f'joint_{i}' for i in range(6)), 'gripper')
SPEEDS = Speeds(np.arange(1.0, 8.0), 10.0, 20.0)


@pytest.fixture
def keys():
    return Keys(JOINTS, 'gripper', tip=True)


def test_a_key_acts_for_a_while_after_it_came_last(keys):
    assert not keys.pressed(0.0)
    assert keys.press('i', 0.0) == ''
    assert keys.pressed(0.0)
    assert keys.pressed(0.29)
    keys.press('i', 0.2)  # the terminal repeats it
    assert keys.pressed(0.49)
    assert not keys.pressed(0.51)
    assert not keys.wanted(SPEEDS).moves_tip


@pytest.mark.parametrize(('key', 'what'), TIP.items())
def test_every_direction_of_the_tip(keys, key, what):
    axis, sign = what
    keys.press(key, 0.0)
    wanted = keys.wanted(SPEEDS)
    expected = sign * np.eye(6)[axis] * ([10] * 3 + [20] * 3)
    assert np.concatenate([wanted.linear, wanted.angular]) == pytest.approx(expected)
    assert not wanted.joints.any()
    assert wanted.frame == 'base'


def test_keys_that_are_pressed_together_act_together_and_opposite_ones_in_turn(keys):
    keys.press('up', 0.0)
    keys.press('j', 0.1)
    keys.press('[', 0.1)
    assert keys.wanted(SPEEDS).linear.tolist() == [10, 10, 0]
    assert keys.wanted(SPEEDS).joints.tolist() == [0] * 6 + [-7]
    keys.press('down', 0.15)
    assert keys.wanted(SPEEDS).linear.tolist() == [-10, 10, 0]


def test_joints_are_selected_by_number_or_one_after_the_other(keys):
    keys.press('3', 0.0)
    assert not keys.pressed(0.0)  # selecting moves nothing
    assert 'joint 3/7 joint_2' in keys.describe()
    keys.press('k', 0.0)
    assert keys.wanted(SPEEDS).joints.tolist() == [0, 0, -3, 0, 0, 0, 0]
    keys.press('right', 0.1)
    assert not keys.pressed(0.1)  # the joint before stops
    keys.press('i', 0.1)
    assert keys.wanted(SPEEDS).joints.tolist() == [0, 0, 0, 4, 0, 0, 0]
    for _ in range(4):
        keys.press('j', 0.2)
    assert keys.joint == len(JOINTS) - 1
    assert keys.press('8', 0.2) == UNKNOWN


def test_modes_go_round_and_a_change_stops_what_moves(keys):
    keys.press('i', 0.0)
    keys.press('c', 0.0)
    assert keys.mode == 'tip'
    assert not keys.pressed(0.0)
    keys.press('i', 0.0)
    assert keys.wanted(SPEEDS).frame == 'tip'
    keys.press('c', 0.0)
    assert keys.mode == 'joint'
    assert keys.press('u', 0.0) == UNKNOWN


def test_without_a_urdf_or_a_gripper_there_are_joints_alone():
    keys = Keys(JOINTS, '', tip=False)
    assert keys.mode == 'joint'
    keys.press('c', 0.0)
    assert keys.mode == 'joint'
    assert keys.press('[', 0.0) == UNKNOWN


def test_speed_has_bounds(keys):
    keys.press('i', 0.0)
    keys.press('-', 0.0)
    assert keys.wanted(SPEEDS).linear[0] == pytest.approx(8.0)
    for _ in range(40):
        keys.press('=', 0.0)
    assert keys.scale == 2.0
    for _ in range(40):
        keys.press('-', 0.0)
    assert keys.scale == 0.05


@pytest.mark.parametrize('key', [' ', 'E', 'p', 'h', 'm'])
def test_who_drives_is_decided_with_nothing_moving(keys, key):
    keys.press('i', 0.0)
    assert keys.press(key, 0.0).startswith('guard/')
    assert not keys.pressed(0.0)


def test_the_recorder_is_told_while_driving_by_the_keys_of_qt_ros_record(keys):
    keys.press('i', 0.0)
    for key, service in record.KEYS.items():
        assert keys.press(key, 0.0) == COMMANDS[key] == f'recorder/{service}'
    assert keys.pressed(0.0)


def test_the_rest(keys):
    assert keys.press('q', 0.0) == keys.press('\x04', 0.0) == QUIT
    assert keys.press('?', 0.0) == HELP_WANTED
    assert keys.press('x', 0.0) == keys.press('\x1b[1;5A', 0.0) == UNKNOWN
