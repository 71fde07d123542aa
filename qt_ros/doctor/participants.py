# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The nodes of a running graph: who is there, by which clock, and how they say they are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

from qt_ros.diagnostics import ERROR, OK, WARN
from qt_ros.doctor.traffic import Heard, Listening
from qt_ros.finding import Finding, Level
from qt_ros.graph_check import Snapshot

OURS = ('policy', 'guard', 'teleop', 'recorder', 'simulator', 'demonstrator')
CLOCK = '/clock'
STATES = {  # of a policy -> what to call
    'unconfigured': 'its log says why; mend that and start it again',
    'inactive': 'ros2 lifecycle set {node} activate, or start it with autostart',
    'finalized': 'start it again',
}
SOURCES = {  # of a guard -> what to call
    'estop': ('stopped', 'qt-ros call guard/estop_reset, then guard/policy or guard/teleop'),
    'hold': ('holds: nobody drives', 'qt-ros call guard/policy or guard/teleop'),
}


@dataclass(frozen=True)
class Said:
    """One status of /diagnostics, the newest of its name."""

    name: str
    level: int
    message: str


@dataclass(frozen=True)
class Observed:
    """What was seen of a graph in some seconds.

    Attributes:
        namespace: The robot's, full.
        nodes: Full names, the observer's left out; as often as there are nodes of that name.
        snapshot: Publishers and subscriptions, the observer's left out.
        heard: Full topic name -> what came.
        listening: For how long.
        clocks: Nodes that publish /clock.
        simulated: Node -> whether it follows /clock; None when it did not answer.
        states: Lifecycle node -> its state; None when it did not answer.
        source: Who drives, as the guard says; None when no guard said so.
        diagnostics: Newest statuses.
        quality: Findings about deadline and liveliness.
    """

    namespace: str
    nodes: tuple[str, ...]
    snapshot: Snapshot
    heard: Mapping[str, Heard]
    listening: Listening
    clocks: tuple[str, ...] = ()
    simulated: Mapping[str, bool | None] = field(default_factory=dict)
    states: Mapping[str, str | None] = field(default_factory=dict)
    source: str | None = None
    diagnostics: tuple[Said, ...] = ()
    quality: tuple[Finding, ...] = ()

    def full(self, name: str) -> str:
        """Give the full name of one in the robot's namespace."""
        return f'{self.namespace.rstrip("/")}/{name}'


def check_graph(observed: Observed, topics: Collection[str]) -> list[Finding]:
    """Say who is there and by which clock.

    Args:
        observed: The graph.
        topics: Full names of the contract's topics.
    """
    if not observed.nodes:
        remedy = 'start the robot; look at ROS_DOMAIN_ID, the discovery range and the firewall'
        return [Finding('fail', 'nodes', 'none is seen', remedy)]
    names = sorted(set(observed.nodes))
    shown = f'{", ".join(names[:12])}{" ..." if len(names) > 12 else ""}'
    findings = [Finding('ok', 'nodes', f'{len(observed.nodes)}: {shown}')]
    ours = {observed.full(name) for name in OURS}
    for name, count in sorted(Counter(observed.nodes).items()):
        if count > 1:
            problem = f'{count} nodes have this name'
            remedy = 'end all but one, or give them namespaces (after a crash one fades in 20 s)'
            level: Level = 'fail' if name in ours else 'warn'
            findings.append(Finding(level, name, problem, remedy))
    return [*findings, *_clocks(observed, ours, topics), *observed.quality]


def _clocks(
    observed: Observed, ours: Collection[str], topics: Collection[str]
) -> Iterator[Finding]:
    snapshot = observed.snapshot
    concerned = {
        end.node
        for side in (snapshot.publishers, snapshot.subscribers)
        for topic in topics
        for end in side.get(topic, ())
    } | set(ours)
    silent = sorted(node for node, answer in observed.simulated.items() if answer is None)
    if silent:
        problem = f'no answer about parameters in {observed.listening.seconds:g} s'
        yield Finding('warn', ', '.join(silent[:4]), problem, 'look whether it hangs')
    if observed.listening.still:
        remedy = 'start an episode to have rates measured'
        yield Finding('warn', CLOCK, 'the simulation stands still', remedy)
    for node, follows in sorted(observed.simulated.items()):
        if follows is None or node in observed.clocks:
            continue
        if observed.clocks and not follows:
            problem = f'use_sim_time is false, and {observed.clocks[0]} publishes /clock'
            remedy = 'set use_sim_time to true, or end what publishes /clock'
            yield Finding('fail' if node in concerned else 'warn', node, problem, remedy)
        if follows and not observed.clocks:
            problem = 'use_sim_time is true, and nobody publishes /clock: its time stands still'
            remedy = 'set use_sim_time to false, or start the simulator'
            yield Finding('fail', node, problem, remedy)


def check_nodes(observed: Observed) -> list[Finding]:
    """Say how this package's nodes are, and what any node complains about."""
    findings = [*_elsewhere(observed), *_lifecycle(observed), *_guard(observed)]
    findings += _diagnostics(observed)
    return findings or [Finding('ok', 'nodes', 'none of this package runs, none complains')]


def _elsewhere(observed: Observed) -> Iterator[Finding]:
    """Notice that the robot has a namespace, and was not looked for there."""
    if any(observed.full(name) in observed.nodes for name in OURS):
        return
    elsewhere = sorted(n for n in set(observed.nodes) if n.rpartition('/')[2] in OURS)
    if elsewhere:
        namespace = elsewhere[0].rpartition('/')[0] or '/'
        problem = f'none of this package in {observed.namespace}; there is {elsewhere[0]}'
        yield Finding('warn', 'namespace', problem, f'give --namespace {namespace}')


def _lifecycle(observed: Observed) -> Iterator[Finding]:
    policy = observed.full('policy')
    for node, state in sorted(observed.states.items()):
        if state == 'active':
            yield Finding('ok', node, 'active')
        elif state is None:
            problem = 'no answer about its lifecycle state'
            yield Finding('warn', node, problem, 'look whether it hangs')
        else:
            remedy = STATES.get(state, '').format(node=node) if node == policy else ''
            yield Finding('warn', node, state, remedy or f'activate it if {node} is needed')


def _guard(observed: Observed) -> Iterator[Finding]:
    """Hold policy and guard against each other."""
    policy, guard = observed.full('policy'), observed.full('guard')
    nodes, command = set(observed.nodes), observed.full('policy/command')
    guarded = any(e.node == policy for e in observed.snapshot.publishers.get(command, ()))
    listened = bool(observed.snapshot.subscribers.get(command))
    if guarded and not listened and guard not in nodes:
        problem = f'publishes {command} for a guard, and there is none: the arm hears nothing'
        remedy = 'start the guard (qt-ros up policy starts both), or set guarded to false'
        yield Finding('fail', policy, problem, remedy)
    elif policy in nodes and guard in nodes and not guarded:
        problem = 'commands the arm past the guard, or is not configured yet'
        yield Finding('warn', policy, problem, 'set guarded to true')
    if guard not in nodes:
        return
    if observed.source in SOURCES:
        problem, remedy = SOURCES[observed.source]
        yield Finding('warn', guard, problem, remedy)
    elif observed.source is None:
        yield Finding('warn', guard, 'does not say who drives', 'look whether it hangs')
    elif observed.source == 'policy' and policy not in nodes:
        problem = 'waits for a policy, and there is none'
        yield Finding('warn', guard, problem, 'start one: qt-ros up policy')
    else:
        yield Finding('ok', guard, f'{observed.source} drives')


def _diagnostics(observed: Observed) -> Iterator[Finding]:
    ours = {observed.full(name).lstrip('/') for name in OURS}
    for said in observed.diagnostics:
        if said.level <= OK:
            continue
        mine = said.name.partition(':')[0].lstrip('/') in ours
        level: Level = 'fail' if mine and said.level >= ERROR else 'warn'
        kind = 'warns' if said.level == WARN else 'complains'
        problem = f'{kind}: {said.message or "without a word"}'
        yield Finding(level, said.name, problem)
