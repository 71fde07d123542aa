# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Replay folders: recorded episodes as a learner wants them, memory-mapped."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from qt_core.replay.episode import ReplayEpisode
from qt_core.replay.folder import ReplayFolder
from qt_core.replay.frames import FrameFile, Frames, JpegFrames
from qt_core.replay.layout import ReplayError
from qt_core.replay.writer import ReplayWriter

if TYPE_CHECKING:
    from qt_core.replay.dataset import ReplayMemoryDataset, split_episodes
    from qt_core.replay.sampler import WindowSampler
    from qt_core.replay.sequences import SequenceDataset
    from qt_core.replay.windows import WindowBatch

__all__ = [
    'FrameFile',
    'Frames',
    'JpegFrames',
    'ReplayEpisode',
    'ReplayError',
    'ReplayFolder',
    'ReplayMemoryDataset',
    'ReplayWriter',
    'SequenceDataset',
    'WindowBatch',
    'WindowSampler',
    'split_episodes',
]

_MODULES = {
    'ReplayMemoryDataset': 'dataset',
    'SequenceDataset': 'sequences',
    'WindowBatch': 'windows',
    'WindowSampler': 'sampler',
    'split_episodes': 'dataset',
}


def __getattr__(name: str) -> object:
    """Import what needs torch when it is first used: a converter's processes never do."""
    if name not in _MODULES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(import_module(f'qt_core.replay.{_MODULES[name]}'), name)
