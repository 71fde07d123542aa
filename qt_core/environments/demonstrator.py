# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A scripted expert for the tabletop arm, as imperfect as one asks it to be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qt_core.configuration import ConfigurationError
from qt_core.contract import RobotContract

# Lengths of config/robots/tabletop_arm.urdf, m.
SHOULDER_HEIGHT = 0.13
UPPER_ARM = 0.28
FOREARM = 0.26
HAND = 0.14  # wrist_1 to fingertips
BLOCK_SIZE = 0.06
PRESS = 0.02  # how far below the block's top the fingertips aim, m
HOVER = 0.06  # highest approach above the block's top, m
SLOPE = 1.5  # of the funnel that leads down to the block
GAIN = 0.4  # share of the remaining joint error removed per step; fewer jumps to the limits


class Demonstrator:
    """Touches the named block from above, down a funnel around it.

    Args:
        contract: The arm's contract; `delta` mode.
        noise: Between 0 (no mistake) and 1. The person mistakes the block with probability
            noise/6, and each step begins a slip, one to four steps of a random motion, with
            probability noise/3.
    """

    def __init__(self, contract: RobotContract, *, noise: float = 0.0) -> None:
        if contract.action.mode != 'delta':
            raise ConfigurationError(f'action.mode is {contract.action.mode!r}, expected delta')
        self.contract = contract
        self.noise = noise
        self.low = np.array(contract.action.low)
        self.high = np.array(contract.action.high)

    def reset(self, instruction: str, blocks: Mapping[str, NDArray[Any]], seed: int) -> None:
        """Aim at the block whose colour the sentence names; `seed` determines the mistakes.

        Raises:
            ConfigurationError: The sentence names none of the blocks.
        """
        words = instruction.lower().replace('.', ' ').split()
        named = [colour for colour in blocks if colour in words]
        if not named:
            raise ConfigurationError(
                f"instruction '{instruction}' names none of {', '.join(blocks)}"
            )
        self.random = np.random.default_rng(seed)
        self.aim = np.array(blocks[named[0]], np.float64)
        if self.random.random() < self.noise / 6:
            self.aim[:] = blocks[str(self.random.choice([c for c in blocks if c != named[0]]))]
        self.slip_steps = 0

    def act(self, state: NDArray[Any]) -> NDArray[np.float64]:
        """Choose the next joint deltas (N,) in state (S,), rad."""
        if self.slip_steps == 0 and self.random.random() < self.noise / 3:
            self.slip_steps = int(self.random.integers(1, 5))
            self.slip = self.random.uniform(self.low, self.high)
            self.slip[-1] = 0.0
        if self.slip_steps > 0:
            self.slip_steps -= 1
            return self.slip
        distance = np.hypot(*(fingertip(state)[:2] - self.aim[:2]))
        height = self.aim[2] + BLOCK_SIZE / 2 + min(SLOPE * distance - PRESS, HOVER)
        goal = joint_pose(np.array([self.aim[0], self.aim[1], height]))
        return np.clip(GAIN * (goal - np.asarray(state, np.float64)), self.low, self.high)


def joint_pose(tip: NDArray[Any]) -> NDArray[np.float64]:
    """Solve for joint positions (7,) with the fingertips at `tip` (3,) m, pointing straight down.

    Points out of reach are answered with the nearest stretched or folded pose.
    """
    radius = float(np.hypot(tip[0], tip[1]))
    height = float(tip[2]) + HAND - SHOULDER_HEIGHT
    distance = np.clip(np.hypot(radius, height), abs(UPPER_ARM - FOREARM), UPPER_ARM + FOREARM)
    cosine = (distance**2 - UPPER_ARM**2 - FOREARM**2) / (2 * UPPER_ARM * FOREARM)
    elbow = np.arccos(np.clip(cosine, -1, 1))
    lift = np.arctan2(radius, height) - np.arctan2(
        FOREARM * np.sin(elbow), UPPER_ARM + FOREARM * np.cos(elbow)
    )
    pan = np.arctan2(tip[1], tip[0])
    return np.array([pan, lift, elbow, np.pi - lift - elbow, 0.0, 0.0, 0.0])


def fingertip(state: NDArray[Any]) -> NDArray[np.float64]:
    """Locate the fingertips (3,) m for joint positions (7,), wrist_2 taken as small."""
    pan, lift, elbow, wrist = (float(x) for x in state[:4])
    bends = np.cumsum([lift, elbow, wrist])
    lengths = np.array([UPPER_ARM, FOREARM, HAND])
    radius = float(lengths @ np.sin(bends))
    height = SHOULDER_HEIGHT + float(lengths @ np.cos(bends))
    return np.array([radius * np.cos(pan), radius * np.sin(pan), height])
