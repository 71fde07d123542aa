# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The order in which a training reads its windows."""

from __future__ import annotations

from resource import RUSAGE_SELF, getrusage

import numpy as np
from numpy.typing import NDArray

from qt_core.replay.dataset import ReplayMemoryDataset
from qt_core.replay.layout import ReplayError
from qt_core.replay.windows import WindowBatch

READS_AHEAD = 100  # batches after one that had to wait for the disk


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
        self._last = -1
        self._reads_ahead = 0
        self._order: NDArray[np.int64] = np.empty(0, np.int64)

    @property
    def batches_per_epoch(self) -> int:
        """Whole batches in one pass over the windows."""
        return len(self.dataset) // self.batch_size

    def batch(self, index: int) -> WindowBatch:
        """Give batch number `index` >= 0.

        While batches come from the disk, it reads the next one too, as far as can be told from
        the batch before, during the time that is spent on this one.
        """
        epoch, position = divmod(index, self.batches_per_epoch)
        if epoch != self._epoch:
            random = np.random.default_rng([self.seed, epoch])
            self._order, self._epoch = random.permutation(len(self.dataset)), epoch
        following = position + max(1, index - self._last)
        self._last = index
        if self._reads_ahead and following < self.batches_per_epoch:
            self.dataset.read_ahead(self._at(following))
        reads = getrusage(RUSAGE_SELF).ru_majflt
        batch = self.dataset.gather(self._at(position))
        waited = getrusage(RUSAGE_SELF).ru_majflt > reads
        self._reads_ahead = READS_AHEAD if waited else max(0, self._reads_ahead - 1)
        return batch

    def samples(self, index: int) -> NDArray[np.int64]:
        """Give the dataset's numbers of the windows of batch `index`, which was the last read."""
        return self._at(index % self.batches_per_epoch)

    def _at(self, position: int) -> NDArray[np.int64]:
        return self._order[position * self.batch_size : (position + 1) * self.batch_size]
