# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`qt-ros convert`: bags -> replay folder. Needs no ROS."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qt_core.instruction import BUNDLED_MODEL

if TYPE_CHECKING:
    from qt_core.contract import RobotContract
    from qt_ros.bags.converter import Report


def add_parser(subparsers: Any) -> None:
    """Add the subcommand to the `qt-ros` command."""
    parser = subparsers.add_parser('convert', help='turn bags into a replay folder')
    parser.add_argument('bags', nargs='+', type=Path, help='bags, or folders of bags')
    parser.add_argument('--out', type=Path, required=True, help='replay folder to write')
    parser.add_argument('--contract', type=Path, help='refuse bags made under another contract')
    parser.add_argument(
        '--sentence-model',
        default=BUNDLED_MODEL,
        help='sentence-transformers model, by name or folder; the default works offline',
    )
    parser.add_argument('--workers', type=int, default=1, help='processes')
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the subcommand."""
    from qt_core.contract import RobotContract
    from qt_ros.bags import find_bags

    contract = RobotContract.load(arguments.contract) if arguments.contract else None
    bags = find_bags(arguments.bags)
    report = convert_with_progress(
        bags,
        arguments.out,
        contract=contract,
        workers=arguments.workers,
        sentence_model=arguments.sentence_model,
    )
    print(f'{arguments.out}: {report.episodes} episodes, {report.steps} steps', end='')
    print(f', {report.stale} stale ticks left out' if report.stale else '')
    for failure in report.failures:
        print(f'qt-ros: {failure}', file=sys.stderr)
    return 1 if report.failures else 0


def convert_with_progress(
    bags: list[Path],
    out: Path,
    *,
    contract: RobotContract | None = None,
    workers: int = 1,
    sentence_model: str = BUNDLED_MODEL,
) -> Report:
    """Run `convert` behind a progress bar."""
    from rich.progress import Progress

    from qt_core.instruction import SentenceEncoder
    from qt_ros.bags.converter import convert

    with Progress() as progress:
        task = progress.add_task('converting', total=len(bags))
        return convert(
            bags,
            out,
            SentenceEncoder(sentence_model).embed,
            sentence_model=sentence_model,
            contract=contract,
            workers=workers,
            progress=lambda: progress.advance(task),
        )
