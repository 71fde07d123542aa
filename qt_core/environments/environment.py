# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The interface between a task and whatever acts in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from qt_core.contract import RobotContract
from qt_core.observation import Observation
from qt_core.spec import Spec


@dataclass(frozen=True)
class Step:
    """What one action led to.

    Attributes:
        observation: What the robot sees after the action.
        reward: Reward of the action.
        terminal: The task ended here, in success or failure: no future return.
        timeout: Time ran out; the future was cut off, not ended.
    """

    observation: Observation
    reward: float
    terminal: bool
    timeout: bool


class Environment(Protocol):
    """A task of a robot, or of an environment that is none."""

    @property
    def spec(self) -> Spec:
        """Shapes of observations and actions."""
        ...

    @property
    def contract(self) -> RobotContract | None:
        """The robot's contract; None where there is no robot."""
        ...

    def reset(self, seed: int) -> tuple[Observation, str]:
        """Start the episode of `seed`; give the first observation and the sentence."""
        ...

    def step(self, bins: NDArray[np.int64]) -> Step:
        """Take the action with these bins (N,)."""
        ...
