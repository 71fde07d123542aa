# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A terminal, also over ssh: single keys in, lines that stay and one that changes out."""

from __future__ import annotations

import contextlib
import os
import re
import select
import shutil
import sys
import termios
import tty
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

END_OF_FILE = '\x04'  # Ctrl-D, and what the end of a file is taken for
SEQUENCES = {  # what the keys without a letter send, after escape and [ or O
    'A': 'up',
    'B': 'down',
    'C': 'right',
    'D': 'left',
    '5~': 'page_up',
    '6~': 'page_down',
}
# A letter, a whole sequence (unknown ones too, as one key), or the beginning of one.
KEY = re.compile(r'\x1b[\[O](?P<code>[0-9;]*[A-Za-z~])|(?P<begun>\x1b([\[O][0-9;]*)?\Z)|[^\x1b]')


class Keyboard:
    """Single keys of a terminal, or the first letters of the lines of a file or pipe."""

    def __init__(self, descriptor: int, terminal: bool) -> None:
        self._descriptor, self._terminal = descriptor, terminal
        self._keys: deque[str] = deque()
        self._text = ''
        self._open = True

    def key(self) -> str:
        """Give the next key, '' when there is none yet; `END_OF_FILE` again and again.

        Arrows and pages are `up`, `down`, `left`, `right`, `page_up` and `page_down`.
        """
        while self._open and select.select([self._descriptor], [], [], 0)[0]:
            try:
                data = os.read(self._descriptor, 1024)
            except OSError:  # the terminal is gone
                data = b''
            self._open = bool(data)
            self._take(data.decode(errors='replace') if data or self._terminal else '\n')
        if self._keys:
            return self._keys.popleft()
        return '' if self._open else END_OF_FILE

    def _take(self, text: str) -> None:
        self._text += text
        if not self._terminal:
            *lines, self._text = self._text.split('\n')
            self._keys.extend(word[0] for line in lines if (word := line.strip(' \t\r')))
            return
        matches = list(KEY.finditer(self._text))
        self._text = ''
        for match in matches:
            if match['begun'] is not None:
                self._text = match[0]
            elif match['code'] is not None:
                self._keys.append(SEQUENCES.get(match['code'], match[0]))
            else:
                self._keys.append(match[0])


@contextmanager
def keyboard(descriptor: int) -> Iterator[Keyboard]:
    """Read single keys without echo, and leave the terminal as it was."""
    if not os.isatty(descriptor):
        yield Keyboard(descriptor, terminal=False)
        return
    before = termios.tcgetattr(descriptor)
    try:
        tty.setcbreak(descriptor)
        yield Keyboard(descriptor, terminal=True)
    finally:
        with contextlib.suppress(termios.error):  # the terminal is gone
            termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


class Screen:
    """Standard output: lines that stay, and at a terminal one below them that changes."""

    def __init__(self) -> None:
        self._live = sys.stdout.isatty()

    def say(self, line: str) -> None:
        """Print a line that stays."""
        start = '\r\x1b[K' if self._live else ''
        with contextlib.suppress(OSError):  # nobody reads any more
            print(f'{start}{line}', flush=True)

    def show(self, line: str) -> None:
        """Change the line at the bottom; does nothing where there is no terminal."""
        if not self._live:
            return
        columns = shutil.get_terminal_size().columns - 1
        with contextlib.suppress(OSError):
            print(f'\r\x1b[K{line[:columns]}', end='', flush=True)
