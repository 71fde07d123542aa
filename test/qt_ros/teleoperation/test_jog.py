# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from qt_ros.teleoperation import Deadman, Jog, Speeds, TeleoperationError, Wanted

N = 7
PERIOD = 0.1
ZERO = np.zeros(N)


def only(joint, velocity):
    joints = np.zeros(N)
    joints[joint] = velocity
    return Wanted(joints)


def test_it_integrates_from_its_own_last_target_and_not_from_a_lagging_arm(contract):
    jog = Jog(contract)
    for count in range(1, 4):
        target = jog.step(only(1, 0.5), ZERO, PERIOD)
        assert target == pytest.approx(only(1, 0.05 * count).joints)


def test_after_a_release_it_begins_at_the_measured_pose(contract):
    jog = Jog(contract)
    jog.step(only(1, 0.5), ZERO, PERIOD)
    jog.release()
    assert not jog.driving
    measured = np.full(N, 0.01)
    assert jog.step(only(1, 0.5), measured, PERIOD) == pytest.approx(
        measured + only(1, 0.05).joints
    )


def test_a_deadman_held_with_nothing_wanted_stands_still(contract):
    jog = Jog(contract)
    begun = jog.step(only(0, 0.5), ZERO, PERIOD)
    for measured in (ZERO, np.full(N, 0.005), ZERO):
        assert jog.step(Wanted(ZERO), measured, PERIOD) == pytest.approx(begun)


def test_an_arm_that_is_blocked_is_led_by_no_more_than_the_limit(contract):
    jog = Jog(contract, lead=1.5)
    targets = [jog.step(only(2, 1.0), ZERO, PERIOD) for _ in range(20)]
    assert targets[-1][2] == pytest.approx(1.5 * contract.safety.max_step[2])
    # And comes back at once, instead of unwinding what was never reached.
    assert jog.step(only(2, -1.0), ZERO, PERIOD)[2] < targets[-1][2] - 0.09


def test_a_target_never_leaves_the_limits_nor_jumps_back_from_beyond(contract):
    jog, high = Jog(contract), np.array(contract.safety.position_high)
    measured = high - 0.01
    for _ in range(5):
        measured = jog.step(only(0, 1.0), measured, PERIOD)
    assert measured[0] == pytest.approx(high[0])
    beyond = high.copy()
    beyond[0] += 0.3  # pushed there by hand
    jog.release()
    assert jog.step(only(0, 1.0), beyond, PERIOD)[0] == pytest.approx(beyond[0])
    assert jog.step(only(0, -1.0), beyond, PERIOD)[0] == pytest.approx(beyond[0] - 0.1)


def test_no_joint_is_faster_than_the_contract_allows_nor_after_a_pause(contract):
    step = np.array(contract.safety.max_step)
    jog = Jog(contract, lead=20.0)
    assert jog.step(Wanted(np.full(N, 100.0)), ZERO, 60.0)[1] == pytest.approx(step[1])
    assert jog.step(Wanted(np.full(N, 100.0)), ZERO, 60.0)[1] == pytest.approx(3 * step[1])
    assert jog.step(Wanted(np.full(N, 100.0)), ZERO, 0.05)[1] == pytest.approx(3.5 * step[1])


@pytest.mark.parametrize('name', ['joints', 'linear', 'angular'])
@pytest.mark.parametrize('value', [np.nan, np.inf])
def test_what_is_no_velocity_is_refused(name, value):
    parts = {'joints': np.zeros(N), name: np.array([0.0, value, 0.0])}
    with pytest.raises(TeleoperationError, match=f'{name} is .*expected finite'):
        Wanted(**parts)


def test_an_unknown_frame_and_a_tip_without_a_urdf_are_refused(contract):
    with pytest.raises(TeleoperationError, match="'world', expected base or tip"):
        Wanted(ZERO, frame='world')
    with pytest.raises(TeleoperationError, match='without urdf'):
        Jog(contract).step(Wanted(ZERO, linear=np.ones(3)), ZERO, PERIOD)


def test_speeds_are_shares_of_what_the_contract_allows(contract):
    speeds = Speeds.of(contract, 0.5, 0.1, 0.2).scaled(0.5)
    assert speeds.joints == pytest.approx([0.3] * 6 + [0.03])  # 0.12 rad, 0.012 m at 10 Hz
    assert (speeds.linear, speeds.angular) == (0.05, 0.1)


def test_a_deadman_counts_only_when_it_was_pressed_for_this_motion():
    deadman = Deadman()
    assert not deadman.held(True)  # held since before we came
    assert not deadman.held(False)
    assert deadman.held(True)
    deadman.drop()
    assert not deadman.held(True)
    assert not deadman.held(True)
    assert not deadman.held(False)
    assert deadman.held(True)
