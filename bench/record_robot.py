# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The robot of `bench/record.py`, in a process of its own: two cameras and joint states, at rate.

Publishes until a line says how many seconds count, then for so long, and prints what it published
in them: the time of the first message and how many there were, as JSON.
"""

from __future__ import annotations

import json
import select
import struct
import sys
import time
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from rosbags.typesys import Stores, get_typestore

CAMERAS = ('front', 'wrist')
HEIGHT, WIDTH = 480, 640
CAMERA_RATE, STATE_RATE = 30.0, 200.0
JOINTS = tuple(f'joint_{index}' for index in range(7))
FRAMES = 8  # per camera, in turn
STORE = get_typestore(Stores.ROS2_JAZZY)


@dataclass
class Source:
    """One topic: serialised messages that are sent in turn, each with its time.

    Attributes:
        topic: Its relative name.
        kind: Message type.
        rate: Hz.
        messages: Serialised, with a header first.
        due: When the next one is to be sent, monotonic s.
        sent: Messages sent.
    """

    topic: str
    kind: str
    rate: float
    messages: list[bytearray]
    due: float = 0.0
    sent: int = 0

    def next(self, stamp: int) -> bytes:
        """Give the next message, stamped `stamp` ns."""
        message = self.messages[self.sent % len(self.messages)]
        struct.pack_into('<iI', message, 4, *divmod(stamp, 1_000_000_000))
        self.sent += 1
        return bytes(message)


def make_sources() -> list[Source]:
    """Make two cameras' images, as compressible as a room's, and joint states."""
    random = np.random.default_rng(0)
    types = STORE.types
    header = types['std_msgs/msg/Header'](types['builtin_interfaces/msg/Time'](0, 0), 'bench')
    sources = []
    for name in CAMERAS:
        messages = []
        for _ in range(FRAMES):
            scene = random.uniform(0, 255, (HEIGHT // 40, WIDTH // 40, 3)).astype(np.float32)
            frame = cv2.resize(scene, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
            frame += random.normal(0, 2, frame.shape)  # of the sensor
            pixels = np.clip(frame, 0, 255).astype(np.uint8).reshape(-1)
            image = types['sensor_msgs/msg/Image'](
                header, HEIGHT, WIDTH, 'rgb8', 0, 3 * WIDTH, pixels
            )
            messages.append(bytearray(STORE.serialize_cdr(image, 'sensor_msgs/msg/Image')))
        sources.append(Source(f'{name}/image_raw', 'sensor_msgs/msg/Image', CAMERA_RATE, messages))
    values = np.zeros(len(JOINTS))
    state = types['sensor_msgs/msg/JointState'](header, list(JOINTS), values, values, values)
    data = bytearray(STORE.serialize_cdr(state, 'sensor_msgs/msg/JointState'))
    sources.append(Source('joint_states', 'sensor_msgs/msg/JointState', STATE_RATE, [data]))
    return sources


def publish(sources: list[Source], publishers: dict[str, Any], until: float) -> None:
    """Send what is due until `until` (monotonic s), or until there is a line to read."""
    while (now := time.monotonic()) < until:
        source = min(sources, key=lambda source: source.due)
        if source.due > now:
            wait = min(source.due, until) - now
            if select.select([sys.stdin], [], [], wait)[0] and until == float('inf'):
                return
            continue
        publishers[source.topic].publish(source.next(time.time_ns()))
        source.due += 1 / source.rate


def main() -> None:
    """Run the robot."""
    import rclpy
    from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
    from std_msgs.msg import String
    from trajectory_msgs.msg import JointTrajectory

    from qt_ros.nodes.node_support import message_class

    rclpy.init()
    node = rclpy.create_node('robot')
    sensor = QoSProfile(depth=5, reliability=ReliabilityPolicy.BEST_EFFORT)
    latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    sources = make_sources()
    publishers = {
        source.topic: node.create_publisher(message_class(source.kind), source.topic, sensor)
        for source in sources
    }
    instruction = node.create_publisher(String, 'instruction', latched)
    instruction.publish(String(data='measure'))
    commands = node.create_publisher(JointTrajectory, 'joint_trajectory', 10)
    for source in sources:
        source.due = time.monotonic()
    publish(sources, publishers, float('inf'))
    seconds = float(sys.stdin.readline())
    before, first = {source.topic: source.sent for source in sources}, time.time_ns()
    publish(sources, publishers, time.monotonic() + seconds)
    counts = {source.topic: source.sent - before[source.topic] for source in sources}
    print(json.dumps({'first': first, 'counts': counts}), flush=True)
    sys.stdin.read()
    node.destroy_publisher(commands)


if __name__ == '__main__':
    main()
