# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Write a replay folder, whole shards of whole episodes at a time."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qt_core.configuration import plain
from qt_core.contract import RobotContract
from qt_core.instruction import BUNDLED_MODEL
from qt_core.observation import Observation
from qt_core.replay.folder import FORMAT, VERSION, ReplayError, row_fields
from qt_core.spec import Spec

Embed = Callable[[Sequence[str]], NDArray[np.float32]]


@dataclass(frozen=True, kw_only=True)
class ReplayEpisode:
    """One episode of T actions between T + 1 observations.

    Attributes:
        images: Camera name to (T+1, H, W, C) uint8; RGB under a contract.
        state: (T+1, S) float32; S may be 0.
        action: (T, N) float32, in the contract's units; None where there is no contract.
        bins: (T, N) bins of `action`.
        reward: (T,) float32, reward of each action.
        terminal: The task ended with the last action, in success or failure.
        timeout: The episode was cut off after the last action.
        instruction: The sentence; empty for none.
        source: Where the episode came from, such as a bag's name.
        source_hash: Hash of that source's content.
    """

    images: Mapping[str, NDArray[np.uint8]]
    state: NDArray[np.float32]
    action: NDArray[np.float32] | None = None
    bins: NDArray[np.int64]
    reward: NDArray[np.float32]
    terminal: bool
    timeout: bool
    instruction: str
    source: str = ''
    source_hash: str = ''

    def observations(self) -> list[Observation]:
        """Give the T + 1 observations."""
        return [
            Observation({name: frames[t] for name, frames in self.images.items()}, self.state[t])
            for t in range(len(self.state))
        ]


class ReplayWriter:
    """Writes a new replay folder; used as a context manager.

    Everything is written to `<folder>.partial`, which becomes `folder` on `close`; an exception in
    between leaves nothing behind.

    Args:
        folder: Must not exist, or be empty.
        contract: The contract of every episode, or only shapes where they are of no robot.
        embed: Sentences to embeddings (n, E); called once, on close. None for a folder without
            sentences.
        sentence_model: What `embed` embeds with; see `SentenceEncoder`.
        shard_steps: A shard is closed when it holds at least this many actions.

    Raises:
        ReplayError: `folder` exists and is not empty.
    """

    def __init__(
        self,
        folder: Path,
        contract: RobotContract | Spec,
        embed: Embed | None,
        *,
        sentence_model: str = BUNDLED_MODEL,
        shard_steps: int = 4096,
    ) -> None:
        self.folder = Path(folder)
        if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
            raise ReplayError(f'{self.folder} exists and is not empty; choose a new folder')
        self.contract: RobotContract | None = None
        if isinstance(contract, RobotContract):
            self.contract, self.spec = contract, Spec.of(contract)
        else:
            # A model's configuration is a Spec with more in it.
            self.spec = Spec(**contract.fields())  # type: ignore[arg-type]
        self.sentence_model = sentence_model if embed is not None else ''
        self.shard_steps = shard_steps
        self._embed = embed
        self._partial = self.folder.with_name(self.folder.name + '.partial')
        shutil.rmtree(self._partial, ignore_errors=True)
        (self._partial / 'shards').mkdir(parents=True)
        self._pending: list[ReplayEpisode] = []
        self._pending_steps = 0
        self._shards: list[dict[str, int]] = []
        self._episodes: list[dict[str, Any]] = []
        self._instructions: dict[str, int] = {}

    def __enter__(self) -> ReplayWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self.close()
        finally:
            shutil.rmtree(self._partial, ignore_errors=True)

    def add(self, episode: ReplayEpisode) -> None:
        """Append an episode.

        Raises:
            ReplayError: Its arrays do not fit each other or the contract, or it has a sentence
                that nothing embeds.
        """
        _check(episode, self.spec, in_units=self.contract is not None)
        if episode.instruction and self._embed is None:
            raise ReplayError(
                f'episode {episode.source!r} has the instruction {episode.instruction!r}, but the '
                'folder is written without sentences: give `embed`'
            )
        self._pending.append(episode)
        self._pending_steps += len(episode.bins)
        if self._pending_steps >= self.shard_steps:
            self._write_shard()

    def close(self) -> None:
        """Write what is pending and put the folder in its place.

        Raises:
            ReplayError: No episode was added.
        """
        if self._pending:
            self._write_shard()
        if not self._episodes:
            shutil.rmtree(self._partial, ignore_errors=True)
            raise ReplayError(f'{self.folder}: no episode to write')
        if self._embed is not None:
            embeddings = np.asarray(self._embed(list(self._instructions)), np.float32)
            np.save(self._partial / 'embeddings.npy', embeddings, allow_pickle=False)
        shapes = (
            {'contract': self.contract.to_text()}
            if self.contract is not None
            else {'contract': None, 'spec': plain(self.spec)}
        )
        meta = {
            'format': FORMAT,
            'version': VERSION,
            **shapes,
            'steps': sum(e['steps'] for e in self._episodes),
            'successes': sum(e['return'] > 0 for e in self._episodes),
            'sentence_model': self.sentence_model,
            'instructions': list(self._instructions),
            'shards': self._shards,
            'episodes': self._episodes,
        }
        (self._partial / 'meta.json').write_text(json.dumps(meta, indent=1), encoding='utf-8')
        if self.folder.exists():
            self.folder.rmdir()
        os.replace(self._partial, self.folder)

    def _write_shard(self) -> None:
        index = len(self._shards)
        shard = self._partial / 'shards' / f'{index:06d}'
        shard.mkdir(exist_ok=True)  # where Ctrl-C came while it was written
        rows = sum(len(episode.bins) + 1 for episode in self._pending)
        start, entries = 0, []
        with ExitStack() as files:
            # One episode after the other: joined first, a shard's images would be in memory twice.
            columns = {}
            fields = row_fields(self.spec, in_units=self.contract is not None)
            for name, (kind, shape) in fields.items():
                columns[name] = files.enter_context((shard / f'{name}.npy').open('wb'))
                header = {
                    'descr': np.dtype(kind).str,
                    'fortran_order': False,
                    'shape': (rows, *shape),
                }
                np.lib.format.write_array_header_1_0(columns[name], header)
            for episode in self._pending:
                number = self._number(episode.instruction)
                content = _rows(episode, number)
                for name, (kind, _) in fields.items():
                    values = np.ascontiguousarray(content[name], kind)
                    columns[name].write(values.data.cast('B'))
                steps = len(episode.bins)
                entries.append(
                    {
                        'shard': index,
                        'start': start,
                        'steps': steps,
                        'return': float(episode.reward.sum()),
                        'instruction': number,
                        'source': episode.source,
                        'source_hash': episode.source_hash,
                    }
                )
                start += steps + 1
        self._shards.append({'rows': start})
        self._episodes += entries
        self._pending, self._pending_steps = [], 0

    def _number(self, instruction: str) -> int:
        return self._instructions.setdefault(instruction, len(self._instructions))


def _rows(episode: ReplayEpisode, instruction: int) -> dict[str, NDArray[Any]]:
    """Lay an episode out as T + 1 rows; the last, the final observation, has no action: zeros."""
    steps = len(episode.bins)

    def padded(values: NDArray[Any]) -> NDArray[Any]:
        return np.concatenate([values, np.zeros((1, *values.shape[1:]), values.dtype)])

    last = np.arange(steps) == steps - 1
    return {
        **{f'images_{name}': frames for name, frames in episode.images.items()},
        'state': episode.state,
        **({} if episode.action is None else {'action': padded(episode.action)}),
        'bins': padded(episode.bins),
        'reward': padded(episode.reward),
        'terminal': padded(last & episode.terminal),
        'timeout': padded(last & episode.timeout),
        'instruction': np.full(steps + 1, instruction),
    }


def _check(episode: ReplayEpisode, spec: Spec, *, in_units: bool) -> None:
    steps = len(episode.bins)
    where = f'episode {episode.source!r}'
    if steps == 0:
        raise ReplayError(f'{where} has no action')
    if episode.terminal and episode.timeout:
        raise ReplayError(f'{where} is both terminal and timeout')
    if (episode.action is not None) != in_units:
        raise ReplayError(
            f'{where} has no action values, only bins'
            if in_units
            else f'{where} has action values, but no contract that gives their units'
        )
    expected: dict[str, tuple[NDArray[Any], tuple[int, ...]]] = {
        'state': (episode.state, (steps + 1, spec.state_dim)),
        'bins': (episode.bins, (steps, spec.num_actions)),
        'reward': (episode.reward, (steps,)),
    }
    if episode.action is not None:
        expected['action'] = (episode.action, (steps, spec.num_actions))
    for camera in spec.cameras:
        frames = episode.images.get(camera.name)
        if frames is None or frames.dtype != np.uint8:
            raise ReplayError(f"{where} lacks uint8 images of camera '{camera.name}'")
        expected[f'images[{camera.name}]'] = (
            frames,
            (steps + 1, camera.height, camera.width, camera.channels),
        )
    for name, (values, shape) in expected.items():
        if values.shape != shape:
            raise ReplayError(f'{where}: {name} is {values.shape}, expected {shape}')
    if episode.bins.dtype.kind not in 'iu':
        raise ReplayError(f'{where}: bins are {episode.bins.dtype}, expected whole numbers')
    if episode.bins.min() < 0 or episode.bins.max() >= spec.action_bins:
        raise ReplayError(f'{where}: bins are not all in 0..{spec.action_bins - 1}')
    for name in ('state', 'action', 'reward'):
        if name in expected and not np.isfinite(expected[name][0]).all():
            raise ReplayError(f'{where}: {name} is not finite')
