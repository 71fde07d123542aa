# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Messages <-> arrays, with the message classes of rclpy and of rosbags."""

import contextlib
import math
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
    choose_time,
    command_targets,
    fill_command,
    fill_image,
    header_stamp,
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


def test_8_bit_images_of_opencv():
    bgr, grey = np.ascontiguousarray(RGB[..., ::-1]), np.ascontiguousarray(RGB[..., :1])
    assert np.array_equal(image_to_rgb(image_message(bgr, 1, '8UC3')), RGB)
    assert np.array_equal(image_to_rgb(image_message(grey, 1, '8UC1')), np.repeat(grey, 3, 2))


def wide_image(values, encoding, padding=0, big=False):
    """Give an Image of (H, W) numbers of more than one byte."""
    values = values.astype(values.dtype.newbyteorder('>' if big else '<'))
    rows = np.pad(values.view(np.uint8).reshape(len(values), -1), ((0, 0), (0, padding)))
    message = image_message(np.ascontiguousarray(rows)[..., None], 1, encoding)
    message.width, message.is_bigendian = values.shape[1], int(big)
    return message


def slow_depth(metres, near, far):
    """Give the grey of one distance, as the contract describes it."""
    if math.isnan(metres) or metres == 0:
        return 0
    share = min(max((metres - near) / (far - near), 0.0), 1.0)
    return round(255 * share)


@pytest.mark.parametrize('big', [False, True])
@pytest.mark.parametrize('padding', [0, 3])
def test_mono16_keeps_the_high_byte(big, padding):
    values = np.random.default_rng(1).integers(0, 2**16, (5, 7), np.uint16)
    rgb = image_to_rgb(wide_image(values, 'mono16', padding, big))
    expected = np.array([[[int(v) // 256] * 3 for v in row] for row in values])
    assert np.array_equal(rgb, expected)


@pytest.mark.parametrize('big', [False, True])
@pytest.mark.parametrize('padding', [0, 3])
def test_distances_against_a_slow_reference(big, padding):
    near, far = 0.3, 2.0
    values = np.random.default_rng(2).integers(0, 3000, (5, 7), np.uint16)
    values[0, :3] = 0, 300, 2000
    rgb = image_to_rgb(wide_image(values, '16UC1', padding, big), depth_range=(near, far))
    expected = [[[slow_depth(v / 1000, near, far)] * 3 for v in row.tolist()] for row in values]
    assert np.abs(rgb.astype(int) - np.array(expected)).max() <= 1
    assert [rgb[0, i, 0] for i in range(3)] == [0, 0, 255]
    metres = (values / 1000).astype(np.float32)
    metres[1, :4] = np.nan, np.inf, -np.inf, 0
    rgb = image_to_rgb(wide_image(metres, '32FC1', padding, big), depth_range=(near, far))
    expected = [[[slow_depth(v, near, far)] * 3 for v in row.tolist()] for row in metres]
    assert np.abs(rgb.astype(int) - np.array(expected)).max() <= 1
    assert rgb[1, :4, 0].tolist() == [0, 255, 0, 0]


def test_colours_are_no_distances():
    with pytest.raises(ConversionError, match="'rgb8', but the contract gives the camera a depth"):
        image_to_rgb(image_message(RGB, 1), depth_range=(0.3, 2.0))


def test_zero_length_image_of_any_encoding():
    for encoding in ('rgb8', 'mono8', 'mono16', '8UC3', '16UC1', '32FC1'):
        message = image_message(RGB, 1, encoding)
        message.data, message.height, message.width, message.step = np.zeros(0, np.uint8), 0, 0, 0
        depth = (0.1, 1.0) if encoding in ('16UC1', '32FC1') else None
        with pytest.raises(ConversionError, match='image is 0x0'):
            image_to_rgb(message, depth_range=depth)


def test_compressed_depth_against_a_slow_reference():
    near, far = 0.3, 2.0
    values = np.random.default_rng(3).integers(0, 3000, (5, 7), np.uint16)
    png = cv2.imencode('.png', values)[1].tobytes()
    expected = [[[slow_depth(v / 1000, near, far)] * 3 for v in row.tolist()] for row in values]
    for name, data in (
        ('16UC1; compressedDepth png', struct.pack('<iff', 0, 0, 0) + png),
        ('16UC1; png compressed', png),
    ):
        rgb = image_to_rgb(compressed(name, data), depth_range=(near, far))
        assert np.abs(rgb.astype(int) - np.array(expected)).max() <= 1
    # Metres are stored as factor / distance + shift.
    factor, shift = 1000.0, 5.0
    metres = [
        [0.0 if v <= shift else factor / (v - shift) for v in row] for row in values.tolist()
    ]
    data = struct.pack('<iff', 1, factor, shift) + png
    rgb = image_to_rgb(compressed('32FC1; compressedDepth png', data), depth_range=(near, far))
    expected = [[[slow_depth(v, near, far)] * 3 for v in row] for row in metres]
    above = values > shift
    assert np.abs(rgb.astype(int) - np.array(expected))[above].max() <= 1
    assert not rgb[values == 0].any()


@pytest.mark.parametrize(
    ('name', 'data', 'depth', 'says'),
    [
        ('16UC1; compressedDepth png', b'short', (0.1, 1.0), 'has 5 bytes'),
        ('16UC1; compressedDepth rvl', bytes(100), (0.1, 1.0), 'is 0x0, expected a jpeg or png'),
        ('16UC1; compressedDepth png', bytes(100), None, 'give the camera a depth_range'),
        ('rgb8; jpeg compressed bgr8', bytes(100), (0.1, 1.0), 'expected 16UC1 or 32FC1'),
    ],
)
def test_impossible_compressed_depth(name, data, depth, says):
    with pytest.raises(ConversionError, match=says):
        image_to_rgb(compressed(name, data), depth_range=depth)


def test_eight_bit_png_is_no_distance():
    png = cv2.imencode('.png', RGB)[1].tobytes()
    with pytest.raises(ConversionError, match='not a png of 16-bit distances'):
        image_to_rgb(compressed('png', png), depth_range=(0.1, 1.0))


@pytest.mark.parametrize('little', [True, False])
@given(st.integers(0, 2**31 - 1), st.integers(0, 10**9 - 1))
def test_stamp_is_read_without_the_message(little, seconds, rest):
    message = state_message(['a'], [1.0], seconds * 10**9 + rest)
    data = STORE.serialize_cdr(message, 'sensor_msgs/msg/JointState', little_endian=little)
    assert header_stamp(data) == header_stamp(bytes(data)) == seconds * 10**9 + rest
    for stamp in ('header', 'receive'):
        assert choose_time(header_stamp(data), 7, stamp) == stream_time(message, 7, stamp)


@pytest.mark.parametrize('data', [b'', bytes(11), b'\x00\x02' + bytes(10), b'\x01' + bytes(11)])
def test_stamp_of_something_else(data):
    with pytest.raises(ConversionError, match='has no header'):
        header_stamp(data)


@pytest.mark.parametrize(
    ('field', 'value', 'says'),
    [
        ('encoding', 'yuv422', "encoding is 'yuv422', expected one of rgb8"),
        ('encoding', '16UC1', "encoding is '16UC1', distances: give the camera a depth_range"),
        ('encoding', '32FC1', "encoding is '32FC1', distances"),
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
