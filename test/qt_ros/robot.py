# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A robot for the recorder: a process of its own that publishes what a contract names, at rate.

It reads commands line by line, as JSON: what changes from now on, or null to end.
"""

from __future__ import annotations

import json
import select
import sys
import time

import numpy as np
import rclpy
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import String
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from qt_core.contract import RobotContract
from qt_ros.conversions import fill_command, fill_image, set_stamp

SENSOR = QoSProfile(depth=10, reliability=ReliabilityPolicy.BEST_EFFORT)
LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
DEFAULTS = {
    'rate': 30.0,  # Hz of everything
    'size': [64, 64],  # of images
    'image': True,  # whether the camera publishes
    'frozen': False,  # whether it repeats its frame
    'offset': 0.0,  # s that its stamps are ahead
    'burst': 0,  # images to publish at once, now
    'instruction': '',  # sentence to say now
}


class Robot:
    """Publishers, and what they are told to do."""

    def __init__(self, contract):
        self.contract = contract
        self.node = rclpy.create_node('robot')
        camera = contract.cameras[0]
        self.image = self.node.create_publisher(Image, camera.topic, SENSOR)
        self.state = self.node.create_publisher(JointState, contract.state.topic, SENSOR)
        self.command = self.node.create_publisher(JointTrajectory, contract.action.topic, 10)
        self.instruction = self.node.create_publisher(String, contract.instruction.topic, LATCHED)
        self.random = np.random.default_rng(0)
        self.options = dict(DEFAULTS)
        self.frame = None

    def run(self):
        """Publish until standard input ends."""
        due = time.monotonic()
        while True:
            while select.select([sys.stdin], [], [], max(0.0, due - time.monotonic()))[0]:
                line = sys.stdin.readline()
                if not line or json.loads(line) is None:
                    return
                self.change(json.loads(line))
            self.publish()
            due = max(due + 1 / self.options['rate'], time.monotonic())

    def change(self, options):
        """Take what is to be different."""
        self.options |= options
        if options.get('instruction'):
            self.instruction.publish(String(data=options['instruction']))
        for _ in range(options.get('burst', 0)):
            self.publish_image(self.node.get_clock().now().nanoseconds)

    def publish(self):
        """Publish one message of each stream."""
        now = self.node.get_clock().now().nanoseconds
        joints = self.contract.state.joints
        state = JointState(name=list(joints), position=[0.0] * len(joints))
        set_stamp(state.header.stamp, now)
        self.state.publish(state)
        if self.options['image']:
            self.publish_image(now)
        action = self.contract.action
        targets = np.zeros(len(action.joints))
        self.command.publish(
            fill_command(JointTrajectory(), JointTrajectoryPoint(), action, targets, 0.1, now)
        )

    def publish_image(self, now):
        """Publish one image."""
        height, width = self.options['size']
        if self.frame is None or not self.options['frozen']:
            self.frame = self.random.integers(0, 255, (height, width, 3), np.uint8)
        stamp = now + round(1e9 * self.options['offset'])
        self.image.publish(fill_image(Image(), self.frame, stamp, 'optical'))


if __name__ == '__main__':
    rclpy.init()
    Robot(RobotContract.load(sys.argv[1])).run()
