# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What a killed recorder leaves is made into a bag again, wherever it was killed."""

import os
import shutil

import pytest
from rosbags.rosbag2 import Reader

from qt_ros.bags import BagError, EpisodeBagWriter, EpisodeRecord, find_bags
from qt_ros.bags.episode import STOPPED
from qt_ros.bags.repair import repair, repair_all
from test.qt_ros.synthetic_bags import CONTRACT, SENTENCE, STORE, draw_episode, episode_messages

MESSAGES = [
    (topic, kind, time, bytes(STORE.serialize_cdr(message, kind)))
    for topic, kind, time, message in episode_messages(draw_episode(0, steps=100))
]
TOPICS = {topic: kind for topic, kind, _, _ in MESSAGES}
NAMES = {topic: topic.strip('/') for topic in TOPICS}


def record(**changes):
    """What is known when an episode begins."""
    known = {'instruction': SENTENCE, 'outcome': 'success', 'ended_by': 'terminal'}
    return EpisodeRecord(**known | {'contract': CONTRACT.to_text()} | changes)


def in_a_process_that_dies(write):
    """Run a function in a process that ends as if it were killed: nothing is flushed or closed."""
    pid = os.fork()
    if pid == 0:
        try:
            write()
        finally:
            os._exit(0)
    os.waitpid(pid, 0)


def leave_behind(path, compression='zstd', flushed=100):
    """Write an episode, flush it now and then up to some message, and die."""

    def write():
        expected = {'/camera/image_raw': 10.0}
        writer = EpisodeBagWriter(
            path, TOPICS, NAMES, expected=expected, compression=compression, record=record()
        )
        for index, (topic, _, time, data) in enumerate(MESSAGES):
            if index % 25 == 0 and index <= flushed:
                writer.flush()
            writer.write(topic, time, data)

    in_a_process_that_dies(write)
    return path.with_name(path.name + '.partial')


def times(path):
    """Give topic and time of every message that rosbags reads from a bag."""
    with Reader(path) as reader:
        return [(connection.topic, time) for connection, time, _ in reader.messages()]


@pytest.mark.parametrize('compression', ['zstd', 'none'])
def test_everything_that_was_flushed_is_kept(tmp_path, compression):
    partial = leave_behind(tmp_path / 'bag', compression)
    assert repair(partial) == tmp_path / 'bag'
    kept = times(tmp_path / 'bag')
    assert len(kept) >= 100
    assert kept == [(topic, time) for topic, _, time, _ in MESSAGES][: len(kept)]
    found = EpisodeRecord.load(tmp_path / 'bag')
    assert (found.damage, found.outcome, found.ended_by) == (STOPPED, 'unlabeled', 'timeout')
    assert (found.instruction, found.contract) == (SENTENCE, CONTRACT.to_text())
    assert sum(count.messages for count in found.counts) == len(kept)
    camera = next(c for c in found.counts if c.name == 'camera/image_raw')
    assert (camera.expected, camera.largest_gap) == (10.0, 0.1)
    assert (found.start, found.stop) == (kept[0][1], kept[-1][1])
    assert os.listdir(tmp_path) == ['bag']
    assert find_bags([tmp_path]) == [tmp_path / 'bag']


def test_cut_off_anywhere(tmp_path):
    partial = leave_behind(tmp_path / 'bag')
    file = partial / 'bag/bag.mcap'
    content = file.read_bytes()
    shutil.move(partial, tmp_path / 'original')
    most = 0
    for length in range(len(content), 0, -len(content) // 23):
        shutil.rmtree(tmp_path / 'bag', ignore_errors=True)
        shutil.rmtree(tmp_path / 'bag.unreadable', ignore_errors=True)
        shutil.copytree(tmp_path / 'original', partial)
        file.write_bytes(content[:length])
        path = repair(partial)
        if path is None:
            assert length < len(content) / 4
            assert (tmp_path / 'bag.unreadable/bag/bag.mcap').stat().st_size == length
        else:
            kept = times(path)
            assert kept == [(topic, time) for topic, _, time, _ in MESSAGES][: len(kept)]
            most = max(most, len(kept))
        assert not partial.exists()
    assert most >= 100


@pytest.mark.parametrize('compression', ['zstd', 'none'])
@pytest.mark.parametrize('garbage', [bytes, os.urandom], ids=['zeros', 'noise'])
def test_power_cut_that_leaves_garbage_at_the_end(tmp_path, compression, garbage):
    partial = leave_behind(tmp_path / 'bag', compression)
    file = partial / 'bag/bag.mcap'
    content = file.read_bytes()
    good = len(content) * 4 // 5  # within the fourth of five chunks
    file.write_bytes(content[:good] + garbage(len(content) - good))
    kept = times(repair(partial))
    assert kept[:75] == [(topic, time) for topic, _, time, _ in MESSAGES][:75]


def test_what_follows_a_damaged_chunk_is_kept_aside(tmp_path):
    partial = leave_behind(tmp_path / 'bag', 'zstd')
    file = partial / 'bag/bag.mcap'
    content = bytearray(file.read_bytes())
    chunk = content.index(b'\x28\xb5\x2f\xfd', len(content) // 2)  # zstd's magic number
    content[chunk : chunk + 4] = bytes(4)
    file.write_bytes(content)
    assert repair(partial) == tmp_path / 'bag'
    kept = times(tmp_path / 'bag')
    assert kept == [(topic, time) for topic, _, time, _ in MESSAGES][: len(kept)]
    assert 'damaged' in EpisodeRecord.load(tmp_path / 'bag').damage
    assert (tmp_path / 'bag.damaged/bag/bag.mcap').read_bytes() == content
    assert not partial.exists()


def test_complete_bag_that_lacks_only_its_name(tmp_path, monkeypatch):
    def write():
        writer = EpisodeBagWriter(tmp_path / 'bag', TOPICS, NAMES, record=record())
        for topic, _, time, data in MESSAGES:
            writer.write(topic, time, data)
        monkeypatch.setattr(os, 'replace', die_at('bag', os.replace))
        writer.finish(record())

    in_a_process_that_dies(write)
    assert os.listdir(tmp_path) == ['bag.partial']
    assert repair(tmp_path / 'bag.partial') == tmp_path / 'bag'
    found = EpisodeRecord.load(tmp_path / 'bag')
    assert (found.outcome, found.damage) == ('success', '')
    assert len(times(tmp_path / 'bag')) == len(MESSAGES)


@pytest.mark.parametrize('replacement', range(3))
def test_killed_while_repairing(tmp_path, monkeypatch, replacement):
    partial = leave_behind(tmp_path / 'bag')
    names = ['episode.json', 'bag', 'bag']  # of the record, the copy and the repaired bag

    def write():
        monkeypatch.setattr(
            os, 'replace', die_at(names[replacement], os.replace, replacement == 2)
        )
        repair(partial)

    in_a_process_that_dies(write)
    assert partial.exists()
    assert repair(partial) == tmp_path / 'bag'
    assert len(times(tmp_path / 'bag')) >= 100
    assert os.listdir(tmp_path) == ['bag']


def test_killed_between_the_last_name_and_the_end(tmp_path, monkeypatch):
    partial = leave_behind(tmp_path / 'bag')

    def write():
        real = shutil.rmtree

        def remove(path, **options):
            if path == partial:
                os._exit(0)
            real(path, **options)

        monkeypatch.setattr(shutil, 'rmtree', remove)
        repair(partial)

    in_a_process_that_dies(write)
    assert sorted(os.listdir(tmp_path)) == ['bag', 'bag.partial']
    assert repair(partial) == tmp_path / 'bag'
    assert os.listdir(tmp_path) == ['bag']


def die_at(name, replace, last=False):
    """Stand in for os.replace in a process that is killed before it gives something a name."""

    def replaced(source, to):
        if os.path.basename(to) == name and (not last or 'repaired' not in str(to)):
            os._exit(0)
        replace(source, to)

    return replaced


@pytest.mark.parametrize('lost', ['bag/episode.json', 'bag/bag.mcap', 'bag'])
def test_what_is_unreadable_is_kept(tmp_path, lost):
    partial = leave_behind(tmp_path / 'bag')
    target = partial / lost
    shutil.rmtree(target) if target.is_dir() else target.unlink()
    assert repair(partial) is None
    assert os.listdir(tmp_path) == ['bag.unreadable']


def test_episode_without_a_message_is_unreadable(tmp_path):
    partial = leave_behind(tmp_path / 'bag', flushed=0)
    content = (partial / 'bag/bag.mcap').read_bytes()
    (partial / 'bag/bag.mcap').write_bytes(content[:60])
    assert repair(partial) is None
    assert os.listdir(tmp_path) == ['bag.unreadable']


def test_bag_that_is_being_written_is_left_alone(tmp_path):
    writer = EpisodeBagWriter(tmp_path / 'bag', TOPICS, NAMES, record=record())
    with pytest.raises(BagError, match='is being recorded by another process'):
        repair(tmp_path / 'bag.partial')
    for topic, _, time, data in MESSAGES:
        writer.write(topic, time, data)
    assert len(times(writer.finish(record()))) == len(MESSAGES)


def test_one_line_for_each_bag(tmp_path):
    leave_behind(tmp_path / 'a')
    shutil.rmtree(leave_behind(tmp_path / 'b') / 'b')
    writer = EpisodeBagWriter(tmp_path / 'c', TOPICS, NAMES, record=record())
    assert repair_all(tmp_path) == [
        f'{tmp_path}/a repaired',
        f'nothing readable; kept as {tmp_path}/b.unreadable',
        f'not repaired: {tmp_path}/c.partial is being recorded by another process',
    ]
    writer.discard()
    assert repair_all(tmp_path) == []


def test_another_episode_of_the_name_is_left_alone(tmp_path):
    partial = leave_behind(tmp_path / 'bag')
    (tmp_path / 'bag').mkdir()
    (tmp_path / 'bag/notes').write_text('mine')
    with pytest.raises(BagError, match='rename one'):
        repair(partial)
    assert (partial / 'bag/bag.mcap').exists()
    assert (tmp_path / 'bag/notes').exists()
    with pytest.raises(BagError, match=r'is not the \.partial folder'):
        repair(tmp_path / 'bag')
