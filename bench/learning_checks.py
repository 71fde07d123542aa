#!/usr/bin/env python3
# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Check that `QLearner` learns what it should, and what each of its ingredients is for.

    python bench/learning_checks.py

trains on four small tasks of known solution (see `learning_tasks.py`), whole and with one
ingredient removed, and prints a table. Variants of a task share data, network, number of steps and
options. Exits with 1 where a requirement is missed, and names the rows.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from learning_tasks import TASKS, Act
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch import Tensor

from qt_core.learning.losses import conservative_loss, temporal_difference_loss
from qt_core.learning.q_learner import QLearner
from qt_core.models import QRoboticTransformer
from qt_core.replay import ReplayMemoryDataset, WindowBatch

ROOT = Path(__file__).resolve().parents[1]
SEEDS, PROCESSES = 3, 2
NETWORK = {
    'frames': 1,
    'dim': 64,
    'depth': 1,
    'decoder_depth': 1,
    'heads': 2,
    'dim_head': 16,
    'dueling': True,
}
LEARNING = {'batch_size': 256, 'learning_rate': 2e-3, 'warmup_steps': 50, 'target_decay': 0.95}
LEAST = 0.95  # share that the whole learner solves
COPIES = 0.20  # and that behaviour cloning stays below, in the corridor
HURTS = 0.10  # an ingredient is for something where its removal loses at least this share


@dataclass(frozen=True)
class Variant:
    """A way to learn.

    Attributes:
        title: What it is.
        learner: What trains.
        head: The network's.
        options: Options of the learner that differ.
        tasks: Tasks it is tried on; empty for all.
        hurts: Tasks in which removing this ingredient must cost success.
    """

    title: str
    learner: type[QLearner] = QLearner
    head: str = 'encoder_decoder'
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    tasks: tuple[str, ...] = ()
    hurts: tuple[str, ...] = ()


class Cloner(QLearner):
    """Behaviour cloning: the same network and loop, to predict the bins in the data."""

    def loss(self, batch: WindowBatch) -> dict[str, Tensor]:
        """Compute the cross-entropy of the bins."""
        logits = self.model({}, batch.state[:, :-1], None, batch.bins)[0]
        taken = batch.bins[batch.valid]
        return {'loss': F.cross_entropy(logits[batch.valid].flatten(0, 1), taken.flatten())}


class ReturnRegression(QLearner):
    """No bootstrap: values are regressed to the returns that were observed."""

    def loss(self, batch: WindowBatch) -> dict[str, Tensor]:
        """Compute the two terms of the loss, with the return as every dimension's target."""
        q = self.target.values(self.model({}, batch.state[:, :-1], None, batch.bins)[0])
        targets = batch.returns.unsqueeze(-1).expand(batch.bins.shape)
        loss = temporal_difference_loss(q, batch.bins, targets, batch.valid)
        conservative = conservative_loss(q, batch.bins, batch.valid)
        return {'loss': loss + self.config.conservative_weight * conservative}


VARIANTS = {
    'full': Variant('full'),
    'no-conservative': Variant(
        '− conservative', options={'conservative_weight': 0.0}, hurts=('bandit',)
    ),
    # Without it the reward has to pass through all eight dimensions, one update after the other:
    # the bandit is learned as well, but not in the steps it is given.
    'no-monte-carlo': Variant('− Monte-Carlo', options={'monte_carlo': False}, hurts=('bandit',)),
    'independent': Variant('− autoregression', head='single', hurts=('bandit',)),
    'no-bootstrap': Variant(
        '− bootstrap', learner=ReturnRegression, tasks=('stitching',), hurts=('stitching',)
    ),
    'cloning': Variant('cloning', learner=Cloner),
}


@dataclass(frozen=True)
class Run:
    """One training."""

    task: str
    variant: str
    seed: int
    success: float
    seconds: float


def policy(model: QRoboticTransformer) -> Act:
    """Give a model's best actions as a function of states."""

    def act(states: NDArray[np.float32]) -> NDArray[np.int64]:
        bins = model.get_optimal_actions(None, state=torch.from_numpy(states))
        assert isinstance(bins, Tensor)
        return bins.numpy()

    return act


def train(task_name: str, variant_name: str, seed: int) -> Run:
    """Write a task's data, train a variant on it and measure what the checkpoint would hold."""
    start = time.monotonic()
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    task, variant = TASKS[task_name](seed), VARIANTS[variant_name]
    model = QRoboticTransformer(
        **task.spec.fields(), condition_on_text=False, head=variant.head, **NETWORK
    )
    options = {**LEARNING, **task.learning, **variant.options}
    with tempfile.TemporaryDirectory(prefix='learning-checks-') as folder:
        task.write(Path(folder, 'replay'))
        learner = variant.learner(
            model,
            dataset=ReplayMemoryDataset(Path(folder, 'replay'), condition_on_text=False),
            checkpoint_folder=Path(folder, 'checkpoints'),
            checkpoint_every=options['num_train_steps'],
            seed=seed,
            **options,
        )
        learner()
        success = task.success(policy(learner.deployed()))
    return Run(task_name, variant_name, seed, success, time.monotonic() - start)


def train_all(jobs: Sequence[tuple[str, str, int]]) -> list[Run]:
    """Train all (task, variant, seed), two at a time."""
    os.environ['OMP_NUM_THREADS'] = '1'  # of the processes, before they load torch
    runs: list[Run] = []
    spawn = multiprocessing.get_context('spawn')
    with ProcessPoolExecutor(PROCESSES, mp_context=spawn) as pool:
        for done in as_completed([pool.submit(train, *job) for job in jobs]):
            runs.append(run := done.result())
            line = f'{len(runs)}/{len(jobs)} {run.task}, {run.variant}, seed {run.seed}'
            print(f'{line}: {run.success:.0%} in {run.seconds:.0f} s', file=sys.stderr)
    return runs


def misses(runs: Sequence[Run]) -> list[str]:
    """Name the rows that miss a requirement; rows that were not run miss none."""
    found = []
    for task in TASKS:
        share = {variant: average(runs, task, variant) for variant in VARIANTS}
        full, cloned = share['full'], share['cloning']
        if full is not None and full < LEAST:
            found.append(f'{task}, full: {full:.0%}, required ≥ {LEAST:.0%}')
        if task == 'corridor' and cloned is not None and cloned >= COPIES:
            found.append(f'{task}, cloning: {cloned:.0%}, required < {COPIES:.0%}')
        for name, variant in VARIANTS.items():
            without = share[name]
            if task not in variant.hurts or without is None or full is None:
                continue
            if without > full - HURTS:
                found.append(f'{task}, {name}: {without:.0%}, required ≤ {full - HURTS:.0%}')
    return found


def average(runs: Sequence[Run], task: str, variant: str) -> float | None:
    """Average the success over the seeds; None where there is no run."""
    values = [run.success for run in runs if (run.task, run.variant) == (task, variant)]
    return mean(values) if values else None


def requirement(task: str, variant: str) -> str:
    """Say what a row must reach."""
    if variant == 'full':
        return f'≥ {LEAST:.0%}'
    if variant == 'cloning' and task == 'corridor':
        return f'< {COPIES:.0%}'
    return f'{HURTS:.0%} less' if task in VARIANTS[variant].hurts else ''


def table(runs: Sequence[Run]) -> Table:
    """Lay the runs out, one row per task and variant."""
    shown = Table(*('task', 'variant', 'solved', 'over seeds', 'required', '', 's'))
    missed = [row.split(':')[0] for row in misses(runs)]
    for task in TASKS:
        rows = [v for v in VARIANTS if average(runs, task, v) is not None]
        for index, variant in enumerate(rows):
            ours = [run for run in runs if (run.task, run.variant) == (task, variant)]
            values, required = [run.success for run in ours], requirement(task, variant)
            shown.add_row(
                '' if index else task,
                VARIANTS[variant].title,
                f'{mean(values):.1%}',
                f'{min(values):.0%} … {max(values):.0%}',
                required,
                '' if not required else 'MISSED' if f'{task}, {variant}' in missed else 'met',
                f'{mean(run.seconds for run in ours):.0f}',
                end_section=index == len(rows) - 1,
            )
    return shown


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument('--out', type=Path, default=ROOT / 'bench/results/learning_checks.json')
    parser.add_argument('--task', nargs='+', choices=list(TASKS), default=list(TASKS))
    parser.add_argument('--variant', nargs='+', choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument('--quick', action='store_true', help='one seed, to try it')
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> int:
    """Run the checks; 0 where every requirement is met."""
    options = arguments(given)
    start = time.monotonic()
    jobs = [
        (task, variant, seed)
        for task in options.task
        for variant in options.variant
        for seed in range(1 if options.quick else SEEDS)
        if task in (VARIANTS[variant].tasks or TASKS)
    ]
    runs = train_all(jobs)
    runs.sort(key=lambda run: (list(TASKS).index(run.task), run.variant, run.seed))
    minutes = (time.monotonic() - start) / 60
    missed = misses(runs)
    console = Console()
    console.print(table(runs))
    for task in options.task:
        console.print(f'  {task}: {TASKS[task].title}', style='dim', highlight=False)
    seeds = len({run.seed for run in runs})
    how = f'  {seeds} seeds; {minutes:.1f} minutes, {PROCESSES} processes'
    console.print(how, style='dim', highlight=False)
    for row in missed:
        console.print(f'missed: {row}', highlight=False)
    content = {
        'network': NETWORK,
        'learning': {task: {**LEARNING, **TASKS[task].learning} for task in options.task},
        'runs': [dataclasses.asdict(run) for run in runs],
        'missed': missed,
        'minutes': round(minutes, 1),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(content, indent=1) + '\n', encoding='utf-8')
    return 1 if missed else 0


if __name__ == '__main__':
    sys.exit(main())
