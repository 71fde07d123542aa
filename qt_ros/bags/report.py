# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What is in a replay folder and what needs a look: report.json, and a page with pictures."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qt_core.action_space import ActionSpace
from qt_core.replay import ReplayFolder
from qt_ros.bags.page import BARS, render_page
from qt_ros.bags.problems import (
    KINDS,
    Problem,
    expected_rate,
    find_problems,
    number,
    saturation_of,
    streams_of,
)
from qt_ros.bags.quality import rounded

JSON_NAME, PAGE_NAME = 'report.json', 'report.html'
DIMENSIONS = 64  # whose actions are drawn


def write_report(folder: Path, failures: Sequence[str] = ()) -> Path:
    """Write report.json and report.html into a replay folder.

    The same episodes and failures give the same files.

    Args:
        folder: A replay folder.
        failures: One line for each bag that was not converted.

    Returns:
        The page.

    Raises:
        ReplayError: The folder cannot be read.
    """
    replay = ReplayFolder(folder)
    episodes, streams = _read_qualities(replay)
    attention = sorted((e for e in episodes if e['problems']), key=lambda e: e['rank'])
    for entry in episodes:
        del entry['rank']
    report = rounded(
        {
            'contract': None if replay.contract is None else replay.contract.name,
            'rate': None if replay.contract is None else replay.contract.rate,
            'summary': _summary(replay),
            'failures': list(failures),
            'attention': [entry['episode'] for entry in attention],
            'streams': streams,
            'actions': _action_values(replay),
            'episodes': episodes,
        }
    )
    text = json.dumps(report, indent=1, allow_nan=False) + '\n'
    _put(replay.folder / JSON_NAME, text.encode())
    _put(replay.folder / PAGE_NAME, render_page(report, replay).encode('utf-8', 'replace'))
    return replay.folder / PAGE_NAME


def earlier_failures(folder: Path) -> list[str]:
    """Give the failures that the report in a replay folder tells of; none where there is none."""
    try:
        content = json.loads((folder / JSON_NAME).read_text(encoding='utf-8'))
    except (OSError, ValueError):
        return []
    failures = content.get('failures') if isinstance(content, dict) else None
    return [f for f in failures if isinstance(f, str)] if isinstance(failures, list) else []


def _read_qualities(replay: ReplayFolder) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Give one short entry per episode, and what the streams were like in all of them."""
    episodes, streams = [], _Streams(replay)
    period = None if replay.contract is None else replay.contract.period
    for index, entry in enumerate(replay.episodes):
        quality = replay.quality(index)
        problems = find_problems(quality, replay.contract)
        quality = quality or {}
        streams.add(quality)
        saturation = saturation_of(quality, replay.contract)
        steps = int(entry['steps'])
        episodes.append(
            {
                'episode': index,
                'source': entry['source'],
                'outcome': entry['outcome'],
                'instruction': replay.instructions[entry['instruction']],
                'steps': steps,
                'duration': None if period is None else steps * period,
                'return': number(entry['return']),
                'ticks': number(quality.get('ticks')),
                'stale': number(quality.get('stale')),
                'idle': number(quality.get('idle')),
                'saturation': max(saturation, default=None),
                'problems': [problem.text for problem in problems],
                'rank': _rank(problems, index),
            }
        )
    return episodes, streams.rows()


def _rank(problems: Sequence[Problem], index: int) -> tuple[float, ...]:
    if not problems:
        return (len(KINDS), 0.0, index)
    return (KINDS.index(problems[0].kind), -problems[0].size, index)


class _Streams:
    """Adds up what the quality records say of each stream."""

    SUMS = ('messages', 'matched', 'stale', 'repeated', 'duplicates', 'jumps')

    def __init__(self, replay: ReplayFolder) -> None:
        self.contract = replay.contract
        self.sums: dict[str, Counter[str]] = {}
        self.lists: dict[str, dict[str, list[float]]] = {}

    def add(self, quality: Mapping[str, Any]) -> None:
        """Add one episode's record."""
        for name, stream in streams_of(quality).items():
            sums = self.sums.setdefault(name, Counter())
            lists = self.lists.setdefault(name, {})
            for field in self.SUMS:
                sums[field] += int(number(stream.get(field)) or 0)
            numbers = {
                'rate': number(stream.get('rate')),
                'expected': expected_rate(stream, self.contract),
                'largest_gap': number(stream.get('largest_gap')),
            }
            for field in ('age', 'latency'):
                spread = stream.get(field)
                if isinstance(spread, Mapping):
                    for part in ('p50', 'p95', 'max'):
                        numbers[f'{field}_{part}'] = number(spread.get(part))
            for field, value in numbers.items():
                if value is not None:
                    lists.setdefault(field, []).append(value)

    def rows(self) -> list[dict[str, Any]]:
        """Give one row per stream: medians of the rates and of p50, else the worst episode's."""
        found = []
        for name in sorted(self.sums):
            lists = self.lists[name]
            row: dict[str, Any] = {'stream': name, **self.sums[name]}
            row['rate'] = _median(lists.get('rate'))
            row['rate_low'] = min(lists.get('rate', []), default=None)
            row['expected'] = max(lists.get('expected', []), default=None)
            row['largest_gap'] = max(lists.get('largest_gap', []), default=None)
            for field in ('age', 'latency'):
                row[f'{field}_p50'] = _median(lists.get(f'{field}_p50'))
                for part in (f'{field}_p95', f'{field}_max'):
                    row[part] = max(lists.get(part, []), default=None)
            found.append(row)
        return found


def _median(values: Sequence[float] | None) -> float | None:
    return float(np.median(values)) if values else None


def _summary(replay: ReplayFolder) -> dict[str, Any]:
    counts: Counter[str] = Counter()
    successes: Counter[str] = Counter()
    for entry in replay.episodes:
        sentence = replay.instructions[entry['instruction']]
        counts[sentence] += 1
        successes[sentence] += entry['outcome'] == 'success'
    outcomes = Counter(entry['outcome'] for entry in replay.episodes)
    contract = replay.contract
    return {
        'episodes': len(replay.episodes),
        'steps': replay.steps,
        'duration': None if contract is None else replay.steps * contract.period,
        'outcomes': dict(sorted(outcomes.items())),
        'instructions': [
            {'instruction': s, 'episodes': n, 'success': successes[s] / n}
            for s, n in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        ],
    }


def _action_values(replay: ReplayFolder) -> list[dict[str, Any]]:
    """Count the actions by value, per dimension: in units, or in bins where there are none."""
    contract, dimensions = replay.contract, replay.spec.num_actions
    low, high = np.zeros(dimensions), np.full(dimensions, replay.spec.action_bins - 1.0)
    names = [f'dimension {index}' for index in range(dimensions)]
    if contract is not None:
        space = ActionSpace(contract)
        low, high = space.low, space.high
        names = [*contract.action.joints, 'terminate'][:dimensions]
    shown = range(min(dimensions, DIMENSIONS))
    counts = np.zeros((len(shown), BARS), np.int64)
    for entry in replay.episodes:
        shard, start = replay.shards[entry['shard']], entry['start']
        values = shard['bins' if contract is None else 'action'][start : start + entry['steps']]
        for d in shown:
            counts[d] += np.histogram(values[:, d], BARS, (float(low[d]), float(high[d])))[0]
    return [
        {'name': names[d], 'low': low[d], 'high': high[d], 'counts': counts[d].tolist()}
        for d in shown
    ]


def _put(path: Path, content: bytes) -> None:
    """Write a file aside and rename it into place."""
    partial = path.with_name(path.name + '.partial')
    partial.write_bytes(content)
    os.replace(partial, path)
