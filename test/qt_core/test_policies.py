# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch

from qt_core.action_space import ActionSpace
from qt_core.learning.checkpoint import Checkpoint, CheckpointError, save_checkpoint
from qt_core.models import QRoboticTransformer
from qt_core.observation import Observation, normalise_state
from qt_core.policies import RandomPolicy, load_policy
from qt_core.spec import Spec
from test.conftest import TINY_MODEL

SENTENCES = ('touch the red block', 'touch the blue block')


@pytest.fixture
def model(tiny_contract):
    torch.manual_seed(0)
    model = QRoboticTransformer(TINY_MODEL.fitted(Spec.of(tiny_contract)))
    with torch.no_grad():
        model.critics[0].head_weight.mul_(30)  # choices that are no ties
    return model.eval()


@pytest.fixture
def checkpoint(model, tiny_contract, embed, tmp_path):
    path = tmp_path / 'checkpoint'
    save_checkpoint(
        path,
        Checkpoint(
            policy='q_transformer',
            model=model,
            contract=tiny_contract,
            sentences=SENTENCES,
            embeddings=embed(SENTENCES),
            sentence_model='a model that does not exist',
            training={},
        ),
    )
    return path


@pytest.fixture
def observations(tiny_contract):
    random = np.random.default_rng(0)
    joints = len(tiny_contract.state.joints)
    return [
        Observation(
            {'front': random.integers(0, 256, (32, 32, 3), np.uint8)},
            random.uniform(-1, 1, joints).astype(np.float32),
        )
        for _ in range(4)
    ]


@torch.no_grad()
def best_bins(model, contract, observations, text):
    """Decide by full passes over the last frames, one dimension after the other."""
    window = observations[-TINY_MODEL.frames :]
    images = {'front': torch.tensor(np.stack([o.images['front'] for o in window]))[None]}
    state = np.stack([normalise_state(contract.state, o.state) for o in window])
    bins = torch.zeros(1, len(window), model.config.num_actions, dtype=torch.long)
    for dimension in range(model.config.num_actions):
        q = model(images, torch.tensor(state)[None], torch.tensor(text), bins)
        bins[0, -1, dimension] = q[0, 0, -1, dimension].argmax()
    return bins[0, -1].numpy()


def test_a_policy_decides_as_its_network_does_over_the_last_frames(
    checkpoint, model, tiny_contract, observations, embed
):
    policy = load_policy(checkpoint, 'cpu')
    policy.reset(SENTENCES[0])
    decided = []
    for count, observation in enumerate(observations, 1):
        decision = policy.act(observation)
        expected = best_bins(model, tiny_contract, observations[:count], embed(SENTENCES[:1]))
        assert np.array_equal(decision.bins, expected)
        assert np.array_equal(decision.action, ActionSpace(tiny_contract).decode(expected))
        assert np.array_equal(decision.values.argmax(axis=-1), expected)
        decided.append(decision.bins)
    policy.reset(SENTENCES[0])  # forgets the frames
    assert np.array_equal(policy.act(observations[0]).bins, decided[0])


def test_a_policy_without_a_sentence_does_not_act(checkpoint, observations):
    with pytest.raises(RuntimeError, match='call reset first'):
        load_policy(checkpoint, 'cpu').act(observations[0])


@pytest.mark.parametrize('device', ['cuda:99', 'abacus'])
def test_a_device_that_is_not_there_is_named(checkpoint, device):
    with pytest.raises(CheckpointError, match=f"device '{device}' cannot be used"):
        load_policy(checkpoint, device)


def test_the_random_policy_draws_every_bin(tiny_contract, observations):
    policy = RandomPolicy(tiny_contract)
    drawn = np.stack([policy.act(observations[0]).bins for _ in range(2000)])
    counts = np.stack([np.bincount(column, minlength=21) for column in drawn.T])
    assert counts.shape == (7, 21)
    assert counts.min() > 50  # 95 are expected
    assert counts.max() < 150
