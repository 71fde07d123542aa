# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
import dataclasses

import numpy as np
import pytest

from qt_core.exchange.errors import ExchangeError
from qt_core.exchange.q_transformer import export_q_transformer
from qt_core.replay import ReplayFolder, ReplayWriter
from qt_core.spec import Spec
from test.qt_core.test_replay import GREY, spec_episode


def load(path):
    return {p.name.removesuffix('.memmap.npy'): np.load(p) for p in path.iterdir()}


def test_files_are_what_the_package_maps(replay_path, tmp_path):
    folder = ReplayFolder(replay_path)
    export_q_transformer(folder, tmp_path / 'out', frames=3)
    arrays = load(tmp_path / 'out')
    longest = max(entry['steps'] for entry in folder.episodes)
    assert {name: (array.dtype, array.shape) for name, array in arrays.items()} == {
        'states': (np.dtype('float32'), (8, longest, 3, 3, 32, 32)),
        'actions': (np.dtype('int64'), (8, longest, folder.spec.num_actions)),
        'rewards': (np.dtype('float32'), (8, longest)),
        'dones': (np.dtype('bool'), (8, longest)),
        'text_embeds': (np.dtype('float32'), (8, longest, 8)),
    }
    # As the package counts an episode's steps.
    lengths = (arrays['dones'].cumsum(-1) == 0).sum(-1) + 1
    assert lengths.tolist() == [entry['steps'] for entry in folder.episodes]
    for number, (entry, steps) in enumerate(zip(folder.episodes, lengths, strict=True)):
        episode = folder.episode(number)
        images = np.asarray(episode.images['front'][:])
        for step in range(steps):
            seen = images[np.maximum([step - 2, step - 1, step], 0)]  # (F, H, W, C)
            state = arrays['states'][number, step].transpose(1, 2, 3, 0)
            assert np.allclose((state + 1) * 127.5, seen, atol=1e-3)
        assert np.array_equal(arrays['actions'][number, :steps], episode.bins)
        assert np.array_equal(arrays['rewards'][number, :steps], episode.reward)
        embedding = folder.embeddings[entry['instruction']]
        assert (arrays['text_embeds'][number, :steps] == embedding).all()
        for array in arrays.values():
            assert not array[number, steps:].any()


def test_a_folder_without_sentences_has_no_embeddings(tmp_path):
    with ReplayWriter(tmp_path / 'replay', GREY, None) as writer:
        writer.add(spec_episode(GREY, 0))
    shapes = export_q_transformer(ReplayFolder(tmp_path / 'replay'), tmp_path / 'out', frames=1)
    assert shapes['states'] == (1, 5, 1, 1, 5, 4)
    assert 'text_embeds' not in load(tmp_path / 'out')


def test_several_cameras_or_none_are_refused(tmp_path):
    left = GREY.cameras[0]
    two = dataclasses.replace(GREY, cameras=(left, dataclasses.replace(left, name='right')))
    for spec, cameras in ((two, 'left, right'), (Spec(cameras=(), state_dim=2), 'none')):
        path = tmp_path / f'replay_{len(spec.cameras)}'
        with ReplayWriter(path, spec, None) as writer:
            writer.add(spec_episode(spec, 1))
        with pytest.raises(ExchangeError, match=f'one camera, this has {cameras}'):
            export_q_transformer(ReplayFolder(path), tmp_path / 'out')
        assert not (tmp_path / 'out').exists()


def test_too_little_room_is_noticed_before_writing(replay_path, tmp_path):
    with pytest.raises(ExchangeError, match='GB are free'):
        export_q_transformer(ReplayFolder(replay_path), tmp_path / 'out', frames=10**12)
    assert not list(tmp_path.glob('out*'))
