# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The page of a report: one file of bounded size, in which nothing from data is markup."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import jinja2
import numpy as np
from numpy.typing import NDArray

from qt_core.replay import ReplayError, ReplayFolder

TEMPLATE = Path(__file__).with_name('report.html')
ROWS = 500  # of any table; report.json has them all
STREAMS = 16  # columns of the table of streams
TEXT = 300  # characters of any text from data
STRIPS = 48
FRAMES = 6  # of a strip
SIDE = 96  # pixels of a picture's longer side
GAP = 2  # pixels between pictures
BARS = 24  # of a histogram


def render_page(report: Mapping[str, Any], replay: ReplayFolder) -> str:
    """Render a report as HTML.

    Args:
        report: The content of report.json.
        replay: Gives the pictures.
    """
    episodes, attention = report['episodes'], report['attention']
    first = set(attention)
    order = [*attention, *(index for index in range(len(episodes)) if index not in first)]
    chosen = _choose(attention, len(episodes))
    return _template().render(
        report=report,
        rows=ROWS,
        streams=STREAMS,
        measures=MEASURES,
        shown=[episodes[index] for index in order[:ROWS]],
        lengths=_histogram([float(episode['steps']) for episode in episodes]),
        strips=[(episodes[index], _strips(replay, index)) for index in chosen],
    )


def _choose(attention: Sequence[int], count: int) -> list[int]:
    """Choose the episodes of the contact sheet: those to look at first, then evenly spread."""
    chosen = list(attention[:STRIPS])
    taken = set(chosen)
    rest = [index for index in range(count) if index not in taken]
    places = np.linspace(0, len(rest) - 1, min(STRIPS - len(chosen), len(rest)))
    return chosen + [rest[round(place)] for place in places]


def _strips(replay: ReplayFolder, index: int) -> list[tuple[str, str]]:
    """Give (camera, data URI) of a few frames of an episode side by side."""
    found = []
    episode = replay.episode(index)
    rows = sorted({round(row) for row in np.linspace(0, len(episode.bins), FRAMES)})
    for camera in replay.spec.cameras:
        frames = episode.images[camera.name]
        pictures = [_thumbnail(np.asarray(frames[row])) for row in rows]
        between = np.full((len(pictures[0]), GAP, 3), 255, np.uint8)
        strip = np.hstack([part for picture in pictures for part in (picture, between)][:-1])
        done, code = cv2.imencode('.jpg', strip, [cv2.IMWRITE_JPEG_QUALITY, 80])
        if not done:
            raise ReplayError(f"{replay.folder}: images of '{camera.name}' cannot be encoded")
        text = base64.b64encode(code.tobytes()).decode()
        found.append((camera.name, f'data:image/jpeg;base64,{text}'))
    return found


def _thumbnail(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Shrink (H, W, C) to BGR of at most `SIDE` pixels; one channel where it is no picture."""
    height, width, channels = frame.shape
    frame = frame[..., ::-1] if channels == 3 else np.repeat(frame[..., :1], 3, 2)
    scale = min(1.0, SIDE / max(height, width))
    size = max(1, round(scale * width)), max(1, round(scale * height))
    frame = np.ascontiguousarray(frame)
    return np.asarray(cv2.resize(frame, size, interpolation=cv2.INTER_AREA), np.uint8)


def _histogram(values: Sequence[float]) -> dict[str, Any]:
    counts, edges = np.histogram(values, min(BARS, max(1, len(set(values)))))
    return {'low': float(edges[0]), 'high': float(edges[-1]), 'counts': counts.tolist()}


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {'short': _short, 'figure': _figure, 'share': _share, 'clock': _clock}
    return environment.from_string(TEMPLATE.read_text(encoding='utf-8'))


def _short(text: str) -> str:
    return text if len(text) <= TEXT else text[: TEXT - 1] + '…'


def _figure(value: float | None) -> str:
    return '–' if value is None else f'{value:.4g}'


def _ms(value: float | None) -> str:
    return '–' if value is None else f'{1000 * value:.3g}'


def _share(value: float | None) -> str:
    return '–' if value is None else f'{value:.0%}'


def _clock(seconds: float | None) -> str:
    if seconds is None:
        return '–'
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours}:{minutes:02d}:{rest:02d}' if hours else f'{minutes}:{rest:02d}'


# Name, field, how it is shown, what it means.
MEASURES = (
    ('rate, Hz', 'rate', _figure, 'median of the episodes'),
    ('lowest rate', 'rate_low', _figure, 'of any episode'),
    ('expected rate', 'expected', _figure, ''),
    ('messages', 'messages', str, ''),
    ('matched', 'matched', str, 'ticks with a fresh message'),
    ('stale', 'stale', str, 'ticks where it was too old'),
    ('repeated', 'repeated', str, 'ticks with the message of the tick before'),
    ('duplicates', 'duplicates', str, 'images equal to the one before, byte for byte'),
    ('jumps', 'jumps', str, 'stamps that went back'),
    ('largest gap, s', 'largest_gap', _figure, 'between messages, of any episode'),
    ('age p50, ms', 'age_p50', _ms, 'at the ticks; median of the episodes'),
    ('age p95, ms', 'age_p95', _ms, 'of the worst episode'),
    ('age max, ms', 'age_max', _ms, 'of the worst episode'),
    ('latency p50, ms', 'latency_p50', _ms, 'stamp to receipt; median of the episodes'),
    ('latency p95, ms', 'latency_p95', _ms, 'of the worst episode'),
    ('latency max, ms', 'latency_max', _ms, 'of the worst episode'),
)
