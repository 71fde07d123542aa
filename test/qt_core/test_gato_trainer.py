# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from qt_core.configuration import ConfigurationError
from qt_core.embodiment import Embodiment
from qt_core.learning.checkpoint import CheckpointError, load_checkpoint
from qt_core.learning.gato import GatoTrainConfig
from qt_core.learning.run import load_run, make_trainer, parse_run
from qt_core.models.gato_configuration import Body
from qt_core.models.gato_sequence import steps_that_fit
from qt_core.models.gato_text import TextTokenizer
from qt_core.observation import Observation
from qt_core.policies import Choice, load_policy
from qt_core.policies.gato import GatoPolicy
from qt_core.replay import ReplayEpisode, ReplayFolder, ReplayWriter
from qt_core.share import share_path
from qt_core.spec import Spec

SMALL = {
    'text_ids': 300,
    'context': 96,
    'width': 32,
    'depth': 1,
    'heads': 2,
    'dim_head': 16,
    'ff_width': 64,
    'dropout': 0.0,
    'image_channels': 8,
    'sentence': 'window',
}
POLE = Spec(cameras=(), state_dim=2, num_actions=1, action_bins=2)


def run_of(model=None, **changes):
    content = {
        'policy': 'gato',
        'num_train_steps': 6,
        'batch_size': 4,
        'warmup_steps': 2,
        'state_noise': 0.01,
        'log_every': 1,
        'checkpoint_every': 3,
        'prompt_share': 0.5,
        'model': {**SMALL, **(model or {})},
    }
    return parse_run({**content, **changes})


@pytest.fixture
def pole_path(tmp_path):
    """Write episodes of a body with one discrete action, that are told nothing."""
    path = tmp_path / 'pole'
    random = np.random.default_rng(0)
    with ReplayWriter(path, POLE, None) as writer:
        for steps in (5, 9, 12):
            state = random.uniform(-1, 1, (steps + 1, 2)).astype(np.float32)
            writer.add(episode_of(state, (state[:-1, :1] > 0).astype(np.int64)))
    return path


def episode_of(state, bins, instruction='', success=True):
    reward = np.zeros(len(bins), np.float32)
    reward[-1] = float(success)
    return ReplayEpisode(
        images={},
        state=state,
        bins=bins,
        reward=reward,
        terminal=True,
        timeout=False,
        instruction=instruction,
    )


@pytest.fixture
def passages(tmp_path):
    path = tmp_path / 'passages.txt'
    path.write_text('the arm is at rest\n\nred and blue blocks lie on the table\n')
    return str(path)


def test_it_trains_and_acts_by_the_checkpoint_alone(replay_path, tmp_path):
    history = make_trainer(run_of(), [replay_path], tmp_path / 'run').run()
    assert all(math.isfinite(value) for _, value in history['loss'])
    checkpoint = load_checkpoint(tmp_path / 'run/last')
    folder = ReplayFolder(replay_path)
    assert checkpoint.contract == folder.contract
    assert [body.name for body in checkpoint.model.config.bodies] == ['tabletop']
    assert {prompt.sentence for prompt in checkpoint.model.prompts} == set(folder.instructions)
    policy = load_policy(tmp_path / 'run/last', 'cpu')
    assert isinstance(policy, GatoPolicy)
    observation = folder.episode(0).observations()[0]
    values = []
    for prompted in (False, True):
        policy.choose(Choice(prompted=prompted))
        policy.warm_up()
        policy.reset(folder.instructions[0])
        decision = policy.act(observation)
        assert decision.values.shape == (7, 21)
        values.append(decision.values)
    assert np.abs(values[0] - values[1]).max() > 1e-6


def test_the_loss_is_the_cross_entropy_of_text_and_actions_per_action(replay_path, tmp_path):
    trainer = make_trainer(run_of(), [replay_path], tmp_path / 'run')
    trainer.network.eval()
    (batch,) = trainer.load_batches(0)
    sequence = trainer.sequence(batch)
    ids = trainer.network.config.ids
    total = 0.0
    with torch.no_grad():
        logits = trainer.network(sequence)
        for row, column in sequence.valid.nonzero().tolist():
            token = int(sequence.ids[row, column])
            if column and (0 <= token < ids.text or token in ids.actions):
                total -= float(F.log_softmax(logits[row, column - 1], -1)[token])
        loss = float(trainer.loss(batch)['loss'])
    assert int(batch.valid.sum()) > 4
    assert loss == pytest.approx(total / (int(batch.valid.sum()) * 7), rel=1e-4)


@pytest.mark.parametrize('told', ['window', 'step'])
def test_every_window_with_its_prompt_fits_into_the_context(replay_path, tmp_path, told):
    prompted, promptless = (
        make_trainer(
            run_of({'sentence': told}, prompt_share=share, batch_size=32),
            [replay_path],
            tmp_path / str(share),
        )
        for share in (1.0, 0.0)
    )
    (batch,), (other,) = prompted.load_batches(0), promptless.load_batches(0)
    assert (batch.bins != other.bins).flatten(1).any(1).all()
    longest = 4 + 7 + 1 + 7 + (5 if told == 'step' else 0)
    for trainer, each in ((prompted, batch), (promptless, other)):
        assert 96 - longest < trainer.sequence(each).ids.shape[1] <= 96


def test_resumed_training_equals_uninterrupted_training(replay_path, passages, tmp_path):
    model, changes = {'dropout': 0.2, 'stochastic_depth': 0.2}, {'text': passages}
    whole = make_trainer(run_of(model, **changes), [replay_path], tmp_path / 'whole').run()

    def interrupt(step, scalars):
        if step == 4:
            raise KeyboardInterrupt

    parts = make_trainer(run_of(model, **changes), [replay_path], tmp_path / 'parts')
    with pytest.raises(KeyboardInterrupt):
        parts.run(interrupt)
    resumed = make_trainer(
        run_of(model, **changes), [replay_path], tmp_path / 'parts', resume=True
    )
    torch.manual_seed(7)
    rest = resumed.run()
    assert rest['loss'] == whole['loss'][4:]
    ours = load_file(tmp_path / 'whole/last/model.safetensors')
    theirs = load_file(tmp_path / 'parts/last/model.safetensors')
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_run_is_not_resumed_with_another_text(replay_path, passages, tmp_path):
    changes = {'text': passages, 'num_train_steps': 1}
    make_trainer(run_of(**changes), [replay_path], tmp_path / 'run').run()
    with open(passages, 'a', encoding='utf-8') as file:
        file.write('zebras and giraffes\n')
    with pytest.raises(ConfigurationError, match=r"text \(digest\) is '.*', but the run in"):
        make_trainer(run_of(**changes), [replay_path], tmp_path / 'run', resume=True)


def test_a_resumed_run_keeps_its_tokenizer(replay_path, tmp_path):
    path = tmp_path / 'tokenizer.json'
    TextTokenizer.train(['touch the red block', 'a zebra'], 300).save(path)
    changes = {'tokenizer': str(path), 'num_train_steps': 2}
    first = make_trainer(run_of(**changes), [replay_path], tmp_path / 'run')
    first.run()
    TextTokenizer.train(['zebras and giraffes'], 300).save(path)
    again = make_trainer(run_of(**changes), [replay_path], tmp_path / 'run', resume=True)
    for line in ('touch the red block', 'zebras'):
        ours, theirs = (each.network.tokenizer.encode(line) for each in (first, again))
        assert ours == theirs


def test_batches_and_prompts_follow_from_seed_and_step(replay_path, tmp_path):
    trainers = [
        make_trainer(run_of(seed=seed), [replay_path], tmp_path / name)
        for name, seed in (('a', 0), ('b', 0), ('c', 1))
    ]
    (late,) = trainers[0].load_batches(3)
    trainers[1].load_batches(1)
    (again,), (other,) = trainers[1].load_batches(3), trainers[2].load_batches(3)
    assert torch.equal(late.bins, again.bins)
    assert not torch.equal(late.bins, other.bins)
    (next_one,) = trainers[0].load_batches(4)
    assert not torch.equal(late.bins, next_one.bins)


def test_several_bodies_share_the_weights(replay_path, pole_path, tmp_path):
    run = run_of(batch_size=8, num_train_steps=4)
    trainer = make_trainer(run, [replay_path, pole_path], tmp_path / 'run')
    batches = trainer.load_batches(0)
    assert [(batch.dataset, batch.bins.shape[-1]) for batch in batches] == [(0, 7), (1, 1)]
    trainer.run()
    checkpoint = load_checkpoint(tmp_path / 'run/last')
    assert [body.name for body in checkpoint.model.config.bodies] == ['tabletop', 'pole']
    assert {prompt.body for prompt in checkpoint.model.prompts} == {0, 1}
    assert GatoPolicy(checkpoint).contract == ReplayFolder(replay_path).contract
    policy = GatoPolicy(checkpoint, body='pole')
    policy.choose(Choice(prompted=True))
    policy.reset('')
    for _ in range(3):
        assert policy.act(Observation({}, np.zeros(2, np.float32))).values.shape == (1, 2)


def test_two_folders_of_one_robot_are_two_bodies(replay_path, tmp_path):
    run = run_of(num_train_steps=1)
    trainer = make_trainer(run, [replay_path, replay_path], tmp_path / 'run')
    assert [body.name for body in trainer.network.config.bodies] == ['tabletop', 'tabletop#2']


def test_bodies_of_another_order_are_not_resumed(replay_path, pole_path, tmp_path):
    run = run_of(num_train_steps=1)
    make_trainer(run, [replay_path, pole_path], tmp_path / 'run').run()
    with pytest.raises(ConfigurationError, match=r'model\.bodies is'):
        make_trainer(run, [pole_path, replay_path], tmp_path / 'run', resume=True)


def test_text_is_trained_on_besides(replay_path, passages, tmp_path):
    run = run_of(text=passages, num_train_steps=40, learning_rate=1e-2, text_weight=1.0)
    trainer = make_trainer(run, [replay_path], tmp_path / 'run')
    history = trainer.run()
    first, last = history['text'][0][1], history['text'][-1][1]
    assert last < 0.5 * first
    assert history['loss'][0][1] == pytest.approx(history['steps'][0][1] + first, rel=1e-5)
    plain = make_trainer(
        run_of(tokenizer=str(tmp_path / 'run/last/tokenizer.json')), [replay_path], tmp_path / 'b'
    )
    for line in ('red blocks lie', 'zebra'):
        ours, theirs = (each.network.tokenizer.encode(line) for each in (plain, trainer))
        assert ours == theirs
    # The steps of the first batch have the same loss, whatever text is beside them.
    plain.network.load_state_dict(trainer.network.state_dict())
    (batch,) = trainer.load_batches(0)
    for each in (plain, trainer):
        each.network.eval()
    with torch.no_grad():
        ours, theirs = trainer.loss(batch)['steps'], plain.loss(batch)['loss']
    torch.testing.assert_close(ours, theirs)


def test_words_of_many_episodes_stay_whole_beside_text(tmp_path):
    path, words = (
        tmp_path / 'long.txt',
        [f'{letter}bcdefg' for letter in 'hijklmnopqrstuvwxyz' * 2],
    )
    path.write_text('\n'.join(f'{word}s un{word}' for word in words))
    random = np.random.default_rng(0)
    with ReplayWriter(
        tmp_path / 'told', POLE, lambda texts: np.zeros((len(texts), 1), np.float32)
    ) as writer:
        for _ in range(60):
            state = random.uniform(-1, 1, (7, 2)).astype(np.float32)
            writer.add(episode_of(state, (state[:-1, :1] > 0).astype(np.int64), 'go up'))
    run = run_of(text=str(path))
    trainer = make_trainer(run, [tmp_path / 'told'], tmp_path / 'run')
    assert len(trainer.network.tokenizer.encode('go up')) == 2


def test_text_longer_than_the_context_is_read_in_parts(replay_path, tmp_path):
    path = tmp_path / 'long.txt'
    path.write_text('red ' * 500)
    trainer = make_trainer(
        run_of(text=str(path), num_train_steps=1), [replay_path], tmp_path / 'run'
    )
    assert len(trainer.passages[0]) > 96
    assert math.isfinite(trainer.run()['text'][0][1])


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'text': '/no/such/file'}, "text is '/no/such/file', expected a text file"),
        ({'prompt_share': 1.5}, r'prompt_share is 1\.5, expected 0\.\.1'),
        ({'keep_near_expert': -1.0}, r'keep_near_expert is -1\.0'),
        ({'text_batch': 0}, 'text_batch is 0'),
        ({'text_weight': 0.0}, r'text_weight is 0\.0'),
        ({'model': {**SMALL, 'context': 20}}, r'model\.context is 20, expected at least 2\d, a'),
        ({'model': {**SMALL, 'context': 40}}, r'prompt_share is 0\.5, expected 0 where fewer'),
        ({'model': {**SMALL, 'bodies': [{'name': 'x'}]}}, 'model.bodies comes from the data'),
    ],
)
def test_what_does_not_fit_is_refused(replay_path, tmp_path, changes, message):
    with pytest.raises(ConfigurationError, match=message) as error:
        make_trainer(run_of(**changes), [replay_path], tmp_path / 'run')
    assert '\n' not in str(error.value)


def test_a_tokenizer_that_is_not_there_is_refused(replay_path, tmp_path):
    with pytest.raises(CheckpointError, match='not a tokenizer'):
        make_trainer(run_of(tokenizer='/no/such'), [replay_path], tmp_path / 'run')


def test_only_episodes_near_the_experts_are_trained_on(replay_path, tmp_path):
    trainer = make_trainer(run_of(keep_near_expert=0.8), [replay_path], tmp_path / 'run')
    kept = trainer.samplers[0].dataset.episodes
    returns = [episode['return'] for episode in ReplayFolder(replay_path).episodes]
    assert list(kept) == [number for number, total in enumerate(returns) if total > 0]
    trainer = make_trainer(run_of(), [replay_path], tmp_path / 'run')
    assert len(trainer.samplers[0].dataset.episodes) == 8


def test_accumulating_small_batches_equals_a_large_one(replay_path, tmp_path):
    """Also where episodes shorter than the window leave them unequal numbers of steps."""
    run = run_of(state_noise=0.0, prompt_share=0.0)
    trainers = [make_trainer(run, [replay_path], tmp_path / name) for name in 'ab']
    windows = trainers[0].samplers[0].dataset
    chosen = [0, 1, 2, 3, 10, 20, 30, 40]
    parts = [windows.gather(chosen[i : i + 2]) for i in range(0, 8, 2)]
    assert len({int(part.valid.sum()) for part in parts}) > 1
    for trainer in trainers:
        keep_patch_positions(trainer.network.embedding)
    trainers[0].train_step(windows.gather(chosen))
    trainers[1].train_step(parts)
    theirs = dict(trainers[1].network.named_parameters())
    for name, weight in trainers[0].network.named_parameters():
        torch.testing.assert_close(theirs[name].grad, weight.grad, atol=1e-6, rtol=1e-4)


def keep_patch_positions(embedding):
    """Let it not draw the places of patches, as in evaluation."""
    embedding.eval()
    embedding.train = lambda mode=True: embedding


def test_what_is_held_out_is_measured(replay_path, pole_path, tmp_path):
    run = run_of(validation_fraction=0.3, batch_size=2, num_train_steps=2)
    trainer = make_trainer(run, [replay_path, pole_path], tmp_path / 'run')
    held_out = [trainer.validation.dataset, *(sampler.dataset for _, sampler in trainer._held_out)]
    for sampler, other in zip(trainer.samplers, held_out, strict=True):
        assert not set(sampler.dataset.episodes) & set(other.episodes)
    history = trainer.run()
    assert 0 <= history['validation/accuracy'][-1][1] <= 1
    assert math.isfinite(history['validation/loss'][-1][1])


@pytest.fixture
def tasks(tmp_path):
    """Write two tasks with known answers, of bodies that differ in all.

    The first body's first bin is 0 or 4 by chance, its second follows from it and from the
    sentence: it repeats or mirrors the first. The second body has one bin of 2, the sign of its
    state.
    """
    random = np.random.default_rng(0)
    arm = Spec(cameras=(), state_dim=1, num_actions=2, action_bins=5)
    with ReplayWriter(
        tmp_path / 'arm', arm, lambda s: np.zeros((len(s), 2), np.float32)
    ) as writer:
        for number in range(200):
            state = random.uniform(-1, 1, (6, 1)).astype(np.float32)
            first = 4 * random.integers(2, size=5)
            repeats = number % 2 == 0
            bins = np.stack([first, first if repeats else 4 - first], axis=1)
            writer.add(episode_of(state, bins, 'repeat' if repeats else 'mirror'))
    with ReplayWriter(tmp_path / 'pole', POLE, None) as writer:
        for _ in range(200):
            state = random.uniform(-1, 1, (6, 2)).astype(np.float32)
            writer.add(episode_of(state, (state[:-1, :1] > 0).astype(np.int64)))
    return [tmp_path / 'arm', tmp_path / 'pole']


def test_it_learns_what_can_be_known_and_no_more(tasks, tmp_path):
    """Chance stays chance; what follows from sentence, state and bins before is learned."""
    run = run_of(
        {'context': 28, 'depth': 2},
        num_train_steps=170,
        betas=(0.9, 0.999),  # few steps want a longer memory of squares
        batch_size=16,
        learning_rate=1e-2,
        warmup_steps=20,
        state_noise=0.0,
        log_every=50,
        checkpoint_every=1000,
        prompt_share=0.25,
    )
    make_trainer(run, tasks, tmp_path / 'run').run()
    arm = load_policy(tmp_path / 'run/last', 'cpu', body='arm')
    random = np.random.default_rng(1)
    for prompted in (False, True):
        arm.choose(Choice(prompted=prompted, temperature=1.0))
        for sentence in ('repeat', 'mirror'):
            arm.reset(sentence)
            first = []
            for _ in range(12):
                state = random.uniform(-1, 1, 1).astype(np.float32)
                decision = arm.act(Observation({}, state))
                likely, chosen = decision.values, int(decision.bins[0])
                first.append(likely[0, 0])
                assert likely[0, [0, 4]].sum() > 0.8
                assert likely[1, chosen if sentence == 'repeat' else 4 - chosen] > 0.7
            assert 0.25 < np.mean(first) < 0.75
    pole = load_policy(tmp_path / 'run/last', 'cpu', body='pole')
    pole.reset('')
    states = [state for state in random.uniform(-1, 1, (40, 2)) if abs(state[0]) > 0.25]
    for state in states:
        decision = pole.act(Observation({}, state.astype(np.float32)))
        assert int(decision.bins[0]) == int(state[0] > 0)


def test_the_shipped_configuration_fits_the_shipped_contract(contract):
    run = load_run(share_path('config/train/reach_gato.yaml'))
    assert isinstance(run.training, GatoTrainConfig)
    assert run.training.prompt_share == 0.25
    arm = Body.named('arm', Embodiment.of(contract))
    # 16 patches, 7 joints, a separator and 7 actions
    assert steps_that_fit(run.model, arm, 8) == (256 - 8) // 31
