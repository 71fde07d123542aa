# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
import dataclasses
import json

import numpy as np
import pytest

from qt_core.models import QTransformerConfig
from qt_core.replay import ReplayEpisode, ReplayError, ReplayFolder, ReplayWriter
from qt_core.replay import writer as writer_module
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
        assert folder.instructions[shard['instruction'][start]] == episode.instruction


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
    assert not (tmp_path / 'r/embeddings.npy').exists()
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


def test_the_meta_of_a_robots_folder_has_the_fields_it_always_had(replay_path, tiny_contract):
    meta = json.loads((replay_path / 'meta.json').read_text())
    assert list(meta) == [
        *('format', 'version', 'contract', 'steps', 'successes', 'sentence_model'),
        *('instructions', 'shards', 'episodes'),
    ]
    assert (meta['version'], meta['contract']) == (1, tiny_contract.to_text())


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'action': np.zeros((5, 1), np.float32)}, 'no contract that gives their units'),
        ({'instruction': 'a'}, 'written without sentences'),
        ({'bins': np.full((5, 1), 4)}, r'bins are not all in 0\.\.3'),
        ({'bins': np.zeros((5, 1))}, 'bins are float64, expected whole numbers'),
        ({'state': np.full((6, 3), np.inf, np.float32)}, 'state is not finite'),
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


def test_an_exception_leaves_nothing_behind(tmp_path, tiny_contract, embed):
    def write():
        with ReplayWriter(tmp_path / 'r', tiny_contract, embed, shard_steps=1) as writer:
            writer.add(make_episode(tiny_contract, 0))
            raise RuntimeError('boom')

    with pytest.raises(RuntimeError, match='boom'):
        write()
    assert list(tmp_path.iterdir()) == []


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


def test_a_shard_interrupted_by_ctrl_c_is_written_whole_on_close(tmp_path, monkeypatch):
    lay_out = writer_module._rows

    def interrupt(*arguments):
        raise KeyboardInterrupt

    writer = ReplayWriter(tmp_path / 'r', VECTOR, None, shard_steps=1)
    writer.add(spec_episode(VECTOR, 0))
    monkeypatch.setattr(writer_module, '_rows', interrupt)
    with pytest.raises(KeyboardInterrupt):
        writer.add(spec_episode(VECTOR, 1))
    monkeypatch.setattr(writer_module, '_rows', lay_out)
    writer.close()
    folder = ReplayFolder(tmp_path / 'r')
    assert [entry['steps'] for entry in folder.episodes] == [5, 5]
    assert np.array_equal(folder.shards[1]['bins'][:5], spec_episode(VECTOR, 1).bins)


def test_a_folder_with_content_is_not_overwritten(replay_path, tiny_contract, embed):
    with pytest.raises(ReplayError, match='exists and is not empty'):
        ReplayWriter(replay_path, tiny_contract, embed)


def test_what_is_no_replay_folder_is_one_line(tmp_path, replay_path):
    with pytest.raises(ReplayError, match='not a replay folder'):
        ReplayFolder(tmp_path / 'empty')
    meta = replay_path / 'meta.json'
    meta.write_text(json.dumps({**json.loads(meta.read_text()), 'version': 9}))
    with pytest.raises(ReplayError, match="version 9, expected 'qt-replay' version 1"):
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
    path = replay_path / 'embeddings.npy'
    np.save(path, np.load(path)[:1])
    with pytest.raises(ReplayError, match=r'embeddings\.npy is \(1, 8\), expected \(2, \*\)'):
        ReplayFolder(replay_path)


@pytest.mark.parametrize(
    'change',
    [{'shard': -1}, {'shard': 9}, {'start': -1}, {'steps': 0}, {'steps': 99}, {'instruction': 2}],
)
def test_episodes_outside_their_shard_are_noticed(replay_path, change):
    path = replay_path / 'meta.json'
    meta = json.loads(path.read_text())
    meta['episodes'][1] |= change
    path.write_text(json.dumps(meta))
    with pytest.raises(ReplayError, match=r'damaged meta\.json \(episodes\[1\]\)'):
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
