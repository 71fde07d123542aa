# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Replay folder -> the five files that the package q-transformer's `ReplayMemoryDataset` reads.

The package has one array of whole windows per field, (episodes, steps, ...), as long as the
longest episode; what is behind an episode's first `done` is padding. It has no final observation,
no timeout (every episode ends with `done`), no joint positions, and one camera, whose pixels are
floats, -1..1.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from qt_core.exchange.errors import ExchangeError
from qt_core.exchange.staging import staged
from qt_core.replay import ReplayFolder


def export_q_transformer(
    folder: ReplayFolder,
    out: Path,
    *,
    frames: int = 6,
    progress: Callable[[], object] = lambda: None,
) -> dict[str, tuple[int, ...]]:
    """Write a replay folder as `states`, `actions`, `rewards`, `dones` and `text_embeds`.

    Files are `<name>.memmap.npy`: states (E, T, C, F, H, W) float32, the F newest frames at each
    step, the first one repeated before the episode's start; actions (E, T, N) int64, bins; rewards
    (E, T) float32; dones (E, T) bool; text_embeds (E, T, D) float32, not written for a folder
    without sentences, which the package then opens with `condition_on_text=False`.

    Args:
        folder: Episodes of one camera.
        out: Folder to write; must not exist, or be empty.
        frames: Frames F of a state.
        progress: Called after each episode.

    Returns:
        The shapes of the arrays by name.

    Raises:
        ExchangeError: The folder has not one camera or no episode, the disk has no room, or
            `out` exists.
    """
    cameras = folder.spec.cameras
    if len(cameras) != 1:
        names = ', '.join(camera.name for camera in cameras) or 'none'
        raise ExchangeError(
            f'{folder.folder}: the q-transformer format has one camera, this has {names}'
        )
    if frames < 1:
        raise ExchangeError(f'frames is {frames}, expected at least 1')
    if not folder.episodes:
        raise ExchangeError(f'{folder.folder}: no episode to export')
    camera = cameras[0]
    size = (len(folder.episodes), max(int(entry['steps']) for entry in folder.episodes))
    fields: dict[str, tuple[type[Any], tuple[int, ...]]] = {
        'states': (np.float32, (camera.channels, frames, camera.height, camera.width)),
        'actions': (np.int64, (folder.spec.num_actions,)),
        'rewards': (np.float32, ()),
        'dones': (np.bool_, ()),
    }
    if folder.embeddings is not None:
        fields['text_embeds'] = (np.float32, (folder.embeddings.shape[1],))
    shapes = {name: (*size, *shape) for name, (_, shape) in fields.items()}
    needed = sum(
        int(np.prod(shapes[name])) * np.dtype(kind).itemsize for name, (kind, _) in fields.items()
    )
    with staged(out) as root:
        free = shutil.disk_usage(root).free
        if needed > free:
            raise ExchangeError(
                f'{out}: the q-transformer format repeats every frame {frames} times as floats: '
                f'{needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free'
            )
        maps: dict[str, Any] = {
            name: open_memmap(root / f'{name}.memmap.npy', 'w+', kind, shapes[name])
            for name, (kind, _) in fields.items()
        }
        for number, entry in enumerate(folder.episodes):
            episode = folder.episode(number)
            steps = len(episode.bins)
            images = episode.images[camera.name]
            window: list[NDArray[np.float32]] = []
            for step in range(steps):
                pixels = np.asarray(images[step], np.float32).transpose(2, 0, 1) / 127.5 - 1
                window = [*(window or [pixels] * frames)[1:], pixels]
                maps['states'][number, step] = np.stack(window, 1)
            maps['actions'][number, :steps] = episode.bins
            maps['rewards'][number, :steps] = episode.reward
            maps['dones'][number, steps - 1] = True
            if folder.embeddings is not None:
                maps['text_embeds'][number, :steps] = folder.embeddings[entry['instruction']]
            progress()
        for array in maps.values():
            array.flush()
    return shapes
