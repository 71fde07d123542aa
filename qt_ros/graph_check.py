# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A contract held against the graph that is running: what will not work, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from qt_core.contract import IMAGE_TYPES, RobotContract
from qt_ros.conversions import COMMAND_TYPES
from qt_ros.finding import Finding, Level

JOINT_STATE = 'sensor_msgs/msg/JointState'
STRING = 'std_msgs/msg/String'
COMPRESSED = '/compressed'  # what image_transport puts after the name of a topic
TYPES = frozenset((JOINT_STATE, STRING, *IMAGE_TYPES, *COMMAND_TYPES.values()))
COMMANDS = ('policy/command', 'teleop/command')  # what a guard takes, which is no controller
GUARDED = tuple(f'/{topic}' for topic in COMMANDS)
# They hear a command and do not follow it.
BYSTANDERS = ('recorder', 'rosbag2_recorder', 'foxglove_bridge', 'doctor')
NAMED = 4  # topics or joints that one finding names


@dataclass(frozen=True)
class Endpoint:
    """A publisher or a subscription of one topic.

    Attributes:
        node: Full name of its node.
        type: Message type.
        reliable: Whether it offers, or asks for, reliable delivery.
        latched: Whether it offers, or asks for, transient-local durability.
    """

    node: str
    type: str
    reliable: bool
    latched: bool


@dataclass(frozen=True)
class Snapshot:
    """The graph at one moment.

    Attributes:
        publishers: Full topic name -> who publishes there; of the contract's topics, and of others
            that may have been meant.
        subscribers: The same of subscriptions.
        joints: Names in the newest joint state; None when there was none.
    """

    publishers: Mapping[str, tuple[Endpoint, ...]]
    subscribers: Mapping[str, tuple[Endpoint, ...]]
    joints: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Need:
    """A topic of a contract.

    Attributes:
        path: Where the contract names it.
        relative: Its name there.
        topic: Its full name.
        type: Message type.
    """

    path: str
    relative: str
    topic: str
    type: str


def needs(contract: RobotContract, resolve: Callable[[str], str]) -> tuple[Need, ...]:
    """List what a contract needs: cameras, state, instruction and, last, the command topic.

    Args:
        contract: The robot's.
        resolve: Relative topic name -> full name, such as a node's `resolve_topic_name`.
    """
    action = contract.action
    places = [
        *((f'cameras[{i}]', c.topic, c.type) for i, c in enumerate(contract.cameras)),
        ('state', contract.state.topic, JOINT_STATE),
        ('instruction', contract.instruction.topic, STRING),
        ('action', action.topic, COMMAND_TYPES[action.type]),
    ]
    return tuple(Need(path, topic, resolve(topic), kind) for path, topic, kind in places)


def check_contract(
    contract: RobotContract, resolve: Callable[[str], str], snapshot: Snapshot
) -> list[Finding]:
    """Say of each topic of a contract whether the graph serves it.

    Args:
        contract: The robot's.
        resolve: As of `needs`.
        snapshot: The graph.

    Returns:
        At least one finding per topic, in the contract's order; `ok` where all is well.
    """
    wanted = needs(contract, resolve)
    taken = {need.topic for need in wanted}
    findings: list[Finding] = []
    for need in wanted:
        found = [*_ends(need, snapshot, taken), *_quality(need, snapshot)]
        if need.path == 'state':
            found += _joints(contract, need, snapshot.joints)
        findings += found or [Finding('ok', need.topic, _served(need, snapshot))]
    return findings


def unheard(publisher: Endpoint, subscribers: Iterable[Endpoint]) -> list[Endpoint]:
    """List the subscriptions that a publisher's QoS does not satisfy.

    A node that subscribes twice, latched and not, hears by one of the two.
    """
    heard = {s.node for s in subscribers if _compatible(publisher, s)}
    return [s for s in subscribers if s.node not in heard]


def followed(ends: Iterable[Endpoint]) -> tuple[Endpoint, ...]:
    """Leave out the ends of nodes that look on."""
    return tuple(end for end in ends if not _bystander(end))


def _ends(need: Need, snapshot: Snapshot, taken: set[str]) -> Iterator[Finding]:
    """Look for somebody at the other end, of the right type, and for one too many."""
    publishers = snapshot.publishers.get(need.topic, ())
    command = need.path == 'action'
    side = snapshot.subscribers if command else snapshot.publishers
    there = followed(side.get(need.topic, ()))
    fitting = [e for e in there if e.type == need.type]
    verb = 'listens' if command else 'publishes'
    if not there:
        level: Level = 'warn' if need.path == 'instruction' else 'fail'
        guarded = need.topic.endswith(GUARDED)
        remedy = ('' if guarded else _elsewhere(need, side, taken)) or _start(need)
        yield Finding(level, need.topic, f'nobody {verb}', remedy)
    elif not fitting:
        other = there[0]
        problem = f'{other.node} {verb} with type {other.type}, expected {need.type}'
        yield Finding('fail', need.topic, problem, _other_type(need, other.type, side, taken))
    elif len(fitting) < len(there):
        other = next(e for e in there if e.type != need.type)
        problem = f'{other.node} {verb} there too, with type {other.type}'
        yield Finding('warn', need.topic, problem, 'remap it to a topic of its own')
    several = [e.node for e in publishers if e.type == need.type]
    if len(several) < 2 or need.path == 'instruction':
        return
    names = _list(sorted(several))
    if command:
        remedy = 'end all but one; what shares an arm goes through the guard'
        yield Finding('fail', need.topic, f'{len(several)} publishers command: {names}', remedy)
    else:
        remedy = 'end all but one'
        if need.path == 'state':
            remedy += ', or one that merges them: every message must name every joint'
        yield Finding('warn', need.topic, f'{len(several)} publishers: {names}', remedy)


def _quality(need: Need, snapshot: Snapshot) -> Iterator[Finding]:
    """Compare QoS: of those who are there with each other, and with what our nodes bring."""
    command = need.path == 'action'
    there = snapshot.publishers.get(need.topic, ())
    listening = snapshot.subscribers.get(need.topic, ())
    vital = command or need.path == 'instruction'
    # How this package's own nodes meet the topic, whether or not they run already.
    ours = Endpoint("this package's nodes", need.type, reliable=vital, latched=False)
    pairs = [(p, s) for p in there for s in unheard(p, listening)]
    if not pairs:  # else they say the same about nodes that exist
        if command:
            pairs = [(ours, s) for s in unheard(ours, listening)]
        else:
            pairs = [(p, s) for p in there for s in unheard(p, [ours])]
    for publisher, subscriber in dict.fromkeys(pairs):
        if publisher.type != subscriber.type:
            continue  # said already
        if subscriber.reliable and not publisher.reliable:
            offered, asked = 'best-effort', 'reliable'
        else:
            offered, asked = 'volatile', 'transient-local'
        yield Finding(
            'fail' if vital and not _bystander(subscriber) else 'warn',
            need.topic,
            f'{subscriber.node} hears nothing of {publisher.node}: '
            f'it asks for {asked} delivery and is offered {offered}',
            f'make the publisher {asked} or the subscription {offered}',
        )


def _joints(
    contract: RobotContract, need: Need, names: tuple[str, ...] | None
) -> Iterator[Finding]:
    if names is None:
        return
    lacking = [joint for joint in contract.state.joints if joint not in names]
    if not lacking:
        return
    free = [name for name in names if name not in contract.state.joints]
    remedy = 'name the joints in the contract as the robot does'
    close = [(j, difflib.get_close_matches(j, free, 1, 0.5)) for j in lacking]
    meant = [f'{joint} -> {match[0]}' for joint, match in close if match]
    if meant:
        remedy += f' ({_list(meant)})'
    elif not free:
        remedy = 'publish every joint in every message'
    problem = f'lacks {_list(lacking)}; it has {_list(names, len(names)) or "no joint"}'
    yield Finding('fail', need.topic, problem, remedy)


def _served(need: Need, snapshot: Snapshot) -> str:
    side = snapshot.subscribers if need.path == 'action' else snapshot.publishers
    nodes = _list(sorted({e.node for e in followed(side.get(need.topic, ()))}))
    return f'{need.type} {"to" if need.path == "action" else "from"} {nodes}'


def _elsewhere(need: Need, side: Mapping[str, tuple[Endpoint, ...]], taken: set[str]) -> str:
    """Say where what is lacking may be instead; '' when nothing looks like it."""
    sibling = _sibling(need, side)
    if sibling:
        return sibling
    others = sorted(
        topic
        for topic, ends in side.items()
        if topic not in taken
        and not topic.endswith(GUARDED)
        and any(e.type == need.type for e in followed(ends))
    )
    last = need.relative.rpartition('/')[2]
    # The type says nothing about what a string means.
    alike = [topic for topic in others if topic.rpartition('/')[2] == last]
    meant = alike or ([] if need.type == STRING else others)
    if not meant:
        return ''
    best, *more = meant
    remedy = f'remap {need.relative}:={best}'
    if best.endswith(f'/{need.relative}'):
        namespace = best.removesuffix(f'/{need.relative}') or '/'
        remedy += f', or start in namespace {namespace}'
    also = f'; of that type also: {_list(more)}' if more else ''
    return f'{remedy}{also}'


def _sibling(need: Need, side: Mapping[str, tuple[Endpoint, ...]]) -> str:
    """Say that the same images are there in the other form."""
    if need.type not in IMAGE_TYPES:
        return ''
    other = IMAGE_TYPES[1 - IMAGE_TYPES.index(need.type)]
    if need.topic.endswith(COMPRESSED):
        topic, relative = need.topic, need.relative
        topic, relative = topic.removesuffix(COMPRESSED), relative.removesuffix(COMPRESSED)
    else:
        topic, relative = f'{need.topic}{COMPRESSED}', f'{need.relative}{COMPRESSED}'
    if not any(e.type == other for e in side.get(topic, ())):
        return ''
    return f'set {need.path}.topic to {relative} and .type to {other} in the contract'


def _other_type(
    need: Need, kind: str, side: Mapping[str, tuple[Endpoint, ...]], taken: set[str]
) -> str:
    for name, known in COMMAND_TYPES.items():
        if need.path == 'action' and kind == known:
            return f'set action.type to {name} in the contract'
    if need.type in IMAGE_TYPES and kind in IMAGE_TYPES:
        return f'set {need.path}.type to {kind} in the contract'
    return _elsewhere(need, side, taken) or f'remap {need.relative} to a topic of type {need.type}'


def _start(need: Need) -> str:
    if need.topic.endswith(GUARDED):
        return 'start the guard, as the policy and teleop graphs do'
    if need.path == 'action':
        return f'start the controller, or remap {need.relative} to the topic it listens to'
    if need.path == 'instruction':
        return 'give one, for example with qt-ros say; one that was given does not stay'
    return f'start its driver, or remap {need.relative} to the topic it publishes'


def _compatible(publisher: Endpoint, subscriber: Endpoint) -> bool:
    return publisher.reliable >= subscriber.reliable and publisher.latched >= subscriber.latched


def _bystander(end: Endpoint) -> bool:
    return end.node.rpartition('/')[2] in BYSTANDERS


def _list(names: Iterable[str], limit: int = NAMED) -> str:
    names = list(names)
    more = f' and {len(names) - limit} more' if len(names) > limit else ''
    return f'{", ".join(names[:limit])}{more}'
