# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Run a trained Gato, one control step at a time and token by token (Reed et al. 2022, 2.5)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qt_core.configuration import require
from qt_core.contract import RobotContract
from qt_core.learning.checkpoint import Checkpoint
from qt_core.models.gato import Gato
from qt_core.models.gato_prompts import Prompt
from qt_core.models.gato_sequence import (
    Steps,
    action_sequence,
    step_sequence,
    steps_that_fit,
    text_sequence,
)
from qt_core.models.gato_tokens import GatoSequence
from qt_core.observation import Observation
from qt_core.policies.policy import Choice, Decision, check_steps
from qt_core.spec import Spec

KEPT = 0.75  # share of the context that is left when the oldest steps are dropped


@dataclass(frozen=True)
class _Memory:
    """What the network has been told, as embeddings; none of it is ever changed.

    Attributes:
        lead: (1, L, D) sentence and prompt, which stay.
        steps: (1, L, D) of each whole step since, the oldest ones dropped where they don't fit.
        number: Number of the next step in the episode.
        read: Tokens, from the first, that `cache` holds.
        cache: Keys and values of those; None before any were read.
    """

    lead: Tensor
    steps: tuple[Tensor, ...] = ()
    number: int = 0
    read: int = 0
    cache: Any = None

    @property
    def length(self) -> int:
        """Tokens in all."""
        return self.lead.shape[1] + sum(step.shape[1] for step in self.steps)


class GatoPolicy:
    """Draws the bins of an action one after the other, each from its own range of tokens.

    While sentence, prompt and steps fit into the context, keys and values of all are kept. Then
    the oldest steps are dropped, whole, until a quarter of the context is free, and what is left
    is read again: every decision is that of a full pass over the steps that are kept.

    Args:
        checkpoint: A trained Gato, whose network the policy takes over.
        compile: Not supported.
        body: Name of the body to act with; empty for the first robot, or else the first one.

    Raises:
        ConfigurationError: `compile` is set, or there is no such body.
    """

    def __init__(self, checkpoint: Checkpoint, *, compile: bool = False, body: str = '') -> None:
        require(not compile, 'compile', compile, 'False for a gato')
        self.model: Gato = checkpoint.model
        bodies = self.model.config.bodies
        names = [each.name for each in bodies]
        if body:
            require(body in names, 'body', body, ' or '.join(names))
        robots = [each.name for each in bodies if each.contract]
        number = names.index(body or (robots or names)[0])
        self.body = bodies[number]
        self.embodiment = self.body.embodiment
        self._prompts = {p.sentence: p for p in self.model.prompts if p.body == number}
        self._how = Choice()
        self._sentence: list[int] = []
        self._instruction = ''
        self._memory: _Memory | None = None

    @property
    def spec(self) -> Spec:
        """Shapes of the observations and actions."""
        return self.embodiment.spec

    @property
    def contract(self) -> RobotContract | None:
        """The contract of the body; None where it is no robot."""
        return self.embodiment.contract

    def warm_up(self) -> None:
        """Act on blank observations until the context is full, and forget them.

        Raises:
            FloatingPointError: The values are not finite.
        """
        blank = Observation(
            images={
                camera.name: np.zeros((camera.height, camera.width, camera.channels), np.uint8)
                for camera in self.spec.cameras
            },
            state=np.zeros(self.spec.state_dim, np.float32),
        )
        try:
            self.reset('')
            for _ in range(
                steps_that_fit(self.model.config, self.body, 0) + 1
            ):  # some are dropped
                self.act(blank, steps=2)
        finally:
            self._memory = None

    def check_choice(self, choice: Choice) -> None:
        """Say whether `choose` would take this: exploration, temperature or a prompt.

        Raises:
            ConfigurationError: It would not, or the checkpoint has no prompts for the body.
        """
        choice.require_only('exploration', 'temperature', 'prompted')
        able = bool(self._prompts) or not choice.prompted
        allowed = f'False: no episode of {self.body.name} in the checkpoint was a success'
        require(able, 'prompted', choice.prompted, allowed)

    def choose(self, choice: Choice) -> None:
        """Set how bins are chosen, and whether a prompt leads, from the next `act` on.

        Raises:
            ConfigurationError: It is not for this policy. Nothing has changed then.
        """
        self.check_choice(choice)
        before, self._how = self._how, choice
        if self._memory is not None and choice.prompted != before.prompted:
            self.follow(self._instruction)

    def reset(self, instruction: str) -> None:
        """Forget the past and follow `instruction`.

        Where the policy is prompted, it is shown an episode of exactly this sentence; of a
        sentence that no episode of the checkpoint has, none.

        Raises:
            ConfigurationError: The sentence and one step do not fit into the context.
        """
        self._memory = _Memory(self._lead(instruction))
        self._instruction = instruction

    def follow(self, instruction: str) -> None:
        """Follow `instruction` from the next `act` on, without forgetting what was seen.

        Sentence and prompt before the steps change; what has been seen is read again after them.

        Raises:
            ConfigurationError: The sentence and one step do not fit into the context.
        """
        past = self._memory
        self.reset(instruction)
        if past is not None:
            assert self._memory is not None
            lead = self._memory.lead
            self._memory = dataclasses.replace(past, lead=lead, read=0, cache=None)

    def receive(self, reward: float) -> None:
        """Do nothing: rewards are not among the tokens."""

    @torch.no_grad()
    def act(self, observation: Observation, steps: int = 1) -> Decision:
        """Choose the bins for the newest observation.

        Args:
            observation: The newest one.
            steps: Length of the plan. It goes on as if the next observations were this one again.

        Raises:
            ConfigurationError: `steps` is out of range.
            RuntimeError: There is no instruction.
            FloatingPointError: The values are not finite. Nothing is remembered then.
        """
        check_steps(steps)
        if self._memory is None:
            raise RuntimeError('the policy has no instruction: call reset first')
        chosen, values, memory = self._decide(self._memory, observation)
        plan, ahead = [chosen], memory
        for _ in range(steps - 1):
            chosen, _, ahead = self._decide(ahead, observation)
            plan.append(chosen)
        self._memory = memory
        actions = self.embodiment.decode(np.stack(plan))
        return Decision(bins=plan[0], action=actions[0], values=values, plan=actions)

    def _decide(
        self, memory: _Memory, observation: Observation
    ) -> tuple[NDArray[np.int64], NDArray[np.float32], _Memory]:
        """Choose bins (N,) by probabilities (N, A); give both, and the memory after the step."""
        tokens = self._observed(memory, observation)
        memory = self._with_room(memory, tokens.shape[1] + self.body.num_actions)
        first, last = self.model.config.ids.action_range(self.body.action_bins)
        unread = torch.cat([memory.lead, *memory.steps, tokens], dim=1)[:, memory.read :]
        length = memory.length + tokens.shape[1]
        cache, step = memory.cache, [tokens]
        bins, probabilities = [], []
        for _ in range(self.body.num_actions):
            hidden, cache = self.model.extend(unread, cache)
            logits = self.model.logits(hidden[:, -1:], first, last)[0].float()
            bins.append(self._choose(logits))
            probabilities.append(logits.softmax(-1))
            unread = self.model.embed(action_sequence(self.model.config, bins[-1], memory.number))
            step.append(unread)
        values = torch.cat(probabilities).cpu().numpy()
        if not np.isfinite(values).all():
            raise FloatingPointError('the network gave values that are not finite')
        memory = _Memory(
            lead=memory.lead,
            steps=(*memory.steps, torch.cat(step, dim=1)),
            number=memory.number + 1,
            read=length + self.body.num_actions - 1,  # the last bin is read with the next step
            cache=cache,
        )
        return torch.cat(bins, dim=1)[0].cpu().numpy(), values, memory

    def _choose(self, logits: Tensor) -> Tensor:
        """Choose a bin (1, 1) from logits (1, A)."""
        scores = logits
        if self._how.temperature > 0:
            below = (
                logits - logits.amax(-1, keepdim=True)
            ).double()  # 0 for the best, however cold
            scores = below / self._how.temperature - torch.empty_like(below).exponential_().log()
        chosen = scores.argmax(-1, keepdim=True)
        if self._how.exploration > 0:
            anything = torch.randint_like(chosen, logits.shape[-1])
            strays = torch.rand(chosen.shape, device=chosen.device) < self._how.exploration
            chosen = torch.where(strays, anything, chosen)
        return chosen

    def _with_room(self, memory: _Memory, tokens: int) -> _Memory:
        """Drop the oldest steps where so many more tokens do not fit."""
        config = self.model.config
        if memory.length + tokens <= config.context:
            return memory
        steps = memory.steps
        while steps and memory.length + tokens > KEPT * config.context:
            steps = steps[1:]
            memory = dataclasses.replace(memory, steps=steps, read=0, cache=None)
        return memory

    @torch.no_grad()
    def _lead(self, instruction: str) -> Tensor:
        """Embed what stands before the steps, (1, L, D): the sentence, and a prompt."""
        config = self.model.config
        sentence = self.model.tokenizer.encode(instruction)
        room = steps_that_fit(config, self.body, len(sentence)) // 2
        prompt = self._prompts.get(instruction) if self._how.prompted and room else None
        self._sentence = sentence if config.sentence == 'step' else []
        if prompt is not None:
            return self._embed(prompt, sentence, room)
        if config.sentence == 'step' or not sentence:
            return torch.zeros(1, 0, config.width, device=self.model.device)
        return self.model.embed(text_sequence(config, [sentence], self.model.device))

    def _embed(self, prompt: Prompt, sentence: list[int], most: int) -> Tensor:
        """Embed the last steps of a prompt, at most so many, with its sentence."""
        images = {name: frames[None, -most:] for name, frames in prompt.images.items()}
        state, bins = prompt.state[None, -most:], prompt.bins[None, -most:]
        number = prompt.first + len(prompt.bins) - bins.shape[1]
        return self.model.embed(self._tokens(images, state, bins, sentence, number))

    def _observed(self, memory: _Memory, observation: Observation) -> Tensor:
        """Embed an observation and the separator after it, (1, L, D)."""
        images = {
            camera.name: observation.images[camera.name][None, None]
            for camera in self.spec.cameras
        }
        state = self.embodiment.normalise(observation.state)[None, None]
        bins = np.zeros((1, 1, 0), np.int64)
        return self.model.embed(self._tokens(images, state, bins, self._sentence, memory.number))

    def _tokens(
        self,
        images: dict[str, NDArray[np.uint8]],
        state: NDArray[np.float32],
        bins: NDArray[np.int64],
        sentence: list[int],
        number: int,
    ) -> GatoSequence:
        """Build the sequence of steps (1, K, ...) from step `number` on."""
        device, count = self.model.device, bins.shape[1]
        steps = Steps(
            images={name: torch.tensor(frames, device=device) for name, frames in images.items()},
            state=torch.tensor(state, device=device),
            bins=torch.tensor(bins, device=device),
            count=torch.tensor([count], device=device),
            sentences=[sentence],
            number=number + torch.arange(count, device=device)[None],
        )
        return step_sequence(self.model.config, self.body, steps)
