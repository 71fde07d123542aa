# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
import json

import pytest
import torch

from qt_core.learning.checkpoint import CheckpointError, load_checkpoint
from qt_core.models import QRoboticTransformer
from qt_core.spec import Spec
from test.conftest import TINY_MODEL


@pytest.fixture
def model(tiny_contract):
    torch.manual_seed(0)
    return QRoboticTransformer(TINY_MODEL.fitted(Spec.of(tiny_contract)))


def same(ours, theirs):
    weights = theirs.state_dict()
    return ours.config == theirs.config and all(
        torch.equal(value, weights[name]) for name, value in ours.state_dict().items()
    )


def test_what_is_saved_is_read_back(model, tmp_path):
    model.save_pretrained(tmp_path / 'model')
    again = QRoboticTransformer.from_pretrained(tmp_path / 'model')
    assert same(model, again)
    assert not again.training
    names = sorted(path.name for path in tmp_path.glob('model/*'))
    assert names == ['README.md', 'config.json', 'model.safetensors']


def test_it_is_a_checkpoint_of_no_robot_and_no_sentence(model, tmp_path):
    model.save_pretrained(tmp_path / 'model')
    checkpoint = load_checkpoint(tmp_path / 'model')
    assert checkpoint.contract is None
    assert checkpoint.sentences == ()
    assert checkpoint.sentence_model == model.sentence_encoder.model_name


def test_a_folder_is_replaced_whole(model, tmp_path):
    model.save_pretrained(tmp_path / 'model')
    with torch.no_grad():
        model.critics[0].head_bias.fill_(1.0)
    model.save_pretrained(tmp_path / 'model')
    assert same(model, QRoboticTransformer.from_pretrained(tmp_path / 'model'))
    assert [path.name for path in tmp_path.iterdir()] == ['model']


def test_the_hub_is_asked_for_the_files_of_the_layout_alone(model, tmp_path, monkeypatch):
    model.save_pretrained(tmp_path / 'fetched')
    asked = {}

    def snapshot_download(name, **options):
        asked.update(options, name=name)
        return str(tmp_path / 'fetched')

    monkeypatch.setattr('huggingface_hub.snapshot_download', snapshot_download)
    again = QRoboticTransformer.from_pretrained('owner/name', revision='v1')
    assert same(model, again)
    assert asked == {
        'name': 'owner/name',
        'revision': 'v1',
        'local_files_only': False,
        'allow_patterns': ['*.json', '*.safetensors', 'README.md'],
    }


@pytest.mark.parametrize('name', ['owner/there-is-none', './none', 'a/b/c'])
def test_what_is_not_there_is_one_line(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match='no such folder, nor on the hub') as error:
        QRoboticTransformer.from_pretrained(name, local_files_only=True)
    assert '\n' not in str(error.value)


def test_damage_is_one_line(model, tmp_path):
    folder = tmp_path / 'model'
    model.save_pretrained(folder)
    config = json.loads((folder / 'config.json').read_text())
    for change, message in (
        ({'model': {**config['model'], 'decoder_depth': 0}}, 'damaged config.json'),
        ({'model': {**config['model'], 'dim_head': 8}}, 'does not fit'),
        ({'model': {**config['model'], 'depth': 2}}, 'does not fit'),
        ({'model': None}, 'damaged config.json'),
        # 200 GB, of which nothing may be allocated
        ({'model': {**config['model'], 'dim': 8192, 'depth': 100}}, 'is of a network of'),
        ({'version': 1}, 'version 1, expected'),
        ({'policy': 'oracle'}, "unknown policy 'oracle'"),
    ):
        (folder / 'config.json').write_text(json.dumps({**config, **change}))
        with pytest.raises(CheckpointError, match=message) as error:
            QRoboticTransformer.from_pretrained(folder)
        assert '\n' not in str(error.value)
    (folder / 'config.json').write_text(json.dumps(config))
    (folder / 'model.safetensors').write_bytes(b'\x80\x04K\x01.')  # a pickle
    with pytest.raises(CheckpointError, match='damaged or truncated'):
        QRoboticTransformer.from_pretrained(folder)


def test_it_is_read_while_transformers_loads_a_model_elsewhere(model, tmp_path, monkeypatch):
    linspace = torch.linspace

    def as_transformers_has_it_meanwhile(*arguments, **options):
        return linspace(*arguments, **{'device': 'cpu', **options})

    model.save_pretrained(tmp_path / 'model')
    monkeypatch.setattr(torch, 'linspace', as_transformers_has_it_meanwhile)
    assert same(model, QRoboticTransformer.from_pretrained(tmp_path / 'model'))
