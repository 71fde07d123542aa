# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What an evaluation found, whichever way the episodes were run."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from qt_core.evaluation import mean_interval, wilson_interval
from qt_core.policies import Choice


@dataclass(frozen=True, kw_only=True)
class EpisodeOutcome:
    """One evaluated episode.

    Attributes:
        seed: Which one.
        instruction: The sentence that was given.
        outcome: `success`, `failure` or `timeout`; of a task that does not say what a success is,
            `ended` or `timeout`.
        steps: Actions taken.
        total_return: Sum of the rewards.
    """

    seed: int
    instruction: str
    outcome: str
    steps: int
    total_return: float


@dataclass(frozen=True, kw_only=True)
class EvaluationReport:
    """Return and success rate of a policy on a task.

    Attributes:
        policy: Checkpoint folder, or the name of a baseline.
        task: The task.
        through: `ros` or `direct`.
        sentences: Wordings: `train` or `unseen`; '' where the task has no such two.
        instruction_override: Template that replaced the sentences, or ''.
        choice: How the policy chose.
        asked_return: The return that the policy was to ask for; None where it asks for none.
        judged: Whether the task says what a success is.
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
    choice: Choice = field(default_factory=Choice)
    asked_return: float | None = None
    judged: bool = True
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

    @property
    def mean_return(self) -> float:
        """Mean of the episodes' returns."""
        return float(np.mean([e.total_return for e in self.episodes]))

    @property
    def return_interval(self) -> tuple[float, float] | None:
        """95% interval of the mean return; None of a single episode."""
        return mean_interval([e.total_return for e in self.episodes])

    def latency_percentiles(self) -> dict[str, float]:
        """Give p50 and p99 of the latency, ms; empty without ROS."""
        if not self.latency_ms:
            return {}
        p50, p99 = np.percentile(self.latency_ms, [50, 99])
        return {'p50': round(float(p50), 2), 'p99': round(float(p99), 2)}

    def results(self) -> list[str]:
        """Say what was measured, each with its interval."""
        found = [f'return {self.mean_return:.4g}{_interval(self.return_interval, "{:.4g}")}']
        if self.judged:
            rate = f'success {self.success_rate:.2f}'
            found.append(rate + _interval(self.success_interval, '{:.2f}'))
        return found

    def summary(self) -> str:
        """Say the result in one line."""
        line = (
            f'{self.policy} on {self.task} through {self.through}: {", ".join(self.results())} '
            f'over {len(self.episodes)} episodes'
        )
        if self.asked_return is not None:
            line += f', asked for a return of {self.asked_return:.4g}'
        for f in fields(Choice):
            value = getattr(self.choice, f.name)
            if value != f.default:
                line += f', {f.name} {value}'
        if self.instruction_override:
            line += f', sentences replaced by {self.instruction_override!r}'
        return line

    def content(self) -> dict[str, Any]:
        """Give the report as JSON holds it."""
        content = asdict(self)
        content['latency_ms'] = self.latency_percentiles()
        return content | {
            'mean_return': self.mean_return,
            'return_interval': self.return_interval,
            'success_rate': self.success_rate if self.judged else None,
            'success_interval': self.success_interval if self.judged else None,
        }

    def save(self, path: Path) -> None:
        """Write the report as JSON."""
        write_json(path, self.content())


@dataclass(frozen=True)
class TargetReturnSweep:
    """What a policy achieved for each return that was asked of it.

    Attributes:
        reports: One per target return, in the order they were asked for.
    """

    reports: tuple[EvaluationReport, ...]

    def rows(self) -> list[dict[str, Any]]:
        """Give what was asked and achieved, one row per target return."""
        return [
            {
                'target_return': report.choice.target_return,
                'asked_return': report.asked_return,
                'mean_return': report.mean_return,
                'return_interval': report.return_interval,
                'success_rate': report.success_rate if report.judged else None,
                'success_interval': report.success_interval if report.judged else None,
                'episodes': len(report.episodes),
            }
            for report in self.reports
        ]

    def summary(self) -> str:
        """Say the result as a table."""
        first = self.reports[0]
        lines = [
            f'{first.policy} on {first.task} through {first.through}, '
            f'{len(first.episodes)} episodes each',
            f'{"target return":>13}  {"asked for":>10}  achieved',
        ]
        for report in self.reports:
            ratio, asked = report.choice.target_return, report.asked_return
            lines.append(f'{ratio:>13g}  {asked:>10.4g}  {", ".join(report.results())}')
        return '\n'.join(lines)

    def save(self, path: Path) -> None:
        """Write table and reports as JSON."""
        reports = [report.content() for report in self.reports]
        write_json(path, {'target_returns': self.rows(), 'reports': reports})

    def plot(self, path: Path) -> None:
        """Draw achieved over asked return, with intervals, as a PNG."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        rows = sorted(self.rows(), key=lambda row: row['asked_return'])
        asked = [row['asked_return'] for row in rows]
        achieved = [row['mean_return'] for row in rows]
        ends = [row['return_interval'] or (row['mean_return'],) * 2 for row in rows]
        spread = [
            [mean - low for mean, (low, _) in zip(achieved, ends, strict=True)],
            [high - mean for mean, (_, high) in zip(achieved, ends, strict=True)],
        ]
        figure = Figure(figsize=(6, 5), layout='constrained')
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        axes.plot(asked, asked, color='#888888', linestyle='--', label='as asked')
        axes.errorbar(
            asked, achieved, spread, color='#2b6ca3', marker='o', capsize=4, label='mean, 95%'
        )
        axes.set_xlabel('return asked for')
        axes.set_ylabel('return achieved')
        axes.set_title(f'{self.reports[0].policy} on {self.reports[0].task}')
        axes.legend()
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + '.partial')
        figure.savefig(partial, dpi=110, format='png')
        os.replace(partial, path)


def write_json(path: Path, content: object) -> None:
    """Write JSON aside and rename it into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + '.partial')
    partial.write_text(json.dumps(content, indent=1) + '\n', encoding='utf-8')
    os.replace(partial, path)


def _interval(ends: tuple[float, float] | None, pattern: str) -> str:
    return '' if ends is None else f' [{", ".join(pattern.format(end) for end in ends)}]'
