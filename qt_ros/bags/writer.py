# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Write one episode to one MCAP bag, raw messages as they came."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from rosbags.interfaces import Connection
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer

from qt_ros.bags.audit import TopicAudit
from qt_ros.bags.chunks import Chunks
from qt_ros.bags.episode import STOPPED, BagError, EpisodeRecord, TopicCount
from qt_ros.serialisation import TYPESTORE

COMPRESSIONS = ('zstd', 'none')
# A file in the partial folder: locked while the bag is written, and full of bytes that are given
# to the bag's index and record at the end, when the disk may be full otherwise.
RESERVE = 'reserve'
RESERVED = 4 << 20  # bytes


class EpisodeBagWriter:
    """Writes `<path>.partial` and renames it to `path` when the episode is complete.

    Args:
        path: Folder of the bag; must not exist.
        topics: Resolved topic name to message type.
        names: Resolved topic name to its relative name in the contract.
        expected: Resolved topic name to the rate it should have, Hz.
        compression: One of `COMPRESSIONS`.
        record: What is known already. It is written at once, as that of a recording that was
            stopped, so that what a crash leaves says what it is.

    Attributes:
        counts: Messages written per topic.
        audits: What they say about their sources.
        flushed: Messages that are safe on disk.

    Raises:
        BagError: The bag exists, a message type or the compression is unknown.
    """

    def __init__(
        self,
        path: Path,
        topics: Mapping[str, str],
        names: Mapping[str, str] | None = None,
        *,
        expected: Mapping[str, float | None] | None = None,
        compression: str = 'zstd',
        record: EpisodeRecord | None = None,
    ) -> None:
        self.path = path
        self.partial = path.with_name(path.name + '.partial')
        if path.exists() or self.partial.exists():
            raise BagError(f'{path} exists already; choose another folder')
        for kind in topics.values():
            require_known(kind, path)
        if compression not in COMPRESSIONS:
            allowed = ' or '.join(COMPRESSIONS)
            raise BagError(f'{path}: compression is {compression!r}, expected {allowed}')
        self.counts: dict[str, int] = {}
        self.audits: dict[str, TopicAudit] = {}
        self.flushed = 0
        self._safe_counts: dict[str, int] = {}
        self._names, self._expected = names or {}, expected or {}
        self._first, self._last = 0, 0
        # One level down, because rosbags names the .mcap file after its folder.
        self._bag = self.partial / path.name
        self._writer = Writer(self._bag, version=9, storage_plugin=StoragePlugin.MCAP)
        if compression == 'zstd':
            self._writer.set_compression(CompressionMode.STORAGE, CompressionFormat.ZSTD)
        self._connections: dict[str, Connection] = {}
        self.partial.mkdir(parents=True)
        self._reserve = (self.partial / RESERVE).open('wb')
        try:
            fcntl.flock(self._reserve, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.posix_fallocate(self._reserve.fileno(), 0, RESERVED)
            self._writer.open()
            self._chunks = Chunks(self._writer)
            for topic, kind in topics.items():
                self.add_topic(topic, kind)
            if record is not None:
                self.note(record)
            for folder in (self._bag, self.partial, path.parent):
                _sync(folder)
        except BaseException:
            self.discard()
            raise

    def add_topic(self, topic: str, kind: str) -> None:
        """Add a topic of a known message type to the bag."""
        self._connections[topic] = self._writer.add_connection(topic, kind, typestore=TYPESTORE)
        self.counts[topic] = 0
        self.audits[topic] = TopicAudit(kind, self._expected.get(topic))

    def write(self, topic: str, time: int, data: bytes) -> None:
        """Append a serialised message received at `time`, ns."""
        self._writer.write(self._connections[topic], time, data)
        self.counts[topic] += 1
        self.audits[topic].add(time, data)
        self._first = self._first or time
        self._last = max(self._last, time)

    def flush(self) -> None:
        """Put everything written so far safely on disk, so that a crash leaves it readable."""
        self._chunks.flush()
        self._safe_counts = dict(self.counts)
        self.flushed = sum(self.counts.values())

    def revert(self) -> None:
        """Go back to the last `flush`, after an error in writing."""
        self.counts = dict.fromkeys(self.counts, 0) | self._safe_counts
        self._chunks.revert()

    def note(self, record: EpisodeRecord) -> None:
        """Write what is known of the episode so far, as that of a recording that was stopped."""
        dataclasses.replace(
            record,
            outcome='unlabeled',
            ended_by='timeout',
            damage=STOPPED,
            counts=tuple(
                TopicCount(topic=t, messages=0, name=self._names.get(t, ''), expected=a.expected)
                for t, a in self.audits.items()
            ),
        ).save(self._bag)

    def finish(self, record: EpisodeRecord) -> Path:
        """Complete the bag with its record; counts and missing times are filled in here."""
        self._reserve.truncate()
        self._writer.set_custom_data('qt_ros.instruction', record.instruction)
        self._writer.set_custom_data('qt_ros.outcome', record.outcome)
        self._writer.set_custom_data('qt_ros.contract', record.contract)
        self._writer.close()
        start, stop = self._first, record.stop or self._last
        dataclasses.replace(
            record,
            start=start,
            stop=stop,
            counts=tuple(
                self.audits[t].count(t, self._names.get(t, ''), n, start, stop)
                for t, n in self.counts.items()
            ),
            instructions=tuple(c for c in record.instructions if c.time <= stop),
        ).save(self._bag)
        for file in self._bag.iterdir():
            _sync(file)
        _sync(self._bag)
        os.replace(self._bag, self.path)
        _sync(self.path.parent)
        self._remove()
        return self.path

    def discard(self) -> None:
        """Delete what was written."""
        with contextlib.suppress(OSError):  # a full disk is no reason to keep it
            self._writer.abort()
        self._remove()

    def _remove(self) -> None:
        self._reserve.close()
        shutil.rmtree(self.partial)


def require_known(kind: str, source: object) -> None:
    """Refuse a message type that cannot be described in a bag; `source` is named in the error.

    Raises:
        BagError: It is unknown.
    """
    if kind not in TYPESTORE.types:
        raise BagError(f'{source}: message type {kind} is unknown')


def _sync(path: Path) -> None:
    """Have a file, or the names in a folder, written to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
