# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`qt-ros inspect`: what a bag, a replay folder, a checkpoint or a contract holds."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

WIDTH = 160  # columns where the output is no terminal
LISTED = 20  # instructions and sentences


def add_parser(subparsers: Any) -> None:
    """Add the subcommand to the `qt-ros` command."""
    parser = subparsers.add_parser(
        'inspect', help='say what a bag, replay folder, checkpoint or contract holds'
    )
    parser.add_argument(
        'path',
        type=Path,
        help='a bag (folder, .mcap or .db3 file), a folder of bags, a replay folder, a '
        'checkpoint, or a contract (.yaml)',
    )
    parser.add_argument('--json', action='store_true', help='print JSON, for programs')
    parser.add_argument(
        '--report', action='store_true', help='write report.html of a replay folder anew'
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the subcommand."""
    from qt_ros.bags.report import earlier_failures, write_report
    from qt_ros.inspection import InspectionError, inspect

    found = inspect(arguments.path)
    if arguments.report and found['kind'] != 'replay folder':
        raise InspectionError(
            f'{arguments.path} is a {found["kind"]}: only a replay folder has a report'
        )
    if arguments.report:
        page = write_report(arguments.path, earlier_failures(arguments.path))
        print(f'wrote {page}', file=sys.stderr)
    if arguments.json:
        print(json.dumps(found, indent=1))
        return 0
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False)
    SHOW[found['kind']](console, found)
    return 0


def show_bag(console: Console, found: Mapping[str, Any]) -> None:
    """Print one bag."""
    _facts(
        console,
        f'bag {found["path"]}',
        {
            'size': _bytes(found['bytes']),
            'duration': _seconds(found['duration']),
            'messages': f'{found["messages"]:,}',
            'outcome': found['outcome'],
            'ended by': found['ended_by'],
            'instruction': found['instruction'],
            **{
                f'from {(change["time"] - found["start"]) / 1e9:.1f} s': change['instruction']
                for change in found['instructions'][:LISTED]
            },
            'driven by': _drivers(found['sources'], found['start']),
            'contract': found['contract'],
            'dropped': found['dropped'] or None,
            'damage': found['damage'],
        },
    )
    _table(
        console,
        (
            *('topic', 'type', 'in the contract', 'messages', 'rate, Hz', 'expected'),
            *('largest gap, s', 'repeated', 'jumps'),
        ),
        [
            (
                row['topic'],
                row['type'],
                row['name'],
                row['messages'],
                *(_number(row[field]) for field in ('rate', 'expected', 'largest_gap')),
                *('' if row[field] is None else row[field] for field in ('repeated', 'jumps')),
            )
            for row in found['topics']
        ],
        texts=3,
    )


def show_bags(console: Console, found: Mapping[str, Any]) -> None:
    """Print a folder of bags: one line each, and totals."""
    bags = found['bags']
    rows = [
        (
            bag['name'],
            bag['outcome'] or '',
            bag['instruction'] or '',
            bag['damage'],
            _seconds(bag['duration']),
            '' if bag['messages'] is None else bag['messages'],
            _bytes(bag['bytes']),
        )
        for bag in bags
    ]
    head = ('bag', 'outcome', 'instruction', 'damage', 'duration', 'messages', 'size')
    _table(console, head, rows, texts=4)
    outcomes: dict[str, int] = {}
    for bag in bags:
        if bag['outcome']:
            outcomes[bag['outcome']] = outcomes.get(bag['outcome'], 0) + 1
    _facts(
        console,
        f'{len(bags)} bags in {found["path"]}',
        {
            'size': _bytes(sum(bag['bytes'] for bag in bags)),
            'duration': _seconds(sum(bag['duration'] or 0 for bag in bags)),
            'messages': f'{sum(bag["messages"] or 0 for bag in bags):,}',
            'outcomes': _counts(outcomes),
            'damaged': sum(bool(bag['damage']) for bag in bags),
        },
    )


def show_replay(console: Console, found: Mapping[str, Any]) -> None:
    """Print a replay folder."""
    contract, spec = found['contract'], found['spec']
    _facts(
        console,
        f'replay folder {found["path"]}',
        {
            'contract': contract and f'{contract["name"]}, {contract["rate"]:g} Hz',
            'episodes': f'{found["episodes"]:,}',
            'steps': f'{found["steps"]:,}',
            'duration': _seconds(found['duration']),
            'outcomes': _counts(found['outcomes']),
            'cameras': ', '.join(
                f'{c["name"]} {c["width"]}x{c["height"]}x{c["channels"]}' for c in spec['cameras']
            ),
            'images': found['image_format'],
            'action': f'{spec["num_actions"]} dimensions of {spec["action_bins"]} bins',
            'sentence model': found['sentence_model'],
            'shards': found['shards'],
            'size': _bytes(found['bytes']),
        },
    )
    sentences = list(found['instructions'].items())
    _table(console, ('instruction', 'episodes'), sentences[:LISTED], texts=1)
    if len(sentences) > LISTED:
        console.print(f'{len(sentences) - LISTED} more instructions; --json has them')
    for field in ('state', 'action'):
        _table(
            console,
            (field, 'min', 'max', 'mean', 'std'),
            [
                (row['name'], *(_number(row[part]) for part in ('min', 'max', 'mean', 'std')))
                for row in found[field]
            ],
            texts=1,
        )


def show_checkpoint(console: Console, found: Mapping[str, Any]) -> None:
    """Print a checkpoint."""
    contract = found['contract']
    _facts(
        console,
        f'checkpoint {found["path"]}',
        {
            'policy': found['policy'],
            'contract': contract and f'{contract["name"]}, {contract["rate"]:g} Hz',
            'parameters': f'{found["parameters"]:,}',
            'size': _bytes(found['bytes']),
            'sentence model': found['sentence_model'],
            'sentences': len(found['sentences']),
        },
    )
    for title in ('training', 'model'):
        content = found[title]
        rows = [(key, _flat(value)) for key, value in content.items()] if content else []
        _table(console, (title, ''), rows, texts=2)


def show_contract(console: Console, found: Mapping[str, Any]) -> None:
    """Print a contract."""
    action, state = found['action'], found['state']
    _facts(
        console,
        f'contract {found["name"]}',
        {
            'rate': f'{found["rate"]:g} Hz',
            'instruction': found['instruction']['topic'],
            'action': f'{action["topic"]} ({action["type"]}), {action["mode"]}, '
            f'{action["bins"]} bins, {action["companding"]}',
            'terminate': 'yes' if action['terminate'] else 'no',
            'watchdog': f'{found["safety"]["watchdog"]:g} s',
        },
    )
    kind, joints = 'sensor_msgs/msg/JointState', f'{len(state["joints"])} joints'
    streams = [(c, c['name'], c['type'], f'{c["width"]}x{c["height"]}') for c in found['cameras']]
    rows = [
        (name, s['topic'], kind, s['stamp'], size, _number(s['rate']), _number(s['max_age']))
        for s, name, kind, size in [*streams, (state, 'state', kind, joints)]
    ]
    head = ('stream', 'topic', 'type', 'stamp', 'size', 'rate, Hz', 'max age, s')
    _table(console, head, rows, texts=5)
    limits = {
        joint: bounds
        for joint, *bounds in zip(action['joints'], action['low'], action['high'], strict=True)
    }
    _table(
        console,
        ('joint', 'state low', 'state high', 'action low', 'action high'),
        [
            (joint, *map(_number, (low, high, *limits.get(joint, (None, None)))))
            for joint, low, high in zip(state['joints'], state['low'], state['high'], strict=True)
        ],
        texts=1,
    )


SHOW = {
    'bag': show_bag,
    'folder of bags': show_bags,
    'replay folder': show_replay,
    'checkpoint': show_checkpoint,
    'contract': show_contract,
}


def _facts(console: Console, title: str, facts: Mapping[str, Any]) -> None:
    """Print names with values, leaving out what is empty."""
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    for name, value in facts.items():
        if value not in (None, ''):
            table.add_row(_text(name), _text(value))
    console.print(_text(title, 'bold'))
    console.print(table)
    console.print()


def _table(
    console: Console, head: Sequence[str], rows: Iterable[Sequence[Any]], *, texts: int
) -> None:
    """Print rows, the first `texts` columns to the left; nothing where there are none."""
    from rich import box
    from rich.table import Table

    rows = list(rows)
    if not rows:
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for index, name in enumerate(head):
        table.add_column(name, justify='left' if index < texts else 'right', overflow='fold')
    for row in rows:
        table.add_row(*map(_text, row))
    console.print(table)


def _drivers(sources: Sequence[Mapping[str, Any]], start: int) -> str:
    said = [
        f'{change["source"]} from {max(0, change["time"] - start) / 1e9:.1f} s'
        for change in sources[:LISTED]
    ]
    more = len(sources) - len(said)
    return ', '.join(said) + (f', and {more} more changes' if more else '')


def _text(value: Any, style: str = '') -> Any:
    """Give text as it is: data may hold rich's markup, or what moves a terminal's cursor."""
    from rich.text import Text

    shown = f'{value:,}' if isinstance(value, int) else str(value)
    return Text(''.join(c if c.isprintable() else repr(c)[1:-1] for c in shown), style)


def _number(value: float | None) -> str:
    return '' if value is None else f'{value:.4g}'


def _seconds(value: float | None) -> str:
    return '' if value is None else f'{value:,.1f} s'


def _bytes(count: int) -> str:
    size = float(count)
    for unit in ('B', 'kB', 'MB', 'GB'):
        if size < 1000:
            return f'{size:.3g} {unit}'
        size /= 1000
    return f'{size:,.3g} TB'


def _counts(counts: Mapping[str, int]) -> str:
    return ', '.join(f'{count:,} {name}' for name, count in sorted(counts.items()))


def _flat(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
