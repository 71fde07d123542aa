# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Every kind of bag gives the same messages, and a damaged one those before the damage."""

import tracemalloc

import numpy as np
import pytest
import yaml

from qt_ros.bags import BagError, EpisodeBag, find_bags
from qt_ros.bags.parts import MAX_MESSAGE, decompressed, find_parts, zstd
from qt_ros.bags.reader import deserialise
from test.qt_ros.foreign_bags import serialise, write_foreign
from test.qt_ros.synthetic_bags import CONTRACT, draw_episode, episode_messages, image_message

TOPICS = [CONTRACT.cameras[0].topic, CONTRACT.state.topic, CONTRACT.action.topic]
MESSAGES = episode_messages(draw_episode(0, steps=30, size=200))
KINDS = {
    'mcap': {},
    'mcap-chunks': {'compression': 'storage'},
    'mcap-file': {'compression': 'file'},
    'mcap-message': {'compression': 'message'},
    'db3': {'storage': 'db3'},
    'db3-file': {'storage': 'db3', 'compression': 'file'},
    'db3-message': {'storage': 'db3', 'compression': 'message'},
    'mcap-split': {'parts': 12},
    'db3-split': {'storage': 'db3', 'parts': 12},
    'mcap-split-file': {'parts': 3, 'compression': 'file'},
}


def read(bag):
    """Give what is in a bag, as (topic, receive time, bytes)."""
    return [(f'/{topic}', time, bytes(data)) for topic, time, data in bag.serialised(TOPICS)]


EXPECTED = [(topic, time, serialise(m, kind)) for topic, kind, time, m in MESSAGES]


@pytest.mark.parametrize('metadata', [True, False])
@pytest.mark.parametrize('kind', KINDS)
def test_every_kind_of_bag(tmp_path, kind, metadata):
    path = write_foreign(tmp_path / 'bag', MESSAGES, **KINDS[kind])
    if not metadata:
        (path / 'metadata.yaml').unlink()
    assert find_bags([tmp_path]) == [path]
    bag = EpisodeBag(path, contract=CONTRACT)
    assert read(bag) == EXPECTED
    assert bag.damage == ''


@pytest.mark.parametrize('storage', ['mcap', 'db3'])
def test_single_file_is_a_bag(tmp_path, storage):
    folder = write_foreign(tmp_path / 'bag', MESSAGES, storage=storage)
    file = folder / f'bag_0.{storage}'
    assert find_bags([file]) == [file]
    assert read(EpisodeBag(file, contract=CONTRACT)) == EXPECTED


def test_parts_are_in_natural_order(tmp_path):
    for number in (10, 2, 1, 0):
        (tmp_path / f'bag_{number}.mcap').touch()
    names = [part.name for part in find_parts(tmp_path)]
    assert names == ['bag_0.mcap', 'bag_1.mcap', 'bag_2.mcap', 'bag_10.mcap']


def test_file_cut_off_gives_what_came_before(tmp_path):
    path = write_foreign(tmp_path / 'bag', MESSAGES)
    file = next(path.glob('*.mcap'))
    content = file.read_bytes()
    file.write_bytes(content[: len(content) * 2 // 3])
    bag = EpisodeBag(path, contract=CONTRACT)
    found = read(bag)
    assert 10 < len(found) < len(EXPECTED)
    assert found == EXPECTED[: len(found)]
    assert 'bag_0.mcap was cut off' in bag.damage


def test_damaged_chunk_gives_what_came_before(tmp_path):
    path = write_foreign(tmp_path / 'bag', MESSAGES, compression='storage')
    file = next(path.glob('*.mcap'))
    content = bytearray(file.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 2000] = np.random.default_rng(0).bytes(2000)
    file.write_bytes(content)
    bag = EpisodeBag(path, contract=CONTRACT)
    found = read(bag)
    assert 10 < len(found) < len(EXPECTED)
    assert found == EXPECTED[: len(found)]
    assert 'bag_0.mcap' in bag.damage


def test_damaged_index_is_not_needed(tmp_path):
    path = write_foreign(tmp_path / 'bag', MESSAGES)
    file = next(path.glob('*.mcap'))
    content = bytearray(file.read_bytes())
    content[-300:-100] = b'\xa5' * 200
    file.write_bytes(content)
    bag = EpisodeBag(path, contract=CONTRACT)
    assert read(bag) == EXPECTED
    assert 'its index cannot be read' in bag.damage


@pytest.mark.parametrize('storage', ['mcap', 'db3'])
def test_missing_part_ends_the_bag(tmp_path, storage):
    path = write_foreign(tmp_path / 'bag', MESSAGES, storage=storage, parts=4)
    (path / f'bag_2.{storage}').unlink()
    bag = EpisodeBag(path, contract=CONTRACT)
    found = read(bag)
    assert found == EXPECTED[: len(found)]
    assert len(found) == 2 * -(-len(EXPECTED) // 4)
    assert bag.damage == f'bag_2.{storage}: is missing'


def test_part_cut_off_ends_the_bag(tmp_path):
    # What a later part holds would follow the gap as if nothing were missing.
    messages = episode_messages(draw_episode(2, steps=40, size=200))
    path = write_foreign(tmp_path / 'bag', messages, parts=2)
    whole = read(EpisodeBag(path, contract=CONTRACT))
    file = path / 'bag_0.mcap'
    with file.open('r+b') as opened:
        opened.truncate(file.stat().st_size * 3 // 4)
    bag = EpisodeBag(path, contract=CONTRACT)
    found = read(bag)
    assert 3 < len(found) < len(whole) // 2
    assert found == whole[: len(found)]
    assert 'bag_0.mcap was cut off' in bag.damage


def test_part_with_a_damaged_index_does_not_end_the_bag(tmp_path):
    path = write_foreign(tmp_path / 'bag', MESSAGES, parts=2)
    content = bytearray((path / 'bag_0.mcap').read_bytes())
    content[-300:-100] = b'\xa5' * 200
    (path / 'bag_0.mcap').write_bytes(content)
    bag = EpisodeBag(path, contract=CONTRACT)
    assert read(bag) == EXPECTED
    assert 'its index cannot be read' in bag.damage


def test_want_of_room_is_no_damage(tmp_path, monkeypatch):
    path = write_foreign(tmp_path / 'bag', MESSAGES, compression='file')
    bag = EpisodeBag(path, contract=CONTRACT)
    assert read(bag) == EXPECTED
    monkeypatch.setattr('qt_ros.bags.parts.RESERVE', 2**62)
    with pytest.raises(BagError, match='no room in'):
        read(bag)
    assert bag.damage == ''


def test_truncated_anywhere_is_a_prefix_or_one_line(tmp_path):
    random = np.random.default_rng(1)
    outcomes = set()
    for kind in ('mcap', 'mcap-chunks', 'mcap-file', 'db3', 'db3-file'):
        path = write_foreign(tmp_path / kind, MESSAGES, **KINDS[kind])
        file = next(p for p in path.iterdir() if p.name != 'metadata.yaml')
        content = file.read_bytes()
        for cut in random.integers(0, len(content), 6).tolist():
            file.write_bytes(content[:cut])
            bag = EpisodeBag(path, contract=CONTRACT)
            try:
                found = read(bag)
            except BagError as error:
                outcomes.add('unreadable' if f'{path}: cannot be read' in str(error) else '?')
            else:
                assert found == EXPECTED[: len(found)]
                assert bag.damage
                outcomes.add('prefix')
    assert outcomes == {'unreadable', 'prefix'}


@pytest.mark.parametrize('name', ['../other/other_0.mcap', '/etc/passwd', '..', '../../x.mcap'])
def test_metadata_does_not_lead_out_of_the_folder(tmp_path, name):
    write_foreign(tmp_path / 'other', MESSAGES)
    path = write_foreign(tmp_path / 'bag', MESSAGES[:30])
    metadata = yaml.safe_load((path / 'metadata.yaml').read_text())
    metadata['rosbag2_bagfile_information']['relative_file_paths'] = [name]
    (path / 'metadata.yaml').write_text(yaml.safe_dump(metadata))
    assert all(part.parent == path for part in find_parts(path))
    assert read(EpisodeBag(path, contract=CONTRACT)) == EXPECTED[:30]


@pytest.mark.parametrize('name', ['a?mode=rwc', 'a#b', 'a%41', "a'b;--", 'a b'])
@pytest.mark.parametrize('storage', ['mcap', 'db3'])
def test_names_are_no_commands(tmp_path, name, storage):
    path = write_foreign(tmp_path / 'plain', MESSAGES[:30], storage=storage)
    path = path.rename(tmp_path / name)
    assert read(EpisodeBag(path, contract=CONTRACT)) == EXPECTED[:30]
    assert [p.name for p in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize('content', ['a: [', '[]', 'rosbag2_bagfile_information: 3', '\x00'])
def test_metadata_that_is_none(tmp_path, content):
    path = write_foreign(tmp_path / 'bag', MESSAGES[:30])
    (path / 'metadata.yaml').write_text(content)
    assert read(EpisodeBag(path, contract=CONTRACT)) == EXPECTED[:30]


def test_length_prefix_of_a_billion_makes_nothing():
    kinds = {
        'sensor_msgs/msg/Image': image_message(np.zeros((2, 2, 3), np.uint8), 1),
        'sensor_msgs/msg/JointState': MESSAGES[0][3],
        'trajectory_msgs/msg/JointTrajectory': MESSAGES[2][3],
    }
    billion = (10**9).to_bytes(4, 'little')
    for kind, message in kinds.items():
        data = serialise(message, kind)
        refused = 0
        for place in range(4, len(data) - 3):
            spoilt = data[:place] + billion + data[place + 4 :]
            tracemalloc.start()
            try:
                deserialise(spoilt, kind)
            except BagError:
                refused += 1
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            assert peak < 1 << 20
        assert refused > 3


def test_message_that_would_be_too_large_is_not_decompressed(monkeypatch):
    monkeypatch.setattr('qt_ros.bags.parts.MAX_MESSAGE', 1 << 20)
    assert MAX_MESSAGE > 256 << 20
    assert decompressed(zstd.compress(bytes(1 << 19))) == bytes(1 << 19)
    with pytest.raises(BagError, match='cut off or over 1 MiB'):
        decompressed(zstd.compress(bytes(1 << 30)))
    with pytest.raises(BagError, match='cut off or over'):
        decompressed(zstd.compress(bytes(1 << 19))[:-3])
