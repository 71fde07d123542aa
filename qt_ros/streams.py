# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""From streams of messages to observations: the same code on the robot and in the converter."""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qt_core.contract import RobotContract
from qt_core.observation import Observation, form_observation
from qt_ros.conversions import (
    choose_time,
    header_stamp,
    image_to_rgb,
    joint_positions,
    stream_time,
)
from qt_ros.serialisation import BODY, deserialise

STATE = 'state'
HISTORY = 2_000_000_000  # ns of messages kept per stream, whatever its rate
JUMP = 100_000_000  # ns; a stamp this far behind the newest means that the clock was set back

Lazy = Callable[[], Any]


@dataclass(frozen=True)
class Stream:
    """A topic that observations are made of.

    Attributes:
        name: A camera's name or `STATE`.
        topic: Its relative name in the contract.
        type: Message type.
        stamp: Which time a message is of, as the contract has it.
        convert: Message -> (H, W, 3) RGB, or joint name -> position.
    """

    name: str
    topic: str
    type: str
    stamp: str
    convert: Callable[[Any], Any]

    def time(self, message: Any, received: int) -> int:
        """Give the time a message, or the bytes of one, is of, when it came at `received`, ns.

        Raises:
            ConversionError: They are no message with a header.
        """
        if isinstance(message, bytes):
            return choose_time(header_stamp(message), received, self.stamp)
        return stream_time(message, received, self.stamp)

    def decode(self, message: Any) -> Any:
        """Convert a message, or the bytes of one, whose pixels are then not copied.

        Raises:
            ConversionError: It does not make sense.
        """
        if isinstance(message, bytes):
            message = deserialise(message, self.type)
        return self.convert(message)


def observed_streams(contract: RobotContract) -> tuple[Stream, ...]:
    """List the streams of a contract's observation, cameras first."""
    cameras = [
        Stream(
            camera.name,
            camera.topic,
            camera.type,
            camera.stamp,
            partial(image_to_rgb, depth_range=camera.depth_range),
        )
        for camera in contract.cameras
    ]
    state = contract.state
    kind = 'sensor_msgs/msg/JointState'
    joints = Stream(STATE, state.topic, kind, state.stamp, joint_positions)
    return (*cameras, joints)


@dataclass(frozen=True)
class Stale:
    """Why no observation can be formed.

    Attributes:
        stream: The stream that is missing or too old.
        age: Its age in seconds; None when nothing was ever received.
    """

    stream: str
    age: float | None

    def __str__(self) -> str:
        if self.age is None:
            return f"nothing received from '{self.stream}'"
        if self.age < 0:
            return f"'{self.stream}' is {-self.age:.2f} s ahead of the clock"
        return f"'{self.stream}' is {self.age:.2f} s old"


@dataclass(frozen=True)
class Stamped:
    """An observation and the time of its first camera's image, ns."""

    time: int
    observation: Observation


class Stillness:
    """Notices a camera that repeats its picture: a real one's noise never does."""

    def __init__(self) -> None:
        self._body: NDArray[np.uint8] | None = None
        self._since = self._until = 0

    def see(self, message: bytes, now: int) -> None:
        """Take a serialised image received at `now`, ns."""
        body = np.frombuffer(message, np.uint8)[BODY:]  # without the stamp
        if self._body is None or now < self._until or not np.array_equal(body, self._body):
            self._body, self._since = body, now
        self._until = now

    @property
    def seconds(self) -> float:
        """For how long every image has been the same, from the first of them to the last."""
        return (self._until - self._since) / 1e9


class ObservationAssembler:
    """Last-value buffers of a contract's cameras and joint state.

    Messages are decoded only when an observation uses them. Not thread-safe.
    """

    def __init__(self, contract: RobotContract) -> None:
        self.contract = contract
        self.max_age = {camera.name: camera.max_age for camera in contract.cameras}
        self.max_age[STATE] = contract.state.max_age
        self.reference = contract.cameras[0].name
        self.clear()

    def clear(self) -> None:
        """Forget every message."""
        self._times: dict[str, list[int]] = {stream: [] for stream in self.max_age}
        self._values: dict[str, dict[int, Lazy]] = {stream: {} for stream in self.max_age}
        self._answered = -1

    def push(self, stream: str, time: int, value: Lazy) -> None:
        """Store a message.

        Args:
            stream: A camera's name or `STATE`.
            time: Its stream time, ns. A jump back by more than `JUMP` clears every buffer.
            value: Decodes it: to (H, W, 3) RGB, or to joint name -> position.
        """
        times, values = self._times[stream], self._values[stream]
        if times and time < times[-1] - JUMP:
            self._rewind(stream, time)
            times, values = self._times[stream], self._values[stream]
        if time not in values:
            insort(times, time)
        values[time] = value
        while times[0] < times[-1] - HISTORY:
            del values[times.pop(0)]

    def complete(self) -> Stamped | None:
        """Form the observation of the newest image not answered yet, or None.

        Waits until every other stream has a message at or after the image: which messages form the
        observation then depends on their stamps alone, not on the order of arrival.
        """
        images = self._times[self.reference]
        others = [times for stream, times in self._times.items() if stream != self.reference]
        if not images or not all(others):
            return None
        watermark = min((times[-1] for times in others), default=images[-1])
        index = bisect_right(images, watermark)
        if index == 0 or images[index - 1] <= self._answered:
            return None
        time = images[index - 1]
        formed = self.as_of(time)
        if isinstance(formed, Stale):
            return None
        self._answered = time
        return Stamped(time, formed)

    def latest(self, now: int) -> Stamped | Stale:
        """Form the observation of the newest image, if every stream is fresh at `now` ns."""
        stale = self.stale(now)
        if stale is not None:
            return stale
        time = self._times[self.reference][-1]
        formed = self.as_of(time)
        return formed if isinstance(formed, Stale) else Stamped(time, formed)

    def stale(self, now: int) -> Stale | None:
        """Name the first stream that is missing, or off `now` ns by more than its `max_age`."""
        for stream, age in self.ages(now).items():
            if age is None or abs(age) > self.max_age[stream]:
                return Stale(stream, age)
        return None

    def ages(self, now: int) -> dict[str, float | None]:
        """Give each stream's age in seconds at `now` ns; None when nothing was received."""
        return {s: (now - t[-1]) / 1e9 if t else None for s, t in self._times.items()}

    def as_of(self, time: int) -> Observation | Stale:
        """Form the observation of each stream's newest message at or before `time` ns."""
        chosen: dict[str, Lazy] = {}
        for stream, times in self._times.items():
            index = bisect_right(times, time)
            if index == 0:
                return Stale(stream, None)
            age = (time - times[index - 1]) / 1e9
            if age > self.max_age[stream]:
                return Stale(stream, age)
            chosen[stream] = self._values[stream][times[index - 1]]
        images: dict[str, NDArray[np.uint8]] = {
            camera.name: chosen[camera.name]() for camera in self.contract.cameras
        }
        return form_observation(self.contract, images, chosen[STATE]())

    def seen(self, now: int) -> Observation | Stale:
        """Form what a policy acts on at `now` ns: the newest image, and the rest as of its time.

        Every stream must be fresh at `now`; messages of a later time are left alone.
        """
        for stream, times in self._times.items():
            index = bisect_right(times, now)
            age = (now - times[index - 1]) / 1e9 if index else None
            if age is None or age > self.max_age[stream]:
                return Stale(stream, age)
        images = self._times[self.reference]
        return self.as_of(images[bisect_right(images, now) - 1])

    def settled(self, time: int) -> bool:
        """Whether messages still to come can no longer change `as_of(time)`.

        Every stream has reached `time`, or one is so far ahead that waiting would lose messages.
        """
        newest = [times[-1] if times else -1 for times in self._times.values()]
        return min(newest) >= time or max(newest) >= time + HISTORY // 2

    def _rewind(self, stream: str, time: int) -> None:
        """Forget everything from before the clock was set back to `time`.

        What another stream holds close to `time` came after the jump, on a topic that was faster.
        """
        for other, times in self._times.items():
            kept = [t for t in times if other != stream and abs(t - time) <= JUMP]
            self._times[other] = kept
            self._values[other] = {t: self._values[other][t] for t in kept}
        if self._answered > time + JUMP:
            self._answered = -1
