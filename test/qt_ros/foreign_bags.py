# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Bags as another recorder writes them: no episode.json, any storage, parts and compression."""

from __future__ import annotations

import shutil

import yaml
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer

from test.qt_ros.synthetic_bags import STORE, TYPES

PLUGINS = {'mcap': StoragePlugin.MCAP, 'db3': StoragePlugin.SQLITE3}


def write_foreign(path, messages, *, storage='mcap', parts=1, compression='none'):
    """Write messages into a rosbag2 bag; several parts as `NAME_0`, `NAME_1`, ... do."""
    share = -(-len(messages) // parts)
    path.mkdir(parents=True)
    names = []
    for number in range(parts):
        inside = path / f'{path.name}_{number}'
        writer = Writer(inside, version=9, storage_plugin=PLUGINS[storage])
        if compression != 'none':
            writer.set_compression(CompressionMode[compression.upper()], CompressionFormat.ZSTD)
        with writer:
            connections = {}
            for topic, kind, received, message in messages[number * share : (number + 1) * share]:
                if topic not in connections:
                    connections[topic] = writer.add_connection(topic, kind, typestore=STORE)
                data = message if isinstance(message, bytes) else serialise(message, kind)
                writer.write(connections[topic], received, data)
        for file in inside.iterdir():
            if file.name != 'metadata.yaml':
                names.append(file.name)
                file.rename(path / file.name)
            elif number == 0:
                metadata = yaml.safe_load(file.read_text())
        shutil.rmtree(inside)
    metadata['rosbag2_bagfile_information']['relative_file_paths'] = names
    (path / 'metadata.yaml').write_text(yaml.safe_dump(metadata))
    return path


def serialise(message, kind):
    """Give a message's bytes."""
    return bytes(STORE.serialize_cdr(message, kind))


def sentence_message(sentence, received, prefix='/'):
    """Give what says the sentence, as (topic, type, receive time, message)."""
    kind = 'std_msgs/msg/String'
    return (f'{prefix}instruction', kind, received, TYPES[kind](sentence))
