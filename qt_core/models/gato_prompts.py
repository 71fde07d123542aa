# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Steps that a policy is shown before it acts, beside the weights of a checkpoint.

prompts.json          body and sentence of each, and number of its first step
prompts.safetensors   its images, states and bins
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qt_core.configuration import build, plain, require
from qt_core.models.pretrained import CheckpointError, load_tensors, save_tensors
from qt_core.spec import Spec

TABLE, ARRAYS = 'prompts.json', 'prompts.safetensors'


@dataclass(frozen=True)
class Prompt:
    """Steps of one episode that a policy is shown before it acts.

    Attributes:
        body: Number of the body they were made with.
        sentence: What was asked for.
        images: Camera name to (T, H, W, C) uint8.
        state: (T, S) float32, as a network reads it.
        bins: (T, N) int64.
        first: Number of the first of them in its episode.
    """

    body: int
    sentence: str
    images: Mapping[str, NDArray[np.uint8]]
    state: NDArray[np.float32]
    bins: NDArray[np.int64]
    first: int = 0

    @property
    def size(self) -> int:
        """Bytes of its arrays."""
        images = sum(frames.nbytes for frames in self.images.values())
        return images + self.state.nbytes + self.bins.nbytes


def save_prompts(prompts: Sequence[Prompt], folder: Path) -> None:
    """Write the prompts of a checkpoint into its folder; of none, nothing."""
    if not prompts:
        return
    table = [plain(_Entry(prompt.body, prompt.sentence, prompt.first)) for prompt in prompts]
    (folder / TABLE).write_text(json.dumps(table, indent=1), encoding='utf-8')
    tensors = {}
    for number, prompt in enumerate(prompts):
        tensors[f'{number}.state'] = torch.from_numpy(prompt.state)
        tensors[f'{number}.bins'] = torch.from_numpy(prompt.bins).short()
        for name, frames in prompt.images.items():
            tensors[f'{number}.images.{name}'] = torch.from_numpy(frames)
    save_tensors(tensors, folder / ARRAYS)


def load_prompts(folder: Path, bodies: Sequence[Spec]) -> tuple[Prompt, ...]:
    """Read the prompts of a checkpoint; none where it has no such files.

    Raises:
        CheckpointError: A file is damaged, or does not fit the bodies.
    """
    if not (folder / TABLE).exists():
        return ()
    try:
        table = json.loads((folder / TABLE).read_text(encoding='utf-8'))
        entries = [build(_Entry, content) for content in table]
        specs = [bodies[entry.body] for entry in entries]
    except (OSError, ValueError, TypeError, IndexError, RecursionError) as error:
        raise CheckpointError(f'{folder}/{TABLE}: damaged ({error})') from error
    tensors = load_tensors(folder / ARRAYS)
    return tuple(
        _prompt(folder, number, entry, spec, tensors)
        for number, (entry, spec) in enumerate(zip(entries, specs, strict=True))
    )


@dataclass(frozen=True)
class _Entry:
    """What is in the table of one prompt."""

    body: int
    sentence: str
    first: int

    def __post_init__(self) -> None:
        for name in ('body', 'first'):
            require(getattr(self, name) >= 0, name, getattr(self, name), 'zero or more')


def _prompt(
    folder: Path, number: int, entry: _Entry, spec: Spec, tensors: Mapping[str, Tensor]
) -> Prompt:
    """Check one prompt's tensors."""
    where = f'{folder}/{ARRAYS}'

    def found(name: str, kind: torch.dtype, *shape: int) -> Any:
        tensor = tensors.get(f'{number}.{name}')
        if tensor is None or tensor.dtype != kind or tensor.shape[1:] != shape or not len(tensor):
            raise CheckpointError(f'{where} does not fit config.json: {number}.{name}')
        return tensor.numpy()

    prompt = Prompt(
        body=entry.body,
        sentence=entry.sentence,
        images={
            camera.name: found(
                f'images.{camera.name}', torch.uint8, camera.height, camera.width, camera.channels
            )
            for camera in spec.cameras
        },
        state=found('state', torch.float32, spec.state_dim),
        bins=found('bins', torch.int16, spec.num_actions).astype(np.int64),
        first=entry.first,
    )
    lengths = {len(frames) for frames in prompt.images.values()}
    lengths |= {len(prompt.state), len(prompt.bins)}
    inside = prompt.bins.min() >= 0 and prompt.bins.max() < spec.action_bins
    if len(lengths) > 1 or not inside or not np.isfinite(prompt.state).all():
        raise CheckpointError(f'{where}: prompt {number} is damaged')
    return prompt
