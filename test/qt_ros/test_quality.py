# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What is said about a recording is what happened in it."""

from dataclasses import replace

import numpy as np
import pytest

from qt_core.action_space import ActionSpace
from qt_ros.bags.quality import idle_share, rounded, saturation, spread, stream_quality
from test.qt_ros.synthetic_bags import CONTRACT

MS = 1_000_000
TICKS = np.arange(0, 2000, 100) * MS


def describe(stamps, *, delay=5, stamped=True, max_age=0.25, **options):
    """Describe a stream with messages at these ms, in this order."""
    times = np.array(stamps, np.int64) * MS
    return stream_quality(
        'camera/image',
        times=times,
        headers=times if stamped else np.zeros_like(times),
        received=times + delay * MS,
        ticks=TICKS,
        max_age=max_age,
        expected=30.0,
        **options,
    )


def test_even_stream():
    found = describe(range(0, 2000, 50))
    assert found['messages'] == 39  # up to the last tick, at 1900 ms
    assert found['rate'] == pytest.approx(20)
    assert (found['matched'], found['stale'], found['repeated'], found['jumps']) == (20, 0, 0, 0)
    assert found['largest_gap'] == pytest.approx(0.05)
    assert found['age'] == {'p50': 0, 'p95': 0, 'max': 0}
    assert found['latency'] == pytest.approx({'p50': 0.005, 'p95': 0.005, 'max': 0.005})
    assert (found['topic'], found['expected']) == ('camera/image', 30.0)


def test_camera_that_stops():
    found = describe(range(0, 1000, 50))
    # The last message is of 950 ms: fresh at 1000, 1100 and 1200 ms.
    assert (found['matched'], found['stale'], found['repeated']) == (13, 7, 9)
    assert found['age']['max'] == pytest.approx(0.95)


def test_camera_that_stutters():
    found = describe([*range(0, 500, 50), *range(1000, 2000, 50)])
    assert found['largest_gap'] == pytest.approx(0.55)
    assert found['stale'] == 2  # 800 and 900 ms lie over 250 ms behind 450 ms


def test_camera_that_starts_late():
    found = describe(range(500, 2000, 50))
    assert (found['matched'], found['stale']) == (15, 5)


def test_stamps_that_went_back():
    stamps = list(range(0, 2000, 50))
    stamps[10], stamps[11] = stamps[11], stamps[10]
    stamps[20], stamps[21] = stamps[21], stamps[20]
    assert describe(stamps)['jumps'] == 2


def test_nothing_is_said_without_stamps_or_messages():
    assert describe(range(0, 2000, 50), stamped=False)['latency'] is None
    found = describe([-1000])
    assert (found['rate'], found['largest_gap'], found['messages']) == (None, None, 0)
    assert spread(np.zeros(0)) is None


@pytest.mark.parametrize('mode', ['delta', 'absolute', 'velocity'])
@pytest.mark.parametrize('companding', ['uniform', 'mu_law'])
def test_idle_is_what_does_not_move(mode, companding):
    action = replace(CONTRACT.action, mode=mode, companding=companding)
    space = ActionSpace(replace(CONTRACT, action=action))
    state = np.zeros((4, 7), np.float32)
    joints = len(action.joints)
    still = space.encode(np.zeros(space.dimensions))
    step = np.abs(space.decode(still + 1) - space.decode(still))
    actions = np.zeros((4, space.dimensions))
    actions[1] = 0.4 * step  # within half a bin
    actions[2, 0] = 3 * step[0]
    actions[3, joints - 1] = -3 * step[joints - 1]
    assert idle_share(space, actions, state) == 0.5


def test_positions_are_idle_where_the_robot_is():
    action = replace(CONTRACT.action, mode='absolute', low=(-3.0,) * 7, high=(3.0,) * 7)
    space = ActionSpace(replace(CONTRACT, action=action))
    state = np.linspace(-1, 1, 14).reshape(2, 7).astype(np.float32)
    actions = state[:, space.state_index].astype(np.float64)
    assert idle_share(space, actions, state) == 1
    assert idle_share(space, actions + 0.5, state) == 0


def test_saturation_counts_both_ends():
    space = ActionSpace(CONTRACT)
    bins = np.full((4, space.dimensions), 7)
    bins[0, 0], bins[1, 0], bins[2, 1] = 0, space.bins - 1, 0
    shares = saturation(space, bins)
    assert shares[:3] == [0.5, 0.25, 0]


def test_numbers_have_six_digits():
    content = {'a': [1 / 3, {'b': 123456.789}], 'c': None, 'd': True, 'e': 7, 'f': 'x'}
    assert rounded(content) == {
        'a': [0.333333, {'b': 123457.0}],
        'c': None,
        'd': True,
        'e': 7,
        'f': 'x',
    }
