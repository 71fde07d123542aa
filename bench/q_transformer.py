#!/usr/bin/env python3
# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Measure `qt_core` against the public package `q-transformer`, side by side in one run.

    python bench/q_transformer.py --against q-transformer

installs the package into a virtual environment of its own, with the same torch as here, and keeps
one worker process per side, single-threaded. Measurements alternate: theirs, ours, theirs, ours.
Exits with 1 where a target is missed, and leaves the profile of our side beside the result.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
WORKER = Path(__file__).with_name('q_transformer_worker.py')
PACKAGES = {'q-transformer': 'q-transformer==0.5.0'}
PAIRS = {'small': 5, 'readme': 3}
NOTES = (
    'Latency: one control step at batch 1, the sentence embedded before. Theirs is given six '
    'frames stacked as floats; ours the newest frame as uint8, the tokens of the others kept.',
    'Training step: loss, gradient, optimiser and target network on a batch in memory, 1-step '
    'autoregressive. small: batch 8; readme: batch 1.',
    'Peak memory: growth of a new process over its memory before the model is built.',
    'Samples: batches of 8 in random order, everything in the page cache. Ours are uint8, which '
    'the model turns into floats; theirs are float32, from a copy of the folder in memory.',
    'T5, which theirs loads to build a model, is left out; both read 768 numbers per sentence.',
)


class BenchError(RuntimeError):
    """The bench cannot run, and why."""


@dataclass(frozen=True)
class Row:
    """Something that is measured on both sides.

    Attributes:
        name: Name in requests, on the command line and in the results.
        title: What it is.
        unit: Of `scale` times the value.
        scale: What the value is multiplied by to be shown.
        target: The ratio to reach; None for a row without one.
        kind: `faster`: theirs / ours, at least the target. `more`: ours / theirs, at least the
            target. `less`: ours / theirs, at most the target.
        pairs: Most pairs that are worth it; None for as many as the size has.
        fresh: Whether each measurement needs a new process.
        timesteps: Steps trained on in each window.
        sizes: Sizes it is measured at.
    """

    name: str
    title: str
    unit: str
    scale: float
    target: float | None
    kind: str
    pairs: int | None = None
    fresh: bool = False
    timesteps: int = 1
    sizes: tuple[str, ...] = ('small', 'readme')

    def request(self, size: str) -> dict[str, Any]:
        """Give what a worker is asked."""
        return {'row': self.name.split('-')[0], 'size': size, 'timesteps': self.timesteps}


ROWS = (
    Row('latency', 'action latency', 'ms', 1e3, 10, 'faster'),
    Row('step', 'training step', 'ms', 1e3, 2, 'faster'),
    Row(
        'step-6',
        'training step, 6 timesteps',
        'ms',
        1e3,
        None,
        'faster',
        timesteps=6,
        sizes=('small',),
    ),
    Row('memory', 'peak training memory', 'MiB', 2**-20, 0.6, 'less', fresh=True),
    Row('samples', 'dataset', 'samples/s', 1, 10, 'more'),
    Row('bytes', 'replay', 'bytes/step', 1, 1 / 20, 'less', pairs=1),
)


@dataclass(frozen=True)
class Comparison:
    """What a row gave at one size.

    Attributes:
        row: Name of the row.
        size: Name of the size.
        theirs: Their values, one per pair.
        ours: Our values.
        ratio: Of the medians.
        spread: Smallest and largest ratio of a pair.
        target: Ratio to reach, or None.
        met: Whether it was reached; True without a target.
    """

    row: str
    size: str
    theirs: tuple[float, ...]
    ours: tuple[float, ...]
    ratio: float
    spread: tuple[float, float]
    target: float | None
    met: bool


def compare(row: Row, size: str, theirs: Sequence[float], ours: Sequence[float]) -> Comparison:
    """Turn paired values into a ratio and a verdict."""

    def ratio(their: float, our: float) -> float:
        return their / our if row.kind == 'faster' else our / their

    overall = ratio(median(theirs), median(ours))
    each = [ratio(*pair) for pair in zip(theirs, ours, strict=True)]
    met = True
    if row.target is not None:
        met = overall <= row.target if row.kind == 'less' else overall >= row.target
    spread = (min(each), max(each))
    return Comparison(row.name, size, tuple(theirs), tuple(ours), overall, spread, row.target, met)


def install_commands(venv: Path, requirement: str, torch: str) -> list[list[str]]:
    """Give the commands that make the virtual environment and install into it."""
    python = str(venv / 'bin' / 'python')
    pip = [python, '-m', 'pip', 'install', '--quiet', '--disable-pip-version-check']
    return [
        [sys.executable, '-m', 'venv', '--clear', str(venv)],
        [*pip, requirement, f'torch=={torch}'],
    ]


def prepare_venv(venv: Path, requirement: str, say: Any = print) -> Path:
    """Make the virtual environment where there is none for this torch; give its Python.

    Raises:
        BenchError: It could not be made.
    """
    torch = importlib.metadata.version('torch')
    stamp, wanted = venv / 'q-transformer-bench.txt', f'{requirement} torch=={torch}\n'
    if not stamp.exists() or stamp.read_text() != wanted:
        say(f'installing {requirement} and torch=={torch} into {venv}')
        for command in install_commands(venv, requirement, torch):
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            if done.returncode:
                lines = done.stdout.decode(errors='replace').strip().splitlines()
                errors = [line for line in lines if line.startswith('ERROR')] or lines or ['']
                raise BenchError(f'{" ".join(command)} failed: {errors[-1]}')
        stamp.write_text(wanted)
    return venv / 'bin' / 'python'


def worker_command(python: Path, side: str, folder: Path) -> list[str]:
    """Give the command of a worker; -P keeps this folder from hiding the package's name."""
    return [str(python), '-P', str(WORKER), side, str(folder)]


class Side:
    """One side's worker process; a context manager.

    Args:
        name: `theirs` or `ours`.
        python: The interpreter that has its packages.
        folder: Where it keeps replay folders.
    """

    def __init__(self, name: str, python: Path, folder: Path) -> None:
        self.name, self.python, self.folder = name, python, folder
        self.folder.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Side:
        one = dict.fromkeys(('OMP_NUM_THREADS', 'MKL_NUM_THREADS', 'OPENBLAS_NUM_THREADS'), '1')
        offline = {'HF_HUB_OFFLINE': '1', 'CUDA_VISIBLE_DEVICES': '', 'ACCELERATE_USE_CPU': 'true'}
        environment = {**os.environ, **one, **offline}
        environment.pop('PYTHONPATH', None)  # it may hold other versions, or this folder
        self._log = (self.folder / 'log.txt').open('a+')
        self._process = subprocess.Popen(
            worker_command(self.python, self.name, self.folder),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=environment,
            cwd=ROOT,
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is not None:
            self._process.kill()
        self._process.communicate()
        self._log.close()

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send a request and wait for the answer.

        Raises:
            BenchError: The worker ended instead; with the last line it wrote.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        line = ''
        try:
            self._process.stdin.write(json.dumps(request) + '\n')
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            pass
        if not line:
            code = self._process.wait()
            self._log.seek(0)
            last = (self._log.read().strip().splitlines() or ['it wrote nothing'])[-1]
            raise BenchError(f'{self.name} ended with {code} at {request}: {last}')
        return json.loads(line)

    def measure(self, row: Row, size: str) -> float:
        """Measure a row once."""
        if not row.fresh:
            return self.ask(**row.request(size))['value']
        with Side(self.name, self.python, self.folder) as alone:
            return alone.ask(**row.request(size))['value']

    def profile(self, row: Row, size: str) -> str:
        """Give a table of what this side spends on a row."""
        with Side(self.name, self.python, self.folder) as alone:
            return alone.ask(**row.request(size), profile=True)['profile']


def number(value: float) -> str:
    """Write a number with three digits that count."""
    return f'{value:,.0f}' if abs(value) >= 100 else f'{value:.3g}'


def show(console: Console, comparisons: Sequence[Comparison], parameters: dict[str, Any]) -> None:
    """Print the table."""
    for size, count in parameters.items():
        millions = {side: f'{value / 1e6:.2f} M' for side, value in count.items()}
        console.print(
            f'parameters, {size}: theirs {millions["theirs"]}, ours {millions["ours"]}',
            highlight=False,
        )
    table = Table('', 'size', 'theirs', 'ours', 'unit', 'ratio', 'over pairs', 'target', 'verdict')
    rows = {row.name: row for row in ROWS}
    for comparison in comparisons:
        row, sign = rows[comparison.row], '≤' if rows[comparison.row].kind == 'less' else '≥'
        target = comparison.target
        table.add_row(
            row.title,
            comparison.size,
            number(median(comparison.theirs) * row.scale),
            number(median(comparison.ours) * row.scale),
            row.unit,
            number(comparison.ratio),
            ' – '.join(number(edge) for edge in comparison.spread),
            '' if target is None else f'{sign} {number(target)}',
            '' if target is None else 'met' if comparison.met else 'MISSED',
        )
    console.print(table)
    for note in NOTES:
        console.print(f'  {note}', style='dim', highlight=False)


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument('--against', choices=sorted(PACKAGES), required=True)
    parser.add_argument('--venv', type=Path, default=ROOT / 'out/bench/venv-q-transformer')
    parser.add_argument('--out', type=Path, default=ROOT / 'bench/results/q_transformer.json')
    parser.add_argument('--sizes', nargs='+', choices=sorted(PAIRS), default=list(PAIRS))
    names = [row.name for row in ROWS]
    parser.add_argument('--rows', nargs='+', choices=names, default=names)
    quick = 'two pairs of the small size only, to try it'
    parser.add_argument('--quick', action='store_true', help=quick)
    options = parser.parse_args(given)
    options.pairs = {size: 2 if options.quick else PAIRS[size] for size in PAIRS}
    if options.quick:
        options.sizes = ['small']
    return options


def main(given: Sequence[str] | None = None) -> int:
    """Run the bench; 0 where every target was reached."""
    options = arguments(given)
    console = Console(width=None if sys.stdout.isatty() else 120)  # files are no terminal
    say = Console(stderr=True, highlight=False).print
    start, load = time.monotonic(), os.getloadavg()[0]
    if load > 0.5:
        say(f'something else is running (load {load:.1f}): these will not be good figures')
    try:
        python = prepare_venv(options.venv, PACKAGES[options.against], say)
        with tempfile.TemporaryDirectory(prefix='q-transformer-bench-') as folder:
            theirs = Side('theirs', python, Path(folder, 'theirs'))
            ours = Side('ours', Path(sys.executable), Path(folder, 'ours'))
            with theirs, ours:
                result = run(theirs, ours, options, say)
            comparisons = result['comparisons']
            options.out.parent.mkdir(parents=True, exist_ok=True)
            for row in ROWS:
                for comparison in comparisons:
                    if comparison.row == row.name and not comparison.met:
                        name = f'{options.out.stem}-profile-{row.name}-{comparison.size}.txt'
                        table = ours.profile(row, comparison.size)
                        options.out.with_name(name).write_text(table, encoding='utf-8')
    except BenchError as error:
        print(f'bench/q_transformer.py: {error}', file=sys.stderr)
        return 2
    show(console, comparisons, result['parameters'])
    content = {
        **result,
        'comparisons': [asdict(comparison) for comparison in comparisons],
        'machine': {'processor': processor(), 'cores': os.cpu_count(), 'load': load},
        'minutes': round((time.monotonic() - start) / 60, 1),
    }
    options.out.write_text(json.dumps(content, indent=1) + '\n', encoding='utf-8')
    missed = [f'{c.row} ({c.size})' for c in comparisons if not c.met]
    if missed:
        console.print(f'missed: {", ".join(missed)}; profiles beside {options.out}')
    return 1 if missed else 0


def run(theirs: Side, ours: Side, options: argparse.Namespace, say: Any) -> dict[str, Any]:
    """Measure every row at every size, the sides in turn."""
    sides = (theirs, ours)
    parameters = {
        size: {side.name: side.ask(row='parameters', size=size)['parameters'] for side in sides}
        for size in options.sizes
    }
    comparisons = []
    for size in options.sizes:
        for row in ROWS:
            if row.name not in options.rows or size not in row.sizes:
                continue
            pairs = min(options.pairs[size], row.pairs or options.pairs[size])
            for side in sides if row.fresh else ():
                side.ask(row='drop', size=size)  # the new processes need the memory
            values = [[side.measure(row, size) for side in sides] for _ in range(pairs)]
            comparison = compare(row, size, *zip(*values, strict=True))
            comparisons.append(comparison)
            say(f'{row.title}, {size}: {number(comparison.ratio)}')
    versions = {s.name: s.ask(row='versions', size=options.sizes[0])['versions'] for s in sides}
    return {'versions': versions, 'parameters': parameters, 'comparisons': comparisons}


def processor() -> str:
    """Name the processor."""
    for line in Path('/proc/cpuinfo').read_text().splitlines():
        if line.startswith('model name'):
            return line.split(':', 1)[1].strip()
    return platform.machine()


if __name__ == '__main__':
    sys.exit(main())
