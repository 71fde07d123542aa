# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Replay folders: recorded episodes as a learner wants them, memory-mapped."""

from qt_core.replay.dataset import ReplayMemoryDataset, split_episodes
from qt_core.replay.episode import ReplayEpisode
from qt_core.replay.folder import ReplayFolder
from qt_core.replay.frames import FrameFile, Frames, JpegFrames
from qt_core.replay.layout import ReplayError
from qt_core.replay.sampler import WindowSampler
from qt_core.replay.windows import WindowBatch
from qt_core.replay.writer import ReplayWriter

__all__ = [
    'FrameFile',
    'Frames',
    'JpegFrames',
    'ReplayEpisode',
    'ReplayError',
    'ReplayFolder',
    'ReplayMemoryDataset',
    'ReplayWriter',
    'WindowBatch',
    'WindowSampler',
    'split_episodes',
]
