# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`qt-ros say`: tell the robot what to do."""

from __future__ import annotations

import argparse
from typing import Any


def add_parser(subparsers: Any) -> None:
    """Add the subcommand to the `qt-ros` command."""
    parser = subparsers.add_parser(
        'say',
        help='publish an instruction, like ros2 topic pub --once',
        description='Publish a sentence and wait until every node that listens has it.',
    )
    parser.add_argument('sentence')
    parser.add_argument('--topic', default='instruction', help="the contract's instruction topic")
    parser.add_argument('--namespace', default='', help="the robot's")
    parser.add_argument('--timeout', type=float, default=10.0, help='seconds until it is an error')
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the subcommand."""
    from qt_ros.nodes.client import say

    say(arguments.sentence, arguments.topic, arguments.namespace, arguments.timeout)
    return 0
