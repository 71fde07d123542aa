# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The chunks of an MCAP file being written: closing one early, and dropping what failed.

The one place that reaches into rosbags' MCAP writer, which has no public way to do either.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, field

from rosbags.rosbag2 import Writer
from rosbags.rosbag2.storage_mcap import McapWriter


@dataclass(frozen=True)
class _Place:
    """Everything up to some place in the file, which is safe on disk."""

    length: int
    chunks: int = 0
    counts: dict[int, int] = field(default_factory=dict)
    times: tuple[int, int] = (2**63 - 1, 0)


class Chunks:
    """The file behind an open `Writer` of MCAP bags."""

    def __init__(self, writer: Writer) -> None:
        storage = writer.storage
        assert isinstance(storage, McapWriter)
        self._writer, self._storage = writer, storage
        storage.bio.flush()
        self._safe = _Place(storage.bio.tell())

    def flush(self) -> None:
        """End the chunk being filled and hand it to the disk."""
        storage = self._storage
        if storage.chunk.msgs:
            storage.close_chunk()
        storage.bio.flush()
        os.fdatasync(storage.bio.fileno())
        self._safe = _Place(
            storage.bio.tell(),
            len(storage.chunks),
            dict(storage.channel_stats),
            (storage.message_start_time, storage.message_end_time),
        )

    def revert(self) -> None:
        """Make the file, and what the writer knows of it, as they were at the last flush."""
        storage, writer, safe = self._storage, self._writer, self._safe
        with contextlib.suppress(OSError):  # it tries once more to write what failed
            storage.bio.close()
        os.truncate(storage.path, safe.length)
        storage.bio = storage.path.open('ab')
        del storage.chunks[safe.chunks :]
        storage.chunk.bio.seek(0)
        storage.chunk.bio.truncate()
        storage.chunk.msgs.clear()
        storage.message_start_time, storage.message_end_time = safe.times
        writer.min_timestamp, writer.max_timestamp = safe.times
        for identity in storage.channel_stats:
            storage.channel_stats[identity] = safe.counts.get(identity, 0)
            writer.counts[identity] = safe.counts.get(identity, 0)
