# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`qt-ros train`: replay folder -> checkpoint."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qt_core.learning.trainer import Trainer


def add_parser(subparsers: Any) -> None:
    """Add the subcommand to the `qt-ros` command."""
    parser = subparsers.add_parser(
        'train',
        help='train a policy offline from a replay folder',
        description='Train a policy offline from a replay folder. Several GPUs or machines: '
        'start it with torchrun or accelerate launch.',
    )
    parser.add_argument('config', type=Path, help='training configuration, config/train/*.yaml')
    parser.add_argument(
        '--replay',
        type=Path,
        required=True,
        nargs='+',
        metavar='FOLDER',
        help='replay folder; several for a policy of several bodies (gato)',
    )
    parser.add_argument('--out', type=Path, required=True, help='folder of the run')
    parser.add_argument('--resume', action='store_true', help='continue the run in --out')
    parser.add_argument('--num-train-steps', type=int, help='overrides the configuration')
    parser.add_argument('--seed', type=int, help='overrides the configuration')
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the subcommand."""
    from qt_core.learning.run import load_run, make_trainer

    overrides = {'num_train_steps': arguments.num_train_steps, 'seed': arguments.seed}
    description = load_run(arguments.config, **overrides)
    trainer = make_trainer(description, arguments.replay, arguments.out, resume=arguments.resume)
    train_with_progress(trainer)
    if trainer.accelerator.is_main_process:
        print(f'{arguments.out / "last"}: step {trainer.step}, {trainer.seconds / 60:.1f} min')
    return 0


def train_with_progress(trainer: Trainer) -> dict[str, list[tuple[int, float]]]:
    """Run a `Trainer` behind a progress bar; gives its logged scalars."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = (
        '[progress.description]{task.description}',
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        '{task.fields[scalars]}',
    )
    with Progress(*columns, disable=not trainer.accelerator.is_main_process) as progress:
        task = progress.add_task(
            'training', total=trainer.config.num_train_steps, completed=trainer.step, scalars=''
        )

        def report(step: int, scalars: dict[str, float]) -> None:
            if scalars:
                shown = [name for name in ('loss', 'td', 'q_taken') if name in scalars]
                text = ' '.join(f'{name} {scalars[name]:.4f}' for name in shown)
                progress.update(task, scalars=text)
            progress.update(task, completed=step)

        return trainer.run(report)
