# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
import dataclasses
import hashlib
import json

import numpy as np
import pytest
import torch

from qt_core.configuration import ConfigurationError
from qt_core.learning.checkpoint import CheckpointError
from qt_core.learning.prompts import Prompter, choose_prompts, prepended
from qt_core.models.gato_prompts import load_prompts, save_prompts
from qt_core.observation import normalise_state
from qt_core.replay import ReplayFolder, ReplayWriter, SequenceDataset
from test.conftest import make_episode

K = 6


@pytest.fixture
def folder(tmp_path, tiny_contract, embed):
    """Write episodes of 4..15 steps, of two sentences in turn and one that only the last has."""
    with ReplayWriter(tmp_path / 'replay', tiny_contract, embed, shard_steps=40) as writer:
        for seed in range(12):
            sentence = f'touch the {("red", "blue")[seed % 2]} block' if seed < 11 else 'wait'
            episode = make_episode(
                tiny_contract, seed, steps=4 + seed, success=seed % 3 > 0, instruction=sentence
            )
            writer.add(episode)
    return ReplayFolder(tmp_path / 'replay')


@pytest.fixture
def dataset(folder):
    return SequenceDataset(folder, K, False)


def owners(dataset):
    """Give episode and step of every sample."""
    entries = [dataset.folder.episodes[n] for n in dataset.episodes]
    return np.array([(n, t) for n, e in enumerate(entries) for t in range(e['steps'])])


def test_a_quarter_is_prompted_half_of_it_by_the_end_of_another_episode_of_the_task(dataset):
    prompter, where = Prompter(dataset, 0.25), owners(dataset)
    lengths = np.array([entry['steps'] for entry in dataset.folder.episodes])
    tasks = np.array([entry['instruction'] for entry in dataset.folder.episodes])
    samples = np.random.default_rng(0).integers(len(dataset), size=20000)
    rows, chosen = prompter.draw(samples, np.random.default_rng(1))
    windows, prompts = where[samples[rows]], where[chosen]
    assert (windows[:, 0] != prompts[:, 0]).all()
    assert (tasks[windows[:, 0]] == tasks[prompts[:, 0]]).all()
    company = where[samples][:, 0] < 11  # the last episode is alone in its task
    assert len(rows) == pytest.approx(0.25 * company.sum(), rel=0.05)
    assert (windows[:, 0] < 11).all()
    # Of an episode of n steps, n - 2 beginnings are as likely, beside the last one's own half.
    ends = prompts[:, 1] == lengths[prompts[:, 0]] - 3
    expected = np.mean(0.5 + 0.5 / (lengths[prompts[:, 0]] - 2))
    assert ends.mean() == pytest.approx(expected, abs=0.02)
    longest = prompts[prompts[:, 0] == 10, 1]  # of 14 steps
    counts = np.bincount(longest, minlength=12)
    assert len(counts) == 12
    assert counts[:11].min() > 0.5 * counts[:11].max()


def test_prompts_follow_from_the_random_numbers_alone(dataset):
    samples = np.arange(40)
    first, again, other = (
        Prompter(dataset, 0.5).draw(samples, np.random.default_rng(seed)) for seed in (3, 3, 4)
    )
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0], other[0])


def test_a_prompt_takes_the_place_of_the_last_steps_of_a_window(dataset, folder):
    prompter, where = Prompter(dataset, 0.5), owners(dataset)
    samples = np.random.default_rng(0).integers(len(dataset), size=16)
    random = np.random.default_rng(1)
    batch = prompter.prepend(dataset.gather(samples), samples, random)
    rows, chosen = prompter.draw(samples, np.random.default_rng(1))
    prompt_of = dict(zip(rows.tolist(), chosen.tolist(), strict=True))
    assert 0 < len(rows) < 16
    for row, sample in enumerate(samples):
        parts = []
        if row in prompt_of:
            number, first = where[prompt_of[row]]
            parts.append((number, range(first, min(first + K // 2, 4 + number))))
            assert len(parts[0][1]) == min(K // 2, 4 + number)
        number, first = where[sample]
        rest = K - sum(len(part) for _, part in parts)
        parts.append((number, range(first, min(first + rest, 4 + number))))
        bins = np.concatenate([folder.episode(n).bins[list(part)] for n, part in parts])
        states = np.concatenate([folder.episode(n).state[list(part)] for n, part in parts])
        frames = [folder.episode(n).images['front'][list(part)] for n, part in parts]
        count = len(bins)
        assert count <= K
        assert batch.valid[row].tolist() == [True] * count + [False] * (K - count)
        assert int(batch.length[row]) == count
        assert np.array_equal(batch.bins[row, :count], bins)
        expected = normalise_state(folder.contract.state, states)
        assert np.array_equal(batch.state[row, :count], expected)
        assert np.array_equal(batch.images['front'][row, :count], np.concatenate(frames))
        assert batch.start[row, :count].tolist() == [step for _, part in parts for step in part]


def test_what_is_stored_stays_as_it_is(dataset, folder):
    def stored():
        paths = sorted(path for path in folder.folder.rglob('*') if path.is_file())
        return [(path.name, hashlib.sha256(path.read_bytes()).hexdigest()) for path in paths]

    before, episodes = stored(), json.dumps(folder.episodes)
    arrays = [{k: np.array(v) for k, v in shard.items()} for shard in folder.shards]
    prompter = Prompter(dataset, 1.0)
    for seed in range(20):
        samples = np.arange(16) + seed
        batch = prompter.prepend(dataset.gather(samples), samples, np.random.default_rng(seed))
        batch.bins.zero_()
        batch.state.zero_()
        batch.images['front'].zero_()
    assert stored() == before
    assert json.dumps(folder.episodes) == episodes
    for shard, kept in zip(folder.shards, arrays, strict=True):
        assert all(np.array_equal(shard[name], kept[name]) for name in kept)


def test_the_windows_that_are_given_stay_as_they_are(dataset):
    batch = dataset.gather([0, 1])
    bins = batch.bins.clone()
    prompts = dataset.with_frames(3).gather([50])
    joined = prepended(batch, prompts, torch.tensor([1]))
    assert torch.equal(batch.bins, bins)
    assert torch.equal(joined.bins[1, :3], prompts.bins[0])
    assert torch.equal(joined.bins[1, 3:], bins[1, :3])
    assert torch.equal(joined.bins[0], bins[0])


def test_without_sentences_the_folder_is_the_task(tmp_path, tiny_contract):
    with ReplayWriter(tmp_path / 'r', tiny_contract, None) as writer:
        for seed in range(3):
            writer.add(make_episode(tiny_contract, seed, instruction=''))
    dataset = SequenceDataset(ReplayFolder(tmp_path / 'r'), 4, False)
    rows, _ = Prompter(dataset, 1.0).draw(np.arange(18), np.random.default_rng(0))
    assert len(rows) == 18


def test_only_episodes_that_are_trained_on_are_prompts(folder):
    dataset = SequenceDataset(folder, K, False, episodes=[0, 2, 5])
    rows, chosen = Prompter(dataset, 1.0).draw(np.arange(len(dataset)), np.random.default_rng(0))
    where = owners(dataset)
    assert set(where[chosen][:, 0]) == {0, 1}
    assert len(rows) == 4 + 6


def test_prompts_need_room(folder):
    with pytest.raises(ConfigurationError, match=r'prompt_share is 0\.25, expected 0 where fewer'):
        Prompter(SequenceDataset(folder, 1, False), 0.25)
    Prompter(SequenceDataset(folder, 1, False), 0.0)


def test_a_checkpoint_carries_the_end_of_the_shortest_success_of_each_sentence(dataset, folder):
    red, blue, wait = choose_prompts(dataset, 3, 5)
    assert [p.sentence for p in (red, blue, wait)] == folder.instructions
    assert {p.body for p in (red, blue, wait)} == {3}
    # Of 0, 2, 4, 6, 8, 10 those of an even third failed; 2 is the shortest of the others.
    for prompt, number in ((red, 2), (blue, 1), (wait, 11)):
        episode = folder.episode(number)
        first = max(0, 4 + number - 5)
        assert prompt.first == first
        assert np.array_equal(prompt.bins, episode.bins[first:])
        state = normalise_state(folder.contract.state, episode.state[first:-1])
        assert np.array_equal(prompt.state, state)
        assert np.array_equal(prompt.images['front'], episode.images['front'][first:-1])


def test_prompts_of_a_checkpoint_are_few_and_of_episodes_that_succeeded(dataset, folder):
    whole = choose_prompts(dataset, 0, 5)
    assert len(choose_prompts(dataset, 0, 5, sum(p.size for p in whole[:2]))) == 2
    assert choose_prompts(dataset, 0, 0) == []
    failed = SequenceDataset(folder, K, False, episodes=[0, 1, 6])
    assert [p.sentence for p in choose_prompts(failed, 0, 5)] == ['touch the blue block']


def test_of_unequal_returns_the_largest_counts_before_the_shortest(tmp_path, tiny_contract):
    with ReplayWriter(tmp_path / 'r', tiny_contract, None) as writer:
        for seed, reward in enumerate((-9.0, -2.0, -5.0)):
            episode = make_episode(tiny_contract, seed, steps=4 + seed, instruction='')
            rewards = np.full_like(episode.reward, reward / len(episode.reward))
            writer.add(dataclasses.replace(episode, reward=rewards))
    folder = ReplayFolder(tmp_path / 'r')
    (prompt,) = choose_prompts(SequenceDataset(folder, K, False), 0, 9)
    assert np.array_equal(prompt.bins, folder.episode(1).bins)


def test_prompts_are_read_as_they_were_written(dataset, folder, tmp_path):
    prompts = choose_prompts(dataset, 0, 5)
    save_prompts(prompts, tmp_path)
    again = load_prompts(tmp_path, [folder.spec])
    assert [(p.body, p.sentence, p.first) for p in again] == [
        (p.body, p.sentence, p.first) for p in prompts
    ]
    for ours, theirs in zip(prompts, again, strict=True):
        for a, b in (
            (ours.state, theirs.state),
            (ours.bins, theirs.bins),
            (ours.images['front'], theirs.images['front']),
        ):
            assert a.dtype == b.dtype
            assert np.array_equal(a, b)


def test_of_no_prompts_nothing_is_written(folder, tmp_path):
    (tmp_path / 'checkpoint').mkdir()
    save_prompts([], tmp_path / 'checkpoint')
    assert list((tmp_path / 'checkpoint').iterdir()) == []
    assert load_prompts(tmp_path / 'checkpoint', [folder.spec]) == ()


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'body': 1}, 'prompts.json: damaged'),
        ({'body': -1}, 'prompts.json: damaged'),
        ({'first': 'x'}, 'prompts.json: damaged'),
        ({'else': 0}, 'prompts.json: damaged'),
    ],
)
def test_a_damaged_table_is_refused(dataset, folder, tmp_path, change, message):
    save_prompts(choose_prompts(dataset, 0, 5), tmp_path)
    path = tmp_path / 'prompts.json'
    table = json.loads(path.read_text())
    table[0] |= change
    path.write_text(json.dumps(table))
    with pytest.raises(CheckpointError, match=message) as error:
        load_prompts(tmp_path, [folder.spec])
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'num_actions': 6}, 'does not fit config.json: 0.bins'),
        ({'state_dim': 3}, 'does not fit config.json: 0.state'),
        ({'action_bins': 4}, 'prompt 0 is damaged'),
    ],
)
def test_prompts_of_another_body_are_refused(dataset, folder, tmp_path, change, message):
    save_prompts(choose_prompts(dataset, 0, 5), tmp_path)
    with pytest.raises(CheckpointError, match=message):
        load_prompts(tmp_path, [dataclasses.replace(folder.spec, **change)])


def test_a_file_that_is_cut_off_is_refused(dataset, folder, tmp_path):
    save_prompts(choose_prompts(dataset, 0, 5), tmp_path)
    path = tmp_path / 'prompts.safetensors'
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(CheckpointError, match='damaged or truncated'):
        load_prompts(tmp_path, [folder.spec])
