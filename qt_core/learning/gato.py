# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Train a Gato: predict the next token of what was said and done (Reed et al. 2022, 2.2)."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qt_core.configuration import ConfigurationError, require
from qt_core.embodiment import Embodiment
from qt_core.learning.checkpoint import recover_folder
from qt_core.learning.prompts import Prompter, choose_prompts
from qt_core.learning.trainer import VALIDATION_BATCHES, TrainConfig, Trainer
from qt_core.models.gato import Gato, token_loss
from qt_core.models.gato_configuration import Body, GatoConfig
from qt_core.models.gato_sequence import (
    Steps,
    stacked,
    step_sequence,
    steps_that_fit,
    text_sequence,
)
from qt_core.models.gato_text import FILE, TextTokenizer
from qt_core.models.gato_tokens import GatoSequence
from qt_core.replay import (
    ReplayFolder,
    SequenceDataset,
    WindowBatch,
    WindowSampler,
    split_episodes,
)
from qt_core.replay.selection import near_expert

PROMPTS = 1  # which of the random numbers of a batch are those of its prompts


@dataclass(frozen=True, kw_only=True)
class GatoTrainConfig(TrainConfig):
    """How a `GatoTrainer` learns; the first fields are those of `TrainConfig`.

    Attributes:
        prompt_share: Share of the sequences that begin with a prompt; see `Prompter`.
        keep_near_expert: Train on episodes whose return is at least this share of the expert's
            (Reed et al. 2022, section 2; theirs is 0.8); 0 keeps all.
        text: A plain text file, one passage per line, to be trained on besides; empty for none.
        text_batch: Passages beside each micro-batch.
        text_weight: Weight of the loss of a passage's token, averaged over those, against the
            loss of the steps.
        tokenizer: A tokenizer.json for sentences and text; empty to train one on both.
    """

    learning_rate: float = 1e-4
    warmup_steps: int = 15000
    weight_decay: float = 0.1
    betas: tuple[float, ...] = (0.9, 0.95)
    prompt_share: float = 0.25
    keep_near_expert: float = 0.0
    text: str = ''
    text_batch: int = 8
    text_weight: float = 0.1
    tokenizer: str = ''

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ('prompt_share', 'keep_near_expert'):
            share = getattr(self, name)
            require(0 <= share <= 1, name, share, '0..1')
        require(self.text_batch >= 1, 'text_batch', self.text_batch, 'at least 1')
        require(self.text_weight > 0, 'text_weight', self.text_weight, 'a positive number')


class GatoTrainer(Trainer):
    """Trains one Gato on the episodes of several bodies, and on text.

    Every gradient step has a micro-batch of each folder: windows of as many whole steps as fit
    into the context.

    Args:
        network: The network.
        folders: The data, one folder per body of the network.
        config: How.
        passages: Text to train on besides.
        checkpoint_folder: Folder of the run.
        resume: Continue the run in it.

    Raises:
        CheckpointError: The folder holds a run and `resume` is not set, or holds none and it is.
        ConfigurationError: Network, data and configuration do not fit each other, the device or
            the run to resume.
        ReplayError: A folder has fewer windows than one batch.
    """

    network: Gato
    config: GatoTrainConfig

    def __init__(
        self,
        network: Gato,
        folders: Sequence[ReplayFolder],
        *,
        config: GatoTrainConfig,
        passages: Sequence[str] = (),
        checkpoint_folder: str | Path = './checkpoints',
        resume: bool = False,
    ) -> None:
        bodies, encode = network.config.bodies, network.tokenizer.encode
        ours, theirs = list(network.config.specs), [folder.spec for folder in folders]
        require(ours == theirs, 'model.bodies', ours, f'{theirs}, those of the data')
        self.sentences = [[encode(text) for text in folder.instructions] for folder in folders]
        self.passages = [passage for passage in map(encode, passages) if len(passage) > 1]
        train: list[SequenceDataset] = []
        held_out: list[SequenceDataset] = []
        for body, folder, sentences in zip(bodies, folders, self.sentences, strict=True):
            longest = max(map(len, sentences), default=0)
            context = steps_that_fit(network.config, body, longest)
            parts = split_episodes(folder, config.validation_fraction, config.seed)
            for datasets, part in zip((train, held_out), parts, strict=True):
                if part and config.keep_near_expert > 0:
                    part = near_expert(folder, config.keep_near_expert, part)
                datasets.append(SequenceDataset(folder, context, False, episodes=part))
        self.prompters = [Prompter(windows, config.prompt_share) for windows in train]
        network.prompts = tuple(
            chain.from_iterable(
                choose_prompts(windows, body, prompter.steps)
                for body, (windows, prompter) in enumerate(zip(train, self.prompters, strict=True))
                if config.prompt_share > 0
            )
        )
        super().__init__(
            network,
            train=train,
            validation=held_out[0] if len(held_out[0]) else None,
            config=config,
            checkpoint_folder=checkpoint_folder,
            resume=resume,
        )
        self._held_out = [
            (body, WindowSampler(windows, min(config.batch_size, len(windows)), config.seed))
            for body, windows in enumerate(held_out)
            if body and len(windows)  # those of the first come from the trainer
        ]

    def load_batches(self, step: int) -> list[WindowBatch]:
        """Read the micro-batches of a step, with their prompts."""
        config = self.config
        processes, process = self.accelerator.num_processes, self.accelerator.process_index
        batches = []
        for micro in range(config.grad_accum_every):
            index = (step * config.grad_accum_every + micro) * processes + process
            for body, sampler in enumerate(self.samplers):
                random = np.random.default_rng([config.seed, index, body, PROMPTS])
                batch = sampler.batch(index)
                batch = self.prompters[body].prepend(batch, sampler.samples(index), random)
                batches.append(dataclasses.replace(batch, dataset=body))
        return batches

    def loss(self, batch: WindowBatch) -> dict[str, Tensor]:
        """Compute the cross-entropy of sentences and actions, and of some passages of text.

        The loss of the steps is Σ over their targets / (steps · N), so that steps count alike
        whatever batch and body they are in.
        """
        sequence = self.sequence(batch)
        rows = torch.arange(len(sequence.ids), device=sequence.ids.device)[:, None]
        if not self.passages:
            logits = self.model(sequence, sequence.predicted)
            return {'loss': self._step_loss(logits, sequence, batch)}
        both = stacked(sequence, self._text(sequence.ids.device))
        predicted = both.predicted
        logits = self.model(both, predicted)
        of_text = predicted.nonzero()[:, 0] >= len(rows)
        steps = self._step_loss(logits[~of_text], sequence, batch)
        below = torch.arange(len(both.ids), device=rows.device)[:, None] >= len(rows)
        written = dataclasses.replace(both, target=both.target & below)
        text = token_loss(logits[of_text], written)
        return {
            'loss': steps + self.config.text_weight * text,
            'steps': steps.detach(),
            'text': text.detach(),
        }

    @torch.no_grad()
    def validate(self, batches: Iterator[WindowBatch]) -> dict[str, float]:
        """Measure, over all bodies, the loss and the share of bins that are the likeliest."""
        losses, right, total = [], 0.0, 0
        for batch in chain(batches, self._others()):
            sequence = self.sequence(batch)
            predicted = sequence.predicted
            logits = self.network(sequence, predicted)
            losses.append(float(self._step_loss(logits, sequence, batch)))
            ids = self.network.config.ids
            following = sequence.ids.roll(-1, dims=1)[predicted]
            acts = following >= ids.actions.start
            first, last = ids.action_range(self.network.config.bodies[batch.dataset].action_bins)
            likeliest = logits[acts, first:last].argmax(-1) + first
            right += float((likeliest == following[acts]).sum())
            total += int(acts.sum())
        return {'loss': sum(losses) / len(losses), 'accuracy': right / max(1, total)}

    def _identity(self) -> dict[str, Any]:
        identity = super()._identity()
        content = json.dumps(self.passages).encode()
        digest = hashlib.sha256(content).hexdigest()[:16] if self.passages else ''
        return {**identity, 'config': {**identity['config'], 'text (digest)': digest}}

    def sequence(self, batch: WindowBatch) -> GatoSequence:
        """Give the tokens of a batch's steps."""
        steps = batch.bins.shape[1]
        sentences, number = self.sentences[batch.dataset], batch.start
        if number.dim() == 1:
            number = number[:, None] + torch.arange(steps, device=number.device)
        return step_sequence(
            self.network.config,
            self.network.config.bodies[batch.dataset],
            Steps(
                images={name: frames[:, :steps] for name, frames in batch.images.items()},
                state=batch.state[:, :steps],
                bins=batch.bins,
                count=batch.valid.sum(-1),
                sentences=[sentences[number] for number in batch.instruction.tolist()],
                number=number,
            ),
        )

    def _step_loss(self, logits: Tensor, sequence: GatoSequence, batch: WindowBatch) -> Tensor:
        actions = batch.valid.sum() * batch.bins.shape[-1]
        return token_loss(logits, sequence) * len(logits) / actions.clamp(min=1)

    def _text(self, device: torch.device) -> GatoSequence:
        """Draw passages; of one that is longer than the context, a part."""
        most, texts = self.network.config.context, []
        for _ in range(self.config.text_batch):
            passage = self.passages[int(torch.randint(len(self.passages), ()))]
            start = int(torch.randint(max(1, len(passage) - most + 1), ()))
            texts.append(passage[start : start + most])
        return text_sequence(self.network.config, texts, device)

    def _others(self) -> Iterator[WindowBatch]:
        for body, sampler in self._held_out:
            for index in range(min(VALIDATION_BATCHES, sampler.batches_per_epoch)):
                batch = sampler.batch(index).to(self.accelerator.device)
                yield dataclasses.replace(batch, dataset=body)


TRAIN_CONFIG, MODEL_CONFIG = GatoTrainConfig, GatoConfig


def make_trainer(
    config: GatoTrainConfig,
    model: GatoConfig,
    folders: Sequence[ReplayFolder],
    out: Path,
    *,
    resume: bool,
) -> GatoTrainer:
    """Make a network for the bodies of the folders, and its trainer; see `learning.run`.

    A body is called as its contract, or as its folder where it has none.

    Raises:
        ConfigurationError: The configuration does not fit the data, or a file of it cannot be
            read.
    """
    if model.bodies:
        raise ConfigurationError('model.bodies comes from the data: leave it out')
    passages = _passages(config.text)
    if resume:  # ids mean what they meant, whatever has become of the text
        recover_folder(out / 'last')
        tokenizer = TextTokenizer.load(out / 'last' / FILE, model.text_ids)
    elif config.tokenizer:
        tokenizer = TextTokenizer.load(Path(config.tokenizer), model.text_ids)
    else:
        # A sentence counts once for each episode that says it, or text would crowd out its words.
        told = [f.instructions[e['instruction']] for f in folders for e in f.episodes]
        tokenizer = TextTokenizer.train([*told, *passages], model.text_ids)
    return GatoTrainer(
        Gato(model.fitted(_bodies(folders)), tokenizer),
        folders,
        config=config,
        passages=passages,
        checkpoint_folder=out,
        resume=resume,
    )


def _bodies(folders: Sequence[ReplayFolder]) -> tuple[Body, ...]:
    bodies: list[Body] = []
    for folder in folders:
        contract = folder.contract
        name = folder.folder.resolve().name if contract is None else contract.name
        same = sum(body.name.split('#')[0] == name for body in bodies)
        name = f'{name}#{same + 1}' if same else name
        bodies.append(Body.named(name, Embodiment(folder.spec, contract)))
    return tuple(bodies)


def _passages(path: str) -> list[str]:
    """Read the lines of a text file; none of no file."""
    if not path:
        return []
    try:
        lines = Path(path).read_text(encoding='utf-8').splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f'text is {path!r}, expected a text file ({error})') from error
    found = [line.strip() for line in lines if line.strip()]
    require(bool(found), 'text', path, 'a file with passages in it')
    return found
