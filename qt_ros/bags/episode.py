# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`episode.json`: what a bag alone does not say about the episode in it."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from qt_core.configuration import ConfigurationError, build

FILE_NAME = 'episode.json'
OUTCOMES = ('success', 'failure', 'unlabeled')
ENDINGS = ('terminal', 'timeout')
STOPPED = 'the recorder was stopped'  # damage of a recording until it is complete


class BagError(ValueError):
    """A bag that cannot be read or written, and why."""


@dataclass(frozen=True, kw_only=True)
class TopicCount:
    """Messages of one topic in the bag, and how evenly they came.

    Attributes:
        topic: Its name in the bag: fully qualified, after remapping.
        messages: Messages of it in the bag.
        name: Its relative name in the contract.
        rate: Messages received per second of the episode, Hz; None for an episode of no length.
        expected: Rate that the contract asks for, Hz; None where it asks for none.
        largest_gap: Longest time without a message, s; where a rate is expected, also before the
            first and after the last one. None when nothing can be said.
        repeated: Images that are equal, but for the stamp, to the one before.
        jumps: Header stamps before the one before, or far ahead of it for the time that passed.
        lost: Messages that were published and never reached the recorder, as far as it can know:
            while the topic has one publisher.
    """

    topic: str
    messages: int
    name: str = ''
    rate: float | None = None
    expected: float | None = None
    largest_gap: float | None = None
    repeated: int = 0
    jumps: int = 0
    lost: int = 0


@dataclass(frozen=True, kw_only=True)
class InstructionChange:
    """A sentence that replaced the one in force.

    Attributes:
        time: When it was received, ns on the node clock.
        instruction: The new sentence.
    """

    time: int
    instruction: str


@dataclass(frozen=True, kw_only=True)
class SourceChange:
    """Somebody else than before drives the arm from now on.

    Attributes:
        time: When that was received, ns on the node clock.
        source: `policy`, `teleop`, `hold` or `estop`, as the guard says.
    """

    time: int
    source: str


@dataclass(frozen=True, kw_only=True)
class EpisodeRecord:
    """What is known about a recorded episode.

    Attributes:
        instruction: The sentence in force at the start.
        outcome: One of `OUTCOMES`.
        ended_by: `terminal` when the task ended, `timeout` when the recording was cut off.
        contract: Text of the contract it was recorded under.
        start: Time of the first message, ns on the node clock.
        stop: Time the episode was ended, ns on the node clock; what was received more than a
            control period later belongs to no episode.
        dropped: Messages that could not be written in time; an intact episode has none.
        counts: Messages per topic.
        damage: Why the recording is not whole; '' for a whole one. A damaged episode is always
            ended by `timeout`.
        instructions: Sentences that replaced `instruction` before the episode ended.
        sources: Who drove: the one at the start first, then each change before the episode ended.
            Empty where there was no guard to say.
    """

    instruction: str
    outcome: str
    ended_by: str
    contract: str
    start: int = 0
    stop: int = 0
    dropped: int = 0
    counts: tuple[TopicCount, ...] = ()
    damage: str = ''
    instructions: tuple[InstructionChange, ...] = ()
    sources: tuple[SourceChange, ...] = ()

    def __post_init__(self) -> None:
        if self.outcome not in OUTCOMES:
            raise BagError(f'outcome is {self.outcome!r}, expected {" or ".join(OUTCOMES)}')
        if self.ended_by not in ENDINGS:
            raise BagError(f'ended_by is {self.ended_by!r}, expected {" or ".join(ENDINGS)}')

    def save(self, bag: Path) -> None:
        """Write the record into a bag folder, in place of one that is there, safe on disk."""
        aside = bag / f'{FILE_NAME}.new'
        with aside.open('w', encoding='utf-8') as file:
            json.dump(asdict(self), file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, bag / FILE_NAME)

    @classmethod
    def load(cls, bag: Path) -> EpisodeRecord:
        """Read the record of a bag folder.

        Raises:
            BagError: There is none, or it is damaged.
        """
        try:
            content = json.loads((bag / FILE_NAME).read_text(encoding='utf-8'))
            return build(cls, content)
        except (OSError, ValueError, ConfigurationError) as error:
            line = ' '.join(str(error).split())
            raise BagError(f'{bag}: {FILE_NAME} cannot be read ({line})') from error
