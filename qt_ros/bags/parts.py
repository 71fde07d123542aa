# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The files a bag consists of: MCAP or sqlite3, one or several, compressed or cut off.

Only the files in the bag's own folder are ever opened. metadata.yaml, which a crash or a person
may have lost, is asked for nothing but the names of the parts.
"""

from __future__ import annotations

import errno
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from rosbags.interfaces import Connection
from rosbags.rosbag2 import Reader

from qt_ros.bags.episode import BagError
from qt_ros.bags.prefix import Mended, data_length, readable_length

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

SUFFIXES = ('.mcap', '.db3')
COMPRESSED = '.zstd'
METADATA = 'metadata.yaml'
ZSTD = b'\x28\xb5\x2f\xfd'  # begins what zstd compressed; a serialised message begins with a zero
_Loader: Any = getattr(yaml, 'CSafeLoader', yaml.SafeLoader)
MAX_METADATA = 16 << 20  # bytes
MAX_CHUNK = 1 << 30  # bytes
MAX_MESSAGE = 320 << 20  # bytes
COPIED = 8 << 20  # bytes at a time
RESERVE = 512 << 20  # bytes of disk that decompressing leaves free
LOCAL = (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.EACCES, errno.ENOMEM)


def is_part(path: Path) -> bool:
    """Whether a file is one that a bag is made of, by its name."""
    name = path.name.removesuffix(COMPRESSED)
    return name.endswith(SUFFIXES) and path.is_file()


def find_parts(path: Path) -> list[Path]:
    """List the files of a bag, a folder or a single file, in the order they were written.

    A file that metadata.yaml names and that is not there is listed too.
    """
    if not path.is_dir():
        return [path]
    names = {file.name for file in path.iterdir() if is_part(file)}
    return [path / name for name in sorted(names | _listed(path), key=_natural)]


def _natural(name: str) -> list[Any]:
    """Sort bag_10 behind bag_9."""
    return [int(part) if part.isdecimal() else part for part in re.split(r'(\d+)', name)]


def _listed(path: Path) -> set[str]:
    """Give the names in metadata.yaml, without any folder; none where it is of no use."""
    file = path / METADATA
    try:
        if file.stat().st_size > MAX_METADATA:
            return set()
        content = yaml.load(file.read_bytes(), _Loader)  # a safe one
        listed = content['rosbag2_bagfile_information']['relative_file_paths']
        names = {PurePosixPath(name).name for name in listed}
    except (OSError, ValueError, KeyError, TypeError, RecursionError, yaml.YAMLError):
        return set()
    return {name for name in names if name.removesuffix(COMPRESSED).endswith(SUFFIXES)}


class LocalError(BagError):
    """A bag that cannot be read for want of something on this machine, and what."""


class Part:
    """One file of a bag, open.

    Attributes:
        connections: What is recorded in it.
        damage: Why it is not whole; '' for a whole one.
        cut: Whether its end is missing.
    """

    def __init__(self, reader: Reader, damage: str, *, cut: bool) -> None:
        self._reader, self.damage, self.cut = reader, damage, cut
        self.connections: list[Connection] = list(reader.connections)

    def messages(self, connections: list[Connection]) -> Iterator[tuple[Connection, int, bytes]]:
        """Iterate over the serialised messages of `connections`; any exception means damage."""
        if not connections:
            return
        storage: Any = self._reader.storage
        # Without an index, messages are in the order of the file, whatever their times.
        scan = isinstance(self._reader.path, Mended) or not getattr(storage, 'chunks', True)
        read = storage.messages_scan if scan else storage.messages
        for connection, time, data in read(connections):
            yield connection, time, decompressed(data) if data[:4] == ZSTD else data


@contextmanager
def open_part(path: Path) -> Iterator[Part]:
    """Open one file of a bag.

    Raises:
        BagError: Nothing of it can be read.
    """
    with TemporaryDirectory(prefix='qt-ros-') as folder:
        file = path
        if path.suffix == COMPRESSED:
            file = _decompress(path, Path(folder))
        elif path.suffix == '.db3' and any(sign in str(path) for sign in '?#%'):
            file = Path(folder, 'bag.db3')  # they have a meaning in sqlite's names
            file.symlink_to(path.resolve())
        reader, damage = _open(file, path)
        cut = isinstance(reader.path, Mended) and readable_length(file) is not None
        try:
            yield Part(reader, damage, cut=cut)
        finally:
            reader.close()


def _open(file: Path, path: Path) -> tuple[Reader, str]:
    """Open a file, with its index or, where that is missing, without; errors name `path`."""
    try:
        length = readable_length(file) if file.suffix == '.mcap' else None
        damage = ''
        if length is None:
            try:
                return _opened(file), damage
            except BagError:
                raise
            except Exception as error:
                if file.suffix != '.mcap':
                    raise
                length = data_length(file)
                damage = f'{path.name}: its index cannot be read ({_line(error)})'
        damage = damage or f'{path.name} was cut off; {length} bytes of it could be read'
        return _opened(Mended(file, length)), damage
    except Exception as error:  # rosbags has no common base class; any of them means unreadable
        if is_local(error):
            raise
        raise BagError(f'{path}: cannot be read ({_line(error)})') from error


def is_local(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, is about this machine and not about the bag."""
    while error is not None:
        if isinstance(error, LocalError | MemoryError):
            return True
        if isinstance(error, OSError) and error.errno in LOCAL:
            return True
        error = error.__cause__
    return False


def _opened(file: Path | Mended) -> Reader:
    reader = Reader(file)  # type: ignore[arg-type]
    reader.open()
    for chunk in getattr(reader.storage, 'chunks', []):
        if max(chunk.uncompressed_size, chunk.compressed_size) > MAX_CHUNK:
            reader.close()
            raise BagError(f'a chunk of {chunk.uncompressed_size} bytes')
    return reader


def _decompress(path: Path, folder: Path) -> Path:
    """Decompress a file into `folder`; what of it can be, if it is damaged."""
    file = folder / path.name.removesuffix(COMPRESSED)
    try:
        with zstd.open(path, 'rb') as source, file.open('wb') as target:
            while data := source.read(COPIED):
                target.write(data)
                if shutil.disk_usage(folder).free < RESERVE:
                    raise LocalError(f'{path}: no room in {folder.parent} to decompress it')
    except (EOFError, zstd.ZstdError):
        pass  # what comes of it is a file that was cut off
    return file


def decompressed(data: bytes) -> bytes:
    """Decompress a message.

    Raises:
        BagError: It is damaged or too large.
    """
    decompressor = zstd.ZstdDecompressor()
    try:
        content: bytes = decompressor.decompress(data, MAX_MESSAGE)
    except zstd.ZstdError as error:
        raise BagError(f'a message cannot be decompressed ({_line(error)})') from error
    if not decompressor.eof:
        raise BagError(f'a compressed message is cut off or over {MAX_MESSAGE >> 20} MiB')
    return content


def _line(error: Exception) -> str:
    return ' '.join(str(error).split()) or type(error).__name__
