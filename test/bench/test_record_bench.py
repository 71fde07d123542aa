# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The recorder's bench runs and says what it counted."""

import json
import subprocess
import sys
from pathlib import Path

BENCH = Path(__file__).parents[2] / 'bench/record.py'


def test_counts_agree_with_the_verdict(tmp_path):
    out = tmp_path / 'record.json'
    words = ['--seconds', '2', '--compression', 'none', '--folder', tmp_path, '--out', out]
    done = subprocess.run(
        [sys.executable, BENCH, *words], capture_output=True, text=True, check=False
    )
    assert out.exists(), done.stderr
    (result,) = json.loads(out.read_text())['results']
    published, recorded = result['published'], result['recorded']
    assert set(published) == {'front/image_raw', 'wrist/image_raw', 'joint_states'}
    assert published['joint_states'] > 4 * published['front/image_raw'] > 0
    assert result['lost'] == {topic: published[topic] - recorded[topic] for topic in published}
    assert done.returncode == int(any(result['lost'].values())), done.stdout
    assert all(result[name] > 0 for name in ('cpu', 'mib_per_s', 'ceiling_mib_per_s'))
    assert list(tmp_path.iterdir()) == [out]
