# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Write one episode to one MCAP bag, raw messages as they came."""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path

from rosbags.interfaces import Connection
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

from qt_ros.bags.episode import BagError, EpisodeRecord, TopicCount

TYPESTORE = get_typestore(Stores.ROS2_JAZZY)


class EpisodeBagWriter:
    """Writes `<path>.partial` and renames it to `path` when the episode is complete.

    Args:
        path: Folder of the bag; must not exist.
        topics: Resolved topic name to message type.
        names: Resolved topic name to its relative name in the contract.

    Raises:
        BagError: The bag exists, or a message type is unknown.
    """

    def __init__(
        self, path: Path, topics: dict[str, str], names: dict[str, str] | None = None
    ) -> None:
        self.path = path
        self.partial = path.with_name(path.name + '.partial')
        if path.exists() or self.partial.exists():
            raise BagError(f'{path} exists already; choose another folder')
        unknown = [t for t in topics.values() if t not in TYPESTORE.types]
        if unknown:
            raise BagError(f'{path}: message type {unknown[0]} is unknown')
        self.counts = dict.fromkeys(topics, 0)
        self._names = names or {}
        self._first, self._last = 0, 0
        # One level down, because rosbags names the .mcap file after its folder.
        self._bag = self.partial / path.name
        self._writer = Writer(self._bag, version=9, storage_plugin=StoragePlugin.MCAP)
        self._writer.set_compression(CompressionMode.STORAGE, CompressionFormat.ZSTD)
        self._writer.open()
        self._connections: dict[str, Connection] = {
            topic: self._writer.add_connection(topic, kind, typestore=TYPESTORE)
            for topic, kind in topics.items()
        }

    def write(self, topic: str, time: int, data: bytes) -> None:
        """Append a serialised message received at `time`, ns."""
        self._writer.write(self._connections[topic], time, data)
        self.counts[topic] += 1
        self._first = self._first or time
        self._last = max(self._last, time)

    def finish(self, record: EpisodeRecord) -> Path:
        """Complete the bag with its record; counts and missing times are filled in here."""
        self._writer.set_custom_data('qt_ros.instruction', record.instruction)
        self._writer.set_custom_data('qt_ros.outcome', record.outcome)
        self._writer.set_custom_data('qt_ros.contract', record.contract)
        self._writer.close()
        dataclasses.replace(
            record,
            start=self._first,
            stop=record.stop or self._last,
            counts=tuple(
                TopicCount(topic=t, messages=n, name=self._names.get(t, ''))
                for t, n in self.counts.items()
            ),
        ).save(self._bag)
        os.replace(self._bag, self.path)
        self.partial.rmdir()
        return self.path

    def discard(self) -> None:
        """Delete what was written."""
        self._writer.close()
        shutil.rmtree(self.partial)
