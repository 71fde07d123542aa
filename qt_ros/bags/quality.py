# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What the timing of its messages and its actions say about an episode."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qt_core.action_space import ActionSpace

Times = NDArray[np.int64]


def stream_quality(
    topic: str,
    *,
    times: Times,
    headers: Times,
    received: Times,
    ticks: Times,
    max_age: float,
    expected: float | None,
    duplicates: int = 0,
) -> dict[str, Any]:
    """Describe one stream of an episode.

    Args:
        topic: Its topic.
        times: Stream times of all messages of the bag, in the order of arrival, ns.
        headers: Their header stamps, ns; 0 where there is none.
        received: When they came, ns.
        ticks: The episode's ticks, ascending, ns; at least one.
        max_age: Age at which a message is too old, s.
        expected: Rate the stream should have, Hz; None where nobody knows.
        duplicates: Kept images that are equal, byte for byte, to the one before.
    """
    inside = (times >= ticks[0]) & (times <= ticks[-1])
    ordered = np.unique(times)
    place = np.searchsorted(ordered, ticks, 'right') - 1
    found = place >= 0
    ages = (ticks[found] - ordered[place[found]]) / 1e9
    fresh = ages <= max_age
    first = max(0, int(np.searchsorted(ordered, ticks[0])) - 1)
    last = int(np.searchsorted(ordered, ticks[-1], 'right'))
    gaps = np.diff(ordered[first:last]) / 1e9
    between = np.diff(np.unique(times[inside])) / 1e9
    back = np.flatnonzero(np.diff(times) < 0) + 1
    delays = (received - headers)[inside & (headers != 0)] / 1e9
    return {
        'topic': topic,
        'messages': int(inside.sum()),
        'rate': 1 / float(np.median(between)) if len(between) else None,
        'expected': expected,
        'matched': int(fresh.sum()),
        'stale': len(ticks) - int(fresh.sum()),
        'repeated': int((found[1:] & (place[1:] == place[:-1])).sum()),
        'duplicates': duplicates,
        'jumps': int(inside[back].sum()),
        'largest_gap': float(gaps.max()) if len(gaps) else None,
        'age': spread(ages),
        'latency': spread(delays),
    }


def spread(values: NDArray[np.float64]) -> dict[str, float] | None:
    """Give median, 95th percentile and maximum; None of nothing."""
    if not len(values):
        return None
    p50, p95 = np.percentile(values, [50, 95])
    return {'p50': float(p50), 'p95': float(p95), 'max': float(values.max())}


def idle_share(
    space: ActionSpace, action: NDArray[np.float64], state: NDArray[np.float32]
) -> float:
    """Give the share of actions (T, N) in states (T, S) that are within half a bin of no motion.

    No motion is zero, or the measured position where actions are positions.
    """
    joints = len(space.state_index)
    still = np.zeros_like(action)
    if space.mode == 'absolute':
        still[:, :joints] = state[:, space.state_index]
    still = np.clip(still, space.low, space.high)
    bins = space.encode(still)
    above, below = np.minimum(bins + 1, space.bins - 1), np.maximum(bins - 1, 0)
    half = (space.decode(above) - space.decode(below)) / (above - below) / 2
    near = np.abs(action - still) <= half * (1 + 1e-9)
    return float(near[:, :joints].all(axis=1).mean())


def saturation(space: ActionSpace, bins: NDArray[np.int64]) -> list[float]:
    """Give the share of actions (T, N) at the lowest or highest bin, per dimension."""
    return [float(share) for share in ((bins == 0) | (bins == space.bins - 1)).mean(axis=0)]


def rounded(content: Any) -> Any:
    """Round every number in JSON content to 6 significant digits, whatever computed it."""
    if isinstance(content, Mapping):
        return {key: rounded(value) for key, value in content.items()}
    if isinstance(content, list):
        return [rounded(value) for value in content]
    return float(f'{content:.6g}') if isinstance(content, float) else content
