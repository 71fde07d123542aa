# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from qt_core.environments import Step
from qt_core.evaluation import mean_interval, roll_out, student_quantile, wilson_interval
from qt_core.observation import Observation


@pytest.mark.parametrize(
    ('successes', 'trials', 'low', 'high'),
    [
        (0, 10, 0.0, 0.2775),
        (5, 10, 0.2366, 0.7634),
        (10, 10, 0.7225, 1.0),
        (95, 100, 0.888, 0.978),
    ],
)
def test_wilson_interval_matches_published_values(successes, trials, low, high):
    assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=1e-3)


@pytest.mark.parametrize(('successes', 'trials'), [(0, 0), (3, 2), (-1, 5)])
def test_impossible_counts_are_refused(successes, trials):
    with pytest.raises(ValueError, match='trials'):
        wilson_interval(successes, trials)


@pytest.mark.parametrize(
    ('degrees', 'quantile'),  # of a printed table
    [
        *((1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (5, 2.571), (9, 2.262), (10, 2.228)),
        *((29, 2.045), (30, 2.042), (120, 1.980), (5000, 1.960)),
    ],
)
def test_students_quantiles_are_those_of_the_tables(degrees, quantile):
    assert student_quantile(degrees) == pytest.approx(quantile, abs=6e-4)


def test_the_interval_of_a_mean():
    """By hand: mean 3, variance 10 / 4, t of 4 degrees 2.776."""
    assert mean_interval([1, 2, 3, 4, 5]) == pytest.approx((1.0368, 4.9632), abs=1e-3)
    assert mean_interval([2.0, 2.0]) == (2.0, 2.0)
    assert mean_interval([7.0]) is None
    with pytest.raises(ValueError, match='no values'):
        mean_interval([])


@pytest.mark.parametrize('count', [3, 10])
def test_the_interval_covers_the_mean_as_often_as_it_says(count):
    random = np.random.default_rng(0)
    ends = np.array([mean_interval(random.normal(5, 3, count).tolist()) for _ in range(2000)])
    covered = ((ends[:, 0] < 5) & (ends[:, 1] > 5)).mean()
    assert covered == pytest.approx(0.95, abs=0.015)  # three standard errors


class Countdown:
    """An environment that ends after three steps, in success when the last bin is 1."""

    def __init__(self, contract):
        self.contract = contract
        self.observation = Observation({}, np.zeros(1, np.float32))

    def reset(self, seed):
        self.left = 3
        return self.observation, 'count down'

    def step(self, bins):
        self.left -= 1
        done = self.left == 0
        return Step(self.observation, float(done and bins[0] == 1), done, False)


@pytest.mark.parametrize(('bin', 'success'), [(1, True), (0, False)])
def test_a_rollout_counts_steps_and_judges_by_reward(contract, bin, success):
    sentences = []
    rollout = roll_out(
        Countdown(contract),
        sentences.append,
        lambda observation: np.array([bin]),
        7,
        lambda sentence: sentence.upper(),
    )
    assert sentences == ['COUNT DOWN']
    assert (rollout.steps, rollout.success, rollout.seed) == (3, success, 7)


class Paying:
    """Pays these rewards, then ends or is cut off."""

    def __init__(self, rewards, timeout=False):
        self.rewards, self.timeout = rewards, timeout
        self.observation = Observation({}, np.zeros(1, np.float32))

    def reset(self, seed):
        self.left = list(self.rewards)
        return self.observation, ''

    def step(self, bins):
        reward = self.left.pop(0)
        done = not self.left
        ends = {'terminal': done and not self.timeout, 'timeout': done and self.timeout}
        return Step(self.observation, reward, **ends)


@pytest.mark.parametrize(
    ('rewards', 'threshold', 'success'),
    [
        ([-1.0, 2.0], None, True),  # any reward above zero
        ([-1.0, 2.0], 1.0, True),
        ([-1.0, 2.0], 1.5, False),
        ([-2.0, -1.0], None, False),
        ([-2.0, -1.0], -3.0, True),
        ([5.0, -6.0], 0.0, False),
    ],
)
@pytest.mark.parametrize('timeout', [False, True])
def test_a_threshold_judges_the_return(rewards, threshold, success, timeout):
    received = []
    rollout = roll_out(
        Paying(rewards, timeout),
        lambda sentence: None,
        lambda observation: np.zeros(1),
        0,
        receive=received.append,
        threshold=threshold,
    )
    assert (rollout.success, rollout.timeout) == (success, timeout)
    assert rollout.total_return == sum(rewards)
    assert received == rewards
