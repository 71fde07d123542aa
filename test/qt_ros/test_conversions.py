# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Messages <-> arrays, with the message classes of rclpy and of rosbags."""

import contextlib
import struct
import zlib
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rclpy.serialization import deserialize_message, serialize_message
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import Float64MultiArray
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from qt_core.contract import ActionContract
from qt_ros.conversions import (
    ConversionError,
    command_targets,
    fill_command,
    fill_image,
    image_to_rgb,
    joint_positions,
    nanoseconds,
    set_stamp,
    stream_time,
)
from test.qt_ros.synthetic_bags import STORE, image_message, state_message, trajectory_message

RGB = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
COMMANDS = {
    'joint_trajectory': JointTrajectory,
    'multi_array': Float64MultiArray,
    'joint_state': JointState,
}


def action(kind):
    """Give an action contract of two joints."""
    return ActionContract(
        topic='command', type=kind, joints=('a', 'b'), bins=3, low=(-1.0,) * 2, high=(1.0,) * 2
    )


@given(st.integers(0, 2**31 - 1), st.integers(0, 10**9 - 1))
def test_stamp_round_trip(seconds, rest):
    stamp = SimpleNamespace(sec=0, nanosec=0)
    set_stamp(stamp, seconds * 10**9 + rest)
    assert (stamp.sec, stamp.nanosec) == (seconds, rest)
    assert nanoseconds(stamp) == seconds * 10**9 + rest


def test_stream_time_is_the_stamp_unless_it_is_zero():
    assert stream_time(image_message(RGB, 42), 7) == 42
    assert stream_time(image_message(RGB, 0), 7) == 7
    assert stream_time(Float64MultiArray(), 7) == 7


@pytest.mark.parametrize(
    ('encoding', 'pixels'),
    [
        ('rgb8', RGB),
        ('bgr8', RGB[..., ::-1]),
        ('rgba8', np.dstack([RGB, RGB[..., :1]])),
        ('bgra8', np.dstack([RGB[..., ::-1], RGB[..., :1]])),
    ],
)
@pytest.mark.parametrize('padding', [0, 5])
def test_image_encodings(encoding, pixels, padding):
    message = image_message(np.ascontiguousarray(pixels), 1, encoding)
    rows = message.data.reshape(5, -1)
    message.data = np.pad(rows, ((0, 0), (0, padding))).reshape(-1)
    message.step = rows.shape[1] + padding
    assert np.array_equal(image_to_rgb(message), RGB)


def test_mono_image_has_three_equal_channels():
    rgb = image_to_rgb(image_message(np.ascontiguousarray(RGB[..., :1]), 1, 'mono8'))
    assert np.array_equal(rgb, np.repeat(RGB[..., :1], 3, axis=2))


@pytest.mark.parametrize(
    ('field', 'value', 'says'),
    [
        ('encoding', '16UC1', "encoding is '16UC1', expected one of rgb8"),
        ('step', 20, 'step 20'),
        ('height', 4, '7x4'),
        ('height', 2**32 - 1, 'and 105 bytes'),
        ('width', 0, '0x5'),
        ('data', np.zeros(104, np.uint8), '104 bytes'),
    ],
)
def test_impossible_image(field, value, says):
    message = image_message(RGB, 1)
    setattr(message, field, value)
    with pytest.raises(ConversionError, match=says):
        image_to_rgb(message)


def test_image_survives_the_wire():
    sent = fill_image(Image(), RGB, 5_000_000_007, 'optical')
    received = deserialize_message(serialize_message(sent), Image)
    assert np.array_equal(image_to_rgb(received), RGB)
    assert nanoseconds(received.header.stamp) == 5_000_000_007
    assert received.header.frame_id == 'optical'
    bag = STORE.deserialize_cdr(
        bytes(STORE.serialize_cdr(image_message(RGB, 1), 'sensor_msgs/msg/Image')),
        'sensor_msgs/msg/Image',
    )
    assert np.array_equal(image_to_rgb(bag), RGB)


def compressed(name, data):
    """Give a CompressedImage."""
    return SimpleNamespace(format=name, data=np.frombuffer(data, np.uint8))


def test_png_is_exact_and_jpeg_close():
    big = cv2.resize(RGB, (70, 50), interpolation=cv2.INTER_LINEAR)
    _, png = cv2.imencode('.png', big[..., ::-1])
    assert np.array_equal(image_to_rgb(compressed('png', png.tobytes())), big)
    _, jpeg = cv2.imencode('.jpg', big[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])
    decoded = image_to_rgb(compressed('rgb8; jpeg compressed bgr8', jpeg.tobytes()))
    assert np.abs(decoded.astype(int) - big).mean() < 12
    # Far nearer than with red and blue exchanged.
    swapped = np.abs(decoded.astype(int) - big[..., ::-1]).mean()
    assert np.abs(decoded.astype(int) - big).mean() < swapped / 4


def huge_png():
    """A png of 69 bytes whose header promises 40000 x 40000 pixels."""
    header = b'IHDR' + struct.pack('>IIBBBBB', 40000, 40000, 8, 2, 0, 0, 0)
    return (
        b'\x89PNG\r\n\x1a\n'
        + struct.pack('>I', 13)
        + header
        + struct.pack('>I', zlib.crc32(header))
    )


def huge_jpeg():
    """A jpeg whose header promises 65535 x 65535 pixels."""
    _, jpeg = cv2.imencode('.jpg', RGB)
    data = bytearray(jpeg.tobytes())
    frame = data.index(b'\xff\xc0')
    data[frame + 5 : frame + 9] = b'\xff' * 4
    return bytes(data)


@pytest.mark.parametrize(
    ('data', 'says'),
    [
        (b'', '0x0'),
        (b'GIF89a' + bytes(64), '0x0'),
        (huge_png(), '40000x40000'),
        (huge_jpeg(), '65535x65535'),
        (cv2.imencode('.png', RGB)[1].tobytes()[:30], 'cannot be decoded'),
    ],
)
def test_impossible_compressed_image(data, says):
    with pytest.raises(ConversionError, match=says):
        image_to_rgb(compressed('jpeg', data))


@given(st.binary(max_size=200))
def test_any_bytes_are_an_image_or_a_conversion_error(data):
    for start in (b'', b'\xff\xd8', b'\x89PNG\r\n\x1a\n'):
        with contextlib.suppress(ConversionError):
            assert image_to_rgb(compressed('?', start + data)).dtype == np.uint8


def test_joint_positions_by_name():
    assert joint_positions(state_message(['b', 'a'], [2.0, 1.0], 1)) == {'a': 1.0, 'b': 2.0}
    with pytest.raises(ConversionError, match='2 joint names but 1 positions'):
        joint_positions(state_message(['b', 'a'], [2.0], 1))
    with pytest.raises(ConversionError, match="joint 'a' is nan"):
        joint_positions(state_message(['b', 'a'], [2.0, np.nan], 1))


@pytest.mark.parametrize('kind', COMMANDS)
def test_command_round_trip(kind):
    message = fill_command(
        COMMANDS[kind](), JointTrajectoryPoint(), action(kind), np.array([0.25, -0.5]), 0.1, 7
    )
    received = deserialize_message(serialize_message(message), COMMANDS[kind])
    assert command_targets(received, action(kind)).tolist() == [0.25, -0.5]
    assert stream_time(received, 9) == (9 if kind == 'multi_array' else 7)
    if kind == 'joint_trajectory':
        assert nanoseconds(received.points[0].time_from_start) == 100_000_000


def test_commanded_joints_are_found_by_name():
    message = trajectory_message(['gripper', 'b', 'a'], [9.0, 2.0, 1.0], 1)
    assert command_targets(message, action('joint_trajectory')).tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    ('names', 'values', 'says'),
    [
        (['a', 'c'], [1.0, 2.0], "lacks joint 'b'; it has a, c"),
        (['a', 'b'], [1.0], '1 values for 2 joints'),
        (['a', 'b'], [1.0, np.inf], 'not finite'),
    ],
)
def test_impossible_command(names, values, says):
    with pytest.raises(ConversionError, match=says):
        command_targets(trajectory_message(names, values, 1), action('joint_trajectory'))


def test_empty_commands():
    with pytest.raises(ConversionError, match='no point'):
        command_targets(JointTrajectory(), action('joint_trajectory'))
    with pytest.raises(ConversionError, match='0 values for 2 joints'):
        command_targets(Float64MultiArray(), action('multi_array'))
