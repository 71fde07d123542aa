# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The demonstrator as a process of its own, beside a robot and a scene made up here."""

import numpy as np
import pytest
from sensor_msgs.msg import JointState
from std_msgs.msg import String
from trajectory_msgs.msg import JointTrajectory
from visualization_msgs.msg import Marker, MarkerArray

from qt_core.action_space import ActionSpace
from qt_core.environments.demonstrator import Demonstrator
from qt_core.share import share_path
from qt_ros.conversions import command_targets, nanoseconds, set_stamp
from qt_ros.nodes.node_support import LATCHED

CONTRACT = share_path('config/contracts/tabletop.yaml')
BLOCKS = {'red': (0.35, 0.1, 0.03), 'blue': (0.4, -0.1, 0.03)}
SEED = 7


@pytest.fixture
def scene(peer):
    """Publish blocks and sentences; give what publishes a joint state."""
    blocks = peer.node.create_publisher(MarkerArray, 'simulator/blocks', LATCHED)
    markers = MarkerArray()
    for colour, (x, y, z) in BLOCKS.items():
        marker = Marker(ns=colour, text=str(SEED))
        marker.pose.position.x, marker.pose.position.y, marker.pose.position.z = x, y, z
        markers.markers.append(marker)
    blocks.publish(markers)
    states = peer.node.create_publisher(JointState, 'joint_states', 10)

    def publish(positions, stamp):
        message = JointState(name=list(positions), position=list(positions.values()))
        set_stamp(message.header.stamp, stamp)
        states.publish(message)

    publish.publisher = states
    return publish


def name(peer, sentence):
    """Publish a sentence and have the demonstrator take it up; give its answer."""
    if not hasattr(peer, 'instructions'):
        peer.instructions = peer.node.create_publisher(String, 'instruction', LATCHED)
    peer.instructions.publish(String(data=sentence))
    answer = []

    def taken():
        answer[:] = peer.call('demonstrator/reset')
        content = answer[1]
        named = content['instruction'] if isinstance(content, dict) else content
        return sentence in named and not (isinstance(content, dict) and content['seed'] != SEED)

    peer.spin_until(taken, 'the sentence')
    return answer


def test_it_answers_each_joint_state_once_as_the_expert_would(node_process, peer, scene, contract):
    node_process('demonstrator_node', contract=CONTRACT)
    commands = peer.listen(JointTrajectory, 'joint_trajectory')
    peer.spin_until(lambda: scene.publisher.get_subscription_count(), 'demonstrator')
    pose = dict.fromkeys(contract.state.joints, 0.01)
    scene(pose, 100)
    peer.spin_for(0.5)
    assert commands == []  # nothing was asked for yet

    success, content = name(peer, 'touch the blue block')
    assert success
    assert content == {'instruction': 'touch the blue block', 'seed': SEED}
    scene(pose, 200)
    peer.spin_until(lambda: commands, 'command')
    scene(pose, 200)
    peer.spin_for(0.5)
    assert len(commands) == 1
    assert nanoseconds(commands[0].header.stamp) == 200

    expert = Demonstrator(contract)
    expert.reset('touch the blue block', {k: np.array(v) for k, v in BLOCKS.items()}, SEED)
    state = np.full(7, 0.01)
    wanted = ActionSpace(contract).to_targets(expert.act(state), state)
    low, high = np.array(contract.safety.position_low), np.array(contract.safety.position_high)
    targets = command_targets(commands[0], contract.action)
    assert targets == pytest.approx(np.clip(wanted, low, high))

    # The other block is on the other side: the sentence decides.
    name(peer, 'touch the red block')
    scene(pose, 300)
    peer.spin_until(lambda: len(commands) == 2, 'command')
    other = command_targets(commands[1], contract.action)
    assert np.sign(other[0] - 0.01) == -np.sign(targets[0] - 0.01)


def test_a_sentence_that_names_no_block_disarms_it(node_process, peer, scene, contract):
    node_process('demonstrator_node', contract=CONTRACT)
    commands = peer.listen(JointTrajectory, 'joint_trajectory')
    peer.spin_until(lambda: peer.node.count_publishers('joint_trajectory'), 'demonstrator')
    name(peer, 'touch the red block')
    success, message = name(peer, 'sing')
    assert not success
    assert "'sing'" in message
    peer.spin_until(lambda: scene.publisher.get_subscription_count(), 'demonstrator')
    scene(dict.fromkeys(contract.state.joints, 0.01), 100)
    peer.spin_for(0.5)
    assert commands == []
