# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
import dataclasses
import itertools
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from qt_core.configuration import ConfigurationError
from qt_core.learning.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from qt_core.learning.q_learner import QLearner, QLearnerConfig
from qt_core.learning.trainer import TrainingError, learning_rate
from qt_core.models import QRoboticTransformer
from qt_core.replay import ReplayFolder, ReplayMemoryDataset, ReplayWriter
from test.conftest import TINY_MODEL, make_episode


@pytest.fixture
def tiny_config():
    return QLearnerConfig(
        num_train_steps=6,
        batch_size=4,
        warmup_steps=2,
        state_noise=0.01,
        log_every=1,
        checkpoint_every=3,
    )


def make_learner(
    config, replay_path, out, *, model=TINY_MODEL, weights_seed=0, resume=False, **options
):
    folder = ReplayFolder(replay_path)
    told = model.condition_on_text and folder.embeddings is not None
    torch.manual_seed(weights_seed)
    network = QRoboticTransformer(model.fitted(folder.spec))
    dataset = ReplayMemoryDataset(folder, config.num_timesteps or model.frames, told)
    return QLearner(
        network, dataset=dataset, checkpoint_folder=out, resume=resume, config=config, **options
    )


def train(config, replay_path, out, **options):
    learner = make_learner(config, replay_path, out, **options)
    return learner, learner()


def test_resumed_training_equals_uninterrupted_training(tiny_config, replay_path, tmp_path):
    _, whole = train(tiny_config, replay_path, tmp_path / 'whole')

    class Interrupted(Exception):
        pass

    def interrupt(step, scalars):
        if step == 4:
            raise Interrupted

    trainer = make_learner(tiny_config, replay_path, tmp_path / 'parts')
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
    config = dataclasses.replace(
        tiny_config, num_train_steps=100, batch_size=16, learning_rate=3e-3
    )
    _, history = train(config, replay_path, tmp_path / 'run')
    losses = [value for _, value in history['loss']]
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])


def test_run_writes_checkpoint_and_curves(tiny_config, replay_path, tmp_path):
    train(tiny_config, replay_path, tmp_path / 'run')
    checkpoint = load_checkpoint(tmp_path / 'run/last')
    assert checkpoint.contract == ReplayFolder(replay_path).contract
    assert checkpoint.training['num_train_steps'] == 6
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
    with pytest.raises(CheckpointError, match='not empty; choose another, or resume'):
        train(tiny_config, replay_path, tmp_path / 'run')


def test_resume_needs_a_run_and_the_same_configuration(tiny_config, replay_path, tmp_path):
    with pytest.raises(CheckpointError, match='no run to resume'):
        train(tiny_config, replay_path, tmp_path / 'run', resume=True)
    train(tiny_config, replay_path, tmp_path / 'run')
    other = dataclasses.replace(tiny_config, discount=0.5)
    with pytest.raises(ConfigurationError, match=r'discount is 0\.5, but the run in .* has 0\.98'):
        train(other, replay_path, tmp_path / 'run', resume=True)
    deeper = dataclasses.replace(TINY_MODEL, depth=2)
    with pytest.raises(ConfigurationError, match=r'model\.depth is 2, but the run in .* has 1'):
        train(tiny_config, replay_path, tmp_path / 'run', model=deeper, resume=True)


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
    trainer = make_learner(tiny_config, replay_path, tmp_path / 'run')

    def poison(step, scalars):
        if step == 4:
            with torch.no_grad():
                trainer.network.critics[0].head_bias.fill_(float('nan'))

    with pytest.raises(TrainingError, match='not finite at step 5'):
        trainer.run(poison)
    assert load_checkpoint(tmp_path / 'run/last').training['num_train_steps'] == 3
    _, rest = train(tiny_config, replay_path, tmp_path / 'run', resume=True)
    assert [step for step, _ in rest['loss']] == [4, 5, 6]


def test_an_interrupted_step_is_not_saved(tiny_config, replay_path, tmp_path, monkeypatch):
    _, whole = train(tiny_config, replay_path, tmp_path / 'whole')
    trainer = make_learner(tiny_config, replay_path, tmp_path / 'parts')
    after_step = trainer.after_step

    def interrupt():
        if trainer.step == 4:
            raise KeyboardInterrupt
        after_step()

    monkeypatch.setattr(trainer, 'after_step', interrupt)
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    _, rest = train(tiny_config, replay_path, tmp_path / 'parts', resume=True)
    assert rest['loss'] == whole['loss'][3:]


def test_a_crash_between_two_renames_loses_nothing(tiny_config, replay_path, tmp_path):
    longer = dataclasses.replace(tiny_config, num_train_steps=8)
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
    config = dataclasses.replace(
        tiny_config, num_train_steps=100, warmup_steps=10, learning_rate=1.0
    )
    rates = [learning_rate(step, config) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(rates[10]) == pytest.approx(1.0)
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))
    assert 0.04 < rates[-1] < 0.06


def test_weights_that_are_not_finite_are_refused(tiny_config, replay_path, tmp_path):
    train(tiny_config, replay_path, tmp_path / 'run')
    checkpoint = load_checkpoint(tmp_path / 'run/last')
    with torch.no_grad():
        checkpoint.model.critics[0].head_bias[0, 0] = float('nan')
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
        ({'version': 1}, 'version 1, expected'),
        ({'policy': 'oracle'}, "unknown policy 'oracle'"),
        ({'contract': 'name: x'}, 'contract: rate is missing'),
        ({'model': {'depth': 'deep'}}, "model.depth is 'deep', expected int"),
        ({'sentences': []}, 'sentences.safetensors does not fit'),
        ({'contract': 3}, 'contract is 3, expected text'),
    ],
)
def test_damaged_config_is_refused(change, message, tiny_config, replay_path, tmp_path):
    train(tiny_config, replay_path, tmp_path / 'run')
    path = tmp_path / 'run/last/config.json'
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path / 'run/last')


def test_random_numbers_and_initial_values_too_resume_exactly(tiny_config, replay_path, tmp_path):
    model = dataclasses.replace(TINY_MODEL, dropout=0.3, cond_drop_prob=0.3)
    config = dataclasses.replace(tiny_config, regenerative_rate=10.0)
    _, whole = train(config, replay_path, tmp_path / 'whole', model=model)

    def interrupt(step, scalars):
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_learner(config, replay_path, tmp_path / 'parts', model=model).run(interrupt)
    resumed = make_learner(
        config, replay_path, tmp_path / 'parts', model=model, weights_seed=5, resume=True
    )
    torch.manual_seed(7)  # what the caller draws does not matter
    rest = resumed()
    assert rest['loss'] == whole['loss'][3:]
    ours = load_file(tmp_path / 'whole/trainer/state.safetensors')
    theirs = load_file(tmp_path / 'parts/trainer/state.safetensors')
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_training_leaves_the_callers_random_numbers_alone(tiny_config, replay_path, tmp_path):
    learner = make_learner(tiny_config, replay_path, tmp_path / 'run')
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    learner()
    assert torch.equal(torch.rand(4), expected)


def gradients(learner):
    return {name: weight.grad for name, weight in learner.network.named_parameters()}


def test_accumulating_small_batches_equals_a_large_one(tiny_config, replay_path, tmp_path):
    """Also where episodes shorter than the window leave them unequal numbers of valid steps."""
    config = dataclasses.replace(tiny_config, state_noise=0.0, num_timesteps=4)
    model = dataclasses.replace(TINY_MODEL, frames=6)
    learners = [make_learner(config, replay_path, tmp_path / name, model=model) for name in 'ab']
    windows = learners[0].samplers[0].dataset
    chosen = [0, 1, 2, 3, 4, 5, 6, 7]
    parts = [windows.gather(chosen[i : i + 2]) for i in range(0, 8, 2)]
    parts[0] = dataclasses.replace(parts[0], valid=parts[0].valid & (torch.arange(6) < 1))
    whole = windows.gather(chosen)
    whole = dataclasses.replace(whole, valid=torch.cat([part.valid for part in parts]))
    assert len({int(part.valid.sum()) for part in parts}) > 1
    ours, theirs = learners[0].train_step(whole), learners[1].train_step(parts)
    for name, value in ours.items():
        torch.testing.assert_close(theirs[name], value, atol=1e-5, rtol=1e-5)
    for name, gradient in gradients(learners[0]).items():
        torch.testing.assert_close(gradients(learners[1])[name], gradient, atol=1e-5, rtol=1e-4)


def test_accumulation_reads_as_many_windows_as_a_large_batch(tiny_config, replay_path, tmp_path):
    config = dataclasses.replace(tiny_config, grad_accum_every=2, batch_size=4)
    small = make_learner(config, replay_path, tmp_path / 'small')
    config = dataclasses.replace(tiny_config, batch_size=8)
    large = make_learner(config, replay_path, tmp_path / 'large')
    seen = {}
    for learner in (small, large):
        step = learner.train_step

        def record(batch, learner=learner, step=step):
            seen.setdefault(learner, []).append(torch.cat([part.bins for part in batch]))
            return step(batch)

        learner.train_step = record
        learner()
    ours, theirs = torch.stack(seen[small]), torch.stack(seen[large])
    epoch = large.samplers[0].batches_per_epoch
    assert torch.equal(ours[:epoch], theirs[:epoch])


@pytest.mark.parametrize('precision', ['bf16', 'fp16'])
def test_half_precision_resumes_and_leaves_the_network_as_it_was(
    precision, tiny_config, replay_path, tmp_path
):
    config = dataclasses.replace(tiny_config, mixed_precision=precision)
    learner, history = train(config, replay_path, tmp_path / 'run')
    assert all(math.isfinite(value) for _, value in history['loss'])
    longer = dataclasses.replace(config, num_train_steps=7)
    _, rest = train(longer, replay_path, tmp_path / 'run', resume=True)
    assert [step for step, _ in rest['loss']] == [7]
    assert 'forward' not in vars(learner.network)
    assert {weight.dtype for weight in learner.network.parameters()} == {torch.float32}
    # Another precision in the same process.
    train(tiny_config, replay_path, tmp_path / 'other')


@pytest.mark.skipif(torch.cuda.is_available(), reason='a GPU can')
def test_fsdp_on_a_cpu_is_refused_with_one_line(tiny_config, replay_path, tmp_path):
    config = dataclasses.replace(tiny_config, fsdp=True)
    with pytest.raises(ConfigurationError, match='fsdp is True, expected false') as error:
        make_learner(config, replay_path, tmp_path / 'run')
    assert '\n' not in str(error.value)
    make_learner(tiny_config, replay_path, tmp_path / 'run')


@pytest.mark.parametrize('sharding', ['ddp', 'fsdp'])
def test_two_processes_equal_one_with_twice_the_batch(
    sharding, tiny_config, replay_path, tmp_path
):
    config = dataclasses.replace(
        tiny_config, num_train_steps=3, state_noise=0.0, regenerative_rate=1.0
    )
    double = dataclasses.replace(config, batch_size=2 * config.batch_size)
    one, _ = train(double, replay_path, tmp_path / 'one')
    script = Path(__file__).with_name('two_processes.py')
    environment = {
        **os.environ,
        **dict.fromkeys(('OMP_NUM_THREADS',), '1'),
        'ACCELERATE_USE_CPU': 'true',
        'CUDA_VISIBLE_DEVICES': '',
        'PYTHONPATH': str(script.parents[2]),
    }
    launch = ['-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2']
    done = subprocess.run(
        [sys.executable, *launch, str(script), sharding, str(replay_path), str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    weights = {name: value.detach() for name, value in one.network.state_dict().items()}
    for rank in range(2):
        theirs = load_file(tmp_path / f'{rank}.safetensors')
        for name, value in weights.items():
            torch.testing.assert_close(theirs[name], value, atol=1e-5, rtol=1e-5)
    ranks = [load_file(tmp_path / f'{rank}.safetensors') for rank in range(2)]
    assert all(torch.equal(value, ranks[1][name]) for name, value in ranks[0].items())
    # What they wrote is a run that a single process can go on with.
    longer = dataclasses.replace(double, num_train_steps=4, batch_size=config.batch_size)
    resumed, _ = train(longer, replay_path, tmp_path / 'run', resume=True)
    assert resumed.step == 4
    state = load_file(tmp_path / 'run/trainer/state.safetensors')
    assert any(name.startswith('optimizer.') for name in state)
