# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Small tasks whose best actions are known, each hard for one reason.

Every place of a task looks like a random vector of signs, so that nothing is learned from how
places look. Dimensions matter together: a joint action is right as a whole or not at all.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from qt_core.replay import ReplayEpisode, ReplayWriter
from qt_core.spec import Spec

Bins = NDArray[np.int64]
Act = Callable[[NDArray[np.float32]], Bins]  # (B, S) states to (B, N) bins


class Task(abc.ABC):
    """A task, its data and its measure, all from one seed.

    Attributes:
        name: Name on the command line.
        title: What it is.
        num_actions: Action dimensions N.
        action_bins: Bins A.
        places: Places that look different.
        learning: Options of the learner, the same for every variant.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    num_actions: ClassVar[int]
    action_bins: ClassVar[int]
    places: ClassVar[int]
    learning: ClassVar[dict[str, Any]]
    state_dim: ClassVar[int] = 64

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.looks = self.random.choice(np.float32([-1, 1]), (self.places, self.state_dim))
        assert len(np.unique(self.looks, axis=0)) == self.places

    @property
    def spec(self) -> Spec:
        """Shapes of observations and actions."""
        return Spec(
            cameras=(),
            state_dim=self.state_dim,
            num_actions=self.num_actions,
            action_bins=self.action_bins,
        )

    def write(self, folder: Path) -> None:
        """Write the data as a replay folder."""
        with ReplayWriter(folder, self.spec, None) as writer:
            for episode in self.episodes():
                writer.add(episode)

    @abc.abstractmethod
    def episodes(self) -> Iterator[ReplayEpisode]:
        """Give the data."""

    @abc.abstractmethod
    def success(self, act: Act) -> float:
        """Measure the share of the cases that a policy solves."""

    def joint(self, *shape: int) -> Bins:
        """Draw joint actions (*shape, N) uniformly."""
        return self.random.integers(0, self.action_bins, (*shape, self.num_actions))

    def episode(
        self, places: list[int], bins: list[Bins], reward: float, *, terminal: bool
    ) -> ReplayEpisode:
        """Make an episode that earns its reward with the last action, or is cut off there."""
        return ReplayEpisode(
            images={},
            state=self.looks[places],
            bins=np.stack(bins),
            reward=np.float32([0.0] * (len(bins) - 1) + [reward]),
            terminal=terminal,
            timeout=not terminal,
            instruction='',
        )


class Bandit(Task):
    """In each context the joint actions a and b pay 1 with probability 0.4, all others nothing.

    a and b differ in every dimension. 20% of the data are a, 20% b, 40% take each dimension from
    either, 20% are random. So half of each dimension's good bins never pay together, and of the
    8^8 joint actions nearly all were never tried.
    """

    name = 'bandit'
    title = '8 dimensions of 8 bins, one step'
    num_actions, action_bins, places = 8, 8, 16
    learning: ClassVar = {'num_train_steps': 500, 'conservative_weight': 1.0, 'batch_size': 128}
    samples = 6000
    pays = 0.4

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.a = self.joint(self.places)
        self.b = self.a + self.random.integers(1, self.action_bins, self.a.shape)
        self.b %= self.action_bins

    def good(self, place: NDArray[np.int64], bins: Bins) -> NDArray[np.bool_]:
        """Say which joint actions (B, N) are a or b at `place` (B,)."""
        return (bins == self.a[place]).all(-1) | (bins == self.b[place]).all(-1)

    def episodes(self) -> Iterator[ReplayEpisode]:
        """Give one step per episode."""
        place = self.random.integers(0, self.places, self.samples)
        a, b = self.a[place], self.b[place]
        mixed = np.where(self.random.random(a.shape) < 0.5, a, b)
        kind = self.random.choice(4, self.samples, p=(0.2, 0.2, 0.4, 0.2))
        bins = np.stack([a, b, mixed, self.joint(self.samples)])[kind, np.arange(self.samples)]
        paid = self.good(place, bins) & (self.random.random(self.samples) < self.pays)
        for where, joint, reward in zip(place, bins, paid, strict=True):
            yield self.episode([where, where], [joint], float(reward), terminal=True)

    def success(self, act: Act) -> float:
        """Measure in how many contexts a or b is chosen."""
        return float(self.good(np.arange(self.places), act(self.looks)).mean())


class Paths(Task):
    """Places one after the other, on several paths; reward 1 at the end of each.

    Path p's place k is number p · (length + 1) + k; the last is its goal. At each place one joint
    action, the code, goes on, and any other ends the episode in failure.
    """

    paths: ClassVar[int]
    length: ClassVar[int]  # codes from the first place of a path to its goal
    slack: ClassVar[int] = 1  # times the shortest way that a policy may take

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.code = self.joint(self.places)
        other = self.random.integers(1, self.action_bins, self.code.shape)
        self.habit = (self.code + other) % self.action_bins  # a wrong action of the data

    def first(self) -> NDArray[np.int64]:
        """Give the places that a policy is tried from."""
        return np.arange(self.paths) * (self.length + 1)

    def remaining(self, place: NDArray[np.int64]) -> NDArray[np.int64]:
        """Give the steps from `place` to its goal."""
        return self.length - place % (self.length + 1)

    def after(self, place: NDArray[np.int64], bins: Bins) -> NDArray[np.int64]:
        """Give the next places (B,); -1 for the end in failure."""
        return np.where((bins == self.code[place]).all(-1), place + 1, -1)

    def success(self, act: Act) -> float:
        """Measure from how many places a policy reaches the goal in time."""
        place = self.first()
        left = self.slack * self.remaining(place)
        solved = np.zeros(len(place), bool)
        for step in range(int(left.max())):
            running = (place >= 0) & ~solved & (step < left)
            if not running.any():
                break
            place[running] = self.after(place[running], act(self.looks[place[running]]))
            solved |= (place >= 0) & (self.remaining(place) == 0)
        return float(solved.mean())

    def walk(self, place: int, choose: Callable[[int], Bins], most: int) -> ReplayEpisode:
        """Record an episode of at most `most` steps."""
        places, actions = [place], []
        for _ in range(most):
            actions.append(choose(place))
            place = int(self.after(np.array([place]), actions[-1][None])[0])
            if place < 0:
                return self.episode([*places, places[-1]], actions, 0.0, terminal=True)
            places.append(place)
            if self.remaining(np.array(place)) == 0:
                return self.episode(places, actions, 1.0, terminal=True)
        return self.episode(places, actions, 0.0, terminal=False)


class Corridor(Paths):
    """Dimension 1 goes left, stays or goes right, if dimension 2 is the place's code.

    Learned from random walks of at most 40 steps that start anywhere.
    """

    name = 'corridor'
    title = '12 steps, reward at the end, learned from random walks'
    num_actions, action_bins, places = 2, 3, 13
    paths, length, slack = 1, 12, 2
    learning: ClassVar = {
        'num_train_steps': 1500,
        'conservative_weight': 0.01,
        'discount': 0.9,
        'learning_rate': 3e-3,
    }
    walks = 1000

    def first(self) -> NDArray[np.int64]:
        """Give every place but the goal."""
        return np.arange(self.length)

    def after(self, place: NDArray[np.int64], bins: Bins) -> NDArray[np.int64]:
        """Move left or right where dimension 2 fits."""
        moves = np.where(bins[:, 1] == self.code[place, 1], bins[:, 0] - 1, 0)
        return np.maximum(place + moves, 0)

    def episodes(self) -> Iterator[ReplayEpisode]:
        """Give random walks."""
        for start in self.random.integers(0, self.length, self.walks):
            yield self.walk(int(start), lambda _: self.joint(), 40)


class Stitching(Paths):
    """A wrong joint action ends in failure; no episode goes from a path's start to its goal.

    Half of the episodes start before the middle and are cut off there, without reward; the others
    start there or later and may get to the goal. Everywhere 60% of the actions are the same wrong
    one.
    """

    name = 'stitching'
    title = 'two halves of 3 steps that no episode holds together'
    num_actions, action_bins = 3, 8
    paths, length = 8, 6
    places = 8 * 7
    learning: ClassVar = {
        'num_train_steps': 700,
        'conservative_weight': 0.1,
        'discount': 0.9,
    }
    walks = 6000

    def episodes(self) -> Iterator[ReplayEpisode]:
        """Give first halves and second halves."""
        half = self.length // 2

        def choose(place: int) -> Bins:
            return (self.habit if self.random.random() < 0.6 else self.code)[place]

        for start in self.random.choice(self.first(), self.walks):
            offset = int(self.random.integers(self.length))
            yield self.walk(int(start) + offset, choose, half - offset % half)


class Failures(Paths):
    """A wrong joint action ends in failure; nine episodes of ten do.

    Everywhere 56% of the actions are wrong, nearly always in the same way, so that the most likely
    action never gets anywhere.
    """

    name = 'failures'
    title = '90% of the episodes fail, most of them in the same way'
    num_actions, action_bins = 6, 8
    paths, length = 8, 3
    places = 8 * 4
    learning: ClassVar = {
        'num_train_steps': 400,
        'conservative_weight': 0.3,
        'discount': 0.8,
    }
    walks = 6000

    def episodes(self) -> Iterator[ReplayEpisode]:
        """Give failures and successes as they come."""

        def choose(place: int) -> Bins:
            kind = self.random.choice(3, p=(0.54, 0.02, 0.44))
            return (self.habit[place], self.joint(), self.code[place])[kind]

        for start in self.random.choice(self.first(), self.walks):
            yield self.walk(int(start), choose, self.length)


TASKS: dict[str, type[Task]] = {
    task.name: task for task in (Bandit, Corridor, Stitching, Failures)
}
