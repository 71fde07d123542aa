# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Read a whole bag, and say everything that is wrong with it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from rosbags.rosbag2 import Reader

from qt_ros.bags.reader import EpisodeBag
from qt_ros.serialisation import TYPESTORE


def verify_bag(path: Path) -> list[str]:
    """Check one recorded episode, one line per problem.

    Every message can be read and decoded, and there are as many as its record says. A recording
    that knows itself to be damaged is a problem too.
    """
    try:
        record = EpisodeBag(path).record
    except ValueError as error:
        return [' '.join(str(error).split())]
    problems = [f'{path}: damaged when recorded: {record.damage}'] if record.damage else []
    if record.dropped:
        problems.append(f'{path}: {record.dropped} messages were lost when recorded')
    found: Counter[str] = Counter()
    undecoded: dict[str, str] = {}
    try:
        with Reader(path) as reader:
            for connection, _, data in reader.messages():
                found[connection.topic] += 1
                if connection.topic in undecoded or connection.msgtype not in TYPESTORE.fielddefs:
                    continue
                try:
                    TYPESTORE.deserialize_cdr(data, connection.msgtype)
                except Exception as error:  # as rosbags raises them for damaged content
                    undecoded[connection.topic] = ' '.join(str(error).split()) or repr(error)
    except Exception as error:  # rosbags has no common base class; any of them means unreadable
        line = ' '.join(str(error).split()) or type(error).__name__
        return [*problems, f'{path}: cannot be read ({line})']
    for topic, line in undecoded.items():
        problems.append(f"{path}: a message of '{topic}' cannot be decoded ({line})")
    expected = {count.topic: count.messages for count in record.counts}
    for topic in sorted(set(expected) | set(found)):
        if found[topic] != expected.get(topic, 0):
            problems.append(
                f"{path}: {found[topic]} messages of '{topic}', "
                f'its record says {expected.get(topic, 0)}'
            )
    return problems
