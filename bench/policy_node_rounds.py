# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What the rounds of `bench/policy_node.py` say: pairing, percentiles, ratios. No ROS here."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

NANO = 1e-9
TARGETS = {50: 1.3, 99: 1.5}  # percentile -> times the relay's
PERCENTILES = (50, 95, 99)
STAGES = {
    'arrival': 'stamp to callback',
    'before': 'callback to network',
    'after': 'network to published',
    'delivery': 'published to received',
}


class PairingError(ValueError):
    """A round whose commands, images and steps of the network do not fit together, and where."""


@dataclass(frozen=True)
class Command:
    """A command as it was seen; times are of the system's clock, ns.

    Attributes:
        stamp: Of the image that it answers; 0 for one that answers none.
        sent: When it was published.
        received: When it was there for the robot's process to read.
    """

    stamp: int
    sent: int
    received: int


@dataclass(frozen=True, kw_only=True)
class Recording:
    """What was noted in a round.

    Attributes:
        variant: `relay`, `policy` or `guard`.
        number: Of the round.
        begin: Images stamped from here on count, ns.
        end: And up to here.
        period: Of control, s.
        images: Stamps of the images that were published.
        seen: Stamps of those that the node's callback was given, and when; None when it cannot be
            known.
        commands: What reached the robot.
        inner: What the policy published, where something stands between it and the robot.
        acts: When each step of the network had ended and how long it took, ns; None without one.
        cpu: CPU seconds per second of each process.
    """

    variant: str
    number: int
    begin: int
    end: int
    period: float
    images: Sequence[int]
    seen: Mapping[int, int] | None
    commands: Sequence[Command]
    inner: Sequence[Command] | None
    acts: Sequence[tuple[int, int]] | None
    cpu: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Round:
    """What a recording says.

    Attributes:
        variant: As the recording's.
        number: As the recording's.
        seconds: Its duration.
        latency_ms: Image stamped -> command received, without the network; one per command.
        model_ms: What the network took in each of them.
        stages_ms: `latency_ms` by its `STAGES`; without `arrival` and `before` when it cannot be
            known what the node was given.
        off_ms: How much longer than control's period each time between commands was.
        commands: Commands received.
        steps_missed: Periods without a command.
        holds: Commands that answer no image.
        frames: Images published.
        frames_missed: Of these, those that the node was not given; None when it cannot be known.
        cpu: As the recording's.
    """

    variant: str
    number: int
    seconds: float
    latency_ms: tuple[float, ...]
    model_ms: tuple[float, ...]
    stages_ms: Mapping[str, tuple[float, ...]]
    off_ms: tuple[float, ...]
    commands: int
    steps_missed: int
    holds: int
    frames: int
    frames_missed: int | None
    cpu: Mapping[str, float]


def analyse(recording: Recording) -> Round:
    """Pair commands with images and with steps of the network.

    Raises:
        PairingError: They do not fit, and the round says nothing.
    """

    def within(stamp: int) -> bool:
        return recording.begin <= stamp < recording.end

    where = f'{recording.variant}, round {recording.number}'
    images = {stamp for stamp in recording.images if within(stamp)}
    commands = [command for command in recording.commands if within(command.stamp)]
    unknown = sorted({command.stamp for command in commands} - images)
    if unknown:
        raise PairingError(f'{where}: no image has the stamp {unknown[0]} of a command')
    if len(commands) < 2:
        raise PairingError(f'{where}: {len(commands)} commands')
    sent = _sent_times(recording, commands, where)
    steps = _steps(recording, sent, where)
    took = [duration for _, duration in steps]
    off = [
        (after.received - before.received) * NANO - recording.period
        for before, after in pairwise(commands)
    ]
    return Round(
        variant=recording.variant,
        number=recording.number,
        seconds=(recording.end - recording.begin) * NANO,
        latency_ms=tuple(
            (c.received - c.stamp - t) / 1e6 for c, t in zip(commands, took, strict=True)
        ),
        model_ms=tuple(t / 1e6 for t in took),
        stages_ms=_stages(recording, commands, sent, steps),
        off_ms=tuple(1e3 * seconds for seconds in off),
        commands=len(commands),
        steps_missed=sum(max(0, round(seconds / recording.period)) for seconds in off),
        holds=sum(c.stamp == 0 and within(c.sent) for c in recording.commands),
        frames=len(images),
        frames_missed=None if recording.seen is None else len(images - recording.seen.keys()),
        cpu=dict(recording.cpu),
    )


def _sent_times(recording: Recording, commands: Sequence[Command], where: str) -> list[int]:
    """Give when each command was first published, ns."""
    if recording.inner is None:
        return [command.sent for command in commands]
    inner = {command.stamp: command.sent for command in recording.inner}
    lacking = [command.stamp for command in commands if command.stamp not in inner]
    if lacking:
        raise PairingError(
            f'{where}: the policy published {len(lacking)} of {len(commands)} commands past what '
            'stands between it and the robot'
        )
    return [inner[command.stamp] for command in commands]


def _steps(recording: Recording, sent: Sequence[int], where: str) -> list[tuple[int, int]]:
    """Give the step of the network behind each command: the last that ended before it.

    Returns:
        Its end and its duration, ns; without a network, the command's own time and 0.
    """
    if recording.acts is None:
        return [(time, 0) for time in sent]
    acts = sorted(recording.acts)
    ended = [end for end, _ in acts]
    chosen = [bisect_right(ended, time) - 1 for time in sent]
    if chosen[0] < 0 or chosen != list(range(chosen[0], chosen[0] + len(chosen))):
        steps = chosen[-1] - chosen[0] + 1
        raise PairingError(
            f'{where}: {len(sent)} commands but {steps} steps of the network, or another order'
        )
    return [acts[index] for index in chosen]


def _stages(
    recording: Recording,
    commands: Sequence[Command],
    sent: Sequence[int],
    steps: Sequence[tuple[int, int]],
) -> dict[str, tuple[float, ...]]:
    stages: dict[str, list[int]] = {stage: [] for stage in STAGES}
    seen = recording.seen or {}
    for command, published, (end, duration) in zip(commands, sent, steps, strict=True):
        if command.stamp in seen:
            stages['arrival'].append(seen[command.stamp] - command.stamp)
            stages['before'].append(end - duration - seen[command.stamp])
        stages['after'].append(published - end)
        stages['delivery'].append(command.received - published)
    return {stage: tuple(t / 1e6 for t in times) for stage, times in stages.items() if times}


def figures(rounds: Sequence[Round]) -> dict[str, Any]:
    """Pool the rounds of one variant."""
    latency = np.concatenate([r.latency_ms for r in rounds])
    off = np.concatenate([r.off_ms for r in rounds])
    missed = [r.frames_missed for r in rounds]
    seconds = sum(r.seconds for r in rounds)
    return {
        'latency_ms': _percentiles(latency),
        'stages_ms': {
            stage: _percentiles(np.concatenate([r.stages_ms[stage] for r in rounds]))
            for stage in STAGES
            if all(stage in r.stages_ms for r in rounds)
        },
        'model_ms': _percentiles(np.concatenate([r.model_ms for r in rounds])),
        'period_std_ms': round(float(off.std()), 3),
        'period_off_p99_ms': round(float(np.percentile(np.abs(off), 99)), 3),
        'commands_per_s': round(sum(r.commands for r in rounds) / seconds, 3),
        'commands': sum(r.commands for r in rounds),
        'steps_missed': sum(r.steps_missed for r in rounds),
        'holds': sum(r.holds for r in rounds),
        'frames': sum(r.frames for r in rounds),
        'frames_missed': None if None in missed else sum(filter(None, missed)),
        'cpu': {
            name: round(sum(r.cpu[name] * r.seconds for r in rounds) / seconds, 4)
            for name in rounds[0].cpu
        },
    }


def compare(rounds: Sequence[Round], variant: str, base: str = 'relay') -> list[dict[str, Any]]:
    """Give the ratios of a variant's latencies to the base's, and whether they meet `TARGETS`.

    Args:
        rounds: Of every variant.
        variant: `policy`, which has targets, or another, which has none.
        base: What is divided by.

    Returns:
        One per percentile; `spread` is the smallest and largest ratio of one round.
    """
    ours, theirs = ({r.number: r for r in rounds if r.variant == v} for v in (variant, base))
    both = sorted(ours.keys() & theirs.keys())
    found = []
    for percentile in PERCENTILES:

        def ratio(a: Sequence[Round], b: Sequence[Round], percentile: int = percentile) -> float:
            pooled = (np.concatenate([r.latency_ms for r in side]) for side in (a, b))
            over, under = (float(np.percentile(values, percentile)) for values in pooled)
            return over / under

        target = TARGETS.get(percentile) if variant == 'policy' else None
        value = ratio(list(ours.values()), list(theirs.values()))
        each = [ratio([ours[number]], [theirs[number]]) for number in both]
        found.append(
            {
                'variant': variant,
                'percentile': percentile,
                'ratio': round(value, 3),
                'spread': [round(edge(each), 3) for edge in (min, max)] if each else None,
                'target': target,
                'met': target is None or value <= target,
            }
        )
    return found


def _percentiles(values: Any) -> dict[str, float]:
    return {f'p{p}': round(float(np.percentile(values, p)), 3) for p in PERCENTILES}
