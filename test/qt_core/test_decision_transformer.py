# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
import dataclasses
import subprocess
import sys

import pytest
import torch
from transformers import DecisionTransformerConfig as BackboneConfig
from transformers import DecisionTransformerModel

from qt_core.configuration import ConfigurationError, build, plain
from qt_core.models.decision_transformer import DecisionTransformer, DecisionTransformerConfig
from qt_core.spec import Camera
from test.conftest import TINY_VIT

VECTORS = DecisionTransformerConfig(
    cameras=(),
    state_dim=5,
    num_actions=3,
    action_bins=4,
    context=6,
    text_dim=8,
    dim=32,
    depth=2,
    heads=2,
    max_ep_len=50,
)
IMAGES = dataclasses.replace(
    VECTORS,
    cameras=(Camera(name='front', height=32, width=32), Camera(name='wrist', height=32, width=64)),
    vit=TINY_VIT,
    token_learner_num_output_tokens=2,
)
ATARI = dataclasses.replace(
    VECTORS,
    cameras=(Camera(name='front', height=36, width=40), Camera(name='wrist', height=52, width=36)),
    image_encoder='atari',
)
KINDS = {
    'bins': VECTORS,
    'continuous': dataclasses.replace(VECTORS, actions='continuous'),
    'cloning': dataclasses.replace(VECTORS, return_conditioned=False),
    'untold': dataclasses.replace(VECTORS, condition_on_text=False),
    'maxvit': IMAGES,
    'atari': ATARI,
    'images_only': dataclasses.replace(ATARI, state_dim=0, condition_on_text=False),
}


def make_network(config, seed=0):
    """Make a network whose weights are large enough for every input to matter."""
    torch.manual_seed(seed)
    network = DecisionTransformer(config).eval()
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if weight.dim() > 1 and 'frames' not in name and 'images' not in name:
                weight.mul_(6)
    return network


def make_inputs(config, batch=2, steps=5, seed=0):
    """Make random inputs, with all steps there."""
    draw = torch.Generator().manual_seed(seed)
    actions = torch.randint(config.action_bins, (batch, steps, config.num_actions), generator=draw)
    if config.actions == 'continuous':
        actions = 2 * torch.rand(batch, steps, config.num_actions, generator=draw) - 1
    return {
        'state': torch.randn(batch, steps, config.state_dim, generator=draw),
        'actions': actions,
        'timesteps': torch.arange(steps).expand(batch, steps) + 3,
        'mask': torch.ones(batch, steps, dtype=torch.bool),
        'returns': torch.randn(batch, steps, generator=draw),
        'images': {
            c.name: torch.randint(
                256, (batch, steps, c.height, c.width, 3), generator=draw, dtype=torch.uint8
            )
            for c in config.cameras
        },
        'text': torch.randn(batch, 8, generator=draw) if config.condition_on_text else None,
    }


def changed(config, inputs, name, step):
    """Give the inputs with one token changed."""
    other = {k: v.clone() if isinstance(v, torch.Tensor) else dict(v or {}) or None
             for k, v in inputs.items()}  # fmt: skip
    if name == 'images':
        other['images'] = {n: frames.clone() for n, frames in inputs['images'].items()}
        other['images']['wrist'][:, step] ^= 255
    elif name == 'actions' and config.actions == 'bins':
        other['actions'][:, step, 1] = (other['actions'][:, step, 1] + 1) % config.action_bins
    else:
        other[name][:, step] += 0.5
    return other


@pytest.mark.parametrize('seed', range(3))
@pytest.mark.parametrize('sizes', [(1, 1, 5, 3), (2, 2, 1, 1), (3, 4, 17, 6)])
def test_it_equals_the_model_of_transformers(seed, sizes):
    depth, heads, states, actions = sizes
    torch.manual_seed(seed)
    theirs = DecisionTransformerModel(
        BackboneConfig(
            state_dim=states,
            act_dim=actions,
            hidden_size=32,
            n_layer=depth,
            n_head=heads,
            max_ep_len=50,
            n_positions=64,
            activation_function='gelu',
        )
    ).eval()
    with torch.no_grad():
        for weight in theirs.parameters():
            weight.add_(0.2 * torch.randn_like(weight))
    ours = DecisionTransformer.from_transformers(theirs, context=7, action_bins=9).eval()
    assert (ours.config.context, ours.config.action_bins) == (7, 9)
    mask = torch.arange(7) >= torch.tensor([0, 3, 6])[:, None]
    state, action = torch.randn(3, 7, states), torch.rand(3, 7, actions)
    returns, timesteps = torch.randn(3, 7), torch.randint(50, (3, 7))
    with torch.no_grad():
        expected = theirs(
            states=state,
            actions=action,
            returns_to_go=returns.unsqueeze(-1),
            timesteps=timesteps,
            attention_mask=mask.long(),
        ).action_preds
        found = ours(state=state, actions=action, returns=returns, timesteps=timesteps, mask=mask)
    assert torch.equal(found, expected)
    assert found.std() > 0.1


@pytest.mark.parametrize(
    'change',
    [
        {'action_tanh': False},
        {'n_inner': 7},
        {'scale_attn_by_inverse_layer_idx': True},
        {'attn_pdrop': 0.3},
        {'activation_function': 'mish'},
    ],
)
def test_a_model_of_transformers_with_other_parts_is_refused(change):
    model = DecisionTransformerModel(BackboneConfig(hidden_size=16, n_layer=1, **change))
    with pytest.raises(ConfigurationError, match=r'config\.|activation'):
        DecisionTransformer.from_transformers(model)


@pytest.mark.parametrize('kind', KINDS)
def test_only_what_comes_before_an_action_reaches_it(kind):
    config = KINDS[kind]
    network, inputs = make_network(config), make_inputs(config)
    steps = 5
    with torch.no_grad():
        base = network(**inputs)
        names = ['actions', *(['state'] if config.state_dim else [])]
        names += ['returns'] if config.return_conditioned else []
        names += ['images'] if config.cameras else []
        for name in names:
            for step in range(steps):
                moved = (network(**changed(config, inputs, name, step)) - base).abs()
                moved = moved.flatten(2).amax(-1)  # (B, K)
                first = step + (name == 'actions')  # an action never reaches its own prediction
                assert (moved[:, :first] == 0).all(), (name, step)
                assert (moved[:, first:] > 1e-4).all(), (name, step)


def test_the_sentence_reaches_every_action_and_returns_reach_none_without_conditioning():
    network, inputs = make_network(VECTORS), make_inputs(VECTORS)
    with torch.no_grad():
        moved = network(**{**inputs, 'text': -inputs['text']}) - network(**inputs)
        assert (moved.abs().flatten(2).amax(-1) > 1e-4).all()
        cloning = make_network(KINDS['cloning'])
        same = cloning(**{**inputs, 'returns': None}) == cloning(**inputs)
    assert same.all()
    assert not any('embed_return' in name for name in cloning.state_dict())
    for missing in ('text', 'returns'):
        with pytest.raises(ValueError, match='none w'):
            network(**{**inputs, missing: None})


@pytest.mark.parametrize('kind', KINDS)
def test_what_stands_in_the_padding_does_not_matter(kind):
    config = KINDS[kind]
    network, inputs = make_network(config), make_inputs(config, batch=3, steps=6)
    lengths = (6, 2, 5)
    garbage = make_inputs(config, batch=3, steps=6, seed=9)
    garbage['state'], garbage['returns'] = 1e3 * garbage['state'], 1e3 * garbage['returns']
    padded = {'text': inputs['text'], 'images': {}}
    mask = torch.arange(6) >= 6 - torch.tensor(lengths)[:, None]
    padded['mask'] = mask
    for name in ('state', 'actions', 'timesteps', 'returns'):
        there = mask if inputs[name].dim() == 2 else mask.unsqueeze(-1)
        padded[name] = torch.where(there, inputs[name], garbage[name])
    for name, frames in inputs['images'].items():
        there = mask[..., None, None, None]
        padded['images'][name] = torch.where(there, frames, garbage['images'][name])
    with torch.no_grad():
        found = network(**padded)
        for row, length in enumerate(lengths):
            one = {k: v[row : row + 1, -length:] for k, v in padded.items()
                   if k not in ('text', 'images')}  # fmt: skip
            one['text'] = None if padded['text'] is None else padded['text'][row : row + 1]
            one['images'] = {n: f[row : row + 1, -length:] for n, f in padded['images'].items()}
            expected = network(**one)[0]
            torch.testing.assert_close(found[row, -length:], expected, atol=2e-5, rtol=1e-4)


def test_the_order_of_the_tokens_and_the_scales_are_the_papers():
    """Against a transformer written out: R, s, a interleaved, each with its time."""
    config = dataclasses.replace(VECTORS, depth=1, heads=1, condition_on_text=False)
    network, inputs = make_network(config), make_inputs(config, batch=1, steps=3)
    network.state_mean.copy_(torch.arange(5.0))
    network.state_std.copy_(torch.arange(1.0, 6.0))
    network.return_scale.fill_(4.0)
    b, block = network.backbone, network.backbone.encoder.h[0]
    with torch.no_grad():
        sequence = []
        for t in range(3):
            time = b.embed_timestep.weight[inputs['timesteps'][0, t]]
            state = (inputs['state'][0, t] - network.state_mean) / network.state_std
            bins = inputs['actions'][0, t].tolist()
            action = sum(b.embed_action.table.weight[4 * n + a] for n, a in enumerate(bins))
            sequence.append(b.embed_return(inputs['returns'][0, t : t + 1] / 4.0) + time)
            sequence.append(b.embed_state.project(state) + time)
            sequence.append(action + time)
        x = torch.stack([b.embed_ln(token) for token in sequence]) + b.encoder.wpe.weight[0]
        query, key, value = block.attn.c_attn(block.ln_1(x)).split(32, dim=-1)
        rows = []
        for i in range(9):
            weights = (query[i] @ key[: i + 1].T / 32**0.5).softmax(-1)
            rows.append(weights @ value[: i + 1])
        x = x + block.attn.c_proj(torch.stack(rows))
        x = x + block.mlp.c_proj(block.mlp.c_fc(block.ln_2(x)).relu())
        logits = b.predict_action(b.encoder.ln_f(x)[[1, 4, 7]]).view(3, 3, 4)
        found = network(**inputs)[0]
    torch.testing.assert_close(found, logits, atol=1e-4, rtol=1e-4)


def test_steps_beyond_the_longest_episode_count_as_its_last():
    network, inputs = make_network(VECTORS), make_inputs(VECTORS)
    with torch.no_grad():
        late = network(**{**inputs, 'timesteps': inputs['timesteps'] + 10_000})
        last = network(**{**inputs, 'timesteps': torch.full((2, 5), 49)})
        other = network(**{**inputs, 'timesteps': torch.full((2, 5), 48)})
    assert torch.equal(late, last)
    assert not torch.equal(last, other)


@pytest.mark.parametrize('kind', KINDS)
def test_every_weight_is_trained(kind):
    """An idle one would stop a training on several devices."""
    config = KINDS[kind]
    network = make_network(config).train()
    network(**make_inputs(config)).square().sum().backward()
    idle = [name for name, weight in network.named_parameters() if weight.grad is None]
    assert not idle
    assert len(network.backbone.encoder.wpe.weight) == 1  # all tokens stand at position 0
    assert not network.backbone.config.use_cache


def test_the_paper_s_image_encoder():
    paper = dataclasses.replace(
        ATARI, cameras=(Camera(height=84, width=84, channels=4),), state_dim=0, dim=128
    )
    encoder = DecisionTransformer(paper).backbone.embed_state
    shapes = [tuple(weight.shape) for weight in encoder.images['video'].parameters()]
    assert shapes[::2] == [(32, 4, 8, 8), (64, 32, 4, 4), (64, 64, 3, 3)]
    assert encoder.project.weight.shape == (128, 3136)
    images = torch.randint(256, (2, 84, 84, 4), dtype=torch.uint8)
    with torch.no_grad():
        found = encoder({'video': images}, torch.zeros(2, 0), None)
        x = images.permute(0, 3, 1, 2) / 255
        for layer, stride in zip(encoder.images['video'].layers[::2], (4, 2, 1), strict=True):
            x = torch.conv2d(x, layer.weight, layer.bias, stride).relu()
        expected = encoder.project(x.flatten(1)).tanh()
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize('size', [(96, 96), (36, 36), (37, 200)])
def test_images_of_any_size_that_is_large_enough(size):
    height, width = size
    config = dataclasses.replace(ATARI, cameras=(Camera(height=height, width=width),))
    assert DecisionTransformer(config)(**make_inputs(config)).shape == (2, 5, 3, 4)


def test_sizes_that_do_not_fit_are_refused():
    for camera in (Camera(height=35, width=96), Camera(height=96, width=35)):
        with pytest.raises(ConfigurationError, match='at least 36x36'):
            DecisionTransformer(dataclasses.replace(ATARI, cameras=(camera,)))
    with pytest.raises(ConfigurationError, match='multiples of 32'):
        DecisionTransformer(dataclasses.replace(IMAGES, cameras=(Camera(height=40, width=32),)))
    for change, message in (
        ({'context': 0}, 'model.context is 0'),
        ({'heads': 3}, 'a multiple of heads = 3'),
        ({'actions': 'tokens'}, 'bins or continuous'),
        ({'image_encoder': 'resnet'}, 'maxvit or atari'),
        ({'dropout': 1.0}, 'dropout'),
        ({'max_ep_len': 10**9}, 'max_ep_len'),
    ):
        with pytest.raises(ConfigurationError, match=message):
            dataclasses.replace(VECTORS, **change)


def test_a_configuration_survives_json():
    content = plain(IMAGES)
    assert build(DecisionTransformerConfig, content, 'model') == IMAGES
    assert IMAGES.specs == (IMAGES.shapes,)
    assert (IMAGES.sentence_dim, KINDS['untold'].sentence_dim) == (8, None)


def test_importing_the_package_stays_quick():
    code = 'import qt_core, qt_core.learning.run, sys; sys.exit("transformers" in sys.modules)'
    assert subprocess.run([sys.executable, '-c', code], check=False).returncode == 0
