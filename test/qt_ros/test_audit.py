# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What is said about the rate, the gaps and the stamps of a stream."""

import numpy as np
import pytest

from qt_ros.bags.audit import RateMeter, TopicAudit
from test.qt_ros.synthetic_bags import STORE, image_message

IMAGE = 'sensor_msgs/msg/Image'
SECOND = 1_000_000_000
RANDOM = np.random.default_rng(0)


def test_meter_measures_the_last_two_seconds():
    meter = RateMeter(30.0)
    for index in range(90):
        meter.add(index * SECOND // 30)
    now = 3 * SECOND
    assert meter.rate(now) == pytest.approx(30, abs=0.6)
    assert meter.enough(now)
    assert meter.rate(now + SECOND) == pytest.approx(15, abs=0.6)
    assert not meter.enough(now + SECOND)
    assert meter.rate(now + 3 * SECOND) == 0
    meter.add(0)  # the clock was set back
    assert meter.rate(SECOND) == 0.5


def test_meter_of_a_slow_stream_forgives_one_message():
    meter = RateMeter(1.0)
    for second in range(4):
        meter.add(second * SECOND)
    assert meter.enough(round(3.9 * SECOND))
    assert meter.enough(round(4.9 * SECOND))
    assert not meter.enough(round(6.9 * SECOND))


def test_audit_of_images():
    audit = TopicAudit(IMAGE, expected=10.0)
    same = np.zeros((4, 4, 3), np.uint8)
    for index in range(10):
        frame = same if index in (3, 4, 5) else RANDOM.integers(0, 255, (4, 4, 3), np.uint8)
        time = SECOND + index * SECOND // 10 + (SECOND if index == 9 else 0)
        stamp = time - (SECOND // 2 if index == 7 else 0)
        data = bytes(STORE.serialize_cdr(image_message(frame, stamp), IMAGE))
        audit.add(time, data)
    count = audit.count('/image', 'image', 10, SECOND, 5 * SECOND)
    assert (count.repeated, count.jumps) == (2, 1)
    assert (count.rate, count.expected) == (2.5, 10.0)
    assert count.largest_gap == 2.1  # from the last one to the end
    assert audit.gap(SECOND, 3 * SECOND) == 1.1
    assert TopicAudit(IMAGE, expected=10.0).gap(SECOND, 3 * SECOND) == 2.0
    assert TopicAudit(IMAGE).gap(SECOND, 3 * SECOND) is None
