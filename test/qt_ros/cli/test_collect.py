# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`qt-ros collect` in Gymnasium environments, and on from there; reach is in test_demo."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import yaml

gymnasium = pytest.importorskip('gymnasium')

from qt_core.environments.gymnasium import GymnasiumEnvironment
from qt_core.policies import load_policy
from qt_core.replay import ReplayFolder, verification
from qt_ros.cli.main import main

ROOT = Path(__file__).resolve().parents[3]
CART = ('--task', 'gymnasium:CartPole-v1')
TINY = {
    'q_transformer': """
num_train_steps: 8
batch_size: 4
model:
  condition_on_text: {told}
  text_dim: 384
  frames: 2
  dim: 32
  depth: 1
  decoder_depth: 1
  heads: 2
  dim_head: 16
  return_range: [0, 60]
  vit: {{dim: 8, depth: [1], heads: 2, dim_head: 4, window_size: 4}}
""",
    'decision_transformer': """
num_train_steps: 4
batch_size: 4
model: {{condition_on_text: {told}, context: 3, dim: 32, depth: 1, heads: 2, max_ep_len: 20}}
""",
    'gato': """
num_train_steps: 4
batch_size: 4
model: {{context: 64, width: 32, depth: 1, heads: 2, dim_head: 16, ff_width: 64, text_ids: 300}}
""",
}


class Painted(gymnasium.Env):
    """A number that goes up or down, and a picture of it; wide apart, as states may be."""

    metadata = {'render_modes': ['rgb_array'], 'render_fps': 10}  # noqa: RUF012
    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = gymnasium.spaces.MultiDiscrete([3, 2])

    def __init__(self, render_mode=None):
        self.render_mode = render_mode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count, self.value = 0, int(self.np_random.integers(5))
        return np.array([1000.0 * self.value, -0.001]), {}

    def step(self, action):
        self.value = min(max(self.value + int(action[0]) - 1, 0), 9)
        self.count += 1
        state = np.array([1000.0 * self.value, -0.001])
        return state, float(self.value), self.value == 9, self.count == 6, {}

    def render(self):
        picture = np.zeros((20, 20, 3), np.uint8)
        picture[:, : 2 * self.value] = 255
        return picture


@pytest.fixture(autouse=True)
def registered():
    gymnasium.register('Painted-v0', Painted, reward_threshold=12)
    yield
    del gymnasium.registry['Painted-v0']


@pytest.fixture
def collected(tmp_path, capsys):
    """Run `qt-ros collect`; give the folder that it wrote."""

    def run(*words, name='replay'):
        out = tmp_path / name
        assert main(['collect', *map(str, words), '--out', str(out)]) == 0
        folder = ReplayFolder(out)
        assert f'{out}: {len(folder.episodes)} episodes, ' in capsys.readouterr().out
        return folder

    return run


def test_random_episodes_become_a_replay_folder(collected):
    folder = collected(*CART, '--episodes', 4, '--seed', 5)
    assert [episode['source'] for episode in folder.episodes] == [
        f'CartPole-v1 seed {seed}' for seed in range(5, 9)
    ]
    assert (folder.contract, folder.embeddings, folder.instructions) == (None, None, [''])
    plain = gymnasium.make('CartPole-v1')
    for number in range(4):
        episode = folder.episode(number)
        assert np.array_equal(plain.reset(seed=5 + number)[0], episode.state[0])
        for bins, state in zip(episode.bins, episode.state[1:], strict=True):
            assert np.array_equal(plain.step(int(bins[0]))[0], state)
    bins = [folder.episode(number).bins.tolist() for number in range(4)]
    assert bins[0] != bins[1]
    again = collected(*CART, '--episodes', 4, '--seed', 5, name='again')
    assert [again.episode(number).bins.tolist() for number in range(4)] == bins


def test_pictures_bins_and_limits_are_as_asked_for(collected):
    words = ('--task', 'gymnasium:Painted-v0', '--render', '10x8', '--max-steps', 3)
    folder = collected(*words, '--episodes', 2)
    assert [(c.name, c.height, c.width) for c in folder.spec.cameras] == [('render', 10, 8)]
    for number in range(2):
        episode = folder.episode(number)
        assert (len(episode.bins), episode.timeout) == (3, True)
        for picture, state in zip(episode.images['render'], episode.state, strict=True):
            assert picture.mean() / 255 == pytest.approx(state[0] / 10_000, abs=0.02)
        assert episode.bins.max(axis=0)[1] <= 1
    pendulum = collected(
        *('--task', 'gymnasium:Pendulum-v1', '--action-bins', 7, '--episodes', 1), name='p'
    )
    assert pendulum.spec.action_bins == 7
    assert np.unique(pendulum.episode(0).bins).tolist() == list(range(7))


def test_a_sentence_is_embedded_and_no_sentence_needs_no_model(collected, monkeypatch):
    from qt_core.instruction import SentenceEncoder

    asked = []

    def embed(self, sentences):
        asked.extend(sentences)
        return np.ones((len(sentences), 384), np.float32)

    monkeypatch.setattr(SentenceEncoder, 'embed', embed)
    collected(*CART, '--episodes', 2)
    assert asked == []
    folder = collected(*CART, '--episodes', 2, '--sentence', 'balance the pole', name='told')
    assert asked == ['balance the pole']
    assert folder.instructions == ['balance the pole']
    assert folder.embeddings.shape == (1, 384)


@pytest.mark.parametrize(
    ('policy', 'told'),
    [
        ('q_transformer', False),
        ('q_transformer', True),
        ('decision_transformer', False),
        ('gato', False),
    ],
)
def test_collect_train_evaluate_and_collect_with_what_was_learned(
    collected, tmp_path, monkeypatch, policy, told
):
    from qt_core.instruction import SentenceEncoder

    monkeypatch.setattr(
        SentenceEncoder, 'embed', lambda self, s: np.ones((len(s), 384), np.float32)
    )
    task = ['--task', 'gymnasium:Painted-v0']
    sentence = ['--sentence', 'go up'] if told else []
    camera = ['--render', '16x16'] if told else []
    collected(*task, '--episodes', 6, *sentence, *camera)
    assert verification.verify(tmp_path / 'replay') == []
    config, run = tmp_path / 'tiny.yaml', tmp_path / 'run'
    config.write_text(f'policy: {policy}\n' + TINY[policy].format(told=str(told).lower()))
    replay = str(tmp_path / 'replay')
    assert main(['train', str(config), '--replay', replay, '--out', str(run)]) == 0
    checkpoint, report = str(run / 'last'), tmp_path / 'report.json'
    words = [*task, '--episodes', '3', *sentence]
    assert main(['evaluate', checkpoint, *words, '--out', str(report)]) == 0
    found = json.loads(report.read_text())
    assert found['judged']
    assert all(np.isfinite(e['total_return']) for e in found['episodes'])
    folder = collected(*task, '--policy', checkpoint, '--episodes', 3, *sentence, name='greedy')
    acting = load_policy(checkpoint)
    render = (16, 16) if told else False
    with GymnasiumEnvironment('Painted-v0', render=render) as environment:
        for number in range(3):
            episode = folder.episode(number)
            observation, _ = environment.reset(number)
            acting.reset(episode.instruction)
            for stored in episode.bins:
                bins = environment.encode(environment.decode(acting.act(observation).bins))
                assert np.array_equal(bins, stored)
                step = environment.step(bins)
                acting.receive(step.reward)
                observation = step.observation
    assert all((e['outcome'] == 'success') == (e['return'] >= 12) for e in folder.episodes)
    words = ('--policy', checkpoint, '--exploration', 1, '--episodes', 3, *sentence)
    explored = collected(*task, *words, name='explored')
    everything = [tuple(explored.episode(number).bins.reshape(-1)) for number in range(3)]
    assert len(set(everything)) > 1


def test_ctrl_c_keeps_whole_episodes(tmp_path, monkeypatch, capsys):
    step, count = Painted.step, [0]

    def interrupted(self, action):
        count[0] += 1
        if count[0] == 15:  # in the third episode
            raise KeyboardInterrupt
        return step(self, action)

    monkeypatch.setattr(Painted, 'step', interrupted)
    words = ['collect', '--task', 'gymnasium:Painted-v0', '--episodes', '9']
    assert main([*words, '--out', str(tmp_path / 'replay')]) == 130
    folder = ReplayFolder(tmp_path / 'replay')
    assert [e['source'] for e in folder.episodes] == ['Painted-v0 seed 0', 'Painted-v0 seed 1']
    assert verification.verify(tmp_path / 'replay') == []
    assert 'replay: 2 episodes, ' in capsys.readouterr().out
    count[0] = 14
    assert main([*words, '--out', str(tmp_path / 'none')]) == 130
    assert not (tmp_path / 'none').exists()


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (('--policy', 'random'), '--policy does not go with --task reach'),
        (('--exploration', '0.5'), '--exploration does not go with --task reach'),
        (('--sentence', 'x'), '--sentence does not go with --task reach'),
        (('--action-bins', '5'), '--action-bins does not go with --task reach'),
        (('--render', '8x8'), '--render does not go with --task reach'),
        (('--max-steps', '8'), '--max-steps does not go with --task reach'),
        ((*CART, '--noise', '0'), '--noise does not go with --task gymnasium:CartPole-v1'),
        ((*CART, '--contract', 'x'), '--contract does not go with --task'),
        ((*CART, '--exploration', '0.5'), "policy is 'random', expected a checkpoint"),
        ((*CART, '--exploration', '2'), 'exploration is 2.0, expected 0..1'),
        ((*CART, '--render', '8'), "--render is '8', expected HxW"),
        (('--task', 'gymnasium:Painted-v0', '--render', '0x8'), 'camera.height is 0'),
        ((*CART, '--policy', 'absent'), 'absent: not a checkpoint'),
        ((*CART, '--max-steps', '0'), 'max_steps is 0, expected at least 1'),
        (('--task', 'gymnasium:Pendulum-v1', '--action-bins', '1'), 'action_bins is 1'),
        (('--task', 'gymnasium:Nope-v1'), "doesn't exist"),
        (('--task', 'walk'), "task is 'walk', expected reach or gymnasium:ID"),
        ((*CART, '--seed', '999999'), '--seed is 999999'),
    ],
)
def test_what_does_not_fit_is_one_line(capfd, tmp_path, words, message):
    out = tmp_path / 'out'
    assert main(['collect', *words, '--episodes', '2', '--out', str(out)]) == 1
    lines = [line for line in capfd.readouterr().err.splitlines() if line]
    assert len(lines) == 1, lines
    assert message in lines[0]
    assert not out.exists()


def test_what_is_there_is_left_alone(capfd, tmp_path):
    out = tmp_path / 'replay'
    assert main(['collect', *CART, '--episodes', '1', '--out', str(out)]) == 0
    before = sorted((path, path.stat().st_mtime_ns) for path in out.rglob('*'))
    assert main(['collect', *CART, '--episodes', '1', '--out', str(out)]) == 1
    assert 'is not empty' in capfd.readouterr().err
    assert sorted((path, path.stat().st_mtime_ns) for path in out.rglob('*')) == before


def test_what_the_documentation_shows_holds(tmp_path, monkeypatch):
    """Every command and program of docs/tasks.md, with few episodes and steps."""
    text = (ROOT / 'docs/tasks.md').read_text()
    blocks = re.findall(r'```(\w+)\n(.*?)```', text, re.S)
    by_kind = {
        kind: [body for k, body in blocks if k == kind] for kind in ('sh', 'yaml', 'python')
    }
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / 'out').mkdir()
    settings = yaml.safe_load(by_kind['yaml'][0]) | {'num_train_steps': 5, 'batch_size': 4}
    (tmp_path / 'out/cartpole.yaml').write_text(yaml.safe_dump(settings))
    (tmp_path / 'lab.py').write_text(by_kind['python'][0])
    commands = [line for block in by_kind['sh'] for line in block.splitlines()]
    assert len(commands) == 6
    for command in commands:
        words = shlex.split(re.sub(r'--episodes \d+', '--episodes 2', command))
        words = words[words.index('qt-ros') + 1 :]
        assert main(words) == 0, command
    for number, other in enumerate(by_kind['yaml'][1:]):
        settings = yaml.safe_load(other) | {'num_train_steps': 2, 'batch_size': 4}
        (tmp_path / 'other.yaml').write_text(yaml.safe_dump(settings))
        words = ['--replay', 'out/cartpole/replay', '--out', f'out/other{number}']
        assert main(['train', 'other.yaml', *words]) == 0, other
    assert ReplayFolder('out/car').spec.action_bins == 16
    found = {}
    exec(by_kind['python'][1], found)
    assert -1 <= found['step'].reward < 0
    assert found['bins'].tolist() == [19]
