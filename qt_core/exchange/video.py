# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Images <-> mp4 files that hold many episodes, a frame at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import av
import av.error
import numpy as np
from numpy.typing import NDArray

from qt_core.exchange.errors import ExchangeError

CODECS = ('h264', 'libsvtav1')
GROUP = 2  # frames per key frame: random access decodes at most one frame too many
MAX_SIDE = 4096


class VideoWriter:
    """Encodes one mp4 file; frame n is shown at n / fps exactly.

    Args:
        path: File to write.
        height: Rows, even.
        width: Columns, even.
        fps: Frames per second.
        codec: One of `CODECS`.
        crf: Constant rate factor: lower is better and larger.

    Attributes:
        frames: Number of frames so far.
        bytes: Size of what the encoder has given so far.

    Raises:
        ExchangeError: The encoder does not take these settings.
    """

    def __init__(
        self, path: Path, height: int, width: int, fps: int, codec: str, crf: int
    ) -> None:
        self.path = path
        self.frames = 0
        self.bytes = 0
        self._fps = fps
        path.parent.mkdir(parents=True, exist_ok=True)
        # Without B-frames the first frame is at 0, not at the reordering delay.
        extra = {'bf': '0'} if codec == 'h264' else {'preset': '12'}
        options = {'g': str(GROUP), 'crf': str(crf), **extra}
        os.environ.setdefault('SVT_LOG', '1')  # else SVT-AV1 prints 30 lines for every file
        self._container = av.open(str(path), 'w', options={'movflags': 'faststart'})
        try:
            stream: Any = self._container.add_stream(codec, fps, options=options)
        except ValueError as error:
            raise ExchangeError(f'PyAV has no encoder {codec} ({_line(error)})') from error
        stream.pix_fmt = 'yuv420p'
        stream.height, stream.width = height, width
        stream.codec_context.time_base = Fraction(1, fps)
        self._stream = stream

    def append(self, image: NDArray[np.uint8]) -> None:
        """Encode an image (height, width, 3), RGB."""
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format='rgb24')
        frame.pts, frame.time_base = self.frames, Fraction(1, self._fps)
        self._mux(frame)
        self.frames += 1

    def close(self) -> None:
        """Write what the encoder still holds, and the file's index."""
        self._mux(None)
        self._container.close()

    def _mux(self, frame: Any) -> None:
        try:
            for packet in self._stream.encode(frame):
                self.bytes += packet.size
                self._container.mux(packet)
        except av.error.FFmpegError as error:
            raise ExchangeError(f'{self.path.name} cannot be encoded ({_line(error)})') from error


class VideoReader:
    """Reads frames of a video file by number, best in ascending order; a context manager.

    Args:
        path: The file.
        fps: Its frames per second: frame n is the one shown nearest to n / fps.

    Raises:
        ExchangeError: It holds no video that can be read.
    """

    def __init__(self, path: Path, fps: float) -> None:
        self.path, self._fps = path, fps
        try:
            self._container = av.open(str(path))
        except (av.error.FFmpegError, OSError) as error:
            raise ExchangeError(f'{path} cannot be read ({_line(error)})') from error
        if not self._container.streams.video:
            self._container.close()
            raise ExchangeError(f'{path} holds no video')
        self._stream = self._container.streams.video[0]
        # A stream that nothing decodes has no size.
        self.height = int(getattr(self._stream, 'height', 0))
        self.width = int(getattr(self._stream, 'width', 0))
        if not (0 < self.height <= MAX_SIDE and 0 < self.width <= MAX_SIDE):
            self._container.close()
            raise ExchangeError(
                f'{path}: frames of {self.width}x{self.height}, expected 1..{MAX_SIDE} pixels'
            )
        self._next = 0  # number of the first frame that has not been decoded
        self._decoded = self._container.decode(self._stream)

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._container.close()

    def frames(self, start: int, stop: int, step: int = 1) -> Iterator[NDArray[np.uint8]]:
        """Give the frames of range(start, stop, step), each (height, width, 3) RGB.

        Raises:
            ExchangeError: One is not in the file, or cannot be decoded.
        """
        try:
            if start < self._next or start > self._next + 10 * GROUP:
                time = round(start / self._fps / float(self._stream.time_base or 1))
                self._container.seek(time, stream=self._stream)
                self._decoded = self._container.decode(self._stream)
            wanted = start
            for frame in self._decoded:
                number = round(float(frame.time or 0.0) * self._fps)
                self._next = number + 1
                if number < wanted:
                    continue
                if number > wanted or (frame.height, frame.width) != (self.height, self.width):
                    break
                yield np.asarray(frame.to_ndarray(format='rgb24'), np.uint8)
                wanted += step
                if wanted >= stop:
                    return
        except (av.error.FFmpegError, OSError) as error:
            raise ExchangeError(f'{self.path} cannot be decoded ({_line(error)})') from error
        raise ExchangeError(f'{self.path} has no frame at {wanted / self._fps:.3f} s')


def _line(error: Exception) -> str:
    return ' '.join(str(error).split())
