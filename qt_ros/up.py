# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Runs the processes of a graph as children, where there is no `ros2 launch`."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

import yaml

from qt_ros.graphs import Process, environment

# How a child is asked to end, and how many seconds it gets before the next, harsher way; None for
# its own patience.
ENDINGS = ((signal.SIGINT, None), (signal.SIGTERM, 3.0), (signal.SIGKILL, 5.0))


class ProcessError(RuntimeError):
    """A process of a graph that ended by itself or did not get ready."""


class Child:
    """One process of a graph, in a process group of its own; forwards what it prints.

    Args:
        process: What to run.
        folder: Where its parameter file is written.
        variables: Its environment.
        quiet: Whether its lines are kept back.
        events: Gets the child when it is ready, and once more when its output ends.
    """

    def __init__(
        self,
        process: Process,
        folder: Path,
        variables: Mapping[str, str],
        quiet: bool,
        events: queue.Queue[Child],
    ) -> None:
        self.name, self.quiet, self._events = process.name, quiet, events
        self.patience = process.patience
        self.ready = not process.announces
        self.last_line = ''
        self._popen = subprocess.Popen(
            command(process, folder),
            env=dict(variables),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors='replace',
            start_new_session=True,  # so that Ctrl-C reaches only us, and we end them in order
        )
        self.pid = self._popen.pid
        self._reader = threading.Thread(target=self._forward, name=f'{self.name} output')
        self._reader.start()

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._popen.poll() is None

    def ending(self) -> str:
        """Say how the process ended, one line."""
        self._reader.join(timeout=1.0)
        code = self._popen.wait()
        if code < 0:
            return f'{self.name} was ended by {signal.Signals(-code).name}'
        why = f': {self.last_line}' if code and self.last_line else ''
        return f'{self.name} exited with code {code}{why}'

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the process and its own children."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def wait(self, deadline: float) -> None:
        """Wait until the process has ended or the monotonic clock says `deadline`."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._popen.wait(max(0.0, deadline - time.monotonic()))

    def _forward(self) -> None:
        assert self._popen.stdout is not None
        for line in self._popen.stdout:
            line = line.rstrip()
            self.last_line = line or self.last_line
            if not self.quiet:
                print(f'[{self.name}] {line}', file=sys.stderr, flush=True)
            if not self.ready and f'{self.name} ready' in line:
                self.ready = True
                self._events.put(self)
        self._events.put(self)


class RunningGraph:
    """The children of `running`."""

    def __init__(self, events: queue.Queue[Child]) -> None:
        self.children: list[Child] = []
        self._events = events

    def check(self) -> None:
        """Raise ProcessError when a process has ended."""
        endings = [child.ending() for child in self.children if not child.alive]
        if endings:
            raise ProcessError('; '.join(endings))

    def wait(self) -> NoReturn:
        """Wait until a process ends, which raises ProcessError."""
        while True:
            # A timeout, for a child that ends while a child of its own keeps the pipe open.
            with contextlib.suppress(queue.Empty):
                self._events.get(timeout=1.0)
            self.check()

    def wait_ready(self, timeout: float) -> None:
        """Wait until every process has announced itself.

        Raises:
            ProcessError: One ended, or is not ready after `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        while late := [child.name for child in self.children if not child.ready]:
            self.check()
            left = deadline - time.monotonic()
            if left <= 0:
                raise ProcessError(f'{", ".join(late)} not ready after {timeout:g} s')
            with contextlib.suppress(queue.Empty):
                self._events.get(timeout=min(left, 1.0))

    def end(self) -> None:
        """End every process; another Ctrl-C meanwhile takes the next harsher way at once."""
        for number, patience in ENDINGS:
            living = [child for child in self.children if child.alive]
            try:
                for child in living:
                    child.quiet = child.quiet or not child.ready  # interrupted in its imports
                    child.send(number)
                begun = time.monotonic()
                for child in living:
                    child.wait(begun + (child.patience if patience is None else patience))
            except (KeyboardInterrupt, SystemExit):
                continue


@contextlib.contextmanager
def running(
    processes: Sequence[Process],
    *,
    ready_timeout: float = 60.0,
    variables: Mapping[str, str] | None = None,
    quiet: bool = True,
) -> Iterator[RunningGraph]:
    """Run the processes of a graph while the block lasts.

    Args:
        processes: What a `qt_ros.graphs.Graph` lists.
        ready_timeout: Seconds until a process that has not announced itself is an error.
        variables: Environment variables on top of ours.
        quiet: Whether to keep back what the processes print; errors name a process's last line.

    Raises:
        ProcessError: A process ended by itself or was not ready in time.
    """
    present = {**os.environ, 'PYTHONUNBUFFERED': '1', **(variables or {})}
    present |= environment(present)
    events: queue.Queue[Child] = queue.Queue()
    graph = RunningGraph(events)
    with tempfile.TemporaryDirectory(prefix='qt_ros_up_') as folder:
        try:
            for process in processes:
                graph.children.append(Child(process, Path(folder), present, quiet, events))
            graph.wait_ready(ready_timeout)
            yield graph
        except Exception:
            graph.check()  # a dead process explains whatever else went wrong
            raise
        finally:
            graph.end()


def command(process: Process, folder: Path) -> list[str]:
    """Give the words that start a process, and write its parameters into `folder`.

    They go into a file under the node's full name, as launch_ros does: `-p` cannot say that a
    value is text, and loses against a parameter file that names the node in another way.
    """
    namespace = process.namespace.strip('/')
    full_name = f'/{namespace}/{process.name}' if namespace else f'/{process.name}'
    written = folder / f'{full_name.strip("/").replace("/", ".")}.yaml'
    content = {full_name: {'ros__parameters': dict(process.parameters)}}
    written.write_text(yaml.safe_dump(content), encoding='utf-8')
    words = [sys.executable, '-m', f'qt_ros.nodes.{process.executable}', '--ros-args']
    words += ['-r', f'__node:={process.name}']
    if namespace:
        words += ['-r', f'__ns:=/{namespace}']
    for source, target in process.remappings:
        words += ['-r', f'{source}:={target}']
    words += ['--params-file', str(process.params_file), '--params-file', str(written)]
    return [*words, '--log-level', process.log_level]
