# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Rollouts -> success rate with its confidence interval."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qt_core.environments.environment import Environment
from qt_core.observation import Observation
from qt_core.policies.policy import Policy

Act = Callable[[Observation], NDArray[np.int64]]


@dataclass(frozen=True)
class Rollout:
    """One episode.

    Attributes:
        seed: The episode's seed.
        instruction: The sentence the policy was given.
        success: Whether the task was done, as the task's own sentence asks.
        steps: Actions taken.
        total_return: Sum of the rewards.
    """

    seed: int
    instruction: str
    success: bool
    steps: int
    total_return: float = 0.0


def wilson_interval(successes: int, trials: int, z: float = 1.959964) -> tuple[float, float]:
    """Give the 95% score interval of a success rate (Wilson 1927).

    Raises:
        ValueError: Not 0 <= successes <= trials, or trials is 0.
    """
    if not 0 <= successes <= trials or trials == 0:
        raise ValueError(f'{successes} successes of {trials} trials')
    rate = successes / trials
    centre = (rate + z * z / (2 * trials)) / (1 + z * z / trials)
    spread = rate * (1 - rate) / trials + z * z / (4 * trials * trials)
    half = z * math.sqrt(spread) / (1 + z * z / trials)
    return max(0.0, centre - half), min(1.0, centre + half)


def roll_out(
    environment: Environment,
    reset: Callable[[str], None],
    act: Act,
    seed: int,
    override: Callable[[str], str] = lambda sentence: sentence,
    receive: Callable[[float], None] = lambda reward: None,
) -> Rollout:
    """Run one episode of `environment`.

    Args:
        environment: The task.
        reset: Called with the sentence before the first step.
        act: Observation to bins.
        seed: Which episode.
        override: Turns the task's sentence into the one given; success is judged by the task's.
        receive: Called with each reward.
    """
    observation, sentence = environment.reset(seed)
    given = override(sentence)
    reset(given)
    steps, success, total = 0, False, 0.0
    while True:
        step = environment.step(act(observation))
        receive(step.reward)
        observation, steps, total = step.observation, steps + 1, total + step.reward
        success = success or step.reward > 0
        if step.terminal or step.timeout:
            return Rollout(
                seed=seed, instruction=given, success=success, steps=steps, total_return=total
            )


def evaluate_policy(
    policy: Policy,
    environment: Environment,
    seeds: Iterable[int],
    override: Callable[[str], str] = lambda sentence: sentence,
) -> list[Rollout]:
    """Run the policy on the episodes of `seeds`."""
    return [
        roll_out(
            environment,
            policy.reset,
            lambda o: policy.act(o).bins,
            seed,
            override,
            policy.receive,
        )
        for seed in seeds
    ]
