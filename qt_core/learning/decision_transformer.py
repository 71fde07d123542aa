# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Train a Decision Transformer, or clone behaviour, from a replay folder (Chen et al. 2021)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from qt_core.configuration import ConfigurationError, plain, require
from qt_core.embodiment import Embodiment
from qt_core.instruction import SentenceEncoder
from qt_core.learning.trainer import TrainConfig, Trainer, only
from qt_core.models.decision_transformer import DecisionTransformer, DecisionTransformerConfig
from qt_core.replay import ReplayFolder, SequenceDataset, WindowBatch, split_episodes
from qt_core.replay.selection import best_episodes


@dataclass(frozen=True, kw_only=True)
class DecisionTransformerTrainConfig(TrainConfig):
    """How a `DecisionTransformerTrainer` trains; the first fields are those of `TrainConfig`.

    The defaults are the paper's, for 100,000 steps; fewer steps want a shorter warm-up.

    Attributes:
        return_scale: What returns-to-go are divided by; 0 for the largest return in the data,
            whatever its sign.
        keep_best: Train on the episodes of highest return, as many as make up this share of all
            steps; 1 for all. Below 1 and without return conditioning this is filtered behaviour
            cloning.
    """

    learning_rate: float = 1e-4
    warmup_steps: int = 10_000
    schedule: str = 'constant'
    weight_decay: float = 1e-4
    gradient_clip: float = 0.25
    return_scale: float = 0.0
    keep_best: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.return_scale >= 0, 'return_scale', self.return_scale, 'zero or more')
        require(0 < self.keep_best <= 1, 'keep_best', self.keep_best, '0 < keep_best <= 1')


def left_padded(batch: WindowBatch, *, continuous: bool) -> dict[str, Any]:
    """Move each window's steps to its end: the newest step is the last one for all.

    Args:
        batch: Windows of a `SequenceDataset`, with their steps at the beginning.
        continuous: Whether actions are `batch.action`, and not `batch.bins`.

    Returns:
        What `DecisionTransformer.forward` takes: `mask` says which steps there are. The others
        repeat the window's first one. `images` and `text` only where there are any.

    Raises:
        ValueError: Continuous actions are wanted, and the batch has none.
    """
    if continuous and batch.action is None:
        raise ValueError('the batch has no continuous actions: use a SequenceDataset')
    steps = batch.valid.shape[1]
    pads = steps - batch.valid.sum(1, keepdim=True)
    place = torch.arange(steps, device=batch.valid.device) - pads  # (B, K), of each step
    mask, place = place >= 0, place.clamp(min=0)
    row = torch.arange(len(place), device=place.device).unsqueeze(1)
    inputs: dict[str, Any] = {
        'state': batch.state[row, place],
        'actions': (batch.action if continuous else batch.bins)[row, place],  # type: ignore[index]
        'returns': batch.returns[row, place],
        'timesteps': batch.start.unsqueeze(1) + place,
        'mask': mask,
    }
    if batch.images:
        inputs['images'] = {name: frames[row, place] for name, frames in batch.images.items()}
    if batch.text is not None:
        inputs['text'] = batch.text
    return inputs


def action_loss(predicted: Tensor, actions: Tensor, mask: Tensor) -> Tensor:
    """Compare predicted actions with those in the data.

    Bins: L = mean over steps and dimensions of -log p(a_i); continuous actions: of (â_i - a_i)².

    Args:
        predicted: (B, K, N, A) logits of bins, or (B, K, N) continuous actions.
        actions: (B, K, N) bins, or continuous actions.
        mask: (B, K) bool; only these steps count, whatever the others hold.

    Returns:
        Scalar, averaged over the steps there are and N; 0 where there are none.
    """
    predicted, actions = predicted[mask], actions[mask]
    count = max(1, actions.numel())
    if predicted.dim() == actions.dim():
        return (predicted - actions).square().sum() / count
    return F.cross_entropy(predicted.flatten(0, 1), actions.flatten(), reduction='sum') / count


def state_statistics(
    folder: ReplayFolder, episodes: Sequence[int], noise: float = 0.0
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Give mean and standard deviation (S,) of the states that a training sees.

    Over all steps of the episodes together, normalised as an `Embodiment` does; 1e-6 is added to
    the deviation. Where a number never changes it is 1: what is new of it later is then no larger
    than it is.

    Args:
        folder: A replay folder.
        episodes: Numbers of the episodes trained on.
        noise: Standard deviation of the noise that training adds.
    """
    body = Embodiment(folder.spec, folder.contract)

    def states() -> Iterator[NDArray[np.float64]]:
        for number in episodes:  # without the final observation, which no action follows
            yield body.normalise(folder.episode(number).state[:-1]).astype(np.float64)

    count = sum(len(state) for state in states())
    first = next(states())[0]
    mean = first + sum((state - first).sum(0) for state in states()) / count
    variance = sum(np.square(state - mean).sum(0) for state in states()) / count + noise**2
    return mean, np.where(variance > 0, np.sqrt(variance) + 1e-6, 1.0)


def measure(
    network: DecisionTransformer,
    folder: ReplayFolder,
    episodes: Sequence[int],
    config: DecisionTransformerTrainConfig,
) -> None:
    """Store in the network what it must know of the data: its states and its returns."""
    mean, deviation = state_statistics(folder, episodes, config.state_noise)
    returns = np.array([folder.episodes[number]['return'] for number in episodes], np.float64)
    scale = config.return_scale or float(np.abs(returns).max()) or 1.0
    for name, value in (
        ('state_mean', mean),
        ('state_std', deviation),
        ('return_scale', scale),
        ('best_return', returns.max()),
        ('low_return', min(0.0, returns.min())),
    ):
        buffer: Tensor = getattr(network, name)
        buffer.copy_(torch.as_tensor(value, dtype=buffer.dtype))


class DecisionTransformerTrainer(Trainer):
    """Trains a Decision Transformer.

    Args:
        network: The network.
        dataset: The data; its windows must be as long as the network's context.
        config: How to train.
        checkpoint_folder: Folder of the run.
        resume: Continue the run in it.

    Raises:
        CheckpointError: The folder holds a run and `resume` is not set, or holds none and it is.
        ConfigurationError: Network, data and configuration do not fit each other, the device or
            the run to resume.
    """

    network: DecisionTransformer

    def __init__(
        self,
        network: DecisionTransformer,
        *,
        dataset: SequenceDataset,
        config: DecisionTransformerTrainConfig,
        checkpoint_folder: str | Path = './checkpoints',
        resume: bool = False,
    ) -> None:
        _check(network.config, dataset)
        folder = dataset.folder
        if folder.sentence_model not in ('', network.sentence_encoder.model_name):
            # What the policy is told later must be embedded as its data were.
            network.sentence_encoder = SentenceEncoder(folder.sentence_model)
        self.continuous = network.config.actions == 'continuous'
        used = set(dataset.episodes)
        train, held_out = (
            [number for number in chosen if number in used]
            for chosen in split_episodes(folder, config.validation_fraction, config.seed)
        )
        if config.keep_best < 1:
            train = best_episodes(folder, config.keep_best, train)
            held_out = best_episodes(folder, config.keep_best, held_out) if held_out else []
        measure(network, folder, train, config)
        context = network.config.context
        super().__init__(
            network,
            train=dataset.with_frames(context, discount=1.0, episodes=train),
            validation=dataset.with_frames(context, discount=1.0, episodes=held_out)
            if held_out
            else None,
            config=config,
            checkpoint_folder=checkpoint_folder,
            resume=resume,
        )

    def loss(self, batch: WindowBatch) -> dict[str, Tensor]:
        """Compute `action_loss`, and of bins the share that was predicted as the most probable."""
        inputs = left_padded(batch, continuous=self.continuous)
        return _scalars(self.model(**inputs), inputs['actions'], inputs['mask'])

    def validate(self, batches: Iterator[WindowBatch]) -> dict[str, float]:
        """Measure the same on other episodes."""
        sums: dict[str, float] = {}
        steps = 0
        for batch in batches:
            inputs = left_padded(batch, continuous=self.continuous)
            scalars = _scalars(self.network(**inputs), inputs['actions'], inputs['mask'])
            count = int(inputs['mask'].sum())
            steps += count
            for name, value in scalars.items():
                sums[name] = sums.get(name, 0.0) + count * float(value)
        return {name: value / steps for name, value in sums.items()}


def _scalars(predicted: Tensor, actions: Tensor, mask: Tensor) -> dict[str, Tensor]:
    scalars = {'loss': action_loss(predicted, actions, mask)}
    if predicted.dim() > actions.dim():
        right = predicted.detach().argmax(-1) == actions
        scalars['accuracy'] = right[mask].float().mean()
    return scalars


def _check(model: DecisionTransformerConfig, dataset: SequenceDataset) -> None:
    """Refuse a model and data that do not fit each other.

    Raises:
        ConfigurationError: With all that differs, one line.
    """
    folder, ours = dataset.folder, plain(model)
    differences = [
        f'{name}: {ours[name]!r} != {value!r}'
        for name, value in plain(dataset.spec).items()
        if ours[name] != value
    ]
    if differences:
        raise ConfigurationError(
            f'the model does not fit {folder.folder}: {"; ".join(differences)}'
        )
    told = dataset.condition_on_text and folder.embeddings is not None
    if model.condition_on_text:
        allowed = f'false: {folder.folder} is used without sentences'
        require(told, 'model.condition_on_text', True, allowed)
    if model.condition_on_text and folder.embeddings is not None:
        width = folder.embeddings.shape[1]
        allowed = f'{width}, the width of the embeddings in {folder.folder}'
        require(model.text_dim == width, 'model.text_dim', model.text_dim, allowed)


TRAIN_CONFIG, MODEL_CONFIG = DecisionTransformerTrainConfig, DecisionTransformerConfig


def make_trainer(
    config: DecisionTransformerTrainConfig,
    model: DecisionTransformerConfig,
    folders: Sequence[ReplayFolder],
    out: Path,
    *,
    resume: bool,
) -> DecisionTransformerTrainer:
    """Make a network for the data in one folder, and its trainer; see `learning.run`."""
    folder = only(folders)
    told = model.condition_on_text and folder.embeddings is not None
    dataset = SequenceDataset(folder, model.context, told)
    network = DecisionTransformer(model.fitted(folder.spec))
    return DecisionTransformerTrainer(
        network, dataset=dataset, config=config, checkpoint_folder=out, resume=resume
    )
