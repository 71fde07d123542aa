# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""One bag -> its episodes: a look at the stamps, then only the frames that are kept."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qt_core.action_space import ActionSpace
from qt_core.contract import RobotContract
from qt_core.replay import ReplayEpisode
from qt_ros.bags.episode import BagError
from qt_ros.bags.quality import idle_share, rounded, saturation, stream_quality
from qt_ros.bags.reader import EpisodeBag, deserialise
from qt_ros.bags.scan import ACTION, Scan, latest_command, place_ticks, scan
from qt_ros.bags.segments import Filler, Segment, Staging
from qt_ros.conversions import choose_time, command_targets, header_stamp
from qt_ros.streams import STATE, ObservationAssembler, Stale, Stream, observed_streams


@dataclass(frozen=True)
class Converted:
    """What a bag gave.

    Attributes:
        episodes: Its episodes; more than one where the instruction changed.
        stale: Ticks left out because a stream was too old.
        damage: Why the bag is not whole; '' for a whole one.
    """

    episodes: tuple[ReplayEpisode, ...]
    stale: int
    damage: str


def convert_episode(bag: EpisodeBag) -> tuple[ReplayEpisode, int]:
    """Lay a bag of one episode out on the contract's grid, its images in memory.

    Returns:
        The episode, and the number of ticks left out because a stream was stale.

    Raises:
        BagError, ConversionError, ObservationError: The bag's content cannot be used, or is more
            than one episode.
    """
    converted = convert_bag(bag)
    if len(converted.episodes) != 1:
        raise BagError(f'{bag.path}: the instruction changes in mid-episode')
    return converted.episodes[0], converted.stale


def convert_bag(
    bag: EpisodeBag, staging: Staging | None = None, *, source_hash: str | None = None
) -> Converted:
    """Lay one bag out on the contract's grid; see `place_ticks`.

    The action of a tick is the first command from it until the next tick or, when none came, the
    one still in force. The episode begins with the tick of the first command and ends with the
    last tick that has one of its own; the next tick's observation is its final one. Where the
    instruction changes, one episode ends by timeout and the next begins.

    Args:
        bag: The bag.
        staging: Where images go; None keeps them in memory.
        source_hash: The bag's content hash, where it is known already.

    Raises:
        BagError, ConversionError, ObservationError: The bag's content cannot be used.
    """
    found = scan(bag)
    ticks = place_ticks(bag.contract, found.streams).tolist()
    times = found.streams[ACTION].stream
    order = sorted(range(len(times)), key=times.__getitem__)
    command_times = [times[number] for number in order]
    begin = max(0, bisect_right(ticks, command_times[0]) - 1)
    # Without an observation after it, nobody knows what the last action led to.
    end = min(bisect_right(ticks, command_times[-1]), len(ticks) - 1)
    if end <= begin:
        raise BagError(f'{bag.path}: no command between two complete observations')
    segments = _segments(bag.contract, found, ticks, begin, end)
    answers = {}
    for tick in range(begin, end):
        index = bisect_left(command_times, ticks[tick])
        if index == len(command_times) or command_times[index] >= ticks[tick + 1]:
            index -= 1
        answers[tick] = order[index]
    targets = _read_frames(bag, found, ticks, segments, set(answers.values()), staging)
    digest = bag.content_hash() if source_hash is None else source_hash
    full = [segment for segment in segments if len(segment.kept) > 1]
    episodes = []
    for number, segment in enumerate(full):
        name = bag.path.resolve().name
        source = name if len(full) == 1 else f'{name}#{number}'
        chosen = np.array([targets[answers[tick]] for tick in segment.kept[:-1]])
        episode = _episode(bag, segment, chosen, final=segment is segments[-1])
        quality = _quality(bag, found, np.array(ticks), segment, episode)
        episodes.append(replace(episode, source=source, source_hash=digest, quality=quality))
    stale = end + 1 - begin - len({tick for segment in segments for tick in segment.kept})
    if not episodes:
        count = end + 1 - begin
        raise BagError(f'{bag.path}: {stale} of {count} ticks have a stream that is too old')
    return Converted(tuple(episodes), stale, bag.damage)


def _segments(
    contract: RobotContract, found: Scan, ticks: list[int], begin: int, end: int
) -> list[Segment]:
    """Cut ticks `begin` to `end` where another sentence comes into force."""
    stream, _, received = found.streams[contract.cameras[0].name].arrays()
    order = np.argsort(stream, kind='stable')
    newest = np.searchsorted(stream[order], ticks, 'right') - 1
    heard = received[order][newest].tolist()  # of the image of each tick, as sentences are heard
    times = [time for time, _ in found.sentences]
    segments: list[Segment] = []
    for tick in range(begin, end):
        sentence = found.sentences[max(0, bisect_right(times, heard[tick]) - 1)][1]
        if segments and segments[-1].sentence == sentence:
            segments[-1].last = tick + 1
        else:
            segments.append(Segment(tick, tick + 1, sentence))
    return segments


def _read_frames(
    bag: EpisodeBag,
    found: Scan,
    ticks: list[int],
    segments: list[Segment],
    commands: set[int],
    staging: Staging | None,
) -> dict[int, NDArray[np.float64]]:
    """Form the observation of every tick, and decode the chosen commands.

    Args:
        bag: The bag.
        found: The stamps in it.
        ticks: All of them, ns.
        segments: Which ticks are wanted; their observations are put into them.
        commands: Numbers of the commands wanted, in the order of arrival.
        staging: Where images go; None keeps them in memory.

    Returns:
        Number of a command to its target positions.
    """
    contract = bag.contract
    streams = {stream.topic: stream for stream in observed_streams(contract)}
    action = contract.action.topic
    assembler = ObservationAssembler(contract)
    filler = Filler(contract, segments, staging)
    pending = deque(range(segments[0].first, segments[-1].last + 1))
    targets: dict[int, NDArray[np.float64]] = {}
    # As on the robot, an image is answered when it is there, even if it was overtaken by others.
    awaited = set(ticks) & set(found.streams[assembler.reference].stream)

    def form() -> None:
        tick = pending.popleft()
        observation = assembler.seen(ticks[tick])
        filler.add(tick, None if isinstance(observation, Stale) else observation)

    def decode(stream: Stream, data: bytes) -> Any:
        filler.note(stream.name, data)
        with _naming(bag, stream.topic):
            return stream.decode(deserialise(data, stream.type))

    number, latest = -1, latest_command(bag)
    for topic, received, data in bag.serialised([*streams, action]):
        if topic == action:
            number += received <= latest  # the scan numbers no others
            if received <= latest and number in commands:
                with _naming(bag, topic):
                    message = deserialise(data, bag.types[topic])
                    targets[number] = command_targets(message, contract.action)
        else:
            stream = streams[topic]
            time = choose_time(header_stamp(data), received, stream.stamp)
            assembler.push(stream.name, time, partial(decode, stream, data))
            if stream.name == assembler.reference:
                awaited.discard(time)
        while (
            pending and ticks[pending[0]] not in awaited and assembler.settled(ticks[pending[0]])
        ):
            form()
        if not pending and len(targets) == len(commands):
            break
    while pending:
        form()
    filler.close()
    return targets


@contextmanager
def _naming(bag: EpisodeBag, topic: str) -> Iterator[None]:
    """Say which bag and topic an error is about."""
    try:
        yield
    except ValueError as error:  # every error class of qt_ros and qt_core is one
        raise BagError(f"{bag.path}: '{topic}': {error}") from error


def _episode(
    bag: EpisodeBag, segment: Segment, targets: NDArray[np.float64], *, final: bool
) -> ReplayEpisode:
    """Make an episode of T + 1 observations and the (T, J) targets that answered them."""
    record, space = bag.record, ActionSpace(bag.contract)
    state = np.stack(segment.states)
    action = np.zeros((len(targets), space.dimensions))
    for step, target in enumerate(targets):
        action[step, : len(target)] = space.from_targets(target, state[step])
    # Nobody knows how an episode ended that goes on after the last frame.
    known = final and not bag.damage
    terminal = known and record.ended_by == 'terminal'
    outcome = record.outcome if known else 'unlabeled'
    if bag.contract.action.terminate and terminal:
        action[-1, -1] = 1.0
    action = np.clip(action, space.low, space.high)
    reward = np.zeros(len(action), np.float32)
    reward[-1] = float(outcome == 'success')
    return ReplayEpisode(
        images={name: sink.frames() for name, sink in segment.sinks.items()},
        state=state,
        action=action.astype(np.float32),
        bins=space.encode(action),
        reward=reward,
        terminal=terminal,
        timeout=not terminal,
        instruction=segment.sentence,
        outcome=outcome,
    )


def _quality(
    bag: EpisodeBag,
    found: Scan,
    ticks: NDArray[np.int64],
    segment: Segment,
    episode: ReplayEpisode,
) -> dict[str, Any]:
    contract, space = bag.contract, ActionSpace(bag.contract)
    own = ticks[segment.first : segment.last + 1]
    limits = {c.name: (c.max_age, c.rate) for c in contract.cameras}
    limits[STATE] = contract.state.max_age, contract.state.rate
    streams = {}
    for stream in observed_streams(contract):
        times, headers, received = found.streams[stream.name].arrays()
        max_age, rate = limits[stream.name]
        streams[stream.name] = stream_quality(
            stream.topic,
            times=times,
            headers=headers,
            received=received,
            ticks=own,
            max_age=max_age,
            expected=rate or contract.rate,
            duplicates=segment.duplicates[stream.name] if stream.name != STATE else 0,
        )
    assert episode.action is not None
    action = np.asarray(episode.action, np.float64)
    content = {
        'ticks': len(own),
        'kept': len(segment.kept),
        'stale': len(own) - len(segment.kept),
        'duration': float(own[-1] - own[0]) / 1e9,
        'damage': bag.damage,
        'idle': idle_share(space, action, episode.state[:-1]),
        'saturation': saturation(space, np.asarray(episode.bins)),
        'streams': streams,
    }
    result: dict[str, Any] = rounded(content)
    return result
