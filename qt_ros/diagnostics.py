# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What a node says of itself once a second, before it is a message."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

OK, WARN, ERROR = 0, 1, 2  # of diagnostic_msgs/DiagnosticStatus
WINDOW = 200  # last values that percentiles are taken of


@dataclass(frozen=True)
class Status:
    """One diagnostic_msgs/DiagnosticStatus.

    Attributes:
        name: The part of the node that it is about; the node's name is put before it.
        level: `OK`, `WARN` or `ERROR`.
        message: One line.
        values: Details, by name.
    """

    name: str
    level: int
    message: str
    values: Mapping[str, str] = field(default_factory=dict)


class Percentiles:
    """The last `WINDOW` values of something measured again and again."""

    def __init__(self) -> None:
        self._values: deque[float] = deque(maxlen=WINDOW)

    def add(self, value: float) -> None:
        """Take a value."""
        self._values.append(value)

    def values(self, name: str, unit: str) -> dict[str, str]:
        """Give `NAME p50 (UNIT)` and `NAME p95 (UNIT)`; nothing while there is no value."""
        if not self._values:
            return {}
        p50, p95 = np.percentile(list(self._values), [50, 95])
        return {f'{name} p50 ({unit})': f'{p50:.2f}', f'{name} p95 ({unit})': f'{p95:.2f}'}
