# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""ROS 2 on this machine: which one, over which middleware, and whether images fit through it."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from xml.etree import ElementTree

from qt_ros.finding import Finding
from qt_ros.graphs import FAST_DDS_VARIABLES, environment

DISTRIBUTIONS = ('humble', 'jazzy', 'kilted', 'lyrical', 'rolling')
RANGES = ('SUBNET', 'LOCALHOST', 'OFF', 'SYSTEM_DEFAULT')
FAST_DDS = 'rmw_fastrtps'  # its two implementations begin so
PROBE = 'import rclpy; print(rclpy.get_rmw_implementation_identifier())'
PATIENCE = 60.0  # s
DEFAULT_SEGMENT = 512 * 1024  # bytes of shared memory per process with Fast DDS's own defaults
IMAGE = 640 * 480 * 3  # bytes; a segment must hold several
PROCESSES = 8  # of a robot that uses shared memory: camera, arm, and our nodes
MAX_DOMAIN = 101  # above, Linux may give a port to another program


@dataclass(frozen=True)
class Rclpy:
    """What rclpy says of itself.

    Attributes:
        implementation: The middleware it uses; '' when it has none.
        problem: Why it cannot be used; '' when it can.
    """

    implementation: str
    problem: str = ''


def check_middleware(
    variables: Mapping[str, str], memory: Path = Path('/dev/shm')
) -> list[Finding]:
    """Look at ROS and DDS.

    Args:
        variables: The environment.
        memory: Where shared memory lies.
    """
    rclpy = probe_rclpy(variables)
    findings = [*rclpy_findings(rclpy, variables), *discovery_findings(variables)]
    if rclpy.problem or rclpy.implementation.startswith(FAST_DDS):
        findings += profile_findings(variables, distribution(variables))
        findings.append(memory_finding(segment(variables), memory))
    return findings


def probe_rclpy(variables: Mapping[str, str]) -> Rclpy:
    """Import rclpy in a process of its own, which it ends when the middleware is not there.

    Args:
        variables: The environment.
    """
    try:
        done = subprocess.run(
            [sys.executable, '-c', PROBE],
            env=dict(variables),
            capture_output=True,
            text=True,
            errors='replace',
            timeout=PATIENCE,
        )
    except subprocess.TimeoutExpired:
        return Rclpy('', f'not imported within {PATIENCE:g} s')
    if done.returncode == 0 and done.stdout.strip():
        return Rclpy(done.stdout.split()[-1])
    lines = done.stderr.strip().splitlines() or [f'exit status {done.returncode}']
    return Rclpy('', lines[-1])


def distribution(variables: Mapping[str, str]) -> str:
    """Name the ROS distribution: of the environment, or of the installed wheels; '' for none."""
    return variables.get('ROS_DISTRO') or _wheels()


def _wheels() -> str:
    for name in DISTRIBUTIONS:
        try:
            metadata.version(f'ros-{name}-rclpy')
        except metadata.PackageNotFoundError:
            continue
        return name
    return ''


def rclpy_findings(rclpy: Rclpy, variables: Mapping[str, str]) -> Iterator[Finding]:
    """Judge what `probe_rclpy` gave.

    Args:
        rclpy: What it gave.
        variables: The environment.
    """
    wheels, sourced = _wheels(), variables.get('ROS_DISTRO', '')
    asked = variables.get('RMW_IMPLEMENTATION', '')
    if rclpy.problem:
        remedy = "source /opt/ros/DISTRO/setup.bash, or pip install 'qt_ros[ros]'"
        if asked and asked in rclpy.problem:
            remedy = f'install {asked}, or unset RMW_IMPLEMENTATION'
        yield Finding('fail', 'rclpy', f'cannot be used ({rclpy.problem})', remedy)
        return
    if wheels and sourced and wheels != sourced:
        yield Finding(
            'warn',
            'rclpy',
            f'ROS {sourced} is sourced and wheels of {wheels} are installed',
            f'pip uninstall the wheels (ros-{wheels}-*), or start without sourcing',
        )
    else:
        origin = ' from wheels' if wheels else ''
        yield Finding('ok', 'rclpy', f'ROS 2 {sourced or wheels or "of unknown name"}{origin}')
    if rclpy.implementation.startswith(FAST_DDS):
        yield Finding('ok', 'RMW', rclpy.implementation)
    else:
        remedy = 'where large images get lost, raise its buffers as its documentation says'
        yield Finding('ok', 'RMW', rclpy.implementation, remedy)


def discovery_findings(variables: Mapping[str, str]) -> Iterator[Finding]:
    """Look at what decides which nodes find each other."""
    domain = variables.get('ROS_DOMAIN_ID') or '0'
    where = variables.get('ROS_AUTOMATIC_DISCOVERY_RANGE') or 'SUBNET'
    if not domain.isascii() or not domain.isdigit() or int(domain) > MAX_DOMAIN:
        remedy = f'export ROS_DOMAIN_ID=0, or another of 0..{MAX_DOMAIN}'
        yield Finding('fail', 'discovery', f'ROS_DOMAIN_ID is {domain!r}', remedy)
    elif where not in RANGES:
        problem = f'ROS_AUTOMATIC_DISCOVERY_RANGE is {where!r}'
        yield Finding('fail', 'discovery', problem, f'set one of {", ".join(RANGES)}')
    elif where == 'OFF' and not variables.get('ROS_STATIC_PEERS'):
        problem = 'ROS_AUTOMATIC_DISCOVERY_RANGE is OFF: nodes find nobody'
        yield Finding('fail', 'discovery', problem, 'unset it, or name peers in ROS_STATIC_PEERS')
    elif where == 'LOCALHOST' or variables.get('ROS_LOCALHOST_ONLY') == '1':
        yield Finding('ok', 'discovery', f'domain {domain}, this machine only')
    else:
        yield Finding('ok', 'discovery', f'domain {domain}, range {where}')


def profile_findings(variables: Mapping[str, str], distro: str) -> Iterator[Finding]:
    """Look at the Fast DDS profile, without which camera images get lost."""
    older, newer = FAST_DDS_VARIABLES
    names = {'humble': (older,), 'jazzy': (older,)}.get(
        distro, (newer,) if distro else (older, newer)
    )
    for name in names:
        path = variables.get(name)
        if not path:
            shipped = shlex.quote(environment({})[name])
            yield Finding(
                'warn',
                name,
                'is not set: drivers started from here lose most best-effort camera images',
                f'export {name}={shipped}, where drivers start (launch files and qt-ros up do)',
            )
            continue
        try:
            size = _segment(Path(path))
        except (OSError, ElementTree.ParseError) as error:
            line = ' '.join(str(error).split())
            remedy = 'correct the path, or unset it'
            yield Finding('fail', name, f'{path} cannot be read ({line})', remedy)
            continue
        if size < 4 * IMAGE:
            problem = f'{path} gives {size >> 10} KiB of shared memory; an image has {IMAGE >> 10}'
            yield Finding(
                'warn', name, problem, 'raise segment_size to 32 MiB, as the shipped one'
            )
        else:
            yield Finding('ok', name, f'{path}, segments of {size >> 20} MiB')


def segment(variables: Mapping[str, str]) -> int:
    """Give the shared memory of one process as the profile has it, bytes."""
    for name in FAST_DDS_VARIABLES:
        try:
            return _segment(Path(variables[name]))
        except (KeyError, OSError, ElementTree.ParseError):
            continue
    return DEFAULT_SEGMENT


def _segment(profile: Path) -> int:
    root = ElementTree.parse(profile).getroot()
    sizes = [
        int(element.text)
        for element in root.iter()
        if element.tag.rpartition('}')[2] == 'segment_size' and (element.text or '').isdigit()
        if element.text is not None
    ]
    return max(sizes, default=DEFAULT_SEGMENT)


def memory_finding(size: int, memory: Path) -> Finding:
    """Compare shared memory with the segments of a robot's processes.

    Args:
        size: Bytes of one segment.
        memory: Where shared memory lies.
    """
    try:
        free = shutil.disk_usage(memory).free
    except OSError as error:
        problem = f'no shared memory ({error.strerror})'
        return Finding(
            'warn', str(memory), problem, 'mount it, or images go over UDP and get lost'
        )
    needed = PROCESSES * size
    found = f'{free >> 20} MiB free; {PROCESSES} processes use {needed >> 20} MiB'
    if free >= needed:
        return Finding('ok', str(memory), found)
    remedy = 'docker run --shm-size=1g or --ipc=host; else remove what is left of dead programs'
    return Finding('warn', str(memory), found, remedy)
