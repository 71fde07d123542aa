# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Messages <-> arrays, for rclpy's message classes and for those of rosbags alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from qt_core.contract import ActionContract

CHANNELS = {'rgb8': 3, 'bgr8': 3, 'rgba8': 4, 'bgra8': 4, 'mono8': 1}
TO_RGB = {
    'bgr8': cv2.COLOR_BGR2RGB,
    'rgba8': cv2.COLOR_RGBA2RGB,
    'bgra8': cv2.COLOR_BGRA2RGB,
    'mono8': cv2.COLOR_GRAY2RGB,
}
COMMAND_TYPES = {
    'joint_trajectory': 'trajectory_msgs/msg/JointTrajectory',
    'multi_array': 'std_msgs/msg/Float64MultiArray',
    'joint_state': 'sensor_msgs/msg/JointState',
}
MAX_IMAGE_BYTES = 256 * 1024 * 1024
PNG, JPEG = b'\x89PNG\r\n\x1a\n', b'\xff\xd8'


class ConversionError(ValueError):
    """A message whose content does not make sense, and what about it."""


def nanoseconds(stamp: Any) -> int:
    """Give a builtin_interfaces/Time in nanoseconds."""
    return int(stamp.sec) * 1_000_000_000 + int(stamp.nanosec)


def set_stamp(stamp: Any, time: int) -> None:
    """Fill a builtin_interfaces/Time (or Duration) from nanoseconds."""
    stamp.sec, stamp.nanosec = divmod(time, 1_000_000_000)


def stream_time(message: Any, received: int, stamp: str = 'header') -> int:
    """Give the time of a message, ns: its header stamp when that is not zero, else `received`.

    Args:
        message: With or without a header.
        received: When it came, ns.
        stamp: `header`, or `receive` to leave the header alone; as contracts have it.
    """
    header = getattr(message, 'header', None) if stamp == 'header' else None
    return (nanoseconds(header.stamp) if header is not None else 0) or received


def image_to_rgb(message: Any, *, depth_range: Sequence[float] | None = None) -> NDArray[np.uint8]:
    """Decode a sensor_msgs Image (8-bit encodings) or CompressedImage (jpeg, png).

    Returns:
        (H, W, 3) RGB.

    Raises:
        ConversionError: The encoding is not supported, or sizes and data disagree.
    """
    if hasattr(message, 'format'):
        return _decode(bytes(message.data), str(message.format))
    encoding = message.encoding
    if encoding not in CHANNELS:
        raise ConversionError(
            f'image encoding is {encoding!r}, expected one of {", ".join(CHANNELS)}'
        )
    height, width, step, channels = message.height, message.width, message.step, CHANNELS[encoding]
    data = np.frombuffer(message.data, np.uint8)
    if not (height and width) or step < width * channels or data.size != height * step:
        raise ConversionError(
            f'image is {width}x{height} {encoding} with step {step} and {data.size} bytes'
        )
    rows = data.reshape(height, step)[:, : width * channels].reshape(height, width, channels)
    if encoding == 'rgb8':
        return rows
    return np.asarray(cv2.cvtColor(np.ascontiguousarray(rows), TO_RGB[encoding]), np.uint8)


def _decode(data: bytes, name: str) -> NDArray[np.uint8]:
    height, width = _coded_size(data)
    if not 0 < height * width <= MAX_IMAGE_BYTES // 3:
        raise ConversionError(
            f'compressed image ({name!r}) is {width}x{height}, expected a jpeg or png of at most '
            f'{MAX_IMAGE_BYTES >> 20} MiB'
        )
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:  # OpenCV gives None for most damaged images and raises for some
        image = None
    if image is None:
        raise ConversionError(f'compressed image ({name!r}) cannot be decoded')
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8)


def _coded_size(data: bytes) -> tuple[int, int]:
    """Read height and width from a jpeg's or png's header; zeros when it is neither."""
    if data.startswith(PNG) and len(data) >= 24:
        return int.from_bytes(data[20:24], 'big'), int.from_bytes(data[16:20], 'big')
    place = 2
    while data.startswith(JPEG) and place + 9 <= len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        if marker == 0xFF:  # padding before a marker
            place += 1
            continue
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # a start of frame
            height, width = data[place + 5 : place + 7], data[place + 7 : place + 9]
            return int.from_bytes(height, 'big'), int.from_bytes(width, 'big')
        place += 2 + int.from_bytes(data[place + 2 : place + 4], 'big')
    return 0, 0


def fill_image(message: Any, image: NDArray[np.uint8], time: int, frame_id: str) -> Any:
    """Fill a sensor_msgs/Image with (H, W, 3) RGB stamped `time` ns."""
    set_stamp(message.header.stamp, time)
    message.header.frame_id = frame_id
    message.height, message.width = image.shape[:2]
    message.encoding = 'rgb8'
    message.step = 3 * image.shape[1]
    message.data = image.tobytes()  # rclpy takes 260 ms for the same as a numpy array
    return message


def joint_positions(message: Any) -> dict[str, float]:
    """Read a sensor_msgs/JointState as joint name to position, rad or m.

    Raises:
        ConversionError: It has not one position per name, or one is not finite.
    """
    names, positions = list(message.name), [float(p) for p in message.position]
    if len(names) != len(positions):
        raise ConversionError(f'{len(names)} joint names but {len(positions)} positions')
    for name, position in zip(names, positions, strict=True):
        if not math.isfinite(position):
            raise ConversionError(f"position of joint '{name}' is {position}")
    return dict(zip(names, positions, strict=True))


def command_targets(message: Any, action: ActionContract) -> NDArray[np.float64]:
    """Read a command as target positions in the order of `action.joints`.

    Reads the first point of a JointTrajectory, the positions of a JointState, or a
    Float64MultiArray in the contract's order.

    Raises:
        ConversionError: A joint is absent, a length is wrong, or a value is not finite.
    """
    if action.type == 'multi_array':
        names, values = list(action.joints), list(message.data)
    elif action.type == 'joint_state':
        names, values = list(message.name), list(message.position)
    else:
        if not message.points:
            raise ConversionError('joint trajectory has no point')
        names, values = list(message.joint_names), list(message.points[0].positions)
    if len(names) != len(values):
        raise ConversionError(f'command has {len(values)} values for {len(names)} joints')
    by_name = dict(zip(names, values, strict=True))
    missing = [joint for joint in action.joints if joint not in by_name]
    if missing:
        raise ConversionError(f"command lacks joint '{missing[0]}'; it has {', '.join(names)}")
    targets = np.array([by_name[joint] for joint in action.joints], np.float64)
    if not np.isfinite(targets).all():
        raise ConversionError(f'command is not finite: {targets.tolist()}')
    return targets


def fill_command(
    message: Any,
    point: Any,
    action: ActionContract,
    targets: Sequence[float] | NDArray[np.float64],
    period: float,
    time: int = 0,
) -> Any:
    """Fill a command message of the contract's type.

    Args:
        message: An empty message of type `COMMAND_TYPES[action.type]`.
        point: An empty JointTrajectoryPoint, used by that type only.
        action: The contract's action.
        targets: Target position of each joint, rad or m.
        period: Seconds until the targets should be reached.
        time: Header stamp, ns; 0 means now.
    """
    values = [float(target) for target in targets]
    if action.type == 'multi_array':
        message.data = values
        return message
    set_stamp(message.header.stamp, time)
    if action.type == 'joint_state':
        message.name, message.position = list(action.joints), values
        return message
    point.positions = values
    set_stamp(point.time_from_start, round(period * 1e9))
    message.joint_names, message.points = list(action.joints), [point]
    return message
