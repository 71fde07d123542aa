# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Bags -> replay folder: exactly what was recorded, or one line about why not."""

import argparse
from dataclasses import replace

import numpy as np
import pytest

from qt_core.action_space import ActionSpace
from qt_core.replay import ReplayFolder
from qt_ros.bags import BagError, EpisodeBag, find_bags
from qt_ros.bags.converter import convert, convert_episode
from qt_ros.cli import convert as convert_command
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
        (other_sentence, "the instruction changes to 'touch the blue block'"),
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


@pytest.mark.parametrize('kind', ['truncated', 'empty', 'garbled'])
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
