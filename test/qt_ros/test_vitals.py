# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace

import pytest

from qt_ros.streams import STATE
from qt_ros.vitals import Vitals

MS = 1_000_000


@pytest.fixture
def vitals(contract):
    camera = replace(contract.cameras[0], rate=30.0)
    return Vitals(replace(contract, cameras=(camera,)))


def run(vitals, *, camera=33, steps=100, late=0, milliseconds=5000):
    """Let streams and actions come for a while."""
    for now in range(0, milliseconds, camera):
        vitals.hear('front', now * MS)
    for now in range(0, milliseconds, 50):
        vitals.hear(STATE, now * MS)
    for index, now in enumerate(range(0, milliseconds, steps)):
        if late and index % late == 0:
            vitals.overrun(now * MS)
        else:
            vitals.act(now * MS, 0.02)
            vitals.infer(0.01)
    return milliseconds * MS


def test_nothing_to_complain_of(vitals):
    now = run(vitals)
    assert vitals.complaint(now, 10.0) == ''
    values = vitals.values(now, {'front': 0.01, STATE: None})
    assert values['rate of front (Hz)'] == '30.5'  # one each 33 ms, in whole messages
    assert values['age of front (s)'] == '0.010'
    assert values[f'age of {STATE} (s)'] == 'never'
    assert values['inference p50 (ms)'] == values['inference p95 (ms)'] == '10.00'
    assert values['observation to command p50 (ms)'] == '20.00'
    assert values['actions (Hz)'] == '10.0'
    assert values['overruns'] == '0'


def test_a_camera_below_the_rate_in_the_contract_is_named(vitals):
    now = run(vitals, camera=66)
    assert vitals.complaint(now, 10.0) == "'front' comes at 15.0 Hz, expected 30"


def test_a_stream_that_has_only_begun_is_given_time(vitals):
    vitals.hear('front', 0)
    assert vitals.complaint(1900 * MS, 10.0) == ''
    assert vitals.complaint(2100 * MS, 10.0) != ''


@pytest.mark.parametrize(('late', 'slow'), [(0, False), (12, False), (2, True)])
def test_steps_that_come_late_now_and_then_are_forgiven(vitals, late, slow):
    now = run(vitals, late=late)
    assert vitals.complaint(now, 10.0).startswith('inference is slow: ') == slow
