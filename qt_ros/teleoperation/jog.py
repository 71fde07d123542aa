# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""From what a person wants of the arm to the positions it is told."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from qt_core.contract import RobotContract

FRAMES = ('base', 'tip')


class TeleoperationError(ValueError):
    """Something about a device or a robot description that teleoperation cannot use."""


@dataclass(frozen=True)
class Wanted:
    """The motion that a person asks for right now.

    Attributes:
        joints: (N,) velocity of each commanded joint, rad/s or m/s.
        linear: (3,) velocity of the tip, m/s.
        angular: (3,) angular velocity of the tip, rad/s.
        frame: Whose axes `linear` and `angular` are along: `base` or `tip`.

    Raises:
        TeleoperationError: A value is not finite, or the frame is unknown.
    """

    joints: NDArray[np.float64]
    linear: NDArray[np.float64] = field(default_factory=lambda: np.zeros(3))
    angular: NDArray[np.float64] = field(default_factory=lambda: np.zeros(3))
    frame: str = 'base'

    def __post_init__(self) -> None:
        for name in ('joints', 'linear', 'angular'):
            if not np.isfinite(getattr(self, name)).all():
                values = np.asarray(getattr(self, name)).tolist()
                raise TeleoperationError(f'{name} is {values}, expected finite velocities')
        if self.frame not in FRAMES:
            raise TeleoperationError(f'frame is {self.frame!r}, expected {" or ".join(FRAMES)}')

    @property
    def moves_tip(self) -> bool:
        """Whether the tip is asked to move, other than by single joints."""
        return bool(self.linear.any() or self.angular.any())


@dataclass(frozen=True)
class Speeds:
    """How fast full speed is.

    Attributes:
        joints: (N,) of each commanded joint, rad/s or m/s.
        linear: Of the tip, m/s.
        angular: Of the tip, rad/s.
    """

    joints: NDArray[np.float64]
    linear: float
    angular: float

    @classmethod
    def of(cls, contract: RobotContract, joint: float, linear: float, angular: float) -> Speeds:
        """Make them; `joint` is a share of what the contract's `max_step` allows, 0 to 1."""
        largest = np.array(contract.safety.max_step) * contract.rate
        return cls(joint * largest, linear, angular)

    def scaled(self, factor: float) -> Speeds:
        """Give all of them multiplied."""
        return Speeds(factor * self.joints, factor * self.linear, factor * self.angular)


class TipMotion(Protocol):
    """What `Jog` needs of `qt_ros.teleoperation.kinematics.Kinematics`."""

    def pose(self, positions: NDArray[Any]) -> NDArray[np.float64]:
        """Give the pose (4, 4) of the tip."""

    def move(
        self,
        positions: NDArray[Any],
        linear: NDArray[Any],
        angular: NDArray[Any],
        largest: NDArray[Any],
    ) -> Any:
        """Make a step; the answer has `positions` (N,) and `share`."""


class Deadman:
    """Whether a person holds the deadman switch, and has pressed it for this very motion.

    After `drop` the switch must be let go before it counts again, so that nothing starts to move
    by itself when a connection, a joint state or the guard comes back. It begins dropped.
    """

    def __init__(self) -> None:
        self._dropped = True

    def held(self, pressed: bool) -> bool:
        """Take the state of the switch; whether the arm may be driven."""
        self._dropped = self._dropped and pressed
        return pressed and not self._dropped

    @property
    def dropped(self) -> bool:
        """Whether the switch must be let go first."""
        return self._dropped

    def drop(self) -> None:
        """Want the switch to be let go."""
        self._dropped = True


class Jog:
    """Integrates what is wanted from the last target, and begins at the measured pose.

    Args:
        contract: Joints and limits.
        lead: How far a target may be ahead of the measured pose, in units of the contract's
            `max_step`: what an arm that lags or is blocked still moves once it is let go.
        tip: Moves the tip; None where only joints can be driven.

    Attributes:
        share: Share of the last step of the tip that was possible, 0 to 1.
        driving: Whether there is a last target.
    """

    def __init__(
        self, contract: RobotContract, lead: float = 2.0, tip: TipMotion | None = None
    ) -> None:
        self.lead, self.share = lead, 1.0
        self._tip = tip
        self._period = contract.period
        self._low = np.array(contract.safety.position_low)
        self._high = np.array(contract.safety.position_high)
        self._max_step = np.array(contract.safety.max_step)
        self._last: NDArray[np.float64] | None = None

    @property
    def driving(self) -> bool:
        """Whether it is in the midst of a motion."""
        return self._last is not None

    def release(self) -> None:
        """End the motion: the next one begins at the measured pose."""
        self._last, self.share = None, 1.0

    def step(self, wanted: Wanted, measured: NDArray[Any], elapsed: float) -> NDArray[np.float64]:
        """Give the next target (N,), rad or m.

        Args:
            wanted: Velocities.
            measured: (N,) measured pose, finite.
            elapsed: Seconds since the last step; more than two control periods count as two, and
                the first step of a motion as one at most.

        Raises:
            TeleoperationError: The tip is to be moved without a URDF.
        """
        periods = 1.0 if self._last is None else 2.0
        elapsed = float(np.clip(elapsed, 0.0, periods * self._period))
        last = self._begin(measured)
        largest = self._max_step * elapsed / self._period
        moved, self.share = last, 1.0
        if wanted.moves_tip:
            moved = self._moved_tip(wanted, last, elapsed, largest)
        moved = moved + np.clip(wanted.joints * elapsed, -largest, largest)
        return self._bounded(moved, last, measured)

    def follow(
        self, targets: NDArray[Any], measured: NDArray[Any], largest: NDArray[Any]
    ) -> NDArray[np.float64]:
        """Give the next target (N,) on the way to `targets`.

        Args:
            targets: (N,) where a leader arm is, rad or m, finite.
            measured: (N,) measured pose, finite.
            largest: (N,) Largest change since the last target, rad or m.
        """
        last = self._begin(measured)
        return self._bounded(np.clip(targets, last - largest, last + largest), last, measured)

    def _begin(self, measured: NDArray[Any]) -> NDArray[np.float64]:
        return np.array(measured, np.float64) if self._last is None else self._last

    def _moved_tip(
        self, wanted: Wanted, last: NDArray[np.float64], elapsed: float, largest: NDArray[Any]
    ) -> NDArray[np.float64]:
        if self._tip is None:
            raise TeleoperationError('the tip cannot be moved without urdf and tip')
        turn = self._tip.pose(last)[:3, :3] if wanted.frame == 'tip' else np.eye(3)
        motion = self._tip.move(
            last, turn @ wanted.linear * elapsed, turn @ wanted.angular * elapsed, largest
        )
        self.share = float(motion.share)
        return np.asarray(motion.positions, np.float64)

    def _bounded(
        self, moved: NDArray[Any], last: NDArray[np.float64], measured: NDArray[Any]
    ) -> NDArray[np.float64]:
        # As the filter has it: back from outside of a limit, but never further out.
        moved = np.clip(moved, np.minimum(self._low, last), np.maximum(self._high, last))
        advance, lead = moved - last, self.lead * self._max_step
        ahead = np.abs(moved - measured) > np.maximum(np.abs(last - measured), lead)
        if ahead.any():
            # All joints by the same share, so that a tip does not leave its line.
            room = lead - np.sign(advance) * (last - measured)
            share = np.min(np.maximum(room, 0.0)[ahead] / np.abs(advance)[ahead])
            moved = last + min(1.0, float(share)) * advance
        self._last = moved
        return moved
