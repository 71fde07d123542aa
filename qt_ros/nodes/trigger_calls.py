# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Calls of std_srvs/Trigger services that nobody waits for."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rclpy.client import Client
from rclpy.node import Node
from rclpy.task import Future
from std_srvs.srv import Trigger

PATIENCE = 10.0  # s until an answer is not waited for any more


class TriggerCalls:
    """Calls services and reports the answers.

    Args:
        node: Calls.
        services: Their names, relative.
        report: Called with a service's name, whether it did as told, and its message.
    """

    def __init__(
        self, node: Node, services: Sequence[str], report: Callable[[str, bool, str], None]
    ) -> None:
        self._report = report
        self._name = node.resolve_service_name
        self._clients: dict[str, Client] = {
            service: node.create_client(Trigger, service) for service in services
        }
        self._pending: dict[Future, tuple[str, float]] = {}

    def there(self, service: str) -> bool:
        """Whether somebody offers the service."""
        return self._clients[service].service_is_ready()

    def wait(self, service: str, seconds: float) -> bool:
        """Wait until somebody offers it; whether somebody does."""
        return self._clients[service].wait_for_service(timeout_sec=seconds)

    @property
    def busy(self) -> bool:
        """Whether an answer is awaited."""
        return bool(self._pending)

    def send(self, service: str, now: float) -> None:
        """Call a service at `now`, monotonic s."""
        if not self.there(service):
            self._report(service, False, f"there is no '{self._name(service)}'")
            return
        future = self._clients[service].call_async(Trigger.Request())
        self._pending[future] = service, now
        future.add_done_callback(self._on_answer)

    def look(self, now: float) -> None:
        """Report the calls that will not be answered any more."""
        for future, (service, sent) in list(self._pending.items()):
            if now - sent > PATIENCE:
                del self._pending[future]
                self._clients[service].remove_pending_request(future)
                self._report(service, False, f'no answer within {PATIENCE:g} s')

    def _on_answer(self, future: Future) -> None:
        service, _ = self._pending.pop(future, ('', 0.0))
        if service and future.exception() is None and future.result() is not None:
            answer = future.result()
            self._report(service, bool(answer.success), str(answer.message))
