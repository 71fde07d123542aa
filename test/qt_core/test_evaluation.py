# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from qt_core.environments import Step
from qt_core.evaluation import roll_out, wilson_interval
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
