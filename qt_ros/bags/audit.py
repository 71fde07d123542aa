# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""How evenly messages come: live rates, and what is said of each topic of a recording."""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Iterable, Mapping

from qt_core.contract import IMAGE_TYPES
from qt_ros.bags.episode import TopicCount
from qt_ros.serialisation import BODY, TYPESTORE

WINDOW = 2.0  # s that a live rate is measured over
ENOUGH = 0.8  # share of the expected rate that is taken for it
LEAP = 1_000_000_000  # ns; a stamp this far ahead of the time that has passed is a jump
LITTLE_ENDIAN = 1


class RateMeter:
    """Counts messages over the last seconds.

    Args:
        expected: Rate that they should have, Hz, or None.
    """

    def __init__(self, expected: float | None = None) -> None:
        self.expected = expected
        # A slow stream needs longer, for one message more or less not to decide.
        self.window = max(WINDOW, 4 / expected) if expected else WINDOW
        self._times: deque[int] = deque(maxlen=10_000)

    def add(self, time: int) -> None:
        """Count a message received at `time`, ns; a clock that was set back starts anew."""
        if self._times and time < self._times[-1]:
            self._times.clear()
        self._times.append(time)

    def rate(self, now: int) -> float:
        """Give the messages per second at `now`, ns."""
        while self._times and self._times[0] < now - self.window * 1e9:
            self._times.popleft()
        return len(self._times) / self.window

    def enough(self, now: int) -> bool:
        """Whether the expected rate is reached; one message is always forgiven."""
        if self.expected is None:
            return True
        return self.rate(now) + 1 / self.window >= ENOUGH * self.expected


class LiveRates:
    """The rates of several topics.

    Args:
        topics: All of them.
        expected: Topic to the rate it should have, Hz, of those that should have one.
    """

    def __init__(self, topics: Iterable[str], expected: Mapping[str, float]) -> None:
        self._meters = {topic: RateMeter(expected.get(topic)) for topic in topics}

    def add(self, topic: str, time: int) -> None:
        """Count a message received at `time`, ns; other topics are not counted."""
        if topic in self._meters:
            self._meters[topic].add(time)

    def measured(self, now: int) -> dict[str, float]:
        """Give each topic's messages per second at `now`, ns."""
        return {topic: round(meter.rate(now), 2) for topic, meter in self._meters.items()}

    def slow(self, now: int) -> list[str]:
        """Say of each topic that is slower than expected how fast it is, one line each."""
        return [
            f"'{topic}' comes at {meter.rate(now):.3g} Hz, expected {meter.expected:g}"
            for topic, meter in self._meters.items()
            if not meter.enough(now)
        ]


class TopicAudit:
    """What the messages of one topic of a recording say about their source.

    Args:
        kind: Message type.
        expected: Rate that they should have, Hz, or None.
    """

    def __init__(self, kind: str, expected: float | None = None) -> None:
        self.expected = expected
        self.messages = self.repeated = self.jumps = self.lost = 0
        fields = TYPESTORE.fielddefs[kind][1]
        self._stamped = bool(fields) and fields[0][1][1] == 'std_msgs/msg/Header'
        self._image = kind in IMAGE_TYPES
        self._first = self._last = self._stamp = self._stamped_at = 0
        self._gap = 0
        self._body = b''

    def add(self, time: int, data: bytes) -> None:
        """Take note of a serialised message received at `time`, ns."""
        if self.messages == 0:
            self._first = time
        else:
            self._gap = max(self._gap, time - self._last)
        self.messages += 1
        self._last = time
        if not self._stamped or len(data) < BODY or data[1] != LITTLE_ENDIAN:
            return
        seconds, rest = struct.unpack_from('<iI', data, 4)
        stamp = seconds * 1_000_000_000 + rest
        if stamp:
            step = stamp - self._stamp
            if self._stamp and (step < 0 or step > time - self._stamped_at + LEAP):
                self.jumps += 1
            self._stamp, self._stamped_at = stamp, time
        if self._image:
            body = data[BODY:]
            self.repeated += body == self._body
            self._body = body

    def gap(self, start: int, stop: int) -> float | None:
        """Give the longest time without a message from `start` to `stop`, ns, in seconds."""
        gap = self._gap
        if self.expected is not None:
            first = self._first if self.messages else stop
            last = self._last if self.messages else stop
            gap = max(gap, first - start, stop - last)
        elif self.messages < 2:
            return None
        return max(0, gap) / 1e9

    def count(self, topic: str, name: str, messages: int, start: int, stop: int) -> TopicCount:
        """Sum up, for `messages` in the bag from `start` to `stop`, ns."""
        duration = (max(stop, self._last) - start) / 1e9  # the last ones came after the stop
        gap = self.gap(start, stop)
        return TopicCount(
            topic=topic,
            messages=messages,
            name=name,
            rate=round(messages / duration, 3) if duration > 0 else None,
            expected=self.expected,
            largest_gap=None if gap is None else round(gap, 6),
            repeated=self.repeated,
            jumps=self.jumps,
            lost=self.lost,
        )
