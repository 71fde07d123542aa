# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Which episode is shown before the steps that are trained on, or before the first one acted in.

In training it is another episode of the same task, in a share of the sequences; a checkpoint
carries one successful episode per sentence, from which a policy is prompted.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qt_core.configuration import require
from qt_core.models.gato_prompts import Prompt
from qt_core.replay import SequenceDataset, WindowBatch

MAX_PROMPTS = 64  # of one body in a checkpoint
MAX_BYTES = 1 << 25  # of one body's prompts in a checkpoint


class Prompter:
    """Puts steps of another episode of the same task before windows (Reed et al. 2022, 2.2).

        window    w0 w1 w2 w3 w4 w5        K = 6, at most 3 steps of a prompt
        prompt    p0 p1 p2
        together  p0 p1 p2 w0 w1 w2

    Half of the prompts are the last steps of their episode, half begin anywhere in it. A task is
    a sentence, and where there are none the whole folder; an episode that has no company in its
    task is not prompted. What is stored is only read.

    Args:
        dataset: Windows of K >= 2 steps.
        share: Share of the windows that are prompted.

    Raises:
        ConfigurationError: There is a share to be prompted, and no room for it.
    """

    def __init__(self, dataset: SequenceDataset, share: float) -> None:
        room = dataset.frames >= 2 or share == 0
        allowed = '0 where fewer than two steps fit into model.context'
        require(room, 'prompt_share', share, allowed)
        self.share = share
        self.steps = dataset.frames // 2
        self._windows = dataset.with_frames(max(1, self.steps))
        entries = [dataset.folder.episodes[number] for number in dataset.episodes]
        self._length = np.array([entry['steps'] for entry in entries], np.int64)
        self._first = np.concatenate([[0], np.cumsum(self._length)])  # sample of each episode
        self._task = np.array([entry['instruction'] for entry in entries], np.int64)

    def prepend(
        self, batch: WindowBatch, samples: NDArray[np.int64], random: np.random.Generator
    ) -> WindowBatch:
        """Give the batch with prompts before some of its windows, which lose as many steps.

        Args:
            batch: Windows of K steps.
            samples: (B,) the dataset's numbers of these windows.
            random: Where the choice comes from.
        """
        rows, chosen = self.draw(samples, random)
        return prepended(batch, self._windows.gather(chosen), torch.from_numpy(rows))

    def draw(
        self, samples: NDArray[np.int64], random: np.random.Generator
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Choose which windows (B,) are prompted, and by which.

        Returns:
            Places in the batch, and for each the dataset's number of the prompt's first step.
        """
        rows, chosen = [], []
        prompted, at_end = random.random((2, len(samples)))
        for row in np.flatnonzero(prompted < self.share).tolist():
            own = int(self._first.searchsorted(samples[row], side='right')) - 1
            others = np.flatnonzero(self._task == self._task[own])
            others = others[others != own]
            if not len(others):
                continue
            episode = int(random.choice(others))
            last = max(0, int(self._length[episode]) - self.steps)
            start = last if at_end[row] < 0.5 else int(random.integers(last + 1))
            rows.append(row)
            chosen.append(self._first[episode] + start)
        return np.array(rows, np.int64), np.array(chosen, np.int64)


def prepended(batch: WindowBatch, prompts: WindowBatch, rows: Tensor) -> WindowBatch:
    """Put the steps of `prompts` before those of the windows in `rows`; the windows stay as long.

    `start` becomes (B, K): the number of every step in its own episode.

    Args:
        batch: Windows of K steps.
        prompts: As many prompts, of fewer steps, as there are rows.
        rows: Places in the batch.
    """
    lengths = prompts.length.tolist()

    def joined(window: Tensor, prompt: Tensor) -> Tensor:
        window = window.clone()
        for place, (row, length) in enumerate(zip(rows.tolist(), lengths, strict=True)):
            whole = torch.cat([prompt[place, :length], window[row]])
            window[row] = whole[: window.shape[1]]
        return window

    changed: dict[str, Any] = {
        'images': {name: joined(batch.images[name], prompts.images[name]) for name in batch.images}
    }
    for name in ('state', 'bins', 'reward', 'terminal', 'returns', 'valid', 'action'):
        window, prompt = getattr(batch, name), getattr(prompts, name)
        changed[name] = None if window is None else joined(window, prompt)
    number = [each.start[:, None] + torch.arange(each.bins.shape[1]) for each in (batch, prompts)]
    length = changed['valid'].sum(-1)
    return dataclasses.replace(batch, **changed, length=length, start=joined(*number))


def choose_prompts(
    dataset: SequenceDataset, body: int, steps: int, limit: int = MAX_BYTES
) -> list[Prompt]:
    """Choose what a checkpoint carries: per sentence the end of the shortest successful episode.

    More exactly, of the episodes with the largest return that did not fail, the shortest; where
    any episode of the folder has a positive return, only of those that have one.

    Args:
        dataset: The episodes to choose from.
        body: Number of the body they were made with.
        steps: Of each episode, at most this many.
        limit: Bytes of all prompts; sentences beyond that, or beyond `MAX_PROMPTS`, have none.
    """
    folder = dataset.folder
    best: dict[int, tuple[float, int, int]] = {}
    positive = any(folder.episodes[number]['return'] > 0 for number in dataset.episodes)
    for number in dataset.episodes:
        entry = folder.episodes[number]
        if entry['outcome'] == 'failure' or (positive and entry['return'] <= 0):
            continue
        key = (-entry['return'], entry['steps'], number)
        best[entry['instruction']] = min(key, best.get(entry['instruction'], key))
    found: list[Prompt] = []
    windows = SequenceDataset(folder, max(1, steps), condition_on_text=False)
    for instruction in sorted(best)[:MAX_PROMPTS] if steps else ():
        prompt = _last_steps(windows, body, best[instruction][-1])
        limit -= prompt.size
        if limit < 0:
            break
        found.append(prompt)
    return found


def _last_steps(windows: SequenceDataset, body: int, number: int) -> Prompt:
    folder = windows.folder
    last = max(0, int(folder.episodes[number]['steps']) - windows.frames)
    window = windows.gather([sum(entry['steps'] for entry in folder.episodes[:number]) + last])
    length = int(window.length)
    return Prompt(
        body=body,
        sentence=folder.instructions[folder.episodes[number]['instruction']],
        images={name: frames[0, :length].numpy() for name, frames in window.images.items()},
        state=window.state[0, :length].numpy(),
        bins=window.bins[0, :length].numpy(),
        first=last,
    )
