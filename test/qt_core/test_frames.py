# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
import pickle

import cv2
import numpy as np
import pytest

from qt_core.replay import (
    FrameFile,
    JpegFrames,
    ReplayError,
    ReplayFolder,
    ReplayMemoryDataset,
    ReplayWriter,
)
from qt_core.replay.jpeg import jpeg_size
from qt_core.spec import Camera, Spec
from test.qt_core.test_replay import spec_episode

SPEC = Spec(
    cameras=(
        Camera(name='front', height=24, width=16),
        Camera(name='grey', height=8, width=8, channels=1),
    ),
    num_actions=1,
    action_bins=4,
)


def decoded(code, channels):
    if channels == 1:
        return cv2.imdecode(np.frombuffer(code, np.uint8), cv2.IMREAD_GRAYSCALE)[:, :, None]
    return cv2.cvtColor(cv2.imdecode(np.frombuffer(code, np.uint8), 1), cv2.COLOR_BGR2RGB)


def encoded(image, quality=95):
    if image.shape[2] == 3:
        image = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    return cv2.imencode('.jpg', image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (9, 24, 16, 3), np.uint8)


@pytest.fixture(params=['raw', 'jpeg'])
def frames(request, images, tmp_path):
    """Frames in a file, and the same in memory."""
    with FrameFile(tmp_path / 'frames', (24, 16, 3), request.param) as file:
        for image in images:
            file.append(image)
    if request.param == 'raw':
        return file.frames(), images
    return file.frames(), np.stack([decoded(encoded(image), 3) for image in images])


def test_frames_in_a_file_are_read_as_an_array_is(frames):
    found, expected = frames
    assert found.shape == expected.shape
    assert len(found) == 9
    for key in (0, 8, -1, slice(None), slice(2, 5), slice(7, 99), slice(5, 2), slice(1, 8, 3)):
        assert np.array_equal(found[key], expected[key]), key
    rows = np.array([[3, 4, 4], [0, 8, 8]])
    assert np.array_equal(found.take(rows, axis=0), expected.take(rows, axis=0))
    assert np.array_equal(pickle.loads(pickle.dumps(found))[:], expected)  # noqa: S301
    for key in (9, -10):
        with pytest.raises(IndexError):
            found[key]


def test_frames_in_a_file_pickle_as_its_path(tmp_path):
    with FrameFile(tmp_path / 'frames', (64, 64, 3)) as file:
        for _ in range(20):
            file.append(np.zeros((64, 64, 3), np.uint8))
        assert len(pickle.dumps(file.frames())) < 1000


def test_an_image_of_another_shape_is_not_appended(tmp_path):
    with FrameFile(tmp_path / 'frames', (4, 4, 3)) as file:
        for image in (np.zeros((4, 5, 3), np.uint8), np.zeros((4, 4, 3))):
            with pytest.raises(ReplayError, match=r'expected \(4, 4, 3\) uint8'):
                file.append(image)
    with pytest.raises(ReplayError, match='holds 1 or 3 channels, not 4'):
        FrameFile(tmp_path / 'other', (4, 4, 4), 'jpeg')
    assert not (tmp_path / 'other').exists()


@pytest.mark.parametrize('as_jpegs', [False, True])
def test_a_folder_of_jpegs_holds_what_was_encoded(tmp_path, as_jpegs):
    episodes = [spec_episode(SPEC, seed) for seed in range(3)]
    with ReplayWriter(
        tmp_path / 'r', SPEC, None, shard_steps=8, image_format='jpeg', jpeg_quality=70
    ) as writer:
        for number, episode in enumerate(episodes):
            if as_jpegs:
                for camera in SPEC.cameras:
                    shape = (camera.height, camera.width, camera.channels)
                    with FrameFile(
                        writer.staging / f'{number}{camera.name}', shape, 'jpeg', 70
                    ) as file:
                        for image in episode.images[camera.name]:
                            file.append(image)
                    episode.images[camera.name] = file.frames()
            writer.add(episode)
    folder = ReplayFolder(tmp_path / 'r')
    assert (folder.image_format, len(folder.shards)) == ('jpeg', 2)
    for seed in range(3):
        original, stored = spec_episode(SPEC, seed), folder.episode(seed)
        for camera in SPEC.cameras:
            codes = [encoded(image, 70) for image in original.images[camera.name]]
            images = np.stack([decoded(code, camera.channels) for code in codes])
            found = stored.images[camera.name]
            assert [found.coded(t) for t in range(6)] == codes
            assert np.array_equal(found[:], images)
            assert np.array_equal(pickle.loads(pickle.dumps(found))[:], images)  # noqa: S301
        assert np.array_equal(stored.observations()[2].images['grey'], images[2])
        assert np.array_equal(stored.bins, original.bins)


def test_windows_of_a_folder_of_jpegs(tmp_path):
    for image_format in ('raw', 'jpeg'):
        with ReplayWriter(
            tmp_path / image_format, SPEC, None, shard_steps=8, image_format=image_format
        ) as writer:
            for seed in range(3):
                episode = spec_episode(SPEC, seed)
                flat = {n: np.full_like(i, 17 * seed + 3) for n, i in episode.images.items()}
                writer.add(type(episode)(**{**vars(episode), 'images': flat}))
    raw, jpeg = (
        ReplayMemoryDataset(tmp_path / name, 2, False).with_frames(3) for name in ('raw', 'jpeg')
    )
    for indices in (range(len(raw)), [0, 1], [3]):
        ours, theirs = jpeg.gather(indices), raw.gather(indices)
        for name in ('front', 'grey'):
            difference = ours.images[name].int() - theirs.images[name].int()
            assert difference.abs().max() <= 2
        assert (ours.bins == theirs.bins).all()
    assert pickle.loads(pickle.dumps(jpeg))[0].images['front'].shape == (1, 4, 24, 16, 3)  # noqa: S301


@pytest.mark.parametrize(
    ('ends', 'size'),
    [([4, 4, 8], 8), ([4, 2, 8], 8), ([0, 4, 8], 8), ([2, 4, 9], 8), ([2, 4, 7], 8), ([], 8)],
)
def test_ends_ascend_to_the_size_of_the_data(ends, size):
    with pytest.raises(ReplayError, match='do not ascend to 8'):
        JpegFrames(np.zeros(size, np.uint8), np.array(ends, np.int64), (4, 4, 3))


@pytest.fixture
def jpeg_path(tmp_path):
    with ReplayWriter(tmp_path / 'r', SPEC, None, image_format='jpeg') as writer:
        writer.add(spec_episode(SPEC, 0))
    return tmp_path / 'r'


def test_damaged_ends_are_noticed_when_the_folder_is_opened(jpeg_path):
    path = jpeg_path / 'shards/000000/images_front.jpegs'
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ReplayError, match=r'images_front\.jpegs cannot be read \(ends of 6'):
        ReplayFolder(jpeg_path)
    path.write_bytes(b'')
    with pytest.raises(ReplayError, match=r'images_front\.jpegs cannot be read'):
        ReplayFolder(jpeg_path)
    path.unlink()
    with pytest.raises(ReplayError, match=r'images_front\.jpegs cannot be read'):
        ReplayFolder(jpeg_path)


def test_a_jpeg_of_another_size_is_not_decoded(jpeg_path, monkeypatch):
    """A few bytes can announce an image of gigabytes."""
    path = jpeg_path / 'shards/000000/images_front.jpegs'
    data = bytearray(path.read_bytes())
    place = data.index(b'\xff\xc0')
    data[place + 5 : place + 9] = b'\xff\xff\xff\xff'
    path.write_bytes(data)
    frames = ReplayFolder(jpeg_path).episode(0).images['front']

    def never(*arguments):
        raise AssertionError('decoded')

    with monkeypatch.context() as patch:
        patch.setattr(cv2, 'imdecode', never)
        with pytest.raises(ReplayError, match='image 0 is 65535x65535, expected a jpeg of 16x24'):
            frames[0]
    assert frames[1].shape == (24, 16, 3)


def test_a_damaged_jpeg_is_one_line(jpeg_path):
    path = jpeg_path / 'shards/000000/images_front.jpegs'
    frames = ReplayFolder(jpeg_path).shards[0]['images_front']
    data = bytearray(path.read_bytes())
    data[: int(frames.ends[0])] = bytes(int(frames.ends[0]))
    path.write_bytes(data)
    with pytest.raises(ReplayError, match='image 0 is 0x0, expected a jpeg of 16x24'):
        ReplayFolder(jpeg_path).shards[0]['images_front'][0]


@pytest.mark.parametrize('length', range(0, 40, 3))
def test_a_truncated_header_has_no_size(length, images):
    assert jpeg_size(encoded(images[0])[:length]) == (0, 0)
    assert jpeg_size(encoded(images[0])) == (24, 16)


def test_jpegs_of_four_channels_are_refused(tmp_path):
    spec = Spec(cameras=(Camera(height=8, width=8, channels=4),), num_actions=1, action_bins=4)
    with pytest.raises(ReplayError, match='has 4 channels, a jpeg holds 1 or 3'):
        ReplayWriter(tmp_path / 'r', spec, None, image_format='jpeg')
    with pytest.raises(ReplayError, match="image_format is 'png', expected raw or jpeg"):
        ReplayWriter(tmp_path / 'r', spec, None, image_format='png')
    assert not (tmp_path / 'r').exists()
