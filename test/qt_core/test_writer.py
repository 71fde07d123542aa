# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A replay folder under adverse conditions: other processes, kills, full disks, large episodes."""

import contextlib
import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from qt_core.replay import FrameFile, ReplayError, ReplayFolder, ReplayWriter
from test.conftest import make_episode
from test.qt_core.writer_process import SPEC, embed, episode

ROOT = Path(__file__).parents[2]


@contextlib.contextmanager
def writing(folder, episodes):
    """Run a second process that writes, until its standard input ends."""
    process = subprocess.Popen(
        [sys.executable, '-m', 'test.qt_core.writer_process', folder, f'{episodes}', '12'],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, 'OMP_NUM_THREADS': '1'},
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def content(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob('*') if p.is_file()}


def undisturbed(folder, episodes):
    with ReplayWriter(folder, SPEC, embed, shard_steps=12) as writer:
        for number in range(episodes):
            writer.add(episode(number))
    return folder


def assert_same(found, expected):
    for field in dataclasses.fields(expected):
        ours, theirs = getattr(found, field.name), getattr(expected, field.name)
        if field.name == 'images':
            ours, theirs = ours['front'][:], theirs['front']
        assert np.array_equal(ours, theirs), field.name


def test_arrays_in_another_memory_order(tmp_path):
    given = episode(0)
    turned = {n: np.asfortranarray(getattr(given, n)) for n in ('state', 'bins')}
    assert not turned['bins'].flags.c_contiguous
    with ReplayWriter(tmp_path / 'out', SPEC, embed) as writer:
        writer.add(dataclasses.replace(given, **turned))
    found = ReplayFolder(tmp_path / 'out').episode(0)
    assert np.array_equal(found.bins, given.bins)
    assert np.array_equal(found.state, given.state)


def test_two_writers_on_one_folder(tmp_path):
    with writing(tmp_path / 'r', 4) as process:
        while process.stdout.readline() != 'added\n':
            pass
        with pytest.raises(ReplayError, match='is being written by another process; wait'):
            ReplayWriter(tmp_path / 'r', SPEC, embed, append=True)
        assert (tmp_path / 'r/shards/000001.partial').exists()  # what the other one is writing
        process.communicate('')
        assert process.returncode == 0
    with ReplayWriter(tmp_path / 'r', SPEC, embed, append=True) as writer:
        assert dict(writer.sources) == {f'{number:032x}': 1 for number in range(4)}
        assert not (tmp_path / 'r/shards/000001.partial').exists()
        writer.add(episode(4))
    folder = ReplayFolder(tmp_path / 'r')
    assert [entry['source'] for entry in folder.episodes] == [f'episode {n}' for n in range(5)]


def test_a_writer_killed_in_mid_shard_goes_on_as_if_nothing_had_happened(tmp_path):
    expected = content(undisturbed(tmp_path / 'undisturbed', 150))
    random = np.random.default_rng(0)
    partial = 0
    for _ in range(8):
        with writing(tmp_path / 'r', 150) as process:
            for _ in range(int(random.integers(1, 20))):
                if process.stdout.readline() == 'added\n':
                    break
            process.kill()  # somewhere in the next episode
        left = [path.name for path in (tmp_path / 'r').glob('shards/*')]
        partial += any(name.endswith('.partial') for name in left)
        if '000000' in left:
            folder = ReplayFolder(tmp_path / 'r')
            for number in range(len(folder.episodes)):
                assert_same(folder.episode(number), episode(number))
    assert partial > 2  # or the kills came when nothing was open
    with writing(tmp_path / 'r', 150) as process:
        process.communicate('')
        assert process.returncode == 0
    assert content(tmp_path / 'r') == expected


def test_reading_while_a_writer_appends(tmp_path):
    counts = [len(ReplayFolder(undisturbed(tmp_path / 'r', 3)).episodes)]
    with writing(tmp_path / 'r', 120) as process:
        while process.stdout.readline() != 'added\n':
            folder = ReplayFolder(tmp_path / 'r')
            counts.append(len(folder.episodes))
            last = counts[-1] - 1
            assert_same(folder.episode(last), episode(last))
            assert np.array_equal(folder.embeddings, embed(folder.instructions))
    assert counts == sorted(counts)
    assert counts[-1] > counts[0]


def test_what_is_appended_must_be_of_the_same_kind(tmp_path, tiny_contract, embed):
    path = tmp_path / 'r'
    with ReplayWriter(path, tiny_contract, embed, append=True) as writer:  # makes the folder
        writer.add(make_episode(tiny_contract, 0))
    before = content(path)
    faster = dataclasses.replace(tiny_contract, rate=7.0)
    for contract, encoder, options, message in (
        (faster, embed, {}, r'it differs: contract\.rate: .* != 7\.0$'),
        (SPEC, embed, {}, 'it differs: contract: tabletop != none'),
        (tiny_contract, embed, {'sentence_model': 'mine'}, "sentence_model: '.*' != 'mine'"),
        (tiny_contract, None, {}, "sentence_model: '.*' != ''"),
        (tiny_contract, embed, {'image_format': 'jpeg'}, "image_format: 'raw' != 'jpeg'"),
    ):
        with pytest.raises(ReplayError, match=message):
            ReplayWriter(path, contract, encoder, append=True, **options)
    assert content(path) == before
    with ReplayWriter(path, tiny_contract, embed, append=True) as writer:
        writer.add(make_episode(tiny_contract, 1, instruction='another'))
    folder = ReplayFolder(path)
    assert [entry['shard'] for entry in folder.episodes] == [0, 1]
    assert folder.instructions == ['touch the red block', 'another']
    assert np.array_equal(folder.embeddings, embed(folder.instructions))


def test_embeddings_of_another_width_are_not_appended(tmp_path, tiny_contract, embed):
    with ReplayWriter(tmp_path / 'r', tiny_contract, embed) as writer:
        writer.add(make_episode(tiny_contract, 0))

    def wider(sentences):
        return np.zeros((len(sentences), 9), np.float32)

    with (
        pytest.raises(ReplayError, match=r"embedding of 'new' is \(1, 9\), expected \(1, 8\)"),
        ReplayWriter(tmp_path / 'r', tiny_contract, wider, append=True) as writer,
    ):
        writer.add(make_episode(tiny_contract, 1, instruction='new'))


FILLED = """
import resource, signal, sys
from pathlib import Path
from qt_core.replay import ReplayWriter
from test.qt_core.writer_process import SPEC, embed, episode

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
with ReplayWriter(Path(sys.argv[1]), SPEC, embed) as writer:
    writer.add(episode(0))
    try:
        writer.add(episode(1, steps=120))
    except OSError as error:
        print('full:', error.strerror)
    writer.add(episode(2))
"""


def test_an_episode_that_does_not_fit_on_the_disk_is_not_in_the_shard(tmp_path):
    done = subprocess.run(
        [sys.executable, '-c', FILLED, tmp_path / 'r'],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == 'full: File too large\n'
    with ReplayWriter(tmp_path / 'expected', SPEC, embed) as writer:
        writer.add(episode(0))
        writer.add(episode(2))
    assert content(tmp_path / 'r') == content(tmp_path / 'expected')


MEASURE = """
import sys
from pathlib import Path
import numpy as np
from qt_core.replay import FrameFile, ReplayWriter
from test.qt_core.writer_process import SPEC, embed, episode

kind, folder, steps = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
image = np.zeros((64, 64, 3), np.uint8)
with ReplayWriter(folder, SPEC, embed) as writer:
    with FrameFile(writer.staging / 'front', image.shape) as file:
        for number in range(steps + 1):
            image[:] = number % 251
            file.append(image)
    frames = file.frames()
    writer.add(episode(0, steps, frames if kind == 'file' else frames[:]))
lines = Path('/proc/self/status').read_text().splitlines()
print(1024 * int(next(line for line in lines if line.startswith('VmHWM')).split()[1]))
"""


def test_memory_does_not_grow_with_an_episode_in_a_file(tmp_path):
    def peak(kind, steps):
        done = subprocess.run(
            [sys.executable, '-c', MEASURE, kind, tmp_path / f'{kind}{steps}', f'{steps}'],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, 'OMP_NUM_THREADS': '1'},
        )
        return int(done.stdout)

    small, large = 800, 8000  # 10 and 98 MB
    size = 64 * 64 * 3 * (large - small)
    grown = peak('file', large) - peak('file', small)
    assert grown < 0.1 * size
    assert peak('memory', large) - peak('memory', small) > 0.9 * size  # it sees what is in memory
    stored = ReplayFolder(tmp_path / f'file{large}').episode(0).images['front']
    assert [int(stored[number].max()) for number in (0, 250, 251, large)] == [0, 250, 0, 219]


@pytest.mark.parametrize('staged', ['raw', 'jpeg'])
def test_a_staged_episode_larger_than_a_slice(tmp_path, staged):
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (701, 4, 4, 3), np.uint8)  # 8 MB, and a jpeg can hold it
    images = coarse.repeat(16, axis=1).repeat(16, axis=2)
    with ReplayWriter(tmp_path / 'r', SPEC, embed) as writer:
        with FrameFile(writer.staging / 'front', (64, 64, 3), staged) as file:
            for image in images:
                file.append(image)
        writer.add(episode(0, 700, file.frames()))
        assert not (tmp_path / 'r/images_front.npy').exists()
    stored = ReplayFolder(tmp_path / 'r').episode(0).images['front']
    error = np.abs(stored[:].astype(int) - images).mean()
    assert error == 0 if staged == 'raw' else 0 < error < 5
    assert not (tmp_path / 'r/staging').exists()
