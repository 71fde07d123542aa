# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Read recorded episodes back, with or without a ROS install."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from rosbags.interfaces import Connection
from rosbags.rosbag2 import Reader
from rosbags.typesys import Stores, get_typestore

from qt_core.contract import RobotContract
from qt_ros.bags.episode import BagError, EpisodeRecord
from qt_ros.conversions import COMMAND_TYPES

TYPESTORE = get_typestore(Stores.ROS2_JAZZY)


def find_bags(paths: Iterable[Path]) -> list[Path]:
    """List the bags among `paths`: bag folders themselves, and those inside other folders.

    Folders named `*.partial` were never completed and are left out.

    Raises:
        BagError: A path does not exist or holds no bag.
    """
    bags = []
    for path in paths:
        if not path.is_dir():
            raise BagError(f'{path}: no such folder')
        inside = [path] if _is_bag(path) else sorted(p for p in path.iterdir() if _is_bag(p))
        if not inside:
            raise BagError(f'{path}: no bag in this folder (a bag is a folder with an .mcap file)')
        bags += inside
    return bags


def _is_bag(path: Path) -> bool:
    return path.is_dir() and path.suffix != '.partial' and any(path.glob('*.mcap'))


class EpisodeBag:
    """One recorded episode.

    Attributes:
        path: The bag's folder.
        record: Its `episode.json`.
        contract: The contract it was recorded under.

    Raises:
        BagError: `episode.json` is missing or damaged.
        ContractError: The contract in it is not valid.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.record = EpisodeRecord.load(path)
        self.contract = RobotContract.from_text(self.record.contract, f'{path}/episode.json')
        self._recorded_as = {count.name: count.topic for count in self.record.counts}
        self._types = {camera.topic: camera.type for camera in self.contract.cameras} | {
            self.contract.state.topic: 'sensor_msgs/msg/JointState',
            self.contract.instruction.topic: 'std_msgs/msg/String',
            self.contract.action.topic: COMMAND_TYPES[self.contract.action.type],
        }

    def messages(
        self, topics: Iterable[str], optional: Iterable[str] = ()
    ) -> Iterator[tuple[str, int, Any]]:
        """Iterate over (topic, receive time ns, message) of the contract's relative `topics`.

        Args:
            topics: Topics the bag must have.
            optional: Topics it may lack.

        Raises:
            BagError: A topic is absent, ambiguous or of another type than the contract's, or the
                bag cannot be read.
        """
        optional = tuple(optional)
        try:
            with Reader(self.path) as reader:
                wanted: dict[int, tuple[Connection, str]] = {}
                for topic in (*topics, *optional):
                    # A bag of the recorder names its topics; elsewhere the namespace is unknown.
                    name = self._recorded_as.get(topic, topic)
                    found = [c for c in reader.connections if f'/{c.topic}'.endswith(f'/{name}')]
                    if not found and topic in optional:
                        continue
                    if len({c.topic for c in found}) != 1:
                        names = ', '.join(c.topic for c in reader.connections) or 'nothing'
                        what = 'no' if not found else 'more than one'
                        raise BagError(f"{self.path}: {what} topic '{topic}'; recorded: {names}")
                    if found[0].msgtype != self._types[topic]:
                        raise BagError(
                            f"{self.path}: topic '{topic}' is {found[0].msgtype}, "
                            f'the contract says {self._types[topic]}'
                        )
                    wanted |= {c.id: (c, topic) for c in found}
                connections = [c for c, _ in wanted.values()]
                for connection, time, data in reader.messages(connections=connections):
                    message = TYPESTORE.deserialize_cdr(data, connection.msgtype)
                    yield wanted[connection.id][1], time, message
        except BagError:
            raise
        except (
            Exception
        ) as error:  # rosbags has no common base class; any of them means unreadable
            line = ' '.join(str(error).split()) or type(error).__name__
            raise BagError(f'{self.path}: cannot be read ({line})') from error

    def content_hash(self) -> str:
        """Hash the MCAP files: 32 hexadecimal digits of BLAKE2b."""
        digest = hashlib.blake2b(digest_size=16)
        for file in sorted(self.path.glob('*.mcap')):
            with file.open('rb') as stream:
                while chunk := stream.read(1 << 20):
                    digest.update(chunk)
        return digest.hexdigest()
