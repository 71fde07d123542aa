# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What an evaluation found, whichever way the episodes were run."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from qt_core.evaluation import wilson_interval


@dataclass(frozen=True, kw_only=True)
class EpisodeOutcome:
    """One evaluated episode; `instruction` is the sentence that was given."""

    seed: int
    instruction: str
    outcome: str
    steps: int


@dataclass(frozen=True, kw_only=True)
class EvaluationReport:
    """Success rate of a policy on a task.

    Attributes:
        policy: Checkpoint folder, or the name of a baseline.
        task: The task.
        through: `ros` or `direct`.
        sentences: Wordings: `train` or `unseen`.
        instruction_override: Template that replaced the sentences, or ''.
        episodes: Every episode.
        latency_ms: Wall time from each observation to its command, `ros` only.
        frames_published: Camera frames the simulator published, `ros` only.
        control_rate_hz: Commands per wall second in lock step, `ros` only; a robot needs at least
            its contract's rate.
    """

    policy: str
    task: str
    through: str
    sentences: str
    instruction_override: str = ''
    episodes: tuple[EpisodeOutcome, ...]
    latency_ms: tuple[float, ...] = ()
    frames_published: int = 0
    control_rate_hz: float = 0.0

    @property
    def successes(self) -> int:
        """Episodes that succeeded, judged by the task's own sentence."""
        return sum(e.outcome == 'success' for e in self.episodes)

    @property
    def success_rate(self) -> float:
        """Share of the episodes that succeeded."""
        return self.successes / len(self.episodes)

    @property
    def success_interval(self) -> tuple[float, float]:
        """95% Wilson interval of the success rate."""
        return wilson_interval(self.successes, len(self.episodes))

    def latency_percentiles(self) -> dict[str, float]:
        """Give p50 and p99 of the latency, ms; empty without ROS."""
        if not self.latency_ms:
            return {}
        p50, p99 = np.percentile(self.latency_ms, [50, 99])
        return {'p50': round(float(p50), 2), 'p99': round(float(p99), 2)}

    def summary(self) -> str:
        """Say the result in one line."""
        low, high = self.success_interval
        line = (
            f'{self.policy} on {self.task} through {self.through}: success '
            f'{self.success_rate:.2f} [{low:.2f}, {high:.2f}] over {len(self.episodes)} episodes'
        )
        if self.instruction_override:
            line += f', sentences replaced by {self.instruction_override!r}'
        return line

    def save(self, path: Path) -> None:
        """Write the report as JSON."""
        content = asdict(self)
        content['latency_ms'] = self.latency_percentiles()
        content |= {
            'success_rate': self.success_rate,
            'success_interval': list(self.success_interval),
        }
        write_json(path, content)


def write_json(path: Path, content: object) -> None:
    """Write JSON aside and rename it into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + '.partial')
    partial.write_text(json.dumps(content, indent=1) + '\n', encoding='utf-8')
    os.replace(partial, path)
