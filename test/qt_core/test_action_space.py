# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qt_core.action_space import MU, ActionSpace

every_companding = pytest.mark.parametrize('companding', ['uniform', 'mu_law'])


def space_of(contract, **changes):
    action = dataclasses.replace(contract.action, **changes)
    return ActionSpace(dataclasses.replace(contract, action=action))


@every_companding
@pytest.mark.parametrize('bins', [2, 41, 256])
def test_every_bin_comes_back(contract, companding, bins):
    space = space_of(contract, companding=companding, bins=bins)
    every = np.repeat(np.arange(bins)[:, None], space.dimensions, axis=1)
    assert np.array_equal(space.encode(space.decode(every)), every)


@every_companding
def test_edges_and_middle(contract, companding):
    space = space_of(contract, companding=companding)
    low, middle, high = (space.decode(np.full(7, b)) for b in (0, 10, 20))
    assert low == pytest.approx(np.array(contract.action.low))
    assert high == pytest.approx(np.array(contract.action.high))
    assert middle == pytest.approx(np.zeros(7), abs=1e-12)
    assert np.array_equal(space.encode(np.full(7, 1e9)), np.full(7, 20))
    assert np.array_equal(space.encode(np.full(7, -1e9)), np.zeros(7))


def test_mu_law_is_the_formula_and_finer_around_zero(contract):
    space = space_of(contract, companding='mu_law')
    x = 0.03
    scaled = x / 0.1
    companded = np.log1p(MU * scaled) / np.log1p(MU)
    assert space.encode(np.full(7, x))[0] == round((companded + 1) / 2 * 20)
    values = space.decode(np.repeat(np.arange(21)[:, None], 7, axis=1))[:, 0]
    gaps = np.diff(values)
    assert gaps[10] < gaps[0] / 5


@given(value=st.floats(-0.1, 0.1), companding=st.sampled_from(['uniform', 'mu_law']))
def test_encoding_takes_the_nearest_bin(contract, value, companding):
    space = space_of(contract, companding=companding)
    every = space.decode(np.repeat(np.arange(21)[:, None], 7, axis=1))[:, 0]

    def compand(x):
        x = np.asarray(x) / 0.1
        return np.sign(x) * np.log1p(MU * np.abs(x)) if companding == 'mu_law' else x

    distances = np.abs(compand(every) - compand(value))
    assert distances[space.encode(np.full(7, value))[0]] <= distances.min() + 1e-9


def test_bad_values_are_refused(contract):
    space = ActionSpace(contract)
    with pytest.raises(ValueError, match='not finite'):
        space.encode(np.full(7, np.nan))
    with pytest.raises(ValueError, match=r'not all in 0\.\.20'):
        space.decode(np.full(7, 21))


@pytest.mark.parametrize(
    ('mode', 'expected'), [('delta', 0.55), ('absolute', 0.05), ('velocity', 0.505)]
)
def test_targets_by_mode_and_back(contract, mode, expected):
    space = space_of(contract, mode=mode)
    state, action = np.full(7, 0.5), np.full(7, 0.05)
    targets = space.to_targets(action, state)
    assert targets == pytest.approx(np.full(7, expected))
    assert space.from_targets(targets, state) == pytest.approx(action)


def test_commanded_joints_are_found_in_the_state_by_name(contract):
    joints = ('elbow', 'shoulder_pan')
    low, high = (-0.1, -0.1), (0.1, 0.1)
    action = dataclasses.replace(contract.action, joints=joints, low=low, high=high)
    safety = dataclasses.replace(
        contract.safety, position_low=low, position_high=high, max_step=high
    )
    space = ActionSpace(dataclasses.replace(contract, action=action, safety=safety))
    assert space.to_targets(np.zeros(2), np.arange(7.0)) == pytest.approx([2.0, 0.0])


def test_terminate_is_the_last_dimension(contract):
    space = space_of(contract, terminate=True)
    assert space.dimensions == 8
    assert space.encode(np.array([*[0.0] * 7, 1.0]))[-1] == 20
    assert len(space.to_targets(space.decode(np.full(8, 20)), np.zeros(7))) == 7
