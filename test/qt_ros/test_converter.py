# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Bags -> replay folder: exactly what was recorded, or one line about why not."""

import argparse
import os
import shutil
import signal
import time
from dataclasses import replace
from functools import partial
from multiprocessing import get_context

import cv2
import numpy as np
import pytest

from qt_core.action_space import ActionSpace
from qt_core.replay import ReplayError, ReplayFolder
from qt_ros.bags import BagError, EpisodeBag, find_bags
from qt_ros.bags.converter import convert, convert_bag, convert_episode
from qt_ros.bags.episode import InstructionChange
from qt_ros.bags.report import earlier_failures
from qt_ros.cli import convert as convert_command
from qt_ros.cli.main import main
from test.qt_ros.foreign_bags import sentence_message, serialise, write_foreign
from test.qt_ros.synthetic_bags import (
    CONTRACT,
    SENTENCE,
    START,
    TYPES,
    at_rate,
    draw_episode,
    episode_messages,
    write_bag,
)

PERIOD = 100_000_000


def embed(sentences):
    """Stand for the sentence encoder, which takes seconds to load."""
    return np.array([[float(len(sentence))] * 4 for sentence in sentences], np.float32)


def converted(tmp_path, messages, **options):
    """Write messages into a bag and convert it."""
    return convert_episode(EpisodeBag(write_bag(tmp_path / 'bag', messages, **options)))


def check(episode, expected, contract=CONTRACT):
    """Compare frame by frame, joint by joint and bin by bin."""
    space = ActionSpace(contract)
    assert np.array_equal(episode.images['front'], expected.frames)
    assert np.array_equal(episode.state, expected.positions.astype(np.float32))
    delta = expected.targets - expected.positions[:-1]
    assert np.allclose(episode.action, delta, atol=1e-6)
    assert np.abs(episode.bins - space.encode(delta)).max() <= 1
    assert np.mean(episode.bins == space.encode(delta)) > 0.95


@pytest.mark.parametrize('rate', [10.0, 30.0, 12.5, 7.0])
def test_episode_equals_what_was_recorded(tmp_path, rate):
    # 1/30 s is no whole number of nanoseconds; the simulator rounds the period, not each stamp.
    contract, expected = at_rate(rate), draw_episode(1, steps=40, size=64)
    messages = episode_messages(expected, contract, period=round(1e9 / rate))
    episode, stale = converted(tmp_path, messages, contract=contract)
    check(episode, expected, contract)
    assert stale == 0
    assert (episode.terminal, episode.timeout) == (True, False)
    assert episode.reward.tolist() == [0.0] * 39 + [1.0]
    assert episode.instruction == SENTENCE


@pytest.mark.parametrize(
    ('outcome', 'ended_by', 'reward', 'terminal'),
    [
        ('failure', 'terminal', 0, True),
        ('failure', 'timeout', 0, False),
        ('unlabeled', 'timeout', 0, False),
    ],
)
def test_outcome(tmp_path, outcome, ended_by, reward, terminal):
    episode, _ = converted(
        tmp_path, episode_messages(draw_episode(2)), outcome=outcome, ended_by=ended_by
    )
    assert episode.reward.sum() == reward
    assert (episode.terminal, episode.timeout) == (terminal, not terminal)


def test_namespace_of_the_robot_is_ignored(tmp_path):
    expected = draw_episode(3)
    episode, _ = converted(tmp_path, episode_messages(expected, prefix='/robots/left/'))
    check(episode, expected)


def test_jitter_and_late_commands_do_not_shift_actions(tmp_path):
    # Camera and joints keep their own time, and unstamped commands come 20-60 ms after the image.
    expected, random = draw_episode(4, steps=60), np.random.default_rng(4)
    messages = []
    for topic, kind, now, message in episode_messages(expected):
        index = (now - START) // PERIOD
        if 'image' in topic or 'state' in topic:
            lead = 9_000_000 if 'state' in topic else 0
            now += int(np.random.default_rng(index).integers(-8e6, 8e6)) - lead
            stamp = message.header.stamp
            stamp.sec, stamp.nanosec = divmod(now, 1_000_000_000)
        else:
            now += int(random.integers(20e6, 60e6))
            message.header.stamp.sec = message.header.stamp.nanosec = 0
        messages.append((topic, kind, now, message))
    episode, stale = converted(tmp_path, sorted(messages, key=lambda m: m[2]))
    check(episode, expected)
    assert stale == 0


def test_fast_camera_is_thinned_to_the_control_rate(tmp_path):
    dense = draw_episode(5, steps=90)
    messages = episode_messages(dense, period=33_333_333)
    episode, _ = converted(tmp_path, messages)
    assert np.array_equal(episode.images['front'], dense.frames[::3])
    assert np.allclose(episode.action, (dense.targets - dense.positions[:-1])[::3], atol=1e-6)


def test_command_stays_in_force_when_one_is_missing(tmp_path):
    expected = draw_episode(6)
    messages = episode_messages(expected)
    gone = [m for m in messages if 'trajectory' in m[0]][2]
    episode, _ = converted(tmp_path, [m for m in messages if m is not gone])
    assert len(episode.action) == 6
    low, high = np.array(CONTRACT.action.low), np.array(CONTRACT.action.high)
    held = np.clip(expected.targets[1] - expected.positions[2], low, high)
    assert np.allclose(episode.action[2], held, atol=1e-6)
    assert np.array_equal(episode.images['front'], expected.frames)


def test_episode_lasts_from_the_first_to_the_last_command(tmp_path):
    expected = draw_episode(7, steps=8)
    late = [m for m in episode_messages(expected) if 'trajectory' in m[0]][2:5]
    rest = [m for m in episode_messages(expected) if 'trajectory' not in m[0]]
    episode, _ = converted(tmp_path, sorted(rest + late, key=lambda m: m[2]))
    assert np.array_equal(episode.images['front'], expected.frames[2:6])


def test_commands_after_the_end_do_not_count(tmp_path):
    # The robot goes on while the recorder waits for the last messages.
    expected = draw_episode(18, steps=20)
    episode, _ = converted(tmp_path, episode_messages(expected), stop=START + 10 * PERIOD)
    assert len(episode.action) == 12  # one period of grace: /clock may be late
    assert episode.reward.tolist() == [0.0] * 11 + [1.0]


def test_ticks_with_a_frozen_camera_are_left_out(tmp_path):
    messages = episode_messages(draw_episode(8, steps=20))
    frozen = [m for m in messages if 'image' in m[0]][5:15]
    kept = [m for m in messages if not any(m is f for f in frozen)]
    episode, stale = converted(tmp_path, kept)
    assert stale == 5  # max_age is 0.5 s, five periods
    assert len(episode.action) == 15


def drop(topic):
    """Give what removes a topic from an episode."""
    return lambda messages: [m for m in messages if topic not in m[0]]


def broken_image(messages):
    """Cut off the pixels of one image."""
    next(m for m in messages if 'image' in m[0])[3].data = np.zeros(7, np.uint8)
    return messages


def other_sentence(messages):
    """Change the sentence in mid-episode."""
    message = TYPES['std_msgs/msg/String']('touch the blue block')
    middle = len(messages) // 2
    new = ('/instruction', 'std_msgs/msg/String', messages[middle][2], message)
    return [*messages[:middle], new, *messages[middle:]]


def wrong_type(messages):
    """Publish something else on the command topic."""
    string = TYPES['std_msgs/msg/String']('go')
    return [
        (t, 'std_msgs/msg/String', now, string) if 'trajectory' in t else (t, kind, now, message)
        for t, kind, now, message in messages
    ]


def unset_clock(messages):
    """Set the clock, which had started at zero, before the last image."""
    last = [m for m in messages if 'image' in m[0]][-1]
    last[3].header.stamp.sec = 1_790_000_000
    return messages


@pytest.mark.parametrize(
    ('spoil', 'says'),
    [
        (unset_clock, "stamps of 'camera/image_raw' span 178999999"),
        (drop('camera'), "no topic 'camera/image_raw'; recorded: /joint_states"),
        (drop('joint_states'), "no topic 'joint_states'"),
        (drop('trajectory'), "no topic 'joint_trajectory'"),
        (broken_image, 'image is 64x64 rgb8 with step 192 and 7 bytes'),
        (wrong_type, "topic 'joint_trajectory' is std_msgs/msg/String, the contract says"),
    ],
)
def test_unusable_bag_is_one_line_and_the_others_are_converted(tmp_path, spoil, says):
    write_bag(tmp_path / 'bags/a_bad', spoil(episode_messages(draw_episode(9))))
    write_bag(tmp_path / 'bags/b_good', episode_messages(draw_episode(10)))
    report = convert(find_bags([tmp_path / 'bags']), tmp_path / 'replay', embed)
    assert len(report.failures) == 1
    assert report.failures[0].count('\n') == 0
    assert says in report.failures[0]
    assert 'a_bad' in report.failures[0]
    assert [e['source'] for e in ReplayFolder(tmp_path / 'replay').episodes] == ['b_good']


def damage(path, kind):
    """Damage a bag's files."""
    file = next(path.glob('*.mcap'))
    content = bytearray(file.read_bytes())
    if kind == 'truncated':
        content = content[: len(content) // 2]
    elif kind == 'empty':
        content = bytearray()
    else:
        content[-300:-100] = b'\xa5' * 200
    file.write_bytes(content)


@pytest.mark.parametrize('kind', ['truncated', 'empty'])
def test_damaged_first_bag(tmp_path, kind):
    damage(write_bag(tmp_path / 'bags/a', episode_messages(draw_episode(11))), kind)
    write_bag(tmp_path / 'bags/b', episode_messages(draw_episode(12)))
    report = convert(find_bags([tmp_path / 'bags']), tmp_path / 'replay', embed)
    assert report.episodes == 1
    assert 'cannot be read' in report.failures[0]


def test_first_bag_without_a_record(tmp_path):
    (write_bag(tmp_path / 'bags/a', episode_messages(draw_episode(11))) / 'episode.json').unlink()
    write_bag(tmp_path / 'bags/b', episode_messages(draw_episode(12)))
    report = convert(find_bags([tmp_path / 'bags']), tmp_path / 'replay', embed)
    assert (report.episodes, len(report.failures)) == (1, 1)


def test_nothing_is_left_when_no_bag_can_be_converted(tmp_path):
    damage(write_bag(tmp_path / 'bags/a', episode_messages(draw_episode(13))), 'truncated')
    with pytest.raises(BagError, match='no bag could be converted'):
        convert(find_bags([tmp_path / 'bags']), tmp_path / 'replay', embed)
    assert [p.name for p in tmp_path.iterdir()] == ['bags']


def test_other_contract_is_refused_with_the_field_that_differs(tmp_path):
    write_bag(tmp_path / 'bags/a', episode_messages(draw_episode(14)))
    write_bag(
        tmp_path / 'bags/b', episode_messages(draw_episode(15)), replace(CONTRACT, rate=20.0)
    )
    report = convert(find_bags([tmp_path / 'bags']), tmp_path / 'replay', embed)
    assert report.episodes == 1
    assert 'rate: 10.0 != 20.0' in report.failures[0]


def test_processes_give_the_same_folder(tmp_path):
    for seed in range(4):
        write_bag(tmp_path / f'bags/{seed}', episode_messages(draw_episode(seed)))
    bags = find_bags([tmp_path / 'bags'])
    convert(bags, tmp_path / 'one', embed)
    convert(bags, tmp_path / 'two', embed, workers=2)
    one, two = ReplayFolder(tmp_path / 'one'), ReplayFolder(tmp_path / 'two')
    assert one.episodes == two.episodes
    for field, values in one.shards[0].items():
        assert np.array_equal(values, two.shards[0][field]), field


def test_command_says_what_failed_and_exits_1(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr('qt_core.instruction.SentenceEncoder.embed', lambda self, s: embed(s))
    write_bag(tmp_path / 'bags/a', drop('camera')(episode_messages(draw_episode(16))))
    write_bag(tmp_path / 'bags/b', episode_messages(draw_episode(17)))
    parser = argparse.ArgumentParser()
    convert_command.add_parser(parser.add_subparsers())
    arguments = parser.parse_args(
        ['convert', str(tmp_path / 'bags'), '--out', str(tmp_path / 'replay')]
    )
    assert arguments.run(arguments) == 1
    error = capsys.readouterr().err.strip()
    assert error.startswith('qt-ros: ')
    assert "no topic 'camera/image_raw'" in error
    assert '\n' not in error
    assert ReplayFolder(tmp_path / 'replay').steps == 6


def tree(folder):
    """Read every file of a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob('*') if p.is_file()}


def spoil_image(messages, **changes):
    """Change fields of one image."""
    message = [m for m in messages if 'image' in m[0]][2][3]
    for name, value in changes.items():
        setattr(message, name, value)
    return messages


def nan_joint(messages):
    """Lose an encoder."""
    [m for m in messages if 'joint_states' in m[0]][3][3].position[1] = np.nan
    return messages


def nan_command(messages):
    """Send what is no number."""
    [m for m in messages if 'trajectory' in m[0]][3][3].points[0].positions[1] = np.nan
    return messages


def billion(messages):
    """Put a length of 10^9 where the size of an image's data is."""
    index = [i for i, m in enumerate(messages) if 'image' in m[0]][2]
    topic, kind, now, message = messages[index]
    data = serialise(message, kind)
    place = len(data) - message.data.size - 4
    assert int.from_bytes(data[place : place + 4], 'little') == message.data.size
    spoilt = data[:place] + (10**9).to_bytes(4, 'little') + data[place + 4 :]
    messages[index] = (topic, kind, now, spoilt)
    return messages


def cut_stamp(messages):
    """Cut off a message within its header."""
    index = [i for i, m in enumerate(messages) if 'joint_states' in m[0]][2]
    topic, kind, now, _ = messages[index]
    messages[index] = (topic, kind, now, bytes(7))
    return messages


@pytest.mark.parametrize(
    ('spoil', 'says'),
    [
        (
            partial(spoil_image, data=np.zeros(0, np.uint8), height=0, width=0, step=0),
            "'camera/image_raw': image is 0x0 rgb8 with step 0 and 0 bytes",
        ),
        (partial(spoil_image, step=100), 'image is 64x64 rgb8 with step 100'),
        (partial(spoil_image, encoding='16UC1'), 'give the camera a depth_range'),
        (partial(spoil_image, encoding='bayer_rggb8'), "encoding is 'bayer_rggb8', expected one"),
        (nan_joint, "'joint_states': position of joint"),
        (nan_command, "'joint_trajectory': command is not finite"),
        (billion, "'camera/image_raw': a sensor_msgs/msg/Image cannot be read"),
        (cut_stamp, "'joint_states': message of 7 bytes has no header"),
    ],
)
def test_message_that_makes_no_sense_is_one_line(tmp_path, capfd, monkeypatch, spoil, says):
    monkeypatch.setattr('qt_core.instruction.SentenceEncoder.embed', lambda self, s: embed(s))
    kinds = episode_messages(draw_episode(9))
    write_foreign(tmp_path / 'bags/a_bad', spoil(kinds))
    write_bag(tmp_path / 'bags/b_good', episode_messages(draw_episode(10)))
    shutil.copy(tmp_path / 'bags/b_good/episode.json', tmp_path / 'bags/a_bad/episode.json')
    words = ['convert', tmp_path / 'bags', '--out', tmp_path / 'replay', '--workers', 1]
    assert main([str(word) for word in words]) == 1
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith('qt-ros')]
    assert len(lines) == 1
    assert says in lines[0]
    assert 'a_bad' in lines[0]
    assert [e['source'] for e in ReplayFolder(tmp_path / 'replay').episodes] == ['b_good']
    assert not (tmp_path / 'replay/staging').exists()


def test_frames_that_are_not_kept_are_not_decoded(tmp_path):
    dense = draw_episode(5, steps=90)
    messages = episode_messages(dense, period=33_333_333)
    for message in [m for m in messages if 'image' in m[0]][1::3]:
        message[3].data = np.zeros(7, np.uint8)
    episode, _ = converted(tmp_path, messages)
    assert np.array_equal(episode.images['front'], dense.frames[::3])


KINDS = {
    'mcap': {},
    'db3': {'storage': 'db3'},
    'split': {'parts': 5},
    'db3-split-file': {'storage': 'db3', 'parts': 3, 'compression': 'file'},
    'message': {'compression': 'message'},
}


@pytest.mark.parametrize('kind', KINDS)
def test_bag_of_another_recorder(tmp_path, kind):
    expected = draw_episode(20)
    messages = [sentence_message('push it', START - 1), *episode_messages(expected)]
    path = write_foreign(tmp_path / 'bag', messages, **KINDS[kind])
    if kind != 'message':
        (path / 'metadata.yaml').unlink()
    with pytest.raises(BagError, match=r'episode.json cannot be read'):
        EpisodeBag(path)
    episode, _ = convert_episode(EpisodeBag(path, contract=CONTRACT, outcome='success'))
    check(episode, expected)
    assert (episode.instruction, episode.outcome, episode.terminal) == ('push it', 'success', True)
    episode, _ = convert_episode(EpisodeBag(path, contract=CONTRACT, instruction='lift it'))
    assert (episode.instruction, episode.outcome) == ('lift it', 'unlabeled')
    assert (episode.terminal, episode.timeout, episode.reward.sum()) == (False, True, 0)


def test_bag_without_a_sentence_asks_for_one(tmp_path):
    path = write_foreign(tmp_path / 'bag', episode_messages(draw_episode(20)))
    with pytest.raises(BagError, match='give --instruction'):
        convert_episode(EpisodeBag(path, contract=CONTRACT))


def test_command_line_says_what_a_bag_does_not(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr('qt_core.instruction.SentenceEncoder.embed', lambda self, s: embed(s))
    path = write_foreign(tmp_path / 'bag', episode_messages(draw_episode(20)))
    contract = tmp_path / 'contract.yaml'
    contract.write_text(CONTRACT.to_text())
    words = ['convert', path, '--out', tmp_path / 'replay', '--contract', contract]
    words += ['--outcome', 'failure', '--instruction', 'lift it', '--image-format', 'jpeg']
    assert main([str(word) for word in words]) == 0
    folder = ReplayFolder(tmp_path / 'replay')
    assert (folder.instructions, folder.image_format) == (['lift it'], 'jpeg')
    assert folder.episodes[0]['outcome'] == 'failure'
    assert main([str(word) for word in [*words, '--resume']]) == 0
    assert '1 bags were there already' in capsys.readouterr().out


def test_cut_off_episode_ends_by_timeout_without_reward(tmp_path):
    expected = draw_episode(21, steps=40, size=200)
    path = write_bag(tmp_path / 'bags/a', episode_messages(expected))
    file = next(path.glob('*.mcap'))
    with file.open('r+b') as opened:
        opened.truncate(file.stat().st_size // 2)
    report = convert(find_bags([tmp_path / 'bags']), tmp_path / 'replay', embed)
    assert (report.episodes, report.failures) == (1, ())
    assert 'a.mcap was cut off' in report.notes[0]
    folder = ReplayFolder(tmp_path / 'replay')
    episode = folder.episode(0)
    assert 5 < len(episode.bins) < 40
    assert (episode.terminal, episode.timeout, episode.reward.sum()) == (False, True, 0)
    assert episode.outcome == 'unlabeled'
    assert 'cut off' in folder.quality(0)['damage']
    shown = [cv2.resize(f, (64, 64), interpolation=cv2.INTER_AREA) for f in expected.frames]
    assert np.array_equal(episode.images['front'], np.stack(shown)[: len(episode.bins) + 1])


@pytest.mark.parametrize('heard', ['topic', 'record'])
def test_changed_instruction_makes_two_episodes(tmp_path, heard):
    expected = draw_episode(22, steps=20)
    messages = episode_messages(expected)
    changed = START + 8 * PERIOD
    if heard == 'topic':
        messages.append(sentence_message('touch the blue block', changed))
        messages.sort(key=lambda m: m[2])
    path = write_bag(tmp_path / 'bags/a', messages)
    if heard == 'record':
        bag = EpisodeBag(path)
        change = InstructionChange(time=changed, instruction='touch the blue block')
        replace(bag.record, instructions=(change,)).save(path)
    report = convert([path], tmp_path / 'replay', embed)
    assert (report.episodes, report.steps) == (2, 20)
    folder = ReplayFolder(tmp_path / 'replay')
    assert [e['source'] for e in folder.episodes] == ['a#0', 'a#1']
    first, second = folder.episode(0), folder.episode(1)
    assert (first.instruction, second.instruction) == (SENTENCE, 'touch the blue block')
    assert (first.terminal, first.timeout, first.reward.sum()) == (False, True, 0)
    assert (second.terminal, second.timeout, second.reward.sum()) == (True, False, 1)
    assert (first.outcome, second.outcome) == ('unlabeled', 'success')
    assert np.array_equal(first.images['front'], expected.frames[:9])
    assert np.array_equal(second.images['front'], expected.frames[8:])
    assert folder.quality(0)['ticks'] == 9


def test_distances(tmp_path):
    camera = replace(CONTRACT.cameras[0], depth_range=(0.0, 2.55))
    contract = replace(CONTRACT, cameras=(camera,))
    messages = episode_messages(draw_episode(23))
    millimetres = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64) % 2550
    for message in [m[3] for m in messages if 'image' in m[0]]:
        message.encoding, message.step = '16UC1', 128
        message.data = millimetres.view(np.uint8).reshape(-1)
    episode, _ = converted(tmp_path, messages, contract=contract)
    shown = np.rint(millimetres / 10)
    assert np.abs(episode.images['front'][3, :, :, 0] - shown).max() <= 1


def test_camera_with_a_clock_of_its_own(tmp_path):
    camera = replace(CONTRACT.cameras[0], stamp='receive')
    expected = draw_episode(24)
    messages = episode_messages(expected)
    for message in [m[3] for m in messages if 'image' in m[0]]:
        message.header.stamp.sec += 77
    episode, _ = converted(tmp_path, messages, contract=replace(CONTRACT, cameras=(camera,)))
    check(episode, expected)
    assert episode.quality['streams']['front']['latency']['p50'] == -77


def test_quality_of_an_episode(tmp_path):
    expected = draw_episode(25, steps=20)
    expected.frames[6] = expected.frames[5]
    expected.targets[3] = expected.positions[3]
    messages = episode_messages(expected)
    gone = [m for m in messages if 'image' in m[0]][10]
    episode, _ = converted(tmp_path, [m for m in messages if m is not gone])
    quality = episode.quality
    assert (quality['ticks'], quality['kept'], quality['stale']) == (21, 21, 0)
    assert (quality['duration'], quality['damage']) == (2.0, '')
    assert quality['idle'] == 0.05
    front = quality['streams']['front']
    assert (front['duplicates'], front['repeated'], front['messages']) == (1, 1, 20)
    assert (front['largest_gap'], front['rate']) == (0.2, 10.0)
    assert set(quality['streams']) == {'front', 'state'}


def make_bags(folder, count, steps=6):
    """Write bags, one of which is of no use and one of two episodes; give them."""
    for number in range(count):
        messages = episode_messages(draw_episode(number, steps=steps))
        if number == 2:
            messages = drop('joint_states')(messages)
        if number == 4:
            messages.append(sentence_message('touch the blue block', START + 3 * PERIOD))
            messages.sort(key=lambda m: m[2])
        write_bag(folder / f'{number:02d}', messages)
    return find_bags([folder])


def test_same_bytes_whatever_the_workers(tmp_path):
    bags = make_bags(tmp_path / 'bags', 6)
    reports = [
        convert(bags, tmp_path / name, embed, workers=workers, shard_steps=10)
        for name, workers in (('one', 1), ('two', 2), ('three', 3))
    ]
    assert reports[0] == reports[1] == reports[2]
    assert len(reports[0].failures) == 1
    assert tree(tmp_path / 'one') == tree(tmp_path / 'two') == tree(tmp_path / 'three')


def test_same_bytes_on_a_ray_cluster(tmp_path):
    ray = pytest.importorskip('ray', reason='ray is not installed')
    from ray.cluster_utils import Cluster

    bags = make_bags(tmp_path / 'bags', 6)
    convert(bags, tmp_path / 'one', embed, shard_steps=10)
    cluster = Cluster(initialize_head=True, head_node_args={'num_cpus': 1})
    try:
        cluster.add_node(num_cpus=1)
        convert(
            bags,
            tmp_path / 'ray',
            embed,
            shard_steps=10,
            engine='ray',
            ray_address=cluster.address,
            workers=2,
        )
        assert not ray.is_initialized()
    finally:
        cluster.shutdown()
    assert tree(tmp_path / 'one') == tree(tmp_path / 'ray')


def test_finished_folder_is_appended_to(tmp_path):
    bags = make_bags(tmp_path / 'bags', 5)
    convert(bags[:3], tmp_path / 'out', embed)
    report = convert(bags, tmp_path / 'out', embed, resume=True)
    assert (report.skipped, report.episodes) == (2, 3)
    sources = [e['source'] for e in ReplayFolder(tmp_path / 'out').episodes]
    assert sources == ['00', '01', '03', '04#0', '04#1']
    with pytest.raises(ReplayError, match='exists'):
        convert(bags, tmp_path / 'out', embed)
    with pytest.raises(ReplayError, match='image_format'):
        convert(bags, tmp_path / 'out', embed, resume=True, image_format='jpeg')


def test_renamed_bag_is_known_by_its_content(tmp_path):
    bags = make_bags(tmp_path / 'bags', 2)
    convert(bags, tmp_path / 'out', embed)
    moved = bags[1].rename(tmp_path / 'moved')
    report = convert([moved], tmp_path / 'out', embed, resume=True)
    assert (report.skipped, report.episodes) == (1, 0)


def test_failures_stay_in_the_report_until_their_bag_is_converted(tmp_path):
    bags = make_bags(tmp_path / 'bags', 4)
    record = bags[1] / 'episode.json'
    content = record.read_text()
    record.write_text('{')
    convert(bags[:2], tmp_path / 'out', embed)
    (failure,) = earlier_failures(tmp_path / 'out')
    assert str(bags[1]) in failure
    convert(bags[3:], tmp_path / 'out', embed, resume=True)
    assert earlier_failures(tmp_path / 'out') == [failure]
    record.write_text(content)
    convert([bags[1], bags[3]], tmp_path / 'out', embed, resume=True)
    assert earlier_failures(tmp_path / 'out') == []


def test_command_after_the_end_takes_no_other_ones_place(tmp_path):
    # Without an index, messages are in the order of the file: it may stand in their midst.
    messages = episode_messages(draw_episode(22, steps=8))
    late = next(m for m in messages if 'trajectory' in m[0])
    stop = messages[-1][2]
    third = [i for i, m in enumerate(messages) if 'trajectory' in m[0]][2]
    messages.insert(third, (late[0], late[1], START + 60 * 10**9, late[3]))
    path = write_bag(tmp_path / 'bag', messages, stop=stop)
    whole, _ = convert_episode(EpisodeBag(path))
    file = next(path.glob('*.mcap'))
    with file.open('r+b') as opened:
        opened.truncate(file.stat().st_size - 9)
    cut, _ = convert_episode(EpisodeBag(path))
    assert np.array_equal(cut.action, whole.action)
    assert len(cut.action) == 8


def test_same_recording_under_two_names_is_converted_once(tmp_path):
    path = write_bag(tmp_path / 'a', episode_messages(draw_episode(1)))
    shutil.copytree(path, tmp_path / 'b')
    report = convert([path, tmp_path / 'b'], tmp_path / 'out', embed)
    assert (report.episodes, report.skipped) == (1, 1)


def convert_all(bags, out, **options):
    """Convert in a process of its own, the leader of a group."""
    os.setsid()
    convert(bags, out, embed, shard_steps=10, **options)


def test_killed_20_times_and_resumed_is_as_if_undisturbed(tmp_path):
    bags = make_bags(tmp_path / 'bags', 10, steps=12)
    context = get_context('forkserver')  # starts at once, and without this process's threads
    context.set_forkserver_preload([__name__])

    def start(out):
        process = context.Process(target=convert_all, args=(bags, out), kwargs={'resume': True})
        process.start()
        return process

    start(tmp_path / 'warm').join()
    began = time.monotonic()
    start(tmp_path / 'whole').join()
    whole = time.monotonic() - began
    random, kills, between = np.random.default_rng(0), 0, 0
    out = tmp_path / 'killed'
    while kills < 20:
        process = start(out)
        process.join(float(random.uniform(0.02, 0.8)) * whole)
        process.kill()  # which one that has just ended does not mind
        process.join()
        if process.exitcode != 0:
            kills += 1
            shards = [p for p in out.glob('shards/*') if p.name.isdecimal()]
            between += bool(shards) and not (out / 'report.html').exists()
        elif kills < 19:
            shutil.rmtree(out)  # from the beginning
    process = start(out)
    process.join()
    assert process.exitcode == 0
    assert between > 3  # that many were killed with some of it done
    assert tree(out) == tree(tmp_path / 'whole')


def killed_worker(path, **options):
    """Stand for `_attempt` in a worker: one bag kills it."""
    from qt_ros.bags.converter import _attempt

    if path.name == '03':
        os.kill(os.getpid(), signal.SIGKILL)
    return _attempt(path, **options)


def test_worker_that_is_killed_is_a_failed_bag(tmp_path, monkeypatch):
    bags = make_bags(tmp_path / 'bags', 5)
    monkeypatch.setattr('qt_ros.bags.converter._attempt', killed_worker)
    report = convert(bags, tmp_path / 'out', embed, workers=2)
    assert [line.partition(': ')[0] for line in report.failures] == [str(bags[2]), str(bags[3])]
    assert 'was killed' in report.failures[1]
    assert report.episodes == 4


def test_interruption_keeps_complete_shards(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr('qt_core.instruction.SentenceEncoder.embed', lambda self, s: embed(s))
    bags = make_bags(tmp_path / 'bags', 6)
    done = []

    def stop(failure):
        done.append(failure)
        if len(done) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(bags, tmp_path / 'out', embed, shard_steps=10, progress=stop, workers=2)
    assert len(ReplayFolder(tmp_path / 'out').episodes) == 2
    assert sorted(p.name for p in (tmp_path / 'out').iterdir()) == ['.lock', 'meta.json', 'shards']
    assert not list((tmp_path / 'out').rglob('*.partial'))
    convert(bags, tmp_path / 'out', embed, shard_steps=10, resume=True)
    convert(bags, tmp_path / 'whole', embed, shard_steps=10)
    assert tree(tmp_path / 'out') == tree(tmp_path / 'whole')

    def interrupted(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(convert_command, 'convert_with_progress', interrupted)
    assert main(['convert', str(tmp_path / 'bags'), '--out', str(tmp_path / 'new')]) == 130
    assert '--resume' in capsys.readouterr().err


def memory_of(path, folder, sent):
    """Convert a bag and give the most memory that was resident, KiB."""
    from pathlib import Path

    from qt_ros.bags.segments import Staging

    folder.mkdir()
    convert_bag(EpisodeBag(path), Staging(folder))
    for line in Path('/proc/self/status').read_text().splitlines():
        if line.startswith('VmHWM'):
            sent.send(int(line.split()[1]))


@pytest.mark.skipif(not os.path.exists('/proc/self/status'), reason='no /proc')
def test_memory_does_not_grow_with_the_bag(tmp_path):
    context = get_context('forkserver')
    context.set_forkserver_preload([__name__])
    peaks = []
    for steps in (60, 240):
        path = write_bag(
            tmp_path / f'bag{steps}', episode_messages(draw_episode(1, steps=steps, size=400))
        )
        received, sent = context.Pipe(duplex=False)
        process = context.Process(target=memory_of, args=(path, tmp_path / f's{steps}', sent))
        process.start()
        peaks.append(received.recv())
        process.join()
    # The large bag is 86 MB larger.
    assert peaks[1] < 1.1 * peaks[0]
