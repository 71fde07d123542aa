# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Runs a trained policy on a robot: observations in, safe joint commands out.

callbacks ─ store ─▶ ObservationAssembler ─▶ worker thread: policy ─▶ SafetyFilter ─▶ command
"""

from __future__ import annotations

import json
import sys
import threading
import time
import traceback
from collections import deque
from functools import partial
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.duration import Duration
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from sensor_msgs.msg import JointState
from std_msgs.msg import Float32MultiArray, Int32MultiArray, MultiArrayDimension, String
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectoryPoint

from qt_core.action_space import ActionSpace
from qt_core.contract import RobotContract, require_same
from qt_core.policies import Decision, Policy, load_policy
from qt_ros.conversions import COMMAND_TYPES, fill_command, joint_positions
from qt_ros.nodes.node_support import (
    COMMAND,
    SENSOR,
    Parameter,
    declare,
    message_class,
    run_node,
    subscribe_instruction,
)
from qt_ros.safety import SafetyFilter
from qt_ros.streams import (
    STATE,
    ObservationAssembler,
    Stale,
    Stamped,
    Stream,
    observed_streams,
)

PARAMETERS = (
    Parameter('checkpoint', '', 'Checkpoint folder.', read_only=False),
    Parameter('contract', '', "Contract file that must equal the checkpoint's; '' for any."),
    Parameter('device', 'auto', 'Torch device; auto takes a GPU when there is one.'),
    Parameter('threads', 1, 'Torch threads on a CPU.', 1, 256),
    Parameter(
        'trigger', 'rate', 'Act at the contract rate (rate) or once per image (observation).'
    ),
    Parameter('stamp_commands', False, 'Stamp commands with the observation they answer.'),
    Parameter('publish_values', False, 'Publish the value of every bin on ~/values.'),
    Parameter('autostart', True, 'Configure and activate at start.'),
)
TRIGGERS = ('rate', 'observation')


class PolicyNode(LifecycleNode):
    """Configure loads the checkpoint, activate arms, deactivate holds, cleanup frees."""

    def __init__(self) -> None:
        super().__init__('policy')
        declare(self, PARAMETERS)
        self.policy: Policy | None = None
        self.lock = threading.Condition()
        self.running = False
        self.worker: threading.Thread | None = None
        self.problem = ''
        self.entities: list[tuple[Any, Any]] = []
        self.failure = ''
        self.refusing = False  # the arm was told to hold, and no action was sent since
        self.acted: int | None = None  # node clock at the last action, ns

    def start(self) -> None:
        """Configure and activate, as `autostart` asks.

        Raises:
            ValueError: A transition failed; says why.
        """
        for transition in (self.trigger_configure, self.trigger_activate):
            if transition() != TransitionCallbackReturn.SUCCESS:
                raise ValueError(self.failure or 'a lifecycle transition failed')

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load the checkpoint and create subscriptions and publishers."""
        result = self._transition(self._configure)
        if result != TransitionCallbackReturn.SUCCESS:
            self._free()
        return result

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Start acting."""
        result = super().on_activate(state)
        return (
            result if result != TransitionCallbackReturn.SUCCESS else self._transition(self._arm)
        )

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Hold the measured pose and stop acting."""
        result = self._transition(self.disarm)
        return (
            result if result != TransitionCallbackReturn.SUCCESS else super().on_deactivate(state)
        )

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free the network and every topic."""
        return self._transition(self._free)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Hold the measured pose and free everything."""
        return self._transition(self._free)

    def disarm(self) -> None:
        """Stop the worker, then command the measured pose."""
        if self.worker is None:
            return
        with self.lock:
            self.running = False
            self.lock.notify_all()
        self.worker.join()
        self.worker = None
        self.hold()
        # The process may be about to end, and a command still on its way with it.
        self.commands.wait_for_all_acked(Duration(seconds=0.5))

    def hold(self) -> None:
        """Command the newest measured pose, if there is one."""
        with self.lock:
            self.acted = None
            measured = self._measured()
            if measured is not None:
                self.safety.rearm()
                self._publish_command(measured, 0)

    def on_message(self, stream: Stream, message: Any) -> None:
        """Store a sensor message."""
        time = stream.time(message, self._now())
        with self.lock:
            self.assembler.push(stream.name, time, partial(stream.decode, message))
            if stream.name == STATE:
                self.newest_state = message
            if self.trigger == 'observation':
                self.due = True
                self.lock.notify_all()

    def on_instruction(self, message: String) -> None:
        """Store the sentence; it takes effect at the next step."""
        with self.lock:
            self.instruction = message.data

    def on_tick(self) -> None:
        """Let the worker act now."""
        with self.lock:
            self.due = True
            self.lock.notify_all()

    def on_watch(self) -> None:
        """Hold when the last action is too long ago: nothing comes in, or inference hangs."""
        with self.lock:
            now = self._now()
            if not self.running or self.acted is None:
                return
            silent = (now - self.acted) / 1e9
            if silent > self.contract.safety.watchdog or silent < 0:  # a clock that was set back
                stale = self.assembler.stale(now)
                self._refuse(str(stale) if stale else f'no action for {silent:.2f} s')

    def on_reset(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        """Answer `~/reset`: forget the past."""
        with self.lock:
            self.followed = None
            self.safety.rearm()
            response.success = bool(self.instruction)
            response.message = json.dumps({'instruction': self.instruction})
        return response

    def work(self) -> None:
        """Take observations and act on them until disarmed."""
        while True:
            with self.lock:
                found = self._next()
                while found is None and self.running:
                    self.lock.wait()
                    found = self._next()
                if not self.running:
                    return
                taken = self._now()
                instruction = self.instruction
                restart = instruction != self.followed
                self.followed = instruction
            if not isinstance(found, Stamped) or not instruction:
                problem = 'no instruction' if isinstance(found, Stamped) else str(found)
                self._refuse(' '.join(problem.split()))
                continue
            try:
                self._act(found, taken, instruction if restart else None)
            except Exception:
                self.get_logger().error(
                    f'inference failed: {traceback.format_exc()}', throttle_duration_sec=10.0
                )
                self._refuse('inference failed')

    def publish_diagnostics(self) -> None:
        """Publish how the policy is doing."""
        with self.lock:
            ages = self.assembler.ages(self._now())
            problem = self.problem
            if self.running and self.acted is None and not problem:
                problem = str(self.assembler.stale(self._now()) or 'waiting for an observation')
            interventions = dict(self.safety.interventions)
        status = DiagnosticStatus(
            name=f'{self.get_name()}: policy', hardware_id=self.contract.name
        )
        status.level = DiagnosticStatus.ERROR if problem else DiagnosticStatus.OK
        status.message = problem or ('acting' if self.running else 'inactive')
        values = {f'age of {s} (s)': 'never' if a is None else f'{a:.3f}' for s, a in ages.items()}
        if self.inference_ms:
            p50, p95 = np.percentile(list(self.inference_ms), [50, 95])
            values |= {'inference p50 (ms)': f'{p50:.2f}', 'inference p95 (ms)': f'{p95:.2f}'}
        values |= {f'interventions: {k}': str(v) for k, v in interventions.items()}
        values['instruction'] = self.instruction
        values['checkpoint'] = self.get_parameter('checkpoint').value
        values['contract'] = self.contract.name
        status.values = [KeyValue(key=k, value=v) for k, v in values.items()]
        array = DiagnosticArray(status=[status])
        array.header.stamp = self.get_clock().now().to_msg()
        self.diagnostics.publish(array)

    def _configure(self) -> None:
        import torch

        self.trigger = self.get_parameter('trigger').value
        if self.trigger not in TRIGGERS:
            raise ValueError(f'trigger is {self.trigger!r}, expected {" or ".join(TRIGGERS)}')
        torch.set_num_threads(self.get_parameter('threads').value)
        checkpoint = self.get_parameter('checkpoint').value
        if not checkpoint:
            raise ValueError('checkpoint is empty: give the folder of a trained policy')
        self.policy = load_policy(checkpoint, self.get_parameter('device').value)
        self.contract = self.policy.contract
        given = self.get_parameter('contract').value
        if given:
            require_same(RobotContract.load(given), self.contract, given, checkpoint)
        self.space = ActionSpace(self.contract)
        self.safety = SafetyFilter(self.contract)
        self.assembler = ObservationAssembler(self.contract)
        self.newest_state: JointState | None = None
        self.instruction = ''
        self.followed: str | None = None
        self.due = False
        self.inference_ms: deque[float] = deque(maxlen=200)
        action = self.contract.action
        self.command_class = message_class(COMMAND_TYPES[action.type])
        self.commands = self.create_publisher(self.command_class, action.topic, COMMAND)
        self.bins = self.create_publisher(Int32MultiArray, '~/bins', 10)
        self.values = self.create_publisher(Float32MultiArray, '~/values', 10)
        self.diagnostics = self.create_publisher(DiagnosticArray, '/diagnostics', 10)
        publishers = (self.commands, self.bins, self.values, self.diagnostics)
        self.entities = [(self.destroy_publisher, p) for p in publishers]
        subscribe = self.create_subscription
        group = ReentrantCallbackGroup()
        subscriptions = [
            subscribe(
                message_class(stream.type),
                stream.topic,
                partial(self.on_message, stream),
                SENSOR,
                callback_group=group,
            )
            for stream in observed_streams(self.contract)
        ]
        topic = self.contract.instruction.topic
        subscriptions += subscribe_instruction(self, topic, self.on_instruction)
        self.entities += [(self.destroy_subscription, s) for s in subscriptions]
        self.entities.append(
            (self.destroy_service, self.create_service(Trigger, '~/reset', self.on_reset))
        )
        timers = [
            self.create_timer(1.0, self.publish_diagnostics),
            self.create_timer(self.contract.safety.watchdog / 4, self.on_watch),
        ]
        if self.trigger == 'rate':
            timers.append(self.create_timer(self.contract.period, self.on_tick))
        self.entities += [(self.destroy_timer, t) for t in timers]

    def _arm(self) -> None:
        self.safety.rearm()
        self.running, self.due, self.followed = True, False, None
        self.refusing, self.acted, self.problem = False, None, ''
        self.worker = threading.Thread(target=self.work, name='policy worker')
        self.worker.start()
        self.get_logger().info(f'policy ready: {self.get_parameter("checkpoint").value}')

    def _free(self) -> None:
        self.disarm()
        for destroy, entity in self.entities:
            destroy(entity)
        self.entities = []
        self.policy = None

    def _transition(self, change: Any) -> TransitionCallbackReturn:
        try:
            change()
        except Exception as error:  # rclpy would swallow it
            self.failure = ' '.join(str(error).split())
            if not isinstance(error, ValueError):
                self.get_logger().error(traceback.format_exc())
            self.get_logger().error(self.failure)
            return TransitionCallbackReturn.FAILURE
        return TransitionCallbackReturn.SUCCESS

    def _next(self) -> Stamped | Stale | Exception | None:
        """Take the next observation, why there is none, or None; called with the lock held."""
        if not self.due:
            return None
        self.due = False
        try:
            if self.trigger == 'rate':
                return self.assembler.latest(self._now())
            stamped = self.assembler.complete()
            return stamped and (self.assembler.stale(self._now()) or stamped)
        except Exception as error:  # a message that does not make sense
            return error

    def _act(self, stamped: Stamped, taken: int, restart: str | None) -> None:
        policy = self.policy
        assert policy is not None
        begun = time.monotonic()
        if restart is not None:
            policy.reset(restart)
        decision = policy.act(stamped.observation)
        self.inference_ms.append(1e3 * (time.monotonic() - begun))
        state = stamped.observation.state
        targets = self.space.to_targets(decision.action, state)
        stamp = stamped.time if self.get_parameter('stamp_commands').value else 0
        with self.lock:
            if not self.running:
                return
            now = self._now()
            if (now - taken) / 1e9 > self.contract.safety.watchdog:
                self._refuse(f'inference took {(now - taken) / 1e9:.2f} s')
                return
            safe = self.safety.apply(targets, state[self.space.state_index])
            self.problem, self.refusing, self.acted = '', False, now
            self._publish_command(safe, stamp)
        self._publish_decision(decision)

    def _refuse(self, problem: str) -> None:
        """Hold once when the policy cannot act, and say why."""
        with self.lock:
            self.problem = problem
            self.followed = None  # what it saw before is the past of another motion
            if self.refusing:
                return  # holding again and again would let the arm creep
            self.refusing = True
            self.hold()
        self.get_logger().warning(f'not acting: {problem}')

    def _publish_command(self, targets: np.ndarray, stamp: int) -> None:
        message = fill_command(
            self.command_class(),
            JointTrajectoryPoint(),
            self.contract.action,
            targets,
            self.contract.period,
            stamp,
        )
        self.commands.publish(message)

    def _publish_decision(self, decision: Decision) -> None:
        self.bins.publish(Int32MultiArray(data=[int(b) for b in decision.bins]))
        if decision.values is not None and self.get_parameter('publish_values').value:
            rows, columns = decision.values.shape
            message = Float32MultiArray(data=decision.values.ravel().tolist())
            message.layout.dim = [
                MultiArrayDimension(label='dimension', size=rows, stride=rows * columns),
                MultiArrayDimension(label='bin', size=columns, stride=columns),
            ]
            self.values.publish(message)

    def _measured(self) -> np.ndarray | None:
        if self.newest_state is None:
            return None
        try:
            positions = joint_positions(self.newest_state)
            return np.array([positions[joint] for joint in self.contract.action.joints])
        except (ValueError, KeyError):
            return None

    def _now(self) -> int:
        return int(self.get_clock().now().nanoseconds)


def make() -> PolicyNode:
    """Build the node and start it when `autostart` is set."""
    node = PolicyNode()
    if node.get_parameter('autostart').value:
        node.start()
    return node


def main() -> None:
    """Run the node."""
    sys.exit(run_node(make, PolicyNode.disarm))


if __name__ == '__main__':
    main()
