# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Camera and joint driver of the simulated arm: passes its streams on, or spoils them.

What the simulator publishes under `simulated/` becomes what a contract names, stamped with the
time of day, the images with a sensor's noise. Reads what changes from now on line by line, as
JSON, until standard input ends.
"""

from __future__ import annotations

import json
import math
import sys
import threading
from collections import deque
from contextlib import suppress

import numpy as np
import rclpy
from sensor_msgs.msg import Image, JointState

from qt_core.contract import RobotContract
from qt_ros.conversions import fill_image, image_to_rgb, nanoseconds, set_stamp
from qt_ros.nodes.node_support import SENSOR

SIMULATED = 'simulated/'  # before the names of the simulator's own topics
DEFAULTS = {
    'image': True,  # whether images pass
    'state': True,  # whether joint states pass
    'frozen': False,  # whether the picture stays the same
    'behind': 0.0,  # s that the stamps of images are behind
    'delay': 0.02,  # s that images are under way, longer than joint states
    'nan': '',  # joint whose position is not a number
    'missing': '',  # joint that is left out
}


class Relay:
    """Subscriptions, publishers, and what they are told to do."""

    def __init__(self, contract):
        self.node = node = rclpy.create_node('drivers')
        camera, state = contract.cameras[0].topic, contract.state.topic
        self.images = node.create_publisher(Image, camera, 5)
        self.states = node.create_publisher(JointState, state, 5)
        node.create_subscription(Image, f'{SIMULATED}{camera}', self.on_image, SENSOR)
        node.create_subscription(JointState, f'{SIMULATED}{state}', self.on_state, SENSOR)
        node.create_timer(0.01, self.send)
        self.random = np.random.default_rng(0)
        self.picture = None
        self.moment = ()  # stamp in simulated time, and the ns of the day that it became
        self.waiting = deque()  # (ns when it is due, image)
        self.options = dict(DEFAULTS)
        threading.Thread(target=self.listen, daemon=True).start()

    def listen(self):
        """Take what is to be different."""
        for line in sys.stdin:
            self.options = DEFAULTS | json.loads(line)
        rclpy.shutdown()

    def on_image(self, message):
        """Take a rendered image."""
        if not self.options['image']:
            return
        if self.picture is None or not self.options['frozen']:
            picture = image_to_rgb(message)
            self.picture = picture ^ self.random.integers(0, 4, picture.shape, np.uint8)
        taken = self.time(message)
        stamp = taken - round(1e9 * self.options['behind'])
        image = fill_image(Image(), self.picture, stamp, message.header.frame_id)
        self.waiting.append((taken + round(1e9 * self.options['delay']), image))
        self.send()

    def on_state(self, message):
        """Pass a joint state on."""
        if not self.options['state']:
            return
        set_stamp(message.header.stamp, self.time(message))
        kept = [
            (name, math.nan if name == self.options['nan'] else position)
            for name, position in zip(message.name, message.position, strict=True)
            if name != self.options['missing']
        ]
        message.name, message.position = map(list, zip(*kept, strict=True))
        message.velocity = []
        self.states.publish(message)

    def time(self, message):
        """Give the time of day of a simulated moment, the same for all that is of it."""
        stamp = nanoseconds(message.header.stamp)
        if not self.moment or self.moment[0] != stamp:
            self.moment = stamp, self.node.get_clock().now().nanoseconds
        return self.moment[1]

    def send(self):
        """Publish the images that have arrived."""
        now = self.node.get_clock().now().nanoseconds
        while self.waiting and self.waiting[0][0] <= now:
            self.images.publish(self.waiting.popleft()[1])


if __name__ == '__main__':
    rclpy.init()
    relay = Relay(RobotContract.load(sys.argv[1]))
    with suppress(rclpy.executors.ExternalShutdownException):
        rclpy.spin(relay.node)
