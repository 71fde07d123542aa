# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Q-Transformer for ROS 2: messages, bags, nodes and the command line."""

__version__ = '0.1.0'
