# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""One message or one service call, for `qt-ros say` and `qt-ros call`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import rclpy
from rclpy.context import Context
from rclpy.duration import Duration
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from std_msgs.msg import String
from std_srvs.srv import Trigger

from qt_ros.nodes.node_support import LATCHED

DISCOVERY = 2.0  # s without a new listener until all are taken to be found; up to 1.1 s were seen


class NoAnswerError(RuntimeError):
    """Nobody listens or answers."""


def say(sentence: str, topic: str, namespace: str = '', timeout: float = 10.0) -> None:
    """Publish a sentence and wait until every listener has it.

    Args:
        sentence: The instruction.
        topic: Relative to `namespace`.
        namespace: The robot's.
        timeout: Seconds.

    Raises:
        NoAnswerError: Nobody listened within `timeout`.
    """
    with _client(namespace) as (node, spin_until):
        publisher = node.create_publisher(String, topic, LATCHED)
        name = node.resolve_topic_name(topic)
        matched, since = 0, time.monotonic()

        def settled() -> bool:
            nonlocal matched, since
            count = publisher.get_subscription_count()
            if count != matched:
                matched, since = count, time.monotonic()
            everyone = count >= node.count_subscribers(topic)
            return count > 0 and everyone and time.monotonic() - since > DISCOVERY

        spin_until(settled, timeout, f"nobody listens on '{name}'")
        publisher.publish(String(data=sentence))
        if not publisher.wait_for_all_acked(Duration(seconds=timeout)):
            raise NoAnswerError(f"not every listener on '{name}' took the sentence")


def call(service: str, namespace: str = '', timeout: float = 10.0) -> tuple[bool, str]:
    """Call a std_srvs/Trigger service.

    Args:
        service: Relative to `namespace`, such as `recorder/start`.
        namespace: The robot's.
        timeout: Seconds for the service to appear, and again to answer.

    Returns:
        Its success and message.

    Raises:
        NoAnswerError: The service is not there or does not answer within `timeout`.
    """
    with _client(namespace) as (node, spin_until):
        client = node.create_client(Trigger, service)
        name = node.resolve_service_name(service)
        spin_until(client.service_is_ready, timeout, f"service '{name}' is not there")
        future = client.call_async(Trigger.Request())
        spin_until(future.done, timeout, f"service '{name}' does not answer")
        answer = future.result()
        return bool(answer.success), str(answer.message)


@contextmanager
def _client(
    namespace: str,
) -> Iterator[tuple[Node, Callable[[Callable[[], object], float, str], None]]]:
    context = Context()
    rclpy.init(context=context)
    node = rclpy.create_node('client', namespace=namespace, context=context)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)

    def spin_until(done: Callable[[], object], timeout: float, problem: str) -> None:
        deadline = time.monotonic() + timeout
        while not done():
            if time.monotonic() > deadline:
                raise NoAnswerError(f'{problem} within {timeout:g} s')
            executor.spin_once(timeout_sec=0.05)

    try:
        yield node, spin_until
    finally:
        executor.shutdown()
        node.destroy_node()
        rclpy.try_shutdown(context=context)
