# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`qt_core` with the options of the public package."""

from __future__ import annotations

import importlib.metadata
import itertools
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from qt_core.learning.q_learner import QLearner
from qt_core.models.q_transformer import QRoboticTransformer
from qt_core.replay import ReplayEpisode, ReplayMemoryDataset, ReplayWriter, WindowBatch
from qt_core.spec import Camera, Spec

FRAMES, TEXT_DIM, DISCOUNT = 6, 768, 0.98


def versions() -> dict[str, str]:
    """Give the versions of what is measured."""
    return {name: importlib.metadata.version(name) for name in ('qt_ros', 'torch', 'accelerate')}


def _camera(side: int) -> Camera:
    return Camera(name='video', height=side, width=side)


def build(size: Any) -> QRoboticTransformer:
    """Build the model of a size; what theirs has fixed is set to the same value."""
    return QRoboticTransformer(
        **size.model,
        cameras=(_camera(size.image),),
        frames=FRAMES,
        text_dim=TEXT_DIM,
        token_learner_num_output_tokens=8,
        decoder_depth=2,
        dropout=0.1,
    )


def control(model: QRoboticTransformer, size: Any) -> Callable[[], object]:
    """Give a control step: one frame as a camera gives it in, bins out.

    Frames are noise, each unlike the one before: the hardest for a session, which starts from the
    bins of the step before.
    """
    model.eval()
    session = model.session(text_embeds=torch.randn(1, TEXT_DIM))
    shape = (16, size.image, size.image, 3)
    frames = itertools.cycle(np.random.default_rng(0).integers(0, 256, shape, np.uint8))
    return lambda: session.act({'video': next(frames)})


def training(
    model: QRoboticTransformer, dataset: ReplayMemoryDataset, batch: WindowBatch
) -> Callable[[], object]:
    """Give a gradient step of the learner, with the rates that theirs has by default."""
    learner = QLearner(
        model,
        dataset=dataset,
        num_train_steps=10_000,
        learning_rate=3e-4,
        batch_size=len(batch.bins),
        discount=DISCOUNT,
        gradient_clip=0.5,
        weight_decay=0.0,
        regenerative_rate=1e-3,
        target_decay=0.99,
        target_every=5,
        checkpoint_folder=tempfile.mkdtemp(),
    )
    return lambda: learner.train_step(batch)


def write(folder: Path, episodes: Sequence[Any]) -> None:
    """Write a replay folder."""
    first = episodes[0]
    spec = Spec(
        cameras=(_camera(first.images.shape[1]),),
        num_actions=first.bins.shape[1],
        action_bins=256,
    )
    text = {episode.sentence: episode.text for episode in episodes}
    folder.parent.mkdir(parents=True, exist_ok=True)
    with ReplayWriter(folder, spec, lambda asked: np.stack([text[s] for s in asked])) as writer:
        for episode in episodes:
            writer.add(
                ReplayEpisode(
                    images={'video': episode.images},
                    state=np.zeros((len(episode.images), 0), np.float32),
                    action=None,
                    bins=episode.bins,
                    reward=episode.reward,
                    terminal=True,
                    timeout=False,
                    instruction=episode.sentence,
                )
            )


def open_dataset(folder: Path, timesteps: int) -> ReplayMemoryDataset:
    """Open a folder, memory-mapped."""
    dataset = ReplayMemoryDataset(folder, num_timesteps=timesteps)
    return dataset.with_frames(FRAMES, discount=DISCOUNT)


def sample(dataset: ReplayMemoryDataset, indices: NDArray[np.int64]) -> WindowBatch:
    """Give a batch of uint8 frames; the model turns them into numbers."""
    return dataset.gather(indices)
