# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Read a LeRobot dataset, version 3.0 or 2.1, that may come from anyone.

Sizes are checked before anything is read into memory, paths never leave the folder, and the
templates of info.json are filled in by hand: `str.format` would let a file name ask for more.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from qt_core.exchange import lerobot_layout as layout
from qt_core.exchange.errors import ExchangeError
from qt_core.exchange.lerobot_tables import (
    BATCH,
    MAX_LENGTH,
    Columns,
    check_size,
    read_episodes,
)

MAX_JSON_BYTES = 256 << 20
MAX_EPISODES = 10**6
# What a damaged file raises, pyarrow's own errors among them.
DAMAGE = (
    KeyError,
    TypeError,
    ValueError,
    OverflowError,
    AttributeError,
    OSError,
    pa.ArrowException,
)
FIELD = re.compile(r'\{(\w+)(?::0?(\d)d)?\}')


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One episode of a dataset.

    Attributes:
        index: Its number.
        length: Its frames.
        data: The parquet file with its rows.
        videos: Feature to video file and the time of the first frame in it, s.
        extra: Columns that this package wrote.
    """

    index: int
    length: int
    data: Path
    videos: Mapping[str, tuple[Path, float]]
    extra: Mapping[str, str]


class LeRobotFolder:
    """A LeRobot dataset in a folder.

    Attributes:
        fps: Frames per second.
        features: Name to `dtype`, `shape` and `names`, as in info.json.
        tasks: Number to sentence.
        episodes: The episodes, in order.
        ours: What an export of this package adds: `actions` and `contract`; else empty.

    Raises:
        ExchangeError: The folder holds no such dataset, or a damaged one.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        info = self._object(layout.INFO)
        try:
            self.version = str(info['codebase_version'])
            self.fps = float(info['fps'])
            self.features: dict[str, dict[str, Any]] = {
                str(name): {
                    **feature,
                    'dtype': str(feature['dtype']),
                    'shape': tuple(int(n) for n in feature['shape']),
                }
                for name, feature in info['features'].items()
            }
            self._templates = {'data': info['data_path'], 'video': info.get('video_path')}
            self._chunk = int(info.get('chunks_size') or layout.FILES_PER_CHUNK)
        except DAMAGE as error:
            raise ExchangeError(f'{folder}: damaged {layout.INFO} ({error!r})') from error
        if self.version not in (layout.VERSION, 'v2.1'):
            raise ExchangeError(
                f'{folder}: a dataset of version {self.version}, expected {layout.VERSION} or '
                'v2.1; lerobot converts older ones'
            )
        if not 0 < self.fps <= 1000 or self._chunk < 1:
            raise ExchangeError(f'{folder}: damaged {layout.INFO} (fps {self.fps:g})')
        self._video_keys = [n for n, f in self.features.items() if f.get('dtype') == 'video']
        ours = self.folder / layout.OURS
        self.ours = self._object(layout.OURS) if ours.exists() else {}
        try:
            if self.version == layout.VERSION:
                self.tasks = self._tasks()
                self.episodes = self._episodes()
            else:
                self.tasks = {
                    int(line['task_index']): str(line['task'])
                    for line in self._lines('meta/tasks.jsonl')
                }
                self.episodes = [
                    self._entry(line, {}) for line in self._lines('meta/episodes.jsonl')
                ]
        except ExchangeError:
            raise
        except DAMAGE as error:
            line = ' '.join(str(error).split())
            raise ExchangeError(
                f'{folder}: damaged meta ({type(error).__name__}: {line})'
            ) from error
        if not self.episodes:
            raise ExchangeError(f'{folder}: no episode in it')
        numbers = [entry.index for entry in self.episodes]
        if len(set(numbers)) != len(numbers):
            raise ExchangeError(f'{folder}: damaged meta (an episode is listed twice)')

    def rows(self, columns: Sequence[str]) -> Iterator[tuple[Entry, Columns | ExchangeError]]:
        """Give the columns of each episode, or what is wrong with it, in order of the files.

        Raises:
            ExchangeError: A column is not among the features.
        """
        for name in columns:
            if name not in self.features:
                raise ExchangeError(f"{self.folder}: no feature '{name}'")
        for path, group in groupby(self.episodes, key=lambda entry: entry.data):
            entries = {entry.index: entry for entry in group}
            problem = f'no rows in {path.name}'
            try:
                for index, content in read_episodes(path, columns, self.features):
                    entry = entries.pop(index, None)
                    if entry is None:
                        continue
                    length = len(next(iter(content.values())))
                    if length != entry.length:
                        error = f'{length} rows in {path.name}, expected {entry.length}'
                        yield entry, ExchangeError(self._where(entry, error))
                        continue
                    yield entry, content
            except DAMAGE as error:
                problem = ' '.join(str(error).split())
            for entry in entries.values():
                yield entry, ExchangeError(self._where(entry, problem))

    def _where(self, entry: Entry, problem: str) -> str:
        return f'{self.folder}: episode {entry.index}: {problem}'

    def _tasks(self) -> dict[int, str]:
        path = self._inside(layout.TASKS)
        with parquet.ParquetFile(path) as file:
            check_size(file, file.schema_arrow.names, path)
            if file.metadata.num_rows > MAX_EPISODES:
                raise ExchangeError(f'{path}: over {MAX_EPISODES} sentences')
            table = file.read()
        texts = [f.name for f in table.schema if pa.types.is_string(f.type)]
        texts += [f.name for f in table.schema if pa.types.is_large_string(f.type)]
        if len(texts) != 1 or 'task_index' not in table.schema.names:
            raise ExchangeError(f'{path}: expected task_index and one column of sentences')
        numbers, sentences = table['task_index'].to_pylist(), table[texts[0]].to_pylist()
        return {int(n): str(s) for n, s in zip(numbers, sentences, strict=True)}

    def _episodes(self) -> list[Entry]:
        entries: list[Entry] = []
        extra = (layout.OUTCOME, layout.SOURCE, layout.SOURCE_HASH, layout.QUALITY)
        for path in sorted(self.folder.glob('meta/episodes/chunk-*/file-*.parquet')):
            path = self._inside(str(path.relative_to(self.folder)))
            with parquet.ParquetFile(path) as file:
                needed = ('episode_index', 'length', 'data/', 'videos/', *extra)
                stored = [n for n in file.schema_arrow.names if n.startswith(needed)]
                check_size(file, stored, path)
                for batch in file.iter_batches(BATCH, columns=stored):
                    for row in batch.to_pylist():
                        found = {n: str(row[n]) for n in extra if row.get(n) is not None}
                        entries.append(self._entry(row, found))
                        if len(entries) > MAX_EPISODES:
                            raise ExchangeError(f'{path}: over {MAX_EPISODES} episodes')
        return sorted(entries, key=lambda entry: entry.index)

    def _entry(self, row: Mapping[str, Any], extra: Mapping[str, str]) -> Entry:
        """Make an episode's entry of a row of its table."""
        index, length = int(row['episode_index']), int(row['length'])
        if index < 0 or not 0 < length <= MAX_LENGTH:
            raise ExchangeError(
                f'{self.folder}: episode {index} has {length} frames, expected 1..{MAX_LENGTH}'
            )
        old = {'episode_chunk': index // self._chunk, 'episode_index': index}

        def place(kind: str, key: str) -> tuple[Path, float]:
            known: dict[str, Any] = {'video_key': key, **old}
            start = 0.0
            if self.version == layout.VERSION:
                stem = f'videos/{key}' if kind == 'video' else 'data'
                known['chunk_index'] = int(row[f'{stem}/chunk_index'])
                known['file_index'] = int(row[f'{stem}/file_index'])
                start = float(row[f'{stem}/from_timestamp']) if kind == 'video' else 0.0
            if not 0 <= start < 1e7:
                raise ExchangeError(f'{self.folder}: episode {index} starts at {start} s')
            return self._inside(_filled(self._templates[kind], known)), start

        return Entry(
            index=index,
            length=length,
            data=place('data', '')[0],
            videos={key: place('video', key) for key in self._video_keys},
            extra=extra,
        )

    def _inside(self, name: str) -> Path:
        """Give the path of a file of the dataset.

        Raises:
            ExchangeError: It would lie outside the folder.
        """
        path = self.folder / name
        if '\0' in name or not path.resolve().is_relative_to(self.folder.resolve()):
            raise ExchangeError(f'{self.folder}: {name!r} leads out of the folder')
        return path

    def _text(self, name: str) -> str:
        path = self._inside(name)
        try:
            if path.stat().st_size > MAX_JSON_BYTES:
                raise ExchangeError(f'{path} is larger than {MAX_JSON_BYTES} bytes')
            return path.read_text(encoding='utf-8')
        except (OSError, UnicodeDecodeError) as error:
            raise ExchangeError(
                f'{self.folder}: not a LeRobot dataset ({name}: {error})'
            ) from error

    def _object(self, name: str) -> dict[str, Any]:
        try:
            content = json.loads(self._text(name))
        except (ValueError, RecursionError) as error:
            if isinstance(error, ExchangeError):
                raise
            raise ExchangeError(f'{self.folder}/{name}: not JSON ({error})') from error
        if not isinstance(content, dict):
            raise ExchangeError(f'{self.folder}/{name}: expected a JSON object')
        return content

    def _lines(self, name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._text(name).splitlines() if line.strip()]


def _filled(template: Any, known: Mapping[str, Any]) -> str:
    """Fill in a template such as `data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet`."""
    if not isinstance(template, str):
        raise ExchangeError(f'info.json: a path is {template!r}, expected text')

    def field(match: re.Match[str]) -> str:
        name, width = match.groups()
        if name not in known:
            raise ExchangeError(f'info.json: path {template!r} asks for {name!r}')
        return str(known[name]).zfill(int(width or 0))

    filled = FIELD.sub(field, template)
    if '{' in filled or '}' in filled:
        raise ExchangeError(f'info.json: path {template!r} cannot be understood')
    return filled
