# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
import dataclasses

import numpy as np
import pytest

from qt_core.action_space import ActionSpace
from qt_core.configuration import ConfigurationError
from qt_core.replay import ReplayError, ReplayFolder, ReplayWriter
from qt_core.replay.editing import merge, relabel, select, split
from qt_core.replay.verification import verify
from test.conftest import make_episode
from test.qt_core.writer_process import SPEC, embed, episode


def written(path, numbers, **options):
    with ReplayWriter(path, SPEC, embed, shard_steps=12, **options) as writer:
        for number in numbers:
            writer.add(episode(number))
    return ReplayFolder(path)


def content(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob('*') if p.is_file()}


def sources(path):
    return [entry['source'] for entry in ReplayFolder(path).episodes]


def assert_same(found, expected, but=()):
    for field in dataclasses.fields(expected):
        ours, theirs = getattr(found, field.name), getattr(expected, field.name)
        if field.name == 'images':
            ours, theirs = ours['front'][:], theirs['front'][:]
        if field.name not in but:
            assert np.array_equal(ours, theirs), field.name


@pytest.mark.parametrize('image_format', ['raw', 'jpeg'])
def test_merging(tmp_path, image_format):
    options = {'image_format': image_format}
    one = written(tmp_path / 'one', range(5), **options)
    two = written(tmp_path / 'two', range(7, 4, -1), **options)
    before = content(tmp_path / 'one'), content(tmp_path / 'two')
    assert merge([one, two], tmp_path / 'out') == 8
    out = ReplayFolder(tmp_path / 'out')
    originals = [folder.episode(n) for folder in (one, two) for n in range(len(folder.episodes))]
    for number, original in enumerate(originals):
        assert_same(out.episode(number), original)
    assert np.array_equal(out.embeddings, embed(out.instructions))  # without the sentence model
    assert verify(tmp_path / 'out') == []
    assert (content(tmp_path / 'one'), content(tmp_path / 'two')) == before
    assert merge([out], tmp_path / 'again') == 8
    assert content(tmp_path / 'again') == content(tmp_path / 'out')  # jpegs are not coded again


def test_folders_that_differ_are_not_merged(tmp_path):
    one = written(tmp_path / 'one', [0])
    two = written(tmp_path / 'two', [0], image_format='jpeg')
    three = written(tmp_path / 'three', [0], sentence_model='mine')
    for other, message in ((two, "image_format: 'raw' != 'jpeg'"), (three, "'mine'")):
        with pytest.raises(ReplayError, match=message):
            merge([one, other], tmp_path / 'out')
    with pytest.raises(ReplayError, match='exists and is not empty'):
        merge([one], tmp_path / 'two')
    assert not (tmp_path / 'out').exists()


def test_splitting(tmp_path):
    folder = written(tmp_path / 'r', range(10))
    assert split(folder, tmp_path / 'a', fraction=0.3, seed=1) == (7, 3)
    train, validation = sources(tmp_path / 'a/train'), sources(tmp_path / 'a/validation')
    assert sorted(train + validation) == [f'episode {n}' for n in range(10)]
    assert split(folder, tmp_path / 'b', fraction=0.3, seed=1) == (7, 3)
    assert content(tmp_path / 'a') == content(tmp_path / 'b')
    split(folder, tmp_path / 'c', fraction=0.3, seed=2)
    assert sources(tmp_path / 'c/validation') != validation
    with pytest.raises(ReplayError, match='not empty'):
        split(folder, tmp_path / 'c', fraction=0.3, seed=2)
    for fraction in (0, 1, -0.1):
        with pytest.raises(ConfigurationError, match='validation is'):
            split(folder, tmp_path / 'd', fraction=fraction, seed=0)


@pytest.mark.parametrize(
    ('condition', 'numbers'),
    [
        ({'outcome': 'success'}, [0, 3, 6]),
        ({'instruction': 'sentence 2'}, [2, 5]),
        ({'instruction': 'sent*[12]'}, [1, 2, 4, 5]),
        ({'outcome': 'failure', 'instruction': '*'}, [1, 4]),
    ],
)
def test_filtering(tmp_path, condition, numbers):
    folder = written(tmp_path / 'r', range(7))
    assert select(folder, tmp_path / 'out', **condition) == len(numbers)
    out = ReplayFolder(tmp_path / 'out')
    for place, number in enumerate(numbers):
        assert_same(out.episode(place), episode(number))


def test_filtering_everything_out(tmp_path):
    folder = written(tmp_path / 'r', range(3))
    with pytest.raises(ReplayError, match='none is kept'):
        select(folder, tmp_path / 'out', instruction='Sentence*')
    with pytest.raises(ReplayError, match="outcome is 'won', expected success or failure or unl"):
        select(folder, tmp_path / 'out', outcome='won')
    assert not (tmp_path / 'out').exists()


def test_relabelling_outcomes(tmp_path):
    folder = written(tmp_path / 'r', range(4))
    outcomes = {'episode 1': 'success', 'episode 3': 'failure'}  # a failure, and a success
    changed = relabel(folder, tmp_path / 'out', outcomes=outcomes, instructions={})
    assert changed == 2
    out = ReplayFolder(tmp_path / 'out')
    for number in (0, 2):
        assert_same(out.episode(number), episode(number))
    for number, last in ((1, 1.0), (3, 0.0)):
        found = out.episode(number)
        assert_same(found, episode(number), but=('reward', 'terminal', 'timeout', 'outcome'))
        assert found.reward.tolist() == [0.0] * (len(found.bins) - 1) + [last]
        assert (found.terminal, found.timeout) == (True, False)
        assert found.outcome == outcomes[found.source]
    assert verify(tmp_path / 'out') == []


def test_episodes_of_one_name_are_told_apart_by_their_hash(tmp_path):
    path = tmp_path / 'r'
    with ReplayWriter(path, SPEC, embed) as writer:
        for number in range(3):
            twin = dataclasses.replace(episode(number), source='same', source_hash=f'hash{number}')
            writer.add(twin)
    folder = ReplayFolder(path)
    with pytest.raises(ReplayError, match="3 episodes of source 'same'; give the hash"):
        relabel(folder, tmp_path / 'out', outcomes={'same': 'failure'}, instructions={})
    before = [entry['outcome'] for entry in folder.episodes]
    relabel(folder, tmp_path / 'out', outcomes={'hash1': 'success'}, instructions={})
    after = [entry['outcome'] for entry in ReplayFolder(tmp_path / 'out').episodes]
    assert after == [before[0], 'success', before[2]]


def test_relabelling_says_that_the_task_is_done(tmp_path, tiny_contract, embed):
    action = dataclasses.replace(tiny_contract.action, terminate=True)
    contract = dataclasses.replace(tiny_contract, action=action)
    original = make_episode(contract, 0, success=False)
    with ReplayWriter(tmp_path / 'r', contract, embed) as writer:
        writer.add(original)
    source = original.source
    relabel(
        ReplayFolder(tmp_path / 'r'), tmp_path / 'o', outcomes={source: 'success'}, instructions={}
    )
    found = ReplayFolder(tmp_path / 'o').episode(0)
    assert found.action[-1, -1] == 1.0
    assert np.array_equal(found.bins, ActionSpace(contract).encode(found.action))
    assert np.array_equal(found.action[:-1], original.action[:-1])
    assert np.array_equal(found.action[-1, :-1], original.action[-1, :-1])


def test_relabelling_sentences(tmp_path):
    folder = written(tmp_path / 'r', range(4))
    asked = []

    def embed_new(sentences):
        asked.extend(sentences)
        return embed(sentences)

    changes = {'sentence 0': 'a new one', 'sentence 1': 'sentence 2'}
    changed = relabel(folder, tmp_path / 'out', outcomes={}, instructions=changes, embed=embed_new)
    assert changed == 3
    assert asked == ['a new one']
    out = ReplayFolder(tmp_path / 'out')
    assert [out.episode(number).instruction for number in range(4)] == [
        *('a new one', 'sentence 2', 'sentence 2', 'a new one')
    ]
    assert np.array_equal(out.embeddings, embed(out.instructions))
    assert_same(out.episode(0), episode(0), but=('instruction',))


@pytest.mark.parametrize(
    ('labels', 'message'),
    [
        (
            {'outcomes': {'episode 0': 'unlabeled'}},
            "outcome is 'unlabeled', expected success or f",
        ),
        ({'outcomes': {'episode 9': 'success'}}, "has no episode of source 'episode 9'"),
        ({'instructions': {'x': 'y'}}, "has no episode of instruction 'x'"),
    ],
)
def test_labels_that_fit_nothing_are_refused(tmp_path, labels, message):
    folder = written(tmp_path / 'r', range(2))
    with pytest.raises(ReplayError, match=message):
        relabel(folder, tmp_path / 'out', **{'outcomes': {}, 'instructions': {}} | labels)
    assert not (tmp_path / 'out').exists()
