# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`qt-ros train`: replay folder -> checkpoint."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qt_core.learning.trainer import TrainConfig


def add_parser(subparsers: Any) -> None:
    """Add the subcommand to the `qt-ros` command."""
    parser = subparsers.add_parser(
        'train',
        help='train a policy offline from a replay folder',
        description='Train a policy offline from a replay folder. Several GPUs or machines: '
        'start it with torchrun or accelerate launch.',
    )
    parser.add_argument('config', type=Path, help='training configuration, config/train/*.yaml')
    parser.add_argument('--replay', type=Path, required=True, help='replay folder')
    parser.add_argument('--out', type=Path, required=True, help='folder of the run')
    parser.add_argument('--resume', action='store_true', help='continue the run in --out')
    parser.add_argument('--steps', type=int, help='overrides the configuration')
    parser.add_argument('--seed', type=int, help='overrides the configuration')
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the subcommand."""
    from qt_core.learning.trainer import Trainer
    from qt_core.replay import ReplayFolder

    config = load_config(arguments.config, steps=arguments.steps, seed=arguments.seed)
    replay = ReplayFolder(arguments.replay)
    trainer = Trainer(config, replay, arguments.out, resume=arguments.resume)
    train_with_progress(trainer)
    print(f'{arguments.out / "last"}: step {trainer.step}, {trainer.seconds / 60:.1f} min')
    return 0


def load_config(path: Path, **overrides: Any) -> TrainConfig:
    """Read a training configuration; `overrides` that are not None replace its fields.

    Raises:
        ConfigurationError: The file cannot be read or does not fit.
    """
    import yaml

    from qt_core.configuration import ConfigurationError, build
    from qt_core.learning.trainer import TrainConfig

    try:
        content = yaml.safe_load(path.read_text(encoding='utf-8'))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        line = ' '.join(str(error).split())
        raise ConfigurationError(f'{path}: cannot be read ({line})') from error
    try:
        content = {**content, **{k: v for k, v in overrides.items() if v is not None}}
        return build(TrainConfig, content)
    except (ConfigurationError, TypeError) as error:
        raise ConfigurationError(f'{path}: {error}') from None


def train_with_progress(trainer: Any) -> dict[str, list[tuple[int, float]]]:
    """Run a `Trainer` behind a progress bar; gives its logged scalars."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = (
        '[progress.description]{task.description}',
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        '{task.fields[scalars]}',
    )
    with Progress(*columns) as progress:
        task = progress.add_task(
            'training', total=trainer.config.steps, completed=trainer.step, scalars=''
        )

        def report(step: int, scalars: dict[str, float]) -> None:
            if scalars:
                text = ' '.join(f'{k} {scalars[k]:.4f}' for k in ('loss', 'td', 'q_taken'))
                progress.update(task, scalars=text)
            progress.update(task, completed=step)

        history: dict[str, list[tuple[int, float]]] = trainer.run(report)
    return history
