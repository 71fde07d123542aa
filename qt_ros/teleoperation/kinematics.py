# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""From a velocity of the tip to joint positions, by mink: differential inverse kinematics."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mink
import mujoco
import numpy as np
from numpy.typing import NDArray

from qt_core.contract import RobotContract
from qt_ros.teleoperation.chain import Chain
from qt_ros.teleoperation.jog import TeleoperationError

SOLVER = 'daqp'
DAMPING = 1e-9  # only for redundant arms; what is badly conditioned is refused instead
ITERATIONS = 6  # Newton's, of one step; two or three are the rule
SHARES = tuple(0.7**i for i in range(10))  # of a step, tried in this order
ACCURACY = 1e-3  # of a step, in position and direction
ARM = 0.3  # m; a rotation of the tip by 1 rad counts as much as this
FREE_ORIENTATION = 1e-3  # cost of turning the tip of an arm that cannot hold its orientation


@dataclass(frozen=True)
class Motion:
    """One step.

    Attributes:
        positions: (N,) of every commanded joint, rad or m.
        share: Share of the wanted step that was possible, 0 to 1.
    """

    positions: NDArray[np.float64]
    share: float


class Kinematics:
    """Moves the tip of an arm along a straight line, turning it only where that is wanted.

    A step that the arm cannot make within its limits is made shorter, never another one: next to
    a singularity and at a joint's limit the tip slows down and stands. With fewer than six joints
    between base and tip the orientation follows as the arm allows.

    Args:
        urdf: The robot's URDF file.
        tip: Link to move.
        contract: Commanded joints and their limits.

    Attributes:
        chain: The joints that move the tip.

    Raises:
        TeleoperationError: The URDF does not fit.
    """

    def __init__(self, urdf: str | Path, tip: str, contract: RobotContract) -> None:
        joints, safety = contract.action.joints, contract.safety
        self.chain = Chain.load(urdf, tip, joints)
        self._index = [joints.index(joint) for joint in self.chain.joints]
        self._low = np.maximum(np.array(safety.position_low)[self._index], self.chain.low)
        self._high = np.minimum(np.array(safety.position_high)[self._index], self.chain.high)
        try:
            model = mujoco.MjModel.from_xml_string(self.chain.urdf)
        except ValueError as error:
            raise TeleoperationError(f'{urdf}: {error}') from error
        model.jnt_limited[:] = 0  # `_Box` has the limits
        order = [model.joint(joint).qposadr[0] for joint in self.chain.joints]
        assert order == list(range(model.nv)), order
        self._configuration = mink.Configuration(model)
        self._complete = model.nv >= 6
        cost = ARM if self._complete else FREE_ORIENTATION
        self._task = mink.FrameTask(tip, 'body', 1.0, cost)
        self._box = _Box(model.nv)

    def pose(self, positions: NDArray[Any]) -> NDArray[np.float64]:
        """Give the pose (4, 4) of the tip in the base's frame at positions (N,)."""
        self._configuration.update(np.asarray(positions, np.float64)[self._index])
        return np.asarray(self._tip().as_matrix(), np.float64)

    def move(
        self,
        positions: NDArray[Any],
        linear: NDArray[Any],
        angular: NDArray[Any],
        largest: NDArray[Any],
    ) -> Motion:
        """Make a step.

        Args:
            positions: (N,) of every commanded joint to start from, rad or m.
            linear: (3,) Displacement of the tip along the base's axes, m.
            angular: (3,) Rotation of the tip about the base's axes, rad.
            largest: (N,) Largest change of each joint, rad or m.
        """
        start = np.asarray(positions, np.float64)
        begin = start[self._index]
        self._box.low = np.maximum(-largest[self._index], np.minimum(self._low - begin, 0.0))
        self._box.high = np.minimum(largest[self._index], np.maximum(self._high - begin, 0.0))
        self._configuration.update(begin)
        tip = self._tip()
        for share in SHARES:
            turn = mink.SO3.exp(share * np.asarray(angular, np.float64))
            target = mink.SE3.from_rotation_and_translation(
                turn @ tip.rotation(), tip.translation() + share * np.asarray(linear, np.float64)
            )
            size = share * max(np.linalg.norm(linear), ARM * np.linalg.norm(angular))
            reached = self._reach(begin, target, ACCURACY * float(size))
            if reached is not None:
                moved = start.copy()
                moved[self._index] = reached
                return Motion(moved, share)
        return Motion(start, 0.0)

    def _tip(self) -> mink.SE3:
        return self._configuration.get_transform_frame_to_world(self.chain.tip, 'body')

    def _reach(
        self, begin: NDArray[np.float64], target: mink.SE3, tolerance: float
    ) -> NDArray[np.float64] | None:
        self._configuration.update(begin)
        self._task.set_target(target)
        for _ in range(ITERATIONS):
            self._box.moved = self._configuration.q - begin
            try:
                velocity = mink.solve_ik(
                    self._configuration,
                    [self._task],
                    1.0,
                    SOLVER,
                    damping=DAMPING,
                    limits=[self._box],
                )
            except mink.NoSolutionFound:
                return None
            self._configuration.integrate_inplace(velocity, 1.0)
            error = self._task.compute_error(self._configuration)
            turned = ARM * np.linalg.norm(error[3:]) if self._complete else 0.0
            if max(np.linalg.norm(error[:3]), turned) <= tolerance:
                reached = self._configuration.q
                return np.clip(reached, begin + self._box.low, begin + self._box.high)
        return None


class _Box(mink.Limit):
    """Keeps every joint between bounds of its displacement since the step began."""

    def __init__(self, joints: int) -> None:
        self.low, self.high, self.moved = (np.zeros(joints) for _ in range(3))
        self._matrix = np.vstack([np.eye(joints), -np.eye(joints)])

    def compute_qp_inequalities(
        self, configuration: mink.Configuration, dt: float
    ) -> mink.Constraint:
        """Bound the displacement of the next iteration."""
        del configuration, dt
        left = np.concatenate([self.high - self.moved, self.moved - self.low])
        return mink.Constraint(self._matrix, np.maximum(left, 0.0))
