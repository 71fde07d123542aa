# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The tasks of `learning.py`: their data, all of it from seeds, and where policies are tried."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
from learning_tasks import TASKS as PLACES
from learning_tasks import Paths
from numpy.typing import NDArray

from qt_core.action_space import ActionSpace
from qt_core.contract import RobotContract
from qt_core.environments import Environment, Step
from qt_core.environments.demonstrator import Demonstrator
from qt_core.environments.tabletop import COLOURS, TabletopEnvironment
from qt_core.evaluation import Act
from qt_core.instruction import SentenceEncoder
from qt_core.observation import Observation
from qt_core.replay import ReplayEpisode, ReplayWriter
from qt_core.share import share_path

UNSEEN_SEED = 1_000_000  # data use seeds below this one, evaluations those from it on
SEED_STRIDE = 100_000  # episodes apart that the data of one seed begin, and its evaluation
CAMERA_SIZE = 128
GOAL = 'go to the goal'  # of the tasks that have no sentence of their own


@dataclass(frozen=True)
class Budget:
    """What a run of a task spends.

    Attributes:
        data: Episodes to learn from.
        minutes: Core-minutes of each training.
        episodes: Episodes each trained policy is tried on.
    """

    data: int
    minutes: float
    episodes: int


class Task(Protocol):
    """A task, and data to learn it from.

    Attributes:
        title: What it is.
        tried: On what policies are tried.
        budget: What a full run spends.
        learning: Fields of the learners' configurations that differ, by the name of the policy.
        solvers: Learners that must be above random.
        ahead: Pairs of learners of which the first must be above the second.
    """

    title: str
    tried: str
    budget: Budget
    learning: dict[str, dict[str, Any]]
    solvers: tuple[str, ...]
    ahead: tuple[tuple[str, str], ...]

    def episodes(self, seed: int) -> Iterator[ReplayEpisode]:
        """Give the data, without end or until there are no more."""
        ...

    def environment(self, seed: int) -> Environment:
        """Make what policies are tried in: layouts and wordings that the data do not have."""
        ...

    def reference(self, environment: Any) -> tuple[Callable[[str], None], Act]:
        """Give the scripted solution, as `reset` and `act` of `roll_out`."""
        ...


ALL = (
    'q_transformer',
    'q_single',
    'decision_transformer',
    'gato',
    'cloning',
    'filtered_cloning',
)


@dataclass(frozen=True)
class Reach:
    """Touch the block that the sentence names: the tabletop arm, from pixels.

    Attributes:
        noise: How careless the demonstrator is, 0..1.
        misled: Share of the episodes in which it is told of another block than the sentence names.
    """

    title: str
    budget: Budget
    noise: float
    misled: float = 0.0
    learning: dict[str, dict[str, Any]] = field(default_factory=dict)
    solvers: tuple[str, ...] = ALL
    ahead: tuple[tuple[str, str], ...] = ()
    tried: ClassVar[str] = 'Tried on layouts and wordings that are not in the data'

    def episodes(self, seed: int) -> Iterator[ReplayEpisode]:
        """Give demonstrations, as `qt-ros collect` records them but without ROS."""
        environment = self.environment(seed, sentences='train')
        first = seed * SEED_STRIDE
        try:
            for number in range(first, first + SEED_STRIDE):
                yield self._demonstrate(environment, number)
        finally:
            environment.simulation.close()

    def _demonstrate(self, environment: TabletopEnvironment, number: int) -> ReplayEpisode:
        contract = environment.contract
        action_space, expert = ActionSpace(contract), Demonstrator(contract, noise=self.noise)
        observation, sentence = environment.reset(number)
        random = np.random.default_rng([number, 1])  # the scene and the slips have `number` itself
        told = sentence
        if random.random() < self.misled:
            others = [colour for colour in COLOURS if colour != environment.scene.target]
            told = f'touch the {random.choice(others)} block'
        expert.reset(told, environment.simulation.blocks, number)
        observations, actions, rewards = [observation], [], []
        while True:
            action = np.clip(expert.act(observation.state), expert.low, expert.high)
            step = environment.step_action(action)
            observation = step.observation
            observations.append(observation)
            actions.append(action)
            rewards.append(step.reward)
            if step.terminal or step.timeout:
                break
        return ReplayEpisode(
            images={
                camera.name: np.stack([o.images[camera.name] for o in observations])
                for camera in contract.cameras
            },
            state=np.stack([o.state for o in observations]),
            action=np.array(actions, np.float32),
            bins=action_space.encode(np.stack(actions)),
            reward=np.array(rewards, np.float32),
            terminal=step.terminal,
            timeout=step.timeout,
            instruction=sentence,
            source=f'seed_{number:06d}',
            outcome='success' if step.reward else 'failure',
        )

    def environment(self, seed: int, *, sentences: str = 'unseen') -> TabletopEnvironment:
        """Make the tabletop, the same for all seeds."""
        contract = RobotContract.load(share_path('config/contracts/tabletop.yaml'))
        return TabletopEnvironment(contract, sentences=sentences, camera_size=CAMERA_SIZE)

    def reference(self, environment: TabletopEnvironment) -> tuple[Callable[[str], None], Act]:
        """Give the demonstrator, without its mistakes."""
        expert = Demonstrator(environment.contract)
        action_space = ActionSpace(environment.contract)

        def reset(sentence: str) -> None:
            expert.reset(sentence, environment.simulation.blocks, environment.scene.seed)

        def act(observation: Observation) -> NDArray[np.int64]:
            return action_space.encode(expert.act(observation.state))

        return reset, act


@dataclass(frozen=True)
class Walks:
    """One of the `Paths` of `learning_tasks.py`: no picture, a vector for each place."""

    kind: str
    title: str
    budget: Budget
    learning: dict[str, dict[str, Any]] = field(default_factory=dict)
    solvers: tuple[str, ...] = ()
    ahead: tuple[tuple[str, str], ...] = ()
    tried: ClassVar[str] = 'Tried once from each start'

    def places(self, seed: int) -> Paths:
        """Make the task itself, of which each seed has another."""
        made = PLACES[self.kind](seed)
        assert isinstance(made, Paths)
        return made

    def episodes(self, seed: int) -> Iterator[ReplayEpisode]:
        """Give the data."""
        for episode in self.places(seed).episodes():
            done = 'success' if episode.reward.sum() > 0 else 'failure'
            yield dataclasses.replace(episode, instruction=GOAL, outcome=done)

    def environment(self, seed: int) -> PlacesEnvironment:
        """Make the places."""
        return PlacesEnvironment(self.places(seed))

    def reference(self, environment: PlacesEnvironment) -> tuple[Callable[[str], None], Act]:
        """Give the solution: each place's code."""

        def act(observation: Observation) -> NDArray[np.int64]:
            bins = environment.places.code[environment.place].copy()
            if self.kind == 'corridor':
                bins[0] = 2
            return bins

        return lambda sentence: None, act


class PlacesEnvironment:
    """`Paths` as an `Environment`: one episode from each of the places a policy is tried from."""

    contract: RobotContract | None = None

    def __init__(self, places: Paths) -> None:
        self.places, self.spec = places, places.spec

    def reset(self, seed: int) -> tuple[Observation, str]:
        """Start at one of the first places."""
        first = self.places.first()
        self.place = int(first[seed % len(first)])
        self.left = self.places.slack * int(self.places.remaining(np.array(self.place)))
        return self._observe(), GOAL

    def step(self, bins: NDArray[np.int64]) -> Step:
        """Go on, or end in failure; reward 1 at the goal."""
        after = int(self.places.after(np.array([self.place]), np.asarray(bins)[None])[0])
        failed = after < 0
        self.place = self.place if failed else after
        self.left -= 1
        reached = not failed and int(self.places.remaining(np.array(self.place))) == 0
        terminal = failed or reached
        return Step(self._observe(), float(reached), terminal, not terminal and self.left <= 0)

    def _observe(self) -> Observation:
        return Observation({}, self.places.looks[self.place])


TASKS: dict[str, Task] = {
    'reach': Reach(
        'demonstrations with mistakes: what the shipped policy is trained on',
        Budget(data=2000, minutes=35, episodes=100),
        noise=0.25,
    ),
    'reach-bad': Reach(
        'the demonstrator is as careless as it can be and mostly goes to another block',
        Budget(data=2000, minutes=35, episodes=100),
        noise=1.0,
        misled=0.7,
        solvers=('q_transformer', 'decision_transformer', 'filtered_cloning'),
        ahead=(('q_transformer', 'cloning'),),  # what learning from rewards is for
    ),
    'stitching': Walks(
        'stitching',
        'two halves of a path that no episode holds together',
        Budget(data=6000, minutes=1, episodes=8),
        learning={'q_transformer': {'conservative_weight': 0.1, 'discount': 0.9}},
        solvers=('q_transformer',),
    ),
    'failures': Walks(
        'failures',
        'nine episodes of ten fail, most of them in the same way',
        Budget(data=6000, minutes=1, episodes=8),
        learning={'q_transformer': {'conservative_weight': 0.3, 'discount': 0.8}},
        solvers=('q_transformer',),
    ),
    'corridor': Walks(
        'corridor',
        'twelve steps to the goal, learned from random walks',
        Budget(data=1000, minutes=1, episodes=12),
        learning={'q_transformer': {'conservative_weight': 0.01, 'discount': 0.9}},
        solvers=('q_transformer',),
    ),
}
# Of a quick run, in which the trainings of each process share the minutes: 7 each for six learners
# and two processes. Those are enough for a Decision Transformer and cloning, but neither for the
# Q-Transformer (the shipped one took 33) nor for Gato. For two learners there are 21.
QUICK = {'reach': Budget(data=1000, minutes=21, episodes=50)}


def write(task: Task, folder: Path, count: int, seed: int) -> None:
    """Write the first `count` episodes of a task's data; a folder that is there is complete."""
    if folder.exists():
        return
    partial = folder.with_name(f'{folder.name}.partial')
    shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
    environment = task.environment(seed)
    body = environment.contract or environment.spec
    with ReplayWriter(partial, body, SentenceEncoder().embed) as writer:
        for episode in islice(task.episodes(seed), count):
            writer.add(episode)
    partial.rename(folder)


def evaluation_seeds(seed: int, count: int) -> range:
    """Give the episodes that what was trained with `seed` is tried on, by whatever learner."""
    first = UNSEEN_SEED + seed * SEED_STRIDE
    return range(first, first + count)
