# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from qt_core.replay import ReplayFolder
from qt_core.replay.verification import verify

ROOT = Path(__file__).resolve().parents[2]
PATH = ROOT / 'bench/replay.py'


@pytest.fixture(scope='module')
def bench():
    sys.path.insert(0, str(PATH.parent))  # where the bench finds its other half
    spec = importlib.util.spec_from_file_location('bench_replay', PATH)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]
    sys.path.remove(str(PATH.parent))


@pytest.fixture(scope='module')
def folder(bench, tmp_path_factory):
    return bench.write_folder(tmp_path_factory.mktemp('bench') / 'raw', 60)


def test_the_folder_has_the_size_that_was_asked_for(bench, folder, tmp_path):
    assert bench.size_of(folder) == pytest.approx(60 * 2**20, rel=0.1)
    assert verify(folder) == []
    coded = bench.write_folder(tmp_path / 'jpeg', 60, 'jpeg')
    raw, jpeg = (ReplayFolder(path).episode(3).images['front'] for path in (folder, coded))
    assert 3 * bench.size_of(coded) < bench.size_of(folder)
    assert np.abs(raw[50].astype(int) - jpeg[50]).mean() < 4  # the same film


@pytest.mark.parametrize('cache', [False, True])
def test_a_row_is_measured(bench, folder, cache):
    row = bench.measure(folder, 400, cache)
    low, high = row['ratios']
    assert 0 < low <= row['ratio'] <= high
    assert row['refused'] is False  # 60 MiB fit into 400
    assert not bench.met(row | {'target': 0.0})


def test_the_limit_refuses_a_folder_that_is_larger(bench, folder):
    """Held twice: less than the folder is left when the process has what it needs itself."""
    command = [sys.executable, '-c', LIMITED, str(PATH.parent), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert json.loads(done.stdout) is True


LIMITED = """
import json, resource, sys
from pathlib import Path
sys.path[:0] = [sys.argv[1], '.']
import replay
opened = replay.ReplayFolder(Path(sys.argv[2]))
lines = Path('/proc/self/status').read_text().splitlines()
used = 1024 * int(next(line for line in lines if line.startswith('VmData')).split()[1])
resource.setrlimit(resource.RLIMIT_DATA, (used + 30 * 2**20,) * 2)
print(json.dumps(replay._refused(opened)))
"""


def test_a_missed_target_is_named(bench, monkeypatch, tmp_path, capsys):
    row = {'samples_per_second': 1.0, 'copies_per_second': 2.0, 'ratios': [0.4, 0.6], 'bytes': 1}

    def rows(ratio, refused):
        return [{'name': 'raw', 'target': bench.TARGET, 'ratio': ratio, 'refused': refused, **row}]

    out = tmp_path / 'r.json'
    for ratio, refused, status in ((0.5, True, 0), (0.49, True, 1), (0.9, False, 1)):
        found = rows(ratio, refused)
        monkeypatch.setattr(bench, 'run', lambda *_, found=found: found)
        assert bench.main(['--out', str(out), '--folder', str(tmp_path)]) == status
        assert ('missed: raw' in capsys.readouterr().out) == bool(status)
    assert json.loads(out.read_text())['rows'][0]['ratio'] == 0.9
