# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A network in a folder, in the Hugging Face hub's layout. Nothing is ever unpickled.

config.json                what the network is and how it was trained
model.safetensors          weights
README.md                  the model card

A checkpoint (`qt_core.learning.checkpoint`) is such a folder with more in it.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from qt_core.checkpoint_contract import FORMAT
from qt_core.configuration import ConfigurationError, plain

if TYPE_CHECKING:
    from qt_core.models.q_transformer import QRoboticTransformer

VERSION = 2
POLICIES = ('q_transformer', 'decision_transformer', 'gato')
FILES = ('*.json', '*.safetensors', 'README.md')  # all that is ever fetched from the hub

Network = TypeVar('Network', bound=nn.Module)


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or written, and why."""


def save_pretrained(model: QRoboticTransformer, folder: str | Path) -> None:
    """Write a network; an older folder of that name is replaced once the new one is complete."""
    parameters = sum(p.numel() for p in model.parameters())
    entries = {'policy': model.policy, 'sentence_model': model.sentence_encoder.model_name}
    card = f'# {model.policy}\n\n{parameters:,} parameters.\n'
    write_folder(Path(folder), model, entries, card)


def from_pretrained(
    name: str | Path, *, revision: str | None = None, local_files_only: bool = False
) -> QRoboticTransformer:
    """Read a network from a folder, or fetch it from the hub.

    Args:
        name: A folder that `save_pretrained` or a training wrote, or `owner/name` on the hub.
        revision: Branch, tag or commit on the hub.
        local_files_only: Use what was fetched before; never ask the hub.

    Returns:
        The network in evaluation mode, on the CPU. It embeds sentences by the model it was trained
        with, and needs none for those it was trained on.

    Raises:
        CheckpointError: There is none of that name, or it is damaged or of another kind.
    """
    from qt_core.learning.checkpoint import load_checkpoint
    from qt_core.models.q_transformer import QRoboticTransformer

    folder = Path(name)
    if not folder.is_dir():
        folder = _fetch(str(name), revision, local_files_only)
    model = load_checkpoint(folder).model
    if not isinstance(model, QRoboticTransformer):
        raise CheckpointError(f'{name}: holds a {model.policy}, expected a q_transformer')
    return model


def write_folder(
    folder: Path,
    model: Any,
    entries: dict[str, Any],
    card: str,
    more: Mapping[str, dict[str, Tensor]] = MappingProxyType({}),
    weights: dict[str, Tensor] | None = None,
) -> None:
    """Write a network; an older folder of that name is replaced once the new one is complete.

    Args:
        folder: Where to.
        model: The network; see `qt_core.learning.checkpoint.Network`.
        entries: Of config.json, besides the network's configuration.
        card: The model card.
        more: File names and further tensors to write.
        weights: Its weights; None to ask it.
    """
    partial = start_folder(folder)
    config = {'format': FORMAT, 'version': VERSION, **entries, 'model': plain(model.config)}
    (partial / 'config.json').write_text(json.dumps(config, indent=1), encoding='utf-8')
    weights = model.state_dict() if weights is None else weights
    save_tensors(weights, partial / 'model.safetensors')
    model.save_files(partial)
    for name, tensors in more.items():
        save_tensors(tensors, partial / name)
    (partial / 'README.md').write_text(card, encoding='utf-8')
    replace_folder(partial, folder)


def read_config(folder: Path) -> dict[str, Any]:
    """Read config.json.

    Raises:
        CheckpointError: It is not one of this version, or of an unknown policy.
    """
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
    if config.get('policy') not in POLICIES:
        raise CheckpointError(f'{folder}: unknown policy {config.get("policy")!r}')
    return config


def load_network(
    folder: Path, config: dict[str, Any], make: Callable[[Any, Path], Network]
) -> Network:
    """Build the network of `config` and read its weights.

    Raises:
        CheckpointError: They do not fit each other, or a weight is not finite.
    """
    file = folder / 'model.safetensors'
    weights = load_tensors(file)
    held = sum(weight.nbytes for weight in weights.values())
    try:
        with torch.device('meta'):  # only its size: a damaged file must not exhaust memory
            empty = make(config['model'], folder)
        wanted = sum(weight.nbytes for weight in empty.state_dict().values())
        if wanted > held:
            raise CheckpointError(
                f'{file} does not fit: it has {held} bytes, and config.json is of a network of '
                f'{wanted}'
            )
        model = make(config['model'], folder)
    except (KeyError, TypeError, ConfigurationError) as error:
        raise CheckpointError(f'{folder}: damaged config.json ({error})') from error
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        line = ' '.join(str(error).split())
        raise CheckpointError(f'{file} does not fit: {line}') from error
    if not all(torch.isfinite(weight).all() for weight in model.parameters()):
        raise CheckpointError(f'{file}: weights are not finite')
    return model.eval()


def start_folder(folder: Path) -> Path:
    """Make the empty folder in which `folder` is written, to be put in its place when complete."""
    partial = folder.with_name(folder.name + '.partial')
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    return partial


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


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write a safetensors file."""
    # Copies, since the format has no tensors that share memory.
    save_file({k: v.detach().to('cpu', copy=True).contiguous() for k, v in tensors.items()}, path)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        CheckpointError: It cannot be read or is damaged.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        line = ' '.join(str(error).split())
        raise CheckpointError(f'{path}: damaged or truncated ({line})') from error


def _fetch(name: str, revision: str | None, local_files_only: bool) -> Path:
    """Fetch a repository of the hub; gives the local folder."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        fetched = snapshot_download(
            name,
            revision=revision,
            local_files_only=local_files_only,
            allow_patterns=list(FILES),
        )
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        line = ' '.join(str(error).split())
        raise CheckpointError(f'{name}: no such folder, nor on the hub ({line})') from error
    return Path(fetched)
