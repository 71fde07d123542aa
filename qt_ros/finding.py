# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What a check found, before anybody prints, logs or publishes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal['ok', 'warn', 'fail']


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        level: `fail` for what keeps a robot from working.
        subject: What it is about: a topic, a node, a part of the machine.
        problem: What was found; what is there when that is well.
        remedy: What to do; '' when nothing.
    """

    level: Level
    subject: str
    problem: str
    remedy: str = ''

    def __str__(self) -> str:
        line = f'{self.subject}: {self.problem}'
        return ' '.join((f'{line} — {self.remedy}' if self.remedy else line).split())
