# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""An MCAP file that was cut off anywhere reads as far as it is whole, and not a byte further."""

import io

import numpy as np
import pytest
from rosbags.rosbag2 import Reader

from qt_ros.bags import BagError
from qt_ros.bags.prefix import ENDING, Mended, data_length, readable_length
from test.qt_ros.foreign_bags import write_foreign
from test.qt_ros.synthetic_bags import draw_episode, episode_messages


@pytest.fixture(scope='module')
def recording(tmp_path_factory):
    """Give an MCAP file of several chunks, with and without compression."""
    folder = tmp_path_factory.mktemp('recordings')
    messages = episode_messages(draw_episode(0, steps=30, size=200))
    return {
        kind: next(write_foreign(folder / kind, messages, compression=kind).glob('*.mcap'))
        for kind in ('none', 'storage')
    }


def messages_of(file):
    """Read (topic, time, data) of all messages, in the order of the file."""
    reader = Reader(file)
    reader.open()
    read = reader.storage.messages_scan(reader.connections)
    found = [(connection.topic, time, data) for connection, time, data in read]
    reader.close()
    return found


@pytest.mark.parametrize('kind', ['none', 'storage'])
def test_whole_file(recording, kind):
    assert readable_length(recording[kind]) is None
    whole = messages_of(recording[kind])
    assert len(whole) == 31 * 2 + 30
    # Without its index it has the same messages.
    mended = Mended(recording[kind], data_length(recording[kind]))
    assert messages_of(mended) == whole


@pytest.mark.parametrize('kind', ['none', 'storage'])
def test_file_cut_off_anywhere_gives_a_prefix(recording, kind, tmp_path):
    content, whole = recording[kind].read_bytes(), messages_of(recording[kind])
    random, lengths = np.random.default_rng(0), []
    for cut in sorted(random.integers(60, len(content) - 1, 25).tolist()):
        file = tmp_path / 'cut.mcap'
        file.write_bytes(content[:cut])
        length = readable_length(file)
        assert length <= cut
        found = messages_of(Mended(file, length))
        assert found == whole[: len(found)]
        lengths.append(len(found))
    assert lengths == sorted(lengths)
    assert len(set(lengths)) > 2  # the file has several chunks, and some were whole


@pytest.mark.parametrize(
    ('content', 'says'),
    [
        (b'', 'not an MCAP file'),
        (b'SQLite format 3\0' + bytes(100), 'not an MCAP file'),
        (b'\x89MCAP0\r\n', 'cut off before the first message'),
        (b'\x89MCAP0\r\n\x01' + (2**62).to_bytes(8, 'little'), 'cut off before the first'),
    ],
)
def test_nothing_to_read(tmp_path, content, says):
    file = tmp_path / 'x.mcap'
    file.write_bytes(content)
    with pytest.raises(BagError, match=says):
        readable_length(file)


def test_mended_file_is_its_prefix_and_an_ending(tmp_path):
    file = tmp_path / 'x.mcap'
    file.write_bytes(bytes(range(200)))
    mended = Mended(file, 150)
    expected = bytes(range(150)) + ENDING
    assert (str(mended), mended.suffix, mended.exists(), mended.is_dir()) == (
        str(file),
        '.mcap',
        True,
        False,
    )
    with mended.open() as opened:
        assert opened.read() == expected
        for place in (0, 149, 150, 151, len(expected) - 1):
            opened.seek(place)
            assert opened.tell() == place
            assert opened.read(7) == expected[place : place + 7]
        opened.seek(-3, io.SEEK_END)
        assert opened.read() == expected[-3:]
        opened.seek(len(expected) + 5)
        assert opened.read(1) == b''
