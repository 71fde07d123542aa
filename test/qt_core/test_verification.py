# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
import json
import shutil

import numpy as np
import pytest

from qt_core.replay import ReplayWriter
from qt_core.replay.shard import checksum
from qt_core.replay.verification import verify
from test.qt_core.writer_process import SPEC, embed, episode


@pytest.fixture(params=['raw', 'jpeg'])
def path(request, tmp_path):
    with ReplayWriter(
        tmp_path / 'r', SPEC, embed, shard_steps=12, image_format=request.param
    ) as writer:
        for number in range(6):
            writer.add(episode(number))
    return tmp_path / 'r'


def replaced(path, change):
    """Change an array and its checksum, as a program that writes nonsense would."""
    array = np.load(path)
    change(array)
    np.save(path, array)
    shard = json.loads((path.parent / 'shard.json').read_text())
    shard['files'][path.name]['blake2b'] = checksum(path)
    (path.parent / 'shard.json').write_text(json.dumps(shard))


def test_what_a_writer_wrote_is_whole(path):
    assert verify(path) == []
    (path / 'shards/000002.partial').mkdir()  # another writer is at work
    assert verify(path) == []


def test_every_flipped_bit_is_noticed(path):
    random = np.random.default_rng(0)
    for file in sorted(path.glob('shards/*/*')):
        before = file.read_bytes()
        place = int(random.integers(len(before)))
        data = bytearray(before)
        data[place] ^= 1 << int(random.integers(8))
        file.write_bytes(data)
        problems = verify(path)
        if file.name != 'shard.json':  # whose blank space may differ
            assert any(file.name in problem for problem in problems), (file, place)
        assert all('\n' not in problem for problem in problems)
        file.write_bytes(before)


def test_every_missing_file_is_noticed(path):
    for file in sorted(path.glob('shards/*/*')):
        file.rename(path / 'aside')
        assert any(file.name in problem for problem in verify(path)), file
        (path / 'aside').rename(file)
    assert verify(path) == []
    (path / 'shards/000000/images_back.npy').touch()
    (problem,) = verify(path)
    assert problem.endswith('images_back.npy: belongs to no replay folder')


def test_a_file_list_does_not_lead_out_of_the_folder(path, tmp_path):
    record = path / 'shards/000000/shard.json'
    shard = json.loads(record.read_text())
    shard['files']['../../../secret'] = {'bytes': 1, 'blake2b': ''}
    record.write_text(json.dumps(shard))
    (problem,) = verify(path)
    assert problem.endswith('../../../secret: belongs to no replay folder')


@pytest.mark.parametrize('files', [None, ['a'], {'a': 1}, 3])
def test_a_damaged_file_list_is_one_line(path, files):
    record = path / 'shards/000000/shard.json'
    record.write_text(json.dumps(json.loads(record.read_text()) | {'files': files}))
    (problem,) = verify(path)
    assert 'damaged, it lists no files' in problem


@pytest.mark.parametrize(
    ('name', 'row', 'value', 'message'),
    [
        ('state', 0, np.nan, 'state.npy: not finite'),
        ('reward', 0, np.inf, 'reward.npy: not finite'),
        ('bins', 1, 9, 'bins.npy: not all in 0..8'),
        ('bins', 1, -1, 'bins.npy: not all in 0..8'),
        ('terminal', 0, True, "episode 0 ('episode 0') is terminal or timeout in its midst"),
        ('timeout', 2, True, "episode 0 ('episode 0') is terminal or timeout in its midst"),
        ('bins', 3, 1, "episode 0 ('episode 0') has an action after its last observation"),
        ('reward', 1, 0.5, "episode 0 ('episode 0') has another return"),
        ('instruction', 4, 0, "episode 1 ('episode 1') has another sentence"),
        ('embeddings', 0, np.nan, 'an embedding is not finite'),
    ],
)
def test_numbers_out_of_range_are_noticed(path, name, row, value, message):
    def change(array):
        array[row] = value

    replaced(path / f'shards/000000/{name}.npy', change)
    assert any(message in problem for problem in verify(path))


def test_a_jpeg_that_is_none_is_noticed(tmp_path):
    with ReplayWriter(tmp_path / 'r', SPEC, embed, image_format='jpeg') as writer:
        writer.add(episode(0))
    file = tmp_path / 'r/shards/000000/images_front.jpegs'
    ends = np.load(file.with_name('images_front.ends.npy'))
    data = bytearray(file.read_bytes())
    data[ends[1] : ends[1] + 2] = b'no'
    file.write_bytes(data)
    problems = verify(tmp_path / 'r')
    assert any(
        problem.endswith('image 2 is 0x0, expected a jpeg of 64x64') for problem in problems
    )
    assert len(problems) == 2  # and the checksum


def test_what_is_no_replay_folder_is_one_line(path):
    shutil.rmtree(path / 'shards/000000')
    assert [problem for problem in verify(path) if 'shards/000000 is missing' in problem]
    assert len(verify(path.parent)) == 1
