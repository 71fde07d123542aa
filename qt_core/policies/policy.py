# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The interface between any policy and whatever runs it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from qt_core.contract import RobotContract
from qt_core.observation import Observation


@dataclass(frozen=True)
class Decision:
    """What a policy chose and what it thought.

    Attributes:
        bins: (N,) int64 chosen bins.
        action: (N,) float64 value of the bins, in the contract's units.
        values: (N, A) float32 value of every bin given the bins chosen before it, or None.
    """

    bins: NDArray[np.int64]
    action: NDArray[np.float64]
    values: NDArray[np.float32] | None = None


class Policy(Protocol):
    """Acts on observations, one control step at a time."""

    @property
    def contract(self) -> RobotContract:
        """The contract the policy was trained under."""
        ...

    def reset(self, instruction: str) -> None:
        """Forget the past and follow `instruction` from now on."""
        ...

    def act(self, observation: Observation) -> Decision:
        """Choose the action for the newest observation."""
        ...
