# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
import sys

import numpy as np
import pytest

from qt_core.replay import ReplayFolder
from qt_ros.cli.main import main


def run(*words):
    return main([str(word) for word in words])


def test_a_folder_goes_to_lerobot_and_comes_back(replay_path, tmp_path, capsys):
    dataset, back = tmp_path / 'dataset', tmp_path / 'back'
    assert run('export', 'lerobot', replay_path, '--out', dataset, '--crf', 10) == 0
    assert f'{dataset}: 8 episodes, 68 frames' in capsys.readouterr().out
    assert run('import', 'lerobot', dataset, '--out', back, '--image-format', 'jpeg') == 0
    assert f'{back}: 8 episodes, 60 steps' in capsys.readouterr().out
    a, b = ReplayFolder(replay_path), ReplayFolder(back)
    assert b.image_format == 'jpeg'
    assert b.embeddings.shape == (2, 384)
    assert np.array_equal(a.episode(3).state, b.episode(3).state)


def test_what_is_not_imported_is_said_and_fails(replay_path, tmp_path, capsys):
    dataset = tmp_path / 'dataset'
    assert run('export', 'lerobot', replay_path, '--out', dataset) == 0
    (dataset / 'meta/qt_ros.json').unlink()
    capsys.readouterr()
    assert run('import', 'lerobot', dataset, '--out', tmp_path / 'back') == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith('qt-ros: ')
    assert 'give a contract' in line
    with pytest.raises(SystemExit):
        run('import', 'lerobot', dataset, '--out', tmp_path / 'back', '--map', 'front')
    assert "'front' is not NAME=FEATURE" in capsys.readouterr().err


def test_the_five_files_of_q_transformer(replay_path, tmp_path, capsys):
    out = tmp_path / 'flat'
    assert run('export', 'q-transformer', replay_path, '--out', out, '--frames', 2) == 0
    assert 'states (8, 11, 3, 2, 32, 32)' in capsys.readouterr().out
    assert len(list(out.iterdir())) == 5
    assert run('export', 'q-transformer', replay_path, '--out', out) == 1
    assert 'is not empty' in capsys.readouterr().err


def test_a_missing_package_is_named_with_its_extra(replay_path, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, 'av', None)
    for module in [name for name in sys.modules if name.startswith('qt_core.exchange.')]:
        monkeypatch.delitem(sys.modules, module)
    assert run('export', 'lerobot', replay_path, '--out', tmp_path / 'dataset') == 1
    assert "pip install 'qt_ros[lerobot]'" in capsys.readouterr().err
