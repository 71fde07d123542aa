# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
import dataclasses

import numpy as np
import pytest
import torch
from einops import rearrange

from qt_core.agent import Agent, AgentError
from qt_core.configuration import ConfigurationError
from qt_core.contract import ContractError
from qt_core.environments import BaseEnvironment, StateError, Step
from qt_core.mocks import SENTENCES, MockEnvironment
from qt_core.models import QRoboticTransformer
from qt_core.observation import Observation, normalise_state
from qt_core.replay import ReplayError, ReplayFolder, ReplayMemoryDataset
from qt_core.spec import Camera, Spec
from test.conftest import TINY_MODEL

STACK = (3, 3, 8, 8)  # C, F, H, W


@dataclasses.dataclass(frozen=True, kw_only=True)
class FakeConfig(Spec):
    cameras: tuple[Camera, ...] = (Camera(height=8, width=8),)
    num_actions: int = 2
    action_bins: int = 10
    frames: int = 3
    condition_on_text: bool = True
    text_dim: int = 8


class FakeEncoder:
    model_name = 'fake'

    def embed(self, sentences):
        rows = [np.random.default_rng(list(s.encode())).normal(size=8) for s in sentences]
        return np.array(rows, np.float32)


class FakePolicy:
    """Greedy bins are a hash of what it is given; records every call."""

    def __init__(self, **options):
        self.config = FakeConfig(**options)
        self.sentence_encoder = FakeEncoder()
        self.device = torch.device('cpu')
        self.training = True
        self.calls = []
        self.embedded = []
        self.random = torch.Generator().manual_seed(0)

    def train(self, mode=True):
        self.training = mode

    def embed_texts(self, texts):
        self.embedded += texts
        return torch.from_numpy(self.sentence_encoder.embed(texts))

    def get_actions(self, video, *, text_embeds, state, past_actions, prob_random_action):
        assert not self.training
        self.calls.append((video, text_embeds, state, past_actions, prob_random_action))
        seen = 0
        for frames in (video or {}).values():
            seen = (
                seen
                + frames.double().flatten(1) @ torch.arange(1.0, frames[0].numel() + 1).double()
            )
        if state is not None:
            seen = seen + 1000 * state.double().flatten(1).abs().sum(1)
        if text_embeds is not None:
            seen = seen + 100 * text_embeds.double().flatten(1).abs().sum(1)
        shape = (len(past_actions), self.config.num_actions)
        best = (seen[:, None] + torch.arange(shape[1])).long() % (self.config.action_bins - 1) + 1
        if prob_random_action == 0:
            return best
        random = torch.rand(shape, generator=self.random) < prob_random_action
        return torch.where(random, 0, best)  # bin 0 is never the best here


class Recorded(MockEnvironment):
    """Keeps what it gave and what it was told."""

    def __init__(self, *args, ends=None, **options):
        super().__init__(*args, **options)
        self.ends, self.states, self.actions, self.rewards, self.dones = ends, [], [], [], []
        self.sentences = []

    def init(self):
        sentence, state = super().init()
        self.sentences.append(sentence)
        self.states.append([state.clone()])
        self.actions.append([])
        self.rewards.append([])
        self.dones.append([])
        return sentence, state

    def forward(self, actions):
        reward, state, done = super().forward(actions)
        if self.ends is not None:
            done = torch.tensor(len(self.actions[-1]) + 1 == self.ends)
        self.states[-1].append(state.clone())
        self.actions[-1].append(actions[0].tolist())
        self.rewards[-1].append(float(reward))
        self.dones[-1].append(bool(done))
        return reward, state, done


def explore(tmp_path, model, environment, name='r', **options):
    options = {'num_episodes': 3, 'max_num_steps_per_episode': 30} | options
    agent = Agent(
        model, environment=environment, memories_dataset_folder=tmp_path / name, **options
    )
    return agent()


def episodes_of(folder):
    """Give each episode as dict of arrays, by its source."""
    found = {}
    for entry in folder.episodes:
        rows = slice(entry['start'], entry['start'] + entry['steps'] + 1)
        found[entry['source']] = {
            'sentence': folder.instructions[entry['instruction']],
            **{name: array[rows] for name, array in folder.shards[entry['shard']].items()},
        }
    return found


@pytest.mark.parametrize('shape', [STACK, (3, 8, 8), (4,)])
def test_what_is_stored_is_what_the_environment_gave(tmp_path, shape):
    vector = {'cameras': (), 'state_dim': 4} if len(shape) == 1 else {}
    environment = Recorded(shape, (8,), seed=3)
    folder = explore(tmp_path, FakePolicy(**vector), environment)
    assert len(folder.episodes) == 3
    for number, stored in enumerate(episodes_of(folder).values()):
        states = torch.stack(environment.states[number])
        if len(shape) == 1:
            assert np.array_equal(stored['state'], states)
        else:
            newest = states[:, :, -1] if len(shape) == 4 else states
            pixels = rearrange(newest, 't c h w -> t h w c')
            error = stored['images_video'] / np.float32(127.5) - 1 - pixels.numpy()
            assert np.abs(error).max() < 1e-6
        assert stored['bins'][:-1].tolist() == environment.actions[number]
        assert stored['reward'][:-1].tolist() == environment.rewards[number]
        assert stored['terminal'][:-1].tolist() == environment.dones[number]
        assert stored['sentence'] == environment.sentences[number]
    assert np.array_equal(folder.embeddings, FakeEncoder().embed(folder.instructions))
    assert folder.sentence_model == 'fake'


def test_uint8_pixels_are_stored_as_they_are(tmp_path):
    class Bytes(Recorded):
        def _noise(self, shape):
            return torch.randint(256, shape, generator=self._random, dtype=torch.uint8)

    environment = Bytes((3, 8, 8), 8)
    (stored, *_) = episodes_of(explore(tmp_path, FakePolicy(), environment)).values()
    states = rearrange(torch.stack(environment.states[0]), 't c h w -> t h w c')
    assert np.array_equal(stored['images_video'], states)


def test_the_policy_sees_the_stored_frames_since_the_start(tmp_path):
    model = FakePolicy()
    environment = Recorded(STACK, 8, ends=6)
    explore(tmp_path, model, environment, num_episodes=1)
    stored = ReplayFolder(tmp_path / 'r').shards[0]
    for t, (video, _, state, past, _) in enumerate(model.calls):
        first = max(0, t - 2)
        frames = stored['images_video'][first : t + 1]
        assert np.array_equal(rearrange(video['video'][0], 'c f h w -> f h w c'), frames)
        assert past.tolist() == [stored['bins'][first:t].tolist()]
        assert state is None
    assert len(model.calls) == 6


def test_a_policy_and_its_training_see_the_same(tmp_path):
    model = FakePolicy()
    folder = explore(tmp_path, model, Recorded(STACK, 8, ends=7), num_episodes=1)
    dataset = ReplayMemoryDataset(folder).with_frames(3)
    for t, (video, *_) in enumerate(model.calls):
        window = dataset[t].images['video'][0, : min(t + 1, 3)]
        assert torch.equal(rearrange(video['video'][0], 'c f h w -> f h w c'), window)


def test_epsilon_falls_over_training_and_not_over_the_episode(tmp_path):
    model = FakePolicy()
    agent = Agent(
        model,
        environment=Recorded(STACK, 8, ends=5),
        memories_dataset_folder=tmp_path / 'a',
        num_episodes=4,
        epsilon_start=0.5,
        epsilon_end=0.1,
        num_steps_to_target_epsilon=16,
    )
    agent()
    agent.folder = tmp_path / 'b'
    agent()
    expected = [0.5 - 0.4 * min(1, step / 16) for step in range(40)]
    assert [call[-1] for call in model.calls] == pytest.approx(expected)
    assert (agent.steps, agent.episodes) == (40, 8)


def test_several_environments_advance_epsilon_by_every_step(tmp_path):
    model = FakePolicy()
    several = [Recorded(STACK, 8, ends=5, seed=seed) for seed in range(3)]
    options = {'epsilon_start': 0.9, 'epsilon_end': 0.0, 'num_steps_to_target_epsilon': 15}
    explore(tmp_path, model, several, num_episodes=6, **options)
    expected = [0.9 * max(0, 1 - 3 * call / 15) for call in range(10)]
    assert [call[-1] for call in model.calls] == pytest.approx(expected)
    assert all(len(call[3]) == 3 for call in model.calls)  # one call for all of them


@pytest.mark.parametrize('epsilon', [0.0, 0.3])
def test_the_share_of_random_bins_is_epsilon(tmp_path, epsilon):
    folder = explore(
        tmp_path,
        FakePolicy(num_actions=4),
        Recorded(STACK, 8, ends=250),
        num_episodes=4,
        max_num_steps_per_episode=250,
        epsilon_start=epsilon,
        epsilon_end=epsilon,
    )
    bins = np.concatenate([e['bins'][:-1] for e in episodes_of(folder).values()])
    assert bins.size == 4000
    assert (bins == 0).mean() == pytest.approx(epsilon, abs=0.03)


@pytest.mark.parametrize(
    ('ends', 'steps', 'terminal'), [(4, 4, True), (5, 5, True), (6, 5, False), (99, 5, False)]
)
def test_terminal_and_timeout_are_told_apart(tmp_path, ends, steps, terminal):
    environment = Recorded(STACK, 8, ends=ends)
    folder = explore(tmp_path, FakePolicy(), environment, max_num_steps_per_episode=5)
    for stored in episodes_of(folder).values():
        last = np.arange(steps + 1) == steps - 1
        assert np.array_equal(stored['terminal'], last & terminal)
        assert np.array_equal(stored['timeout'], last & (not terminal))


def test_side_by_side_gives_the_episodes_of_one_by_one(tmp_path):
    def environment(seed):
        return Recorded(STACK, 8, seed=seed)

    greedy = {'epsilon_start': 0.0, 'epsilon_end': 0.0, 'max_num_steps_per_episode': 12}
    together = explore(
        tmp_path, FakePolicy(), [environment(seed) for seed in range(3)], num_episodes=6, **greedy
    )
    side_by_side = episodes_of(together)
    lengths = {len(e['bins']) for e in side_by_side.values()}
    assert len(lengths) > 1  # or nothing drops out on the way
    for seed in range(3):
        alone = explore(
            tmp_path, FakePolicy(), environment(seed), name=f's{seed}', num_episodes=2, **greedy
        )
        for turn, expected in enumerate(episodes_of(alone).values()):
            found = side_by_side[f'episode_{seed + 3 * turn:06d}']
            assert found.keys() == expected.keys()
            for name in found:
                if name == 'instruction':  # the row of the folder's own table
                    continue
                assert np.array_equal(found[name], expected[name]), name


def test_a_sentence_is_embedded_once(tmp_path):
    model = FakePolicy()
    explore(tmp_path, model, Recorded(STACK, 8, ends=2), num_episodes=12)
    assert sorted(model.embedded) == sorted(SENTENCES)


def test_without_sentences(tmp_path):
    model = FakePolicy(condition_on_text=False)
    folder = explore(tmp_path, model, Recorded(STACK, ends=2))
    assert folder.embeddings is None
    assert model.embedded == []
    assert all(call[1] is None for call in model.calls)
    assert ReplayMemoryDataset(folder, condition_on_text=False)[0].text is None


@pytest.mark.parametrize('training', [True, False])
def test_the_mode_of_the_model_is_restored(tmp_path, training):
    model = FakePolicy()
    model.train(training)
    explore(tmp_path, model, Recorded(STACK, 8, ends=2))
    assert model.training == training
    model.get_actions = None
    with pytest.raises(TypeError):
        explore(tmp_path, model, Recorded(STACK, 8, ends=2), name='other')
    assert model.training == training


class Interrupted(Recorded):
    error: type[BaseException] = KeyboardInterrupt
    after = 2

    def forward(self, actions):
        if len(self.actions) > self.after:
            raise self.error
        return super().forward(actions)


def test_ctrl_c_keeps_the_episodes_that_are_finished(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        explore(tmp_path, FakePolicy(), Interrupted(STACK, 8, ends=4), num_episodes=9)
    folder = ReplayFolder(tmp_path / 'r')
    assert [entry['steps'] for entry in folder.episodes] == [4, 4]
    assert [path.name for path in tmp_path.iterdir()] == ['r']


@pytest.mark.parametrize(('error', 'after'), [(KeyboardInterrupt, 0), (RuntimeError, 2)])
def test_an_exception_leaves_nothing_behind(tmp_path, error, after):
    environment = Interrupted(STACK, 8, ends=4)
    environment.error, environment.after = error, after
    with pytest.raises(error):
        explore(tmp_path, FakePolicy(), environment, num_episodes=9)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_content_is_not_overwritten(tmp_path):
    explore(tmp_path, FakePolicy(), Recorded(STACK, 8, ends=2))
    with pytest.raises(ReplayError, match='exists and is not empty'):
        explore(tmp_path, FakePolicy(), Recorded(STACK, 8, ends=2))


class Broken(MockEnvironment):
    """Changes the second state or reward."""

    change = staticmethod(lambda state: state)
    reward = 0.0

    def forward(self, actions):
        _, state, done = super().forward(actions)
        return torch.tensor(self.reward), self.change(state), done


@pytest.mark.parametrize(
    ('shape', 'change', 'message'),
    [
        (STACK, lambda s: s.flip(1), 'append the new one last'),
        (STACK, torch.zeros_like, 'not those of the state before'),
        (
            STACK,
            lambda s: s[:, :2],
            r'shape \(3, 2, 8, 8\), expected its state_shape \(3, 3, 8, 8\)',
        ),
        (
            (3, 8, 8),
            lambda s: 127.5 * (s + 1),
            r'pixels in \S+, expected uint8, or float in -1\.\.1',
        ),
        ((3, 8, 8), lambda s: s * torch.nan, 'pixels in nan'),
        ((3, 8, 8), lambda s: s.long(), r'pixels as torch\.int64'),
        ((4,), lambda s: s / 0, 'not finite'),
    ],
)
def test_a_state_that_breaks_the_rules_is_one_line(tmp_path, shape, change, message):
    vector = {'cameras': (), 'state_dim': 4} if len(shape) == 1 else {}
    environment = Broken(shape, 8)
    environment.change = change
    with pytest.raises(StateError, match=message) as error:
        explore(tmp_path, FakePolicy(**vector), environment)
    assert '\n' not in str(error.value)


def test_a_stack_changed_in_place_is_compared_with_what_it_was(tmp_path):
    class InPlace(MockEnvironment):
        def forward(self, actions):
            self._state.copy_(self._state.roll(-1, dims=1))
            self._state[:, -1] = self._noise((3, 8, 8))
            return torch.tensor(0.0), self._state, torch.tensor(False)

    folder = explore(tmp_path, FakePolicy(), InPlace(STACK, 8), max_num_steps_per_episode=4)
    assert folder.steps == 12


def test_a_reward_that_is_no_number_is_refused(tmp_path):
    environment = Broken(STACK, 8)
    environment.reward = float('nan')
    with pytest.raises(StateError, match='gave the reward nan'):
        explore(tmp_path, FakePolicy(), environment)


@pytest.mark.parametrize('bins', [[[0, 10]], [[-1, 0]], [[0]], [0, 1]])
def test_bins_that_do_not_exist_are_refused(tmp_path, bins):
    model = FakePolicy()
    model.get_actions = lambda *args, **options: torch.tensor(bins)
    with pytest.raises(AgentError, match=r'expected bins \(1, 2\) in 0\.\.9'):
        explore(tmp_path, model, Recorded(STACK, 8))


@pytest.mark.parametrize(
    ('environment', 'options', 'message'),
    [
        (
            MockEnvironment(STACK, (768,)),
            {},
            r'text_embed_shape is \(768,\), expected \(8,\), the w',
        ),
        (
            MockEnvironment((3, 3, 9, 8), 8),
            {},
            r'state_shape is \(3, 3, 9, 8\), but the model sees',
        ),
        (MockEnvironment((4,), 8), {}, r'state_shape is \(4,\), but the model sees'),
        ([], {}, 'environment is'),
        ([MockEnvironment(STACK, 8)] * 2, {}, 'given twice'),
        (MockEnvironment(STACK, 8), {'epsilon_end': 0.5}, 'epsilon_end is 0.5'),
        (MockEnvironment(STACK, 8), {'num_episodes': 0}, 'num_episodes is 0'),
    ],
)
def test_what_does_not_fit_is_refused_at_once(tmp_path, environment, options, message):
    with pytest.raises(ConfigurationError, match=message):
        Agent(FakePolicy(), environment=environment, **options)


def test_a_state_shape_of_two_axes_is_refused():
    with pytest.raises(StateError, match=r'state_shape is \(3, 4\)'):
        BaseEnvironment((3, 4), 8)


class Robot:
    """An `Environment` that goes on for ever, all of it following from the seed."""

    def __init__(self, contract, timeout_after=None):
        self.contract, self.spec = contract, Spec.of(contract)
        self.timeout_after = timeout_after
        self.seeds = []

    def reset(self, seed):
        self.seeds.append(seed)
        self.random = np.random.default_rng(seed)
        self.taken = 0
        return self._observe(), f'sentence {seed % 2}'

    def step(self, bins):
        assert bins.shape == (self.contract.action.dimensions,)
        self.taken += 1
        return Step(self._observe(), 0.25, False, timeout=self.taken == self.timeout_after)

    def _observe(self):
        camera = self.contract.cameras[0]
        image = self.random.integers(0, 256, (camera.height, camera.width, 3), np.uint8)
        state = self.random.uniform(-1, 1, len(self.contract.state.joints)).astype(np.float32)
        return Observation({camera.name: image}, state)


def robot_policy(contract):
    return FakePolicy(**Spec.of(contract).fields())


def test_a_robots_environment_is_explored_under_its_contract(tmp_path, tiny_contract):
    from qt_core.action_space import ActionSpace

    model, robot = robot_policy(tiny_contract), Robot(tiny_contract, timeout_after=3)
    folder = explore(tmp_path, model, robot, first_seed=40)
    assert folder.contract == tiny_contract
    assert robot.seeds == [40, 41, 42]
    for stored in episodes_of(folder).values():
        values = ActionSpace(tiny_contract).decode(stored['bins'][:-1])
        assert np.array_equal(stored['action'][:-1], values.astype(np.float32))
        assert stored['timeout'].tolist() == [False, False, True, False]
    first = folder.shards[0]['state'][:1]
    assert np.array_equal(model.calls[0][2][0], normalise_state(tiny_contract.state, first))


def test_a_robots_episodes_do_not_depend_on_who_runs_beside(tmp_path, tiny_contract):
    greedy = {'epsilon_start': 0.0, 'epsilon_end': 0.0, 'max_num_steps_per_episode': 4}

    def content(name, robots):
        model = robot_policy(tiny_contract)
        found = episodes_of(explore(tmp_path, model, robots, name, num_episodes=5, **greedy))
        return {key: found[key] for key in sorted(found)}

    alone = content('one', Robot(tiny_contract))
    beside = content('three', [Robot(tiny_contract) for _ in range(3)])
    assert alone.keys() == beside.keys()
    for key, episode in alone.items():
        for name, values in episode.items():
            assert np.array_equal(values, beside[key][name]), (key, name)


def test_robots_must_be_of_one_kind_that_the_policy_knows(tmp_path, contract, tiny_contract):
    model = robot_policy(tiny_contract)
    with pytest.raises(ConfigurationError, match='what the environment shows'):
        Agent(model, environment=Robot(contract))
    with pytest.raises(ContractError, match='cameras'):
        Agent(model, environment=[Robot(tiny_contract), Robot(contract)])
    with pytest.raises(ConfigurationError, match='two kinds'):
        Agent(model, environment=[Robot(tiny_contract), MockEnvironment(STACK, 8)])


def test_the_mock_keeps_the_rules():
    environments = [MockEnvironment(STACK, 8, seed=seed) for seed in (0, 0, 1)]
    runs = []
    for environment in environments:
        state = environment.init()[1]
        states, returns, dones = [state], [0.0], 0
        for _ in range(300):
            reward, state, done = environment(torch.zeros(1, 2, dtype=torch.long))
            assert state.shape == STACK
            assert reward.shape == done.shape == ()
            assert torch.equal(state[:, :-1], states[-1][:, 1:])
            assert torch.equal(((state + 1) * 127.5).round().byte() / 127.5 - 1, state)
            returns[-1] += float(reward)
            if done:
                dones += 1
                returns.append(0.0)
            states.append(state)
        assert set(returns) == {0.0, 1.0}
        assert dones > 0
        runs.append(torch.stack(states))
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


@pytest.mark.parametrize('conditioning', ['film', 'cross_attention'])
@pytest.mark.parametrize('shape', [(3, 3, 32, 32), (5,)])
def test_a_real_model_explores(tmp_path, shape, conditioning):
    vector = len(shape) == 1
    spec = Spec(
        cameras=() if vector else (Camera(height=32, width=32),),
        state_dim=5 if vector else 0,
        num_actions=3,
        action_bins=6,
    )
    config = dataclasses.replace(TINY_MODEL, frames=3, memory=1, conditioning=conditioning)
    model = QRoboticTransformer(config.fitted(spec))
    encoder = FakeEncoder()
    encoder.embed_tokens = lambda sentences: np.stack(
        [encoder.embed(s.split()[: len(s) - 20]) for s in sentences]
    )
    model.sentence_encoder = encoder
    several = [MockEnvironment(shape, 8, seed=seed) for seed in range(2)]
    folder = explore(tmp_path, model, several, num_episodes=4, max_num_steps_per_episode=6)
    assert folder.spec == spec
    assert model.training
    batch = ReplayMemoryDataset(folder).with_frames(3).gather(range(4))
    text = (
        batch.text
        if conditioning == 'film'
        else model.embed_texts(SENTENCES[:1]).expand(4, -1, -1)
    )
    logits = model(
        {name: frames[:, :-1] for name, frames in batch.images.items()},
        batch.state[:, :-1] if vector else None,
        text,
        batch.bins,
    )
    assert logits.shape == (1, 4, 3, 3, 6)
