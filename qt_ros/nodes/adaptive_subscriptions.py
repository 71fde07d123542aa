# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Raw subscriptions that follow the publishers of their topics: as they appear, and in QoS."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.topic_endpoint_info import TopicEndpointInfo

from qt_ros.bags import BagError
from qt_ros.bags.writer import require_known
from qt_ros.nodes.node_support import message_class

DEPTH = 100  # messages that DDS keeps for us while Python is busy
MATCHING = 0.5  # s from creating a subscription until publishers have surely found it
LATCHED_MESSAGES = 100  # kept per topic
LATCHED_BYTES = 8 << 20  # kept per topic


@dataclass
class Stream:
    """A subscription.

    Attributes:
        subscription: Of rclpy.
        reliable: Whether it asks for reliable publishers.
        latched: Whether it asks for transient-local publishers.
        publishers: Those that it was made for.
        since: When it was made, monotonic s.
        said: Messages of publishers that are alive, oldest first; of latched topics only.
        before: What had been said before the subscription was made anew, and will come again.
        number: Sequence number of the last message, by which lost ones are known; only while there
            is one publisher, since rclpy does not say whose message it is.
    """

    subscription: Any
    reliable: bool
    latched: bool
    publishers: frozenset[bytes]
    since: float
    said: dict[bytes, None] = field(default_factory=dict)
    before: dict[bytes, None] = field(default_factory=dict)
    number: int = 0


class AdaptiveSubscriptions:
    """Subscribes to topics once somebody publishes them, with QoS that all publishers satisfy.

    Args:
        node: Subscribes.
        kinds: Topic to message type; None takes the publishers' type.
        receive: Called with topic and serialised message; latched messages are not repeated.
        lost: Called with topic and number of messages that were published and never came.
    """

    def __init__(
        self,
        node: Node,
        kinds: Mapping[str, str | None],
        receive: Callable[[str, bytes], None],
        lost: Callable[[str, int], None],
    ) -> None:
        self._node, self._receive, self._lost = node, receive, lost
        self.kinds: dict[str, str | None] = dict(kinds)
        self._optional = {topic for topic, kind in kinds.items() if kind is None}
        self._streams: dict[str, Stream] = {}

    def follow(self, recording: bool) -> None:
        """Look at the publishers.

        Args:
            recording: Whether to leave subscriptions that still get everything as they are.
        """
        for topic in list(self.kinds):
            infos = self._node.get_publishers_info_by_topic(topic)
            if infos:
                self._adapt(topic, infos, recording)

    def problem(self, topic: str) -> str:
        """Say why messages of a topic may be missed; '' when they are not."""
        stream = self._streams.get(topic)
        if stream is None or stream.subscription.get_publisher_count() == 0:
            return f"nothing publishes '{topic}'"
        return self._connecting(topic)

    def latched_problem(self) -> str:
        """Say why not all of `latched` may be there yet; '' when it is."""
        problems = (self._connecting(topic) for topic in self._latched())
        return next((problem for problem in problems if problem), '')

    def latched(self) -> dict[str, list[bytes]]:
        """Give what living publishers of latched topics without a type of ours have said."""
        return {topic: list(self._streams[topic].said) for topic in self._latched()}

    def _latched(self) -> list[str]:
        held = {t for t, s in self._streams.items() if s.latched or s.said}
        return [topic for topic in self._streams if topic in held and topic in self._optional]

    def _connecting(self, topic: str) -> str:
        young = time.monotonic() - self._streams[topic].since < MATCHING
        return f"still connecting to '{topic}'" if young else ''

    def _adapt(self, topic: str, infos: list[TopicEndpointInfo], recording: bool) -> None:
        kind = self.kinds[topic] or infos[0].topic_type
        try:
            message = message_class(kind)
            require_known(kind, topic)
        except (ImportError, AttributeError, ValueError, BagError):
            self._node.get_logger().error(f"'{topic}' is not recorded: {kind} is unknown")
            del self.kinds[topic]
            return
        self.kinds[topic] = kind
        profiles = [info.qos_profile for info in infos]
        reliable = all(p.reliability == ReliabilityPolicy.RELIABLE for p in profiles)
        latched = all(p.durability == DurabilityPolicy.TRANSIENT_LOCAL for p in profiles)
        publishers = frozenset(bytes(info.endpoint_gid) for info in infos)
        known = self._streams.get(topic)
        before: dict[bytes, None] = {}
        if known is not None:
            same = (known.reliable, known.latched) == (reliable, latched)
            gets_all = known.reliable <= reliable and known.latched <= latched
            # Only a new subscription is told again what the publishers that are left have said.
            fewer = latched and not known.publishers <= publishers
            if not publishers <= known.publishers:
                known.number = 0
            known.publishers |= publishers
            if (same and not fewer) or (recording and gets_all):
                return
            before = known.before | known.said
            self._node.destroy_subscription(known.subscription)
        subscription = self._node.create_subscription(
            message,
            topic,
            lambda data, info: self._take(topic, data, info['publication_sequence_number']),
            QoSProfile(
                depth=DEPTH,
                reliability=ReliabilityPolicy.RELIABLE
                if reliable
                else ReliabilityPolicy.BEST_EFFORT,
                durability=DurabilityPolicy.TRANSIENT_LOCAL
                if latched
                else DurabilityPolicy.VOLATILE,
            ),
            raw=True,
            # A publisher that it does not fit is adapted to, which is no reason for a warning.
            event_callbacks=SubscriptionEventCallbacks(use_default_callbacks=False),
        )
        now = time.monotonic()
        self._streams[topic] = Stream(
            subscription,
            reliable,
            latched,
            publishers,
            now,
            # A volatile subscription is not told again.
            said={} if latched else dict(before),
            before=before if latched else {},
        )

    def _take(self, topic: str, data: bytes, number: int) -> None:
        stream = self._streams[topic]
        if stream.subscription.get_publisher_count() == len(stream.publishers) == 1:
            if 0 < stream.number < number - 1:
                self._lost(topic, number - stream.number - 1)
            stream.number = number
        if stream.latched and topic in self._optional:
            again = data in stream.before
            stream.before.pop(data, None)
            stream.said.pop(data, None)
            stream.said[data] = None
            while len(stream.said) > LATCHED_MESSAGES or (
                len(stream.said) > 1 and sum(map(len, stream.said)) > LATCHED_BYTES
            ):
                del stream.said[next(iter(stream.said))]
            if again:
                return
        self._receive(topic, data)
