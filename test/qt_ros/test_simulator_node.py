# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The simulator as a process of its own, driven the way a robot's driver is."""

import json

import numpy as np
import pytest
from rcl_interfaces.srv import SetParameters
from rclpy.parameter import Parameter
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, Image, JointState
from std_msgs.msg import String
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from qt_core.environments.tabletop import TabletopEnvironment
from qt_core.share import share_path
from qt_ros.conversions import fill_command, image_to_rgb, joint_positions, nanoseconds
from qt_ros.nodes.node_support import COMMAND, LATCHED, SENSOR

CONTRACT = share_path('config/contracts/tabletop.yaml')


@pytest.fixture
def senses(peer):
    """Listen to everything the simulator publishes."""
    return {
        'image': peer.listen(Image, 'camera/image_raw', SENSOR),
        'info': peer.listen(CameraInfo, 'camera/camera_info', SENSOR),
        'state': peer.listen(JointState, 'joint_states', SENSOR),
        'clock': peer.listen(Clock, '/clock'),
        'episode': peer.listen(String, 'simulator/episode', LATCHED),
    }


@pytest.fixture
def command(peer, contract):
    """Give what publishes joint positions as a stamped command."""
    publisher = peer.node.create_publisher(JointTrajectory, 'joint_trajectory', COMMAND)

    def publish(targets, stamp):
        message = fill_command(
            JointTrajectory(), JointTrajectoryPoint(), contract.action, targets, 0.1, stamp
        )
        publisher.publish(message)

    publish.publisher = publisher
    return publish


def stamps(senses):
    return [nanoseconds(message.header.stamp) for message in senses['state']]


def joints_of(message, contract):
    positions = joint_positions(message)
    return np.array([positions[joint] for joint in contract.action.joints])


def set_parameters(peer, **values):
    kinds = {int: Parameter.Type.INTEGER, str: Parameter.Type.STRING}
    parameters = [Parameter(k, kinds[type(v)], v).to_parameter_msg() for k, v in values.items()]
    request = SetParameters.Request(parameters=parameters)
    results = peer.send(SetParameters, 'simulator/set_parameters', request).results
    assert all(result.successful for result in results)


def test_lock_step_waits_for_the_answer_and_equals_the_environment(
    node_process, peer, senses, command, contract
):
    node_process('simulator_node', contract=CONTRACT, lock_step=True, seed=3)
    success, scene = peer.call('simulator/reset')
    assert success
    assert scene['seed'] == 3
    assert scene['target'] in scene['instruction']
    peer.spin_until(lambda: command.publisher.get_subscription_count(), 'simulator')
    assert peer.call('simulator/start')[0]
    peer.spin_until(lambda: senses['image'] and senses['state'] and senses['info'], 'observation')

    environment = TabletopEnvironment(contract)
    observation, sentence = environment.reset(3)
    assert sentence == scene['instruction']
    assert joints_of(senses['state'][0], contract) == pytest.approx(observation.state, abs=1e-6)
    first = stamps(senses)[-1]

    # A command that answers another observation is not an answer.
    command(observation.state, first - 100_000_000)
    peer.spin_for(0.5)
    assert set(stamps(senses)) == {first}

    for count in range(1, 4):
        targets = observation.state + np.array([0.1, 0, 0, 0, 0, 0, 0])
        command(targets, stamps(senses)[-1])
        expected = first + count * 100_000_000
        peer.spin_until(lambda stamp=expected: stamp in stamps(senses), 'the next observation')
        step = environment.step_action(np.array([0.1, 0, 0, 0, 0, 0, 0]))
        observation = step.observation
        assert joints_of(senses['state'][-1], contract) == pytest.approx(
            observation.state, abs=1e-6
        )
    peer.spin_until(lambda: nanoseconds(senses['clock'][-1].clock) == expected, 'clock')
    image, info = senses['image'][-1], senses['info'][-1]
    assert image_to_rgb(image).shape == (128, 128, 3)
    assert (info.height, info.width, info.k[2], info.k[5]) == (128, 128, 64.0, 64.0)
    environment.simulation.close()


def test_an_episode_that_nobody_moves_times_out_and_is_not_started_twice(
    node_process, peer, senses, command, contract
):
    node_process('simulator_node', contract=CONTRACT, lock_step=True, max_steps=3)
    peer.spin_until(lambda: command.publisher.get_subscription_count(), 'simulator')
    assert peer.call('simulator/start')[0]
    success, message = peer.call('simulator/start')
    assert not success
    assert message == 'the episode is running; call ~/reset first'
    answered = set()

    def ended():
        for message in senses['state']:
            if nanoseconds(message.header.stamp) not in answered:
                answered.add(nanoseconds(message.header.stamp))
                command(joints_of(message, contract), nanoseconds(message.header.stamp))
        return json.loads(senses['episode'][-1].data)['outcome'] == 'timeout'

    peer.spin_until(ended, 'timeout')
    episode = json.loads(senses['episode'][-1].data)
    assert episode['steps'] == 3
    assert len(episode['latency_ms']) == 3
    assert peer.call('simulator/success') == (
        False,
        {'outcome': 'timeout', 'target': episode['target']},
    )


def test_real_time_goes_on_by_itself_and_follows_commands(
    node_process, peer, senses, command, contract
):
    node_process('simulator_node', contract=CONTRACT)
    peer.spin_until(lambda: len(senses['state']) > 2, 'joint states')
    assert np.unique(np.diff(stamps(senses))) == [100_000_000]
    start = joints_of(senses['state'][-1], contract)
    wrong = JointTrajectory(joint_names=['tail'])
    wrong.points = [JointTrajectoryPoint(positions=[1.0])]
    command.publisher.publish(wrong)  # is ignored, and the node lives on
    targets = start + np.array([0.2, 0, 0, 0, 0, 0, 0])
    command(targets, 0)

    def arrived():
        return abs(joints_of(senses['state'][-1], contract)[0] - targets[0]) < 0.02

    peer.spin_until(arrived, 'motion')


def test_reset_takes_seed_and_wording_and_refuses_an_unknown_one(node_process, peer):
    node_process('simulator_node', contract=CONTRACT, lock_step=True)
    set_parameters(peer, seed=8, sentences='unseen')
    success, unseen = peer.call('simulator/reset')
    assert success
    assert unseen['seed'] == 8
    set_parameters(peer, sentences='train')
    _, train = peer.call('simulator/reset')
    assert train['target'] == unseen['target']
    assert train['instruction'] != unseen['instruction']
    set_parameters(peer, sentences='shouted')
    success, message = peer.call('simulator/reset')
    assert not success
    assert message == "sentences is 'shouted', expected train or unseen"


@pytest.mark.parametrize(
    ('change', 'line'),
    [
        (lambda text: None, "contract is not set: give simulator the robot's contract file"),
        (lambda text: text.replace('bins: 21', 'bins: 1'), 'action.bins is 1'),
        (lambda text: text.replace('elbow', 'knee'), 'knee'),
        (lambda text: text.replace('msg/Image', 'msg/CompressedImage'), 'has one camera'),
    ],
)
def test_a_contract_it_cannot_use_is_one_line(node_process, tmp_path, change, line):
    text = change(CONTRACT.read_text())
    path = tmp_path / 'contract.yaml'
    if text:
        path.write_text(text)
    process = node_process('simulator_node', **({'contract': path} if text else {}))
    assert process.wait(30) == 1
    said = process.stderr.read().splitlines()
    assert len(said) == 1
    assert said[0].startswith('qt-ros: ')
    assert line in said[0]
