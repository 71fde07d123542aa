# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
import itertools
from types import SimpleNamespace

import numpy as np
import pytest

from qt_core.configuration import ConfigurationError
from qt_core.replay import ReplayFolder
from qt_core.replay.selection import best_episodes, expert_return, near_expert


def folder_of(*episodes):
    """Stand in for a folder with episodes of these (return, steps)."""
    return SimpleNamespace(episodes=[{'return': float(r), 'steps': s} for r, s in episodes])


def test_the_best_episodes_are_the_fewest_that_have_the_share():
    folder = folder_of((1, 10), (5, 30), (3, 20), (5, 40))
    assert best_episodes(folder, 0.1) == [1]  # of equal returns the first
    assert best_episodes(folder, 0.3) == [1]  # exactly 30 of 100 steps
    assert best_episodes(folder, 0.31) == [1, 3]
    assert best_episodes(folder, 0.75) == [1, 2, 3]
    assert best_episodes(folder, 1.0) == [0, 1, 2, 3]


def test_the_share_is_of_the_episodes_to_choose_from():
    folder = folder_of((1, 10), (5, 30), (3, 20), (5, 40))
    assert best_episodes(folder, 0.5, [0, 2]) == [2]
    assert best_episodes(folder, 1.0, [2, 0]) == [0, 2]
    with pytest.raises(ConfigurationError, match='episodes'):
        best_episodes(folder, 0.5, [])


def test_any_share_is_reached_by_no_fewer_episodes():
    random = np.random.default_rng(0)
    for _ in range(200):
        episodes = [(random.integers(-3, 4), random.integers(1, 9)) for _ in range(6)]
        share, total = random.uniform(0.01, 1), sum(steps for _, steps in episodes)
        chosen = best_episodes(folder_of(*episodes), share)
        assert sum(episodes[n][1] for n in chosen) >= share * total - 1e-6
        worst = min(chosen, key=lambda n: (episodes[n][0], -n))
        assert sum(episodes[n][1] for n in chosen if n != worst) < share * total
        left = [n for n in range(6) if n not in chosen]
        for kept, other in itertools.product(chosen, left):
            assert (episodes[kept][0], -kept) > (episodes[other][0], -other)


@pytest.mark.parametrize('share', [0.0, -0.1, 1.1, float('nan')])
def test_a_share_out_of_range_is_refused(share):
    with pytest.raises(ConfigurationError, match='share'):
        best_episodes(folder_of((1, 1)), share)


@pytest.mark.parametrize('count', [1, 9, 10, 25, 30, 11_000])
def test_the_experts_return_is_the_best_mean_of_a_window(count):
    returns = np.random.default_rng(count).normal(size=count)
    width = max(1, min(1000, count // 10))
    means = [returns[i : i + width].mean() for i in range(count - width + 1)]
    assert expert_return(returns) == pytest.approx(max(means), abs=1e-9)


def test_near_the_expert():
    returns = [0, 10, 8, 7.9, 9, 1]
    assert near_expert(folder_of(*((r, 1) for r in returns)), 0.8) == [1, 2, 4]
    assert near_expert(folder_of(*((r, 1) for r in returns)), 1.0) == [1]
    assert near_expert(folder_of(*((r, 1) for r in returns)), 0.8, [0, 3, 5]) == [3]


def test_a_lucky_episode_is_not_the_expert():
    # 20 episodes: means over two. The lucky one alone would ask for 80.
    returns = [1.0] * 9 + [100.0] + [1.0] * 6 + [60.0, 60.0] + [1.0] * 2
    assert expert_return(returns) == 60.0
    assert near_expert(folder_of(*((r, 1) for r in returns)), 0.8) == [9, 10 + 6, 10 + 7]


def test_near_an_expert_of_negative_return():
    assert near_expert(folder_of((-10, 1), (-12, 1), (-12.1, 1), (-50, 1)), 0.8) == [0, 1]
    assert near_expert(folder_of((-10, 1), (-12, 1)), 1.0) == [0]


def test_a_real_folder(replay_path):
    folder = ReplayFolder(replay_path)  # 8 episodes of 4..11 steps; 0, 3 and 6 are failures
    assert best_episodes(folder, 0.01) == [1]
    assert best_episodes(folder, 37 / 60) == [1, 2, 4, 5, 7]
    assert near_expert(folder, 0.8) == [1, 2, 4, 5, 7]
