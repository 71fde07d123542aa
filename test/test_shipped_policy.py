# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The policy in the repository does what the README says of it, at small numbers of episodes."""

import pytest

from qt_core.evaluation import evaluate_policy
from qt_core.learning.checkpoint import load_checkpoint
from qt_core.policies import load_policy
from qt_core.share import share_path
from qt_ros.bags import EpisodeBag, find_bags

EPISODES = range(1_000_000, 1_000_012)  # layouts that no demonstration has


@pytest.fixture(scope='module')
def policy():
    return load_policy(share_path('config/policies/reach'), 'cpu')


@pytest.fixture(scope='module')
def environment(policy):
    from qt_core.environments.tabletop import TabletopEnvironment

    environment = TabletopEnvironment(policy.contract, sentences='unseen')
    yield environment
    environment.simulation.close()


def test_it_touches_the_named_block(policy, environment):
    rollouts = evaluate_policy(policy, environment, EPISODES)
    assert sum(r.success for r in rollouts) >= 10


def test_it_listens(policy, environment):
    from qt_core.environments.tabletop import name_another_block

    def override(sentence):
        return name_another_block(sentence, 'touch the {other} block')

    rollouts = evaluate_policy(policy, environment, EPISODES, override)
    assert sum(r.success for r in rollouts) <= 2


def test_it_was_trained_under_the_shipped_contract(contract):
    checkpoint = load_checkpoint(share_path('config/policies/reach'))
    assert checkpoint.contract == contract
    folder = share_path('config/policies/reach')
    assert sum(f.stat().st_size for f in folder.iterdir()) < 8 * 2**20


def test_the_shipped_bags_are_small_and_of_the_shipped_contract(contract):
    bags = find_bags([share_path('bags')])
    assert 1 <= len(bags) <= 2
    assert sum(f.stat().st_size for bag in bags for f in bag.iterdir()) < 2 * 2**20
    for path in bags:
        assert EpisodeBag(path).contract == contract
