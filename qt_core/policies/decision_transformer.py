# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Run a trained Decision Transformer, one control step at a time."""

from __future__ import annotations

import copy
from collections import deque

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import DynamicCache

from qt_core.configuration import require
from qt_core.contract import RobotContract
from qt_core.embodiment import Embodiment
from qt_core.instruction import SentenceEncoder
from qt_core.learning.checkpoint import Checkpoint
from qt_core.models.decision_transformer import DecisionTransformer
from qt_core.observation import Observation
from qt_core.policies.policy import Choice, Decision, check_steps
from qt_core.spec import Spec


class DecisionTransformerPolicy:
    """Does what leads to the return that is asked for, as far as the data tell.

    That return goes down by the rewards that arrive; where none do, it stays as it is.

    Args:
        checkpoint: A trained Decision Transformer, whose network the policy takes over.
        compile: Not supported.

    Raises:
        ConfigurationError: `compile` is set.
    """

    def __init__(self, checkpoint: Checkpoint, *, compile: bool = False) -> None:
        require(not compile, 'compile', compile, 'False for a decision_transformer')
        self.model: DecisionTransformer = checkpoint.model
        self.embodiment = Embodiment(self.model.config.shapes, checkpoint.contract)
        encoder = SentenceEncoder(checkpoint.sentence_model)
        encoder.remember(checkpoint.sentences, checkpoint.embeddings)
        self.model.sentence_encoder = encoder
        self._range = self.model.low_return.item(), self.model.best_return.item()
        self._choice = Choice()
        self._memory: Memory | None = None
        self._text: Tensor | None = None
        self._received = 0.0

    @property
    def spec(self) -> Spec:
        """Shapes of the observations and actions."""
        return self.embodiment.spec

    @property
    def contract(self) -> RobotContract | None:
        """The contract the policy was trained under; None where there is no robot."""
        return self.embodiment.contract

    def warm_up(self) -> None:
        """Act on blank observations until the context is full, and forget them.

        Needs no sentence encoder.

        Raises:
            FloatingPointError: The network's output is not finite.
        """
        config = self.model.config
        blank = Observation(
            images={
                camera.name: np.zeros((camera.height, camera.width, camera.channels), np.uint8)
                for camera in config.cameras
            },
            state=np.zeros(config.state_dim, np.float32),
        )
        text = torch.ones(1, config.text_dim, device=self.model.device)
        try:
            self._begin(text if config.condition_on_text else None)
            for _ in range(config.context + 1):
                self.act(blank, steps=2)
        finally:
            self._memory = None

    def check_choice(self, choice: Choice) -> None:
        """Say whether `choose` would take this: exploration, a temperature, a target return.

        Raises:
            ConfigurationError: It would not. Continuous actions have no temperature, and behaviour
                cloning no return.
        """
        known = ['exploration']
        if self.model.config.actions == 'bins':
            known.append('temperature')
        if self.model.config.return_conditioned:
            known.append('target_return')
        choice.require_only(*known)

    def choose(self, choice: Choice) -> None:
        """Set how actions are chosen from the next `act` on; see `check_choice`."""
        self.check_choice(choice)
        self._choice = choice

    @property
    def asked_return(self) -> float | None:
        """The return asked for when an episode begins; None without return conditioning."""
        if not self.model.config.return_conditioned:
            return None
        low, best = self._range
        return low + self._choice.target_return * (best - low)

    def reset(self, instruction: str) -> None:
        """Forget what was seen, done and received, and follow `instruction`."""
        self._begin(self._embed(instruction))

    def follow(self, instruction: str) -> None:
        """Follow `instruction` from the next `act` on.

        What was seen stays as it was encoded, under the sentence before.
        """
        if self._memory is None:
            self.reset(instruction)
        else:
            self._text = self._embed(instruction)
            self._memory.follow(self._sentence())

    def receive(self, reward: float) -> None:
        """Ask for that much less from the next `act` on."""
        self._received += reward

    @torch.no_grad()
    def act(self, observation: Observation, steps: int = 1) -> Decision:
        """Choose the action for the newest observation.

        Args:
            observation: The newest one.
            steps: Length of the plan. It goes on as if what is seen stayed the same and no reward
                came, with the actions planned so far in the memory.

        Raises:
            ConfigurationError: `steps` is out of range.
            RuntimeError: There is no instruction.
            FloatingPointError: The network's output is not finite.
        """
        check_steps(steps)
        if self._memory is None:
            raise RuntimeError('the policy has no instruction: call reset first')
        device = self.model.device
        images = {
            camera.name: torch.tensor(observation.images[camera.name], device=device)[None, None]
            for camera in self.model.config.cameras
        }
        state = torch.tensor(self.embodiment.normalise(observation.state), device=device)
        observed = self.model.observe(images, state[None, None], self._text)
        decision = self._decide(self._memory, observed)
        if steps == 1:
            return decision
        memory = copy.copy(self._memory)
        rest = [self._decide(memory, observed).action for _ in range(steps - 1)]
        plan = np.stack([decision.action, *rest])
        return Decision(decision.bins, decision.action, decision.values, plan)

    def _begin(self, text: Tensor | None) -> None:
        self._text, self._received = text, 0.0
        self._memory = Memory(self.model, self._sentence())

    @torch.no_grad()
    def _sentence(self) -> Tensor:
        return self.model.sentence_tokens(self._text, 1)

    def _embed(self, instruction: str) -> Tensor | None:
        if not self.model.config.condition_on_text:
            return None
        embedded = self.model.sentence_encoder.embed([instruction])
        return torch.from_numpy(np.ascontiguousarray(embedded)).to(self.model.device)

    def _decide(self, memory: Memory, observed: Tensor) -> Decision:
        """Choose an action for `observed` (1, 1, D), and remember both."""
        model, device = self.model, self.model.device
        time = torch.full((1, 1), memory.count, device=device)
        asked = (self.asked_return or 0.0) - self._received
        seen = model.observation_tokens(observed, time, torch.full((1, 1), asked, device=device))
        predicted = memory.read(seen[0])
        if model.config.actions == 'bins':
            decision = self._classified(predicted)
            done = torch.from_numpy(decision.bins).to(device)
        else:
            decision = self._regressed(predicted.cpu().numpy())
            done = torch.from_numpy(self.embodiment.to_unit(decision.action)).to(device)
        action = model.action_tokens(done[None, None], time)
        memory.store(torch.cat([seen, action], dim=2)[0, 0])
        return decision

    def _classified(self, logits: Tensor) -> Decision:
        """Choose bins by their logits (N, A)."""
        logits = logits.float()
        bins = logits.argmax(-1)
        if self._choice.temperature > 0:
            below = (logits - logits.amax(-1, keepdim=True)).cpu().double()
            weights = (below / self._choice.temperature).exp()  # 1 for the best, however cold
            bins = torch.multinomial(weights, 1).squeeze(-1)
        chosen = self._explored(bins.cpu().numpy())
        values: NDArray[np.float32] = logits.softmax(-1).cpu().numpy()
        return Decision(chosen, self.embodiment.decode(chosen), values)

    def _regressed(self, unit: NDArray[np.float32]) -> Decision:
        """Take the continuous action (N,) in -1..1, and the bins it falls into."""
        action = self.embodiment.from_unit(unit)
        bins = self.embodiment.encode(action)
        chosen = self._explored(bins)
        centres = self.embodiment.decode(chosen)
        if self.contract is None:
            return Decision(chosen, centres)
        return Decision(chosen, np.where(chosen == bins, action, centres))

    def _explored(self, bins: NDArray[np.int64]) -> NDArray[np.int64]:
        """Put random bins in the place of some (N,)."""
        if self._choice.exploration == 0:
            return bins
        drawn = torch.randint(self.spec.action_bins, bins.shape).numpy()
        return np.where(torch.rand(bins.shape).numpy() < self._choice.exploration, drawn, bins)


class Memory:
    """The tokens of an episode so far, as far as the context reaches.

    While the whole episode is in the context, keys and values of its tokens are kept, and only the
    new tokens are computed. After that, what the oldest steps left in the keys and values of
    others must go, and all tokens of the context are computed again.

    Args:
        model: The network.
        sentence: (1, 0 or 1, D) of `sentence_tokens`.
    """

    def __init__(self, model: DecisionTransformer, sentence: Tensor) -> None:
        self.model = model
        self.sentence = sentence
        self.count = 0  # steps of the episode, the newest excluded
        self.steps: deque[Tensor] = deque(maxlen=model.config.context - 1)
        self._cache: DynamicCache | None = None

    def __copy__(self) -> Memory:
        other = Memory(self.model, self.sentence)
        other.count, other.steps = self.count, self.steps.copy()
        other._cache = copy.deepcopy(self._cache)
        return other

    def follow(self, sentence: Tensor) -> None:
        """Put another sentence in front."""
        self.sentence, self._cache = sentence, None

    def read(self, seen: Tensor) -> Tensor:
        """Predict the action (N, A) or (N,) for the newest tokens.

        Args:
            seen: (1, 1 or 2, D) of `observation_tokens`.

        Raises:
            FloatingPointError: It is not finite.
        """
        tokens = torch.cat([self.sentence, *(step[None] for step in self.steps), seen], dim=1)
        whole = self.count == len(self.steps)
        cache, self._cache = self._cache, None
        if not whole:
            cache = None
        elif cache is None:
            cache = DynamicCache()
        known = 0 if cache is None else cache.get_seq_length()
        there = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        hidden = self.model.attend(tokens[:, known:], there, cache)
        predicted = self.model.predict(hidden[0, -1])
        if not torch.isfinite(predicted).all():
            raise FloatingPointError('the network gave actions that are not finite')
        self._cache = cache
        return predicted

    def store(self, step: Tensor) -> None:
        """Add the tokens (2 or 3, D) of a whole step, those last read among them."""
        self.steps.append(step)
        self.count += 1
