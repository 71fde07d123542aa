# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A policy that moves a simulated arm, each part in a process of its own, and who looks on.

simulator ─ simulated/* ─▶ drivers ─ streams ─▶ policy ─▶ guard ─ commands ─▶ simulator
    └─ true poses ─▶ ArmObserver ◀─ commands, diagnostics ─┘
"""

import json
import os
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from std_msgs.msg import String
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from qt_ros.conversions import fill_command
from qt_ros.graphs import GRAPHS, environment
from qt_ros.up import running
from test.qt_ros.arm_observer import DEADLINE, ArmObserver
from test.qt_ros.stream_relay import SIMULATED

SENTENCE = 'touch the red block'  # makes the policy move
MOVES, REST = 0.05, 0.005  # rad/s: at least, of an arm that moves; at most, of one that rests
STEADY = 3  # periods in a row that tell motion
STAYS = 5  # periods that an arm at rest must stay there
SLACK = 5  # periods that a busy machine may take longer
# A step of max_step settles within 3 periods (tested); which of simulator and observer hears a
# command first is a matter of one more.
SETTLING = 4
NEAR = 0.001  # rad that an arm at rest may be off what it was commanded
EXACT = 1e-9  # rad
HAIR = 1e-6  # rad that a pose, and so a hold, may be outside the limits


@dataclass(frozen=True)
class Hold:
    """How an arm came to rest.

    Attributes:
        periods: From the fault to the hold.
        settled: Number of the first period in which it had to be at rest.
        targets: (N,) of the hold.
        measured: Whether that is a pose that was true shortly before; else the last command.
        asked: Whether it is what the policy asked for last.
    """

    periods: int
    settled: int
    targets: np.ndarray
    measured: bool
    asked: bool


class Rig:
    """The processes; each is started when it is not there."""

    def __init__(self, contract, checkpoint, folder):
        self.contract = contract
        self.observer = ArmObserver(contract)
        self.checked = 0  # commands that were found safe
        self.folder = folder
        (simulator,) = GRAPHS['sim'].processes()
        topics = contract.cameras[0].topic, contract.state.topic
        simulator = replace(
            simulator,
            parameters={**simulator.parameters, 'camera_height': 64, 'camera_width': 64},
            remappings=tuple((topic, f'{SIMULATED}{topic}') for topic in topics),
        )
        graph = GRAPHS['policy'].processes(checkpoint=str(checkpoint))
        self.processes = {p.name: p for p in (simulator, *graph)}
        self.running = {}  # name -> what ends it
        self.children = {}
        self.drivers = None

    def start(self, name):
        """Start a process and wait until it is ready."""
        if name in self.running:
            self.running.pop(name).close()
        stack = ExitStack()
        graph = stack.enter_context(running((self.processes[name],), quiet=False))
        self.running[name], self.children[name] = stack, graph.children[0]

    def send(self, number, *names):
        """Send a signal; give the period."""
        since = self.observer.periods
        for name in names:
            self.children[name].send(number)
        return since

    def ended(self, name):
        """Wait until a process has ended; say how."""
        self.children[name].wait(time.monotonic() + DEADLINE)
        assert not self.children[name].alive, f'{name} did not end'
        return self.children[name].ending()

    def tell(self, **options):
        """Have the drivers spoil what they pass on, or nothing; give the period."""
        since = self.observer.periods
        self.drivers.stdin.write(f'{json.dumps(options)}\n')
        self.drivers.stdin.flush()
        return since

    def say(self, sentence):
        """Publish a sentence; give the period."""
        since = self.observer.periods
        self.observer.sentence.publish(String(data=sentence))
        return since

    def call(self, service):
        """Call a std_srvs/Trigger; give the period of the call and the answer."""
        since = self.observer.periods
        return since, self.observer.call(Trigger, service, Trigger.Request())

    def transit(self, transition):
        """Take the policy through a lifecycle transition; give the period of the call."""
        since = self.observer.periods
        request = ChangeState.Request(transition=Transition(id=transition))
        assert self.observer.call(ChangeState, 'policy/change_state', request).success
        return since

    def ready(self):
        """Have everything run, the arm at the start, and the policy move it."""
        for name in self.processes:
            if name not in self.children or not self.children[name].alive:
                self.start(name)
        if self.drivers is None:
            contract = self.folder / 'contract.yaml'
            contract.write_text(self.contract.to_text())
            self.drivers = subprocess.Popen(
                [sys.executable, '-m', 'test.qt_ros.stream_relay', contract],
                stdin=subprocess.PIPE,
                text=True,
                cwd=Path(__file__).parents[2],
                env={**os.environ, **environment(os.environ)},
            )
        self.tell()
        self.call('guard/estop_reset')
        self.call('guard/hold')
        self.call('policy/estop_reset')
        # Whoever holds no longer looks at the pose from before the arm is put elsewhere.
        since, _ = self.call('simulator/reset')
        relayed = self.observer.relayed
        self.observer.wait(
            lambda: self.observer.periods > since + 1 and self.observer.relayed > relayed + 1,
            'the arm at the start',
        )
        self.say(SENTENCE)
        assert self.call('policy/start')[1].success
        assert self.call('guard/policy')[1].success
        self.moves()

    def moves(self):
        """Wait until the arm moves on and on."""
        speeds, since = self.observer.speeds, self.observer.periods
        self.observer.wait(
            lambda: len(speeds) >= since + STEADY and min(speeds[-STEADY:]) > MOVES, 'motion'
        )

    def rests(self, since, within):
        """See that the arm rests at a command of at most `within` periods after `since`."""
        observer, latest = self.observer, since + within + SLACK
        observer.wait_periods(latest + SETTLING + STAYS)
        with observer.changed:
            pose, commands = observer.poses[-1], list(observer.commands)
            asked = observer.asked[-1]
        moving = [i for i, (_, t) in enumerate(commands) if np.abs(t - pose).max() > NEAR]
        rest = commands[moving[-1] + 1 :]
        assert rest, f'at rest at {pose}, commanded {commands[-1][1]}'
        settled = rest[0][0] + SETTLING
        exact = [command for command in rest if self._measured(*command)]
        at, targets = exact[0] if exact else rest[0]
        assert at <= latest, f'told to hold {at - since} periods after the fault, not {within}'
        hold = Hold(at - since, settled, targets, bool(exact), asked=asked[1] is None)
        self.rests_still(hold)
        return hold

    def _measured(self, at, targets):
        return any(
            self._same(pose, targets) for pose in self.observer.poses[max(0, at - SLACK) : at]
        )

    def _same(self, a, b):
        # Fingers that press against their stop are measured a hair outside the limits.
        limits = self.contract.safety.position_low, self.contract.safety.position_high
        return bool(np.abs(np.clip(a, *limits) - np.clip(b, *limits)).max() < EXACT)

    def rests_still(self, hold):
        """See that the arm has been at rest ever since it settled."""
        assert max(self.observer.speeds[hold.settled :]) < REST
        off = np.abs(np.array(self.observer.poses[hold.settled :]) - hold.targets)
        assert off.max() < NEAR

    def nothing_moves(self, hold):
        """See that the arm stays at rest for some periods more."""
        self.observer.wait_periods(self.observer.periods + STAYS)
        self.rests_still(hold)

    def says(self, node, level, text):
        """Wait until a node's next diagnostics say this; give the values."""
        observer, begin, found = self.observer, len(self.observer.said), []

        def said():
            reports = [s for s in observer.said[begin:] if s.name == f'{node}: {node}']
            found[:] = [s for s in reports if s.level == bytes([level]) and text in s.message]
            return found

        observer.wait(said, f'{node} says {text!r}')
        return {item.key: item.value for item in found[0].values}

    def drive(self, joint, step, periods):
        """Move a joint by hand, by `step` rad in each of so many periods."""
        observer, action = self.observer, self.contract.action
        for _ in range(periods):
            targets = observer.poses[-1].copy()
            targets[action.joints.index(joint)] += step
            point, message = JointTrajectoryPoint(), JointTrajectory()
            period = self.contract.period
            observer.by_hand.publish(fill_command(message, point, action, targets, period))
            observer.wait_periods(observer.periods + 1)

    def check(self):
        """See that no command since the last check was unsafe."""
        safety = self.contract.safety
        step = np.array(safety.max_step) + EXACT
        with self.observer.changed:
            commands, poses = list(self.observer.commands), list(self.observer.poses)
        for index in range(self.checked, len(commands)):
            at, targets = commands[index]
            assert (targets >= np.array(safety.position_low) - HAIR).all(), targets
            assert (targets <= np.array(safety.position_high) + HAIR).all(), targets
            known = [targets for _, targets in commands[max(0, index - 1) : index]]
            known += poses[max(0, at - SLACK) : at + 1]
            assert any((np.abs(targets - k) <= step).all() for k in known), (targets, known)
        self.checked = len(commands)

    def end(self):
        """End the nodes; `ready` starts them again."""
        while self.running:
            self.running.popitem()[1].close()

    def close(self):
        """End every process."""
        self.end()
        if self.drivers is not None:
            self.drivers.stdin.close()
            try:
                self.drivers.wait(10)
            except subprocess.TimeoutExpired:
                self.drivers.kill()
                self.drivers.wait()
        self.observer.close()
