# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Drive a robot by hand and record it."""

from launch import LaunchDescription

from qt_ros.launching import launch_description


def generate_launch_description() -> LaunchDescription:
    """Called by `ros2 launch qt_ros teleop.launch.py`."""
    return launch_description('teleop')
