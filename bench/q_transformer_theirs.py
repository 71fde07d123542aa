# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The public package `q-transformer`, as its README uses it; runs in its own virtual environment.

Where the package stands in its own way, the bench goes around it and does not count the cost:
building the model loads T5, of which a stand-in takes the place; the folder is written here, as
`Agent` would, because `Agent` needs T5 too.
"""

from __future__ import annotations

import importlib.metadata
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.lib.format import open_memmap
from numpy.typing import NDArray
from torch.utils.data import default_collate

FRAMES, TEXT_DIM = 6, 768
CLASSES = 1000  # of the README's `vit`; a layer that nothing uses
PACKAGES = (
    *('q-transformer', 'torch', 'accelerate', 'adam-atan2-pytorch'),
    *('classifier-free-guidance-pytorch', 'ema-pytorch', 'hyper-connections', 'x-transformers'),
)


class NoTextEncoder:
    """Takes T5's place: sentences are given as embeddings, so that none is ever embedded."""

    dim_latent = TEXT_DIM

    def __init__(self, name: str | None, text_embed_pad_value: float = 0.0) -> None:
        pass


# The modules themselves are replaced: importing them needs a torchvision built for this torch.
for name, adapter in (
    ('t5', 'T5Adapter'),
    ('open_clip', 'OpenClipAdapter'),
    ('bge', 'BGEAdapter'),
):
    path = f'classifier_free_guidance_pytorch.{name}'
    sys.modules[path] = ModuleType(path)
    setattr(sys.modules[path], adapter, NoTextEncoder)

from q_transformer import QLearner, QRoboticTransformer, ReplayMemoryDataset  # noqa: E402


def versions() -> dict[str, str]:
    """Give the versions of what is measured."""
    return {name: importlib.metadata.version(name) for name in PACKAGES}


def build(size: Any) -> QRoboticTransformer:
    """Build the model of a size."""
    options = {**size.model, 'vit': {**size.model['vit'], 'num_classes': CLASSES}}
    head = {
        'attn_heads': size.model['heads'],
        'attn_dim_head': size.model['dim_head'],
        'attn_depth': 2,
    }
    return QRoboticTransformer(**options, q_head_attn_kwargs=head)


def control(model: QRoboticTransformer, size: Any) -> Callable[[], object]:
    """Give a control step: six frames, already float and stacked, in; bins out."""
    model.eval()
    video = torch.randn(1, 3, FRAMES, size.image, size.image)
    text = torch.randn(1, TEXT_DIM)
    return lambda: model.get_optimal_actions(video, text_embeds=text)


def training(
    model: QRoboticTransformer, dataset: ReplayMemoryDataset, batch: Sequence[Any]
) -> Callable[[], object]:
    """Give a gradient step, with the calls that `QLearner.forward` makes for one."""
    learner = QLearner(
        model,
        dataset=dataset,
        num_train_steps=1,
        learning_rate=3e-4,
        batch_size=1,
        checkpoint_folder=tempfile.mkdtemp(),
    )
    learner.model.train()
    learner.ema_model.train()

    def step() -> None:
        learner.optimizer.zero_grad()
        with learner.accelerator.autocast():
            loss, _ = learner.learn(*batch, min_reward=0.0)
            learner.accelerator.backward(loss)
        learner.accelerator.clip_grad_norm_(learner.model.parameters(), learner.max_grad_norm)
        learner.optimizer.step()
        learner.ema_model.update()

    return step


def write(folder: Path, episodes: Sequence[Any]) -> None:
    """Write the files that `Agent` writes, without steps that were never taken."""
    folder.mkdir(parents=True)
    steps, actions = episodes[0].bins.shape
    side = episodes[0].images.shape[1]
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {
        'states': ('float32', (3, FRAMES, side, side)),
        'actions': ('int', (actions,)),
        'rewards': ('float32', ()),
        'dones': ('bool', ()),
        'text_embeds': ('float32', (TEXT_DIM,)),
    }
    maps = {
        name: open_memmap(
            str(folder / f'{name}.memmap.npy'), 'w+', kind, (len(episodes), steps, *shape)
        )
        for name, (kind, shape) in shapes.items()
    }
    for number, episode in enumerate(episodes):
        pixels = episode.images.astype(np.float32).transpose(3, 0, 1, 2) / 127.5 - 1
        for step in range(steps):
            seen = np.maximum(np.arange(step - FRAMES + 1, step + 1), 0)
            maps['states'][number, step] = pixels[:, seen]
        maps['actions'][number] = episode.bins
        maps['rewards'][number] = episode.reward
        maps['dones'][number, -1] = True
        maps['text_embeds'][number] = episode.text
    for array in maps.values():
        array.flush()


def open_dataset(folder: Path, timesteps: int) -> ReplayMemoryDataset:
    """Open a folder; this copies it into memory, before any clock runs."""
    return ReplayMemoryDataset(str(folder), num_timesteps=timesteps)


def sample(dataset: ReplayMemoryDataset, indices: NDArray[np.int64]) -> Any:
    """Give a batch, as a `DataLoader` without workers makes one."""
    return default_collate([dataset[int(index)] for index in indices])
