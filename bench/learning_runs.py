# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""One learner on one task with one seed, for `learning.py`: probed, trained and tried.

    probe: seconds of a step ─▶ number of steps ─▶ train ─▶ last checkpoint ─▶ roll out ─▶ result

The budget is core-minutes: of a training with one thread, alone on the machine. Steps are probed
by the time that the process computes, which other processes hardly change, and their number is
fixed before the first, so that each learner's schedule ends with its budget.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from learning_data import TASKS, Budget, evaluation_seeds, write

from qt_core.evaluation import Rollout, evaluate_policy, roll_out
from qt_core.learning.run import make_trainer, parse_run
from qt_core.policies import RandomPolicy, load_policy
from qt_core.replay import ReplayFolder

CONFIGS = Path(__file__).resolve().parents[1] / 'config/train'
PROBE_SECONDS = 15.0  # and no more than a tenth of the budget
WARM_UP = 2  # steps before the clock runs


@dataclass(frozen=True)
class Learner:
    """A way to learn.

    Attributes:
        title: What it is.
        config: Its file in config/train.
        model: Fields of its network that differ.
    """

    title: str
    config: str
    model: dict[str, Any] = field(default_factory=dict)


LEARNERS = {
    'q_transformer': Learner('Q-Transformer', 'reach.yaml'),
    'q_single': Learner('Q, dimensions apart', 'reach.yaml', {'head': 'single'}),
    'decision_transformer': Learner('Decision Transformer', 'reach_decision_transformer.yaml'),
    'gato': Learner('Gato', 'reach_gato.yaml'),
    'cloning': Learner('behaviour cloning', 'reach_behaviour_cloning.yaml'),
    'filtered_cloning': Learner('the same on successes', 'reach_filtered_behaviour_cloning.yaml'),
}
REFERENCES = {'random': 'random bins', 'reference': 'scripted solution'}


class SettingsError(ValueError):
    """A folder that holds a run of other settings."""


@dataclass(frozen=True)
class Job:
    """One learner, or a reference, on one task with one seed.

    Attributes:
        task: A key of `TASKS`.
        learner: A key of `LEARNERS` or `REFERENCES`.
        seed: Seed of the data, the weights and the order of the data.
        budget: What it may spend.
        out: Folder of the whole comparison.
    """

    task: str
    learner: str
    seed: int
    budget: Budget
    out: Path

    @property
    def folder(self) -> Path:
        """Where it keeps what it does."""
        return self.out / self.task / self.learner / f'seed-{self.seed}'

    @property
    def replay(self) -> Path:
        """The data, the same for all learners."""
        return self.out / self.task / 'data' / f'seed-{self.seed}'


@dataclass(frozen=True)
class Probe:
    """What a learner's steps take and hold.

    Attributes:
        seconds: Of one gradient step, computing.
        windows: Samples of it.
        actions: Steps of demonstrations that those hold, and that are trained on.
    """

    seconds: float
    windows: int
    actions: float


@dataclass(frozen=True, kw_only=True)
class Result:
    """What came of a job.

    Attributes:
        successes: Episodes that succeeded.
        episodes: Episodes tried.
        length: Mean steps of an episode.
        parameters: Numbers that the network learns.
        steps: Gradient steps.
        windows: Samples seen.
        actions: Steps of demonstrations seen, in all samples.
        minutes: Core-minutes that the steps were to take, by the probe.
        wall_minutes: Minutes that they took, beside whatever else the machine did.
        error: Why there is no result; empty where there is one.
    """

    task: str
    learner: str
    seed: int
    successes: int = 0
    episodes: int = 0
    length: float = 0.0
    parameters: int = 0
    steps: int = 0
    windows: int = 0
    actions: int = 0
    minutes: float = 0.0
    wall_minutes: float = 0.0
    error: str = ''


def content(job: Job, steps: int) -> dict[str, Any]:
    """Give the training configuration of a job, as `parse_run` takes it."""
    learner = LEARNERS[job.learner]
    found: dict[str, Any] = yaml.safe_load((CONFIGS / learner.config).read_text('utf-8'))
    policy = found.setdefault('policy', 'q_transformer')
    found |= TASKS[job.task].learning.get(policy, {})
    found |= {
        'num_train_steps': steps,
        'warmup_steps': min(found.get('warmup_steps', 200), steps // 10),
        'checkpoint_every': max(1, steps // 4),  # where a run that was killed goes on
        'seed': job.seed,
        'threads': 1,
    }
    found['model'] = {**found.get('model', {}), **learner.model}
    if found.get('keep_best', 1.0) < 1:  # where a reward means success: keep all that earned one
        folder = ReplayFolder(job.replay)
        kept = sum(episode['steps'] for episode in folder.episodes if episode['return'] > 0)
        found['keep_best'] = max(kept, 1) / folder.steps
    return found


def write_data(job: Job) -> dict[str, Any]:
    """Write the data of a job, where they are not there, and say what they are."""
    write(TASKS[job.task], job.replay, job.budget.data, job.seed)
    folder = ReplayFolder(job.replay)
    return {
        'episodes': len(folder.episodes),
        'steps': folder.steps,
        'successes': folder.successes / len(folder.episodes),
    }


def probe(job: Job) -> Probe:
    """Measure a learner's steps; what was measured before stays, so that a run can go on."""
    path = job.folder.parent / 'probe.json'
    if path.is_file():
        return Probe(**json.loads(path.read_text('utf-8')))
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix='learning-bench-') as scratch:
        trainer = make_trainer(parse_run(content(job, 1)), [job.replay], Path(scratch, 'run'))
        windows = actions = steps = 0
        seconds = min(PROBE_SECONDS, 6 * job.budget.minutes)
        for step in range(WARM_UP):
            trainer.train_step(trainer.load_batches(step))
        start = time.process_time()
        while steps < 3 or time.process_time() - start < seconds:
            batches = trainer.load_batches(WARM_UP + steps)
            trainer.train_step(batches)
            windows += sum(len(batch.valid) for batch in batches)
            actions += sum(int(batch.valid.sum()) for batch in batches)
            steps += 1
        taken = time.process_time() - start
    found = Probe(taken / steps, windows // steps, actions / steps)
    _save(path, dataclasses.asdict(found))
    return found


def settings(job: Job) -> dict[str, Any]:
    """Give all that a result depends on but the probe; the data must be there."""
    learning = content(job, 0) if job.learner in LEARNERS else {}
    return {'budget': dataclasses.asdict(job.budget), **learning}


def begun(job: Job) -> dict[str, Any]:
    """Give the settings that a job was begun with; none where it was not."""
    path = job.folder / 'settings.json'
    return json.loads(path.read_text('utf-8')) if path.is_file() else {}


def finished(job: Job) -> Result | None:
    """Give the result of a job that was done before, None where there is none.

    Raises:
        SettingsError: It was done, or begun, with other settings.
    """
    theirs = begun(job)
    if theirs:
        ours = settings(job)
        for name in {**theirs, **ours}:
            if theirs.get(name) != ours.get(name):
                raise SettingsError(
                    f'{job.folder} was begun with {name} {theirs.get(name)}, not '
                    f'{ours.get(name)}: choose another --out, or remove it'
                )
    path = job.folder / 'result.json'
    return Result(**json.loads(path.read_text('utf-8'))) if path.is_file() else None


def do(job: Job, measured: Probe | None) -> Result:
    """Do a job, or go on with it; `measured` is None for a reference."""
    torch.set_num_threads(1)
    _save(job.folder / 'settings.json', settings(job))
    if measured is None:
        result = Result(task=job.task, learner=job.learner, seed=job.seed)
    else:
        result = _train(job, measured)
    rollouts = _roll_out(job)
    result = dataclasses.replace(
        result,
        successes=sum(rollout.success for rollout in rollouts),
        episodes=len(rollouts),
        length=sum(rollout.steps for rollout in rollouts) / len(rollouts),
    )
    _save(job.folder / 'result.json', dataclasses.asdict(result))
    return result


def _train(job: Job, measured: Probe) -> Result:
    steps = max(1, int(60 * job.budget.minutes / measured.seconds))
    run = job.folder / 'run'
    resume = (run / 'trainer/state.json').is_file()
    if not resume:
        shutil.rmtree(run, ignore_errors=True)  # of a run that was killed before its first
    trainer = make_trainer(parse_run(content(job, steps)), [job.replay], run, resume=resume)
    trainer.run()
    return Result(
        task=job.task,
        learner=job.learner,
        seed=job.seed,
        parameters=sum(weight.numel() for weight in trainer.network.parameters()),
        steps=steps,
        windows=steps * measured.windows,
        actions=round(steps * measured.actions),
        minutes=round(steps * measured.seconds / 60, 2),
        wall_minutes=round(trainer.seconds / 60, 2),
    )


def _roll_out(job: Job) -> list[Rollout]:
    """Try what a job is about on the episodes that all learners of its seed are tried on."""
    environment: Any = TASKS[job.task].environment(job.seed)
    seeds = evaluation_seeds(job.seed, job.budget.episodes)
    try:
        if job.learner == 'reference':
            reset, act = TASKS[job.task].reference(environment)
            return [roll_out(environment, reset, act, seed) for seed in seeds]
        if job.learner == 'random':
            body = environment.contract or environment.spec
            return evaluate_policy(RandomPolicy(body, job.seed), environment, seeds)
        return evaluate_policy(load_policy(job.folder / 'run/last', 'cpu'), environment, seeds)
    finally:
        if hasattr(environment, 'simulation'):
            environment.simulation.close()


def _save(path: Path, values: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f'{path.name}.partial')
    partial.write_text(json.dumps(values, indent=1) + '\n', encoding='utf-8')
    partial.rename(path)
