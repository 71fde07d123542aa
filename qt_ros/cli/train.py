# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`qt-ros train`: replay folder -> checkpoint."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qt_core.learning.q_learner import QLearner, QLearnerConfig
    from qt_core.learning.trainer import Trainer
    from qt_core.models import QTransformerConfig


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
    parser.add_argument('--num-train-steps', type=int, help='overrides the configuration')
    parser.add_argument('--seed', type=int, help='overrides the configuration')
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the subcommand."""
    overrides = {'num_train_steps': arguments.num_train_steps, 'seed': arguments.seed}
    config, model = load_config(arguments.config, **overrides)
    learner = make_learner(config, model, arguments.replay, arguments.out, resume=arguments.resume)
    train_with_progress(learner)
    if learner.accelerator.is_main_process:
        print(f'{arguments.out / "last"}: step {learner.step}, {learner.seconds / 60:.1f} min')
    return 0


def load_config(path: Path, **overrides: Any) -> tuple[QLearnerConfig, QTransformerConfig]:
    """Read a training configuration; `overrides` that are not None replace its fields.

    Returns:
        How to learn, and the network of the section `model`, not yet fitted to any data.

    Raises:
        ConfigurationError: The file cannot be read or does not fit.
    """
    import yaml

    from qt_core.configuration import ConfigurationError, build
    from qt_core.learning.q_learner import QLearnerConfig
    from qt_core.models import QTransformerConfig
    from qt_core.spec import Spec

    try:
        content = yaml.safe_load(path.read_text(encoding='utf-8'))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        line = ' '.join(str(error).split())
        raise ConfigurationError(f'{path}: cannot be read ({line})') from error
    try:
        content = {**content, **{k: v for k, v in overrides.items() if v is not None}}
        model = content.pop('model', {})
        given = [name for name in Spec().fields() if name in (model or {})]
        if given:
            raise ConfigurationError(f'model.{given[0]} comes from the data: leave it out')
        return build(QLearnerConfig, content), build(QTransformerConfig, model, 'model')
    except (ConfigurationError, TypeError) as error:
        raise ConfigurationError(f'{path}: {error}') from None


def make_learner(
    config: QLearnerConfig,
    model: QTransformerConfig,
    replay: Path,
    out: Path,
    *,
    resume: bool = False,
) -> QLearner:
    """Make a network for the data in `replay`, and its learner.

    Raises:
        CheckpointError: `out` is not empty and `resume` is not set, or the other way round.
        ConfigurationError: Network, data and configuration do not fit each other.
    """
    import torch

    from qt_core.learning.q_learner import QLearner
    from qt_core.learning.trainer import check_run
    from qt_core.models import QRoboticTransformer
    from qt_core.replay import ReplayFolder, ReplayMemoryDataset

    check_run(out, resume=resume)
    folder = ReplayFolder(replay)
    told = model.condition_on_text and folder.embeddings is not None
    dataset = ReplayMemoryDataset(folder, config.num_timesteps or model.frames, told)
    torch.manual_seed(config.seed)
    network = QRoboticTransformer(model.fitted(folder.spec))
    return QLearner(network, dataset=dataset, checkpoint_folder=out, config=config, resume=resume)


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
