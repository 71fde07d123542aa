# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Three bodies that have nothing in common, a scripted expert of each, and what the experts did.

The arm sees images and joints and is told in words which block to touch; its contract is a small
version of the tabletop's. The two others see a few numbers: one has two choices, the other a
force. Experts choose bins, and some of the data's actions are random, so that it is also seen
how to recover.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from sequence_verdicts import Run

from qt_core.contract import RobotContract
from qt_core.environments.demonstrator import Demonstrator
from qt_core.environments.environment import Environment
from qt_core.environments.gymnasium import GymnasiumEnvironment
from qt_core.environments.tabletop import (
    COLOURS,
    TabletopEnvironment,
    name_another_block,
)
from qt_core.evaluation import roll_out
from qt_core.learning.run import make_trainer, parse_run
from qt_core.observation import Observation
from qt_core.policies.baselines import RandomPolicy
from qt_core.policies.loading import load_policy
from qt_core.replay import ReplayEpisode, ReplayWriter
from qt_core.share import share_path
from qt_core.spec import Spec

Bins = NDArray[np.int64]
TABLETOP = share_path('config/contracts/tabletop.yaml')
IMAGE = 48  # side of the arm's image, pixels: a block is about six wide
JOINTS = 4  # of the arm, those that matter: shoulder_pan to wrist_1
FORCES = 11  # bins of the car's force
DATA = 10**6  # seed of the first episode to learn from; those to be tried on begin with 0
SLIPS = 0.1  # share of the data's actions that are random
STEPS = 2000
FEW = 300  # steps after which a network of its own does nearly what a small body's expert does
GATO: dict[str, Any] = {
    'policy': 'gato',
    'batch_size': 32,
    'learning_rate': 2e-3,
    'warmup_steps': 50,
    'weight_decay': 0.01,
    'prompt_share': 0.0,
    'text_batch': 2,
    'text_weight': 0.05,
    'model': {
        'text_ids': 1024,
        'context': 26,  # one step of the arm, with its sentence
        'width': 96,
        'depth': 3,
        'heads': 4,
        'dim_head': 24,
        'ff_width': 384,
        'dropout': 0.0,
        'patch_size': 16,
        'image_channels': 16,
        'sentence': 'window',
    },
}


class Actor(Protocol):
    """An expert, or a policy."""

    def reset(self, sentence: str) -> None:
        """Begin an episode that the environment has begun."""
        ...

    def act(self, observation: Observation) -> Any:
        """Choose the bins (N,), or make a decision."""
        ...


class Balancing:
    """A linear controller for CartPole: push to where the pole falls."""

    gains = np.array([0.05, 0.1, 1.0, 0.25])  # of position, speed, angle and its speed

    def __init__(self, environment: Environment) -> None:
        pass

    def reset(self, sentence: str) -> None:
        """Do nothing: it has no memory."""

    def act(self, observation: Observation) -> Bins:
        """Push right where the sum is positive."""
        return np.array([int(self.gains @ observation.state > 0)])


class Climbing:
    """Swing MountainCarContinuous up: push where it goes, the harder the faster it is."""

    gain = 60.0  # of the force, in 1 / speed: nearly full at usual speeds

    def __init__(self, environment: GymnasiumEnvironment) -> None:
        self.environment = environment

    def reset(self, sentence: str) -> None:
        """Do nothing: it has no memory."""

    def act(self, observation: Observation) -> Bins:
        """Give the nearest bin of the force; at rest, a little to the right."""
        speed = float(observation.state[1])
        force = self.gain * speed + (0.2 if speed >= 0 else -0.2)
        return self.environment.encode(np.array([np.clip(force, -1, 1)]))


class Touching:
    """The demonstrator, who knows where the blocks are."""

    def __init__(self, environment: TabletopEnvironment) -> None:
        self.environment = environment
        self.demonstrator = Demonstrator(RobotContract.load(TABLETOP))

    def reset(self, sentence: str) -> None:
        """Aim at the block that is named."""
        blocks = self.environment.simulation.blocks
        self.demonstrator.reset(sentence, blocks, self.environment.scene.seed)

    def act(self, observation: Observation) -> Bins:
        """Give the bins of the joint deltas; the joints that the contract leaves out are at 0."""
        action = self.demonstrator.act(np.pad(observation.state, (0, 7 - JOINTS)))
        return self.environment.action_space.encode(action[:JOINTS])


class Row(TabletopEnvironment):
    """The tabletop arm with its blocks in a row, always in the same order.

    The sentence says which to touch, and the picture how far away they are: each is needed.
    Anywhere and in any order they take longer to learn than there is time for, alone or not.
    """

    across = (-0.14, 0.0, 0.14)  # y of the blocks' centres, m
    away = (0.28, 0.40)  # least and largest x, m

    def __init__(self) -> None:
        super().__init__(small_arm())

    def reset(self, seed: int) -> tuple[Observation, str]:
        """Start the episode of `seed`, and move the blocks."""
        import mujoco  # late: `tabletop` says how it renders

        _, sentence = super().reset(seed)
        data = self.simulation.data
        away = np.random.default_rng([seed, 1]).uniform(*self.away)
        for colour, across in zip(COLOURS, self.across, strict=True):
            data.joint(colour).qpos[:2] = away, across
        mujoco.mj_forward(self.simulation.model, data)
        return self._observe(), sentence


def small_arm() -> RobotContract:
    """Give the tabletop arm with a smaller picture and the joints that matter."""
    arm = RobotContract.load(TABLETOP)
    camera = dataclasses.replace(arm.cameras[0], height=IMAGE, width=IMAGE)
    return dataclasses.replace(
        arm,
        name='small_tabletop',
        cameras=(camera,),
        state=_first(arm.state),
        action=_first(arm.action),
        safety=_first(arm.safety),
    )


def _first(part: Any) -> Any:
    """Leave the first joints of a part of a contract."""
    lists = {k: v[:JOINTS] for k, v in vars(part).items() if isinstance(v, tuple)}
    return dataclasses.replace(part, **lists)


@dataclass(frozen=True)
class Body:
    """A body, its task and its data.

    Attributes:
        make: Makes the environment.
        expert: Makes the expert of an environment.
        data: Episodes to learn from.
        trials: Episodes to be tried on.
        steps: Gradient steps of a network of its own.
        called: What the network calls it; empty for the name of its replay folder.
    """

    make: Callable[[], Any]
    expert: Callable[[Any], Actor]
    data: int
    trials: int
    steps: int
    called: str = ''

    def write(self, folder: Path, seed: int = 0, episodes: int | None = None) -> None:
        """Write what the expert does as a replay folder; `episodes` is for fewer than `data`."""
        environment = self.make()
        told = environment.contract is not None
        # Gato reads words, not embeddings; the folder wants one for each sentence.
        embed = (lambda sentences: np.zeros((len(sentences), 1), np.float32)) if told else None
        random = np.random.default_rng([seed, 1])
        expert = self.expert(environment)
        body = environment.contract or environment.spec
        with ReplayWriter(folder, body, embed, sentence_model='none') as writer:
            for number in range(self.data if episodes is None else episodes):
                first = DATA * (seed + 1)
                writer.add(record(environment, expert, first + number, random))

    def play(
        self, actor: Actor, environment: Any = None, told: Callable[[str], str] = str
    ) -> tuple[float, ...]:
        """Try on the episodes that are kept for it; give their returns.

        Args:
            actor: Who acts.
            environment: Where; None to make it.
            told: Turns the task's sentence into the one that is given.
        """
        environment = environment or self.make()

        def act(observation: Observation) -> Bins:
            chosen = actor.act(observation)
            return chosen if isinstance(chosen, np.ndarray) else chosen.bins

        return tuple(
            roll_out(environment, actor.reset, act, seed, told).total_return
            for seed in range(self.trials)
        )


def slipped(bins: Bins, spec: Spec, random: np.random.Generator) -> Bins:
    """Put random bins in the place of some actions."""
    if random.random() < SLIPS:
        return random.integers(0, spec.action_bins, spec.num_actions)
    return bins


def record(
    environment: Any, expert: Actor, seed: int, random: np.random.Generator
) -> ReplayEpisode:
    """Record an episode of the expert, who slips now and then."""
    observation, sentence = environment.reset(seed)
    expert.reset(sentence)
    spec, observations, bins, rewards = environment.spec, [observation], [], []
    while True:
        bins.append(slipped(expert.act(observation), spec, random))
        step = environment.step(bins[-1])
        observation = step.observation
        observations.append(observation)
        rewards.append(step.reward)
        if step.terminal or step.timeout:
            break
    robot = environment.contract is not None
    return ReplayEpisode(
        images={c.name: np.stack([o.images[c.name] for o in observations]) for c in spec.cameras},
        state=np.stack([o.state for o in observations]),
        action=np.float32(environment.action_space.decode(np.stack(bins))) if robot else None,
        bins=np.stack(bins),
        reward=np.float32(rewards),
        terminal=step.terminal,
        timeout=step.timeout,
        instruction=sentence,
    )


BODIES = {
    'arm': Body(Row, Touching, 1200, 50, STEPS, 'small_tabletop'),
    'cartpole': Body(lambda: GymnasiumEnvironment('CartPole-v1'), Balancing, 100, 10, FEW),
    'car': Body(
        lambda: GymnasiumEnvironment('MountainCarContinuous-v0', action_bins=FORCES),
        Climbing,
        200,
        10,
        FEW,
    ),
}


def try_bounds(name: str, folder: Path) -> list[Run]:
    """Write a body's data; try its expert, and random actions."""
    start = time.monotonic()
    body = BODIES[name]
    body.write(folder)
    environment = body.make()
    expert = body.play(body.expert(environment), environment)
    anything = RandomPolicy(environment.contract or environment.spec)
    random = body.play(anything, environment)
    seconds = (time.monotonic() - start) / 2
    return [
        Run('gato', f'{name} {who}', 0, returns, seconds=seconds)
        for who, returns in (('expert', expert), ('random', random))
    ]


def train_bodies(data: dict[str, Path], text: str, seed: int) -> list[Run]:
    """Train one network on what the experts of some bodies did, and try it with each.

    Args:
        data: Body to replay folder.
        text: A text file to learn besides; empty for none.
        seed: Of the weights and the order of the data.
    """
    start = time.monotonic()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix='sequence-checks-') as folder:
        steps = max(BODIES[name].steps for name in data)
        own = {'num_train_steps': steps, 'checkpoint_every': steps, 'text': text, 'seed': seed}
        out, run = Path(folder), parse_run({**GATO, **own})
        trainer = make_trainer(run, list(data.values()), out)
        history = trainer.run()
        tried = {}
        for name in data:
            policy = load_policy(out / 'last', body=BODIES[name].called or name)
            who = 'together' if len(data) > 1 else 'alone'
            tried[f'{name} {who}'] = BODIES[name].play(policy)
            if name == 'arm' and who == 'together':
                tried['arm misled'] = BODIES[name].play(policy, told=mislead)
        if text:
            tried['text together'] = tuple(nats for _, nats in history['text'][-10:])
            tried['text frequencies'] = (entropy(trainer.passages),)
    seconds = (time.monotonic() - start) / len(tried)
    return [
        Run('gato', variant, seed, returns, seconds=seconds) for variant, returns in tried.items()
    ]


def mislead(sentence: str) -> str:
    """Name another block than the sentence does."""
    return name_another_block(sentence, 'touch the {other} block')


def entropy(passages: Sequence[Sequence[int]]) -> float:
    """Give the nats per token of whoever knows only how frequent each is."""
    _, counts = np.unique(np.concatenate(passages), return_counts=True)
    shares = counts / counts.sum()
    return float(-(shares * np.log(shares)).sum())
