# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Does the Q-Transformer apply to language models? A toy, against supervised fine-tuning.

A language model writes token by token; a Q-Transformer chooses an action dimension by dimension.
So an answer is one action: its tokens are the dimensions, the vocabulary is the bins, the prompt
is the state, and the verdict on the whole answer is the reward. The value of a prefix is then how
good an answer can still come of it.

The task has one right answer, which is known: the letters of the prompt in order, then how far
apart the first and the last are (as a letter), then the letter that the prompt began with. Most
answers to learn from are wrong: many writers put the letters in reverse, the others slip. A judge
says 1 or 0 of a whole answer, never where the mistake is. An exact judge approves right answers
only; a lenient one lets the reverse order pass every other time. Answers, network, trainer and
number of steps are the same for

    fine-tuning             imitates all answers
    filtered fine-tuning    imitates those that the judge approved
    Q-learning              learns from all of them by the judge's verdict

What this shows: imitation follows what is frequent, also among what was approved; values follow
what is approved most reliably. So what fools the judge now and then, and is frequent, fools
filtered fine-tuning, and Q-learning less. Under an exact judge filtered fine-tuning has all it
needs, and learns faster.

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
JUDGES = {'exact': 0.0, 'lenient': 0.5}  # how often the reverse order passes for right
METHODS = ('fine-tuning', 'filtered fine-tuning', 'Q-learning')
BEAM = 4

Tokens = NDArray[np.int64]


@dataclass(frozen=True)
class Task:
    """Prompts of `prompt` of the first `letters` letters; answers are two tokens longer."""

    letters: int = 12
    prompt: int = 4

    def prompts(self, random: np.random.Generator) -> tuple[Tokens, Tokens]:
        """Divide all prompts by chance into some to hold out and the others, each (n, P)."""
        every = np.indices((self.letters,) * self.prompt).reshape(self.prompt, -1).T
        every = random.permutation(every)
        held_out = min(500, len(every) // 5)
        return every[:held_out], every[held_out:]

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
        """Answer as imperfect writers do: 70% in reverse, the others slip at 5% of the tokens."""
        right = self.right(prompts)
        slips = random.random(right.shape) < 0.05
        slipped = np.where(slips, random.integers(self.letters, size=right.shape), right)
        return np.where(random.random((len(prompts), 1)) < 0.7, self.reverse(prompts), slipped)

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


@torch.no_grad()
def most_likely(model: QRoboticTransformer, states: Tensor, beam: int) -> Tensor:
    """Search answers of large likelihood; `get_optimal_actions` searches large values."""
    tokens = model.encode({}, states[:, None], None)
    length, letters = model.config.num_actions, model.config.action_bins
    answers = torch.zeros(len(states), 1, 0, dtype=torch.long)
    score = torch.zeros(len(states), 1)
    for place in range(length):
        count = answers.shape[1]
        known = F.pad(answers, (0, length - place)).flatten(0, 1)[:, None]
        logits = model.decode(tokens.repeat_interleave(count, dim=0), known)[0, :, 0, place]
        scores = score.unsqueeze(-1) + logits.log_softmax(-1).unflatten(0, (-1, count))
        score, best = scores.flatten(1).topk(min(beam, count * letters))
        kept = answers.gather(1, (best // letters).unsqueeze(-1).expand(-1, -1, place))
        answers = torch.cat([kept, (best % letters).unsqueeze(-1)], dim=-1)
    return answers[:, 0]


def write(model: QRoboticTransformer, method: str, states: Tensor, beam: int) -> Tokens:
    """Answer prompts greedily, or by beam search."""
    if method == 'Q-learning':
        return model.get_optimal_actions(None, state=states, beam=beam).numpy()
    return most_likely(model, states, beam).numpy()


def share_of(answers: Tokens, wanted: Tokens) -> float:
    """Give the share of answers that are as wanted to the last token."""
    return float((answers == wanted).all(-1).mean())


def train(
    method: str, folder: ReplayFolder, exact: bool, task: Task, steps: int, seed: int
) -> QRoboticTransformer:
    """Train a new network."""
    network, out = task.network(seed), folder.folder.with_name('run')
    how = {'num_train_steps': steps, 'warmup_steps': steps // 10, 'learning_rate': 3e-3}
    how |= {'batch_size': 256, 'seed': seed, 'threads': 1}
    kept = [
        n for n, e in enumerate(folder.episodes) if e['return'] > 0 or 'filtered' not in method
    ]
    data = ReplayMemoryDataset(folder, condition_on_text=False, episodes=kept)
    if method == 'Q-learning':
        # Where the judge can be fooled, one verdict is no lower bound of an answer's worth.
        values = {'monte_carlo': True} if exact else {'monte_carlo': False, 'n_step_actions': 2}
        QLearner(network, dataset=data, checkpoint_folder=out, discount=1.0, **how, **values)()
    else:
        FineTuning(network, train=data, config=TrainConfig(**how), checkpoint_folder=out).run()
    return network


def main() -> None:
    """Train by every method under every judge, and print what each writes."""
    parser = argparse.ArgumentParser(description='Q-learning over tokens against fine-tuning')
    parser.add_argument('--steps', type=int, help='gradient steps of each training')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--quick', action='store_true', help='a small task, the exact judge only')
    args = parser.parse_args()
    task = Task(letters=8, prompt=3) if args.quick else Task()
    steps = args.steps or (200 if args.quick else 1200)
    random = np.random.default_rng(args.seed)
    held_out, seen = task.prompts(random)
    prompts = random.choice(seen, size=6000 if args.quick else 12000)
    answers = task.written(prompts, random)
    right = (answers == task.right(prompts)).all(-1)
    reverse = (answers == task.reverse(prompts)).all(-1) & ~right
    print(f'{len(answers)} answers, {right.mean():.0%} right, {reverse.mean():.0%} in reverse.')
    print(f'{steps} steps; what is written to {len(held_out)} prompts that are not in the data:\n')
    print(f'judge    method                    right  beam of {BEAM}  reverse  seconds')
    for judge, fooled in list(JUDGES.items())[: 1 if args.quick else None]:
        verdicts = right | reverse & (random.random(len(answers)) < fooled)
        shares = {}
        for method in METHODS:
            start = time.monotonic()
            with tempfile.TemporaryDirectory() as folder:
                replay = write_folder(Path(folder, 'replay'), task, prompts, answers, verdicts)
                network = train(method, replay, fooled == 0, task, steps, args.seed)
            seconds = time.monotonic() - start
            greedy, beam = (write(network, method, task.states(held_out), b) for b in (1, BEAM))
            shares[method] = share_of(greedy, task.right(held_out))
            print(
                f'{judge:8} {method:23} {shares[method]:7.1%} '
                f'{share_of(beam, task.right(held_out)):10.1%} '
                f'{share_of(greedy, task.reverse(held_out)):8.1%} {seconds:8.0f}',
                flush=True,
            )
        gained = {m: shares['Q-learning'] - shares[m] for m in METHODS[:2]}
        print(f'{judge:8} Q-learning, in points: ', end='')
        print(', '.join(f'{100 * gain:+.0f} on {m}' for m, gain in gained.items()), '\n')


if __name__ == '__main__':
    main()
