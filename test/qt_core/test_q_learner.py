# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
import copy
import dataclasses
import itertools

import numpy as np
import pytest
import torch

from qt_core.configuration import ConfigurationError
from qt_core.learning.checkpoint import load_checkpoint
from qt_core.learning.q_learner import QLearner, QLearnerConfig, q_loss, q_targets
from qt_core.models import QRoboticTransformer
from qt_core.replay import ReplayFolder, ReplayMemoryDataset, ReplayWriter
from test.conftest import TINY_MODEL, make_episode
from test.qt_core.test_trainer import gradients, make_learner


@pytest.fixture
def tiny_config():
    return QLearnerConfig(
        num_train_steps=2, batch_size=4, warmup_steps=0, log_every=1, checkpoint_every=100
    )


def windows(replay_path, **options):
    return ReplayMemoryDataset(ReplayFolder(replay_path), **options)


@pytest.fixture
def batch(replay_path):
    """Windows of 4 frames and 3 trained steps, of successes and failures, ends included."""
    dataset = windows(replay_path, num_timesteps=3, frames=4)
    return dataset.gather(range(len(dataset)))


def networks(contract, seeds=(0, 1), **changes):
    from qt_core.spec import Spec

    made = []
    for seed in seeds:
        torch.manual_seed(seed)
        config = dataclasses.replace(TINY_MODEL, frames=4, **changes).fitted(Spec.of(contract))
        network = QRoboticTransformer(config).eval()
        with torch.no_grad():
            for critic in network.critics:
                critic.head_weight.mul_(30)  # values that are no ties
        made.append(network)
    return made


# --- the loss against loops -----------------------------------------------------------------


@torch.no_grad()
def slow_targets(target, batch, config):
    """The targets, straight from the equations, step by step."""
    low = {n: f[:, :-1] for n, f in batch.images.items()}
    high = {n: f[:, 1:] for n, f in batch.images.items()}
    now = target.values(target(low, batch.state[:, :-1], batch.text, batch.bins)).amin(0)
    after = target.values(target(high, batch.state[:, 1:], batch.text, batch.bins)).amin(0)
    rows, frames, dims = batch.bins.shape
    targets = torch.zeros(rows, frames, dims)
    for b, t in itertools.product(range(rows), range(frames)):
        if not batch.valid[b, t]:
            continue
        value, k = 0.0, 0
        while True:
            value += config.discount**k * float(batch.reward[b, t + k])
            if batch.terminal[b, t + k]:
                break
            if k == config.n_step - 1 or t + k == int(batch.length[b]) - 1:
                value += config.discount ** (k + 1) * float(after[b, t + k, 0].max())
                break
            k += 1
        for i in range(dims):
            ahead = i + config.n_step_actions
            y = value if ahead >= dims else float(now[b, t, ahead].max())
            targets[b, t, i] = max(y, float(batch.returns[b, t])) if config.monte_carlo else y
    return targets


@torch.no_grad()
def slow_loss(model, target, batch, config):
    targets = slow_targets(target, batch, config)
    images = {n: f[:, :-1] for n, f in batch.images.items()}
    q = model.values(model(images, batch.state[:, :-1], batch.text, batch.bins))
    losses = []
    for critic in q:
        squared, unseen = [], []
        for b, t in itertools.product(*map(range, batch.valid.shape)):
            if not batch.valid[b, t]:
                continue
            for i in range(batch.bins.shape[-1]):
                taken = int(batch.bins[b, t, i])
                squared.append((float(critic[b, t, i, taken]) - float(targets[b, t, i])) ** 2)
                others = [float(v) ** 2 for a, v in enumerate(critic[b, t, i]) if a != taken]
                unseen.append(sum(others) / len(others))
        weight = config.conservative_weight
        losses.append(0.5 * np.mean(squared) + weight * 0.5 * np.mean(unseen))
    return float(np.mean(losses))


@pytest.mark.parametrize(
    'changes',
    [
        {'n_step': 1},
        {'n_step': 2, 'conservative_weight': 3.0},
        {'n_step': 3, 'n_step_actions': 3, 'monte_carlo': False, 'discount': 0.7},
    ],
)
@pytest.mark.parametrize('critics', [1, 2])
def test_the_loss_equals_the_equations(changes, critics, tiny_config, tiny_contract, batch):
    config = dataclasses.replace(tiny_config, **changes)
    model, target = networks(tiny_contract, dual_critics=critics == 2)
    targets = q_targets(target, batch, config)
    expected = slow_targets(target, batch, config)
    valid = batch.valid
    torch.testing.assert_close(targets[valid], expected[valid], atol=1e-5, rtol=1e-5)
    loss = float(q_loss(model, target, batch, config)['loss'].detach())
    assert loss == pytest.approx(slow_loss(model, target, batch, config), abs=1e-5)


def test_an_order_is_that_of_dimensions_renumbered(tiny_config, tiny_contract, batch):
    """Of each critic, the targets of position k are those of dimension order[k]."""
    _, target = networks(tiny_contract, random_order=True)
    order = torch.randperm(target.config.num_actions).tolist()
    targets = q_targets(target, batch, dataclasses.replace(tiny_config, monte_carlo=False), order)
    with torch.no_grad():
        images = {n: f[:, :-1] for n, f in batch.images.items()}
        q = target(images, batch.state[:, :-1], batch.text, batch.bins, order)
    expected = target.values(q).amin(0)[:, :, 1:].amax(-1)
    torch.testing.assert_close(targets[..., :-1], expected)
    natural = q_targets(target, batch, tiny_config)
    assert not torch.allclose(natural[batch.valid], targets[batch.valid])


def test_independent_dimensions_bootstrap_each_for_itself(tiny_config, tiny_contract, batch):
    _, target = networks(tiny_contract, head='single')
    config = dataclasses.replace(tiny_config, monte_carlo=False)
    targets = q_targets(target, batch, config)
    with torch.no_grad():
        images = {n: f[:, 1:] for n, f in batch.images.items()}
        q = target(images, batch.state[:, 1:], batch.text, batch.bins)
    future = torch.where(batch.terminal[..., None], 0.0, target.values(q)[0].amax(-1))
    expected = batch.reward[..., None] + config.discount * future
    torch.testing.assert_close(targets[batch.valid], expected[batch.valid])


def test_reward_and_terminal_enter_the_targets(tiny_config, tiny_contract, batch):
    model, target = networks(tiny_contract)
    config = dataclasses.replace(tiny_config, monte_carlo=False)
    loss = q_loss(model, target, batch, config)['loss']
    other = dataclasses.replace(batch, reward=batch.reward + 0.5)
    assert q_loss(model, target, other, config)['loss'] > loss + 1e-3
    ended = dataclasses.replace(batch, terminal=torch.ones_like(batch.terminal))
    last = q_targets(target, ended, config)[..., -1]
    assert torch.equal(last[batch.valid], batch.reward[batch.valid])
    going = dataclasses.replace(batch, terminal=torch.zeros_like(batch.terminal))
    last = q_targets(target, going, config)[..., -1]
    assert (last[batch.valid] > batch.reward[batch.valid]).all()


def test_steps_that_are_not_valid_do_not_count(tiny_config, tiny_contract, batch):
    model, target = networks(tiny_contract)
    loss = q_loss(model, target, batch, tiny_config)
    spoiled = torch.where(batch.valid, batch.returns, 100.0)
    other = q_loss(model, target, dataclasses.replace(batch, returns=spoiled), tiny_config)
    assert all(torch.equal(value, other[name]) for name, value in loss.items())


# --- every kind of network ------------------------------------------------------------------


@pytest.mark.parametrize(
    'changes',
    [
        {'head': 'single'},
        {'head': 'concatenated', 'dueling': True},
        {'head': 'concatenated', 'random_order': True},
        {'dual_critics': True, 'value_bins': 5, 'random_order': True},
        {'memory': 1, 'memory_dropout': 0.5, 'cond_drop_prob': 0.5, 'dropout': 0.1},
        {'condition_on_text': False, 'return_range': (-1.0, 3.0)},
    ],
)
def test_every_network_learns_with_every_weight(changes, tiny_config, replay_path, tmp_path):
    """A weight without a gradient would stop a training on several processes."""
    model = dataclasses.replace(TINY_MODEL, **changes)
    learner = make_learner(tiny_config, replay_path, tmp_path / 'run', model=model)
    history = learner()
    assert all(np.isfinite(value) for _, value in history['loss'])
    without = [name for name, gradient in gradients(learner).items() if gradient is None]
    assert without == []
    again = load_checkpoint(tmp_path / 'run/last').model
    assert again.config == learner.network.config


def test_cross_attention_learns_from_the_tokens_of_the_sentences(
    tiny_config, replay_path, tmp_path, monkeypatch
):
    def embed_tokens(self, sentences):
        random = np.random.default_rng(len(sentences))
        return random.normal(size=(len(sentences), 5, 8)).astype(np.float32)

    monkeypatch.setattr('qt_core.instruction.SentenceEncoder.embed_tokens', embed_tokens)
    model = dataclasses.replace(TINY_MODEL, conditioning='cross_attention')
    learner = make_learner(tiny_config, replay_path, tmp_path / 'run', model=model)
    batch = learner.samplers[0].batch(0)
    told = learner._told(batch)
    table = embed_tokens(None, learner.replays[0].instructions)
    assert np.array_equal(told.text.numpy(), table[batch.instruction.numpy()])
    assert np.isfinite(learner()['loss'][-1][1])
    narrow = dataclasses.replace(model, text_dim=4)
    with pytest.raises(ConfigurationError, match=r'model\.text_dim is 4, expected 8'):
        make_learner(tiny_config, replay_path, tmp_path / 'other', model=narrow)


def test_two_critics_learn_and_differ(tiny_config, replay_path, tmp_path):
    model = dataclasses.replace(TINY_MODEL, dual_critics=True)
    learner = make_learner(tiny_config, replay_path, tmp_path / 'run', model=model)
    before = copy.deepcopy(learner.network.critics.state_dict())
    learner()
    after = learner.network.critics.state_dict()
    for critic in '01':
        name = f'{critic}.head_weight'
        assert not torch.equal(before[name], after[name])
    assert not torch.equal(after['0.head_weight'], after['1.head_weight'])
    moved = [after[f'{c}.head_weight'] - before[f'{c}.head_weight'] for c in '01']
    assert not torch.allclose(*moved)


# --- the target network and what follows a step ---------------------------------------------


def test_the_target_network_has_no_dropout(tiny_config, replay_path, tmp_path):
    model = dataclasses.replace(TINY_MODEL, dropout=0.5, cond_drop_prob=0.5)
    learner = make_learner(tiny_config, replay_path, tmp_path / 'run', model=model)
    batch = learner.samplers[0].batch(0)
    learner.train_step(batch)
    assert learner.network.training
    assert not any(module.training for module in learner.target.modules())
    ours, theirs = (q_targets(learner.target, batch, learner.config) for _ in range(2))
    assert torch.equal(ours, theirs)
    assert not any(weight.requires_grad for weight in learner.target.parameters())


def test_the_target_network_follows(tiny_config, replay_path, tmp_path):
    """With t ← d·t + (1 - d)·w at every second step, and d = min(0.5, (1 + k) / (10 + k))."""
    config = dataclasses.replace(tiny_config, target_decay=0.15, target_every=2)
    learner = make_learner(config, replay_path, tmp_path / 'run')
    expected = [weight.detach().clone() for weight in learner.network.parameters()]
    for step in range(6):
        learner.train_step(learner.samplers[0].batch(step))
        if step % 2 == 0:
            decay = min(0.15, (1 + step // 2) / (10 + step // 2))
            weights = zip(expected, learner.network.parameters(), strict=True)
            expected = [decay * kept + (1 - decay) * now.detach() for kept, now in weights]
        for kept, wanted in zip(learner.target.parameters(), expected, strict=True):
            torch.testing.assert_close(kept, wanted)


def test_batch_statistics_reach_the_target_network(tiny_config, replay_path, tmp_path):
    vit = dataclasses.replace(TINY_MODEL.vit, use_layernorm=False)
    model = dataclasses.replace(TINY_MODEL, vit=vit)
    learner = make_learner(tiny_config, replay_path, tmp_path / 'run', model=model)
    before = [buffer.clone() for buffer in learner.target.buffers()]
    learner()
    kept, trained = list(learner.target.buffers()), list(learner.network.buffers())
    assert all(torch.equal(a, b) for a, b in zip(kept, trained, strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(kept, before, strict=True))


def test_regeneration_moves_weights_towards_their_initial_values(
    tiny_config, replay_path, tmp_path
):
    learner = make_learner(
        tiny_config, replay_path, tmp_path / 'run', regenerative_rate=100.0, weight_decay=0.0
    )
    initial = [weight.detach().clone() for weight in learner.network.parameters()]
    with torch.no_grad():
        for weight in learner.network.parameters():
            weight.add_(1.0)
    learner.optimizer.param_groups[0]['lr'] = 1e-3
    learner.after_step()  # rate 100 × learning rate 0.001: a tenth of the way
    for weight, first in zip(learner.network.parameters(), initial, strict=True):
        torch.testing.assert_close(weight.detach(), first + 0.9)


# --- the run --------------------------------------------------------------------------------


def test_validation_is_on_other_episodes(tiny_config, replay_path, tmp_path):
    config = dataclasses.replace(
        tiny_config, num_train_steps=4, validation_fraction=0.3, validate_every=2
    )
    learner = make_learner(config, replay_path, tmp_path / 'run')
    history = learner()
    ours = set(learner.samplers[0].dataset.episodes)
    theirs = set(learner.validation.dataset.episodes)
    assert not ours & theirs
    assert sorted(ours | theirs) == list(range(8))
    assert len(theirs) == 2
    for name in ('validation/td', 'validation/calibration_error'):
        assert [step for step, _ in history[name]] == [2, 4]
        assert all(np.isfinite(value) for _, value in history[name])


def test_calibration_is_that_of_the_taken_actions(tiny_config, replay_path, tmp_path):
    """A network whose every value is 1/2 is off by |1/2 - mean return|."""
    config = dataclasses.replace(tiny_config, validation_fraction=0.5)
    learner = make_learner(config, replay_path, tmp_path / 'run')
    with torch.no_grad():
        learner.target.critics[0].head_weight.zero_()
    count = learner.validation.batches_per_epoch
    batches = [learner.validation.batch(index) for index in range(count)]
    with torch.no_grad():
        measured = learner.validate(iter(batches))
    returns = torch.cat([batch.returns[batch.valid] for batch in batches])
    expected = abs(0.5 - float(returns.mean()))
    assert measured['calibration_error'] == pytest.approx(expected, abs=1e-6)


def test_the_model_is_trained_itself_and_left_ready_to_act(tiny_config, replay_path, tmp_path):
    learner = make_learner(tiny_config, replay_path, tmp_path / 'run')
    model = learner.network.train()
    before = copy.deepcopy(model.state_dict())
    learner()
    assert not model.training
    moved = [
        name for name, value in model.state_dict().items() if not torch.equal(value, before[name])
    ]
    assert moved
    saved = QRoboticTransformer.from_pretrained(tmp_path / 'run/last')
    for name, value in learner.target.state_dict().items():
        assert torch.equal(saved.state_dict()[name], value)


def test_the_public_example(tiny_contract, embed, tmp_path, monkeypatch):
    """As in the README of the family: no contract, default folders, a few options."""
    from qt_core.spec import Spec

    monkeypatch.chdir(tmp_path)
    spec = Spec.of(tiny_contract)
    with ReplayWriter('replay_memories_data', spec, embed) as writer:
        for seed in range(3):
            writer.add(dataclasses.replace(make_episode(tiny_contract, seed), action=None))
    model = QRoboticTransformer(TINY_MODEL.fitted(spec))
    q_learner = QLearner(
        model,
        dataset=ReplayMemoryDataset(),
        num_train_steps=2,
        learning_rate=3e-4,
        batch_size=4,
        grad_accum_every=2,
    )
    q_learner()
    checkpoint = load_checkpoint('checkpoints/last')
    assert checkpoint.contract is None
    assert checkpoint.model.config == model.config
    assert checkpoint.training['batch_size'] == 8


@pytest.mark.parametrize(
    ('changes', 'options', 'message'),
    [
        ({}, {'num_timesteps': 3}, 'num_timesteps is 3, expected at most the 2 frames'),
        ({}, {'n_step': 3}, 'n_step is 3, expected at most num_timesteps = 2'),
        ({}, {'n_step_actions': 8}, 'n_step_actions is 8, expected at most 7'),
        ({'text_dim': 9}, {}, r'model\.text_dim is 9, expected 8'),
        ({'return_range': (-1.0, 0.5)}, {}, r'lie outside return_range -1\.\.0\.5'),
    ],
)
def test_what_does_not_fit_is_one_line(
    changes, options, message, tiny_config, replay_path, tmp_path
):
    model = dataclasses.replace(TINY_MODEL, **changes)
    dataset = windows(replay_path, num_timesteps=2)
    network = QRoboticTransformer(model.fitted(dataset.spec))
    with pytest.raises(ConfigurationError, match=message) as error:
        QLearner(
            network,
            dataset=dataset,
            checkpoint_folder=tmp_path / 'run',
            config=tiny_config,
            **options,
        )
    assert '\n' not in str(error.value)


def test_a_model_of_other_shapes_is_refused_with_what_differs(tiny_config, replay_path, tmp_path):
    dataset = windows(replay_path, num_timesteps=2)
    spec = dataclasses.replace(dataset.spec, action_bins=5, state_dim=3)
    network = QRoboticTransformer(TINY_MODEL.fitted(spec))
    with pytest.raises(ConfigurationError, match=r'state_dim: 3 != 7; action_bins: 5 != 21'):
        QLearner(network, dataset=dataset, checkpoint_folder=tmp_path / 'r', config=tiny_config)


def test_a_sentence_is_needed_by_a_model_that_is_told(tiny_config, replay_path, tmp_path):
    dataset = windows(replay_path, num_timesteps=2, condition_on_text=False)
    network = QRoboticTransformer(TINY_MODEL.fitted(dataset.spec))
    with pytest.raises(ConfigurationError, match=r'condition_on_text is True, expected false'):
        QLearner(network, dataset=dataset, checkpoint_folder=tmp_path / 'r', config=tiny_config)
