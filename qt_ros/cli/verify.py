# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`qt-ros verify`: is everything that was written still there and readable?"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any


def add_parser(subparsers: Any) -> None:
    """Add the subcommand to the `qt-ros` command."""
    parser = subparsers.add_parser(
        'verify',
        help='check that replay folders and bags are whole',
        description='Read replay folders and bags to the last byte; print one line per problem, '
        'and exit with 1 where there is any.',
    )
    parser.add_argument(
        'paths', nargs='+', type=Path, help='replay folders, bags, or folders of bags'
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the subcommand."""
    failed = False
    for path in arguments.paths:
        what, problems = _verify(path)
        failed |= bool(problems)
        for problem in problems:
            print(f'qt-ros: {problem}', file=sys.stderr)
        if not problems:
            print(f'{path}: {what}, whole')
    return int(failed)


def _verify(path: Path) -> tuple[str, list[str]]:
    from qt_core.replay import ReplayFolder
    from qt_core.replay.verification import verify
    from qt_ros.bags import BagError, find_bags
    from qt_ros.bags.verification import verify_bag

    if (path / 'meta.json').exists() or (path / 'shards').exists():
        problems = verify(path)
        if problems:
            return '', problems
        folder = ReplayFolder(path)
        return f'{len(folder.episodes)} episodes in {len(folder.shards)} shards', []
    try:
        bags = find_bags([path])
    except BagError as error:
        return '', [str(error)]
    found = [problem for bag in bags for problem in verify_bag(bag)]
    return f'{len(bags)} bag{"s" if len(bags) != 1 else ""}', found
