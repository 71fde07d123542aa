# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Read a whole replay folder, and say everything that is wrong with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from qt_core.replay.folder import ReplayFolder
from qt_core.replay.frames import JpegFrames
from qt_core.replay.layout import (
    EMBEDDINGS,
    PARTIAL,
    QUALITY,
    SHARD,
    SHARDS,
    Meta,
    ReplayError,
    complete_shards,
    read_json,
    row_fields,
    shard_path,
)
from qt_core.replay.shard import checksum


def verify(folder: str | Path) -> list[str]:
    """Check every complete shard of a replay folder, one line per problem.

    Every file is there and is what was written (size and checksum), arrays have the shapes and
    ranges that the folder says, numbers are finite, and every jpeg decodes.
    """
    return [' '.join(problem.split()) for problem in _problems(Path(folder))]


def _problems(folder: Path) -> list[str]:
    try:
        meta, count = Meta.load(folder), complete_shards(folder)
    except ReplayError as error:
        return [str(error)]
    problems = []
    for index in range(count):
        problems += _files(folder, index, meta)
    try:
        opened = ReplayFolder(folder)
    except ReplayError as error:
        return [*problems, str(error)]
    if opened.embeddings is not None and not np.isfinite(opened.embeddings).all():
        problems.append(f'{folder}: an embedding is not finite')
    for index in range(len(opened.shards)):
        problems += _content(opened, index)
    return problems


def _files(folder: Path, index: int, meta: Meta) -> list[str]:
    """Compare the files of a shard with what shard.json says of them."""
    where, path = f'{folder}/{SHARDS}/{index:06d}', shard_path(folder, index)
    names = {QUALITY} | ({EMBEDDINGS} if meta.sentence_model else set())
    for field in row_fields(meta.spec, in_units=meta.contract is not None):
        coded = meta.image_format == 'jpeg' and field.startswith('images_')
        names |= {f'{field}.jpegs', f'{field}.ends.npy'} if coded else {f'{field}.npy'}
    try:
        written = read_json(path / SHARD)['files']
        known = {name: (written[name]['bytes'], written[name]['blake2b']) for name in written}
    except (ReplayError, KeyError, TypeError, IndexError):
        return [f'{where}/{SHARD}: damaged, it lists no files with their checksums']
    problems = []
    for name in sorted(names - set(known)):
        problems.append(f'{where}/{SHARD}: does not list {name}')
    present = {p.name for p in path.iterdir() if not p.name.endswith(PARTIAL)}
    for name in sorted((present | set(known)) - names - {SHARD}):
        problems.append(f'{where}/{name}: belongs to no replay folder')
    for name in sorted(names & set(known)):
        size, digest = known[name]
        try:
            found = (path / name).stat().st_size
            if found != size:
                problems.append(f'{where}/{name}: {found} bytes, {size!r} were written')
            elif checksum(path / name) != digest:
                problems.append(f'{where}/{name}: is not what was written, its checksum differs')
        except OSError as error:
            problems.append(f'{where}/{name}: cannot be read ({error.strerror})')
    return problems


def _content(opened: ReplayFolder, index: int) -> list[str]:
    """Check the numbers in a shard."""
    where = f'{opened.folder}/{SHARDS}/{index:06d}'
    shard: dict[str, Any] = opened.shards[index]
    problems = []
    for name in ('state', 'action', 'reward'):
        if name in shard and not np.isfinite(shard[name]).all():
            problems.append(f'{where}/{name}.npy: not finite')
    bins = shard['bins']
    if bins.min() < 0 or bins.max() >= opened.spec.action_bins:
        problems.append(f'{where}/bins.npy: not all in 0..{opened.spec.action_bins - 1}')
    for name, images in shard.items():
        for number in range(len(images) if isinstance(images, JpegFrames) else 0):
            try:
                images[number]
            except ReplayError as error:
                problems.append(f'{where}/{name}.jpegs: {error}')
    table = read_json(shard_path(opened.folder, index) / SHARD)['instructions']
    entries = [
        (number, entry) for number, entry in enumerate(opened.episodes) if entry['shard'] == index
    ]
    for place, (number, entry) in enumerate(entries):
        name = f'{where}: episode {place} ({entry["source"]!r})'
        start, end = entry['start'], entry['start'] + entry['steps']
        flags = np.stack([shard['terminal'][start : end + 1], shard['timeout'][start : end + 1]])
        if flags[:, :-2].any() or flags[:, -1].any() or flags[:, -2].all():
            problems.append(f'{name} is terminal or timeout in its midst, or both')
        if any(
            shard[field][end].any() for field in ('action', 'bins', 'reward') if field in shard
        ):
            problems.append(f'{name} has an action after its last observation')
        if not np.isclose(shard['reward'][start:end].sum(), entry['return'], rtol=1e-4):
            problems.append(f'{name} has another return than its rewards add up to')
        sentence = table.index(opened.instructions[entry['instruction']])
        if (shard['instruction'][start : end + 1] != sentence).any():
            problems.append(f'{name} has another sentence in its rows')
        if place == 0:
            try:
                opened.quality(number)
            except ReplayError as error:
                problems.append(str(error))
    return problems
