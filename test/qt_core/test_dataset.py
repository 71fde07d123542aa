# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from qt_core.configuration import ConfigurationError
from qt_core.observation import normalise_state
from qt_core.replay import (
    ReplayEpisode,
    ReplayError,
    ReplayFolder,
    ReplayMemoryDataset,
    ReplayWriter,
    WindowSampler,
    split_episodes,
)
from qt_core.spec import Camera, Spec
from test.conftest import make_episode


def reference(folder, frames, timesteps, discount):
    """Give every sample, written out with loops: one dict of (F+1, ...) and (F, ...) arrays."""
    samples = []
    for entry in folder.episodes:
        shard, start, steps = folder.shards[entry['shard']], entry['start'], entry['steps']
        reward = shard['reward'][start : start + steps]
        for t in range(steps):
            if t + 1 < timesteps and t != steps - 1:
                continue
            begin = max(0, t - frames + 1)
            sample = {name: [] for name in ('images', 'state', 'bins', 'reward', 'terminal')}
            sample |= {'returns': [], 'valid': [], 'length': 0}
            for i in range(begin, begin + frames + 1):
                row = start + min(i, steps)
                sample['images'].append(shard['images_front'][row])
                sample['state'].append(normalise_state(folder.contract.state, shard['state'][row]))
                if i == begin + frames:
                    break
                real = i < steps
                sample['length'] += real
                sample['bins'].append(shard['bins'][row] * real)
                sample['reward'].append(reward[i] if real else 0.0)
                sample['terminal'].append(bool(real and shard['terminal'][row]))
                later = [reward[k] * discount ** (k - i) for k in range(i, steps)]
                sample['returns'].append(sum(later))
                sample['valid'].append(t - timesteps < i <= t)
            sample['instruction'] = entry['instruction']
            sample['text'] = folder.embeddings[entry['instruction']]
            samples.append(sample)
    return samples


@pytest.mark.parametrize(('frames', 'timesteps'), [(1, 1), (3, 1), (3, 2), (3, 3), (7, 5), (9, 9)])
def test_windows_are_those_of_the_definition(replay_path, frames, timesteps):
    folder = ReplayFolder(replay_path)
    expected = reference(folder, frames, timesteps, 0.9)
    dataset = ReplayMemoryDataset(replay_path, timesteps).with_frames(frames, discount=0.9)
    assert len(dataset) == len(expected)
    order = np.random.default_rng(0).permutation(len(dataset))
    batch = dataset.gather(order)
    for b, number in enumerate(order):
        sample = expected[number]
        assert np.array_equal(batch.images['front'][b], np.stack(sample['images']))
        assert np.array_equal(batch.state[b], np.stack(sample['state']))
        for name in ('bins', 'reward', 'terminal', 'valid', 'length', 'instruction', 'text'):
            assert np.array_equal(getattr(batch, name)[b], np.array(sample[name])), name
        assert batch.returns[b].numpy() == pytest.approx(sample['returns'])


def test_a_batch_has_the_documented_formats(replay_path):
    batch = ReplayMemoryDataset(replay_path, 2).with_frames(3).gather(range(4))
    shapes = {'text': (4, 8), 'bins': (4, 3, 7), 'state': (4, 4, 7), 'returns': (4, 3)}
    for name, shape in shapes.items():
        assert tuple(getattr(batch, name).shape) == shape
    assert batch.images['front'].dtype == torch.uint8
    assert batch.bins.dtype == batch.length.dtype == batch.instruction.dtype == torch.int64
    assert batch.reward.dtype == batch.returns.dtype == batch.state.dtype == torch.float32
    moved = batch.to('cpu')
    assert torch.equal(moved.images['front'], batch.images['front'])


def test_an_episode_shorter_than_the_window_is_padded_and_marked(tmp_path, tiny_contract, embed):
    with ReplayWriter(tmp_path / 'r', tiny_contract, embed) as writer:
        writer.add(make_episode(tiny_contract, 0, steps=2))
    dataset = ReplayMemoryDataset(tmp_path / 'r', 4)
    assert len(dataset) == 1
    batch = dataset[0]
    assert batch.valid.tolist() == [[True, True, False, False]]
    assert batch.length.tolist() == [2]
    assert (batch.images['front'][0, 2:] == batch.images['front'][0, 2]).all()


def test_every_step_is_trained_once_by_single_timesteps(replay_path):
    dataset = ReplayMemoryDataset(replay_path).with_frames(3)
    assert len(dataset) == dataset.folder.steps
    batch = dataset.gather(range(len(dataset)))
    assert (batch.valid.sum(1) == 1).all()
    trained = {tuple(bins.tolist()) for bins in batch.bins[batch.valid]}
    assert len(trained) == dataset.folder.steps


def test_frames_follow_num_timesteps_until_set(replay_path):
    dataset = ReplayMemoryDataset(replay_path, 3)
    assert dataset.frames == 3
    view = dataset.with_frames(5, discount=0.5, episodes=[1])
    assert (view.frames, view.discount, view.episodes) == (5, 0.5, (1,))
    assert view.folder is dataset.folder
    again = view.with_frames(6)
    assert (again.frames, again.discount, again.episodes) == (6, 0.5, (1,))
    with pytest.raises(ConfigurationError, match='frames is 2, expected at least num_timesteps'):
        dataset.with_frames(2)


def test_episodes_restrict_the_samples(replay_path):
    whole = ReplayMemoryDataset(replay_path, 2)
    parts = [whole.with_frames(2, episodes=[number]) for number in range(8)]
    assert sum(map(len, parts)) == len(whole)
    joined = torch.cat([part.gather(range(len(part))).bins for part in parts])
    assert torch.equal(joined, whole.gather(range(len(whole))).bins)
    assert len(whole.with_frames(2, episodes=[])) == 0
    with pytest.raises(ConfigurationError, match='episodes is 8'):
        whole.with_frames(2, episodes=[8])


def test_splitting_keeps_episodes_apart(replay_path):
    folder = ReplayFolder(replay_path)
    for fraction, kept in ((0.0, 0), (0.01, 1), (0.5, 4), (0.99, 7)):
        train, validation = split_episodes(folder, fraction, seed=0)
        assert sorted(train + validation) == list(range(8))
        assert len(validation) == kept
    assert split_episodes(folder, 0.5, seed=0) == split_episodes(folder, 0.5, seed=0)
    assert len({tuple(split_episodes(folder, 0.5, seed=s)[0]) for s in range(9)}) > 1


def test_without_sentences(tmp_path, replay_path):
    assert ReplayMemoryDataset(replay_path, condition_on_text=False)[0].text is None
    spec = Spec(cameras=(), state_dim=2, num_actions=1, action_bins=3)
    with ReplayWriter(tmp_path / 'r', spec, None) as writer:
        writer.add(bare_episode(spec))
    with pytest.raises(ReplayError, match='has no sentences: pass condition_on_text=False'):
        ReplayMemoryDataset(tmp_path / 'r')
    batch = ReplayMemoryDataset(tmp_path / 'r', condition_on_text=False).with_frames(2)[3]
    assert batch.text is None
    assert batch.images == {}
    assert batch.instruction.tolist() == [0]
    stored = ReplayFolder(tmp_path / 'r').shards[0]['state']
    assert np.array_equal(batch.state[0], stored[2:5])  # as given: nothing says its range


def bare_episode(spec, steps=6):
    random = np.random.default_rng(0)
    return ReplayEpisode(
        images={
            c.name: random.integers(0, 256, (steps + 1, c.height, c.width, c.channels), np.uint8)
            for c in spec.cameras
        },
        state=random.normal(size=(steps + 1, spec.state_dim)).astype(np.float32),
        bins=random.integers(0, spec.action_bins, (steps, spec.num_actions)),
        reward=np.zeros(steps, np.float32),
        terminal=False,
        timeout=True,
        instruction='',
    )


def test_without_a_state(tmp_path):
    camera = Camera(name='front', height=4, width=4, channels=1)
    spec = Spec(cameras=(camera,), num_actions=1, action_bins=3)
    with ReplayWriter(tmp_path / 'r', spec, None) as writer:
        writer.add(bare_episode(spec))
    batch = ReplayMemoryDataset(tmp_path / 'r', 2, False).gather([0, 4])
    assert batch.state.shape == (2, 3, 0)
    assert batch.images['front'].shape == (2, 3, 4, 4, 1)


def test_samples_out_of_range_are_refused(replay_path):
    dataset = ReplayMemoryDataset(replay_path)
    for index in (-1, len(dataset)):
        with pytest.raises(IndexError, match=f'of {len(dataset)}'):
            dataset[index]


def test_a_data_loader_gets_whole_batches(replay_path):
    dataset = ReplayMemoryDataset(replay_path, 2).with_frames(3)
    loader = DataLoader(dataset, 5, collate_fn=lambda batch: batch)
    bins = torch.cat([batch.bins for batch in loader])
    assert torch.equal(bins, dataset.gather(range(len(dataset))).bins)


def test_a_pickled_dataset_holds_no_data(replay_path):
    dataset = ReplayMemoryDataset(replay_path, 2).with_frames(3)
    content = pickle.dumps(dataset)
    size = sum(path.stat().st_size for path in replay_path.rglob('*.npy'))
    assert len(content) < 0.05 * size
    restored = pickle.loads(content)  # noqa: S301
    assert torch.equal(restored[7].images['front'], dataset[7].images['front'])


def sampler_of(path, timesteps, batch_size, seed=0):
    return WindowSampler(ReplayMemoryDataset(path, timesteps), batch_size=batch_size, seed=seed)


def test_batches_depend_on_seed_and_number_alone(replay_path):
    def bins(seed, order):
        sampler = sampler_of(replay_path, 2, 4, seed)
        batches = {index: sampler.batch(index).bins for index in order}
        return [batches[index] for index in sorted(batches)]

    forwards, jumping = bins(0, range(30)), bins(0, reversed(range(30)))
    assert all((a == b).all() for a, b in zip(forwards, jumping, strict=True))
    assert any((a != b).any() for a, b in zip(forwards, bins(1, range(30)), strict=True))


def test_an_epoch_has_every_window_once(replay_path):
    sampler = sampler_of(replay_path, 1, 1)
    steps = sampler.dataset.folder.steps
    assert sampler.batches_per_epoch == steps
    seen = {tuple(sampler.batch(i).bins.flatten().tolist()) for i in range(steps)}
    assert len(seen) == steps


def test_reading_ahead_changes_no_batch(replay_path, monkeypatch):
    asked = []
    read_ahead = ReplayMemoryDataset.read_ahead

    def recorded(dataset, indices):
        asked.append(indices.tolist())
        read_ahead(dataset, indices)

    monkeypatch.setattr(ReplayMemoryDataset, 'read_ahead', recorded)
    plain, ahead = (sampler_of(replay_path, 2, 4) for _ in range(2))
    plain._reads_ahead, ahead._reads_ahead = 0, 99  # as after a batch that came from the disk
    for index in (1, 3, 5, 7):
        expected, found = plain.batch(index), ahead.batch(index)
        assert (found.images['front'] == expected.images['front']).all()
        assert (found.bins == expected.bins).all()
    expected = [ahead._order[4 * k : 4 * k + 4].tolist() for k in (3, 5, 7, 9)]
    assert asked == expected  # one of two processes takes every other batch


def test_all_there_is_can_be_read_ahead(replay_path):
    dataset = ReplayMemoryDataset(replay_path, 2).with_frames(3)
    dataset.read_ahead(range(len(dataset)))  # the system refuses ranges outside the mapping


def test_fewer_windows_than_a_batch_are_refused(replay_path):
    with pytest.raises(ReplayError, match='has 60 windows of 1 steps, fewer than one batch of 61'):
        sampler_of(replay_path, 1, 61)


# Anonymous memory is what cannot be given back; pages of a mapped file can. tracemalloc sees what
# numpy allocates, also when it is freed at once.
MEASURE = """
import sys, tracemalloc
from pathlib import Path
import numpy as np
from qt_core.replay import ReplayFolder, ReplayMemoryDataset, WindowSampler

def resident():
    lines = Path('/proc/self/status').read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith('RssAnon')).split()[1])

class KeepsACopy(ReplayMemoryDataset):
    def __init__(self, folder, *args, **options):
        folder = folder if isinstance(folder, ReplayFolder) else ReplayFolder(folder)
        folder.shards = [{n: np.array(a) for n, a in s.items()} for s in folder.shards]
        super().__init__(folder, *args, **options)

class CopiesToSample(ReplayMemoryDataset):
    def gather(self, indices):
        mapped = self.folder.shards
        self.folder.shards = [{n: np.array(a) for n, a in s.items()} for s in mapped]
        try:
            return super().gather(indices)
        finally:
            self.folder.shards = mapped

def draw(kind, path, batches):
    dataset = kind(path, 2, condition_on_text=False).with_frames(3, discount=0.9)
    sampler = WindowSampler(dataset, batch_size=4, seed=0)
    grown = []
    for number in range(batches):
        sampler.batch(number)
        grown.append(resident())
    return max(grown)

kind = {'mapped': ReplayMemoryDataset, 'kept': KeepsACopy, 'sampled': CopiesToSample}[sys.argv[1]]
draw(ReplayMemoryDataset, sys.argv[2], 1)  # what torch and numpy load at first use
tracemalloc.start()
before = resident()
grown = draw(kind, sys.argv[3], 3 if kind is CopiesToSample else 40) - before
print(grown, tracemalloc.get_traced_memory()[1])
"""


@pytest.fixture(scope='module')
def large_folder(tmp_path_factory):
    """Write about 200 MB in three shards, and a small folder of the same shapes."""
    path = tmp_path_factory.mktemp('large')
    camera = Camera(name='front', height=128, width=128)
    spec = Spec(cameras=(camera,), state_dim=4, num_actions=2, action_bins=8)
    for name, episodes in (('small', 1), ('large', 42)):
        with ReplayWriter(path / name, spec, None, shard_steps=1400) as writer:
            for _ in range(episodes):
                writer.add(bare_episode(spec, steps=100))
    return path


def test_opening_and_sampling_never_copy_the_folder(large_folder):
    size = sum(
        path.stat().st_size for path in (large_folder / 'large').rglob('*') if path.is_file()
    )
    assert 190e6 < size < 220e6
    assert len(list((large_folder / 'large/shards').iterdir())) == 3

    def shares(kind):
        run = subprocess.run(
            [sys.executable, '-c', MEASURE, kind, large_folder / 'small', large_folder / 'large'],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, 'OMP_NUM_THREADS': '1'},
        )
        resident, peak = (int(number) / size for number in run.stdout.split())
        return resident, peak

    resident, peak = shares('mapped')
    assert resident < 0.05
    assert peak < 0.05
    assert shares('kept')[0] > 0.9  # the measurement sees what a dataset in memory costs,
    assert shares('sampled')[1] > 0.9  # and a copy that is freed at once
