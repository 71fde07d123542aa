# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0

import json
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from qt_core.replay import ReplayFolder

BENCH = Path(__file__).resolve().parents[2] / 'bench'


@pytest.fixture(scope='module')
def bench():
    sys.path.insert(0, str(BENCH))
    try:
        import learning_checks

        yield learning_checks
    finally:
        sys.path.remove(str(BENCH))


@pytest.fixture(scope='module')
def tasks(bench):
    return {name: kind(0) for name, kind in bench.TASKS.items()}


def place_of(task, states):
    """The places of states (B, S)."""
    same = (states[:, None] == task.looks[None]).all(-1)
    assert (same.sum(1) == 1).all()
    return same.argmax(1)


def best(task):
    """Act by the solution."""

    def act(states):
        place = place_of(task, states)
        if task.name == 'bandit':
            return task.b[place]
        bins = task.code[place].copy()
        if task.name == 'corridor':
            bins[:, 0] = 2
        return bins

    return act


def rows(runs, bench):
    return [bench.Run(task, variant, 0, success, 1.0) for task, variant, success in runs]


@pytest.mark.parametrize('name', ['bandit', 'corridor', 'stitching', 'failures'])
def test_only_the_solution_solves(tasks, name):
    task = tasks[name]
    assert task.success(best(task)) == 1
    for dimension in range(task.num_actions):

        def wrong(states, dimension=dimension):
            bins = best(task)(states)
            bins[:, dimension] = (bins[:, dimension] + 1) % task.action_bins
            return bins

        assert task.success(wrong) <= 1 / 16


def test_bandit_pays_for_no_mixture_of_its_best_actions(tasks):
    task = tasks['bandit']
    assert (task.a != task.b).all()
    mixed = np.concatenate([task.a[:, :4], task.b[:, 4:]], axis=1)
    assert task.success(lambda states: mixed[place_of(task, states)]) == 0


def test_bandit_data_are_what_it_says(tasks):
    task = tasks['bandit']
    episodes = list(task.episodes())
    place = place_of(task, np.stack([episode.state[0] for episode in episodes]))
    bins = np.concatenate([episode.bins for episode in episodes])
    reward = np.array([episode.reward[0] for episode in episodes])
    good = task.good(place, bins)
    either = ((bins == task.a[place]) | (bins == task.b[place])).all(-1)
    assert good.mean() == pytest.approx(0.4, abs=0.03)
    assert (either & ~good).mean() == pytest.approx(0.4, abs=0.03)
    assert reward[~good].sum() == 0
    assert reward[good].mean() == pytest.approx(0.4, abs=0.04)


def test_corridor_moves_left_and_right(tasks):
    task = tasks['corridor']
    code = task.code[5, 1]
    moves = np.array([[0, code], [1, code], [2, code], [0, (code + 1) % 3], [2, (code + 1) % 3]])
    assert task.after(np.full(5, 5), moves).tolist() == [4, 5, 6, 5, 5]
    assert task.after(np.array([0]), np.array([[0, task.code[0, 1]]])).tolist() == [0]


def test_corridor_ends_at_the_goal_or_in_time(tasks):
    task = tasks['corridor']
    episodes = list(task.episodes())
    for episode in episodes:
        reached = place_of(task, episode.state[-1:])[0] == task.length
        assert episode.terminal == reached == episode.reward.sum()
        assert episode.terminal or (episode.timeout and len(episode.bins) == 40)
    assert 0 < np.mean([episode.terminal for episode in episodes]) < 0.5


def test_stitching_never_shows_a_whole_path(tasks):
    task = tasks['stitching']
    half = task.length // 2
    ends = set()
    for episode in task.episodes():
        place = place_of(task, episode.state) % (task.length + 1)
        assert place.max() <= half or place.min() >= half
        if place[-1] in (half, task.length):
            ends.add((int(place[-1]), episode.terminal, float(episode.reward.sum())))
        if place.max() < half:
            assert episode.terminal
            assert episode.reward.sum() == 0
    assert {(half, False, 0.0), (task.length, True, 1.0)} <= ends
    assert ends <= {(half, False, 0.0), (half, True, 0.0), (task.length, True, 1.0)}


def test_failures_fail_nine_times_of_ten(tasks):
    task = tasks['failures']
    episodes = list(task.episodes())
    assert np.mean([episode.reward.sum() for episode in episodes]) == pytest.approx(0.1, abs=0.03)
    start = np.stack([episode.state[0] for episode in episodes])
    first = np.stack([episode.bins[0] for episode in episodes])
    right = (first == best(task)(start)).all(-1).mean()
    assert 0.4 < right < 0.48


@pytest.mark.parametrize('name', ['bandit', 'corridor', 'stitching', 'failures'])
def test_data_are_a_function_of_the_seed(bench, name):
    one, again, other = (
        [e.bins.tolist() for e in islice(bench.TASKS[name](seed).episodes(), 20)]
        for seed in (1, 1, 2)
    )
    assert one == again != other


def test_writes_a_replay_folder(tasks, tmp_path):
    tasks['corridor'].write(tmp_path / 'replay')
    folder = ReplayFolder(tmp_path / 'replay')
    assert folder.spec == tasks['corridor'].spec
    assert folder.contract is None
    assert folder.embeddings is None


def test_a_table_without_faults_passes(bench):
    runs = rows(
        [
            ('bandit', 'full', 0.95),
            ('bandit', 'no-conservative', 0.85),
            ('corridor', 'full', 1.0),
            ('corridor', 'cloning', 0.19),
            ('bandit', 'no-monte-carlo', 0.5),
            ('corridor', 'no-monte-carlo', 1.0),
            ('failures', 'full', 0.96),
            ('failures', 'cloning', 0.9),  # no requirement there
        ],
        bench,
    )
    assert bench.misses(runs) == []


@pytest.mark.parametrize(
    ('runs', 'named'),
    [
        ([('failures', 'full', 0.94)], ['failures, full']),
        ([('corridor', 'cloning', 0.20)], ['corridor, cloning']),
        ([('bandit', 'full', 1.0), ('bandit', 'no-conservative', 0.95)], ['bandit, no-conservat']),
        ([('bandit', 'full', 1.0), ('bandit', 'independent', 0.95)], ['bandit, independent']),
        ([('bandit', 'full', 1.0), ('bandit', 'no-monte-carlo', 1.0)], ['bandit, no-monte']),
        ([('stitching', 'full', 1.0), ('stitching', 'no-bootstrap', 1.0)], ['stitching, no-boo']),
        ([('bandit', 'full', 0.5), ('corridor', 'full', 0.5)], ['bandit, full', 'corridor, full']),
    ],
)
def test_a_row_that_misses_is_named(bench, runs, named):
    found = bench.misses(rows(runs, bench))
    assert [text.startswith(name) for text, name in zip(found, named, strict=True)] == [
        True
    ] * len(named)


def test_the_mean_over_seeds_counts(bench):
    runs = [bench.Run('bandit', 'full', seed, value, 1.0) for seed, value in enumerate((1, 0.9))]
    assert bench.misses(runs) == []
    assert bench.misses([*runs, bench.Run('bandit', 'full', 2, 0.9, 1.0)]) != []


@pytest.mark.parametrize(('success', 'code'), [(1.0, 0), (0.5, 1)])
def test_exit_code_and_results(bench, tmp_path, monkeypatch, capsys, success, code):
    def measured(jobs):
        return [bench.Run(*job, success, 1.0) for job in jobs]

    monkeypatch.setattr(bench, 'train_all', measured)
    out = tmp_path / 'results' / 'checks.json'
    given = ['--task', 'bandit', '--variant', 'full', '--out', str(out)]
    assert bench.main(given) == code
    assert ('missed: bandit, full' in capsys.readouterr().out) == bool(code)
    content = json.loads(out.read_text())
    assert [run['seed'] for run in content['runs']] == [0, 1, 2]
    assert bool(content['missed']) == bool(code)
    bench.main([*given, '--quick'])
    assert len(json.loads(out.read_text())['runs']) == 1
