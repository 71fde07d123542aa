# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
import collections
import dataclasses
import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from qt_core.configuration import ConfigurationError
from qt_core.models import MaxViT, MaxViTConfig
from qt_core.models.maxvit import axial_rotary, rotate
from qt_core.models.transformer import Attention, Block, causal_mask, frame_causal_mask
from test.conftest import TINY_VIT

ONE = MaxViTConfig(dim=16, depth=(1,), window_size=4, heads=2, dim_head=8, ff_mult=2, dropout=0.0)


@pytest.mark.parametrize(('batch', 'parts'), [(63, 1), (64, 2), (200, 6)])
def test_tiles_computed_a_few_at_a_time_are_those_computed_at_once(batch, parts, monkeypatch):
    torch.manual_seed(0)
    attention = MaxViT(ONE).blocks[0].block
    x = torch.randn(batch, 8, 8, 16)  # 4 tiles each, of 256 numbers: 128 tiles at a time
    once = attention(x).detach()
    transform, counts = attention._transform, []
    monkeypatch.setattr(
        attention, '_transform', lambda few: counts.append(len(few)) or transform(few)
    )
    with torch.no_grad():
        torch.testing.assert_close(attention(x), once)
    assert (len(counts), sum(counts)) == (parts, 4 * batch)


def test_grid_attention_reaches_across_windows_and_block_attention_does_not():
    torch.manual_seed(0)
    block = MaxViT(ONE).blocks[0]
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


@torch.no_grad()
def test_rotary_attention_sees_how_far_apart_pixels_are_and_not_where():
    torch.manual_seed(0)
    layer = MaxViT(ONE).blocks[0].block
    logits = {}
    query, key = torch.randn(8), torch.randn(8)
    for place in range(16):
        for other in range(16):
            turned = [
                rotate(vector[None], layer.cosine[p], layer.sine[p])[0]
                for vector, p in ((query, place), (key, other))
            ]
            distance = (place // 4 - other // 4, place % 4 - other % 4)
            logits.setdefault(distance, []).append(float(turned[0] @ turned[1]))
    assert all(max(same) - min(same) < 1e-5 for same in logits.values())
    means = [same[0] for same in logits.values()]
    assert max(means) - min(means) > 0.1


@torch.no_grad()
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_rotation_against_a_turn_of_one_pair_at_a_time(dtype):
    torch.manual_seed(0)
    x = torch.randn(2, 16, 8, dtype=dtype)
    cosine, sine = (wave.to(dtype) for wave in axial_rotary(4, 8))
    out = rotate(x, cosine, sine)
    for place in range(16):
        for pair in range(4):
            coordinate = place // 4 if pair < 2 else place % 4
            angle = coordinate * math.pi / 2 * (0.25 if pair % 2 == 0 else 1.0)
            a, b = x[:, place, 2 * pair], x[:, place, 2 * pair + 1]
            turned = (
                a * math.cos(angle) - b * math.sin(angle),
                b * math.cos(angle) + a * math.sin(angle),
            )
            for channel, expected in enumerate(turned):
                assert torch.allclose(out[:, place, 2 * pair + channel], expected, atol=1e-6)


@torch.no_grad()
def test_a_closed_gate_attends_to_nothing():
    torch.manual_seed(0)
    gated, plain = (Attention(16, 2, 8, gated=gated) for gated in (True, False))
    x = torch.randn(1, 3, 16)
    gate = slice(16, 18)  # after the query
    gated.inputs.weight[gate] = 0
    gated.inputs.bias[:] = 0
    gated.inputs.bias[gate] = -1e4
    assert torch.equal(gated.extend(x, None, None)[0], torch.zeros_like(x))
    gated.inputs.bias[gate] = 1e4
    rows = [row for row in range(50) if row not in (16, 17)]
    plain.inputs.weight.copy_(gated.inputs.weight[rows])
    plain.out.weight.copy_(gated.out.weight)
    assert torch.allclose(gated.extend(x, None, None)[0], plain.extend(x, None, None)[0])


@torch.no_grad()
def test_attention_against_explicit_loops():
    torch.manual_seed(0)
    layer = Attention(6, 2, 4, gated=True)
    x = torch.randn(1, 3, 6)
    out, _ = layer.extend(x, None, causal_mask(3, x.device))
    query, gate, key, value = layer.inputs(layer.norm(x)[0]).split([8, 2, 8, 8], -1)
    for i in range(3):
        heads = []
        for h in range(2):
            part = slice(4 * h, 4 * h + 4)
            scores = torch.stack([query[i, part] @ key[j, part] / 2 for j in range(i + 1)])
            weights = scores.softmax(0)
            read = sum(weights[j] * value[j, part] for j in range(i + 1))
            heads.append(torch.sigmoid(gate[i, h]) * read)
        assert torch.allclose(out[0, i], layer.out(torch.cat(heads)), atol=1e-6)


@torch.no_grad()
def test_a_block_extended_token_by_token_equals_the_whole_sequence():
    torch.manual_seed(0)
    block = Block(16, 2, 8, cross=True)
    x, context = torch.randn(2, 5, 16), torch.randn(2, 3, 16)
    whole = block(x, causal_mask(5, x.device), context)
    cache, parts = block.begin(context), []
    for step in range(5):
        out, cache = block.extend(x[:, step : step + 1], cache)
        parts.append(out)
    assert torch.allclose(whole, torch.cat(parts, dim=1), atol=1e-6)
    swapped = cache.select(torch.tensor([1, 0]))
    out, _ = block.extend(x.flip(0)[:, :1], swapped)
    expected, _ = block.extend(x[:, :1], cache)
    assert torch.allclose(out, expected.flip(0), atol=1e-6)


def test_frame_causal_mask():
    expected = torch.tensor([[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1]]).bool()
    assert torch.equal(frame_causal_mask(2, 2, torch.device('cpu')), expected)


def test_a_frame_does_not_depend_on_its_company_unless_batch_normalisation_is_asked_for():
    images = torch.randn(3, 32, 32, 3)
    for use_layernorm in (True, False):
        torch.manual_seed(0)
        vit = MaxViT(dataclasses.replace(TINY_VIT, use_layernorm=use_layernorm))
        norms = [m for m in vit.modules() if isinstance(m, torch.nn.BatchNorm1d)]
        assert bool(norms) != use_layernorm
        with torch.no_grad():
            together, alone = vit(images)[:1], vit(images[:1])
            assert torch.allclose(together, alone, atol=1e-5) == use_layernorm
            vit.eval()
            assert torch.allclose(vit(images)[:1], vit(images[:1]), atol=1e-5)


def test_activation_checkpointing_computes_again_what_is_cheap_and_changes_nothing():
    images = torch.randn(2, 32, 32, 3)
    again, gradients = {}, {}
    for on in (False, True):
        torch.manual_seed(0)
        config = dataclasses.replace(TINY_VIT, dropout=0.5, activation_checkpointing=on)
        vit = MaxViT(config, text=8)
        torch.manual_seed(1)
        out = vit(images, torch.ones(2, 8))
        with Operators() as again[on]:
            out.square().sum().backward()
        gradients[on] = [weight.grad for weight in vit.parameters()]
    assert all(map(torch.allclose, gradients[True], gradients[False]))
    cheap, costly = torch.ops.aten.gelu.default, torch.ops.aten.convolution.default
    assert cheap not in again[False].counts
    assert again[True].counts[cheap] > 0
    assert costly not in again[True].counts


class Operators(TorchDispatchMode):
    """Counts the operators that run."""

    def __init__(self):
        super().__init__()
        self.counts = collections.Counter()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        self.counts[operator] += 1
        return operator(*args, **(kwargs or {}))


def test_a_classifier_when_classes_are_named():
    vit = MaxViT(dataclasses.replace(TINY_VIT, num_classes=10))
    assert vit.classify(torch.randn(2, 32, 32, 3)).shape == (2, 10)
    with pytest.raises(ValueError, match='set num_classes'):
        MaxViT(TINY_VIT).classify(torch.randn(2, 32, 32, 3))


def test_dropout_acts_in_training_only():
    torch.manual_seed(0)
    vit = MaxViT(dataclasses.replace(TINY_VIT, dropout=0.5))
    images = torch.randn(1, 32, 32, 3)
    with torch.no_grad():
        assert not torch.equal(vit(images), vit(images))
        vit.eval()
        assert torch.equal(vit(images), vit(images))


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'heads': 0}, r'vit\.heads is 0, expected 1\.\.8192'),
        ({'depth': ()}, r'vit\.depth is \(\), expected 1\.\.8 stages'),
        ({'depth': (1, 0)}, r'vit\.depth is \(1, 0\), expected each 1\.\.8192'),
        ({'dim': 12, 'dim_head': None}, r'vit\.dim is 12, expected a multiple of 4·heads = 8'),
        ({'dim_head': 6}, r'vit\.dim_head is 6, expected a multiple of 4'),
        ({'dim': 8192}, r'vit\.dim is 8192, expected 8192 after all stages'),
        ({'dropout': 1.0}, r'vit\.dropout is 1\.0, expected 0 <= dropout < 1'),
        ({'mbconv_shrinkage_rate': 2.0}, 'expected 0 < rate <= 1'),
    ],
)
def test_sizes_that_do_not_fit_are_named(change, message):
    with pytest.raises(ConfigurationError, match=message):
        dataclasses.replace(TINY_VIT, **change)


def test_windows_must_tile_every_stage():
    TINY_VIT.check_image(64, 32)
    with pytest.raises(
        ConfigurationError, match="image size is '48x32', expected multiples of 32"
    ):
        TINY_VIT.check_image(48, 32)
