# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`qt-ros replay`: new replay folders out of others."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_parser(subparsers: Any) -> None:
    """Add the subcommand to the `qt-ros` command."""
    parser = subparsers.add_parser(
        'replay',
        help='merge, split, filter or relabel replay folders',
        description='Make new replay folders out of others, which stay as they are.',
    )
    actions = parser.add_subparsers(required=True, metavar='ACTION')
    merge = actions.add_parser('merge', help='all episodes of several folders')
    merge.add_argument('folders', nargs='+', type=Path, help='replay folders of one contract')
    merge.set_defaults(run=run_merge)
    split = actions.add_parser('split', help='OUT/train and OUT/validation, by episode')
    split.add_argument('--validation', type=float, default=0.1, help='share of the episodes')
    split.add_argument('--seed', type=int, default=0, help='of the choice')
    split.set_defaults(run=run_split)
    select = actions.add_parser('filter', help='the episodes of one outcome, or of some sentences')
    select.add_argument('--outcome', choices=('success', 'failure', 'unlabeled'))
    select.add_argument('--instruction', metavar='PATTERN', help="such as 'touch the * block'")
    select.set_defaults(run=run_filter)
    relabel = actions.add_parser('relabel', help='with other outcomes or sentences')
    relabel.add_argument(
        '--set-outcome',
        action='append',
        default=[],
        type=_pair,
        metavar='SOURCE=OUTCOME',
        help='the episodes of a bag are a success or a failure; can be given several times',
    )
    relabel.add_argument(
        '--set-instruction',
        action='append',
        default=[],
        type=_pair,
        metavar='OLD=NEW',
        help='replace a sentence; can be given several times',
    )
    relabel.set_defaults(run=run_relabel)
    for action in (split, select, relabel):
        action.add_argument('folder', type=Path, help='replay folder')
    for action in (merge, split, select, relabel):
        action.add_argument('--out', type=Path, required=True, help='folder to write')


def run_merge(arguments: argparse.Namespace) -> int:
    """Merge folders."""
    from qt_core.replay import ReplayFolder
    from qt_core.replay.editing import merge

    count = merge([ReplayFolder(folder) for folder in arguments.folders], arguments.out)
    print(f'{arguments.out}: {count} episodes')
    return 0


def run_split(arguments: argparse.Namespace) -> int:
    """Split a folder."""
    from qt_core.replay import ReplayFolder
    from qt_core.replay.editing import split

    train, validation = split(
        ReplayFolder(arguments.folder),
        arguments.out,
        fraction=arguments.validation,
        seed=arguments.seed,
    )
    print(f'{arguments.out}: {train} episodes in train, {validation} in validation')
    return 0


def run_filter(arguments: argparse.Namespace) -> int:
    """Filter a folder."""
    from qt_core.replay import ReplayFolder
    from qt_core.replay.editing import select

    folder = ReplayFolder(arguments.folder)
    count = select(
        folder, arguments.out, outcome=arguments.outcome, instruction=arguments.instruction
    )
    print(f'{arguments.out}: {count} of {len(folder.episodes)} episodes')
    return 0


def run_relabel(arguments: argparse.Namespace) -> int:
    """Relabel a folder."""
    from qt_core.replay import ReplayFolder
    from qt_core.replay.editing import relabel

    folder = ReplayFolder(arguments.folder)
    changed = relabel(
        folder,
        arguments.out,
        outcomes=dict(arguments.set_outcome),
        instructions=dict(arguments.set_instruction),
    )
    print(f'{arguments.out}: {len(folder.episodes)} episodes, {changed} of them changed')
    return 0


def _pair(text: str) -> tuple[str, str]:
    old, equals, new = text.rpartition('=')
    if not (old and equals):
        raise argparse.ArgumentTypeError(f'{text!r}: expected two values joined by =')
    return old, new
