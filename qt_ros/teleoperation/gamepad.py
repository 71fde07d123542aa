# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Driving by a gamepad: sensor_msgs/Joy, and which button or stick does what."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qt_ros.teleoperation.jog import Jog, Speeds, TeleoperationError, Wanted

AXIS = re.compile(r'(?P<sign>-?)a(?P<index>\d+)')
BUTTON = re.compile(r'b(?P<button>\d+)|a(?P<axis>\d+)(?P<way>[+-])')
HALF_WAY = 0.5  # where an axis that serves as a button is pressed


def _control(default: str, description: str) -> Any:
    return dataclasses.field(default=default, metadata={'description': description})


@dataclass(frozen=True, kw_only=True)
class Mapping:
    """What the sticks and buttons do, as `joy_node` numbers an Xbox pad.

    An axis is `a0`, or `-a0` the other way around. A button is `b0`, or an axis beyond its middle,
    `a7+` or `a7-`: so are the four ways of a directional pad, and triggers. '' is none.

    Raises:
        TeleoperationError: A text is none of these.
    """

    deadman_button: str = _control('b4', 'Held to drive: the left shoulder button.')
    rotate_button: str = _control('b5', 'Held to turn the tip, or for joints 5 to 8.')
    x_axis: str = _control('a1', 'Forward, or joint 2; turns about y.')
    y_axis: str = _control('a0', 'Left, or joint 1; turns about x.')
    z_axis: str = _control('a4', 'Up, or joint 3.')
    yaw_axis: str = _control('a3', 'Turns about z, or joint 4.')
    gripper_less_button: str = _control('b2', "Moves the gripper's joint down: X.")
    gripper_more_button: str = _control('b3', "Moves the gripper's joint up: Y.")
    mode_button: str = _control('b6', 'Next of joint, base and tip: back.')
    estop_button: str = _control('b1', 'Emergency stop, deadman or not: B.')
    policy_button: str = _control('b7', 'Hands over to the policy: start.')
    start_button: str = _control('a7+', 'recorder/start: directional pad up.')
    success_button: str = _control('a6-', 'recorder/success: directional pad right.')
    failure_button: str = _control('a6+', 'recorder/failure: directional pad left.')
    discard_button: str = _control('a7-', 'recorder/discard: directional pad down.')

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value == '' and field.name not in ('deadman_button', 'estop_button'):
                continue
            axis = field.name.endswith('_axis')
            if not (AXIS if axis else BUTTON).fullmatch(value):
                expected = "'a0' or '-a0'" if axis else "'b0', 'a0+' or 'a0-'"
                raise TeleoperationError(f'{field.name} is {value!r}, expected {expected}')


COMMANDS = {
    'estop_button': 'guard/estop',
    'policy_button': 'guard/policy',
    'start_button': 'recorder/start',
    'success_button': 'recorder/success',
    'failure_button': 'recorder/failure',
    'discard_button': 'recorder/discard',
}


class Gamepad:
    """Turns the state of a gamepad into motion.

    Args:
        joints: Names of the commanded joints.
        gripper: Name of the gripper's joint; '' when there is none.
        tip: Whether the tip can be moved, not only single joints.
        mapping: What does what.
        deadzone: Share of a stick's way that does nothing.
        timeout: Seconds of silence after which the pad counts as lost.

    Attributes:
        mode: As of `Keys`.
    """

    def __init__(
        self,
        joints: Sequence[str],
        gripper: str,
        *,
        tip: bool,
        mapping: Mapping | None = None,
        deadzone: float = 0.1,
        timeout: float = 0.3,
    ) -> None:
        self.mapping = mapping or Mapping()
        self.deadzone, self.timeout = deadzone, timeout
        self.modes = ('joint', 'base', 'tip') if tip else ('joint',)
        self.mode = 'base' if tip else 'joint'
        self._joints = tuple(joints)
        self._gripper = self._joints.index(gripper) if gripper else None
        self._axes: tuple[float, ...] = ()
        self._buttons: tuple[int, ...] = ()
        self._heard: float | None = None
        # What is pressed when we come has not been pressed for us; an emergency stop always is.
        self._before = set(COMMANDS) - {'estop_button'} | {'mode_button'}

    def take(self, axes: Sequence[float], buttons: Sequence[int], now: float) -> list[str]:
        """Take a message's content, received at `now`, monotonic s; give services to call."""
        self._axes, self._buttons = tuple(axes), tuple(buttons)
        self._heard = now
        down = {name for name in (*COMMANDS, 'mode_button') if self._down(name)}
        fresh, self._before = down - self._before, down
        if 'mode_button' in fresh:
            self.mode = self.modes[(self.modes.index(self.mode) + 1) % len(self.modes)]
        return [COMMANDS[name] for name in COMMANDS if name in fresh]

    def pressed(self, now: float) -> bool:
        """Whether the deadman button was held in the last message; see `lost`."""
        del now
        return self._down('deadman_button')

    def lost(self, now: float) -> str:
        """Say why the pad cannot be relied on at `now`, monotonic s; '' when it can."""
        if self._heard is None:
            return 'no message of the gamepad yet'
        silence = now - self._heard
        if silence > self.timeout:
            return f'the gamepad is silent for {silence:.1f} s'
        return '' if all(map(math.isfinite, self._axes)) else 'the gamepad sends no numbers'

    def drop(self) -> None:
        """Nothing to forget: `Deadman` wants the button to be let go."""

    def wanted(self, speeds: Speeds) -> Wanted:
        """Give the motion of the sticks."""
        joints, linear, angular = np.zeros(len(self._joints)), np.zeros(3), np.zeros(3)
        x, y, z, yaw = (self._stick(f'{name}_axis') for name in ('x', 'y', 'z', 'yaw'))
        rotate = self._down('rotate_button')
        if self.mode == 'joint':
            first = 4 if rotate else 0
            sticks = np.array([y, x, z, yaw])[: max(0, len(joints) - first)]
            joints[first : first + 4] = sticks * speeds.joints[first : first + 4]
        elif rotate:
            angular = np.array([y, x, yaw]) * speeds.angular
        else:
            linear = np.array([x, y, z]) * speeds.linear
            angular[2] = yaw * speeds.angular
        if self._gripper is not None:
            way = int(self._down('gripper_more_button')) - int(self._down('gripper_less_button'))
            if way:
                joints[self._gripper] = way * speeds.joints[self._gripper]
        return Wanted(joints, linear, angular, 'tip' if self.mode == 'tip' else 'base')

    def step(
        self, jog: Jog, measured: NDArray[Any], elapsed: float, speeds: Speeds
    ) -> NDArray[np.float64]:
        """Give the next target (N,); arguments as of `Jog.step`."""
        return jog.step(self.wanted(speeds), measured, elapsed)

    def describe(self) -> str:
        """Say what the sticks drive."""
        return 'joints' if self.mode == 'joint' else f'tip along {self.mode}'

    def _stick(self, name: str) -> float:
        match = AXIS.fullmatch(getattr(self.mapping, name))
        if match is None:
            return 0.0
        value = float(np.clip(self._axis(int(match['index'])), -1.0, 1.0))
        value = -value if match['sign'] else value
        beyond = max(0.0, abs(value) - self.deadzone) / (1.0 - self.deadzone)
        return math.copysign(beyond, value)

    def _down(self, name: str) -> bool:
        match = BUTTON.fullmatch(getattr(self.mapping, name))
        if match is None:
            return False
        if match['button'] is not None:
            index = int(match['button'])
            return index < len(self._buttons) and bool(self._buttons[index])
        value = self._axis(int(match['axis']))
        return value > HALF_WAY if match['way'] == '+' else value < -HALF_WAY

    def _axis(self, index: int) -> float:
        value = self._axes[index] if index < len(self._axes) else 0.0
        return value if math.isfinite(value) else 0.0
