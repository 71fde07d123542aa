# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
import dataclasses

import numpy as np
import pytest

from qt_core.environments.demonstrator import Demonstrator, fingertip, joint_pose
from qt_core.environments.tabletop import (
    COLOURS,
    SPACING,
    Tabletop,
    TabletopEnvironment,
    name_another_block,
)
from qt_core.observation import normalise_state


@pytest.fixture(scope='module')
def environment(contract):
    environment = TabletopEnvironment(contract)
    yield environment
    environment.simulation.close()


def demonstrate(environment, seed, noise=0.0, sentence=None):
    expert = Demonstrator(environment.contract, noise=noise)
    observation, instruction = environment.reset(seed)
    expert.reset(sentence or instruction, environment.simulation.blocks, seed)
    while True:
        step = environment.step_action(expert.act(observation.state))
        observation = step.observation
        if step.terminal or step.timeout:
            return step


def test_a_seed_determines_the_episode(environment):
    first, sentence = environment.reset(5)
    blocks = environment.scene.blocks
    other, _ = environment.reset(6)
    again, same = environment.reset(5)
    assert sentence == same
    assert environment.scene.blocks == blocks
    assert np.array_equal(first.images['front'], again.images['front'])
    assert not np.array_equal(first.images['front'], other.images['front'])


def test_blocks_keep_their_distance_and_every_colour_is_asked_for(environment):
    targets = set()
    for seed in range(40):
        environment.reset(seed)
        centres = np.array(list(environment.scene.blocks.values()))
        gaps = np.linalg.norm(centres[:, None] - centres[None], axis=-1)
        assert gaps[np.triu_indices(3, 1)].min() > SPACING - 0.01
        assert environment.scene.target in environment.scene.instruction.split()
        targets.add(environment.scene.target)
    assert targets == set(COLOURS)


def test_every_block_spans_eight_pixels_of_the_policys_image(environment):
    for seed in range(10):
        image = environment.reset(seed)[0].images['front'].astype(int)
        for index in range(3):
            others = image[..., [i for i in range(3) if i != index]].max(-1)
            rows, columns = np.nonzero(image[..., index] > 1.6 * others + 20)
            assert np.ptp(rows) + 1 >= 8
            assert np.ptp(columns) + 1 >= 8


def test_the_expert_touches_the_named_block(environment):
    assert all(demonstrate(environment, seed).reward == 1 for seed in range(25))


def test_touching_another_block_ends_the_episode_in_failure(environment):
    for seed in range(5):
        _, sentence = environment.reset(seed)
        wrong = name_another_block(sentence, 'touch the {other} block')
        step = demonstrate(environment, seed, sentence=wrong)
        assert step.terminal
        assert step.reward == 0
        assert environment.simulation.outcome == 'failure'


def test_noise_makes_some_demonstrations_fail(environment):
    rewards = [demonstrate(environment, seed, noise=0.6).reward for seed in range(30)]
    assert 0.4 < np.mean(rewards) < 0.97


def test_standing_still_is_a_timeout_not_an_end(environment):
    environment.reset(0)
    for _ in range(environment.max_steps):
        step = environment.step(np.full(7, 10))
    assert step.timeout
    assert not step.terminal
    assert step.reward == 0


def test_an_action_moves_the_joints_by_its_value(environment):
    before, _ = environment.reset(1)
    after = environment.step_action(np.array([0.05, 0, 0, 0.05, 0, 0, 0.01])).observation
    moved = after.state - before.state
    assert moved == pytest.approx([0.05, 0, 0, 0.05, 0, 0, 0.01], abs=0.012)


def test_the_other_joints_do_not_tell_how_fast_one_moves(environment):
    """A policy would read it, and go on as before where it should look."""
    states = []
    for speed in (-0.1, 0.0, 0.1):
        environment.reset(5)
        for _ in range(4):
            state = environment.step_action(np.array([speed, 0, 0, 0, 0, 0, 0])).observation.state
        states.append(normalise_state(environment.contract.state, state)[1:])
    assert np.ptp(states, axis=0).max() < 0.005


def test_forward_kinematics_agree_with_the_simulated_arm(contract):
    simulation = Tabletop(contract)
    simulation.reset(0)
    state = np.array(list(simulation.positions.values()))
    finger = simulation.data.body('left_finger_link')
    tip = finger.xpos + finger.xmat.reshape(3, 3) @ [0, 0, 0.04]
    assert fingertip(state) == pytest.approx(tip, abs=0.01)


def test_inverse_kinematics_invert():
    for point in ([0.3, 0.1, 0.1], [0.42, -0.15, 0.05], [0.27, 0.0, 0.2]):
        assert fingertip(joint_pose(np.array(point))) == pytest.approx(point, abs=1e-9)


def test_a_contract_with_an_unknown_joint_is_refused(contract):
    joints = (*contract.state.joints[:-1], 'tail')
    state = dataclasses.replace(contract.state, joints=joints)
    action = dataclasses.replace(contract.action, joints=joints)
    with pytest.raises(ValueError, match="the arm has no joint 'tail', only shoulder_pan"):
        Tabletop(dataclasses.replace(contract, state=state, action=action))


def test_naming_another_block():
    assert (
        name_another_block('touch the red block', 'tap the {other} cube') == 'tap the green cube'
    )
    assert name_another_block('touch the blue block', 'stop') == 'stop'
    with pytest.raises(ValueError, match='names none of red, green, blue'):
        name_another_block('touch the pink block', 'tap the {other} cube')
