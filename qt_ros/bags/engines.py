# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Work on many items at once, in processes of this machine or on a Ray cluster.

Results come in the order of the items, and only so much work is begun that few of them wait. A
process that dies costs the item that it was working on.
"""

from __future__ import annotations

import os
import signal
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from multiprocessing import get_context, resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

import cv2

Item = TypeVar('Item')
Result = TypeVar('Result')
AHEAD = 2  # items a process is given at a time, so that it need not wait for the next one


@dataclass(frozen=True)
class Died:
    """In place of a result: why there is none."""

    reason: str


def cores() -> int:
    """Count the cores this process may use."""
    return (
        len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
    )


def run_here(
    function: Callable[[Item], Result], items: Sequence[Item]
) -> Generator[Result, None, None]:
    """Work in this process."""
    yield from map(function, items)


def run_in_processes(
    function: Callable[[Item], Result], items: Sequence[Item], workers: int
) -> Generator[Result | Died, None, None]:
    """Work in `workers` processes; at most twice as many items are begun and not yet given out.

    Args:
        function: Picklable; should raise nothing.
        items: Picklable.
        workers: Number of processes.
    """
    crew = [_Worker(function) for _ in range(min(workers, len(items)))]
    results: dict[int, Result | Died] = {}
    waiting = deque(range(len(items)))
    try:
        for number in range(len(items)):
            while True:
                for worker in sorted(crew, key=lambda w: len(w.given)):
                    while waiting and waiting[0] < number + 2 * workers and worker.free():
                        worker.give(waiting[0], items[waiting[0]])
                        waiting.popleft()
                if number in results:
                    break
                for connection in wait([w.connection for w in crew if w.given]):
                    place = next(i for i, w in enumerate(crew) if w.connection is connection)
                    worker = crew[place]
                    try:
                        result: Result | Died = worker.connection.recv()
                    except (EOFError, OSError):
                        result = Died(worker.ending())
                    results[worker.given.popleft()] = result
                    if isinstance(result, Died):
                        waiting.extendleft(reversed(worker.given))
                        crew[place] = _Worker(function)
            yield results.pop(number)
    finally:
        for worker in crew:
            worker.end()


@dataclass
class _Worker:
    """A process, and the numbers of the items it was given and has not answered."""

    function: Callable[[Any], Any]
    given: deque[int] = field(default_factory=deque)

    def __post_init__(self) -> None:
        context = get_context('spawn')
        self.connection, theirs = context.Pipe()
        self._process: BaseProcess = context.Process(
            target=_serve, args=(theirs, self.function), daemon=True
        )
        # Ctrl-C reaches every process of a terminal, even those that are still starting; the one
        # that started this one ends it.
        resource_tracker.ensure_running()  # starting it would let the signal through again
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()

    def free(self) -> bool:
        return len(self.given) < AHEAD

    def give(self, number: int, item: Any) -> None:
        self.given.append(number)
        with suppress(OSError):  # it is dead; receiving from it will say so
            self.connection.send(item)

    def ending(self) -> str:
        """Say how it ended."""
        self._process.join()
        self.connection.close()
        code = self._process.exitcode or 0
        if code == -signal.SIGKILL:
            return 'the process working on it was killed (memory may have run out)'
        return f'the process working on it ended with {code}'

    def end(self) -> None:
        self._process.terminate()
        self._process.join()
        self.connection.close()


def _serve(connection: Connection, function: Callable[[Any], Any]) -> None:
    """Answer items until the other side is gone."""
    cv2.setNumThreads(1)  # there is a process for each core already
    with closing(connection):
        while True:
            try:
                connection.send(function(connection.recv()))
            except (EOFError, OSError):
                return


def run_on_ray(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    workers: int | None,
    address: str | None,
) -> Generator[Result | Died, None, None]:
    """Work as tasks on a Ray cluster, whose machines must see the same files.

    Args:
        function: As of `run_in_processes`.
        items: As there.
        workers: Half the number of tasks in flight; None for the cluster's cores.
        address: Of an existing cluster; None for that of RAY_ADDRESS, or a new one here.
    """
    import ray

    joined = not ray.is_initialized()
    if joined:
        ray.init(address=address, log_to_driver=False)

    def work(item: Item) -> Result:
        cv2.setNumThreads(1)
        return function(item)

    task: Any = ray.remote(max_retries=0)(work)
    cluster_resources: Any = ray.cluster_resources
    window = 2 * (workers or int(cluster_resources().get('CPU', 1)) or 1)
    running: deque[Any] = deque()
    try:
        for number in range(len(items)):
            while len(running) < window and number + len(running) < len(items):
                running.append(task.remote(items[number + len(running)]))
            try:
                result: Result | Died = ray.get(running[0])
            except ray.exceptions.RayError as error:
                line = ' '.join(str(error).split())
                result = Died(f'the Ray task working on it failed: {line[:300]}')
            running.popleft()
            yield result
    finally:
        for reference in running:
            ray.cancel(reference, force=True)
        if joined:
            ray.shutdown()
