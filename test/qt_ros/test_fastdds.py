# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The shipped Fast DDS profile: best-effort camera images arrive."""

import os
import subprocess
import sys
import textwrap

import pytest

from qt_ros.graphs import FAST_DDS_VARIABLES, environment

FRAMES = 45
CAMERA = """
    import array, select, sys, time
    import rclpy
    from rclpy.qos import qos_profile_sensor_data
    from sensor_msgs.msg import Image

    rclpy.init()
    node = rclpy.create_node('camera')
    publisher = node.create_publisher(Image, 'image', qos_profile_sensor_data)
    image = Image(height=480, width=640, encoding='rgb8', step=1920)
    image.data = array.array('B', bytes(640 * 480 * 3))
    while not select.select([sys.stdin], [], [], 1 / 30)[0]:
        publisher.publish(image)  # until the viewer has seen one; stamped 0, not counted
    start = time.monotonic()
    for index in range(FRAMES):
        image.header.stamp.sec = 1 + index
        publisher.publish(image)
        time.sleep(max(0.0, start + (index + 1) / 30 - time.monotonic()))
    sys.stdin.readline()
    sys.stdin.read()
"""
VIEWER = """
    import time
    import rclpy
    from rclpy.qos import QoSProfile, ReliabilityPolicy
    from sensor_msgs.msg import Image

    rclpy.init()
    node = rclpy.create_node('viewer')
    seen = set()
    # Deep enough for this process to be held up: what counts is the way, not the reader.
    qos = QoSProfile(depth=FRAMES, reliability=ReliabilityPolicy.BEST_EFFORT)
    node.create_subscription(Image, 'image', lambda image: seen.add(image.header.stamp.sec), qos)
    deadline = time.monotonic() + 20
    while not seen and time.monotonic() < deadline:
        rclpy.spin_once(node, timeout_sec=0.1)
    print('matched', flush=True)
    while FRAMES not in seen and time.monotonic() < deadline:
        rclpy.spin_once(node, timeout_sec=0.1)
    print(len(seen - {0}))
"""


@pytest.fixture
def start():
    processes = []
    variables = {k: v for k, v in os.environ.items() if k not in FAST_DDS_VARIABLES}
    variables |= {'ROS_DOMAIN_ID': '54', 'ROS_AUTOMATIC_DISCOVERY_RANGE': 'LOCALHOST'}
    variables |= environment(variables)

    def run(script):
        words = [sys.executable, '-c', textwrap.dedent(script).replace('FRAMES', str(FRAMES))]
        pipes = {'stdin': subprocess.PIPE, 'stdout': subprocess.PIPE}
        processes.append(subprocess.Popen(words, env=variables, text=True, **pipes))
        return processes[-1]

    yield run
    for process in processes:
        process.kill()
        process.communicate()


def test_best_effort_vga_at_30_hz_arrives(start):
    camera, viewer = start(CAMERA), start(VIEWER)
    assert viewer.stdout.readline() == 'matched\n'
    camera.stdin.write('go\n')
    camera.stdin.flush()
    received = int(viewer.communicate(timeout=40)[0])
    assert received > 0.95 * FRAMES
