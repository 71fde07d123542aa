# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What `qt-ros demo` does to its output folder; `make demo` shows the rest."""

import pytest

from qt_core.configuration import ConfigurationError
from qt_ros.cli.demo import _fresh
from qt_ros.cli.main import main


def test_an_earlier_demo_is_replaced(tmp_path):
    out = _fresh(tmp_path / 'demo')
    (out / 'bags').mkdir()
    (out / 'summary.json').write_text('{}')
    assert [p.name for p in _fresh(out).iterdir()] == ['.qt_ros_demo']


def test_anything_else_is_left_alone(tmp_path):
    (tmp_path / 'bags').mkdir()
    (tmp_path / 'bags/episode.mcap').write_text('a month of work')
    with pytest.raises(ConfigurationError, match='not empty and not a demo'):
        _fresh(tmp_path)
    assert (tmp_path / 'bags/episode.mcap').read_text() == 'a month of work'


@pytest.mark.parametrize(
    ('words', 'says'),
    [
        (('--episodes', '0'), '--episodes is 0, expected at least 1'),
        (('--checkpoint', 'none'), 'none: not a checkpoint'),
    ],
)
def test_a_mistake_leaves_the_earlier_demo(tmp_path, capsys, words, says):
    out = _fresh(tmp_path / 'demo')
    (out / 'summary.json').write_text('{}')
    assert main(['demo', '--out', str(out), *words]) == 1
    assert says in capsys.readouterr().err
    assert (out / 'summary.json').exists()
