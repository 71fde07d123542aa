# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Keep a simulated robot's commands away from a real one."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

DOMAINS = range(64, 102)  # usable on Linux and rarely anybody's choice


@contextmanager
def isolated_graph() -> Iterator[None]:
    """Put ROS nodes started meanwhile, here and in child processes, on a graph of their own.

    Discovery stays on this machine, in a domain that no other such graph on it has.
    """
    with ExitStack() as stack:
        changes = {
            'ROS_AUTOMATIC_DISCOVERY_RANGE': 'LOCALHOST',
            'ROS_DOMAIN_ID': str(_free_domain(stack)),
        }
        before = {name: os.environ.get(name) for name in changes}
        os.environ.update(changes)
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value


def _free_domain(stack: ExitStack) -> int:
    """Choose a domain that nobody has locked, and lock it until `stack` ends."""
    first = os.getpid() % len(DOMAINS)
    for domain in (*DOMAINS[first:], *DOMAINS[:first]):
        path = Path(tempfile.gettempdir(), f'qt_ros_domain_{domain}_{os.getuid()}')
        try:
            file = stack.enter_context(path.open('w'))
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            continue
        return domain
    return DOMAINS[first]  # as many graphs as there are domains
