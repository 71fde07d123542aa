# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What stands between whoever drives and the robot."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qt_core.contract import RobotContract

SHARED = 0.75  # share of a control period in which commands share one step: they come unevenly


class SafetyFilter:
    """Keeps commands finite, within position limits, and close to the one before.

    Commands that come faster than the contract's rate share a step, so that `max_step` limits the
    speed whoever commands. The first command after `rearm` is held close to the measured pose
    instead, so that motion starts with a ramp. A measured pose outside the limits is brought back
    by at most one step at a time: until it is inside, commands may lie outside the limits, but
    never further out.

    Args:
        contract: Limits and joints.

    Attributes:
        interventions: How often each rule changed a command: `not_finite`, `position`, `step`,
            `stopped`.
        stopped: Latched by `stop` until `reset`; the arm holds its measured pose meanwhile.
    """

    def __init__(self, contract: RobotContract) -> None:
        self.low = np.array(contract.safety.position_low)
        self.high = np.array(contract.safety.position_high)
        self.max_step = np.array(contract.safety.max_step)
        self.interventions: Counter[str] = Counter()
        self.stopped = False
        self._shared = SHARED * 1e9 * contract.period
        self._previous: NDArray[np.float64] | None = None
        self._reference: NDArray[np.float64] = self.low  # of the step that commands share
        self._since = 0  # ns, when that step began

    def apply(
        self, targets: Any, measured: NDArray[Any], now: int | None = None
    ) -> NDArray[np.float64]:
        """Make a command safe.

        Args:
            targets: Wanted position of each commanded joint; anything at all.
            measured: (N,) measured positions of the same joints, finite.
            now: Time, ns; None for a control period after the command before.

        Returns:
            (N,) positions to command.

        Raises:
            ValueError: `measured` is not finite or has the wrong length: nothing can be held.
        """
        measured = np.asarray(measured, np.float64)
        if measured.shape != self.low.shape or not np.isfinite(measured).all():
            raise ValueError(f'measured positions are {measured.tolist()}')
        if self.stopped:
            self.interventions['stopped'] += 1
            return measured
        wanted = _finite(targets, self.low.shape)
        if wanted is None:
            self.interventions['not_finite'] += 1
            wanted = measured
        previous = measured if self._previous is None else self._previous
        shares = now is not None and 0 <= now - self._since < self._shared
        if self._previous is None or not shares:
            self._reference, self._since = previous, now or 0
        least = np.maximum(self._reference, previous) - self.max_step
        most = np.minimum(self._reference, previous) + self.max_step
        safe = np.clip(wanted, np.minimum(self.low, most), np.maximum(self.high, least))
        if not np.array_equal(safe, wanted):
            self.interventions['position'] += 1
        limited = np.clip(safe, least, most)
        if not np.array_equal(limited, safe):
            self.interventions['step'] += 1
        self._previous = limited
        return limited

    def rearm(self) -> None:
        """Start the next motion from the measured pose."""
        self._previous = None

    def stop(self) -> None:
        """Hold the measured pose until `reset`."""
        self.stopped = True
        self.rearm()

    def reset(self) -> None:
        """Release the latch of `stop`."""
        self.stopped = False
        self.rearm()


class Watchdog:
    """Says when nothing has been done for too long. Not thread-safe.

    Args:
        limit: Seconds.
    """

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self._fed: int | None = None

    def feed(self, now: int) -> None:
        """Note that something was done at `now`, ns; from here on it counts."""
        self._fed = now

    def disarm(self) -> None:
        """Expect nothing until it is fed again."""
        self._fed = None

    def silence(self, now: int) -> float | None:
        """Give the seconds since it was fed; None when nothing is expected."""
        return None if self._fed is None else (now - self._fed) / 1e9

    def expired(self, now: int) -> bool:
        """Whether that is more than the limit, or the clock was set back meanwhile."""
        silence = self.silence(now)
        return silence is not None and not 0 <= silence <= self.limit


def _finite(targets: Any, shape: tuple[int, ...]) -> NDArray[np.float64] | None:
    try:
        values = np.asarray(targets, np.float64)
    except (TypeError, ValueError, OverflowError):
        return None
    return values if values.shape == shape and np.isfinite(values).all() else None
