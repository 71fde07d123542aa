# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A body that a policy acts with: a robot under its contract, or an environment that is none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qt_core.action_space import ActionSpace
from qt_core.contract import RobotContract
from qt_core.observation import normalise_state
from qt_core.spec import Spec


@dataclass(frozen=True)
class Embodiment:
    """What is seen and done, and in which units.

    Attributes:
        spec: Shapes of observations and actions.
        contract: The robot's contract; None for an environment that is no robot. Its states stay
            as they are, and its actions have no values but their bins.
    """

    spec: Spec
    contract: RobotContract | None = None

    @classmethod
    def of(cls, contract: RobotContract) -> Embodiment:
        """Give a robot's."""
        return cls(Spec.of(contract), contract)

    def normalise(self, state: NDArray[Any]) -> NDArray[np.float32]:
        """Scale joint positions (..., S) so that the contract's low..high becomes -1..1."""
        if self.contract is None:
            return np.asarray(state, np.float32)
        return normalise_state(self.contract.state, state)

    def decode(self, bins: NDArray[Any]) -> NDArray[np.float64]:
        """Give the value (..., N) of each bin, in the contract's units.

        Raises:
            ValueError: A bin is out of range.
        """
        if self.contract is not None:
            return ActionSpace(self.contract).decode(bins)
        bins = np.asarray(bins)
        if bins.size and (bins.min() < 0 or bins.max() >= self.spec.action_bins):
            raise ValueError(f'bins {bins.tolist()} are not all in 0..{self.spec.action_bins - 1}')
        return bins.astype(np.float64)

    def encode(self, action: NDArray[Any]) -> NDArray[np.int64]:
        """Cut actions (..., N) into bins; values outside the range take the edge bin.

        Raises:
            ValueError: A value is not finite.
        """
        if self.contract is not None:
            return ActionSpace(self.contract).encode(action)
        action = np.asarray(action, np.float64)
        if not np.isfinite(action).all():
            raise ValueError(f'action {action.tolist()} is not finite')
        return np.rint(np.clip(action, 0, self.spec.action_bins - 1)).astype(np.int64)

    def to_unit(self, action: NDArray[Any]) -> NDArray[np.float32]:
        """Scale actions (..., N) so that the range of values becomes -1..1."""
        low, high = self._range()
        return np.asarray(np.clip(2 * (action - low) / (high - low) - 1, -1, 1), np.float32)

    def from_unit(self, unit: NDArray[Any]) -> NDArray[np.float64]:
        """Invert `to_unit`."""
        low, high = self._range()
        return low + (np.clip(np.asarray(unit, np.float64), -1, 1) + 1) / 2 * (high - low)

    def _range(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        if self.contract is not None:
            space = ActionSpace(self.contract)
            return space.low, space.high
        low = np.zeros(self.spec.num_actions)
        return low, low + self.spec.action_bins - 1
