# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
import os
import pty
import termios

import pytest

from qt_ros.terminal import END_OF_FILE, keyboard


@pytest.fixture
def terminal():
    ours, theirs = pty.openpty()
    with keyboard(theirs) as keys:
        yield ours, keys
    for descriptor in (ours, theirs):
        os.close(descriptor)


def typed(terminal, text, count):
    ours, keys = terminal
    os.write(ours, text.encode())
    found = []
    while len(found) < count:
        found += [key] if (key := keys.key()) else []
    assert keys.key() == ''
    return found


def test_letters_and_keys_without_one(terminal):
    assert typed(terminal, 'aB \x1b[A\x1bOB\x1b[C\x1b[D\x1b[5~\x1b[6~?', 10) == (
        ['a', 'B', ' ', 'up', 'down', 'right', 'left', 'page_up', 'page_down', '?']
    )


def test_a_sequence_that_arrives_in_parts_is_one_key(terminal):
    ours, keys = terminal
    for part in ('\x1b', '[', '5'):
        os.write(ours, part.encode())
        for _ in range(100):
            assert keys.key() == ''
    assert typed(terminal, '~x', 2) == ['page_up', 'x']


def test_an_unknown_sequence_is_one_key_and_never_letters(terminal):
    assert typed(terminal, '\x1b[1;5Ax', 2) == ['\x1b[1;5A', 'x']


def test_escape_does_not_swallow_what_comes_next(terminal):
    ours, keys = terminal
    os.write(ours, b'\x1b')
    for _ in range(100):
        assert keys.key() == ''
    assert typed(terminal, ' ', 1) == [' ']


def test_lines_of_a_pipe_give_their_first_letters(tmp_path):
    path = tmp_path / 'keys'
    path.write_text('start\n\n  y\nf')
    with path.open() as file, keyboard(file.fileno()) as keys:
        assert [keys.key() for _ in range(5)] == ['s', 'y', 'f', END_OF_FILE, END_OF_FILE]


def test_a_terminal_that_is_closed_is_the_end(capfd):
    ours, theirs = pty.openpty()
    before = termios.tcgetattr(theirs)
    with keyboard(theirs) as keys:
        assert not termios.tcgetattr(theirs)[3] & termios.ECHO
        assert before[3] & termios.ECHO
        os.close(ours)
        key = ''
        while not key:
            key = keys.key()
        assert key == END_OF_FILE
        assert keys.key() == END_OF_FILE
    os.close(theirs)
