# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`qt-ros convert`: bags -> replay folder. Needs no ROS."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qt_core.instruction import BUNDLED_MODEL

if TYPE_CHECKING:
    from qt_ros.bags.converter import Report


def add_parser(subparsers: Any) -> None:
    """Add the subcommand to the `qt-ros` command."""
    parser = subparsers.add_parser('convert', help='turn bags into a replay folder')
    parser.add_argument(
        'bags',
        nargs='+',
        type=Path,
        help='bags (folders, .mcap or .db3 files), or folders of bags',
    )
    parser.add_argument('--out', type=Path, required=True, help='replay folder to write')
    parser.add_argument(
        '--resume',
        action='store_true',
        help='go on with a folder, or append to it; bags that are in it already are skipped',
    )
    parser.add_argument(
        '--contract',
        type=Path,
        help='refuse bags made under another contract; needed for bags of another recorder',
    )
    parser.add_argument(
        '--outcome',
        choices=('success', 'failure', 'unlabeled'),
        default='unlabeled',
        help='how episodes of another recorder ended',
    )
    parser.add_argument(
        '--instruction',
        help='sentence of bags of another recorder; otherwise from the instruction topic',
    )
    parser.add_argument(
        '--image-format',
        choices=('raw', 'jpeg'),
        default='raw',
        help='jpeg: a tenth of the size, slower to train from',
    )
    parser.add_argument('--jpeg-quality', type=int, default=95, help='1..100')
    parser.add_argument(
        '--workers', type=int, help='processes; otherwise one per core (Ray: tasks at a time)'
    )
    parser.add_argument('--engine', choices=('process', 'ray'), default='process')
    parser.add_argument('--ray-address', help='existing Ray cluster, which sees the same files')
    parser.add_argument(
        '--sentence-model',
        default=BUNDLED_MODEL,
        help='sentence-transformers model, by name or folder; the default works offline',
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the subcommand."""
    from qt_core.contract import RobotContract
    from qt_ros.bags import BagError, find_bags
    from qt_ros.bags.engines import cores

    if arguments.workers is not None and arguments.workers < 1:
        raise BagError(f'--workers is {arguments.workers}, expected at least 1')
    contract = RobotContract.load(arguments.contract) if arguments.contract else None
    bags = find_bags(arguments.bags)
    workers = arguments.workers
    if workers is None:
        workers = 0 if arguments.engine == 'ray' else min(cores(), len(bags))
    try:
        report = convert_with_progress(
            bags,
            arguments.out,
            failed=lambda line: print(f'qt-ros: {line}', file=sys.stderr),
            contract=contract,
            outcome=arguments.outcome,
            instruction=arguments.instruction,
            workers=workers,
            engine=arguments.engine,
            ray_address=arguments.ray_address,
            resume=arguments.resume,
            image_format=arguments.image_format,
            jpeg_quality=arguments.jpeg_quality,
            sentence_model=arguments.sentence_model,
        )
    except KeyboardInterrupt:
        print(f'qt-ros: stopped; go on with --resume --out {arguments.out}', file=sys.stderr)
        return 128 + signal.SIGINT
    print(f'{arguments.out}: {report.episodes} episodes, {report.steps} steps', end='')
    print(f', {report.stale} stale ticks left out' if report.stale else '', end='')
    print(f', {report.skipped} bags were there already' if report.skipped else '')
    for note in report.notes:
        print(note)
    return 1 if report.failures else 0


def convert_with_progress(
    bags: list[Path],
    out: Path,
    *,
    sentence_model: str = BUNDLED_MODEL,
    failed: Callable[[str], None] = lambda line: None,
    **options: Any,
) -> Report:
    """Run `convert` behind a progress bar.

    Args:
        bags: As of `convert`.
        out: As of `convert`.
        sentence_model: As of `convert`.
        failed: Given the line of each failed bag, once one has been converted: where none is, the
            error that is raised says why.
        options: As of `convert`.
    """
    from rich.progress import Progress

    from qt_core.instruction import SentenceEncoder
    from qt_ros.bags.converter import convert

    held: list[str] = []
    converted = False
    with Progress() as progress:
        task = progress.add_task('converting', total=len(bags))

        def advance(failure: str | None) -> None:
            nonlocal converted
            progress.advance(task)
            converted = converted or failure is None
            held.extend([] if failure is None else [failure])
            while converted and held:
                failed(held.pop(0))

        return convert(
            bags,
            out,
            SentenceEncoder(sentence_model).embed,
            sentence_model=sentence_model,
            progress=advance,
            **options,
        )
