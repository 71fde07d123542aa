# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The interface between any policy and whatever runs it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from qt_core.configuration import require
from qt_core.contract import RobotContract
from qt_core.observation import Observation

MAX_BEAM = 1024
MAX_STEPS = 1024


def _not_given() -> NDArray[np.float64]:
    return np.empty((0, 0))


@dataclass(frozen=True)
class Decision:
    """What a policy chose and what it thought.

    Attributes:
        bins: (N,) int64 chosen bins.
        action: (N,) float64 value of the bins, in the contract's units.
        values: (N, A) float32 value of every bin given the bins chosen before it, or None.
        plan: (K, N) float64 actions of this control step and of those after it; when not given,
            of this one alone.
    """

    bins: NDArray[np.int64]
    action: NDArray[np.float64]
    values: NDArray[np.float32] | None = None
    plan: NDArray[np.float64] = field(default_factory=_not_given)

    def __post_init__(self) -> None:
        if not self.plan.size:
            object.__setattr__(self, 'plan', self.action[None])


class Policy(Protocol):
    """Acts on observations, one control step at a time.

    It has an instruction from `reset` or `follow` on, and until `warm_up`.
    """

    @property
    def contract(self) -> RobotContract:
        """The contract the policy was trained under."""
        ...

    def warm_up(self) -> None:
        """Compile, allocate and load what a control step needs, so that the first is no slower.

        To be called after `choose` and before `reset`, since the instruction that was followed
        and what was seen are forgotten; once torch's number of threads is set, which compiled code
        depends on; and for a GPU in the thread that will call `act`, which CUDA graphs belong to.
        """
        ...

    def check_choice(self, *, beam: int, guidance: float, exploration: float) -> None:
        """Say whether `choose` would take these; may be called from any thread.

        Raises:
            ConfigurationError: It would not, and why.
        """
        ...

    def choose(self, *, beam: int = 1, guidance: float = 1.0, exploration: float = 0.0) -> None:
        """Set how actions are chosen from the next `act` on.

        Args:
            beam: Prefixes of an action kept while its dimensions are chosen; 1 is greedy.
            guidance: How far to go from what would be done without a sentence, to what is done
                with it, and beyond; 1 is as trained.
            exploration: Each dimension's probability of a uniformly random bin.

        Raises:
            ConfigurationError: A value is out of range, does not go with another one, or is not
                for this policy. Nothing has changed then.
        """
        ...

    def reset(self, instruction: str) -> None:
        """Forget the past and follow `instruction` from now on."""
        ...

    def follow(self, instruction: str) -> None:
        """Follow `instruction` from the next `act` on, without forgetting what was seen."""
        ...

    def act(self, observation: Observation, steps: int = 1) -> Decision:
        """Choose the action for the newest observation.

        Args:
            observation: The newest one; the policy keeps those of earlier calls that it looks at.
            steps: Length K of the decision's plan. What comes after this control step is planned
                without its observations, and does not enter what the policy remembers.

        Raises:
            RuntimeError: There is no instruction.
        """
        ...


def check_choice(beam: int, guidance: float, exploration: float) -> None:
    """Check what `Policy.choose` is given, as far as it is the same for all policies.

    Raises:
        ConfigurationError: A value is out of range or does not go with another one.
    """
    require(1 <= beam <= MAX_BEAM, 'beam', beam, f'1..{MAX_BEAM}')
    sound = math.isfinite(guidance) and guidance >= 0
    require(sound, 'guidance', guidance, 'a number that is zero or more')
    require(0 <= exploration <= 1, 'exploration', exploration, '0..1')
    require(beam == 1 or exploration == 0, 'beam', beam, '1 with exploration above 0')


def check_steps(steps: int) -> None:
    """Check the length of a plan.

    Raises:
        ConfigurationError: It is out of range.
    """
    require(1 <= steps <= MAX_STEPS, 'steps', steps, f'1..{MAX_STEPS}')
