# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from qt_core.observation import ObservationError, form_observation, normalise_state, resize


@pytest.fixture
def positions(contract):
    return {joint: 0.1 * index for index, joint in enumerate(contract.state.joints)}


def image(height=64, width=64):
    return np.zeros((height, width, 3), np.uint8)


def test_joints_are_ordered_by_the_contract(contract, positions):
    shuffled = dict(reversed([*positions.items(), ('other', 9.0)]))
    state = form_observation(contract, {'front': image()}, shuffled).state
    assert state == pytest.approx(0.1 * np.arange(7), abs=1e-6)
    assert state.dtype == np.float32


def test_shrinking_averages_areas():
    picture = image(4, 4)
    picture[:2, :2] = [[[0] * 3, [100] * 3], [[200] * 3, [100] * 3]]
    assert resize(picture, 2, 2)[0, 0].tolist() == [100, 100, 100]
    assert resize(picture, 2, 2)[1, 1].tolist() == [0, 0, 0]


def test_growing_and_keeping():
    assert resize(image(3, 5), 8, 8).shape == (8, 8, 3)
    picture = np.random.default_rng(0).integers(0, 256, (6, 7, 3), np.uint8)
    assert np.array_equal(resize(picture, 6, 7), picture)


@pytest.mark.parametrize(
    'bad', [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)]
)
def test_what_is_no_image_is_refused(bad):
    with pytest.raises(ObservationError, match=r'expected \(H, W, 3\) uint8'):
        resize(bad, 2, 2)


def test_what_is_missing_is_named(contract, positions):
    with pytest.raises(ObservationError, match="no image of camera 'front'"):
        form_observation(contract, {}, positions)
    del positions['wrist_2']
    with pytest.raises(ObservationError, match="joint state lacks 'wrist_2'; it has shoulder_pan"):
        form_observation(contract, {'front': image()}, positions)


def test_a_joint_that_is_not_finite_is_named(contract, positions):
    positions['elbow'] = float('nan')
    with pytest.raises(ObservationError, match="position of joint 'elbow' is not finite"):
        form_observation(contract, {'front': image()}, positions)


def test_normalised_limits_are_minus_one_and_one(contract):
    low, high = np.array(contract.state.low), np.array(contract.state.high)
    assert normalise_state(contract.state, low) == pytest.approx(-np.ones(7))
    assert normalise_state(contract.state, high) == pytest.approx(np.ones(7))
    assert normalise_state(contract.state, (low + high) / 2) == pytest.approx(
        np.zeros(7), abs=1e-6
    )
