# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The ROS nodes; the only part of qt_ros that imports rclpy."""
