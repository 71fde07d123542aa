# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Which episodes are good enough to imitate."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from qt_core.configuration import require
from qt_core.replay.folder import ReplayFolder

WINDOW = 1000  # episodes that an expert's return is averaged over, at most


def best_episodes(
    folder: ReplayFolder, share: float, episodes: Sequence[int] | None = None
) -> list[int]:
    """Take episodes of highest return until they make up a share of all steps.

    Behaviour cloning on these is the "%BC" of Chen et al. 2021. Of equal returns the episode that
    was recorded first is taken first.

    Args:
        folder: A replay folder.
        share: Share of the steps, above 0; with 1 all episodes are taken.
        episodes: Numbers of the episodes to choose from; None for all.

    Returns:
        Numbers of the fewest episodes that have this share of the steps, in ascending order.

    Raises:
        ConfigurationError: The share is out of range.
    """
    require(0 < share <= 1, 'share', share, '0 < share <= 1')
    numbers, returns = _returns(folder, episodes)
    best = np.argsort(-returns, kind='stable')
    steps = np.array([folder.episodes[numbers[place]]['steps'] for place in best], np.int64)
    # Rounded, since 0.3 of 10 steps would else be a hair more than 3.
    wanted = round(share * int(steps.sum()), 6)
    count = int(np.searchsorted(steps.cumsum(), wanted)) + 1
    return sorted(numbers[place] for place in best[:count])


def expert_return(returns: Sequence[float] | NDArray[np.floating]) -> float:
    """Give the best mean return of consecutive episodes (Reed et al. 2022, section 4.3).

    Args:
        returns: Of N >= 1 episodes in the order in which they were recorded; the mean is over
            min(1000, 0.1 N) of them, and over one at least.
    """
    values = np.asarray(returns, np.float64)
    width = max(1, min(WINDOW, len(values) // 10))
    totals = np.concatenate([[0.0], values.cumsum()])
    return float((totals[width:] - totals[:-width]).max() / width)


def near_expert(
    folder: ReplayFolder, fraction: float, episodes: Sequence[int] | None = None
) -> list[int]:
    """Take the episodes whose return comes near the expert's (Reed et al. 2022).

    Args:
        folder: A replay folder.
        fraction: Of the expert's return that an episode must have, 0.8 in the paper. Of a negative
            one it may fall short by (1 - fraction) times its size, as it may of a positive one.
        episodes: Numbers of the episodes to choose from; None for all.

    Returns:
        Numbers of the episodes, in ascending order; at least one.

    Raises:
        ConfigurationError: The fraction is out of range.
    """
    require(0 <= fraction <= 1, 'fraction', fraction, '0..1')
    numbers, returns = _returns(folder, episodes)
    expert = expert_return(returns)
    least = expert - (1 - fraction) * abs(expert)
    near = returns >= least - 1e-6 * abs(expert)  # which is rounded
    return [number for number, kept in zip(numbers, near, strict=True) if kept]


def _returns(
    folder: ReplayFolder, episodes: Sequence[int] | None
) -> tuple[list[int], NDArray[np.float64]]:
    numbers = sorted(range(len(folder.episodes)) if episodes is None else episodes)
    require(bool(numbers), 'episodes', numbers, 'at least one to choose from')
    returns = [float(folder.episodes[number]['return']) for number in numbers]
    return numbers, np.array(returns, np.float64)
