# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The order in which a training reads its windows."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qt_core.replay.dataset import ReplayMemoryDataset
from qt_core.replay.folder import ReplayError
from qt_core.replay.windows import WindowBatch


class WindowSampler:
    """Every window of a dataset, shuffled anew in each epoch.

    Batch k is a function of (seed, k) alone, so that a resumed training sees the same batches.

    Args:
        dataset: The windows.
        batch_size: B.
        seed: Seed of the order.

    Raises:
        ReplayError: The dataset has fewer windows than one batch.
    """

    def __init__(self, dataset: ReplayMemoryDataset, batch_size: int, seed: int) -> None:
        self.dataset = dataset
        self.batch_size = batch_size
        self.seed = seed
        if len(dataset) < batch_size:
            raise ReplayError(
                f'{dataset.folder.folder} has {len(dataset)} windows of {dataset.num_timesteps} '
                f'steps, fewer than one batch of {batch_size}'
            )
        self._epoch = -1
        self._order: NDArray[np.int64] = np.empty(0, np.int64)

    @property
    def batches_per_epoch(self) -> int:
        """Whole batches in one pass over the windows."""
        return len(self.dataset) // self.batch_size

    def batch(self, index: int) -> WindowBatch:
        """Give batch number `index` >= 0."""
        epoch, position = divmod(index, self.batches_per_epoch)
        if epoch != self._epoch:
            random = np.random.default_rng([self.seed, epoch])
            self._order, self._epoch = random.permutation(len(self.dataset)), epoch
        start = position * self.batch_size
        return self.dataset.gather(self._order[start : start + self.batch_size])
