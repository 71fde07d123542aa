# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The same messages give the same observations: live, offline, and in any order of arrival."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from qt_core.observation import Observation
from qt_ros.bags import EpisodeBag
from qt_ros.bags.converter import convert_episode
from qt_ros.conversions import ConversionError, image_to_rgb, joint_positions, stream_time
from qt_ros.serialisation import TYPESTORE
from qt_ros.streams import (
    STATE,
    ObservationAssembler,
    Stale,
    Stamped,
    Stillness,
    observed_streams,
)
from test.qt_ros.synthetic_bags import CONTRACT, draw_episode, episode_messages, write_bag

JOINTS = CONTRACT.state.joints
MS = 1_000_000
TWO_CAMERAS = replace(
    CONTRACT,
    cameras=(
        *CONTRACT.cameras,
        replace(CONTRACT.cameras[0], name='wrist', topic='wrist/image_raw', max_age=0.2),
    ),
)


def image(value, size=64):
    """Give what decodes to an image of one colour."""
    return lambda: np.full((size, size, 3), value, np.uint8)


def pose(value):
    """Give what decodes to a pose with every joint at `value`."""
    return lambda: dict.fromkeys(JOINTS, float(value))


def content(observation):
    """Tell which image and which pose an observation was made of."""
    assert isinstance(observation, Observation)
    return int(observation.images['front'][0, 0, 0]), float(observation.state[0])


def decode_of(topic):
    """Give how a topic of the contract is decoded."""
    return joint_positions if topic == CONTRACT.state.topic else image_to_rgb


@pytest.mark.parametrize('seed', range(5))
def test_live_and_converted_observations_are_identical(tmp_path, seed):
    # One bag: the converter reads it; live, its streams arrive in another order, one observation
    # being formed as soon as it can be.
    period = round(1e9 / 10)
    bag = EpisodeBag(write_bag(tmp_path / 'bag', episode_messages(draw_episode(seed, steps=20))))
    replayed, _ = convert_episode(bag)
    names = {CONTRACT.cameras[0].topic: 'front', CONTRACT.state.topic: STATE}
    queues = {topic: [] for topic in names}
    for topic, received, message in bag.messages(names):
        queues[topic].append((stream_time(message, received), message))
    random, assembler, formed = np.random.default_rng(seed), ObservationAssembler(CONTRACT), []
    while any(queues.values()):
        ready = {t: q[0][0] for t, q in queues.items() if q}
        # A stream may run ahead of another by less than a period, as one lock step allows.
        topics = [t for t, time in ready.items() if time < min(ready.values()) + period]
        topic = topics[random.integers(len(topics))]
        time, message = queues[topic].pop(0)
        assembler.push(names[topic], time, partial(decode_of(topic), message))
        if (stamped := assembler.complete()) is not None:
            formed.append(stamped.observation)
    assert len(formed) == 21
    assert np.array_equal(np.stack([o.images['front'] for o in formed]), replayed.images['front'])
    assert np.array_equal(np.stack([o.state for o in formed]), replayed.state)


def test_complete_waits_for_every_other_stream_and_answers_once():
    assembler = ObservationAssembler(TWO_CAMERAS)
    assembler.push('front', 100 * MS, image(1))
    assert assembler.complete() is None
    assembler.push(STATE, 90 * MS, pose(9))
    assembler.push('wrist', 95 * MS, image(5))
    assert assembler.complete() is None  # the pose at 100 ms may still be under way
    assembler.push(STATE, 110 * MS, pose(11))
    assert assembler.complete() is None
    assembler.push('wrist', 105 * MS, image(6))
    stamped = assembler.complete()
    assert stamped.time == 100 * MS
    assert content(stamped.observation) == (1, 9.0)
    assert stamped.observation.images['wrist'][0, 0, 0] == 5
    assert assembler.complete() is None


def test_complete_answers_the_newest_image_only():
    assembler = ObservationAssembler(CONTRACT)
    for index in range(4):
        assembler.push('front', (100 + index) * MS, image(index))
    assembler.push(STATE, 99 * MS, pose(0))
    assembler.push(STATE, 102 * MS, pose(1))
    assert assembler.complete().time == 102 * MS
    assert assembler.complete() is None


def test_as_of_never_looks_into_the_future():
    assembler = ObservationAssembler(CONTRACT)
    for index in range(5):
        assembler.push('front', 100 * index * MS, image(index))
        assembler.push(STATE, (100 * index + 30) * MS, pose(index))
    assert content(assembler.as_of(330 * MS)) == (3, 3.0)
    assert content(assembler.as_of(329 * MS)) == (3, 2.0)
    assert assembler.as_of(29 * MS) == Stale(STATE, None)


def test_unneeded_images_are_never_decoded():
    decoded = []

    def decode(index):
        decoded.append(index)
        return np.zeros((64, 64, 3), np.uint8)

    assembler = ObservationAssembler(CONTRACT)
    assembler.push(STATE, 0, pose(0))
    for index in range(10):
        assembler.push('front', index * MS, partial(decode, index))
    assert isinstance(assembler.as_of(4 * MS), Observation)
    assert decoded == [4]


@pytest.mark.parametrize(('late', 'age'), [('front', 0.6), (STATE, 0.6)])
def test_latest_names_the_stream_that_is_too_old(late, age):
    assembler = ObservationAssembler(CONTRACT)
    assert assembler.latest(0) == Stale('front', None)
    values = {'front': image(3), STATE: pose(3)}
    for stream, value in values.items():
        assembler.push(stream, 0, value)
    fresh = next(s for s in values if s != late)
    assembler.push(fresh, 500 * MS, values[fresh])
    assert content(assembler.latest(500 * MS).observation) == (3, 3.0)
    stale = assembler.latest(600 * MS)
    assert stale == Stale(late, age)
    assert str(stale) == f"'{late}' is 0.60 s old"


def test_latest_pairs_the_image_with_the_pose_of_its_own_time():
    # The image took 60 ms to arrive; what the joints did meanwhile, training never saw.
    assembler = ObservationAssembler(CONTRACT)
    for index in range(20):
        assembler.push(STATE, 5 * index * MS, pose(index))
    assembler.push('front', 35 * MS, image(1))
    stamped = assembler.latest(95 * MS)
    assert stamped.time == 35 * MS
    assert content(stamped.observation) == (1, 7.0)


def test_seen_is_what_latest_was_at_that_time():
    # Between two images the pose goes on; a policy that is asked then still has the old pair.
    assembler, live = ObservationAssembler(CONTRACT), ObservationAssembler(CONTRACT)
    for index in range(60):
        now = 5 * index * MS
        if index in (0, 40):
            assembler.push('front', now, image(index))
        assembler.push(STATE, now, pose(index))
    for index in range(60):
        now = 5 * index * MS
        if index in (0, 40):
            live.push('front', now, image(index))
        live.push(STATE, now, pose(index))
        assert content(assembler.seen(now)) == content(live.latest(now).observation)
    assert content(assembler.seen(195 * MS)) == (0, 0.0)
    assert content(assembler.seen(200 * MS)) == (40, 40.0)


def test_seen_names_what_was_too_old_then():
    assembler = ObservationAssembler(CONTRACT)
    assert assembler.seen(0) == Stale('front', None)
    for now in (0, 500):
        assembler.push(STATE, now * MS, pose(now))
    assembler.push('front', 0, image(0))
    assembler.push('front', 900 * MS, image(9))
    assert assembler.seen(600 * MS) == Stale('front', 0.6)


def test_stamps_ahead_of_the_clock_are_not_fresh_for_ever():
    assembler = ObservationAssembler(CONTRACT)
    for stream, value in {'front': image(3), STATE: pose(3)}.items():
        assembler.push(stream, 3000 * MS, value)
    assert isinstance(assembler.latest(2600 * MS), Stamped)
    assert str(assembler.latest(0)) == "'front' is 3.00 s ahead of the clock"


def test_fast_joints_do_not_push_out_what_a_slow_camera_needs():
    # 1 kHz joint states and a camera whose frames arrive 300 ms after they were taken.
    assembler = ObservationAssembler(CONTRACT)
    for index in range(1000):
        assembler.push(STATE, index * MS, pose(index))
    assembler.push('front', 700 * MS, image(7))
    assert content(assembler.complete().observation) == (7, 700.0)


def test_history_is_bounded():
    assembler = ObservationAssembler(CONTRACT)
    for index in range(10_000):
        assembler.push(STATE, index * MS, pose(index))
    assembler.push('front', 9_999 * MS, image(1))
    assert isinstance(assembler.as_of(5_000 * MS), Stale)
    assert sum(len(values) for values in assembler._values.values()) < 2_100


@pytest.mark.parametrize('order', ['state first', 'image first', 'late message of the past'])
def test_clock_set_back_clears_the_buffers(order):
    assembler = ObservationAssembler(CONTRACT)
    for index in range(5):
        assembler.push(STATE, (12_000 + 100 * index) * MS, pose(100))
        assembler.push('front', (12_000 + 100 * index) * MS, image(100))
    assert assembler.complete().time == 12_400 * MS
    if order == 'state first':
        assembler.push(STATE, 0, pose(1))
        assert assembler.complete() is None
        assembler.push('front', 0, image(1))
    else:
        assembler.push('front', 0, image(1))
        if order == 'late message of the past':
            assembler.push(STATE, 12_500 * MS, pose(100))
        assert order == 'late message of the past' or assembler.complete() is None
        assembler.push(STATE, 0, pose(1))
    stamped = assembler.complete()
    assert stamped.time == 0
    assert content(stamped.observation) == (1, 1.0)


def test_small_disorder_within_a_stream_is_sorted():
    assembler = ObservationAssembler(CONTRACT)
    for time in (100, 140, 120):
        assembler.push(STATE, time * MS, pose(time))
    assembler.push('front', 130 * MS, image(1))
    assert content(assembler.as_of(130 * MS)) == (1, 120.0)


def serialised(kind, **fields):
    """Give the bytes of a message with a header stamped 1.5 s."""
    types = TYPESTORE.types
    stamp = types['builtin_interfaces/msg/Time'](1, 500_000_000)
    header = types['std_msgs/msg/Header'](stamp, 'frame')
    return bytes(TYPESTORE.serialize_cdr(types[kind](header, **fields), kind))


def test_bytes_of_a_message_are_read_as_the_message_itself():
    camera, state = observed_streams(CONTRACT)
    pixels = np.random.default_rng(0).integers(0, 256, 4 * 6 * 3, np.uint8)
    image = serialised(
        camera.type, height=4, width=6, encoding='rgb8', is_bigendian=0, step=18, data=pixels
    )
    assert camera.time(image, 7) == 1_500_000_000
    assert replace(camera, stamp='receive').time(image, 7) == 7
    decoded = camera.decode(image)
    assert np.array_equal(decoded, pixels.reshape(4, 6, 3))
    assert np.shares_memory(decoded, np.frombuffer(image, np.uint8))  # nothing was copied
    values = np.arange(7.0)
    joints = serialised(
        state.type, name=list(JOINTS), position=values, velocity=values, effort=values
    )
    assert state.decode(joints) == dict(zip(JOINTS, values, strict=True))


@pytest.mark.parametrize('cut', [0, 3, 11, 30])
def test_bytes_that_are_no_message_are_refused(cut):
    camera, _ = observed_streams(CONTRACT)
    image = serialised(
        camera.type,
        height=1,
        width=1,
        encoding='rgb8',
        is_bigendian=0,
        step=3,
        data=np.zeros(3, np.uint8),
    )
    with pytest.raises(ConversionError):
        camera.decode(image[:cut])
    if cut < 12:
        with pytest.raises(ConversionError):
            camera.time(image[:cut], 0)


def test_stillness_is_counted_from_the_first_of_equal_images_to_the_last():
    stillness = Stillness()
    header = b'\0\1\0\0' + bytes(8)
    for now, content in ((0, b'a'), (100, b'b'), (200, b'b'), (300, b'b')):
        stillness.see(header[:-1] + bytes([now % 256]) + content * 50, now * MS)
    assert stillness.seconds == pytest.approx(0.2)  # whatever their stamps
    stillness.see(header + b'b' * 49 + b'c', 400 * MS)
    assert stillness.seconds == 0
    stillness.see(header + b'b' * 49 + b'c', 500 * MS)
    stillness.see(header + b'b' * 49 + b'c', 450 * MS)  # the clock was set back
    assert stillness.seconds == 0
