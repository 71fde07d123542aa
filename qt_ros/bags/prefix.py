# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The readable prefix of an MCAP file that was cut off while it was written.

An MCAP file is a row of records, each one byte of kind, eight of length, and the content; messages
come in chunks of about a megabyte (https://mcap.dev/spec). A file that ends early holds whole
records up to some place. Ending it there makes it an MCAP file again, without an index.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import BinaryIO

from qt_ros.bags.episode import BagError

MAGIC = b'\x89MCAP0\r\n'
DATA_END, FOOTER = 0x0F, 0x02
# No checksum of the data; a footer that points to no summary.
ENDING = (
    bytes([DATA_END])
    + (4).to_bytes(8, 'little')
    + bytes(4)
    + bytes([FOOTER])
    + (20).to_bytes(8, 'little')
    + bytes(20)
    + MAGIC
)


def readable_length(path: Path) -> int | None:
    """Find where the last whole data record of a file that was cut off ends, bytes.

    Returns:
        None for a file that is complete.

    Raises:
        BagError: It is no MCAP file, or was cut off within its first record.
    """
    size = path.stat().st_size
    with path.open('rb') as file:
        if file.read(len(MAGIC)) == MAGIC and size >= 2 * len(MAGIC):
            file.seek(-len(MAGIC), os.SEEK_END)
            if file.read() == MAGIC:
                return None
    return data_length(path)


def data_length(path: Path) -> int:
    """Find where the last whole data record of a file ends, bytes, whatever follows it.

    Raises:
        BagError: It is no MCAP file, or has no whole record.
    """
    size = path.stat().st_size
    with path.open('rb') as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise BagError(f'{path}: not an MCAP file')
        end = place = len(MAGIC)
        while place + 9 <= size:
            file.seek(place)
            head = file.read(9)
            place += 9 + int.from_bytes(head[1:], 'little')
            if head[0] in (DATA_END, FOOTER) or place > size:
                break
            end = place
    if end == len(MAGIC):
        raise BagError(f'{path}: cut off before the first message')
    return end


class Mended:
    """A file that was cut off, as if it had been ended after `length` bytes.

    Stands for the path where `rosbags.rosbag2.Reader` opens one.
    """

    def __init__(self, path: Path, length: int) -> None:
        self.path = path
        self.length = length

    def __str__(self) -> str:
        return str(self.path)

    @property
    def suffix(self) -> str:
        """Extension of the file."""
        return self.path.suffix

    def exists(self) -> bool:
        """Whether there is such a file."""
        return self.path.exists()

    def is_dir(self) -> bool:
        """No."""
        return False

    def open(self, mode: str = 'rb') -> BinaryIO:
        """Open the prefix with its ending."""
        return io.BufferedReader(_Joined(self.path, self.length))


class _Joined(io.RawIOBase):
    """The first `length` bytes of a file, then `ENDING`."""

    def __init__(self, path: Path, length: int) -> None:
        self._file = path.open('rb', buffering=0)
        self._length = length
        self._place = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {
            os.SEEK_SET: 0,
            os.SEEK_CUR: self._place,
            os.SEEK_END: self._length + len(ENDING),
        }
        self._place = start[whence] + offset
        return self._place

    def tell(self) -> int:
        return self._place

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        if self._place < self._length:
            self._file.seek(self._place)
            data = self._file.read(min(len(buffer), self._length - self._place))
        else:
            past = self._place - self._length
            data = ENDING[past : past + len(buffer)]
        buffer[: len(data)] = data
        self._place += len(data)
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()
