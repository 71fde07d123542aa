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

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from qt_core.configuration import ConfigurationError
from qt_core.contract import RobotContract
from qt_core.instruction import SentenceEncoder
from qt_core.models.pretrained import (
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
from qt_core.spec import Spec

__all__ = [
    'Checkpoint',
    'CheckpointError',
    'Network',
    'load_checkpoint',
    'load_tensors',
    'recover_folder',
    'replace_folder',
    'save_checkpoint',
    'save_tensors',
    'start_folder',
]


NETWORKS = {
    'q_transformer': 'q_transformer.QRoboticTransformer',
    'decision_transformer': 'decision_transformer.DecisionTransformer',
    'gato': 'gato.Gato',
}


class Network(Protocol):
    """What a checkpoint asks of a network, an nn.Module."""

    @property
    def policy(self) -> str:
        """Kind of policy, a key of `NETWORKS`."""
        ...

    @property
    def config(self) -> Any:
        """A frozen dataclass with `specs`, and `sentence_dim`: E of the sentences, if any."""
        ...

    @classmethod
    def from_config(cls, content: Any, folder: Path) -> Self:
        """Build one from the plain content of its `config`.

        Args:
            content: What config.json holds.
            folder: Where `save_files` has written.

        Raises:
            ConfigurationError: The content does not fit.
            CheckpointError: A file is damaged.
        """
        ...

    def save_files(self, folder: Path) -> None:
        """Write what there is besides weights and configuration."""
        ...

    def eval(self) -> Any:
        """Set evaluation mode."""
        ...

    def to(self, device: torch.device | str) -> Any:
        """Bring it to a device."""
        ...

    def parameters(self) -> Iterator[nn.Parameter]:
        """Give the weights."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Give weights and buffers by name."""
        ...

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> Any:
        """Take weights and buffers."""
        ...


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A trained policy.

    Attributes:
        model: The network, in evaluation mode.
        contract: The contract it was trained under; None for an environment that is no robot. Of
            a network with several bodies, that of the first robot.
        sentences: Sentences whose embeddings are stored with it.
        embeddings: (len(sentences), E) float32.
        sentence_model: Name of the sentence encoder.
        training: How it was trained, as plain JSON content.
    """

    model: Any
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
        'policy': checkpoint.model.policy,
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
    config = read_config(folder)
    try:
        text = config.get('contract')
        contract = None if text is None else RobotContract.from_text(text, 'contract')
        sentences = tuple(config.get('sentences', ()))
        sentence_model, training = config.get('sentence_model', ''), config.get('training', {})
    except (TypeError, ConfigurationError) as error:
        raise CheckpointError(f'{folder}: damaged config.json ({error})') from error
    module, name = NETWORKS[config['policy']].split('.')
    network = getattr(import_module(f'qt_core.models.{module}'), name)
    model: Any = load_network(folder, config, network.from_config)
    if contract is not None and Spec.of(contract) not in model.config.specs:
        raise CheckpointError(f"{folder}: config.json's model does not fit its contract")
    width = model.config.sentence_dim
    embeddings = torch.zeros(0, width or 0)
    if sentences or (folder / 'sentences.safetensors').exists():
        embeddings = load_tensors(folder / 'sentences.safetensors').get('embeddings', embeddings)
    if embeddings.dim() != 2 or len(embeddings) != len(sentences):
        raise CheckpointError(f'{folder}/sentences.safetensors does not fit config.json')
    if sentences and width is not None and embeddings.shape[1] != width:
        raise CheckpointError(f'{folder}/sentences.safetensors does not fit config.json')
    if width is not None and sentence_model:
        model.sentence_encoder = SentenceEncoder(sentence_model)
        model.sentence_encoder.remember(sentences, embeddings.numpy())
    return Checkpoint(
        model=model.to(device),
        contract=contract,
        sentences=sentences,
        embeddings=embeddings.numpy(),
        sentence_model=sentence_model,
        training=training,
    )


def _model_card(checkpoint: Checkpoint) -> str:
    parameters = sum(p.numel() for p in checkpoint.model.parameters())
    bodies = '; '.join(
        f'{spec.num_actions} action dimensions of {spec.action_bins} bins'
        for spec in checkpoint.model.config.specs
    )
    contract = checkpoint.contract
    robot = '' if contract is None else f' for {contract.name}'
    rate = '' if contract is None else f' at {contract.rate:g} Hz'
    encoder = (
        f' Sentences are embedded by {checkpoint.sentence_model}.' if checkpoint.sentences else ''
    )
    rows = '\n'.join(f'| {key} | {value} |' for key, value in checkpoint.training.items())
    return (
        f'# {checkpoint.model.policy}{robot}\n\n'
        f'{parameters:,} parameters; {bodies}{rate}.{encoder}\n\n'
        f'| training | |\n|---|---|\n{rows}\n'
    )
