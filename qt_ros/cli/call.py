# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`qt-ros call`: call a service of a node."""

from __future__ import annotations

import argparse
import sys
from typing import Any


def add_parser(subparsers: Any) -> None:
    """Add the subcommand to the `qt-ros` command."""
    parser = subparsers.add_parser(
        'call',
        help='call a service of a node, like ros2 service call',
        description='Call a std_srvs/Trigger service, print its answer, and exit with 1 when it '
        'refuses.',
    )
    parser.add_argument('service', help='such as recorder/start or simulator/reset')
    parser.add_argument('--namespace', default='', help="the robot's")
    parser.add_argument('--timeout', type=float, default=10.0, help='seconds until it is an error')
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the subcommand."""
    from qt_ros.nodes.client import call

    success, message = call(arguments.service, arguments.namespace, arguments.timeout)
    if success:
        print(message or 'done')
    else:
        print(f'qt-ros: {arguments.service}: {message or "refused"}', file=sys.stderr)
    return 0 if success else 1
