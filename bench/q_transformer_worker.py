# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""One side of `bench/q_transformer.py`, measured in a process of its own.

    python -P bench/q_transformer_worker.py theirs|ours FOLDER

reads requests from standard input and answers on standard output, one JSON object a line. Sizes,
data, order of samples, warm-up and clock are the same for both sides; what differs is in
`q_transformer_theirs.py` and `q_transformer_ours.py`. FOLDER holds the replay folders.
"""

from __future__ import annotations

import cProfile
import gc
import importlib
import io
import json
import os
import pstats
import re
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

# At the end, so that `import q_transformer` is the installed package, not the bench.
sys.path.append(str(Path(__file__).resolve().parent))

FRAMES, ACTIONS, BINS, TEXT_DIM = 6, 8, 256, 768  # as wide as the text encoder that theirs needs
SAMPLED_BATCH = 8
WARM_UP = 2
MEMORY_STEPS = 3  # the optimiser's state is there from the second on


@dataclass(frozen=True, kw_only=True)
class Size:
    """A configuration of both models, and how much of it is measured.

    Attributes:
        image: Side of the square images, pixels.
        batch: Samples of a training step.
        model: Options that both models take, by the same names.
        seconds: Time that one measurement lasts at least.
        episodes: Episodes of the folder that is sampled from.
    """

    image: int
    batch: int
    model: dict[str, Any]
    seconds: float
    episodes: int = 4
    steps: int = 30


def _model(vit: dict[str, Any], **options: Any) -> dict[str, Any]:
    rates = {'mbconv_expansion_rate': 4, 'mbconv_shrinkage_rate': 0.25, 'dropout': 0.1}
    both = {'num_actions': ACTIONS, 'action_bins': BINS, 'cond_drop_prob': 0.2, 'dueling': True}
    return {'vit': {**vit, **rates}, **both, **options}


SIZES = {
    'small': Size(
        image=64,
        batch=8,
        seconds=1.0,
        model=_model(
            {
                'dim': 32,
                'dim_conv_stem': 32,
                'dim_head': 32,
                'heads': 4,
                'depth': (1, 1),
                'window_size': 8,
            },
            depth=2,
            heads=4,
            dim_head=32,
        ),
    ),
    'readme': Size(
        image=224,
        batch=1,
        seconds=3.0,
        model=_model(
            {
                'dim': 64,
                'dim_conv_stem': 64,
                'dim_head': 64,
                'heads': 8,
                'depth': (2, 2, 5, 2),
                'window_size': 7,
            },
            depth=1,
            heads=8,
            dim_head=64,
        ),
    ),
}


@dataclass(frozen=True, kw_only=True)
class Episode:
    """T actions between T + 1 observations; both sides write the same ones to disk.

    Attributes:
        images: (T+1, H, W, 3) uint8.
        bins: (T, N) int64.
        reward: (T,) float32, 1 at the end of a success; the last action ends the episode.
        text: (E,) float32 embedding of the sentence.
        sentence: The sentence.
    """

    images: NDArray[np.uint8]
    bins: NDArray[np.int64]
    reward: NDArray[np.float32]
    text: NDArray[np.float32]
    sentence: str


def make_episodes(size: Size, count: int, steps: int) -> list[Episode]:
    """Draw episodes of noise; what a pixel holds changes no time."""
    random = np.random.default_rng(0)
    episodes = []
    for number in range(count):
        reward = np.zeros(steps, np.float32)
        reward[-1] = number % 2
        shape = (steps + 1, size.image, size.image, 3)
        episodes.append(
            Episode(
                images=random.integers(0, 256, shape, np.uint8),
                bins=random.integers(0, BINS, (steps, ACTIONS)),
                reward=reward,
                text=random.standard_normal(TEXT_DIM, np.float32),
                sentence=f'sentence {number}',
            )
        )
    return episodes


def folder_bytes(folder: Path) -> int:
    """Add up the sizes of the files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob('*') if path.is_file())


def resident(name: str) -> int:
    """Read a field of this process's memory in bytes: VmRSS, or VmHWM, the largest so far."""
    found = re.search(rf'{name}:\s+(\d+) kB', Path('/proc/self/status').read_text())
    if found is None:
        raise OSError(f'/proc/self/status has no {name}: this needs Linux')
    return int(found[1]) * 1024


class Worker:
    """Answers requests about one side.

    Args:
        side: The module of that side.
        folder: Where replay folders are written, once.
    """

    def __init__(self, side: Any, folder: Path) -> None:
        self.side, self.folder = side, folder
        self._ready: tuple[tuple[Any, ...], Callable[[], object], int] | None = None

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Carry out one request: `row`, `size`, and `timesteps` or `profile` where it says so."""
        row, name = request['row'], request['size']
        size, timesteps = SIZES[name], request.get('timesteps', 1)
        if row == 'drop':
            self._drop()
            return {}
        if row == 'versions':
            return {'versions': self.side.versions()}
        if row == 'parameters':
            model = self.side.build(size)
            return {'parameters': sum(p.numel() for p in model.parameters())}
        if row == 'bytes':
            folder = self._replay(name, size.episodes, size.steps)
            if request.get('profile'):
                return {'profile': _listing(folder)}
            return {'value': folder_bytes(folder) / (size.episodes * size.steps)}
        if row == 'memory':
            return self._memory(name, profile=request.get('profile', False))
        prepare = {'latency': self._control, 'step': self._step, 'samples': self._samples}[row]
        key = (row, name, timesteps)
        if self._ready is None or self._ready[0] != key:
            self._drop()
            call, warm_up = prepare(name, timesteps)
            for _ in range(warm_up):
                call()
            self._ready = (key, call, SAMPLED_BATCH if row == 'samples' else 0)
        _, call, batch = self._ready
        if request.get('profile'):
            calls = 20 if row == 'latency' else 2
            return {'profile': _python_profile(call) if batch else _torch_profile(call, calls)}
        seconds, calls = _timed(call, size.seconds)
        return {'value': batch / seconds if batch else seconds, 'calls': calls}

    def _drop(self) -> None:
        """Free what the row before needed: two models at once may not fit."""
        self._ready = None
        gc.collect()

    def _control(self, name: str, _: int) -> tuple[Callable[[], object], int]:
        size = SIZES[name]
        return self.side.control(self.side.build(size), size), FRAMES + WARM_UP

    def _step(self, name: str, timesteps: int) -> tuple[Callable[[], object], int]:
        dataset, batch = self._batch(name, timesteps)
        return self.side.training(self.side.build(SIZES[name]), dataset, batch), WARM_UP

    def _samples(self, name: str, _: int) -> tuple[Callable[[], object], int]:
        size = SIZES[name]
        dataset = self.side.open_dataset(self._replay(name, size.episodes, size.steps), 1)
        random, samples = np.random.default_rng(0), size.episodes * size.steps
        if len(dataset) != samples:
            raise ValueError(f'{len(dataset)} samples, expected {samples}')

        def draw() -> object:
            return self.side.sample(dataset, random.integers(0, samples, SAMPLED_BATCH))

        return draw, 1 + 2 * samples // SAMPLED_BATCH  # until the folder is in the page cache

    def _memory(self, name: str, *, profile: bool) -> dict[str, Any]:
        """Measure how far a training step raises the memory of this process, which must be new."""
        dataset, batch = self._batch(name, 1)
        gc.collect()
        Path('/proc/self/clear_refs').write_text('5')  # forget the largest so far
        before = resident('VmRSS')
        step = self.side.training(self.side.build(SIZES[name]), dataset, batch)
        for _ in range(MEMORY_STEPS):
            step()
        growth = resident('VmHWM') - before
        if profile:
            return {'profile': _torch_profile(step, 1, memory=True)}
        return {'value': growth}

    def _batch(self, name: str, timesteps: int) -> tuple[Any, Any]:
        # Another folder than the one that is sampled from: theirs is read into memory whole.
        episodes, steps = 2, FRAMES + SIZES[name].batch
        dataset = self.side.open_dataset(self._replay(name, episodes, steps), timesteps)
        order = np.random.default_rng(0).permutation(len(dataset))
        return dataset, self.side.sample(dataset, order[: SIZES[name].batch])

    def _replay(self, name: str, count: int, steps: int) -> Path:
        folder = self.folder / f'{name}-{count}x{steps}'
        if not folder.exists():
            self.side.write(folder, make_episodes(SIZES[name], count, steps))
        return folder


def _timed(call: Callable[[], object], seconds: float) -> tuple[float, int]:
    """Call at least three times and for `seconds`; give the median time and the calls."""
    times: list[float] = []
    while len(times) < 3 or sum(times) < seconds:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return median(times), len(times)


def _torch_profile(call: Callable[[], object], calls: int, *, memory: bool = False) -> str:
    cpu = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=cpu, profile_memory=memory) as profiler:
        for _ in range(calls):
            call()
    order = 'self_cpu_memory_usage' if memory else 'self_cpu_time_total'
    table = profiler.key_averages().table(sort_by=order, row_limit=40, max_name_column_width=60)
    return f'{calls} calls\n{table}'


def _python_profile(call: Callable[[], object]) -> str:
    profiler = cProfile.Profile()
    profiler.enable()
    for _ in range(100):
        call()
    profiler.disable()
    table = io.StringIO()
    pstats.Stats(profiler, stream=table).strip_dirs().sort_stats('tottime').print_stats(25)
    return table.getvalue()


def _listing(folder: Path) -> str:
    files = sorted(path for path in folder.rglob('*') if path.is_file())
    return '\n'.join(f'{p.stat().st_size:>12}  {p.relative_to(folder)}' for p in files)


def main() -> None:
    """Answer requests until standard input ends."""
    answers = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)  # what libraries print is no answer
    sys.stdout = sys.stderr
    torch.set_num_threads(1)
    torch.set_num_interop_threads(1)
    torch.manual_seed(0)
    side, folder = sys.argv[1], Path(sys.argv[2])
    tempfile.tempdir = str(folder)  # goes away with it
    worker = Worker(importlib.import_module(f'q_transformer_{side}'), folder)
    for line in sys.stdin:
        answers.write(json.dumps(worker.answer(json.loads(line))) + '\n')
        answers.flush()


if __name__ == '__main__':
    main()
