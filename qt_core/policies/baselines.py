# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Policies to compare with."""

from __future__ import annotations

import numpy as np

from qt_core.action_space import ActionSpace
from qt_core.contract import RobotContract
from qt_core.observation import Observation
from qt_core.policies.policy import Decision


class RandomPolicy:
    """Draws every bin uniformly."""

    def __init__(self, contract: RobotContract, seed: int = 0) -> None:
        self.contract = contract
        self.action_space = ActionSpace(contract)
        self.random = np.random.default_rng(seed)

    def reset(self, instruction: str) -> None:
        """Do nothing: the sentence does not matter to it."""

    def act(self, observation: Observation) -> Decision:
        """Draw an action, whatever the observation."""
        bins = self.random.integers(0, self.action_space.bins, self.action_space.dimensions)
        return Decision(bins=bins, action=self.action_space.decode(bins))
