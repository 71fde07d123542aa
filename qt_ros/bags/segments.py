# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Observations, one after the other, into the episodes they belong to."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from qt_core.contract import RobotContract
from qt_core.observation import Observation
from qt_core.replay import FrameFile, Frames

BODY = 12  # bytes of a stamped message up to the rest, which is the same in a repeated image


class FrameSink(Protocol):
    """Takes images one by one, and gives them back."""

    def append(self, frame: NDArray[np.uint8]) -> None:
        """Add an image (H, W, C)."""
        ...

    def frames(self) -> Frames:
        """Give the images so far."""
        ...


class HeldFrames:
    """Images in memory."""

    def __init__(self) -> None:
        self._frames: list[NDArray[np.uint8]] = []

    def append(self, frame: NDArray[np.uint8]) -> None:
        """Add an image (H, W, C)."""
        self._frames.append(frame)

    def frames(self) -> NDArray[np.uint8]:
        """Give the images so far, (n, H, W, C)."""
        return np.stack(self._frames)


@dataclass(frozen=True)
class Staging:
    """Where the images of episodes wait until they are in the replay folder.

    Attributes:
        folder: An empty folder.
        image_format: As of the replay folder.
        jpeg_quality: As of the replay folder.
    """

    folder: Path
    image_format: str = 'raw'
    jpeg_quality: int = 95

    def sink(self, name: str, frame: tuple[int, int, int]) -> FrameFile:
        """Make a file of images; `name` comes from the contract."""
        return FrameFile(self.folder / name, frame, self.image_format, self.jpeg_quality)


@dataclass
class Segment:
    """Ticks `first` to `last` under one sentence; `last` is the final observation alone."""

    first: int
    last: int
    sentence: str
    kept: list[int] = field(default_factory=list)
    states: list[NDArray[np.float32]] = field(default_factory=list)
    duplicates: Counter[str] = field(default_factory=Counter)
    sinks: dict[str, Any] = field(default_factory=dict)


class Filler:
    """Puts observations, which come in the order of the ticks, into their segments."""

    def __init__(
        self, contract: RobotContract, segments: list[Segment], staging: Staging | None
    ) -> None:
        self._contract, self._staging = contract, staging
        self._segments = deque(enumerate(segments))
        self._open: list[Segment] = []
        self._used: dict[str, bytes] = {}
        self._repeats: set[str] = set()

    def note(self, stream: str, data: bytes) -> None:
        """Take note that the next observation is made of a message."""
        before = self._used.get(stream)
        if before is not None and before is not data and len(before) == len(data):
            near = slice(BODY, 4096)  # most differ already here
            if before[near] == data[near] and before[BODY:] == data[BODY:]:
                self._repeats.add(stream)
        self._used[stream] = data

    def add(self, tick: int, observation: Observation | None) -> None:
        """Add the observation of a tick, None where there is none."""
        while self._segments and self._segments[0][1].first <= tick:
            number, segment = self._segments.popleft()
            for place, camera in enumerate(self._contract.cameras):
                sink: FrameSink = HeldFrames()
                if self._staging is not None:
                    size = (camera.height, camera.width, 3)
                    sink = self._staging.sink(f'{number}-{place}', size)
                segment.sinks[camera.name] = sink
            self._open.append(segment)
        for segment in self._open:
            if observation is not None:
                segment.kept.append(tick)
                segment.states.append(observation.state)
                for name, image in observation.images.items():
                    segment.sinks[name].append(image)
                segment.duplicates.update(self._repeats)
        if observation is not None:
            self._repeats.clear()
        for segment in [s for s in self._open if s.last == tick]:
            self._close(segment)

    def close(self) -> None:
        """Close what an error left open."""
        for segment in list(self._open):
            self._close(segment)

    def _close(self, segment: Segment) -> None:
        self._open.remove(segment)
        for sink in segment.sinks.values():
            if isinstance(sink, FrameFile):
                sink.__exit__(None, None, None)
