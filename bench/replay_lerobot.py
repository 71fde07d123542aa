# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Samples per second of LeRobot's own dataset class, for the bench of replay folders.

`measure` runs this file again in the virtual environment of `lerobot_venv.py`. By hand, with a
LeRobot dataset or a replay folder:

    python bench/replay_lerobot.py FOLDER --windows 512 --batch 64
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import lerobot_venv

FRAMES = 6


def measure(
    folder: Path, windows: int, batch: int, *, venv: Path = lerobot_venv.VENV
) -> dict[str, Any] | None:
    """Time random windows of 6 frames that LeRobotDataset and a DataLoader without workers make.

    Args:
        folder: A LeRobot dataset, or a replay folder, which is then exported first.
        windows: How many are timed.
        batch: Windows in a batch.
        venv: The virtual environment with the package.

    Returns:
        `samples_per_second`, `windows`, `batch`, `bytes` of the dataset and `lerobot`, its
        version; None, with the reason on stderr, where the package is not installed or fails.
    """
    if not lerobot_venv.is_ready(venv):
        print('lerobot is not installed: make lerobot-check installs it', file=sys.stderr)
        return None
    python = venv / 'bin/python'
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        dataset = folder
        if not (folder / 'meta/info.json').exists():
            from qt_core.exchange.lerobot import export_lerobot
            from qt_core.replay import ReplayFolder

            dataset = Path(scratch) / 'dataset'
            export_lerobot(ReplayFolder(folder), dataset)
        command = [str(python), '-W', 'ignore', __file__, str(dataset.resolve()), '--worker']
        done = subprocess.run(
            [*command, '--windows', str(windows), '--batch', str(batch)],
            capture_output=True,
            text=True,
            env=lerobot_venv.environment(Path(scratch) / 'cache'),
        )
        if done.returncode:
            last = done.stderr.strip().splitlines() or ['no output']
            print(f'lerobot failed: {last[-1]}', file=sys.stderr)
            return None
        size = sum(path.stat().st_size for path in dataset.rglob('*') if path.is_file())
        result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return {**result, 'bytes': size}


def work(dataset: Path, windows: int, batch: int) -> dict[str, Any]:
    """Measure, inside the virtual environment."""
    import importlib.metadata

    import torch

    torch.set_num_threads(1)
    info = json.loads((dataset / 'meta/info.json').read_text(encoding='utf-8'))
    past = [(place - FRAMES + 1) / info['fps'] for place in range(FRAMES)]
    images = [name for name, f in info['features'].items() if f['dtype'] == 'video']
    deltas = dict.fromkeys([*images, 'observation.state', 'action'], past)
    data = lerobot_venv.dataset_class()(
        'local/bench', root=dataset, delta_timestamps=deltas, video_backend='pyav'
    )
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(len(data), (windows + batch,), generator=generator).tolist()
    loader = torch.utils.data.DataLoader(data, batch_size=batch, sampler=drawn)
    batches = iter(loader)
    next(batches)  # opens what is opened once
    start = time.perf_counter()
    count = sum(len(found['index']) for found in batches)
    seconds = time.perf_counter() - start
    return {
        'samples_per_second': count / seconds,
        'windows': count,
        'batch': batch,
        'lerobot': importlib.metadata.version('lerobot'),
    }


def main() -> int:
    """Print the measurement as one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('folder', type=Path, help='LeRobot dataset or replay folder')
    parser.add_argument('--windows', type=int, default=512)
    parser.add_argument('--batch', type=int, default=64)
    parser.add_argument('--worker', action='store_true', help=argparse.SUPPRESS)
    options = parser.parse_args()
    function = work if options.worker else measure
    found = function(options.folder, options.windows, options.batch)
    if found is not None:
        print(json.dumps(found))
    return 0 if found is not None else 1


if __name__ == '__main__':
    sys.exit(main())
