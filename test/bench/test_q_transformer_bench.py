# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
import importlib.util
import sys
from pathlib import Path

import pytest

PATH = Path(__file__).resolve().parents[2] / 'bench/q_transformer.py'


@pytest.fixture(scope='module')
def bench():
    spec = importlib.util.spec_from_file_location('bench_q_transformer', PATH)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture
def rows(bench):
    return {row.name: row for row in bench.ROWS}


def test_the_targets_are_those_that_were_set(rows):
    targets = {name: (row.kind, row.target) for name, row in rows.items()}
    assert targets == {
        'latency': ('faster', 10),
        'step': ('faster', 2),
        'step-6': ('faster', None),
        'memory': ('less', 0.6),
        'samples': ('more', 10),
        'bytes': ('less', 0.05),
    }


def test_faster_is_their_time_over_ours(bench, rows):
    found = bench.compare(rows['latency'], 'small', [1.0, 2.0, 4.0], [0.1, 0.4, 0.2])
    assert found.ratio == pytest.approx(10)  # 2 / 0.2, of the medians
    assert found.spread == pytest.approx((5, 20))
    assert found.met
    assert not bench.compare(rows['latency'], 'small', [0.99], [0.1]).met


def test_more_is_our_rate_over_theirs(bench, rows):
    assert bench.compare(rows['samples'], 'small', [10.0], [100.0]).met
    assert not bench.compare(rows['samples'], 'small', [100.0], [10.0]).met


def test_less_is_our_amount_over_theirs_and_stays_below_the_target(bench, rows):
    found = bench.compare(rows['memory'], 'small', [100.0], [59.0])
    assert (found.ratio, found.met) == (pytest.approx(0.59), True)
    assert not bench.compare(rows['memory'], 'small', [100.0], [61.0]).met


def test_a_row_without_a_target_is_never_missed(bench, rows):
    assert bench.compare(rows['step-6'], 'small', [1.0], [9.0]).met


def test_sides_that_were_not_measured_equally_often_are_refused(bench, rows):
    with pytest.raises(ValueError, match='shorter'):
        bench.compare(rows['step'], 'small', [1.0, 1.0], [1.0])


def test_quick_measures_the_small_size_only(bench):
    options = bench.arguments(['--against', 'q-transformer', '--quick'])
    assert (options.sizes, options.pairs['small']) == (['small'], 2)
    options = bench.arguments(['--against', 'q-transformer'])
    assert options.sizes == ['small', 'readme']
    assert options.pairs == {'small': 5, 'readme': 3}


@pytest.mark.parametrize('given', [[], ['--against', 'nothing'], ['--rows', 'speed']])
def test_what_cannot_be_measured_is_refused(bench, given, capsys):
    with pytest.raises(SystemExit):
        bench.arguments(given)
    assert 'error' in capsys.readouterr().err


def test_the_package_gets_the_same_torch_in_its_own_environment(bench):
    make, install = bench.install_commands(Path('venv'), 'q-transformer==0.5.0', '2.13.0+cpu')
    assert make == [sys.executable, '-m', 'venv', '--clear', 'venv']
    assert install[:4] == ['venv/bin/python', '-m', 'pip', 'install']
    assert install[-2:] == ['q-transformer==0.5.0', 'torch==2.13.0+cpu']


def test_an_environment_is_made_once(bench, tmp_path, monkeypatch):
    ran = []

    class Done:
        returncode = 0

    monkeypatch.setattr(bench.subprocess, 'run', lambda command, **_: ran.append(command) or Done)
    venv = tmp_path / 'venv'
    venv.mkdir()
    said = []
    for _ in range(2):
        python = bench.prepare_venv(venv, 'q-transformer==0.5.0', said.append)
    assert python == venv / 'bin/python'
    assert (len(ran), len(said)) == (2, 1)
    bench.prepare_venv(venv, 'q-transformer==0.6.0', said.append)
    assert len(ran) == 4


def test_an_environment_that_cannot_be_made_is_one_line(bench, tmp_path, monkeypatch):
    class Failed:
        returncode = 1
        stdout = b'Looking\nERROR: No matching distribution found for torch\nhint\n'

    monkeypatch.setattr(bench.subprocess, 'run', lambda *_, **__: Failed)
    with pytest.raises(bench.BenchError, match=r'failed: ERROR: No matching.*torch$') as error:
        bench.prepare_venv(tmp_path, 'q-transformer==0.5.0', lambda _: None)
    assert '\n' not in str(error.value)


def test_the_bench_does_not_hide_the_package_that_it_is_named_after(bench):
    command = bench.worker_command(Path('python'), 'theirs', Path('folder'))
    assert command[1] == '-P'
    assert command[-2:] == ['theirs', 'folder']


ECHO = """
import json, sys
for line in sys.stdin:
    request = json.loads(line)
    if request['row'] == 'fail':
        print('first', file=sys.stderr)
        sys.exit('out of memory')
    print(json.dumps({'value': request['size']}), flush=True)
"""


def test_a_worker_answers_until_it_fails_and_then_says_why(bench, tmp_path, monkeypatch):
    def command(python, side, folder):
        return [str(python), '-c', ECHO]

    monkeypatch.setattr(bench, 'worker_command', command)
    side = bench.Side('ours', Path(sys.executable), tmp_path)
    with side:
        assert side.ask(row='step', size='small') == {'value': 'small'}
        assert side.ask(row='step', size='readme') == {'value': 'readme'}
        with pytest.raises(bench.BenchError, match=r'ours ended with 1 at .*: out of memory'):
            side.ask(row='fail', size='small')


def test_numbers_have_three_digits_that_count(bench):
    assert [bench.number(v) for v in (12345.6, 99.94, 0.04312)] == ['12,346', '99.9', '0.0431']
