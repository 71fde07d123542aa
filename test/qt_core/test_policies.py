# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
import dataclasses

import numpy as np
import pytest
import torch

from qt_core.action_space import ActionSpace
from qt_core.configuration import ConfigurationError
from qt_core.learning.checkpoint import Checkpoint, CheckpointError, save_checkpoint
from qt_core.models import QRoboticTransformer
from qt_core.observation import Observation, normalise_state
from qt_core.policies import Choice, Decision, RandomPolicy, load_policy
from qt_core.policies.q_transformer import QTransformerPolicy
from qt_core.spec import Spec
from test.conftest import TINY_MODEL

SENTENCES = ('touch the red block', 'touch the blue block')
MEMORY = {'frames': 3, 'memory': 2}
GUIDED = {'cond_drop_prob': 0.5}


@pytest.fixture
def model(tiny_contract):
    torch.manual_seed(0)
    model = QRoboticTransformer(TINY_MODEL.fitted(Spec.of(tiny_contract)))
    with torch.no_grad():
        model.critics[0].head_weight.mul_(30)  # choices that are no ties
    return model.eval()


@pytest.fixture
def checkpoint(model, tiny_contract, embed, tmp_path):
    path = tmp_path / 'checkpoint'
    save_checkpoint(
        path,
        Checkpoint(
            model=model,
            contract=tiny_contract,
            sentences=SENTENCES,
            embeddings=embed(SENTENCES),
            sentence_model='a model that does not exist',
            training={},
        ),
    )
    return path


@pytest.fixture
def make_policy(tiny_contract, embed):
    """Make a policy of the tiny network with changes; always the same one."""

    def make(**changes):
        config = dataclasses.replace(TINY_MODEL, **changes).fitted(Spec.of(tiny_contract))
        torch.manual_seed(0)
        model = QRoboticTransformer(config).eval()
        with torch.no_grad():
            model.critics[0].head_weight.mul_(30)
            if config.memory:
                model.critics[0].memory_embedding.mul_(30)
        return QTransformerPolicy(
            Checkpoint(
                model=model,
                contract=tiny_contract,
                sentences=SENTENCES,
                embeddings=embed(SENTENCES),
                sentence_model='a model that does not exist',
                training={},
            )
        )

    return make


@pytest.fixture
def observations(tiny_contract):
    random = np.random.default_rng(0)
    joints = len(tiny_contract.state.joints)
    return [
        Observation(
            {'front': random.integers(0, 256, (32, 32, 3), np.uint8)},
            random.uniform(-1, 1, joints).astype(np.float32),
        )
        for _ in range(4)
    ]


@torch.no_grad()
def best_bins(model, contract, observations, text):
    """Decide by full passes over the last frames, one dimension after the other."""
    window = observations[-TINY_MODEL.frames :]
    images = {'front': torch.tensor(np.stack([o.images['front'] for o in window]))[None]}
    state = np.stack([normalise_state(contract.state, o.state) for o in window])
    bins = torch.zeros(1, len(window), model.config.num_actions, dtype=torch.long)
    for dimension in range(model.config.num_actions):
        q = model(images, torch.tensor(state)[None], torch.tensor(text), bins)
        bins[0, -1, dimension] = q[0, 0, -1, dimension].argmax()
    return bins[0, -1].numpy()


def test_a_policy_decides_as_its_network_does_over_the_last_frames(
    checkpoint, model, tiny_contract, observations, embed
):
    policy = load_policy(checkpoint, 'cpu')
    policy.reset(SENTENCES[0])
    decided = []
    for count, observation in enumerate(observations, 1):
        decision = policy.act(observation)
        expected = best_bins(model, tiny_contract, observations[:count], embed(SENTENCES[:1]))
        assert np.array_equal(decision.bins, expected)
        assert np.array_equal(decision.action, ActionSpace(tiny_contract).decode(expected))
        assert np.array_equal(decision.values.argmax(axis=-1), expected)
        decided.append(decision.bins)
    policy.reset(SENTENCES[0])  # forgets the frames
    assert np.array_equal(policy.act(observations[0]).bins, decided[0])


def test_a_policy_without_a_sentence_does_not_act(checkpoint, observations):
    with pytest.raises(RuntimeError, match='call reset first'):
        load_policy(checkpoint, 'cpu').act(observations[0])


@pytest.mark.parametrize('device', ['cuda:99', 'abacus'])
def test_a_device_that_is_not_there_is_named(checkpoint, device):
    with pytest.raises(CheckpointError, match=f"device '{device}' cannot be used"):
        load_policy(checkpoint, device)


def test_a_decision_without_a_plan_plans_its_action(tiny_contract):
    action = np.arange(7.0)
    decision = Decision(bins=np.zeros(7, np.int64), action=action)
    assert np.array_equal(decision.plan, action[None])


@pytest.mark.parametrize('changes', [{}, {'frames': 1}, MEMORY, GUIDED])
def test_a_plan_changes_nothing_that_comes_later(make_policy, observations, changes):
    alone, planning = make_policy(**changes), make_policy(**changes)
    for policy in (alone, planning):
        policy.choose(Choice(guidance=2.0 if changes == GUIDED else 1.0))
        policy.reset(SENTENCES[0])
    for observation in observations:
        one, several = alone.act(observation), planning.act(observation, steps=4)
        assert np.array_equal(one.plan, one.action[None])
        assert several.plan.shape == (4, 7)
        assert several.plan.dtype == np.float64
        assert np.array_equal(several.plan[0], several.action)
        assert np.array_equal(several.bins, one.bins)
        assert np.array_equal(several.values, one.values)
        if 'memory' not in changes:
            assert (several.plan == several.action).all()


def test_a_plan_is_what_a_network_with_memory_does_while_the_picture_stays(
    make_policy, observations
):
    policy, standing = make_policy(**MEMORY), make_policy(**MEMORY)
    seen, different = [], 0
    policy.reset(SENTENCES[0])
    for observation in observations:
        seen.append(observation)
        plan = policy.act(observation, steps=5).plan
        standing.reset(SENTENCES[0])
        happened = [standing.act(o).action for o in [*seen, *[observation] * 4]]
        assert np.array_equal(plan, happened[-5:])
        different += int((plan[1:] != plan[0]).any())
    assert different > 0


def test_another_sentence_keeps_the_frames_and_what_they_were_encoded_under(
    make_policy, observations, embed
):
    policy = make_policy()
    model = policy.model
    policy.reset(SENTENCES[0])
    policy.act(observations[0])
    policy.follow(SENTENCES[1])
    decision = policy.act(observations[1])
    with torch.no_grad():
        tokens = [
            model.encode(
                {'front': torch.tensor(o.images['front'])[None, None]},
                torch.tensor(normalise_state(policy.contract.state, o.state))[None, None],
                torch.tensor(embed([sentence])),
            )
            for o, sentence in zip(observations, SENTENCES, strict=False)
        ]
        known = torch.tensor(decision.bins).expand(1, 2, -1)
        values = model.values(model.decode(torch.cat(tokens, 1), known))[0, 0, -1]
    assert np.allclose(decision.values, values, atol=1e-5)
    policy.reset(SENTENCES[1])  # forgets the first frame
    assert not np.allclose(decision.values, policy.act(observations[1]).values, atol=1e-3)


def test_a_sentence_to_follow_is_enough_to_begin(make_policy, observations):
    begun, followed = make_policy(), make_policy()
    begun.reset(SENTENCES[0])
    followed.follow(SENTENCES[0])
    assert np.array_equal(begun.act(observations[0]).bins, followed.act(observations[0]).bins)


@pytest.mark.parametrize(
    ('choice', 'expected'),
    [
        ({'beam': 0}, r'beam is 0, expected 1\.\.1024'),
        ({'beam': 4, 'exploration': 0.1}, 'beam is 4, expected 1 while exploration'),
        ({'exploration': 1.5}, r'exploration is 1\.5, expected 0\.\.1'),
        ({'guidance': -1.0}, r'guidance is -1\.0, expected a number'),
        ({'guidance': float('nan')}, 'guidance is nan, expected a number'),
        ({'guidance': 2.0}, r'guidance is 2\.0, expected 1 for a network'),
    ],
)
def test_a_choice_that_cannot_be_is_refused_and_changes_nothing(
    make_policy, observations, choice, expected
):
    policy, before = make_policy(), make_policy()
    for each in (policy, before):
        each.choose(Choice(beam=3))
        each.reset(SENTENCES[0])
        each.act(observations[0])
    with pytest.raises(ConfigurationError, match=expected):
        policy.choose(Choice(**choice))
    assert np.array_equal(policy.act(observations[1]).values, before.act(observations[1]).values)


def test_what_is_chosen_in_the_middle_counts_from_the_next_step_on(make_policy, observations):
    policy, beam = make_policy(), make_policy()
    beam.choose(Choice(beam=50))
    for each in (policy, beam):
        each.reset(SENTENCES[0])
        each.act(observations[0])
    assert not np.array_equal(policy.act(observations[1]).bins, beam.act(observations[1]).bins)
    policy.choose(Choice(beam=50))
    assert np.array_equal(policy.act(observations[2]).bins, beam.act(observations[2]).bins)
    policy.choose(Choice(exploration=1.0))
    torch.manual_seed(0)
    random = np.stack([policy.act(observations[2]).bins for _ in range(100)])
    assert (random.std(axis=0) > 3).all()  # 6 is expected of 21 bins


def test_guidance_that_begins_or_ends_in_the_middle_begins_anew(make_policy, observations):
    def fresh(guidance):
        policy = make_policy(**GUIDED)
        policy.choose(Choice(guidance=guidance))
        policy.reset(SENTENCES[0])
        return policy.act(observations[1]).values

    policy = make_policy(**GUIDED)
    policy.reset(SENTENCES[0])
    policy.act(observations[0])
    for guidance in (3.0, 1.0, 2.0):
        policy.choose(Choice(guidance=guidance))
        values = policy.act(observations[1]).values
        assert np.array_equal(values, fresh(guidance))
        policy.act(observations[2])
    policy.choose(Choice(guidance=3.0))  # more of it: the frames seen still count
    assert not np.allclose(policy.act(observations[1]).values, fresh(3.0), atol=1e-3)
    policy.follow(SENTENCES[1])
    policy.act(observations[3])


@pytest.mark.parametrize('changes', [{}, MEMORY, {'conditioning': 'cross_attention'}])
def test_warming_up_fills_the_history_and_leaves_no_trace(make_policy, observations, changes):
    warm, cold = make_policy(**changes), make_policy(**changes)
    lengths = []
    begin = warm.model.critics[0].begin
    warm.model.critics[0].begin = lambda tokens, past: (
        lengths.append(tokens.shape[1]) or begin(tokens, past)
    )
    warm.warm_up()
    assert set(lengths) == set(range(1, warm.model.config.frames + 1))
    with pytest.raises(RuntimeError, match='call reset first'):
        warm.act(observations[0])
    if changes.get('conditioning') == 'cross_attention':
        return  # its sentences need the encoder
    for policy in (warm, cold):
        policy.reset(SENTENCES[0])
    for observation in observations:
        assert np.array_equal(warm.act(observation).values, cold.act(observation).values)


def test_a_read_only_image_is_read_where_it_lies(make_policy, observations, recwarn):
    message = observations[0].images['front'].tobytes()
    image = np.frombuffer(message, np.uint8).reshape(32, 32, 3)
    policy = make_policy()
    addresses = []
    encode = policy.model.encode
    policy.model.encode = lambda images, *more: (
        addresses.append(images['front'].data_ptr()) or encode(images, *more)
    )
    policy.reset(SENTENCES[0])
    expected = policy.act(observations[0])
    policy.reset(SENTENCES[0])
    torch.set_warn_always(True)
    try:
        decision = policy.act(Observation({'front': image}, observations[0].state))
    finally:
        torch.set_warn_always(False)
    assert np.array_equal(decision.values, expected.values)
    assert not recwarn.list
    assert addresses == [observations[0].images['front'].ctypes.data, image.ctypes.data]


def test_values_that_are_not_finite_are_refused(make_policy, observations):
    policy = make_policy()
    with torch.no_grad():
        policy.model.critics[0].head_bias[3, 5] = torch.nan
    policy.reset(SENTENCES[0])
    with pytest.raises(FloatingPointError, match='not finite'):
        policy.act(observations[0])


def test_the_random_policy_plans_and_ignores_choices_that_make_sense(tiny_contract, observations):
    policy = RandomPolicy(tiny_contract)
    policy.warm_up()
    policy.choose(Choice(beam=4, guidance=2.0))
    with pytest.raises(ConfigurationError, match='beam is 4'):
        policy.choose(Choice(beam=4, exploration=0.5))
    policy.follow(SENTENCES[0])
    decision = policy.act(observations[0], steps=6)
    assert decision.plan.shape == (6, 7)
    assert np.array_equal(decision.plan[0], decision.action)
    assert (decision.plan[1:] != decision.action).any(axis=1).all()
    with pytest.raises(ConfigurationError, match='steps is 0'):
        policy.act(observations[0], steps=0)


def test_the_random_policy_draws_every_bin(tiny_contract, observations):
    policy = RandomPolicy(tiny_contract)
    drawn = np.stack([policy.act(observations[0]).bins for _ in range(2000)])
    counts = np.stack([np.bincount(column, minlength=21) for column in drawn.T])
    assert counts.shape == (7, 21)
    assert counts.min() > 50  # 95 are expected
    assert counts.max() < 150
