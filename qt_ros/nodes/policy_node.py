# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Runs a trained policy on a robot: observations in, safe joint commands out."""

from __future__ import annotations

import gc
import json
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
from rcl_interfaces.msg import SetParametersResult
from rclpy.clock import Clock, ClockType
from rclpy.duration import Duration
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from std_msgs.msg import Float32MultiArray, Float64, Int32MultiArray, MultiArrayDimension, String
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectoryPoint

from qt_core.contract import RobotContract
from qt_core.policies import Decision, load_policy
from qt_ros.controller import Controller
from qt_ros.conversions import COMMAND_TYPES, ConversionError, fill_command
from qt_ros.diagnostics import OK, WARN, Status
from qt_ros.graph_check import check_contract, needs
from qt_ros.nodes.graph_view import snapshot
from qt_ros.nodes.node_support import (
    COMMAND,
    LATCHED,
    QUIET,
    QUIET_PUBLISHER,
    SENSOR,
    Parameter,
    declare,
    diagnostic_array,
    message_class,
    run_node,
    subscribe_instruction,
)
from qt_ros.settings import Settings
from qt_ros.streams import Stream, observed_streams

DYNAMIC = (
    Parameter('checkpoint', '', 'Checkpoint folder; another one counts once configured anew.'),
    Parameter('rate', 0.0, "Control steps per second, at most the contract's; 0: those.", 0, 1e3),
    Parameter('guidance', 1.0, 'Classifier-free guidance; 1 is none.', 0, 20),
    Parameter('beam', 1, 'Prefixes kept at each action dimension; 1 is greedy.', 1, 256),
    Parameter('exploration', 0.0, 'Probability of a random bin, per dimension.', 0, 1),
    Parameter('temperature', 0.0, 'Of drawing bins by their probability; 0 is greedy.', 0, 10),
    Parameter('target_return', 1.0, 'Return asked for, in multiples of the best seen.', 0, 10),
    Parameter('prompted', False, 'Show the policy a successful episode before it acts.'),
    Parameter(
        'frozen_after',
        1.0,
        'Seconds of identical images after which a camera is frozen; 0 is never.',
        0,
        3600,
    ),
    Parameter('reset_on_instruction', True, 'Forget what was seen when the sentence changes.'),
    Parameter('publish_values', False, 'Publish the value of every bin on ~/values.'),
)
READ_ONLY = (
    Parameter('contract', '', "Contract file that must equal the checkpoint's; '' for any."),
    Parameter('device', 'auto', 'Torch device; auto takes a GPU when there is one.'),
    Parameter('threads', 1, 'Torch threads on a CPU.', 1, 256),
    Parameter('compile', False, 'Compile the network while configuring; CUDA graphs on a GPU.'),
    Parameter(
        'trigger', 'rate', 'Act at the contract rate (rate) or once per image (observation).'
    ),
    Parameter('stamp_commands', False, 'Stamp commands with the observation they answer.'),
    Parameter('chunk_size', 1, 'Control steps decided by one inference.', 1, 256),
    Parameter('n_action_steps', 1, 'Control steps from one inference to the next.', 1, 256),
    Parameter('guarded', False, 'Command through the guard, on ~/command, and while it says so.'),
    Parameter('autostart', True, 'Configure and activate at start.'),
)
SETTINGS = tuple(Settings.__dataclass_fields__)
SWITCH_INTERVAL = 0.0005  # s; with Python's 5 ms the two threads wait for each other


class PolicyNode(LifecycleNode):
    """Configure loads the checkpoint, activate arms, deactivate holds, cleanup frees."""

    def __init__(self) -> None:
        super().__init__('policy')
        declare(self, [replace(parameter, read_only=False) for parameter in DYNAMIC])
        declare(self, READ_ONLY)
        self.controller: Controller | None = None
        self.commands: Any = None
        self.entities: list[tuple[Callable[[Any], Any], Any]] = []
        self.latched = False  # by an e-stop, which another checkpoint does not undo
        self.failure = ''
        self.findings: list[str] = []  # what the graph lacked at the last look
        self.said: set[str] = set()  # of it, what was logged
        self.add_on_set_parameters_callback(self.on_asked)
        self.add_post_set_parameters_callback(self.on_set)

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
        """Hold, and stop acting."""
        if self.controller is not None:
            self.controller.deactivate()
        if self.commands is not None:
            # The process may be about to end, and a command still on its way with it.
            self.commands.wait_for_all_acked(Duration(seconds=0.5))

    def end(self) -> None:
        """Hold, and end the process at once if an inference hangs.

        Python would end with a crash while a thread is inside of torch.
        """
        self.disarm()
        if self.controller is not None and not self.controller.close():
            self.get_logger().error('an inference hangs: ending without it')
            sys.stderr.flush()
            os._exit(0)

    def on_asked(self, parameters: Sequence[Any]) -> SetParametersResult:
        """Refuse parameters that do not go together."""
        try:
            settings = self._settings({p.name: p.value for p in parameters})
            if self.controller is not None:
                settings.require_fits(self.controller.policy)
        except ValueError as error:
            return SetParametersResult(successful=False, reason=str(error))
        return SetParametersResult(successful=True)

    def on_set(self, parameters: Sequence[Any]) -> None:
        """Apply what was set."""
        if self.controller is not None:
            self.controller.adjust(self._settings({}))

    def on_message(self, stream: Stream, message: bytes) -> None:
        """Store a sensor message."""
        assert self.controller is not None
        try:
            self.controller.push(stream, message)
        except ConversionError as error:
            self.get_logger().error(
                f"'{stream.topic}' ignored: {error}", throttle_duration_sec=10.0
            )

    def on_reset(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        """Answer `~/reset`: forget the past."""
        assert self.controller is not None
        sentence = self.controller.reset()
        response.success = bool(sentence)
        response.message = json.dumps({'instruction': sentence})
        return response

    def on_start(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        """Answer `~/start`: act again."""
        assert self.controller is not None
        response.message = self.controller.start()
        response.success = not response.message
        return response

    def on_diagnostics(self) -> None:
        """Publish how the policy is doing, and log what the graph lacks when that changes."""
        assert self.controller is not None
        contract, status = self.controller.contract, self.controller.status()
        topics = needs(contract, self._resolve)
        found = check_contract(
            contract, self._resolve, snapshot(self, topics, self.controller.joints())
        )
        commands = self.resolve_topic_name(self.command_topic)
        for finding in found:
            if finding.level == 'fail' and finding.subject == commands and status.level == OK:
                status = Status(status.name, WARN, str(finding), status.values)
        # A sentence may be said once, by someone who leaves.
        given = self._resolve(contract.instruction.topic) if status.values['instruction'] else ''
        findings = [str(f) for f in found if f.level != 'ok' and f.subject != given]
        for line in findings:
            # Not of what is discovered a moment later.
            if line in self.findings and line not in self.said:
                self.get_logger().warning(line)
                self.said.add(line)
        self.said &= set(findings)
        self.findings = findings
        values = {
            **status.values,
            'graph': '; '.join(findings) or 'complete',
            'checkpoint': self.checkpoint,
            **self._memory(),
        }
        status = Status(status.name, status.level, status.message, values)
        self.diagnostics.publish(diagnostic_array(self, contract.name, [status]))

    def _configure(self) -> None:
        import torch

        settings = self._settings({})
        torch.set_num_threads(self._value('threads'))
        self.checkpoint = self._value('checkpoint')
        if not self.checkpoint:
            raise ValueError('checkpoint is empty: give the folder of a trained policy')
        given = self._value('contract')
        policy = load_policy(
            self.checkpoint,
            self._value('device'),
            compile=self._value('compile'),
            body=RobotContract.load(given) if given else '',
        )
        settings.require_fits(policy)
        self.controller = Controller(
            policy,
            settings,
            now=lambda: int(self.get_clock().now().nanoseconds),
            command=self._publish_command,
            hold=self._publish_hold,
            decided=self._publish_decision,
            warn=self.get_logger().warning,
        )
        if self.latched:
            self.controller.estop()
        self.controller.open()
        self._join(self.controller)

    def _join(self, controller: Controller) -> None:
        """Join the graph."""
        contract = controller.contract
        action = contract.action
        self.command_class = message_class(COMMAND_TYPES[action.type])
        self.command_topic = '~/command' if self._value('guarded') else action.topic
        self.commands = self._publisher(self.command_class, self.command_topic, COMMAND)
        self.bins = self._publisher(Int32MultiArray, '~/bins', 10)
        self.values = self._publisher(Float32MultiArray, '~/values', 10)
        self.diagnostics = self._publisher(DiagnosticArray, '/diagnostics', 10)
        subscriptions = [
            self.create_subscription(
                message_class(stream.type),
                stream.topic,
                partial(self.on_message, stream),
                SENSOR,
                raw=True,  # decoded only when it is acted on, and then without copying pixels
                event_callbacks=QUIET,
            )
            for stream in observed_streams(contract)
        ]
        subscriptions += subscribe_instruction(
            self, contract.instruction.topic, lambda message: controller.instruct(message.data)
        )
        subscriptions.append(
            self.create_subscription(
                Float64,
                'reward',
                lambda message: controller.reward(message.data),
                10,
                event_callbacks=QUIET,
            )
        )
        if self._value('guarded'):
            subscriptions.append(
                self.create_subscription(
                    String,
                    'guard/source',
                    lambda message: controller.drives(message.data),
                    LATCHED,
                )
            )
        self.entities += [(self.destroy_subscription, s) for s in subscriptions]
        for name, answer in {
            'start': self.on_start,
            'stop': _doing(controller.stop),
            'reset': self.on_reset,
            'estop': _doing(controller.estop),
            'estop_reset': _doing(controller.estop_reset),
        }.items():
            service = self.create_service(Trigger, f'~/{name}', answer)
            self.entities.append((self.destroy_service, service))
        self._every(1.0, self.on_diagnostics)
        self._every(contract.period / 2, controller.watch)
        if controller.settings.chunk_size > 1:
            self._every(contract.period / 4, controller.play)

    def _arm(self) -> None:
        assert self.controller is not None
        # What was loaded stays: going through it again and again would take longer than a step.
        gc.collect()
        gc.freeze()
        self.controller.activate()
        self.get_logger().info(f'policy ready: {self.checkpoint}')

    def _free(self) -> None:
        self.disarm()
        if self.controller is not None:
            self.latched = self.controller.safety.stopped
            self.controller.close()
        self.controller = self.commands = None
        for destroy, entity in self.entities:
            destroy(entity)
        self.entities = []
        gc.unfreeze()
        gc.collect()

    def _transition(self, change: Callable[[], None]) -> TransitionCallbackReturn:
        try:
            change()
        except Exception as error:  # rclpy would swallow it
            self.failure = ' '.join(str(error).split())
            if not isinstance(error, ValueError):
                self.get_logger().error(traceback.format_exc())
            self.get_logger().error(self.failure)
            return TransitionCallbackReturn.FAILURE
        return TransitionCallbackReturn.SUCCESS

    def _publish_command(self, targets: Any, stamp: int) -> None:
        assert self.controller is not None
        contract = self.controller.contract
        message, point = self.command_class(), JointTrajectoryPoint()
        self.commands.publish(
            fill_command(message, point, contract.action, targets, contract.period, stamp)
        )

    def _publish_hold(self, positions: Any) -> None:
        if self._value('guarded'):
            # The guard knows better where the arm is, and holds it there however far it lags.
            self.commands.publish(self.command_class())
        else:
            self._publish_command(positions, 0)

    def _publish_decision(self, decision: Decision) -> None:
        self.bins.publish(Int32MultiArray(data=[int(b) for b in decision.bins]))
        if decision.values is not None and self._value('publish_values'):
            rows, columns = decision.values.shape
            message = Float32MultiArray(data=decision.values.ravel().tolist())
            message.layout.dim = [
                MultiArrayDimension(label='dimension', size=rows, stride=rows * columns),
                MultiArrayDimension(label='bin', size=columns, stride=columns),
            ]
            self.values.publish(message)

    def _publisher(self, kind: Any, topic: str, qos: Any) -> Any:
        publisher = self.create_publisher(kind, topic, qos, event_callbacks=QUIET_PUBLISHER)
        self.entities.append((self.destroy_publisher, publisher))
        return publisher

    def _every(self, seconds: float, callback: Callable[[], None]) -> None:
        """Call back by a clock that neither jumps nor stands still."""
        clock = Clock(clock_type=ClockType.STEADY_TIME)
        timer = self.create_timer(seconds, callback, clock=clock)
        self.entities.append((self.destroy_timer, timer))

    def _resolve(self, topic: str) -> str:
        assert self.controller is not None
        commands = topic == self.controller.contract.action.topic
        return self.resolve_topic_name(self.command_topic if commands else topic)

    def _memory(self) -> dict[str, str]:
        import torch

        if not torch.cuda.is_initialized():
            return {}
        return {'GPU memory (MiB)': f'{torch.cuda.memory_reserved() / 2**20:.0f}'}

    def _settings(self, changes: dict[str, Any]) -> Settings:
        """Read the settings, with changes that are not made yet.

        Raises:
            ConfigurationError: They do not go together.
        """
        return Settings(**{n: changes.get(n, self._value(n)) for n in SETTINGS})

    def _value(self, name: str) -> Any:
        return self.get_parameter(name).value


def _doing(change: Callable[[], None]) -> Callable[[Any, Any], Trigger.Response]:
    """Make what answers a service that always succeeds."""

    def answer(request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        change()
        response.success = True
        return response

    return answer


def make() -> PolicyNode:
    """Build the node and start it when `autostart` is set."""
    sys.setswitchinterval(SWITCH_INTERVAL)
    node = PolicyNode()
    if node.get_parameter('autostart').value:
        node.start()
    return node


def main() -> None:
    """Run the node."""
    sys.exit(run_node(make, PolicyNode.end))


if __name__ == '__main__':
    main()
