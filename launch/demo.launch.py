# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Run the shipped policy in the simulator and record it."""

from launch import LaunchDescription

from qt_ros.launching import launch_description


def generate_launch_description() -> LaunchDescription:
    """Called by `ros2 launch qt_ros demo.launch.py`."""
    return launch_description('demo')
