# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Does the Q-Transformer apply to language models? A toy, against supervised fine-tuning.

A language model writes token by token; a Q-Transformer chooses an action dimension by dimension.
So an answer is one action: its tokens are the dimensions, the vocabulary is the bins, the prompt
is the state, and the verdict on the whole answer is the reward. The value of a prefix is then how
good an answer can still come of it.

The task has one right answer, which is known: the letters of the prompt in order, then how far
apart the first and the last are (as a letter), then the letter that the prompt began with. Most
answers to learn from are wrong: some writers always put the letters in reverse, the others slip.
A judge says 1 or 0 of a whole answer, never where the mistake is. An exact judge approves right
answers only; a lenient one is also fooled by the reverse order now and then. Data, network,
trainer and number of steps are the same for

    fine-tuning             imitates all answers
    filtered fine-tuning    imitates those that the judge approved
    Q-learning              learns from all of them by the judge's verdict

What this shows: imitation follows what is frequent, also among what was approved; values follow
what is approved whenever it is written. So a judge that is fooled now and then fools filtered
fine-tuning and not Q-learning. Under an exact judge filtered fine-tuning has all it needs.

What it does not show: anything about large models, real text, or learning from a model's own
answers. There the prompt would be tokens too, the first dimensions of the action, which
`get_optimal_actions(..., actions=prompt)` keeps; and a vocabulary of 50,000 needs the conservative
term on a sample of it.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from qt_core.learning.q_learner import QLearner
from qt_core.learning.trainer import TrainConfig, Trainer
from qt_core.models import QRoboticTransformer
from qt_core.replay import (
    ReplayEpisode,
    ReplayFolder,
    ReplayMemoryDataset,
    ReplayWriter,
    WindowBatch,
)

LETTERS = 'abcdefghijkl'
JUDGES = {'exact': 0.0, 'lenient': 0.4}  # chance to be fooled by the reverse order
BEAM = 4

Tokens = NDArray[np.int64]


@dataclass(frozen=True)
class Task:
    """Prompts of `prompt` of the first `letters` letters; answers are two tokens longer."""

    letters: int = 12
    prompt: int = 4

    def prompts(self, count: int, random: np.random.Generator) -> Tokens:
        """Draw prompts (n, P)."""
        return random.integers(self.letters, size=(count, self.prompt))

    def right(self, prompts: Tokens) -> Tokens:
        """Give their only right answers (n, P + 2)."""
        ordered = np.sort(prompts)
        return np.column_stack([ordered, ordered[:, -1] - ordered[:, 0], prompts[:, 0]])

    def reverse(self, prompts: Tokens) -> Tokens:
        """Give answers that are right but for the letters being in reverse order."""
        answers = self.right(prompts)
        answers[:, : self.prompt] = answers[:, self.prompt - 1 :: -1]
        return answers

    def written(self, prompts: Tokens, random: np.random.Generator) -> Tokens:
        """Answer as imperfect writers do: 65% in reverse, the others slip at 10% of the tokens."""
        right = self.right(prompts)
        slips = random.random(right.shape) < 0.1
        slipped = np.where(slips, random.integers(self.letters, size=right.shape), right)
        return np.where(random.random((len(prompts), 1)) < 0.65, self.reverse(prompts), slipped)

    def states(self, prompts: Tokens) -> Tensor:
        """Give prompts as state vectors (n, S), one-hot."""
        return torch.eye(self.letters)[torch.from_numpy(prompts)].flatten(1)

    def network(self, seed: int) -> QRoboticTransformer:
        """Build a network; the same one for the same seed."""
        torch.manual_seed(seed)
        return QRoboticTransformer(
            cameras=(),
            state_dim=self.prompt * self.letters,
            num_actions=self.prompt + 2,
            action_bins=self.letters,
            frames=1,
            condition_on_text=False,
            dim=64,
            depth=1,
            decoder_depth=1,
            heads=4,
            dim_head=16,
        )


def write_folder(
    folder: Path, task: Task, prompts: Tokens, answers: Tokens, verdicts: NDArray[np.bool_]
) -> ReplayFolder:
    """Store each answer as an episode of one step."""
    states = task.states(prompts).numpy()
    with ReplayWriter(folder, task.network(0).config, embed=None) as writer:
        for state, answer, verdict in zip(states, answers, verdicts, strict=True):
            writer.add(
                ReplayEpisode(
                    images={},
                    state=np.stack([state, state]),
                    bins=answer[None],
                    reward=np.array([verdict], np.float32),
                    terminal=True,
                    timeout=False,
                    instruction='',
                )
            )
    return ReplayFolder(folder)


class FineTuning(Trainer):
    """Imitates answers: cross-entropy of each token, given those before it."""

    def loss(self, batch: WindowBatch) -> dict[str, Tensor]:
        """Compute the cross-entropy."""
        logits = self.model({}, batch.state[:, :-1], None, batch.bins)[0]
        return {'loss': F.cross_entropy(logits.flatten(0, -2), batch.bins.flatten())}
