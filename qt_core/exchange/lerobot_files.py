# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The files of a LeRobot dataset that is written: tables and videos, closed when they are full."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import parquet

from qt_core.contract import CameraContract
from qt_core.exchange import lerobot_layout as layout
from qt_core.exchange.statistics import ImageStats, Stats, sampled
from qt_core.exchange.video import VideoWriter
from qt_core.replay.frames import Frames

EPISODES_PER_ROW_GROUP = 64


class _Files:
    """Files that are numbered by chunk; the next is begun when an episode would overfill one.

    Args:
        limit: Size of a file in bytes that an episode may not exceed, unless it is alone in it.
    """

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._file: Any = None
        self._frames = 0
        self.place = (0, -1)

    def __enter__(self) -> Any:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Finish the open file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _begin(self, frames: int) -> None:
        """Make room for an episode of so many frames, judging by those in the file."""
        if self._file is not None:
            size = self._size()
            if size + size / self._frames * frames >= self._limit:
                self.close()
        if self._file is None:
            self.place, self._frames = layout.file_after(*self.place), 0
            self._file = self._open(*self.place)
        self._frames += frames

    def _size(self) -> int:
        raise NotImplementedError

    def _open(self, chunk: int, file: int) -> Any:
        raise NotImplementedError


class DataFiles(_Files):
    """The parquet files of what is not an image, one row group per episode."""

    def __init__(self, root: Path, features: Mapping[str, Any], limit: float) -> None:
        super().__init__(limit)
        self._root = root
        self._schema = pa.schema(
            [(name, _column_type(f)) for name, f in features.items() if f['dtype'] != 'video']
        )

    def add(self, columns: Mapping[str, NDArray[Any]]) -> dict[str, int]:
        """Write an episode, columns (n,) or (n, D); give its entry's fields."""
        frames = len(columns[layout.STATE])
        self._begin(frames)
        arrays = [_array(columns[field.name], field.type) for field in self._schema]
        self._file.write_table(pa.Table.from_arrays(arrays, schema=self._schema), frames)
        return {'data/chunk_index': self.place[0], 'data/file_index': self.place[1]}

    def _size(self) -> int:
        return self._path.stat().st_size

    def _open(self, chunk: int, file: int) -> parquet.ParquetWriter:
        self._path = self._root / layout.DATA.format(chunk_index=chunk, file_index=file)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        return parquet.ParquetWriter(self._path, self._schema)


class VideoFiles(_Files):
    """The video files of one camera."""

    def __init__(
        self, root: Path, camera: CameraContract, fps: int, codec: str, crf: int, limit: float
    ) -> None:
        super().__init__(limit)
        self.key = layout.IMAGES + camera.name
        self._root, self._camera = root, camera
        self._fps, self._codec, self._crf = fps, codec, crf

    def add(self, images: Frames) -> tuple[dict[str, Any], Stats]:
        """Encode an episode's images; give its entry's fields and their statistics."""
        frames = images.shape[0]
        self._begin(frames)
        start, counted, stats = self._file.frames, sampled(frames), ImageStats()
        for index in range(frames):
            image = np.asarray(images[index])
            self._file.append(image)
            if index in counted:
                stats.add(image)
        entry = {
            'chunk_index': self.place[0],
            'file_index': self.place[1],
            'from_timestamp': start / self._fps,
            'to_timestamp': (start + frames) / self._fps,
        }
        return {f'videos/{self.key}/{name}': v for name, v in entry.items()}, stats.result()

    def _size(self) -> int:
        size: int = self._file.bytes
        return size

    def _open(self, chunk: int, file: int) -> VideoWriter:
        name = layout.VIDEO.format(video_key=self.key, chunk_index=chunk, file_index=file)
        size = (self._camera.height, self._camera.width)
        return VideoWriter(self._root / name, *size, self._fps, self._codec, self._crf)


class EpisodeTable:
    """The parquet file of one row per episode, written a few rows at a time."""

    def __init__(self, root: Path) -> None:
        self._path = root / layout.EPISODES.format(chunk_index=0, file_index=0)
        self._path.parent.mkdir(parents=True)
        self._rows: list[dict[str, Any]] = []
        self._writer: parquet.ParquetWriter | None = None

    def add(self, row: dict[str, Any]) -> None:
        """Append a row; every row has the same fields."""
        self._rows.append(row)
        if len(self._rows) == EPISODES_PER_ROW_GROUP:
            self._flush()

    def close(self) -> None:
        """Write what is left."""
        if self._rows:
            self._flush()
        if self._writer is not None:
            self._writer.close()

    def _flush(self) -> None:
        schema = None if self._writer is None else self._writer.schema
        table = pa.Table.from_pylist(self._rows, schema=schema)
        if self._writer is None:
            self._writer = parquet.ParquetWriter(self._path, table.schema)
        self._writer.write_table(table)
        self._rows = []


def _column_type(feature: Mapping[str, Any]) -> pa.DataType:
    kind = pa.type_for_alias(feature['dtype'])
    if feature['shape'] == [1] and feature['names'] is None:
        return kind
    return pa.list_(kind, feature['shape'][0])


def _array(values: NDArray[Any], kind: pa.DataType) -> pa.Array:
    if pa.types.is_fixed_size_list(kind):
        flat = np.ascontiguousarray(values, kind.value_type.to_pandas_dtype()).ravel()
        return pa.FixedSizeListArray.from_arrays(pa.array(flat), kind.list_size)
    return pa.array(np.asarray(values, kind.to_pandas_dtype()))
