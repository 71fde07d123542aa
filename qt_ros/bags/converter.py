# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Bags -> replay folder, through the observation code of the policy node."""

from __future__ import annotations

from bisect import bisect_left
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
from qt_core.observation import Observation
from qt_core.replay import ReplayEpisode, ReplayWriter
from qt_core.replay.writer import Embed
from qt_ros.bags.episode import BagError
from qt_ros.bags.reader import EpisodeBag
from qt_ros.conversions import command_targets, image_to_rgb, joint_positions, stream_time
from qt_ros.streams import STATE, ObservationAssembler, Stale


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
        contract: Contract every bag must have been recorded under; None takes the first bag's.
        workers: Processes.
        progress: Called after each bag.

    Raises:
        ReplayError: `out` is not empty, or no bag could be converted.
        BagError, ContractError: Without `contract`, when the first bag has none.
    """
    contract = contract or EpisodeBag(bags[0]).contract
    failures: list[str] = []
    stale = episodes = steps = 0
    with ReplayWriter(out, contract, embed) as writer:
        for result in _map(partial(_attempt, contract=contract), bags, workers):
            progress()
            if isinstance(result, str):
                failures.append(result)
                continue
            episode, skipped = result
            writer.add(episode)
            episodes, steps, stale = episodes + 1, steps + len(episode.action), stale + skipped
        if episodes == 0:
            raise BagError(f'no bag could be converted; the first: {failures[0]}')
    return Report(episodes=episodes, steps=steps, stale=stale, failures=tuple(failures))


def convert_episode(bag: EpisodeBag) -> tuple[ReplayEpisode, int]:
    """Lay one bag out on the contract's grid.

    Ticks start at the first complete observation and follow each other by one control period of
    stream time. The action of a tick is the first command in [t, t + period); the episode ends with
    the last tick that has one, and the next tick's observation is its final one.

    Returns:
        The episode, and the number of ticks left out because a stream was stale.

    Raises:
        BagError, ConversionError, ObservationError: The bag's content cannot be used.
    """
    contract = bag.contract
    streams = {camera.topic: camera.name for camera in contract.cameras}
    streams[contract.state.topic] = STATE
    assembler = ObservationAssembler(contract, history=None)
    command_times: list[int] = []
    commands: list[NDArray[np.float64]] = []
    for topic, received, message in bag.messages([*streams, contract.action.topic]):
        time = stream_time(message, received)
        if topic == contract.action.topic:
            command_times.append(time)
            commands.append(command_targets(message, contract.action))
        else:
            decode = joint_positions if streams[topic] == STATE else image_to_rgb
            assembler.push(streams[topic], time, partial(decode, message))
    if not commands:
        raise BagError(f"{bag.path}: no command on '{contract.action.topic}'")
    order = np.argsort(command_times, kind='stable')
    command_times = [command_times[i] for i in order]
    return _lay_out(bag, assembler, command_times, [commands[i] for i in order])


def _lay_out(
    bag: EpisodeBag,
    assembler: ObservationAssembler,
    command_times: list[int],
    commands: list[NDArray[np.float64]],
) -> tuple[ReplayEpisode, int]:
    contract = bag.contract
    space = ActionSpace(contract)
    observations: list[Observation] = []
    actions: list[NDArray[np.float64]] = []
    stale = 0
    for start, end in _ticks(assembler, contract.rate):
        observation = assembler.as_of(start)
        if isinstance(observation, Stale):
            stale += 1
            continue
        observations.append(observation)
        index = bisect_left(command_times, start)
        if index == len(commands) or command_times[index] >= end:
            if index == len(commands):
                break  # the final observation
            observations.pop()  # nobody acted on this tick
            continue
        action = space.from_targets(commands[index], observation.state)
        done = [0.0] if contract.action.terminate else []
        actions.append(np.concatenate([action, done]))
    if len(observations) == len(actions):
        actions = actions[:-1]  # the recording stopped before what the last action led to was seen
    if not actions:
        raise BagError(f'{bag.path}: no tick has both an observation and a command')
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
        terminal=bag.record.ended_by == 'terminal',
        timeout=bag.record.ended_by == 'timeout',
        instruction=bag.record.instruction,
        source=bag.path.name,
        source_hash=bag.content_hash(),
    )
    return episode, stale


def _ticks(assembler: ObservationAssembler, rate: float) -> Iterator[tuple[int, int]]:
    """Give [start, end) of each control period, ns, over the time that every stream covers."""
    times = [assembler.times(stream) for stream in assembler.max_age]
    if not all(times):
        return
    first = max(t[0] for t in times)
    last = max(times[0][-1], first)
    index = 0
    while True:
        start, end = (first + round(1e9 * i / rate) for i in (index, index + 1))
        if start > last:
            return
        yield start, end
        index += 1


def _attempt(path: Path, contract: RobotContract) -> tuple[ReplayEpisode, int] | str:
    try:
        bag = EpisodeBag(path)
        require_same(contract, bag.contract, 'this conversion', str(path))
        return convert_episode(bag)
    except ValueError as error:  # every error class of qt_ros and qt_core is one
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
        yield from pool.map(function, bags, chunksize=8)
