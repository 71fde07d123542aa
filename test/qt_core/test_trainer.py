# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
import dataclasses
import itertools
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from qt_core.configuration import ConfigurationError
from qt_core.learning.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from qt_core.learning.trainer import Trainer, TrainingError, learning_rate
from qt_core.replay import ReplayFolder, ReplayWriter
from test.conftest import make_episode


def train(config, replay_path, out, *, resume=False):
    trainer = Trainer(config, ReplayFolder(replay_path), out, resume=resume)
    return trainer, trainer.run()


def test_resumed_training_equals_uninterrupted_training(tiny_config, replay_path, tmp_path):
    _, whole = train(tiny_config, replay_path, tmp_path / 'whole')

    class Interrupted(Exception):
        pass

    def interrupt(step, scalars):
        if step == 4:
            raise Interrupted

    trainer = Trainer(tiny_config, ReplayFolder(replay_path), tmp_path / 'parts')
    with pytest.raises(Interrupted):
        trainer.run(interrupt)
    resumed, rest = train(tiny_config, replay_path, tmp_path / 'parts', resume=True)
    assert resumed.step == 6
    assert rest['loss'] == whole['loss'][4:]
    ours = load_file(tmp_path / 'whole/last/model.safetensors')
    theirs = load_file(tmp_path / 'parts/last/model.safetensors')
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    ours = load_file(tmp_path / 'whole/trainer/state.safetensors')
    theirs = load_file(tmp_path / 'parts/trainer/state.safetensors')
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_loss_falls(tiny_config, replay_path, tmp_path):
    config = dataclasses.replace(tiny_config, steps=100, batch_size=16, learning_rate=3e-3)
    _, history = train(config, replay_path, tmp_path / 'run')
    losses = [value for _, value in history['loss']]
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])


def test_run_writes_checkpoint_and_curves(tiny_config, replay_path, tmp_path):
    train(tiny_config, replay_path, tmp_path / 'run')
    checkpoint = load_checkpoint(tmp_path / 'run/last')
    assert checkpoint.contract == ReplayFolder(replay_path).contract
    assert checkpoint.training['steps'] == 6
    assert list((tmp_path / 'run/tensorboard').glob('events.*'))


def test_the_checkpoint_names_the_sentence_model_of_its_data(
    tiny_config, tiny_contract, embed, tmp_path
):
    with ReplayWriter(tmp_path / 'r', tiny_contract, embed, sentence_model='mine') as writer:
        writer.add(make_episode(tiny_contract, 0, steps=20))
    train(tiny_config, tmp_path / 'r', tmp_path / 'run')
    assert load_checkpoint(tmp_path / 'run/last').sentence_model == 'mine'


def test_a_run_is_not_overwritten(tiny_config, replay_path, tmp_path):
    train(tiny_config, replay_path, tmp_path / 'run')
    with pytest.raises(CheckpointError, match='not empty; choose another --out, or --resume'):
        train(tiny_config, replay_path, tmp_path / 'run')


def test_resume_needs_a_run_and_the_same_configuration(tiny_config, replay_path, tmp_path):
    with pytest.raises(CheckpointError, match='no run to resume'):
        train(tiny_config, replay_path, tmp_path / 'run', resume=True)
    train(tiny_config, replay_path, tmp_path / 'run')
    other = dataclasses.replace(tiny_config, discount=0.5)
    with pytest.raises(ConfigurationError, match=r'discount is 0\.5, but the run in .* has 0\.98'):
        train(other, replay_path, tmp_path / 'run', resume=True)


def test_resume_needs_the_same_data_and_contract(
    tiny_config, replay_path, tmp_path, tiny_contract, embed
):
    train(tiny_config, replay_path, tmp_path / 'run')
    other = tmp_path / 'other'
    faster = dataclasses.replace(tiny_contract, rate=20.0)
    for contract, message in (
        (tiny_contract, 'replay_episodes is 1, but the run in .* has 8'),
        (faster, r'was made under another contract than .*: rate: 20\.0 != 10\.0'),
    ):
        with ReplayWriter(other, contract, embed) as writer:
            writer.add(make_episode(contract, 0, steps=20))
        with pytest.raises(ConfigurationError, match=message):
            train(tiny_config, other, tmp_path / 'run', resume=True)
        shutil.rmtree(other)


def test_a_run_that_diverges_keeps_its_last_checkpoint(tiny_config, replay_path, tmp_path):
    trainer = Trainer(tiny_config, ReplayFolder(replay_path), tmp_path / 'run')

    def poison(step, scalars):
        if step == 4:
            with torch.no_grad():
                trainer.model.head_bias.fill_(float('nan'))

    with pytest.raises(TrainingError, match='not finite at step 5'):
        trainer.run(poison)
    assert load_checkpoint(tmp_path / 'run/last').training['steps'] == 3
    _, rest = train(tiny_config, replay_path, tmp_path / 'run', resume=True)
    assert [step for step, _ in rest['loss']] == [4, 5, 6]


def test_an_interrupted_step_is_not_saved(tiny_config, replay_path, tmp_path, monkeypatch):
    _, whole = train(tiny_config, replay_path, tmp_path / 'whole')
    trainer = Trainer(tiny_config, ReplayFolder(replay_path), tmp_path / 'parts')
    follow = trainer._follow

    def interrupt():
        if trainer.step == 4:
            raise KeyboardInterrupt
        follow()

    monkeypatch.setattr(trainer, '_follow', interrupt)
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    _, rest = train(tiny_config, replay_path, tmp_path / 'parts', resume=True)
    assert rest['loss'] == whole['loss'][3:]


def test_a_crash_between_two_renames_loses_nothing(tiny_config, replay_path, tmp_path):
    longer = dataclasses.replace(tiny_config, steps=8)
    train(longer, replay_path, tmp_path / 'whole')
    train(tiny_config, replay_path, tmp_path / 'parts')
    for name in ('last', 'trainer'):
        (tmp_path / 'parts' / name).rename(tmp_path / 'parts' / f'{name}.old')
    _, rest = train(longer, replay_path, tmp_path / 'parts', resume=True)
    assert [step for step, _ in rest['loss']] == [7, 8]
    assert sorted(p.name for p in (tmp_path / 'parts').iterdir()) == sorted(
        p.name for p in (tmp_path / 'whole').iterdir()
    )


@pytest.mark.parametrize('file', ['state.json', 'state.safetensors'])
def test_damaged_trainer_state_is_one_line(tiny_config, replay_path, tmp_path, file):
    train(tiny_config, replay_path, tmp_path / 'run')
    path = tmp_path / 'run/trainer' / file
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r'no run to resume|damaged or truncated'):
        train(tiny_config, replay_path, tmp_path / 'run', resume=True)


def test_learning_rate_warms_up_and_falls(tiny_config):
    config = dataclasses.replace(tiny_config, steps=100, warmup_steps=10, learning_rate=1.0)
    rates = [learning_rate(step, config) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(rates[10]) == pytest.approx(1.0)
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))
    assert 0.04 < rates[-1] < 0.06


def test_weights_that_are_not_finite_are_refused(tiny_config, replay_path, tmp_path):
    train(tiny_config, replay_path, tmp_path / 'run')
    checkpoint = load_checkpoint(tmp_path / 'run/last')
    with torch.no_grad():
        checkpoint.model.head_bias[0, 0] = float('nan')
    save_checkpoint(tmp_path / 'bad', checkpoint)
    with pytest.raises(CheckpointError, match='weights are not finite'):
        load_checkpoint(tmp_path / 'bad')


def test_truncated_checkpoint_is_refused_with_one_line(tiny_config, replay_path, tmp_path):
    train(tiny_config, replay_path, tmp_path / 'run')
    weights = tmp_path / 'run/last/model.safetensors'
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(
        CheckpointError, match=r'model\.safetensors: damaged or truncated'
    ) as error:
        load_checkpoint(tmp_path / 'run/last')
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'version': 2}, 'version 2, expected'),
        ({'policy': 'oracle'}, "unknown policy 'oracle'"),
        ({'contract': 'name: x'}, 'contract: rate is missing'),
        ({'model': {'depth': 'deep'}}, "model.depth is 'deep', expected int"),
        ({'sentences': []}, 'sentences.safetensors does not fit'),
        ({'contract': None}, 'contract is None, expected text'),
    ],
)
def test_damaged_config_is_refused(change, message, tiny_config, replay_path, tmp_path):
    train(tiny_config, replay_path, tmp_path / 'run')
    path = tmp_path / 'run/last/config.json'
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path / 'run/last')
