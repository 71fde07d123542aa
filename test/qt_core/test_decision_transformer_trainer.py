# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
import dataclasses

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import Trainer, TrainingArguments

from qt_core.configuration import ConfigurationError, build
from qt_core.environments.environment import Step
from qt_core.evaluation import evaluate_policy
from qt_core.learning.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from qt_core.learning.decision_transformer import (
    DecisionTransformerTrainConfig,
    DecisionTransformerTrainer,
    action_loss,
    left_padded,
    make_trainer,
    measure,
    state_statistics,
)
from qt_core.learning.run import load_run, parse_run
from qt_core.learning.run import make_trainer as make_run
from qt_core.learning.trainer import learning_rate
from qt_core.learning.transformers_trainer import TrainableDecisionTransformer, WindowCollator
from qt_core.models.decision_transformer import DecisionTransformer, DecisionTransformerConfig
from qt_core.observation import Observation, normalise_state
from qt_core.policies import Choice, load_policy
from qt_core.replay import (
    ReplayEpisode,
    ReplayFolder,
    ReplayWriter,
    SequenceDataset,
    split_episodes,
)
from qt_core.share import share_path
from qt_core.spec import Spec
from test.conftest import TINY_VIT

MODEL = DecisionTransformerConfig(
    context=4,
    text_dim=8,
    vit=TINY_VIT,
    token_learner_num_output_tokens=2,
    dim=16,
    depth=1,
    heads=2,
    max_ep_len=8,
)
CONFIG = DecisionTransformerTrainConfig(
    num_train_steps=6,
    batch_size=4,
    warmup_steps=2,
    learning_rate=1e-3,
    state_noise=0.01,
    log_every=1,
    checkpoint_every=3,
)
CONFIGS = (
    'reach_decision_transformer',
    'reach_behaviour_cloning',
    'reach_filtered_behaviour_cloning',
)


@pytest.fixture
def folder(replay_path):
    return ReplayFolder(replay_path)


def make(folder, out, *, model=MODEL, config=CONFIG, resume=False):
    torch.manual_seed(0)
    return make_trainer(config, model, [folder], out, resume=resume)


@pytest.mark.parametrize('continuous', [False, True])
def test_windows_are_padded_on_the_left(folder, continuous):
    dataset = SequenceDataset(folder, 6)
    batch = dataset.gather(range(60))
    inputs = left_padded(batch, continuous=continuous)
    for b in range(60):
        count = int(batch.valid[b].sum())
        pads = 6 - count
        assert inputs['mask'][b].tolist() == [False] * pads + [True] * count
        for step in range(count):
            place = pads + step
            assert inputs['timesteps'][b, place] == batch.start[b] + step
            assert torch.equal(inputs['state'][b, place], batch.state[b, step])
            assert inputs['returns'][b, place] == batch.returns[b, step]
            actions = batch.action if continuous else batch.bins
            assert torch.equal(inputs['actions'][b, place], actions[b, step])
            frames = inputs['images']['front']
            assert torch.equal(frames[b, place], batch.images['front'][b, step])
    # Return-to-go identity: R_t - R_{t+1} = r_t within an episode.
    both = inputs['mask'][:, :-1]
    given = (inputs['returns'][:, :-1] - inputs['returns'][:, 1:])[both]
    rewards = torch.stack([batch.reward[b].roll(6 - int(batch.valid[b].sum())) for b in range(60)])
    assert torch.equal(given, rewards[:, :-1][both])
    assert rewards[:, :-1][both].abs().sum() == 0  # here only the last action of all has one
    assert inputs['returns'][:, -1][batch.valid.sum(1) < 6].sum() > 0
    assert torch.equal(inputs['text'], batch.text)


def test_the_loss_is_a_mean_over_the_steps_there_are():
    torch.manual_seed(0)
    mask = torch.tensor([[False, True, True], [False, False, True]])
    logits, bins = torch.randn(2, 3, 2, 5), torch.randint(5, (2, 3, 2))
    terms = [
        -logits[b, t, n].log_softmax(-1)[bins[b, t, n]]
        for b, t in ((0, 1), (0, 2), (1, 2))
        for n in range(2)
    ]
    assert float(action_loss(logits, bins, mask)) == pytest.approx(float(sum(terms) / 6))
    unit, taken = torch.rand(2, 3, 2), torch.rand(2, 3, 2)
    squares = (unit - taken)[mask] ** 2
    assert float(action_loss(unit, taken, mask)) == pytest.approx(float(squares.sum() / 6))
    unit[~mask] = torch.nan
    assert float(action_loss(unit, taken, mask)) == pytest.approx(float(squares.sum() / 6))
    assert float(action_loss(unit, taken, torch.zeros_like(mask))) == 0


def test_states_are_standardised_by_the_training_episodes(folder, tmp_path):
    config = dataclasses.replace(CONFIG, validation_fraction=0.3, state_noise=0.0, seed=5)
    trainer = make(folder, tmp_path / 'run', config=config)
    train, held_out = split_episodes(folder, 0.3, 5)
    assert len(held_out) == 2
    raw = np.concatenate([folder.episode(n).state[:-1] for n in train])
    states = normalise_state(folder.contract.state, raw).astype(np.float64)
    network = trainer.network
    assert network.state_mean.numpy() == pytest.approx(states.mean(0), abs=1e-6)
    assert network.state_std.numpy() == pytest.approx(states.std(0) + 1e-6, rel=1e-5)
    assert trainer.samplers[0].dataset.episodes == tuple(train)
    assert trainer.validation.dataset.episodes == tuple(held_out)
    for windows in (trainer.samplers[0].dataset, trainer.validation.dataset):
        assert (windows.frames, windows.discount) == (MODEL.context, 1.0)
    trainer.run()
    stored = load_file(tmp_path / 'run/last/model.safetensors')
    assert stored['state_std'].numpy() == pytest.approx(states.std(0) + 1e-6, rel=1e-5)


def test_numbers_that_never_change_and_noise(tmp_path):
    spec = Spec(cameras=(), state_dim=2, num_actions=1, action_bins=2)
    with ReplayWriter(tmp_path / 'r', spec, None) as writer:
        for first in (0.0, 4.0):
            state = np.array([[0.1, first], [0.1, first + 2], [7, 99]], np.float32)
            writer.add(
                ReplayEpisode(
                    images={},
                    state=state,
                    bins=np.zeros((2, 1), np.int64),
                    reward=np.ones(2, np.float32),
                    terminal=True,
                    timeout=False,
                    instruction='',
                )
            )
    folder = ReplayFolder(tmp_path / 'r')
    mean, deviation = state_statistics(folder, [0, 1])
    assert mean == pytest.approx([0.1, 3])  # without the final observations
    assert deviation.tolist() == [1.0, pytest.approx(5**0.5 + 1e-6, abs=1e-12)]
    _, deviation = state_statistics(folder, [0, 1], noise=2.0)
    assert deviation == pytest.approx([2 + 1e-6, 3 + 1e-6])


@pytest.mark.parametrize(
    ('returns', 'scale', 'expected'),
    [
        ((1, 5, 3), 0.0, (5, 5, 0)),
        ((-8, 5, 3), 0.0, (8, 5, -8)),
        ((-8, -2), 0.0, (8, -2, -8)),
        ((1, 5), 1000.0, (1000, 5, 0)),
        ((0, 0), 0.0, (1, 0, 0)),
    ],
)
def test_returns_are_scaled_and_their_range_is_stored(tmp_path, returns, scale, expected):
    folder = write_bandit(tmp_path / 'r', returns)
    config = dataclasses.replace(CONFIG, return_scale=scale)
    network = DecisionTransformer(VECTOR.fitted(folder.spec))
    measure(network, folder, range(len(returns)), config)
    found = (network.return_scale, network.best_return, network.low_return)
    assert tuple(float(value) for value in found) == expected


VECTOR = dataclasses.replace(MODEL, cameras=(), state_dim=1, condition_on_text=False)


def write_bandit(path, returns):
    """Write episodes of two steps with these returns; there is nothing to see."""
    spec = Spec(cameras=(), state_dim=1, num_actions=1, action_bins=3)
    with ReplayWriter(path, spec, None) as writer:
        for number, value in enumerate(returns):
            writer.add(
                ReplayEpisode(
                    images={},
                    state=np.zeros((3, 1), np.float32),
                    bins=np.full((2, 1), number % 3),
                    reward=np.array([value - 1, 1], np.float32),
                    terminal=True,
                    timeout=False,
                    instruction='',
                )
            )
    return ReplayFolder(path)


def test_the_defaults_are_the_papers():
    config = DecisionTransformerTrainConfig(num_train_steps=100_000)
    rates = [learning_rate(step, config) for step in (0, 4_999, 9_999, 10_000, 99_999)]
    assert rates == pytest.approx([1e-8, 5e-5, 1e-4, 1e-4, 1e-4])
    assert (config.weight_decay, config.gradient_clip) == (1e-4, 0.25)
    assert (config.return_scale, config.keep_best) == (0.0, 1.0)
    assert DecisionTransformerConfig().context == 20
    for change in ({'return_scale': -1.0}, {'keep_best': 0.0}, {'keep_best': 1.5}):
        with pytest.raises(ConfigurationError, match=next(iter(change))):
            dataclasses.replace(config, **change)


def test_filtered_cloning_trains_on_the_best_episodes(folder, tmp_path):
    config = dataclasses.replace(CONFIG, keep_best=0.3)
    model = dataclasses.replace(MODEL, return_conditioned=False)
    trainer = make(folder, tmp_path / 'run', model=model, config=config)
    # 18 of 60 steps; 0, 3 and 6 have return 0, of the others the first come first.
    assert trainer.samplers[0].dataset.episodes == (1, 2, 4)
    held = dataclasses.replace(config, validation_fraction=0.5, keep_best=0.5)
    trainer = make(folder, tmp_path / 'held', model=model, config=held)
    kept = trainer.samplers[0].dataset.episodes, trainer.validation.dataset.episodes
    train, held_out = split_episodes(folder, 0.5, 0)
    for chosen, of in zip(kept, (train, held_out), strict=True):
        assert set(chosen) < set(of)
        left = set(of) - set(chosen)
        returns = [episode['return'] for episode in folder.episodes]
        assert min(returns[n] for n in chosen) >= max(returns[n] for n in left)
    trainer.run()


@pytest.mark.parametrize(
    'change', [{}, {'actions': 'continuous'}, {'return_conditioned': False, 'dropout': 0.3}]
)
def test_a_resumed_training_equals_an_uninterrupted_one(folder, tmp_path, change):
    model = dataclasses.replace(MODEL, **change)
    config = dataclasses.replace(CONFIG, validation_fraction=0.2, validate_every=2)
    whole = make(folder, tmp_path / 'whole', model=model, config=config).run()

    class InterruptedError(Exception):
        pass

    def interrupt(step, scalars):
        if step == 4:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        make(folder, tmp_path / 'parts', model=model, config=config).run(interrupt)
    resumed = make(folder, tmp_path / 'parts', model=model, config=config, resume=True)
    rest = resumed.run()
    assert rest['loss'] == whole['loss'][4:]
    assert rest['validation/loss'] == whole['validation/loss'][2:]
    for name in ('last/model.safetensors', 'trainer/state.safetensors'):
        ours, theirs = load_file(tmp_path / 'whole' / name), load_file(tmp_path / 'parts' / name)
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    kept = load_checkpoint(tmp_path / 'whole/last')
    assert kept.model.config == model.fitted(folder.spec)
    assert kept.contract == folder.contract
    load_policy(tmp_path / 'whole/last', 'cpu').reset('touch the red block')


def test_validation_is_the_mean_over_all_held_out_steps(folder, tmp_path):
    config = dataclasses.replace(CONFIG, validation_fraction=0.4, batch_size=3, state_noise=0.0)
    trainer = make(folder, tmp_path / 'run', config=config)
    history = trainer.run()
    sampler = trainer.validation
    batches = [sampler.batch(i) for i in range(sampler.batches_per_epoch)]
    total, right, count = 0.0, 0.0, 0
    with torch.no_grad():
        for batch in batches:
            inputs = left_padded(batch, continuous=False)
            logits = trainer.network(**inputs)[inputs['mask']]
            bins = inputs['actions'][inputs['mask']]
            total -= float(logits.log_softmax(-1).gather(-1, bins.unsqueeze(-1)).sum())
            right += float((logits.argmax(-1) == bins).sum())
            count += bins.numel()
    assert history['validation/loss'][-1][1] == pytest.approx(total / count, rel=1e-5)
    assert history['validation/accuracy'][-1][1] == pytest.approx(right / count, rel=1e-5)


def test_micro_batches_make_the_gradient_of_one_large_batch(folder, tmp_path):
    """Though windows have different numbers of steps."""
    model = dataclasses.replace(MODEL, dropout=0.0)
    gradients = []
    for size, count in ((8, 1), (2, 4)):
        config = dataclasses.replace(
            CONFIG, batch_size=size, grad_accum_every=count, state_noise=0.0, gradient_clip=1e9
        )
        trainer = make(folder, tmp_path / f'run{size}', model=model, config=config)
        trainer.train_step(trainer.load_batches(0))
        gradients.append([weight.grad.clone() for weight in trainer.network.parameters()])
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-3)


def test_a_model_that_does_not_fit_the_data_is_refused(folder, replay_path, tmp_path):
    network = DecisionTransformer(dataclasses.replace(MODEL.fitted(folder.spec), num_actions=6))
    with pytest.raises(ConfigurationError, match='num_actions: 6 != 7'):
        DecisionTransformerTrainer(
            network, dataset=SequenceDataset(folder, 4), config=CONFIG, checkpoint_folder=tmp_path
        )
    with pytest.raises(ConfigurationError, match='text_dim is 9, expected 8'):
        make(folder, tmp_path / 'a', model=dataclasses.replace(MODEL, text_dim=9))
    untold = write_bandit(tmp_path / 'bandit', (0, 1))
    told = dataclasses.replace(VECTOR, condition_on_text=True)
    with pytest.raises(ConfigurationError, match='without sentences'):
        make(untold, tmp_path / 'b', model=told)
    with pytest.raises(ConfigurationError, match="--replay is '2 folders', expected 1"):
        make_trainer(CONFIG, MODEL, [folder, folder], tmp_path / 'c', resume=False)


@pytest.mark.parametrize('name', CONFIGS)
def test_the_shipped_configurations(name, contract):
    run = load_run(share_path(f'config/train/{name}.yaml'))
    assert run.policy == 'decision_transformer'
    assert run.model.return_conditioned == (name == CONFIGS[0])
    assert run.training.keep_best == (0.1 if name == CONFIGS[2] else 1.0)
    reference = load_run(share_path(f'config/train/{CONFIGS[0]}.yaml'))
    assert dataclasses.replace(run.model, return_conditioned=True) == reference.model
    assert dataclasses.replace(run.training, keep_best=1.0) == reference.training
    assert run.model.vit == load_run(share_path('config/train/reach.yaml')).model.vit
    DecisionTransformer(run.model.fitted(Spec.of(contract)))


class Levers:
    """Four steps; the state's sign says which of two levers pays 1. A third never does.

    Where pay is delayed, all of it comes at the end.
    """

    spec = Spec(cameras=(), state_dim=2, num_actions=1, action_bins=3)
    contract = None

    def __init__(self, *, delayed):
        self.delayed = delayed

    def reset(self, seed):
        self.random = np.random.default_rng(seed)
        self.steps, self.earned = 0, 0.0
        return self._observe(), ''

    def _observe(self):
        self.state = self.random.choice([-1.0, 1.0], 2).astype(np.float32)
        return Observation({}, self.state)

    @property
    def right(self):
        return 2 if self.state[0] > 0 else 0

    def step(self, bins):
        pay = float(bins[0] == self.right)
        self.steps, self.earned = self.steps + 1, self.earned + pay
        end = self.steps == 4
        reward = pay if not self.delayed else self.earned * end
        return Step(self._observe(), reward, terminal=end, timeout=False)


def write_levers(path, *, delayed, episodes=300):
    """Write what someone does who pulls the right lever 4 times of 10, and else the third one."""
    environment = Levers(delayed=delayed)
    with ReplayWriter(path, environment.spec, None) as writer:
        for seed in range(episodes):
            observation, _ = environment.reset(seed)
            random = np.random.default_rng([seed, 1])
            states, bins, rewards = [observation.state], [], []
            for _ in range(4):
                taken = np.array([environment.right if random.random() < 0.4 else 1])
                step = environment.step(taken)
                states.append(step.observation.state)
                bins.append(taken)
                rewards.append(step.reward)
            writer.add(
                ReplayEpisode(
                    images={},
                    state=np.stack(states),
                    bins=np.stack(bins),
                    reward=np.array(rewards, np.float32),
                    terminal=True,
                    timeout=False,
                    instruction='',
                )
            )
    return path


def learn_levers(tmp_path, *, delayed, steps=120, keep_best=1.0, **model):
    """Train on levers; give the mean return of 30 episodes for each share of the best return."""
    data = tmp_path / f'levers_{delayed}'
    if not data.exists():
        write_levers(data, delayed=delayed)
    run = parse_run(
        {
            'policy': 'decision_transformer',
            'num_train_steps': steps,
            'batch_size': 64,
            'learning_rate': 3e-3,
            'warmup_steps': 20,
            'keep_best': keep_best,
            'checkpoint_every': steps,
            'model': {
                'context': 4,
                'condition_on_text': False,
                'dim': 32,
                'depth': 2,
                'heads': 2,
                'dropout': 0.0,
                'max_ep_len': 4,
                **model,
            },
        }
    )
    out = tmp_path / 'run'
    make_run(run, [data], out).run()
    policy = load_policy(out / 'last', 'cpu')

    def mean_return(choice):
        policy.choose(choice)
        rollouts = evaluate_policy(policy, Levers(delayed=delayed), range(1000, 1030))
        return float(np.mean([rollout.total_return for rollout in rollouts]))

    if not policy.model.config.return_conditioned:
        return mean_return(Choice())
    return [mean_return(Choice(target_return=ratio)) for ratio in (0.0, 0.5, 1.0)]


@pytest.mark.parametrize('delayed', [False, True])
def test_it_does_what_leads_to_the_return_that_is_asked_for(tmp_path, delayed):
    nothing, half, best = learn_levers(tmp_path, delayed=delayed)
    assert best > 3.8
    assert 1.2 < half < 2.8
    assert nothing < 0.2


def test_cloning_does_what_was_done_most(tmp_path):
    assert learn_levers(tmp_path, delayed=False, return_conditioned=False) < 0.5


def test_filtered_cloning_does_what_the_best_did(tmp_path):
    options = {'return_conditioned': False, 'keep_best': 0.1, 'steps': 60}
    assert learn_levers(tmp_path, delayed=False, **options) > 2.5


@pytest.mark.parametrize('kind', ['bins', 'continuous'])
def test_the_trainer_of_transformers(folder, tmp_path, kind):
    model = dataclasses.replace(MODEL, actions=kind).fitted(folder.spec)
    dataset = SequenceDataset(folder, MODEL.context)
    torch.manual_seed(0)
    network = DecisionTransformer(model)
    measure(network, folder, dataset.episodes, CONFIG)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    arguments = TrainingArguments(
        str(tmp_path / 'theirs'),
        max_steps=4,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=2,
        learning_rate=1e-3,
        remove_unused_columns=False,
        report_to=[],
        save_strategy='no',
        logging_steps=1,
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = Trainer(
        TrainableDecisionTransformer(network),
        arguments,
        data_collator=WindowCollator(continuous=kind == 'continuous'),
        train_dataset=dataset,
        eval_dataset=dataset,
    )
    assert not trainer.model_accepts_loss_kwargs  # else the loss of micro-batches is their sum
    first = trainer.evaluate()['eval_loss']
    trainer.train()
    assert trainer.state.global_step == 4
    assert trainer.evaluate()['eval_loss'] < first
    losses = [entry['loss'] for entry in trainer.state.log_history if 'loss' in entry]
    assert losses[0] == pytest.approx(first, rel=0.5)
    trainer.save_model()
    stored = load_file(tmp_path / 'theirs/model.safetensors')
    again = DecisionTransformer(model)
    again.load_state_dict({k.removeprefix('network.'): v for k, v in stored.items()})
    checkpoint = Checkpoint(
        model=network.eval(),
        contract=folder.contract,
        sentences=tuple(folder.instructions),
        embeddings=folder.embeddings,
        sentence_model=folder.sentence_model,
        training={},
    )
    save_checkpoint(tmp_path / 'ours', checkpoint)
    policy = load_policy(tmp_path / 'ours', 'cpu')
    episode = folder.episode(1)
    policy.reset(episode.instruction)
    decision = policy.act(episode.observations()[0])
    assert np.array_equal(decision.bins, policy.embodiment.encode(decision.action))
    inputs = left_padded(dataset.gather([0, 20]), continuous=kind == 'continuous')
    with torch.no_grad():
        assert torch.equal(again.eval()(**inputs), policy.model(**inputs))
    moved = [name for name, value in again.state_dict().items() if not before[name].equal(value)]
    assert {'backbone.embed_return.weight', 'embed_text.weight'} < set(moved)
    assert not {'state_mean', 'state_std', 'return_scale'} & set(moved)


def test_the_collator_takes_samples_one_by_one_or_together(folder):
    dataset = SequenceDataset(folder, 4)
    collate = WindowCollator(continuous=False)
    together, single = collate(dataset.gather([3, 8])), collate([dataset[3], dataset[8]])
    assert together.keys() == single.keys()
    for name, value in together.items():
        if name == 'images':
            assert torch.equal(value['front'], single[name]['front'])
        else:
            assert torch.equal(value, single[name])
    with pytest.raises(ValueError, match='use a SequenceDataset'):
        WindowCollator(continuous=True)(dataclasses.replace(dataset[0], action=None))


def test_yaml_errors_name_the_field():
    with pytest.raises(ConfigurationError, match=r'model\.contxt is not a field'):
        parse_run({'policy': 'decision_transformer', 'num_train_steps': 1,
                   'model': {'contxt': 3}})  # fmt: skip
    content = yaml.safe_load('{num_train_steps: 5, keep_best: 2.0}')
    with pytest.raises(ConfigurationError, match=r'keep_best is 2\.0'):
        build(DecisionTransformerTrainConfig, content)
