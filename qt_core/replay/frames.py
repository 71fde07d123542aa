# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Sequences of images: in memory, mapped, in files of their own, raw or as jpegs."""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from qt_core.replay.jpeg import CHANNELS, decode, encode, jpeg_size
from qt_core.replay.layout import IMAGE_FORMATS, ReplayError

SLICE_BYTES = 4 << 20  # what is copied at a time
ROWS_PER_THREAD = 16  # below which starting a thread takes longer than it saves


class Frames(Protocol):
    """Images (n, H, W, C) uint8, read when they are asked for; an array is one."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, H, W, C)."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, key: Any, /) -> NDArray[np.uint8]:
        """Give one image (H, W, C), or those of a slice."""
        ...

    def take(self, indices: Any, /, axis: int = 0) -> NDArray[np.uint8]:
        """Give the images at `indices`, of any shape: (*indices.shape, H, W, C)."""
        ...


class Content(Protocol):
    """Bytes, in memory or in a file."""

    def __len__(self) -> int: ...

    def __getitem__(self, key: slice, /) -> Any: ...


class FileContent:
    """Bytes of a file, read when they are asked for, and not mapped.

    Mapped pages count as resident until memory is short; these never do.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __len__(self) -> int:
        return self.path.stat().st_size

    def __getitem__(self, key: slice) -> bytes:
        with self.path.open('rb') as file:
            file.seek(key.start)
            data = file.read(key.stop - key.start)
        if len(data) != key.stop - key.start:
            raise ReplayError(f'{self.path}: ends at byte {key.start + len(data)} of {key.stop}')
        return data


class _Sequence:
    """What sequences of images have in common: `_read` gives those of ascending numbers."""

    shape: tuple[int, int, int, int]

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: int | slice) -> NDArray[np.uint8]:
        if isinstance(key, slice):
            numbers = range(*key.indices(len(self)))
            return self.take(np.array(numbers, np.int64))
        number = key + len(self) if key < 0 else key
        return self.take(np.array(number))

    def take(self, indices: Any, axis: int = 0) -> NDArray[np.uint8]:
        """Give the images at `indices`, each read once: (*indices.shape, H, W, C)."""
        indices = np.asarray(indices, np.int64)
        if axis != 0:
            raise ReplayError(f'axis is {axis}, expected 0')
        if indices.size and (indices.min() < 0 or indices.max() >= len(self)):
            raise IndexError(f'images {indices.min()}..{indices.max()} of {len(self)}')
        out = np.empty((indices.size, *self.shape[1:]), np.uint8)
        places: dict[int, list[int]] = {}
        for place, row in enumerate(indices.ravel().tolist()):
            places.setdefault(row, []).append(place)
        rows = list(places)

        def read(first: int, step: int) -> None:
            for row in rows[first::step]:
                self._read(row, out[places[row][0]])

        threads = min(len(os.sched_getaffinity(0)), len(rows) // ROWS_PER_THREAD)
        if threads > 1:
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(read, range(threads), [threads] * threads))
        else:
            read(0, 1)
        for first, *others in places.values():  # such as a last frame that fills a window
            if others:
                out[others] = out[first]
        return out.reshape(*indices.shape, *self.shape[1:])

    def _read(self, number: int, out: NDArray[np.uint8]) -> None:
        raise NotImplementedError


class RawFrames(_Sequence):
    """Raw images in a file.

    Args:
        content: The images, one after the other.
        shape: (n, H, W, C).

    Raises:
        ReplayError: The file is of another size.
    """

    def __init__(self, content: FileContent, shape: tuple[int, int, int, int]) -> None:
        self.content, self.shape = content, shape
        self._size = int(np.prod(shape[1:]))
        if len(content) != shape[0] * self._size:
            raise ReplayError(f'{content.path}: {len(content)} bytes, expected images {shape}')

    def __getitem__(self, key: int | slice) -> NDArray[np.uint8]:
        if isinstance(key, slice) and key.step in (None, 1):  # one read
            start, stop, _ = key.indices(len(self))
            stop = max(start, stop)
            data = self.content[start * self._size : stop * self._size]
            return np.frombuffer(data, np.uint8).reshape(stop - start, *self.shape[1:])
        return super().__getitem__(key)

    def _read(self, number: int, out: NDArray[np.uint8]) -> None:
        data = self.content[number * self._size : (number + 1) * self._size]
        out[:] = np.frombuffer(data, np.uint8).reshape(self.shape[1:])


class JpegFrames(_Sequence):
    """Images as jpegs, decoded when they are taken.

    Args:
        data: The jpegs, one after the other.
        ends: (n,) int64, where each ends in `data`.
        frame: (H, W, C) of every image; C is 1 or 3 (RGB).

    Raises:
        ReplayError: `ends` do not ascend to the end of `data`.
    """

    def __init__(
        self, data: Content, ends: NDArray[np.int64], frame: tuple[int, int, int]
    ) -> None:
        self.data, self.ends = data, ends
        self.shape = (len(ends), *frame)
        ascending = len(ends) == 0 or (ends[0] > 0 and bool((ends[1:] > ends[:-1]).all()))
        size = int(ends[-1]) if len(ends) else 0
        if not ascending or size != len(data):
            raise ReplayError(
                f'ends of {len(ends)} jpegs do not ascend to {len(data)}, their size'
            )

    def coded(self, number: int) -> bytes:
        """Give one jpeg.

        Raises:
            ReplayError: It is none, or not of the expected size.
        """
        begin = int(self.ends[number - 1]) if number else 0
        code = bytes(self.data[begin : int(self.ends[number])])
        height, width = jpeg_size(code)
        if (height, width) != self.shape[1:3]:
            wanted = f'{self.shape[2]}x{self.shape[1]}'
            raise ReplayError(f'image {number} is {width}x{height}, expected a jpeg of {wanted}')
        return code

    def part(self, start: int, stop: int) -> JpegFrames:
        """Give images `start` to `stop`, without reading them."""
        begin = int(self.ends[start - 1]) if start else 0
        end = int(self.ends[stop - 1]) if stop else 0
        frame = (self.shape[1], self.shape[2], self.shape[3])
        return JpegFrames(self.data[begin:end], self.ends[start:stop] - begin, frame)

    def _read(self, number: int, out: NDArray[np.uint8]) -> None:
        if not decode(self.coded(number), out):
            raise ReplayError(f'image {number} cannot be decoded')


class FrameFile:
    """A file of images that is filled one by one; used as a context manager.

    What `frames` gives pickles as the file's path, so that one process fills it and another reads
    it. Whoever makes the file removes it.

    Args:
        path: The file; replaced where it exists.
        frame: (H, W, C) of every image.
        image_format: `raw` or `jpeg`.
        jpeg_quality: Of a jpeg, 1..100.

    Raises:
        ReplayError: The format does not exist, or cannot hold C channels.
    """

    def __init__(
        self,
        path: Path,
        frame: tuple[int, int, int],
        image_format: str = 'raw',
        jpeg_quality: int = 95,
    ) -> None:
        if image_format not in IMAGE_FORMATS:
            allowed = ' or '.join(IMAGE_FORMATS)
            raise ReplayError(f'image_format is {image_format!r}, expected {allowed}')
        if image_format == 'jpeg' and frame[2] not in CHANNELS:
            raise ReplayError(f'a jpeg holds 1 or 3 channels, not {frame[2]}')
        self.path, self.frame = Path(path), frame
        self.image_format, self.jpeg_quality = image_format, jpeg_quality
        self._ends: list[int] = []
        self._file: BinaryIO = self.path.open('wb')

    def __enter__(self) -> FrameFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()

    def __len__(self) -> int:
        return len(self._ends)

    def append(self, frame: NDArray[np.uint8]) -> None:
        """Add an image (H, W, C).

        Raises:
            ReplayError: It has another shape or number format.
        """
        if frame.shape != self.frame or frame.dtype != np.uint8:
            raise ReplayError(
                f'{self.path}: image is {frame.shape} {frame.dtype}, expected {self.frame} uint8'
            )
        if self.image_format == 'jpeg':
            data: Any = encode(frame, self.jpeg_quality)
        else:
            data = np.ascontiguousarray(frame).data.cast('B')
        self._file.write(data)
        self._ends.append((self._ends[-1] if self._ends else 0) + len(data))

    def frames(self) -> Frames:
        """Give the images so far."""
        if not self._file.closed:
            self._file.flush()
        content = FileContent(self.path)
        if self.image_format == 'jpeg':
            return JpegFrames(content, np.array(self._ends, np.int64), self.frame)
        return RawFrames(content, (len(self._ends), *self.frame))


def slices(frames: Frames) -> Iterator[NDArray[np.uint8]]:
    """Give all images, a few MB at a time.

    Raises:
        ReplayError: They are not what their shape says.
    """
    count, *frame = frames.shape
    step = max(1, SLICE_BYTES // max(1, int(np.prod(frame))))
    for start in range(0, count, step):
        part = frames[start : start + step]
        expected = (min(step, count - start), *frame)
        if part.shape != expected or part.dtype != np.uint8:
            raise ReplayError(f'images are {part.shape} {part.dtype}, expected {expected} uint8')
        yield np.ascontiguousarray(part)


def read_ahead(frames: Frames, start: int, stop: int) -> None:
    """Let the system read mapped images `start` to `stop` from the disk, and don't wait."""
    if isinstance(frames, np.memmap):
        size = math.prod(frames.shape[1:])
        head = frames.offset % mmap.ALLOCATIONGRANULARITY  # the mapping begins at a page
        first = (head + start * size) // mmap.PAGESIZE * mmap.PAGESIZE
        mapping: mmap.mmap = frames._mmap  # type: ignore[attr-defined]
        mapping.madvise(mmap.MADV_WILLNEED, first, head + stop * size - first)
