#!/usr/bin/env python3
# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Compare six learners on the same data, with the same budget and seeds, by success rate.

    python bench/learning.py            hours; writes docs/results.md
    python bench/learning.py --quick    half an hour on 2 cores; prints the table of `reach`

Q-Transformer, its form whose dimensions do not see each other, Decision Transformer, Gato,
behaviour cloning, and the same on successes alone; beside them random bins and the scripted
solution. A run that was ended goes on where it was; what is done is not done again. Exits with 1
where a requirement is missed, and names the rows; a quick run requires nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import multiprocessing
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import learning_runs
import torch
from learning_data import QUICK, TASKS
from learning_report import Row, errors, misses, page, plot, rows, table
from learning_runs import LEARNERS, REFERENCES, Job, Probe, Result, SettingsError, begun
from rich.console import Console

ROOT = Path(__file__).resolve().parents[1]
SEEDS = (0, 1, 2)
Say = Callable[[str], None]


class InThisProcess(Executor):
    """Does what is submitted at once."""

    def submit(self, function: Callable[..., Any], /, *given: Any, **options: Any) -> Future[Any]:
        """Call the function."""
        future: Future[Any] = Future()
        try:
            future.set_result(function(*given, **options))
        except Exception as error:
            future.set_exception(error)
        return future


@contextmanager
def workers(count: int) -> Iterator[Executor]:
    """Give `count` processes of one thread each, without a GPU; for one, this process."""
    if count == 1:
        yield InThisProcess()
        return
    # Before the processes load torch. One thread each: two trainings side by side do more steps
    # than two threads do for one after the other (about 4.0 against 3.4 a second).
    os.environ.update(OMP_NUM_THREADS='1', CUDA_VISIBLE_DEVICES='')
    with ProcessPoolExecutor(count, mp_context=multiprocessing.get_context('spawn')) as pool:
        yield pool


def prepare(jobs: Sequence[Job], pool: Executor, say: Say) -> dict[str, list[dict[str, Any]]]:
    """Write the data; give what those of each task and seed are."""
    by_data = {job.replay: job for job in jobs}
    waiting = [(job, pool.submit(learning_runs.write_data, job)) for job in by_data.values()]
    data: dict[str, list[dict[str, Any]]] = {}
    for job, future in waiting:
        facts = {'seed': job.seed, **future.result()}
        data.setdefault(job.task, []).append(facts)
        found = f'{facts["episodes"]} episodes, {facts["successes"]:.0%} successes'
        say(f'{job.task}, seed {job.seed}: {found}')
    return data


def compare(jobs: Sequence[Job], pool: Executor, say: Say) -> list[Result]:
    """Probe every learner and do all jobs, for which the data are there.

    An error in one leaves the others.

    Raises:
        SettingsError: A folder holds a run of other settings.
    """
    results = [result for job in jobs if (result := learning_runs.finished(job)) is not None]
    done = {(result.task, result.learner, result.seed) for result in results}
    left = [job for job in jobs if (job.task, job.learner, job.seed) not in done]
    if done:
        say(f'{len(done)} of {len(jobs)} were done before')
    first = {(job.task, job.learner): job for job in reversed(left) if job.learner in LEARNERS}
    asked = {pool.submit(learning_runs.probe, job): name for name, job in first.items()}
    probes: dict[tuple[str, str], Probe] = {}
    failed: dict[tuple[str, str], str] = {}
    for future in as_completed(asked):
        name = asked[future]
        try:
            probes[name] = future.result()
            say(f'{", ".join(name)}: {probes[name].seconds:.3f} s a step')
        except Exception as error:
            failed[name] = _line(error)
            say(f'{", ".join(name)}: {failed[name]}')
    running: dict[Future[Result], Job] = {}
    for job in left:
        name = (job.task, job.learner)
        if name in failed:
            results.append(_failure(job, failed[name]))
        else:
            running[pool.submit(learning_runs.do, job, probes.get(name))] = job
    for number, future in enumerate(as_completed(running), 1):
        job = running[future]
        try:
            result = future.result()
        except Exception as error:
            result = _failure(job, _line(error))
        results.append(result)
        found = result.error or f'{result.successes}/{result.episodes}'
        where = f'{job.task}, {job.learner}, seed {job.seed}'
        say(f'{number}/{len(running)} {where}: {found} ({result.wall_minutes:.1f} minutes)')
    places = {(job.task, job.learner, job.seed): place for place, job in enumerate(jobs)}
    return sorted(results, key=lambda result: places[result.task, result.learner, result.seed])


def _failure(job: Job, error: str) -> Result:
    return Result(task=job.task, learner=job.learner, seed=job.seed, error=error)


def _line(error: BaseException) -> str:
    return f'{type(error).__name__}: {" ".join(str(error).split())[:300]}'


def jobs_of(options: argparse.Namespace) -> list[Job]:
    """Give what is to be done; the seeds of a learner one after the other, tasks last."""
    jobs = []
    for task in options.tasks:
        budget = TASKS[task].budget
        if options.quick:
            turns = math.ceil(len(options.only) * len(options.seeds) / options.processes)
            shared = min(budget.minutes, QUICK[task].minutes / turns)
            budget = dataclasses.replace(QUICK[task], minutes=shared)
        if options.minutes is not None:
            budget = dataclasses.replace(budget, minutes=options.minutes)
        if options.episodes is not None:
            budget = dataclasses.replace(budget, episodes=options.episodes)
        for seed in options.seeds:
            for learner in (*REFERENCES, *options.only):
                jobs.append(Job(task, learner, seed, budget, options.out))
    return jobs


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    one_task = f'{", ".join(QUICK)} alone, one seed, and little of everything'
    parser.add_argument('--quick', action='store_true', help=one_task)
    parser.add_argument('--only', nargs='+', choices=list(LEARNERS), default=list(LEARNERS))
    parser.add_argument('--tasks', nargs='+', choices=list(TASKS))
    parser.add_argument('--seeds', nargs='+', type=int, help=f'default: {SEEDS}; quick: 0')
    minutes = 'core-minutes of each training, on every task'
    parser.add_argument('--minutes', type=float, help=minutes)
    parser.add_argument('--episodes', type=int, help='of each evaluation')
    parser.add_argument('--processes', type=int, default=2, help='trainings side by side')
    folder = 'what is trained, and the results of a part; default: out/learning, or -quick'
    parser.add_argument('--out', type=Path, help=folder)
    part = 'write docs/results.md of a part of the comparison, too'
    parser.add_argument('--publish', action='store_true', help=part)
    options = parser.parse_args(given)
    options.tasks = options.tasks or list(QUICK if options.quick else TASKS)
    options.seeds = options.seeds or list((0,) if options.quick else SEEDS)
    options.out = options.out or ROOT / f'out/learning{"-quick" if options.quick else ""}'
    if options.quick and not set(options.tasks) <= set(QUICK):
        parser.error(f'--quick is for {", ".join(QUICK)} alone')
    if (
        min(options.seeds) < 0
        or max(options.seeds) > 9
        or len(set(options.seeds)) < len(options.seeds)
    ):
        parser.error(f'--seeds is {options.seeds}, expected different numbers in 0..9')
    for name in ('minutes', 'episodes', 'processes'):
        value = getattr(options, name)
        if value is not None and not value > 0:
            parser.error(f'--{name} is {value}, expected more than 0')
    return options


def whole(options: argparse.Namespace) -> bool:
    """Whether a run is what docs/results.md tells of: every learner, task and seed, in full."""
    parts = (options.quick, options.minutes, options.episodes)
    everything = set(options.only) == set(LEARNERS) and set(options.tasks) == set(TASKS)
    return not any(parts) and everything and set(options.seeds) >= set(SEEDS)


def part_of(options: argparse.Namespace) -> str:
    """Give the command that does what `options` say, where they are not all there is."""
    command = ['python bench/learning.py', *(['--quick'] if options.quick else [])]
    for name, default in (
        ('only', list(LEARNERS)),
        ('tasks', list(QUICK if options.quick else TASKS)),
        ('seeds', [0] if options.quick else list(SEEDS)),
        ('minutes', None),
        ('episodes', None),
    ):
        value = getattr(options, name)
        if value != default:
            values = value if isinstance(value, list) else [value]
            command += [
                f'--{name}',
                *(f'{v:g}' if isinstance(v, float) else str(v) for v in values),
            ]
    return ' '.join(command)


def publish(root: Path, content: dict[str, Any], found: Sequence[Row]) -> None:
    """Write figures, page and picture below `root`."""
    figures = root / 'bench/results/learning.json'
    figures.parent.mkdir(parents=True, exist_ok=True)
    figures.write_text(json.dumps(content, indent=1) + '\n', encoding='utf-8')
    plot(found, root / 'docs/images/results.png')
    text = page(content, found, 'images/results.png')
    (root / 'docs/results.md').write_text(text, encoding='utf-8')


def main(given: Sequence[str] | None = None) -> int:
    """Compare; 0 where every requirement is met and every job has a result."""
    options = arguments(given)
    start = time.monotonic()
    console = Console(width=None if sys.stdout.isatty() else 120)
    say = Console(stderr=True, highlight=False, soft_wrap=True).print
    jobs = jobs_of(options)
    try:
        with workers(options.processes) as pool:
            data = prepare(jobs, pool, say)
            results = compare(jobs, pool, say)
    except SettingsError as error:
        print(f'bench/learning.py: {error}', file=sys.stderr)
        return 2
    found = rows(results)
    content = {
        'part': '' if whole(options) else part_of(options),
        'required': not options.quick,
        'machine': machine(options.processes),
        'seeds': options.seeds,
        'budgets': {job.task: dataclasses.asdict(job.budget) for job in jobs},
        'data': data,
        'settings': {
            f'{job.task}, {job.learner}, seed {job.seed}': begun(job)
            for job in jobs
            if job.seed == options.seeds[0] and begun(job)
        },
        'results': [dataclasses.asdict(result) for result in results],
        'rows': [dataclasses.asdict(row) for row in found],
        'missed': [] if options.quick else misses(found),
        'errors': errors(found),
    }
    console.print(table(found))
    for task in options.tasks:
        console.print(f'  {task}: {TASKS[task].title}', style='dim', highlight=False)
    how = (
        f'  min: core-minutes of each training, {options.processes} side by side; '
        f'{(time.monotonic() - start) / 60:.0f} minutes in all'
    )
    console.print(how, style='dim', highlight=False)
    for row in content['errors']:
        console.print(f'error: {row}', highlight=False, soft_wrap=True)
    for row in content['missed']:
        console.print(f'missed: {row}', highlight=False, soft_wrap=True)
    public = options.publish or whole(options)
    publish(ROOT if public else options.out / 'report', content, found)
    return 1 if content['missed'] or content['errors'] else 0


def machine(processes: int) -> dict[str, Any]:
    """Say what a run was done on."""
    return {
        'cores': os.cpu_count(),
        'processor': platform.processor() or platform.machine(),
        'processes': processes,
        'python': platform.python_version(),
        'torch': torch.__version__,
    }


if __name__ == '__main__':
    sys.exit(main())
