# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""How well a policy keeps up with its robot, in figures."""

from __future__ import annotations

from collections.abc import Mapping

from qt_core.contract import RobotContract
from qt_ros.bags.audit import RateMeter
from qt_ros.diagnostics import Percentiles
from qt_ros.streams import STATE

SLOW = 0.1  # share of control steps that may come late until it is worth a warning


class Vitals:
    """Rates of the streams and of the actions, and how long these take. Not thread-safe.

    Args:
        contract: Names the streams and their rates.
    """

    def __init__(self, contract: RobotContract) -> None:
        rates = {camera.name: camera.rate for camera in contract.cameras}
        rates[STATE] = contract.state.rate
        self._streams = {name: RateMeter(rate or contract.rate) for name, rate in rates.items()}
        self._heard: dict[str, int] = {}  # stream -> its first message, ns
        self._actions, self._late = RateMeter(), RateMeter()
        self._inference, self._latency = Percentiles(), Percentiles()
        self._overruns = 0

    def hear(self, stream: str, now: int) -> None:
        """Count a message of a stream received at `now`, ns."""
        self._streams[stream].add(now)
        self._heard.setdefault(stream, now)

    def overrun(self, now: int) -> None:
        """Count a control step that was due while the one before was still on."""
        self._overruns += 1
        self._late.add(now)

    def infer(self, seconds: float) -> None:
        """Take note of how long an inference took."""
        self._inference.add(1e3 * seconds)

    def act(self, now: int, seconds: float) -> None:
        """Count an action at `now`, ns, so many seconds after its image had arrived."""
        self._actions.add(now)
        self._latency.add(1e3 * seconds)

    def complaint(self, now: int, rate: float) -> str:
        """Say what keeps it from `rate` actions per second; '' when nothing does."""
        acted, late = self._actions.rate(now), self._late.rate(now)
        if late > SLOW * (acted + late):
            return f'inference is slow: {acted:.1f} of {rate:g} Hz'
        for name, meter in self._streams.items():
            long = now - self._heard.get(name, now) > 1e9 * meter.window
            if long and not meter.enough(now):
                return f"'{name}' comes at {meter.rate(now):.1f} Hz, expected {meter.expected:g}"
        return ''

    def values(self, now: int, ages: Mapping[str, float | None]) -> dict[str, str]:
        """Give the figures by name; `ages` are those of the streams, s."""
        values = {}
        for name, age in ages.items():
            values[f'age of {name} (s)'] = 'never' if age is None else f'{age:.3f}'
            values[f'rate of {name} (Hz)'] = f'{self._streams[name].rate(now):.1f}'
        values |= self._inference.values('inference', 'ms')
        values |= self._latency.values('observation to command', 'ms')
        values['actions (Hz)'] = f'{self._actions.rate(now):.1f}'
        values['overruns'] = str(self._overruns)
        return values
