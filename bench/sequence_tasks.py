# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Small tasks for sequence models, whose best and random returns are known.

Each is an `Environment` of vector states, one action dimension and episodes of fixed length, and
knows how its data behave. Actions are to be drawn in proportion to their probability: then what a
perfect model of the data does follows from them. It repeats them where it is asked for nothing;
asked for a return, in a task without chance, it gets that return.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from qt_core.environments.environment import Step
from qt_core.observation import Observation
from qt_core.replay import ReplayEpisode, ReplayWriter
from qt_core.spec import Spec

Bins = NDArray[np.int64]


class SequenceTask(abc.ABC):
    """A task, and the behaviour that its data are of.

    Attributes:
        name: Name on the command line.
        title: What it is.
        length: Steps of every episode.
        state_dim: Numbers of a state.
        action_bins: Bins of the action.
        data: Episodes to learn from.
        best: The largest return.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    length: ClassVar[int]
    state_dim: ClassVar[int]
    action_bins: ClassVar[int]
    data: ClassVar[int]
    best: ClassVar[float] = 1.0
    contract: ClassVar[None] = None

    @property
    def spec(self) -> Spec:
        """Shapes of observations and actions."""
        return Spec(
            cameras=(), state_dim=self.state_dim, num_actions=1, action_bins=self.action_bins
        )

    def reset(self, seed: int) -> tuple[Observation, str]:
        """Start the episode of `seed`; there is no sentence."""
        self.random = np.random.default_rng(seed)
        self.time = 0
        self.begin()
        return self._observe(), ''

    def step(self, bins: Bins) -> Step:
        """Take the action with these bins (1,)."""
        reward = self.take(int(bins[0]))
        self.time += 1
        return Step(self._observe(), reward, terminal=self.time == self.length, timeout=False)

    def write(self, folder: Path, seed: int, *, shuffled: bool = False) -> None:
        """Write the data as a replay folder.

        Args:
            folder: Where to.
            seed: What the data follow from.
            shuffled: Give each episode the rewards of another one, so that they mean nothing.
        """
        with ReplayWriter(folder, self.spec, None) as writer:
            for episode in self.episodes(seed, shuffled=shuffled):
                writer.add(episode)

    def episodes(self, seed: int, *, shuffled: bool = False) -> Iterator[ReplayEpisode]:
        """Give the data; see `write`."""
        random = np.random.default_rng([seed, 1])
        rewards, others = [], []
        for _ in range(self.data):
            states, bins, reward = self._record(int(random.integers(2**62)), random)
            others.append((states, bins))
            rewards.append(reward)
        order = random.permutation(self.data) if shuffled else np.arange(self.data)
        for (states, bins), owner in zip(others, order, strict=True):
            yield ReplayEpisode(
                images={},
                state=np.stack(states),
                bins=np.array(bins)[:, None],
                reward=np.float32(rewards[owner]),
                terminal=True,
                timeout=False,
                instruction='',
            )

    @abc.abstractmethod
    def begin(self) -> None:
        """Draw what an episode starts with from `self.random`."""

    @abc.abstractmethod
    def state(self) -> NDArray[np.float32]:
        """Give the state at `self.time`, which is `length` after the last action."""

    @abc.abstractmethod
    def take(self, action: int) -> float:
        """Act at `self.time`; give the reward."""

    @abc.abstractmethod
    def solution(self) -> int:
        """Give a best action, from what only the task knows."""

    @abc.abstractmethod
    def random_level(self) -> float:
        """Compute the mean return of uniformly random actions."""

    def behave(self, random: np.random.Generator, skill: float) -> int:
        """Act as an episode of the data does, of a skill that is uniform in 0..1: at random."""
        return int(random.integers(self.action_bins))

    def _observe(self) -> Observation:
        return Observation({}, self.state())

    def _record(
        self, seed: int, random: np.random.Generator
    ) -> tuple[list[NDArray[np.float32]], list[int], list[float]]:
        observation, _ = self.reset(seed)
        states, bins, rewards = [observation.state], [], []
        skill = random.random()
        while self.time < self.length:
            action = self.behave(random, skill)
            step = self.step(np.array([action]))
            states.append(step.observation.state)
            bins.append(action)
            rewards.append(step.reward)
        return states, bins, rewards


class KeyToDoor(SequenceTask):
    """Walk through three rooms; whoever took the key and reached the door earns 1, at the end.

    A room has 3 x 3 cells; it is entered at a random one and left when its time is over. The key
    lies in the middle of the first room, the door in that of the last, and there nothing tells
    whether the key was taken (Mesnard et al. 2021, "Counterfactual Credit Assignment"; Chen et al.
    2021, section 5.5). The data are random walks.
    """

    name = 'key-to-door'
    title = 'reward at the end for a key taken in the first of three rooms; random walks'
    side = 3
    rooms = (5, 2, 5)  # steps in each
    aims = (4, None, 4)  # cell of key and door
    length = sum(rooms)
    state_dim = 3 + side**2 + 1
    action_bins = 4
    data = 4000
    moves = ((0, -1), (0, 1), (-1, 0), (1, 0))

    def begin(self) -> None:
        """Stand in the first room, without the key."""
        self.has_key = self.is_open = False
        self.room = -1
        self._enter()

    def state(self) -> NDArray[np.float32]:
        """Give room and cell, and whether key or door is still to be reached."""
        state = np.zeros(self.state_dim, np.float32)
        state[self.room] = state[3 + self.cell] = 1
        state[-1] = self.aim is not None
        return state

    def take(self, action: int) -> float:
        """Move; reach what is there."""
        self.cell = self.move(self.cell, action)
        if self.cell == self.aim:
            self.aim = None
            self.has_key |= self.room == 0
            self.is_open |= self.room == 2 and self.has_key
        if self.time + 1 == self.length:
            return float(self.is_open)
        if self.time + 1 == sum(self.rooms[: self.room + 1]):
            self._enter()
        return 0.0

    def solution(self) -> int:
        """Go closer to key or door."""
        if self.aim is None:
            return 0
        distances = [self.distance(self.move(self.cell, a), self.aim) for a in range(4)]
        return int(np.argmin(distances))

    def random_level(self) -> float:
        """Compute how often a random walk takes the key and then reaches the door."""
        return self.reaching(0) * self.reaching(2)

    def reaching(self, room: int) -> float:
        """Compute how often a random walk reaches what is in a room."""
        cells, aim = np.arange(self.side**2), self.aims[room]
        reached = np.float64(cells == aim)  # from each cell, in the steps so far
        for _ in range(self.rooms[room]):
            after = [np.mean([reached[self.move(cell, a)] for a in range(4)]) for cell in cells]
            reached = np.where(cells == aim, 1.0, after)
        return float(reached[cells != aim].mean())

    def move(self, cell: int, action: int) -> int:
        """Give the cell after a move; walls stop it."""
        y, x = divmod(int(cell), self.side)
        dx, dy = self.moves[action]
        last = self.side - 1
        return min(max(y + dy, 0), last) * self.side + min(max(x + dx, 0), last)

    def distance(self, cell: int, other: int) -> int:
        """Count the moves from one cell to another."""
        (y, x), (v, u) = divmod(cell, self.side), divmod(other, self.side)
        return abs(y - v) + abs(x - u)

    def _enter(self) -> None:
        """Stand somewhere in the next room, but where its key or door is."""
        self.room += 1
        self.aim = self.aims[self.room]
        self.cell = self.aim
        while self.cell == self.aim:
            self.cell = int(self.random.integers(self.side**2))


class Wages(SequenceTask):
    """At each step one of four actions, which depends on the place, pays 1.

    Each episode of the data takes it with a probability of its own, uniform in 0..1, and else one
    of the others: so every return from 0 to 20 is equally frequent. The next place is random.
    """

    name = 'wages'
    title = 'returns from 0 to 20, each as frequent in the data'
    length = 20
    places = 8
    state_dim = 16
    action_bins = 4
    data = 2000
    best = 20.0

    def __init__(self) -> None:
        random = np.random.default_rng(0)
        self.looks = random.choice(np.float32([-1, 1]), (self.places, self.state_dim))
        self.pays = random.integers(0, self.action_bins, self.places)

    def begin(self) -> None:
        """Stand somewhere."""
        self.place = int(self.random.integers(self.places))

    def state(self) -> NDArray[np.float32]:
        """Give how the place looks."""
        return self.looks[self.place]

    def take(self, action: int) -> float:
        """Be paid, or not; go anywhere."""
        reward = float(action == self.pays[self.place])
        self.begin()
        return reward

    def solution(self) -> int:
        """Give the action that pays."""
        return int(self.pays[self.place])

    def random_level(self) -> float:
        """Give the mean return of random actions."""
        return self.length / self.action_bins

    def behave(self, random: np.random.Generator, skill: float) -> int:
        """Take what pays with probability `skill`, else one of the others."""
        other = 0 if random.random() < skill else int(random.integers(1, self.action_bins))
        return (self.solution() + other) % self.action_bins


class Recall(SequenceTask):
    """One of four cues is shown at the first steps; the last action must name it.

    After that there is only noise to see, for twice as many steps. The data wait, and in the end
    name the cue half of the time.
    """

    name = 'recall'
    title = 'what was shown in steps 1 to 4 decides what action 12 should be'
    length = 12
    shown = 4
    cues = 4
    state_dim = cues + 4
    action_bins = cues
    data = 2000

    def begin(self) -> None:
        """Draw the cue."""
        self.cue = int(self.random.integers(self.cues))
        self.noise = self.random.standard_normal((self.length + 1, self.state_dim - self.cues))

    def state(self) -> NDArray[np.float32]:
        """Give the cue, while it is shown, and noise."""
        state = np.zeros(self.state_dim, np.float32)
        state[self.cues :] = self.noise[self.time]
        if self.time < self.shown:
            state[self.cue] = 1
        return state

    def take(self, action: int) -> float:
        """Answer, at the last step."""
        return float(self.time + 1 == self.length and action == self.cue)

    def solution(self) -> int:
        """Give the cue."""
        return self.cue

    def random_level(self) -> float:
        """Give the chance of a guess, which is that of any policy that does not know the cue."""
        return 1 / self.cues

    def behave(self, random: np.random.Generator, skill: float) -> int:
        """Do action 0 until the last step; there, name the cue as often as all others together."""
        if self.time + 1 < self.length:
            return 0
        other = int(random.integers(1, self.cues))
        return (self.cue + int(random.integers(2)) * other) % self.cues


TASKS: dict[str, type[SequenceTask]] = {task.name: task for task in (KeyToDoor, Wages, Recall)}
