# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Whether predicted values are what episodes then returned."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from qt_core.configuration import require


class Bucket(NamedTuple):
    """Steps of similar predicted value."""

    predicted: float  # mean
    observed: float  # mean
    steps: int


def calibration(predicted: ArrayLike, observed: ArrayLike, buckets: int = 10) -> list[Bucket]:
    """Compare values with returns in buckets of equal width over the range of the values.

    Args:
        predicted: (n,) values Q of the actions in the data.
        observed: (n,) discounted return-to-go of the same steps.
        buckets: How many; those without a step are left out.

    Returns:
        Buckets by rising predicted value.
    """
    predicted, observed = np.asarray(predicted, np.float64), np.asarray(observed, np.float64)
    require(buckets >= 1, 'buckets', buckets, 'at least 1')
    require(predicted.ndim == 1, 'shape of predicted', predicted.shape, '(n,)')
    require(observed.shape == predicted.shape, 'shape of observed', observed.shape, 'that of Q')
    if not predicted.size:
        return []
    low, span = predicted.min(), np.ptp(predicted)
    index = np.zeros(predicted.shape, np.int64)
    if 0 < span < math.inf:  # otherwise all values are equal, or some are not numbers
        index = np.minimum((buckets * ((predicted - low) / span)).astype(np.int64), buckets - 1)
    count = np.bincount(index, minlength=buckets)
    filled = np.flatnonzero(count)
    mean_predicted = np.bincount(index, predicted, buckets)[filled] / count[filled]
    mean_observed = np.bincount(index, observed, buckets)[filled] / count[filled]
    return [
        Bucket(float(p), float(o), int(c))
        for p, o, c in zip(mean_predicted, mean_observed, count[filled], strict=True)
    ]


def expected_calibration_error(buckets: Sequence[Bucket]) -> float:
    """Average |mean predicted - mean observed| over steps, in units of the return.

    Returns:
        NaN without any step.
    """
    total = sum(bucket.steps for bucket in buckets)
    if not total:
        return math.nan
    return sum(b.steps * abs(b.predicted - b.observed) for b in buckets) / total
