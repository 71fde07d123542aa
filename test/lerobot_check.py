# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Check an export in the real package: what LeRobotDataset gives is what the replay folder holds.

It is no part of the test suite, because it installs the package lerobot (1.6 GB with torch) into a
virtual environment of its own, out/lerobot/venv. Run it with

    make lerobot-check

It goes both ways. It writes a small replay folder with two cameras, exports it with each kind of
action and codec, and in the virtual environment, without network, compares every frame: indices,
states, actions, rewards, flags and sentences exactly, images within what the codec loses. Windows
of several frames, which LeRobot finds by time, are compared as well. Then the package writes a
dataset of its own, which is imported and compared.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / 'bench')]

import lerobot_venv

CASES = (('absolute', 'h264'), ('raw', 'h264'), ('absolute', 'libsvtav1'))
LOSS = 4.0  # mean absolute difference of the images of a frame, of 255
RECORDED = 3  # episodes that the package writes
JOINTS = ('shoulder_pan', 'shoulder_lift', 'elbow', 'wrist_1', 'wrist_2', 'wrist_3', 'gripper')


def main() -> int:
    """Export, and compare in the virtual environment."""
    from qt_core.exchange.lerobot import LeRobotConfig, export_lerobot
    from qt_core.replay import ReplayFolder

    python = lerobot_venv.prepare()
    with tempfile.TemporaryDirectory() as scratch:
        folder = ReplayFolder(write_replay(Path(scratch) / 'replay'))
        for actions, codec in CASES:
            dataset = Path(scratch) / f'{actions}-{codec}'
            config = LeRobotConfig(actions=actions, codec=codec, data_mb=0.03, video_mb=0.02)
            export_lerobot(folder, dataset, config)
            write_expected(folder, dataset.with_suffix('.npz'), raw=actions == 'raw')
            command = [str(python), '-W', 'ignore', __file__, '--compare', str(dataset)]
            environment = lerobot_venv.environment(Path(scratch) / 'cache')
            if subprocess.run(command, env=environment).returncode:
                return 1
        dataset = Path(scratch) / 'recorded'
        command = [str(python), '-W', 'ignore', __file__, '--record', str(dataset)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            print(done.stderr, file=sys.stderr)
            return 1
        return compare_import(dataset, folder.contract)


def write_replay(path: Path) -> Path:
    """Write episodes of several lengths, sentences and endings, with two cameras."""
    from qt_core.contract import RobotContract
    from qt_core.replay import ReplayWriter
    from qt_core.share import share_path
    from test.qt_core.test_lerobot import plausible_episode

    contract = RobotContract.load(share_path('config/contracts/tabletop.yaml'))
    front = dataclasses.replace(contract.cameras[0], height=64, width=96)
    wrist = dataclasses.replace(front, name='wrist', topic='wrist', height=128)
    contract = dataclasses.replace(contract, cameras=(front, wrist))
    with ReplayWriter(path, contract, lambda s: np.zeros((len(s), 8), np.float32)) as writer:
        for seed in range(6):
            writer.add(plausible_episode(contract, seed, steps=30 + 7 * seed))
    return path


def write_expected(folder, path: Path, *, raw: bool) -> None:
    """Lay out what every frame should be, straight from the episodes."""
    from qt_core.action_space import ActionSpace

    space = ActionSpace(folder.contract)
    columns = {}

    def put(name, values):
        columns.setdefault(name, []).append(np.asarray(values))

    for number in range(len(folder.episodes)):
        episode = folder.episode(number)
        steps = len(episode.bins)
        held = np.zeros(len(space.state_index)) if raw else episode.state[-1][space.state_index]
        action = episode.action
        if not raw:
            pairs = zip(episode.action, episode.state[:-1], strict=True)
            action = [space.to_targets(a, s) for a, s in pairs]
        ending = np.arange(steps + 1) >= steps - 1
        put('observation.state', episode.state)
        put('action', np.vstack([action, held]).astype(np.float32))
        put('next.reward', np.append(episode.reward, 0).astype(np.float32))
        put('next.done', ending & (episode.terminal or episode.timeout))
        put('next.truncated', ending & episode.timeout)
        put('next.success', ending & (episode.outcome == 'success'))
        put('frame_index', np.arange(steps + 1))
        put('episode_index', np.full(steps + 1, number))
        put('task', [episode.instruction] * (steps + 1))
        for name, frames in episode.images.items():
            put(f'observation.images.{name}', frames[:])
    np.savez(path, **{name: np.concatenate(parts) for name, parts in columns.items()})


def compare_import(dataset: Path, contract) -> int:
    """Import what the package recorded, and compare; give the exit status."""
    from qt_core.action_space import ActionSpace
    from qt_core.exchange.lerobot_import import import_lerobot
    from qt_core.exchange.lerobot_matching import ImportConfig
    from qt_core.replay import ReplayFolder

    out = dataset.with_name('imported')
    contract = dataclasses.replace(contract, cameras=contract.cameras[:1])
    report = import_lerobot(
        dataset,
        out,
        lambda sentences: np.zeros((len(sentences), 8), np.float32),
        ImportConfig(outcome='success'),
        contract=contract,
    )
    problems, loss, space = list(report.failures), 0.0, ActionSpace(contract)
    folder = ReplayFolder(out)
    if len(folder.episodes) != RECORDED:
        problems.append(f'{len(folder.episodes)} episodes, expected {RECORDED}')
    for number in range(len(folder.episodes)):
        episode, made = folder.episode(number), recorded(number)
        steps = len(made['task']) - 1
        pairs = zip(made['action'][:-1], made['observation.state'][:-1], strict=True)
        action = np.array([space.from_targets(t, s) for t, s in pairs])
        action = np.clip(action, space.low, space.high)
        shown = np.asarray(episode.images['front'][:], int)
        loss = max(loss, np.abs(shown - made['observation.images.front']).mean((1, 2, 3)).max())
        for name, good in {
            'length': len(episode.bins) == steps,
            'states': np.array_equal(episode.state, made['observation.state']),
            'actions': np.allclose(episode.action, action, atol=1e-6),
            'sentence': episode.instruction == made['task'][0],
            'images': loss < LOSS,
        }.items():
            if not good:
                problems.append(f'episode {number}: {name} differs')
    for problem in problems[:10]:
        print(f'{dataset.name}: {problem}', file=sys.stderr)
    state = f'{len(problems)} problems' if problems else 'agrees'
    print(f'{dataset.name}: {report.steps} steps imported: {state}; images {loss:.2f}/255')
    return 1 if problems else 0


def recorded(number: int) -> dict:
    """Make the columns of an episode that the package records."""
    random, frames = np.random.default_rng(number), 20 + 9 * number
    rows, columns = np.mgrid[:64, :96]
    state = random.uniform(-1, 1, (frames, len(JOINTS))).astype(np.float32)
    return {
        'observation.state': state,
        'action': state + random.uniform(-0.04, 0.04, state.shape).astype(np.float32),
        'observation.images.front': np.stack(
            [
                np.stack([2 * columns, 3 * rows, np.full_like(rows, 20 * t % 256)], -1)
                for t in range(frames)
            ]
        ).astype(np.uint8),
        'task': [('push the cube', 'lift the cube')[number % 2]] * frames,
    }


def record(dataset: Path) -> int:
    """Have the package write a dataset, inside the virtual environment."""
    vector = {'dtype': 'float32', 'shape': (len(JOINTS),), 'names': list(JOINTS)}
    image = {'dtype': 'video', 'shape': (64, 96, 3), 'names': ['height', 'width', 'channels']}
    features = {
        'observation.state': vector,
        'action': vector,
        'observation.images.front': image,
    }
    data = lerobot_venv.dataset_class().create(
        'local/recorded', fps=10, features=features, root=dataset, vcodec='h264'
    )
    for number in range(RECORDED):
        columns = recorded(number)
        for index in range(len(columns['task'])):
            data.add_frame({name: values[index] for name, values in columns.items()})
        data.save_episode(parallel_encoding=False)
    data.finalize()
    return 0


def compare(dataset: Path) -> int:
    """Compare every frame, inside the virtual environment; give the exit status."""
    import importlib.metadata

    expected = np.load(dataset.with_suffix('.npz'), allow_pickle=False)
    found_class = lerobot_venv.dataset_class()
    data = found_class('local/check', root=dataset, video_backend='pyav')
    info = json.loads((dataset / 'meta/info.json').read_text(encoding='utf-8'))
    problems, loss = [], 0.0
    if len(data) != len(expected['task']):
        problems.append(f'{len(data)} frames, expected {len(expected["task"])}')
    for index in range(min(len(data), len(expected['task']))):
        item = data[index]
        for name in expected.files:
            wanted = expected[name][index]
            if name.startswith('observation.images.'):
                shown = item[name].permute(1, 2, 0).numpy() * 255
                loss = max(loss, float(np.abs(shown - wanted).mean()))
                good = loss < LOSS
            elif name == 'task':
                good = item[name] == str(wanted)
            else:
                good = np.array_equal(item[name].numpy(), wanted)
            if not good:
                problems.append(f'frame {index}: {name} differs')
        if item['index'].item() != index:
            problems.append(f'frame {index}: index is {item["index"].item()}')
    problems += _compare_windows(found_class, dataset, expected, info['fps'])
    for problem in problems[:10]:
        print(f'{dataset.name}: {problem}', file=sys.stderr)
    version = importlib.metadata.version('lerobot')
    state = f'{len(problems)} problems' if problems else 'agrees'
    print(f'{dataset.name}: {len(data)} frames, lerobot {version}: {state}; images {loss:.2f}/255')
    return 1 if problems else 0


def _compare_windows(found_class, dataset: Path, expected, fps: int) -> list[str]:
    """Compare windows of three frames, which repeat an episode's first."""
    key, past = 'observation.images.front', (2, 1, 0)
    deltas = {name: [-p / fps for p in past] for name in (key, 'action')}
    data = found_class('local/check', root=dataset, video_backend='pyav', delta_timestamps=deltas)
    problems = []
    for index in range(0, len(data), 5):
        first = index - int(expected['frame_index'][index])
        rows = [max(first, index - p) for p in past]
        item = data[index]
        shown = item[key].permute(0, 2, 3, 1).numpy() * 255
        if np.abs(shown - expected[key][rows]).mean() > LOSS:
            problems.append(f'window {index}: other images')
        if not np.array_equal(item['action'].numpy(), expected['action'][rows]):
            problems.append(f'window {index}: other actions')
    return problems


if __name__ == '__main__':
    if sys.argv[1:2] == ['--compare']:
        sys.exit(compare(Path(sys.argv[2])))
    if sys.argv[1:2] == ['--record']:
        sys.exit(record(Path(sys.argv[2])))
    sys.exit(main())
