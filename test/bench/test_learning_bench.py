# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
import dataclasses
import json
import sys
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from qt_core.environments.tabletop import COLOURS, SENTENCES
from qt_core.evaluation import roll_out, wilson_interval
from qt_core.instruction import BUNDLED_MODEL
from qt_core.learning.run import parse_run
from qt_core.replay import ReplayFolder

BENCH = Path(__file__).resolve().parents[2] / 'bench'
PAIR = ('q_transformer', 'q_single')


@pytest.fixture(scope='module')
def bench():
    sys.path.insert(0, str(BENCH))
    try:
        import learning
        import learning_data
        import learning_report
        import learning_runs

        yield SimpleNamespace(
            main=learning, data=learning_data, runs=learning_runs, report=learning_report
        )
    finally:
        sys.path.remove(str(BENCH))


@pytest.fixture(scope='module')
def done(bench, tmp_path_factory):
    """Both Q-learners on a little of `failures`, trained next to nothing."""
    out = tmp_path_factory.mktemp('learning')
    with pytest.MonkeyPatch.context() as patch:
        small(bench, patch)
        code, content = run(bench, out, *PAIR)
    return SimpleNamespace(out=out, code=code, content=content)


@pytest.fixture
def few(bench, monkeypatch):
    small(bench, monkeypatch)


def small(bench, patch):
    budget = bench.data.Budget(data=150, minutes=0.002, episodes=8)
    task = dataclasses.replace(bench.data.TASKS['failures'], budget=budget)
    patch.setitem(bench.data.TASKS, 'failures', task)


def run(bench, out, *learners, given=()):
    args = ['--tasks', 'failures', '--seeds', '0', '--processes', '1', '--out', str(out)]
    code = bench.main.main([*args, '--only', *learners, *given])
    report = out / 'report/bench/results/learning.json'
    return code, json.loads(report.read_text())


def job(bench, out, learner='q_transformer', task='failures', seed=0):
    return bench.runs.Job(task, learner, seed, bench.data.TASKS[task].budget, out)


def result(bench, task, learner, successes, episodes=100, seed=0, **more):
    return bench.runs.Result(
        task=task, learner=learner, seed=seed, successes=successes, episodes=episodes, **more
    )


def same(one, other):
    return (
        one.instruction == other.instruction
        and one.bins.tolist() == other.bins.tolist()
        and np.array_equal(one.state, other.state)
        and all(np.array_equal(one.images[name], other.images[name]) for name in one.images)
    )


@pytest.mark.parametrize('name', ['reach', 'reach-bad', 'stitching', 'failures', 'corridor'])
def test_data_are_a_function_of_the_seed(bench, name):
    first, again, other = (
        list(islice(bench.data.TASKS[name].episodes(seed), 3)) for seed in (1, 1, 2)
    )
    assert all(map(same, first, again))
    assert not any(map(same, first, other))


@pytest.mark.parametrize(('name', 'least', 'most'), [('reach', 0.8, 1), ('reach-bad', 0.02, 0.4)])
def test_reach_succeeds_as_often_as_the_task_says(bench, name, least, most):
    environment = bench.data.TASKS[name].environment(0, sentences='train')
    reset, act = bench.data.TASKS[name].reference(environment)
    earned, steps, flawless = [], [], []
    for number, episode in enumerate(islice(bench.data.TASKS[name].episodes(0), 30)):
        flawless.append(roll_out(environment, reset, act, number))
        assert episode.instruction == flawless[-1].instruction  # whatever it was told
        earned.append(float(episode.reward.sum()))
        steps.append(len(episode.bins))
        assert (episode.outcome == 'success') == bool(earned[-1])
        assert episode.terminal != episode.timeout
        assert not episode.timeout or steps[-1] == environment.max_steps
        bins = environment.action_space.encode(episode.action)
        assert bins.tolist() == episode.bins.tolist()
    assert least <= np.mean(earned) <= most
    assert all(rollout.success for rollout in flawless)
    assert np.mean(steps) > 1.1 * np.mean([rollout.steps for rollout in flawless])  # slips


def test_policies_are_tried_on_what_no_data_have(bench):
    task = bench.data.TASKS['reach']
    trained = {wording.format(colour) for wording in SENTENCES['train'] for colour in COLOURS}
    environment = task.environment(0)
    tried = [bench.data.evaluation_seeds(seed, 100) for seed in range(10)]
    assert not {environment.reset(seed)[1] for seed in tried[0][:10]} & trained
    assert len({seed for seeds in tried for seed in seeds}) == 1000
    last = next(iter(task.episodes(9))).source
    assert int(last.removeprefix('seed_')) + task.budget.data < min(tried[0])


@pytest.mark.parametrize('name', ['stitching', 'failures', 'corridor'])
def test_places_as_an_environment_are_those_of_the_task(bench, name):
    task = bench.data.TASKS[name]
    environment, places = task.environment(3), task.places(3)
    seeds = bench.data.evaluation_seeds(3, task.budget.episodes)
    reset, act = task.reference(environment)
    good = [roll_out(environment, reset, act, seed) for seed in seeds]
    assert all(rollout.success for rollout in good)
    shortest = sorted(places.remaining(places.first()).tolist())
    assert sorted(rollout.steps for rollout in good) == shortest
    right = places.code.copy()
    if name == 'corridor':
        right[:, 0] = 2
    choice = np.random.default_rng(0).random(places.places) < 0.8

    def now_and_then(states):
        place = [int((places.looks == state).all(-1).argmax()) for state in states]
        return np.where(choice[place][:, None], right[place], places.habit[place])

    tried = [
        roll_out(environment, reset, lambda o: now_and_then(o.state[None])[0], seed)
        for seed in seeds
    ]
    share = np.mean([rollout.success for rollout in tried])
    assert 0 < share < 1
    assert share == places.success(now_and_then)
    assert max(rollout.steps for rollout in tried) <= places.slack * places.length


def test_a_miniature_run(bench, done, capsys):
    assert done.code == 1  # nothing can be learned in a tenth of a second
    content = done.content
    assert content['errors'] == []
    assert content['missed'][0].startswith('failures, q_transformer: ')
    assert content['budgets'] == {'failures': {'data': 150, 'minutes': 0.002, 'episodes': 8}}
    assert content['data']['failures'][0]['episodes'] == 150
    rows = {row['learner']: row for row in content['rows']}
    assert set(rows) == {*PAIR, 'random', 'reference'}
    assert rows['reference']['successes'] == rows['reference']['episodes'] == 8
    for learner in PAIR:
        measured = json.loads((done.out / 'failures' / learner / 'probe.json').read_text())
        steps = max(1, int(60 * 0.002 / measured['seconds']))
        row = rows[learner]
        assert (row['steps'], row['windows']) == (steps, 64 * steps)
        assert row['actions'] == 64 * steps  # one of each window, at one frame
        assert row['parameters'] > 100_000
        assert [row['low'], row['high']] == list(wilson_interval(row['successes'], 8))
    page = (done.out / 'report/docs/results.md').read_text()
    for learner, row in rows.items():
        line = next(x for x in page.splitlines() if f'| {bench.report.TITLES[learner]} |' in x)
        assert f'{row["successes"]}/8' in line
        assert f'{row["low"]:.2f} - {row["high"]:.2f}' in line
    assert 'Missed:' in page
    picture = done.out / 'report/docs/images/results.png'
    assert picture.read_bytes().startswith(b'\x89PNG')


def test_data_hold_embeddings_of_the_sentence_model(done):
    folder = ReplayFolder(done.out / 'failures/data/seed-0')
    assert folder.sentence_model == BUNDLED_MODEL
    assert folder.embeddings.shape == (1, 384)
    assert np.linalg.norm(folder.embeddings) == pytest.approx(1, abs=1e-5)
    assert [e['outcome'] == 'success' for e in folder.episodes] == [
        e['return'] > 0 for e in folder.episodes
    ]


def test_what_is_done_is_not_done_again(bench, done, few, monkeypatch):
    def refuse(*given, **options):
        raise AssertionError('trained again')

    monkeypatch.setattr(bench.runs, 'make_trainer', refuse)
    monkeypatch.setattr(bench.runs, 'write', lambda *given: None)
    code, content = run(bench, done.out, *PAIR)
    assert code == done.code
    assert content['results'] == done.content['results']
    code, content = run(bench, done.out, PAIR[1])  # a part of it can be shown
    assert {row['learner'] for row in content['rows']} == {PAIR[1], 'random', 'reference'}


@pytest.mark.parametrize(
    ('given', 'named'),
    [(('--minutes', '1'), 'budget'), (('--episodes', '9'), 'budget')],
)
def test_other_settings_need_another_folder(bench, done, few, capsys, given, named):
    assert run(bench, done.out, *PAIR, given=given)[0] == 2
    assert f'was begun with {named} ' in capsys.readouterr().err


def test_another_configuration_needs_another_folder(bench, done, few, monkeypatch, capsys):
    other = dataclasses.replace(bench.runs.LEARNERS['q_single'], model={'head': 'concatenated'})
    monkeypatch.setitem(bench.runs.LEARNERS, 'q_single', other)
    assert run(bench, done.out, *PAIR)[0] == 2
    assert 'was begun with model ' in capsys.readouterr().err


def test_a_run_that_was_ended_goes_on(bench, done, few, tmp_path, monkeypatch):
    probe = bench.runs.Probe(seconds=0.015, windows=64, actions=64.0)  # 8 steps
    whole, ended = (job(bench, tmp_path / name) for name in ('whole', 'ended'))
    for each in (whole, ended):
        bench.runs.write_data(each)
    wanted = bench.runs.do(whole, probe)
    made = bench.runs.make_trainer

    def interrupted(*given, **options):
        trainer = made(*given, **options)
        after = trainer.after_step

        def stop():
            after()
            if trainer.step == 4:
                raise KeyboardInterrupt

        trainer.after_step = stop
        return trainer

    monkeypatch.setattr(bench.runs, 'make_trainer', interrupted)
    with pytest.raises(KeyboardInterrupt):
        bench.runs.do(ended, probe)
    assert bench.runs.finished(ended) is None
    assert state(ended)['step'] == 4
    began = []

    def watched(*given, **options):
        trainer = made(*given, **options)
        began.append(trainer.step)
        return trainer

    monkeypatch.setattr(bench.runs, 'make_trainer', watched)
    again = bench.runs.do(ended, probe)
    assert began == [4]
    assert (again.steps, state(ended)['step']) == (8, 8)
    assert again.successes == wanted.successes
    weights = [
        (each.folder / 'run/last/model.safetensors').read_bytes() for each in (whole, ended)
    ]
    assert weights[0] == weights[1]


def state(job):
    return json.loads((job.folder / 'run/trainer/state.json').read_text())


def test_data_that_were_being_written_are_written_again(bench, few, done, tmp_path):
    other = job(bench, tmp_path)
    partial = other.replay.with_name('seed-0.partial')
    partial.mkdir(parents=True)
    (partial / 'meta.json').write_text('{')
    assert bench.runs.write_data(other)['episodes'] == 150
    assert not partial.exists()
    ours, theirs = ReplayFolder(other.replay), ReplayFolder(done.out / 'failures/data/seed-0')
    assert ours.episodes == theirs.episodes


def test_an_error_leaves_the_others_and_is_named(bench, few, done, tmp_path, capsys, monkeypatch):
    broken = bench.runs.Learner('broken', 'no such file.yaml')
    monkeypatch.setitem(bench.runs.LEARNERS, 'gato', broken)
    code, content = run(bench, tmp_path, 'q_single', 'gato')
    assert code == 1
    assert [error[:15] for error in content['errors']] == ['failures, gato,']
    assert 'error: failures, gato, seed 0: FileNotFoundError' in capsys.readouterr().out
    rows = {row['learner']: row for row in content['rows']}
    assert rows['q_single']['episodes'] == 8
    assert rows['gato']['episodes'] == 0


@pytest.mark.parametrize('learner', ['q_transformer', 'q_single', 'decision_transformer', 'gato'])
def test_learners_are_those_of_the_files(bench, done, few, learner):
    try:
        described = parse_run(bench.runs.content(job(bench, done.out, learner), 1000))
    except (FileNotFoundError, ModuleNotFoundError) as error:
        pytest.skip(f'not there yet: {error}')
    training = described.training
    assert described.policy == ('q_transformer' if learner == 'q_single' else learner)
    assert (training.num_train_steps, training.seed, training.threads) == (1000, 0, 1)
    assert training.warmup_steps <= 100
    if learner in PAIR:
        assert described.model.head == ('single' if learner == 'q_single' else 'encoder_decoder')
        assert training.discount == 0.8  # the task's own


def test_seeds_are_put_together(bench):
    counts = [(60, 100), (80, 100), (10, 50)]
    results = [
        result(bench, 'reach', 'gato', k, n, seed, steps=10 * seed, length=10.0)
        for seed, (k, n) in enumerate(counts)
    ]
    (row,) = bench.report.rows(results)
    assert (row.successes, row.episodes, row.rate) == (150, 250, 0.6)
    assert (row.low, row.high) == wilson_interval(150, 250)
    assert row.rates == (0.6, 0.8, 0.2)
    assert row.steps == 10
    failed = bench.runs.Result(task='reach', learner='gato', seed=3, error='no memory')
    (row,) = bench.report.rows([*results, failed])
    assert (row.successes, row.episodes, row.steps) == (150, 250, 10)
    assert bench.report.errors([row]) == ['reach, gato, seed 3: no memory']


@pytest.mark.parametrize(
    ('task', 'learner', 'successes', 'named'),
    [
        ('reach', 'gato', 30, []),
        ('reach', 'gato', 17, ['reach, gato: 17%']),  # 0.11 - 0.26 against 0.05 - 0.15
        ('reach-bad', 'filtered_cloning', 9, ['reach-bad, filtered_cloning: 9%']),
        ('reach-bad', 'cloning', 9, []),  # nothing is required of an imitator there
        ('stitching', 'cloning', 0, []),
        ('stitching', 'q_transformer', 9, ['stitching, q_transformer: 9%']),
    ],
)
def test_a_row_that_is_not_above_random_is_named(bench, task, learner, successes, named):
    found = bench.report.rows(
        [
            result(bench, task, 'random', 9),
            result(bench, task, learner, successes),
        ]
    )
    missed = bench.report.misses(found)
    assert [row[: len(name)] for row, name in zip(missed, named, strict=True)] == named


@pytest.mark.parametrize(('cloned', 'named'), [(30, []), (48, ['reach-bad, q_transformer: 50%'])])
def test_a_row_that_is_not_ahead_of_another_is_named(bench, cloned, named):
    found = [('random', 9), ('q_transformer', 50), ('cloning', cloned)]
    missed = bench.report.misses(
        bench.report.rows([result(bench, 'reach-bad', *row) for row in found])
    )
    assert [row[: len(name)] for row, name in zip(missed, named, strict=True)] == named


def everything(bench, success):
    """Stand in for all the work."""

    def prepare(jobs, pool, say):
        facts = {'seed': 0, 'episodes': 2, 'steps': 30, 'successes': 0.5}
        return {task: [facts] for task in dict.fromkeys(job.task for job in jobs)}

    def compare(jobs, pool, say):
        others = {'random': 5, 'cloning': min(40, success)}
        return [
            result(bench, j.task, j.learner, others.get(j.learner, success), 100, j.seed)
            for j in jobs
        ]

    return prepare, compare


@pytest.mark.parametrize(
    ('given', 'success', 'code', 'whole'),
    [
        ((), 90, 0, True),
        ((), 5, 1, True),
        (('--seeds', '0', '1'), 90, 0, False),
        (('--only', 'gato'), 5, 1, False),
        (('--minutes', '3'), 90, 0, False),
        (('--quick',), 5, 0, False),  # nothing is required
        (('--quick', '--seeds', '1', '--publish'), 5, 0, True),
    ],
)
def test_exit_code_and_where_results_are_written(
    bench, tmp_path, monkeypatch, capsys, given, success, code, whole
):
    prepare, compare = everything(bench, success)
    monkeypatch.setattr(bench.main, 'prepare', prepare)
    monkeypatch.setattr(bench.main, 'compare', compare)
    monkeypatch.setattr(bench.main, 'ROOT', tmp_path / 'root')
    out = tmp_path / 'out'
    assert bench.main.main([*given, '--processes', '1', '--out', str(out)]) == code
    printed = capsys.readouterr().out
    assert ('missed: reach, gato: 5%' in printed) == bool(code)
    assert 'Gato' in printed
    assert (tmp_path / 'root/docs/results.md').exists() == whole
    assert (out / 'report/docs/results.md').exists() == (not whole)
    below = tmp_path / 'root' if whole else out / 'report'
    content = json.loads((below / 'bench/results/learning.json').read_text())
    assert bool(content['missed']) == bool(code)
    told = ' '.join(word for word in given if word != '--publish')
    assert content['part'] == (told and f'python bench/learning.py {told}')
    text = (below / 'docs/results.md').read_text()
    assert ('This was a part' in text) == bool(told)
    assert ('Nothing was required' in text) == ('--quick' in given)
    assert ('reach, gato: 5%' in text) == bool(code)
    if '--quick' in given:
        assert {row['task'] for row in content['rows']} == {'reach'}
        assert {row['learner'] for row in content['rows']} == set(bench.report.TITLES)


@pytest.mark.parametrize(
    ('learners', 'minutes'),
    [
        (['gato', 'cloning'], 21),
        (['gato', 'cloning', 'q_single'], 10.5),
        (['gato', 'cloning', 'q_single', 'q_transformer'], 10.5),
        ([], 7),
    ],
)
def test_learners_of_a_quick_run_share_its_time(bench, learners, minutes):
    given = ['--quick', *(['--only', *learners] if learners else [])]
    jobs = bench.main.jobs_of(bench.main.arguments(given))
    assert {job.budget.minutes for job in jobs} == {minutes}
    turns = -(-len([job for job in jobs if job.learner in bench.runs.LEARNERS]) // 2)
    assert turns * minutes < 22
    assert {(job.task, job.seed) for job in jobs} == {('reach', 0)}


@pytest.mark.parametrize(
    ('given', 'named'),
    [
        (['--quick', '--tasks', 'stitching'], '--quick'),
        (['--seeds', '1', '1'], '--seeds'),
        (['--seeds', '10'], '--seeds'),
        (['--minutes', '0'], '--minutes'),
        (['--episodes', '0'], '--episodes'),
    ],
)
def test_arguments_out_of_range_are_refused(bench, capsys, given, named):
    with pytest.raises(SystemExit):
        bench.main.arguments(given)
    assert named in capsys.readouterr().err
