# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Rollouts -> mean return and success rate, with their confidence intervals."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence
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
        timeout: Whether the episode was cut off, instead of ending.
    """

    seed: int
    instruction: str
    success: bool
    steps: int
    total_return: float = 0.0
    timeout: bool = False


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


def mean_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Give the 95% interval of a mean: m ± t s / √n, by Student's t with n - 1 degrees.

    Returns:
        Its ends; None for a single value, which says nothing of its spread.

    Raises:
        ValueError: There is no value.
    """
    if not values:
        raise ValueError('no values to take the mean of')
    if len(values) == 1:
        return None
    mean, spread = float(np.mean(values)), float(np.std(values, ddof=1))
    half = student_quantile(len(values) - 1) * spread / math.sqrt(len(values))
    return mean - half, mean + half


@functools.cache
def student_quantile(degrees: int, coverage: float = 0.95) -> float:
    """Give the t that -t..t has this probability, by bisection of its distribution."""
    low, high = 0.0, 1.0
    while _student_coverage(high, degrees) < coverage:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        below = _student_coverage(middle, degrees) < coverage
        low, high = (middle, high) if below else (low, middle)
    return high


def _student_coverage(t: float, degrees: int) -> float:
    """Give P(-t < T < t), a finite sum (Abramowitz & Stegun 1964, 26.7.3 and 26.7.4)."""
    angle = math.atan(t / math.sqrt(degrees))
    odd = degrees % 2
    number = np.arange(2 + odd, degrees - 1, 2)
    factors = (number - 1) / number * math.cos(angle) ** 2
    terms = math.cos(angle) ** odd * np.concatenate([[1.0], np.cumprod(factors)])
    total = math.sin(angle) * float(terms.sum()) if degrees > 1 else 0.0
    return 2 / math.pi * (angle + total) if odd else total


def roll_out(
    environment: Environment,
    reset: Callable[[str], None],
    act: Act,
    seed: int,
    override: Callable[[str], str] = lambda sentence: sentence,
    receive: Callable[[float], None] = lambda reward: None,
    threshold: float | None = None,
) -> Rollout:
    """Run one episode of `environment`.

    Args:
        environment: The task.
        reset: Called with the sentence before the first step.
        act: Observation to bins.
        seed: Which episode.
        override: Turns the task's sentence into the one given; success is judged by the task's.
        receive: Called with each reward.
        threshold: The return from which on the episode is a success; None where any reward above
            zero is one.
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
                seed=seed,
                instruction=given,
                success=success if threshold is None else total >= threshold,
                steps=steps,
                total_return=total,
                timeout=step.timeout,
            )


def evaluate_policy(
    policy: Policy,
    environment: Environment,
    seeds: Iterable[int],
    override: Callable[[str], str] = lambda sentence: sentence,
    threshold: float | None = None,
) -> list[Rollout]:
    """Run the policy on the episodes of `seeds`; see `roll_out`."""
    return [
        roll_out(
            environment,
            policy.reset,
            lambda o: policy.act(o).bins,
            seed,
            override,
            policy.receive,
            threshold,
        )
        for seed in seeds
    ]
