# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A person drives: keys, gamepad or leader arm ─▶ ~/command ─▶ guard."""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import rclpy.parameter
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.clock import Clock, ClockType
from rclpy.duration import Duration
from rclpy.node import Node
from sensor_msgs.msg import JointState, Joy
from std_msgs.msg import String
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectoryPoint

from qt_ros.conversions import COMMAND_TYPES, ConversionError, fill_command, joint_positions
from qt_ros.diagnostics import OK, WARN, Status
from qt_ros.nodes import teleop_parameters
from qt_ros.nodes.node_support import (
    COMMAND,
    LATCHED,
    SENSOR,
    declare,
    diagnostic_array,
    load_contract,
    message_class,
    run_node,
)
from qt_ros.nodes.trigger_calls import TriggerCalls
from qt_ros.pose import MeasuredPose
from qt_ros.teleoperation import Deadman, Jog
from qt_ros.teleoperation.keys import COMMANDS, HELP, HELP_WANTED, QUIT, UNKNOWN, Keys
from qt_ros.teleoperation.leader import Leader
from qt_ros.teleoperation.words import answer_line, recorder_status, status_line
from qt_ros.terminal import Keyboard, Screen, keyboard

WATCH_INTERVAL = 0.02  # s between looks at the deadman
STATUS_EVERY = 5  # looks
# A command that is on its way when the guard hands over would take over again.
SETTLING = 0.2  # s
LAST_WORD = 0.5  # s that the last command may take to arrive
ANOTHER_CLOCK = 1e6  # s; joint states this old are stamped by a clock that is not ours
HANDING_OVER = ('guard/policy', 'guard/hold')


def override(name: str, value: Any) -> rclpy.parameter.Parameter:
    """Make a parameter of `TeleopNode`'s `overrides`."""
    return rclpy.parameter.Parameter(name, value=value)


class TeleopNode(Node):
    """Drives while the deadman is held, and not a command longer.

    Args:
        namespace: The robot's.
        overrides: Parameters that win over every other setting of them.
    """

    def __init__(
        self, namespace: str = '', overrides: Sequence[rclpy.parameter.Parameter] = ()
    ) -> None:
        super().__init__('teleop', namespace=namespace, parameter_overrides=list(overrides))
        declare(self, teleop_parameters.PARAMETERS)
        self.contract = contract = load_contract(self)
        tip = teleop_parameters.tip_motion(contract, self._value('urdf'), self._value('tip'))
        self.driver, self.switch = teleop_parameters.devices(self, contract, tip is not None)
        self.jog = Jog(contract, self._value('lead'), tip)
        self.deadman = Deadman()
        self.pose = MeasuredPose(contract)
        self.source = self.problem = self.said = ''
        self.recorder: Any = {}
        self.published = self.stepped = -np.inf
        self.handing_over = ''  # service to call once nothing of us is on its way
        self.leaving = False
        self.looks = 0
        self.command_class = message_class(COMMAND_TYPES[contract.action.type])
        self.commands = self.create_publisher(self.command_class, '~/command', COMMAND)
        self.diagnostics = self.create_publisher(DiagnosticArray, '/diagnostics', 10)
        self.create_subscription(JointState, contract.state.topic, self.on_state, SENSOR, raw=True)
        self.sources = self.create_subscription(String, 'guard/source', self.on_source, LATCHED)
        self.create_subscription(String, 'recorder/status', self.on_recorder, LATCHED)
        self.create_service(Trigger, '~/engage', self.on_engage)
        self.create_service(Trigger, '~/release', self.on_release)
        self.calls = TriggerCalls(self, tuple(COMMANDS.values()), self.on_answer)
        self.stack = contextlib.ExitStack()
        self.keys: Keyboard | None = None
        self.screen: Screen | None = None
        if isinstance(self.driver, Keys):
            self.open_keyboard()
        elif isinstance(self.driver, Leader):
            topic = self._value('leader_topic')
            self.create_subscription(JointState, topic, self.on_leader, SENSOR)
        if not isinstance(self.switch, Keys | Leader):
            self.create_subscription(Joy, 'joy', self.on_joy, SENSOR)
        # Whoever lets go wants the arm to stop, whatever /clock does.
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        rate = self._value('rate') or contract.rate
        self.create_timer(1.0 / rate, self.on_tick, clock=steady)
        self.create_timer(WATCH_INTERVAL, self.on_watch, clock=steady)
        self.create_timer(1.0, self.publish_diagnostics, clock=steady)
        self.tell('teleop ready')

    def open_keyboard(self) -> None:
        """Take over the terminal.

        Raises:
            ValueError: There is no guard, so that no command would arrive.
        """
        patience = self._value('guard_timeout')
        if patience and not self.calls.wait('guard/policy', patience):
            name = self.resolve_topic_name('guard')
            raise ValueError(
                f"no guard '{name}' within {patience:g} s: start `qt-ros up teleop` or "
                '`qt-ros up policy` first'
            )
        self.keys = self.stack.enter_context(keyboard(sys.stdin.fileno()))
        self.deadman.held(False)  # what was typed before is not read
        self.screen = Screen()
        for line in HELP:
            self.screen.say(line)

    def on_state(self, message: bytes) -> None:
        """Store where the arm is."""
        with contextlib.suppress(ConversionError):
            self.pose.push(message, self.get_clock().now().nanoseconds)

    def on_source(self, message: String) -> None:
        """Note who drives; somebody else's decision ends our motion."""
        before, self.source = self.source, message.data
        if before == 'teleop' and self.source != 'teleop':
            self.jog.release()  # without a last word, which would take over again
            self.drop()

    def on_recorder(self, message: String) -> None:
        """Note how the recorder stands."""
        self.recorder = recorder_status(message.data)

    def on_joy(self, message: Joy) -> None:
        """Take the gamepad; a deadman that is let go counts at once."""
        for service in self.switch.take(message.axes, message.buttons, time.monotonic()):
            self.send(service)
        self.on_watch()

    def on_leader(self, message: JointState) -> None:
        """Take the leader arm."""
        try:
            positions = joint_positions(message)
        except ConversionError as error:
            self.tell(f'joint state of the leader ignored: {error}')
            return
        self.driver.take(positions, time.monotonic())

    def on_engage(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        """Answer `~/engage`: the robot follows the leader arm from now on."""
        if not isinstance(self.switch, Leader):
            response.message = 'the deadman of this input is a button or a key; hold that'
            return response
        response.message = self.trouble(time.monotonic())
        response.success = not response.message
        if response.success:
            self.release()
            self.deadman.held(False)
            self.switch.engage()
        return response

    def on_release(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        """Answer `~/release`: stop driving."""
        self.drop()
        response.success = True
        return response

    def on_answer(self, service: str, success: bool, message: str) -> None:
        """Tell how a call went."""
        self.tell(answer_line(service, success, message))

    def on_watch(self) -> None:
        """Look at the keyboard and the deadman; release as soon as it is let go."""
        now = time.monotonic()
        if self.keys is not None and not self.leaving:
            while (key := self.keys.key()) and self.press(key, now):
                pass
        self.problem = self.trouble(now)
        if self.problem:
            self.drop()
        elif not self.deadman.held(self.switch.pressed(now)):
            self.release()
        if self.handing_over and now - self.published > SETTLING:
            self.calls.send(self.handing_over, now)
            self.handing_over = ''
        self.calls.look(now)
        if self.leaving and not self.handing_over and not self.calls.busy:
            signal.raise_signal(signal.SIGINT)
        self.looks += 1
        if self.screen is not None and self.looks % STATUS_EVERY == 0:
            self.screen.show(self.status())

    def on_tick(self) -> None:
        """Command the next target while the deadman is held."""
        now = time.monotonic()
        self.take_parameters()
        measured = self._measured()
        if self.trouble(now) or not self.deadman.held(self.switch.pressed(now)):
            return
        elapsed = min(now - self.stepped, 1e3) if self.jog.driving else self.contract.period
        self.stepped = now
        if self.handing_over:
            self.handing_over = ''
            self.tell('you drive again: not handed over')
        speeds = teleop_parameters.speeds(self, self.contract)
        self.publish(self.driver.step(self.jog, measured, elapsed, speeds))

    def take_parameters(self) -> None:
        """Take the parameters that may be set while it runs."""
        self.jog.lead = self._value('lead')
        if isinstance(self.driver, Keys):
            self.driver.hold = self._value('hold')
        else:
            self.driver.timeout = self.switch.timeout = self._value('command_timeout')

    def press(self, key: str, now: float) -> bool:
        """Take a key; False once it says to quit."""
        what = self.driver.press(key, now)
        if what == QUIT:
            self.leaving = True
            return False
        if what == HELP_WANTED:
            for line in HELP:
                self.tell(line)
        elif what == UNKNOWN and key.strip():
            self.tell(f'{key!r} means nothing; ? tells what does')
        elif what not in ('', UNKNOWN):
            self.send(what)
        return True

    def send(self, service: str) -> None:
        """Call a service of the guard or the recorder; what drives the arm ends our motion."""
        now = time.monotonic()
        if service.startswith('guard/'):
            self.handing_over = ''
            self.drop()
        if service in HANDING_OVER:
            self.handing_over = service
        else:
            self.calls.send(service, now)

    def drop(self) -> None:
        """Stop driving, and want the deadman to be let go before anything moves again."""
        self.deadman.drop()
        self.driver.drop()
        self.switch.drop()
        # Of a switch that is not pressed nothing more is wanted.
        self.deadman.held(self.switch.pressed(time.monotonic()))
        self.release()

    def release(self) -> None:
        """End the motion: a command without positions, which the guard takes for a hold."""
        if not self.jog.driving:
            return
        self.jog.release()
        self.commands.publish(self.command_class())
        self.published = time.monotonic()

    def publish(self, targets: np.ndarray) -> None:
        """Publish a command."""
        self.commands.publish(
            fill_command(
                self.command_class(),
                JointTrajectoryPoint(),
                self.contract.action,
                targets,
                self.contract.period,
            )
        )
        self.published = time.monotonic()

    def trouble(self, now: float) -> str:
        """Say why the arm cannot be driven; '' when it can."""
        if self._measured() is None:
            age = self.pose.age(self.get_clock().now().nanoseconds)
            if age is not None and abs(age) > ANOTHER_CLOCK:
                return 'joint states of another clock: look at --use-sim-time'
            return 'no joint states' if age is None else f'joint state {age:.1f} s old'
        if self.source == 'estop' and self._guarded():
            return 'emergency stop'
        return self.driver.lost(now) or self.switch.lost(now)

    def status(self) -> str:
        """Describe how things stand in one line."""
        trouble = '' if self.problem == 'emergency stop' else self.problem
        if not trouble and self.deadman.dropped:
            trouble = 'let go first'
        if not trouble and self.jog.share < 1.0:
            trouble = f'at a limit or singular: {self.jog.share:.0%}'
        source = self.source if self._guarded() else ''
        return status_line(source, trouble, self.driver.describe(), self.recorder)

    def standing(self) -> str:
        """Say what the deadman does."""
        if self.deadman.dropped:
            return 'the deadman must be let go first'
        return 'driving' if self.jog.driving else 'released'

    def publish_diagnostics(self) -> None:
        """Say how it goes."""
        trouble = self.problem or ('' if self._guarded() else 'there is no guard')
        status = Status(
            'driving',
            WARN if trouble else OK,
            trouble or self.standing(),
            {
                'input': self._value('input'),
                'motion': self.driver.describe(),
                'source': self.source,
                'possible share of the step': f'{self.jog.share:.2f}',
            },
        )
        self.diagnostics.publish(diagnostic_array(self, self.contract.name, [status]))

    def tell(self, line: str) -> None:
        """Tell the person who drives; nothing twice in a row where it is only logged."""
        if self.screen is not None:
            self.screen.say(line)
        elif line != self.said:
            self.get_logger().info(line)
        self.said = line

    def leave(self) -> None:
        """End the motion and give the terminal back: the process is about to end."""
        with self.stack:
            self.drop()
            self.commands.wait_for_all_acked(Duration(seconds=LAST_WORD))
            if self.screen is not None:
                self.screen.say('')

    def _guarded(self) -> bool:
        return self.sources.get_publisher_count() > 0

    def _measured(self) -> np.ndarray | None:
        return self.pose.at(self.get_clock().now().nanoseconds)

    def _value(self, name: str) -> Any:
        return self.get_parameter(name).value


def main() -> None:
    """Run the node."""
    sys.exit(run_node(TeleopNode, TeleopNode.leave))


if __name__ == '__main__':
    main()
