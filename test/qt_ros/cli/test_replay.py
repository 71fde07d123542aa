# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`qt-ros replay` and `qt-ros verify`: what they print, and their exit status."""

import json

import pytest

from qt_core.replay import ReplayFolder, ReplayWriter
from qt_ros.cli.main import main
from test.qt_core.writer_process import SPEC, embed, episode
from test.qt_ros.synthetic_bags import draw_episode, episode_messages, write_bag


@pytest.fixture
def path(tmp_path):
    with ReplayWriter(tmp_path / 'r', SPEC, embed, shard_steps=12) as writer:
        for number in range(6):
            writer.add(episode(number))
    return tmp_path / 'r'


def test_merge_split_filter_relabel(path, tmp_path, capsys):
    out = tmp_path / 'out'
    for arguments, said in (
        (['merge', path, path, '--out', out / 'm'], f'{out}/m: 12 episodes'),
        (
            ['split', out / 'm', '--validation', '0.25', '--seed', '3', '--out', out / 's'],
            f'{out}/s: 9 episodes in train, 3 in validation',
        ),
        (
            ['filter', path, '--outcome', 'success', '--instruction', 's*', '--out', out / 'f'],
            f'{out}/f: 2 of 6 episodes',
        ),
        (
            [
                *('relabel', path, '--set-outcome', 'episode 1=success'),
                *('--set-instruction', 'sentence 0=sentence 2', '--out', out / 'l'),
            ],
            f'{out}/l: 6 episodes, 3 of them changed',
        ),
    ):
        assert main(['replay', *map(str, arguments)]) == 0
        assert capsys.readouterr().out == f'{said}\n'
    assert ReplayFolder(out / 'l').episode(1).outcome == 'success'
    assert ReplayFolder(out / 'l').episode(3).instruction == 'sentence 2'
    assert len(ReplayFolder(out / 's/train').episodes) == 9


def test_bad_input_is_one_line(path, tmp_path, capsys):
    for arguments in (
        ['replay', 'merge', path, '--out', path],
        ['replay', 'filter', path, '--instruction', 'none', '--out', tmp_path / 'o'],
        ['replay', 'split', tmp_path, '--out', tmp_path / 'o'],
        ['verify', tmp_path / 'nothing'],
    ):
        assert main([str(word) for word in arguments]) == 1
        assert capsys.readouterr().err.count('\n') == 1
    with pytest.raises(SystemExit):
        main(['replay', 'relabel', str(path), '--set-outcome', 'success', '--out', 'o'])
    assert 'expected two values joined by =' in capsys.readouterr().err


def test_verify_a_replay_folder(path, capsys):
    assert main(['verify', str(path)]) == 0
    assert capsys.readouterr().out == f'{path}: 6 episodes in 3 shards, whole\n'
    file = path / 'shards/000001/state.npy'
    file.write_bytes(file.read_bytes()[:-1] + b'\x01')
    (path / 'shards/000000/quality.json').unlink()
    assert main(['verify', str(path)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ''
    assert [line.split(': ')[1].removeprefix(f'{path}/') for line in captured.err.splitlines()][
        :2
    ] == ['shards/000000/quality.json', 'shards/000001/state.npy']


def test_verify_bags(tmp_path, capsys):
    bags = [
        write_bag(tmp_path / f'bags/{name}', episode_messages(draw_episode(seed)))
        for seed, name in enumerate(('a', 'b', 'c'))
    ]
    assert main(['verify', str(tmp_path / 'bags')]) == 0
    assert capsys.readouterr().out == f'{tmp_path}/bags: 3 bags, whole\n'
    record = json.loads((bags[0] / 'episode.json').read_text())
    record['counts'][0]['messages'] += 1
    (bags[0] / 'episode.json').write_text(json.dumps(record))
    (file,) = bags[2].glob('*.mcap')
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])
    assert main(['verify', str(tmp_path / 'bags')]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith(f'qt-ros: {bags[0]}: ')
    assert lines[0].endswith(f'its record says {record["counts"][0]["messages"]}')
    assert lines[1].startswith(f'qt-ros: {bags[2]}: cannot be read')
    assert len(lines) == 2
