#!/usr/bin/env python3
# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Measure how fast batches come out of a replay folder that does not fit in memory.

    python bench/replay.py

writes a folder twice the size of the memory that its readers may use, and reads random windows of
6 frames from it, beside a plain copy of as many bytes in memory. Exits with 1 where a target is
missed.
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import json
import mmap
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import cv2
import numpy as np
import replay_lerobot
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from qt_core.action_space import ActionSpace
from qt_core.contract import RobotContract
from qt_core.replay import (
    ReplayEpisode,
    ReplayFolder,
    ReplayMemoryDataset,
    ReplayWriter,
    WindowSampler,
)
from qt_core.share import share_path

ROOT = Path(__file__).resolve().parents[1]
SIDE, FRAMES, BATCH, STEPS = 128, 6, 64, 100
ROUNDS, BATCHES = 5, 64  # together about an epoch of the default folder
PROCESSES = 3  # how pages come to lie in memory differs from one to the next
TARGET = 0.5  # of the samples/s of a memory copy
MEBIBYTE = 1 << 20
BLOCK = 4 * MEBIBYTE  # of a file, dropped from the page cache together
NOTES = (
    'Memory copy: one copy of as many bytes as a batch has, out of an array in memory into a new '
    'one; in turn with the batches, in the same process.',
    "Limit: RLIMIT_DATA, on all the process's own memory, Python and torch included. It does not "
    'cover the page cache, which holds what was read before where the machine has room for it.',
    'page cache limited too: before each batch, blocks of the folder are dropped from it '
    '(madvise, posix_fadvise), those read last at the end, until it holds no more than the '
    'limit (mincore), so that half the frames come from the disk. The disk decides, and there '
    'is no target.',
)


def write_folder(
    folder: Path, megabytes: float, image_format: str = 'raw', *, seed: int = 0
) -> Path:
    """Write a replay folder of one camera, 128x128, under the contract of the tabletop.

    Args:
        folder: Must not exist, or be empty.
        megabytes: Size of its images before they are coded, MiB.
        image_format: `raw` or `jpeg`.
        seed: Of its content.

    Returns:
        `folder`.
    """
    contract = RobotContract.load(share_path('config/contracts/tabletop.yaml'))
    camera = dataclasses.replace(contract.cameras[0], height=SIDE, width=SIDE)
    contract = dataclasses.replace(contract, cameras=(camera,))
    space = ActionSpace(contract)
    random = np.random.default_rng(seed)
    low, high = np.array(contract.state.low), np.array(contract.state.high)
    episodes = max(2, round(megabytes * MEBIBYTE / (SIDE * SIDE * 3 * (STEPS + 1))))

    def embed(sentences: Sequence[str]) -> NDArray[np.float32]:
        return np.ones((len(sentences), 384), np.float32)

    with ReplayWriter(folder, contract, embed, image_format=image_format) as writer:
        for number in range(episodes):
            bins = random.integers(0, space.bins, (STEPS, space.dimensions))
            success = number % 2 == 0
            reward = np.zeros(STEPS, np.float32)
            reward[-1] = success
            writer.add(
                ReplayEpisode(
                    images={camera.name: _film(random)},
                    state=random.uniform(low, high, (STEPS + 1, len(low))).astype(np.float32),
                    action=space.decode(bins).astype(np.float32),
                    bins=bins,
                    reward=reward,
                    terminal=True,
                    timeout=False,
                    instruction=f'touch the {("red", "blue")[number % 2]} block',
                    outcome='success' if success else 'failure',
                    source=f'episode_{number}',
                )
            )
    return folder


def _film(random: np.random.Generator) -> NDArray[np.uint8]:
    """Draw blocks on a table, one of them moving, with a camera's noise."""
    coarse = random.integers(90, 160, (8, 8, 3), np.uint8)
    table = cv2.resize(coarse, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
    for _ in range(6):
        x, y, size = random.integers((8, 8, 8), (SIDE - 28, SIDE - 28, 20)).tolist()
        colour = random.integers(0, 256, 3).tolist()
        cv2.rectangle(table, (x, y), (x + size, y + size), colour, -1)
    noise = random.integers(0, 5, (16, SIDE, SIDE, 3), np.uint8)
    film = np.empty((STEPS + 1, SIDE, SIDE, 3), np.uint8)
    for t, image in enumerate(film):
        cv2.add(table, noise[t % len(noise)], dst=image)
        cv2.circle(image, (10 + t, SIDE // 2), 9, (200, 40, 40), -1)
    return film


def work(folder: Path, limit: int, cache: bool) -> dict[str, Any]:
    """Measure one row in this process, which holds at most `limit` MiB from now on."""
    resource.setrlimit(resource.RLIMIT_DATA, (limit * MEBIBYTE, limit * MEBIBYTE))
    opened = ReplayFolder(folder)
    dataset = ReplayMemoryDataset(opened).with_frames(FRAMES)
    sampler = WindowSampler(dataset, batch_size=BATCH, seed=0)
    batch = sampler.batch(0)  # what is set up at the first one
    size = sum(images.numel() for images in batch.images.values())
    held = np.random.default_rng(0).integers(0, 256, limit * MEBIBYTE // 4, np.uint8)
    random = np.random.default_rng(1)
    for start in range(0, len(held) - size, size):
        _copy(held, start, size)  # the first one takes memory from the system
    pages = PageCache(opened, 2) if cache else None
    copies, batches = [], []
    for number in range(ROUNDS):
        starts = random.integers(0, len(held) - size, BATCHES)
        copies.append(_rate([partial(_copy, held, start, size) for start in starts.tolist()]))
        first = 1 + number * BATCHES
        calls = [partial(sampler.batch, first + k) for k in range(BATCHES)]
        batches.append(_rate(calls, partial(pages.limit, limit * MEBIBYTE) if pages else None))
    del held, batch
    return {
        'samples_per_second': median(batches),
        'copies_per_second': median(copies),
        'ratio': median(ours / theirs for ours, theirs in zip(batches, copies, strict=True)),
        'ratios': [min(r := [a / b for a, b in zip(batches, copies, strict=True)]), max(r)],
        'gigabytes_per_second': median(batches) / BATCH * size / 1e9,
        'refused': _refused(opened),
    }


def _copy(held: NDArray[np.uint8], start: int, size: int) -> NDArray[np.uint8]:
    return held[start : start + size].copy()


def _rate(
    calls: Sequence[Callable[[], object]], before: Callable[[], object] | None = None
) -> float:
    """Give samples/s; what is called before each batch is not timed."""
    seconds = 0.0
    for call in calls:
        if before is not None:
            before()
        start = time.perf_counter()
        call()
        seconds += time.perf_counter() - start
    return BATCH * len(calls) / seconds


def _refused(opened: ReplayFolder) -> bool:
    """Whether the limit keeps this process from holding the frames in memory."""
    held = []
    try:
        for shard in opened.shards:
            held += [shard[f'images_{camera.name}'][:].copy() for camera in opened.spec.cameras]
    except MemoryError:
        return True
    return False


class PageCache:
    """What the page cache holds of a folder's images.

    Args:
        opened: A folder of raw images.
        seed: Of the blocks that are dropped.
    """

    def __init__(self, opened: ReplayFolder, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        names = [f'images_{camera.name}' for camera in opened.spec.cameras]
        self._arrays = [shard[name] for shard in opened.shards for name in names]
        self._before: dict[tuple[int, int], int] = {}
        self._mincore = ctypes.CDLL(None, use_errno=True).mincore

    def limit(self, size: int) -> None:
        """Drop blocks until no more than `size` bytes are held; what came last goes last."""
        held = {
            (number, start): count
            for number, array in enumerate(self._arrays)
            for start, count in self._blocks(array)
        }
        total, blocks = sum(held.values()), list(held)
        order = [blocks[place] for place in self._random.permutation(len(blocks))]
        order.sort(key=lambda block: held[block] > self._before.get(block, 0))
        for number, start in order:
            if total <= size:
                break
            array = self._arrays[number]
            with open(array.filename, 'rb') as file:  # what is mapped cannot be dropped: unmap it
                array._mmap.madvise(
                    mmap.MADV_DONTNEED, start, min(BLOCK, self._end(array) - start)
                )
                os.posix_fadvise(file.fileno(), start, BLOCK, os.POSIX_FADV_DONTNEED)
            total -= held.pop((number, start))
        self._before = held

    def _blocks(self, array: Any) -> list[tuple[int, int]]:
        """Give where in the file the blocks begin of which something is held, and how much."""
        size, page = self._end(array), mmap.PAGESIZE
        pages = np.zeros(-(-size // page), np.uint8)
        first = array.ctypes.data - array.offset  # the mapping begins with the file
        if self._mincore(
            ctypes.c_void_p(first), ctypes.c_size_t(size), ctypes.c_void_p(pages.ctypes.data)
        ):
            raise OSError(ctypes.get_errno(), 'mincore')
        step = BLOCK // page
        counts = [int((pages[k : k + step] & 1).sum()) for k in range(0, len(pages), step)]
        return [(k * BLOCK, count * page) for k, count in enumerate(counts) if count]

    @staticmethod
    def _end(array: Any) -> int:
        return int(array.offset + array.nbytes)


def measure(folder: Path, limit: int, cache: bool = False) -> dict[str, Any]:
    """Measure one row, in processes one after the other; give the one of the median ratio."""
    found = [measure_once(folder, limit, cache) for _ in range(PROCESSES)]
    extremes = [ratio for each in found for ratio in each['ratios']]
    row = sorted(found, key=lambda each: float(each['ratio']))[PROCESSES // 2]
    return row | {'ratios': [min(extremes), max(extremes)]}


def measure_once(folder: Path, limit: int, cache: bool) -> dict[str, Any]:
    """Measure in a new process."""
    words = [sys.executable, __file__, '--worker', str(folder), '--limit', str(limit)]
    done = subprocess.run(
        [*words, *(['--cache'] if cache else [])],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**os.environ, 'OMP_NUM_THREADS': '1'},
    )
    return json.loads(done.stdout)


def size_of(folder: Path) -> int:
    """Give the bytes of the files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob('*') if path.is_file())


def run(options: argparse.Namespace, scratch: Path) -> list[dict[str, Any]]:
    """Measure every row."""
    raw = write_folder(scratch / 'raw', 2 * options.limit)
    rows = []
    for name, cache, target in (
        ('raw', False, TARGET),
        ('raw, page cache limited too', True, None),
    ):
        row = {'name': name, 'target': target, 'bytes': size_of(raw)}
        rows.append(row | measure(raw, options.limit, cache))
    shutil.rmtree(raw)
    jpeg = write_folder(scratch / 'jpeg', 2 * options.limit, 'jpeg')
    row = {'name': 'jpeg, the same frames', 'target': None, 'bytes': size_of(jpeg)}
    rows.append(row | measure(jpeg, options.limit))
    shutil.rmtree(jpeg)
    if options.lerobot:
        small = write_folder(scratch / 'small', options.lerobot)
        found = replay_lerobot.measure(small, 4 * BATCH, BATCH)
        if found is not None:
            ours = {'name': f'raw, {options.lerobot} MiB', 'target': None, 'bytes': size_of(small)}
            rows.append(ours | measure(small, options.limit))
            rows.append({'name': 'LeRobotDataset of the same', **found})
            rows[-1]['times_faster'] = rows[-2]['samples_per_second'] / found['samples_per_second']
    return rows


def show(console: Console, rows: Sequence[dict[str, Any]], limit: int) -> None:
    """Print the table."""
    table = Table(
        '', 'MiB', 'samples/s', 'memory copy', 'ratio', 'over rounds', 'target', 'verdict'
    )
    for row in rows:
        ratio, target = row.get('ratio'), row.get('target')
        table.add_row(
            row['name'],
            f'{row["bytes"] / MEBIBYTE:,.0f}',
            f'{row["samples_per_second"]:,.0f}',
            '' if ratio is None else f'{row["copies_per_second"]:,.0f}',
            '' if ratio is None else f'{ratio:.2f}',
            '' if ratio is None else ' – '.join(f'{edge:.2f}' for edge in row['ratios']),
            '' if target is None else f'≥ {target}',
            '' if target is None else 'met' if met(row) else 'MISSED',
        )
    console.print(table)
    refuses = 'refuses' if rows[0]['refused'] else 'DOES NOT REFUSE'
    console.print(f'  limit {limit} MiB; it {refuses} the folder in memory', style='dim')
    if 'times_faster' in rows[-1]:
        console.print(f'  ours / LeRobotDataset: {rows[-1]["times_faster"]:,.0f}', style='dim')
    for note in NOTES:
        console.print(f'  {note}', style='dim', highlight=False)


def met(row: dict[str, Any]) -> bool:
    """Whether a row reaches its target; one whose limit limits nothing does not."""
    target = row.get('target')
    return target is None or (row['ratio'] >= target and row['refused'])


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument('--limit', type=int, default=512, help='MiB; the folder has twice as many')
    parser.add_argument('--lerobot', type=int, default=64, help='MiB of frames to export; 0: none')
    parser.add_argument('--folder', type=Path, help='where to write; 4 x LIMIT must be free')
    parser.add_argument('--out', type=Path, default=ROOT / 'bench/results/replay.json')
    parser.add_argument('--worker', type=Path, help=argparse.SUPPRESS)
    parser.add_argument('--cache', action='store_true', help=argparse.SUPPRESS)
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> int:
    """Run the bench; 0 where every target was reached."""
    options = arguments(given)
    if options.worker:
        print(json.dumps(work(options.worker, options.limit, options.cache)))
        return 0
    start, load = time.monotonic(), os.getloadavg()[0]
    if load > 0.5:
        say = 'something else is running (load {:.1f}): these will not be good figures'
        print(say.format(load), file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix='replay-bench-', dir=options.folder) as scratch:
        rows = run(options, Path(scratch))
    show(Console(width=None if sys.stdout.isatty() else 120), rows, options.limit)
    content = {
        'limit_mebibytes': options.limit,
        'rows': rows,
        'machine': {'cores': os.cpu_count(), 'load': load},
        'minutes': round((time.monotonic() - start) / 60, 1),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(content, indent=1) + '\n', encoding='utf-8')
    missed = [row['name'] for row in rows if not met(row)]
    if missed:
        print(f'missed: {", ".join(missed)}')
    return 1 if missed else 0


if __name__ == '__main__':
    sys.exit(main())
