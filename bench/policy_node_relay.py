# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The floor of `bench/policy_node.py`: images in, commands out, nothing between.

    python bench/policy_node_relay.py OUT.json EVERY

A node as anyone would write it. When it ends it writes the stamps of the images it was given, and
when.
"""

from __future__ import annotations

import json
import sys
import time
from contextlib import suppress
from pathlib import Path

import rclpy
from builtin_interfaces.msg import Duration
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from qt_core.contract import RobotContract
from qt_core.share import share_path


class Relay(Node):
    """Answers every n-th image with the same command, stamped as the image."""

    def __init__(self, every: int) -> None:
        super().__init__('relay')
        contract = RobotContract.load(share_path('config/contracts/tabletop.yaml'))
        self.every = every
        self.joints = list(contract.action.joints)
        self.seen: list[tuple[int, int, int]] = []
        self.publisher = self.create_publisher(JointTrajectory, contract.action.topic, 1)
        sensor = QoSProfile(depth=5, reliability=ReliabilityPolicy.BEST_EFFORT)
        self.create_subscription(Image, contract.cameras[0].topic, self.on_image, sensor)

    def on_image(self, image: Image) -> None:
        """Answer."""
        now, stamp = time.time_ns(), image.header.stamp
        self.seen.append((stamp.sec, stamp.nanosec, now))
        if len(self.seen) % self.every:
            return
        command = JointTrajectory(joint_names=self.joints)
        command.header.stamp = stamp
        point = JointTrajectoryPoint(positions=[0.0] * len(self.joints))
        point.time_from_start = Duration(nanosec=100_000_000)
        command.points = [point]
        self.publisher.publish(command)


def main() -> None:
    """Run the relay."""
    rclpy.init()
    node = Relay(int(sys.argv[2]))
    try:
        with suppress(KeyboardInterrupt, ExternalShutdownException):
            rclpy.spin(node)
    finally:  # Ctrl-C in the midst of a call may surface as anything
        write(Path(sys.argv[1]), node)


def write(path: Path, node: Relay) -> None:
    """Write which images were seen, and when."""
    seen = [(seconds * 1_000_000_000 + rest, now) for seconds, rest, now in node.seen]
    path.write_text(json.dumps({'seen': seen, 'acts': None}), encoding='utf-8')


if __name__ == '__main__':
    main()
