# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Run a trained Q-Transformer, one control step at a time."""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor

from qt_core.action_space import ActionSpace
from qt_core.contract import RobotContract
from qt_core.instruction import SentenceEncoder
from qt_core.learning.checkpoint import Checkpoint
from qt_core.observation import Observation, normalise_state
from qt_core.policies.policy import Decision


class QTransformerPolicy:
    """Takes the best bins by Q; encodes only the newest frame at each step.

    Args:
        checkpoint: A trained Q-Transformer.
        device: Where its weights are.
    """

    def __init__(self, checkpoint: Checkpoint, device: torch.device) -> None:
        self.model = checkpoint.model
        self.device = device
        self.action_space = ActionSpace(checkpoint.contract)
        self._contract = checkpoint.contract
        self._encoder = SentenceEncoder(checkpoint.sentence_model)
        self._encoder.remember(checkpoint.sentences, checkpoint.embeddings)
        self._tokens: deque[Tensor] = deque(maxlen=self.model.config.frames)
        self._text: Tensor | None = None

    @property
    def contract(self) -> RobotContract:
        """The contract the policy was trained under."""
        return self._contract

    def reset(self, instruction: str) -> None:
        """Forget the frames seen and follow `instruction`."""
        self._text = torch.from_numpy(self._encoder.embed([instruction])).to(self.device)
        self._tokens.clear()

    @torch.inference_mode()
    def act(self, observation: Observation) -> Decision:
        """Choose the best bins for the newest observation.

        Raises:
            RuntimeError: `reset` was never called.
            FloatingPointError: The values are not finite.
        """
        if self._text is None:
            raise RuntimeError('the policy has no instruction: call reset first')
        images = {
            name: torch.from_numpy(image)[None, None].to(self.device)
            for name, image in observation.images.items()
        }
        state = torch.from_numpy(normalise_state(self._contract.state, observation.state))
        self._tokens.append(
            self.model.encode(images, state[None, None].to(self.device), self._text)
        )
        context = self.model.contextualise(torch.cat(list(self._tokens), dim=1))[:, -1:]
        bins, values = self.model.best_actions(context)
        if not values.isfinite().all():
            raise FloatingPointError('the network gave values that are not finite')
        chosen = bins[0].cpu().numpy()
        return Decision(
            bins=chosen,
            action=self.action_space.decode(chosen),
            values=values[0].float().cpu().numpy(),
        )
