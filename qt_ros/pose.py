# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Where the arm is, as far as anybody knows right now."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qt_core.contract import RobotContract
from qt_ros.conversions import ConversionError
from qt_ros.streams import STATE, Stream, observed_streams


class MeasuredPose:
    """The newest joint state, decoded when somebody asks. Not thread-safe.

    Args:
        contract: Names the joints, and the age at which a state says nothing any more.

    Attributes:
        stream: The stream that `push` takes messages of.
    """

    def __init__(self, contract: RobotContract) -> None:
        self.stream: Stream = next(s for s in observed_streams(contract) if s.name == STATE)
        self._joints = contract.action.joints
        self._max_age = contract.state.max_age
        self._time = 0
        self._message: Any = None

    def push(self, message: Any, now: int) -> None:
        """Take a joint state received at `now`, ns: a message, or the bytes of one."""
        self._time, self._message = self.stream.time(message, now), message

    def age(self, now: int) -> float | None:
        """Give the age of the joint state at `now` ns, s; None when there was none."""
        return None if self._message is None else (now - self._time) / 1e9

    def at(self, now: int) -> NDArray[np.float64] | None:
        """Give the positions (N,) of the commanded joints, rad or m.

        None when nothing is known: never received, older than the contract allows, or not a joint
        state of this arm.
        """
        age = self.age(now)
        if age is None or abs(age) > self._max_age:
            return None
        try:
            positions = self.stream.decode(self._message)
            return np.array([positions[joint] for joint in self._joints], np.float64)
        except (ConversionError, KeyError):
            return None

    def names(self) -> tuple[str, ...] | None:
        """Name the joints of the newest state; None when there was none that can be read."""
        try:
            return None if self._message is None else tuple(self.stream.decode(self._message))
        except ConversionError:
            return None
