# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
import dataclasses
import json
import shutil

import cv2
import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from qt_core.action_space import ActionSpace
from qt_core.exchange.errors import ExchangeError
from qt_core.exchange.lerobot import LeRobotConfig, export_lerobot
from qt_core.exchange.lerobot_import import import_lerobot
from qt_core.exchange.lerobot_matching import ImportConfig, _decoded
from qt_core.replay import ReplayFolder
from test.qt_core.test_lerobot import SENTENCES, write_replay

DATA = 'data/chunk-000/file-000.parquet'
EPISODES = 'meta/episodes/chunk-000/file-000.parquet'
VIDEO = 'videos/observation.images.front/chunk-000/file-000.mp4'
DEMONSTRATIONS = ImportConfig(outcome='success')


@pytest.fixture
def exported(tmp_path, tiny_contract, embed):
    folder = write_replay(tmp_path / 'replay', tiny_contract, embed)
    export_lerobot(folder, tmp_path / 'dataset')
    return tmp_path / 'dataset'


def rewritten(path, change):
    """Change a parquet file through a dict of its columns."""
    table = parquet.read_table(path)
    columns = {name: table[name].to_pylist() for name in table.schema.names}
    change(columns)
    arrays = {
        name: pa.array(
            values, table.schema.field(name).type if name in table.schema.names else None
        )
        for name, values in columns.items()
    }
    parquet.write_table(pa.table(arrays), path)


def edited(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def foreign(dataset, fps=None):
    """Make of an export what others make: no word of success, of us, or of a final frame."""
    (dataset / 'meta/qt_ros.json').unlink()
    ends = ('next.reward', 'next.done', 'next.truncated', 'next.success')

    def without(columns):
        for name in [n for n in columns if n in ends or n.startswith('replay/')]:
            del columns[name]

    def info(content):
        for name in ends:
            del content['features'][name]

    rewritten(dataset / DATA, without)
    rewritten(dataset / EPISODES, without)
    edited(dataset / 'meta/info.json', info)
    return dataset


def test_export_then_import_gives_the_same_episodes(tmp_path, tiny_contract, embed):
    wrist = dataclasses.replace(tiny_contract.cameras[0], name='wrist', topic='wrist', height=48)
    contract = dataclasses.replace(tiny_contract, cameras=(*tiny_contract.cameras, wrist))
    before = write_replay(tmp_path / 'replay', contract, embed)
    # Several files of each kind, so that an episode's place in them matters.
    export_lerobot(before, tmp_path / 'dataset', LeRobotConfig(data_mb=0.01, crf=10))
    report = import_lerobot(tmp_path / 'dataset', tmp_path / 'back', embed)
    after = ReplayFolder(tmp_path / 'back')
    assert (report.episodes, report.steps, report.failures) == (5, before.steps, ())
    assert after.contract == before.contract
    bins = 0
    for number in range(5):
        a, b = before.episode(number), after.episode(number)
        for name in ('terminal', 'timeout', 'instruction', 'source', 'source_hash', 'outcome'):
            assert getattr(a, name) == getattr(b, name), name
        assert a.quality == b.quality
        assert np.array_equal(a.state, b.state)
        assert np.array_equal(a.reward, b.reward)
        assert np.allclose(a.action, b.action, atol=1e-6)
        bins = max(bins, np.abs(a.bins.astype(int) - b.bins).max())
        for camera in contract.cameras:
            images = [np.asarray(e.images[camera.name][:], int) for e in (a, b)]
            assert images[0].shape == images[1].shape
            assert np.abs(images[0] - images[1]).mean() < 3
    assert bins == 0  # actions are the middles of bins, far from the edges


def test_bins_at_an_edge_differ_by_one_at_most(tmp_path, tiny_contract, embed):
    before = write_replay(tmp_path / 'replay', tiny_contract, embed, 1)
    space = ActionSpace(tiny_contract)
    bins = np.random.default_rng(0).integers(0, space.bins - 1, (500, space.dimensions))
    edges = (space.decode(bins) + space.decode(bins + 1)) / 2
    state = np.random.default_rng(1).uniform(-3, 3, len(tiny_contract.state.joints))
    targets = [space.to_targets(np.float32(a), np.float32(state)) for a in edges]
    back = [space.from_targets(np.float32(t), np.float32(state)) for t in targets]
    assert np.abs(space.encode(np.array(back)) - bins - 0.5).max() == 0.5
    assert before.steps == 4


def test_raw_actions_come_back_bit_by_bit(tmp_path, tiny_contract, embed):
    before = write_replay(tmp_path / 'replay', tiny_contract, embed, 2)
    export_lerobot(before, tmp_path / 'dataset', LeRobotConfig(actions='raw'))
    import_lerobot(tmp_path / 'dataset', tmp_path / 'back', embed)
    after = ReplayFolder(tmp_path / 'back')
    assert np.array_equal(after.episode(1).action, before.episode(1).action)
    assert np.array_equal(after.episode(1).bins, before.episode(1).bins)


def test_a_terminate_dimension_comes_back(tmp_path, tiny_contract, embed):
    action = dataclasses.replace(tiny_contract.action, terminate=True)
    contract = dataclasses.replace(tiny_contract, action=action)
    before = write_replay(tmp_path / 'replay', contract, embed, 2)
    export_lerobot(before, tmp_path / 'dataset')
    import_lerobot(tmp_path / 'dataset', tmp_path / 'back', embed)
    after = ReplayFolder(tmp_path / 'back')
    assert np.array_equal(after.episode(1).bins[:, -1], before.episode(1).bins[:, -1])


def test_demonstrations_of_others_end_in_what_the_user_says(
    tmp_path, exported, tiny_contract, embed
):
    foreign(exported)
    with pytest.raises(ExchangeError, match=r'neither next\.success nor'):
        import_lerobot(exported, tmp_path / 'back', embed, contract=tiny_contract)
    with pytest.raises(ExchangeError, match='give a contract'):
        import_lerobot(exported, tmp_path / 'back', embed, DEMONSTRATIONS)
    import_lerobot(exported, tmp_path / 'back', embed, DEMONSTRATIONS, contract=tiny_contract)
    after = ReplayFolder(tmp_path / 'back')
    for number in range(5):
        episode = after.episode(number)
        assert (episode.terminal, episode.timeout, episode.outcome) == (True, False, 'success')
        assert episode.reward.tolist() == [0.0] * (len(episode.bins) - 1) + [1.0]
        assert episode.instruction == SENTENCES[number % 2]
    hashes = {after.episode(number).source_hash for number in range(5)}
    assert len(hashes) == 5


def test_a_faster_dataset_is_thinned(tmp_path, exported, tiny_contract, embed):
    contract = dataclasses.replace(tiny_contract, rate=tiny_contract.rate / 2)
    rewritten(exported / DATA, lambda c: c.update({'next.reward': c['frame_index']}))
    import_lerobot(exported, tmp_path / 'back', embed, contract=contract)
    before, after = ReplayFolder(tmp_path / 'replay'), ReplayFolder(tmp_path / 'back')
    space = ActionSpace(contract)
    for number in range(5):
        a, b = before.episode(number), after.episode(number)
        steps = len(a.bins) // 2
        assert len(b.bins) == steps
        assert np.array_equal(b.state, a.state[: 2 * steps + 1 : 2])
        rewards = np.arange(len(a.state), dtype=float)  # 0 + 1, 2 + 3, ..., and all that is left
        wanted = [*(rewards[2 * t : 2 * t + 2].sum() for t in range(steps - 1))]
        assert b.reward.tolist() == [*wanted, rewards[2 * steps - 2 :].sum()]
        # The last target before the next frame kept is that of the odd frames.
        target = space.to_targets(a.action[1], a.state[1])
        wanted = np.clip(space.from_targets(target, a.state[0]), space.low, space.high)
        assert np.allclose(b.action[0], wanted, atol=1e-6)
        shown, kept = np.asarray(a.images['front'][2], int), np.asarray(b.images['front'][1], int)
        assert np.abs(shown - kept).mean() < 4


def test_a_rate_that_is_no_divisor_is_refused(tmp_path, exported, tiny_contract, embed):
    contract = dataclasses.replace(tiny_contract, rate=4.0)
    with pytest.raises(ExchangeError, match='no multiple of the contract'):
        import_lerobot(exported, tmp_path / 'back', embed, contract=contract)
    assert not (tmp_path / 'back').exists()


def test_other_names_and_degrees(tmp_path, exported, tiny_contract, embed):
    joints = list(tiny_contract.state.joints)

    def info(content):
        features = content['features']
        features['observation.images.top'] = features.pop('observation.images.front')
        features['observation.state']['names'] = {'motors': [f'{j}.pos' for j in joints]}
        features['action']['names'] = None

    def entries(columns):
        for name in [n for n in columns if n.startswith('videos/')]:
            columns[name.replace('front', 'top')] = columns.pop(name)

    edited(exported / 'meta/info.json', info)
    rewritten(exported / EPISODES, entries)
    (exported / 'videos/observation.images.front').rename(
        exported / 'videos/observation.images.top'
    )

    def degrees(columns):
        for name in ('observation.state', 'action'):
            columns[name] = [[float(np.degrees(x)) for x in row] for row in columns[name]]

    rewritten(exported / DATA, degrees)
    with pytest.raises(ExchangeError, match='front=FEATURE'):
        import_lerobot(exported, tmp_path / 'back', embed)
    names = {'front': 'observation.images.top'}
    with pytest.raises(ExchangeError, match=f"'action' has no '{joints[0]}'"):
        import_lerobot(exported, tmp_path / 'back', embed, ImportConfig(names=names))
    names |= {joint: str(place) for place, joint in enumerate(joints)}
    import_lerobot(exported, tmp_path / 'back', embed, ImportConfig(names=names, degrees=True))
    before, after = ReplayFolder(tmp_path / 'replay'), ReplayFolder(tmp_path / 'back')
    assert np.allclose(after.episode(2).state, before.episode(2).state, atol=1e-6)
    assert np.allclose(after.episode(2).action, before.episode(2).action, atol=1e-5)
    with pytest.raises(ExchangeError, match="'front2' is no camera"):
        import_lerobot(exported, tmp_path / 'b', embed, ImportConfig(names={'front2': 'x'}))


def test_images_in_parquet_of_another_size(tmp_path, exported, tiny_contract, embed):
    folder = ReplayFolder(tmp_path / 'replay')
    shown = np.concatenate([np.asarray(folder.episode(i).images['front'][:]) for i in range(5)])

    def images(columns):
        columns['observation.images.front'] = [
            {'bytes': cv2.imencode('.png', cv2.resize(i[..., ::-1], (64, 64)))[1].tobytes()}
            for i in shown
        ]

    def info(content):
        content['features']['observation.images.front'] |= {'dtype': 'image', 'shape': [64, 64, 3]}
        content['video_path'] = None

    rewritten(exported / DATA, images)
    edited(exported / 'meta/info.json', info)
    shutil.rmtree(exported / 'videos')
    import_lerobot(exported, tmp_path / 'back', embed)
    kept = ReplayFolder(tmp_path / 'back').episode(3).images['front'][:]
    assert np.abs(np.asarray(kept, int) - folder.episode(3).images['front'][:]).mean() < 3


def test_version_2_1(tmp_path, exported, tiny_contract, embed):
    """Cut the files up as version 2.1 has them: one parquet file and one video per episode."""
    contract = dataclasses.replace(tiny_contract)
    old = tmp_path / 'old'
    (old / 'meta').mkdir(parents=True)
    before = ReplayFolder(tmp_path / 'replay')
    lines = []
    for number, entry in enumerate(before.episodes):
        single = tmp_path / f'single_{number}'
        table = parquet.read_table(exported / DATA)
        rows = table.filter(pa.compute.equal(table['episode_index'], number))
        (old / 'data/chunk-000').mkdir(parents=True, exist_ok=True)
        parquet.write_table(rows, old / f'data/chunk-000/episode_{number:06d}.parquet')
        export_lerobot(_only(before, number, tmp_path, embed), single)
        video = old / f'videos/chunk-000/observation.images.front/episode_{number:06d}.mp4'
        video.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(single / VIDEO, video)
        lines.append({'episode_index': number, 'length': entry['steps'] + 1, 'tasks': []})
    (old / 'meta/episodes.jsonl').write_text('\n'.join(map(json.dumps, lines)))
    tasks = [{'task_index': i, 'task': s} for i, s in enumerate(before.instructions)]
    (old / 'meta/tasks.jsonl').write_text('\n'.join(map(json.dumps, tasks)))
    info = json.loads((exported / 'meta/info.json').read_text()) | {
        'codebase_version': 'v2.1',
        'data_path': 'data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet',
        'video_path': 'videos/chunk-{episode_chunk:03d}/{video_key}/'
        'episode_{episode_index:06d}.mp4',
    }
    (old / 'meta/info.json').write_text(json.dumps(info))
    report = import_lerobot(old, tmp_path / 'back', embed, contract=contract)
    assert report.failures == ()
    after = ReplayFolder(tmp_path / 'back')
    for number in range(5):
        a, b = before.episode(number), after.episode(number)
        assert np.array_equal(a.state, b.state)
        assert np.allclose(a.action, b.action, atol=1e-6)
        images = [np.asarray(e.images['front'][:], int) for e in (a, b)]
        assert np.abs(images[0] - images[1]).mean() < 4


def _only(folder, number, tmp_path, embed):
    from qt_core.replay import ReplayWriter

    path = tmp_path / f'replay_{number}'
    with ReplayWriter(path, folder.contract, embed) as writer:
        writer.add(folder.episode(number))
    return ReplayFolder(path)


def cut_video(dataset):
    (dataset / VIDEO).write_bytes(b'no video')


def set_info(**changes):
    return lambda dataset: edited(dataset / 'meta/info.json', lambda c: c.update(changes))


def set_entry(name, value):
    def change(columns):
        columns[name][2] = value

    return lambda dataset: rewritten(dataset / EPISODES, change)


def link_out(dataset):
    (dataset / DATA).rename(dataset.parent / 'elsewhere.parquet')
    (dataset / DATA).symlink_to(dataset.parent / 'elsewhere.parquet')


@pytest.mark.parametrize(
    ('damage', 'complaint'),
    [
        (lambda d: (d / 'meta/info.json').unlink(), 'not a LeRobot dataset'),
        (lambda d: (d / 'meta/info.json').write_text('{'), 'not JSON'),
        (lambda d: (d / 'meta/info.json').write_text('[' * 100000), 'not JSON'),
        (lambda d: (d / 'meta/info.json').write_text('[]'), 'expected a JSON object'),
        (set_info(fps='fast'), 'damaged meta/info.json'),
        (set_info(codebase_version='v1.6'), 'version v1.6'),
        (set_info(data_path='../../{chunk_index}/{file_index}'), 'leads out of the folder'),
        (set_info(data_path='/etc/passwd'), 'leads out of the folder'),
        (set_info(data_path='{chunk_index:0999999999d}'), 'cannot be understood'),
        (set_info(data_path='{chunk_index.__class__}'), 'cannot be understood'),
        (set_info(data_path='{secret}'), "asks for 'secret'"),
        (set_info(data_path=7), 'expected text'),
        (set_entry('length', 10**9), '1000000000 frames'),
        (set_entry('episode_index', 1), 'listed twice'),
        (link_out, 'leads out of the folder'),
        (lambda d: (d / 'meta/tasks.parquet').write_bytes(b'PAR1'), 'damaged meta'),
    ],
)
def test_a_damaged_dataset_is_one_line_and_no_folder(tmp_path, exported, embed, damage, complaint):
    damage(exported)
    with pytest.raises(ExchangeError, match=complaint) as caught:
        import_lerobot(exported, tmp_path / 'back', embed)
    assert '\n' not in str(caught.value)
    assert not (tmp_path / 'back').exists()


def nan_state(columns):
    states = columns['observation.state']
    states[columns['episode_index'].index(2)][0] = float('nan')


def no_task(columns):
    columns['task_index'] = [
        7 if e == 2 else t
        for e, t in zip(columns['episode_index'], columns['task_index'], strict=True)
    ]


def shuffled(columns):
    first = columns['episode_index'].index(2)
    columns['frame_index'][first] = 1


@pytest.mark.parametrize(
    ('damage', 'complaint'),
    [
        (lambda d: rewritten(d / DATA, nan_state), 'not finite'),
        (lambda d: rewritten(d / DATA, no_task), 'not in the table of tasks'),
        (lambda d: rewritten(d / DATA, shuffled), 'not numbered in order'),
        (set_entry('length', 3), '7 rows in file-000.parquet, expected 3'),
        (set_entry('videos/observation.images.front/file_index', 5), 'cannot be read'),
        (set_entry('videos/observation.images.front/from_timestamp', 1e6), 'has no frame at'),
        (set_entry('replay/outcome', 'perhaps'), 'outcome is'),
        (set_entry('replay/quality', '[' * 100_000), 'recursion'),
    ],
)
def test_a_bad_episode_is_one_line_and_the_others_are_imported(
    tmp_path, exported, embed, damage, complaint
):
    damage(exported)
    report = import_lerobot(exported, tmp_path / 'back', embed)
    assert report.episodes == 4
    (line,) = report.failures
    assert complaint in line
    assert 'episode 2' in line
    assert '\n' not in line
    sources = [entry['source'] for entry in ReplayFolder(tmp_path / 'back').episodes]
    assert sources == ['bag_0', 'bag_1', 'bag_3', 'bag_4']


def test_no_episode_at_all_is_an_error(tmp_path, exported, embed):
    cut_video(exported)
    with pytest.raises(ExchangeError, match=r'episode 0: .*mp4 cannot be read'):
        import_lerobot(exported, tmp_path / 'back', embed)
    assert not (tmp_path / 'back').exists()


@pytest.mark.parametrize(
    'code',
    [
        b'\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\1\0\0\0\1\0\0\x08\2\0\0\0\0\0\0\0',  # 65536 x 65536
        b'\x89PNG\r\n\x1a\n',
        b'BM',
        b'',
    ],
)
def test_a_coded_image_that_is_none_or_huge_is_refused(code):
    with pytest.raises(ExchangeError, match='cannot be decoded'):
        _decoded(code)


def test_damage_anywhere_is_a_line_or_an_error_of_ours(tmp_path, exported, embed):
    random = np.random.default_rng(0)
    files = [path for path in sorted(exported.rglob('*')) if path.is_file()]
    errors, refused = [], 0
    for trial in range(40):
        damaged = tmp_path / f'damaged_{trial}'
        shutil.copytree(exported, damaged)
        path = damaged / files[trial % len(files)].relative_to(exported)
        content = bytearray(path.read_bytes())
        for place in random.integers(0, len(content), 5):
            content[place] ^= int(random.integers(1, 256))
        path.write_bytes(content)
        try:
            report = import_lerobot(damaged, tmp_path / f'back_{trial}', embed)
            refused += bool(report.failures)
        except ValueError as error:
            errors.append(error)
    assert len(errors) + refused > 10
    assert not [e for e in errors if not type(e).__module__.startswith('qt_core.')]
    assert not [e for e in errors if '\n' in str(e)]
