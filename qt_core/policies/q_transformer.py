# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Run a trained Q-Transformer, one control step at a time."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from qt_core.configuration import require
from qt_core.contract import RobotContract
from qt_core.embodiment import Embodiment
from qt_core.instruction import SentenceEncoder
from qt_core.learning.checkpoint import Checkpoint
from qt_core.models import Decoding, QRoboticTransformer, Session
from qt_core.observation import Observation
from qt_core.policies.compiling import CALLS_UNTIL_REPLAY, compile_network
from qt_core.policies.policy import Choice, Decision, check_steps
from qt_core.spec import Spec

SENTENCE_TOKENS = 64  # compiled code takes multiples of it, so that all usual sentences fit


class QTransformerPolicy:
    """Takes the best bins by Q; encodes only the newest frame at each step.

    Args:
        checkpoint: A trained Q-Transformer, whose network the policy takes over.
        compile: Let torch.compile make a control step faster; see `compile_network`.
    """

    def __init__(self, checkpoint: Checkpoint, *, compile: bool = False) -> None:
        self.model: QRoboticTransformer = checkpoint.model
        self.embodiment = Embodiment(self.model.config.shapes, checkpoint.contract)
        encoder = SentenceEncoder(checkpoint.sentence_model)
        encoder.remember(checkpoint.sentences, checkpoint.embeddings)
        self.model.sentence_encoder = encoder
        self._how = Decoding()
        self._session: Session | None = None
        self._compiled = compile
        self._graphs = compile and self.model.device.type == 'cuda'
        if compile:
            compile_network(self.model, graphs=self._graphs)

    @property
    def spec(self) -> Spec:
        """Shapes of the observations and actions."""
        return self.embodiment.spec

    @property
    def contract(self) -> RobotContract | None:
        """The contract the policy was trained under; None where there is no robot."""
        return self.embodiment.contract

    def warm_up(self) -> None:
        """Act on blank observations until the history is full, and forget them.

        Compiles for guidance too where the network knows it, so that `choose` may turn it on
        later. Needs no sentence encoder.

        Raises:
            ConfigurationError: torch.compile does not work here.
            FloatingPointError: The values are not finite.
        """
        config = self.model.config
        blank = Observation(
            images={
                camera.name: np.zeros((camera.height, camera.width, camera.channels), np.uint8)
                for camera in config.cameras
            },
            state=np.zeros(config.state_dim, np.float32),
        )
        tokens = [SENTENCE_TOKENS] if config.conditioning == 'cross_attention' else []
        text = torch.ones(1, *tokens, config.text_dim, device=self.model.device)
        scales = {self._how.cond_scale}
        if self._compiled and config.cond_drop_prob > 0:
            scales |= {1.0, 2.0}
        try:
            for scale in scales:
                for _ in range(CALLS_UNTIL_REPLAY if self._graphs else 1):
                    how = dataclasses.replace(self._how, cond_scale=scale)
                    self._session = self._begin(text, how)
                    for _ in range(config.frames + 1):
                        self.act(blank, steps=2)
        finally:
            self._session = None

    def check_choice(self, choice: Choice) -> None:
        """Say whether `choose` would take this: a beam, guidance or exploration.

        Raises:
            ConfigurationError: It would not, or the network was trained without what guidance
                needs.
        """
        choice.require_only('beam', 'guidance', 'exploration')
        able = choice.guidance == 1 or self.model.config.cond_drop_prob > 0
        require(able, 'guidance', choice.guidance, '1 for a network trained with cond_drop_prob 0')

    def choose(self, choice: Choice) -> None:
        """Set how bins are chosen from the next `act` on.

        Guidance encodes every frame twice, also without the sentence. When it begins (from 1) or
        ends (to 1), the frames seen are forgotten, since they were encoded for the other case.

        Raises:
            ConfigurationError: It is not for this policy, or the network was trained without what
                guidance needs. Nothing has changed then.
        """
        self.check_choice(choice)
        self._how = Decoding(
            beam=choice.beam,
            cond_scale=choice.guidance,
            prob_random_action=choice.exploration,
        )
        if self._session is not None:
            self._session.choose(self._how)

    def reset(self, instruction: str) -> None:
        """Forget the frames seen and follow `instruction`."""
        text = self._embed(instruction)
        if self._session is None:
            self._session = self._begin(text, self._how)
        else:
            self._session.reset()
            self._session.follow(text_embeds=text)

    def follow(self, instruction: str) -> None:
        """Follow `instruction` from the next `act` on.

        The frames seen stay as they were encoded, under the sentence before.
        """
        if self._session is None:
            self.reset(instruction)
        else:
            self._session.follow(text_embeds=self._embed(instruction))

    def receive(self, reward: float) -> None:
        """Do nothing: values foretell rewards, and take none."""

    def act(self, observation: Observation, steps: int = 1) -> Decision:
        """Choose the best bins for the newest observation.

        Args:
            observation: The newest one.
            steps: Length of the plan. It goes on as if the next pictures looked like this one,
                with the actions planned so far in the memory of a network that has one; a network
                without does the same again.

        Raises:
            ConfigurationError: `steps` is out of range.
            RuntimeError: There is no instruction.
            FloatingPointError: The values are not finite.
        """
        check_steps(steps)
        if self._session is None:
            raise RuntimeError('the policy has no instruction: call reset first')
        state = self.embodiment.normalise(observation.state)
        _, chosen_from = self._session.act(observation.images, state)
        bins, values = _to_host(self._session.plan(steps)[0], chosen_from[0])
        if not np.isfinite(values).all():
            raise FloatingPointError('the network gave values that are not finite')
        plan = self.embodiment.decode(bins)
        return Decision(bins=bins[0], action=plan[0], values=values, plan=plan)

    def _begin(self, text: Tensor | None, how: Decoding) -> Session:
        session = self.model.session(text_embeds=text, cond_scale=how.cond_scale)
        session.choose(how)
        return session

    def _embed(self, instruction: str) -> Tensor | None:
        if not self.model.config.condition_on_text:
            return None
        text = self.model.embed_texts([instruction])
        if self._compiled and text.dim() == 3:
            text = F.pad(text, (0, 0, 0, -text.shape[1] % SENTENCE_TOKENS))
        return text


def _to_host(bins: Tensor, values: Tensor) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Bring bins (K, N) and values (N, A) into host memory by one copy, which waits for them."""
    packed = torch.cat([bins.flatten().to(values.dtype), values.flatten()]).cpu().numpy()
    whole = packed[: bins.numel()].astype(np.int64).reshape(bins.shape)
    return whole, packed[bins.numel() :].reshape(values.shape)
