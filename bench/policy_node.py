#!/usr/bin/env python3
# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Measure what the policy node adds to its network: from the camera's stamp to the command.

    python bench/policy_node.py

A robot in a process of its own publishes a 640x480 rgb8 camera at 30 Hz and joint states at
100 Hz; a policy answers at 10 Hz; all share two cores. Beside it, in rounds in turn, the floor: a
node that answers every third image with a command and does nothing else. What the network took in
a step is taken off that step. Exits with 1 where a target is missed, and leaves a profile beside
the result.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from policy_node_processes import BenchError, Observer, Robot, checkpoint, nodes, record
from policy_node_rounds import STAGES, PairingError, Round, analyse, compare, figures
from rich.console import Console
from rich.table import Table

from qt_core.contract import RobotContract
from qt_ros.graphs import environment
from qt_ros.isolation import isolated_graph

RESULTS = Path(__file__).with_name('results') / 'policy_node.json'
CORES = 2
VARIANTS = ('relay', 'policy', 'guard')
SIZES = ('shipped', 'small', '224')
NOTES = (
    "Latency: from the image's header stamp, set just before it is published, to the command's "
    "reception by the subscriber's DDS (received_timestamp), less what the network took in that "
    'very step.',
    'Relay: rclpy.spin, a typed best-effort subscription of depth 5, every third image answered '
    'by a JointTrajectory with the stamp of the image. No joint states, no model.',
    'Frames missed: images that the callback was not given. Steps missed: periods of control '
    'without a command.',
)


def run(options: argparse.Namespace, say: Callable[[str], None]) -> dict[str, Any]:
    """Measure every variant in turn; profile where it is asked for or a target is missed.

    Raises:
        BenchError: A variant gave nothing.
    """
    rounds: list[Round] = []
    dropped: list[str] = []
    variants = [v for v in options.variants if v != 'guard' or guard_exists()]
    with tempfile.TemporaryDirectory(prefix='policy-node-bench-') as name, ExitStack() as stack:
        folder = Path(name)
        path = checkpoint(options.size, folder)
        contract = RobotContract.from_text(_config(path)['contract'], str(path))
        parameters = {'checkpoint': str(path), 'stamp_commands': 'true', 'device': options.device}
        if options.compile is not None:
            parameters['compile'] = options.compile
        stack.enter_context(isolated_graph())
        observer = Observer(contract)
        stack.callback(observer.close)
        robot = stack.enter_context(Robot())

        def measure(variant: str, number: int, **more: str) -> Round:
            measured = nodes(variant, folder, contract, parameters | more)
            recording = record(
                variant,
                number,
                measured,
                observer,
                robot,
                contract,
                folder,
                seconds=options.seconds,
                patience=options.patience,
            )
            return analyse(recording)

        for number in range(options.rounds):
            for place in range(len(variants)):
                variant = variants[(number + place) % len(variants)]
                try:
                    rounds.append(measure(variant, number))
                except PairingError as error:
                    dropped.append(str(error))
                    say(f'DROPPED {error}')
                else:
                    found = figures(rounds[-1:])['latency_ms']
                    say(f'{variant}, round {number}: {found} ms')
        used = {r.variant for r in rounds}
        if not {'relay', 'policy'} <= used:
            raise BenchError('no round could be used; the last: ' + dropped[-1])
        variants = [v for v in variants if v in used]
        comparisons = [c for v in variants if v != 'relay' for c in compare(rounds, v)]
        missed = any(not comparison['met'] for comparison in comparisons)
        if options.profile == 'always' or (options.profile == 'missed' and missed):
            profile = options.out.with_name(f'{options.out.stem}-profile.txt')
            say(f'profile: {profile}')
            try:
                measure('policy', options.rounds, profile=str(profile.absolute()))
            except PairingError as error:
                say(f'{error}')
    return {
        'figures': {v: figures([r for r in rounds if r.variant == v]) for v in variants},
        'comparisons': comparisons,
        'rounds': [{'variant': r.variant, 'number': r.number, **figures([r])} for r in rounds],
        'dropped': dropped,
    }


def guard_exists() -> bool:
    """Whether there is a guard to measure."""
    return importlib.util.find_spec('qt_ros.nodes.guard_node') is not None


def _config(path: Path) -> dict[str, Any]:
    return json.loads((path / 'config.json').read_text(encoding='utf-8'))


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=_Raw)
    parser.add_argument('--seconds', type=float, default=20.0, help='of each round')
    parser.add_argument('--rounds', type=int, default=6, help='of each variant')
    parser.add_argument('--variants', nargs='+', choices=VARIANTS, default=list(VARIANTS))
    size = 'of network and image; 224 is for a GPU'
    parser.add_argument('--size', choices=SIZES, default='shipped', help=size)
    parser.add_argument('--device', default='cpu', help='torch device of the policy')
    parser.add_argument('--compile', choices=('true', 'false'), help='parameter of the policy')
    profile = 'when to run one more round of the policy for a profile'
    parser.add_argument(
        '--profile', choices=('missed', 'always', 'never'), default='missed', help=profile
    )
    patience = 'seconds until a node must act'
    parser.add_argument('--patience', type=float, default=600.0, help=patience)
    parser.add_argument('--out', type=Path, default=RESULTS, help='JSON file')
    options = parser.parse_args(given)
    if not {'relay', 'policy'} <= set(options.variants):
        parser.error('--variants needs relay and policy, which are compared')
    if options.rounds < 1:
        parser.error(f'--rounds is {options.rounds}, expected at least 1')
    return options


def main(given: Sequence[str] | None = None) -> int:
    """Run the bench; 0 where every target was reached."""
    options = arguments(given)
    console = Console(width=None if sys.stdout.isatty() else 120)  # files are no terminal
    say = Console(stderr=True, highlight=False).print
    start, load, cores = time.monotonic(), os.getloadavg()[0], os.cpu_count()
    say(f'{cores} cores, load {load:.2f} before')
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    os.environ.update(environment(os.environ), OMP_NUM_THREADS='1')
    try:
        result = run(options, say)
    except BenchError as error:
        print(f'bench/policy_node.py: {error}', file=sys.stderr)
        return 2
    show(console, result)
    content = {
        'python': platform.python_version(),
        'machine': {'cores': cores, 'used': CORES, 'load': load},
        'size': options.size,
        'device': options.device,
        'compile': options.compile,
        'seconds': options.seconds,
        'minutes': round((time.monotonic() - start) / 60, 1),
        **result,
    }
    options.out.write_text(json.dumps(content, indent=1) + '\n', encoding='utf-8')
    missed = [
        f'{c["variant"]} p{c["percentile"]}: {c["ratio"]:g} times the relay, at most '
        f'{c["target"]:g}'
        for c in result['comparisons']
        if not c['met']
    ]
    for line in missed:
        print(f'missed: {line}')
    return 1 if missed else 0


def show(console: Console, result: Mapping[str, Any]) -> None:
    """Print the tables."""
    columns = result['figures']
    table = Table(title='camera 640x480 at 30 Hz, control at 10 Hz')
    for column in ('', *columns):
        table.add_column(column, justify='right' if column else 'left')
    parts: list[tuple[str, Callable[[Mapping[str, Any]], Any]]] = [
        ('stamp to received, less network, ms', lambda found: found['latency_ms']),
        ('network, ms', lambda found: found['model_ms']),
    ]
    for stage, title in STAGES.items():
        parts.append((f'{title}, ms', lambda found, stage=stage: found['stages_ms'].get(stage)))
    for title, take in parts:
        for percentile in ('p50', 'p95', 'p99') if take is parts[0][1] else ('p50', 'p99'):
            values = (take(found) for found in columns.values())
            cells = ('' if v is None else f'{v[percentile]:.2f}' for v in values)
            table.add_row(f'{title}: {percentile}', *cells)
    for name, title in (
        ('period_std_ms', 'period: standard deviation, ms'),
        ('period_off_p99_ms', 'period: p99 of deviation from nominal, ms'),
        ('commands_per_s', 'commands/s'),
        ('steps_missed', 'steps missed'),
        ('frames_missed', 'frames missed'),
        ('frames', '  of'),
    ):
        values = (found[name] for found in columns.values())
        table.add_row(title, *('?' if v is None else f'{v:g}' for v in values))
    for name in sorted({name for found in columns.values() for name in found['cpu']}):
        values = (found['cpu'].get(name) for found in columns.values())
        table.add_row(f'CPU of {name}, cores', *('' if v is None else f'{v:.3f}' for v in values))
    console.print(table)
    ratios = Table('', 'percentile', 'times relay', 'over rounds', 'target', 'verdict')
    for c in result['comparisons']:
        spread, target = c['spread'], c['target']
        ratios.add_row(
            c['variant'],
            f'p{c["percentile"]}',
            f'{c["ratio"]:.2f}',
            '' if spread is None else ' – '.join(f'{edge:.2f}' for edge in spread),
            '' if target is None else f'≤ {target:g}',
            '' if target is None else 'met' if c['met'] else 'MISSED',
        )
    console.print(ratios)
    for note in NOTES:
        console.print(f'  {note}', style='dim', highlight=False)


class _Raw(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    pass


if __name__ == '__main__':
    sys.exit(main())
