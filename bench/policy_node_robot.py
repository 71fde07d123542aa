# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The robot of `bench/policy_node.py`, a process of its own: camera, joint states, sentence.

    python bench/policy_node_robot.py SENTENCE

Publishes until its input ends. At each line of it, prints the stamps of the images that it
published since the line before, as JSON.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass, field

import numpy as np
from record_robot import CAMERA_RATE, STORE, Source, make_sources, publish

from qt_core.contract import RobotContract
from qt_core.share import share_path

STATE_RATE = 100.0


@dataclass
class Camera(Source):
    """A camera that remembers its stamps.

    Attributes:
        stamps: Of the images so far, ns.
    """

    stamps: list[int] = field(default_factory=list)

    def next(self, stamp: int) -> bytes:
        """Give the next image."""
        message = super().next(stamp)
        self.stamps.append(stamp)
        return message


def make_robot(contract: RobotContract) -> tuple[Camera, Source]:
    """Make a camera of 640x480 at 30 Hz and joint states of a contract."""
    source = make_sources()[0]
    camera = Camera(contract.cameras[0].topic, source.kind, CAMERA_RATE, source.messages)
    types = STORE.types
    header = types['std_msgs/msg/Header'](types['builtin_interfaces/msg/Time'](0, 0), 'bench')
    state = contract.state
    middle = (np.array(state.low) + np.array(state.high)) / 2
    kind = 'sensor_msgs/msg/JointState'
    zeros = np.zeros(len(middle))
    message = types[kind](header, list(state.joints), middle, zeros, zeros)
    data = bytearray(STORE.serialize_cdr(message, kind))
    return camera, Source(state.topic, kind, STATE_RATE, [data])


def main() -> None:
    """Run the robot."""
    import rclpy
    from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
    from std_msgs.msg import String

    from qt_ros.nodes.node_support import message_class

    rclpy.init()
    node = rclpy.create_node('robot')
    contract = RobotContract.load(share_path('config/contracts/tabletop.yaml'))
    camera, state = make_robot(contract)
    sensor = QoSProfile(depth=5, reliability=ReliabilityPolicy.BEST_EFFORT)
    latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    publishers = {
        source.topic: node.create_publisher(message_class(source.kind), source.topic, sensor)
        for source in (camera, state)
    }
    instruction = node.create_publisher(String, contract.instruction.topic, latched)
    instruction.publish(String(data=sys.argv[1]))
    camera.due = state.due = time.monotonic()
    while True:
        publish([camera, state], publishers, float('inf'))
        if not sys.stdin.readline():
            return
        print(json.dumps(camera.stamps), flush=True)
        camera.stamps.clear()


if __name__ == '__main__':
    main()
