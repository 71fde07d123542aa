# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
import os
import signal
import subprocess
import sys

import pytest

from qt_core.contract import ContractError
from qt_ros import __version__
from qt_ros.bags import BagError
from qt_ros.cli import main as frame


@pytest.fixture(autouse=True)
def signals():
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


class Subcommand:
    def __init__(self, run):
        self.run = run

    def add_parser(self, subparsers):
        subparsers.add_parser('act').set_defaults(run=self.run)


@pytest.fixture
def act(monkeypatch):
    def run(body):
        monkeypatch.setattr(frame, 'SUBCOMMANDS', (Subcommand(body),))
        return frame.main(['act'])

    return run


def raising(error):
    def run(arguments):
        raise error

    return run


@pytest.mark.parametrize('status', [0, 1])
def test_gives_the_status_of_the_subcommand(act, status):
    assert act(lambda arguments: status) == status


@pytest.mark.parametrize(
    ('error', 'line'),
    [
        (
            ContractError('robot.yaml: rate is 0,\n  expected more'),
            'robot.yaml: rate is 0, expected more',
        ),
        (BagError('bags/1: no metadata'), 'bags/1: no metadata'),
        (PermissionError(13, 'Permission denied', '/out'), "[Errno 13] Permission denied: '/out'"),
        (
            ModuleNotFoundError("No module named 'rclpy'", name='rclpy'),
            "needs rclpy, which is not installed: pip install 'qt_ros[ros]'",
        ),
    ],
)
def test_what_the_user_can_mend_is_one_line(act, capsys, error, line):
    assert act(raising(error)) == 1
    assert capsys.readouterr().err == f'qt-ros: {line}\n'


@pytest.mark.parametrize('error', [ValueError('ours'), ModuleNotFoundError('x', name='qt_core.x')])
def test_a_fault_of_the_program_keeps_its_traceback(act, error):
    with pytest.raises(type(error)):
        act(raising(error))


def test_ctrl_c_and_sigterm_have_their_statuses(act):
    assert act(raising(KeyboardInterrupt())) == 130
    with pytest.raises(SystemExit) as stop:
        act(lambda arguments: os.kill(os.getpid(), signal.SIGTERM))
    assert stop.value.code == 143


def test_runs_as_a_module_with_every_subcommand():
    def run(*words):
        command = [sys.executable, '-m', 'qt_ros', *words]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    helped = run('--help')
    assert helped.returncode == 0
    for name in ('up', 'say', 'call', 'collect', 'convert', 'train', 'evaluate', 'demo'):
        assert f'\n    {name} ' in helped.stdout
    assert run('--version').stdout == f'qt-ros {__version__}\n'
    assert run().returncode == 2
    wrong = run('convert', 'absent', '--out', 'unused')
    assert (wrong.returncode, wrong.stderr.count('\n')) == (1, 1)
    assert wrong.stderr.startswith('qt-ros: absent')
