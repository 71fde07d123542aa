# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A scripted person who drives the simulated arm the way a teleoperator would."""

from __future__ import annotations

import json
import sys

import numpy as np
from rclpy.node import Node
from sensor_msgs.msg import JointState
from std_msgs.msg import String
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectoryPoint
from visualization_msgs.msg import MarkerArray

from qt_core.action_space import ActionSpace
from qt_core.environments.demonstrator import Demonstrator
from qt_ros.conversions import (
    COMMAND_TYPES,
    ConversionError,
    fill_command,
    joint_positions,
    nanoseconds,
)
from qt_ros.nodes.node_support import (
    COMMAND,
    LATCHED,
    SENSOR,
    Parameter,
    declare,
    load_contract,
    message_class,
    run_node,
    subscribe_instruction,
)

PARAMETERS = (
    Parameter('contract', '', "Contract file of the arm; must be the simulator's."),
    Parameter('noise', 0.0, 'How careless the demonstrator is.', 0.0, 1.0),
    Parameter('seed', 0, 'Seed of the mistakes.', 0, 2**31 - 1),
    Parameter('stamp_commands', True, 'Stamp commands with the observation they answer.'),
)


class DemonstratorNode(Node):
    """Answers every joint state with a command, once ~/reset has named the task."""

    def __init__(self) -> None:
        super().__init__('demonstrator')
        declare(self, PARAMETERS)
        self.contract = load_contract(self)
        self.space = ActionSpace(self.contract)
        self.seed = self.get_parameter('seed').value
        self.stamp_commands = self.get_parameter('stamp_commands').value
        self.expert = Demonstrator(self.contract, noise=self.get_parameter('noise').value)
        self.instruction = ''
        self.blocks: dict[str, np.ndarray] = {}
        self.scene_seed = -1
        self.answered = 0
        self.armed = False
        action = self.contract.action
        self.command_class = message_class(COMMAND_TYPES[action.type])
        self.commands = self.create_publisher(self.command_class, action.topic, COMMAND)
        self.create_subscription(JointState, self.contract.state.topic, self.on_state, SENSOR)
        subscribe_instruction(self, self.contract.instruction.topic, self.on_instruction)
        self.create_subscription(MarkerArray, 'simulator/blocks', self.on_blocks, LATCHED)
        self.create_service(Trigger, '~/reset', self.on_reset)
        self.get_logger().info('demonstrator ready')

    def on_instruction(self, message: String) -> None:
        """Store the sentence; it takes effect at the next ~/reset."""
        self.instruction = message.data

    def on_blocks(self, message: MarkerArray) -> None:
        """Store where the blocks lie."""
        self.blocks = {
            m.ns: np.array([m.pose.position.x, m.pose.position.y, m.pose.position.z])
            for m in message.markers
        }
        self.scene_seed = int(message.markers[0].text) if message.markers else -1

    def on_reset(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        """Answer `~/reset`: take up the newest sentence and scene."""
        try:
            self.expert.reset(self.instruction, self.blocks, self.seed + max(0, self.scene_seed))
        except ValueError as error:
            self.armed = False
            response.message = str(error)
            return response
        self.armed = response.success = True
        response.message = json.dumps({'instruction': self.instruction, 'seed': self.scene_seed})
        return response

    def on_state(self, message: JointState) -> None:
        """Answer a joint state with a command."""
        stamp = nanoseconds(message.header.stamp)
        if not self.armed or stamp == self.answered:
            return
        self.answered = stamp
        try:
            positions = joint_positions(message)
            state = np.array([positions[joint] for joint in self.contract.state.joints])
        except (ConversionError, KeyError) as error:
            self.get_logger().error(f'joint state ignored: {error}', throttle_duration_sec=1.0)
            return
        targets = self.space.to_targets(self.expert.act(state), state)
        low, high = self.contract.safety.position_low, self.contract.safety.position_high
        self.commands.publish(
            fill_command(
                self.command_class(),
                JointTrajectoryPoint(),
                self.contract.action,
                np.clip(targets, low, high),
                self.contract.period,
                stamp if self.stamp_commands else 0,
            )
        )


def main() -> None:
    """Run the node."""
    sys.exit(run_node(DemonstratorNode))


if __name__ == '__main__':
    main()
