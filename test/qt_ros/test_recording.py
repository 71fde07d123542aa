# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""One recording: nothing is lost without being said, whatever the disk does."""

import resource
import shutil
import threading
import time

import numpy as np
import pytest
from rosbags.rosbag2 import Reader

from qt_ros.bags import BagError, EpisodeBagWriter, EpisodeRecord
from qt_ros.bags.episode import STOPPED
from qt_ros.recording import Limits, Recording
from test.qt_ros.synthetic_bags import (
    CONTRACT,
    SENTENCE,
    STORE,
    image_message,
    state_message,
)

IMAGE = 'sensor_msgs/msg/Image'
RANDOM = np.random.default_rng(0)
RECORD = EpisodeRecord(
    instruction=SENTENCE,
    outcome='unlabeled',
    ended_by='timeout',
    contract=CONTRACT.to_text(),
)


def image(stamp, size=64):
    """A serialised image that nothing compresses."""
    frame = RANDOM.integers(0, 255, (size, size, 3), np.uint8)
    return bytes(STORE.serialize_cdr(image_message(frame, stamp), IMAGE))


@pytest.fixture
def start(tmp_path):
    """Give what starts a recording; ends each afterwards."""
    started = []

    def begin(compression='zstd', **limits):
        limits = {'queue': 1 << 28, 'flush_interval': 0.1, 'min_free': 0} | limits
        writer = EpisodeBagWriter(
            tmp_path / 'bag', {'/image': IMAGE}, compression=compression, record=RECORD
        )
        started.append(Recording(writer, RECORD, Limits(**limits)))
        return started[-1]

    yield begin
    for recording in started:
        recording.discard()
        recording.join()


def read(path):
    """Give the times of the messages that rosbags reads from a bag."""
    with Reader(path) as reader:
        return [time for _, time, _ in reader.messages()]


def wait_until(condition):
    """Wait for the writer's thread."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, 'not in time'
        time.sleep(0.005)


@pytest.mark.parametrize('compression', ['zstd', 'none'])
def test_everything_is_written_and_safe_after_a_flush_interval(start, tmp_path, compression):
    recording = start(compression)
    for index in range(200):
        recording.put('/image', 1 + index, image(1 + index))
    wait_until(lambda: recording.status()['flushed'] == 200)
    recording.put('/image', 201, image(201))
    recording.note_instruction(150, 'touch the blue block')
    recording.note_instruction(999, 'touch the green block')
    recording.end('success', 'terminal', 201)
    recording.join()
    assert (recording.over, recording.path, recording.error) == (True, tmp_path / 'bag', '')
    assert read(recording.path) == list(range(1, 202))
    record = EpisodeRecord.load(recording.path)
    assert (record.outcome, record.ended_by, record.damage) == ('success', 'terminal', '')
    assert record.dropped == recording.queued == 0
    assert recording.deepest > 0
    assert [change.instruction for change in record.instructions] == ['touch the blue block']


def test_changes_are_noted_before_the_end(start, tmp_path):
    recording = start()
    noted = tmp_path / 'bag.partial/bag'
    assert EpisodeRecord.load(noted).damage == STOPPED
    recording.note_instruction(150, 'touch the blue block')
    wait_until(lambda: EpisodeRecord.load(noted).instructions)
    assert EpisodeRecord.load(noted).ended_by == 'timeout'


def test_change_of_the_instruction_is_on_disk_before_what_follows(start, tmp_path):
    recording = start(flush_interval=60.0)
    recording.note_instruction(150, 'touch the blue block')
    recording.put('/image', 151, image(151))
    wait_until(lambda: recording.status()['counts']['/image'] == 1)
    noted = EpisodeRecord.load(tmp_path / 'bag.partial/bag').instructions
    assert [change.instruction for change in noted] == ['touch the blue block']


def test_what_comes_after_the_stop_does_not_raise_the_rate(start):
    recording = start()
    for index in range(90):
        recording.put('/image', 1 + index * 10**9 // 30, image(1))
    recording.end('success', 'terminal', 2 * 10**9)
    recording.join()
    (count,) = EpisodeRecord.load(recording.path).counts
    assert count.rate == pytest.approx(30, rel=0.02)


def test_messages_lost_on_the_way_are_counted_and_end_nothing(start):
    recording = start()
    recording.put('/image', 1, image(1))
    wait_until(lambda: recording.status()['counts']['/image'] == 1)
    recording.lose('/image', 7)
    recording.put('/image', 2, image(2))
    recording.end('success', 'terminal', 3)
    recording.join()
    record = EpisodeRecord.load(recording.path)
    assert (record.dropped, record.damage, record.outcome) == (7, '', 'success')
    assert [count.lost for count in record.counts] == [7]


def test_what_waits_counts_as_written_when_space_is_short(start, monkeypatch):
    free = 100 << 20
    usage = shutil.disk_usage('/')._replace(free=free)
    monkeypatch.setattr('qt_ros.recording.SPACE_INTERVAL', 0.0)
    monkeypatch.setattr('qt_ros.recording.shutil.disk_usage', lambda folder: usage)
    held, write = threading.Event(), EpisodeBagWriter.write
    monkeypatch.setattr(
        EpisodeBagWriter, 'write', lambda *arguments: (held.wait(20), write(*arguments))
    )
    recording = start(min_free=free - (1 << 20))
    for index in range(30):  # more than the MiB that is to spare
        recording.put('/image', 1 + index, image(1 + index, size=128))
    held.set()
    recording.join()
    assert 'the disk was filling' in recording.damage
    assert len(read(recording.path)) == 30


def test_discard_does_not_write_what_waits(start, tmp_path, monkeypatch):
    held, write = threading.Event(), EpisodeBagWriter.write
    monkeypatch.setattr(
        EpisodeBagWriter, 'write', lambda *arguments: (held.wait(20), write(*arguments))
    )
    recording = start()
    for index in range(100):
        recording.put('/image', 1 + index, image(1 + index))
    recording.discard()
    held.set()
    recording.join()
    assert sum(recording.writer.counts.values()) <= 1
    assert recording.path is None
    assert list(tmp_path.iterdir()) == []


def test_overflow_ends_the_episode_and_is_counted(start):
    recording = start(queue=4 << 20)
    data = [image(1 + index, size=512) for index in range(20)]
    sent = 0
    while not recording.damage:
        for message in data:
            sent += 1
            recording.put('/image', sent, message)
    recording.join()
    assert recording.damage == 'the disk was too slow: over 4 MiB waited for it'
    assert recording.deepest <= 4 << 20
    record = EpisodeRecord.load(recording.path)
    assert (record.outcome, record.ended_by) == ('unlabeled', 'timeout')
    assert record.damage == recording.damage
    written = read(recording.path)
    assert written == list(range(1, 1 + len(written)))
    assert 0 < record.dropped <= sent - len(written)
    recording.end('success', 'terminal')  # too late, and harmless
    assert EpisodeRecord.load(recording.path).outcome == 'unlabeled'


def test_a_message_larger_than_the_queue_is_taken_when_nothing_waits(start):
    recording = start(queue=1 << 10)
    recording.put('/image', 1, image(1))
    wait_until(lambda: recording.queued == 0)
    recording.put('/image', 2, image(2))
    recording.end('success', 'terminal')
    recording.join()
    assert (recording.damage, read(recording.path)) == ('', [1, 2])


def test_write_error_goes_back_to_the_last_flush(start):
    recording = start('none')
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6 << 20, before[1]))
    try:
        sent = 0
        while not recording.damage:
            sent += 1
            recording.put('/image', sent, image(sent, size=256))
            time.sleep(0.005)
        recording.join()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert recording.damage.startswith('writing failed: ')
    written = read(recording.path)
    assert 0 < len(written) < sent
    assert written == list(range(1, 1 + len(written)))
    record = EpisodeRecord.load(recording.path)
    assert record.counts[0].messages == len(written)
    assert record.dropped == sent - len(written)


def test_nobody_waits_for_the_writer(start):
    """`put` never blocks, also while the writer is in the middle of a message."""
    recording = start()
    entered, release = threading.Event(), threading.Event()
    write = recording.writer.write

    def slow(*message):
        entered.set()
        release.wait()
        write(*message)

    recording.writer.write = slow
    recording.put('/image', 1, image(1))
    assert entered.wait(20)
    for index in range(2, 100):
        recording.put('/image', index, image(index))
    release.set()
    recording.end('success', 'terminal')
    recording.join()
    assert len(read(recording.path)) == 99


def test_unknown_compression_is_refused(tmp_path):
    with pytest.raises(BagError, match="compression is 'gzip', expected zstd or none"):
        EpisodeBagWriter(tmp_path / 'bag', {}, compression='gzip')
    assert list(tmp_path.iterdir()) == []


def test_topic_that_appears_later(start):
    recording = start()
    recording.put('/image', 1, image(1))
    recording.add_topic('/joints', 'sensor_msgs/msg/JointState')
    kind = 'sensor_msgs/msg/JointState'
    recording.put('/joints', 2, bytes(STORE.serialize_cdr(state_message('a', [0.0], 2), kind)))
    recording.end('success', 'terminal')
    recording.join()
    assert read(recording.path) == [1, 2]
    counts = {c.topic: c.messages for c in EpisodeRecord.load(recording.path).counts}
    assert counts == {'/image': 1, '/joints': 1}
