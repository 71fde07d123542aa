# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
import pytest

from qt_ros.teleoperation.words import answer_line, recorder_status, status_line

RECORDING = {'state': 'recording', 'bag': '/b/episode_000003', 'elapsed': 12.3, 'dropped': 2}


def test_status_line():
    assert status_line('teleop', '', 'tip along base, speed 80%', RECORDING) == (
        'you drive | tip along base, speed 80% | RECORDING episode_000003 12 s, 2 DROPPED'
    )
    assert status_line('', 'no joint states', 'joints', {}) == (
        'NO GUARD | no joint states | joints | no recorder'
    )
    assert status_line('estop', '', 'x', {'state': 'ready'}).startswith('E-STOP (E releases it)')


@pytest.mark.parametrize(
    ('answer', 'line'),
    [
        (('guard/policy', True, '{"source": "policy"}'), 'guard: the policy drives'),
        (('guard/estop', True, '{"source": "estop"}'), 'guard: E-STOP'),
        (('guard/policy', False, 'stopped'), 'policy refused: stopped'),
        (('recorder/start', True, '{"bag": "a", "instruction": "x"}'), 'a: recording "x"'),
        (('recorder/success', True, '{"bag": "a", "outcome": "success"}'), 'a: success'),
        (('recorder/discard', True, ''), 'discard: done'),
        (('recorder/start', False, ''), 'start refused: no reason given'),
        (('guard/hold', True, 'ok'), 'guard: holding'),
    ],
)
def test_answers(answer, line):
    assert answer_line(*answer) == line


def test_a_status_that_is_none_is_empty():
    assert recorder_status('nonsense') == recorder_status('[1]') == {}
