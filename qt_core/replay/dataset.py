# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Windows of the steps of a replay folder, read from disk when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from qt_core.configuration import require
from qt_core.embodiment import Embodiment
from qt_core.observation import normalise_state
from qt_core.replay.folder import DEFAULT_FOLDER, ReplayFolder
from qt_core.replay.frames import read_ahead
from qt_core.replay.layout import ReplayError
from qt_core.replay.windows import WindowBatch
from qt_core.spec import Spec


class ReplayMemoryDataset(Dataset[WindowBatch]):
    """Windows of F frames that end in T = `num_timesteps` consecutive steps to train on.

        observations   0  1  2  3  4  5  6        F = 4, T = 2, t = 4: the window holds the
        actions         0  1  2  3  4  5          actions 1..4 and the observations 1..5;
        window            └─────┴──┘              steps 3 and 4 are `valid`
                                t

    Sample number i stands for the last trained step t of an episode, over every t that has T
    steps up to it; an episode of fewer than T steps is one sample. The window starts at
    max(0, t - F + 1), so that a step near the beginning sees what a policy sees there: the frames
    since the beginning.

    Nothing but the return-to-go of each step is held in memory. With a `DataLoader`, batches come
    whole: `DataLoader(dataset, batch_size, collate_fn=lambda batch: batch)`.

    Args:
        folder: A replay folder or its path.
        num_timesteps: T.
        condition_on_text: Whether batches carry the embedding of the sentence.
        discount: γ of the returns-to-go.
        frames: F, at least T; None for T. `with_frames` sets it to what a network looks at.
        episodes: Numbers of the episodes to draw from; None for all.

    Raises:
        ReplayError: The folder cannot be read, or has no sentences to condition on.
        ConfigurationError: A number is out of range.
    """

    with_action = False  # whether batches hold actions besides bins

    def __init__(
        self,
        folder: ReplayFolder | str | Path = DEFAULT_FOLDER,
        num_timesteps: int = 1,
        condition_on_text: bool = True,
        *,
        discount: float = 0.98,
        frames: int | None = None,
        episodes: Sequence[int] | None = None,
    ) -> None:
        self.folder = folder if isinstance(folder, ReplayFolder) else ReplayFolder(folder)
        self.num_timesteps = num_timesteps
        self.condition_on_text = condition_on_text
        self.discount = discount
        self.frames = num_timesteps if frames is None else frames
        require(num_timesteps >= 1, 'num_timesteps', num_timesteps, 'at least 1')
        least = f'at least num_timesteps = {num_timesteps}'
        require(self.frames >= num_timesteps, 'frames', self.frames, least)
        require(0 <= discount <= 1, 'discount', discount, '0 <= discount <= 1')
        if condition_on_text and self.folder.embeddings is None:
            raise ReplayError(
                f'{self.folder.folder} has no sentences: pass condition_on_text=False'
            )
        total = len(self.folder.episodes)
        self.episodes = tuple(range(total) if episodes is None else episodes)
        for number in self.episodes:
            require(0 <= number < total, 'episodes', number, f'numbers in 0..{total - 1}')
        names = ('shard', 'start', 'steps', 'instruction')
        rows = [[self.folder.episodes[n][name] for name in names] for n in self.episodes]
        self._table = np.array(rows, np.int64).reshape(-1, len(names))
        samples = np.maximum(1, self._table[:, 2] - num_timesteps + 1)
        self._first = np.concatenate([[0], np.cumsum(samples)])  # sample of each episode
        self._offsets = np.arange(self.frames + 1)

    @property
    def spec(self) -> Spec:
        """Shapes of the observations and actions."""
        return self.folder.spec

    def with_frames(
        self,
        frames: int,
        *,
        discount: float | None = None,
        episodes: Sequence[int] | None = None,
    ) -> Self:
        """Give the same samples in windows of `frames`; None leaves what is set here."""
        return type(self)(
            self.folder,
            self.num_timesteps,
            self.condition_on_text,
            discount=self.discount if discount is None else discount,
            frames=frames,
            episodes=self.episodes if episodes is None else episodes,
        )

    def __len__(self) -> int:
        return int(self._first[-1])

    def __getitem__(self, index: int) -> WindowBatch:
        """Give sample `index` as a batch of one."""
        return self.gather([index])

    def __getitems__(self, indices: Sequence[int]) -> WindowBatch:
        """Give a whole batch to a `DataLoader`."""
        return self.gather(indices)

    def gather(self, indices: Sequence[int] | NDArray[np.int64]) -> WindowBatch:
        """Read the windows of these samples.

        Raises:
            IndexError: A number is not in 0..len - 1.
        """
        index = np.asarray(indices, np.int64)
        if index.size and index.view(np.uint64).max() >= len(self):  # -1 is large without a sign
            raise IndexError(f'samples {index.min()}..{index.max()} of {len(self)}')
        shard, start, steps, instruction, last, begin = self._locate(index)
        length = np.minimum(self.frames, steps - begin)
        # The row of the final observation holds zeros for its action.
        rows = np.minimum((start + begin)[:, None] + self._offsets, (start + steps)[:, None])
        parts = set(shard.tolist())
        groups = []
        if len(parts) > 1:
            chosen = [(number, np.flatnonzero(shard == number)) for number in parts]
            groups = [(number, samples, rows[samples]) for number, samples in chosen]

        def field(arrays: Sequence[Any], width: int, kind: type[Any]) -> torch.Tensor:
            if len(parts) == 1:  # without a second copy
                found = arrays[shard[0]].take(rows[:, :width], axis=0).astype(kind, copy=False)
                return torch.from_numpy(found)
            out = np.empty((*rows[:, :width].shape, *arrays[0].shape[1:]), kind)
            if kind is np.uint8 and isinstance(arrays[0], np.ndarray):  # images, copied once
                for place, number in enumerate(shard.tolist()):
                    arrays[number].take(rows[place, :width], 0, out[place], mode='clip')
                return torch.from_numpy(out)
            for number, samples, theirs in groups:
                out[samples] = arrays[number].take(theirs[:, :width], axis=0)
            return torch.from_numpy(out)

        batch, spec, frames = len(index), self.spec, self.frames
        stored = self._fields
        action = self._unit(field, stored) if self.with_action else None
        return WindowBatch(
            images={
                camera.name: field(stored[f'images_{camera.name}'], frames + 1, np.uint8)
                for camera in spec.cameras
            },
            state=self._state(field(stored['state'], frames + 1, np.float32))
            if spec.state_dim
            else torch.zeros(batch, frames + 1, 0),
            text=self._text(instruction),
            bins=field(stored['bins'], frames, np.int64),
            reward=field(stored['reward'], frames, np.float32),
            terminal=field(stored['terminal'], frames, np.bool_),
            returns=field(self._returns, frames, np.float32),
            valid=torch.from_numpy(self._valid(last - begin, length)),
            length=torch.from_numpy(length),
            instruction=torch.from_numpy(instruction.copy()),
            start=torch.from_numpy(begin),
            action=action,
        )

    def _valid(self, last: NDArray[np.int64], length: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Say which steps (B, F) to train on, given the last one's place in each window."""
        age = last[:, None] - self._offsets[:-1]
        return age.view(np.uint64) < self.num_timesteps  # and >= 0

    def _locate(self, index: NDArray[np.int64]) -> tuple[NDArray[np.int64], ...]:
        """Give shard, first row, steps and sentence of samples' episodes; last and first step."""
        episode = self._first.searchsorted(index, side='right') - 1
        shard, start, steps, instruction = self._table[episode].T
        last = index - self._first[episode] + np.minimum(self.num_timesteps, steps) - 1
        return shard, start, steps, instruction, last, np.maximum(0, last - self.frames + 1)

    def read_ahead(self, indices: Sequence[int] | NDArray[np.int64]) -> None:
        """Ask the system to read the raw frames of these samples from the disk, and don't wait."""
        shard, start, steps, _, _, begin = self._locate(np.asarray(indices, np.int64))
        stop = start + np.minimum(begin + self.frames, steps) + 1
        places = [column.tolist() for column in (shard, start + begin, stop)]
        for camera in self.spec.cameras:
            name = f'images_{camera.name}'
            for number, first, last in zip(*places, strict=True):
                read_ahead(self.folder.shards[number][name], first, last)

    def _state(self, state: torch.Tensor) -> torch.Tensor:
        contract = self.folder.contract
        if contract is None:
            return state
        return torch.from_numpy(normalise_state(contract.state, state.numpy()))

    @cached_property
    def _fields(self) -> dict[str, list[Any]]:
        """Give each field's arrays, one per shard, as plain ones: a np.memmap is slow to index."""
        shards = self.folder.shards
        return {name: [_plain(shard[name]) for shard in shards] for name in shards[0]}

    def __getstate__(self) -> dict[str, Any]:
        """Leave the arrays out: a copy in another process opens the folder again."""
        return {name: value for name, value in vars(self).items() if name != '_fields'}

    @cached_property
    def _returns(self) -> list[NDArray[np.float32]]:
        return self.folder.returns_to_go(self.discount)

    def _unit(self, field: Callable[..., torch.Tensor], stored: dict[str, Any]) -> torch.Tensor:
        """Give actions with their range scaled to -1..1."""
        body = Embodiment(self.spec, self.folder.contract)
        name = 'bins' if body.contract is None else 'action'
        values = field(stored[name], self.frames, np.float32).numpy()
        return torch.from_numpy(body.to_unit(values))

    def _text(self, instruction: NDArray[np.int64]) -> torch.Tensor | None:
        embeddings = self.folder.embeddings
        if not self.condition_on_text or embeddings is None:
            return None
        return torch.from_numpy(embeddings.take(instruction, axis=0))


def _plain(stored: Any) -> Any:
    return stored.view(np.ndarray) if isinstance(stored, np.memmap) else stored


def split_episodes(
    folder: ReplayFolder, fraction: float, seed: int
) -> tuple[list[int], list[int]]:
    """Divide the episodes by chance into those to train on and those to validate on.

    Args:
        folder: A replay folder.
        fraction: Share of the episodes to validate on; above 0 at least one, and never all.
        seed: Seed of the choice.

    Raises:
        ConfigurationError: The fraction is not in 0..1, 1 excluded.
        ReplayError: There is one episode only, and none is left to train on.
    """
    require(0 <= fraction < 1, 'fraction', fraction, '0 <= fraction < 1')
    total = len(folder.episodes)
    if fraction > 0 and total < 2:
        raise ReplayError(f'{folder.folder} has {total} episode, too few to keep some apart')
    kept = min(max(1, round(fraction * total)), total - 1) if fraction > 0 else 0
    order = np.random.default_rng(seed).permutation(total).tolist()
    return sorted(order[kept:]), sorted(order[:kept])
