# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The calibration table against buckets filled one step at a time."""

import math

import numpy as np
import pytest

from qt_core.configuration import ConfigurationError
from qt_core.learning.calibration import calibration, expected_calibration_error


def slow_calibration(predicted, observed, buckets):
    low, high = min(predicted), max(predicted)
    width = (high - low) / buckets
    table = []
    for k in range(buckets):
        left, right = low + k * width, low + (k + 1) * width
        inside = [
            (p, o)
            for p, o in zip(predicted, observed, strict=True)
            if left <= p < right or (k == buckets - 1 and p >= left)
        ]
        if inside:
            count = len(inside)
            means = [sum(pair[j] for pair in inside) / count for j in range(2)]
            table.append((*means, count))
    return table


@pytest.mark.parametrize('buckets', [1, 3, 10])
@pytest.mark.parametrize('shift', [0.0, -7.0])
def test_table_equals_the_slow_one(buckets, shift):
    random = np.random.default_rng(buckets)
    predicted, observed = random.beta(0.3, 0.5, 200) + shift, random.random(200)
    table, slow = (f(predicted, observed, buckets) for f in (calibration, slow_calibration))
    np.testing.assert_allclose(table, slow, rtol=1e-12)
    assert sum(bucket.steps for bucket in table) == 200


def test_hand_solved():
    table = calibration([0.0, 0.1, 0.9, 1.0], [0.0, 1.0, 1.0, 1.0], buckets=4)
    assert table == [(pytest.approx(0.05), 0.5, 2), (pytest.approx(0.95), 1.0, 2)]
    assert expected_calibration_error(table) == pytest.approx((0.45 + 0.05) / 2)


def test_values_equal_to_returns_have_no_error():
    values = np.linspace(-3, 5, 50)
    assert expected_calibration_error(calibration(values, values)) == pytest.approx(0, abs=1e-12)


def test_error_weighs_buckets_by_their_steps():
    table = calibration([0.0] * 9 + [1.0], [0.0] * 9 + [0.0])
    assert expected_calibration_error(table) == pytest.approx(0.1)


def test_equal_values_form_one_bucket():
    assert calibration([0.3, 0.3, 0.3], [0.0, 0.0, 0.9]) == [pytest.approx((0.3, 0.3, 3))]


def test_no_steps():
    assert calibration([], []) == []
    assert math.isnan(expected_calibration_error([]))


def test_a_value_that_is_no_number_shows():
    assert math.isnan(expected_calibration_error(calibration([0.1, math.nan], [0.0, 0.0])))


def test_shapes_must_agree():
    with pytest.raises(ConfigurationError, match='observed'):
        calibration([0.1, 0.2], [0.1])
    with pytest.raises(ConfigurationError, match='predicted'):
        calibration([[0.1]], [[0.1]])
