#!/usr/bin/env python3
# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Measure `qt-ros convert` against decoding and resizing alone, in one run.

    python bench/convert.py

The ceiling is what all cores together decode and resize of the same frames, already in memory; it
is measured before and after each conversion.
Conversion also reads the bag twice, hashes it, lays it out on the grid, and writes the replay
folder. Exits with 1 where a target is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import cv2
import numpy as np
from rich.console import Console
from rich.table import Table
from rosbags.typesys import Stores, get_typestore

from qt_core.contract import RobotContract
from qt_core.observation import resize
from qt_core.share import share_path
from qt_ros.bags import EpisodeBagWriter, EpisodeRecord, converter
from qt_ros.bags.engines import cores
from qt_ros.conversions import COMMAND_TYPES, image_to_rgb

ROOT = Path(__file__).resolve().parents[1]
STORE = get_typestore(Stores.ROS2_JAZZY)
TYPES = STORE.types
RATE = 30  # Hz of the camera and of control: every frame is kept
WIDTH, HEIGHT = 640, 480
SCENES = 64  # different pictures; a bag repeats them
attempt = converter._attempt
TRACE = 'QT_ROS_CONVERT_BENCH'  # variable with the folder of traces
TARGETS = {'jpeg': 0.7, 'scaling': 1.7, 'memory': 1.1}


@dataclass(frozen=True)
class Row:
    """Something measured.

    Attributes:
        name: What.
        value: The figure that has a target, or that is worth comparing.
        unit: Of `value`.
        target: What it should be, or None.
        met: Whether it is; True without a target.
        details: What it was made of.
    """

    name: str
    value: float
    unit: str
    target: float | None
    met: bool
    details: dict[str, float]


def contract_of(kind: str) -> RobotContract:
    """Give the tabletop's contract at the camera's rate; `kind` is `jpeg` or `raw`."""
    contract = RobotContract.load(share_path('config/contracts/tabletop.yaml'))
    camera = replace(contract.cameras[0], height=128, width=128)
    if kind == 'jpeg':
        topic = f'{camera.topic}/compressed'
        camera = replace(camera, topic=topic, type='sensor_msgs/msg/CompressedImage')
    return replace(contract, rate=float(RATE), cameras=(camera,))


def draw_scenes(kind: str) -> list[bytes]:
    """Draw pictures with edges, areas and noise, as jpegs or raw."""
    random, scenes = np.random.default_rng(0), []
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    for number in range(SCENES):
        shade = np.stack([rows // 3, columns // 4, (rows + columns + 4 * number) // 5], 2) % 256
        picture = shade.astype(np.uint8)
        for _ in range(12):
            corner, size = random.integers(0, 500, 2), random.integers(20, 160, 2)
            colour = random.integers(0, 255, 3).tolist()
            cv2.rectangle(picture, corner.tolist(), (corner + size).tolist(), colour, -1)
        noise = random.integers(0, 12, picture.shape, np.uint8)
        picture = cv2.add(picture, noise)
        if kind == 'jpeg':
            quality = [cv2.IMWRITE_JPEG_QUALITY, 90]
            scenes.append(cv2.imencode('.jpg', picture, quality)[1].tobytes())
        else:
            scenes.append(picture.tobytes())
    return scenes


def message_of(kind: str, data: bytes, header: Any) -> Any:
    """Give an image message."""
    pixels = np.frombuffer(data, np.uint8)
    if kind == 'jpeg':
        return TYPES['sensor_msgs/msg/CompressedImage'](
            header, 'rgb8; jpeg compressed bgr8', pixels
        )
    image = TYPES['sensor_msgs/msg/Image']
    return image(header, HEIGHT, WIDTH, 'rgb8', 0, 3 * WIDTH, pixels)


def write_bag(path: Path, kind: str, scenes: Sequence[bytes], frames: int, first: int = 0) -> int:
    """Write an episode of `frames` images, and a joint state and a command each; give bytes."""
    contract = contract_of(kind)
    camera, state, action = contract.cameras[0], contract.state, contract.action
    names = {
        f'/{camera.topic}': camera.type,
        f'/{state.topic}': 'sensor_msgs/msg/JointState',
        f'/{action.topic}': COMMAND_TYPES[action.type],
    }
    none = np.zeros(0)
    writer = EpisodeBagWriter(path, names, compression='none')
    for index in range(frames):
        now = 10**10 + round(index * 1e9 / RATE)
        time_message = TYPES['builtin_interfaces/msg/Time'](*divmod(now, 10**9))
        header = TYPES['std_msgs/msg/Header'](time_message, '')
        positions = np.full(len(state.joints), 0.1 * np.sin(0.05 * (first + index)))
        point = TYPES['trajectory_msgs/msg/JointTrajectoryPoint'](
            positions[: len(action.joints)] + 0.01,
            none,
            none,
            none,
            TYPES['builtin_interfaces/msg/Duration'](0, 0),
        )
        messages = [
            TYPES['sensor_msgs/msg/JointState'](header, list(state.joints), positions, none, none),
            message_of(kind, scenes[(first + index) % SCENES], header),
            TYPES['trajectory_msgs/msg/JointTrajectory'](header, list(action.joints), [point]),
        ]
        order = [f'/{state.topic}', f'/{camera.topic}', f'/{action.topic}']
        for topic, message in zip(order, messages, strict=True):
            writer.write(topic, now, bytes(STORE.serialize_cdr(message, names[topic])))
    writer.finish(
        EpisodeRecord(
            instruction='bench',
            outcome='success',
            ended_by='terminal',
            contract=contract.to_text(),
        )
    )
    return sum(file.stat().st_size for file in path.glob('*.mcap'))


def embed(sentences: Sequence[str]) -> Any:
    """Stand for the sentence model, which takes as long to load whatever is converted."""
    return np.ones((len(sentences), 8), np.float32)


def ceiling(kind: str, scenes: Sequence[bytes], frames: int, threads: int) -> float:
    """Give frames/s of decoding and resizing alone, frames in memory, on `threads` cores."""
    camera = contract_of(kind).cameras[0]
    header = SimpleNamespace()
    messages = [message_of(kind, scene, header) for scene in scenes]

    def work(start: int) -> None:
        for number in range(start, frames, threads):
            rgb = image_to_rgb(messages[number % SCENES])
            resize(rgb, camera.height, camera.width)

    began = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, range(threads)))
    return frames / (time.perf_counter() - began)


def traced(path: Path, **options: Any) -> Any:
    """Convert a bag in a worker, and leave a trace of when it began."""
    trace = Path(os.environ[TRACE], f'{os.getpid()}')
    if not trace.exists():
        trace.write_text(repr(time.time()))
    return attempt(path, **options)


def timed(bags: Sequence[Path], out: Path, workers: int) -> tuple[float, float]:
    """Convert once and give the seconds, and those until the workers began, on average."""
    shutil.rmtree(out, ignore_errors=True)
    traces = patch.object(converter, '_attempt', traced)
    with tempfile.TemporaryDirectory() as folder, traces:
        os.environ[TRACE] = folder
        began = time.time()
        report = converter.convert(bags, out, embed, workers=workers)
        seconds = time.time() - began
        starts = [float(trace.read_text()) - began for trace in Path(folder).iterdir()]
    assert not report.failures, report.failures[0]
    shutil.rmtree(out)
    return seconds, statistics.mean(starts)


def throughput(kind: str, folder: Path, options: argparse.Namespace) -> Iterator[Row]:
    """Compare conversion with the ceiling, and one worker with two."""
    scenes, count = draw_scenes(kind), 2 * cores()
    frames = options.frames if kind == 'jpeg' else options.frames // 4
    size = sum(
        write_bag(folder / kind / f'{n:02d}', kind, scenes, frames, 7 * n) for n in range(count)
    )
    bags = sorted((folder / kind).iterdir())
    total = count * frames
    ceilings, working, starts, single, pairs = [], [], [], [], []
    shares: list[float] = []
    for _ in range(options.repeats):
        before = ceiling(kind, scenes, total, cores())
        seconds, start = timed(bags, folder / 'out', cores())
        ceilings.append((before + ceiling(kind, scenes, total, cores())) / 2)
        shares.append(total / (seconds - start) / ceilings[-1])
        working.append(seconds - start)
        starts.append(start)
        if kind == 'jpeg':
            seconds, start = timed(bags, folder / 'out', 1)
            single.append(seconds - start)
            if cores() != 2:
                seconds, start = timed(bags, folder / 'out', 2)
            pairs.append(working[-1] if cores() == 2 else seconds - start)
    most, work = statistics.median(ceilings), statistics.median(working)
    rate, start = total / work, statistics.median(starts)
    share = statistics.median(shares)
    yield Row(
        f'{kind}: conversion / ceiling',
        share,
        '',
        TARGETS.get(kind),
        share >= TARGETS.get(kind, 0),
        {
            'frames_per_s': rate,
            'ceiling_frames_per_s': most,
            'frames_per_s_with_startup': total / (work + start),
            'startup_s': start,
            'minutes_per_gb': work / 60 / (size / 1e9),
            'gb': size / 1e9,
        },
    )
    if single:
        gain = statistics.median(single) / statistics.median(pairs)
        yield Row(
            'scaling from 1 to 2 workers',
            gain,
            '',
            TARGETS['scaling'],
            gain >= TARGETS['scaling'],
            {'one_s': statistics.median(single), 'two_s': statistics.median(pairs)},
        )
    shutil.rmtree(folder / kind)


PEAK = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from bench.convert import timed
timed([Path(sys.argv[1])], Path(sys.argv[2]), 1)
for line in Path('/proc/self/status').read_text().splitlines():
    if line.startswith('VmHWM'):
        print(line.split()[1])
"""


def memory(folder: Path, options: argparse.Namespace) -> Iterator[Row]:
    """Compare the memory of converting a bag with that of one four times as large."""
    scenes, peaks, sizes = draw_scenes('raw'), [], []
    for factor in (1, 4):
        bag, out = folder / f'bag{factor}', folder / 'out'
        frames = int(factor * options.gigabytes * 1e9 / (3 * WIDTH * HEIGHT))
        sizes.append(write_bag(bag, 'raw', scenes, frames) / 1e9)
        words = [sys.executable, '-c', PEAK, str(bag), str(out), str(ROOT)]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout.split()[-1]) / 1024)
        shutil.rmtree(bag)
    ratio = peaks[1] / peaks[0]
    yield Row(
        f'memory from {sizes[0]:.2g} to {sizes[1]:.2g} GB',
        ratio,
        '',
        TARGETS['memory'],
        ratio <= TARGETS['memory'],
        {'small_mib': peaks[0], 'large_mib': peaks[1]},
    )


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument('--out', type=Path, default=ROOT / 'bench/results/convert.json')
    parser.add_argument('--folder', type=Path, help='where bags are written for the while')
    parser.add_argument('--frames', type=int, default=1500, help='of each jpeg bag')
    parser.add_argument('--repeats', type=int, default=3)
    parser.add_argument('--gigabytes', type=float, default=1.0, help='of the smaller large bag')
    parser.add_argument('--quick', action='store_true', help='small bags, once, to try it')
    options = parser.parse_args(given)
    if options.quick:
        options.frames, options.repeats, options.gigabytes = 300, 1, 0.1
    return options


def main(given: Sequence[str] | None = None) -> int:
    """Run the bench; 0 where every target was reached."""
    options = arguments(given)
    cv2.setNumThreads(1)  # as in the workers
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    load = os.getloadavg()[0]
    if load > 0.5:
        print(f'something else is running (load {load:.1f}): no good figures', file=sys.stderr)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix='convert-bench-', dir=options.folder) as name:
        folder = Path(name)
        needed = (5 * options.gigabytes + 2) * 1e9
        if shutil.disk_usage(folder).free < needed:
            print(f'bench/convert.py: {folder} needs {needed / 1e9:.0f} GB', file=sys.stderr)
            return 2
        for kind in ('jpeg', 'raw'):
            rows += throughput(kind, folder, options)
        rows += memory(folder, options)
    table = Table('', 'value', 'target', 'verdict', 'of')
    for row in rows:
        sign = '≤' if row.name.startswith('memory') else '≥'
        details = ', '.join(f'{key} {value:.4g}' for key, value in row.details.items())
        verdict = '' if row.target is None else 'met' if row.met else 'MISSED'
        target = '' if row.target is None else f'{sign} {row.target:g}'
        table.add_row(row.name, f'{row.value:.3g}', target, verdict, details)
    console.print(table)
    content = {'rows': [asdict(row) for row in rows], 'cores': cores(), 'load': load}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(content, indent=1) + '\n', encoding='utf-8')
    missed = [row.name for row in rows if not row.met]
    if missed:
        console.print(f'missed: {", ".join(missed)}')
    return 1 if missed else 0


if __name__ == '__main__':
    sys.exit(main())
