# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Windows of consecutive steps, drawn from a replay folder in a reproducible order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qt_core.observation import normalise_state
from qt_core.replay.folder import ReplayError, ReplayFolder


@dataclass(frozen=True)
class WindowBatch:
    """B windows of T actions between T + 1 observations of one episode each.

    Attributes:
        images: Camera name to (B, T+1, H, W, 3) uint8.
        state: (B, T+1, S) float32, normalised to -1..1 by the contract.
        text: (B, E) float32 sentence embedding.
        bins: (B, T, N) int64.
        reward: (B, T) float32.
        terminal: (B, T) bool; no future return after this action.
        returns: (B, T) float32 discounted return-to-go G_t.
        valid: (B, T) bool; False where an episode was shorter than the window.
    """

    images: dict[str, Tensor]
    state: Tensor
    text: Tensor
    bins: Tensor
    reward: Tensor
    terminal: Tensor
    returns: Tensor
    valid: Tensor

    def to(self, device: torch.device) -> WindowBatch:
        """Copy the batch to `device`."""
        moved: dict[str, Any] = {
            name: {camera: frames.to(device) for camera, frames in value.items()}
            if isinstance(value, dict)
            else value.to(device)
            for name, value in vars(self).items()
        }
        return WindowBatch(**moved)


class WindowSampler:
    """Every window of T steps of a replay folder, shuffled anew in each epoch.

    Batch k is a function of (seed, k) alone, so that a resumed training sees the same batches.

    Args:
        folder: The replay folder.
        window: T.
        batch_size: B.
        discount: γ of the returns-to-go.
        seed: Seed of the order.

    Raises:
        ReplayError: The folder has fewer windows than one batch.
    """

    def __init__(
        self, folder: ReplayFolder, *, window: int, batch_size: int, discount: float, seed: int
    ) -> None:
        self.folder = folder
        self.window = window
        self.batch_size = batch_size
        self.seed = seed
        starts = []
        for episode in folder.episodes:
            steps = int(episode['steps'])
            end = int(episode['start']) + steps
            for offset in range(max(1, steps - window + 1)):
                starts.append((int(episode['shard']), int(episode['start']) + offset, end))
        self._starts = np.array(starts, np.int64).reshape(-1, 3)
        if len(self._starts) < batch_size:
            raise ReplayError(
                f'{folder.folder} has {len(self._starts)} windows of {window} steps, '
                f'fewer than one batch of {batch_size}'
            )
        self._returns = folder.returns_to_go(discount)
        self._text = torch.tensor(folder.embeddings)
        self._epoch = -1
        self._order: NDArray[np.int64] = np.empty(0, np.int64)

    @property
    def batches_per_epoch(self) -> int:
        """Whole batches in one pass over the windows."""
        return len(self._starts) // self.batch_size

    def batch(self, index: int) -> WindowBatch:
        """Give batch number `index` >= 0."""
        epoch, position = divmod(index, self.batches_per_epoch)
        if epoch != self._epoch:
            random = np.random.default_rng([self.seed, epoch])
            self._order, self._epoch = random.permutation(len(self._starts)), epoch
        chosen = self._order[position * self.batch_size : (position + 1) * self.batch_size]
        return self.gather(self._starts[chosen])

    def gather(self, starts: NDArray[np.int64]) -> WindowBatch:
        """Read windows given as (B, 3) rows of shard, first row and the episode's last row."""
        offsets = np.arange(self.window + 1)
        rows = np.minimum(starts[:, 1:2] + offsets, starts[:, 2:3])
        valid = starts[:, 1:2] + offsets[:-1] < starts[:, 2:3]

        def read(name: str) -> NDArray[Any]:
            parts = [
                self.folder.shards[s][name][r] for s, r in zip(starts[:, 0], rows, strict=True)
            ]
            return np.stack(parts)

        returns = np.stack(
            [self._returns[s][r] for s, r in zip(starts[:, 0], rows[:, :-1], strict=True)]
        )
        cameras = [camera.name for camera in self.folder.contract.cameras]
        state = normalise_state(self.folder.contract.state, read('state'))
        return WindowBatch(
            images={name: torch.from_numpy(read(f'images_{name}')) for name in cameras},
            state=torch.from_numpy(state),
            text=self._text[torch.from_numpy(read('instruction')[:, 0].astype(np.int64))],
            bins=torch.from_numpy(read('bins')[:, :-1].astype(np.int64)),
            reward=torch.from_numpy(read('reward')[:, :-1]),
            terminal=torch.from_numpy(read('terminal')[:, :-1]),
            returns=torch.from_numpy(returns),
            valid=torch.from_numpy(valid),
        )
