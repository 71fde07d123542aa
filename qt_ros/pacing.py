# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Which camera images a policy acts on."""

from __future__ import annotations

from collections import deque
from statistics import median

JUMP = 1_000_000_000  # ns; a stamp this far behind means that the clock was set back
SAME = 0.9  # share of the control period from which on a camera's period is taken for it


class Pacer:
    """Chooses the images nearest to a grid of control periods, as the converter does.

    A control step then begins the moment its image arrives, instead of a timer's phase later. A
    camera about as fast as the policy is followed image by image.

    Args:
        period: Control period, ns.

    Attributes:
        period: May be changed at any time.
        missed: Control periods for which there was no image.
    """

    def __init__(self, period: int) -> None:
        self.period = period
        self.missed = 0
        self._gaps: deque[int] = deque(maxlen=5)
        self._last: int | None = None
        self._next = 0

    def due(self, time: int) -> bool:
        """Whether to act on the image of `time`, ns; asked once per image, in order."""
        if self._last is None or time < self._last - JUMP:
            self._gaps.clear()
            self._last, self._next = time, time + self.period
            return True
        if time <= self._last:
            return False
        self._gaps.append(time - self._last)
        self._last = time
        gap = int(median(self._gaps))
        if 2 * (self._next - time) > gap and gap < SAME * self.period:
            return False  # the next image will be nearer to the grid
        late = max(0, time - self._next) // self.period
        self.missed += late
        follow = late > 0 or gap >= SAME * self.period
        self._next = (time if follow else self._next) + self.period
        return True
