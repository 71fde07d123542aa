# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
import pickle

import numpy as np
import pytest

from qt_core.action_space import ActionSpace
from qt_core.configuration import ConfigurationError
from qt_core.observation import normalise_state
from qt_core.replay import (
    ReplayEpisode,
    ReplayError,
    ReplayFolder,
    ReplayWriter,
    SequenceDataset,
    WindowSampler,
)
from qt_core.spec import Spec
from test.conftest import make_episode


def reference(folder, context, discount, episodes):
    """Give every sample, written out with loops."""
    space = ActionSpace(folder.contract)
    samples = []
    for number in episodes:
        entry = folder.episodes[number]
        shard, first, steps = folder.shards[entry['shard']], entry['start'], entry['steps']
        for start in range(steps):
            sample = {name: [] for name in ('images', 'state')}
            sample |= {name: [] for name in ('bins', 'action', 'reward', 'returns', 'valid')}
            for t in range(start, start + context + 1):
                row = first + min(t, steps)
                sample['images'].append(shard['images_front'][row])
                sample['state'].append(normalise_state(folder.contract.state, shard['state'][row]))
                if t == start + context:
                    break
                there = t < steps
                sample['valid'].append(there)
                sample['bins'].append(shard['bins'][row] if there else np.zeros(7))
                sample['reward'].append(shard['reward'][row] if there else 0.0)
                unit = 2 * (shard['action'][row] - space.low) / (space.high - space.low) - 1
                sample['action'].append(unit if there else np.zeros(7))
                later = [discount ** (k - t) * shard['reward'][first + k] for k in range(t, steps)]
                sample['returns'].append(sum(later))
            sample['start'], sample['instruction'] = start, entry['instruction']
            sample['length'] = sum(sample['valid'])
            samples.append(sample)
    return samples


@pytest.mark.parametrize('context', [1, 3, 6, 20])
@pytest.mark.parametrize(('discount', 'episodes'), [(1.0, range(8)), (0.9, (6, 1, 3))])
def test_samples_are_those_of_the_definition(replay_path, context, discount, episodes):
    folder = ReplayFolder(replay_path)
    dataset = SequenceDataset(folder, context, discount=discount, episodes=episodes)
    expected = reference(folder, context, discount, episodes)
    assert len(dataset) == len(expected) == sum(folder.episodes[n]['steps'] for n in episodes)
    order = np.random.default_rng(0).permutation(len(dataset))
    batch = dataset.gather(order)
    for place, number in enumerate(order):
        sample = expected[number]
        assert np.array_equal(batch.images['front'][place], np.stack(sample['images']))
        assert np.array_equal(batch.state[place], np.stack(sample['state']))
        for name in ('bins', 'reward', 'valid', 'start', 'length', 'instruction'):
            assert np.array_equal(getattr(batch, name)[place], np.array(sample[name])), name
        assert batch.returns[place].numpy() == pytest.approx(sample['returns'])
        there = np.array(sample['valid'])
        found = batch.action[place].numpy()[there]
        assert found == pytest.approx(np.stack(sample['action'])[there], abs=1e-6)
    assert batch.action.abs().max() <= 1


def test_returns_are_of_the_whole_rest_of_the_episode_and_not_discounted(tmp_path):
    rewards = np.array([1, -2, 4, 8, 0.5], np.float32)
    spec = Spec(cameras=(), state_dim=1, num_actions=2, action_bins=5)
    with ReplayWriter(tmp_path / 'r', spec, None) as writer:
        writer.add(
            ReplayEpisode(
                images={},
                state=np.arange(6, dtype=np.float32)[:, None],
                bins=np.array([[0, 4], [1, 3], [2, 2], [3, 1], [4, 0]]),
                reward=rewards,
                terminal=False,
                timeout=True,
                instruction='',
            )
        )
    batch = SequenceDataset(tmp_path / 'r', 2, condition_on_text=False).gather(range(5))
    assert batch.returns[:, 0].tolist() == [11.5, 10.5, 12.5, 8.5, 0.5]
    inside = batch.valid[:, 1]
    assert (batch.returns[:, 0] - batch.returns[:, 1] == batch.reward[:, 0])[inside].all()
    # Without a contract the bins are the actions: 0 is -1, the largest +1.
    assert batch.action[:, 0].tolist() == [[-1, 1], [-0.5, 0.5], [0, 0], [0.5, -0.5], [1, -1]]


def test_every_step_of_every_episode_begins_one_window_of_an_epoch(replay_path):
    dataset = SequenceDataset(replay_path, 5)
    sampler = WindowSampler(dataset, 4, seed=3)
    starts = [sampler.batch(i) for i in range(sampler.batches_per_epoch)]
    found = np.concatenate([batch.start.numpy() for batch in starts])
    steps = [episode['steps'] for episode in dataset.folder.episodes]
    expected = np.concatenate([np.arange(count) for count in steps])
    assert len(expected) == 60 == len(found)
    assert np.array_equal(np.sort(found), np.sort(expected))


def test_other_frames_keep_the_rest(replay_path):
    dataset = SequenceDataset(replay_path, 3, discount=0.5, episodes=[2, 4])
    other = dataset.with_frames(7)
    assert isinstance(other, SequenceDataset)
    assert (other.frames, other.discount, other.episodes) == (7, 0.5, (2, 4))
    assert other.gather([0]).bins.shape == (1, 7, 7)
    assert dataset.with_frames(3, discount=1.0, episodes=[1]).episodes == (1,)


def test_a_copy_in_another_process_gives_the_same(replay_path):
    dataset = SequenceDataset(replay_path, 4)
    copy = pickle.loads(pickle.dumps(dataset))  # noqa: S301
    ours, theirs = dataset.gather([3, 40]), copy.gather([3, 40])
    assert np.array_equal(ours.action, theirs.action)
    assert np.array_equal(ours.images['front'], theirs.images['front'])


def test_what_is_out_of_range_is_refused(replay_path, tiny_contract, tmp_path):
    with pytest.raises(ConfigurationError, match='frames is 0'):
        SequenceDataset(replay_path, 0)
    with pytest.raises(IndexError):
        SequenceDataset(replay_path, 3)[60]
    with ReplayWriter(tmp_path / 'untold', tiny_contract, None) as writer:
        writer.add(make_episode(tiny_contract, 0, instruction=''))
    with pytest.raises(ReplayError, match='no sentences'):
        SequenceDataset(tmp_path / 'untold', 3)
