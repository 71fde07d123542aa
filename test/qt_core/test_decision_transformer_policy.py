# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
import dataclasses

import numpy as np
import pytest
import torch

from qt_core.action_space import ActionSpace
from qt_core.configuration import ConfigurationError
from qt_core.embodiment import Embodiment
from qt_core.learning.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from qt_core.models.decision_transformer import DecisionTransformer, DecisionTransformerConfig
from qt_core.observation import Observation, normalise_state
from qt_core.policies import Choice, load_policy
from qt_core.policies.decision_transformer import DecisionTransformerPolicy
from qt_core.spec import Camera, Spec
from test.conftest import TINY_VIT

SENTENCES = ('touch the red block', 'touch the blue block')
TINY = DecisionTransformerConfig(
    context=4,
    text_dim=8,
    vit=TINY_VIT,
    token_learner_num_output_tokens=2,
    dim=32,
    depth=2,
    heads=2,
    max_ep_len=6,
)
KINDS = {
    'bins': {},
    'continuous': {'actions': 'continuous'},
    'cloning': {'return_conditioned': False},
    'untold': {'condition_on_text': False},
    'atari': {'image_encoder': 'atari'},
    'one_step': {'context': 1},
}
FAST = {'image_encoder': 'atari', 'depth': 1}


def strong(network):
    """Make weights large enough for every input to matter, and the statistics unusual."""
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if weight.dim() > 1 and 'frames' not in name and 'images' not in name:
                weight.mul_(6)
        network.state_mean.copy_(torch.linspace(-0.3, 0.3, len(network.state_mean)))
        network.state_std.copy_(torch.linspace(0.5, 1.5, len(network.state_std)))
        network.return_scale.fill_(2.0)
        network.best_return.fill_(4.0)
        network.low_return.fill_(-2.0)
    return network.eval()


@pytest.fixture
def robot(tiny_contract):
    camera = dataclasses.replace(tiny_contract.cameras[0], height=64, width=64)
    return dataclasses.replace(tiny_contract, cameras=(camera,))


@pytest.fixture
def make_policy(robot, embed):
    def make(**changes):
        torch.manual_seed(0)
        network = DecisionTransformer(dataclasses.replace(TINY, **changes).fitted(Spec.of(robot)))
        return DecisionTransformerPolicy(
            Checkpoint(
                model=strong(network),
                contract=robot,
                sentences=SENTENCES,
                embeddings=embed(SENTENCES),
                sentence_model='a model that does not exist',
                training={},
            )
        )

    return make


@pytest.fixture
def observations(robot):
    random = np.random.default_rng(0)
    return [
        Observation(
            {'front': random.integers(0, 256, (64, 64, 3), np.uint8)},
            random.uniform(-1, 1, len(robot.state.joints)).astype(np.float32),
        )
        for _ in range(9)
    ]


@torch.no_grad()
def full_pass(policy, observations, actions, asked, text):
    """Predict the newest step's action from all of the last K steps, as in training.

    `actions` are bins or -1..1 actions of the steps before, `asked` the return at each step.
    """
    network, body = policy.model, policy.embodiment
    steps, context = len(observations), network.config.context
    first = max(0, steps - context)
    width = actions[0].shape if actions else (network.config.num_actions,)
    kind = np.float32 if network.config.actions == 'continuous' else np.int64
    known = [*actions, np.zeros(width, kind)][first:steps]
    window = observations[first:]
    predicted = network(
        images={'front': torch.tensor(np.stack([o.images['front'] for o in window]))[None]},
        state=torch.tensor(np.stack([body.normalise(o.state) for o in window]))[None],
        actions=torch.tensor(np.stack(known).astype(kind))[None],
        returns=torch.tensor(asked[first:], dtype=torch.float32)[None],
        timesteps=torch.arange(first, steps)[None],
        mask=torch.ones(1, len(window), dtype=torch.bool),
        text=text if network.config.condition_on_text else None,
    )
    return predicted[0, -1]


@pytest.mark.parametrize('kind', KINDS)
def test_cached_inference_equals_the_full_pass_within_and_beyond_the_context(
    kind, make_policy, observations, embed, robot
):
    policy = make_policy(**KINDS[kind])
    rewards = [0.5, -1.0, 0.25, 2.0, 0.0, 1.0, 0.125, -3.0, 0.5]
    text = torch.tensor(embed(SENTENCES[:1]))
    for _ in range(2):  # `reset` forgets all
        policy.reset(SENTENCES[0])
        actions, asked = [], []
        for step, observation in enumerate(observations):
            asked.append(4.0 - sum(rewards[:step]))
            decision = policy.act(observation)
            expected = full_pass(policy, observations[: step + 1], actions, asked, text).numpy()
            if kind == 'continuous':
                unit = policy.embodiment.to_unit(decision.action)
                assert unit == pytest.approx(expected, abs=1e-4)
                assert decision.values is None
                assert np.array_equal(decision.bins, ActionSpace(robot).encode(decision.action))
                actions.append(unit)
            else:
                wanted = torch.tensor(expected).softmax(-1).numpy()
                assert decision.values.dtype == np.float32
                assert decision.values == pytest.approx(wanted, abs=1e-4)
                assert np.array_equal(decision.bins, decision.values.argmax(-1))
                assert np.array_equal(decision.action, ActionSpace(robot).decode(decision.bins))
                actions.append(decision.bins)
            assert np.array_equal(decision.plan, decision.action[None])
            policy.receive(rewards[step])


def test_only_new_tokens_are_computed_while_the_episode_is_in_the_context(
    make_policy, observations, monkeypatch
):
    policy = make_policy()
    lengths = []
    attend = policy.model.attend

    def count(tokens, mask, cache=None):
        lengths.append(tokens.shape[1])
        return attend(tokens, mask, cache)

    monkeypatch.setattr(policy.model, 'attend', count)
    policy.reset(SENTENCES[0])
    for observation in observations[:6]:
        policy.act(observation)
    # The sentence, R, s; then a, R, s; beyond the context the sentence and 4 steps but the last a.
    assert lengths == [3, 3, 3, 3, 12, 12]
    policy.follow(SENTENCES[1])
    policy.act(observations[6])
    policy.reset(SENTENCES[0])
    policy.act(observations[0])
    policy.follow(SENTENCES[1])
    policy.act(observations[1])
    policy.act(observations[2])
    assert lengths[6:] == [12, 3, 6, 3]


def returns_asked(policy, monkeypatch):
    """Record the return that each step asks for."""
    asked = []
    tokens = policy.model.observation_tokens

    def record(observed, timesteps, returns):
        asked.append(float(returns))
        return tokens(observed, timesteps, returns)

    monkeypatch.setattr(policy.model, 'observation_tokens', record)
    return asked


def test_the_return_that_is_asked_for(make_policy, observations, monkeypatch):
    policy = make_policy()  # returns in the data are -2..4
    asked = returns_asked(policy, monkeypatch)
    policy.choose(Choice(target_return=0.5))
    policy.reset(SENTENCES[0])
    policy.act(observations[0])
    policy.act(observations[1])  # held where no reward arrives
    policy.receive(0.25)
    policy.receive(0.5)
    policy.act(observations[2], steps=3)  # and in a plan
    policy.choose(Choice(target_return=2.0))
    policy.act(observations[3])
    policy.reset(SENTENCES[0])
    policy.act(observations[0])
    assert asked == [1.0, 1.0, 0.25, 0.25, 0.25, 10.0 - 0.75, 10.0]


@pytest.mark.parametrize('kind', ['bins', 'continuous'])
@pytest.mark.parametrize('before', [0, 2, 6])
def test_a_plan_goes_on_with_what_is_seen_and_is_not_remembered(
    kind, before, make_policy, observations
):
    policy, other = make_policy(**KINDS[kind]), make_policy(**KINDS[kind])
    for each in (policy, other):
        each.reset(SENTENCES[0])
        for observation in observations[:before]:
            each.act(observation)
    plan = policy.act(observations[7], steps=4)
    acted = [other.act(observations[7]).action for _ in range(4)]
    assert plan.plan == pytest.approx(np.stack(acted), abs=1e-6)
    assert np.array_equal(plan.action, plan.plan[0])
    other.reset(SENTENCES[0])
    for observation in (*observations[:before], observations[7]):
        other.act(observation)
    ours, theirs = policy.act(observations[8]), other.act(observations[8])
    assert ours.action == pytest.approx(theirs.action, abs=1e-6)
    if kind == 'bins':
        assert ours.values == pytest.approx(theirs.values, abs=1e-6)
    with pytest.raises(ConfigurationError, match='steps is 0'):
        policy.act(observations[0], steps=0)


def test_following_another_sentence_forgets_nothing(make_policy, observations, embed):
    # With convolutions the sentence is in its token alone, so the full pass knows the answer.
    policy = make_policy(image_encoder='atari')
    with pytest.raises(RuntimeError, match='call reset first'):
        policy.act(observations[0])
    policy.follow(SENTENCES[0])
    actions = []
    texts = torch.tensor(embed(SENTENCES))
    for step in range(7):
        if step in (2, 5):
            policy.follow(SENTENCES[1] if step == 2 else SENTENCES[0])
        told = texts[1:] if 2 <= step < 5 else texts[:1]
        decision = policy.act(observations[step])
        asked = [4.0] * (step + 1)
        expected = full_pass(policy, observations[: step + 1], actions, asked, told)
        assert decision.values == pytest.approx(expected.softmax(-1).numpy(), abs=1e-4)
        actions.append(decision.bins)


@torch.no_grad()
def test_pictures_stay_as_encoded_under_the_sentence_of_their_time(
    make_policy, observations, embed
):
    policy = make_policy()
    network = policy.model
    policy.reset(SENTENCES[0])
    first = policy.act(observations[0])
    policy.follow(SENTENCES[1])
    second = policy.act(observations[1])
    texts = torch.tensor(embed(SENTENCES))
    tokens = [network.sentence_tokens(texts[1:], 1)]
    for step in range(2):
        images = {'front': torch.tensor(observations[step].images['front'])[None, None]}
        state = torch.tensor(policy.embodiment.normalise(observations[step].state))[None, None]
        observed = network.observe(images, state, texts[step : step + 1])
        time = torch.tensor([[step]])
        tokens.append(network.observation_tokens(observed, time, torch.tensor([[4.0]]))[0])
        if step == 0:
            tokens.append(network.action_tokens(torch.tensor(first.bins)[None, None], time)[0])
    sequence = torch.cat(tokens, dim=1)
    there = torch.ones(sequence.shape[:2], dtype=torch.bool)
    expected = network.predict(network.attend(sequence, there)[0, -1]).softmax(-1)
    assert second.values == pytest.approx(expected.numpy(), abs=1e-5)


def test_bins_are_drawn_by_their_probability(make_policy, observations):
    torch.manual_seed(0)
    policy = make_policy(**FAST)

    def first(choice, count):
        policy.choose(choice)
        drawn = []
        for _ in range(count):
            policy.reset(SENTENCES[0])
            decision = policy.act(observations[0])
            drawn.append(decision.bins)
        return np.stack(drawn), decision.values

    greedy, values = first(Choice(), 2)
    assert (greedy == values.argmax(-1)).all()
    drawn, values = first(Choice(temperature=1.0), 300)
    for n in range(len(values)):
        share = np.bincount(drawn[:, n], minlength=values.shape[1]) / 300
        assert np.abs(share - values[n]).max() < 0.12
    sharp, _ = first(Choice(temperature=0.5), 300)
    squares = values**2 / (values**2).sum(-1, keepdims=True)
    for n in range(len(values)):
        share = np.bincount(sharp[:, n], minlength=values.shape[1]) / 300
        assert np.abs(share - squares[n]).max() < 0.12
    assert np.abs(squares - values).max() > 0.2  # so that the two can be told apart
    coldest, _ = first(Choice(temperature=1e-300), 2)
    assert (coldest == values.argmax(-1)).all()


@pytest.mark.parametrize('kind', ['bins', 'continuous'])
def test_exploration_takes_random_bins(kind, make_policy, observations, robot):
    torch.manual_seed(0)
    policy = make_policy(**FAST, **KINDS[kind])
    policy.reset(SENTENCES[0])
    policy.choose(Choice(exploration=1.0))
    decisions = [policy.act(observations[0]) for _ in range(150)]
    drawn = np.stack([decision.bins for decision in decisions])
    assert (np.bincount(drawn.flatten(), minlength=21) > 20).all()  # 50 are expected of each
    for decision in decisions[:20]:
        assert np.array_equal(ActionSpace(robot).encode(decision.action), decision.bins)
    kept = []
    for _ in range(50):
        policy.reset(SENTENCES[0])
        policy.choose(Choice())
        greedy = policy.act(observations[0])
        policy.reset(SENTENCES[0])
        policy.choose(Choice(exploration=0.2))
        explored = policy.act(observations[0])
        kept.append(np.isclose(explored.action, greedy.action))
    assert 0.7 < np.mean(kept) < 0.9


@pytest.mark.parametrize('kind', ['bins', 'continuous'])
def test_what_is_remembered_is_what_was_done(kind, make_policy, observations, embed):
    torch.manual_seed(0)
    policy = make_policy(**FAST, **KINDS[kind])
    policy.reset(SENTENCES[0])
    policy.choose(Choice(exploration=1.0))
    first = policy.act(observations[0])
    policy.choose(Choice())
    second = policy.act(observations[1])
    done = policy.embodiment.to_unit(first.action) if kind == 'continuous' else first.bins
    text = torch.tensor(embed(SENTENCES[:1]))
    expected = full_pass(policy, observations[:2], [done], [4.0, 4.0], text)
    if kind == 'bins':
        assert second.values == pytest.approx(expected.softmax(-1).numpy(), abs=1e-4)
    else:
        found = policy.embodiment.to_unit(second.action)
        assert found == pytest.approx(expected.numpy(), abs=1e-4)


def test_choices_it_does_not_know_are_refused(make_policy):
    policy, regressing, cloning = (make_policy(**KINDS[k]) for k in ('bins', *list(KINDS)[1:3]))
    policy.choose(Choice(exploration=0.1, temperature=0.5, target_return=1.2))
    for name, value in (('beam', 4), ('guidance', 2.0), ('prompted', True)):
        with pytest.raises(ConfigurationError, match=name):
            policy.choose(Choice(**{name: value}))
    assert policy._choice.temperature == 0.5  # nothing has changed
    with pytest.raises(ConfigurationError, match='temperature'):
        regressing.check_choice(Choice(temperature=0.5))
    regressing.check_choice(Choice(target_return=0.5))
    with pytest.raises(ConfigurationError, match='target_return'):
        cloning.check_choice(Choice(target_return=0.5))
    with pytest.raises(ConfigurationError, match='compile'):
        DecisionTransformerPolicy(object(), compile=True)


@pytest.mark.parametrize('kind', KINDS)
def test_warming_up_needs_no_sentence_encoder_and_is_forgotten(kind, make_policy, observations):
    policy, fresh = make_policy(**KINDS[kind]), make_policy(**KINDS[kind])
    policy.warm_up()
    with pytest.raises(RuntimeError, match='call reset first'):
        policy.act(observations[0])
    for each in (policy, fresh):
        each.reset(SENTENCES[1])
    ours, theirs = policy.act(observations[0]), fresh.act(observations[0])
    assert np.array_equal(ours.action, theirs.action)


def test_what_is_not_finite_is_an_error_and_is_not_remembered(make_policy, observations):
    policy, fresh = make_policy(), make_policy()
    for each in (policy, fresh):
        each.reset(SENTENCES[0])
        each.act(observations[0])
    broken = Observation(observations[1].images, np.full_like(observations[1].state, np.nan))
    with pytest.raises(FloatingPointError, match='not finite'):
        policy.act(broken)
    ours, theirs = policy.act(observations[1]), fresh.act(observations[1])
    assert ours.values == pytest.approx(theirs.values, abs=1e-6)
    with torch.no_grad():
        policy.model.backbone.predict_action.bias.fill_(torch.inf)
    with pytest.raises(FloatingPointError, match='not finite'):
        policy.warm_up()


def test_a_checkpoint_holds_all_it_needs(make_policy, observations, tmp_path, robot, embed):
    policy = make_policy()
    save_checkpoint(
        tmp_path / 'checkpoint',
        Checkpoint(
            model=policy.model,
            contract=robot,
            sentences=SENTENCES,
            embeddings=embed(SENTENCES),
            sentence_model='a model that does not exist',
            training={},
        ),
    )
    loaded = load_policy(tmp_path / 'checkpoint', 'cpu')
    assert loaded.contract == robot
    assert loaded.spec == Spec.of(robot)
    for each in (policy, loaded):
        each.reset(SENTENCES[1])
    for observation in observations[:2]:
        ours, theirs = policy.act(observation), loaded.act(observation)
        assert np.array_equal(ours.values, theirs.values)
    model = load_checkpoint(tmp_path / 'checkpoint').model
    assert (float(model.best_return), float(model.low_return)) == (4.0, -2.0)
    with pytest.raises(ConfigurationError, match='compile'):
        load_policy(tmp_path / 'checkpoint', 'cpu', compile=True)


@pytest.mark.parametrize('actions', ['bins', 'continuous'])
def test_an_environment_that_is_no_robot(actions):
    config = DecisionTransformerConfig(
        cameras=(Camera(name='screen', height=40, width=36, channels=1),),
        state_dim=2,
        num_actions=2,
        action_bins=5,
        context=3,
        actions=actions,
        image_encoder='atari',
        condition_on_text=False,
        dim=16,
        depth=1,
    )
    torch.manual_seed(0)
    network = strong(DecisionTransformer(config))
    policy = DecisionTransformerPolicy(
        Checkpoint(
            model=network,
            contract=None,
            sentences=(),
            embeddings=np.zeros((0, 0), np.float32),
            sentence_model='',
            training={},
        )
    )
    assert policy.contract is None
    policy.warm_up()
    policy.reset('')
    image = np.zeros((40, 36, 1), np.uint8)
    image.setflags(write=False)
    state = np.array([3.0, -4.0], np.float32)
    state.setflags(write=False)
    decision = policy.act(Observation({'screen': image}, state), steps=2)
    assert np.array_equal(decision.action, decision.bins)  # without a contract, the bins
    assert decision.plan.shape == (2, 2)
    with torch.no_grad():
        predicted = network(
            images={'screen': torch.tensor(image)[None, None]},
            state=torch.tensor(state)[None, None],
            actions=torch.zeros(1, 1, 2, dtype=torch.long if actions == 'bins' else torch.float),
            returns=torch.tensor([[4.0]]),
            timesteps=torch.tensor([[0]]),
            mask=torch.tensor([[True]]),
        )[0, 0].numpy()
    body = Embodiment(config.shapes)
    expected = (
        predicted.argmax(-1) if actions == 'bins' else body.encode(body.from_unit(predicted))
    )
    assert np.array_equal(decision.bins, expected)


def test_states_are_normalised_by_the_contract(make_policy, observations, robot, monkeypatch):
    policy = make_policy()
    seen = []
    observe = policy.model.observe

    def record(images, state, text, mask=None):
        seen.append(state.numpy())
        return observe(images, state, text, mask)

    monkeypatch.setattr(policy.model, 'observe', record)
    policy.reset(SENTENCES[0])
    policy.act(observations[0])
    assert np.array_equal(seen[0][0, 0], normalise_state(robot.state, observations[0].state))


def test_the_return_asked_for_lies_beyond_the_lowest(make_policy):
    policy = make_policy()
    asked = {}
    for ratio in (0.0, 0.5, 1.0, 1.5):
        policy.choose(Choice(target_return=ratio))
        asked[ratio] = policy.asked_return
    assert asked == {0.0: -2.0, 0.5: 1.0, 1.0: 4.0, 1.5: 7.0}
    assert make_policy(return_conditioned=False).asked_return is None
