# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qt_core.contract import RobotContract
from qt_core.share import share_path
from qt_ros.safety import SafetyFilter, Watchdog

CONTRACT = RobotContract.load(share_path('config/contracts/tabletop.yaml'))
LOW = np.array(CONTRACT.safety.position_low)
HIGH = np.array(CONTRACT.safety.position_high)
STEP = np.array(CONTRACT.safety.max_step)
SIZE = len(LOW)
MIDDLE = (LOW + HIGH) / 2
SLACK = 1e-12  # of rounding, rad

numbers = st.floats(allow_nan=True, allow_infinity=True, allow_subnormal=True)
commands = st.one_of(
    st.lists(numbers, min_size=SIZE, max_size=SIZE),
    st.lists(numbers, max_size=2 * SIZE),
    st.lists(st.floats(-2, 2), min_size=SIZE, max_size=SIZE),
    st.lists(st.integers(-(10**400), 10**400), min_size=SIZE, max_size=SIZE),
    st.sampled_from([None, 'left', [None] * SIZE, [[0.1] * SIZE], 3.0, {}, [object()] * SIZE]),
)
fractions = st.lists(st.floats(0, 1), min_size=SIZE, max_size=SIZE)
inside = fractions.map(lambda f: LOW + np.array(f) * (HIGH - LOW))
anywhere = st.lists(st.floats(-10, 10), min_size=SIZE, max_size=SIZE).map(np.array)


@given(inside, st.lists(st.tuples(commands, inside), min_size=1, max_size=8))
def test_no_command_leaves_the_limits_or_jumps(measured, sequence):
    safety = SafetyFilter(CONTRACT)
    previous = measured
    for index, (command, now) in enumerate(sequence):
        safe = safety.apply(command, measured if index == 0 else now)
        assert safe.shape == (SIZE,)
        assert (safe >= LOW).all()
        assert (safe <= HIGH).all()
        assert (np.abs(safe - previous) <= STEP + SLACK).all()
        previous = safe


@given(anywhere, st.lists(commands, min_size=1, max_size=8))
def test_an_arm_outside_its_limits_comes_back_by_steps_at_most(measured, sequence):
    safety = SafetyFilter(CONTRACT)
    previous = measured
    for command in sequence:
        safe = safety.apply(command, measured)
        assert (np.abs(safe - previous) <= STEP + SLACK).all()
        was, left = outside(previous), outside(safe)
        assert (left <= np.maximum(0, was - STEP) + SLACK).all()
        previous = safe


@given(st.lists(st.tuples(commands, st.integers(0, 120)), min_size=1, max_size=40))
def test_commands_that_come_faster_share_a_step(sequence):
    safety, now, sent = SafetyFilter(CONTRACT), 0, []
    for command, milliseconds in sequence:
        now += milliseconds * 1_000_000
        sent.append((now, safety.apply(command, MIDDLE, now)))
    for index, (time, safe) in enumerate(sent):
        assert (np.abs(safe - (sent[index - 1][1] if index else MIDDLE)) <= STEP + SLACK).all()
        for earlier, before in sent[:index]:
            # However many came meanwhile: a step per 75 ms, and that which was going on.
            steps = (time - earlier) // 75_000_000 + 2
            assert (np.abs(safe - before) <= steps * STEP + SLACK).all()


def test_a_flood_of_commands_moves_the_arm_no_faster():
    safety = SafetyFilter(CONTRACT)
    for milliseconds in range(300):
        far = safety.apply(HIGH, LOW, milliseconds * 1_000_000)
    assert np.allclose(far, np.minimum(LOW + 4 * STEP, HIGH))


def outside(positions):
    return np.maximum(0, np.maximum(LOW - positions, positions - HIGH))


@given(inside, inside)
def test_a_wanted_command_within_a_step_passes_unchanged(measured, wanted):
    safety = SafetyFilter(CONTRACT)
    near = np.clip(wanted, measured - 0.99 * STEP, measured + 0.99 * STEP)
    assert np.array_equal(safety.apply(near, measured), near)
    assert not safety.interventions


@pytest.mark.parametrize(
    'command',
    [[np.nan] * SIZE, [np.inf] + [0.0] * (SIZE - 1), [0.0] * (SIZE - 1), [], None, [10**400] * 7],
)
def test_a_senseless_command_holds_and_is_counted(command):
    safety = SafetyFilter(CONTRACT)
    assert np.array_equal(safety.apply(command, MIDDLE), MIDDLE)
    assert safety.interventions == {'not_finite': 1}


def test_each_rule_is_counted():
    safety = SafetyFilter(CONTRACT)
    assert np.allclose(safety.apply(LOW + 0.5 * STEP, LOW), LOW + 0.5 * STEP)
    assert not safety.interventions
    assert np.allclose(safety.apply(LOW + 2 * STEP, LOW), LOW + 1.5 * STEP)
    assert safety.interventions == {'step': 1}
    safety.rearm()
    assert np.array_equal(safety.apply(HIGH + 0.5 * STEP, HIGH - 0.5 * STEP), HIGH)
    assert safety.interventions == {'step': 1, 'position': 1}


def test_the_first_command_after_rearm_ramps_from_the_measured_pose():
    safety = SafetyFilter(CONTRACT)
    safety.apply(MIDDLE, MIDDLE)
    moved = MIDDLE + 3 * STEP  # by hand, say
    assert np.allclose(safety.apply(MIDDLE, moved), MIDDLE)
    safety.rearm()
    assert np.allclose(safety.apply(MIDDLE, moved), moved - STEP)


def test_a_stop_latches_until_reset():
    safety = SafetyFilter(CONTRACT)
    safety.stop()
    for measured in (MIDDLE, MIDDLE + 2 * STEP):
        assert np.array_equal(safety.apply(MIDDLE + STEP, measured), measured)
    assert safety.interventions == {'stopped': 2}
    safety.reset()
    assert np.allclose(safety.apply(HIGH, MIDDLE), MIDDLE + STEP)


@pytest.mark.parametrize('measured', [[np.nan] * SIZE, MIDDLE[:-1]])
def test_there_is_no_holding_an_unknown_pose(measured):
    with pytest.raises(ValueError, match='measured positions are'):
        SafetyFilter(CONTRACT).apply(MIDDLE, measured)


def test_the_watchdog_expires_only_while_something_is_expected():
    watchdog = Watchdog(0.5)
    assert watchdog.silence(0) is None
    assert not watchdog.expired(10**12)
    watchdog.feed(10**9)
    assert not watchdog.expired(1_500_000_000)
    assert watchdog.expired(1_500_000_001)
    assert watchdog.silence(1_600_000_000) == pytest.approx(0.6)
    watchdog.feed(2 * 10**9)
    assert not watchdog.expired(2_100_000_000)
    watchdog.disarm()
    assert not watchdog.expired(10**12)


def test_a_clock_that_was_set_back_expires_the_watchdog():
    watchdog = Watchdog(0.5)
    watchdog.feed(10**9)
    assert watchdog.expired(10**9 - 1)
