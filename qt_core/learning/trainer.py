# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Train a Q-Transformer from a replay folder: offline, resumable, reproducible."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from qt_core.configuration import ConfigurationError, plain, require
from qt_core.contract import RobotContract, require_same
from qt_core.learning.checkpoint import (
    Checkpoint,
    CheckpointError,
    load_tensors,
    recover_folder,
    replace_folder,
    save_checkpoint,
)
from qt_core.learning.losses import (
    autoregressive_targets,
    conservative_loss,
    temporal_difference_loss,
)
from qt_core.models.q_transformer import QRoboticTransformer, QTransformerConfig
from qt_core.replay import ReplayFolder, WindowBatch, WindowSampler

FREE = ('steps', 'threads', 'checkpoint_every', 'log_every')  # may change when a run is resumed


class TrainingError(RuntimeError):
    """A run that went wrong, and where."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What `qt-ros train` does; config/train/*.yaml maps onto it.

    Attributes:
        steps: Gradient steps.
        batch_size: Windows per step and process.
        learning_rate: Peak of the schedule: linear warm-up, then cosine to a twentieth.
        warmup_steps: Steps until the peak.
        weight_decay: AdamW's, on all but vectors.
        gradient_clip: Largest norm of the gradient.
        discount: γ per control step.
        conservative_weight: Weight of the conservative term against the TD term. The value of a
            bin that makes up a share p of the data tends to p / (p + weight·(1 - p) / (A - 1)) of
            its return: at A - 1, to p of it.
        target_decay: The target network keeps this share of itself at every step.
        state_noise: Standard deviation of the noise that training adds to the normalised joint
            positions. Without it a policy reads from their last digits how fast the arm moves, and
            goes on as before where it should look (de Haan et al. 2019, "Causal Confusion").
        seed: Seed of weights, order of batches and noise.
        mixed_precision: `no`, `bf16` or `fp16`.
        threads: Torch threads on a CPU; 0 leaves torch's choice.
        checkpoint_every: Steps between checkpoints.
        log_every: Steps between log entries.
        model: Sizes of the network.
    """

    steps: int
    batch_size: int = 64
    learning_rate: float = 1e-3
    warmup_steps: int = 200
    weight_decay: float = 0.01
    gradient_clip: float = 1.0
    discount: float = 0.98
    conservative_weight: float = 1.0
    target_decay: float = 0.99
    state_noise: float = 0.0
    seed: int = 0
    mixed_precision: str = 'no'
    threads: int = 0
    checkpoint_every: int = 500
    log_every: int = 20
    model: QTransformerConfig = field(default_factory=QTransformerConfig)

    def __post_init__(self) -> None:
        counts = ('steps', 'batch_size', 'checkpoint_every', 'log_every')
        for name in (*counts, 'learning_rate', 'gradient_clip'):
            require(getattr(self, name) > 0, name, getattr(self, name), 'a positive number')
        zero = ('warmup_steps', 'weight_decay', 'conservative_weight', 'state_noise', 'seed')
        for name in (*zero, 'threads'):
            require(getattr(self, name) >= 0, name, getattr(self, name), 'zero or more')
        require(0 < self.discount <= 1, 'discount', self.discount, '0 < discount <= 1')
        require(0 <= self.target_decay < 1, 'target_decay', self.target_decay, '0 <= decay < 1')
        modes = ('no', 'bf16', 'fp16')
        require(
            self.mixed_precision in modes,
            'mixed_precision',
            self.mixed_precision,
            ' or '.join(modes),
        )


def learning_rate(step: int, config: TrainConfig) -> float:
    """Give the learning rate of step number `step`, from 0."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return config.learning_rate * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress)))


def q_loss(
    model: nn.Module, target: QRoboticTransformer, batch: WindowBatch, config: TrainConfig
) -> dict[str, Tensor]:
    """Compute the loss and what it is made of.

    The target network sees frames 0..T-1 for the maxima over the next dimension and frames 1..T
    for the step after; each frame is encoded once.

    Returns:
        Scalars: `loss`, `td`, `conservative`, `q_taken`, `q_best`.
    """
    with torch.no_grad():
        tokens = target.encode(batch.images, batch.state, batch.text)
        q = target.decode(target.contextualise(tokens[:, :-1]), batch.bins).float().sigmoid()
        after = target.contextualise(tokens[:, 1:])
        q_next = target.decode(after, batch.bins[..., :0]).float().sigmoid()[:, :, 0]
        targets = autoregressive_targets(
            q, q_next, batch.reward, batch.terminal, batch.returns, config.discount
        )
    images = {name: frames[:, :-1] for name, frames in batch.images.items()}
    values = model(images, batch.state[:, :-1], batch.text, batch.bins).float().sigmoid()
    td = temporal_difference_loss(values, batch.bins, targets, batch.valid)
    conservative = conservative_loss(values, batch.bins, batch.valid)
    taken = values.detach().gather(-1, batch.bins.unsqueeze(-1))
    return {
        'loss': td + config.conservative_weight * conservative,
        'td': td.detach(),
        'conservative': conservative.detach(),
        'q_taken': taken.mean(),
        'q_best': values.detach().amax(-1).mean(),
    }


class Trainer:
    """Trains one policy into one folder.

    `out/last` is the newest checkpoint (the target network's weights: an average of the trained
    ones) with the trainer's state beside it; `out/tensorboard` holds the curves.

    Args:
        config: What to do.
        replay: The data.
        out: Folder of the run.
        resume: Continue the run in `out` from `out/last`.

    Raises:
        CheckpointError: `out` holds a run and `resume` is not set, or holds none and it is.
        ConfigurationError: The run in `out` was made with another configuration, contract or
            data, or the configuration does not fit the data or the device.
    """

    def __init__(
        self, config: TrainConfig, replay: ReplayFolder, out: Path, *, resume: bool = False
    ) -> None:
        self.config, self.replay, self.out = config, replay, Path(out)
        if config.threads:
            torch.set_num_threads(config.threads)
        if not resume and self.out.exists() and any(self.out.iterdir()):
            raise CheckpointError(f'{out} is not empty; choose another --out, or --resume')
        text_width = replay.embeddings.shape[1]
        require(
            config.model.text_width == text_width,
            'model.text_width',
            config.model.text_width,
            f'{text_width}, the width of the embeddings in {replay.folder}',
        )
        try:
            self.accelerator = Accelerator(mixed_precision=config.mixed_precision)
        except ValueError as error:
            raise ConfigurationError(f'mixed_precision: {error}') from error
        torch.manual_seed(config.seed)
        self.sampler = WindowSampler(
            replay,
            window=config.model.frames,
            batch_size=config.batch_size,
            discount=config.discount,
            seed=config.seed,
        )
        network = QRoboticTransformer(config.model, replay.contract)
        self.target = copy.deepcopy(network).requires_grad_(False).eval()
        matrices = [p for p in network.parameters() if p.dim() > 1]
        others = [p for p in network.parameters() if p.dim() <= 1]
        optimizer = torch.optim.AdamW(
            [
                {'params': matrices, 'weight_decay': config.weight_decay},
                {'params': others, 'weight_decay': 0.0},
            ],
            lr=config.learning_rate,
        )
        self.model, self.optimizer = self.accelerator.prepare(network, optimizer)
        self.target.to(self.accelerator.device)
        self.step = 0
        self.seconds = 0.0
        self._between_steps = True  # weights, optimiser and step number fit together
        if resume:
            self._restore()
        self.out.mkdir(parents=True, exist_ok=True)

    def run(
        self, report: Callable[[int, dict[str, float]], None] = lambda step, scalars: None
    ) -> dict[str, list[tuple[int, float]]]:
        """Train until `config.steps`; checkpoints on the way, at the end and on Ctrl-C.

        Args:
            report: Called after every step with its number and, every `log_every` steps, scalars.

        Returns:
            Name of each logged scalar to its (step, value) pairs.

        Raises:
            TrainingError: The loss or a weight is not finite; the last checkpoint is kept.
        """
        writer = SummaryWriter(str(self.out / 'tensorboard'))
        history: dict[str, list[tuple[int, float]]] = {}
        clock = time.monotonic()
        try:
            while self.step < self.config.steps:
                scalars = self._step()
                if self.step % self.config.log_every == 0 or self.step in (1, self.config.steps):
                    logged = {name: float(value.detach()) for name, value in scalars.items()}
                    if not math.isfinite(logged['loss']):
                        raise TrainingError(f'{self.out}: loss is not finite at step {self.step}')
                    for name, value in logged.items():
                        writer.add_scalar(f'train/{name}', value, self.step)
                        history.setdefault(name, []).append((self.step, value))
                    report(self.step, logged)
                else:
                    report(self.step, {})
                if self.step % self.config.checkpoint_every == 0:
                    self.seconds += time.monotonic() - clock
                    clock = time.monotonic()
                    self.save()
        finally:
            writer.close()
            self.seconds += time.monotonic() - clock
            if self.step == 0:
                shutil.rmtree(self.out / 'tensorboard')
            elif self._between_steps:
                self.save()
        return history

    def save(self) -> None:
        """Write `out/last` and the state to resume from.

        Raises:
            TrainingError: A weight is not finite; nothing is written.
        """
        if not self.accelerator.is_main_process:
            return
        network = self.accelerator.unwrap_model(self.model)
        if not all(torch.isfinite(weight).all() for weight in network.parameters()):
            raise TrainingError(f'{self.out}: weights are not finite at step {self.step}')
        save_checkpoint(
            self.out / 'last',
            Checkpoint(
                policy='q_transformer',
                model=self.target,
                contract=self.replay.contract,
                sentences=tuple(self.replay.instructions),
                embeddings=self.replay.embeddings,
                sentence_model=self.replay.sentence_model,
                training={
                    'steps': self.step,
                    'batch_size': self.config.batch_size,
                    'seed': self.config.seed,
                    'replay_episodes': len(self.replay.episodes),
                    'replay_successes': self.replay.successes,
                    'replay_steps': self.replay.steps,
                    'minutes': round(self.seconds / 60, 1),
                },
            ),
        )
        partial = self.out / 'trainer.partial'
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        tensors = {
            f'{kind}.{name}': value.detach().cpu().contiguous()
            for kind, weights in (('model', network), ('target', self.target))
            for name, value in weights.state_dict().items()
        }
        for index, moments in self.optimizer.state_dict()['state'].items():
            for name, value in moments.items():
                tensors[f'optimizer.{index}.{name}'] = torch.as_tensor(value).cpu().contiguous()
        tensors['random'] = torch.get_rng_state()
        save_file(tensors, partial / 'state.safetensors')
        state = {
            'step': self.step,
            'seconds': self.seconds,
            'config': plain(self.config),
            'contract': self.replay.contract.to_text(),
            'replay_episodes': len(self.replay.episodes),
            'replay_steps': self.replay.steps,
        }
        (partial / 'state.json').write_text(json.dumps(state, indent=1), encoding='utf-8')
        replace_folder(partial, self.out / 'trainer')

    def _step(self) -> dict[str, Tensor]:
        index = self.step * self.accelerator.num_processes + self.accelerator.process_index
        batch = self.sampler.batch(index).to(self.accelerator.device)
        if self.config.state_noise:
            noise = self.config.state_noise * torch.randn(batch.state.shape)
            batch = dataclasses.replace(batch, state=batch.state + noise.to(batch.state))
        for group in self.optimizer.param_groups:
            group['lr'] = learning_rate(self.step, self.config)
        self.model.train()
        with self.accelerator.autocast():
            scalars = q_loss(self.model, self.target, batch, self.config)
        self.optimizer.zero_grad()
        self.accelerator.backward(scalars['loss'])
        self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.gradient_clip)
        self._between_steps = False
        self.optimizer.step()
        self._follow()
        self.step += 1
        self._between_steps = True
        return scalars

    @torch.no_grad()
    def _follow(self) -> None:
        """Move the target network towards the trained one; faster in the first steps."""
        decay = min(self.config.target_decay, (1 + self.step) / (10 + self.step))
        trained = self.accelerator.unwrap_model(self.model).parameters()
        torch._foreach_lerp_(list(self.target.parameters()), list(trained), 1 - decay)

    def _restore(self) -> None:
        folder = self.out / 'trainer'
        recover_folder(folder)
        try:
            state = json.loads((folder / 'state.json').read_text('utf-8'))
            contract = RobotContract.from_text(state['contract'], 'contract')
            data = {key: int(state[key]) for key in ('replay_episodes', 'replay_steps')}
            config, step, seconds = state['config'], int(state['step']), float(state['seconds'])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f'{self.out}: no run to resume ({error})') from error
        require_same(self.replay.contract, contract, str(self.replay.folder), str(self.out))
        ours = {'replay_episodes': len(self.replay.episodes), 'replay_steps': self.replay.steps}
        ours |= plain(self.config)
        for key, value in ours.items():
            theirs = {**config, **data}.get(key)
            if key not in FREE and value != theirs:
                raise ConfigurationError(
                    f'{key} is {value!r}, but the run in {self.out} has {theirs!r}'
                )
        tensors = load_tensors(folder / 'state.safetensors')
        optimizer = self.optimizer.state_dict()
        for key, moment in _part(tensors, 'optimizer').items():
            index, name = key.split('.', 1)
            optimizer['state'].setdefault(int(index), {})[name] = moment
        try:
            trained = self.accelerator.unwrap_model(self.model)
            trained.load_state_dict(_part(tensors, 'model'))
            self.target.load_state_dict(_part(tensors, 'target'))
            self.optimizer.load_state_dict(optimizer)
            torch.set_rng_state(tensors['random'])
        except (RuntimeError, KeyError, ValueError) as error:
            line = ' '.join(str(error).split())
            raise CheckpointError(f'{folder}/state.safetensors does not fit: {line}') from error
        self.step, self.seconds = step, seconds


def _part(tensors: dict[str, Tensor], kind: str) -> dict[str, Tensor]:
    return {k[len(kind) + 1 :]: v for k, v in tensors.items() if k.startswith(f'{kind}.')}
