# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The package lerobot in a virtual environment of its own; also imported inside it.

Its newest release for Python 3.11 asks for an older torch than this project's and for dozens of
packages that its dataset class never imports, gigabytes in all. So it is installed without what
it asks for, beside what the dataset class imports and the torch that this project runs with.
torchvision is there for its Python code alone: its compiled operators are of another torch, or of
a CUDA that is not there, and the dataset class needs none of them.
"""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / 'out/lerobot/venv'
BARE = ('lerobot==0.4.4', 'torchvision==0.25.0')
NEEDED = (
    *('accelerate>=1.10,<2', 'av>=15,<16', 'datasets>=4,<5', 'huggingface-hub>=0.34.2,<0.36'),
    *('numpy', 'packaging<26', 'pandas', 'pillow', 'pyarrow'),
)
OFFLINE = {'HF_HUB_OFFLINE': '1', 'HF_DATASETS_OFFLINE': '1'}


class VenvError(RuntimeError):
    """The virtual environment that could not be made, and why."""


def prepare(venv: Path = VENV) -> Path:
    """Make the virtual environment where there is none for this torch; give its Python.

    Raises:
        VenvError: It could not be made.
    """
    torch = f'torch=={importlib.metadata.version("torch")}'
    python = venv / 'bin/python'
    pip = [str(python), '-m', 'pip', 'install', '--quiet', '--disable-pip-version-check']
    if not is_ready(venv):
        print(f'installing {" ".join(BARE)} into {venv}', flush=True)
        for command in (
            [sys.executable, '-m', 'venv', '--clear', str(venv)],
            [*pip, torch, *NEEDED],
            [*pip, '--no-deps', *BARE],
        ):
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            if done.returncode:
                last = done.stdout.decode(errors='replace').strip().splitlines() or ['no output']
                raise VenvError(f'{" ".join(command)} failed: {last[-1]}')
        (venv / 'installed.txt').write_text(wanted(), encoding='utf-8')
    return python


def is_ready(venv: Path = VENV) -> bool:
    """Tell whether the virtual environment is there, with the versions that are wanted."""
    stamp = venv / 'installed.txt'
    return stamp.exists() and stamp.read_text(encoding='utf-8') == wanted()


def environment(cache: Path) -> dict[str, str]:
    """Give the environment of a process in it: no network, and caches in a folder that goes."""
    # What the wheels of ROS set for this process would make that one load this one's libraries.
    ours = ('LD_LIBRARY_PATH', '_ROS_WHEELS_BOOTSTRAP_COMPLETE', 'PYTHONPATH')
    kept = {name: value for name, value in os.environ.items() if name not in ours}
    return kept | OFFLINE | {'HF_HOME': str(cache)}


def dataset_class() -> Any:
    """Import LeRobotDataset, in a process of the virtual environment."""
    import torch

    # torchvision describes this operator to torch when it is imported, and stops if it is absent.
    library = torch.library.Library('torchvision', 'DEF')
    library.define('nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    return LeRobotDataset


def wanted() -> str:
    """Give what the virtual environment is to hold, in one line."""
    return ' '.join((f'torch=={importlib.metadata.version("torch")}', *NEEDED, *BARE)) + '\n'
