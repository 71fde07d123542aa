# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`qt-ros export`: replay folder -> the formats of other packages. Needs no ROS."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_parser(subparsers: Any) -> None:
    """Add the subcommand to the `qt-ros` command."""
    parser = subparsers.add_parser('export', help='write a replay folder in another format')
    formats = parser.add_subparsers(required=True, metavar='FORMAT')
    lerobot = formats.add_parser('lerobot', help='a LeRobot dataset, version 3.0')
    lerobot.add_argument(
        '--actions',
        choices=('absolute', 'raw'),
        default='absolute',
        help="target positions, as LeRobot's policies expect, or the contract's own units",
    )
    lerobot.add_argument('--codec', choices=('h264', 'libsvtav1'), default='h264')
    lerobot.add_argument('--crf', type=int, default=23, help='video: lower is better and larger')
    lerobot.set_defaults(run=run_lerobot)
    flat = formats.add_parser('q-transformer', help='the five files of the package q-transformer')
    flat.add_argument('--frames', type=int, default=6, help='frames of a state')
    flat.set_defaults(run=run_q_transformer)
    for subparser in (lerobot, flat):
        subparser.add_argument('folder', type=Path, help='replay folder')
        subparser.add_argument('--out', type=Path, required=True, help='folder to write')


def run_lerobot(arguments: argparse.Namespace) -> int:
    """Run `qt-ros export lerobot`."""
    from rich.progress import Progress

    from qt_core.exchange.lerobot import LeRobotConfig, export_lerobot
    from qt_core.replay import ReplayFolder

    folder = ReplayFolder(arguments.folder)
    config = LeRobotConfig(actions=arguments.actions, codec=arguments.codec, crf=arguments.crf)
    with Progress() as progress:
        task = progress.add_task('exporting', total=len(folder.episodes))
        frames = export_lerobot(
            folder, arguments.out, config, progress=lambda: progress.advance(task)
        )
    print(f'{arguments.out}: {len(folder.episodes)} episodes, {frames} frames')
    return 0


def run_q_transformer(arguments: argparse.Namespace) -> int:
    """Run `qt-ros export q-transformer`."""
    from rich.progress import Progress

    from qt_core.exchange.q_transformer import export_q_transformer
    from qt_core.replay import ReplayFolder

    folder = ReplayFolder(arguments.folder)
    with Progress() as progress:
        task = progress.add_task('exporting', total=len(folder.episodes))
        shapes = export_q_transformer(
            folder,
            arguments.out,
            frames=arguments.frames,
            progress=lambda: progress.advance(task),
        )
    print(f'{arguments.out}:', ', '.join(f'{name} {shape}' for name, shape in shapes.items()))
    return 0
