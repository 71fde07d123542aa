# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Episodes as a person wants to see them: a video and a picture of the values."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

CAPTION_HEIGHT = 40
COLOURS = {'success': (60, 160, 60), 'failure': (190, 50, 50), 'timeout': (190, 120, 30)}


def caption(
    frame: NDArray[np.uint8], text: str, outcome: str = '', side: int = 384
) -> NDArray[np.uint8]:
    """Enlarge a frame (H, W, 3) to `side` pixels with `text` below, coloured by the outcome."""
    image = cv2.resize(frame, (side, side), interpolation=cv2.INTER_CUBIC)
    bar = np.full((CAPTION_HEIGHT, side, 3), COLOURS.get(outcome, (40, 40, 40)), np.uint8)
    font, white = cv2.FONT_HERSHEY_SIMPLEX, (255, 255, 255)
    cv2.putText(bar, text, (8, 26), font, 0.55, white, 1, cv2.LINE_AA)
    return np.asarray(np.vstack([image, bar]), np.uint8)


def episode_frames(
    frames: Sequence[NDArray[np.uint8]], instruction: str, outcome: str
) -> list[NDArray[np.uint8]]:
    """Caption an episode's frames and hold the last one, coloured by its outcome."""
    shown = [caption(frame, instruction) for frame in frames]
    return [*shown, *[caption(frames[-1], f'{instruction}: {outcome}', outcome)] * 6]


def write_video(path: Path, frames: Iterable[NDArray[np.uint8]], rate: float) -> None:
    """Write RGB frames of one size as an mp4.

    Raises:
        OSError: OpenCV cannot write the file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f'{path.stem}.partial{path.suffix}')
    writer: cv2.VideoWriter | None = None
    for frame in frames:
        if writer is None:
            size = (frame.shape[1], frame.shape[0])
            writer = cv2.VideoWriter(str(partial), cv2.VideoWriter.fourcc(*'mp4v'), rate, size)
            if not writer.isOpened():
                raise OSError(f'{path}: cannot be written as a video')
        writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    if writer is not None:
        writer.release()
        os.replace(partial, path)


def plot_values(
    path: Path,
    frame: NDArray[np.uint8],
    values: NDArray[np.float32],
    bins: NDArray[np.int64],
    joints: Sequence[str],
    instruction: str,
) -> None:
    """Draw Q of every bin of each joint beside the camera frame.

    Args:
        path: PNG to write.
        frame: (H, W, 3) RGB.
        values: (N, A) values.
        bins: (N,) chosen bins.
        joints: N names.
        instruction: The sentence.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    path.parent.mkdir(parents=True, exist_ok=True)
    figure = Figure(figsize=(11, 1.1 * len(joints)), layout='constrained')
    FigureCanvasAgg(figure)
    left, right = figure.subfigures(1, 2, width_ratios=(1, 1.4), squeeze=False)[0]
    camera = left.subplots()
    camera.imshow(frame)
    camera.set_title(instruction)
    camera.axis('off')
    rows = right.subplots(len(joints), 1, sharex=True)
    for axis, name, row, chosen in zip(np.atleast_1d(rows), joints, values, bins, strict=True):
        axis.bar(np.arange(len(row)), row, width=1.0, color='#8fb3d9')
        axis.bar([chosen], [row[chosen]], width=1.0, color='#d9534f')
        axis.set_ylim(0, 1)
        axis.set_yticks([0, 1])
        axis.set_ylabel(name, rotation=0, ha='right', va='center')
    np.atleast_1d(rows)[-1].set_xlabel('bin; the chosen one is red')
    figure.savefig(path, dpi=110)
