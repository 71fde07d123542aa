# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`qt-ros up`: start the nodes of a graph where there is no `ros2 launch`."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from qt_ros.graphs import GRAPHS


def add_parser(subparsers: Any) -> None:
    """Add the subcommand to the `qt-ros` command."""
    parser = subparsers.add_parser(
        'up',
        help='start the nodes of a graph, like ros2 launch',
        description='Start the nodes of a graph as processes; one Ctrl-C ends them all, and so '
        'does the end of one.',
    )
    graphs = parser.add_subparsers(required=True, metavar='GRAPH', dest='graph')
    for name, graph in GRAPHS.items():
        flags = graphs.add_parser(name, help=graph.summary, description=graph.summary)
        for option in graph.options:
            flags.add_argument(
                f'--{option.name.replace("_", "-")}',
                help=option.description,
                default=option.default_text,
                choices=option.choices or (('true', 'false') if option.kind is bool else None),
                **({'nargs': '?', 'const': 'true'} if option.kind is bool else {}),
            )
        flags.add_argument(
            '--ready-timeout',
            type=float,
            default=60.0,
            help='seconds until a silent node is an error',
        )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the subcommand; it ends with Ctrl-C, or with an error when a process ends."""
    from qt_ros.up import running

    graph = GRAPHS[arguments.graph].processes_from_text(vars(arguments))
    with running(graph, ready_timeout=arguments.ready_timeout, quiet=False) as children:
        names = ', '.join(process.name for process in graph)
        print(f'qt-ros: {names} ready; Ctrl-C ends', file=sys.stderr, flush=True)
        children.wait()
