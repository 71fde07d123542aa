# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Bags -> replay folder, through the observation code of the policy node."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qt_core.action_space import ActionSpace
from qt_core.contract import RobotContract, require_same
from qt_core.instruction import BUNDLED_MODEL
from qt_core.observation import Observation
from qt_core.replay import ReplayEpisode, ReplayError, ReplayWriter
from qt_core.replay.writer import Embed
from qt_ros.bags.episode import BagError
from qt_ros.bags.reader import EpisodeBag
from qt_ros.conversions import command_targets, image_to_rgb, joint_positions, stream_time
from qt_ros.streams import JUMP, STATE, ObservationAssembler, Stale

LONGEST = 3600  # s of one episode; a stamp from before a clock was set can be decades off


@dataclass(frozen=True)
class Report:
    """What a conversion did.

    Attributes:
        episodes: Episodes written.
        steps: Actions written.
        stale: Ticks left out because a stream was too old.
        failures: One line per bag that could not be converted.
    """

    episodes: int
    steps: int
    stale: int
    failures: tuple[str, ...]


def convert(
    bags: Sequence[Path],
    out: Path,
    embed: Embed,
    *,
    sentence_model: str = BUNDLED_MODEL,
    contract: RobotContract | None = None,
    workers: int = 1,
    progress: Callable[[], None] = lambda: None,
) -> Report:
    """Convert bags into a new replay folder.

    A bag that cannot be converted is reported and the others go on.

    Args:
        bags: Bag folders.
        out: The replay folder; must not exist or be empty.
        embed: Sentences to embeddings (n, E).
        sentence_model: What `embed` embeds with; see `SentenceEncoder`.
        contract: Contract every bag must have been recorded under; None takes that of the first
            bag that can be read.
        workers: Processes.
        progress: Called after each bag.

    Raises:
        ReplayError: `out` is not empty.
        BagError: No bag could be converted.
    """
    contract = contract or _first_contract(bags)
    failures: list[str] = []
    stale = episodes = steps = 0
    with ReplayWriter(out, contract, embed, sentence_model=sentence_model) as writer:
        for result in _map(partial(_attempt, contract=contract), bags, workers):
            progress()
            if isinstance(result, str):
                failures.append(result)
                continue
            episode, skipped = result
            try:
                writer.add(episode)
            except ReplayError as error:
                failures.append(str(error))
                continue
            episodes, steps, stale = episodes + 1, steps + len(episode.bins), stale + skipped
        if episodes == 0:
            raise BagError(f'no bag could be converted; the first: {failures[0]}')
    return Report(episodes=episodes, steps=steps, stale=stale, failures=tuple(failures))


def convert_episode(bag: EpisodeBag) -> tuple[ReplayEpisode, int]:
    """Lay one bag out on the contract's grid.

    Ticks follow each other by one control period of stream time, from the first image of the
    first camera for which every other stream has a message. A tick is the moment of the image
    nearest to its place on the grid, so that neither jitter nor a period that is no whole number
    of nanoseconds puts an image, or the command that answers it, one tick away. Where no image is
    near, the tick is that place itself.

    The action of a tick is the first command from it until the next tick or, when none came, the
    one still in force. The episode begins with the tick of the first command and ends with the
    last tick that has one of its own; the next tick's observation is its final one.

    Returns:
        The episode, and the number of ticks left out because a stream was stale.

    Raises:
        BagError, ConversionError, ObservationError: The bag's content cannot be used.
    """
    contract = bag.contract
    times, commands = _scan(bag)
    ticks = _ticks(times, contract.rate)
    command_times = [time for time, _ in commands]
    begin = max(0, bisect_right(ticks, command_times[0]) - 1) if commands else 0
    # Without an observation after it, nobody knows what the last action led to.
    end = min(bisect_right(ticks, command_times[-1]), len(ticks) - 1) if commands else 0
    if end <= begin:
        raise BagError(f'{bag.path}: no command between two complete observations')
    ticks = ticks[begin : end + 1]
    space = ActionSpace(contract)
    observations: list[Observation] = []
    actions: list[NDArray[np.float64]] = []
    for observation, start, stop in zip(
        _observations(bag, ticks), ticks, [*ticks[1:], None], strict=True
    ):
        if observation is None:
            continue
        observations.append(observation)
        if stop is None:
            break
        index = bisect_left(command_times, start)
        if index == len(commands) or command_times[index] >= stop:
            index -= 1
        action = space.from_targets(commands[index][1], observation.state)
        actions.append(np.concatenate([action, [0.0] * contract.action.terminate]))
    stale = len(ticks) - len(observations)
    actions = actions[: len(observations) - 1]
    if not actions:
        raise BagError(f'{bag.path}: {stale} of {len(ticks)} ticks have a stream that is too old')
    terminal = bag.record.ended_by == 'terminal'
    if contract.action.terminate and terminal:
        actions[-1][-1] = 1.0
    action = np.clip(np.array(actions), space.low, space.high)
    reward = np.zeros(len(action), np.float32)
    reward[-1] = float(bag.record.outcome == 'success')
    episode = ReplayEpisode(
        images={
            camera.name: np.stack([o.images[camera.name] for o in observations])
            for camera in contract.cameras
        },
        state=np.stack([o.state for o in observations]),
        action=action.astype(np.float32),
        bins=space.encode(action),
        reward=reward,
        terminal=terminal,
        timeout=not terminal,
        instruction=bag.record.instruction,
        source=bag.path.name,
        source_hash=bag.content_hash(),
    )
    return episode, stale


def _streams(contract: RobotContract) -> dict[str, str]:
    """Give the topics observations are made of, and the stream each one feeds."""
    return {camera.topic: camera.name for camera in contract.cameras} | {
        contract.state.topic: STATE
    }


def _scan(bag: EpisodeBag) -> tuple[list[list[int]], list[tuple[int, NDArray[np.float64]]]]:
    """Read the ascending stamps of each stream, and the commands in order of time.

    Images are left undecoded, so that a bag need not fit into memory.
    """
    contract = bag.contract
    streams = _streams(contract)
    times: dict[str, list[int]] = {topic: [] for topic in streams}
    commands: list[tuple[int, NDArray[np.float64]]] = []
    instruction = contract.instruction.topic
    latest = bag.record.stop + round(1e9 * contract.period)
    for topic, received, message in bag.messages([*streams, contract.action.topic], [instruction]):
        time = stream_time(message, received)
        if topic == contract.action.topic:
            if received <= latest:
                commands.append((time, command_targets(message, contract.action)))
        elif topic == instruction:
            if message.data != bag.record.instruction:
                raise BagError(
                    f'{bag.path}: the instruction changes to {message.data!r} in mid-episode; '
                    'record one bag per instruction'
                )
        elif times[topic] and time < times[topic][-1] - JUMP:
            raise BagError(f"{bag.path}: the clock of '{topic}' was set back in mid-episode")
        else:
            times[topic].append(time)
    for topic, stamps in times.items():
        if not stamps:
            raise BagError(f"{bag.path}: no message on '{topic}'")
        span = (max(stamps) - min(stamps)) / 1e9
        if span > LONGEST:
            raise BagError(f"{bag.path}: stamps of '{topic}' span {span:.0f} s, over {LONGEST} s")
    if not commands:
        raise BagError(f"{bag.path}: no command on '{contract.action.topic}'")
    return [sorted(set(t)) for t in times.values()], sorted(commands, key=lambda c: c[0])


def _ticks(times: list[list[int]], rate: float) -> list[int]:
    """Place ticks on the grid of the control rate, at the images of the first camera, ns."""
    images = times[0]
    first = bisect_left(images, max(stamps[0] for stamps in times))
    if first == len(images):
        return []
    ticks = [images[first]]
    half = round(0.5e9 / rate)
    while True:
        due = ticks[0] + round(1e9 * len(ticks) / rate)
        after = bisect_left(images, due)
        nearest = min(images[after - 1 : after + 1], key=lambda time: abs(time - due))
        if abs(nearest - due) < half:
            ticks.append(nearest)
        elif due < images[-1]:
            ticks.append(due)
        else:
            return ticks


def _observations(bag: EpisodeBag, ticks: list[int]) -> Iterator[Observation | None]:
    """Form the observation of each tick; None where a stream is stale."""
    streams = _streams(bag.contract)
    assembler = ObservationAssembler(bag.contract)
    pending = deque(ticks)

    def form() -> Observation | None:
        observation = assembler.as_of(pending.popleft())
        return None if isinstance(observation, Stale) else observation

    for topic, received, message in bag.messages(streams):
        decode = joint_positions if streams[topic] == STATE else image_to_rgb
        assembler.push(streams[topic], stream_time(message, received), partial(decode, message))
        while pending and assembler.settled(pending[0]):
            yield form()
    while pending:
        yield form()


def _first_contract(bags: Sequence[Path]) -> RobotContract:
    failure: ValueError = BagError('no bag to convert')
    for path in bags:
        try:
            return EpisodeBag(path).contract
        except ValueError as error:
            failure = error
    raise failure


def _attempt(path: Path, contract: RobotContract) -> tuple[ReplayEpisode, int] | str:
    try:
        bag = EpisodeBag(path)
        require_same(contract, bag.contract, 'this conversion', str(path))
        return convert_episode(bag)
    except (
        ValueError,
        OSError,
    ) as error:  # every error class of qt_ros and qt_core is a ValueError
        line = ' '.join(str(error).split())
        return line if str(path) in line else f'{path}: {line}'


def _map(
    function: Callable[[Path], tuple[ReplayEpisode, int] | str],
    bags: Sequence[Path],
    workers: int,
) -> Iterator[tuple[ReplayEpisode, int] | str]:
    if workers <= 1:
        yield from map(function, bags)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context('spawn')) as pool:
        yield from pool.map(function, bags)
