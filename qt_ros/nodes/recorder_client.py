# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A recorder as seen from outside, for `qt-ros record` and the bench."""

from __future__ import annotations

import json
import time
from typing import Any

import rclpy
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.task import Future
from std_msgs.msg import String
from std_srvs.srv import Trigger

from qt_ros.nodes.client import NoAnswerError
from qt_ros.nodes.node_support import LATCHED

SERVICES = ('start', 'success', 'failure', 'timeout', 'discard', 'redo')


class RecorderClient:
    """Follows a recorder's status and calls its services; used as a context manager.

    Args:
        namespace: The robot's.
        timeout: Seconds until a recorder that is not there, or does not answer, is an error.

    Attributes:
        status: The content of its last status; empty until there was one.
    """

    def __init__(self, namespace: str = '', timeout: float = 10.0) -> None:
        self.namespace, self.timeout = namespace, timeout
        self.status: dict[str, Any] = {}
        self._future: Future | None = None
        self._deadline = 0.0

    def __enter__(self) -> RecorderClient:
        self._context = Context()
        rclpy.init(context=self._context)
        self._node = rclpy.create_node(
            'recorder_client', namespace=self.namespace, context=self._context
        )
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self._node)
        self._node.create_subscription(String, 'recorder/status', self._on_status, LATCHED)
        self._clients = {s: self._node.create_client(Trigger, f'recorder/{s}') for s in SERVICES}
        return self

    def __exit__(self, *error: object) -> None:
        self._executor.shutdown()
        self._node.destroy_node()
        rclpy.try_shutdown(context=self._context)

    def spin(self, seconds: float) -> None:
        """Receive what comes within some time."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self._executor.spin_once(timeout_sec=left)

    def wait(self) -> None:
        """Wait until the recorder is there.

        Raises:
            NoAnswerError: It is not within the timeout.
        """
        deadline = time.monotonic() + self.timeout
        while not self.status or not all(c.service_is_ready() for c in self._clients.values()):
            if time.monotonic() > deadline:
                name = self._node.resolve_topic_name('recorder')
                raise NoAnswerError(f"no recorder '{name}' within {self.timeout:g} s")
            self.spin(0.05)

    @property
    def busy(self) -> bool:
        """Whether an answer is awaited."""
        return self._future is not None

    def send(self, service: str) -> None:
        """Call one of `SERVICES`; see `answer`."""
        self._future = self._clients[service].call_async(Trigger.Request())
        self._deadline = time.monotonic() + self.timeout

    def answer(self) -> tuple[bool, str] | None:
        """Give success and message of the call once, when it is answered.

        Raises:
            NoAnswerError: It was not within the timeout.
        """
        if self._future is None:
            return None
        if self._future.done():
            result, self._future = self._future.result(), None
            return bool(result.success), str(result.message)
        if time.monotonic() > self._deadline:
            raise NoAnswerError(f'the recorder does not answer within {self.timeout:g} s')
        return None

    def call(self, service: str) -> tuple[bool, str]:
        """Call one of `SERVICES` and wait for the answer.

        Raises:
            NoAnswerError: None came within the timeout.
        """
        self.send(service)
        while (answer := self.answer()) is None:
            self._executor.spin_once(timeout_sec=0.05)
        return answer

    def _on_status(self, message: String) -> None:
        self.status = json.loads(message.data)
