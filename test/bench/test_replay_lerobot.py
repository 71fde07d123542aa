# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
import importlib
import json
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[2] / 'bench'


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module('replay_lerobot')


def test_without_the_package_there_is_a_reason_and_no_number(bench, tmp_path, capsys):
    assert bench.measure(tmp_path, 8, 4, venv=tmp_path / 'venv') is None
    assert 'make lerobot-check' in capsys.readouterr().err


def test_what_fails_there_is_said_in_one_line(bench, tmp_path, capsys):
    """A virtual environment whose Python stops stands for one that was damaged."""
    python = tmp_path / 'venv/bin/python'
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\necho Traceback >&2\necho broken torch >&2\nexit 3\n')
    python.chmod(0o755)
    (tmp_path / 'venv/installed.txt').write_text(bench.lerobot_venv.wanted())
    (tmp_path / 'dataset/meta').mkdir(parents=True)
    (tmp_path / 'dataset/meta/info.json').write_text(json.dumps({}))
    assert bench.measure(tmp_path / 'dataset', 8, 4, venv=tmp_path / 'venv') is None
    assert capsys.readouterr().err == 'lerobot failed: broken torch\n'
