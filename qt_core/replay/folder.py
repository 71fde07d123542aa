# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Open a replay folder without reading it into memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qt_core.configuration import build
from qt_core.contract import RobotContract
from qt_core.spec import Spec

FORMAT = 'qt-replay'
VERSION = 1
DEFAULT_FOLDER = './replay_memories_data'


class ReplayError(ValueError):
    """A replay folder that cannot be read or written, and why."""


class ReplayFolder:
    """A replay folder, memory-mapped.

    Attributes:
        contract: The contract of its episodes; None where they are of no robot.
        spec: Shapes of its observations and actions.
        episodes: One dict per episode: `shard`, `start` (row in the shard), `steps`, `return`,
            `instruction`, `source`, `source_hash`.
        instructions: The sentences.
        sentence_model: What embedded them, see `SentenceEncoder`; empty in a folder without
            sentences.
        embeddings: (len(instructions), E) float32; None in a folder without sentences.
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
            self.contract, self.spec = _shapes(meta, f'{folder}/meta.json')
            self.episodes: list[dict[str, Any]] = meta['episodes']
            self.instructions: list[str] = meta['instructions']
            self.sentence_model = str(meta['sentence_model'])
            rows = [int(shard['rows']) for shard in meta['shards']]
        except (KeyError, TypeError, ValueError) as error:
            raise ReplayError(f'{folder}: damaged meta.json ({error})') from error
        self.embeddings: NDArray[np.float32] | None = None
        if self.sentence_model:
            shape = (len(self.instructions), None)
            self.embeddings = self._map('embeddings.npy', np.float32, shape)
        fields = row_fields(self.spec, in_units=self.contract is not None)
        self.shards = [
            {
                name: self._map(f'shards/{index:06d}/{name}.npy', kind, (count, *shape))
                for name, (kind, shape) in fields.items()
            }
            for index, count in enumerate(rows)
        ]
        for index, episode in enumerate(self.episodes):
            if not _fits(episode, rows, len(self.instructions)):
                raise ReplayError(f'{folder}: damaged meta.json (episodes[{index}])')

    def __reduce__(self) -> tuple[type[ReplayFolder], tuple[Path]]:
        """Pickle as the path: a worker process maps the arrays again, and copies none."""
        return ReplayFolder, (self.folder,)

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
            shard, start = episode['shard'], episode['start']
            reward = self.shards[shard]['reward'][start : start + episode['steps']].tolist()
            rest = 0.0
            for step in reversed(range(len(reward))):
                rest = reward[step] = reward[step] + discount * rest
            returns[shard][start : start + len(reward)] = reward
        return returns

    def _map(
        self, name: str, kind: type[np.generic], shape: tuple[int | None, ...]
    ) -> NDArray[Any]:
        try:
            array = np.load(self.folder / name, mmap_mode='r', allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise ReplayError(f'{self.folder}: {name} cannot be read ({error})') from error
        fits = len(array.shape) == len(shape) and all(
            wanted in (None, got) for got, wanted in zip(array.shape, shape, strict=True)
        )
        if not fits:
            wanted = str(shape).replace('None', '*')
            raise ReplayError(f'{self.folder}: {name} is {array.shape}, expected {wanted}')
        if array.dtype != kind:
            raise ReplayError(f'{self.folder}: {name} is {array.dtype}, expected {np.dtype(kind)}')
        return array


def row_fields(
    spec: Spec, *, in_units: bool
) -> dict[str, tuple[type[np.generic], tuple[int, ...]]]:
    """Give the arrays of a shard: name to number format and shape of one row.

    Args:
        spec: Shapes of observations and actions.
        in_units: Whether actions have units, and so values beside their bins.
    """
    actions = (spec.num_actions,)
    return {
        **{
            f'images_{camera.name}': (np.uint8, (camera.height, camera.width, camera.channels))
            for camera in spec.cameras
        },
        **({'state': (np.float32, (spec.state_dim,))} if spec.state_dim else {}),
        **({'action': (np.float32, actions)} if in_units else {}),
        'bins': (np.int16, actions),
        'reward': (np.float32, ()),
        'terminal': (np.bool_, ()),
        'timeout': (np.bool_, ()),
        'instruction': (np.int32, ()),
    }


def _shapes(meta: dict[str, Any], source: str) -> tuple[RobotContract | None, Spec]:
    if meta['contract'] is None:
        return None, build(Spec, meta['spec'], 'spec')
    contract = RobotContract.from_text(meta['contract'], source)
    return contract, Spec.of(contract)


def _fits(episode: Any, rows: list[int], instructions: int) -> bool:
    try:
        shard, start, steps = episode['shard'], episode['start'], episode['steps']
        inside = 0 <= shard < len(rows) and start >= 0 < steps and start + steps < rows[shard]
        return bool(inside and 0 <= episode['instruction'] < instructions)
    except (KeyError, TypeError):
        return False
