# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`qt-ros teleop`: drive a robot at the keyboard, also over ssh."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from qt_ros.teleoperation import TeleoperationError
from qt_ros.teleoperation.keys import HELP

FLAGS = {  # parameter of the node -> its type and what the flag does
    'contract': (str, "the robot's contract file"),
    'urdf': (str, 'its URDF, to move the tip and not only joints'),
    'tip': (str, 'link of the URDF to move'),
    'gripper': (str, 'joint of the gripper'),
    'rate': (float, "commands per second; the contract's rate unless set"),
    'joint_speed': (float, "share of what the contract's max_step allows, up to 1"),
    'linear_speed': (float, 'of the tip, m/s'),
    'angular_speed': (float, 'of the tip, rad/s'),
    'hold': (float, 'seconds that a key acts'),
    'guard_timeout': (float, 'seconds to wait for the guard'),
}


def add_parser(subparsers: Any) -> None:
    """Add the subcommand to the `qt-ros` command."""
    parser = subparsers.add_parser(
        'teleop',
        help='drive a robot by single keys',
        description='Drive a robot whose guard runs (`qt-ros up teleop`, `qt-ros up policy`) by '
        f'single keys; the arm stops when they cease: {"   ".join(HELP)}',
    )
    for name, (kind, description) in FLAGS.items():
        flag = f'--{name.replace("_", "-")}'
        parser.add_argument(flag, type=kind, help=description, required=name == 'contract')
    parser.add_argument('--namespace', default='', help="the robot's namespace")
    parser.add_argument('--use-sim-time', action='store_true', help='follow /clock')
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the subcommand."""
    from qt_ros.nodes.node_support import run_node
    from qt_ros.nodes.teleop_node import TeleopNode, override

    if not sys.stdin.isatty():
        raise TeleoperationError('teleop reads keys: run it in a terminal (over ssh: ssh -t)')
    given = {name: getattr(arguments, name) for name in FLAGS}
    words: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    words |= {'input': 'keyboard', 'use_sim_time': arguments.use_sim_time}
    overrides = [override(name, value) for name, value in words.items()]
    status: int = run_node(lambda: TeleopNode(arguments.namespace, overrides), TeleopNode.leave)
    return status
