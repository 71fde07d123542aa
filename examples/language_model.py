# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Does the Q-Transformer apply to language models? A toy, against supervised fine-tuning.

A language model writes token by token; a Q-Transformer chooses an action dimension by dimension.
So an answer is one action: tokens are dimensions, the vocabulary is the bins, the prompt is the
state, and the verdict on the whole answer is the reward. The value of a prefix is then how good
an answer can still come of it.

The task has one right answer, which is known: the letters of the prompt in order, then how far
apart the first and the last are, as a letter, then the letter that the prompt began with. Most
answers to learn from are wrong: many writers put the letters in reverse, the others slip. A judge
says 1 or 0 of a whole answer, never where the mistake is. An exact judge approves right answers
only; a lenient one lets the reverse order pass every other time. On the same answers, with the
same network, trainer and number of steps:

    fine-tuning             imitates all answers, so no judge plays a part
    filtered fine-tuning    imitates those that the judge approved
    Q-learning              learns from all of them by the judge's verdict

What this shows: imitation follows what is frequent, also among what was approved; values follow
what is approved most reliably. So what is frequent and passes now and then takes filtered
fine-tuning in, and Q-learning less. Where the judge is exact, filtered fine-tuning has all that it
needs and learns faster.

What it does not show: anything about large models, real text, or learning from a model's own
answers. There the prompt would be tokens too, the first dimensions of the action, which
`get_optimal_actions(..., actions=prompt)` keeps.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from qt_core.learning.q_learner import QLearner
from qt_core.learning.trainer import TrainConfig, Trainer
from qt_core.models import QRoboticTransformer
from qt_core.replay import ReplayEpisode, ReplayMemoryDataset, ReplayWriter, WindowBatch

JUDGES = {'exact': 0.0, 'lenient': 0.5}  # how often the reverse order passes for right
METHODS = ('fine-tuning', 'filtered fine-tuning', 'Q-learning')
BEAM = 4
SIZES = {'frames': 1, 'dim': 64, 'depth': 1, 'decoder_depth': 1, 'heads': 4, 'dim_head': 16}

Tokens = NDArray[np.int64]


@dataclass(frozen=True)
class Task:
    """Prompts of some of the first letters; answers are two tokens longer."""

    letters: int = 12
    prompt: int = 4

    def prompts(self, random: np.random.Generator) -> tuple[Tokens, Tokens]:
        """Divide all prompts by chance into some to hold out and the others, each (n, P)."""
        every = np.indices((self.letters,) * self.prompt).reshape(self.prompt, -1).T
        held_out = min(500, len(every) // 5)
        return tuple(np.split(random.permutation(every), [held_out]))

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
        """Answer as the writers do: 70% in reverse, the others slip at 5% of the tokens."""
        right = self.right(prompts)
        slips = random.random(right.shape) < 0.05
        slipped = np.where(slips, random.integers(self.letters, size=right.shape), right)
        return np.where(random.random((len(right), 1)) < 0.7, self.reverse(prompts), slipped)

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
            condition_on_text=False,
            **SIZES,
        )


class FineTuning(Trainer):
    """Imitates answers: cross-entropy of each token, given those before it."""

    def loss(self, batch: WindowBatch) -> dict[str, Tensor]:
        """Compute the cross-entropy."""
        logits = self.model({}, batch.state[:, :-1], None, batch.bins)[0]
        return {'loss': F.cross_entropy(logits.flatten(0, -2), batch.bins.flatten())}


@torch.no_grad()
def most_likely(model: QRoboticTransformer, state: Tensor, beam: int) -> Tensor:
    """Search answers of large likelihood, as `get_optimal_actions` searches large values."""
    tokens = model.encode({}, state[:, None], None)
    length, letters = model.config.num_actions, model.config.action_bins
    answers, score = torch.zeros(len(state), 1, 0, dtype=torch.long), torch.zeros(len(state), 1)
    for place in range(length):
        count = answers.shape[1]
        known = F.pad(answers, (0, length - place)).flatten(0, 1)[:, None]
        logits = model.decode(tokens.repeat_interleave(count, dim=0), known)[0, :, 0, place]
        scores = score.unsqueeze(-1) + logits.log_softmax(-1).unflatten(0, (-1, count))
        score, best = scores.flatten(1).topk(min(beam, count * letters))
        kept = answers.gather(1, (best // letters).unsqueeze(-1).expand(-1, -1, place))
        answers = torch.cat([kept, (best % letters).unsqueeze(-1)], dim=-1)
    return answers[:, 0]


def write_folder(
    folder: Path, network: QRoboticTransformer, states: Tensor, answers: Tokens, rewards: Tokens
) -> ReplayMemoryDataset:
    """Store each answer as an episode of one step."""
    same = {'images': {}, 'terminal': True, 'timeout': False, 'instruction': ''}
    states, rewards = states.numpy()[:, None].repeat(2, axis=1), rewards.astype(np.float32)
    with ReplayWriter(folder, network.config, embed=None) as writer:
        for state, answer, reward in zip(states, answers[:, None], rewards[:, None], strict=True):
            writer.add(ReplayEpisode(state=state, bins=answer, reward=reward, **same))
    return ReplayMemoryDataset(folder, condition_on_text=False)


def main() -> None:
    """Train by every method under every judge, and print what each writes."""
    parser = argparse.ArgumentParser(description='Q-learning over tokens against fine-tuning')
    parser.add_argument('--steps', type=int, help='gradient steps of each training')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--quick', action='store_true', help='a small task, the exact judge only')
    args = parser.parse_args()
    task = Task(letters=6, prompt=3) if args.quick else Task()
    steps = args.steps or (240 if args.quick else 1000)
    how = {'num_train_steps': steps, 'batch_size': 128 if args.quick else 256}
    how |= {'learning_rate': 3e-3, 'warmup_steps': steps // 10, 'seed': args.seed, 'threads': 1}
    random = np.random.default_rng(args.seed)
    held_out, seen = task.prompts(random)
    prompts = random.choice(seen, size=6000 if args.quick else 12000)
    answers = task.written(prompts, random)
    right = (answers == task.right(prompts)).all(-1)
    reverse = (answers == task.reverse(prompts)).all(-1) & ~right
    print(f'{len(answers)} answers, {right.mean():.0%} right, {reverse.mean():.0%} in reverse.')
    print(f'{steps} steps; what is written to {len(held_out)} prompts that are not in the data:\n')
    print(f'judge    method                    right  beam of {BEAM}  reverse  seconds')
    shares: dict[str, float] = {}
    for judge, passes in list(JUDGES.items())[: 1 if args.quick else None]:
        approved = right | reverse & (random.random(len(answers)) < passes)
        for method in METHODS if judge == 'exact' else METHODS[1:]:
            kept = approved if method == 'filtered fine-tuning' else np.full(len(answers), True)
            start, network = time.monotonic(), task.network(args.seed)
            with tempfile.TemporaryDirectory() as out:
                states, run = task.states(prompts[kept]), Path(out, 'run')
                rewards, replay = approved[kept], Path(out, 'replay')
                data = write_folder(replay, network, states, answers[kept], rewards)
                if method == 'Q-learning':
                    # One lucky verdict is no lower bound of what an answer is worth.
                    more = {} if judge == 'exact' else {'monte_carlo': False, 'n_step_actions': 2}
                    more |= how | {'discount': 1.0}
                    QLearner(network, dataset=data, checkpoint_folder=run, **more).run()
                    decode = partial(network.get_optimal_actions, None)
                else:
                    config = TrainConfig(**how)
                    FineTuning(network, train=data, checkpoint_folder=run, config=config).run()
                    decode = partial(most_likely, network)
            seconds = time.monotonic() - start
            asked, wanted, back = (f(held_out) for f in (task.states, task.right, task.reverse))
            greedy, beam = (decode(state=asked, beam=width).numpy() for width in (1, BEAM))
            shares[method], searched, backwards = (
                (written == of).all(-1).mean()
                for written, of in ((greedy, wanted), (beam, wanted), (greedy, back))
            )
            row = f'{judge:8} {method:23} {shares[method]:7.1%} {searched:10.1%} {backwards:8.1%}'
            print(f'{row} {seconds:8.0f}', flush=True)
        ours = shares['Q-learning']
        gains = [f'{100 * (ours - shares[m]):+.0f} points on {m}' for m in METHODS[:2]]
        print(f'{judge:8} Q-learning: {", ".join(gains)}\n')


if __name__ == '__main__':
    main()
