# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Stands in the command path, in a process of its own: who drives, within limits, or hold.

policy/command, teleop/command ─▶ Guard ─▶ the command topic
"""

from __future__ import annotations

import json
import sys
import time
from functools import partial
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
from rclpy.clock import Clock, ClockType
from rclpy.duration import Duration
from rclpy.node import Node
from sensor_msgs.msg import JointState
from std_msgs.msg import String
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectoryPoint

from qt_core.checkpoint_contract import load_contract_of_checkpoint
from qt_core.contract import RobotContract
from qt_ros.conversions import COMMAND_TYPES, fill_command
from qt_ros.guard import DRIVERS, FIRST_SOURCES, STOPPED, Command, Guard
from qt_ros.nodes.node_support import (
    COMMAND,
    LATCHED,
    SENSOR,
    Parameter,
    declare,
    diagnostic_array,
    message_class,
    run_node,
)

PARAMETERS = (
    Parameter('contract', '', "Contract file of the robot; '' for that of the checkpoint."),
    Parameter('checkpoint', '', "Folder whose contract counts when `contract` is ''."),
    Parameter('source', 'policy', 'Who drives at first: policy, teleop or hold.'),
)
DIAGNOSTICS_INTERVAL = 1.0  # s
LAST_WORD = 0.5  # s that the last command may take to arrive


class GuardNode(Node):
    """Carries messages to a `Guard` and from it."""

    def __init__(self) -> None:
        super().__init__('guard')
        declare(self, PARAMETERS)
        self.contract = contract = self._contract()
        self.guard = Guard(contract, self.get_parameter('source').value)
        self.said = ''  # the source that was published last
        self.reported = time.monotonic()
        self.command_class = message_class(COMMAND_TYPES[contract.action.type])
        self.commands = self.create_publisher(self.command_class, contract.action.topic, COMMAND)
        self.source = self.create_publisher(String, '~/source', LATCHED)
        self.diagnostics = self.create_publisher(DiagnosticArray, '/diagnostics', 10)
        self.create_subscription(JointState, contract.state.topic, self.on_state, SENSOR)
        for driver in DRIVERS:
            self.create_subscription(
                self.command_class, f'{driver}/command', partial(self.on_command, driver), COMMAND
            )
        for source in FIRST_SOURCES:
            self.create_service(Trigger, f'~/{source}', partial(self.on_hand_over, source))
        self.create_service(Trigger, '~/estop', self.on_estop)
        self.create_service(Trigger, '~/estop_reset', self.on_estop_reset)
        # A /clock that stands still or was set back must not keep it from looking.
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self.create_timer(contract.period / 2, self.on_watch, clock=steady)
        self.create_timer(DIAGNOSTICS_INTERVAL, self.publish_diagnostics, clock=steady)
        self._say_source()
        self.get_logger().info('guard ready')

    def on_command(self, source: str, message: Any) -> None:
        """Let a command through, or not."""
        self._react(self.guard.command(source, message, self._now()))

    def on_state(self, message: JointState) -> None:
        """Store where the arm is."""
        command = self.guard.state(message, self._now())
        if command is not None:
            self._react(command)

    def on_watch(self) -> None:
        """Hold when the source that drives, or the joint states, fell silent."""
        command = self.guard.watch(self._now())
        if command is not None:
            self._react(command)
            self.get_logger().warning(f'holding: {self.guard.last_hold}')

    def on_hand_over(
        self, source: str, request: Trigger.Request, response: Trigger.Response
    ) -> Trigger.Response:
        """Answer `~/policy`, `~/teleop` and `~/hold`."""
        self._react(self.guard.hand_over(source, self._now()))
        return self._answer(response, source)

    def on_estop(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        """Answer `~/estop`: hold, and let nothing through."""
        self._react(self.guard.estop(self._now()))
        return self._answer(response, self.guard.source)

    def on_estop_reset(
        self, request: Trigger.Request, response: Trigger.Response
    ) -> Trigger.Response:
        """Answer `~/estop_reset`: release the latch; nothing moves by that."""
        self.guard.reset()
        self._react(None)
        return self._answer(response, self.guard.source)

    def publish_diagnostics(self) -> None:
        """Say how it goes."""
        before, self.reported = self.reported, time.monotonic()
        status = self.guard.status(self._now(), self.reported - before)
        self.diagnostics.publish(diagnostic_array(self, self.contract.name, [status]))

    def end(self) -> None:
        """Hold, and wait until that has arrived: the process is about to end."""
        self._react(self.guard.end(self._now()))
        self.commands.wait_for_all_acked(Duration(seconds=LAST_WORD))

    def _react(self, command: Command | None) -> None:
        if command is not None:
            self.commands.publish(
                fill_command(
                    self.command_class(),
                    JointTrajectoryPoint(),
                    self.contract.action,
                    command.targets,
                    self.contract.period,
                    command.stamp,
                )
            )
        if self.guard.source != self.said:
            self._say_source()
            self.get_logger().info(f'source: {self.said}')

    def _say_source(self) -> None:
        self.said = self.guard.source
        self.source.publish(String(data=self.said))

    def _answer(self, response: Trigger.Response, expected: str) -> Trigger.Response:
        response.success = self.guard.source == expected
        content = json.dumps({'source': self.guard.source})
        response.message = content if response.success else STOPPED
        return response

    def _contract(self) -> RobotContract:
        file, folder = (self.get_parameter(name).value for name in ('contract', 'checkpoint'))
        if file:
            return RobotContract.load(file)
        if not folder:
            raise ValueError('contract is not set: give guard a contract file or a checkpoint')
        return load_contract_of_checkpoint(folder)

    def _now(self) -> int:
        return int(self.get_clock().now().nanoseconds)


def main() -> None:
    """Run the node."""
    sys.exit(run_node(GuardNode, GuardNode.end))


if __name__ == '__main__':
    main()
