# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Episode bags: what is written can be read, by us and by rosbag2, or is refused in one line."""

import json
from dataclasses import replace

import numpy as np
import pytest
import yaml

from qt_core.contract import ContractError
from qt_ros.bags import BagError, EpisodeBag, EpisodeBagWriter, EpisodeRecord, find_bags
from qt_ros.bags.episode import SourceChange
from qt_ros.bags.repair import repair
from qt_ros.recording import Limits, Recording
from test.qt_ros.synthetic_bags import (
    CONTRACT,
    SENTENCE,
    STORE,
    draw_episode,
    episode_messages,
    image_message,
    write_bag,
)

TOPICS = [CONTRACT.cameras[0].topic, CONTRACT.state.topic, CONTRACT.action.topic]


def record(**changes):
    """Give the record of a successful episode."""
    return EpisodeRecord(
        instruction=SENTENCE,
        outcome='success',
        ended_by='terminal',
        contract=CONTRACT.to_text(),
        **changes,
    )


def test_messages_come_back_in_order_with_their_times(tmp_path):
    sent = episode_messages(draw_episode(0))
    path = write_bag(tmp_path / 'bag', sent)
    read = list(EpisodeBag(path).messages(TOPICS))
    assert [(f'/{topic}', time) for topic, time, _ in read] == [(m[0], m[2]) for m in sent]
    for (_, _, message), (_, kind, _, expected) in zip(read, sent, strict=True):
        data = STORE.serialize_cdr(message, kind)
        assert bytes(data) == bytes(STORE.serialize_cdr(expected, kind))


def test_folder_is_a_rosbag2_bag_with_a_record(tmp_path):
    path = write_bag(tmp_path / 'episode_000007', episode_messages(draw_episode(0)))
    assert sorted(p.name for p in path.iterdir()) == [
        'episode.json',
        'episode_000007.mcap',
        'metadata.yaml',
    ]
    assert [p.name for p in tmp_path.iterdir()] == ['episode_000007']
    info = yaml.safe_load((path / 'metadata.yaml').read_text())['rosbag2_bagfile_information']
    assert info['relative_file_paths'] == ['episode_000007.mcap']
    assert info['message_count'] == 20
    content = json.loads((path / 'episode.json').read_text())
    assert content['instruction'] == SENTENCE
    assert content['start'] == 5_000_000_000
    assert content['stop'] == 5_600_000_000
    counts = {c['topic']: c['messages'] for c in content['counts']}
    assert counts == {'/joint_states': 7, '/camera/image_raw': 7, '/joint_trajectory': 6}
    assert EpisodeBag(path).contract == CONTRACT


def test_bag_appears_only_when_it_is_complete(tmp_path):
    writer = EpisodeBagWriter(tmp_path / 'bag', {'/image': 'sensor_msgs/msg/Image'})
    message = image_message(np.zeros((4, 4, 3), np.uint8), 1)
    writer.write('/image', 1, bytes(STORE.serialize_cdr(message, 'sensor_msgs/msg/Image')))
    assert [p.name for p in tmp_path.iterdir()] == ['bag.partial']
    with pytest.raises(BagError, match='no bag'):
        find_bags([tmp_path])
    writer.finish(record())
    assert find_bags([tmp_path]) == [tmp_path / 'bag']
    with pytest.raises(BagError, match='exists already'):
        EpisodeBagWriter(tmp_path / 'bag', {})


def test_discard_leaves_nothing(tmp_path):
    EpisodeBagWriter(tmp_path / 'bag', {'/image': 'sensor_msgs/msg/Image'}).discard()
    assert list(tmp_path.iterdir()) == []


def test_unknown_message_type_is_refused(tmp_path):
    with pytest.raises(BagError, match='my_msgs/msg/Mine is unknown'):
        EpisodeBagWriter(tmp_path / 'bag', {'/mine': 'my_msgs/msg/Mine'})
    assert list(tmp_path.iterdir()) == []


def test_find_bags_takes_bags_and_folders_of_bags(tmp_path):
    for name in ('more/b', 'more/a', 'single'):
        write_bag(tmp_path / name, episode_messages(draw_episode(0, steps=1)))
    (tmp_path / 'more/notes').mkdir()
    found = find_bags([tmp_path / 'single', tmp_path / 'more'])
    assert found == [tmp_path / 'single', tmp_path / 'more/a', tmp_path / 'more/b']


@pytest.mark.parametrize(
    ('name', 'says'), [('', 'no bag in this folder'), ('x', 'no such folder')]
)
def test_folder_without_bags(tmp_path, name, says):
    with pytest.raises(BagError, match=says):
        find_bags([tmp_path / name])


def test_remapped_topics_are_found_by_the_record(tmp_path):
    names = {'/usb/image': 'camera/image_raw', '/joint_states': 'joint_states'}
    kinds = {'/usb/image': 'sensor_msgs/msg/Image', '/joint_states': 'sensor_msgs/msg/JointState'}
    writer = EpisodeBagWriter(tmp_path / 'bag', kinds, names)
    message = image_message(np.zeros((4, 4, 3), np.uint8), 1)
    writer.write('/usb/image', 1, bytes(STORE.serialize_cdr(message, kinds['/usb/image'])))
    read = list(EpisodeBag(writer.finish(record())).messages(['camera/image_raw']))
    assert [topic for topic, _, _ in read] == ['camera/image_raw']


def test_ambiguous_topic_is_refused(tmp_path):
    one = episode_messages(draw_episode(0, steps=1), prefix='/left/')
    two = episode_messages(draw_episode(0, steps=1), prefix='/right/')
    path = write_bag(tmp_path / 'bag', one + two)
    with pytest.raises(BagError, match="more than one topic 'joint_states'"):
        list(EpisodeBag(path).messages(['joint_states']))


@pytest.mark.parametrize(
    ('change', 'error', 'says'),
    [
        ({'outcome': 'victory'}, BagError, "outcome is 'victory', expected success or failure"),
        ({'ended_by': 'boredom'}, BagError, "ended_by is 'boredom', expected terminal or timeout"),
        ({'mood': 'good'}, BagError, 'mood is not a field'),
        ({'contract': 'name: 3'}, ContractError, 'name is 3, expected str'),
    ],
)
def test_damaged_record(tmp_path, change, error, says):
    path = write_bag(tmp_path / 'bag', episode_messages(draw_episode(0, steps=1)))
    file = path / 'episode.json'
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(error, match=says) as caught:
        EpisodeBag(path)
    assert 'episode.json' in str(caught.value)


def test_hash_follows_the_content(tmp_path):
    messages = episode_messages(draw_episode(0))
    one, two, three = (
        EpisodeBag(write_bag(tmp_path / name / 'bag', content)).content_hash()
        for name, content in (('a', messages), ('b', messages), ('c', messages[1:]))
    )
    assert one == two != three


def test_record_round_trip(tmp_path):
    written = replace(record(), dropped=3)
    written.save(tmp_path)
    assert EpisodeRecord.load(tmp_path) == written


SOURCES = (SourceChange(time=1, source='policy'), SourceChange(time=5, source='teleop'))


def test_who_drove_is_in_the_record(tmp_path):
    written = record(sources=SOURCES)
    written.save(tmp_path)
    assert EpisodeRecord.load(tmp_path) == written
    content = json.loads((tmp_path / 'episode.json').read_text())
    assert content['sources'][1] == {'time': 5, 'source': 'teleop'}


def test_a_record_of_before_there_was_a_guard(tmp_path):
    record().save(tmp_path)
    content = json.loads((tmp_path / 'episode.json').read_text())
    del content['sources']
    (tmp_path / 'episode.json').write_text(json.dumps(content))
    assert EpisodeRecord.load(tmp_path) == record()


@pytest.fixture
def recording(tmp_path):
    """Give an episode that is being recorded, driven by the policy from the start."""
    known = record(start=1, sources=SOURCES[:1])
    kinds = {'/image': 'sensor_msgs/msg/Image'}
    recording = Recording(
        EpisodeBagWriter(tmp_path / 'bag', kinds, record=known),
        known,
        Limits(queue=1 << 20, flush_interval=0.05, min_free=0),
    )
    message = image_message(np.zeros((4, 4, 3), np.uint8), 1)
    for time in (1, 9):
        recording.put('/image', time, bytes(STORE.serialize_cdr(message, kinds['/image'])))
    yield recording
    recording.discard()
    recording.join()


@pytest.mark.parametrize('stop', [0, 7])
def test_changes_until_the_end_are_noted(recording, stop):
    recording.note_source(5, 'teleop')
    recording.note_source(6, 'teleop')
    recording.note_source(9, 'policy')
    recording.end('success', 'terminal', stop)
    recording.join()
    sources = EpisodeRecord.load(recording.path).sources
    last = () if stop else (SourceChange(time=9, source='policy'),)
    assert sources == SOURCES + last


def test_a_repaired_bag_says_who_drove(recording, tmp_path):
    recording.note_source(5, 'teleop')
    recording.end('success', 'terminal', 9)
    recording.join()
    whole = EpisodeRecord.load(recording.path)
    # As a crash leaves it: the record is there, and the bag has no end.
    partial = tmp_path / 'crash.partial'
    partial.mkdir()
    bag = recording.path.rename(partial / 'crash')
    (bag / 'bag.mcap').rename(bag / 'crash.mcap')
    (bag / 'metadata.yaml').unlink()
    assert EpisodeRecord.load(repair(partial)).sources == whole.sources == SOURCES
