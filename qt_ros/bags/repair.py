# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Make bags of what a recorder left behind that was killed while it recorded."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rosbags.rosbag2 import Reader

from qt_ros.bags.episode import STOPPED, BagError, EpisodeRecord
from qt_ros.bags.prefix import MAGIC, Mended, readable_length
from qt_ros.bags.writer import RESERVE, EpisodeBagWriter

REPAIRED = 'repaired'  # folder in the partial one where the proper bag is made


def repair_all(folder: Path) -> list[str]:
    """Repair every bag in a folder that was not completed; gives one line for each."""
    lines = []
    for partial in sorted(folder.glob('*.partial')):
        try:
            path = repair(partial)
        except (BagError, OSError) as error:
            lines.append(f'not repaired: {" ".join(str(error).split())}')
        else:
            kept = partial.with_suffix('.unreadable')
            lines.append(f'{path} repaired' if path else f'nothing readable; kept as {kept}')
    return lines


def repair(partial: Path) -> Path | None:
    """Make a bag of a `NAME.partial` folder, and remove the folder.

    The bag holds every message up to the last whole chunk. It is unlabeled, ended by `timeout`,
    and its `damage` says what happened. Where what follows is damaged, and not just missing, the
    original is kept as `NAME.damaged`. Being killed in the middle of a repair does no harm.

    Args:
        partial: The folder. Nobody may be writing it.

    Returns:
        The bag `NAME`; None when nothing in the folder can be read, which is then kept as
        `NAME.unreadable`.

    Raises:
        BagError: `partial` is not such a folder, is being written, or its name is taken.
        OSError: The disk refuses, for instance because it is full; the folder is left for later.
    """
    if partial.suffix != '.partial' or not partial.is_dir():
        raise BagError(f'{partial} is not the .partial folder of a bag')
    with (partial / RESERVE).open('ab') as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BagError(f'{partial} is being recorded by another process') from None
        lock.truncate(0)  # the space is for the bag
        return _repair(partial)


def _repair(partial: Path) -> Path | None:
    path = partial.with_suffix('')
    bag = partial / path.name
    aside = partial / REPAIRED
    if path.exists():
        if bag.exists() and not (aside.is_dir() and not any(aside.iterdir())):
            raise BagError(f'{path} exists beside {partial}, which is another episode; rename one')
    elif _is_complete(bag):  # killed after the last byte of it was written
        os.replace(bag, path)
    else:
        try:
            repaired, whole = _rewrite(bag, aside / path.name)
        except BagError:
            os.replace(partial, path.with_name(f'{path.name}.unreadable'))
            return None
        os.replace(repaired, path)
        if not whole:
            os.replace(partial, path.with_name(f'{path.name}.damaged'))
            return path
    shutil.rmtree(partial)
    return path


def _is_complete(bag: Path) -> bool:
    try:
        return (
            EpisodeRecord.load(bag).damage != STOPPED
            and (bag / 'metadata.yaml').is_file()
            and readable_length(bag / f'{bag.name}.mcap') is None
        )
    except (BagError, OSError):
        return False


def _rewrite(bag: Path, to: Path) -> tuple[Path, bool]:
    """Copy what is readable; give the copy, and whether it ends where the file does.

    Raises:
        BagError: Nothing is.
        OSError: The disk refuses to read or write.
    """
    record = EpisodeRecord.load(bag)
    file = bag / f'{bag.name}.mcap'
    shutil.rmtree(to.parent, ignore_errors=True)  # of a repair that was killed
    with _reader(file) as (reader, whole):
        kinds = {c.topic: c.msgtype for c in reader.connections}
        writer = EpisodeBagWriter(
            to,
            kinds,
            {count.topic: count.name for count in record.counts},
            expected={count.topic: count.expected for count in record.counts},
        )
        try:
            problem = '' if whole else '; what follows is damaged'
            messages = _readable(reader)
            while True:
                try:
                    topic, time, data = next(messages)
                except StopIteration:
                    break
                except OSError:
                    raise
                except Exception as error:  # rosbags' errors have no common base class
                    problem = f'; what follows cannot be read ({_line(error)})'
                    break
                writer.write(topic, time, data)
            if not any(writer.counts.values()):
                raise BagError(f'{file}: holds no message')
            done = writer.finish(
                dataclasses.replace(
                    record,
                    outcome='unlabeled',
                    ended_by='timeout',
                    damage=(record.damage or STOPPED) + problem,
                )
            )
            return done, not problem
        except (BagError, OSError):
            writer.discard()
            raise


def _readable(reader: Reader) -> Iterator[tuple[str, int, bytes]]:
    """Read messages in the order of the file; any exception means that the next is damaged."""
    messages: Iterator[Any] = reader.storage.messages_scan(reader.connections)  # type: ignore[attr-defined]
    for connection, time, data in messages:
        yield connection.topic, time, data


def _line(error: Exception) -> str:
    return ' '.join(str(error).split()) or type(error).__name__


@contextmanager
def _reader(file: Path) -> Iterator[tuple[Reader, bool]]:
    """Open what is whole of an MCAP file; give also whether nothing but its end is missing.

    Raises:
        BagError: Nothing is.
    """
    try:
        length = readable_length(file)
    except OSError as error:
        raise BagError(f'{file}: cannot be read ({error})') from error
    reader = _open(file if length is None else Mended(file, length))
    whole = reader is not None
    if reader is None:
        reader = _open_longest(file, length or file.stat().st_size)
    if reader is None:
        raise BagError(f'{file}: nothing in it can be read')
    try:
        yield reader, whole
    finally:
        with contextlib.suppress(Exception):
            reader.close()


def _open(source: Path | Mended) -> Reader | None:
    reader = Reader(source)  # type: ignore[arg-type]
    try:
        reader.open()
    except Exception:  # rosbags has no common base class; any of them means unreadable
        return None
    return reader


def _open_longest(file: Path, length: int) -> Reader | None:
    """Open as many records of a file as can be read: a power cut may leave garbage in the last."""
    ends = []
    with file.open('rb') as stream:
        place = len(MAGIC)
        while place < length:
            stream.seek(place + 1)
            place += 9 + int.from_bytes(stream.read(8), 'little')
            ends.append(min(place, length))
    longest = None
    low, high = 0, len(ends)
    while low < high:
        middle = (low + high + 1) // 2
        reader = _open(Mended(file, ends[middle - 1]))
        if reader is None:
            high = middle - 1
            continue
        if longest is not None:
            longest.close()
        longest, low = reader, middle
    return longest
