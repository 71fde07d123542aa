# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
import json
import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qt_core.configuration import ConfigurationError, build, plain
from qt_core.embodiment import Embodiment
from qt_core.models.gato_configuration import Body, GatoConfig
from qt_core.models.gato_text import TextTokenizer
from qt_core.models.gato_tokens import (
    ACTION_POSITION,
    GatoSequence,
    ImageTokens,
    TokenIds,
    compress,
    decode_values,
    encode_values,
    expand,
)
from qt_core.models.pretrained import CheckpointError
from qt_core.spec import Camera, Spec

IDS = TokenIds(300)
SENTENCES = [f'reach the {colour} block' for colour in ('red', 'green', 'blue', 'yellow')]


@pytest.fixture(scope='module')
def tokenizer():
    return TextTokenizer.train(SENTENCES, 400)


# Values


@pytest.mark.parametrize(
    ('value', 'compressed'),
    [(0.0, 0.0), (1.0, 0.4547), (math.pi, 0.5668), (256.0, 1.0), (-1.0, -0.4547), (-256.0, -1.0)],
)
def test_mu_law_is_that_of_the_paper(value, compressed):
    assert compress(torch.tensor(value)).item() == pytest.approx(compressed, abs=1e-4)
    assert expand(compress(torch.tensor(value))).item() == pytest.approx(value, rel=1e-5)


def test_every_bin_survives_a_round_trip():
    bins = torch.arange(1024)
    assert torch.equal(encode_values(decode_values(bins)), bins)


@pytest.mark.parametrize(
    ('value', 'expected'),
    [
        (0.0, 512),  # the lower edge of the upper half
        (-1e-5, 511),
        (1.0, 512 + 232),  # 0.4547 * 512 = 232.8
        (-1.0, 512 - 233),
        (256.0, 1023),  # not 1024, which would be the first action
        (-256.0, 0),
        (257.0, 1023),
        (-1e6, 0),
        (math.inf, 1023),
        (-math.inf, 0),
    ],
)
def test_bins_of_values(value, expected):
    assert encode_values(torch.tensor(value)).item() == expected


def test_values_are_decoded_at_the_middle_of_a_bin():
    edges = torch.linspace(-1, 1, 1025, dtype=torch.float64)
    middle = (edges[:-1] + edges[1:]) / 2
    decoded = compress(decode_values(torch.arange(1024)).double())
    torch.testing.assert_close(decoded, middle, atol=1e-6, rtol=0)


@settings(deadline=None)
@given(st.floats(2**-7, 256, width=32), st.booleans())
def test_a_value_comes_back_to_within_half_a_bin(value, negative):
    value = torch.tensor(-value if negative else value)
    error = compress(decode_values(encode_values(value))) - compress(value)
    assert abs(error.item()) <= 1 / 1024 + 1e-6


def test_values_that_are_in_range_already_have_uniform_bins():
    bins = torch.arange(1024)
    middle = (bins + 0.5) / 512 - 1
    assert torch.equal(encode_values(middle, companded=False), bins)
    torch.testing.assert_close(decode_values(bins, companded=False), middle)
    ends = torch.tensor([-1.0, 1.0, -9.0, 9.0])
    assert encode_values(ends, companded=False).tolist() == [0, 1023, 0, 1023]


def test_a_value_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match='NaN'):
        encode_values(torch.tensor([0.0, math.nan]))


# Ids


@pytest.mark.parametrize('text', [257, 300, 32000])
def test_each_id_means_one_thing(text):
    ids = TokenIds(text)
    kinds = [range(text), ids.observations, ids.actions, range(ids.separator, ids.vocabulary)]
    every = [number for kind in kinds for number in kind]
    assert every == list(range(text + 2049))
    assert ids.vocabulary == text + 2049


def test_no_value_leaves_its_range():
    extreme = torch.tensor([-1e30, -257.0, -256.0, 0.0, 256.0, 257.0, 1e30])
    observed = [
        *IDS.of_values(extreme).tolist(),
        *IDS.of_discrete(torch.tensor([0, 1023])).tolist(),
    ]
    assert set(observed) <= set(IDS.observations)
    assert set(IDS.of_bins(torch.tensor([0, 1023])).tolist()) <= set(IDS.actions)
    for wrong in (-1, 1024):
        with pytest.raises(ValueError, match=f'{wrong}'):
            IDS.of_discrete(torch.tensor([wrong]))
        with pytest.raises(ValueError, match=f'{wrong}'):
            IDS.of_bins(torch.tensor([wrong]))


@pytest.mark.parametrize('bins', [2, 256, 1024])
def test_every_action_survives_a_round_trip(bins):
    every = torch.arange(bins).reshape(-1, 2)
    ids = IDS.of_bins(every)
    assert torch.equal(IDS.to_bins(ids), every)
    first, last = IDS.action_range(bins)
    assert (ids.min().item(), ids.max().item()) == (first, last - 1)
    with pytest.raises(ValueError, match='bins'):
        IDS.to_bins(torch.tensor([IDS.separator]))


def test_ids_of_values_are_turned_back():
    values = torch.tensor([-1.0, 0.0, 1.0, 300.0])
    near = IDS.to_values(IDS.of_values(values))
    torch.testing.assert_close(near, torch.tensor([-1.0, 0.0, 1.0, 256.0]), rtol=0.02, atol=1e-3)


def test_a_table_has_room_for_bytes():
    with pytest.raises(ConfigurationError, match='text_ids is 256, expected at least 257'):
        TokenIds(256)


# Sequences


def sequence(**changes):
    fields = {
        'ids': torch.tensor([[5, 6, 310, -1, 7]]),
        'position': torch.tensor([[0, 1, 2, 3, ACTION_POSITION]]),
        'timestep': torch.zeros(1, 5, dtype=torch.int64),
        'valid': torch.tensor([[True, True, True, True, True]]),
        'target': torch.tensor([[True, True, False, False, True]]),
    }
    return GatoSequence(**{**fields, **changes})


def test_a_target_is_predicted_from_the_place_before_it():
    assert sequence().predicted.tolist() == [[True, False, False, True, False]]


def test_nothing_is_predicted_in_padding_nor_from_it():
    right = sequence(valid=torch.tensor([[True, True, True, True, False]]))
    assert right.predicted.tolist() == [[True, False, False, False, False]]
    left = sequence(valid=torch.tensor([[False, True, True, True, True]]))
    assert left.predicted.tolist() == [[False, False, False, True, False]]


def test_a_sequence_moves_as_a_whole():
    image = ImageTokens(
        pixels=torch.zeros(1, 2, 2, 3, dtype=torch.uint8),
        rows=torch.zeros(1, 2),
        columns=torch.zeros(1, 2),
        place=torch.tensor([[0, 3]]),
    )
    moved = sequence(images=[image]).to('meta')
    tensors = [value for value in vars(moved).values() if isinstance(value, torch.Tensor)]
    assert len(tensors) == 5
    assert all(t.is_meta for t in [*tensors, *vars(moved.images[0]).values()])


# Text


def test_words_of_the_sentences_are_one_token_each(tokenizer):
    assert [len(tokenizer.encode(sentence)) for sentence in SENTENCES] == [4] * 4
    assert len({tuple(tokenizer.encode(sentence)) for sentence in SENTENCES}) == 4


@pytest.mark.parametrize(
    'sentence',
    [
        *SENTENCES,
        '',
        ' ',
        '  two  spaces, and a trailing one ',
        'words never seen: grasp the Würfel',
        '把红色方块拿起来',
        '🤖\n\t\x00',
        '▁ is how others write a space',
        '<0x41> is not A, nor <unk> unknown',
    ],
)
def test_every_sentence_comes_back(tokenizer, sentence):
    ids = tokenizer.encode(sentence)
    assert tokenizer.decode(ids) == sentence
    assert all(0 < i < tokenizer.ids <= 400 for i in ids)  # 0 is the unknown one


@settings(deadline=None)
@given(st.text(st.sampled_from('a rthe<0x4F>unk▁é日\u0301\x00😀'), max_size=30))
def test_any_text_comes_back(sentence):
    spelled = TextTokenizer.train(SENTENCES, 300)
    assert spelled.decode(spelled.encode(sentence)) == sentence


def test_it_knows_bytes_where_there_is_nothing_to_learn():
    spelled = TextTokenizer.train([], 257)
    assert spelled.ids == 257
    assert spelled.encode('hé') == [1 + byte for byte in 'hé'.encode()]
    assert spelled.decode(spelled.encode('hé')) == 'hé'


def test_it_has_at_most_the_ids_it_may(tokenizer):
    assert tokenizer.ids < 400
    few = TextTokenizer.train(SENTENCES, 260)
    assert few.ids == 260
    assert few.decode(few.encode(SENTENCES[0])) == SENTENCES[0]
    assert len(few.encode(SENTENCES[0])) < len(SENTENCES[0]) / 2  # the best ones are kept
    with pytest.raises(ConfigurationError, match='text_ids is 100'):
        TextTokenizer.train(SENTENCES, 100)


def test_the_same_sentences_give_the_same_ids(tokenizer):
    program = (
        'from qt_core.models.gato_text import TextTokenizer\n'
        f'print(TextTokenizer.train({SENTENCES!r}, 400)._tokenizer.to_str())'
    )
    told = subprocess.run(
        [sys.executable, '-c', program], check=True, capture_output=True, text=True
    )
    assert told.stdout.strip() == tokenizer._tokenizer.to_str()
    assert TextTokenizer.train(SENTENCES[::-1], 400) == tokenizer


def test_what_is_saved_is_read_back(tokenizer, tmp_path):
    tokenizer.save(tmp_path / 'tokenizer.json')
    again = TextTokenizer.load(tmp_path / 'tokenizer.json', 400)
    assert again == tokenizer
    assert again.encode('a Würfel') == tokenizer.encode('a Würfel')


def test_a_tokenizer_with_more_ids_than_the_network_is_refused(tokenizer, tmp_path):
    tokenizer.save(tmp_path / 'tokenizer.json')
    with pytest.raises(CheckpointError, match='text_ids is 265') as error:
        TextTokenizer.load(tmp_path / 'tokenizer.json', 265)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('content', [None, '', '{}', '[]', '{"model": {"type": "Unigram"}}', '\0'])
def test_damage_is_one_line(content, tmp_path):
    path = tmp_path / 'tokenizer.json'
    if content is not None:
        path.write_text(content)
    with pytest.raises(CheckpointError, match=r'tokenizer\.json') as error:
        TextTokenizer.load(path, 400)
    assert '\n' not in str(error.value)


PANICS = {'type': 'Precompiled', 'precompiled_charsmap': 'AAAA'}


@pytest.mark.parametrize(
    'change',
    [
        {'normalizer': PANICS},  # the library does not raise an Exception then
        {'model': {'type': 'Unigram', 'unk_id': None, 'vocab': [['a', -1.0]]}},
        {'model': {'type': 'WordLevel', 'vocab': {'a': 0}, 'unk_token': 'none'}},
    ],
)
def test_a_tokenizer_that_cannot_spell_is_refused_when_it_is_read(change, tmp_path):
    path = tmp_path / 'tokenizer.json'
    TextTokenizer.train(['push it'], 280).save(path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(CheckpointError, match=r'tokenizer\.json') as error:
        TextTokenizer.load(path, 400)
    assert '\n' not in str(error.value)


# Configuration


def test_a_configuration_is_written_and_read(contract):
    robot = Body.named('robot', Embodiment.of(contract))
    game = Body(name='game', cameras=(), state_dim=3, num_actions=1, action_bins=4)
    config = GatoConfig.published('364M', (robot, game))
    again = build(GatoConfig, plain(config), 'model')
    assert again == config
    assert again.specs == (Spec.of(contract), game.shapes)
    assert again.sentence_dim is None
    assert again.bodies[0].embodiment.contract == contract
    assert again.bodies[1].embodiment.contract is None


def test_a_contract_of_other_shapes_is_refused(contract):
    with pytest.raises(ConfigurationError, match='one of these shapes'):
        Body(name='robot', state_dim=2, contract=contract.to_text())
    with pytest.raises(ConfigurationError, match='robot: contract'):
        Body(name='robot', contract='name: [')


@pytest.mark.parametrize(
    ('changes', 'error'),
    [
        ({'bodies': (Body(), Body())}, 'unique names'),
        ({'text_ids': 256}, 'model.text_ids is 256, expected 257'),
        ({'text_ids': 1 << 30}, 'model.text_ids'),
        ({'width': 63}, 'model.width is 63, expected an even number'),
        ({'ff_width': 63}, 'model.ff_width'),
        ({'depth': 0}, 'model.depth'),
        ({'image_channels': 1}, 'model.image_channels'),
        ({'heads': 1 << 20}, 'model.heads'),
        ({'dropout': 1.0}, 'model.dropout'),
        ({'image_tokens': 'all'}, 'patches or single'),
        ({'sentence': 'never'}, 'step or window'),
        ({'action_position': 'own'}, 'shared or none'),
    ],
)
def test_what_does_not_fit_is_refused(changes, error):
    with pytest.raises(ConfigurationError, match=error):
        GatoConfig(**changes)


def test_more_bins_than_action_ids_are_refused():
    Body(cameras=(Camera(),), action_bins=1024)
    with pytest.raises(ConfigurationError, match='action_bins is 1025, expected at most 1024'):
        Body(cameras=(Camera(),), action_bins=1025)


def test_an_unknown_size_is_refused():
    with pytest.raises(ConfigurationError, match=r'79M or 364M or 1\.18B'):
        GatoConfig.published('7B')
