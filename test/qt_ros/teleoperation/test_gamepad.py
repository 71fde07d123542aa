# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from qt_ros.teleoperation import Speeds, TeleoperationError
from qt_ros.teleoperation.gamepad import Gamepad, Mapping

JOINTS = (*(f'joint_{i}' for i in range(6)), 'gripper')
SPEEDS = Speeds(np.arange(1.0, 8.0), 10.0, 20.0)
DEADMAN, ROTATE, MODE = 4, 5, 6


def joy(axes=None, *pressed):
    """The content of a sensor_msgs/Joy of an Xbox pad, triggers at rest."""
    values = [0.0, 0.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0]
    for axis, value in (axes or {}).items():
        values[axis] = value
    return values, [int(button in pressed) for button in range(11)]


@pytest.fixture
def pad():
    return Gamepad(JOINTS, 'gripper', tip=True)


def test_the_deadman_is_a_button_and_silence_is_a_loss(pad):
    assert not pad.pressed(0.0)
    assert pad.lost(0.0) == 'no message of the gamepad yet'
    pad.take(*joy({1: 1.0}), 0.0)
    assert not pad.pressed(0.0)
    pad.take(*joy({1: 1.0}, DEADMAN), 0.1)
    assert pad.pressed(0.1)
    assert pad.lost(0.35) == ''
    assert pad.lost(0.5) == 'the gamepad is silent for 0.4 s'


def test_sticks_move_the_tip(pad):
    pad.take(*joy({1: 1.0, 0: -0.55, 4: -1.0, 3: 1.0}, DEADMAN), 0.0)
    wanted = pad.wanted(SPEEDS)
    assert wanted.linear == pytest.approx([10.0, -5.0, -10.0])
    assert wanted.angular == pytest.approx([0, 0, 20.0])
    pad.take(*joy({1: 1.0, 0: -0.55, 4: -1.0}, DEADMAN, ROTATE), 0.0)
    wanted = pad.wanted(SPEEDS)
    assert not wanted.linear.any()
    assert wanted.angular == pytest.approx([-10.0, 20.0, 0])


def test_a_stick_that_does_not_quite_return_moves_nothing(pad):
    pad.take(*joy({0: 0.09, 1: -0.1, 4: 0.1, 3: -0.05}, DEADMAN), 0.0)
    wanted = pad.wanted(SPEEDS)
    assert not wanted.moves_tip
    assert not wanted.joints.any()
    pad.take(*joy({0: 0.11}, DEADMAN), 0.0)
    assert 0 < pad.wanted(SPEEDS).linear[1] < 0.2  # nor does it begin with a jerk


def test_sticks_move_joints(pad):
    pad.take(*joy(None), 0.0)
    pad.take(*joy({0: 1.0, 1: -1.0, 4: 1.0, 3: 1.0}, DEADMAN, MODE), 0.0)
    assert pad.mode == 'tip'
    for _ in range(2):
        pad.take(*joy({0: 1.0, 1: -1.0, 4: 1.0, 3: 1.0}, DEADMAN, MODE), 0.0)
    assert pad.mode == 'tip'  # held, not pressed again
    pad.take(*joy(None), 0.0)
    pad.take(*joy({0: 1.0, 1: -1.0, 4: 1.0, 3: 1.0}, DEADMAN, MODE), 0.0)
    assert pad.mode == 'joint'
    assert pad.wanted(SPEEDS).joints.tolist() == [1, -2, 3, 4, 0, 0, 0]
    pad.take(*joy({0: 1.0, 1: -1.0, 4: 1.0, 3: 1.0}, DEADMAN, ROTATE), 0.0)
    assert pad.wanted(SPEEDS).joints.tolist() == [0, 0, 0, 0, 5, -6, 7]
    assert not pad.wanted(SPEEDS).moves_tip


def test_buttons_move_the_gripper(pad):
    pad.take(*joy(None, DEADMAN, 2), 0.0)
    assert pad.wanted(SPEEDS).joints[6] == -7
    pad.take(*joy(None, DEADMAN, 3), 0.0)
    assert pad.wanted(SPEEDS).joints[6] == 7


def test_buttons_call_services_once_each_time_they_are_pressed(pad):
    assert pad.take(*joy(None), 0.0) == []
    assert pad.take(*joy({7: 1.0}), 0.0) == ['recorder/start']
    assert pad.take(*joy({7: 1.0}), 0.0) == []
    assert pad.take(*joy({7: -1.0}), 0.0) == ['recorder/discard']
    assert pad.take(*joy({6: -1.0}), 0.0) == ['recorder/success']
    assert pad.take(*joy({6: 1.0}), 0.0) == ['recorder/failure']
    assert pad.take(*joy(None, 7), 0.0) == ['guard/policy']
    assert pad.take(*joy(None, DEADMAN, 1), 0.0) == ['guard/estop']


def test_what_is_pressed_from_the_start_means_nothing_but_an_emergency_stop(pad):
    assert pad.take(*joy({7: 1.0}, 1, 7, MODE), 0.0) == ['guard/estop']
    assert pad.mode == 'base'


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_a_loss_and_moves_nothing(pad, value):
    pad.take(*joy({1: value}, DEADMAN), 0.0)
    assert pad.lost(0.0) == 'the gamepad sends no numbers'
    assert not pad.wanted(SPEEDS).moves_tip


def test_a_pad_with_fewer_sticks_and_buttons_has_the_rest_at_rest(pad):
    assert pad.take([0.0, 1.0], [0] * 4, 0.0) == []
    assert not pad.pressed(0.0)
    assert pad.wanted(SPEEDS).linear == pytest.approx([10, 0, 0])


def test_another_mapping():
    mapping = Mapping(deadman_button='a2-', x_axis='-a0', y_axis='', policy_button='')
    pad = Gamepad(JOINTS, '', tip=True, mapping=mapping)
    pad.take([1.0, 0.0, 0.0], [], 0.0)  # a trigger that was not touched yet
    assert not pad.pressed(0.0)
    assert pad.take([1.0, 0.0, -1.0], [1] * 11, 0.0) == ['guard/estop']
    assert pad.pressed(0.0)
    pad.take([1.0, 0.0, -1.0], [], 0.0)
    assert pad.wanted(SPEEDS).linear == pytest.approx([-10, 0, 0])


@pytest.mark.parametrize(
    ('given', 'problem'),
    [
        ({'deadman_button': '4'}, "deadman_button is '4', expected 'b0', 'a0.' or 'a0-'"),
        ({'deadman_button': ''}, "deadman_button is '', expected"),
        ({'estop_button': ''}, "estop_button is '', expected"),
        ({'x_axis': 'b1'}, "x_axis is 'b1', expected 'a0' or '-a0'"),
    ],
)
def test_a_mapping_that_cannot_be_read_says_what_it_should_be(given, problem):
    with pytest.raises(TeleoperationError, match=problem):
        Mapping(**given)
