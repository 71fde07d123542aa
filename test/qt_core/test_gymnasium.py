# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Gymnasium environments as ours, against gymnasium itself driven by hand."""

import numpy as np
import pytest

gymnasium = pytest.importorskip('gymnasium')

from gymnasium import spaces
from gymnasium.spaces.utils import flatten
from gymnasium.wrappers import FlattenObservation, TimeLimit, TransformObservation

from qt_core.collection import play
from qt_core.configuration import ConfigurationError
from qt_core.environments import StateError
from qt_core.environments.gymnasium import GymnasiumEnvironment
from qt_core.environments.gymnasium_spaces import Choices, Senses, cut_actions
from qt_core.environments.tasks import gymnasium_id, make_gymnasium
from qt_core.policies import RandomPolicy
from qt_core.replay import ReplayFolder, ReplayWriter
from qt_core.spec import Camera, Spec

SUITE = (
    'CartPole-v1',
    'Pendulum-v1',
    'MountainCarContinuous-v0',
    'FrozenLake-v1',
    'Blackjack-v1',
    'CliffWalking-v1',
)


class Scripted(gymnasium.Env):
    """Gives what it is told to, and keeps the actions."""

    metadata = {'render_modes': ['rgb_array']}  # noqa: RUF012

    def __init__(
        self,
        observations=((0.0, 0.0),),
        observation_space=None,
        action_space=None,
        rewards=(1.0,),
        ends=((False, False),),
        render_mode=None,
    ):
        box = spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.observation_space = box if observation_space is None else observation_space
        self.action_space = spaces.Discrete(3) if action_space is None else action_space
        self.observations, self.rewards, self.ends = observations, rewards, ends
        self.render_mode = render_mode
        self.actions, self.seeds, self.closed = [], [], False

    def reset(self, *, seed=None, options=None):
        self.seeds.append(seed)
        self.actions = []
        return self.observations[0], {}

    def step(self, action):
        self.actions.append(action)
        count = len(self.actions)
        value = self.observations[min(count, len(self.observations) - 1)]
        reward = self.rewards[min(count, len(self.rewards)) - 1]
        return value, reward, *self.ends[min(count, len(self.ends)) - 1], {}

    def render(self):
        return np.full((6, 8, 3), 10 * len(self.actions), np.uint8)

    def close(self):
        self.closed = True


IMAGES = spaces.Box(0, 255, (4, 5, 3), np.uint8)
MIXED = spaces.Dict(
    {
        'pose': spaces.Box(-1, 1, (2, 2), np.float64),
        'front': IMAGES,
        'inner': spaces.Tuple((spaces.Discrete(3, start=1), spaces.Box(0, 255, (4, 5), np.uint8))),
        'task': spaces.Text(20),
        'keys': spaces.MultiBinary(2),
    }
)


def of_choices(count):
    return Scripted(action_space=spaces.Discrete(count))


def run(environment, seed, bins):
    """Take the steps of `bins` until the episode ends."""
    seen, rewards = [environment.reset(seed)[0]], []
    for row in bins:
        step = environment.step(row)
        seen.append(step.observation)
        rewards.append(step.reward)
        if step.terminal or step.timeout:
            break
    return seen, rewards, step.terminal, step.timeout


def run_by_hand(environment, seed, actions):
    seen, rewards = [environment.reset(seed=seed)[0]], []
    for action in actions:
        value, reward, terminated, truncated, _ = environment.step(action)
        seen.append(value)
        rewards.append(reward)
        if terminated or truncated:
            break
    return seen, rewards, terminated, truncated


def action_by_hand(space, bins, count):
    """Give the action of bins, as the documentation has it."""
    if isinstance(space, spaces.Discrete):
        return int(bins[0])
    low, high = space.low.astype(float), space.high.astype(float)
    return np.array(
        [
            (1 - b / (count - 1)) * lo + b / (count - 1) * hi
            for b, lo, hi in zip(bins, low, high, strict=True)
        ],
        space.dtype,
    )


@pytest.mark.parametrize('name', SUITE)
@pytest.mark.parametrize('seed', [0, 7])
def test_an_episode_is_the_one_gymnasium_gives(name, seed):
    plain = gymnasium.make(name)
    with GymnasiumEnvironment(name, action_bins=11) as environment:
        spec = environment.spec
        bins = np.random.default_rng(seed).integers(0, spec.action_bins, (250, spec.num_actions))
        seen, rewards, terminal, timeout = run(environment, seed, bins)
    actions = [action_by_hand(plain.action_space, row, spec.action_bins) for row in bins]
    values, expected, terminated, truncated = run_by_hand(plain, seed, actions)
    assert spec.cameras == ()
    assert len(seen) == len(values)
    for observation, value in zip(seen, values, strict=True):
        by_hand = np.asarray(flatten(plain.observation_space, value), np.float32)
        assert observation.state.dtype == np.float32
        assert np.array_equal(observation.state, by_hand)
    assert rewards == [float(reward) for reward in expected]
    assert (terminal, timeout) == (terminated, truncated and not terminated)
    assert environment.reward_threshold == plain.spec.reward_threshold


def test_seeds_decide_episodes():
    environment = GymnasiumEnvironment('CartPole-v1')
    first, again, other = (environment.reset(seed)[0].state for seed in (3, 3, 4))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize(
    ('name', 'state_dim', 'num_actions', 'action_bins'),
    [
        ('CartPole-v1', 4, 1, 2),
        ('Pendulum-v1', 3, 1, 256),
        ('MountainCarContinuous-v0', 2, 1, 256),
        ('FrozenLake-v1', 16, 1, 4),
        ('Blackjack-v1', 32 + 11 + 2, 1, 2),
        ('CliffWalking-v1', 48, 1, 4),
    ],
)
def test_shapes_follow_from_the_spaces(name, state_dim, num_actions, action_bins):
    environment = GymnasiumEnvironment(name)
    assert environment.spec == Spec(
        cameras=(), state_dim=state_dim, num_actions=num_actions, action_bins=action_bins
    )
    assert environment.contract is None


def test_images_in_a_dict_are_cameras_and_the_rest_is_the_state():
    values = []
    for seed in range(3):
        MIXED.seed(seed)
        values.append(MIXED.sample())
    values[0]['task'] = 'open the door'
    kept = [
        (v['front'].copy(), v['inner'][1].copy(), v['pose'].copy(), v['inner'][0], v['keys'])
        for v in values
    ]
    environment = GymnasiumEnvironment(Scripted(values, MIXED))
    assert environment.spec.cameras == (
        Camera(name='front', height=4, width=5, channels=3),
        Camera(name='inner_1', height=4, width=5, channels=1),
    )
    assert environment.spec.state_dim == 4 + 3 + 2
    assert environment.speaks
    first, sentence = environment.reset(0)
    assert sentence == 'open the door'
    seen = [first, *(environment.step(np.array([0])).observation for _ in range(2))]
    for value in values:  # an environment may go on writing into what it gave
        value['front'][:], value['pose'][:] = 0, 0
    for observation, (front, grey, pose, number, keys) in zip(seen, kept, strict=True):
        assert np.array_equal(observation.images['front'], front)
        assert np.array_equal(observation.images['inner_1'], grey[..., None])
        one_hot = np.eye(3)[number - 1]
        order = {'pose': pose.reshape(-1), 'inner': one_hot, 'keys': keys}
        expected = np.concatenate([order[key] for key in MIXED if key in order])
        assert np.array_equal(observation.state, expected.astype(np.float32))


def test_an_image_alone_is_a_camera_and_a_given_sentence_wins():
    environment = GymnasiumEnvironment(
        Scripted([np.ones((4, 5, 3), np.uint8)], IMAGES), sentence='go'
    )
    assert [camera.name for camera in environment.spec.cameras] == ['image']
    observation, sentence = environment.reset(0)
    assert (sentence, environment.speaks) == ('go', True)
    assert observation.state.shape == (0,)
    text = {'task': spaces.Text(9), 'state': spaces.Box(-1, 1, (1,))}
    told = Scripted([{'task': 'stop', 'state': np.zeros(1)}], spaces.Dict(text))
    assert GymnasiumEnvironment(told, sentence='go').reset(0)[1] == 'go'
    assert GymnasiumEnvironment(told).reset(0)[1] == 'stop'
    assert not GymnasiumEnvironment(Scripted()).speaks


def test_uint8_that_is_no_image_can_be_flattened():
    board = Scripted([np.full((4, 5, 3), 9, np.uint8)], IMAGES)
    environment = GymnasiumEnvironment(FlattenObservation(board))
    assert environment.spec.cameras == ()
    assert np.array_equal(environment.reset(0)[0].state, np.full(60, 9))


@pytest.mark.parametrize(
    ('space', 'message'),
    [
        (spaces.Sequence(spaces.Discrete(3)), 'expected a space of a fixed size'),
        (spaces.Graph(spaces.Discrete(2), None), 'expected a space of a fixed size'),
        (spaces.Box(0, 255, (4, 84, 84), np.uint8), r'itself is \(4, 84, 84\), expected channels'),
        (spaces.Box(0, 1, (9000,)), 'state_dim is 9000'),
        (spaces.Text(5), 'at least 1 where there is no camera'),
        (spaces.Tuple((spaces.Text(5), spaces.Text(5))), 'at most one text'),
    ],
)
def test_observations_that_have_no_place_are_refused(space, message):
    with pytest.raises(ConfigurationError, match=message) as error:
        GymnasiumEnvironment(Scripted([None], space))
    assert str(error.value).startswith('Scripted: ')
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(
    ('value', 'space', 'message'),
    [
        (np.array([0, np.nan]), None, 'Scripted: observation itself is not finite'),
        (np.array([0, np.inf]), None, 'not finite'),
        (np.array([0, 1e39]), spaces.Box(-np.inf, np.inf, (2,), np.float64), 'not finite'),
        (np.zeros(3), None, 'expected one of Box'),
        (np.zeros((4, 5, 3)), IMAGES, r'is \(4, 5, 3\) float64, expected \(4, 5, 3\) uint8'),
        (np.zeros((5, 4, 3), np.uint8), IMAGES, r'is \(5, 4, 3\) uint8'),
        ({}, spaces.Dict({'a': spaces.Discrete(2)}), "lacks 'a'"),
        (9, spaces.Discrete(2), 'expected one of Discrete'),
    ],
)
def test_values_that_do_not_fit_their_space_are_refused(value, space, message):
    with pytest.raises(StateError, match=message) as error:
        GymnasiumEnvironment(Scripted([value], space)).reset(0)
    assert '\n' not in str(error.value)


def test_a_reward_that_is_not_finite_is_refused():
    environment = GymnasiumEnvironment(Scripted(rewards=(np.nan,)))
    environment.reset(0)
    with pytest.raises(StateError, match='reward nan'):
        environment.step(np.array([0]))


@pytest.mark.parametrize(
    ('ends', 'terminal', 'timeout'),
    [
        ((True, False), True, False),
        ((False, True), False, True),
        ((True, True), True, False),
        ((False, False), False, False),
    ],
)
def test_an_end_is_terminal_and_a_cut_is_a_timeout(ends, terminal, timeout):
    environment = GymnasiumEnvironment(Scripted(ends=(ends,)))
    environment.reset(0)
    step = environment.step(np.array([0]))
    assert (step.terminal, step.timeout) == (terminal, timeout)


def test_the_limit_of_steps_is_the_environments_or_ours():
    bins = np.zeros((250, 1), np.int64)
    pendulum = GymnasiumEnvironment('Pendulum-v1')
    assert pendulum.max_steps == 200
    seen, _, terminal, timeout = run(pendulum, 0, bins)
    assert (len(seen), terminal, timeout) == (201, False, True)
    for environment in (
        GymnasiumEnvironment('Pendulum-v1', max_steps=5),
        GymnasiumEnvironment(TimeLimit(Scripted(), 5)),
    ):
        for _ in range(2):  # counted anew in each episode
            seen, _, terminal, timeout = run(environment, 0, bins)
            assert (len(seen), terminal, timeout) == (6, False, True)
    assert GymnasiumEnvironment('CliffWalking-v1').max_steps == 10_000
    unlimited = gymnasium.make('Pendulum-v1', max_episode_steps=-1)
    assert GymnasiumEnvironment(unlimited).max_steps == 10_000
    last = GymnasiumEnvironment(Scripted(ends=((True, False),)), max_steps=1)
    assert run(last, 0, bins)[2:] == (True, False)


@pytest.mark.parametrize('bins', [2, 3, 7, 256])
def test_the_first_and_the_last_bin_of_a_box_are_its_ends(bins):
    low = np.array([[-0.1, 0.3, -7.7]], np.float32)
    high = np.array([[0.7, 0.9, 1e6]], np.float32)
    actions = cut_actions(spaces.Box(low, high), bins)
    assert len(actions.counts) == 3
    for edge, end in ((0, low), (bins - 1, high)):
        action = actions.decode(np.full(3, edge))
        assert action.dtype == np.float32
        assert np.array_equal(action, end)
    grid = np.linspace(low[0].astype(float), high[0].astype(float), bins)
    for bin in range(bins):
        chosen = np.full(3, bin)
        action = actions.decode(chosen)
        assert action in actions.space
        assert action[0] == pytest.approx(grid[bin], rel=1e-6)
        assert np.array_equal(actions.encode(action), chosen)
    assert np.array_equal(actions.encode(high + 5), np.full(3, bins - 1))
    with pytest.raises(ValueError, match='not finite'):
        actions.encode(np.full(3, np.nan))


@pytest.mark.parametrize(
    ('space', 'bins', 'action'),
    [
        (spaces.Discrete(5, start=-2), [4], 2),
        (spaces.Discrete(1), [1], 0),
        (spaces.MultiBinary(3), [1, 0, 1], [1, 0, 1]),
        (spaces.MultiBinary([2, 2]), [1, 0, 0, 1], [[1, 0], [0, 1]]),
        (spaces.MultiDiscrete([5, 2, 3]), [4, 1, 2], [4, 1, 2]),
        (spaces.MultiDiscrete([5, 2, 3]), [4, 2, 4], [4, 0, 1]),  # bins that are not there
        (
            spaces.MultiDiscrete([[2, 3], [3, 2]], start=[[1, 1], [1, 1]]),
            [1, 2, 0, 1],
            [[2, 3], [1, 2]],
        ),
        (spaces.Box(0, 10, (2,), np.int64), [0, 255], [0, 10]),
        (spaces.Box(0, 10, (2,), np.int64), [100, 115], [4, 5]),
    ],
)
def test_bins_are_the_choices_of_a_space(space, bins, action):
    environment = GymnasiumEnvironment(Scripted(action_space=space))
    environment.reset(0)
    environment.step(np.array(bins))
    taken = environment.environment.actions[0]
    assert taken in space
    assert np.array_equal(taken, action)
    carried_out = environment.encode(taken)
    assert np.array_equal(environment.decode(carried_out), taken)
    if isinstance(environment.actions, Choices):
        assert (carried_out < environment.actions.counts).all()


def test_every_choice_of_a_multi_discrete_is_drawn_about_as_often():
    actions = cut_actions(spaces.MultiDiscrete([24, 2, 3]), 256)
    bins = np.random.default_rng(0).integers(0, actions.bins, (6000, 3))
    taken = np.array([actions.decode(row) for row in bins])
    for column, count in zip(taken.T, (24, 2, 3), strict=True):
        share = np.bincount(column, minlength=count) * count / 6000
        assert share.min() > 0.75
        assert share.max() < 1.25


@pytest.mark.parametrize('bins', [[3], [-1], [0, 0], 0])
def test_bins_that_are_not_there_are_refused(bins):
    environment = GymnasiumEnvironment(of_choices(3))
    environment.reset(0)
    with pytest.raises(ValueError, match=r'numbers in 0\.\.2'):
        environment.step(np.array(bins))
    assert environment.environment.actions == []


UNBOUNDED = spaces.Box(np.array([-1, -np.inf]), np.array([1, np.inf]), dtype=np.float64)


@pytest.mark.parametrize(
    ('space', 'options', 'message'),
    [
        (UNBOUNDED, {}, 'give action_low and action_high, or wrap it'),
        (UNBOUNDED, {'action_low': -1}, 'has no bounds'),
        (
            spaces.Box(-1, 1, (2,)),
            {'action_low': -2},
            r'Scripted: action_low is -2, expected values',
        ),
        (spaces.Box(-1, 1, (2,)), {'action_low': [0, 0, 0]}, 'action_low does not fit'),
        (
            spaces.Box(-1, 1, (2,)),
            {'action_low': 0.5, 'action_high': 0},
            'values below action_high',
        ),
        (spaces.Box(-1, 1, (2,)), {'action_bins': 1}, 'action_bins is 1'),
        (spaces.Discrete(2), {'action_high': 1}, 'are for a Box'),
        (spaces.Tuple((spaces.Discrete(2),)), {}, 'wrap the environment so that it takes'),
    ],
)
def test_actions_that_have_no_bins_are_refused(space, options, message):
    with pytest.raises(ConfigurationError, match=message) as error:
        GymnasiumEnvironment(Scripted(action_space=space), **options)
    assert '\n' not in str(error.value)


def test_bounds_can_be_given_to_a_box_without():
    environment = GymnasiumEnvironment(
        Scripted(action_space=UNBOUNDED), action_bins=3, action_low=[-1, -9], action_high=[1, 3]
    )
    taken = [environment.decode(np.full(2, bin)).tolist() for bin in range(3)]
    assert taken == [[-1, -9], [0, -3], [1, 3]]


def test_what_is_rendered_is_a_camera():
    environment = GymnasiumEnvironment(Scripted(render_mode='rgb_array'), render=True)
    assert environment.spec.cameras == (Camera(name='render', height=6, width=8),)
    environment.reset(0)
    picture = environment.step(np.array([0])).observation.images['render']
    assert np.array_equal(picture, np.full((6, 8, 3), 10))
    smaller = GymnasiumEnvironment(Scripted(render_mode='rgb_array'), render=(3, 2))
    observation, _ = smaller.reset(0)
    assert observation.images['render'].shape == (3, 2, 3)
    assert observation.state.shape == (2,)
    with pytest.raises(ConfigurationError, match='render_mode is None, expected rgb_array'):
        GymnasiumEnvironment(Scripted(), render=True)


def test_an_environment_of_the_callers_keeps_its_wrappers_and_is_closed():
    scaled = TransformObservation(
        Scripted(), lambda value: np.add(value, 5), spaces.Box(-np.inf, np.inf, (2,), np.float32)
    )
    with GymnasiumEnvironment(scaled) as environment:
        assert environment.reset(11)[0].state.tolist() == [5, 5]
        assert scaled.unwrapped.seeds == [11]
        assert not scaled.unwrapped.closed
    assert scaled.unwrapped.closed


def test_one_that_is_refused_is_closed_if_it_is_ours(monkeypatch):
    theirs = Scripted([None], spaces.Text(3))
    with pytest.raises(ConfigurationError):
        GymnasiumEnvironment(theirs)
    assert not theirs.closed
    monkeypatch.setattr(gymnasium, 'make', lambda name, render_mode: theirs)
    with pytest.raises(ConfigurationError):
        GymnasiumEnvironment('Scripted-v0')
    assert theirs.closed


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('Nope-v1', r"Nope-v1: Environment `Nope` doesn't exist"),
        ('CartPole-v9', 'version `v9`'),
        ('absent_module:X-v0', "absent_module:X-v0: No module named 'absent_module'"),
        ('x', "doesn't exist"),
    ],
)
def test_an_environment_that_is_not_there_is_one_line(name, message):
    with pytest.raises(ConfigurationError, match=message) as error:
        GymnasiumEnvironment(name)
    assert '\n' not in str(error.value)


def test_an_environment_that_lives_elsewhere(tmp_path, monkeypatch):
    (tmp_path / 'elsewhere.py').write_text(
        'import gymnasium\n'
        'from gymnasium.envs.classic_control import PendulumEnv\n'
        "gymnasium.register('Elsewhere-v0', PendulumEnv, reward_threshold=-3, "
        'max_episode_steps=4)\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    environment = GymnasiumEnvironment('elsewhere:Elsewhere-v0')
    assert (environment.max_steps, environment.reward_threshold) == (4, -3)
    assert environment.name == 'Elsewhere-v0'


def test_names_of_tasks():
    assert gymnasium_id('reach') is None
    assert gymnasium_id('gymnasium:a:B-v0') == 'a:B-v0'
    for task in ('gym:CartPole-v1', 'gymnasium:', 'gymnasium', ''):
        with pytest.raises(ConfigurationError, match='expected reach or gymnasium:ID'):
            gymnasium_id(task)


def test_an_environment_is_made_as_the_policy_knows_it():
    known = Spec(cameras=(), state_dim=3, num_actions=1, action_bins=17)
    assert make_gymnasium('Pendulum-v1', known).spec == known
    assert make_gymnasium('Pendulum-v1').spec.action_bins == 256
    with pytest.raises(ConfigurationError, match=r'it has state_dim 4, not 3; action_bins 2, not'):
        make_gymnasium('CartPole-v1', known)
    with pytest.raises(ConfigurationError, match=r'it has action_bins 8, not 17'):
        make_gymnasium('Pendulum-v1', known, action_bins=8)


def test_the_policys_camera_is_rendered(monkeypatch):
    monkeypatch.setattr(
        gymnasium, 'make', lambda name, render_mode: Scripted(render_mode=render_mode)
    )
    camera = Camera(name='render', height=3, width=4)
    known = Spec(cameras=(camera,), state_dim=2, num_actions=1, action_bins=3)
    assert make_gymnasium('Scripted-v0', known).spec == known


def test_an_episode_is_stored_as_it_was_played(tmp_path):
    """Again by hand: the stored bins lead through the stored states to the stored rewards."""
    environment = GymnasiumEnvironment('CartPole-v1', max_steps=18)
    policy = RandomPolicy(environment.spec, seed=1)
    with ReplayWriter(tmp_path / 'r', environment.spec, None) as writer:
        for seed in range(6):
            writer.add(play(policy, environment, seed))
    folder = ReplayFolder(tmp_path / 'r')
    assert folder.contract is None
    plain = gymnasium.make('CartPole-v1')
    ends = set()
    for seed in range(6):
        stored = folder.episode(seed)
        actions = [int(bins[0]) for bins in stored.bins]
        values, rewards, terminated, _ = run_by_hand(plain, seed, actions)
        assert np.array_equal(stored.state, np.array(values, np.float32))
        assert stored.reward.tolist() == rewards
        assert (stored.terminal, stored.timeout) == (terminated, not terminated)
        assert stored.outcome == 'failure'  # below 475
        ends.add(terminated)
    assert ends == {True, False}


def test_the_bins_that_are_stored_are_those_that_were_carried_out():
    space = spaces.MultiDiscrete([9, 2])
    ends = [(False, False)] * 19 + [(True, False)]
    environment = GymnasiumEnvironment(Scripted(action_space=space, ends=ends))
    episode = play(RandomPolicy(environment.spec), environment, 0)
    assert episode.bins.tolist() == [action.tolist() for action in environment.environment.actions]
    assert episode.bins[:, 1].max() == 1
    assert (episode.outcome, episode.instruction) == ('unlabeled', '')


@pytest.mark.parametrize(
    ('threshold', 'outcome'), [(None, 'unlabeled'), (3.5, 'success'), (3.6, 'failure')]
)
def test_an_episode_at_the_threshold_is_a_success(threshold, outcome):
    environment = GymnasiumEnvironment(
        Scripted(rewards=(1.0, 2.5), ends=((False, False), (True, False)))
    )
    environment.reward_threshold = threshold
    assert play(RandomPolicy(environment.spec), environment, 0).outcome == outcome


def test_the_policy_is_told_rewards_and_sentence():
    class Listening(RandomPolicy):
        heard: list = []  # noqa: RUF012

        def reset(self, instruction):
            self.heard.append(instruction)

        def receive(self, reward):
            self.heard.append(reward)

    scripted = Scripted(rewards=(1.0, 2.5), ends=((False, False), (True, False)))
    environment = GymnasiumEnvironment(scripted, sentence='go')
    policy = Listening(environment.spec)
    episode = play(policy, environment, 0)
    assert policy.heard == ['go', 1.0, 2.5]
    assert (episode.instruction, episode.reward.tolist()) == ('go', [1.0, 2.5])


def test_state_order_is_gymnasiums():
    space = spaces.Dict({'b': spaces.Box(-1, 1, (2, 2)), 'a': spaces.MultiDiscrete([3, 2])})
    space.seed(0)
    value = space.sample()
    _, state = Senses.of(space).read(value)
    assert np.array_equal(state, flatten(space, value).astype(np.float32))
