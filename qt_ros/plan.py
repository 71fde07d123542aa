# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Several control steps decided at once, each commanded at its own time."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qt_core.action_space import ActionSpace


class CommandPlan:
    """The targets of the newest plan, of which each is for one control period.

    Args:
        period: Control period, ns.

    Attributes:
        sure: Steps of this plan that are for certain; those after them wait half a period for the
            next plan to come. All of a new plan's.
        dropped: Steps that were past before they could be commanded.
    """

    def __init__(self, period: int) -> None:
        self.period = period
        self.dropped = 0
        self.clear()

    def clear(self) -> None:
        """Forget what was planned."""
        self._targets: NDArray[np.float64] = np.empty((0, 0))
        self._start = self._taken = self.sure = 0

    def replace(self, start: int, targets: NDArray[np.float64]) -> None:
        """Plan `targets` (K, N) from now on, the first for the control period at `start`, ns.

        A period for which a step of the plan before was taken gets no second one.
        """
        ahead = round((self._start + self._taken * self.period - start) / self.period)
        self._targets, self._start = targets, start
        self._taken = ahead if 0 < ahead < len(targets) else 0
        self.sure = len(targets)

    @property
    def left(self) -> int:
        """Steps that may still be taken."""
        return len(self._targets) - self._taken

    def take(self, now: int) -> NDArray[np.float64] | None:
        """Give the targets (N,) for the period that `now` ns lies in, once; None without any.

        Steps of earlier periods that were not taken are dropped.
        """
        step, into = divmod(max(0, now - self._start), self.period)
        waits = self.sure <= step < len(self._targets) and 2 * into < self.period
        if not self._taken <= step or waits:
            return None
        self.dropped += min(step, len(self._targets)) - self._taken
        if step >= len(self._targets):
            self._taken = len(self._targets)
            return None
        self._taken = step + 1
        return self._targets[step]


def plan_targets(
    space: ActionSpace, actions: NDArray[np.float64], state: NDArray[np.float32]
) -> NDArray[np.float64]:
    """Turn actions (K, N) of successive steps into target positions (K, joints).

    Each step sets out from where the one before will have brought the arm; the first from `state`
    (S,).
    """
    position = np.array(state, np.float64)
    targets = []
    for action in actions:
        targets.append(space.to_targets(action, position))
        position[space.state_index] = targets[-1]
    return np.stack(targets)
