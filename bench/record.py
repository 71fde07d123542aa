#!/usr/bin/env python3
# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Measure the recorder: does a message get lost, and what does it take?

    python bench/record.py

A robot in a process of its own publishes two 640x480 rgb8 cameras at 30 Hz and joint states at
200 Hz, best effort; the recorder is another process; both share two cores. Beside it, in the same
run, the same messages go through the bag writer in a loop with no ROS: the ceiling. Exits with 1
where a message was lost, and names the topic.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import yaml
from record_robot import CAMERA_RATE, CAMERAS, JOINTS, STATE_RATE, make_sources
from rich.console import Console
from rich.table import Table
from rosbags.rosbag2 import Reader

from qt_ros.bags import EpisodeBag, EpisodeBagWriter
from qt_ros.bags.writer import COMPRESSIONS
from qt_ros.graphs import GRAPHS, environment
from qt_ros.isolation import isolated_graph
from qt_ros.up import running

RESULTS = Path(__file__).with_name('results') / 'record.json'
ROBOT = Path(__file__).with_name('record_robot.py')
CORES = 2
PATIENCE = 60.0  # s until an episode must have begun
CEILING_SECONDS = 5.0
MIB = 2**20


class BenchError(RuntimeError):
    """The bench cannot run, and why."""


@dataclass(frozen=True)
class Result:
    """One recording.

    Attributes:
        compression: Of the bag.
        published: Messages per topic.
        recorded: Of these, those in the bag.
        cpu: CPU seconds of the recorder per second.
        deepest_queue_mib: Most that waited for the disk.
        mib_per_s: What was recorded, before compression.
        bag_mib_per_s: What was written.
        ceiling_mib_per_s: What the writer alone takes in, before compression.
        damage: Why the recording is not whole, or ''.
    """

    compression: str
    published: dict[str, int]
    recorded: dict[str, int]
    cpu: float
    deepest_queue_mib: float
    mib_per_s: float
    bag_mib_per_s: float
    ceiling_mib_per_s: float
    damage: str

    @property
    def lost(self) -> dict[str, int]:
        """Messages per topic that are not in the bag."""
        return {topic: n - self.recorded.get(topic, 0) for topic, n in self.published.items()}


def main() -> int:
    """Run the bench."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=_Raw)
    parser.add_argument('--seconds', type=float, default=60.0, help='of each recording')
    parser.add_argument(
        '--compression', choices=COMPRESSIONS, nargs='+', default=list(COMPRESSIONS)
    )
    parser.add_argument('--folder', type=Path, help='where the disk is that is to be measured')
    parser.add_argument('--out', type=Path, default=RESULTS, help='JSON file')
    arguments = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    results = []
    for compression in arguments.compression:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            results.append(measure(compression, arguments.seconds, Path(folder)))
    show(results)
    content = {
        'seconds': arguments.seconds,
        'python': platform.python_version(),
        'machine': platform.machine(),
        'cores': CORES,
        'results': [asdict(result) | {'lost': result.lost} for result in results],
    }
    arguments.out.write_text(json.dumps(content, indent=1) + '\n')
    missed = [
        f'{result.compression}: {lost} of {result.published[topic]} messages of {topic} lost'
        for result in results
        for topic, lost in result.lost.items()
        if lost
    ]
    missed += [f'{result.compression}: {result.damage}' for result in results if result.damage]
    for line in missed:
        print(f'missed: {line}')
    return 1 if missed else 0


def measure(compression: str, seconds: float, folder: Path) -> Result:
    """Record for some seconds, and write without ROS."""
    from qt_ros.nodes.recorder_client import RecorderClient

    ceiling = measure_ceiling(compression, folder / 'ceiling', min(seconds, CEILING_SECONDS))
    contract, parameters = folder / 'contract.yaml', folder / 'nodes.yaml'
    contract.write_text(yaml.safe_dump(make_contract()))
    recorder = {'ros__parameters': {'compression': compression}}
    parameters.write_text(yaml.safe_dump({'/**/recorder': recorder}))
    processes = GRAPHS['record'].processes(
        contract=str(contract), output=str(folder / 'bags'), params_file=str(parameters)
    )
    with (
        isolated_graph(),
        robot() as (tell, listen),
        running(processes) as graph,
        RecorderClient(timeout=PATIENCE) as client,
    ):
        client.wait()
        deadline = time.monotonic() + PATIENCE
        while not (answer := client.call('start'))[0]:
            if time.monotonic() > deadline:
                raise BenchError(f'the recorder does not begin: {answer[1]}')
            client.spin(0.2)
        path = Path(json.loads(answer[1])['bag'])
        (child,) = graph.children
        begun, cpu = time.monotonic(), cpu_seconds(child.pid)
        tell(f'{seconds}\n')
        while time.monotonic() < begun + seconds:
            client.spin(0.2)
        published = json.loads(listen())
        share = (cpu_seconds(child.pid) - cpu) / (time.monotonic() - begun)
        client.spin(0.5)
        deepest = client.status['deepest_queue_bytes']
        client.call('success')
    damage = EpisodeBag(path).record.damage
    recorded, size = read(path, published['first'])
    file = sum(f.stat().st_size for f in path.glob('*.mcap'))
    return Result(
        compression=compression,
        published=published['counts'],
        recorded=recorded,
        cpu=round(share, 3),
        deepest_queue_mib=round(deepest / MIB, 2),
        mib_per_s=round(size / MIB / seconds, 1),
        bag_mib_per_s=round(file / MIB / seconds, 1),
        ceiling_mib_per_s=round(ceiling, 1),
        damage=damage,
    )


def measure_ceiling(compression: str, path: Path, seconds: float) -> float:
    """Write the same messages in a loop, flushed every second as the recorder does, MiB/s."""
    sources = make_sources()
    kinds = {f'/{source.topic}': source.kind for source in sources}
    writer = EpisodeBagWriter(path, kinds, compression=compression)
    begun = flushed = time.perf_counter()
    size = 0
    while (now := time.perf_counter()) < begun + seconds:
        for source in sources:
            for _ in range(round(source.rate / CAMERA_RATE)):
                data = source.next(time.time_ns())
                writer.write(f'/{source.topic}', time.time_ns(), data)
                size += len(data)
        if now > flushed + 1:
            writer.flush()
            flushed = now
    writer.flush()
    duration = time.perf_counter() - begun
    writer.discard()
    return size / MIB / duration


@contextmanager
def robot() -> Iterator[tuple]:
    """Run the robot; gives what writes to it and what reads a line from it."""
    process = subprocess.Popen(
        [sys.executable, ROBOT],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment(os.environ)},
    )

    def tell(text: str) -> None:
        process.stdin.write(text)
        process.stdin.flush()

    try:
        yield tell, process.stdout.readline
    finally:
        process.communicate(timeout=30)


def make_contract() -> dict:
    """Describe the robot of `record_robot.py`."""
    camera = {'height': 128, 'width': 128, 'max_age': 0.5, 'rate': CAMERA_RATE}
    ones = [1.0] * len(JOINTS)
    low = [-1.0] * len(JOINTS)
    return {
        'name': 'bench',
        'rate': 10.0,
        'cameras': [{'name': n, 'topic': f'{n}/image_raw', **camera} for n in CAMERAS],
        'state': {
            'topic': 'joint_states',
            'joints': list(JOINTS),
            'low': low,
            'high': ones,
            'max_age': 0.5,
            'rate': STATE_RATE,
        },
        'instruction': {'topic': 'instruction'},
        'action': {
            'topic': 'joint_trajectory',
            'joints': list(JOINTS),
            'bins': 21,
            'low': low,
            'high': ones,
        },
        'safety': {'position_low': low, 'position_high': ones, 'max_step': ones},
    }


def read(path: Path, first: int) -> tuple[dict[str, int], int]:
    """Count the different messages stamped at or after `first` ns, per topic, and their bytes."""
    stamps: dict[str, set[int]] = {}
    size = 0
    with Reader(path) as reader:
        wanted = [c for c in reader.connections if c.topic.endswith(('image_raw', '_states'))]
        for connection, _, data in reader.messages(connections=wanted):
            seconds, rest = struct.unpack_from('<iI', data, 4)
            stamp = seconds * 1_000_000_000 + rest
            if stamp >= first:
                stamps.setdefault(connection.topic.strip('/'), set()).add(stamp)
                size += len(data)
    return {topic: len(found) for topic, found in stamps.items()}, size


def cpu_seconds(pid: int) -> float:
    """Give the CPU time that a process has used."""
    fields = Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')


def show(results: list[Result]) -> None:
    """Print the table."""
    table = Table(title='recorder: two 640x480 cameras at 30 Hz, joint states at 200 Hz')
    for column in ('', *(result.compression for result in results)):
        table.add_column(column, justify='right' if column else 'left')
    for topic in results[0].published:
        table.add_row(f'{topic}: published', *(str(result.published[topic]) for result in results))
        table.add_row('  lost', *(str(result.lost[topic]) for result in results))
    rows = {
        'recorder, cores': 'cpu',
        'largest queue, MiB': 'deepest_queue_mib',
        'recorded, MiB/s': 'mib_per_s',
        'on disk, MiB/s': 'bag_mib_per_s',
        'writer without ROS, MiB/s': 'ceiling_mib_per_s',
    }
    for title, name in rows.items():
        table.add_row(title, *(f'{getattr(result, name):g}' for result in results))
    Console().print(table)


class _Raw(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    pass


if __name__ == '__main__':
    sys.exit(main())
