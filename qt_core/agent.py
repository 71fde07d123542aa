# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Explore environments with a policy, and keep what was seen as a replay folder."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from qt_core.action_space import ActionSpace
from qt_core.configuration import ConfigurationError, require
from qt_core.contract import RobotContract, require_same
from qt_core.environments import BaseEnvironment, Environment
from qt_core.environments.base import SingleFrames
from qt_core.observation import Observation, normalise_state
from qt_core.replay import ReplayEpisode, ReplayFolder, ReplayWriter
from qt_core.replay.folder import DEFAULT_FOLDER
from qt_core.spec import Spec

SHARD_BYTES = 2**28


class AgentError(ValueError):
    """A policy's answer that no environment can execute."""


class ExploringPolicy(Protocol):
    """What an agent asks of a policy; `QRoboticTransformer` answers."""

    training: bool

    @property
    def config(self) -> Any:
        """A `Spec` with `frames`, `condition_on_text` and `text_dim`."""
        ...

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        ...

    @property
    def sentence_encoder(self) -> Any:
        """Gives (n, E) embeddings by `embed`, and its `model_name`."""
        ...

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Give its text input (B, E) or (B, L, E)."""
        ...

    def get_actions(
        self,
        video: dict[str, Tensor] | None,
        *,
        text_embeds: Tensor | None,
        state: Tensor | None,
        past_actions: Tensor,
        prob_random_action: float,
    ) -> Tensor:
        """Choose bins (B, N), each random with that probability."""
        ...

    def train(self, mode: bool = True) -> Any:
        """Set training or evaluation mode."""
        ...


@dataclass
class _Episode:
    """One that is going on."""

    number: int
    environment: Environment | SingleFrames
    sentence: str
    observations: list[Observation]
    bins: list[NDArray[np.int64]] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)


class Agent:
    """Lets a policy act, now and then at random, and writes a replay folder.

        environment ─ newest frame ─▶ frames since the start, at most F ─▶ policy.get_actions(ε)
             ▲                                     │                              │ bins
             └─────────────────────────────────────┼──────────────────────────────┤
                                                   └───▶ ReplayWriter ◀───────────┘

    ε, each dimension's probability of a random bin, falls linearly over the steps of the agent's
    whole life. Several environments act side by side: V episodes start together, and at each
    control step one call of the policy serves those still going on. The policy sees the frames
    that are stored, no others, since these are what it will be trained on.

    Args:
        model: The policy.
        environment: One, or several of one kind.
        memories_dataset_folder: The replay folder to write; must not exist, or be empty.
        num_episodes: Episodes to run.
        max_num_steps_per_episode: Steps after which an episode is cut off: a timeout.
        epsilon_start: ε of the first step.
        epsilon_end: ε from step `num_steps_to_target_epsilon` on.
        num_steps_to_target_epsilon: Steps from the first ε to the last.
        first_seed: Seed of the first episode, for environments that take seeds.

    Raises:
        ConfigurationError: A number is out of range, or the policy and the environment do not fit
            each other.
    """

    def __init__(
        self,
        model: ExploringPolicy,
        *,
        environment: BaseEnvironment | Environment | Sequence[BaseEnvironment | Environment],
        memories_dataset_folder: str | Path = DEFAULT_FOLDER,
        num_episodes: int = 1000,
        max_num_steps_per_episode: int = 10000,
        epsilon_start: float = 0.25,
        epsilon_end: float = 0.001,
        num_steps_to_target_epsilon: int = 1000,
        first_seed: int = 0,
    ) -> None:
        self.model = model
        self.folder = Path(memories_dataset_folder)
        self.num_episodes = num_episodes
        self.max_num_steps_per_episode = max_num_steps_per_episode
        self.epsilon_start, self.epsilon_end = epsilon_start, epsilon_end
        self.num_steps_to_target_epsilon = num_steps_to_target_epsilon
        for name in ('num_episodes', 'max_num_steps_per_episode', 'num_steps_to_target_epsilon'):
            require(getattr(self, name) >= 1, name, getattr(self, name), 'at least 1')
        require(0 <= epsilon_start <= 1, 'epsilon_start', epsilon_start, '0..1')
        falls = 0 <= epsilon_end <= epsilon_start
        require(falls, 'epsilon_end', epsilon_end, f'0..{epsilon_start}, the epsilon_start')
        self.steps = 0  # taken in the agent's life
        self.episodes = 0
        self._first_seed = first_seed
        self._spec = model.config.shapes
        several = list(environment) if isinstance(environment, Sequence) else [environment]
        require(bool(several), 'environment', [], 'at least one')
        self.contract = _contract(several)
        self._environments = [self._fitted(e) for e in several]
        self._embeddings: dict[str, Tensor] = {}

    def epsilon(self, step: int) -> float:
        """Give ε of step number `step` of the agent's life, from 0."""
        share = min(1.0, step / self.num_steps_to_target_epsilon)
        return self.epsilon_start + (self.epsilon_end - self.epsilon_start) * share

    def __call__(self) -> ReplayFolder:
        """Run the episodes and give the folder they are in.

        Ctrl-C writes the episodes that are finished; any other exception leaves whole shards only.

        Raises:
            ReplayError: The folder exists and is not empty.
            StateError: An environment breaks its own rules.
            AgentError: The policy gave no action that exists.
        """
        encoder = self.model.sentence_encoder if self.model.config.condition_on_text else None
        writer = ReplayWriter(
            self.folder,
            self.contract or self._spec,
            None if encoder is None else encoder.embed,
            **({} if encoder is None else {'sentence_model': encoder.model_name}),
            shard_steps=max(1, min(4096, SHARD_BYTES // _bytes_per_step(self._spec))),
        )
        training = self.model.training
        self.model.train(False)
        interrupt: KeyboardInterrupt | None = None
        written = self.episodes
        try:
            with writer, torch.no_grad():
                try:
                    self._explore(writer)
                except KeyboardInterrupt as error:
                    if self.episodes == written:
                        raise
                    interrupt = error
        finally:
            self.model.train(training)
        if interrupt is not None:
            raise interrupt
        return ReplayFolder(self.folder)

    def _explore(self, writer: ReplayWriter) -> None:
        columns = (TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn())
        silent = not sys.stdout.isatty()
        first = self.episodes
        with Progress(*columns, TimeRemainingColumn(), disable=silent) as progress:
            task = progress.add_task('exploring', total=self.num_episodes)
            for start in range(0, self.num_episodes, len(self._environments)):
                running = []
                count = min(len(self._environments), self.num_episodes - start)
                for number, environment in enumerate(self._environments[:count], first + start):
                    observation, sentence = environment.reset(self._first_seed + number)
                    running.append(_Episode(number, environment, sentence, [observation]))
                while running:
                    running = self._step(running, writer)
                    progress.update(task, completed=self.episodes - first)

    def _step(self, running: list[_Episode], writer: ReplayWriter) -> list[_Episode]:
        """Take one action in each episode; give those that go on."""
        going_on = []
        for episode, bins in zip(running, self._choose(running), strict=True):
            step = episode.environment.step(bins)
            episode.observations.append(step.observation)
            episode.bins.append(bins)
            episode.rewards.append(step.reward)
            self.steps += 1
            cut_off = step.timeout or len(episode.bins) == self.max_num_steps_per_episode
            if step.terminal or cut_off:
                writer.add(self._finished(episode, step.terminal))
                self.episodes += 1
            else:
                going_on.append(episode)
        return going_on

    def _choose(self, running: list[_Episode]) -> NDArray[np.int64]:
        """Choose bins (B, N) by the last frames of each episode; all have seen equally many."""
        frames = self.model.config.frames
        recent = [episode.observations[-frames:] for episode in running]
        device = self.model.device
        video = {}
        for camera in self._spec.cameras:
            images = np.stack([[o.images[camera.name] for o in window] for window in recent])
            video[camera.name] = rearrange(torch.from_numpy(images), 'b f h w c -> b c f h w')
        state = None
        if self._spec.state_dim:
            numbers = np.stack([[o.state for o in window] for window in recent])
            if self.contract is not None:
                numbers = normalise_state(self.contract.state, numbers)
            state = torch.from_numpy(numbers).to(device)
        known = len(recent[0]) - 1
        past = np.zeros((len(running), known, self._spec.num_actions), np.int64)
        for row, episode in zip(past, running, strict=True):
            row[:] = episode.bins[-known:] if known else row
        chosen = self.model.get_actions(
            video or None,
            text_embeds=self._text([episode.sentence for episode in running]),
            state=state,
            past_actions=torch.from_numpy(past).to(device),
            prob_random_action=self.epsilon(self.steps),
        )
        bins = chosen.cpu().numpy().astype(np.int64)
        shape, last = (len(running), self._spec.num_actions), self._spec.action_bins - 1
        if bins.shape != shape or bins.min() < 0 or bins.max() > last:
            raise AgentError(
                f'the policy chose {bins.tolist()}, expected bins {shape} in 0..{last}'
            )
        return bins

    def _text(self, sentences: list[str]) -> Tensor | None:
        if not self.model.config.condition_on_text:
            return None
        for sentence in sentences:
            if sentence not in self._embeddings:
                self._embeddings[sentence] = self.model.embed_texts([sentence])[0]
        # Sentences have different numbers of tokens; zeros stand after the last.
        return pad_sequence([self._embeddings[s] for s in sentences], batch_first=True)

    def _finished(self, episode: _Episode, terminal: bool) -> ReplayEpisode:
        bins = np.stack(episode.bins)
        action = None
        if self.contract is not None:
            action = ActionSpace(self.contract).decode(bins).astype(np.float32)
        return ReplayEpisode(
            images={
                camera.name: np.stack([o.images[camera.name] for o in episode.observations])
                for camera in self._spec.cameras
            },
            state=np.stack([o.state for o in episode.observations]),
            action=action,
            bins=bins,
            reward=np.array(episode.rewards, np.float32),
            terminal=terminal,
            timeout=not terminal,
            instruction=episode.sentence if self.model.config.condition_on_text else '',
            source=f'episode_{episode.number:06d}',
        )

    def _fitted(self, environment: BaseEnvironment | Environment) -> Environment | SingleFrames:
        """Check that the policy sees what the environment shows."""
        spec = self._spec
        if not isinstance(environment, BaseEnvironment):
            theirs = environment.spec
            require(spec == theirs, 'model.config', spec, f'what the environment shows: {theirs}')
            return environment
        shape = environment.state_shape
        if len(shape) == 1:
            fits = not spec.cameras and spec.state_dim == shape[0]
        else:
            sees = (shape[0], *shape[-2:])
            fits = not spec.state_dim and [
                (camera.channels, camera.height, camera.width) for camera in spec.cameras
            ] == [sees]
        if not fits:
            cameras = [(c.channels, c.height, c.width) for c in spec.cameras]
            raise ConfigurationError(
                f'environment.state_shape is {shape}, but the model sees cameras (C, H, W) '
                f'{cameras} and {spec.state_dim} numbers of state: give the model `cameras` and '
                '`state_dim` to match'
            )
        if self.model.config.condition_on_text:
            width = (self.model.config.text_dim,)
            require(
                environment.text_embed_shape == width,
                'environment.text_embed_shape',
                environment.text_embed_shape,
                f"{width}, the width of the model's sentence embeddings (text_dim)",
            )
        return SingleFrames(environment, spec)


def _contract(environments: Sequence[BaseEnvironment | Environment]) -> RobotContract | None:
    if len({id(environment) for environment in environments}) < len(environments):
        raise ConfigurationError('an environment is given twice; each runs one episode at a time')
    contracts = [None if isinstance(e, BaseEnvironment) else e.contract for e in environments]
    first = contracts[0]
    for number, contract in enumerate(contracts):
        if (contract is None) != (first is None):
            raise ConfigurationError('environments are of two kinds; give an agent each')
        if first is not None and contract is not None:
            require_same(first, contract, 'environment 0', f'environment {number}')
    return first


def _bytes_per_step(spec: Spec) -> int:
    images = sum(c.height * c.width * c.channels for c in spec.cameras)
    return images + 4 * (spec.state_dim + spec.num_actions) + 16
