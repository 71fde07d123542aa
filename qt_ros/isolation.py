# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Keep a simulated robot's commands away from a real one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

DOMAINS = range(64, 102)  # usable on Linux and rarely anybody's choice


@contextmanager
def isolated_graph() -> Iterator[None]:
    """Put ROS nodes started meanwhile, here and in child processes, on a graph of their own.

    Discovery stays on this machine, in a domain chosen by the process id.
    """
    changes = {
        'ROS_AUTOMATIC_DISCOVERY_RANGE': 'LOCALHOST',
        'ROS_DOMAIN_ID': str(DOMAINS[os.getpid() % len(DOMAINS)]),
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
