# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Every kind of policy: trained from a folder, loaded by the node, and it drives the arm."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch
from std_msgs.msg import Float64

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


def write_turning(path, contract, directions):
    """Write episodes in which one joint turns: on and on for a reward, or back for none."""
    random, steps = np.random.default_rng(0), 6
    camera, space = contract.cameras[0], ActionSpace(contract)
    low, high = np.array(contract.state.low), np.array(contract.state.high)
    shape = (steps + 1, camera.height, camera.width, 3)

    def embed(sentences):
        return np.ones((len(sentences), 8), np.float32)

    with ReplayWriter(path, contract, embed) as writer:
        for direction in directions:
            bins = np.tile(turning(contract, direction), (steps, 1))
            writer.add(
                ReplayEpisode(
                    images={camera.name: random.integers(0, 256, shape, np.uint8)},
                    state=random.uniform(low, high, (steps + 1, len(low))).astype(np.float32),
                    action=space.decode(bins).astype(np.float32),
                    bins=bins,
                    reward=np.eye(steps, dtype=np.float32)[-1] * (direction > 0),
                    terminal=True,
                    timeout=False,
                    instruction=SENTENCE,
                )
            )
    return path


def turning(contract, direction):
    return [
        contract.action.bins // 2 + direction * ONWARD * (joint == JOINT)
        for joint in contract.action.joints
    ]


def trained(kind, replay, out, **overrides):
    path = out / 'train.yaml'
    path.write_text(f'policy: {kind}{TRAINING}model:{MODELS[kind]}')
    trainer = make_trainer(load_run(path, **overrides), [replay], out / 'run')
    trainer.run()
    return trainer


@pytest.fixture
def drive(contract, tmp_path):
    """Have a checkpoint drive the simulated arm."""

    @contextmanager
    def drive(checkpoint):
        with isolated_graph():
            rig = Rig(contract, checkpoint, tmp_path)
            try:
                rig.ready()
                yield rig
                rig.check()
            finally:
                rig.close()

    return drive


def turn(rig, contract, many=10):
    """Give how far the joint turns in so many periods, rad; nothing else may move."""
    begin, turned = rig.observer.periods, contract.action.joints.index(JOINT)
    rig.observer.wait_periods(begin + many)
    moved = rig.observer.poses[begin + many - 1] - rig.observer.poses[begin]
    assert np.abs(np.delete(moved, turned)).max() < NEAR
    return moved[turned]


@pytest.mark.parametrize('kind', MODELS)
def test_it_is_trained_goes_on_exactly_and_drives_the_arm(kind, contract, drive, tmp_path):
    replay = write_turning(tmp_path / 'replay', contract, [1] * 8)
    whole, parts = tmp_path / 'whole', tmp_path / 'parts'
    for folder in (whole, parts):
        folder.mkdir()
    weights = trained(kind, replay, whole).network.state_dict()
    trained(kind, replay, parts, num_train_steps=30)
    resumed = make_trainer(load_run(parts / 'train.yaml'), [replay], parts / 'run', resume=True)
    resumed.run()
    for name, value in resumed.network.state_dict().items():
        assert torch.equal(weights[name], value), name

    policy = load_policy(parts / 'run/last', 'cpu')
    policy.reset(SENTENCE)
    camera = contract.cameras[0]
    black = {camera.name: np.zeros((camera.height, camera.width, 3), np.uint8)}
    decision = policy.act(Observation(black, np.array(contract.state.low, np.float32)))
    assert decision.bins.tolist() == turning(contract, 1)

    with drive(parts / 'run/last') as arm:
        assert turn(arm, contract) > MOVES * contract.period * 9
        arm.says('policy', OK, 'acting')


def test_a_reward_that_is_published_is_asked_for_no_more(contract, drive, tmp_path):
    replay = write_turning(tmp_path / 'replay', contract, [1, -1] * 8)
    trained('decision_transformer', replay, tmp_path, num_train_steps=150)
    with drive(tmp_path / 'run/last') as arm:
        least = MOVES * contract.period * 9
        assert turn(arm, contract) > least
        observer = arm.observer
        rewards = observer.node.create_publisher(Float64, 'reward', 10)
        observer.wait(lambda: rewards.get_subscription_count() == 1, 'who takes rewards')
        rewards.publish(Float64(data=1.0))
        observer.wait_periods(observer.periods + 5)
        assert turn(arm, contract) < -least
