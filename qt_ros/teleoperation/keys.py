# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Driving by the keys of a terminal, which does not say when a key is let go."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qt_ros.teleoperation.jog import Jog, Speeds, Wanted

HELP = (
    'i k or arrows up down: forward and back (joint: more, less)   '
    'j l or left right: left, right (joint: previous, next)   u o or page up down: up, down',
    'I K J L U O: turn the tip   [ ] gripper   1-9 joint   c joint, base or tip   + - speed',
    'SPACE E-STOP   E release it   h hold   p the policy drives   m I drive   '
    's start  y success  f failure  t timeout  d discard  r redo  q quit  ? help',
)
COMMANDS = {  # key -> the service that it calls
    ' ': 'guard/estop',
    'E': 'guard/estop_reset',
    'h': 'guard/hold',
    'p': 'guard/policy',
    'm': 'guard/teleop',
    's': 'recorder/start',
    'y': 'recorder/success',
    'f': 'recorder/failure',
    't': 'recorder/timeout',
    'd': 'recorder/discard',
    'r': 'recorder/redo',
}
QUIT, HELP_WANTED, UNKNOWN = 'quit', 'help', 'unknown'
OTHERS = {'q': QUIT, '\x04': QUIT, '?': HELP_WANTED}
ALIASES = {
    'up': 'i',
    'down': 'k',
    'left': 'j',
    'right': 'l',
    'page_up': 'u',
    'page_down': 'o',
    '=': '+',
    '_': '-',
}
TIP = {  # key -> what it moves: 0 to 2 along x, y, z; 3 to 5 about them; and which way
    'i': (0, 1),
    'k': (0, -1),
    'j': (1, 1),
    'l': (1, -1),
    'u': (2, 1),
    'o': (2, -1),
    'I': (4, 1),
    'K': (4, -1),
    'J': (5, 1),
    'L': (5, -1),
    'U': (3, 1),
    'O': (3, -1),
}
GRIPPER = {'[': -1, ']': 1}
JOINT = {'i': 1, 'k': -1}
NEXT_JOINT = {'j': -1, 'l': 1}
FASTER, SLOWEST, FASTEST = 1.25, 0.05, 2.0


class Keys:
    """Turns keys into motion: a key acts for `hold` seconds after it came last.

    That is the deadman switch. A key that is kept pressed comes again and again, once its
    repetition begins: a short press moves the arm a little, for `hold`; a long one does so, may
    pause until the terminal repeats, and then goes on until `hold` after the last repetition.

    Args:
        joints: Names of the commanded joints.
        gripper: Name of the gripper's joint; '' when there is none.
        tip: Whether the tip can be moved, not only single joints.
        hold: Seconds.

    Attributes:
        mode: `joint`, or the frame whose axes the tip is moved along: `base`, `tip`.
        joint: Index of the joint that `i` and `k` move.
        scale: Factor of every speed.
    """

    def __init__(
        self, joints: Sequence[str], gripper: str, *, tip: bool, hold: float = 0.3
    ) -> None:
        self.hold = hold
        self.modes = ('joint', 'base', 'tip') if tip else ('joint',)
        self.mode = 'base' if tip else 'joint'
        self.joint = 0
        self.scale = 1.0
        self._joints = tuple(joints)
        self._gripper = self._joints.index(gripper) if gripper else None
        self._live: dict[tuple[str, int], tuple[int, float]] = {}

    def press(self, key: str, now: float) -> str:
        """Take a key.

        Args:
            key: As `qt_ros.terminal.Keyboard` gives it.
            now: Monotonic time, s.

        Returns:
            What is left to do: a service to call, `QUIT`, `HELP_WANTED`, `UNKNOWN`, or ''.
        """
        key = ALIASES.get(key, key)
        if key in COMMANDS:
            if COMMANDS[key].startswith('guard/'):
                self.drop()
            return COMMANDS[key]
        if key in OTHERS:
            return OTHERS[key]
        if key == 'c':
            self.mode = self.modes[(self.modes.index(self.mode) + 1) % len(self.modes)]
            self.drop()
        elif key in ('+', '-'):
            factor = FASTER if key == '+' else 1 / FASTER
            self.scale = float(np.clip(self.scale * factor, SLOWEST, FASTEST))
        elif key in '123456789' and int(key) <= len(self._joints):
            self._select(int(key) - 1)
        elif key in GRIPPER and self._gripper is not None:
            self._live['joint', self._gripper] = GRIPPER[key], now + self.hold
        elif self.mode != 'joint' and key in TIP:
            axis, sign = TIP[key]
            self._live['tip', axis] = sign, now + self.hold
        elif self.mode == 'joint' and key in JOINT:
            self._live['joint', self.joint] = JOINT[key], now + self.hold
        elif self.mode == 'joint' and key in NEXT_JOINT:
            self._select((self.joint + NEXT_JOINT[key]) % len(self._joints))
        else:
            return UNKNOWN
        return ''

    def pressed(self, now: float) -> bool:
        """Whether a key acts at `now`, monotonic s."""
        self._live = {what: (sign, end) for what, (sign, end) in self._live.items() if now < end}
        return bool(self._live)

    def lost(self, now: float) -> str:
        """Say why the keyboard cannot be relied on: never."""
        del now
        return ''

    def drop(self) -> None:
        """Forget the keys that act."""
        self._live.clear()

    def wanted(self, speeds: Speeds) -> Wanted:
        """Give the motion of the keys that acted when `pressed` was asked last."""
        joints, tip = np.zeros(len(self._joints)), np.zeros(6)
        speeds = speeds.scaled(self.scale)
        for (kind, index), (sign, _) in self._live.items():
            if kind == 'joint':
                joints[index] = sign * speeds.joints[index]
            else:
                tip[index] = sign * (speeds.linear if index < 3 else speeds.angular)
        frame = 'tip' if self.mode == 'tip' else 'base'
        return Wanted(joints, tip[:3], tip[3:], frame)

    def step(
        self, jog: Jog, measured: NDArray[Any], elapsed: float, speeds: Speeds
    ) -> NDArray[np.float64]:
        """Give the next target (N,); arguments as of `Jog.step`."""
        return jog.step(self.wanted(speeds), measured, elapsed)

    def describe(self) -> str:
        """Say what the keys drive, for the status line."""
        if self.mode != 'joint':
            return f'tip along {self.mode}, speed {self.scale:.0%}'
        number, name = self.joint + 1, self._joints[self.joint]
        return f'joint {number}/{len(self._joints)} {name}, speed {self.scale:.0%}'

    def _select(self, joint: int) -> None:
        if joint != self.joint:
            self._live.pop(('joint', self.joint), None)
        self.joint = joint
        if self.mode != 'joint':
            self.mode = 'joint'
            self.drop()
