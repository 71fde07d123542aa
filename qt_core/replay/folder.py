# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Open a replay folder without reading it into memory."""

from __future__ import annotations

import errno
import math
import os
from copy import deepcopy
from pathlib import Path
from resource import RLIMIT_NOFILE, getrlimit, setrlimit
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qt_core.replay.episode import ReplayEpisode
from qt_core.replay.frames import Frames, JpegFrames
from qt_core.replay.layout import (
    EMBEDDINGS,
    OUTCOMES,
    QUALITY,
    SHARD,
    SHARDS,
    Meta,
    ReplayError,
    complete_shards,
    read_json,
    row_fields,
    shard_path,
)

DEFAULT_FOLDER = './replay_memories_data'


class ReplayFolder:
    """The complete shards of a replay folder, memory-mapped.

    A folder may be opened while it is written: it shows what was complete at that moment.

    Attributes:
        contract: The contract of its episodes; None where they are of no robot.
        spec: Shapes of its observations and actions.
        episodes: One dict per episode: `shard`, `start` (row in the shard), `steps`, `return`,
            `outcome`, `instruction`, `source`, `source_hash`.
        instructions: The sentences of all shards.
        sentence_model: What embedded them, see `SentenceEncoder`; empty in a folder without
            sentences.
        embeddings: (len(instructions), E) float32; None in a folder without sentences.
        image_format: `raw` or `jpeg`.
        jpeg_quality: Of images encoded for this folder.
        shards: One dict per shard: field to memory-mapped array, or `JpegFrames`; see
            `qt_core.replay.layout`. In `instruction` it has numbers of the shard's own table.

    Raises:
        ReplayError: The folder is not a replay folder of this version, is damaged, or has no
            complete shard.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.meta = Meta.load(self.folder)
        self.contract, self.spec = self.meta.contract, self.meta.spec
        self.sentence_model = self.meta.sentence_model
        self.image_format, self.jpeg_quality = self.meta.image_format, self.meta.jpeg_quality
        self.episodes: list[dict[str, Any]] = []
        self.shards: list[dict[str, Any]] = []
        self._first: list[int] = []  # number of each shard's first episode
        self._quality: tuple[int, list[dict[str, Any] | None]] | None = None  # the shard read last
        table: dict[str, int] = {}
        embeddings: list[NDArray[np.float32]] = []
        count = complete_shards(self.folder)
        _allow_files(count * (len(row_fields(self.spec, in_units=True)) + len(self.spec.cameras)))
        for index in range(count):
            rows, sentences, episodes = self._record(index)
            vectors = self._embeddings(index, len(sentences))
            if vectors is not None and embeddings and len(vectors[0]) != len(embeddings[0]):
                raise ReplayError(
                    f'{self.folder}: {_name(index, EMBEDDINGS)} is {vectors.shape}, '
                    f'expected (*, {len(embeddings[0])})'
                )
            numbers = []
            for place, sentence in enumerate(sentences):
                if sentence not in table and vectors is not None:
                    embeddings.append(vectors[place])
                numbers.append(table.setdefault(sentence, len(table)))
            self._first.append(len(self.episodes))
            self.episodes += [
                {**e, 'shard': index, 'instruction': numbers[e['instruction']]} for e in episodes
            ]
            self.shards.append(self._arrays(index, rows))
        if not self.shards:
            raise ReplayError(f'{self.folder}: no complete shard yet')
        self.instructions = list(table)
        self.embeddings = np.stack(embeddings) if embeddings else None

    def __reduce__(self) -> tuple[type[ReplayFolder], tuple[Path]]:
        """Pickle as the path: a worker process maps the arrays again, and copies none."""
        return ReplayFolder, (self.folder,)

    @property
    def steps(self) -> int:
        """Number of actions in all episodes."""
        return sum(int(episode['steps']) for episode in self.episodes)

    @property
    def successes(self) -> int:
        """Number of episodes that are labelled so, or not labelled and of positive return."""
        return sum(
            episode['outcome'] == 'success'
            or (episode['outcome'] == 'unlabeled' and episode['return'] > 0)
            for episode in self.episodes
        )

    def episode(self, number: int) -> ReplayEpisode:
        """Give one episode; its arrays are views, and its images are read when asked for."""
        entry = self.episodes[number]
        shard, start, steps = self.shards[entry['shard']], entry['start'], entry['steps']
        rows, actions = slice(start, start + steps + 1), slice(start, start + steps)
        images: dict[str, Frames] = {}
        for camera in self.spec.cameras:
            stored = shard[f'images_{camera.name}']
            coded = isinstance(stored, JpegFrames)
            images[camera.name] = stored.part(rows.start, rows.stop) if coded else stored[rows]
        return ReplayEpisode(
            images=images,
            state=shard['state'][rows]
            if self.spec.state_dim
            else np.zeros((steps + 1, 0), np.float32),
            action=shard['action'][actions] if self.contract is not None else None,
            bins=shard['bins'][actions],
            reward=shard['reward'][actions],
            terminal=bool(shard['terminal'][start + steps - 1]),
            timeout=bool(shard['timeout'][start + steps - 1]),
            instruction=self.instructions[entry['instruction']],
            source=entry['source'],
            source_hash=entry['source_hash'],
            outcome=entry['outcome'],
            quality=self.quality(number),
        )

    def quality(self, number: int) -> dict[str, Any] | None:
        """Give what was measured of the recording of one episode; None where nothing was.

        Raises:
            ReplayError: The file it is in is damaged.
        """
        shard = self.episodes[number]['shard']
        if self._quality is None or self._quality[0] != shard:
            self._quality = shard, self._qualities(shard)
        return deepcopy(self._quality[1][number - self._first[shard]])

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

    def _record(self, index: int) -> tuple[int, list[str], list[dict[str, Any]]]:
        """Read rows, sentences and episodes of a shard."""
        where = f'{self.folder}: damaged {_name(index, SHARD)}'
        try:
            content = read_json(shard_path(self.folder, index) / SHARD)
        except ReplayError as error:
            raise ReplayError(f'{where} ({error})') from error
        try:
            rows, sentences = content['rows'], content['instructions']
            episodes = content['episodes']
            if not isinstance(episodes, list) or not isinstance(sentences, list):
                raise ReplayError(f'{where} (no lists of episodes and instructions)')
            if not all(isinstance(sentence, str) for sentence in sentences):
                raise ReplayError(f'{where} (instructions)')
        except (KeyError, TypeError, IndexError) as error:
            raise ReplayError(f'{where} ({error})') from error
        end = 0
        for number, episode in enumerate(episodes):
            if not _fits(episode, end, len(sentences)):
                raise ReplayError(f'{where} (episodes[{number}])')
            end += episode['steps'] + 1
        if end == 0 or type(rows) is not int or end != rows:
            raise ReplayError(f'{where} ({rows!r} rows, episodes of {end})')
        return rows, sentences, episodes

    def _qualities(self, index: int) -> list[dict[str, Any] | None]:
        where = f'{self.folder}: damaged {_name(index, QUALITY)}'
        try:
            found = read_json(shard_path(self.folder, index) / QUALITY)
        except ReplayError as error:
            raise ReplayError(f'{where} ({error})') from error
        count = sum(episode['shard'] == index for episode in self.episodes)
        fits = isinstance(found, list) and len(found) == count
        if not fits or not all(item is None or isinstance(item, dict) for item in found):
            raise ReplayError(f'{where} (not one entry per episode)')
        return found

    def _arrays(self, index: int, rows: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        fields = row_fields(self.spec, in_units=self.contract is not None)
        for name, (kind, shape) in fields.items():
            if self.image_format == 'raw' or not name.startswith('images_'):
                found[name] = self._map(_name(index, f'{name}.npy'), kind, (rows, *shape))
                continue
            ends = self._map(_name(index, f'{name}.ends.npy'), np.int64, (rows,))
            path = _name(index, f'{name}.jpegs')
            try:
                data = np.memmap(self.folder / path, np.uint8, 'r').view(np.ndarray)
                height, width, channels = shape
                found[name] = JpegFrames(data, ends.view(np.ndarray), (height, width, channels))
            except (OSError, ValueError) as error:
                raise ReplayError(
                    f'{self.folder}: {path} cannot be read ({error}){_hint(error)}'
                ) from error
        return found

    def _embeddings(self, index: int, count: int) -> NDArray[np.float32] | None:
        if not self.sentence_model:
            return None
        found = self._map(_name(index, EMBEDDINGS), np.float32, (count, None))
        return np.array(found)

    def _map(
        self, name: str, kind: type[np.generic], shape: tuple[int | None, ...]
    ) -> NDArray[Any]:
        """Map an array, once its header and the size of its file are as expected."""
        path = self.folder / name
        try:
            with path.open('rb') as file:
                version = np.lib.format.read_magic(file)
                if version != (1, 0):
                    raise ValueError(f'.npy version {version}')
                got, fortran, dtype = np.lib.format.read_array_header_1_0(file)
                offset, size = file.tell(), os.fstat(file.fileno()).st_size
        except Exception as error:  # of a damaged header, numpy's parser raises nearly anything
            line = ' '.join(str(error).split())
            raise ReplayError(
                f'{self.folder}: {name} cannot be read ({line}){_hint(error)}'
            ) from error
        fits = len(got) == len(shape) and all(
            wanted in (None, found) for found, wanted in zip(got, shape, strict=True)
        )
        if not fits:
            wanted = str(shape).replace('None', '*')
            raise ReplayError(f'{self.folder}: {name} is {got}, expected {wanted}')
        if dtype != kind:
            raise ReplayError(f'{self.folder}: {name} is {dtype}, expected {np.dtype(kind)}')
        bytes_expected = offset + math.prod(got) * dtype.itemsize
        if size != bytes_expected or fortran or 0 in got:
            raise ReplayError(
                f'{self.folder}: {name} cannot be read ({size} bytes, expected {bytes_expected})'
            )
        try:
            return np.memmap(path, dtype, 'r', offset, got)
        except (OSError, ValueError) as error:
            raise ReplayError(
                f'{self.folder}: {name} cannot be mapped ({error}){_hint(error)}'
            ) from error


def _allow_files(count: int) -> None:
    """Let this process keep `count` more files open, as far as it may: a mapped one stays open."""
    soft, hard = getrlimit(RLIMIT_NOFILE)
    if count > soft // 4:
        setrlimit(RLIMIT_NOFILE, (hard, hard))


def _hint(error: Exception) -> str:
    if getattr(error, 'errno', None) != errno.EMFILE:
        return ''
    return '; allow this process more (ulimit -n)'


def _name(index: int, name: str) -> str:
    return f'{SHARDS}/{index:06d}/{name}'


def _fits(episode: Any, start: int, instructions: int) -> bool:
    """Whether an entry of shard.json is one, and follows the one before, which ends at `start`."""
    try:
        numbers = [episode[name] for name in ('start', 'steps', 'instruction')]
        texts = [episode[name] for name in ('source', 'source_hash', 'outcome')]
        result = episode['return']
    except (KeyError, TypeError):
        return False
    return (
        all(type(number) is int for number in numbers)
        and all(isinstance(text, str) for text in texts)
        and type(result) is float
        and math.isfinite(result)
        and numbers[0] == start
        and numbers[1] >= 1
        and 0 <= numbers[2] < instructions
        and texts[2] in OUTCOMES
    )
