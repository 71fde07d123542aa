# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What tests of every part share: a small robot, small data, a small network."""

import dataclasses

import numpy as np
import pytest
import torch

from qt_core.action_space import ActionSpace
from qt_core.contract import RobotContract
from qt_core.models import MaxViTConfig, QTransformerConfig
from qt_core.replay import ReplayEpisode, ReplayWriter
from qt_core.share import share_path

TINY_VIT = MaxViTConfig(
    dim=8,
    depth=(1, 1),
    heads=2,
    dim_head=4,
    window_size=4,
    mbconv_expansion_rate=2,
    ff_mult=2,
    dropout=0.0,
)
TINY_MODEL = QTransformerConfig(
    text_dim=8,
    frames=2,
    dim=32,
    depth=1,
    decoder_depth=1,
    heads=2,
    dim_head=16,
    token_learner_num_output_tokens=2,
    vit=TINY_VIT,
)


ROS = ('rclpy', 'qt_ros.up', 'isolat', 'peer', 'node_process')  # what tests of nodes speak of


def pytest_collection_modifyitems(items):
    """Keep a file in one of pytest-xdist's processes, and all files that start nodes in the same.

    Two graphs at once on two cores would wait for each other longer than tests wait for them.
    """
    groups = {}
    for item in items:
        if item.path not in groups:
            text = item.path.read_text(encoding='utf-8')
            groups[item.path] = 'ros' if any(word in text for word in ROS) else str(item.path)
        item.add_marker(pytest.mark.xdist_group(groups[item.path]))


@pytest.fixture(autouse=True)
def one_torch_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope='session')
def contract() -> RobotContract:
    return RobotContract.load(share_path('config/contracts/tabletop.yaml'))


@pytest.fixture(scope='session')
def tiny_contract(contract) -> RobotContract:
    camera = dataclasses.replace(contract.cameras[0], height=32, width=32)
    return dataclasses.replace(contract, cameras=(camera,))


@pytest.fixture
def embed():
    """Give a stand-in embedding of 8 numbers per sentence, for networks that are never judged."""

    def embed(sentences):
        rows = [np.random.default_rng(list(s.encode())).normal(size=8) for s in sentences]
        return np.array(rows, np.float32)

    return embed


def make_episode(contract, seed, *, steps=6, success=True, instruction='touch the red block'):
    """Make an episode of random content that fits the contract."""
    random = np.random.default_rng(seed)
    space = ActionSpace(contract)
    camera = contract.cameras[0]
    bins = random.integers(0, space.bins, (steps, space.dimensions))
    reward = np.zeros(steps, np.float32)
    reward[-1] = float(success)
    return ReplayEpisode(
        images={
            camera.name: random.integers(
                0, 256, (steps + 1, camera.height, camera.width, 3), np.uint8
            )
        },
        state=random.uniform(-1, 1, (steps + 1, len(contract.state.joints))).astype(np.float32),
        action=space.decode(bins).astype(np.float32),
        bins=bins,
        reward=reward,
        terminal=success,
        timeout=not success,
        instruction=instruction,
        source=f'episode_{seed}',
    )


@pytest.fixture
def replay_path(tmp_path, tiny_contract, embed):
    """Write a small replay folder: successes and failures, two sentences, two shards."""
    path = tmp_path / 'replay'
    with ReplayWriter(path, tiny_contract, embed, shard_steps=20) as writer:
        for seed in range(8):
            sentence = f'touch the {("red", "blue")[seed % 2]} block'
            writer.add(
                make_episode(
                    tiny_contract, seed, steps=4 + seed, success=seed % 3 > 0, instruction=sentence
                )
            )
    return path
