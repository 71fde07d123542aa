# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`qt-ros import`: data of other packages -> replay folder. Needs no ROS."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from qt_core.instruction import BUNDLED_MODEL


def add_parser(subparsers: Any) -> None:
    """Add the subcommand to the `qt-ros` command."""
    parser = subparsers.add_parser('import', help='make a replay folder of data in another format')
    formats = parser.add_subparsers(required=True, metavar='FORMAT')
    lerobot = formats.add_parser('lerobot', help='a LeRobot dataset, version 3.0 or 2.1')
    lerobot.add_argument('folder', type=Path, help='the dataset')
    lerobot.add_argument('--out', type=Path, required=True, help='replay folder to write')
    lerobot.add_argument(
        '--contract', type=Path, help='what of it is used; not needed for an exported dataset'
    )
    lerobot.add_argument(
        '--map',
        action='append',
        default=[],
        type=_pair,
        metavar='NAME=FEATURE',
        help="what a camera, a joint, 'state' or 'action' is called in the dataset; for a joint, "
        'its place from 0 will do',
    )
    lerobot.add_argument(
        '--actions',
        choices=('absolute', 'raw'),
        help="target positions (the default), or the contract's own units",
    )
    lerobot.add_argument(
        '--degrees', action='store_true', help='joint positions and targets are in degrees'
    )
    lerobot.add_argument(
        '--outcome',
        choices=('success', 'failure', 'unlabeled'),
        help='what episodes ended in, where the dataset does not say',
    )
    lerobot.add_argument(
        '--sentence-model',
        default=BUNDLED_MODEL,
        help='sentence-transformers model, by name or folder; the default works offline',
    )
    lerobot.add_argument('--image-format', choices=('raw', 'jpeg'), default='raw')
    lerobot.set_defaults(run=run_lerobot)


def run_lerobot(arguments: argparse.Namespace) -> int:
    """Run `qt-ros import lerobot`."""
    from rich.progress import Progress

    from qt_core.contract import RobotContract
    from qt_core.exchange.lerobot_import import import_lerobot
    from qt_core.exchange.lerobot_matching import ImportConfig
    from qt_core.instruction import SentenceEncoder

    contract = RobotContract.load(arguments.contract) if arguments.contract else None
    config = ImportConfig(
        names=dict(arguments.map),
        actions=arguments.actions,
        degrees=arguments.degrees,
        outcome=arguments.outcome,
    )
    with Progress() as progress:
        task = progress.add_task('importing', total=None)
        report = import_lerobot(
            arguments.folder,
            arguments.out,
            SentenceEncoder(arguments.sentence_model).embed,
            config,
            contract=contract,
            sentence_model=arguments.sentence_model,
            image_format=arguments.image_format,
            progress=lambda: progress.advance(task),
        )
    print(f'{arguments.out}: {report.episodes} episodes, {report.steps} steps')
    for failure in report.failures:
        print(f'qt-ros: {failure}', file=sys.stderr)
    return 1 if report.failures else 0


def _pair(text: str) -> tuple[str, str]:
    name, equals, feature = text.partition('=')
    if not (name and equals and feature):
        raise argparse.ArgumentTypeError(f'{text!r} is not NAME=FEATURE')
    return name, feature
