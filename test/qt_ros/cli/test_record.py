# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`qt-ros record` as a person uses it, at a terminal and through a pipe."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from qt_core.share import share_path
from qt_ros.bags import EpisodeBag
from qt_ros.cli.record import status_line

CONTRACT = share_path('config/contracts/tabletop.yaml')
DEADLINE = 40.0  # s
ROOT = Path(__file__).parents[3]


@pytest.fixture
def robot(isolated):
    """A robot in a process of its own, with an instruction."""
    process = subprocess.Popen(
        [sys.executable, '-m', 'test.qt_ros.robot', CONTRACT],
        stdin=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    process.stdin.write(json.dumps({'instruction': 'tap the red cube'}) + '\n')
    process.stdin.flush()
    yield process
    process.stdin.close()
    process.wait(10)


class Record:
    """`qt-ros record` in a process of its own; what it prints is read until it is as wanted."""

    def __init__(self, *words, terminal):
        self.keyboard = self.screen = None
        pipe = subprocess.PIPE
        theirs = None
        if terminal:
            self.keyboard, theirs = pty.openpty()
            self.screen = self.keyboard
            self.before = termios.tcgetattr(self.keyboard)
        self.process = subprocess.Popen(
            [sys.executable, '-m', 'qt_ros', 'record', '--contract', CONTRACT, *words],
            stdin=theirs if terminal else pipe,
            stdout=theirs if terminal else pipe,
            stderr=theirs if terminal else subprocess.STDOUT,
            cwd=ROOT,
        )
        if terminal:
            os.close(theirs)
        else:
            self.keyboard, self.screen = (
                self.process.stdin.fileno(),
                self.process.stdout.fileno(),
            )
        self.terminal, self.text = terminal, ''

    def press(self, key):
        """Press a key, or write a line of one letter."""
        os.write(self.keyboard, key.encode() if self.terminal else f'{key}\n'.encode())

    def until(self, pattern, *, again=''):
        """Read until a pattern shows up; the text before it is dropped.

        Args:
            pattern: Regular expression.
            again: Key to press whenever something was refused.
        """
        deadline = time.monotonic() + DEADLINE
        while not (match := re.search(pattern, self.text)):
            assert time.monotonic() < deadline, self.text[-2000:]
            if again and 'refused' in self.text:
                self.text = ''
                self.press(again)
            if select.select([self.screen], [], [], 0.1)[0]:
                try:
                    data = os.read(self.screen, 4096)
                except OSError:  # the other end of the terminal is closed
                    data = b''
                assert data, f'ended: {self.text[-2000:]}'
                self.text += data.decode(errors='replace')
        self.text = self.text[match.end() :]
        return match

    def close(self):
        """End it, whatever it is doing."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(20)
        if self.terminal:
            os.close(self.keyboard)
        else:
            self.process.stdin.close()
            self.process.stdout.close()


@pytest.fixture
def record(robot):
    """Give what starts `qt-ros record`."""
    started = []

    def start(*words, terminal):
        started.append(Record(*words, terminal=terminal))
        return started[-1]

    yield start
    for each in started:
        each.close()


def outcome(path):
    """Give how the record of a bag says it ended."""
    found = EpisodeBag(path).record
    return found.outcome, found.ended_by, found.damage


def test_single_keys_at_a_terminal(record, tmp_path):
    bags = tmp_path / 'bags'
    keys = record('--output', str(bags), '--compression', 'none', terminal=True)
    keys.until('s start')
    keys.press('y')
    keys.until('success refused: no episode is being recorded')
    keys.press('s')
    keys.until('episode_000000: recording "tap the red cube"', again='s')
    keys.until(r'RECORDING episode_000000 \d+\.\d s')
    keys.press('x')
    keys.until("'x' means nothing")
    keys.press('r')
    keys.until('episode_000000: recording "tap the red cube"', again='r')
    keys.press('y')
    keys.until('episode_000000: success')
    keys.press('s')
    keys.until('episode_000001: recording', again='s')
    keys.press('f')
    keys.until('episode_000001: failure')
    keys.press('s')
    keys.until('episode_000002: recording', again='s')
    keys.press('q')
    keys.until('q again leaves it unlabeled')
    keys.press('q')
    keys.until('stays unlabeled')
    assert keys.process.wait(20) == 0
    assert termios.tcgetattr(keys.keyboard) == keys.before
    assert outcome(bags / 'episode_000000') == ('success', 'terminal', '')
    assert outcome(bags / 'episode_000001') == ('failure', 'terminal', '')
    assert outcome(bags / 'episode_000002') == ('unlabeled', 'timeout', '')


def test_terminal_is_restored_when_the_recorder_is_killed(record, tmp_path):
    keys = record('--output', str(tmp_path / 'bags'), terminal=True)
    keys.until('s start')
    assert not termios.tcgetattr(keys.keyboard)[3] & termios.ECHO
    listed = subprocess.run(
        ['ps', '-o', 'pid=,args=', '--ppid', str(keys.process.pid)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    (child,) = re.findall(r'^\s*(\d+) .*recorder_node', listed, re.M)
    os.kill(int(child), signal.SIGKILL)
    keys.until('recorder was ended by SIGKILL')
    assert keys.process.wait(20) == 1
    assert termios.tcgetattr(keys.keyboard) == keys.before


def test_lines_of_a_script_and_a_recorder_that_is_there(record, tmp_path):
    bags = tmp_path / 'bags'
    script = record('--output', str(bags), terminal=False)
    script.until('s start')
    guest = record('--attach', terminal=False)
    guest.until('s start')
    guest.press('s')
    guest.until('episode_000000: recording', again='s')
    guest.process.stdin.close()
    guest.until('the episode goes on')
    assert guest.process.wait(20) == 0
    script.press('t')
    script.until('episode_000000: failure')
    script.press('s')
    script.until('episode_000000|episode_000001: recording', again='s')
    script.press('d')
    script.until('discard: done')
    script.press('q')
    assert script.process.wait(20) == 0
    assert os.listdir(bags) == ['episode_000000']
    assert outcome(bags / 'episode_000000') == ('failure', 'timeout', '')


def test_without_a_recorder(isolated, tmp_path):
    done = subprocess.run(
        [sys.executable, '-m', 'qt_ros', 'record', '--attach', '--timeout', '0.5'],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr == "qt-ros: no recorder '/recorder' within 0.5 s\n"


def test_status_line_says_what_is_wrong_first():
    status = {
        'state': 'recording',
        'bag': 'bags/episode_000003',
        'elapsed': 12.34,
        'counts': {'/camera/image_raw': 120, '/joint_states': 900},
        'rates': {'/camera/image_raw': 12.0, '/joint_states': 199.6, '/instruction': 0.0},
        'slow': ["'/camera/image_raw' comes at 12 Hz, expected 30"],
        'queue_bytes': 3 << 20,
        'dropped': 0,
        'free_mib': 900,
    }
    assert status_line(status) == (
        "RECORDING episode_000003 12.3 s | 3.0 MiB waiting | '/camera/image_raw' comes at 12 Hz, "
        'expected 30 | camera/image_raw 120@12 Hz | joint_states 900@200 Hz | 900 MiB free'
    )
