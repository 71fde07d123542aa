# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""An arm with cameras, as a process of its own: it goes where it is told, at once.

Arguments: a contract file, and options as JSON; ROS arguments may follow. Commands come line by
line, as JSON: options that change from now on. In lock step it is the source of /clock, publishes
the next observation as soon as the command that answers the one before has come, and prints
`{"steps"}` when as many as `steps` says are done.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time

import cv2
import numpy as np
import rclpy
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CompressedImage, Image, JointState

from qt_core.contract import RobotContract
from qt_ros.conversions import (
    COMMAND_TYPES,
    command_targets,
    fill_image,
    nanoseconds,
    set_stamp,
)
from qt_ros.nodes.node_support import COMMAND, SENSOR, message_class

RELIABLE = QoSProfile(depth=5, reliability=ReliabilityPolicy.RELIABLE)
CAMERA = {'rate': 20.0, 'size': [48, 64], 'reliable': False}  # Hz, pixels
DEFAULTS = {
    'rate': 50.0,  # Hz of joint states
    'cameras': {},  # name -> what differs from CAMERA
    'moves': True,  # whether it follows commands
    'pose': [],  # where it stands at first; [] for the middle of its limits
    'silent': [],  # names of cameras that publish nothing
    'lock_step': False,
    'steps': 0,  # lock steps to do
    'lost': [],  # steps whose first answer gets lost
}
RESEND_AFTER = 0.5  # s without an answer in lock step


class Arm:
    """Joints, cameras, and what they are told to do."""

    def __init__(self, contract, options):
        self.contract, self.options = contract, {**DEFAULTS, **options}
        self.node = rclpy.create_node('arm')
        self.joints = self.node.create_publisher(JointState, contract.state.topic, SENSOR)
        action, safety = contract.action, contract.safety
        middle = np.add(safety.position_low, safety.position_high) / 2
        self.position = np.array(self.options['pose'] or middle, np.float64)
        self.random = np.random.default_rng(0)
        self.cameras, self.noise = {}, {}
        for camera in contract.cameras:
            how = {**CAMERA, **self.options['cameras'].get(camera.name, {})}
            qos = RELIABLE if how['reliable'] else SENSOR
            publisher = self.node.create_publisher(message_class(camera.type), camera.topic, qos)
            self.cameras[camera.name] = (publisher, how)
            if not self.options['lock_step']:
                self.node.create_timer(1 / how['rate'], lambda n=camera.name: self.look(n))
        kind = message_class(COMMAND_TYPES[action.type])
        self.node.create_subscription(kind, action.topic, self.on_command, COMMAND)
        self.done = 0
        self.stamp = self.period = round(1e9 * contract.period)
        self.published = -RESEND_AFTER  # the observation that waits for an answer, monotonic s
        if self.options['lock_step']:
            self.clocks = self.node.create_publisher(Clock, '/clock', 10)
            self.node.create_timer(0.05, self.go_on)
        else:
            self.node.create_timer(1 / self.options['rate'], self.feel)

    def on_command(self, message):
        """Go there."""
        lock_step = self.options['lock_step']
        if lock_step and nanoseconds(message.header.stamp) != self.stamp:
            return
        if self.done in self.options['lost']:
            self.options['lost'].remove(self.done)
            return
        if self.options['moves']:
            self.position = command_targets(message, self.contract.action)
        if lock_step:
            self.done += 1
            self.stamp += self.period
            if self.done < self.options['steps']:
                self.observe()
            else:
                self.published = -RESEND_AFTER
                print(json.dumps({'steps': self.done}), flush=True)

    def observe(self):
        """Publish all of one moment of lock step."""
        clock = Clock()
        set_stamp(clock.clock, self.stamp)
        self.clocks.publish(clock)
        self.feel()
        for name in self.cameras:
            self.look(name)
        self.published = time.monotonic()

    def go_on(self):
        """Begin, or repeat what nobody answered."""
        waited = time.monotonic() - self.published > RESEND_AFTER
        if waited and self.done < self.options['steps']:
            self.observe()

    def feel(self):
        """Publish where the joints are."""
        message = JointState(
            name=list(self.contract.action.joints), position=self.position.tolist()
        )
        set_stamp(message.header.stamp, self.now())
        self.joints.publish(message)

    def look(self, name):
        """Publish a picture of one camera: noise, as of a sensor, so that no two are the same."""
        if name in self.options['silent']:
            return
        publisher, how = self.cameras[name]
        frame = self.random.integers(0, 256, (*how['size'], 3), np.uint8)
        if publisher.msg_type is Image:
            publisher.publish(fill_image(Image(), frame, self.now(), name))
            return
        message = CompressedImage(format='jpeg')
        set_stamp(message.header.stamp, self.now())
        message.data = cv2.imencode('.jpg', frame)[1].tobytes()
        publisher.publish(message)

    def now(self):
        """Give the time of what is published, ns."""
        if self.options['lock_step']:
            return self.stamp
        return self.node.get_clock().now().nanoseconds

    def obey(self):
        """Change options as lines come; end the process when no more can."""
        for line in sys.stdin:
            self.options |= json.loads(line)
        os._exit(0)


def main():
    """Run until standard input ends."""
    rclpy.init()
    arm = Arm(RobotContract.load(sys.argv[1]), json.loads(sys.argv[2]))
    threading.Thread(target=arm.obey, daemon=True).start()
    rclpy.spin(arm.node)


if __name__ == '__main__':
    main()
