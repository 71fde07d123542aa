# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A person who drives: keys, a gamepad or a leader arm, and what becomes of it. No rclpy."""

from qt_ros.teleoperation.jog import Deadman, Jog, Speeds, TeleoperationError, Wanted

__all__ = ['Deadman', 'Jog', 'Speeds', 'TeleoperationError', 'Wanted']
