# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`qt-ros inspect` on each kind of path, whole, damaged, and of other people."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from rosbags.rosbag2 import StoragePlugin, Writer

from qt_core.replay import ReplayFolder, ReplayWriter
from qt_core.share import share_path
from qt_ros.bags.episode import EpisodeRecord, SourceChange
from qt_ros.cli.main import main
from test.conftest import make_episode
from test.qt_ros.synthetic_bags import (
    START,
    STORE,
    TYPES,
    draw_episode,
    episode_messages,
    write_bag,
)

CONTRACT = share_path('config/contracts/tabletop.yaml')
POLICY = share_path('config/policies/reach')


@pytest.fixture
def inspect(capsys):
    """Run the command; give what `--json` says, and the tables."""

    def run(path, *flags):
        assert main(['inspect', str(path), '--json', *flags]) == 0
        found = json.loads(capsys.readouterr().out)
        assert main(['inspect', str(path)]) == 0
        return found, capsys.readouterr().out

    return run


@pytest.fixture
def refused(capsys):
    """Run the command on what it cannot read; give the one line."""

    def run(*words):
        assert main(['inspect', *map(str, words)]) == 1
        captured = capsys.readouterr()
        lines = captured.err.splitlines()
        assert len(lines) == 1, lines
        assert captured.out == ''
        return lines[0]

    return run


def test_a_bag_that_says_who_drove(inspect, tmp_path):
    bag = write_bag(tmp_path / 'bag', episode_messages(draw_episode(0, steps=10)))
    changes = [(0, 'policy'), (300_000_000, 'teleop')]
    sources = tuple(SourceChange(time=START + time, source=source) for time, source in changes)
    replace(EpisodeRecord.load(bag), sources=sources).save(bag)
    found, text = inspect(bag)
    assert found['sources'][1] == {'time': START + 300_000_000, 'source': 'teleop'}
    assert 'policy from 0.0 s, teleop from 0.3 s' in text


def test_a_bag_of_the_recorder(inspect, tmp_path):
    bag = write_bag(tmp_path / 'bag', episode_messages(draw_episode(0, steps=10)))
    found, text = inspect(bag)
    assert (found['kind'], found['outcome'], found['damage']) == ('bag', 'success', '')
    assert (found['messages'], found['duration'], found['start']) == (32, 1.0, START)
    assert found['bytes'] == (bag / 'bag.mcap').stat().st_size
    topics = {row['topic']: row for row in found['topics']}
    assert topics['/camera/image_raw']['rate'] == 10.0
    assert topics['/camera/image_raw']['largest_gap'] == 0.1
    assert topics['/joint_trajectory']['messages'] == 10
    for shown in ('touch the red block', 'sensor_msgs/msg/JointState', 'success', 'tabletop'):
        assert shown in text


def test_one_file_of_a_bag(inspect, tmp_path):
    bag = write_bag(tmp_path / 'bag', episode_messages(draw_episode(0)))
    assert inspect(bag / 'bag.mcap')[0]['topics'] == inspect(bag)[0]['topics']


@pytest.mark.parametrize('plugin', [StoragePlugin.MCAP, StoragePlugin.SQLITE3])
@pytest.mark.parametrize('metadata', [True, False])
def test_a_bag_of_another_recorder(inspect, tmp_path, plugin, metadata):
    bag = tmp_path / 'bag'
    with Writer(bag, version=9, storage_plugin=plugin) as writer:
        connection = writer.add_connection('/chatter', 'std_msgs/msg/String', typestore=STORE)
        data = STORE.serialize_cdr(TYPES['std_msgs/msg/String']('hi'), 'std_msgs/msg/String')
        for index in range(5):
            writer.write(connection, START + index * 250_000_000, bytes(data))
    if not metadata:
        (bag / 'metadata.yaml').unlink()
    found, _ = inspect(bag)
    assert found['topics'] == [
        {
            'topic': '/chatter',
            'type': 'std_msgs/msg/String',
            'name': '',
            'messages': 5,
            'rate': 4.0,
            'expected': None,
            'largest_gap': 0.25,
            'repeated': None,
            'jumps': None,
        }
    ]
    assert (found['outcome'], found['contract'], found['damage']) == (None, None, '')


def write_long_bag(path):
    """Write a bag of several chunks, of which the first ones survive a cut."""
    return write_bag(path, episode_messages(draw_episode(0, steps=200)))


@pytest.mark.parametrize('metadata', [True, False])
def test_a_bag_that_was_cut_off(inspect, tmp_path, metadata):
    bag = write_long_bag(tmp_path / 'bag')
    file = bag / 'bag.mcap'
    content = file.read_bytes()
    file.write_bytes(content[: len(content) * 3 // 4])
    if not metadata:
        (bag / 'metadata.yaml').unlink()
    found, text = inspect(bag)
    assert 100 < found['messages'] < 600
    assert found['damage'].startswith('bag.mcap was cut off; ')
    assert 'cut off' in text


def test_a_bag_whose_middle_is_garbled(inspect, tmp_path):
    bag = write_long_bag(tmp_path / 'bag')
    file = bag / 'bag.mcap'
    content = bytearray(file.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 5000] = bytes(5000)
    file.write_bytes(content)
    found, _ = inspect(bag)
    assert 0 < found['messages'] < 602
    assert found['damage'].startswith('bag.mcap: ')


def test_a_recording_that_was_not_finished(inspect, tmp_path):
    bag = write_long_bag(tmp_path / 'a')
    (tmp_path / 'a.partial').mkdir()
    shutil.move(bag, tmp_path / 'a.partial/a')
    found, _ = inspect(tmp_path)
    assert found['kind'] == 'folder of bags'
    assert found['bags'][0]['name'] == 'a.partial'
    assert 'unfinished' in found['bags'][0]['damage']
    assert inspect(tmp_path / 'a.partial')[0]['messages'] == 602


def test_a_folder_of_bags(inspect, tmp_path):
    write_bag(tmp_path / 'a', episode_messages(draw_episode(0)))
    write_bag(tmp_path / 'b', episode_messages(draw_episode(1)), outcome='failure')
    broken = write_bag(tmp_path / 'c', episode_messages(draw_episode(2)))
    (broken / 'episode.json').write_text('{')
    other = write_bag(tmp_path / 'd', episode_messages(draw_episode(3)))
    (other / 'episode.json').unlink()
    (tmp_path / 'notes').mkdir()
    found, text = inspect(tmp_path)
    assert [bag['name'] for bag in found['bags']] == ['a', 'b', 'c', 'd']
    assert [bag['outcome'] for bag in found['bags']] == ['success', 'failure', None, None]
    assert [bag['messages'] for bag in found['bags']] == [20, 20, None, 20]
    assert 'episode.json cannot be read' in found['bags'][2]['damage']
    assert '4 bags in' in text
    assert '1 failure, 1 success' in text


def test_a_replay_folder(inspect, tmp_path, tiny_contract, embed):
    states = np.linspace(-1, 1, 7 * 7).reshape(7, 7).astype(np.float32)
    with ReplayWriter(tmp_path / 'r', tiny_contract, embed, shard_steps=6) as writer:
        for seed in range(3):
            episode = make_episode(tiny_contract, seed)
            writer.add(replace(episode, state=states + seed, outcome='success'))
    found, text = inspect(tmp_path / 'r')
    assert (found['episodes'], found['steps'], found['shards']) == (3, 18, 3)
    assert found['duration'] == pytest.approx(1.8)
    assert found['outcomes'] == {'success': 3}
    assert found['instructions'] == {'touch the red block': 3}
    assert found['contract']['name'] == 'tabletop'
    every = np.concatenate([states + seed for seed in range(3)]).astype(np.float64)
    for column, row in enumerate(found['state']):
        assert row['name'] == tiny_contract.state.joints[column]
        for part, value in (('min', 'min'), ('max', 'max'), ('mean', 'mean'), ('std', 'std')):
            expected = getattr(every[:, column], value)()
            assert row[part] == pytest.approx(expected, rel=1e-4, abs=1e-5)
    replay = ReplayFolder(tmp_path / 'r')
    actions = np.concatenate([replay.episode(index).action for index in range(3)])
    means = [row['mean'] for row in found['action']]
    assert means == pytest.approx(actions.mean(0).tolist(), rel=1e-4, abs=1e-6)
    for shown in ('front 32x32x3', 'raw', 'shoulder_pan', '18'):
        assert shown in text


def test_the_report_is_written_anew_and_keeps_its_failures(inspect, replay_path):
    from qt_ros.bags.report import write_report

    page = write_report(replay_path, ['bag_3: no topic'])
    before = page.read_bytes()
    page.unlink()
    inspect(replay_path, '--report')
    assert page.read_bytes() == before


def test_a_checkpoint(inspect):
    found, text = inspect(POLICY)
    assert (found['kind'], found['policy']) == ('checkpoint', 'q_transformer')
    assert found['parameters'] == 1_449_131
    assert found['training']['steps'] == 4000
    assert found['contract']['name'] == 'tabletop'
    assert '1,449,131' in text


def test_a_training_run_is_its_last_checkpoint(inspect, tmp_path):
    shutil.copytree(POLICY, tmp_path / 'run/last')
    found, _ = inspect(tmp_path / 'run')
    assert (found['kind'], found['path']) == ('checkpoint', str(tmp_path / 'run/last'))


def test_a_contract(inspect):
    found, text = inspect(CONTRACT)
    assert (found['kind'], found['rate']) == ('contract', 10.0)
    assert 'camera/image_raw' in text


def test_text_from_data_moves_no_cursor_and_is_no_markup(inspect, tmp_path):
    bag = write_bag(tmp_path / 'bag', episode_messages(draw_episode(0)))
    record = json.loads((bag / 'episode.json').read_text())
    record['instruction'] = '[bold]touch[/bold] \x1b[2J it'
    (bag / 'episode.json').write_text(json.dumps(record))
    _, text = inspect(bag)
    assert '[bold]touch[/bold] \\x1b[2J it' in text
    assert '\x1b' not in text


def test_what_cannot_be_read_is_one_line(refused, tmp_path, replay_path):
    empty = tmp_path / 'empty'
    empty.mkdir()
    assert f'{empty}: no bag, folder of bags' in refused(empty)
    assert 'no such file' in refused(tmp_path / 'absent')
    (tmp_path / 'notes.txt').write_text('hello')
    assert 'no bag' in refused(tmp_path / 'notes.txt')
    (tmp_path / 'robot.yaml').write_text('rate: 10')
    assert 'robot.yaml' in refused(tmp_path / 'robot.yaml')
    for name in ('a.mcap', 'a.db3'):
        (tmp_path / name).write_bytes(b'nothing of the kind')
        assert name in refused(tmp_path / name)
    (replay_path / 'meta.json').write_text('{')
    assert 'not a replay folder' in refused(replay_path)
    checkpoint = tmp_path / 'checkpoint'
    shutil.copytree(POLICY, checkpoint)
    weights = checkpoint / 'model.safetensors'
    weights.write_bytes(weights.read_bytes()[:1000])
    assert 'model.safetensors: damaged' in refused(checkpoint)
    (checkpoint / 'config.json').write_text('[]')
    assert 'not a checkpoint' in refused(checkpoint)
    assert 'only a replay folder has a report' in refused(CONTRACT, '--report')
