# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
import dataclasses
import importlib.util
import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from std_msgs.msg import String

ROOT = Path(__file__).resolve().parents[2]
PATH = ROOT / 'bench/policy_node.py'
MS = 1_000_000
FIRST = 1_000_000 * MS  # ns


@pytest.fixture(scope='module')
def load():
    """Give what imports a module of the bench, which finds its other parts beside it."""
    sys.path.insert(0, str(PATH.parent))
    before = set(sys.modules)

    def load(name):
        spec = importlib.util.spec_from_file_location(name, PATH.with_name(f'{name}.py'))
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        return module

    yield load
    for name in set(sys.modules) - before:
        if name.startswith('policy_node'):
            del sys.modules[name]
    sys.path.remove(str(PATH.parent))


@pytest.fixture(scope='module')
def bench(load):
    return load('policy_node')


@pytest.fixture(scope='module')
def rounds(bench):
    return sys.modules['policy_node_rounds']


@pytest.fixture
def make(rounds):
    """Give what makes a recording of `count` steps: each 100 ms apart, every third image."""

    def make(
        variant='policy',
        latencies=(10, 12, 14),
        model=5,
        number=0,
        guard=False,
        delivery=1,
        **more,
    ):
        images = [FIRST + round(n * 100 * MS / 3) for n in range(3 * len(latencies))]
        stamps = images[::3]
        commands, inner, acts = [], [], []
        for stamp, latency in zip(stamps, latencies, strict=True):
            received = stamp + (latency + model) * MS
            sent = received - delivery * MS
            commands.append(rounds.Command(stamp, received - MS // 2 if guard else sent, received))
            inner.append(rounds.Command(stamp, sent, sent))
            acts.append((sent - MS // 10, model * MS))
        content = {
            'variant': variant,
            'number': number,
            'begin': FIRST,
            'end': FIRST + len(latencies) * 100 * MS,
            'period': 0.1,
            'images': images,
            'seen': {stamp: stamp + 2 * MS for stamp in images},
            'commands': commands,
            'inner': inner if guard else None,
            'acts': None if variant == 'relay' else acts,
            'cpu': {variant: 0.25},
        }
        return rounds.Recording(**content | more)

    return make


def test_the_network_is_taken_off_the_step_it_was_in(rounds, make):
    recording = make(latencies=(10, 12, 14), model=5)
    # One slow step of the network, and a command that is later by as much.
    slow = recording.commands[1]
    commands = [
        recording.commands[0],
        dataclasses.replace(slow, sent=slow.sent + 40 * MS, received=slow.received + 40 * MS),
        recording.commands[2],
    ]
    acts = [recording.acts[0], (recording.acts[1][0] + 40 * MS, 45 * MS), recording.acts[2]]
    found = rounds.analyse(dataclasses.replace(recording, commands=commands, acts=acts))
    assert found.latency_ms == pytest.approx((10, 12, 14))
    assert found.model_ms == pytest.approx((5, 45, 5))
    assert found.stages_ms == {
        'arrival': pytest.approx((2, 2, 2)),
        'before': pytest.approx((6.9, 8.9, 10.9)),
        'after': pytest.approx((0.1, 0.1, 0.1)),
        'delivery': pytest.approx((1, 1, 1)),
    }
    assert found.off_ms == pytest.approx((42, -38))
    assert (found.commands, found.steps_missed, found.holds) == (3, 0, 0)
    assert found.seconds == pytest.approx(0.3)


def test_steps_outside_the_round_do_not_count(rounds, make):
    recording = make(latencies=(10, 11, 12, 13, 14))
    middle = dataclasses.replace(
        recording, begin=FIRST + 100 * MS, end=FIRST + 400 * MS, commands=recording.commands[:4]
    )
    found = rounds.analyse(middle)
    assert found.latency_ms == pytest.approx((11, 12, 13))
    assert found.frames == 9


def test_frames_steps_and_holds_are_counted(rounds, make):
    recording = make(latencies=(10, 10, 10, 10))
    hold = rounds.Command(0, FIRST + MS, FIRST + 2 * MS)
    later = rounds.Command(0, recording.end + MS, recording.end + 2 * MS)
    found = rounds.analyse(
        dataclasses.replace(
            recording,
            seen=dict(list(recording.seen.items())[2:]),
            commands=[hold, recording.commands[0], *recording.commands[2:], later],
            acts=[recording.acts[0], *recording.acts[2:]],
        )
    )
    assert (found.frames, found.frames_missed) == (12, 2)
    assert (found.commands, found.steps_missed, found.holds) == (3, 1, 1)
    unknown = rounds.analyse(make(seen=None))
    assert unknown.frames_missed is None
    assert set(unknown.stages_ms) == {'after', 'delivery'}
    assert rounds.figures([found, unknown])['frames_missed'] is None


def test_a_guarded_command_is_paired_with_what_the_policy_published(rounds, make):
    recording = make('guard', guard=True, delivery=4, model=5)
    # Until the guard is through, the network is already in its next step.
    acts = [*recording.acts, (recording.acts[-1][0] + 4 * MS, 3 * MS)]
    found = rounds.analyse(dataclasses.replace(recording, acts=acts))
    assert found.model_ms == pytest.approx((5, 5, 5))
    assert found.stages_ms['delivery'] == pytest.approx((4, 4, 4))
    with pytest.raises(rounds.PairingError, match='published 1 of 3'):
        rounds.analyse(dataclasses.replace(recording, inner=recording.inner[:2]))


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda r: {'acts': [r.acts[0], r.acts[2]]}, '3 commands but 2 steps'),
        (lambda r: {'acts': [*r.acts, (r.acts[1][0] + 50 * MS, 1)]}, '3 commands but 4 steps'),
        (lambda r: {'acts': []}, '3 commands but'),
        (lambda r: {'images': r.images[1:]}, 'no image has the stamp'),
        (lambda r: {'commands': r.commands[:1]}, '1 commands'),
    ],
)
def test_a_round_that_does_not_fit_is_refused(rounds, make, change, message):
    recording = make()
    with pytest.raises(rounds.PairingError, match=f'policy, round 0: .*{message}'):
        rounds.analyse(dataclasses.replace(recording, **change(recording)))


def test_rounds_are_pooled(rounds, make):
    short = rounds.analyse(make(latencies=(10, 10), cpu={'policy': 0.5}))
    long = rounds.analyse(make(latencies=(20, 20, 20, 20, 20, 20), cpu={'policy': 0.1}))
    found = rounds.figures([short, long])
    assert found['latency_ms'] == {'p50': 20, 'p95': 20, 'p99': 20}
    assert found['cpu'] == {'policy': pytest.approx(0.2)}
    assert found['commands_per_s'] == pytest.approx(10)
    assert found['period_std_ms'] == found['period_off_p99_ms'] == 0


def test_the_ratios_decide(rounds, make):
    def verdict(ours, theirs, variant='policy'):
        both = [make(variant, ours), make('relay', theirs, model=0)]
        return {
            c['percentile']: c
            for c in rounds.compare([rounds.analyse(recording) for recording in both], variant)
        }

    met = verdict([13] * 20, [10] * 20)
    assert all(c['ratio'] == 1.3 and c['met'] for c in met.values())
    assert {p: c['target'] for p, c in met.items()} == {50: 1.3, 95: None, 99: 1.5}
    slower = verdict([14] * 20, [10] * 20)
    assert [slower[p]['met'] for p in (50, 95, 99)] == [False, True, True]
    assert verdict([14] * 20, [11] * 20)[50]['met']  # beside a slower relay
    tail = verdict([10] * 18 + [16, 16], [10] * 20)
    assert [tail[p]['met'] for p in (50, 99)] == [True, False]
    assert all(c['met'] for c in verdict([99] * 20, [10] * 20, 'guard').values())  # no target


def test_the_spread_is_over_rounds_that_both_have(rounds, make):
    recordings = [
        make('policy', [12] * 4, number=0),
        make('policy', [20] * 4, number=1),
        make('policy', [90] * 4, number=2),
        make('relay', [10] * 4, number=0, model=0),
        make('relay', [10] * 4, number=1, model=0),
    ]
    found = rounds.compare([rounds.analyse(r) for r in recordings], 'policy')
    assert found[0]['spread'] == [1.2, 2.0]
    alone = [rounds.analyse(r) for r in (recordings[2], recordings[3])]
    assert rounds.compare(alone, 'policy')[0]['spread'] is None


def test_a_missed_target_is_named(bench, rounds, make, monkeypatch, tmp_path, capsys):
    out = tmp_path / 'r.json'

    def result(latency, options, say):
        both = [make('policy', [latency] * 9), make('relay', [10] * 9, model=0)]
        analysed = [rounds.analyse(recording) for recording in both]
        columns = {r.variant: rounds.figures([r]) for r in analysed}
        comparisons = rounds.compare(analysed, 'policy')
        return {'figures': columns, 'comparisons': comparisons, 'rounds': [], 'dropped': []}

    monkeypatch.setattr(bench.os, 'sched_setaffinity', lambda *_: None)
    monkeypatch.setattr(bench.os, 'environ', dict(bench.os.environ))
    for latency, status in ((13, 0), (14, 1), (16, 1)):
        monkeypatch.setattr(bench, 'run', partial(result, latency))
        assert bench.main(['--out', str(out)]) == status
        printed = capsys.readouterr().out
        assert ('missed: policy p50' in printed) == (latency > 13)
        assert ('missed: policy p99' in printed) == (latency > 15)
    assert json.loads(out.read_text())['comparisons'][0]['ratio'] == 1.6


def test_the_worker_notes_what_the_network_took(load):
    worker = load('policy_node_worker')

    class Slow:
        def act(self, observation, *, steps=1):
            return observation, steps

    acts, seen = [], []
    policy = worker.timed(lambda checkpoint, **_: Slow(), acts)('folder', compile=False)
    assert policy.act('seen', steps=3) == ('seen', 3)
    ((ended, took),) = acts
    assert ended > took >= 0

    given = []
    create = worker.noting(lambda node, kind, topic, callback, qos, raw=False: callback, seen)

    class Image:
        pass

    callback = create(None, Image, 'camera', given.append, 5, raw=True)
    message = bytes([0, 1, 0, 0]) + (7).to_bytes(4, 'little') + (9).to_bytes(4, 'little')
    callback(message)
    assert ([stamp for stamp, _ in seen], given) == ([7_000_000_009], [message])
    told = create(None, Image, 'camera', lambda message, info: given.append(info), 5, raw=True)
    told(message, {'sent': 1})
    assert given[1:] == [{'sent': 1}]
    create(None, String, 'sentence', given.append, 5)(String())
    assert len(seen) == 2


@pytest.mark.parametrize(
    'given', [['--variants', 'relay', 'teleop'], ['--variants', 'relay'], ['--rounds', '0']]
)
def test_what_cannot_be_measured_is_refused(bench, given, capsys):
    with pytest.raises(SystemExit):
        bench.arguments(given)
    assert 'error' in capsys.readouterr().err


def test_a_guard_stands_between(bench, tmp_path):
    contract = bench.RobotContract.load(ROOT / 'config/contracts/tabletop.yaml')
    given = {'checkpoint': 'folder', 'compile': 'true'}
    (relay,) = bench.nodes('relay', tmp_path, contract, given)
    assert relay.words[-1] == '3'  # of 30 images a second, for 10 commands
    (policy,) = bench.nodes('policy', tmp_path, contract, given)
    assert {'checkpoint:=folder', 'compile:=true'} < set(policy.words)
    assert 'guarded:=true' not in policy.words
    guarded, guard = bench.nodes('guard', tmp_path, contract, given)
    assert set(guarded.words) - set(policy.words) == {'guarded:=true'}
    assert {'qt_ros.nodes.guard_node', 'checkpoint:=folder', 'source:=policy'} < set(guard.words)


@pytest.mark.parametrize('size', ['shipped', 'small'])
def test_a_round_of_each(size, tmp_path):
    out = tmp_path / 'policy_node.json'
    words = ['--seconds', '2', '--rounds', '1', '--profile', 'never', '--size', size]
    words += ['--variants', 'relay', 'policy', '--patience', '60', '--out', out]
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, PATH, *words], capture_output=True, text=True, check=False
        )
        if 'DROPPED' not in done.stderr:  # a busy machine makes a policy refuse to act
            break
    assert out.exists(), done.stderr
    result = json.loads(out.read_text())
    relay, policy = (result['figures'][variant] for variant in ('relay', 'policy'))
    assert relay['model_ms']['p99'] == 0 < policy['model_ms']['p50']
    assert set(relay['cpu']) == {'relay', 'robot'}
    assert set(policy['cpu']) == {'policy', 'robot'}
    for found in (relay, policy):
        latency = found['latency_ms']
        assert 0 < latency['p50'] <= latency['p95'] <= latency['p99']
        assert set(found['stages_ms']) == {'arrival', 'before', 'after', 'delivery'}
        assert all(0 <= part['p50'] <= latency['p99'] for part in found['stages_ms'].values())
        assert 2 <= found['commands'] <= found['frames']
        assert found['frames_missed'] < found['frames']
    assert [r['variant'] for r in result['rounds']] == ['relay', 'policy']
    assert done.returncode == int(not all(c['met'] for c in result['comparisons'])), done.stdout
    assert (done.returncode == 1) == ('\nmissed: policy' in done.stdout)
    assert list(tmp_path.iterdir()) == [out]
