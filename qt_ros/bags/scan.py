# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The first look at a bag: when each message is of, and nothing of what is in it."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from qt_core.contract import RobotContract
from qt_ros.bags.episode import BagError
from qt_ros.bags.reader import EpisodeBag, deserialise
from qt_ros.conversions import choose_time, header_stamp
from qt_ros.serialisation import TYPESTORE
from qt_ros.streams import JUMP, observed_streams

LONGEST = 3600  # s of one episode; a stamp from before a clock was set can be decades off
ACTION = 'action'


@dataclass
class MessageTimes:
    """Of every message of a topic, in the order of arrival, ns.

    Attributes:
        stream: Stream times.
        header: Header stamps; 0 without one.
        received: When they came.
    """

    stream: array[int] = field(default_factory=lambda: array('q'))
    header: array[int] = field(default_factory=lambda: array('q'))
    received: array[int] = field(default_factory=lambda: array('q'))

    def add(self, header: int, received: int, stamp: str) -> None:
        """Add a message; `stamp` is which time the contract takes."""
        self.stream.append(choose_time(header, received, stamp))
        self.header.append(header)
        self.received.append(received)

    def arrays(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Give `stream`, `header` and `received` as (n,) arrays."""
        fields = self.stream, self.header, self.received
        return tuple(np.array(values, np.int64) for values in fields)  # type: ignore[return-value]


@dataclass(frozen=True)
class Scan:
    """What the stamps of a bag say.

    Attributes:
        streams: Stream name to its messages; `ACTION` for the commands.
        sentences: (receive time ns, sentence), ascending; each is in force from then on, the
            first one from the beginning.
    """

    streams: dict[str, MessageTimes]
    sentences: list[tuple[int, str]]


def scan(bag: EpisodeBag) -> Scan:
    """Read the stamps of a bag's messages; images are neither deserialised nor decoded.

    Raises:
        BagError, ConversionError: A topic has no message, or its stamps make no sense.
    """
    contract = bag.contract
    names = {s.topic: (s.name, s.stamp) for s in observed_streams(contract)}
    names[contract.action.topic] = ACTION, contract.action.stamp
    stamped = {topic: _stamped(bag.types[topic]) for topic in names}
    found = {name: MessageTimes() for name, _ in names.values()}
    sentences: list[tuple[int, str]] = []
    latest = latest_command(bag)
    instruction = contract.instruction.topic
    for topic, received, data in bag.serialised(names, [instruction]):
        if topic == instruction:
            sentences.append((received, str(deserialise(data, bag.types[topic]).data)))
            continue
        name, stamp = names[topic]
        try:
            header = header_stamp(data) if stamped[topic] else 0
        except ValueError as error:
            raise BagError(f"{bag.path}: '{topic}': {error}") from error
        if name == ACTION and received > latest:
            continue
        times = found[name]
        times.add(header, received, stamp)
        if name != ACTION and len(times.stream) > 1 and times.stream[-1] < times.stream[-2] - JUMP:
            raise BagError(f"{bag.path}: the clock of '{topic}' was set back in mid-episode")
    for topic, (name, _) in names.items():
        times = found[name]
        if not times.stream:
            what = 'command' if name == ACTION else 'message'
            raise BagError(f"{bag.path}: no {what} on '{topic}'")
        span = (max(times.stream) - min(times.stream)) / 1e9
        if name != ACTION and span > LONGEST:
            raise BagError(f"{bag.path}: stamps of '{topic}' span {span:.0f} s, over {LONGEST} s")
    sentences.sort(key=lambda heard: heard[0])
    return Scan(found, _sentences(bag, sentences))


def latest_command(bag: EpisodeBag) -> int:
    """Give the receive time, ns, after which a command belongs to no episode."""
    stop = bag.record.stop
    return stop + round(1e9 * bag.contract.period) if stop else 2**62


def _stamped(kind: str) -> bool:
    """Whether messages of a type begin with a header."""
    fields = TYPESTORE.fielddefs[kind][1]
    return bool(fields) and fields[0][1][1] == 'std_msgs/msg/Header'


def _sentences(bag: EpisodeBag, heard: list[tuple[int, str]]) -> list[tuple[int, str]]:
    """Give the sentences in force: what the record or the command line says, then changes."""
    record = bag.record
    if not bag.recorded:
        if bag.instruction_given:
            return [(0, record.instruction)]
        if not heard:
            raise BagError(
                f"{bag.path}: nothing on '{bag.contract.instruction.topic}' says what the task "
                'is: give --instruction'
            )
        return heard
    changes = heard or [(change.time, change.instruction) for change in record.instructions]
    return [(0, record.instruction), *changes]


def place_ticks(contract: RobotContract, streams: dict[str, MessageTimes]) -> NDArray[np.int64]:
    """Place ticks on the grid of the control rate, at the images of the first camera, ns.

    Ticks follow each other by one control period of stream time, from the first image of the
    first camera for which every other stream has a message. A tick is the moment of the image
    nearest to its place on the grid, so that neither jitter nor a period that is no whole number
    of nanoseconds puts an image, or the command that answers it, one tick away. Where no image is
    near, the tick is that place itself.
    """
    times = [streams[s.name].stream for s in observed_streams(contract)]
    images = sorted(set(times[0]))
    first = bisect_left(images, max(min(stamps) for stamps in times))
    if first == len(images):
        return np.zeros(0, np.int64)
    ticks = [images[first]]
    half = round(0.5e9 / contract.rate)
    while True:
        due = ticks[0] + round(1e9 * len(ticks) / contract.rate)
        after = bisect_left(images, due)
        nearest = min(images[after - 1 : after + 1], key=lambda time: abs(time - due))
        if abs(nearest - due) < half:
            ticks.append(nearest)
        elif due < images[-1]:
            ticks.append(due)
        else:
            return np.array(ticks, np.int64)
