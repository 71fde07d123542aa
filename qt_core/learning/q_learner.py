# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Learn the values of a Q-Transformer from a replay folder (Chebotar et al. 2023)."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qt_core.configuration import ConfigurationError, plain, require
from qt_core.instruction import SentenceEncoder
from qt_core.learning.calibration import calibration, expected_calibration_error
from qt_core.learning.devices import gathered, placed
from qt_core.learning.losses import (
    autoregressive_targets,
    check_returns,
    conservative_loss,
    hl_gauss_loss,
    independent_targets,
    n_step_returns,
    regenerate_,
    temporal_difference_loss,
)
from qt_core.learning.trainer import TrainConfig, Trainer, only, part
from qt_core.models.configuration import QTransformerConfig
from qt_core.models.q_transformer import QRoboticTransformer
from qt_core.replay import ReplayFolder, ReplayMemoryDataset, WindowBatch, split_episodes


@dataclass(frozen=True, kw_only=True)
class QLearnerConfig(TrainConfig):
    """How a `QLearner` learns; the first fields are those of `TrainConfig`.

    Attributes:
        discount: γ per control step.
        num_timesteps: Steps of each window that are trained on, the newest; 0 for the dataset's.
        n_step: Rewards summed over time before a value takes over; at most num_timesteps.
        n_step_actions: Action dimensions looked ahead; see `autoregressive_targets`.
        monte_carlo: Whether the return that was observed is a lower bound of every target. Where
            rewards are random that is optimistic: one lucky return raises all targets before it.
        conservative_weight: Weight of the conservative term against the TD term. The value of a
            bin that makes up a share p of the data tends to p / (p + weight·(1 - p) / (A - 1)) of
            its return: at A - 1, to p of it.
        target_decay: The target network keeps this share of itself at each of its updates.
        target_every: Steps between its updates.
        regenerative_rate: After each step weights move towards their initial values by this times
            the learning rate (L2-init); 0 is off.
        hl_gauss_sigma_ratio: With value bins, the width of a target in widths of a bin.
    """

    discount: float = 0.98
    num_timesteps: int = 0
    n_step: int = 1
    n_step_actions: int = 1
    monte_carlo: bool = True
    conservative_weight: float = 1.0
    target_decay: float = 0.99
    target_every: int = 1
    regenerative_rate: float = 0.0
    hl_gauss_sigma_ratio: float = 0.75

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ('n_step', 'n_step_actions', 'target_every', 'hl_gauss_sigma_ratio'):
            require(getattr(self, name) > 0, name, getattr(self, name), 'a positive number')
        for name in ('num_timesteps', 'conservative_weight', 'regenerative_rate'):
            require(getattr(self, name) >= 0, name, getattr(self, name), 'zero or more')
        require(0 < self.discount <= 1, 'discount', self.discount, '0 < discount <= 1')
        require(0 <= self.target_decay < 1, 'target_decay', self.target_decay, '0 <= decay < 1')
        moves = self.regenerative_rate * self.learning_rate <= 1
        require(moves, 'regenerative_rate', self.regenerative_rate, 'at most 1 / learning_rate')


def q_loss(
    model: nn.Module,
    target: QRoboticTransformer,
    batch: WindowBatch,
    config: QLearnerConfig,
    order: list[int] | None = None,
) -> dict[str, Tensor]:
    """Compute the loss and what it is made of.

    The target network sees frames 0..F-1 for the maxima over the next dimension and frames 1..F
    for the step after; each frame is encoded once. Where there are two critics, the smaller of
    their values makes the targets, and each critic is regressed to them.

    Args:
        model: The network in training; it is only called.
        target: The target network.
        batch: The data.
        config: How to learn.
        order: N numbers, the order in which the action dimensions are decoded; None for 0..N-1.

    Returns:
        Scalars: `loss`, `td`, `conservative`, `q_taken`, `q_best`.
    """
    targets = q_targets(target, batch, config, order)
    images = {name: frames[:, :-1] for name, frames in batch.images.items()}
    logits = model(images, batch.state[:, :-1], batch.text, batch.bins, order)
    q = target.values(logits).flatten(0, 1)  # a function of the logits alone: no weights in it
    low, high = target.config.return_range
    critics = len(logits)
    bins = batch.bins if order is None else batch.bins[..., order]
    taken, valid = bins.repeat(critics, 1, 1), batch.valid.repeat(critics, 1)
    targets = targets.repeat(critics, 1, 1)
    if target.config.value_bins:
        chosen = taken[..., None, None].expand(*taken.shape, 1, logits.shape[-1])
        chosen = logits.flatten(0, 1).gather(-2, chosen).squeeze(-2)
        ratio = config.hl_gauss_sigma_ratio
        td = hl_gauss_loss(chosen, targets, valid, low, high, ratio)
    else:
        td = temporal_difference_loss(q, taken, targets, valid, high - low)
    conservative = conservative_loss(q, taken, valid, low, high - low)
    share = valid / (valid.sum().clamp(min=1) * taken.shape[-1])  # of each valid step's dimensions
    return {
        'loss': td + config.conservative_weight * conservative,
        'td': td.detach(),
        'conservative': conservative.detach(),
        'q_taken': (q.detach().gather(-1, taken.unsqueeze(-1)).squeeze(-1).sum(-1) * share).sum(),
        'q_best': (q.detach().amax(-1).sum(-1) * share).sum(),
    }


@torch.no_grad()
def q_targets(
    target: QRoboticTransformer,
    batch: WindowBatch,
    config: QLearnerConfig,
    order: list[int] | None = None,
) -> Tensor:
    """Compute the targets (B, F, N) of all action dimensions, in the order of decoding."""
    tokens = target.encode(batch.images, batch.state, batch.text)
    single = target.config.head == 'single'
    ahead = batch.bins if single else batch.bins[..., :0]
    after = target.decode(tokens[:, 1:], ahead, order, past=_next_bins(batch))
    bootstrap = target.values(after).amin(0).amax(-1)  # (B, F, N), or (B, F, 1)
    returns = batch.returns if config.monte_carlo else None
    last = n_step_returns(
        batch.reward, batch.terminal, bootstrap, batch.length, config.discount, config.n_step
    )
    if single:
        return independent_targets(last, returns)
    now = target.decode(tokens[:, :-1], batch.bins, order)
    q = target.values(now).amin(0)
    return autoregressive_targets(q, last[..., 0], returns, config.n_step_actions)


def _next_bins(batch: WindowBatch) -> Tensor:
    """Give the bins (B, F, N) executed at frames 1..F; at the last frame none is known yet.

    A step's own bins are never part of what it remembers, so that any value does there.
    """
    return torch.cat([batch.bins[:, 1:], batch.bins[:, -1:]], dim=1)


class QLearner(Trainer):
    """Trains a Q-Transformer; call it to run.

    The weights that checkpoints hold are the target network's: an average over the last steps of
    the trained ones, which the model itself holds.

    Args:
        model: The network.
        dataset: The data; its windows are made to hold as many frames as the model looks at.
        checkpoint_folder: Folder of the run.
        resume: Continue the run in it.
        config: How to learn; or give, or change, its fields by keyword:
        options: Fields of `QLearnerConfig`.

    Raises:
        CheckpointError: The folder holds a run and `resume` is not set, or holds none and it is.
        ConfigurationError: Model, data and configuration do not fit each other, the device or the
            run to resume.
    """

    network: QRoboticTransformer
    config: QLearnerConfig

    def __init__(
        self,
        model: QRoboticTransformer,
        *,
        dataset: ReplayMemoryDataset,
        checkpoint_folder: str | Path = './checkpoints',
        resume: bool = False,
        config: QLearnerConfig | None = None,
        **options: Any,
    ) -> None:
        if config is None:
            config = QLearnerConfig(**options)
        elif options:
            config = dataclasses.replace(config, **options)
        config = dataclasses.replace(
            config, num_timesteps=config.num_timesteps or dataset.num_timesteps
        )
        _check(model, dataset, config)
        train, held_out = split_episodes(dataset.folder, config.validation_fraction, config.seed)
        encoder = dataset.folder.sentence_model
        if encoder not in ('', model.sentence_encoder.model_name):
            # What the policy is told later must be embedded as its data were.
            model.sentence_encoder = SentenceEncoder(encoder)
        self.target = copy.deepcopy(model).requires_grad_(False).eval()
        self._initial: list[Tensor] | None = None
        if config.regenerative_rate:
            self._initial = [weight.detach().clone() for weight in model.parameters()]
        windows = [
            ReplayMemoryDataset(
                dataset.folder,
                config.num_timesteps,
                model.config.condition_on_text,
                discount=config.discount,
                frames=model.config.frames,
                episodes=[number for number in dataset.episodes if number in set(chosen)],
            )
            for chosen in (train, held_out)
        ]
        super().__init__(
            model,
            train=windows[0],
            validation=windows[1] if len(windows[1]) else None,
            config=config,
            checkpoint_folder=checkpoint_folder,
            resume=resume,
        )
        device = self.accelerator.device
        self.target.to(device)
        if self._initial is not None:
            weights = zip(self._initial, self.network.parameters(), strict=True)
            self._initial = [placed(initial, weight) for initial, weight in weights]
        self._sentences: Tensor | None = None
        if model.config.condition_on_text and model.config.conditioning == 'cross_attention':
            self._sentences = model.embed_texts(dataset.folder.instructions).to(device)
            width = self._sentences.shape[-1]
            allowed = f"{width}, the width of {encoder}'s tokens"
            require(
                model.config.text_dim == width, 'model.text_dim', model.config.text_dim, allowed
            )

    __call__ = Trainer.run

    def loss(self, batch: WindowBatch) -> dict[str, Tensor]:
        """Compute `q_loss` under a random order of the dimensions where the model takes one."""
        order = None
        if self.network.config.random_order:
            dimensions = self.network.config.num_actions
            order = torch.randperm(dimensions).tolist()
        return q_loss(self.model, self.target, self._told(batch), self.config, order)

    @torch.no_grad()
    def after_step(self) -> None:
        """Move weights towards their initial values, and the target network towards them."""
        weights = list(self.network.parameters())
        if self._initial is not None:
            rate = self.optimizer.param_groups[0]['lr'] * self.config.regenerative_rate
            regenerate_(weights, self._initial, rate)
        updates, rest = divmod(self.step, self.config.target_every)
        if rest:
            return
        decay = min(self.config.target_decay, (1 + updates) / (10 + updates))  # faster at first
        trained = [gathered(weight) for weight in weights]
        torch._foreach_lerp_(list(self.target.parameters()), trained, 1 - decay)
        for kept, now in zip(self.target.buffers(), self.network.buffers(), strict=True):
            kept.copy_(now)

    def validate(self, batches: Iterator[WindowBatch]) -> dict[str, float]:
        """Measure the target network's TD error and how well its values foretell returns."""
        errors: list[float] = []
        predicted, observed = [], []
        for batch in batches:
            told = self._told(batch)
            errors.append(float(q_loss(self.target, self.target, told, self.config)['td']))
            images = {name: frames[:, :-1] for name, frames in told.images.items()}
            logits = self.target(images, told.state[:, :-1], told.text, told.bins)
            q = self.target.values(logits).amin(0)[..., -1, :]
            taken = q.gather(-1, told.bins[..., -1:]).squeeze(-1)
            predicted.append(taken[told.valid].cpu())
            observed.append(told.returns[told.valid].cpu())
        buckets = calibration(torch.cat(predicted).numpy(), torch.cat(observed).numpy())
        return {
            'td': sum(errors) / len(errors),
            'calibration_error': expected_calibration_error(buckets),
        }

    def deployed(self) -> QRoboticTransformer:
        """Give the target network."""
        return self.target

    def extra_state(self) -> dict[str, Tensor]:
        """Give the target network's weights, and the initial ones where they are in use."""
        state = {f'target.{name}': value for name, value in self.target.state_dict().items()}
        for index, weight in enumerate(self._initial or ()):
            state[f'initial.{index}'] = weight
        return state

    def load_extra_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Take back what `extra_state` gave."""
        self.target.load_state_dict(part(tensors, 'target'))
        if self._initial is not None:
            initial = part(tensors, 'initial')
            self._initial = [initial[str(index)] for index in range(len(self._initial))]

    def _told(self, batch: WindowBatch) -> WindowBatch:
        """Put tokens in the place of the sentences' embeddings where the model reads those."""
        if self._sentences is None:
            return batch
        return dataclasses.replace(batch, text=self._sentences[batch.instruction])


def _check(
    model: QRoboticTransformer, dataset: ReplayMemoryDataset, config: QLearnerConfig
) -> None:
    """Refuse a model, data and configuration that do not fit each other.

    Raises:
        ConfigurationError: With all that differs, one line.
    """
    ours, folder = model.config, dataset.folder
    theirs = plain(dataset.spec)
    differences = [
        f'{name}: {value!r} != {theirs[name]!r}'
        for name, value in plain(ours).items()
        if name in theirs and value != theirs[name]
    ]
    if differences:
        raise ConfigurationError(
            f'the model does not fit {folder.folder}: {"; ".join(differences)}'
        )
    if ours.condition_on_text:
        require(
            folder.embeddings is not None and dataset.condition_on_text,
            'model.condition_on_text',
            True,
            f'false: {folder.folder} is used without sentences',
        )
    if ours.condition_on_text and ours.conditioning == 'film' and folder.embeddings is not None:
        width = folder.embeddings.shape[1]
        allowed = f'{width}, the width of the embeddings in {folder.folder}'
        require(ours.text_dim == width, 'model.text_dim', ours.text_dim, allowed)
    steps = config.num_timesteps
    within = f'at most the {ours.frames} frames of the model'
    require(steps <= ours.frames, 'num_timesteps', steps, within)
    inside = f'at most num_timesteps = {steps}: rewards are summed inside of a window'
    require(config.n_step <= steps, 'n_step', config.n_step, inside)
    ahead = config.n_step_actions <= ours.num_actions
    require(ahead, 'n_step_actions', config.n_step_actions, f'at most {ours.num_actions}')
    for returns in folder.returns_to_go(config.discount):
        check_returns(returns, *ours.return_range)


TRAIN_CONFIG, MODEL_CONFIG = QLearnerConfig, QTransformerConfig


def make_trainer(
    config: QLearnerConfig,
    model: QTransformerConfig,
    folders: Sequence[ReplayFolder],
    out: Path,
    *,
    resume: bool,
) -> QLearner:
    """Make a network for the data in one folder, and its learner; see `learning.run`."""
    folder = only(folders)
    told = model.condition_on_text and folder.embeddings is not None
    dataset = ReplayMemoryDataset(folder, config.num_timesteps or model.frames, told)
    network = QRoboticTransformer(model.fitted(folder.spec))
    return QLearner(network, dataset=dataset, checkpoint_folder=out, config=config, resume=resume)
