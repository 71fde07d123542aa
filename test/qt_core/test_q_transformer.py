# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
import dataclasses
import re

import pytest
import torch

from qt_core.configuration import ConfigurationError
from qt_core.models import MaxViT, MaxViTConfig, QRoboticTransformer, QTransformerConfig
from qt_core.models.transformer import frame_causal_mask
from test.conftest import TINY_MODEL

B, F = 2, 2


@pytest.fixture
def model(tiny_contract):
    torch.manual_seed(0)
    model = QRoboticTransformer(TINY_MODEL, tiny_contract).eval()
    with torch.no_grad():
        model.head_weight.mul_(30)  # spread the values, so that choices are not ties
    return model


@pytest.fixture
def inputs(model):
    random = torch.Generator().manual_seed(1)
    return {
        'images': {'front': torch.randint(0, 256, (B, F, 32, 32, 3), generator=random).byte()},
        'state': torch.rand(B, F, 7, generator=random),
        'text': torch.randn(B, 8, generator=random),
        'bins': torch.randint(0, model.bins, (B, F, model.dimensions), generator=random),
    }


def changed(inputs, name, frame):
    copy = {**inputs, 'images': {'front': inputs['images']['front'].clone()}}
    if name == 'images':
        copy['images']['front'][:, frame] = 255 - copy['images']['front'][:, frame]
    else:
        copy[name] = inputs[name].clone()
        copy[name][:, frame] += 1 if name == 'bins' else 0.3
        if name == 'bins':
            copy[name] %= 21
    return copy


@torch.no_grad()
@pytest.mark.parametrize('name', ['images', 'state'])
def test_a_frame_reaches_itself_and_later_frames_only(model, inputs, name):
    before = model(**inputs)
    late, early = model(**changed(inputs, name, 1)), model(**changed(inputs, name, 0))
    assert torch.allclose(before[:, 0], late[:, 0], atol=1e-5)
    assert not torch.allclose(before[:, 1], late[:, 1], atol=1e-3)
    assert not torch.allclose(before[:, 1], early[:, 1], atol=1e-4)


@torch.no_grad()
def test_the_sentence_matters(model, inputs):
    other = {**inputs, 'text': -inputs['text']}
    assert not torch.allclose(model(**inputs), model(**other), atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize('dimension', range(7))
def test_a_bin_reaches_later_dimensions_only(model, inputs, dimension):
    bins = inputs['bins'].clone()
    bins[..., dimension] = (bins[..., dimension] + 7) % model.bins
    before, after = model(**inputs), model(**{**inputs, 'bins': bins})
    assert torch.allclose(before[:, :, : dimension + 1], after[:, :, : dimension + 1], atol=1e-5)
    if dimension < 6:
        rest = slice(dimension + 1, None)
        assert not torch.allclose(before[:, :, rest], after[:, :, rest], atol=1e-3)


@torch.no_grad()
def test_decoding_equals_teacher_forcing_and_takes_the_best_bin(model, inputs):
    context = model.contextualise(model.encode(inputs['images'], inputs['state'], inputs['text']))
    bins, values = model.best_actions(context[:, -1:])
    forced = model(**{**inputs, 'bins': bins[:, None].expand(-1, F, -1)})[:, -1].sigmoid()
    assert torch.allclose(values, forced, atol=1e-5)
    assert torch.equal(bins, forced.argmax(-1))
    assert (bins != bins[:, :1]).any()


@torch.no_grad()
def test_frames_encoded_one_by_one_equal_frames_encoded_together(model, inputs):
    together = model.encode(inputs['images'], inputs['state'], inputs['text'])
    one_by_one = [
        model.encode(
            {'front': inputs['images']['front'][:, f : f + 1]},
            inputs['state'][:, f : f + 1],
            inputs['text'],
        )
        for f in range(F)
    ]
    assert torch.allclose(together, torch.cat(one_by_one, dim=1), atol=1e-5)


def test_frame_causal_mask():
    expected = torch.tensor([[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1]]).bool()
    assert torch.equal(frame_causal_mask(2, 2, torch.device('cpu')), expected)


def test_every_weight_is_trained(model, inputs):
    model(**inputs).square().sum().backward()
    unused = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert unused == []


def test_grid_attention_reaches_across_windows_and_block_attention_does_not():
    torch.manual_seed(0)
    vit = MaxViT(MaxViTConfig(stem=8, widths=(16,), depths=(1,), window=4, heads=2), text=8)
    block = vit.blocks[0]
    x = torch.randn(1, 8, 8, 16)
    y = x.clone()
    y[0, 0, 0] = torch.randn(16)
    with torch.no_grad():
        inside = (block.block(x) - block.block(y)).abs().sum(-1)[0] > 1e-6
        across = (block.grid(x) - block.grid(y)).abs().sum(-1)[0] > 1e-6
    assert inside[:4, :4].all()
    assert not inside[4:].any()
    assert not inside[:, 4:].any()
    rows, columns = across.nonzero().T
    assert set(rows.tolist()) == set(columns.tolist()) == {0, 2, 4, 6}


def test_image_size_must_suit_the_windows(tiny_contract):
    camera = dataclasses.replace(tiny_contract.cameras[0], height=40)
    contract = dataclasses.replace(tiny_contract, cameras=(camera,))
    with pytest.raises(ConfigurationError, match="'40x32', expected multiples of 32"):
        QRoboticTransformer(TINY_MODEL, contract)


@pytest.mark.parametrize(
    ('make', 'change', 'message'),
    [
        (QTransformerConfig, {'heads': 0}, 'model.heads is 0, expected 1..8192'),
        (QTransformerConfig, {'width': 10**6}, 'model.width is 1000000, expected 1..8192'),
        (QTransformerConfig, {'width': 102, 'heads': 2}, 'model.width is 102, expected a mult'),
        (MaxViTConfig, {'window': 0}, 'maxvit.window is 0, expected at least 1'),
        (MaxViTConfig, {'heads': 0}, 'maxvit.heads is 0, expected at least 1'),
        (MaxViTConfig, {'depths': (1, 0)}, 'maxvit.depths'),
    ],
)
def test_impossible_sizes_are_refused(make, change, message):
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        make(**change)
