# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""One episode being recorded: a queue of bounded size, and the thread that writes it to disk."""

from __future__ import annotations

import dataclasses
import shutil
import threading
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qt_ros.bags import EpisodeBagWriter, EpisodeRecord
from qt_ros.bags.episode import InstructionChange, SourceChange

EARLY = 0.8  # share of the flush interval after which a flush begins, for it to end within
SPACE_INTERVAL = 1.0  # s between looks at the free space


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a recording may take.

    Attributes:
        queue: Most bytes that wait for the disk.
        flush_interval: Seconds after which a message that was written is safe on disk.
        min_free: Bytes of disk to leave free.
    """

    queue: int
    flush_interval: float
    min_free: int


@dataclass(frozen=True)
class _Ending:
    """How an episode was ended by request; `outcome` '' discards it."""

    outcome: str = ''
    ended_by: str = 'timeout'
    stop: int = 0


class Recording:
    """Writes what it is given until it is told to end, or cannot go on.

    Where it cannot, because the writer fell behind, the disk is filling or writing failed, it
    completes the bag by itself as a damaged one, `damage` says why, and `over` becomes true.

    Args:
        writer: An open bag; belongs to the recording from now on.
        record: What is known of the episode at its start.
        limits: What it may take.

    Attributes:
        damage: Why the recording is not whole; '' while it is.
        dropped: Messages that came before the episode ended and are not in the bag.
        queued: Bytes waiting for the disk.
        deepest: Most bytes that ever waited.
        path: The complete bag; None before, and when it was discarded or could not be completed.
        error: Why the bag could not be completed; its `.partial` folder is then left.
    """

    def __init__(self, writer: EpisodeBagWriter, record: EpisodeRecord, limits: Limits) -> None:
        self.writer, self.limits = writer, limits
        self.damage = self.error = ''
        self.dropped = self.queued = self.deepest = 0
        self.path: Path | None = None
        self._record, self._noted = record, record
        self._items: deque[tuple[str, int, bytes]] = deque()
        self._kinds: dict[str, str] = {}
        self._accepted = 0
        self._failed = False
        self._changed = threading.Condition()
        self._ending: _Ending | None = None
        self._thread = threading.Thread(target=self._run, name='bag writer')
        self._thread.start()

    @property
    def over(self) -> bool:
        """Whether the bag is complete, discarded, or given up."""
        return not self._thread.is_alive()

    @property
    def record(self) -> EpisodeRecord:
        """What is known of the episode so far."""
        return self._record

    def add_topic(self, topic: str, kind: str) -> None:
        """Take messages of one more topic, of a message type that bags can describe."""
        self._kinds[topic] = kind

    def put(self, topic: str, received: int, data: bytes) -> None:
        """Hand over a serialised message received at `received`, ns; never waits."""
        with self._changed:
            if self._ending is not None:
                return
            if self.damage:
                self.dropped += 1
            elif self.queued and self.queued + len(data) > self.limits.queue:
                self.dropped += 1
                self._spoil(
                    f'the disk was too slow: over {self.limits.queue >> 20} MiB waited for it'
                )
            else:
                self._items.append((topic, received, data))
                self._accepted += 1
                self.queued += len(data)
                self.deepest = max(self.deepest, self.queued)
                self._changed.notify()

    def lose(self, topic: str, count: int) -> None:
        """Take note of messages that were published and never came.

        A camera on a bad line loses some now and then: they are counted, and the episode goes on.
        """
        with self._changed:
            audit = self.writer.audits.get(topic)
            if self._ending is None and audit is not None:
                self.dropped += count
                audit.lost += count

    def note_instruction(self, received: int, instruction: str) -> None:
        """Take note of a sentence that replaces the one in force."""
        change = InstructionChange(time=received, instruction=instruction)
        with self._changed:
            changes = (*self._record.instructions, change)
            self._record = dataclasses.replace(self._record, instructions=changes)

    def note_source(self, received: int, source: str) -> None:
        """Take note of who drives; the same as before is no change."""
        with self._changed:
            sources = self._record.sources
            if not sources or sources[-1].source != source:
                change = SourceChange(time=received, source=source)
                self._record = dataclasses.replace(self._record, sources=(*sources, change))

    def end(self, outcome: str, ended_by: str, stop: int = 0) -> None:
        """End the episode, which stopped at `stop` ns; 0: with its last message."""
        self._end(_Ending(outcome, ended_by, stop))

    def discard(self) -> None:
        """Drop the episode."""
        self._end(_Ending())

    def join(self) -> None:
        """Wait until it is `over`."""
        self._thread.join()

    def status(self) -> dict[str, Any]:
        """Say how it goes, as JSON content."""
        writer = self.writer
        return {
            'bag': str(writer.path),
            'instruction': self._record.instruction,
            'counts': dict(writer.counts),
            'flushed': writer.flushed,
            'queue_bytes': self.queued,
            'deepest_queue_bytes': self.deepest,
            'dropped': self.dropped,
        }

    def _end(self, ending: _Ending) -> None:
        with self._changed:
            self._ending = self._ending or ending
            self._changed.notify()

    def _spoil(self, damage: str) -> None:
        self.damage = self.damage or damage
        self._changed.notify()

    def _run(self) -> None:
        try:
            self._write()
        except Exception as error:  # whatever it is, what was written is kept and the node goes on
            with self._changed:
                self._spoil(f'writing failed: {_line(error)}')
                self._items.clear()
                self._failed = True
        try:
            self._complete()
        except Exception as error:
            self.error = _line(error)
        self.queued = 0

    def _write(self) -> None:
        flushed = looked = time.monotonic()
        interval = EARLY * self.limits.flush_interval
        while True:
            item = self._take(flushed + interval)
            self._note()
            if item is not None:
                topic, received, data = item
                if topic not in self.writer.counts:
                    self.writer.add_topic(topic, self._kinds[topic])
                self.writer.write(topic, received, data)
                with self._changed:
                    self.queued -= len(data)
            elif self._ending is not None or self.damage:
                if self._ending != _Ending():
                    self.writer.flush()
                return
            now = time.monotonic()
            if now >= flushed + interval:
                flushed = now
                self.writer.flush()
            if now >= looked + SPACE_INTERVAL:
                looked = now
                self._look_at_space()

    def _take(self, until: float) -> tuple[str, int, bytes] | None:
        """Wait for a message, the end or `until`, s on the monotonic clock."""
        with self._changed:
            if self._ending == _Ending():
                self._items.clear()
            while not self._items and self._ending is None and not self.damage:
                left = until - time.monotonic()
                if left <= 0:
                    return None
                self._changed.wait(left)
            return self._items.popleft() if self._items else None

    def _note(self) -> None:
        if self._record is not self._noted:
            self._noted = self._record
            self.writer.note(self._noted)

    def _look_at_space(self) -> None:
        free = shutil.disk_usage(self.writer.partial).free
        if self.limits.min_free and free < self.limits.min_free + self.queued:  # to be written too
            with self._changed:
                self._spoil(
                    f'the disk was filling: {free >> 20} MiB free, '
                    f'{self.limits.min_free >> 20} are left alone'
                )
                self._ending = self._ending or _Ending('unlabeled')  # what comes later is not lost

    def _complete(self) -> None:
        with self._changed:  # what comes from here on belongs to no episode
            ending = self._ending = self._ending or _Ending('unlabeled')
        if ending == _Ending():
            self.writer.discard()
            return
        if self._failed:
            self.writer.revert()
        self.dropped += self._accepted - sum(self.writer.counts.values())
        if self.damage:
            ending = dataclasses.replace(ending, outcome='unlabeled', ended_by='timeout')
        self.path = self.writer.finish(
            dataclasses.replace(
                self._record,
                outcome=ending.outcome,
                ended_by=ending.ended_by,
                stop=ending.stop,
                dropped=self.dropped,
                damage=self.damage,
                # Without a stop, it is the last message, and each change is one.
                sources=tuple(
                    change
                    for change in self._record.sources
                    if not ending.stop or change.time <= ending.stop
                ),
            )
        )


def _line(error: Exception) -> str:
    return ' '.join(str(error).split()) or type(error).__name__
