# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Replay folder -> LeRobot dataset, version 3.0.

An episode of T actions becomes T + 1 frames: LeRobot has one action per frame, and the final
observation, which has none, is kept with one that holds the arm where it is (its measured
position; a motion of zero with raw actions) and with a reward of 0. The last frame of an episode
is thus one that nothing followed, and the import, which leaves out the action of a last frame,
gives the episode back as it was. `next.done` is true at the frame of the last action and at the
final one, `next.truncated` at both where the episode was cut off, `next.success` at both where it
succeeded.

Actions are target positions, which is what LeRobot's policies expect, or raw: in the contract's
own units. `meta/qt_ros.json` keeps the contract and says which.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import parquet

from qt_core.action_space import ActionSpace
from qt_core.contract import RobotContract
from qt_core.exchange import lerobot_layout as layout
from qt_core.exchange.errors import ExchangeError
from qt_core.exchange.lerobot_files import DataFiles, EpisodeTable, VideoFiles
from qt_core.exchange.staging import staged
from qt_core.exchange.statistics import Stats, column_stats, merge
from qt_core.exchange.video import CODECS, MAX_SIDE
from qt_core.replay import ReplayEpisode, ReplayFolder

ACTIONS = ('absolute', 'raw')
MB = 2**20


@dataclass(frozen=True, kw_only=True)
class LeRobotConfig:
    """How a LeRobot dataset is written.

    Attributes:
        actions: `absolute` target positions, or `raw`: the contract's own units.
        codec: `h264`, which everything reads, or `libsvtav1`, which is smaller.
        crf: Constant rate factor of the video: lower is better and larger.
        data_mb: Largest size of a parquet file, MiB; a single episode may exceed it.
        video_mb: Largest size of a video file, MiB; a single episode may exceed it.
    """

    actions: str = 'absolute'
    codec: str = 'h264'
    crf: int = 23
    data_mb: float = layout.DATA_MB
    video_mb: float = layout.VIDEO_MB

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ('actions', self.actions, ACTIONS),
            ('codec', self.codec, CODECS),
        ):
            if value not in allowed:
                raise ExchangeError(f'{name} is {value!r}, expected {" or ".join(allowed)}')
        if not 0 <= self.crf <= 51:
            raise ExchangeError(f'crf is {self.crf}, expected 0..51')


def export_lerobot(
    folder: ReplayFolder,
    out: Path,
    config: LeRobotConfig | None = None,
    *,
    progress: Callable[[], object] = lambda: None,
) -> int:
    """Write a replay folder as a LeRobot dataset, a frame at a time.

    Args:
        folder: Episodes under a contract.
        out: Folder to write; must not exist, or be empty.
        config: How.
        progress: Called after each episode.

    Returns:
        The number of frames.

    Raises:
        ExchangeError: The folder has no contract or no episode, its rate or an image size does
            not fit the format, or `out` exists.
    """
    config = config or LeRobotConfig()
    contract = _fitting_contract(folder)
    fps, space = round(contract.rate), ActionSpace(contract)
    features = layout.features(contract, fps, config.codec)
    totals: dict[str, Stats] = {}
    first = 0
    with staged(out) as root:
        with ExitStack() as files:
            data = files.enter_context(DataFiles(root, features, config.data_mb * MB))
            entries = files.enter_context(closing(EpisodeTable(root)))
            cameras = {
                camera.name: files.enter_context(
                    VideoFiles(root, camera, fps, config.codec, config.crf, config.video_mb * MB)
                )
                for camera in contract.cameras
            }
            for index, listed in enumerate(folder.episodes):
                episode = folder.episode(index)
                frames = len(episode.state)
                columns = _columns(episode, space, raw=config.actions == 'raw') | {
                    'timestamp': np.arange(frames) / fps,
                    'frame_index': np.arange(frames),
                    'episode_index': np.full(frames, index),
                    'index': np.arange(first, first + frames),
                    'task_index': np.full(frames, listed['instruction']),
                }
                entry = {**_entry(episode, index, first), **data.add(columns)}
                stats = {name: column_stats(values) for name, values in columns.items()}
                for name, video in cameras.items():
                    place, stats[video.key] = video.add(episode.images[name])
                    entry |= place
                for name, part in stats.items():
                    totals[name] = merge([totals[name], part]) if name in totals else part
                    entry |= {f'stats/{name}/{k}': value.tolist() for k, value in part.items()}
                entries.add(entry)
                first += frames
                progress()
        _write_tasks(root, folder.instructions)
        stats_lists = {
            name: {k: value.tolist() for k, value in part.items()} for name, part in totals.items()
        }
        _write_json(root / layout.STATS, stats_lists)
        _write_json(
            root / layout.OURS, {'actions': config.actions, 'contract': contract.to_text()}
        )
        info = {
            'codebase_version': layout.VERSION,
            'robot_type': contract.name,
            'total_episodes': len(folder.episodes),
            'total_frames': first,
            'total_tasks': len(folder.instructions),
            'chunks_size': layout.FILES_PER_CHUNK,
            'data_files_size_in_mb': config.data_mb,
            'video_files_size_in_mb': config.video_mb,
            'fps': fps,
            'splits': {'train': f'0:{len(folder.episodes)}'},
            'data_path': layout.DATA,
            'video_path': layout.VIDEO,
            'features': features,
        }
        _write_json(root / layout.INFO, info)
    return first


def _fitting_contract(folder: ReplayFolder) -> RobotContract:
    """Give the contract of a folder that fits the format."""
    contract, where = folder.contract, folder.folder
    if contract is None:
        raise ExchangeError(f'{where}: its episodes are of no robot; a contract is needed')
    if contract.rate != round(contract.rate):
        raise ExchangeError(
            f'{where}: the control rate is {contract.rate:g} Hz, but a LeRobot dataset has a '
            'whole number of frames per second'
        )
    for camera in contract.cameras:
        if camera.height % 2 or camera.width % 2 or max(camera.height, camera.width) > MAX_SIDE:
            raise ExchangeError(
                f"{where}: camera '{camera.name}' has {camera.width}x{camera.height} pixels; a "
                f'video needs even sides of up to {MAX_SIDE}'
            )
    if not folder.episodes:
        raise ExchangeError(f'{where}: no episode to export')
    return contract


def _columns(episode: ReplayEpisode, space: ActionSpace, *, raw: bool) -> dict[str, NDArray[Any]]:
    """Lay an episode out as T + 1 frames; see the module's docstring for the last one."""
    action = np.asarray(episode.action, np.float64)
    joints = len(space.state_index)
    held = np.asarray(episode.state[-1], np.float64)[space.state_index]
    if raw and space.mode != 'absolute':
        held = np.zeros(joints)
    if not raw:
        targets = [space.to_targets(a, s) for a, s in zip(action, episode.state[:-1], strict=True)]
        action = np.concatenate([np.stack(targets), action[:, joints:]], 1)
    steps = len(action)
    ending = np.arange(steps + 1) >= steps - 1
    return {
        layout.STATE: episode.state,
        layout.ACTION: np.vstack([action, np.concatenate([held, action[-1, joints:]])]),
        layout.REWARD: np.append(episode.reward, 0.0),
        layout.DONE: ending & (episode.terminal or episode.timeout),
        layout.TRUNCATED: ending & episode.timeout,
        layout.SUCCESS: ending & _succeeded(episode),
    }


def _succeeded(episode: ReplayEpisode) -> bool:
    if episode.outcome == 'unlabeled':
        return bool(episode.reward.sum() > 0)
    return episode.outcome == 'success'


def _entry(episode: ReplayEpisode, index: int, first: int) -> dict[str, Any]:
    frames = len(episode.state)
    return {
        'episode_index': index,
        'tasks': [episode.instruction],
        'length': frames,
        'dataset_from_index': first,
        'dataset_to_index': first + frames,
        'meta/episodes/chunk_index': 0,
        'meta/episodes/file_index': 0,
        layout.OUTCOME: episode.outcome,
        layout.SOURCE: episode.source,
        layout.SOURCE_HASH: episode.source_hash,
        layout.QUALITY: '' if episode.quality is None else json.dumps(episode.quality),
    }


def _write_tasks(root: Path, sentences: list[str]) -> None:
    """Write the table of sentences, whose index LeRobot has pandas read from the metadata."""
    index = '__index_level_0__'
    columns = [
        ('task_index', 'task_index', 'int64', 'int64'),
        (None, index, 'unicode', 'object'),
    ]
    keys = ('name', 'field_name', 'pandas_type', 'numpy_type')
    pandas = {
        'index_columns': [index],
        'column_indexes': [],
        'columns': [dict(zip(keys, c, strict=True)) | {'metadata': None} for c in columns],
        'pandas_version': '2.2.0',
    }
    table = pa.table({'task_index': np.arange(len(sentences)), index: pa.array(sentences)})
    table = table.replace_schema_metadata({'pandas': json.dumps(pandas)})
    parquet.write_table(table, root / layout.TASKS)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=4, ensure_ascii=False), encoding='utf-8')
