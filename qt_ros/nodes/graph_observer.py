# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Listens to a running graph for some seconds, for `qt-ros doctor`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.srv import GetState
from rcl_interfaces.msg import ParameterType
from rcl_interfaces.srv import GetParameters
from rclpy.context import Context
from rclpy.exceptions import InvalidNamespaceException
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import QoSCompatibility, qos_check_compatible
from rclpy.task import Future
from rclpy.topic_endpoint_info import TopicEndpointInfo
from rclpy.validate_namespace import validate_namespace
from std_msgs.msg import String

from qt_core.contract import RobotContract
from qt_ros.doctor.participants import CLOCK, Observed, Said
from qt_ros.doctor.traffic import Listening, Traffic, joint_names
from qt_ros.finding import Finding
from qt_ros.graph_check import COMMANDS, Endpoint, Need, Snapshot, needs, unheard
from qt_ros.graphs import ArgumentError
from qt_ros.nodes.adaptive_subscriptions import AdaptiveSubscriptions
from qt_ros.nodes.client import DISCOVERY
from qt_ros.nodes.graph_view import endpoint, snapshot
from qt_ros.nodes.node_support import LATCHED

NAME = 'doctor'
ROUNDS = 4  # of `DISCOVERY`, until an empty graph, or one that keeps growing, is taken as it is
FOLLOW = 0.2  # s between two looks for new publishers
GET_PARAMETERS = 'rcl_interfaces/srv/GetParameters'
GET_STATE = 'lifecycle_msgs/srv/GetState'


def observe(
    contract: RobotContract | None, namespace: str, seconds: float
) -> tuple[Observed, tuple[Need, ...]]:
    """Look at a graph.

    Args:
        contract: Its topics are listened to; None to look at nodes alone.
        namespace: The robot's.
        seconds: How long to measure, once the nodes are found.

    Returns:
        What was seen, and the contract's topics by their full names.

    Raises:
        ArgumentError: The namespace is none.
    """
    with _node(namespace) as (node, spin_for):
        wanted = needs(contract, node.resolve_topic_name) if contract is not None else ()
        observer = GraphObserver(node, wanted)
        for _ in range(ROUNDS):
            before = observer.size()
            spin_for(DISCOVERY, observer.follow)
            if observer.size() == before > 0:
                break
        observer.begin()
        spin_for(seconds, observer.follow)
        return observer.finish(seconds), wanted


class GraphObserver:
    """Subscribes to a contract's topics and asks every node what it can be asked.

    Args:
        node: Observes.
        wanted: The contract's topics.
    """

    def __init__(self, node: Node, wanted: tuple[Need, ...]) -> None:
        self._node = node
        self._traffic = {need.topic: Traffic(need) for need in wanted}
        self._streams = AdaptiveSubscriptions(
            node, {need.topic: need.type for need in wanted}, self._on_message, self._on_lost
        )
        self._said: dict[str, Said] = {}
        self._source: str | None = None
        self._simulated: dict[str, Future] = {}
        self._states: dict[str, Future] = {}
        self._simulating, self._begun = False, None
        node.create_subscription(DiagnosticArray, '/diagnostics', self._on_diagnostics, 10)
        node.create_subscription(String, 'guard/source', self._on_source, LATCHED)

    def size(self) -> int:
        """Count the nodes and services that were discovered."""
        own, node = self._node.get_fully_qualified_name(), self._node
        services = [s for s, _ in node.get_service_names_and_types() if not s.startswith(own)]
        return len(node.get_node_names()) - 1 + len(services)

    def follow(self) -> None:
        """Listen to who has come, ask what it can be asked, and go by the robot's clock."""
        self._streams.follow(recording=False)
        own = self._node.get_fully_qualified_name()
        for service, kinds in self._node.get_service_names_and_types():
            owner = service.rpartition('/')[0]
            if owner == own or _hidden(owner):
                continue
            if GET_PARAMETERS in kinds and owner not in self._simulated:
                request: Any = GetParameters.Request(names=['use_sim_time'])
                self._simulated[owner] = self._ask(GetParameters, service, request)
            elif GET_STATE in kinds and owner not in self._states:
                self._states[owner] = self._ask(GetState, service, GetState.Request())
        if not self._simulating and self._publishers(CLOCK):
            self._simulating = True
            follow = Parameter('use_sim_time', Parameter.Type.BOOL, True)
            self._node.set_parameters([follow])
            self.begin()

    def begin(self) -> None:
        """Begin to measure."""
        for traffic in self._traffic.values():
            traffic.clear()
        # The simulated clock is known once it has told its time.
        self._begun = None if self._simulating else time.monotonic()

    def finish(self, seconds: float) -> Observed:
        """Sum up what was seen.

        Args:
            seconds: How long it was measured.
        """
        node, own = self._node, self._node.get_fully_qualified_name()
        begun = self._now() if self._begun is None else self._begun
        heard = {topic: traffic.heard() for topic, traffic in self._traffic.items()}
        state = next((t for t in self._traffic.values() if t.need.path == 'state'), None)
        joints = None
        if state is not None:
            joints = joint_names(heard[state.need.topic], state.need.type)
        inner = [Need('guard', name, node.resolve_topic_name(name), '') for name in COMMANDS]
        wanted = [traffic.need for traffic in self._traffic.values()]
        seen = snapshot(node, [*wanted, *inner], joints)
        names = [
            f'{namespace.rstrip("/")}/{name}'
            for name, namespace in node.get_node_names_and_namespaces()
        ]
        names.remove(own)
        return Observed(
            namespace=node.get_namespace(),
            nodes=tuple(name for name in names if not _hidden(name)),
            snapshot=Snapshot(
                _without(seen.publishers, own), _without(seen.subscribers, own), seen.joints
            ),
            heard=heard,
            listening=Listening(seconds, self._now() - begun, self._simulating),
            clocks=tuple(end.node for end in self._publishers(CLOCK)),
            simulated={owner: _simulated(future) for owner, future in self._simulated.items()},
            states={owner: _state(future) for owner, future in self._states.items()},
            source=self._source,
            diagnostics=tuple(self._said.values()),
            quality=tuple(self._quality(own)),
        )

    def _publishers(self, topic: str) -> tuple[Endpoint, ...]:
        return tuple(map(endpoint, self._node.get_publishers_info_by_topic(topic)))

    def _now(self) -> float:
        """Give the time that rates are measured with, s: a clock that nobody sets, if possible."""
        if self._simulating:
            return self._node.get_clock().now().nanoseconds / 1e9
        return time.monotonic()

    def _ask(self, kind: Any, service: str, request: Any) -> Future:
        return self._node.create_client(kind, service).call_async(request)

    def _on_message(self, topic: str, data: bytes) -> None:
        now = self._now()
        if self._begun is None:
            self._begun = now
        self._traffic[topic].add(data, now, self._node.get_clock().now().nanoseconds)

    def _on_lost(self, topic: str, number: int) -> None:
        self._traffic[topic].lost += number

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            self._said[status.name] = Said(status.name, status.level[0], status.message)

    def _on_source(self, message: String) -> None:
        self._source = message.data

    def _quality(self, own: str) -> Iterator[Finding]:
        """Compare what an `Endpoint` does not hold: deadlines, liveliness."""
        for topic in self._traffic:
            publishers = self._node.get_publishers_info_by_topic(topic)
            subscribers = self._node.get_subscriptions_info_by_topic(topic)
            for publisher in publishers:
                for subscriber in subscribers:
                    yield from _mismatch(topic, publisher, subscriber, own)


def _mismatch(
    topic: str, publisher: TopicEndpointInfo, subscriber: TopicEndpointInfo, own: str
) -> Iterator[Finding]:
    offers, asks = endpoint(publisher), endpoint(subscriber)
    if asks.node == own or offers.type != asks.type or unheard(offers, [asks]):
        return
    compatibility, reason = qos_check_compatible(publisher.qos_profile, subscriber.qos_profile)
    if compatibility == QoSCompatibility.ERROR:
        reason = reason.removeprefix('ERROR: ').rstrip(';')
        problem = f'{asks.node} hears nothing of {offers.node}: {reason}'
        yield Finding('warn', topic, problem, 'give both the same deadline, lease and liveliness')


def _hidden(name: str) -> bool:
    return name.rpartition('/')[2].startswith('_')


def _without(
    ends: Mapping[str, tuple[Endpoint, ...]], node: str
) -> dict[str, tuple[Endpoint, ...]]:
    return {topic: tuple(e for e in side if e.node != node) for topic, side in ends.items()}


def _simulated(future: Future) -> bool | None:
    values = future.result().values if future.done() and future.result() else []
    if not values:
        return None
    return values[0].type == ParameterType.PARAMETER_BOOL and values[0].bool_value


def _state(future: Future) -> str | None:
    done = future.done() and future.result() is not None
    return future.result().current_state.label if done else None


@contextmanager
def _node(namespace: str) -> Iterator[tuple[Node, Callable[[float, Callable[[], None]], None]]]:
    try:
        validate_namespace(f'/{namespace.strip("/")}')
    except InvalidNamespaceException:
        raise ArgumentError(
            f'namespace is {namespace!r}, expected letters, digits and _ between /'
        ) from None
    context = Context()
    rclpy.init(context=context)
    try:
        node = rclpy.create_node(NAME, namespace=namespace.rstrip('/'), context=context)
        executor = SingleThreadedExecutor(context=context)
        executor.add_node(node)

        def spin_for(seconds: float, follow: Callable[[], None]) -> None:
            deadline, due = time.monotonic() + seconds, 0.0
            while (now := time.monotonic()) < deadline:
                if now >= due:
                    follow()
                    due = now + FOLLOW
                executor.spin_once(timeout_sec=max(0.0, min(deadline, due) - now))

        try:
            yield node, spin_for
        finally:
            executor.shutdown()
            node.destroy_node()
    finally:
        rclpy.try_shutdown(context=context)
