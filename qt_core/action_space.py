# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Continuous action <-> bin, and bin -> joint target, per dimension."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qt_core.contract import ActionContract, RobotContract

MU = 100.0


class ActionSpace:
    """The bins of one robot's commands.

    A bin b of A is a value by x = low + (high - low) · b / (A - 1): the lowest and the highest bin
    are exactly `low` and `high`. Under `mu_law`, bins are uniform in F(x) = sgn(x) ln(1 + μ|x|) /
    ln(1 + μ), μ = 100, of the range scaled to [-1, 1] (ITU-T G.711; Reed et al. 2022, eq. 1).
    A terminate dimension, when there is one, is last: value 0 goes on, 1 is done.
    """

    def __init__(self, contract: RobotContract) -> None:
        action: ActionContract = contract.action
        self.bins = action.bins
        self.dimensions = action.dimensions
        self.mode = action.mode
        self.companding = action.companding
        self.period = contract.period
        terminate = [1.0] if action.terminate else []
        self.low = np.array([*action.low, *(0.0 * x for x in terminate)], np.float64)
        self.high = np.array([*action.high, *terminate], np.float64)
        self.state_index = np.array([contract.state.joints.index(j) for j in action.joints])

    def encode(self, action: NDArray[Any]) -> NDArray[np.int64]:
        """Cut actions (..., N) into bins (..., N); values outside the range take the edge bin.

        Raises:
            ValueError: A value is not finite.
        """
        action = np.asarray(action, np.float64)
        if not np.isfinite(action).all():
            raise ValueError(f'action {action.tolist()} is not finite')
        unit = np.clip(2 * (action - self.low) / (self.high - self.low) - 1, -1, 1)
        if self.companding == 'mu_law':
            unit = np.sign(unit) * np.log1p(MU * np.abs(unit)) / np.log1p(MU)
        return np.rint((unit + 1) / 2 * (self.bins - 1)).astype(np.int64)

    def decode(self, bins: NDArray[Any]) -> NDArray[np.float64]:
        """Give the value (..., N) of each bin (..., N), 0 <= bin < A.

        Raises:
            ValueError: A bin is out of range.
        """
        bins = np.asarray(bins)
        if bins.size and (bins.min() < 0 or bins.max() >= self.bins):
            raise ValueError(f'bins {bins.tolist()} are not all in 0..{self.bins - 1}')
        unit = 2 * bins / (self.bins - 1) - 1
        if self.companding == 'mu_law':
            unit = np.sign(unit) * np.expm1(np.abs(unit) * np.log1p(MU)) / MU
        return self.low + (unit + 1) / 2 * (self.high - self.low)

    def to_targets(self, action: NDArray[Any], state: NDArray[Any]) -> NDArray[np.float64]:
        """Turn an action (N,) taken in state (S,) into target positions of the action's joints."""
        joints = np.asarray(action, np.float64)[: len(self.state_index)]
        measured = np.asarray(state, np.float64)[self.state_index]
        if self.mode == 'absolute':
            return joints
        return measured + (joints if self.mode == 'delta' else joints * self.period)

    def from_targets(self, targets: NDArray[Any], state: NDArray[Any]) -> NDArray[np.float64]:
        """Recover the action's joint part from the targets sent in state (S,)."""
        targets = np.asarray(targets, np.float64)
        measured = np.asarray(state, np.float64)[self.state_index]
        if self.mode == 'absolute':
            return targets
        return (targets - measured) / (1.0 if self.mode == 'delta' else self.period)
