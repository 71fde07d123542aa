# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
import json

import pytest

from qt_ros.cli.main import main


@pytest.fixture
def evaluated(tmp_path):
    """Run `qt-ros evaluate` and give its JSON report."""

    def run(*words):
        out = tmp_path / 'report.json'
        assert main(['evaluate', *words, '--out', str(out)]) == 0
        return json.loads(out.read_text())

    return run


def test_the_demonstrator_succeeds_and_the_report_says_so(evaluated, capsys):
    report = evaluated('demonstrator', '--episodes', '6', '--sentences', 'train')
    assert report['success_rate'] == 1.0
    assert report['success_interval'] == pytest.approx([0.6097, 1.0], abs=1e-3)
    assert [e['seed'] for e in report['episodes']] == list(range(1_000_000, 1_000_006))
    assert (report['through'], report['sentences']) == ('direct', 'train')
    assert 'success 1.00 [0.61, 1.00] over 6 episodes' in capsys.readouterr().out


def test_the_random_policy_does_not(evaluated):
    assert evaluated('random', '--episodes', '6')['success_rate'] < 0.5


def test_another_sentence_is_given_but_success_is_judged_by_the_tasks_own(evaluated):
    """Whoever listens fails then: the demonstrator does as it is told."""
    report = evaluated(
        'demonstrator', '--episodes', '6', '--instruction-override', 'touch the {other} block'
    )
    assert report['success_rate'] == 0.0
    assert {e['outcome'] for e in report['episodes']} == {'failure'}
    assert report['instruction_override'] == 'touch the {other} block'


def test_the_video_shows_the_episodes(evaluated, tmp_path):
    import cv2

    video = tmp_path / 'episodes.mp4'
    report = evaluated('demonstrator', '--episodes', '2', '--video', str(video))
    reader = cv2.VideoCapture(str(video))
    frames = int(reader.get(cv2.CAP_PROP_FRAME_COUNT))
    reader.release()
    assert frames >= sum(e['steps'] + 1 for e in report['episodes'])
