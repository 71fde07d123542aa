# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
import dataclasses
import itertools

import numpy as np
import pytest
import torch

from qt_core.configuration import ConfigurationError
from qt_core.models import Decoding, QRoboticTransformer, QTransformerConfig
from qt_core.models.decoding import decode_actions
from qt_core.spec import Camera, Spec
from test.conftest import TINY_MODEL, TINY_VIT

B, F, N, A = 2, 3, 4, 5
SPEC = Spec(
    cameras=(Camera(name='front', height=32, width=32), Camera(name='wrist', height=64, width=32)),
    state_dim=3,
    num_actions=N,
    action_bins=A,
)
BASE = dataclasses.replace(TINY_MODEL, frames=F, depth=2).fitted(SPEC)
VARIANTS = {
    'usual': {},
    'concatenated': {'head': 'concatenated'},
    'single': {'head': 'single'},
    'dueling': {'dueling': True},
    'two critics': {'dual_critics': True},
    'distribution': {'value_bins': 7, 'return_range': (-2.0, 3.0)},
    'random order': {'random_order': True},
    'concatenated, random order': {'random_order': True, 'head': 'concatenated'},
    'memory': {'memory': 2},
    'tokens of the sentence': {'conditioning': 'cross_attention'},
    'no gates': {'gated': False},
    'null sentence': {'cond_drop_prob': 0.5},
}
NATURAL = [name for name, changes in VARIANTS.items() if 'random_order' not in changes]
CHAINED = [name for name, changes in VARIANTS.items() if changes.get('head') != 'single']
ORDER = [2, 0, 3, 1]


def build(**changes):
    torch.manual_seed(0)
    model = QRoboticTransformer(dataclasses.replace(BASE, **changes)).eval()
    with torch.no_grad():
        for critic in model.critics:
            critic.head_weight.mul_(30)  # spread the values, so that choices are not ties
    return model


def inputs_of(model):
    random = torch.Generator().manual_seed(1)
    config = model.config
    shape = (B, 4, 8) if config.conditioning == 'cross_attention' else (B, 8)
    return {
        'images': {
            camera.name: torch.randint(
                0, 256, (B, F, camera.height, camera.width, 3), generator=random
            ).byte()
            for camera in config.cameras
        },
        'state': torch.rand(B, F, 3, generator=random) if config.state_dim else None,
        'text': torch.randn(*shape, generator=random) if config.condition_on_text else None,
        'bins': torch.randint(0, A, (B, F, N), generator=random),
    }


def order_of(model):
    return ORDER if model.config.random_order else None


def q_of(model, inputs):
    """Values (B, F, N, A) by one full pass, by dimension, the smaller of two critics."""
    order = order_of(model)
    q = model.values(model(**inputs, order=order)).amin(0)
    return q if order is None else q[:, :, np.argsort(order)]


def choose(model, inputs, **options):
    video = {name: f.permute(0, 4, 1, 2, 3) for name, f in inputs['images'].items()}
    return model.get_optimal_actions(
        video or None,
        text_embeds=inputs['text'],
        state=inputs['state'],
        past_actions=inputs['bins'][:, :-1],
        order=order_of(model),
        return_q_values=True,
        **options,
    )


def changed(inputs, name, frame):
    copy = {**inputs, 'images': dict(inputs['images'])}
    if name in inputs['images']:
        copy['images'][name] = inputs['images'][name].clone()
        copy['images'][name][:, frame] = 255 - copy['images'][name][:, frame]
    else:
        copy[name] = inputs[name].clone()
        copy[name][:, frame] += 0.3
    return copy


@pytest.fixture(params=VARIANTS)
def model(request):
    return build(**VARIANTS[request.param])


@pytest.fixture
def inputs(model):
    return inputs_of(model)


@torch.no_grad()
@pytest.mark.parametrize('name', ['front', 'wrist', 'state'])
def test_a_frame_reaches_itself_and_later_frames_only(model, inputs, name):
    before = q_of(model, inputs)
    late, early = (q_of(model, changed(inputs, name, frame)) for frame in (F - 1, 0))
    assert torch.allclose(before[:, :-1], late[:, :-1], atol=1e-5)
    assert not torch.allclose(before[:, -1], late[:, -1], atol=1e-3)
    assert not torch.allclose(before[:, -1], early[:, -1], atol=1e-4)


@torch.no_grad()
def test_the_sentence_matters(model, inputs):
    other = {**inputs, 'text': -inputs['text']}
    assert not torch.allclose(q_of(model, inputs), q_of(model, other), atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize('position', range(N))
def test_a_bin_reaches_later_dimensions_only(model, inputs, position):
    order = order_of(model) or list(range(N))
    bins = inputs['bins'].clone()
    bins[:, -1, order[position]] = (bins[:, -1, order[position]] + 2) % A
    before, after = q_of(model, inputs)[:, -1], q_of(model, {**inputs, 'bins': bins})[:, -1]
    sees = order[position + 1 :]
    same = [d for d in range(N) if d not in sees]
    if model.config.head == 'single':
        same, sees = list(range(N)), sees[:0]
    assert torch.allclose(before[:, same], after[:, same], atol=1e-5)
    for dimension in sees:
        assert not torch.allclose(before[:, dimension], after[:, dimension], atol=1e-4)


@torch.no_grad()
def test_decoding_with_a_cache_equals_teacher_forcing_and_takes_the_best_bin(model, inputs):
    bins, values = choose(model, inputs)
    known = torch.cat([inputs['bins'][:, :-1], bins[:, None]], dim=1)
    forced = q_of(model, {**inputs, 'bins': known})[:, -1]
    assert torch.allclose(values, forced, atol=1e-5)
    assert torch.equal(bins, forced.argmax(-1))
    assert (bins != bins[:, :1]).any()


@torch.no_grad()
@pytest.mark.parametrize('model', NATURAL, indirect=True)
def test_a_session_that_encodes_newest_frames_only_equals_full_passes(model, inputs):
    steps = 2 * F  # beyond the frames it looks at
    random = torch.Generator().manual_seed(2)
    images = {
        name: torch.randint(0, 256, (B, steps, *frames.shape[2:]), generator=random).byte()
        for name, frames in inputs['images'].items()
    }
    state = torch.rand(B, steps, 3, generator=random)
    session = model.session(text_embeds=inputs['text'])
    encoded, taken = [], []
    encode = model.encode
    model.encode = lambda *a: encoded.append(a[1].shape[1]) or encode(*a)
    for step in range(steps):
        now = {name: frames[:, step] for name, frames in images.items()}
        bins, values = session.act(now, state[:, step])
        taken.append(bins)
        window = slice(max(0, step - F + 1), step + 1)
        full = {
            'images': {name: frames[:, window] for name, frames in images.items()},
            'state': state[:, window],
            'text': inputs['text'],
            'bins': torch.stack(taken[window], dim=1),
        }
        expected = model.values(
            model.decode(encode(full['images'], full['state'], full['text']), full['bins'])
        ).amin(0)[:, -1]
        assert torch.allclose(values, expected, atol=1e-5)
        assert torch.equal(bins, expected.argmax(-1))
    assert encoded == [1] * steps


@torch.no_grad()
@pytest.mark.parametrize('length', [0, 2])
def test_a_draft_changes_how_long_decoding_takes_and_not_what_comes_out(model, inputs, length):
    prefix = torch.tensor([[1, 3], [4, 0]])[:, :length] if length else None
    tokens = model.encode(inputs['images'], inputs['state'], inputs['text'])
    common = {'past': inputs['bins'][:, :-1], 'order': order_of(model), 'prefix': prefix}
    bins, values = decode_actions(model, tokens, Decoding(), **common)
    critic, readings = model.critics[0], []
    read = critic.read
    critic.read = lambda *a: readings.append(1) or read(*a)
    for draft in (bins, torch.zeros_like(bins), (bins + 1) % A):
        readings.clear()
        again = decode_actions(model, tokens, Decoding(), draft=draft, **common)
        assert torch.equal(again[0], bins)
        assert torch.allclose(again[1], values, atol=1e-5)
        assert 1 <= len(readings) <= N + 1
        assert (len(readings) == 1) == torch.equal(draft, bins)


@torch.no_grad()
@pytest.mark.parametrize('model', CHAINED, indirect=True)  # else the last has the last word
def test_a_beam_of_one_is_greedy_and_one_as_wide_as_the_space_searches_it_all(model, inputs):
    greedy, _ = choose(model, inputs)
    one, _ = choose(model, inputs, beam=1)
    assert torch.equal(greedy, one)
    order = order_of(model) or list(range(N))
    last = order[-1]
    joint = torch.tensor(list(itertools.product(range(A), repeat=N)))
    bins, values = choose(model, inputs, beam=A**N)
    for b in range(B):
        frames = {name: f[b : b + 1] for name, f in inputs['images'].items()}
        tokens = model.encode(frames, inputs['state'][b : b + 1], inputs['text'][b : b + 1])
        actions = inputs['bins'][b].repeat(len(joint), 1, 1)
        actions[:, -1] = joint
        logits = model.decode(tokens.expand(len(joint), -1, -1, -1), actions, order)
        q = model.values(logits).amin(0)[:, -1, -1].gather(-1, joint[:, last : last + 1])[:, 0]
        assert torch.equal(bins[b], joint[q.argmax()])
        assert torch.isclose(values[b, last, bins[b, last]], q.max(), atol=1e-5)


@torch.no_grad()
def test_a_wider_beam_finds_what_greedy_misses():
    found, missed = 0, 0
    for seed in range(20):
        model = build()
        torch.manual_seed(seed)
        for critic in model.critics:
            critic.head_weight.normal_()
        inputs = inputs_of(model)
        value = [
            q[:, -1].gather(-1, bins[:, -1:]).squeeze(-1)
            for bins, q in (choose(model, inputs, beam=beam) for beam in (1, 25))
        ]
        found += int((value[1] > value[0] + 1e-4).sum())
        missed += int((value[1] < value[0] - 1e-4).sum())
    assert found > 10
    assert missed < found / 5


@torch.no_grad()
@pytest.mark.parametrize('model', NATURAL, indirect=True)
@pytest.mark.parametrize('beam', [1, 3])
def test_a_prefix_is_honoured(model, inputs, beam):
    for length in range(N + 1):
        prefix = torch.tensor([[1, 3, 2, 4], [4, 0, 1, 0]])[:, :length]
        bins, values = choose(model, inputs, actions=prefix, beam=beam)
        assert torch.equal(bins[:, :length], prefix)
        known = torch.cat([inputs['bins'][:, :-1], bins[:, None]], dim=1)
        forced = q_of(model, {**inputs, 'bins': known})[:, -1]
        assert torch.allclose(values, forced, atol=1e-5)
        if beam == 1:
            assert torch.equal(bins[:, length:], forced.argmax(-1)[:, length:])


@pytest.mark.parametrize('prefix', [torch.full((B, 1), A), torch.zeros(B, N + 1).long()])
def test_a_prefix_that_is_no_action_is_refused(prefix):
    model = build()
    with pytest.raises(ValueError, match=r'expected at most 4 bins in 0\.\.4'):
        choose(model, inputs_of(model), actions=prefix)


@torch.no_grad()
def test_guidance_of_one_is_none_and_more_of_it_moves_away_from_the_null_sentence():
    model = build(cond_drop_prob=0.5)
    inputs = inputs_of(model)
    plain, guided = (choose(model, inputs, cond_scale=scale)[1] for scale in (1.0, 3.0))
    null = {**inputs, 'text': model.encoder.null(inputs['text'])}
    bins, values = choose(model, inputs, cond_scale=3.0)
    known = {'bins': torch.cat([inputs['bins'][:, :-1], bins[:, None]], dim=1)}
    with_text, without = (model(**{**side, **known})[0] for side in (inputs, null))
    expected = (without + 3 * (with_text - without))[:, -1].sigmoid()
    assert torch.allclose(values, expected, atol=1e-5)
    assert not torch.allclose(plain, guided, atol=1e-3)
    session = model.session(text_embeds=inputs['text'], cond_scale=3.0)
    for step in range(F):
        seen = {name: frames[:, step] for name, frames in inputs['images'].items()}
        streamed = session.act(seen, inputs['state'][:, step])
    assert torch.equal(streamed[0], bins)
    assert torch.allclose(streamed[1], values, atol=1e-5)
    none = session_values(model, inputs, cond_scale=1.0)
    assert torch.allclose(none, plain, atol=1e-5)


def session_values(model, inputs, **options):
    session = model.session(text_embeds=inputs['text'], **options)
    for step in range(F):
        seen = {name: frames[:, step] for name, frames in inputs['images'].items()}
        _, values = session.act(seen, inputs['state'][:, step])
    return values


def test_guidance_needs_a_null_sentence():
    model = build()
    with pytest.raises(ValueError, match='trained with cond_drop_prob above 0'):
        choose(model, inputs_of(model), cond_scale=2.0)


def test_the_sentence_is_dropped_in_training_only_and_as_often_as_asked():
    model = build(cond_drop_prob=0.25)
    text = torch.randn(4000, 8)
    model.train()
    condition, _ = model.encoder._normalised(text)
    null = torch.nn.functional.layer_norm(model.encoder.null_text, (8,))
    dropped = torch.isclose(condition, null, atol=1e-6).all(-1).float().mean()
    assert 0.2 < dropped < 0.3
    model.eval()
    condition, _ = model.encoder._normalised(text)
    assert not torch.isclose(condition, null, atol=1e-6).all(-1).any()


def test_the_two_critics_differ():
    model = build(dual_critics=True)
    first, second = model.values(model(**inputs_of(model)))
    assert (first - second).abs().mean() > 0.01
    bins, values = choose(model, inputs_of(model))
    one = [critic.head_bias for critic in model.critics]
    assert not any(a is b for a, b in itertools.combinations(one, 2))
    assert torch.equal(bins, values.argmax(-1))


@torch.no_grad()
def test_dueling_advantages_have_no_mean_of_their_own():
    model = build(dueling=True)
    inputs = inputs_of(model)
    before = model(**inputs)
    for critic in model.critics:
        critic.head_bias.add_(3.0)  # every advantage alike: Q must not move
    assert torch.allclose(before, model(**inputs), atol=1e-4)


@torch.no_grad()
def test_values_lie_in_the_return_range_and_a_distribution_has_its_mean():
    model = build(value_bins=5, return_range=(-2.0, 3.0))
    logits = torch.full((A, 5), -50.0)
    logits[:, 1] = 50.0
    assert torch.allclose(model.values(logits), torch.full((A,), -2.0 + 5 * 1.5 / 5))
    model = build(return_range=(-2.0, 3.0))
    extremes = model.values(torch.tensor([-50.0, 0.0, 50.0]))
    assert torch.allclose(extremes, torch.tensor([-2.0, 0.5, 3.0]))


@torch.no_grad()
def test_exploration_randomises_the_chosen_dimensions_as_often_as_asked():
    model = build()
    inputs = inputs_of(model)
    greedy, _ = choose(model, inputs)
    many = 2000
    video = {n: f[:1].permute(0, 4, 1, 2, 3).repeat(many, 1, 1, 1, 1) for n, f in
             inputs['images'].items()}  # fmt: skip
    common = {
        'text_embeds': inputs['text'][:1].repeat(many, 1),
        'state': inputs['state'][:1].repeat(many, 1, 1),
    }
    tokens = model.encode({n: f[:1] for n, f in inputs['images'].items()},
                          inputs['state'][:1], inputs['text'][:1])  # fmt: skip
    model.encode = lambda *a: tokens.expand(many, -1, -1, -1)  # the same frame, encoded once
    only = torch.tensor([True, False, False, False])
    torch.manual_seed(0)
    drawn = model.get_actions(video, **common, prob_random_action=0.4, random_dims=only)
    off = (drawn[:, 0] != greedy[0, 0]).float().mean()
    assert 0.4 * (A - 1) / A - 0.05 < off < 0.4 * (A - 1) / A + 0.05
    kept = drawn[drawn[:, 0] == greedy[0, 0]]
    assert (kept == greedy[0]).all()  # and the others are greedy
    followed = drawn[drawn[:, 0] != greedy[0, 0]]
    for first in followed[:, 0].unique():
        rest = followed[followed[:, 0] == first]
        assert (rest == rest[0]).all()  # given the random bin, too
    every = model.get_actions(video, **common, prob_random_action=1.0)
    counts = torch.stack([column.bincount(minlength=A) for column in every.T])
    assert counts.min() > 0.7 * many / A
    assert torch.equal(model.get_actions(video, **common), greedy[:1].expand(many, -1))


@torch.no_grad()
def test_a_temperature_draws_bins_in_proportion_to_exp_q():
    model = build()
    inputs = inputs_of(model)
    _, values = choose(model, inputs)
    many = 4000
    tokens = model.encode({n: f[:1] for n, f in inputs['images'].items()},
                          inputs['state'][:1], inputs['text'][:1])  # fmt: skip
    model.encode = lambda *a: tokens.expand(many, -1, -1, -1)
    video = {n: f[:1].permute(0, 4, 1, 2, 3) for n, f in inputs['images'].items()}
    torch.manual_seed(0)
    drawn = model.get_actions(
        video, text_embeds=inputs['text'][:1], state=inputs['state'][:1], temperature=0.3
    )
    share = drawn[:, 0].bincount(minlength=A) / many
    assert torch.allclose(share, (values[0, 0] / 0.3).softmax(-1), atol=0.03)


@torch.no_grad()
def test_optimal_actions_are_optimal_in_training_mode_too():
    model = build(dropout=0.5, vit=dataclasses.replace(TINY_VIT, dropout=0.5))
    inputs = inputs_of(model)
    expected, _ = choose(model, inputs)
    model.train()
    assert not torch.allclose(q_of(model, inputs), q_of(model, inputs), atol=1e-3)
    assert all(torch.equal(choose(model, inputs)[0], expected) for _ in range(5))
    assert model.training


@torch.no_grad()
def test_memory_reaches_the_actions_of_the_steps_before_and_no_further():
    model = build(memory=1)
    inputs = inputs_of(model)
    before = q_of(model, inputs)
    for frame, reaches in ((0, [False, True, False]), (1, [False, False, True])):
        bins = inputs['bins'].clone()
        bins[:, frame] = (bins[:, frame] + 1) % A
        after = q_of(model, {**inputs, 'bins': bins})
        moved = [
            not torch.allclose(before[:, f], after[:, f], atol=1e-4)
            for f in range(F)
            if f != frame
        ]
        assert moved == [r for f, r in enumerate(reaches) if f != frame]


@torch.no_grad()
def test_dropped_memory_is_no_memory():
    model = build(memory=2, memory_dropout=0.9)
    inputs = inputs_of(model)
    other = {**inputs, 'bins': (inputs['bins'] + 1) % A}
    tokens = model.encode(inputs['images'], inputs['state'], inputs['text'])
    nothing = torch.zeros(B, dtype=torch.bool)
    for critic in model.critics:
        critic._memory_kept = lambda batch: nothing
    first = [model.decode(tokens, inputs['bins'], past=side['bins']) for side in (inputs, other)]
    assert torch.equal(*first)


def test_every_weight_is_trained(model, inputs):
    model.train()
    order = order_of(model)
    for _ in range(6):  # sentences and memories are dropped at random
        model(**inputs, order=order).square().sum().backward()
        if order is not None:
            order = [*order[1:], order[0]]
    unused = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert unused == []


@torch.no_grad()
@pytest.mark.parametrize(
    ('spec', 'text'),
    [
        (Spec(cameras=(), state_dim=3, num_actions=N, action_bins=A), False),
        (Spec(cameras=(), state_dim=3, num_actions=N, action_bins=A), True),
        (dataclasses.replace(SPEC, state_dim=0), False),
        (dataclasses.replace(SPEC, cameras=SPEC.cameras[:1], state_dim=0), True),
        (dataclasses.replace(SPEC, num_actions=1), True),
    ],
    ids=['state alone', 'state and sentence', 'cameras alone', 'one camera', 'one dimension'],
)
@pytest.mark.parametrize('head', ['encoder_decoder', 'concatenated', 'single'])
def test_each_input_is_optional(spec, text, head):
    config = dataclasses.replace(BASE, condition_on_text=text, head=head).fitted(spec)
    torch.manual_seed(0)
    model = QRoboticTransformer(config).eval()
    inputs = inputs_of(model)
    inputs['bins'] = inputs['bins'][..., : spec.num_actions]
    bins, values = choose(model, inputs)
    known = torch.cat([inputs['bins'][:, :-1], bins[:, None]], dim=1)
    forced = q_of(model, {**inputs, 'bins': known})[:, -1]
    assert forced.shape == (B, spec.num_actions, A)
    assert torch.allclose(values, forced, atol=1e-5)
    names = [n for n, _ in model.named_parameters() if 'text_encoder' in n or 'film' in n]
    assert bool(names) == text
    if text:
        with pytest.raises(ValueError, match='conditioned on a sentence, and none was given'):
            choose(model, {**inputs, 'text': None})


@torch.no_grad()
def test_video_is_the_same_as_floats_and_as_bytes():
    config = BASE.fitted(dataclasses.replace(SPEC, cameras=SPEC.cameras[:1], state_dim=0))
    torch.manual_seed(0)
    model = QRoboticTransformer(config).eval()
    video = torch.randint(0, 256, (B, 3, F, 32, 32)).byte()
    text = torch.randn(B, 8)
    as_bytes, as_floats = (
        model.get_optimal_actions(v, text_embeds=text, return_q_values=True)[1]
        for v in (video, video / 127.5 - 1)
    )
    assert torch.allclose(as_bytes, as_floats, atol=1e-5)
    with pytest.raises(ValueError, match=r"video of \['left'\], expected \['front'\]"):
        model.get_optimal_actions({'left': video}, text_embeds=text)


@torch.no_grad()
def test_more_frames_than_the_model_looks_at_and_an_order_it_never_learned_are_refused():
    model = build()
    inputs = inputs_of(model)
    longer = {name: torch.cat([f, f], dim=1) for name, f in inputs['images'].items()}
    with pytest.raises(ValueError, match='6 frames, expected at most 3'):
        choose(model, {**inputs, 'images': longer})
    with pytest.raises(ValueError, match='trained with random_order'):
        model.get_optimal_actions(None, order=ORDER)


@torch.no_grad()
def test_images_of_another_size_are_read_at_interpolated_places():
    config = BASE.fitted(dataclasses.replace(SPEC, cameras=SPEC.cameras[:1], state_dim=0))
    model = QRoboticTransformer(config).eval()
    video = torch.randint(0, 256, (B, 3, F, 64, 64)).byte()
    bins = model.get_optimal_actions(video, text_embeds=torch.randn(B, 8))
    assert bins.shape == (B, N)


def test_real_sentences_are_embedded_whole_and_by_token():
    sentences = ['pick up the apple', 'put it down']
    film = build(text_dim=384)
    tokens = build(text_dim=384, conditioning='cross_attention')
    assert film.embed_texts(sentences).shape == (2, 384)
    embedded = tokens.embed_texts(sentences)
    real = embedded.ne(0).any(-1).sum(-1)
    assert embedded.shape[0] == 2
    assert real[0] > real[1] >= 3
    alone = tokens.embed_texts(sentences[1:])
    assert np.allclose(embedded[1, : alone.shape[1]], alone[0], atol=1e-5)


@torch.no_grad()
def test_padding_after_a_sentence_does_not_matter():
    model = build(conditioning='cross_attention')
    inputs = inputs_of(model)
    longer = {**inputs, 'text': torch.nn.functional.pad(inputs['text'], (0, 0, 0, 5))}
    assert torch.allclose(q_of(model, inputs), q_of(model, longer), atol=1e-5)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'heads': 0}, 'model.heads is 0, expected 1..8192'),
        ({'dim': 10**6}, 'model.width is 1000000, expected 1..8192'),
        ({'dim': 30}, 'model.dim is 30, expected a multiple of 4'),
        ({'head': 'medusa'}, "model.head is 'medusa', expected encoder_decoder or"),
        ({'memory': 3}, 'model.memory is 3, expected 0..2, less than frames'),
        ({'memory': 1, 'head': 'single'}, 'model.memory is 1, expected 0 for this head'),
        ({'return_range': (1.0, 0.0)}, 'expected a smaller and a larger number'),
        ({'value_bins': 1}, 'model.value_bins is 1, expected 0 or 2..8192'),
        ({'condition_on_text': False, 'cond_drop_prob': 0.1}, 'expected 0 without a sentence'),
        ({'num_actions': 0}, 'num_actions is 0, expected 1..8192'),
    ],
)
def test_sizes_that_do_not_fit_are_named(change, message):
    with pytest.raises(ConfigurationError, match=message):
        dataclasses.replace(BASE, **change)


def test_options_are_the_fields_of_the_configuration():
    options = {'vit': {'dim': 16, 'depth': (1,), 'window_size': 7}, 'depth': 1, 'dueling': True}
    model = QRoboticTransformer(**options)
    assert model.config == QTransformerConfig.from_options(options)
    assert model.config.vit.dim == 16
    assert model.config.cameras == (Camera(),)
    with pytest.raises(ConfigurationError, match=r'model\.wings is not a field; allowed: cameras'):
        QRoboticTransformer(wings=2)
    with pytest.raises(ConfigurationError, match=r'model\.vit\.wings is not a field'):
        QRoboticTransformer(vit={'wings': 2})


def test_image_size_must_suit_the_windows():
    spec = dataclasses.replace(SPEC, cameras=(Camera(name='front', height=40, width=32),))
    with pytest.raises(ConfigurationError, match="'40x32', expected multiples of 32"):
        QRoboticTransformer(BASE.fitted(spec))
