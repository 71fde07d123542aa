# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Windows that a sequence model reads: they begin anywhere, and every step is trained on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from qt_core.replay.dataset import ReplayMemoryDataset
from qt_core.replay.folder import DEFAULT_FOLDER, ReplayFolder


class SequenceDataset(ReplayMemoryDataset):
    """Windows of at most K consecutive steps of one episode, all of them `valid`.

        observations   0  1  2  3  4  5  6        K = 4: sample 1 holds the actions 1..4,
        actions         0  1  2  3  4  5          sample 4 the actions 4 and 5 alone
        windows           └────────┘
                                   └─────┘

    Sample number i stands for the first step of a window, over every step of every episode: so an
    episode is drawn in proportion to its length, and the start in it uniformly (Chen et al. 2021).

    Args:
        folder: A replay folder or its path.
        context: K.
        condition_on_text: Whether batches carry the embedding of the sentence.
        discount: γ of the returns-to-go.
        episodes: Numbers of the episodes to draw from; None for all.

    Raises:
        ReplayError: The folder cannot be read, or has no sentences to condition on.
        ConfigurationError: A number is out of range.
    """

    with_action = True

    def __init__(
        self,
        folder: ReplayFolder | str | Path = DEFAULT_FOLDER,
        context: int = 20,
        condition_on_text: bool = True,
        *,
        discount: float = 1.0,
        episodes: Sequence[int] | None = None,
    ) -> None:
        # With one trained step, samples are the steps, whatever they mean in a window.
        super().__init__(
            folder, 1, condition_on_text, discount=discount, frames=context, episodes=episodes
        )

    def with_frames(
        self,
        frames: int,
        *,
        discount: float | None = None,
        episodes: Sequence[int] | None = None,
    ) -> Self:
        """Give windows of `frames` steps; None leaves what is set here."""
        return type(self)(
            self.folder,
            frames,
            self.condition_on_text,
            discount=self.discount if discount is None else discount,
            episodes=self.episodes if episodes is None else episodes,
        )

    def _locate(self, index: NDArray[np.int64]) -> tuple[NDArray[np.int64], ...]:
        shard, start, steps, instruction, first, _ = super()._locate(index)
        return shard, start, steps, instruction, first, first

    def _valid(self, last: NDArray[np.int64], length: NDArray[np.int64]) -> NDArray[np.bool_]:
        return self._offsets[:-1] < length[:, None]
