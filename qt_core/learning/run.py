# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A training as a file describes it: which policy, how it learns, its network."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from qt_core.configuration import ConfigurationError, build, require
from qt_core.learning.trainer import TrainConfig, Trainer, check_run
from qt_core.models.pretrained import read_config, recover_folder
from qt_core.replay import ReplayFolder
from qt_core.spec import Spec

# Policy to the module that trains it. Each has TRAIN_CONFIG, MODEL_CONFIG and `make_trainer`.
LEARNERS = {
    'q_transformer': 'q_learner',
    'decision_transformer': 'decision_transformer',
    'gato': 'gato',
}


@dataclass(frozen=True)
class RunConfig:
    """What config/train/*.yaml says.

    Attributes:
        policy: A key of `LEARNERS`.
        training: How it learns.
        model: Its network, not yet fitted to any data.
    """

    policy: str
    training: TrainConfig
    model: Any


def load_run(path: Path, **overrides: Any) -> RunConfig:
    """Read a training configuration; `overrides` that are not None replace its fields.

    Raises:
        ConfigurationError: The file cannot be read or does not fit.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding='utf-8'))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        line = ' '.join(str(error).split())
        raise ConfigurationError(f'{path}: cannot be read ({line})') from error
    try:
        return parse_run({**content, **{k: v for k, v in overrides.items() if v is not None}})
    except (ConfigurationError, TypeError) as error:
        raise ConfigurationError(f'{path}: {error}') from None


def parse_run(content: dict[str, Any]) -> RunConfig:
    """Read the content of a training configuration.

    Raises:
        ConfigurationError: It does not fit.
    """
    training = dict(content)
    policy = training.pop('policy', 'q_transformer')
    model = training.pop('model', {})
    known = isinstance(policy, str) and policy in LEARNERS
    require(known, 'policy', policy, ' or '.join(LEARNERS))
    given = [name for name in Spec().fields() if name in (model or {})]
    if given:
        raise ConfigurationError(f'model.{given[0]} comes from the data: leave it out')
    learner = _learner(policy)
    return RunConfig(
        policy,
        build(learner.TRAIN_CONFIG, training),
        build(learner.MODEL_CONFIG, model, 'model'),
    )


def make_trainer(
    run: RunConfig, replays: Sequence[Path], out: Path, *, resume: bool = False
) -> Trainer:
    """Make a network for the data, and its trainer.

    Args:
        run: The training.
        replays: Replay folders; more than one where the policy takes several bodies.
        out: Folder of the run.
        resume: Continue the run in it.

    Raises:
        CheckpointError: `out` is not empty and `resume` is not set, or the other way round.
        ConfigurationError: Network, data and configuration do not fit each other.
        ReplayError: A folder cannot be read.
    """
    check_run(out, resume=resume)
    if resume:
        recover_folder(out / 'last')
        theirs = read_config(out / 'last')['policy']
        require(run.policy == theirs, 'policy', run.policy, f'{theirs!r}, as the run in {out}')
    folders = [ReplayFolder(replay) for replay in replays]
    torch.manual_seed(run.training.seed)
    trainer: Trainer = _learner(run.policy).make_trainer(
        run.training, run.model, folders, out, resume=resume
    )
    return trainer


def _learner(policy: str) -> Any:
    return importlib.import_module(f'qt_core.learning.{LEARNERS[policy]}')
