# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""One robot's graph from outside: its arm as a process, and what is said and commanded there."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray
from sensor_msgs.msg import JointState
from std_msgs.msg import Int32MultiArray, String

from qt_ros.conversions import COMMAND_TYPES, command_targets, joint_positions
from qt_ros.nodes.node_support import LATCHED, SENSOR, message_class


class Arm:
    """The process of `test.qt_ros.arm`."""

    def __init__(self, contract_file, options):
        self.process = subprocess.Popen(
            [sys.executable, '-m', 'test.qt_ros.arm', contract_file, json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )

    def tell(self, **options):
        """Have it do otherwise."""
        self.process.stdin.write(json.dumps(options) + '\n')
        self.process.stdin.flush()


@contextmanager
def arm(contract_file, **options):
    """Run an arm while the block lasts."""
    running = Arm(contract_file, options)
    try:
        yield running
    finally:
        running.process.stdin.close()
        try:
            running.process.wait(10)
        except subprocess.TimeoutExpired:
            running.process.kill()
            running.process.wait()
        running.process.stdout.close()


class Witness:
    """What one robot's topics carry, since it was made or `forget`.

    Attributes:
        bins: What the policy decided.
        commands: (when it came, monotonic s; targets) of what reached the robot.
        positions: The newest joint state, joint -> rad or m.
        reports: Part of a node, such as `policy: policy` -> its newest status.
        heard: How many reports there were of each.
    """

    def __init__(self, peer, contract, namespace=''):
        self.peer, self.contract = peer, contract
        self.prefix = f'{namespace}/' if namespace else ''
        self.bins, self.commands, self.positions, self.reports = [], [], {}, {}
        self.heard = {}
        action, prefix, node = contract.action, self.prefix, peer.node
        kind = message_class(COMMAND_TYPES[action.type])
        subscribe = node.create_subscription
        subscribe(kind, f'{prefix}{action.topic}', self._on_command, 20)
        subscribe(Int32MultiArray, f'{prefix}policy/bins', self._on_bins, 20)
        subscribe(JointState, f'{prefix}{contract.state.topic}', self._on_state, SENSOR)
        subscribe(DiagnosticArray, '/diagnostics', self._on_report, 20)
        self.sentences = node.create_publisher(String, f'{prefix}instruction', LATCHED)

    def say(self, sentence):
        """Tell the policy what to do."""
        self.sentences.publish(String(data=sentence))

    def until(self, condition, what):
        """Spin until `condition()`."""
        self.peer.spin_until(condition, what)

    def until_acts(self, count=5):
        """Spin until so many more decisions were made."""
        wanted = len(self.bins) + count
        self.until(lambda: len(self.bins) >= wanted, f'{self.prefix}: {count} decisions')

    def until_says(self, message, part='policy: policy'):
        """Spin until a node's next reports say so; give the values of that one."""
        name, self.reports = f'{self.prefix}{part}', {}
        self.until(
            lambda: name in self.reports and message in self.reports[name].message,
            f'{name}: {message}',
        )
        return {item.key: item.value for item in self.reports[name].values}

    def until_still(self, part='policy: policy', reports=2):
        """See that it lives on, through so many reports, and commands and decides nothing."""
        name = f'{self.prefix}{part}'
        commands, bins, heard = len(self.commands), len(self.bins), self.heard.get(name, 0)
        self.until(lambda: self.heard.get(name, 0) >= heard + reports, f'{name}: reports')
        assert len(self.commands) == commands, self.commands[commands:]
        assert len(self.bins) == bins, self.bins[bins:]

    def pose(self):
        """Give the newest joint state in the contract's order."""
        return np.array([self.positions[joint] for joint in self.contract.action.joints])

    def intervals(self, count):
        """Give the seconds between the newest `count` + 1 commands; empty when there are fewer."""
        times = [at for at, _ in self.commands[-count - 1 :]]
        return np.diff(times) if len(times) == count + 1 else np.empty(0)

    def _on_command(self, message):
        targets = command_targets(message, self.contract.action)
        self.commands.append((time.monotonic(), targets))

    def _on_bins(self, message):
        self.bins.append(tuple(message.data))

    def _on_state(self, message):
        self.positions = joint_positions(message)

    def _on_report(self, message):
        for status in message.status:
            self.reports[status.name] = status
            self.heard[status.name] = self.heard.get(status.name, 0) + 1


def with_parameters(processes, name, **parameters):
    """Give processes with further parameters for the node `name`."""
    return [
        replace(p, parameters={**p.parameters, **parameters}) if p.name == name else p
        for p in processes
    ]
