# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Policies to compare with."""

from __future__ import annotations

import numpy as np

from qt_core.action_space import ActionSpace
from qt_core.contract import RobotContract
from qt_core.observation import Observation
from qt_core.policies.policy import Decision, check_choice, check_steps


class RandomPolicy:
    """Draws every bin uniformly, with or without an instruction."""

    def __init__(self, contract: RobotContract, seed: int = 0) -> None:
        self.contract = contract
        self.action_space = ActionSpace(contract)
        self.random = np.random.default_rng(seed)

    def warm_up(self) -> None:
        """Do nothing: there is nothing to load."""

    def check_choice(self, *, beam: int, guidance: float, exploration: float) -> None:
        """Check the values.

        Raises:
            ConfigurationError: A value is out of range or does not go with another one.
        """
        check_choice(beam, guidance, exploration)

    def choose(self, *, beam: int = 1, guidance: float = 1.0, exploration: float = 0.0) -> None:
        """Check the values and go on drawing.

        Raises:
            ConfigurationError: A value is out of range or does not go with another one.
        """
        check_choice(beam, guidance, exploration)

    def reset(self, instruction: str) -> None:
        """Do nothing: the sentence does not matter to it."""

    def follow(self, instruction: str) -> None:
        """Do nothing, as in `reset`."""

    def act(self, observation: Observation, steps: int = 1) -> Decision:
        """Draw an action, and those of the steps after it, whatever the observation."""
        check_steps(steps)
        shape = (steps, self.action_space.dimensions)
        bins = self.random.integers(0, self.action_space.bins, shape)
        plan = self.action_space.decode(bins)
        return Decision(bins=bins[0], action=plan[0], plan=plan)
