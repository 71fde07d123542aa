# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Open a replay folder without reading it into memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qt_core.action_space import ActionSpace
from qt_core.contract import ContractError, RobotContract

FORMAT = 'qt-replay'
VERSION = 1


class ReplayError(ValueError):
    """A replay folder that cannot be read or written, and why."""


class ReplayFolder:
    """A replay folder, memory-mapped.

    Attributes:
        contract: The contract of its episodes.
        episodes: One dict per episode: `shard`, `start` (row in the shard), `steps`, `return`,
            `instruction`, `source`, `source_hash`.
        instructions: The sentences.
        sentence_model: What embedded them; see `SentenceEncoder`.
        embeddings: (len(instructions), E) float32.
        shards: One dict of memory-mapped arrays per shard; see `qt_core.replay.writer`.

    Raises:
        ReplayError: The folder is not a replay folder of this version, or is damaged.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        try:
            meta = json.loads((self.folder / 'meta.json').read_text(encoding='utf-8'))
        except (OSError, ValueError) as error:
            raise ReplayError(f'{folder}: not a replay folder (meta.json: {error})') from error
        if not isinstance(meta, dict):
            raise ReplayError(f'{folder}: not a replay folder (meta.json holds no object)')
        if meta.get('format') != FORMAT or meta.get('version') != VERSION:
            raise ReplayError(
                f'{folder}: format {meta.get("format")!r} version {meta.get("version")!r}, '
                f'expected {FORMAT!r} version {VERSION}'
            )
        try:
            self.contract = RobotContract.from_text(meta['contract'], f'{folder}/meta.json')
            self.episodes: list[dict[str, Any]] = meta['episodes']
            self.instructions: list[str] = meta['instructions']
            self.sentence_model = str(meta['sentence_model'])
            rows = [int(shard['rows']) for shard in meta['shards']]
        except (KeyError, TypeError, ContractError) as error:
            raise ReplayError(f'{folder}: damaged meta.json ({error})') from error
        self.embeddings: NDArray[np.float32] = np.asarray(self._map('embeddings.npy', None))
        if len(self.embeddings) != len(self.instructions):
            raise ReplayError(f'{folder}: embeddings.npy does not have one row per instruction')
        dimensions = ActionSpace(self.contract).dimensions
        shapes: dict[str, tuple[int, ...]] = {
            **{f'images_{c.name}': (c.height, c.width, 3) for c in self.contract.cameras},
            'state': (len(self.contract.state.joints),),
            **dict.fromkeys(('action', 'bins'), (dimensions,)),
            **dict.fromkeys(('reward', 'terminal', 'timeout', 'instruction'), ()),
        }
        self.shards = [
            {
                name: self._map(f'shards/{index:06d}/{name}.npy', (count, *shape))
                for name, shape in shapes.items()
            }
            for index, count in enumerate(rows)
        ]
        for index, episode in enumerate(self.episodes):
            if not _fits(episode, rows, len(self.instructions)):
                raise ReplayError(f'{folder}: damaged meta.json (episodes[{index}])')

    @property
    def steps(self) -> int:
        """Number of actions in all episodes."""
        return sum(int(episode['steps']) for episode in self.episodes)

    @property
    def successes(self) -> int:
        """Number of episodes with a positive return."""
        return sum(episode['return'] > 0 for episode in self.episodes)

    def returns_to_go(self, discount: float) -> list[NDArray[np.float32]]:
        """Compute G_t = r_t + γ G_{t+1} within each episode, per shard and row."""
        returns = [np.zeros(len(shard['reward']), np.float32) for shard in self.shards]
        for episode in self.episodes:
            reward = self.shards[episode['shard']]['reward']
            rest = 0.0
            for row in reversed(range(episode['start'], episode['start'] + episode['steps'])):
                rest = float(reward[row]) + discount * rest
                returns[episode['shard']][row] = rest
        return returns

    def _map(self, name: str, shape: tuple[int, ...] | None) -> NDArray[Any]:
        try:
            array = np.load(self.folder / name, mmap_mode='r', allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise ReplayError(f'{self.folder}: {name} cannot be read ({error})') from error
        if shape is not None and array.shape != shape:
            raise ReplayError(f'{self.folder}: {name} is {array.shape}, expected {shape}')
        return np.asarray(array) if shape is None else array


def _fits(episode: Any, rows: list[int], instructions: int) -> bool:
    try:
        shard, start, steps = episode['shard'], episode['start'], episode['steps']
        inside = 0 <= shard < len(rows) and start >= 0 < steps and start + steps < rows[shard]
        return bool(inside and 0 <= episode['instruction'] < instructions)
    except (KeyError, TypeError):
        return False
