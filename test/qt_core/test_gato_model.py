# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
import dataclasses
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from qt_core.configuration import ConfigurationError
from qt_core.embodiment import Embodiment
from qt_core.learning.checkpoint import (
    Checkpoint,
    CheckpointError,
    load_checkpoint,
    save_checkpoint,
)
from qt_core.models.gato import Gato, GatoCache, RelativeAttention, shifted, sinusoids, token_loss
from qt_core.models.gato_configuration import PUBLISHED, Body, GatoConfig
from qt_core.models.gato_embedding import ImageEmbedding, PatchEmbedding, position_index
from qt_core.models.gato_prompts import Prompt
from qt_core.models.gato_text import TextTokenizer
from qt_core.models.gato_tokens import GatoSequence, ImageTokens
from qt_core.models.transformer import causal_mask
from qt_core.spec import Camera

BODY = Body(cameras=(Camera(height=32, width=32),), state_dim=2, num_actions=3, action_bins=16)
SMALL = GatoConfig(
    bodies=(BODY,),
    text_ids=280,
    context=32,
    width=16,
    depth=2,
    heads=2,
    dim_head=6,  # heads times dim_head is not the width
    ff_width=24,
    dropout=0.0,
    image_channels=8,
    position_rows=12,
    position_columns=12,
    max_timesteps=8,
)
LENGTH = 14
PIXELS = 4  # the places of the image's patches
TOKENIZER = TextTokenizer.train(['reach the red block', 'push it'], 280)


def make(**changes):
    torch.manual_seed(0)
    network = Gato(dataclasses.replace(SMALL, **changes), TOKENIZER).eval()
    with torch.no_grad():
        for block in network.blocks:  # zero at first: whether they count would not be seen
            block.attention.content_bias.normal_()
            block.attention.position_bias.normal_()
    return network


@pytest.fixture(scope='module')
def network():
    return make()


def draw(batch=2, length=LENGTH, seed=0):
    """Draw sequences of text, four patches at 3..6, states, a separator and actions."""
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 280, (batch, length), generator=g)
    position = torch.arange(length).repeat(batch, 1)
    ids[:, 3 : 3 + PIXELS] = -1
    ids[:, 7:9] += 280
    ids[:, 9], position[:, 9] = SMALL.ids.separator, -1
    ids[:, 10:13], position[:, 10:13] = SMALL.ids.actions.start + ids[:, 10:13] % 16, -2
    target = torch.zeros(batch, length, dtype=torch.bool)
    target[:, :3] = target[:, 10:13] = True
    spans = torch.tensor([[0.0, 0.5], [0.5, 1.0]])
    place = torch.cartesian_prod(torch.arange(batch), torch.arange(3, 3 + PIXELS))
    pixels = torch.randint(0, 256, (batch * PIXELS, 16, 16, 3), generator=g, dtype=torch.uint8)
    rows, columns = spans[[0, 0, 1, 1] * batch], spans[[0, 1, 0, 1] * batch]
    return GatoSequence(
        ids=ids,
        position=position,
        timestep=torch.zeros(batch, length, dtype=torch.int64),
        valid=torch.ones(batch, length, dtype=torch.bool),
        target=target,
        images=[ImageTokens(pixels, rows, columns, place)],
    )


def with_id(sequence, place, number):
    ids = sequence.ids.clone()
    ids[:, place] = number
    return dataclasses.replace(sequence, ids=ids)


# Attention


def test_shifting_puts_each_distance_under_its_token():
    scores = torch.arange(3 * 5.0).reshape(3, 5)  # the newest 3 of 5 tokens
    moved = shifted(scores)
    for i in range(3):
        for j in range(3 + i):  # tokens up to this one
            distance = 2 + i - j
            assert moved[i, j] == scores[i, 5 - 1 - distance]


def test_sinusoids_are_of_the_distances_farthest_first():
    given = sinusoids(4, 6, torch.device('cpu'))
    for row, distance in enumerate((3, 2, 1, 0)):
        angles = [distance / 10000 ** (2 * i / 6) for i in range(3)]
        expected = [*map(math.sin, angles), *map(math.cos, angles)]
        assert given[row].tolist() == pytest.approx(expected, abs=1e-6)


def slow_attention(layer, x, distances):
    """Read off the definition (Dai et al. 2019, section 3.3), number by number."""
    heads, dim = layer.content_bias.shape[0], layer.content_bias.shape[2]
    query, key, value = layer.inputs(layer.norm(x)).chunk(3, dim=-1)
    read = torch.zeros_like(query)
    for h in range(heads):
        part = slice(h * dim, (h + 1) * dim)
        u, v = layer.content_bias[h, 0], layer.position_bias[h, 0]
        for i in range(len(x)):
            scores = []
            for j in range(i + 1):
                relative = (layer.relative.weight @ distances[i - j])[part]
                content = (query[i, part] + u) @ key[j, part]
                place = (query[i, part] + v) @ relative
                scores.append((content + place) / math.sqrt(dim))
            weights = torch.stack(scores).softmax(0)
            for j in range(i + 1):
                read[i, part] += weights[j] * value[j, part]
    return layer.out(read)


@torch.no_grad()
def test_attention_is_that_of_its_definition():
    torch.manual_seed(0)
    layer = RelativeAttention(SMALL).double()
    nn.init.normal_(layer.content_bias)
    nn.init.normal_(layer.position_bias)
    x = torch.randn(2, 7, 16).double()
    r = sinusoids(7, 16, torch.device('cpu')).double()
    ours, _ = layer(x, layer.project(r), causal_mask(7, x.device))
    slow = torch.stack([slow_attention(layer, sample, r.flip(0)) for sample in x])
    torch.testing.assert_close(ours, slow)


@torch.no_grad()
def test_feed_forward_is_a_geglu_whose_width_is_that_before_the_split(network):
    layer, x = network.blocks[0].feed_forward, torch.randn(3, 16)
    assert layer.inputs.out_features == 24
    assert layer.out.in_features == 12
    wide = layer.inputs(layer.norm(x))
    expected = layer.out(F.gelu(wide[:, :12]) * wide[:, 12:])
    torch.testing.assert_close(layer(x), expected)


# Causality, padding, cache


@torch.no_grad()
@pytest.mark.parametrize('place', [0, 2, 7, 9, 10, 13])
def test_a_token_changes_what_follows_it_alone(network, place):
    sequence = draw()
    before = network(sequence)
    after = network(with_id(sequence, place, 5))
    assert torch.equal(before[:, :place], after[:, :place])
    changed = (before[:, place:] - after[:, place:]).abs().amax(-1)
    assert (changed > 1e-6).all()


@torch.no_grad()
def test_a_patch_changes_what_follows_it_alone(network):
    sequence = draw()
    image = sequence.images[0]
    pixels = image.pixels.clone()
    pixels[1] = 255 - pixels[1]  # of sample 0, at place 4
    changed = dataclasses.replace(sequence, images=[dataclasses.replace(image, pixels=pixels)])
    moved = (network(sequence) - network(changed)).abs().amax(-1) > 1e-6
    assert moved.tolist() == [[place >= 4 for place in range(LENGTH)], [False] * LENGTH]


def padded(sequence, left, right, seed):
    """Put garbage at both ends, which `valid` tells of."""
    g = torch.Generator().manual_seed(seed)
    batch = len(sequence.ids)

    def around(values):
        if values.dtype == torch.bool:
            ends = [torch.ones(batch, n, dtype=torch.bool) for n in (left, right)]
        else:
            ends = [torch.randint(-9, 10**6, (batch, n), generator=g) for n in (left, right)]
        return torch.cat([ends[0], values, ends[1]], dim=1)

    fields = {n: around(v) for n, v in vars(sequence).items() if isinstance(v, torch.Tensor)}
    fields['valid'][:, :left] = fields['valid'][:, left + sequence.ids.shape[1] :] = False
    shift = torch.tensor([0, left])
    images = [dataclasses.replace(i, place=i.place + shift) for i in sequence.images]
    return GatoSequence(**fields, images=images)


@torch.no_grad()
@pytest.mark.parametrize(('left', 'right'), [(0, 5), (4, 0), (3, 2)])
def test_what_padding_holds_changes_nothing(left, right):
    network = make(timestep_positions=True)
    sequence = draw()
    alone = network(sequence)
    loss = token_loss(alone, sequence)
    for seed in (1, 2):
        longer = padded(sequence, left, right, seed)
        logits = network(longer)
        assert logits.isfinite().all()
        torch.testing.assert_close(logits[:, left : left + LENGTH], alone, atol=1e-5, rtol=1e-5)
        counted = token_loss(logits, longer)
        if left == 0:
            torch.testing.assert_close(counted, loss)


@torch.no_grad()
@pytest.mark.parametrize('lengths', [[14], [1] * 14, [5, 1, 1, 4, 3], [13, 1]])
def test_reading_piece_by_piece_equals_reading_at_once(network, lengths):
    sequence = draw()
    full = network(sequence)
    embedded = network.embed(sequence)
    cache, hidden = None, []
    for piece in embedded.split(lengths, dim=1):
        read, cache = network.extend(piece, cache)
        hidden.append(read)
    assert cache.length == LENGTH
    logits = network.logits(torch.cat(hidden, dim=1), 0, SMALL.ids.vocabulary)
    torch.testing.assert_close(logits, full, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_one_goes_on_from_a_cache_more_than_once(network):
    embedded = network.embed(draw())
    _, cache = network.extend(embedded[:, :6], None)
    first, _ = network.extend(embedded[:, 6:9], cache)
    network.extend(embedded[:, 9:], cache)
    again, _ = network.extend(embedded[:, 6:9], cache)
    assert torch.equal(first, again)


@torch.no_grad()
def test_more_tokens_than_the_context_are_refused(network):
    with pytest.raises(ValueError, match='33 tokens, expected at most 32'):
        network(draw(length=33))
    embedded = network.embed(draw(length=32))
    _, cache = network.extend(embedded, None)
    assert isinstance(cache, GatoCache)
    with pytest.raises(ValueError, match='33 tokens, expected at most 32'):
        network.extend(embedded[:, :1], cache)


@torch.no_grad()
def test_logits_of_an_action_are_those_of_its_ids(network):
    sequence = draw()
    hidden, _ = network.extend(network.embed(sequence), None)
    first, last = SMALL.ids.action_range(16)
    some = network.logits(hidden, first, last)
    assert some.shape == (2, LENGTH, 16)
    torch.testing.assert_close(some, network(sequence)[..., first:last], atol=1e-5, rtol=1e-5)


# Embedding


@pytest.mark.parametrize(
    ('interval', 'count', 'allowed', 'mean'),
    [
        ((0.25, 0.5), 128, range(32, 64), 48),  # the paper's example
        ((0.0, 1.0), 128, range(128), 64),
        ((2 / 6, 2 / 6 + 1 / 6), 128, range(42, 64), 53),
        ((0.9, 1.0), 10, range(9, 10), 9),
        ((0.5, 0.51), 10, range(5, 6), 5),  # narrower than a step
    ],
)
def test_a_patch_stands_somewhere_in_its_interval_in_training(interval, count, allowed, mean):
    torch.manual_seed(0)
    many = torch.tensor([interval] * 4000)
    drawn = position_index(many, count, sample=True)
    assert set(drawn.tolist()) == set(allowed)
    assert drawn.float().mean().item() == pytest.approx(np.mean(allowed), abs=2.5)
    fixed = position_index(many, count, sample=False)
    assert set(fixed.tolist()) == {mean}


def test_patch_positions_are_drawn_anew_in_training_and_fixed_in_evaluation():
    network, sequence = make(), draw()
    with torch.no_grad():
        assert torch.equal(network.embed(sequence), network.embed(sequence))
        network.train()  # without dropout
        torch.manual_seed(1)
        first, second = network.embed(sequence), network.embed(sequence)
        torch.manual_seed(1)
        again = network.embed(sequence)
    assert torch.equal(first, again)
    moved = (first != second).any(-1)
    assert moved[:, 3 : 3 + PIXELS].any()
    assert not moved[:, :3].any()
    assert not moved[:, 3 + PIXELS :].any()


@torch.no_grad()
def test_rows_and_columns_are_told_apart(network):
    sequence = draw()
    image = sequence.images[0]
    turned = dataclasses.replace(image, rows=image.columns, columns=image.rows)
    moved = network.embed(sequence) != network.embed(
        dataclasses.replace(sequence, images=[turned])
    )
    places = moved.any(-1)[0].nonzero().flatten().tolist()
    assert places == [4, 5]  # on the diagonal rows and columns are the same


@torch.no_grad()
def test_an_embedding_is_the_sum_of_what_is_known(network):
    sequence = draw()
    embedded, table = network.embed(sequence), network.embedding
    scale = math.sqrt(16)
    for place, number in ((0, None), (7, None), (9, None), (11, None)):
        number = sequence.ids[0, place]
        expected = table.tokens.weight[number]
        if place < 9:
            expected = expected + table.positions.weight[place]
        if place == 11:
            expected = expected + table.action_position
        torch.testing.assert_close(embedded[0, place], expected * scale)
    image = sequence.images[0]
    pixels = image.pixels[1:2].movedim(-1, 1) / 127.5 - 1  # the upper right one
    expected = table.images['3'](pixels)[0] + scale * (
        table.rows.weight[3] + table.columns.weight[9] + table.positions.weight[4]
    )
    torch.testing.assert_close(embedded[0, 4], expected)


@torch.no_grad()
def test_a_patch_is_divided_by_the_root_of_its_side():
    stem = PatchEmbedding(SMALL, 3)
    seen = []
    stem.first.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    stem(torch.full((1, 3, 16, 16), -1.0))
    assert seen[0].unique().item() == -0.25


@pytest.mark.parametrize(('channels', 'groups'), [(8, 4), (64, 32), (96, 32), (20, 10), (7, 1)])
def test_groups_of_the_norm_divide_the_channels(channels, groups):
    config = dataclasses.replace(SMALL, image_channels=channels)
    norms = [m for m in PatchEmbedding(config, 4).modules() if isinstance(m, nn.GroupNorm)]
    assert [norm.num_groups for norm in norms] == [groups, groups]


@torch.no_grad()
@pytest.mark.parametrize('stem', [PatchEmbedding, ImageEmbedding])
@pytest.mark.parametrize('side', [1, 4, 16, 20])
def test_colours_are_told_apart_at_any_size(stem, side):
    torch.manual_seed(0)
    embed = stem(dataclasses.replace(SMALL, patch_size=side), 3)
    red, blue, dark = (
        torch.tensor(colour)[None, :, None, None].expand(1, 3, side, side)
        for colour in ([1.0, -1.0, -1.0], [-1.0, -1.0, 1.0], [-0.5, -1.0, -1.0])
    )
    for other in (blue, dark):
        assert (embed(red) - embed(other)).abs().max() > 0.01


@torch.no_grad()
def test_action_tokens_share_a_position_or_have_none():
    shared, none = make(), make(action_position='none')
    names = set(dict(shared.named_parameters())) - set(dict(none.named_parameters()))
    assert names == {'embedding.action_position'}
    sequence = draw()
    position = sequence.position.clone()
    position[:, 10:13] = -1
    unplaced = dataclasses.replace(sequence, position=position)
    assert torch.equal(none.embed(sequence), none.embed(unplaced))
    moved = (shared.embed(sequence) != shared.embed(unplaced)).any(-1)
    assert moved[0].nonzero().flatten().tolist() == [10, 11, 12]


@torch.no_grad()
def test_the_step_in_the_episode_is_seen_on_request(network):
    sequence = draw()
    later = dataclasses.replace(sequence, timestep=sequence.timestep + 3)
    assert torch.equal(network(sequence), network(later))
    timed = make(timestep_positions=True)
    assert not torch.equal(timed(sequence), timed(later))
    beyond = [dataclasses.replace(sequence, timestep=sequence.timestep + n) for n in (7, 99)]
    assert torch.equal(timed(beyond[0]), timed(beyond[1]))  # the last one that is told apart


@torch.no_grad()
def test_one_token_may_stand_for_an_image_of_any_size():
    body = dataclasses.replace(
        BODY, cameras=(Camera(name='colour'), Camera(name='depth', channels=1))
    )
    network = make(image_tokens='single', bodies=(body,))
    assert not any('rows' in name for name in network.state_dict())
    sequence = draw(batch=1)
    whole = torch.tensor([[0.0, 1.0]])
    colour, depth = (
        ImageTokens(
            torch.randint(0, 256, (1, *shape), dtype=torch.uint8),
            whole,
            whole,
            torch.tensor([[0, place]]),
        )
        for place, shape in ((3, (40, 32, 3)), (4, (8, 8, 1)))
    )
    changed = dataclasses.replace(depth, pixels=255 - depth.pixels)
    before = network(dataclasses.replace(sequence, images=[colour, depth]))
    after = network(dataclasses.replace(sequence, images=[colour, changed]))
    moved = (before - after).abs().amax(-1)[0] > 1e-6
    assert moved.tolist() == [place >= 4 for place in range(LENGTH)]


def test_images_are_about_as_large_as_other_tokens():
    for image_tokens in ('patches', 'single'):
        torch.manual_seed(0)
        config = dataclasses.replace(
            SMALL, width=256, image_channels=64, image_tokens=image_tokens
        )
        embedded = Gato(config, TOKENIZER).eval().embed(draw())
        images = embedded[:, 3 : 3 + PIXELS].std().item()
        assert 1 / 4 < images / embedded[:, 7:9].std().item() < 4


# Learning


def test_the_loss_is_the_mean_over_what_is_to_be_predicted(network):
    sequence = draw()
    logits = network(sequence).double()
    expected = []
    for row in range(2):
        for place in (0, 1, 9, 10, 11):  # before text 1 and 2, and before each action
            chance = logits[row, place].log_softmax(-1)[sequence.ids[row, place + 1]]
            expected.append(-chance.item())
    assert token_loss(logits, sequence).item() == pytest.approx(np.mean(expected), rel=1e-5)
    some = network(sequence, sequence.predicted)
    assert some.shape == (10, SMALL.ids.vocabulary)
    assert token_loss(some, sequence).item() == pytest.approx(np.mean(expected), rel=1e-5)
    valid = sequence.valid.clone()
    valid[:, 12:] = False
    fewer = token_loss(logits, dataclasses.replace(sequence, valid=valid))
    kept = [value for n, value in enumerate(expected) if n % 5 != 4]
    assert fewer.item() == pytest.approx(np.mean(kept), rel=1e-5)


def test_the_loss_of_nothing_is_nothing(network):
    sequence = draw()
    nothing = dataclasses.replace(sequence, target=torch.zeros_like(sequence.target))
    assert token_loss(network(nothing), nothing).item() == 0
    assert token_loss(network(nothing, nothing.predicted), nothing).item() == 0


def test_every_weight_learns():
    changes = {'timestep_positions': True, 'context': 16}
    body = dataclasses.replace(BODY, cameras=(*BODY.cameras, Camera(name='depth', channels=1)))
    network = make(bodies=(body,), **changes).train()
    sequence = draw()
    token_loss(network(sequence), sequence).backward()
    for name, weight in network.named_parameters():
        assert weight.grad is not None, name  # as copies that meet in each step want
        unseen = name.startswith('embedding.images.1.')  # no such image in the batch
        assert weight.grad.any() != unseen, name


def test_every_weight_has_a_gradient_where_there_is_no_image():
    network = make(context=16).train()
    sequence = draw()
    blind = dataclasses.replace(
        sequence, ids=sequence.ids.clamp(min=0), images=[], target=sequence.target
    )
    token_loss(network(blind), blind).backward()
    assert all(weight.grad is not None for weight in network.parameters())


def test_it_learns_what_follows():
    torch.manual_seed(0)
    network = make().train()
    sequence = draw(batch=4)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    first = None
    for _ in range(60):
        optimizer.zero_grad()
        loss = token_loss(network(sequence, sequence.predicted), sequence)
        loss.backward()
        optimizer.step()
        first = loss.item() if first is None else first
    assert first == pytest.approx(math.log(SMALL.ids.vocabulary), rel=0.1)
    assert loss.item() < 0.5


def test_dropout_and_skipped_layers_are_for_training_alone():
    sequence = draw()
    for changes in ({'dropout': 0.5}, {'stochastic_depth': 0.5}):
        network = make(**changes)
        embedded = network.embed(sequence)
        block = network.blocks[0]
        relative = block.attention.project(sinusoids(LENGTH, 16, embedded.device))
        mask = causal_mask(LENGTH, embedded.device)
        still, _ = block(embedded, relative, mask)
        assert torch.equal(still, block(embedded, relative, mask)[0])
        block.train()
        assert not torch.equal(still, block(embedded, relative, mask)[0])


def test_skipping_leaves_a_layer_as_it_is_on_average():
    block = make(stochastic_depth=0.25).blocks[0].train()
    torch.manual_seed(0)
    added = block._dropped(torch.ones(4000, 2, 3))
    assert sorted(added.unique().tolist()) == pytest.approx([0, 4 / 3])
    assert (added.flatten(1).std(dim=1) == 0).all()  # a sample's layer as a whole
    assert added.mean().item() == pytest.approx(1, abs=0.03)


def test_lower_precision_is_close():
    network, sequence = make(), draw()
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
        rough = network(sequence)
    with torch.no_grad():
        exact = network(sequence)
    assert (rough.float() - exact).abs().max() < 0.05
    with torch.autocast('cpu', torch.bfloat16):
        token_loss(network.train()(sequence), sequence).backward()


# Sizes


@pytest.mark.parametrize(
    ('name', 'total', 'percent'), [('79M', 79, -1.2), ('364M', 364, -0.1), ('1.18B', 1180, -0.3)]
)
def test_published_sizes_have_the_parameters_of_their_names(name, total, percent):
    blocks, heads, width, ff_width, dim_head = PUBLISHED[name]
    assert heads * dim_head == width
    assert ff_width == 4 * width
    with torch.device('meta'):
        network = Gato(GatoConfig.published(name, (BODY,)), TextTokenizer.train([], 257))
    counts = {n: p.numel() for n, p in network.named_parameters()}
    matrices = sum(p.numel() for b in network.blocks for p in b.parameters() if p.dim() == 2)
    vocabulary = 32000 + 2 * 1024 + 1
    table = counts['embedding.tokens.weight']
    assert matrices + table == 11 * blocks * width**2 + vocabulary * width
    assert (matrices + table) / (total * 1e6) - 1 == pytest.approx(percent / 100, abs=1e-3)
    biases = blocks * (2 * heads * dim_head + ff_width + width)
    norms = (2 * blocks + 1) * 2 * width
    positions = (512 + 2 * 128 + 1) * width
    images = sum(count for n, count in counts.items() if n.startswith('embedding.images'))
    assert sum(counts.values()) == matrices + table + biases + norms + positions + images
    assert images < 0.02 * total * 1e6


# Checkpoint


def save(network, folder, contract=None):
    save_checkpoint(
        folder,
        Checkpoint(
            model=network,
            contract=contract,
            sentences=(),
            embeddings=np.zeros((0, 0), np.float32),
            sentence_model='',
            training={'steps': 1},
        ),
    )


@torch.no_grad()
def test_a_checkpoint_holds_all_there_is(contract, tmp_path):
    robot = Body.named('robot', Embodiment.of(contract))
    network = make(bodies=(robot, BODY))
    prompt = Prompt(
        body=1,
        sentence='push it',
        images={'video': np.full((2, 32, 32, 3), 7, np.uint8)},
        state=np.ones((2, 2), np.float32),
        bins=np.arange(6).reshape(2, 3),
        first=4,
    )
    network.prompts = (prompt,)
    save(network, tmp_path / 'gato', contract)
    read = load_checkpoint(tmp_path / 'gato')
    assert isinstance(read.model, Gato)
    assert read.model.config == network.config
    assert read.model.tokenizer == TOKENIZER
    assert read.contract == contract
    (again,) = read.model.prompts
    assert (again.body, again.sentence, again.first) == (1, 'push it', 4)
    assert np.array_equal(again.bins, prompt.bins)
    assert np.array_equal(again.images['video'], prompt.images['video'])
    assert not read.model.training
    sequence = draw()
    assert torch.equal(read.model(sequence), network(sequence))


@pytest.mark.parametrize('fault', ['none', 'truncated', 'larger'])
def test_a_tokenizer_that_does_not_fit_is_refused(network, fault, tmp_path):
    save(network, tmp_path / 'gato')
    path = tmp_path / 'gato' / 'tokenizer.json'
    if fault == 'none':
        path.unlink()
    elif fault == 'truncated':
        path.write_text(path.read_text()[:500])
    else:
        TextTokenizer.train([chr(n) for n in range(0x4E00, 0x4E80)], 400).save(path)
    with pytest.raises(CheckpointError, match=r'tokenizer\.json') as error:
        load_checkpoint(tmp_path / 'gato')
    assert '\n' not in str(error.value)


def test_a_network_needs_a_body_and_room_for_its_words():
    with pytest.raises(ConfigurationError, match='at least one body'):
        Gato(dataclasses.replace(SMALL, bodies=()), TOKENIZER)
    with pytest.raises(ConfigurationError, match='text_ids is 258'):
        Gato(dataclasses.replace(SMALL, text_ids=258), TOKENIZER)
