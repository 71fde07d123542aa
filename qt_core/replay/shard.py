# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""One shard of a replay folder while it is written."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qt_core.replay.episode import ReplayEpisode
from qt_core.replay.frames import Frames, JpegFrames, slices
from qt_core.replay.jpeg import encode
from qt_core.replay.layout import (
    EMBEDDINGS,
    PARTIAL,
    QUALITY,
    SHARD,
    Meta,
    ReplayError,
    row_fields,
    sync,
    write_json,
)


class OpenShard:
    """A shard that episodes are added to; it is `path` once it is finished.

    Images go to their files at once; everything else, a few hundred bytes per row, is held until
    the shard is finished.

    Args:
        path: The folder it will be.
        meta: What all episodes share.
    """

    def __init__(self, path: Path, meta: Meta) -> None:
        self.path, self.meta = path, meta
        self.steps = 0
        self.rows = 0
        self.episodes: list[dict[str, Any]] = []
        self.instructions: dict[str, int] = {}
        self._quality: list[Any] = []
        fields = row_fields(meta.spec, in_units=meta.contract is not None)
        images = {f'images_{camera.name}' for camera in meta.spec.cameras}
        self._columns: dict[str, list[NDArray[Any]]] = {n: [] for n in fields if n not in images}
        self._fields = fields
        self._partial = path.with_name(path.name + PARTIAL)
        shutil.rmtree(self._partial, ignore_errors=True)
        self._partial.mkdir(parents=True)
        self._images = {
            camera.name: _ImageFile(self._partial, f'images_{camera.name}', fields, meta)
            for camera in meta.spec.cameras
        }

    def add(self, episode: ReplayEpisode) -> None:
        """Append an episode that fits; on any exception the shard is as it was before."""
        steps, count = len(episode.bins), len(self.episodes)
        number = self.instructions.get(episode.instruction, len(self.instructions))
        try:
            for name, file in self._images.items():
                file.extend(episode.images[name])
            for name, values in _rows(episode, number).items():
                if name in self._columns:
                    self._columns[name].append(np.array(values, self._fields[name][0], order='C'))
            self._quality.append(None if episode.quality is None else dict(episode.quality))
            self.instructions[episode.instruction] = number
        except BaseException as error:
            for file in self._images.values():
                file.truncate(self.rows)
            for parts in (*self._columns.values(), self._quality):
                del parts[count:]
            if isinstance(error, ReplayError):
                raise ReplayError(f'episode {episode.source!r}: {error}') from error
            raise
        self.episodes.append(
            {
                'start': self.rows,
                'steps': steps,
                'return': float(episode.reward.sum()),
                'outcome': episode.outcome,
                'instruction': number,
                'source': episode.source,
                'source_hash': episode.source_hash,
            }
        )
        self.steps += steps
        self.rows += steps + 1

    def finish(self, embeddings: NDArray[np.float32] | None) -> None:
        """Write the rest and put the shard in its place; after an exception, try again.

        Args:
            embeddings: (len(instructions), E); None in a folder without sentences.
        """
        if not self._partial.exists():  # it was put there, and interrupted after that
            return
        for file in self._images.values():
            file.finish()
        for name, parts in self._columns.items():
            _save(self._partial / f'{name}.npy', np.concatenate(parts))
        if embeddings is not None:
            _save(self._partial / EMBEDDINGS, embeddings)
        write_json(self._partial / QUALITY, self._quality)
        files = {
            path.name: {'bytes': path.stat().st_size, 'blake2b': checksum(path)}
            for path in sorted(self._partial.iterdir())
            if path.name != SHARD and not path.name.endswith(PARTIAL)  # of an earlier try
        }
        write_json(
            self._partial / SHARD,
            {
                'rows': self.rows,
                'instructions': list(self.instructions),
                'episodes': self.episodes,
                'files': files,
            },
        )
        sync(self._partial)
        os.replace(self._partial, self.path)
        sync(self.path.parent)

    def drop(self) -> None:
        """Remove what was written."""
        for file in self._images.values():
            file.close()
        shutil.rmtree(self._partial, ignore_errors=True)


class _ImageFile:
    """The images of one camera: a .npy file, or jpegs and where each ends."""

    def __init__(self, folder: Path, name: str, fields: dict[str, Any], meta: Meta) -> None:
        kind, self._shape = fields[name]
        self._jpeg, self._quality = meta.image_format == 'jpeg', meta.jpeg_quality
        self._kind = np.dtype(kind).str
        self._ends = [0]
        self._ends_path = folder / f'{name}.ends.npy'
        path = folder / f'{name}.{"jpegs" if self._jpeg else "npy"}'
        # Unbuffered: when the disk is full, nothing is left over that would be written later.
        self._file = path.open('wb', buffering=0)
        self._head = 0 if self._jpeg else self._write_head(0)

    def extend(self, frames: Frames) -> None:
        """Append images."""
        if self._jpeg and isinstance(frames, JpegFrames):
            for number in range(len(frames)):
                self._append(frames.coded(number))
            return
        for part in slices(frames):
            if self._jpeg:
                for image in part:
                    self._append(encode(image, self._quality))
            else:
                self._write(part.data.cast('B'))
                size = part[0].size
                self._ends += range(self._ends[-1] + size, self._ends[-1] + part.size + 1, size)

    def truncate(self, count: int) -> None:
        """Take the images from number `count` on away again."""
        del self._ends[count + 1 :]
        self._file.truncate(self._head + self._ends[-1])
        self._file.seek(0, os.SEEK_END)

    def finish(self) -> None:
        """Write how many images there are, and close."""
        if self._file.closed:
            return
        if self._jpeg:
            _save(self._ends_path, np.array(self._ends[1:], np.int64))
        else:
            self._file.seek(0)
            self._write_head(len(self._ends) - 1)
        os.fsync(self._file.fileno())
        self._file.close()

    def close(self) -> None:
        """Close the file, whatever is in it."""
        self._file.close()

    def _write(self, data: memoryview) -> None:
        while data:
            data = data[self._file.write(data) :]

    def _append(self, code: bytes) -> None:
        self._write(memoryview(code))
        self._ends.append(self._ends[-1] + len(code))

    def _write_head(self, rows: int) -> int:
        """Write numpy's header, which leaves room for the number of rows to grow."""
        header = {'descr': self._kind, 'fortran_order': False, 'shape': (rows, *self._shape)}
        np.lib.format.write_array_header_1_0(self._file, header)
        return self._file.tell()


def checksum(path: Path) -> str:
    """Hash a file: 32 hexadecimal digits of BLAKE2b."""
    with path.open('rb') as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _save(path: Path, array: NDArray[Any]) -> None:
    with path.open('wb') as file:
        np.save(file, array, allow_pickle=False)
        file.flush()
        os.fsync(file.fileno())


def _rows(episode: ReplayEpisode, instruction: int) -> dict[str, NDArray[Any]]:
    """Lay an episode out as T + 1 rows; the last, the final observation, has no action: zeros."""
    steps = len(episode.bins)

    def padded(values: NDArray[Any]) -> NDArray[Any]:
        return np.concatenate([values, np.zeros((1, *values.shape[1:]), values.dtype)])

    last = np.arange(steps) == steps - 1
    return {
        'state': episode.state,
        **({} if episode.action is None else {'action': padded(episode.action)}),
        'bins': padded(episode.bins),
        'reward': padded(episode.reward),
        'terminal': padded(last & episode.terminal),
        'timeout': padded(last & episode.timeout),
        'instruction': np.full(steps + 1, instruction),
    }
