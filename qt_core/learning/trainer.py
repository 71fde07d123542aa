# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Train a network from a replay folder: offline, resumable, reproducible, on any devices.

replay folder ─ windows ─▶ grad_accum_every micro-batches ─ loss ─ gradient ─▶ one step
                                   │                                           │
              a function of (seed, step, process) alone          after_step ◀──┘

Where there are several folders, each step has micro-batches of each.
"""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import json
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
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
    save_tensors,
    start_folder,
)
from qt_core.learning.devices import gathered, is_sharded, placed, start_accelerator
from qt_core.replay import ReplayFolder, ReplayMemoryDataset, WindowBatch, WindowSampler

# May change when a run is resumed.
FREE = ('num_train_steps', 'threads', 'checkpoint_every', 'log_every', 'fsdp')
SCHEDULES = ('cosine', 'constant')
VALIDATION_BATCHES = 64  # at most, so that a validation costs little whatever the folder

Report = Callable[[int, dict[str, float]], None]
History = dict[str, list[tuple[int, float]]]


class TrainingError(RuntimeError):
    """A run that went wrong, and where."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a `Trainer` trains, whatever the network and its loss.

    Attributes:
        num_train_steps: Gradient steps.
        batch_size: Windows per micro-batch and process.
        grad_accum_every: Micro-batches per gradient step. Together they count as one batch: every
            trained step of an episode has the same weight.
        learning_rate: Peak of the schedule, after a linear warm-up.
        warmup_steps: Steps until the peak.
        schedule: After the peak: `cosine`, down to a twentieth, or `constant`.
        weight_decay: AdamW's, on all but vectors.
        betas: AdamW's two.
        gradient_clip: Largest norm of the gradient.
        state_noise: Standard deviation of the noise that training adds to the normalised joint
            positions. Without it a policy reads from their last digits how fast the arm moves, and
            goes on as before where it should look (de Haan et al. 2019, "Causal Confusion").
        validation_fraction: Share of the episodes that is kept out of training.
        validate_every: Steps between measurements on those.
        seed: Seed of the order of batches, of noise and of dropout.
        mixed_precision: `no`, `bf16` or `fp16`.
        fsdp: Shard parameters, gradients and optimiser over the processes (FSDP2); as does
            `accelerate launch --use_fsdp --fsdp_version 2`.
        threads: Torch threads on a CPU; 0 leaves torch's choice.
        checkpoint_every: Steps between checkpoints.
        log_every: Steps between log entries.
    """

    num_train_steps: int
    batch_size: int = 64
    grad_accum_every: int = 1
    learning_rate: float = 1e-3
    warmup_steps: int = 200
    schedule: str = 'cosine'
    weight_decay: float = 0.01
    betas: tuple[float, ...] = (0.9, 0.999)
    gradient_clip: float = 1.0
    state_noise: float = 0.0
    validation_fraction: float = 0.0
    validate_every: int = 500
    seed: int = 0
    mixed_precision: str = 'no'
    fsdp: bool = False
    threads: int = 0
    checkpoint_every: int = 500
    log_every: int = 20

    def __post_init__(self) -> None:
        counts = ('num_train_steps', 'batch_size', 'grad_accum_every', 'checkpoint_every')
        more = ('log_every', 'validate_every', 'learning_rate', 'gradient_clip')
        for name in (*counts, *more):
            require(getattr(self, name) > 0, name, getattr(self, name), 'a positive number')
        for name in ('warmup_steps', 'weight_decay', 'state_noise', 'seed', 'threads'):
            require(getattr(self, name) >= 0, name, getattr(self, name), 'zero or more')
        sound = len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas)
        require(sound, 'betas', self.betas, 'two numbers, 0 <= beta < 1')
        fraction = self.validation_fraction
        require(0 <= fraction < 1, 'validation_fraction', fraction, '0 <= fraction < 1')
        known = self.schedule in SCHEDULES
        require(known, 'schedule', self.schedule, ' or '.join(SCHEDULES))
        modes = ('no', 'bf16', 'fp16')
        precise = self.mixed_precision in modes
        require(precise, 'mixed_precision', self.mixed_precision, ' or '.join(modes))


def learning_rate(step: int, config: TrainConfig) -> float:
    """Give the learning rate of step number `step`, from 0."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.schedule == 'constant':
        return config.learning_rate
    progress = (step - config.warmup_steps) / max(1, config.num_train_steps - config.warmup_steps)
    return config.learning_rate * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress)))


def check_run(folder: Path, *, resume: bool) -> None:
    """Check that a run can begin in the folder, or go on there.

    Raises:
        CheckpointError: It cannot.
    """
    if not resume and folder.exists() and any(folder.iterdir()):
        raise CheckpointError(f'{folder} is not empty; choose another, or resume')
    recover_folder(folder / 'trainer')
    if resume and not (folder / 'trainer/state.json').is_file():
        raise CheckpointError(f'{folder}: no run to resume')


class Trainer(abc.ABC):
    """Trains one network into one folder; a subclass says by which loss.

    `checkpoint_folder/last` is the newest checkpoint, with the trainer's state beside it in
    `trainer`; `tensorboard` holds the curves. The network that was given is trained itself: after
    `run` it holds the trained weights and is in evaluation mode.

    Args:
        network: What to train; see `qt_core.learning.checkpoint.Network`.
        train: Windows to train on; or several datasets, one per folder.
        validation: Windows of other episodes to measure on, or None.
        config: How.
        checkpoint_folder: Folder of the run.
        resume: Continue the run in it.

    Raises:
        CheckpointError: The folder holds a run and `resume` is not set, or holds none and it is.
        ConfigurationError: The run in it was made with another configuration, network, contract or
            data, or the configuration does not fit the device.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        train: ReplayMemoryDataset | Sequence[ReplayMemoryDataset],
        validation: ReplayMemoryDataset | None = None,
        config: TrainConfig,
        checkpoint_folder: str | Path = './checkpoints',
        resume: bool = False,
    ) -> None:
        self.network, self.config = network, config
        datasets = [train] if isinstance(train, ReplayMemoryDataset) else list(train)
        self.replays = [dataset.folder for dataset in datasets]
        self.checkpoint_folder = Path(checkpoint_folder)
        if config.threads:
            torch.set_num_threads(config.threads)
        check_run(self.checkpoint_folder, resume=resume)
        self.accelerator = start_accelerator(config.mixed_precision, fsdp=config.fsdp)
        self.samplers = [WindowSampler(each, config.batch_size, config.seed) for each in datasets]
        self.validation: WindowSampler | None = None
        if validation is not None:
            size = min(config.batch_size, len(validation))
            self.validation = WindowSampler(validation, size, config.seed)
        self.step = 0
        self.seconds = 0.0
        self._between_steps = True  # weights, optimiser and step number fit together
        self._next: tuple[int, Future[list[WindowBatch]]] | None = None
        state, tensors = self._read() if resume else ({}, {})
        matrices = [p for p in network.parameters() if p.dim() > 1]
        others = [p for p in network.parameters() if p.dim() <= 1]
        optimizer = torch.optim.AdamW(
            [
                {'params': matrices, 'weight_decay': config.weight_decay},
                {'params': others, 'weight_decay': 0.0},
            ],
            lr=config.learning_rate,
            betas=(config.betas[0], config.betas[1]),
        )
        self.model, self.optimizer = self.accelerator.prepare(network, optimizer)
        self.sharded = any(is_sharded(weight) for weight in network.parameters())
        if resume:
            self._restore(state, tensors)
        self.accelerator.wait_for_everyone()  # nobody writes before all have looked
        self.checkpoint_folder.mkdir(parents=True, exist_ok=True)

    @property
    def contract(self) -> RobotContract | None:
        """The contract of the data; of several folders, that of the first robot's."""
        return next((r.contract for r in self.replays if r.contract is not None), None)

    @abc.abstractmethod
    def loss(self, batch: WindowBatch) -> dict[str, Tensor]:
        """Compute scalars, among them `loss`, each a mean over the valid steps of the batch.

        `self.model` may only be called, not asked for its methods: it may be one of several
        copies that meet in each call.
        """

    def load_batches(self, step: int) -> list[WindowBatch]:
        """Read the micro-batches of a step, on the CPU; called in a thread of its own."""
        processes, process = self.accelerator.num_processes, self.accelerator.process_index
        first = step * self.config.grad_accum_every
        return [
            dataclasses.replace(
                sampler.batch((first + micro) * processes + process), dataset=number
            )
            for micro in range(self.config.grad_accum_every)
            for number, sampler in enumerate(self.samplers)
        ]

    def after_step(self) -> None:  # noqa: B027
        """Do what follows each gradient step, before it counts as done."""

    def validate(self, batches: Iterator[WindowBatch]) -> dict[str, float]:
        """Measure `deployed()`, in evaluation mode, on episodes that were not trained on."""
        return {}

    def deployed(self) -> nn.Module:
        """Give the network that checkpoints hold."""
        return self.network

    def extra_state(self) -> dict[str, Tensor]:
        """Give what a resumed run needs besides weights and optimiser."""
        return {}

    def load_extra_state(self, tensors: Mapping[str, Tensor]) -> None:  # noqa: B027
        """Take back what `extra_state` gave; before the network is on its device."""

    def run(self, report: Report = lambda step, scalars: None) -> History:
        """Train until `num_train_steps`; checkpoints on the way, at the end and on Ctrl-C.

        Args:
            report: Called after every step with its number and, every `log_every` steps, scalars.

        Returns:
            Name of each logged scalar to its (step, value) pairs.

        Raises:
            TrainingError: The loss or a weight is not finite; the last checkpoint is kept.
        """
        config, main = self.config, self.accelerator.is_main_process
        curves = self.checkpoint_folder / 'tensorboard'
        writer = SummaryWriter(str(curves)) if main else None
        loader = ThreadPoolExecutor(1)  # reads the next step's windows during this one
        history: History = {}
        clock = time.monotonic()
        complete = False
        try:
            while self.step < config.num_train_steps:
                scalars = self.train_step(self._micro_batches(loader))
                last = self.step == config.num_train_steps
                logged: dict[str, float] = {}
                if self.step % config.log_every == 0 or self.step == 1 or last:
                    logged = self._finite(scalars)
                if self.validation and (self.step % config.validate_every == 0 or last):
                    logged |= self._validate()
                for name, value in logged.items():
                    history.setdefault(name, []).append((self.step, value))
                    if writer:
                        tag = name if '/' in name else f'train/{name}'
                        writer.add_scalar(tag, value, self.step)
                report(self.step, logged)
                if self.step % config.checkpoint_every == 0:
                    self.seconds += time.monotonic() - clock
                    clock = time.monotonic()
                    self.save()
            complete = True
        finally:
            loader.shutdown(cancel_futures=True)
            self._next = None
            if writer:
                writer.close()
            self.seconds += time.monotonic() - clock
            # Undo what accelerate does to the forward of a network in mixed precision.
            self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
            vars(self.network).pop('forward', None)
            self.network.eval()
            if self.step == 0:
                shutil.rmtree(curves, ignore_errors=True)
            elif self._between_steps and (complete or not self.sharded):
                self.save()  # of shards only together: the others may be elsewhere by now
        return history

    def train_step(self, batch: WindowBatch | Sequence[WindowBatch]) -> dict[str, Tensor]:
        """Do one gradient step.

        Args:
            batch: One batch, or the micro-batches of the step.

        Returns:
            The scalars of `loss`, averaged over this process's micro-batches.
        """
        batches = [batch] if isinstance(batch, WindowBatch) else list(batch)
        device, accelerator = self.accelerator.device, self.accelerator
        # A micro-batch counts by its share of the valid steps of all micro-batches and processes,
        # so that the gradient is that of one large batch.
        counts = torch.stack([b.valid.sum() for b in batches]).float().to(device)
        total = accelerator.reduce(counts.sum(), 'sum').clamp(min=1)
        means: dict[str, Tensor] = {}
        for group in self.optimizer.param_groups:
            group['lr'] = learning_rate(self.step, self.config)
        self.model.train()
        self.optimizer.zero_grad()
        with self._random():
            for index, (micro, count) in enumerate(zip(batches, counts, strict=True)):
                last = index == len(batches) - 1
                alone = contextlib.nullcontext() if last else accelerator.no_sync(self.model)
                with alone:
                    with accelerator.autocast():
                        scalars = self.loss(self._noisy(micro.to(device, non_blocking=True)))
                    share = count / total * accelerator.num_processes
                    accelerator.backward(scalars['loss'] * share)
                for name, value in scalars.items():
                    mean = value.detach() * (count / counts.sum().clamp(min=1))
                    means[name] = means[name] + mean if name in means else mean
        accelerator.clip_grad_norm_(self.model.parameters(), self.config.gradient_clip)
        self._between_steps = False
        self.optimizer.step()
        self.after_step()
        self.step += 1
        self._between_steps = True
        return means

    def save(self) -> None:
        """Write `last` and the state to resume from; with FSDP, all processes must call it.

        Raises:
            TrainingError: A weight is not finite; nothing is written.
        """
        if not self.sharded and not self.accelerator.is_main_process:
            return
        weights = {name: gathered(value) for name, value in self.network.state_dict().items()}
        if not all(torch.isfinite(value).all() for value in weights.values()):
            raise TrainingError(
                f'{self.checkpoint_folder}: weights are not finite at step {self.step}'
            )
        tensors = {f'model.{name}': value for name, value in weights.items()}
        for name, parameter in self.network.named_parameters():
            for moment, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f'optimizer.{name}/{moment}'] = gathered(torch.as_tensor(value))
        for name, value in self.extra_state().items():
            tensors[f'extra.{name}'] = gathered(value)
        if not self.accelerator.is_main_process:
            return
        deployed = self.deployed()
        # The network itself may be in shards; anything else is whole on every process.
        save_checkpoint(
            self.checkpoint_folder / 'last',
            self._checkpoint(deployed),
            weights if deployed is self.network else None,
        )
        scaler = self.accelerator.scaler
        state = {
            **self._identity(),
            'step': self.step,
            'seconds': self.seconds,
            'scaler': None if scaler is None else scaler.state_dict(),
        }
        partial = start_folder(self.checkpoint_folder / 'trainer')
        save_tensors(tensors, partial / 'state.safetensors')
        (partial / 'state.json').write_text(json.dumps(state, indent=1), encoding='utf-8')
        replace_folder(partial, self.checkpoint_folder / 'trainer')

    def _micro_batches(self, loader: ThreadPoolExecutor) -> list[WindowBatch]:
        """Give this step's micro-batches and start to read those of the next."""

        def load(step: int) -> list[WindowBatch]:
            batches = self.load_batches(step)
            on_gpu = self.accelerator.device.type == 'cuda'
            return [batch.pin_memory() for batch in batches] if on_gpu else batches

        step, pending = self._next or (-1, None)
        if pending is None or step != self.step:
            pending = loader.submit(load, self.step)
        batches = pending.result()
        if self.step + 1 < self.config.num_train_steps:
            self._next = (self.step + 1, loader.submit(load, self.step + 1))
        return batches

    def _noisy(self, batch: WindowBatch) -> WindowBatch:
        if not self.config.state_noise:
            return batch
        noise = self.config.state_noise * torch.randn_like(batch.state)
        return dataclasses.replace(batch, state=batch.state + noise)

    @contextlib.contextmanager
    def _random(self) -> Iterator[None]:
        """Make random numbers a function of (seed, step, process), and leave the caller's alone.

        So there is no random state to save, and a resumed run draws what it would have drawn.
        """
        device = self.accelerator.device
        entropy = [self.config.seed, self.step, self.accelerator.process_index]
        seed = int(np.random.SeedSequence(entropy).generate_state(1)[0])
        with torch.random.fork_rng([device] if device.type == 'cuda' else []):
            torch.manual_seed(seed)
            yield

    def _finite(self, scalars: Mapping[str, Tensor]) -> dict[str, float]:
        """Average scalars over the processes, which all stop where the loss is not finite."""
        reduced = self.accelerator.reduce(dict(scalars), 'mean')
        logged = {name: float(value) for name, value in reduced.items()}
        if not math.isfinite(logged['loss']):
            raise TrainingError(
                f'{self.checkpoint_folder}: loss is not finite at step {self.step}'
            )
        return logged

    @torch.no_grad()
    def _validate(self) -> dict[str, float]:
        """Measure on the validation windows; all processes the same, so that none waits."""
        assert self.validation is not None
        count = min(VALIDATION_BATCHES, self.validation.batches_per_epoch)
        batches = (self.validation.batch(i).to(self.accelerator.device) for i in range(count))
        self.deployed().eval()
        with self._random(), self.accelerator.autocast():
            measured = self.validate(batches)
        return {f'validation/{name}': value for name, value in measured.items()}

    def _checkpoint(self, model: Any) -> Checkpoint:
        replays, config = self.replays, self.config
        told = next((r for r in replays if r.embeddings is not None), replays[0])
        embeddings = told.embeddings
        return Checkpoint(
            model=model,
            contract=self.contract,
            sentences=() if embeddings is None else tuple(told.instructions),
            embeddings=np.zeros((0, 0), np.float32) if embeddings is None else embeddings,
            sentence_model=told.sentence_model,
            training={
                'num_train_steps': self.step,
                'batch_size': config.batch_size
                * config.grad_accum_every
                * self.accelerator.num_processes,
                'seed': config.seed,
                'replay_episodes': sum(len(replay.episodes) for replay in replays),
                'replay_successes': sum(replay.successes for replay in replays),
                'replay_steps': sum(replay.steps for replay in replays),
                'minutes': round(self.seconds / 60, 1),
            },
        )

    def _identity(self) -> dict[str, Any]:
        """Say what a run is made of: configuration, network and data."""
        contract = self.contract
        return {
            'config': plain(self.config),
            'model': plain(self.network.config),
            'contract': None if contract is None else contract.to_text(),
            'replay_episodes': sum(len(replay.episodes) for replay in self.replays),
            'replay_steps': sum(replay.steps for replay in self.replays),
        }

    def _read(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Read the run in the folder, check that it is this one, and take its weights."""
        folder = self.checkpoint_folder / 'trainer'
        try:
            state = json.loads((folder / 'state.json').read_text('utf-8'))
            text = state['contract']
            contract = None if text is None else RobotContract.from_text(text, 'contract')
            theirs = _flat(state)
            self.step, self.seconds = int(state['step']), float(state['seconds'])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f'{self.checkpoint_folder}: no run to resume ({error})'
            ) from error
        if contract is not None and self.contract is not None:
            require_same(self.contract, contract, 'the data', str(self.checkpoint_folder))
        for key, value in _flat(self._identity()).items():
            if key not in FREE and value != theirs.get(key):
                raise ConfigurationError(
                    f'{key} is {value!r}, but the run in {self.checkpoint_folder} has '
                    f'{theirs.get(key)!r}'
                )
        tensors = load_tensors(folder / 'state.safetensors')
        try:
            self.network.load_state_dict(part(tensors, 'model'))
            self.load_extra_state(part(tensors, 'extra'))
        except (RuntimeError, KeyError, ValueError) as error:
            line = ' '.join(str(error).split())
            raise CheckpointError(f'{folder}/state.safetensors does not fit: {line}') from error
        return state, tensors

    def _restore(self, state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Give the optimiser its moments back."""
        parameters = dict(self.network.named_parameters())
        for key, value in part(tensors, 'optimizer').items():
            name, moment = key.rsplit('/', 1)
            if name in parameters:
                kept = self.optimizer.state[parameters[name]]
                kept[moment] = value if value.dim() == 0 else placed(value, parameters[name])
        if self.accelerator.scaler is not None and state.get('scaler'):
            self.accelerator.scaler.load_state_dict(state['scaler'])


def _flat(state: Mapping[str, Any]) -> dict[str, Any]:
    """Give the entries of state.json that must not change, by name."""
    counts = {name: int(state[name]) for name in ('replay_episodes', 'replay_steps')}
    model = {f'model.{name}': value for name, value in state['model'].items()}
    return {**counts, **state['config'], **model}


def part(tensors: Mapping[str, Tensor], kind: str) -> dict[str, Tensor]:
    """Give the tensors whose name starts with `kind.`, without that."""
    return {k[len(kind) + 1 :]: v for k, v in tensors.items() if k.startswith(f'{kind}.')}


def only(folders: Sequence[ReplayFolder]) -> ReplayFolder:
    """Give the one folder.

    Raises:
        ConfigurationError: There is not exactly one.
    """
    require(len(folders) == 1, '--replay', f'{len(folders)} folders', '1: only gato takes several')
    return folders[0]
