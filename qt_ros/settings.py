# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""How a policy acts on a robot: what the policy node's parameters say."""

from __future__ import annotations

from dataclasses import dataclass, fields

from qt_core.configuration import require
from qt_core.policies import Choice, Policy, robot_of

TRIGGERS = ('rate', 'observation')


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How to act.

    Attributes:
        trigger: `rate`: on the camera image nearest to each control step; `observation`: on each
            image, once every stream has reached its stamp (lock step).
        rate: Control steps per second, at most the contract's; 0 for the contract's.
        stamp_commands: Whether commands carry the stamp of the observation they answer.
        frozen_after: Seconds of identical images after which a camera is frozen; 0 for never.
        reset_on_instruction: Whether another sentence makes the policy forget what it has seen.
        chunk_size: Control steps decided by one inference.
        n_action_steps: Control steps from one inference to the next.
        beam: As of a `Choice`, and so are the others.
    """

    trigger: str = 'rate'
    rate: float = 0.0
    stamp_commands: bool = False
    frozen_after: float = 1.0
    reset_on_instruction: bool = True
    chunk_size: int = 1
    n_action_steps: int = 1
    beam: int = 1
    guidance: float = 1.0
    exploration: float = 0.0
    temperature: float = 0.0
    target_return: float = 1.0
    prompted: bool = False

    def __post_init__(self) -> None:
        require(self.trigger in TRIGGERS, 'trigger', self.trigger, ' or '.join(TRIGGERS))
        steps, size = self.n_action_steps, self.chunk_size
        require(steps <= size, 'n_action_steps', steps, f'at most chunk_size, which is {size}')
        single = self.trigger == 'rate' or size == 1
        require(single, 'chunk_size', size, '1 where trigger is observation')
        _ = self.choice

    def require_fits(self, policy: Policy) -> None:
        """Refuse a rate that the contract has no room for, and choices that are not the policy's.

        Raises:
            ConfigurationError: It cannot act like that.
        """
        contract = robot_of(policy)
        most, least = contract.rate, 1 / contract.safety.watchdog
        fits = self.rate == 0 or least < self.rate <= most
        allowed = f'0, or above {least:g} (a step within the watchdog) and at most {most:g}'
        require(fits, 'rate', self.rate, f"{allowed}, the contract's")
        policy.check_choice(self.choice)

    @property
    def choice(self) -> Choice:
        """How the policy chooses."""
        return Choice(**{f.name: getattr(self, f.name) for f in fields(Choice)})
