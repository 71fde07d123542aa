# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Messages <-> arrays, for rclpy's message classes and for those of rosbags alike."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from qt_core.contract import ActionContract

# Bytes of a pixel, and what OpenCV does to get RGB; None for what needs more than that.
COLOURS: dict[str, tuple[int, int | None]] = {
    'rgb8': (3, None),
    'bgr8': (3, cv2.COLOR_BGR2RGB),
    'rgba8': (4, cv2.COLOR_RGBA2RGB),
    'bgra8': (4, cv2.COLOR_BGRA2RGB),
    'mono8': (1, cv2.COLOR_GRAY2RGB),
    'mono16': (2, None),
    '8UC1': (1, cv2.COLOR_GRAY2RGB),
    '8UC3': (3, cv2.COLOR_BGR2RGB),  # as OpenCV, whose name it is, has them
}
DEPTHS = {'16UC1': 2, '32FC1': 4}
COMMAND_TYPES = {
    'joint_trajectory': 'trajectory_msgs/msg/JointTrajectory',
    'multi_array': 'std_msgs/msg/Float64MultiArray',
    'joint_state': 'sensor_msgs/msg/JointState',
}
MAX_IMAGE_BYTES = 256 * 1024 * 1024
PNG, JPEG = b'\x89PNG\r\n\x1a\n', b'\xff\xd8'
DEPTH_HEADER = struct.Struct('<iff')  # of compressedDepth: a format, two parameters


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
    header = getattr(message, 'header', None)
    return choose_time(0 if header is None else nanoseconds(header.stamp), received, stamp)


def choose_time(header: int, received: int, stamp: str) -> int:
    """Give the time of a message by its header stamp, 0 without one; see `stream_time`."""
    return (header if stamp == 'header' else 0) or received


def header_stamp(data: bytes | memoryview) -> int:
    """Read the stamp of a serialised message that begins with a std_msgs/Header, ns.

    Raises:
        ConversionError: It is too short, or not CDR.
    """
    if len(data) < 12 or data[0] != 0 or data[1] > 1:
        raise ConversionError(f'message of {len(data)} bytes has no header')
    seconds, rest = struct.unpack_from('<iI' if data[1] else '>iI', data, 4)
    return int(seconds) * 1_000_000_000 + int(rest)


def image_to_rgb(message: Any, *, depth_range: Sequence[float] | None = None) -> NDArray[np.uint8]:
    """Decode a sensor_msgs Image or CompressedImage (jpeg, png, compressedDepth with png).

    Args:
        message: The image.
        depth_range: Distances that become black and white, m; an image of distances (16UC1 in
            mm, 32FC1 in m, as in REP 118) is grey, and black where nothing was measured. None for
            an image of colours.

    Returns:
        (H, W, 3) RGB.

    Raises:
        ConversionError: The encoding is not supported, or is not what `depth_range` says, or sizes
            and data disagree.
    """
    if hasattr(message, 'format'):
        return _decode(message.data, str(message.format), depth_range)
    encoding = message.encoding
    if encoding not in COLOURS and encoding not in DEPTHS:
        raise ConversionError(
            f'image encoding is {encoding!r}, expected one of {", ".join([*COLOURS, *DEPTHS])}'
        )
    _require_kind(encoding, depth_range)
    size = DEPTHS[encoding] if encoding in DEPTHS else COLOURS[encoding][0]
    height, width, step = message.height, message.width, message.step
    data = np.frombuffer(message.data, np.uint8)
    if not (height and width) or step < width * size or data.size != height * step:
        raise ConversionError(
            f'image is {width}x{height} {encoding} with step {step} and {data.size} bytes'
        )
    rows = data.reshape(height, step)[:, : width * size]
    if encoding in DEPTHS or encoding == 'mono16':
        order = '>' if message.is_bigendian else '<'
        values = np.ascontiguousarray(rows).view(f'{order}{"f4" if size == 4 else "u2"}')
        if encoding == 'mono16':
            return _grey(np.asarray(values >> 8, np.uint8))
        return _depth_to_rgb(values, 1.0 if size == 4 else 0.001, depth_range)
    pixels = rows.reshape(height, width, size)
    change = COLOURS[encoding][1]
    if change is None:
        return pixels
    return np.asarray(cv2.cvtColor(np.ascontiguousarray(pixels), change), np.uint8)


def _require_kind(encoding: str, depth_range: Sequence[float] | None) -> None:
    """Refuse distances where the contract says colours, and the other way round."""
    if encoding in DEPTHS and depth_range is None:
        raise ConversionError(
            f'image encoding is {encoding!r}, distances: give the camera a depth_range in the '
            'contract'
        )
    if encoding not in DEPTHS and depth_range is not None:
        raise ConversionError(
            f'image encoding is {encoding!r}, but the contract gives the camera a depth_range: '
            f'expected {" or ".join(DEPTHS)}'
        )


def _grey(values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Turn (H, W) into RGB."""
    return np.asarray(cv2.cvtColor(values, cv2.COLOR_GRAY2RGB), np.uint8)


def _depth_to_rgb(
    values: NDArray[Any], scale: float, depth_range: Sequence[float] | None
) -> NDArray[np.uint8]:
    """Turn distances (H, W), in units of `scale` m, into RGB."""
    assert depth_range is not None
    near, far = depth_range
    with np.errstate(invalid='ignore', over='ignore'):
        share = (values.astype(np.float32) * np.float32(scale) - near) / np.float32(far - near)
        share[np.isnan(values) | (values == 0)] = 0  # no reading
    return _grey(np.rint(255 * np.clip(share, 0, 1)).astype(np.uint8))


def _decode(data: Any, name: str, depth_range: Sequence[float] | None) -> NDArray[np.uint8]:
    encoding = name.partition(';')[0].strip()
    known = encoding in COLOURS or encoding in DEPTHS
    _require_kind(
        encoding if known else '16UC1' if depth_range is not None else 'rgb8', depth_range
    )
    code = np.frombuffer(data, np.uint8)
    scale, offset = 0.001, None
    if 'compressedDepth' in name:
        if len(code) < DEPTH_HEADER.size or not known:
            raise ConversionError(f'compressed image ({name!r}) has {len(code)} bytes')
        _, factor, shift = DEPTH_HEADER.unpack(code[: DEPTH_HEADER.size].tobytes())
        code = code[DEPTH_HEADER.size :]
        if encoding == '32FC1':  # stored as factor / distance + shift
            scale, offset = factor, shift
    height, width = _coded_size(code)
    if not 0 < height * width <= MAX_IMAGE_BYTES // 3:
        raise ConversionError(
            f'compressed image ({name!r}) is {width}x{height}, expected a jpeg or png of at most '
            f'{MAX_IMAGE_BYTES >> 20} MiB'
        )
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        image = cv2.imdecode(code, cv2.IMREAD_UNCHANGED if depth_range is not None else flags)
    except cv2.error:  # OpenCV gives None for most damaged images and raises for some
        image = None
    if image is None:
        raise ConversionError(f'compressed image ({name!r}) cannot be decoded')
    if depth_range is None:
        return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8)
    if image.ndim != 2 or image.dtype != np.uint16:
        raise ConversionError(f'compressed image ({name!r}) is not a png of 16-bit distances')
    if offset is None:
        return _depth_to_rgb(image, scale, depth_range)
    with np.errstate(divide='ignore', invalid='ignore'):
        distance = np.where(image > 0, scale / (image.astype(np.float32) - offset), np.nan)
    return _depth_to_rgb(distance, 1.0, depth_range)


def _coded_size(code: NDArray[np.uint8]) -> tuple[int, int]:
    """Read height and width from a jpeg's or png's header; zeros when it is neither."""
    head = code[:24].tobytes()
    if head.startswith(PNG) and len(head) == 24:
        return int.from_bytes(head[20:24], 'big'), int.from_bytes(head[16:20], 'big')
    place = 2
    while head.startswith(JPEG) and place + 9 <= len(code) and code[place] == 0xFF:
        marker = code[place + 1]
        if marker == 0xFF:  # padding before a marker
            place += 1
            continue
        part = code[place + 2 : place + 9].tobytes()
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # a start of frame
            return int.from_bytes(part[3:5], 'big'), int.from_bytes(part[5:7], 'big')
        place += 2 + int.from_bytes(part[:2], 'big')
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


def is_hold(message: Any, action: ActionContract) -> bool:
    """Whether a command names no position: what the guard takes for "hold where you are"."""
    if action.type == 'multi_array':
        return not len(message.data)
    return not len(message.position if action.type == 'joint_state' else message.points)


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
