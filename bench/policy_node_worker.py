# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The policy node of `bench/policy_node.py`: the real one, which notes what the network took.

    python bench/policy_node_worker.py OUT.json PROFILE --ros-args ...

When it ends it writes when each step of the network had ended and how long it took, ns, and the
stamps of the images that its callback was given, and when. Where PROFILE is not empty, it also
writes a profile of every thread there.
"""

from __future__ import annotations

import cProfile
import functools
import io
import json
import pstats
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rclpy.node import Node

from qt_ros.conversions import header_stamp, nanoseconds
from qt_ros.nodes import policy_node

ROWS = 40  # of each table of a profile


def timed(load: Callable[..., Any], acts: list[tuple[int, int]]) -> Callable[..., Any]:
    """Give a `load_policy` whose policies note the end and duration of each step, ns."""

    def load_timed(*args: Any, **kwargs: Any) -> Any:
        policy = load(*args, **kwargs)
        act = policy.act

        @functools.wraps(act)
        def timed_act(*args: Any, **kwargs: Any) -> Any:
            begun = time.monotonic_ns()
            decision = act(*args, **kwargs)
            took = time.monotonic_ns() - begun
            acts.append((time.time_ns(), took))
            return decision

        policy.act = timed_act
        return policy

    return load_timed


def noting(create: Callable[..., Any], seen: list[tuple[int, int]]) -> Callable[..., Any]:
    """Give a `create_subscription` whose callbacks of images note stamp and time."""

    def create_noting(
        node: Any, kind: Any, topic: str, callback: Any, *args: Any, **kwargs: Any
    ) -> Any:
        if kind.__name__ == 'Image':

            @functools.wraps(callback)
            def noted(message: Any, *more: Any) -> None:
                now = time.time_ns()
                raw = isinstance(message, bytes)
                stamp = header_stamp(message) if raw else nanoseconds(message.header.stamp)
                seen.append((stamp, now))
                callback(message, *more)

            return create(node, kind, topic, noted, *args, **kwargs)
        return create(node, kind, topic, callback, *args, **kwargs)

    return create_noting


@contextmanager
def profiled(path: Path) -> Iterator[None]:
    """Write what this thread and those started meanwhile spend, as tables."""
    profiles: list[tuple[str, cProfile.Profile]] = []

    def begin(*_: Any) -> None:
        profile = cProfile.Profile()
        with suppress(ValueError):  # from Python 3.12 on, the first one sees every thread
            profile.enable()
            profiles.append((threading.current_thread().name, profile))

    threading.setprofile(begin)  # called at a thread's first event, in that thread
    begin()
    try:
        yield
    finally:
        threading.setprofile(None)
        profiles[0][1].disable()
        text = io.StringIO()
        for name, profile in profiles:
            text.write(f'thread {name}\n')
            stats = pstats.Stats(profile, stream=text).strip_dirs()
            stats.sort_stats('tottime').print_stats(ROWS)
            stats.sort_stats('cumulative').print_stats(ROWS)
        path.write_text(text.getvalue(), encoding='utf-8')


def main() -> None:
    """Run the policy node."""
    out, profile = sys.argv[1:3]
    del sys.argv[1:3]
    acts: list[tuple[int, int]] = []
    seen: list[tuple[int, int]] = []
    policy_node.load_policy = timed(policy_node.load_policy, acts)
    Node.create_subscription = noting(Node.create_subscription, seen)
    try:
        if profile:
            with profiled(Path(profile)):
                policy_node.main()
        else:
            policy_node.main()
    finally:
        content = {'seen': seen or None, 'acts': acts}
        Path(out).write_text(json.dumps(content), encoding='utf-8')


if __name__ == '__main__':
    main()
