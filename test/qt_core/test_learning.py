# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A known-optimal answer is found from random data, and a broken learner misses it."""

import dataclasses

import numpy as np
import pytest
import torch

from qt_core.learning.losses import conservative_loss, temporal_difference_loss
from qt_core.learning.q_learner import QLearnerConfig, q_loss
from qt_core.models import QRoboticTransformer
from qt_core.replay import (
    ReplayEpisode,
    ReplayFolder,
    ReplayMemoryDataset,
    ReplayWriter,
    WindowSampler,
)
from qt_core.spec import Spec
from test.conftest import TINY_MODEL, TINY_VIT

CONTEXTS, BINS = 4, 3
BEST = np.array([[0, 1], [2, 0], [1, 2], [2, 1]])  # best bins of both joints in each context
SIDE = 16  # of the camera's image, pixels; it shows nothing
MODEL = dataclasses.replace(
    TINY_MODEL, frames=1, vit=dataclasses.replace(TINY_VIT, dim=16, depth=(1,), dim_head=8)
)


@pytest.fixture(scope='module')
def bandit(contract):
    """A robot of two joints with three bins each."""
    two = dataclasses.replace(contract.state, joints=('a', 'b'), low=(-1.0, -1.0), high=(1.0, 1.0))
    action = dataclasses.replace(
        contract.action, joints=('a', 'b'), bins=BINS, low=(-1.0, -1.0), high=(1.0, 1.0)
    )
    safety = dataclasses.replace(
        contract.safety, position_low=(-1.0, -1.0), position_high=(1.0, 1.0), max_step=(1.0, 1.0)
    )
    camera = dataclasses.replace(contract.cameras[0], height=SIDE, width=SIDE)
    return dataclasses.replace(
        contract, state=two, action=action, safety=safety, cameras=(camera,)
    )


def state_of(context):
    return np.array([2 * context / (CONTEXTS - 1) - 1, 0], np.float32)


@pytest.fixture(scope='module')
def folder(bandit, tmp_path_factory):
    """One-step episodes of random actions; 1 in 9 is the best one and rewarded."""
    path = tmp_path_factory.mktemp('bandit') / 'replay'
    random = np.random.default_rng(0)

    def embed(sentences):
        return np.ones((len(sentences), TINY_MODEL.text_dim), np.float32)

    with ReplayWriter(path, bandit, embed) as writer:
        for _ in range(1500):
            context = random.integers(CONTEXTS)
            bins = random.integers(0, BINS, (1, 2))
            writer.add(
                ReplayEpisode(
                    images={'front': np.zeros((2, SIDE, SIDE, 3), np.uint8)},
                    state=np.repeat(state_of(context)[None], 2, axis=0),
                    action=np.zeros((1, 2), np.float32),
                    bins=bins,
                    reward=np.array([(bins[0] == BEST[context]).all()], np.float32),
                    terminal=True,
                    timeout=False,
                    instruction='pull',
                )
            )
    return ReplayFolder(path)


def learn(folder, bandit, loss):
    config = QLearnerConfig(num_train_steps=300)
    torch.manual_seed(0)
    model = QRoboticTransformer(MODEL.fitted(Spec.of(bandit)))
    target = QRoboticTransformer(model.config).requires_grad_(False)
    target.load_state_dict(model.state_dict())
    sampler = WindowSampler(ReplayMemoryDataset(folder), batch_size=64, seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(config.num_train_steps):
        optimizer.zero_grad()
        loss(model, target, sampler.batch(step), config).backward()
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(list(target.parameters()), list(model.parameters()), 0.1)
    states = torch.tensor(np.stack([state_of(c) for c in range(CONTEXTS)]))
    video = torch.zeros(CONTEXTS, 3, 1, SIDE, SIDE, dtype=torch.uint8)
    text = torch.ones(CONTEXTS, TINY_MODEL.text_dim)
    bins = model.get_optimal_actions(video, text_embeds=text, state=states)
    return (bins.numpy() == BEST).all(axis=1).mean()


def test_the_best_joint_action_is_found(folder, bandit):
    assert learn(folder, bandit, lambda *a: q_loss(*a)['loss']) == 1.0


def test_a_learner_that_never_sees_the_reward_misses_it(folder, bandit):
    """As with the public implementation's default loss, whatever its targets are instead."""

    def blind(model, target, batch, config):
        nothing = torch.zeros_like(batch.reward)
        batch = dataclasses.replace(batch, reward=nothing, returns=nothing)
        return q_loss(model, target, batch, config)['loss']

    assert learn(folder, bandit, blind) < 0.5


def test_imitating_the_data_misses_it(folder, bandit):
    def imitate(model, target, batch, config):
        images = {name: frames[:, :-1] for name, frames in batch.images.items()}
        q = model(images, batch.state[:, :-1], batch.text, batch.bins)[0].sigmoid()
        ones = torch.ones_like(batch.bins, dtype=torch.float32)
        td = temporal_difference_loss(q, batch.bins, ones, batch.valid)
        return td + conservative_loss(q, batch.bins, batch.valid)

    assert learn(folder, bandit, imitate) < 0.5
