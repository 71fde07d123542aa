# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A checkpoint's contract, without loading torch."""

import json
import subprocess
import sys

import pytest

from qt_core import checkpoint_contract
from qt_core.checkpoint_contract import FORMAT, load_contract_of_checkpoint
from qt_core.contract import ContractError
from qt_core.models import pretrained
from qt_core.share import share_path

SHIPPED = share_path('config/policies/reach')


def test_the_shipped_checkpoints_is_the_tabletops(contract):
    assert load_contract_of_checkpoint(SHIPPED) == contract
    assert pretrained.FORMAT == FORMAT


def test_torch_is_not_loaded():
    program = (
        'import sys\n'
        'from qt_core.checkpoint_contract import load_contract_of_checkpoint\n'
        'load_contract_of_checkpoint(sys.argv[1])\n'
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, '-c', program, str(SHIPPED)], check=True)


@pytest.mark.parametrize(
    ('content', 'says'),
    [
        (None, r'not a checkpoint \(config.json: .*No such file'),
        ('{"format"', r'not a checkpoint \(config.json: '),
        (b'\xff\xfe\x00', r'not a checkpoint \(config.json: '),
        ('[' * 200_000, r'not a checkpoint \(config.json: '),
        ('[]', 'config.json is of another format'),
        ({'format': 'onnx', 'contract': 'name: x'}, 'config.json is of another format'),
        ({'format': FORMAT}, 'holds no contract: it was trained for no robot'),
        ({'format': FORMAT, 'contract': 3}, 'config.json: contract is 3, expected text'),
        ({'format': FORMAT, 'contract': 'name: 3'}, 'config.json: contract: name is 3'),
    ],
)
def test_what_is_no_checkpoint_of_a_robot(tmp_path, content, says):
    if isinstance(content, dict):
        content = json.dumps(content)
    if content is not None:
        data = content if isinstance(content, bytes) else content.encode()
        (tmp_path / 'config.json').write_bytes(data)
    with pytest.raises(ContractError, match=says) as caught:
        load_contract_of_checkpoint(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert '\n' not in str(caught.value)


def test_a_file_that_is_too_large_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint_contract, 'MAX_CONFIG', 10 << 20)
    with (tmp_path / 'config.json').open('wb') as file:
        file.truncate((10 << 20) + 1)
    with pytest.raises(ContractError, match='over 10 MiB'):
        load_contract_of_checkpoint(tmp_path)
