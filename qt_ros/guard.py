# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Who drives, and what of it reaches the robot."""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from qt_core.contract import RobotContract
from qt_ros.conversions import ConversionError, command_targets, is_hold, stream_time
from qt_ros.diagnostics import ERROR, OK, WARN, Status
from qt_ros.pose import MeasuredPose
from qt_ros.safety import SafetyFilter, Watchdog

POLICY, TELEOP, HOLD, ESTOP = 'policy', 'teleop', 'hold', 'estop'
DRIVERS = (POLICY, TELEOP)
FIRST_SOURCES = (POLICY, TELEOP, HOLD)
SETTLING = 200_000_000  # ns after a hand-over in which a command on its way cannot undo it
LONGEST = 200  # characters of a problem: commands come from anybody
STOPPED = 'stopped: call guard/estop_reset'


class Command(NamedTuple):
    """What to command now.

    Attributes:
        targets: (N,) positions of the commanded joints, rad or m.
        stamp: Of the command that it is made of, ns; 0 for a hold.
    """

    targets: NDArray[np.float64]
    stamp: int


class Guard:
    """Lets the commands of one source through, within limits, and holds when they cease.

    A hold commands the measured pose once: again and again, an arm under load would creep. When
    nobody knows the pose, what was commanded last is commanded once more, since an old pose would
    be a jump back, and the measured pose once it is known again.

    Methods take the time on the node clock, ns, and give what to command, or None. `source` may be
    another afterwards. Not thread-safe.

    Args:
        contract: Of the robot.
        source: Who drives at first: one of `FIRST_SOURCES`.

    Attributes:
        source: Who drives: `policy` or `teleop`, or nobody: `hold`, or `estop` until `reset`.
        passed: Commands that got through.
        refused: Commands of a source that does not drive, by source.
        malformed: Commands that make no sense, of a source that drives or may take over.
        problem: What was wrong with the last of them; '' while there was none.
        holds: How often the arm was told to hold, by cause: `watchdog`, `joint states`,
            `hand-over`, `estop`, `end`, or the source that asked for it.
        last_hold: Why it was told so last; '' when it never was.

    Raises:
        ValueError: `source` is none of them.
    """

    def __init__(self, contract: RobotContract, source: str = POLICY) -> None:
        if source not in FIRST_SOURCES:
            raise ValueError(f'source is {source!r}, expected {" or ".join(FIRST_SOURCES)}')
        self.contract, self.source = contract, source
        self.safety = SafetyFilter(contract)
        self.pose = MeasuredPose(contract)
        self.passed = 0
        self.refused: Counter[str] = Counter()
        self.malformed: Counter[str] = Counter()
        self.holds: Counter[str] = Counter()
        self.problem = self.last_hold = ''
        self._watchdog = Watchdog(contract.safety.watchdog)
        self._commanded: NDArray[np.float64] | None = None
        self._heard: int | None = None  # ns, of the source that drives
        self._held = False  # nothing got through since the last hold
        self._owed = False  # the measured pose is to be held as soon as it is known
        self._handed: int | None = None  # ns, when a service took control from teleop
        self._counted = 0

    def command(self, source: str, message: Any, now: int) -> Command | None:
        """Take a command of `policy` or `teleop`.

        One of `teleop` takes over from `policy` and `hold`: a person needs no permission. For
        a moment after a hand-over it does not, since it may have been on its way. A command
        without positions holds.
        """
        settling = self._handed is not None and 0 <= now - self._handed < SETTLING
        may_take_over = source == TELEOP and self.source != ESTOP and not settling
        if source != self.source and not may_take_over:
            self.refused[source] += 1
            return None
        if is_hold(message, self.contract.action):
            if source != self.source:
                return None
            return self._hold_unless_held(now, source, f'{source} holds')
        try:
            targets = command_targets(message, self.contract.action)
        except ConversionError as error:
            self.malformed[source] += 1
            self.problem = str(error)[:LONGEST]
            return None
        if source != self.source:
            self._change(source)
        self._heard = now
        measured = self.pose.at(now)
        if measured is None:
            return self._hold_unless_held(now, 'joint states', self._blindness(now))
        safe = self.safety.apply(targets, measured, now)
        self._watchdog.feed(now)
        self._held = self._owed = False
        self._commanded = safe
        self.passed += 1
        return Command(safe, stream_time(message, 0))

    def state(self, message: Any, now: int) -> Command | None:
        """Take a joint state: a message, or the bytes of one."""
        self.pose.push(message, now)
        return self._pay(now) if self._owed else None

    def watch(self, now: int) -> Command | None:
        """Look whether the source that drives has fallen silent, or the pose is not known."""
        if self._owed:
            return self._pay(now)
        silence = self._watchdog.silence(now)
        if silence is None:
            return None
        if self._watchdog.expired(now):
            why = f'for {silence:.1f} s' if silence > 0 else 'since the clock was set back'
            return self._hold(now, 'watchdog', f'no command from {self.source} {why}')
        if self.pose.at(now) is None:
            return self._hold(now, 'joint states', self._blindness(now))
        return None

    def hand_over(self, source: str, now: int) -> Command | None:
        """Let `source` drive: `policy`, `teleop`, or nobody (`hold`); not while stopped."""
        if self.source == ESTOP:
            return None
        if source != self.source:
            self._handed = now if self.source == TELEOP else None
            self._change(source)
        elif source != HOLD:
            return None
        return self._hold_unless_held(now, 'hand-over', f'handed over to {source}')

    def estop(self, now: int) -> Command | None:
        """Hold, and let nothing through until `reset`."""
        if self.source == ESTOP:
            return None
        self._change(ESTOP)
        return self._hold(now, 'estop', 'estop was called')

    def reset(self) -> None:
        """Release `estop`. Nothing moves until somebody is handed over to, or takes over."""
        if self.source == ESTOP:
            self._change(HOLD)

    def end(self, now: int) -> Command | None:
        """Hold, because nobody will be here to; an arm that it has never moved is left alone."""
        if not self.passed:
            return None
        return self._hold_unless_held(now, 'end', 'the guard has ended')

    def status(self, now: int, seconds: float) -> Status:
        """Say how it goes, `seconds` after it was said last."""
        rate = (self.passed - self._counted) / seconds if seconds > 0 else 0.0
        self._counted = self.passed
        age = self.pose.age(now)
        level, message = self._state(now)
        return Status(
            'guard',
            level,
            message,
            {
                'source': self.source,
                'commands per second': f'{rate:.1f}',
                'malformed commands': str(self.malformed.total()),
                'last malformed command': self.problem,
                'refused commands': str(self.refused.total()),
                **{f'interventions: {k}': str(v) for k, v in self.safety.interventions.items()},
                **{f'holds: {cause}': str(count) for cause, count in self.holds.items()},
                'last hold': self.last_hold,
                'age of joint states (s)': 'never' if age is None else f'{age:.3f}',
                'contract': self.contract.name,
            },
        )

    def _state(self, now: int) -> tuple[int, str]:
        if self.source == ESTOP:
            return ERROR, STOPPED
        blindness = self._blindness(now)
        if blindness:
            return ERROR, f'holding: {blindness}'
        if self.source == HOLD:
            return WARN, 'holding: call guard/policy or guard/teleop'
        if self._heard is None:
            return WARN, f'holding: no command from {self.source} yet'
        if self._held:
            silence = max(0.0, (now - self._heard) / 1e9)
            return WARN, f'holding: no command from {self.source} for {silence:.1f} s'
        return OK, f'{self.source} drives'

    def _blindness(self, now: int) -> str:
        """Say why the pose is not known; '' when it is."""
        if self.pose.at(now) is not None:
            return ''
        age = self.pose.age(now)
        if age is None:
            return 'no joint states'
        if abs(age) <= self.contract.state.max_age:
            return 'joint states lack a joint of the contract, or are not finite'
        when = 'old' if age > 0 else 'ahead of the clock'
        return f'joint states are {abs(age):.1f} s {when}'

    def _change(self, source: str) -> None:
        self.source = source
        self.safety.rearm()
        self._heard = None

    def _hold_unless_held(self, now: int, cause: str, why: str) -> Command | None:
        return None if self._held else self._hold(now, cause, why)

    def _hold(self, now: int, cause: str, why: str) -> Command | None:
        moved = not self._held
        self._held = True
        self.safety.rearm()
        self._watchdog.disarm()
        self.holds[cause] += 1
        self.last_hold = why
        known = self._pay(now)
        self._owed = known is None
        if known is not None or self._commanded is None or not moved:
            return known
        return Command(self._commanded, 0)

    def _pay(self, now: int) -> Command | None:
        """Command the measured pose, if it is known."""
        measured = self.pose.at(now)
        if measured is None:
            return None
        self._owed = False
        return Command(measured, 0)
