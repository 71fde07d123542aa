# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
import dataclasses
import json

import numpy as np
import pytest

from qt_core.observation import normalise_state
from qt_core.replay import ReplayError, ReplayFolder, ReplayWriter, WindowSampler
from test.conftest import make_episode


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


def test_windows_hold_consecutive_steps_of_one_episode(replay_path):
    folder = ReplayFolder(replay_path)
    sampler = WindowSampler(folder, window=3, batch_size=5, discount=0.9, seed=0)
    seen = 0
    for index in range(sampler.batches_per_epoch):
        batch = sampler.batch(index)
        assert batch.images['front'].shape == (5, 4, 32, 32, 3)
        assert batch.valid.all()
        for b in range(5):
            found = [
                (entry, t)
                for entry in folder.episodes
                for t in range(entry['steps'] - 2)
                if np.array_equal(
                    folder.shards[entry['shard']]['bins'][entry['start'] + t :][:3], batch.bins[b]
                )
            ]
            (entry, t), seen = found[0], seen + 1
            shard, rows = folder.shards[entry['shard']], slice(entry['start'] + t, None)
            assert np.array_equal(shard['images_front'][rows][:4], batch.images['front'][b])
            state = normalise_state(folder.contract.state, shard['state'][rows][:4])
            assert np.array_equal(state, batch.state[b])
            assert np.array_equal(shard['terminal'][rows][:3], batch.terminal[b])
            left = entry['steps'] - t - 1 - np.arange(3)
            assert batch.returns[b].numpy() == pytest.approx(entry['return'] * 0.9**left)
            text = folder.embeddings[entry['instruction']]
            assert np.array_equal(text, batch.text[b])
    assert seen == 5 * sampler.batches_per_epoch


def test_an_episode_shorter_than_the_window_is_padded_and_marked(tmp_path, tiny_contract, embed):
    with ReplayWriter(tmp_path / 'r', tiny_contract, embed) as writer:
        writer.add(make_episode(tiny_contract, 0, steps=2))
    folder = ReplayFolder(tmp_path / 'r')
    batch = WindowSampler(folder, window=4, batch_size=1, discount=0.9, seed=0).batch(0)
    assert batch.valid.tolist() == [[True, True, False, False]]
    assert (batch.images['front'][0, 2:] == batch.images['front'][0, 2]).all()


def test_batches_depend_on_seed_and_number_alone(replay_path):
    def bins(seed, order):
        folder = ReplayFolder(replay_path)
        sampler = WindowSampler(folder, window=2, batch_size=4, discount=0.9, seed=seed)
        batches = {index: sampler.batch(index).bins for index in order}
        return [batches[index] for index in sorted(batches)]

    forwards, jumping = bins(0, range(30)), bins(0, reversed(range(30)))
    assert all((a == b).all() for a, b in zip(forwards, jumping, strict=True))
    assert any((a != b).any() for a, b in zip(forwards, bins(1, range(30)), strict=True))


def test_an_epoch_has_every_window_once(replay_path):
    folder = ReplayFolder(replay_path)
    sampler = WindowSampler(folder, window=1, batch_size=1, discount=0.9, seed=0)
    assert sampler.batches_per_epoch == folder.steps
    seen = {tuple(sampler.batch(i).bins.flatten().tolist()) for i in range(folder.steps)}
    assert len(seen) == folder.steps


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
