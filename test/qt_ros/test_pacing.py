# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qt_ros.pacing import Pacer

MS = 1_000_000
PERIOD = 100 * MS


def chosen(times, period=PERIOD):
    pacer = Pacer(period)
    return [time for time in times if pacer.due(time)], pacer


def test_a_third_of_the_images_of_a_camera_three_times_as_fast():
    times = [round(i * 1e9 / 30) for i in range(31)]
    assert chosen(times)[0] == times[::3]


@given(st.integers(0, 2**32 - 1), st.sampled_from([15.0, 20.0, 24.0, 29.97, 30.0, 60.0, 90.0]))
def test_images_are_the_nearest_to_the_grid_and_the_rate_is_kept(seed, rate):
    random = np.random.default_rng(seed)
    gap = 1e9 / rate
    times = (np.arange(600) * gap + random.uniform(-0.1, 0.1, 600) * gap).astype(int).tolist()
    acted, pacer = chosen([t - times[0] for t in times])
    steps = acted[-1] / PERIOD
    assert abs(len(acted) - 1 - steps) <= 1
    assert pacer.missed == 0
    off = [abs(time - round(time / PERIOD) * PERIOD) for time in acted]
    assert max(off) <= 0.75 * gap  # half a gap, and what jitter adds


@pytest.mark.parametrize('rate', [9.0, 10.0, 10.05, 10.9])
def test_a_camera_about_as_fast_as_the_policy_is_followed_image_by_image(rate):
    times = [round(i * 1e9 / rate) for i in range(400)]
    assert chosen(times)[0] == times


def test_a_camera_that_is_too_slow_costs_control_steps_that_are_counted():
    times = [i * 250 * MS for i in range(5)]
    acted, pacer = chosen(times)
    assert acted == times
    assert pacer.missed == 4


def test_after_a_pause_it_goes_on_from_the_next_image():
    before = [i * 33 * MS for i in range(10)]
    after = [2000 * MS + i * 33 * MS for i in range(10)]
    acted, _ = chosen(before + after)
    assert 2000 * MS in acted
    assert [b - a for a, b in zip(acted[-3:], acted[-2:], strict=False)] == [99 * MS] * 2


def test_an_image_is_answered_once_and_late_ones_are_not():
    assert chosen([0, 0, 100 * MS, 90 * MS, 200 * MS])[0] == [0, 100 * MS, 200 * MS]


def test_a_clock_that_was_set_back_begins_a_new_grid():
    times = [5000 * MS, 5100 * MS, 50 * MS, 83 * MS, 150 * MS]
    assert chosen(times)[0] == [5000 * MS, 5100 * MS, 50 * MS, 150 * MS]


def test_the_rate_can_be_lowered_meanwhile():
    pacer = Pacer(PERIOD)
    assert pacer.due(0)
    pacer.period = 2 * PERIOD
    acted = [i for i in range(1, 61) if pacer.due(round(i * 1e9 / 30))]
    assert acted == [3, 9, 15, 21, 27, 33, 39, 45, 51, 57]
