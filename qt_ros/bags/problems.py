# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Which episodes of a replay folder a person should look at, and why."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qt_core.contract import RobotContract
from qt_ros.streams import STATE

KINDS = ('damaged', 'stale', 'frozen', 'slow', 'gap', 'jump', 'idle', 'saturated')
FROZEN = 0.1  # share of images equal to the one before; a scene at rest has some
SLOW = 0.9  # of the expected rate
IDLE = 0.5
SATURATED = 0.5  # moving at full speed all the time is rarely meant


@dataclass(frozen=True)
class Problem:
    """Something about an episode that may make it bad to learn from.

    Attributes:
        kind: One of `KINDS`, the worst first.
        size: How bad among its kind; larger is worse.
        text: One line.
    """

    kind: str
    size: float
    text: str


def find_problems(
    quality: Mapping[str, Any] | None, contract: RobotContract | None
) -> list[Problem]:
    """List what is wrong with an episode by its quality record, the worst first."""
    if quality is None:
        return []
    found = list(_of_episode(quality, contract))
    for name, stream in streams_of(quality).items():
        found += _of_stream(name, stream, number(quality.get('ticks')), contract)
    return sorted(found, key=lambda problem: (KINDS.index(problem.kind), -problem.size))


def streams_of(quality: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Give the streams of a quality record that are as they should be."""
    streams = quality.get('streams')
    if not isinstance(streams, Mapping):
        return {}
    return {str(name): s for name, s in streams.items() if isinstance(s, Mapping)}


def number(value: Any) -> float | None:
    """Give a finite number as float; None for anything else that a file may hold."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) < 1e300 and math.isfinite(value) else None


def saturation_of(quality: Mapping[str, Any], contract: RobotContract | None) -> list[float]:
    """Give the share of actions at the lowest or highest bin of each joint.

    A terminate dimension, which has no other bins, is left out.
    """
    values = quality.get('saturation')
    if not isinstance(values, Sequence) or isinstance(values, str):
        return []
    joints = len(values) if contract is None else len(contract.action.joints)
    return [number(value) or 0.0 for value in values[:joints]]


def _of_episode(quality: Mapping[str, Any], contract: RobotContract | None) -> Iterator[Problem]:
    if quality.get('damage'):
        yield Problem('damaged', 1.0, f'damaged: {quality["damage"]}')
    ticks, stale = number(quality.get('ticks')) or 0.0, number(quality.get('stale')) or 0.0
    if stale > 0:
        share = stale / max(ticks, stale)
        yield Problem('stale', share, f'{stale:g} of {ticks:g} ticks left out as stale')
    idle = number(quality.get('idle')) or 0.0
    if idle > IDLE:
        yield Problem('idle', idle, f'{idle:.0%} of the actions do not move')
    saturation = saturation_of(quality, contract)
    if saturation and max(saturation) > SATURATED:
        worst = saturation.index(max(saturation))
        joint = f'dimension {worst}' if contract is None else contract.action.joints[worst]
        text = f'{joint}: {saturation[worst]:.0%} of the actions at the lowest or highest bin'
        yield Problem('saturated', saturation[worst], text)


def _of_stream(
    name: str, stream: Mapping[str, Any], ticks: float | None, contract: RobotContract | None
) -> Iterator[Problem]:
    matched = number(stream.get('matched')) or 0.0
    for field, what in (('duplicates', 'images equal'), ('repeated', 'ticks repeat')):
        count = number(stream.get(field)) or 0.0
        if count > FROZEN * max(matched, 1.0):
            text = f'{name}: {count:g} of {matched:g} {what} the one before'
            yield Problem('frozen', count / max(matched, 1.0), text)
    stale = number(stream.get('stale')) or 0.0
    if stale > 0:
        text = f'{name}: older than its max_age at {stale:g} ticks'
        yield Problem('stale', stale / max(ticks or 0.0, stale), text)
    rate, expected = number(stream.get('rate')), expected_rate(stream, contract)
    if rate is not None and expected is not None and rate < SLOW * expected:
        text = f'{name}: {rate:.3g} Hz, expected {expected:.3g} Hz'
        yield Problem('slow', 1 - rate / expected, text)
    gap, limit = number(stream.get('largest_gap')), _max_age(name, contract)
    if gap is not None and limit is not None and gap > limit:
        text = f'{name}: nothing for {gap:.3g} s, max_age is {limit:g} s'
        yield Problem('gap', gap / limit, text)
    jumps = number(stream.get('jumps')) or 0.0
    if jumps > 0:
        yield Problem('jump', jumps, f'{name}: {jumps:g} stamps went back')


def expected_rate(stream: Mapping[str, Any], contract: RobotContract | None) -> float | None:
    """Give the rate a stream should have, Hz: its own, or at least the control rate."""
    return number(stream.get('expected')) or (None if contract is None else contract.rate)


def _max_age(name: str, contract: RobotContract | None) -> float | None:
    if contract is None:
        return None
    ages = {camera.name: camera.max_age for camera in contract.cameras}
    return (ages | {STATE: contract.state.max_age}).get(name)
