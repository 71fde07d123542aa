# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Who drives, and what gets through: rule by rule, and whatever happens in whatever order."""

import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qt_core.contract import RobotContract
from qt_core.share import share_path
from qt_ros.conversions import COMMAND_TYPES, fill_command, set_stamp
from qt_ros.diagnostics import ERROR, OK, WARN
from qt_ros.guard import ESTOP, HOLD, POLICY, SETTLING, STOPPED, TELEOP, Guard

TABLETOP = RobotContract.load(share_path('config/contracts/tabletop.yaml'))
# Ages differ from each other, so that one rule is not taken for another.
CONTRACT = dataclasses.replace(
    TABLETOP, state=dataclasses.replace(TABLETOP.state, max_age=0.3, stamp='receive')
)
LOW = np.array(CONTRACT.safety.position_low)
HIGH = np.array(CONTRACT.safety.position_high)
STEP = np.array(CONTRACT.safety.max_step)
SIZE = len(LOW)
MIDDLE = (LOW + HIGH) / 2
SLACK = 1e-12  # of rounding, rad
MS = 1_000_000
START = 10**12  # ns
PERIOD = round(CONTRACT.period * 1e9)
WATCHDOG = round(CONTRACT.safety.watchdog * 1e9)
MAX_AGE = round(CONTRACT.state.max_age * 1e9)


def command(targets, stamp=0):
    """Make a command as DDS would bring it, sensible or not."""
    header = SimpleNamespace(stamp=SimpleNamespace(sec=0, nanosec=0))
    set_stamp(header.stamp, stamp)
    points = [SimpleNamespace(positions=list(targets))]
    return SimpleNamespace(header=header, joint_names=CONTRACT.action.joints, points=points)


def state(positions, joints=CONTRACT.state.joints):
    """Make a joint state."""
    return SimpleNamespace(name=joints, position=list(positions))


def holds(given, positions):
    """Whether it is a hold of these positions."""
    return given is not None and given.stamp == 0 and np.array_equal(given.targets, positions)


@pytest.fixture
def guard():
    """A guard that knows where the arm is."""
    guard = Guard(CONTRACT)
    assert guard.state(state(MIDDLE), START) is None
    return guard


@pytest.fixture
def driven(guard):
    """A guard that has let one command of the policy through."""
    passed = guard.command(POLICY, command(MIDDLE + 0.5 * STEP), START)
    assert np.array_equal(passed.targets, MIDDLE + 0.5 * STEP)
    return guard


def test_the_source_that_drives_gets_through_within_limits_and_with_its_stamp(guard):
    passed = guard.command(POLICY, command(MIDDLE + 0.5 * STEP, stamp=42), START)
    assert np.array_equal(passed.targets, MIDDLE + 0.5 * STEP)
    assert passed.stamp == 42
    limited = guard.command(POLICY, command(MIDDLE + 9 * STEP), START + PERIOD)
    assert np.allclose(limited.targets, np.minimum(MIDDLE + 1.5 * STEP, HIGH))
    assert guard.safety.interventions == {'step': 1, 'position': 1}
    assert (guard.source, guard.passed) == (POLICY, 2)


@pytest.mark.parametrize('kind', COMMAND_TYPES)
def test_every_type_of_command(kind):
    contract = dataclasses.replace(
        CONTRACT, action=dataclasses.replace(CONTRACT.action, type=kind)
    )
    guard = Guard(contract)
    guard.state(state(MIDDLE), START)
    empty = SimpleNamespace()
    if kind != 'multi_array':  # which has no header
        empty = command(MIDDLE)
    point = SimpleNamespace(time_from_start=SimpleNamespace())
    message = fill_command(empty, point, contract.action, MIDDLE, 0.1, 7)
    passed = guard.command(POLICY, message, START)
    assert np.array_equal(passed.targets, MIDDLE)
    assert passed.stamp == (0 if kind == 'multi_array' else 7)


def test_a_person_takes_over_and_the_policy_comes_back_only_when_it_is_let(driven):
    moved = MIDDLE + 3 * STEP
    driven.state(state(moved), START)
    taken = driven.command(TELEOP, command(MIDDLE), START)
    assert np.allclose(taken.targets, moved - STEP)  # a ramp from where the arm is
    assert driven.source == TELEOP
    assert driven.command(POLICY, command(MIDDLE), START) is None
    assert driven.refused == {POLICY: 1}
    # The person lets go of everything: the arm holds, and is still theirs.
    driven.state(state(moved), START + WATCHDOG)
    assert holds(driven.watch(START + WATCHDOG + 1), moved)
    assert driven.source == TELEOP
    assert driven.command(POLICY, command(MIDDLE), START) is None
    assert driven.hand_over(POLICY, START + WATCHDOG + 3) is None  # holds already
    assert driven.source == POLICY
    back = driven.command(POLICY, command(MIDDLE), START + WATCHDOG + 4)
    assert np.allclose(back.targets, moved - STEP)


def test_a_command_that_makes_no_sense_takes_nothing_over(driven):
    for senseless in ([np.nan] * SIZE, [np.inf] * SIZE, [0.0], [0.0] * (SIZE + 1)):
        assert driven.command(TELEOP, command(senseless), START) is None
    assert driven.source == POLICY
    assert driven.malformed == {TELEOP: 4}
    assert driven.command(POLICY, command(MIDDLE[:-1]), START) is None
    assert driven.malformed == {TELEOP: 4, POLICY: 1}
    assert driven.watch(START + WATCHDOG + 1) is not None  # nor is it a sign of life


@pytest.mark.parametrize('kind', COMMAND_TYPES)
def test_a_command_without_positions_holds_where_the_arm_is(kind):
    action = dataclasses.replace(CONTRACT.action, type=kind)
    guard = Guard(dataclasses.replace(CONTRACT, action=action))
    empty = SimpleNamespace(points=[], position=[], data=[])
    behind = MIDDLE - 4 * STEP  # the arm lags, and is not where a command before it would lead
    guard.state(state(MIDDLE), START)
    assert guard.command(TELEOP, empty, START) is None  # takes nothing over
    assert guard.source == POLICY
    point = SimpleNamespace(time_from_start=SimpleNamespace())
    message = fill_command(command(MIDDLE), point, action, MIDDLE, 0.1)
    message.data = list(MIDDLE)
    assert guard.command(POLICY, message, START) is not None
    guard.state(state(behind), START)
    assert holds(guard.command(POLICY, empty, START), behind)
    assert guard.command(POLICY, empty, START) is None
    assert guard.watch(START + WATCHDOG + 1) is None  # once
    assert guard.holds == {POLICY: 1}
    assert guard.last_hold == 'policy holds'


def test_handing_over_in_mid_motion_holds_first(driven):
    assert driven.hand_over(POLICY, START) is None  # it drives
    assert holds(driven.hand_over(TELEOP, START), MIDDLE)
    assert driven.hand_over(TELEOP, START) is None
    assert driven.hand_over(POLICY, START) is None
    assert driven.command(POLICY, command(MIDDLE), START) is not None
    assert holds(driven.hand_over(HOLD, START), MIDDLE)
    assert driven.command(POLICY, command(MIDDLE), START) is None
    assert driven.hand_over(HOLD, START) is None
    assert driven.command(TELEOP, command(MIDDLE), START) is not None
    assert driven.source == TELEOP
    assert driven.holds == {'hand-over': 2}


def test_a_command_on_its_way_does_not_undo_a_hand_over(driven):
    driven.command(TELEOP, command(MIDDLE), START)
    driven.hand_over(POLICY, START)
    assert driven.command(TELEOP, command(MIDDLE), START + SETTLING - 1) is None
    assert driven.source == POLICY
    assert driven.command(TELEOP, command(MIDDLE), START + SETTLING) is not None
    assert driven.source == TELEOP


def test_a_silent_source_makes_the_arm_hold_once(driven):
    driven.state(state(MIDDLE), START + WATCHDOG)
    assert driven.watch(START + WATCHDOG) is None
    assert holds(driven.watch(START + WATCHDOG + 1), MIDDLE)
    for later in range(1, 50):
        driven.state(state(MIDDLE - STEP), START + WATCHDOG + later * PERIOD)
        assert driven.watch(START + WATCHDOG + later * PERIOD) is None
    assert driven.holds == {'watchdog': 1}
    assert driven.last_hold == 'no command from policy for 0.5 s'
    passed = driven.command(POLICY, command(MIDDLE), START + WATCHDOG + 49 * PERIOD)
    assert np.allclose(passed.targets, MIDDLE)


def test_a_clock_that_was_set_back_makes_it_hold(driven):
    # What was measured before is of another time: the last command stands.
    assert holds(driven.watch(START // 2), MIDDLE + 0.5 * STEP)
    assert driven.last_hold == 'no command from policy since the clock was set back'
    assert holds(driven.state(state(MIDDLE), START // 2), MIDDLE)
    assert driven.state(state(MIDDLE), START // 2) is None
    assert driven.command(POLICY, command(MIDDLE), START // 2) is not None


def test_joint_states_that_cease_make_it_hold_the_last_command(driven):
    now = START + MAX_AGE + 1
    assert holds(driven.watch(now), MIDDLE + 0.5 * STEP)
    assert driven.watch(now) is None
    assert driven.command(POLICY, command(MIDDLE), now) is None
    lacking = state(MIDDLE[:-1], CONTRACT.state.joints[:-1])
    assert driven.state(lacking, now) is None
    assert driven.state(state([math.nan] * SIZE), now) is None
    # Where the arm is by now, and then on as before.
    sagged = MIDDLE - STEP
    assert holds(driven.state(state(sagged), now), sagged)
    assert driven.state(state(sagged), now) is None
    passed = driven.command(POLICY, command(MIDDLE + STEP), now)
    assert np.allclose(passed.targets, sagged + STEP)
    assert driven.holds == {'joint states': 1}


def test_a_command_that_comes_before_joint_states_is_held_instead(guard):
    new = Guard(CONTRACT)
    assert new.command(POLICY, command(MIDDLE), START) is None
    assert new.command(POLICY, command(MIDDLE), START) is None
    assert holds(new.state(state(MIDDLE), START), MIDDLE)
    assert new.command(POLICY, command(MIDDLE), START) is not None


def test_a_state_from_ahead_of_the_clock_counts_when_the_clock_is_there(driven):
    late = START + 10 * MAX_AGE
    assert driven.watch(late) is not None
    driven.pose.push(state(MIDDLE), late + 2 * MAX_AGE)
    assert driven.watch(late) is None
    assert holds(driven.watch(late + 2 * MAX_AGE), MIDDLE)


def test_a_command_that_gets_through_first_settles_what_was_owed(driven):
    late = START + 10 * MAX_AGE
    assert driven.watch(late) is not None
    driven.pose.push(state(MIDDLE), late + 2 * MAX_AGE)
    assert driven.command(POLICY, command(MIDDLE), late + 2 * MAX_AGE) is not None
    assert driven.watch(late + 2 * MAX_AGE) is None


def test_a_stop_holds_once_and_latches_until_reset(driven):
    assert holds(driven.estop(START), MIDDLE)
    assert driven.estop(START) is None
    for source in (POLICY, TELEOP):
        assert driven.command(source, command(MIDDLE), START) is None
        assert driven.hand_over(source, START) is None
    assert driven.hand_over(HOLD, START) is None
    assert driven.source == ESTOP
    assert driven.watch(START + 9 * WATCHDOG) is None
    assert driven.end(START) is None
    driven.reset()
    assert driven.source == HOLD
    assert driven.command(POLICY, command(MIDDLE), START) is None
    driven.hand_over(POLICY, START)
    driven.reset()
    assert driven.source == POLICY
    assert driven.command(POLICY, command(MIDDLE), START) is not None


def test_a_stop_without_joint_states_holds_the_last_command_then_the_pose(driven):
    now = START + MAX_AGE + 1
    assert holds(driven.estop(now), MIDDLE + 0.5 * STEP)
    assert holds(driven.state(state(MIDDLE), now), MIDDLE)
    assert driven.state(state(MIDDLE - STEP), now) is None


def test_a_stop_while_it_holds_commands_no_pose_of_long_ago(driven):
    assert driven.hand_over(HOLD, START) is not None
    # Somebody else moves the arm, and joint states cease.
    assert driven.estop(START + 9 * MAX_AGE) is None
    assert holds(driven.state(state(LOW), START + 9 * MAX_AGE), LOW)


def test_the_end_holds_unless_it_is_held(driven):
    assert holds(driven.end(START), MIDDLE)
    assert driven.end(START) is None
    assert Guard(CONTRACT).end(START) is None


def test_who_drives_at_first():
    assert Guard(CONTRACT, HOLD).source == HOLD
    new = Guard(CONTRACT, HOLD)
    new.state(state(MIDDLE), START)
    assert holds(new.hand_over(HOLD, START), MIDDLE)  # whoever moved the arm before
    assert new.hand_over(HOLD, START) is None
    with pytest.raises(ValueError, match="source is 'estop', expected policy or teleop or hold"):
        Guard(CONTRACT, ESTOP)


def test_what_it_says_of_itself(guard):
    def says(now, seconds=1.0):
        found = guard.status(now, seconds)
        return found.level, found.message

    assert says(START) == (WARN, 'holding: no command from policy yet')
    for index in range(10):
        guard.command(POLICY, command(MIDDLE + STEP * (1 if index < 8 else 9)), START + index)
    status = guard.status(START + 10, 2.0)
    assert (status.level, status.message) == (OK, 'policy drives')
    assert status.values['commands per second'] == '5.0'
    assert status.values['interventions: step'] == '2'
    assert status.values['source'] == POLICY
    assert status.values['contract'] == CONTRACT.name
    assert guard.status(START + 10, 2.0).values['commands per second'] == '0.0'
    late = START + 600 * MS
    assert says(late) == (ERROR, 'holding: joint states are 0.6 s old')
    guard.state(state(MIDDLE), late)
    assert guard.watch(late) is not None
    assert says(late) == (WARN, 'holding: no command from policy for 0.6 s')
    assert guard.status(late, 1.0).values['last hold'] == 'no command from policy for 0.6 s'
    guard.command(TELEOP, command(MIDDLE), late)
    guard.command(POLICY, command(MIDDLE), late)
    guard.command(TELEOP, command([]), late)
    assert says(late) == (OK, 'teleop drives')
    values = guard.status(late, 1.0).values
    assert (values['refused commands'], values['malformed commands']) == ('1', '1')
    assert 'command has 0 values' in values['last malformed command']
    guard.hand_over(POLICY, late)
    assert says(late) == (WARN, 'holding: no command from policy yet')
    guard.estop(late)
    assert says(late) == (ERROR, STOPPED)
    guard.reset()
    assert says(late) == (WARN, 'holding: call guard/policy or guard/teleop')
    guard.state(state(MIDDLE[:3], CONTRACT.state.joints[:3]), late)
    message = 'joint states lack a joint of the contract, or are not finite'
    assert says(late) == (ERROR, f'holding: {message}')
    guard.pose.push(state(MIDDLE), late + 4 * MAX_AGE)
    assert says(late) == (ERROR, 'holding: joint states are 1.2 s ahead of the clock')
    assert Guard(CONTRACT).status(0, 0.0).message == 'holding: no joint states'


@given(phase=st.integers(0, PERIOD), lost=st.booleans())
def test_it_holds_within_a_period_of_the_limit(phase, lost):
    """With a look every half period, whenever the last message came."""
    guard = Guard(CONTRACT)
    guard.state(state(MIDDLE), START)
    guard.command(POLICY, command(MIDDLE), START)
    now, held = START + phase, None
    while held is None:
        now += PERIOD // 2
        if not lost:
            guard.state(state(MIDDLE), now)
        held = guard.watch(now)
    limit = MAX_AGE if lost else WATCHDOG
    assert limit < now - START <= limit + PERIOD


numbers = st.floats(allow_nan=True, allow_infinity=True, allow_subnormal=True)
targets = st.one_of(
    st.lists(numbers, min_size=SIZE, max_size=SIZE),
    st.lists(numbers, max_size=2 * SIZE),
    st.lists(st.floats(-2, 2), min_size=SIZE, max_size=SIZE),
    st.just(list(MIDDLE)),
)
poses = st.lists(st.floats(0, 1), min_size=SIZE, max_size=SIZE).map(
    lambda f: LOW + np.array(f) * (HIGH - LOW)
)
drivers = st.sampled_from([POLICY, TELEOP])
events = st.one_of(
    st.tuples(st.just('command'), drivers, targets),
    st.tuples(st.just('command'), drivers, targets),
    st.tuples(st.just('state'), poses),
    st.tuples(st.just('state'), st.just([math.nan] * SIZE)),
    st.tuples(st.just('wait'), st.integers(0, 8)),  # half periods, with a look after each
    st.tuples(st.just('wait'), st.just(1)),
    st.tuples(st.just('jump'), st.integers(-(10**12), 10**15)),
    st.tuples(st.just('hand_over'), st.sampled_from([POLICY, TELEOP, HOLD])),
    st.tuples(st.just('estop')),
    st.tuples(st.just('reset')),
)


class Log:
    """Drives a guard, and checks each command against what the rules allow at that moment."""

    def __init__(self, source):
        self.guard, self.now = Guard(CONTRACT, source), START
        self.expected = source  # who drives, by the rules
        self.pose = self.seen = None  # the newest joint state that makes sense, and its time
        self.previous = None  # what was published last
        self.armed = None  # reference of the step limit; None after a hold or a change of source
        self.fed = None  # when the last command got through, unless it was held since
        self.taken = None  # when a service took control from a person
        self.stops = 0  # commands since a stop
        self.blind_stop = False

    def measured(self):
        known = self.pose is not None and abs(self.now - self.seen) <= MAX_AGE
        return self.pose if known else None

    def happen(self, event):
        kind, *details = event
        getattr(self, f'do_{kind}')(*details)
        assert self.guard.source == self.expected

    def do_command(self, source, values):
        on_its_way = self.taken is not None and 0 <= self.now - self.taken < SETTLING
        may = source == TELEOP and self.expected != ESTOP and not on_its_way
        mine = source == self.expected or may
        sense = len(values) == SIZE and np.isfinite(values).all()
        if mine and sense and source != self.expected:
            self.expected, self.armed = source, None
        got = self.guard.command(source, command(values, stamp=1), self.now)
        if got is None or got.stamp == 0:
            assert not (mine and sense and self.measured() is not None), 'it must get through'
            self.check_hold(got)
            return
        assert mine
        assert sense
        measured = self.measured()
        assert measured is not None
        reference = measured if self.armed is None else self.armed
        assert (np.abs(got.targets - reference) <= STEP + SLACK).all()
        assert (got.targets >= LOW).all()
        assert (got.targets <= HIGH).all()
        self.armed = self.previous = got.targets
        self.fed = self.now

    def do_state(self, positions):
        self.seen = self.now
        self.pose = positions if np.isfinite(positions).all() else None
        self.check_hold(self.guard.state(state(positions), self.now))

    def do_wait(self, ticks):
        for _ in range(ticks):
            self.now += PERIOD // 2
            self.look()

    def do_jump(self, by):
        self.now = max(0, self.now + by)
        self.look()

    def look(self):
        silent = self.fed is not None and not 0 <= self.now - self.fed <= WATCHDOG
        blind = self.fed is not None and self.measured() is None
        got = self.guard.watch(self.now)
        assert (got is not None) >= (silent or blind), 'it must hold'
        self.check_hold(got)
        assert self.guard.watch(self.now) is None, 'it must hold once'

    def do_hand_over(self, source):
        if self.expected != ESTOP and source != self.expected:
            self.taken = self.now if self.expected == TELEOP else None
            self.expected, self.armed = source, None
        moving = self.fed is not None
        got = self.guard.hand_over(source, self.now)
        assert got is None or self.expected == source
        assert got is not None or not (moving and self.armed is None), 'it must hold'
        self.check_hold(got)

    def do_estop(self):
        again = self.expected == ESTOP
        moving = self.fed is not None
        self.expected, self.armed = ESTOP, None
        self.stops, self.blind_stop = (self.stops, self.blind_stop) if again else (0, False)
        if not again:
            self.blind_stop = self.measured() is None
        got = self.guard.estop(self.now)
        assert again or got is not None or (self.blind_stop and not moving), 'it must hold'
        assert not (again and got is not None)
        self.check_hold(got)

    def do_reset(self):
        if self.expected == ESTOP:
            self.expected = HOLD
        self.guard.reset()

    def check_hold(self, got):
        """Nothing, or the measured pose, or, when nobody knows it, the last command."""
        if got is None:
            return
        assert got.stamp == 0
        measured = self.measured()
        allowed = self.previous if measured is None else measured
        assert np.array_equal(got.targets, allowed)
        self.previous, self.armed, self.fed = got.targets, None, None
        if self.expected == ESTOP:
            self.stops += 1
            assert self.stops <= 1 + self.blind_stop, 'nothing but one hold after a stop'


@settings(max_examples=300)
@given(st.sampled_from([POLICY, TELEOP, HOLD]), st.lists(events, max_size=60))
def test_whatever_happens_in_whatever_order(source, happenings):
    log = Log(source)
    log.do_state(MIDDLE)
    for event in happenings:
        log.happen(event)
