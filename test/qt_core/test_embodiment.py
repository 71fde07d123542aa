# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from qt_core.action_space import ActionSpace
from qt_core.embodiment import Embodiment
from qt_core.spec import Spec

CORNERS = np.array([[0, 0], [4, 4], [1, 3]])


@pytest.fixture
def discrete():
    return Embodiment(Spec(cameras=(), state_dim=3, num_actions=2, action_bins=5))


def test_a_robot_counts_in_its_contracts_units(contract):
    body, space = Embodiment.of(contract), ActionSpace(contract)
    assert body.spec == Spec.of(contract)
    bins = np.random.default_rng(0).integers(0, space.bins, (9, space.dimensions))
    assert np.array_equal(body.decode(bins), space.decode(bins))
    assert np.array_equal(body.encode(body.decode(bins)), bins)
    ends = body.normalise(np.array([contract.state.low, contract.state.high]))
    assert np.allclose(ends, [[-1] * len(ends[0]), [1] * len(ends[0])])


def test_without_a_contract_actions_are_bins_and_states_stay(discrete):
    assert np.array_equal(discrete.decode(CORNERS), CORNERS.astype(float))
    assert np.array_equal(discrete.encode(CORNERS + 0.4), CORNERS)
    assert np.array_equal(discrete.encode(np.array([-7.0, 99.0])), [0, 4])
    state = np.array([-3.0, 0.5, 700.0])
    assert np.array_equal(discrete.normalise(state), state.astype(np.float32))


def test_the_range_of_actions_is_minus_one_to_one(discrete, contract):
    assert np.allclose(discrete.to_unit(CORNERS), [[-1, -1], [1, 1], [-0.5, 0.5]])
    for body in (discrete, Embodiment.of(contract)):
        low, high = body.decode(np.array([[0] * body.spec.num_actions]))[0], None
        high = body.decode(np.full(body.spec.num_actions, body.spec.action_bins - 1))
        assert np.allclose(body.to_unit(np.stack([low, high])), [[-1.0], [1.0]])
        assert np.allclose(body.from_unit(body.to_unit((low + high) / 3)), (low + high) / 3)
        assert np.allclose(body.from_unit(np.full(len(low), 7.0)), high)  # never beyond


@pytest.mark.parametrize('bins', [[0, 5], [-1, 0]])
def test_a_bin_that_is_none_is_refused(discrete, bins):
    with pytest.raises(ValueError, match=r'not all in 0\.\.4'):
        discrete.decode(np.array(bins))


def test_an_action_that_is_no_number_is_refused(discrete):
    with pytest.raises(ValueError, match='not finite'):
        discrete.encode(np.array([np.nan, 0]))
