# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Statistics of features, as a LeRobot dataset carries them for normalisation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

QUANTILES = {'q01': 0.01, 'q10': 0.1, 'q50': 0.5, 'q90': 0.9, 'q99': 0.99}
SAMPLED_FRAMES = 100  # per episode and camera, evenly spaced: what LeRobot samples, too

Stats = Mapping[str, NDArray[Any]]


def column_stats(values: NDArray[Any]) -> Stats:
    """Describe the rows of a column (n,) or (n, D); every statistic is (1,) or (D,)."""
    rows = np.asarray(values, np.float64).reshape(len(values), -1)
    return {
        'min': rows.min(0),
        'max': rows.max(0),
        'mean': rows.mean(0),
        'std': rows.std(0),
        'count': np.array([len(rows)]),
        **{name: np.quantile(rows, q, axis=0) for name, q in QUANTILES.items()},
    }


class ImageStats:
    """Statistics of the pixels (0..1) of images, from one histogram per channel.

    Exact, and of one size whatever the number of images.
    """

    def __init__(self) -> None:
        self._counts = np.zeros((3, 256), np.int64)
        self._images = 0

    def add(self, image: NDArray[np.uint8]) -> None:
        """Count an image (H, W, 3)."""
        for channel in range(3):
            self._counts[channel] += np.bincount(image[..., channel].ravel(), minlength=256)
        self._images += 1

    def result(self) -> Stats:
        """Give every statistic as (3, 1, 1), but `count`, which is of images, as (1,)."""
        levels = np.arange(256) / 255
        pixels = self._counts.sum(1, keepdims=True)
        mean = self._counts @ levels / pixels[:, 0]
        spread = (levels - mean[:, None]) ** 2
        cumulative = self._counts.cumsum(1)
        stats = {
            'min': levels[(self._counts > 0).argmax(1)],
            'max': levels[255 - (self._counts[:, ::-1] > 0).argmax(1)],
            'mean': mean,
            'std': np.sqrt((self._counts * spread).sum(1) / pixels[:, 0]),
            **{
                name: levels[(cumulative >= q * pixels).argmax(1)] for name, q in QUANTILES.items()
            },
        }
        shaped = {name: value.reshape(3, 1, 1) for name, value in stats.items()}
        return {**shaped, 'count': np.array([self._images])}


def merge(parts: Sequence[Stats]) -> Stats:
    """Join the statistics of disjoint rows of one feature.

    Exact but for quantiles, which are averaged by count, as LeRobot averages them.
    """
    counts = np.array([int(part['count'][0]) for part in parts])
    weights = counts / counts.sum()

    def averaged(values: Sequence[NDArray[Any]]) -> NDArray[np.float64]:
        return np.asarray(np.tensordot(weights, np.stack(values), 1), np.float64)

    mean = averaged([part['mean'] for part in parts])
    variance = averaged([part['std'] ** 2 + (part['mean'] - mean) ** 2 for part in parts])
    return {
        'min': np.min([part['min'] for part in parts], axis=0),
        'max': np.max([part['max'] for part in parts], axis=0),
        'mean': mean,
        'std': np.sqrt(variance),
        'count': np.array([counts.sum()]),
        **{name: averaged([part[name] for part in parts]) for name in QUANTILES},
    }


def sampled(frames: int) -> frozenset[int]:
    """Choose the frames of an episode of so many whose pixels are counted."""
    chosen = np.linspace(0, frames - 1, min(frames, SAMPLED_FRAMES)).round()
    return frozenset(chosen.astype(int).tolist())
