# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`qt-ros doctor`: why a robot does not do what its contract says, and what to do about it."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qt_ros.finding import Finding, Level

if TYPE_CHECKING:
    from qt_core.contract import RobotContract

LONGEST = 3600.0  # s
MARKS: Mapping[Level, str] = {'ok': 'ok', 'warn': 'warn', 'fail': 'FAIL'}


def add_parser(subparsers: Any) -> None:
    """Add the subcommand to the `qt-ros` command."""
    parser = subparsers.add_parser(
        'doctor',
        help='look for what keeps a robot from working',
        description='Look at this machine, and listen to the graph that is running for a while; '
        'say what does not fit the contract, and what to do. Commands nothing. The exit status '
        'is 1 when something failed.',
    )
    contract = parser.add_mutually_exclusive_group()
    contract.add_argument('--contract', help="the robot's contract file")
    contract.add_argument('--checkpoint', help='checkpoint folder, whose contract is taken')
    parser.add_argument('--namespace', default='', help="the robot's")
    parser.add_argument('--seconds', type=_seconds, default=5.0, help='how long to listen')
    parser.add_argument('--output', default='bags', help='folder that bags go into')
    parser.add_argument('--json', metavar='FILE', help='write what was found there as well')
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the subcommand."""
    from qt_ros.doctor.machine import check_machine
    from qt_ros.doctor.middleware import check_middleware

    contract = _contract(arguments)
    groups: dict[str, list[Finding]] = {}

    def show(group: str, findings: list[Finding]) -> None:
        groups[group] = findings
        print(group)
        for finding in findings:
            print(f'  {MARKS[finding.level]:4}  {finding}', flush=True)

    middleware = check_middleware(os.environ)
    show('machine', [*check_machine(os.environ, Path(arguments.output)), *middleware])
    if any(f.subject == 'rclpy' and f.level == 'fail' for f in middleware):
        show('graph', [Finding('warn', 'graph', 'not looked at, for want of rclpy')])
    else:
        print(f'listening for {arguments.seconds:g} s', file=sys.stderr)
        try:
            looked = _look(contract, arguments.namespace, arguments.seconds)
        except ImportError as error:
            problem = f'not looked at: {error.name or error} is missing'
            show('graph', [Finding('fail', 'graph', problem, 'install what machine names')])
        else:
            for group, findings in looked.items():
                show(group, findings)
    counts: Counter[Level] = Counter(
        finding.level for findings in groups.values() for finding in findings
    )
    print(f'{counts["fail"]} failed, {counts["warn"]} to look at, {counts["ok"]} ok')
    if arguments.json:
        _write(Path(arguments.json), groups, counts)
    return 1 if counts['fail'] else 0


def _look(
    contract: RobotContract | None, namespace: str, seconds: float
) -> dict[str, list[Finding]]:
    """Observe the graph and judge it, group by group."""
    from qt_ros.graphs import environment

    # What our own nodes would hear is what is to be measured.
    os.environ.update(environment(os.environ))
    from qt_ros.doctor.participants import check_graph, check_nodes
    from qt_ros.doctor.traffic import check_traffic
    from qt_ros.graph_check import check_contract
    from qt_ros.nodes.graph_observer import observe

    observed, wanted = observe(contract, namespace, seconds)
    graph = check_graph(observed, [need.topic for need in wanted])
    nodes = check_nodes(observed)
    if contract is None:
        remedy = 'give --contract or --checkpoint'
        unknown = [Finding('warn', 'contract', 'none given: no topic was listened to', remedy)]
        return {'graph': graph, 'contract': unknown, 'nodes': nodes}
    publishers = observed.snapshot.publishers
    published = {n.topic: any(e.type == n.type for e in publishers[n.topic]) for n in wanted}
    found = [
        *check_contract(contract, observed.full, observed.snapshot),
        *check_traffic(contract, wanted, observed.heard, published, observed.listening),
    ]
    return {'graph': graph, 'contract': found, 'nodes': nodes}


def _contract(arguments: argparse.Namespace) -> RobotContract | None:
    """Read the contract, which needs neither ROS nor torch.

    Raises:
        ContractError: It is not valid, or a checkpoint has none.
    """
    from qt_core.contract import ContractError, RobotContract

    if arguments.contract:
        return RobotContract.load(arguments.contract)
    if not arguments.checkpoint:
        return None
    path = Path(arguments.checkpoint, 'config.json')
    try:
        config = json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError) as error:
        raise ContractError(f'{path}: cannot be read ({error})') from error
    text = config.get('contract') if isinstance(config, dict) else None
    if text is None:
        raise ContractError(f'{path}: holds no contract: give --contract')
    return RobotContract.from_text(text, str(path))


def _write(path: Path, groups: Mapping[str, list[Finding]], counts: Counter[Level]) -> None:
    content = {
        **{name: [dataclasses.asdict(f) for f in findings] for name, findings in groups.items()},
        'counts': {level: counts[level] for level in MARKS},
    }
    path.write_text(json.dumps(content, indent=1) + '\n', encoding='utf-8')


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f'{text!r} is no number') from None
    if not 0 < value <= LONGEST:
        raise argparse.ArgumentTypeError(f'{text} is not between 0 and {LONGEST:g}')
    return value
