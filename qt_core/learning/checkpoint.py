# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: a folder of safetensors and JSON. Nothing is ever unpickled.

config.json                what the policy is, its contract, how it was trained
model.safetensors          weights
sentences.safetensors      embeddings of the sentences it was trained on
README.md                  the model card

It is also a folder that `from_pretrained` of the network reads.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from qt_core.configuration import ConfigurationError, build
from qt_core.contract import RobotContract
from qt_core.instruction import SentenceEncoder
from qt_core.models.configuration import QTransformerConfig
from qt_core.models.pretrained import (
    POLICY,
    CheckpointError,
    load_network,
    load_tensors,
    read_config,
    recover_folder,
    replace_folder,
    save_tensors,
    start_folder,
    write_folder,
)
from qt_core.models.q_transformer import QRoboticTransformer
from qt_core.spec import Spec

__all__ = [
    'Checkpoint',
    'CheckpointError',
    'load_checkpoint',
    'load_tensors',
    'recover_folder',
    'replace_folder',
    'save_checkpoint',
    'save_tensors',
    'start_folder',
]


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A trained policy.

    Attributes:
        policy: Kind of policy: `q_transformer`.
        model: The network, in evaluation mode.
        contract: The contract it was trained under; None for an environment that is no robot.
        sentences: Sentences whose embeddings are stored with it.
        embeddings: (len(sentences), E) float32.
        sentence_model: Name of the sentence encoder.
        training: How it was trained, as plain JSON content.
    """

    policy: str
    model: QRoboticTransformer
    contract: RobotContract | None
    sentences: tuple[str, ...]
    embeddings: NDArray[np.float32]
    sentence_model: str
    training: dict[str, Any]

    @property
    def robot(self) -> RobotContract:
        """The contract.

        Raises:
            CheckpointError: It was trained in an environment that is no robot.
        """
        if self.contract is None:
            raise CheckpointError('the checkpoint has no contract: it was trained for no robot')
        return self.contract


def save_checkpoint(
    folder: Path, checkpoint: Checkpoint, weights: dict[str, torch.Tensor] | None = None
) -> None:
    """Write a checkpoint folder; an older one of that name is replaced once it is complete.

    Args:
        folder: Where to.
        checkpoint: What to write.
        weights: The network's weights; None to ask it.
    """
    contract = checkpoint.contract
    entries = {
        'policy': checkpoint.policy,
        'contract': None if contract is None else contract.to_text(),
        'sentence_model': checkpoint.sentence_model,
        'sentences': list(checkpoint.sentences),
        'training': checkpoint.training,
    }
    more = {'sentences.safetensors': {'embeddings': torch.tensor(checkpoint.embeddings)}}
    write_folder(folder, checkpoint.model, entries, _model_card(checkpoint), more, weights)


def load_checkpoint(folder: str | Path, device: torch.device | str = 'cpu') -> Checkpoint:
    """Read a checkpoint folder; one that `save_pretrained` wrote has no contract and no sentences.

    Raises:
        CheckpointError: It is not a checkpoint of this version, or is damaged.
    """
    folder = Path(folder)
    config = read_config(folder, POLICY)
    try:
        text = config.get('contract')
        contract = None if text is None else RobotContract.from_text(text, 'contract')
        sentences = tuple(config.get('sentences', ()))
        sentence_model, training = config.get('sentence_model', ''), config.get('training', {})
    except (TypeError, ConfigurationError) as error:
        raise CheckpointError(f'{folder}: damaged config.json ({error})') from error
    model = load_network(
        folder,
        config,
        lambda content: QRoboticTransformer(build(QTransformerConfig, content, 'model')),
    )
    if contract is not None and Spec.of(contract).fields() != model.config.fields():
        raise CheckpointError(f"{folder}: config.json's model does not fit its contract")
    embeddings = torch.zeros(0, model.config.text_dim)
    if sentences or (folder / 'sentences.safetensors').exists():
        embeddings = load_tensors(folder / 'sentences.safetensors').get('embeddings', embeddings)
    if embeddings.dim() != 2 or len(embeddings) != len(sentences):
        raise CheckpointError(f'{folder}/sentences.safetensors does not fit config.json')
    told = sentences and model.config.conditioning == 'film'
    if told and embeddings.shape[1] != model.config.text_dim:
        raise CheckpointError(f'{folder}/sentences.safetensors does not fit config.json')
    if model.config.conditioning == 'film' and sentence_model:
        model.sentence_encoder = SentenceEncoder(sentence_model)
        model.sentence_encoder.remember(sentences, embeddings.numpy())
    return Checkpoint(
        policy=config['policy'],
        model=model.to(device),
        contract=contract,
        sentences=sentences,
        embeddings=embeddings.numpy(),
        sentence_model=sentence_model,
        training=training,
    )


def _model_card(checkpoint: Checkpoint) -> str:
    parameters = sum(p.numel() for p in checkpoint.model.parameters())
    spec = checkpoint.model.config
    contract = checkpoint.contract
    robot = '' if contract is None else f' for {contract.name}'
    rate = '' if contract is None else f' at {contract.rate:g} Hz'
    encoder = (
        f' Sentences are embedded by {checkpoint.sentence_model}.' if checkpoint.sentences else ''
    )
    rows = '\n'.join(f'| {key} | {value} |' for key, value in checkpoint.training.items())
    return (
        f'# {checkpoint.policy}{robot}\n\n'
        f'{parameters:,} parameters; {spec.num_actions} action dimensions of '
        f'{spec.action_bins} bins{rate}.{encoder}\n\n'
        f'| training | |\n|---|---|\n{rows}\n'
    )
