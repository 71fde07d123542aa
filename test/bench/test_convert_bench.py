# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The conversion bench runs, and says what it measured and what it missed."""

import json

import pytest

from bench import convert as bench


@pytest.mark.timeout(300)
def test_tiny_run(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(bench, 'TARGETS', {'jpeg': 0.0, 'scaling': 1e9, 'memory': 2.0})
    out = tmp_path / 'convert.json'
    words = ['--frames', '40', '--repeats', '1', '--gigabytes', '0.01']
    assert bench.main([*words, '--out', str(out), '--folder', str(tmp_path)]) == 1
    rows = {row['name']: row for row in json.loads(out.read_text())['rows']}
    assert rows['jpeg: conversion / ceiling']['met']
    assert rows['jpeg: conversion / ceiling']['details']['minutes_per_gb'] > 0
    missed = [name for name, row in rows.items() if not row['met']]
    assert missed == ['scaling from 1 to 2 workers']
    assert 'missed: scaling from 1 to 2 workers' in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ['convert.json']


def test_no_room(tmp_path, capsys):
    assert bench.main(['--gigabytes', '1e9', '--folder', str(tmp_path)]) == 2
    assert 'needs' in capsys.readouterr().err
