# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The graph as a node sees it, for `qt_ros.graph_check`."""

from __future__ import annotations

from collections.abc import Iterable

from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, ReliabilityPolicy
from rclpy.topic_endpoint_info import TopicEndpointInfo

from qt_ros.graph_check import TYPES, Endpoint, Need, Snapshot, followed

UNKNOWN = '(unknown node)'


def snapshot(
    node: Node, wanted: Iterable[Need], joints: tuple[str, ...] | None = None
) -> Snapshot:
    """Look at the graph: no waiting, and two calls per topic.

    Args:
        node: Who looks; it is seen too.
        wanted: Topics, as `graph_check.needs` lists them. Where one has nobody at an end, every
            topic of a type that a contract can name is looked at as well: it may be meant.
        joints: Names in the newest joint state, if there was one.
    """
    publishers: dict[str, tuple[Endpoint, ...]] = {}
    subscribers: dict[str, tuple[Endpoint, ...]] = {}

    def look(topic: str) -> None:
        publishers[topic] = tuple(map(endpoint, node.get_publishers_info_by_topic(topic)))
        subscribers[topic] = tuple(map(endpoint, node.get_subscriptions_info_by_topic(topic)))

    for need in wanted:
        look(need.topic)
    if not all(followed(publishers[t]) and followed(subscribers[t]) for t in publishers):
        for topic, types in node.get_topic_names_and_types():
            if topic not in publishers and TYPES & set(types):
                look(topic)
    return Snapshot(publishers, subscribers, joints)


def endpoint(info: TopicEndpointInfo) -> Endpoint:
    """Turn what rclpy tells of a publisher or subscription into an `Endpoint`."""
    known = not info.node_name.startswith('_NODE_NAME_UNKNOWN_')
    profile = info.qos_profile
    return Endpoint(
        node=f'{info.node_namespace.rstrip("/")}/{info.node_name}' if known else UNKNOWN,
        type=info.topic_type,
        reliable=profile.reliability == ReliabilityPolicy.RELIABLE,
        latched=profile.durability == DurabilityPolicy.TRANSIENT_LOCAL,
    )
