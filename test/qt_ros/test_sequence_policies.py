# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Every kind of policy: trained from a folder, loaded by the node, and it drives the arm."""

import numpy as np
import pytest

from qt_core.action_space import ActionSpace
from qt_core.learning.run import load_run, make_trainer
from qt_core.observation import Observation
from qt_core.policies import load_policy
from qt_core.replay import ReplayEpisode, ReplayWriter
from qt_ros.diagnostics import OK
from qt_ros.isolation import isolated_graph
from test.qt_ros.policy_rig import MOVES, NEAR, SENTENCE, Rig

JOINT = 'wrist_3'  # turns the gripper about itself, so that nothing is in the way
ONWARD = 2  # bins from the one that means stay: 0.02 rad per period
TRAINING = """
num_train_steps: 60
batch_size: 8
warmup_steps: 0
learning_rate: 0.01
schedule: constant  # so that a run that is cut short is the beginning of a longer one
"""
MODELS = {
    'q_transformer': """
  text_dim: 8
  frames: 2
  dim: 32
  depth: 1
  decoder_depth: 1
  heads: 2
  dim_head: 16
  vit: {dim: 8, depth: [1], heads: 2, dim_head: 4, window_size: 4}
""",
    'decision_transformer': """
  text_dim: 8
  context: 4
  dim: 32
  depth: 1
  heads: 2
  vit: {dim: 8, depth: [1], heads: 2, dim_head: 4, window_size: 4}
""",
    'gato': """
  context: 160
  text_ids: 300
  width: 32
  depth: 1
  heads: 2
  dim_head: 16
  ff_width: 64
  image_tokens: single
  sentence: window
""",
}


@pytest.fixture(scope='module')
def replay(contract, tmp_path_factory):
    """Episodes in which one joint turns on and on, whatever is seen."""
    path = tmp_path_factory.mktemp('onward') / 'replay'
    random, steps = np.random.default_rng(0), 6
    stay, camera = contract.action.bins // 2, contract.cameras[0]
    bins = [stay + ONWARD * (joint == JOINT) for joint in contract.action.joints]
    low, high = np.array(contract.state.low), np.array(contract.state.high)
    shape = (steps + 1, camera.height, camera.width, 3)

    def embed(sentences):
        return np.ones((len(sentences), 8), np.float32)

    with ReplayWriter(path, contract, embed) as writer:
        for _ in range(8):
            taken = np.tile(bins, (steps, 1))
            writer.add(
                ReplayEpisode(
                    images={camera.name: random.integers(0, 256, shape, np.uint8)},
                    state=random.uniform(low, high, (steps + 1, len(low))).astype(np.float32),
                    action=ActionSpace(contract).decode(taken).astype(np.float32),
                    bins=taken,
                    reward=np.eye(steps, dtype=np.float32)[-1],
                    terminal=True,
                    timeout=False,
                    instruction=SENTENCE,
                )
            )
    return path


@pytest.mark.parametrize('kind', MODELS)
def test_it_is_trained_goes_on_exactly_and_drives_the_arm(kind, replay, contract, tmp_path):
    path = tmp_path / 'train.yaml'
    path.write_text(f'policy: {kind}{TRAINING}model:{MODELS[kind]}')
    whole = make_trainer(load_run(path), [replay], tmp_path / 'whole')
    whole.run()
    make_trainer(load_run(path, num_train_steps=30), [replay], tmp_path / 'parts').run()
    parts = make_trainer(load_run(path), [replay], tmp_path / 'parts', resume=True)
    parts.run()
    weights = whole.network.state_dict()
    assert all(
        (weights[name] == value).all() for name, value in parts.network.state_dict().items()
    )

    policy = load_policy(tmp_path / 'parts/last', 'cpu')
    policy.reset(SENTENCE)
    camera = contract.cameras[0]
    seen = Observation(
        {camera.name: np.zeros((camera.height, camera.width, 3), np.uint8)},
        np.array(contract.state.low, np.float32),
    )
    onward = contract.action.bins // 2 + ONWARD
    assert policy.act(seen).bins[contract.action.joints.index(JOINT)] == onward

    with isolated_graph():
        rig = Rig(contract, tmp_path / 'parts/last', tmp_path)
        try:
            rig.ready()
            begin, many = rig.observer.periods, 10
            rig.observer.wait_periods(begin + many)
            moved = rig.observer.poses[begin + many - 1] - rig.observer.poses[begin]
            turned = contract.action.joints.index(JOINT)
            assert moved[turned] > MOVES * contract.period * (many - 1)
            assert np.abs(np.delete(moved, turned)).max() < NEAR
            rig.says('policy', OK, 'acting')
            rig.check()
        finally:
            rig.close()
