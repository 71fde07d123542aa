# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Read recorded episodes back, with or without a ROS install."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from rosbags.interfaces import Connection

from qt_core.contract import RobotContract, require_same
from qt_ros import serialisation
from qt_ros.bags.episode import FILE_NAME, BagError, EpisodeRecord
from qt_ros.bags.parts import Part, find_parts, is_local, is_part, open_part
from qt_ros.conversions import COMMAND_TYPES, ConversionError


def find_bags(paths: Iterable[Path]) -> list[Path]:
    """List the bags among `paths`: bag folders and single files, and bag folders in other folders.

    Folders named `*.partial` were never completed and are left out.

    Raises:
        BagError: A path does not exist or holds no bag.
    """
    bags = []
    for path in paths:
        if is_part(path):
            bags.append(path)
            continue
        if not path.is_dir():
            raise BagError(f'{path}: no such folder, nor an .mcap or .db3 file')
        inside = [path] if _is_bag(path) else sorted(p for p in path.iterdir() if _is_bag(p))
        if not inside:
            raise BagError(
                f'{path}: no bag in this folder (a bag is a folder with .mcap or .db3 files)'
            )
        bags += inside
    return bags


def _is_bag(path: Path) -> bool:
    return path.is_dir() and path.suffix != '.partial' and any(map(is_part, path.iterdir()))


def deserialise(data: bytes | memoryview, kind: str) -> Any:
    """Make a message of type `kind` of its serialised form, without copying its arrays.

    Raises:
        BagError: It is not such a message.
    """
    try:
        return serialisation.deserialise(data, kind)
    except ConversionError as error:
        raise BagError(str(error)) from error


class EpisodeBag:
    """One recorded episode: a folder of a recorder's, or any bag under a given contract.

    Args:
        path: A bag's folder, or its only file.
        contract: That of a bag which does not have its own; one that has must have been recorded
            under the same.
        outcome: That of a bag without a record.
        instruction: That of a bag without a record; None takes it from the instruction topic.

    Attributes:
        path: As given.
        record: Its `episode.json`, or what stands for it.
        recorded: Whether there is one.
        contract: The contract it was recorded under.
        damage: Why it is not whole, as far as was read; '' for a whole one.

    Raises:
        BagError: `episode.json` is missing, and no contract given, or damaged.
        ContractError: The contract in it is not valid, or not the one that is given.
    """

    def __init__(
        self,
        path: Path,
        *,
        contract: RobotContract | None = None,
        outcome: str = 'unlabeled',
        instruction: str | None = None,
    ) -> None:
        self.path = path
        self._parts = find_parts(path)
        folder = path if path.is_dir() else path.parent
        self.recorded = (folder / FILE_NAME).exists() or contract is None
        if self.recorded:
            self.record = EpisodeRecord.load(folder)
            self.contract = RobotContract.from_text(self.record.contract, f'{path}/{FILE_NAME}')
            if contract is not None:
                require_same(contract, self.contract, 'this conversion', str(path))
        else:
            assert contract is not None
            self.record = EpisodeRecord(
                instruction=instruction or '',
                outcome=outcome,
                ended_by='timeout' if outcome == 'unlabeled' else 'terminal',
                contract='',
            )
            self.contract = contract
        self.instruction_given = self.recorded or instruction is not None
        self.damage = self.record.damage
        self._recorded_as = {count.name: count.topic for count in self.record.counts}
        self.types = {camera.topic: camera.type for camera in self.contract.cameras} | {
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
            BagError: As of `serialised`, or a message is not of its type.
        """
        for topic, time, data in self.serialised(topics, optional):
            try:
                message = deserialise(data, self.types[topic])
            except BagError as error:
                raise BagError(f"{self.path}: '{topic}': {error}") from error
            yield topic, time, message

    def serialised(
        self, topics: Iterable[str], optional: Iterable[str] = ()
    ) -> Iterator[tuple[str, int, bytes]]:
        """Iterate over (topic, receive time ns, serialised message), as `messages` does.

        Ends early where a damaged bag cannot be read on, and says so in `damage`.

        Raises:
            BagError: A topic is absent, ambiguous or of another type than the contract's, or
                nothing in the bag can be read.
        """
        needed, optional = tuple(topics), tuple(optional)
        names: dict[str, str] = {}
        every: dict[str, None] = {}
        some = False
        for path in self._parts:
            try:
                if not path.exists():
                    raise BagError('is missing')
                with open_part(path) as part:
                    every |= dict.fromkeys(c.topic for c in part.connections)
                    chosen = self._choose(part, (*needed, *optional), names)
                    connections = [c for c, _ in chosen.values()]
                    for connection, time, data in part.messages(connections):
                        some = True
                        yield chosen[connection.id][1], time, data
                    if part.damage:
                        self._note(part.damage)
                    if part.cut:
                        break  # what comes later would follow a gap
            except _TopicError as error:
                raise BagError(f'{self.path}: {error}') from None
            except Exception as error:  # rosbags has no common base class; each means damage
                if is_local(error):  # the bag may be whole
                    raise
                line = ' '.join(str(error).split()) or type(error).__name__
                self._note(line if path.name in line else f'{path.name}: {line}')
                break  # what comes later would follow a gap
        missing = [topic for topic in needed if topic not in names]
        if self.damage and not some:
            raise BagError(f'{self.path}: cannot be read ({self.damage})')
        if missing:
            found = ', '.join(every) or 'nothing'
            raise BagError(f"{self.path}: no topic '{missing[0]}'; recorded: {found}")

    def content_hash(self) -> str:
        """Hash the bag's files: 32 hexadecimal digits of BLAKE2b."""
        digest = hashlib.blake2b(digest_size=16)
        for file in self._parts:
            if not file.exists():
                continue
            with file.open('rb', buffering=0) as stream:
                while chunk := stream.read(1 << 20):
                    digest.update(chunk)
        return digest.hexdigest()

    def _choose(
        self, part: Part, topics: tuple[str, ...], names: dict[str, str]
    ) -> dict[int, tuple[Connection, str]]:
        """Find the connections of the contract's topics; `names` has what they are recorded as."""
        chosen: dict[int, tuple[Connection, str]] = {}
        for topic in topics:
            # A bag of the recorder names its topics; elsewhere the namespace is unknown.
            name = self._recorded_as.get(topic, topic)
            found = [c for c in part.connections if f'/{c.topic}'.endswith(f'/{name}')]
            recorded = {c.topic for c in found}
            if len(recorded | {names.get(topic, c.topic) for c in found}) > 1:
                every = ', '.join(c.topic for c in part.connections)
                raise _TopicError(f"more than one topic '{topic}'; recorded: {every}")
            for connection in found:
                if connection.msgtype != self.types[topic]:
                    raise _TopicError(
                        f"topic '{topic}' is {connection.msgtype}, "
                        f'the contract says {self.types[topic]}'
                    )
                names[topic] = connection.topic
                chosen[connection.id] = connection, topic
        return chosen

    def _note(self, damage: str) -> None:
        self.damage = self.damage or damage


class _TopicError(ValueError):
    """A topic that is not as the contract has it."""
