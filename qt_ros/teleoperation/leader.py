# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Driving by a leader arm: a small copy of the robot, moved by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qt_core.contract import RobotContract
from qt_ros.teleoperation.jog import Jog, Speeds, TeleoperationError

MODES = ('relative', 'absolute')


class Leader:
    """Turns the joint positions of a leader arm into targets.

    `relative`: the robot moves by as much as the leader has been moved since it was engaged.
    `absolute`: the robot goes to where the leader is, at the jogging speed until it is there, and
    from then on as fast as the contract allows.

    Args:
        contract: Commanded joints and their limits.
        mode: One of `MODES`.
        joints: The leader's joint for each commanded one, '' for one that stays where it is; none
            at all for the same names.
        scale: Factor of each joint, -1 for one that turns the other way; one number for all.
        offset: Added after the factor, rad or m, in `absolute` mode; one number for all.
        timeout: Seconds of silence after which the leader counts as lost.

    Attributes:
        engaged: Whether the robot follows, as far as the leader's own switch goes.

    Raises:
        TeleoperationError: The mode is unknown, or a number of joints is wrong.
    """

    def __init__(
        self,
        contract: RobotContract,
        mode: str = 'relative',
        joints: Sequence[str] = (),
        scale: Sequence[float] = (1.0,),
        offset: Sequence[float] = (0.0,),
        timeout: float = 0.3,
    ) -> None:
        names = contract.action.joints
        if mode not in MODES:
            raise TeleoperationError(f'leader_mode is {mode!r}, expected {" or ".join(MODES)}')
        self.mode, self.timeout = mode, timeout
        self._joints = tuple(joints) if any(joints) else names
        self._scale = _per_joint('leader_scale', scale, len(names))
        self._offset = _per_joint('leader_offset', offset, len(names))
        if len(self._joints) != len(names):
            raise TeleoperationError(
                f'leader_joints is {list(self._joints)}, expected one for each of '
                f'{", ".join(names)}'
            )
        self._low = np.array(contract.safety.position_low)
        self._high = np.array(contract.safety.position_high)
        self._max_step, self._period = np.array(contract.safety.max_step), contract.period
        self._positions: NDArray[np.float64] | None = None
        self._heard = 0.0
        self._problem = 'no joint state of the leader yet'
        self.engaged = False
        self.drop()

    def take(self, positions: Mapping[str, float], now: float) -> None:
        """Take a joint state of the leader, finite, received at `now`, monotonic s."""
        missing = [joint for joint in self._joints if joint and joint not in positions]
        if missing:
            self._problem = f"the leader has no joint '{missing[0]}', only {', '.join(positions)}"
            return
        self._positions = np.array([positions[j] if j else np.nan for j in self._joints])
        self._heard, self._problem = now, ''

    def engage(self) -> None:
        """Begin to follow."""
        self.drop()
        self.engaged = True

    def drop(self) -> None:
        """Follow no more until `engage`."""
        self.engaged = False
        self.begin()

    def begin(self) -> None:
        """Take the next step for the first of a motion."""
        self._origin: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None
        self._caught_up = self.mode == 'relative'

    def pressed(self, now: float) -> bool:
        """Whether the leader is engaged."""
        del now
        return self.engaged

    def lost(self, now: float) -> str:
        """Say why the leader cannot be relied on at `now`, monotonic s; '' when it can."""
        silence = now - self._heard
        if not self._problem and silence > self.timeout:
            return f'the leader arm is silent for {silence:.1f} s'
        return self._problem

    def step(
        self, jog: Jog, measured: NDArray[Any], elapsed: float, speeds: Speeds
    ) -> NDArray[np.float64]:
        """Give the next target (N,); arguments as of `Jog.step`."""
        if self._positions is None:
            raise TeleoperationError(self._problem)
        if self._origin is None or not jog.driving:
            self.begin()
            self._origin = self._positions, np.array(measured, np.float64)
        leader_then, robot_then = self._origin
        if self.mode == 'relative':
            targets = robot_then + self._scale * (self._positions - leader_then)
        else:
            targets = self._scale * self._positions + self._offset
        targets = np.clip(np.where(np.isnan(targets), robot_then, targets), self._low, self._high)
        elapsed = float(np.clip(elapsed, 0.0, 2 * self._period))
        largest = self._max_step * elapsed / self._period
        if self._caught_up:
            return jog.follow(targets, measured, largest)
        slow = np.minimum(speeds.joints * elapsed, largest)
        reached = jog.follow(targets, measured, slow)
        self._caught_up = bool((np.abs(reached - targets) <= slow).all())
        return reached

    def describe(self) -> str:
        """Say how the robot follows."""
        if not self._caught_up:
            return 'going to the leader arm'
        return f'following the leader arm, {self.mode}'


def _per_joint(name: str, values: Sequence[float], joints: int) -> NDArray[np.float64]:
    if len(values) not in (1, joints) or not np.isfinite(values).all():
        raise TeleoperationError(
            f'{name} is {list(values)}, expected one finite number, or {joints}'
        )
    return np.broadcast_to(np.asarray(values, np.float64), joints).copy()
