# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The one place where images are resized and joint states ordered and normalised.

The policy node, the converter and the simulator all form observations here, so that what a policy
is trained on is what it sees.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from qt_core.contract import RobotContract, StateContract


class ObservationError(ValueError):
    """Sensor data that does not fit the contract, and where."""


@dataclass(frozen=True)
class Observation:
    """What the robot saw at one moment, in the contract's terms.

    Attributes:
        images: Camera name to (H, W, 3) uint8 RGB, at the contract's size.
        state: (S,) float32 joint positions in the contract's order, rad or m, not normalised.
    """

    images: Mapping[str, NDArray[np.uint8]]
    state: NDArray[np.float32]


def form_observation(
    contract: RobotContract,
    images: Mapping[str, NDArray[np.uint8]],
    positions: Mapping[str, float],
) -> Observation:
    """Form an observation from camera images (any size, RGB) and joint positions by name.

    Raises:
        ObservationError: A camera or joint of the contract is absent, or a value is not finite.
    """
    resized = {}
    for camera in contract.cameras:
        if camera.name not in images:
            raise ObservationError(f"no image of camera '{camera.name}'")
        resized[camera.name] = resize(images[camera.name], camera.height, camera.width)
    missing = [joint for joint in contract.state.joints if joint not in positions]
    if missing:
        raise ObservationError(
            f"joint state lacks '{missing[0]}'; it has {', '.join(positions) or 'no joints'}"
        )
    state = np.array([positions[joint] for joint in contract.state.joints], np.float32)
    if not np.isfinite(state).all():
        joint = contract.state.joints[int(np.flatnonzero(~np.isfinite(state))[0])]
        raise ObservationError(f"position of joint '{joint}' is not finite")
    return Observation(images=resized, state=state)


def resize(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Resize an RGB image (H', W', 3) to (height, width, 3): area when shrinking, else linear.

    Raises:
        ObservationError: The image is not (H', W', 3) uint8 with at least one pixel.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
        raise ObservationError(f'image is {image.shape} {image.dtype}, expected (H, W, 3) uint8')
    if image.shape[:2] == (height, width):
        return np.ascontiguousarray(image)
    shrinking = height <= image.shape[0] and width <= image.shape[1]
    interpolation = cv2.INTER_AREA if shrinking else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, (width, height), interpolation=interpolation), np.uint8)


def normalise_state(contract: StateContract, state: NDArray[Any]) -> NDArray[np.float32]:
    """Scale joint positions (..., S) so that the contract's low..high becomes -1..1."""
    low, high = np.array(contract.low), np.array(contract.high)
    return np.asarray(2 * (state - low) / (high - low) - 1, np.float32)
