# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: a folder of safetensors and JSON. Nothing is ever unpickled.

config.json                what the policy is, its contract, how it was trained
model.safetensors          weights
sentences.safetensors      embeddings of the sentences it was trained on
README.md                  the model card
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from qt_core.configuration import ConfigurationError, build, plain
from qt_core.contract import RobotContract
from qt_core.models.q_transformer import QRoboticTransformer, QTransformerConfig

FORMAT = 'qt-checkpoint'
VERSION = 1


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or written, and why."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A trained policy.

    Attributes:
        policy: Kind of policy: `q_transformer`.
        model: The network, in evaluation mode.
        contract: The contract it was trained under.
        sentences: Sentences whose embeddings are stored with it.
        embeddings: (len(sentences), E) float32.
        sentence_model: Name of the sentence encoder.
        training: How it was trained, as plain JSON content.
    """

    policy: str
    model: QRoboticTransformer
    contract: RobotContract
    sentences: tuple[str, ...]
    embeddings: NDArray[np.float32]
    sentence_model: str
    training: dict[str, Any]


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint folder; an older one of that name is replaced once it is complete."""
    partial = folder.with_name(folder.name + '.partial')
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    config = {
        'format': FORMAT,
        'version': VERSION,
        'policy': checkpoint.policy,
        'model': plain(checkpoint.model.config),
        'contract': checkpoint.contract.to_text(),
        'sentence_model': checkpoint.sentence_model,
        'sentences': list(checkpoint.sentences),
        'training': checkpoint.training,
    }
    (partial / 'config.json').write_text(json.dumps(config, indent=1), encoding='utf-8')
    weights = {k: v.detach().cpu().contiguous() for k, v in checkpoint.model.state_dict().items()}
    save_file(weights, partial / 'model.safetensors')
    embeddings = torch.tensor(checkpoint.embeddings)
    save_file({'embeddings': embeddings}, partial / 'sentences.safetensors')
    (partial / 'README.md').write_text(_model_card(checkpoint), encoding='utf-8')
    replace_folder(partial, folder)


def load_checkpoint(folder: str | Path, device: torch.device | str = 'cpu') -> Checkpoint:
    """Read a checkpoint folder.

    Raises:
        CheckpointError: It is not a checkpoint of this version, or is damaged.
    """
    folder = Path(folder)
    try:
        config = json.loads((folder / 'config.json').read_text(encoding='utf-8'))
    except (OSError, ValueError) as error:
        raise CheckpointError(f'{folder}: not a checkpoint (config.json: {error})') from error
    if not isinstance(config, dict):
        raise CheckpointError(f'{folder}: not a checkpoint (config.json holds no object)')
    if config.get('format') != FORMAT or config.get('version') != VERSION:
        raise CheckpointError(
            f'{folder}: format {config.get("format")!r} version {config.get("version")!r}, '
            f'expected {FORMAT!r} version {VERSION}'
        )
    if config.get('policy') != 'q_transformer':
        raise CheckpointError(f'{folder}: unknown policy {config.get("policy")!r}')
    try:
        contract = RobotContract.from_text(config['contract'], 'contract')
        model = QRoboticTransformer(build(QTransformerConfig, config['model'], 'model'), contract)
        sentences = tuple(config['sentences'])
        sentence_model, training = config['sentence_model'], config['training']
    except (KeyError, TypeError, ConfigurationError) as error:
        raise CheckpointError(f'{folder}: damaged config.json ({error})') from error
    try:
        model.load_state_dict(load_tensors(folder / 'model.safetensors'))
    except RuntimeError as error:
        line = ' '.join(str(error).split())
        raise CheckpointError(f'{folder}/model.safetensors does not fit: {line}') from error
    if not all(torch.isfinite(weight).all() for weight in model.parameters()):
        raise CheckpointError(f'{folder}/model.safetensors: weights are not finite')
    embeddings = load_tensors(folder / 'sentences.safetensors').get('embeddings')
    if embeddings is None or embeddings.shape != (len(sentences), model.config.text_width):
        raise CheckpointError(f'{folder}/sentences.safetensors does not fit config.json')
    return Checkpoint(
        policy=config['policy'],
        model=model.to(device).eval(),
        contract=contract,
        sentences=sentences,
        embeddings=embeddings.numpy(),
        sentence_model=sentence_model,
        training=training,
    )


def replace_folder(partial: Path, folder: Path) -> None:
    """Put `partial` in the place of `folder`; after a crash in between, see `recover_folder`."""
    recover_folder(folder)
    old = folder.with_name(folder.name + '.old')
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(partial, folder)
    shutil.rmtree(old, ignore_errors=True)


def recover_folder(folder: Path) -> None:
    """Bring back a folder that a crash has left as `.old`."""
    old = folder.with_name(folder.name + '.old')
    if old.exists() and not folder.exists():
        os.replace(old, folder)


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read a safetensors file.

    Raises:
        CheckpointError: It cannot be read or is damaged.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        line = ' '.join(str(error).split())
        raise CheckpointError(f'{path}: damaged or truncated ({line})') from error


def _model_card(checkpoint: Checkpoint) -> str:
    parameters = sum(p.numel() for p in checkpoint.model.parameters())
    rows = '\n'.join(f'| {key} | {value} |' for key, value in checkpoint.training.items())
    return (
        f'# {checkpoint.policy} for {checkpoint.contract.name}\n\n'
        f'{parameters:,} parameters; {checkpoint.contract.action.dimensions} action dimensions of '
        f'{checkpoint.contract.action.bins} bins at {checkpoint.contract.rate:g} Hz. '
        f'Sentences are embedded by {checkpoint.sentence_model}.\n\n'
        f'| training | |\n|---|---|\n{rows}\n'
    )
