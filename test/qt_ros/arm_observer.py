# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What a simulated arm does, what it is commanded and what the nodes around it say.

Time is counted in control periods of the arm: true poses that were seen.
"""

import threading
import time
from functools import partial

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.executors import SingleThreadedExecutor
from sensor_msgs.msg import JointState
from std_msgs.msg import String
from trajectory_msgs.msg import JointTrajectory

from qt_ros.conversions import command_targets, is_hold
from qt_ros.nodes.node_support import COMMAND, LATCHED
from test.qt_ros.stream_relay import SIMULATED

DEADLINE = 30.0  # s until something that must happen has not
ASK_AGAIN = 1.0  # s until a request is repeated: one to a process that was killed is lost


class ArmObserver:
    """Looks on in a thread of its own; also says what a person says.

    Attributes:
        poses: (N,) true positions of every period, rad.
        speeds: Of the fastest joint in every period, rad/s.
        commands: Periods seen and targets (N,) of what the arm was told.
        asked: The same of what the policy told the guard.
        said: Diagnostics.
        relayed: Number of joint states that the drivers passed on.
    """

    def __init__(self, contract):
        self.contract = contract
        self.changed = threading.Condition()
        self.poses, self.speeds, self.commands, self.asked, self.said = [], [], [], [], []
        self.relayed = 0
        self.context = rclpy.Context()
        rclpy.init(context=self.context)
        # A name that the check of the graph knows for somebody who looks on.
        self.node = rclpy.create_node('recorder', context=self.context)
        self.clients = {}
        self.sentence = self.node.create_publisher(String, 'instruction', LATCHED)
        create = self.node.create_publisher
        self.by_hand = create(JointTrajectory, 'teleop/command', COMMAND)
        listen, topic = self._listen, contract.action.topic
        listen(JointState, f'{SIMULATED}{contract.state.topic}', self._on_pose)
        listen(JointState, contract.state.topic, self._on_relayed)
        listen(JointTrajectory, topic, partial(self._on_command, self.commands))
        listen(JointTrajectory, 'policy/command', partial(self._on_command, self.asked))
        listen(DiagnosticArray, '/diagnostics', lambda m: self.said.extend(m.status))
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self.thread = threading.Thread(target=self.executor.spin)
        self.thread.start()

    @property
    def periods(self):
        return len(self.poses)

    def wait(self, done, what):
        """Wait until `done()`, or fail."""
        with self.changed:
            assert self.changed.wait_for(done, DEADLINE), f'{what}: not in time'

    def wait_periods(self, count):
        """Wait until there have been `count` periods since the first."""
        self.wait(lambda: self.periods >= count, f'{count} periods')

    def call(self, kind, service, request):
        """Call a service; give its answer."""
        if service not in self.clients:
            self.clients[service] = self.node.create_client(kind, service)
        client, answers = self.clients[service], []
        deadline = time.monotonic() + DEADLINE
        while not answers:
            assert time.monotonic() < deadline, f'{service} does not answer'
            if client.wait_for_service(ASK_AGAIN):
                future = client.call_async(request)
                future.add_done_callback(partial(self._on_answer, answers))
                with self.changed:
                    self.changed.wait_for(lambda: answers, ASK_AGAIN)
        return answers[0]

    def close(self):
        """Leave the graph."""
        self.executor.shutdown()
        self.thread.join(DEADLINE)
        self.node.destroy_node()
        self.context.try_shutdown()

    def _listen(self, kind, topic, callback):
        def noted(message):
            with self.changed:
                callback(message)
                self.changed.notify_all()

        self.node.create_subscription(kind, topic, noted, 100)

    def _on_pose(self, message):
        joints = self.contract.action.joints
        pose = np.array([message.position[message.name.index(j)] for j in joints])
        speed = np.abs(message.velocity).max()
        if self.poses:
            speed = max(speed, np.abs(pose - self.poses[-1]).max() / self.contract.period)
        self.poses.append(pose)
        self.speeds.append(speed)

    def _on_answer(self, answers, future):
        with self.changed:
            answers.append(future.result())
            self.changed.notify_all()

    def _on_relayed(self, message):
        self.relayed += 1

    def _on_command(self, commands, message):
        action = self.contract.action
        targets = None if is_hold(message, action) else command_targets(message, action)
        commands.append((self.periods, targets))
