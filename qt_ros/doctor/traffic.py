# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What came on a contract's topics, held against the contract."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

from qt_core.contract import CameraContract, RobotContract, StateContract
from qt_ros.bags.audit import ENOUGH
from qt_ros.conversions import (
    ConversionError,
    command_targets,
    header_stamp,
    image_to_rgb,
    joint_positions,
)
from qt_ros.finding import Finding
from qt_ros.graph_check import STRING, Need
from qt_ros.serialisation import deserialise

STILL = 0.2  # share of the time in which a simulated clock must have moved to be measured with
OUTSIDE = 0.05  # share of a joint's range by which a robot may exceed it


class Traffic:
    """The messages of one topic, as they come.

    Args:
        need: The topic.

    Attributes:
        newest: The newest message, serialised; None when there was none.
        lost: Messages that were published and never came.
    """

    def __init__(self, need: Need) -> None:
        self.need = need
        self.newest: bytes | None = None
        self.clear()

    def clear(self) -> None:
        """Begin to measure; the newest message is kept."""
        self._times: list[float] = []
        self._delays: list[float] = []
        self.lost = 0

    def add(self, data: bytes, seconds: float, now: int) -> None:
        """Take a message.

        Args:
            data: Serialised.
            seconds: When it came, on the clock that rates are measured with.
            now: When it came on the clock that stamps are compared with, ns.
        """
        self.newest = data
        self._times.append(seconds)
        if self.need.type != STRING:
            try:
                stamp = header_stamp(data)
            except ConversionError:
                return
            if stamp:
                self._delays.append((now - stamp) / 1e9)

    def heard(self) -> Heard:
        """Sum up."""
        times = self._times
        span = times[-1] - times[0] if times else 0.0
        gaps = [b - a for a, b in pairwise(times)]
        return Heard(
            messages=len(times),
            lost=self.lost,
            rate=(len(times) - 1) / span if span > 0 else None,
            gap=max(gaps, default=0.0),
            delay=statistics.median(self._delays) if self._delays else None,
            newest=self.newest,
        )


@dataclass(frozen=True)
class Heard:
    """What came on one topic.

    Attributes:
        messages: How many.
        lost: How many were published and never came.
        rate: Hz; None with fewer than two.
        gap: The longest pause between two, s.
        delay: From stamp to arrival, the median, s; None where nothing was stamped.
        newest: The newest message, serialised, also of before; None when there was none.
    """

    messages: int = 0
    lost: int = 0
    rate: float | None = None
    gap: float = 0.0
    delay: float | None = None
    newest: bytes | None = None


@dataclass(frozen=True)
class Listening:
    """How long was listened, and to whose time.

    Attributes:
        seconds: On a wall.
        elapsed: On the clock that rates were measured with.
        simulated: Whether that was /clock.
    """

    seconds: float
    elapsed: float
    simulated: bool = False

    @property
    def still(self) -> bool:
        """Whether a simulation stands still, which leaves no rate to measure."""
        return self.simulated and self.elapsed < STILL * self.seconds


def joint_names(heard: Heard | None, kind: str) -> tuple[str, ...] | None:
    """Read the names in the newest joint state; None when there is none that can be read."""
    if heard is None or heard.newest is None:
        return None
    try:
        return tuple(str(name) for name in deserialise(heard.newest, kind).name)
    except ConversionError:
        return None


def check_traffic(
    contract: RobotContract,
    wanted: tuple[Need, ...],
    heard: Mapping[str, Heard],
    published: Mapping[str, bool],
    listening: Listening,
) -> list[Finding]:
    """Judge what came.

    Args:
        contract: The robot's.
        wanted: Its topics.
        heard: Full topic name -> what came.
        published: Full topic name -> whether anybody publishes it with the right type; of others
            `graph_check` has said so.
        listening: For how long.
    """
    findings: list[Finding] = []
    for need in wanted:
        came = heard.get(need.topic, Heard())
        if need.path == 'instruction':
            findings += _instruction(need, came, published[need.topic], listening)
        elif need.path == 'action':
            findings += _command(contract, need, came, listening)
        elif published[need.topic]:
            stream = _of(contract, need) or contract.state
            findings += _stream(contract, need, came, listening, stream)
    return findings


def _of(contract: RobotContract, need: Need) -> CameraContract | None:
    cameras = {f'cameras[{i}]': camera for i, camera in enumerate(contract.cameras)}
    return cameras.get(need.path)


def _stream(
    contract: RobotContract,
    need: Need,
    came: Heard,
    listening: Listening,
    stream: CameraContract | StateContract,
) -> Iterator[Finding]:
    seconds = f'{listening.seconds:g} s'
    if came.newest is None:
        if listening.still:
            yield Finding('warn', need.topic, 'nothing came while the simulation stands still')
            return
        problem = f'is published, and nothing came in {seconds}'
        remedy = 'look at its driver; between machines, at the firewall (UDP 7400 and up)'
        yield Finding('fail', need.topic, problem, remedy)
        return
    found = [
        *_rate(contract, need, came, listening, stream),
        *_stamps(need, came, stream),
    ]
    content, problems = _content(contract, need, came.newest)
    found += problems
    yield from found
    if not found:
        rate = f' at {came.rate:.3g} Hz' if came.rate is not None else ''
        age = ''
        if came.delay is not None:
            side = 'ago' if came.delay >= 0 else 'ahead'
            age = f', stamped {1000 * abs(came.delay):.0f} ms {side}'
        yield Finding('ok', need.topic, f'{content}{rate}{age}')


def _rate(
    contract: RobotContract,
    need: Need,
    came: Heard,
    listening: Listening,
    stream: CameraContract | StateContract,
) -> Iterator[Finding]:
    if listening.still:
        return
    expected = stream.rate or contract.rate
    measured = came.messages / listening.elapsed if came.rate is None else came.rate
    if came.lost > 0.05 * (came.lost + came.messages):
        problem = f'{came.lost} of {came.lost + came.messages} messages got lost on the way'
        remedy = 'start its driver with the Fast DDS profile (see machine), or make it reliable'
        yield Finding('warn', need.topic, problem, remedy)
    # One message is always forgiven: a short time holds few.
    elif measured + 1 / listening.elapsed < ENOUGH * expected:
        keeps = measured * stream.max_age > 1
        yield Finding(
            'warn' if keeps else 'fail',
            need.topic,
            f'comes at {measured:.3g} Hz, expected {expected:g}',
            'speed up its driver (exposure, USB, CPU), or set '
            f'{need.path}.rate in the contract to what it gives'
            + (
                ''
                if keeps
                else f'; at this rate most of it is older than max_age {stream.max_age:g}'
            ),
        )
    if came.gap > stream.max_age and came.rate is not None and came.rate * stream.max_age > 1:
        problem = f'was silent for {came.gap:.2f} s; the policy holds after {stream.max_age:g}'
        yield Finding('warn', need.topic, problem, 'look for what stops it, or raise max_age')


def _stamps(need: Need, came: Heard, stream: CameraContract | StateContract) -> Iterator[Finding]:
    if came.delay is None or stream.stamp != 'header' or abs(came.delay) <= stream.max_age / 2:
        return
    side = 'behind' if came.delay > 0 else 'ahead of'
    yield Finding(
        'fail' if abs(came.delay) > stream.max_age else 'warn',
        need.topic,
        f'its stamps are {abs(came.delay):.2f} s {side} the clock here; max_age is '
        f'{stream.max_age:g}',
        f'synchronise the clocks (chrony), or set {need.path}.stamp to receive in the contract',
    )


def _content(contract: RobotContract, need: Need, data: bytes) -> tuple[str, list[Finding]]:
    """Describe a message, and say what is wrong with it."""
    camera = _of(contract, need)
    try:
        message = deserialise(data, need.type)
        if camera is None:
            positions = joint_positions(message)
            return f'{len(positions)} joints', list(_positions(contract.state, need, positions))
        height, width = image_to_rgb(message, depth_range=camera.depth_range).shape[:2]
    except ConversionError as error:
        remedy = 'let its driver publish that' if 'expected' in str(error) else 'mend its driver'
        return '', [Finding('fail', need.topic, str(error), remedy)]
    encoding = getattr(message, 'encoding', None) or getattr(message, 'format', '')
    content = f'{width}x{height} {encoding}'
    if height < camera.height or width < camera.width:
        problem = f'{content}, and the policy sees {camera.width}x{camera.height}'
        remedy = f'let it publish larger images, or lower {need.path}.height and .width'
        return content, [Finding('warn', need.topic, problem, remedy)]
    return content, []


def _positions(
    state: StateContract, need: Need, positions: Mapping[str, float]
) -> Iterator[Finding]:
    outside = []
    for joint, low, high in zip(state.joints, state.low, state.high, strict=True):
        slack = OUTSIDE * (high - low)
        position = positions.get(joint, low)
        if not low - slack <= position <= high + slack:
            outside.append(f'{joint} at {position:.3g} is not in {low:g}..{high:g}')
    if outside:
        remedy = 'publish rad and m, or widen state.low and state.high in the contract'
        yield Finding('warn', need.topic, '; '.join(outside[:3]), remedy)


def _instruction(
    need: Need, came: Heard, published: bool, listening: Listening
) -> Iterator[Finding]:
    if came.newest is not None:
        try:
            sentence = str(deserialise(came.newest, need.type).data)
        except ConversionError as error:
            yield Finding('warn', need.topic, str(error))
            return
        if sentence.strip():
            yield Finding('ok', need.topic, f'"{sentence}"')
        else:
            yield Finding('warn', need.topic, 'the sentence is empty', 'say one: qt-ros say')
    elif published:
        problem = f'nothing was said in {listening.seconds:g} s; earlier sentences are not heard'
        remedy = 'publish it transient-local, as qt-ros say does'
        yield Finding('warn', need.topic, problem, remedy)


def _command(
    contract: RobotContract, need: Need, came: Heard, listening: Listening
) -> Iterator[Finding]:
    if came.newest is None:
        return
    try:
        command_targets(deserialise(came.newest, need.type), contract.action)
    except ConversionError as error:
        remedy = 'command every joint of action.joints, or leave it to the guard'
        yield Finding('fail', need.topic, str(error), remedy)
        return
    rate = '' if came.rate is None else f', {came.rate:.3g} Hz'
    yield Finding('ok', need.topic, f'{came.messages} commands in {listening.seconds:g} s{rate}')
