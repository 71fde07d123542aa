# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Run a trained Q-Transformer, one control step at a time."""

from __future__ import annotations

import torch

from qt_core.action_space import ActionSpace
from qt_core.contract import RobotContract
from qt_core.instruction import SentenceEncoder
from qt_core.learning.checkpoint import Checkpoint
from qt_core.models import Session
from qt_core.observation import Observation, normalise_state
from qt_core.policies.policy import Decision


class QTransformerPolicy:
    """Takes the best bins by Q; encodes only the newest frame at each step.

    Args:
        checkpoint: A trained Q-Transformer.
        beam: Prefixes kept at each action dimension; 1 is greedy.
        cond_scale: Classifier-free guidance; 1 is none.

    Raises:
        CheckpointError: The checkpoint is of an environment, not of a robot.
    """

    def __init__(self, checkpoint: Checkpoint, *, beam: int = 1, cond_scale: float = 1.0) -> None:
        self.model = checkpoint.model
        self.beam, self.cond_scale = beam, cond_scale
        self.action_space = ActionSpace(checkpoint.robot)
        self._contract = checkpoint.robot
        encoder = SentenceEncoder(checkpoint.sentence_model)
        encoder.remember(checkpoint.sentences, checkpoint.embeddings)
        self.model.sentence_encoder = encoder
        self._session: Session | None = None

    @property
    def contract(self) -> RobotContract:
        """The contract the policy was trained under."""
        return self._contract

    def reset(self, instruction: str) -> None:
        """Forget the frames seen and follow `instruction`."""
        texts = [instruction] if self.model.config.condition_on_text else None
        self._session = self.model.session(texts, beam=self.beam, cond_scale=self.cond_scale)

    def act(self, observation: Observation) -> Decision:
        """Choose the best bins for the newest observation.

        Raises:
            RuntimeError: `reset` was never called.
            FloatingPointError: The values are not finite.
        """
        if self._session is None:
            raise RuntimeError('the policy has no instruction: call reset first')
        state = torch.from_numpy(normalise_state(self._contract.state, observation.state))
        bins, values = self._session.act(observation.images, state)
        if not values.isfinite().all():
            raise FloatingPointError('the network gave values that are not finite')
        chosen = bins[0].cpu().numpy()
        return Decision(
            bins=chosen,
            action=self.action_space.decode(chosen),
            values=values[0].float().cpu().numpy(),
        )
