# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
import pytest

from qt_core.configuration import ConfigurationError
from qt_core.learning.checkpoint import load_checkpoint
from qt_core.learning.run import load_run
from qt_core.share import share_path
from qt_ros.cli.main import main

TINY = """
num_train_steps: 9
batch_size: 4
model:
  text_dim: 8
  frames: 2
  dim: 32
  depth: 1
  decoder_depth: 1
  heads: 2
  dim_head: 16
  vit: {dim: 8, depth: [1], heads: 2, dim_head: 4, window_size: 4}
"""


@pytest.mark.parametrize('name', ['demo', 'reach'])
def test_shipped_configurations_fit(name):
    run = load_run(share_path(f'config/train/{name}.yaml'), num_train_steps=7)
    assert run.training.num_train_steps == 7
    assert run.model.vit.depth == (1, 1)


def test_a_run_is_made_and_resumed(replay_path, tmp_path):
    path = tmp_path / 'tiny.yaml'
    path.write_text(TINY)
    arguments = ['train', str(path), '--replay', str(replay_path), '--out', str(tmp_path / 'run')]
    assert main([*arguments, '--num-train-steps', '2']) == 0
    assert main([*arguments, '--num-train-steps', '3', '--resume']) == 0
    checkpoint = load_checkpoint(tmp_path / 'run/last')
    assert checkpoint.training['num_train_steps'] == 3
    assert checkpoint.contract is not None


@pytest.mark.parametrize(
    ('line', 'message'),
    [
        ('model: {num_actions: 7}', 'model.num_actions comes from the data: leave it out'),
        ('model: {cameras: []}', 'model.cameras comes from the data: leave it out'),
        ('model: {width: 7}', 'model.width is not a field'),
        ('steps: 3', 'steps is not a field'),
        ('policy: magic', "policy is 'magic', expected q_transformer or"),
        ('discount: 0', 'discount is 0.0, expected 0 < discount <= 1'),
    ],
)
def test_what_does_not_fit_is_one_line(line, message, tmp_path):
    path = tmp_path / 'bad.yaml'
    path.write_text(f'num_train_steps: 3\n{line}\n')
    with pytest.raises(ConfigurationError) as error:
        load_run(path)
    assert message in str(error.value)
    assert '\n' not in str(error.value)


def test_a_run_is_not_resumed_by_another_kind_of_policy(replay_path, tmp_path, capsys):
    path, run = tmp_path / 'tiny.yaml', str(tmp_path / 'run')
    path.write_text(TINY)
    arguments = ['train', str(path), '--replay', str(replay_path), '--out', run]
    assert main([*arguments, '--num-train-steps', '1']) == 0
    path.write_text('policy: gato\nnum_train_steps: 2\n')
    assert main([*arguments, '--resume']) == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said == f"qt-ros: policy is 'gato', expected 'q_transformer', as the run in {run}"
