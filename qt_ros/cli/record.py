# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`qt-ros record`: a recorder at the keyboard, also over ssh."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qt_ros.graphs import GRAPHS
from qt_ros.terminal import END_OF_FILE, Keyboard, Screen, keyboard

KEYS = {
    's': 'start',
    'y': 'success',
    'f': 'failure',
    't': 'timeout',
    'd': 'discard',
    'r': 'redo',
}
QUIT = 'q'
HELP = 's start  y success  f failure  t timeout  d discard  r redo  q quit'


def add_parser(subparsers: Any) -> None:
    """Add the subcommand to the `qt-ros` command."""
    parser = subparsers.add_parser(
        'record',
        help='record episodes of a robot, by single keys',
        description='Start a recorder, or attach to one that runs, show how it goes and tell it '
        f'by single keys what to do: {HELP}. What is no terminal is read line by line.',
    )
    for option in GRAPHS['record'].options:
        parser.add_argument(
            f'--{option.name.replace("_", "-")}',
            help=option.description,
            default=option.default_text,
            choices=option.choices or (('true', 'false') if option.kind is bool else None),
            **({'nargs': '?', 'const': 'true'} if option.kind is bool else {}),
        )
    parser.add_argument('--attach', action='store_true', help='use the recorder that runs already')
    parser.add_argument('--timeout', type=float, default=60.0, help='seconds to wait for it')
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the subcommand."""
    from qt_ros.nodes.recorder_client import RecorderClient
    from qt_ros.up import running

    processes = [] if arguments.attach else GRAPHS['record'].processes_from_text(vars(arguments))
    with (
        running(processes, ready_timeout=arguments.timeout) as graph,
        RecorderClient(arguments.namespace, arguments.timeout) as client,
    ):
        client.wait()
        with keyboard(sys.stdin.fileno()) as keys:
            console = Console(client, attached=arguments.attach)
            while console.step(keys):
                graph.check()
    return 0


class Console:
    """What is shown, and what keys do.

    Args:
        client: A `RecorderClient`.
        attached: Whether the recorder stays when we go.
    """

    def __init__(self, client: Any, *, attached: bool) -> None:
        self._client, self._attached = client, attached
        self._command = self._problem = ''
        self._leaving = False
        self._screen = Screen()
        for line in client.status['repaired']:
            self.say(line)
        self.say(HELP)

    def step(self, keys: Keyboard) -> bool:
        """Receive, show, and take one key; False once it says to quit."""
        client = self._client
        client.spin(0.05)
        answer = client.answer()
        if answer is not None:
            self.say(_explain(self._command, *answer))
            if not answer[0]:
                self._problem = client.status['problem']  # just said
        elif not client.busy and client.status['problem'] != self._problem:
            self._problem = client.status['problem']
            if self._problem:
                self.say(self._problem)
        self._screen.show(status_line(client.status))
        return client.busy or self._take(keys.key())

    def say(self, line: str) -> None:
        """Print a line that stays."""
        self._screen.say(line)

    def _take(self, key: str) -> bool:
        recording = self._client.status['state'] == 'recording'
        if key in KEYS:
            self._command = KEYS[key]
            self._client.send(self._command)
        elif key == END_OF_FILE or (key == QUIT and (self._leaving or not recording)):
            if recording:
                self.say(
                    'the episode goes on' if self._attached else 'the episode stays unlabeled'
                )
            return False
        elif key == QUIT:
            self.say('an episode is being recorded; q again leaves it unlabeled')
        elif key.strip():
            self.say(f'{key!r} means nothing; {HELP}')
        if key:
            self._leaving = key == QUIT
        return True


def status_line(status: Mapping[str, Any]) -> str:
    """Describe a recorder's status in one line."""
    counts = status.get('counts', {})
    streams = [
        f'{topic.lstrip("/")} {counts.get(topic, "")}@{rate:.3g} Hz'.replace(' @', ' ')
        for topic, rate in status['rates'].items()
        if rate or topic in counts
    ]
    parts = [status['state']]
    if status['state'] == 'recording':
        queue = f'{status["queue_bytes"] / 2**20:.1f} MiB waiting'
        parts = [f'RECORDING {Path(status["bag"]).name} {status["elapsed"]:.1f} s', queue]
        if status['dropped']:
            parts.append(f'{status["dropped"]} DROPPED')
    parts += [*status['slow'], *streams, f'{status["free_mib"]} MiB free']
    return ' | '.join(parts)


def _explain(command: str, success: bool, message: str) -> str:
    if not success:
        return f'{command} refused: {message}'
    content = json.loads(message) if message.startswith('{') else {}
    if 'instruction' in content:
        return f'{content["bag"]}: recording "{content["instruction"]}"'
    return f'{content["bag"]}: {content["outcome"]}' if content else f'{command}: done'
