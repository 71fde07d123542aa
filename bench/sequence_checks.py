#!/usr/bin/env python3
# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Check that Decision Transformer and Gato do what they are for, and that the checks can fail.

    python bench/sequence_checks.py

trains on small tasks of known solution (`sequence_tasks.py`, `sequence_gato.py`) and prints a
table of what `sequence_verdicts.py` requires. Beside each claim stand variants that must not
fulfil it, so that what is measured is not in the task itself. Exits with 1 where a requirement is
missed, and names the rows.

    key-to-door   from random walks with a reward at their end, a Decision Transformer asked for
                  the best return is as good as cloning the best episodes, and cloning all is not
    wages         the more is asked for, the more is achieved
    recall        what was seen is known for as many steps as the context has, and no longer
    gato          one network for three bodies is as good as three networks
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
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from sequence_gato import BODIES, GATO, train_bodies, try_bounds
from sequence_tasks import TASKS
from sequence_verdicts import Mean, Row, Run, judge

from qt_core.evaluation import evaluate_policy
from qt_core.learning.run import make_trainer, parse_run
from qt_core.policies import Choice, load_policy

ROOT = Path(__file__).resolve().parents[1]
TEXT = ROOT / 'LICENSE'  # what Gato reads besides
SEEDS, GATO_SEEDS, PROCESSES = 3, 2, 2
CHECKS = (*TASKS, 'gato')
EPISODES = 200  # that a variant is tried on
SWEEP = tuple(n / 8 for n in range(9))  # of the best return
SWEEP_EPISODES = 30  # for each

NETWORK = {  # and a context of a whole episode, where a variant has no other
    'dim': 64,
    'depth': 2,
    'heads': 2,
    'dropout': 0.0,
    'condition_on_text': False,
}
LEARNING = {
    'policy': 'decision_transformer',
    'batch_size': 64,
    'learning_rate': 3e-3,
    'warmup_steps': 50,
    'schedule': 'cosine',
}
STEPS = {'key-to-door': 1300, 'wages': 400, 'recall': 700}


@dataclass(frozen=True)
class Variant:
    """A way to learn a task.

    Attributes:
        title: What it is.
        options: Training fields that differ.
        model: Fields of the network that differ.
        shuffled: Whether the data's rewards are those of other episodes.
        asked: Returns that it is asked for, in multiples of the best; None where it knows none.
    """

    title: str
    options: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    shuffled: bool = False
    asked: tuple[float | None, ...] = (1.0,)


CLONING: dict[str, Any] = {'model': {'return_conditioned': False}, 'asked': (None,)}
VARIANTS = {
    'key-to-door': {
        'filtered': Variant('cloning the best tenth', {'keep_best': 0.1}, **CLONING),
        'asked': Variant('asked for the best return'),
        'shuffled': Variant('asked, learned from shuffled returns', shuffled=True),
        'cloning': Variant('cloning all', **CLONING),
    },
    'wages': {
        'asked': Variant('asked for a part of the best return', asked=SWEEP),
        'shuffled': Variant('asked, learned from shuffled returns', shuffled=True, asked=SWEEP),
    },
    'recall': {
        'long': Variant('K = 20', model={'context': 20, 'max_ep_len': 20}),
        'middle': Variant('K = 5', model={'context': 5}),
        'short': Variant('K = 1', model={'context': 1}),
    },
}


def train(check: str, variant_name: str, seed: int) -> list[Run]:
    """Write a task's data, train a variant on it and try what the checkpoint holds."""
    start = time.monotonic()
    torch.set_num_threads(1)
    task, variant = TASKS[check](), VARIANTS[check][variant_name]
    with tempfile.TemporaryDirectory(prefix='sequence-checks-') as folder:
        replay, out = Path(folder, 'replay'), Path(folder, 'run')
        task.write(replay, seed, shuffled=variant.shuffled)
        steps = STEPS[check]
        content = {**LEARNING, 'num_train_steps': steps, 'checkpoint_every': steps, 'seed': seed}
        whole = {'context': task.length, 'max_ep_len': task.length}
        model = {**NETWORK, **whole, **variant.model}
        run = parse_run({**content, **variant.options, 'model': model})
        make_trainer(run, [replay], out).run()
        policy = load_policy(out / 'last')
    several = len(variant.asked) > 1
    tried = {}
    for asked in variant.asked:
        target = {} if asked is None else {'target_return': asked}
        policy.choose(Choice(temperature=1.0, **target))
        torch.manual_seed(seed)
        first = 10_000 * (seed + 1)
        episodes = range(first, first + (SWEEP_EPISODES if several else EPISODES))
        tried[asked] = [
            rollout.total_return for rollout in evaluate_policy(policy, task, episodes)
        ]
    seconds = (time.monotonic() - start) / len(tried)
    return [
        Run(check, variant_name, seed, tuple(returns), asked, seconds)
        for asked, returns in tried.items()
    ]


def submit(
    pool: ProcessPoolExecutor, checks: Sequence[str], seeds: int
) -> list[Future[list[Run]]]:
    """Have all variants of some checks trained."""
    return [
        pool.submit(train, check, variant, seed)
        for check in checks
        for seed in range(seeds)
        for variant in VARIANTS[check]
    ]


def run_all(checks: Sequence[str], seeds: int) -> list[Run]:
    """Do all trainings, two at a time; short ones last, so that both processes end together."""
    os.environ['OMP_NUM_THREADS'] = '1'  # of the processes, before they load torch
    spawn = multiprocessing.get_context('spawn')
    runs: list[Run] = []
    with (
        tempfile.TemporaryDirectory(prefix='sequence-checks-') as folder,
        ProcessPoolExecutor(PROCESSES, mp_context=spawn) as pool,
    ):
        jobs: list[Future[list[Run]]] = []
        data = {name: Path(folder, name) for name in BODIES if 'gato' in checks}
        written = [pool.submit(try_bounds, name, path) for name, path in data.items()]
        short = [check for check in checks if check == 'recall']  # while the last data are written
        rest = [check for check in checks if check in VARIANTS and check not in short]
        jobs += written + submit(pool, short, seeds)
        for done in written:
            done.result()
        if data:
            alone = [({name: path}, '') for name, path in data.items()]
            jobs += [
                pool.submit(train_bodies, bodies, text, seed)
                for bodies, text in ((data, str(TEXT)), *alone)
                for seed in range(min(seeds, GATO_SEEDS))
            ]
        jobs += submit(pool, rest, seeds)
        for count, done in enumerate(as_completed(jobs), 1):
            runs += (found := done.result())
            seconds = sum(run.seconds for run in found)
            print(f'{count}/{len(jobs)}, {seconds:.0f} s', file=sys.stderr)
            for run in found:
                asked = '' if run.asked is None else f' asked {run.asked:.3f}'
                what = f'{run.check} {run.variant} seed {run.seed}{asked}'
                print(f'  {what}: {Mean.of([run])}', file=sys.stderr)
    return runs


def table(rows: Sequence[Row]) -> Table:
    """Lay the rows out."""
    shown = Table(*('check', 'variant', 'return', 'required', '', 's'))
    before = ''
    for row in rows:
        check, variant = row.name.split(', ', 1)
        if before not in ('', check):
            shown.add_section()
        verdict = '' if not row.required else 'met' if row.met else 'MISSED'
        shown.add_row(
            '' if check == before else check,
            variant,
            row.found,
            row.required,
            verdict,
            f'{row.seconds:.0f}' if row.seconds else '',
        )
        before = check
    return shown


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument('--out', type=Path, default=ROOT / 'bench/results/sequence_checks.json')
    parser.add_argument('--only', nargs='+', choices=CHECKS, default=list(CHECKS))
    parser.add_argument(
        '--seeds', type=int, default=SEEDS, help=f'{SEEDS}; of gato at most {GATO_SEEDS}'
    )
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> int:
    """Run the checks; 0 where every requirement is met."""
    options = arguments(given)
    start = time.monotonic()
    runs = run_all(options.only, options.seeds)
    runs.sort(key=lambda run: (CHECKS.index(run.check), run.variant, run.asked or 0, run.seed))
    minutes = (time.monotonic() - start) / 60
    rows = judge(runs)
    missed = [f'{row.name}: {row.found}, required {row.required}' for row in rows if not row.met]
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(table(rows))
    for check in options.only:
        title = TASKS[check].title if check in TASKS else 'one network for all against one each'
        told = [f'{name} = {variant.title}' for name, variant in VARIANTS.get(check, {}).items()]
        line = '; '.join([f'  {check}: {title}', *told])
        console.print(line, style='dim', highlight=False)
    how = f'  {options.seeds} seeds; {minutes:.1f} minutes, {PROCESSES} processes; ± 3 errors'
    console.print(how, style='dim', highlight=False)
    for row in missed:
        console.print(f'missed: {row}', highlight=False)
    content = {
        'network': NETWORK,
        'learning': {**LEARNING, 'num_train_steps': STEPS},
        'gato': GATO,
        'rows': [dataclasses.asdict(row) for row in rows],
        'missed': missed,
        'seeds': options.seeds,
        'minutes': round(minutes, 1),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(content, indent=1) + '\n', encoding='utf-8')
    return 1 if missed else 0


if __name__ == '__main__':
    sys.exit(main())
