# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Each example runs, and what it prints is what it claims."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / 'examples'


def run(name: str, *options: str) -> str:
    """Run an example; one thread, or runners of few cores would wait for each other."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), '--quick', *options],
        capture_output=True,
        text=True,
        cwd=EXAMPLES.parent,
        env={**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(EXAMPLES.parent)},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def bins_of(line: str) -> list[int]:
    return [int(number) for number in re.search(r'\[(.*)\]', line)[1].split(',')]


def test_q_learning_over_tokens_beats_fine_tuning_on_the_same_answers():
    printed = run('language_model.py')
    rows = re.findall(r'^exact +(\S.*?)  +([\d.]+)% +([\d.]+)% +([\d.]+)%', printed, re.M)
    right = {method: float(share) for method, share, _, _ in rows}
    in_reverse = {method: float(share) for method, _, _, share in rows}
    assert right['Q-learning'] > right['fine-tuning'] + 25
    assert in_reverse['fine-tuning'] > 50 > 10 > in_reverse['Q-learning']
    assert right['filtered fine-tuning'] > 75  # the baseline is a strong one
    gain = right['Q-learning'] - right['fine-tuning']
    assert abs(float(re.search(r'([+-]\d+) points on fine-tuning', printed)[1]) - gain) < 1


def test_the_public_readme_example_collects_trains_and_acts(tmp_path):
    printed = run('public_api.py', '--out', str(tmp_path / 'out'))
    assert (tmp_path / 'out/replay_memories_data/meta.json').is_file()
    assert (tmp_path / 'out/checkpoints/last/model.safetensors').is_file()
    assert re.search(r'[1-9]\d* steps of 3 episodes', printed)
    chosen = [bins_of(line) for line in printed.splitlines()[-2:]]
    assert [len(bins) for bins in chosen] == [8, 8]
    assert all(0 <= number < 16 for bins in chosen for number in bins)


def test_streaming_gives_what_a_full_pass_gives_and_honours_the_prefix():
    lines = dict(line.split(maxsplit=1) for line in run('streaming.py').splitlines())
    assert bins_of(lines['session']) == bins_of(lines['full'])
    assert float(lines['full'].rsplit(maxsplit=1)[1]) < 1e-5
    assert bins_of(lines['greedy']) == bins_of(lines['full'])
    assert bins_of(lines['prefix'])[:2] == [7, 200]
    assert len(bins_of(lines['beam'])) == len(bins_of(lines['guided'])) == 8


@pytest.mark.parametrize('name', sorted(path.name for path in EXAMPLES.glob('*.py')))
def test_every_example_is_listed_with_its_command(name):
    assert f'examples/{name}`' in (EXAMPLES / 'README.md').read_text('utf-8')
