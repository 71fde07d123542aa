# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Policies to compare with."""

from __future__ import annotations

import numpy as np

from qt_core.contract import RobotContract
from qt_core.embodiment import Embodiment
from qt_core.observation import Observation
from qt_core.policies.policy import Choice, Decision, check_steps
from qt_core.spec import Spec


class RandomPolicy:
    """Draws every bin uniformly, with or without an instruction.

    Args:
        body: A robot's contract, or the shapes of an environment that is no robot.
        seed: What the bins follow from.
    """

    def __init__(self, body: RobotContract | Spec, seed: int = 0) -> None:
        self.embodiment = Embodiment(body) if isinstance(body, Spec) else Embodiment.of(body)
        self.random = np.random.default_rng(seed)

    @property
    def spec(self) -> Spec:
        """Shapes of the observations and actions."""
        return self.embodiment.spec

    @property
    def contract(self) -> RobotContract | None:
        """The contract it was made for; None where there is no robot."""
        return self.embodiment.contract

    def warm_up(self) -> None:
        """Do nothing: there is nothing to load."""

    def check_choice(self, choice: Choice) -> None:
        """Take any."""

    def choose(self, choice: Choice) -> None:
        """Go on drawing."""

    def reset(self, instruction: str) -> None:
        """Do nothing: the sentence does not matter to it."""

    def follow(self, instruction: str) -> None:
        """Do nothing, as in `reset`."""

    def receive(self, reward: float) -> None:
        """Do nothing, as in `reset`."""

    def act(self, observation: Observation, steps: int = 1) -> Decision:
        """Draw an action, and those of the steps after it, whatever the observation."""
        check_steps(steps)
        shape = (steps, self.spec.num_actions)
        bins = self.random.integers(0, self.spec.action_bins, shape)
        plan = self.embodiment.decode(bins)
        return Decision(bins=bins[0], action=plan[0], plan=plan)
