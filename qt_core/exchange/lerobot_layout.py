# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Names of the files and features of a LeRobot dataset, version 3.0."""

from __future__ import annotations

from typing import Any

from qt_core.contract import RobotContract

VERSION = 'v3.0'
FILES_PER_CHUNK = 1000
DATA_MB, VIDEO_MB = 100, 200  # a file is closed before the episode that would make it larger

INFO = 'meta/info.json'
STATS = 'meta/stats.json'
TASKS = 'meta/tasks.parquet'
FILE = 'chunk-{chunk_index:03d}/file-{file_index:03d}'
EPISODES = f'meta/episodes/{FILE}.parquet'
DATA = f'data/{FILE}.parquet'
VIDEO = f'videos/{{video_key}}/{FILE}.mp4'
OURS = 'meta/qt_ros.json'  # what LeRobot has no place for, and ignores: contract, kind of actions

STATE, ACTION = 'observation.state', 'action'
IMAGES = 'observation.images.'
REWARD, DONE, TRUNCATED, SUCCESS = 'next.reward', 'next.done', 'next.truncated', 'next.success'
TERMINATE = 'terminate'  # name of the action dimension that says that the task is done
# Columns of meta/episodes that only this package reads.
OUTCOME, SOURCE, SOURCE_HASH, QUALITY = (
    f'replay/{name}' for name in ('outcome', 'source', 'source_hash', 'quality')
)
INDICES = {
    'timestamp': 'float32',
    'frame_index': 'int64',
    'episode_index': 'int64',
    'index': 'int64',
    'task_index': 'int64',
}


def features(contract: RobotContract, fps: int, codec: str) -> dict[str, dict[str, Any]]:
    """Describe the columns and videos of a contract's dataset, as in info.json."""
    action = contract.action
    terminate = [TERMINATE] if action.terminate else []
    scalars = {REWARD: 'float32', DONE: 'bool', TRUNCATED: 'bool', SUCCESS: 'bool'} | INDICES
    return {
        STATE: _vector([*contract.state.joints]),
        ACTION: _vector([*action.joints, *terminate]),
        **{
            IMAGES + camera.name: {
                'dtype': 'video',
                'shape': [camera.height, camera.width, 3],
                'names': ['height', 'width', 'channels'],
                'info': {
                    'video.height': camera.height,
                    'video.width': camera.width,
                    'video.codec': 'av1' if codec == 'libsvtav1' else codec,
                    'video.pix_fmt': 'yuv420p',
                    'video.is_depth_map': False,
                    'video.fps': fps,
                    'video.channels': 3,
                    'has_audio': False,
                },
            }
            for camera in contract.cameras
        },
        **{name: {'dtype': kind, 'shape': [1], 'names': None} for name, kind in scalars.items()},
    }


def file_after(chunk: int, file: int) -> tuple[int, int]:
    """Give the chunk and file numbers that follow."""
    return (chunk, file + 1) if file + 1 < FILES_PER_CHUNK else (chunk + 1, 0)


def _vector(names: list[str]) -> dict[str, Any]:
    return {'dtype': 'float32', 'shape': [len(names)], 'names': names}
