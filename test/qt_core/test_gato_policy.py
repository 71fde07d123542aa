# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
import dataclasses

import numpy as np
import pytest
import torch

from qt_core.action_space import ActionSpace
from qt_core.configuration import ConfigurationError
from qt_core.contract import ContractError
from qt_core.embodiment import Embodiment
from qt_core.learning.checkpoint import Checkpoint, save_checkpoint
from qt_core.models.gato import Gato
from qt_core.models.gato_configuration import Body, GatoConfig
from qt_core.models.gato_prompts import Prompt
from qt_core.models.gato_sequence import Steps, step_sequence
from qt_core.models.gato_text import TextTokenizer
from qt_core.observation import Observation
from qt_core.policies import Choice, load_policy
from qt_core.policies.gato import GatoPolicy
from qt_core.spec import Camera, Spec

RED, BLUE = 'touch the red block', 'touch the blue block'
POLE = Spec(cameras=(), state_dim=4, num_actions=1, action_bins=2)
WIDE = Spec(
    cameras=(Camera(name='video', height=16, width=16, channels=1),), num_actions=3, action_bins=9
)
# A step of the arm is 4 patches, 7 joints, a separator and 7 actions; 6 fit beside a sentence.
TINY = GatoConfig(
    text_ids=300,
    context=120,
    width=32,
    depth=2,
    heads=2,
    dim_head=16,
    ff_width=64,
    dropout=0.1,
    image_channels=8,
    sentence='window',
)
KEPT = 90


@pytest.fixture
def network(tiny_contract):
    def make(**changes):
        bodies = (
            Body.named('pole', Embodiment(POLE)),
            Body.named('tabletop', Embodiment.of(tiny_contract)),
            Body.named('wide', Embodiment(WIDE)),
        )
        torch.manual_seed(0)
        settings = dataclasses.replace(TINY, bodies=bodies, **changes)
        made = Gato(settings, TextTokenizer.train([RED, BLUE], 300))
        with torch.no_grad():
            for block in made.blocks:  # so that what was seen and done before matters
                block.attention.inputs.weight.mul_(4)
                block.attention.out.weight.mul_(4)
            made.embedding.tokens.weight.mul_(3)
        made.prompts = ()
        return made.eval()

    return make


def checkpoint_of(model):
    return Checkpoint(
        model=model,
        contract=model.config.bodies[1].embodiment.contract,
        sentences=(),
        embeddings=np.zeros((0, 0), np.float32),
        sentence_model='',
        training={},
    )


def make_observations(body, count, seed=0):
    random = np.random.default_rng(seed)
    return [
        Observation(
            {
                c.name: random.integers(0, 256, (c.height, c.width, c.channels), np.uint8)
                for c in body.cameras
            },
            random.uniform(-1, 1, body.state_dim).astype(np.float32),
        )
        for _ in range(count)
    ]


@torch.no_grad()
def full_pass(model, body, sentence, observations, bins, first=0):
    """Decide on the last observation by whole passes over all; give its bins and probabilities.

    Args:
        bins: Those of the observations before.
        first: Number of the first observation in the episode.
    """
    count, chosen, rows = len(observations), [], []
    ids = model.config.ids
    for dimension in range(body.num_actions):
        last = [*chosen, *[0] * (body.num_actions - dimension)]
        steps = Steps(
            images={
                camera.name: torch.tensor(np.stack([o.images[camera.name] for o in observations]))[
                    None
                ]
                for camera in body.cameras
            },
            state=torch.tensor(
                np.stack([body.embodiment.normalise(o.state) for o in observations])
            )[None],
            bins=torch.tensor(np.array([*bins, last]))[None],
            count=torch.tensor([count]),
            sentences=[model.tokenizer.encode(sentence)],
            number=torch.arange(first, first + count)[None],
        )
        sequence = step_sequence(model.config, body, steps)
        assert sequence.ids.shape[1] <= model.config.context
        place = sequence.ids.shape[1] - body.num_actions + dimension - 1
        logits = model(sequence)[0, place, ids.actions.start :][: body.action_bins]
        rows.append(logits.softmax(-1).numpy())
        chosen.append(int(logits.argmax()))
    return np.array(chosen), np.array(rows)


@pytest.mark.parametrize(
    'changes', [{}, {'sentence': 'step', 'context': 200}, {'timestep_positions': True}]
)
@pytest.mark.parametrize('name', ['pole', 'tabletop', 'wide'])
def test_decisions_are_those_of_a_full_pass(network, name, changes):
    model = network(**changes)
    policy = GatoPolicy(checkpoint_of(model), body=name)
    observations, taken = make_observations(policy.body, 4), []
    policy.reset(RED)
    for count, observation in enumerate(observations, 1):
        decision = policy.act(observation)
        bins, values = full_pass(model, policy.body, RED, observations[:count], taken)
        assert np.array_equal(decision.bins, bins)
        np.testing.assert_allclose(decision.values, values, atol=1e-5)
        taken.append(decision.bins)
    policy.reset(RED)  # forgets
    assert np.array_equal(policy.act(observations[0]).bins, taken[0])


def test_what_was_done_matters(network):
    """Or else the tests here would show nothing."""
    model = network()
    policy = GatoPolicy(checkpoint_of(model))
    observations = make_observations(policy.body, 3)
    policy.reset(RED)
    decision = [policy.act(observation) for observation in observations][-1]
    for sentence, seen in ((RED, observations[-1:]), (BLUE, observations)):
        _, values = full_pass(
            model, policy.body, sentence, seen, [np.zeros(7, int)] * (len(seen) - 1)
        )
        assert np.abs(decision.values - values).max() > 1e-2


@pytest.mark.parametrize('changes', [{}, {'sentence': 'step'}, {'timestep_positions': True}])
def test_a_full_window_loses_its_oldest_steps_and_is_read_again(network, changes):
    """Every decision is that of a full pass over exactly the steps that are kept."""
    model = network(**changes)
    policy = GatoPolicy(checkpoint_of(model))
    words = len(model.tokenizer.encode(RED))
    step = 4 + 7 + 1 + 7 + (words if model.config.sentence == 'step' else 0)
    lead = words if model.config.sentence == 'window' else 0
    observations, taken = make_observations(policy.body, 14), []
    policy.reset(RED)
    begin, slides = 0, 0
    for count, observation in enumerate(observations, 1):
        if lead + (count - begin) * step > 120:
            slides += 1
            while count - begin > 1 and lead + (count - begin) * step > KEPT:
                begin += 1
        decision = policy.act(observation)
        kept = slice(begin, count)
        bins, values = full_pass(
            model, policy.body, RED, observations[kept], taken[begin:], first=begin
        )
        assert np.array_equal(decision.bins, bins)
        np.testing.assert_allclose(decision.values, values, atol=1e-5)
        taken.append(decision.bins)
    assert slides > 2


def test_a_plan_changes_nothing_that_comes_later(network):
    model = network()
    alone, planning = (GatoPolicy(checkpoint_of(model)) for _ in range(2))
    for policy in (alone, planning):
        policy.reset(RED)
    taken = []
    observations = make_observations(alone.body, 9)
    for count, observation in enumerate(observations, 1):
        one, several = alone.act(observation), planning.act(observation, steps=4)
        assert np.array_equal(one.plan, one.action[None])
        assert several.plan.shape == (4, 7)
        assert np.array_equal(several.plan[0], several.action)
        assert np.array_equal(several.bins, one.bins)
        np.testing.assert_allclose(several.values, one.values, atol=1e-6)
        taken.append(one.bins)
        if count == 2:  # goes on as if it saw the same again
            again = [*observations[:2], observations[1]]
            bins, _ = full_pass(model, alone.body, RED, again, taken)
            assert np.array_equal(ActionSpace(alone.contract).decode(bins), several.plan[1])


def prompt_of(observations, bins, body=1, sentence=RED, first=0):
    return Prompt(
        body=body,
        sentence=sentence,
        images={'front': np.stack([o.images['front'] for o in observations])},
        state=np.stack([o.state for o in observations]),
        bins=np.stack(bins),
        first=first,
    )


@pytest.mark.parametrize('sentence', ['window', 'step'])
def test_a_prompt_stands_before_the_steps(network, sentence):
    model = network(sentence=sentence)
    policy = GatoPolicy(checkpoint_of(model))
    shown = make_observations(policy.body, 5, seed=7)
    done = list(np.random.default_rng(8).integers(0, 21, (5, 7)))
    normal = [dataclasses.replace(o, state=policy.embodiment.normalise(o.state)) for o in shown]
    model.prompts = (
        prompt_of(normal, done),
        prompt_of(normal[::-1], done, sentence=BLUE),
        prompt_of(normal[::-1], done, body=0),
    )
    policy = GatoPolicy(checkpoint_of(model))
    policy.choose(Choice(prompted=True))
    policy.reset(RED)
    # No more than half of the steps that fit: of 6, or of 4 with a sentence in each.
    most = 3 if sentence == 'window' else 2
    observations, taken = make_observations(policy.body, 2), []
    for count, observation in enumerate(observations, 1):
        decision = policy.act(observation)
        seen = [*shown[-most:], *observations[:count]]
        bins, values = full_pass(model, policy.body, RED, seen, [*done[-most:], *taken])
        assert np.array_equal(decision.bins, bins)
        np.testing.assert_allclose(decision.values, values, atol=1e-5)
        taken.append(decision.bins)
    # The prompt stays while steps go.
    for observation in make_observations(policy.body, 8, seed=9):
        policy.act(observation)
        lead = policy._memory.lead.shape[1]
        assert lead >= most * 19
        assert policy._memory.length <= 120
    policy.choose(Choice())
    policy.reset(RED)
    promptless = policy.act(observations[0])
    bins, _ = full_pass(model, policy.body, RED, observations[:1], [])
    assert np.array_equal(promptless.bins, bins)


def test_a_sentence_that_has_no_prompt_is_followed_without(network):
    model = network()
    seen = make_observations(model.config.bodies[1], 3, seed=7)
    model.prompts = (prompt_of(seen, [np.zeros(7, np.int64)] * 3),)
    policy = GatoPolicy(checkpoint_of(model))
    policy.choose(Choice(prompted=True))
    policy.reset(BLUE)
    observation = make_observations(policy.body, 1)[0]
    bins, _ = full_pass(model, policy.body, BLUE, [observation], [])
    assert np.array_equal(policy.act(observation).bins, bins)


def test_a_policy_without_prompts_cannot_be_prompted(network):
    model = network()
    seen = make_observations(model.config.bodies[1], 3)
    model.prompts = (prompt_of(seen, [np.zeros(7, np.int64)] * 3),)
    policy = GatoPolicy(checkpoint_of(model), body='pole')
    with pytest.raises(ConfigurationError, match='no episode of pole in the checkpoint'):
        policy.choose(Choice(prompted=True))
    GatoPolicy(checkpoint_of(model)).check_choice(Choice(prompted=True))


def test_another_sentence_is_followed_without_forgetting(network):
    model = network()
    policy = GatoPolicy(checkpoint_of(model))
    observations = make_observations(policy.body, 3)
    policy.reset(RED)
    taken = [policy.act(observation).bins for observation in observations[:2]]
    policy.follow(BLUE)
    decision = policy.act(observations[2])
    bins, values = full_pass(model, policy.body, BLUE, observations, taken)
    assert np.array_equal(decision.bins, bins)
    np.testing.assert_allclose(decision.values, values, atol=1e-5)


def test_a_sentence_in_each_step_changes_from_the_next_one_on(network):
    model = network(sentence='step', context=200)
    policy, other = GatoPolicy(checkpoint_of(model)), GatoPolicy(checkpoint_of(model))
    observations = make_observations(policy.body, 2)
    decisions = []
    for each, later in ((policy, BLUE), (other, RED)):
        each.reset(RED)
        each.act(observations[0])
        each.follow(later)
        decisions.append(each.act(observations[1]))
    _, red = full_pass(
        model, policy.body, RED, observations, [policy_bins(model, observations[0])]
    )
    np.testing.assert_allclose(decisions[1].values, red, atol=1e-5)
    assert np.abs(decisions[0].values - red).max() > 1e-3
    first = policy._memory.steps[0]
    torch.testing.assert_close(first, other._memory.steps[0])  # what was seen under RED stays


def policy_bins(model, observation):
    return full_pass(model, model.config.bodies[1], RED, [observation], [])[0]


@pytest.mark.parametrize(('name', 'shape'), [('pole', (1, 2)), ('wide', (3, 9)), ('', (7, 21))])
def test_only_the_bins_of_the_body_are_chosen(network, name, shape):
    model = network()
    policy = GatoPolicy(checkpoint_of(model), body=name)
    first = model.config.ids.actions.start
    with torch.no_grad():  # everything else is far more likely, and the next bins as well
        outside = torch.ones(len(model.embedding.tokens.weight), dtype=torch.bool)
        outside[first : first + shape[1]] = False
        model.embedding.tokens.weight[outside] *= 30
    policy.reset(RED)
    for observation in make_observations(policy.body, 3):
        decision = policy.act(observation)
        assert decision.values.shape == shape
        np.testing.assert_allclose(decision.values.sum(-1), 1, atol=1e-5)
        assert np.array_equal(decision.values.argmax(-1), decision.bins)
        assert decision.bins.dtype == np.int64


def test_a_body_is_chosen_by_name_and_else_the_first_robot(network, tiny_contract):
    checkpoint = checkpoint_of(network())
    robot = GatoPolicy(checkpoint)
    assert robot.contract == tiny_contract
    assert robot.spec == Spec.of(tiny_contract)
    pole = GatoPolicy(checkpoint, body='pole')
    assert (pole.contract, pole.spec) == (None, POLE)
    pole.reset('')
    decision = pole.act(make_observations(pole.body, 1)[0])
    assert np.array_equal(decision.action, decision.bins)
    message = "body is 'leg', expected pole or tabletop or wide"
    with pytest.raises(ConfigurationError, match=message):
        GatoPolicy(checkpoint, body='leg')
    with pytest.raises(ConfigurationError, match='compile is True, expected False'):
        GatoPolicy(checkpoint, compile=True)


def test_actions_are_in_units_of_the_contract(network, tiny_contract):
    policy = GatoPolicy(checkpoint_of(network()))
    policy.reset(RED)
    decision = policy.act(make_observations(policy.body, 1)[0])
    assert np.array_equal(decision.action, ActionSpace(tiny_contract).decode(decision.bins))


@pytest.mark.parametrize(
    ('choice', 'expected'),
    [
        (Choice(), [0, 0, 1]),
        (Choice(temperature=1.0), [0.04, 0.32, 0.64]),
        (Choice(temperature=0.5), [0.0031, 0.1995, 0.7974]),  # in proportion to the squares
        (Choice(exploration=0.3), [0.1, 0.1, 0.8]),
    ],
)
def test_bins_are_drawn_as_the_choice_says(network, choice, expected):
    policy = GatoPolicy(checkpoint_of(network()))
    policy.choose(choice)
    logits = torch.tensor([[0.04, 0.32, 0.64]]).log() + 5
    torch.manual_seed(0)
    drawn = [int(policy._choose(logits)) for _ in range(3000)]
    share = np.bincount(drawn, minlength=3) / 3000
    np.testing.assert_allclose(share, expected, atol=0.03)


def test_greedy_decisions_repeat_and_drawn_ones_differ(network):
    policy = GatoPolicy(checkpoint_of(network()))
    observation = make_observations(policy.body, 1)[0]

    def decided(choice, times):
        policy.choose(choice)
        found = set()
        for _ in range(times):
            policy.reset(RED)
            found.add(tuple(policy.act(observation).bins))
        return len(found)

    torch.manual_seed(0)
    assert decided(Choice(), 4) == 1
    assert decided(Choice(temperature=3.0), 4) > 1
    assert decided(Choice(exploration=0.9), 4) > 1


def test_what_it_cannot_do_is_refused(network):
    policy = GatoPolicy(checkpoint_of(network()))
    for choice in (Choice(beam=2), Choice(guidance=2.0), Choice(target_return=2.0)):
        with pytest.raises(ConfigurationError, match='for this policy'):
            policy.choose(choice)
    with pytest.raises(RuntimeError, match='call reset first'):
        policy.act(make_observations(policy.body, 1)[0])
    policy.receive(1.0)


def test_a_sentence_that_leaves_no_room_is_refused(network):
    policy = GatoPolicy(checkpoint_of(network(context=40)))
    policy.reset(RED)
    with pytest.raises(ConfigurationError, match=r'model\.context is 40, expected at least'):
        policy.reset('a sentence in words that were never read before')


def test_the_last_of_the_context_is_used(network):
    """Also where no more than one step fits beside its sentence."""
    model = network()
    words = len(model.tokenizer.encode(RED))
    model = network(context=19 + words)
    policy = GatoPolicy(checkpoint_of(model))
    policy.reset(RED)
    for observation in make_observations(policy.body, 3):
        bins, _ = full_pass(model, policy.body, RED, [observation], [])
        assert np.array_equal(policy.act(observation, steps=2).bins, bins)


def test_values_that_are_not_finite_are_an_error(network):
    model = network()
    policy = GatoPolicy(checkpoint_of(model))
    policy.reset(RED)
    with torch.no_grad():
        model.norm.weight[0] = float('nan')
    with pytest.raises(FloatingPointError, match='not finite'):
        policy.act(make_observations(policy.body, 1)[0])
    assert policy._memory.steps == ()
    with pytest.raises(FloatingPointError):
        policy.warm_up()


def test_warming_up_is_forgotten(network):
    policy = GatoPolicy(checkpoint_of(network()))
    policy.warm_up()
    with pytest.raises(RuntimeError, match='call reset first'):
        policy.act(make_observations(policy.body, 1)[0])


def test_what_is_remembered_keeps_no_graph(network):
    model = network()
    body = model.config.bodies[1]
    model.prompts = (prompt_of(make_observations(body, 3), [[1] * body.num_actions] * 3),)
    policy = GatoPolicy(checkpoint_of(model))
    policy.choose(Choice(prompted=True))
    policy.reset(RED)
    assert not policy._memory.lead.requires_grad


def test_however_cold_the_best_bin_is_drawn(network):
    policy = GatoPolicy(checkpoint_of(network()))
    policy.choose(Choice(temperature=1e-39))
    assert policy._choose(torch.tensor([[1.0, 5.0, 9.0, 2.0]])).item() == 2


def test_a_contract_chooses_its_body_and_no_other(network, tiny_contract, tmp_path):
    model = network()
    save_checkpoint(tmp_path / 'c', checkpoint_of(model))
    assert load_policy(tmp_path / 'c', 'cpu', body=tiny_contract).contract == tiny_contract
    other = dataclasses.replace(tiny_contract, rate=tiny_contract.rate * 2)
    with pytest.raises(ContractError, match='rate'):
        load_policy(tmp_path / 'c', 'cpu', body=other)
    # Shapes are equal, so that such a checkpoint can be read; but the body has another contract.
    edited = dataclasses.replace(checkpoint_of(model), contract=other)
    save_checkpoint(tmp_path / 'd', edited)
    with pytest.raises(ContractError, match='rate'):
        load_policy(tmp_path / 'd', 'cpu', body=other)
