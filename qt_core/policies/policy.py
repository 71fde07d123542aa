# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The interface between any policy and whatever runs it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from qt_core.configuration import ConfigurationError, require
from qt_core.contract import RobotContract
from qt_core.observation import Observation
from qt_core.spec import Spec

MAX_BEAM = 1024
MAX_STEPS = 1024


def _not_given() -> NDArray[np.float64]:
    return np.empty((0, 0))


@dataclass(frozen=True)
class Decision:
    """What a policy chose and what it thought.

    Attributes:
        bins: (N,) int64 chosen bins.
        action: (N,) float64 value of the bins, in the contract's units; of a policy of continuous
            actions, the action whose bins they are. Without a contract, the bins.
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


@dataclass(frozen=True, kw_only=True)
class Choice:
    """How actions are chosen.

    Attributes:
        beam: Prefixes of an action kept while its dimensions are chosen; 1 is greedy.
        guidance: How far to go from what would be done without a sentence, to what is done with
            it, and beyond; 1 is as trained.
        exploration: Each dimension's probability of a uniformly random bin.
        temperature: Of drawing a bin in proportion to its probability to the power of 1 /
            temperature; 0 takes the most probable one.
        target_return: The return to ask for, in multiples of the best one in the data.
        prompted: Whether a successful episode is shown to the policy before it acts.
    """

    beam: int = 1
    guidance: float = 1.0
    exploration: float = 0.0
    temperature: float = 0.0
    target_return: float = 1.0
    prompted: bool = False

    def __post_init__(self) -> None:
        require(1 <= self.beam <= MAX_BEAM, 'beam', self.beam, f'1..{MAX_BEAM}')
        for name in ('guidance', 'temperature', 'target_return'):
            value = getattr(self, name)
            sound = math.isfinite(value) and value >= 0
            require(sound, name, value, 'a number that is zero or more')
        require(0 <= self.exploration <= 1, 'exploration', self.exploration, '0..1')
        greedy = self.beam == 1 or self.exploration == 0
        require(greedy, 'beam', self.beam, '1 while exploration is above 0')

    def require_only(self, *names: str) -> None:
        """Refuse what a policy that knows only `names` cannot do.

        Raises:
            ConfigurationError: Another field is not at its default.
        """
        for f in fields(self):
            if f.name not in names:
                value = getattr(self, f.name)
                require(value == f.default, f.name, value, f'{f.default} for this policy')


class Policy(Protocol):
    """Acts on observations, one control step at a time.

    It has an instruction from `reset` or `follow` on, and until `warm_up`.
    """

    @property
    def spec(self) -> Spec:
        """Shapes of the observations and actions."""
        ...

    @property
    def contract(self) -> RobotContract | None:
        """The contract the policy was trained under; None where there is no robot."""
        ...

    def warm_up(self) -> None:
        """Compile, allocate and load what a control step needs, so that the first is no slower.

        To be called after `choose` and before `reset`, since the instruction that was followed
        and what was seen are forgotten; once torch's number of threads is set, which compiled code
        depends on; and for a GPU in the thread that will call `act`, which CUDA graphs belong to.
        """
        ...

    def check_choice(self, choice: Choice) -> None:
        """Say whether `choose` would take this; may be called from any thread.

        Raises:
            ConfigurationError: It would not, and why.
        """
        ...

    def choose(self, choice: Choice) -> None:
        """Set how actions are chosen from the next `act` on.

        Raises:
            ConfigurationError: It is not for this policy. Nothing has changed then.
        """
        ...

    def reset(self, instruction: str) -> None:
        """Forget the past and follow `instruction` from now on."""
        ...

    def follow(self, instruction: str) -> None:
        """Follow `instruction` from the next `act` on, without forgetting what was seen."""
        ...

    def receive(self, reward: float) -> None:
        """Take a reward for what was done since the last `act`.

        Whoever knows of no rewards does not call it.
        """
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


def robot_of(policy: Policy) -> RobotContract:
    """Give the contract of a policy that is to run on a robot.

    Raises:
        ConfigurationError: It was trained in an environment that is no robot.
    """
    if policy.contract is None:
        raise ConfigurationError(
            'the policy has no contract: it was trained for no robot, but for a task such as '
            'gymnasium:ID (--task)'
        )
    return policy.contract


def check_steps(steps: int) -> None:
    """Check the length of a plan.

    Raises:
        ConfigurationError: It is out of range.
    """
    require(1 <= steps <= MAX_STEPS, 'steps', steps, f'1..{MAX_STEPS}')
