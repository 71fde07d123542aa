# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
import dataclasses
import json

import av
import numpy as np
import pytest
from pyarrow import parquet

from qt_core.action_space import ActionSpace
from qt_core.exchange.errors import ExchangeError
from qt_core.exchange.lerobot import LeRobotConfig, export_lerobot
from qt_core.replay import ReplayEpisode, ReplayFolder, ReplayWriter
from qt_core.spec import Spec

SENTENCES = ('touch the red block', 'touch the blue block')


def smooth_images(camera, frames, seed):
    """Draw a moving gradient: noise would measure the codec, not the exchange."""
    rows, columns = np.mgrid[: camera.height, : camera.width]
    return np.stack(
        [
            np.stack([4 * columns, 4 * rows, np.full_like(rows, 20 * (t + seed) % 256)], -1)
            for t in range(frames)
        ]
    ).astype(np.uint8)


def plausible_episode(contract, seed, *, steps=6):
    """Make an episode whose targets are where a robot could be."""
    random = np.random.default_rng(seed)
    space = ActionSpace(contract)
    bins = random.integers(0, space.bins, (steps, space.dimensions))
    reward = np.zeros(steps, np.float32)
    reward[-1] = float(seed % 3 == 0)
    return ReplayEpisode(
        images={c.name: smooth_images(c, steps + 1, seed) for c in contract.cameras},
        state=random.uniform(-1, 1, (steps + 1, len(contract.state.joints))).astype(np.float32),
        action=space.decode(bins).astype(np.float32),
        bins=bins,
        reward=reward,
        terminal=seed % 3 < 2,
        timeout=seed % 3 == 2,
        instruction=SENTENCES[seed % 2],
        source=f'bag_{seed}',
        source_hash=f'{seed:032x}',
        outcome=('success', 'failure', 'unlabeled')[seed % 3],
        quality={'ticks': steps} if seed else None,
    )


def write_replay(path, contract, embed, episodes=5, least=4):
    with ReplayWriter(path, contract, embed) as writer:
        for seed in range(episodes):
            writer.add(plausible_episode(contract, seed, steps=least + seed))
    return ReplayFolder(path)


@pytest.fixture
def two_cameras(tiny_contract):
    wrist = dataclasses.replace(tiny_contract.cameras[0], name='wrist', topic='wrist', height=48)
    return dataclasses.replace(tiny_contract, cameras=(*tiny_contract.cameras, wrist))


def table(path, name):
    return parquet.read_table(path / name).to_pydict()


def test_the_layout_is_that_of_version_3(tmp_path, two_cameras, embed):
    folder = write_replay(tmp_path / 'replay', two_cameras, embed)
    frames = export_lerobot(folder, tmp_path / 'out')
    assert frames == folder.steps + len(folder.episodes)
    written = {
        str(p.relative_to(tmp_path / 'out')) for p in (tmp_path / 'out').rglob('*') if p.is_file()
    }
    assert written == {
        'meta/info.json',
        'meta/stats.json',
        'meta/tasks.parquet',
        'meta/qt_ros.json',
        'meta/episodes/chunk-000/file-000.parquet',
        'data/chunk-000/file-000.parquet',
        'videos/observation.images.front/chunk-000/file-000.mp4',
        'videos/observation.images.wrist/chunk-000/file-000.mp4',
    }
    info = json.loads((tmp_path / 'out/meta/info.json').read_text())
    assert info['codebase_version'] == 'v3.0'
    assert info['fps'] == two_cameras.rate
    assert info['total_frames'] == frames
    assert info['features']['action']['names'] == [*two_cameras.action.joints]
    assert info['features']['observation.images.wrist']['shape'] == [48, 32, 3]


def test_frames_are_the_rows_of_the_episodes(tmp_path, two_cameras, embed):
    folder = write_replay(tmp_path / 'replay', two_cameras, embed)
    export_lerobot(folder, tmp_path / 'out')
    rows = table(tmp_path / 'out', 'data/chunk-000/file-000.parquet')
    space = ActionSpace(two_cameras)
    first = 0
    for number, entry in enumerate(folder.episodes):
        episode, steps = folder.episode(number), entry['steps']
        here = slice(first, first + steps + 1)
        assert rows['episode_index'][here] == [number] * (steps + 1)
        assert rows['frame_index'][here] == list(range(steps + 1))
        assert rows['task_index'][here] == [entry['instruction']] * (steps + 1)
        assert np.allclose(rows['timestamp'][here], np.arange(steps + 1) / two_cameras.rate)
        assert np.array_equal(np.float32(rows['observation.state'][here]), episode.state)
        targets = [
            space.to_targets(a, s) for a, s in zip(episode.action, episode.state[:-1], strict=True)
        ]
        held = episode.state[-1][space.state_index]
        assert np.allclose(rows['action'][here], [*targets, held], atol=1e-6)
        ending = [False] * (steps - 1) + [True, True]
        assert rows['next.done'][here] == ending
        assert rows['next.truncated'][here] == [e and episode.timeout for e in ending]
        assert rows['next.success'][here] == [e and number % 3 == 0 for e in ending]
        assert rows['next.reward'][here] == [*episode.reward.tolist(), 0.0]
        first += steps + 1
    assert rows['index'] == list(range(first))


@pytest.mark.parametrize('codec', ['h264', 'libsvtav1'])
def test_frame_n_of_a_video_is_at_n_periods_and_looks_the_same(tmp_path, contract, embed, codec):
    camera = dataclasses.replace(contract.cameras[0], height=64, width=64)
    contract = dataclasses.replace(contract, cameras=(camera,))
    folder = write_replay(tmp_path / 'replay', contract, embed, 2)
    export_lerobot(folder, tmp_path / 'out', LeRobotConfig(codec=codec))
    shown = np.concatenate([np.asarray(folder.episode(i).images['front'][:]) for i in range(2)])
    path = tmp_path / 'out/videos/observation.images.front/chunk-000/file-000.mp4'
    with av.open(str(path)) as container:
        decoded = list(container.decode(video=0))
    assert [round(frame.time * contract.rate, 6) for frame in decoded] == list(range(len(shown)))
    images = np.stack([frame.to_ndarray(format='rgb24') for frame in decoded])
    assert np.abs(images.astype(int) - shown).mean() < 3
    entries = table(tmp_path / 'out', 'meta/episodes/chunk-000/file-000.parquet')
    starts = entries['videos/observation.images.front/from_timestamp']
    assert starts == [0.0, 5 / contract.rate]


def test_statistics_are_those_of_the_data(tmp_path, tiny_contract, embed):
    folder = write_replay(tmp_path / 'replay', tiny_contract, embed)
    export_lerobot(folder, tmp_path / 'out')
    stats = json.loads((tmp_path / 'out/meta/stats.json').read_text())
    states = np.concatenate([folder.episode(i).state for i in range(5)]).astype(np.float64)
    assert np.allclose(stats['observation.state']['mean'], states.mean(0))
    assert np.allclose(stats['observation.state']['std'], states.std(0))
    assert np.allclose(stats['observation.state']['max'], states.max(0))
    images = np.concatenate([np.asarray(folder.episode(i).images['front'][:]) for i in range(5)])
    pixels = stats['observation.images.front']
    assert np.allclose(np.ravel(pixels['mean']), images.mean((0, 1, 2)) / 255)
    assert np.allclose(np.ravel(pixels['std']), images.std((0, 1, 2)) / 255)
    assert np.shape(pixels['q50']) == (3, 1, 1)
    assert pixels['count'] == [len(images)]


def test_files_are_closed_before_they_grow_over_their_limit(tmp_path, tiny_contract, embed):
    folder = write_replay(tmp_path / 'replay', tiny_contract, embed, least=60)
    export_lerobot(folder, tmp_path / 'out', LeRobotConfig(data_mb=0.01, video_mb=0.003))
    entries = table(tmp_path / 'out', 'meta/episodes/chunk-000/file-000.parquet')
    data = entries['data/file_index']
    video = entries['videos/observation.images.front/file_index']
    starts = entries['videos/observation.images.front/from_timestamp']
    for files in (data, video):
        assert files == sorted(files)
        assert files[0] == 0
        assert len(set(files)) > 1
    assert all(
        start == 0.0 for start, new in zip(starts, np.diff(video, prepend=-1), strict=True) if new
    )
    for number, file in enumerate(data):
        rows = table(tmp_path / 'out', f'data/chunk-000/file-{file:03d}.parquet')
        assert rows['episode_index'].count(number) == folder.episodes[number]['steps'] + 1


def test_raw_actions_are_in_the_units_of_the_contract(tmp_path, tiny_contract, embed):
    folder = write_replay(tmp_path / 'replay', tiny_contract, embed, 1)
    export_lerobot(folder, tmp_path / 'out', LeRobotConfig(actions='raw'))
    rows = table(tmp_path / 'out', 'data/chunk-000/file-000.parquet')
    assert tiny_contract.action.mode == 'delta'
    still = np.zeros((1, len(tiny_contract.action.joints)))
    expected = np.concatenate([folder.episode(0).action, still])
    assert np.array_equal(np.float32(rows['action']), expected.astype(np.float32))


@pytest.mark.parametrize(
    ('change', 'complaint'),
    [
        (lambda c: dataclasses.replace(c, rate=2.5), 'rate is 2.5 Hz'),
        (
            lambda c: dataclasses.replace(
                c, cameras=(dataclasses.replace(c.cameras[0], width=31),)
            ),
            'even sides',
        ),
    ],
)
def test_what_the_format_cannot_hold_is_refused(tmp_path, tiny_contract, embed, change, complaint):
    contract = change(tiny_contract)
    folder = write_replay(tmp_path / 'replay', contract, embed, 1)
    with pytest.raises(ExchangeError, match=complaint):
        export_lerobot(folder, tmp_path / 'out')
    assert not list(tmp_path.glob('out*'))


def test_episodes_of_no_robot_are_refused(tmp_path):
    spec = Spec(cameras=(), state_dim=2, num_actions=1, action_bins=4)
    with ReplayWriter(tmp_path / 'replay', spec, None) as writer:
        writer.add(
            ReplayEpisode(
                images={},
                state=np.zeros((2, 2), np.float32),
                bins=np.zeros((1, 1), np.int64),
                reward=np.zeros(1, np.float32),
                terminal=True,
                timeout=False,
                instruction='',
            )
        )
    with pytest.raises(ExchangeError, match='of no robot'):
        export_lerobot(ReplayFolder(tmp_path / 'replay'), tmp_path / 'out')


def test_a_failure_leaves_nothing_behind(tmp_path, tiny_contract, embed):
    folder = write_replay(tmp_path / 'replay', tiny_contract, embed, 3)
    calls = []

    def stop():
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_lerobot(folder, tmp_path / 'out', progress=stop)
    assert {path.name for path in tmp_path.iterdir()} == {'replay'}
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out/mine').touch()
    with pytest.raises(ExchangeError, match='not empty'):
        export_lerobot(folder, tmp_path / 'out')
