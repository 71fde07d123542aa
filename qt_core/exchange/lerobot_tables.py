# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Read the parquet files of a LeRobot dataset, an episode at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import parquet

from qt_core.exchange.errors import ExchangeError

MAX_GROUP_BYTES = 2 << 30  # of one row group, unpacked
MAX_LENGTH = 10**6  # frames of one episode
BATCH = 4096
UNPACKED = 256 << 20  # bytes of coded images at a time
INDEX = {'dtype': 'int64', 'shape': (1,)}

Columns = dict[str, Any]  # name to (n,), (n, D) or, of images, a list of bytes


def read_episodes(
    path: Path, columns: Sequence[str], features: Mapping[str, Mapping[str, Any]]
) -> Iterator[tuple[int, Columns]]:
    """Give the number and the columns of each episode in a parquet file.

    Args:
        path: The file; an episode's rows follow each other.
        columns: Names of what is read.
        features: What info.json says of them.

    Raises:
        ExchangeError: A column is absent or not what `features` says, or something is too large.
        pyarrow.ArrowException: The file is damaged.
    """
    names = ['episode_index', *columns]
    with parquet.ParquetFile(path) as file:
        check_size(file, names, path)
        index, parts, length, held = -1, list[Columns](), 0, 0
        images = any(features.get(name, INDEX)['dtype'] == 'image' for name in names)
        rows = _rows_at_once(file) if images else BATCH
        for batch in file.iter_batches(rows, columns=names):
            held += batch.nbytes
            if held > MAX_GROUP_BYTES:
                raise ExchangeError(f'{path}: an episode of over {MAX_GROUP_BYTES} bytes')
            content = {n: _column(batch.column(n), n, features.get(n, INDEX), path) for n in names}
            numbers = content.pop('episode_index')
            if not len(numbers):
                continue
            starts = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(numbers)]
            for start, stop in pairwise(starts):
                if int(numbers[start]) != index:
                    if parts:
                        yield index, _joined(parts)
                    index, parts, length, held = int(numbers[start]), [], 0, batch.nbytes
                length += stop - start
                if length > MAX_LENGTH:
                    raise ExchangeError(f'{path}: an episode of over {MAX_LENGTH} frames')
                parts.append({n: values[start:stop] for n, values in content.items()})
        if parts:
            yield index, _joined(parts)


def _rows_at_once(file: parquet.ParquetFile) -> int:
    """Give how many rows of images to read: where all are equal, each may be all of its group."""
    groups = range(file.metadata.num_row_groups)
    largest = max((file.metadata.row_group(n).total_byte_size for n in groups), default=1)
    return max(1, min(BATCH, UNPACKED // max(1, largest)))


def _column(array: pa.Array, name: str, feature: Mapping[str, Any], path: Path) -> Any:
    """Turn a column into (n,) or (n, D) numbers, or a list of coded images."""
    if array.null_count:
        raise ExchangeError(f"{path}: '{name}' has empty cells")
    if feature['dtype'] == 'image':
        return [cell['bytes'] if isinstance(cell, dict) else None for cell in array.to_pylist()]
    width = int(np.prod(feature['shape']))
    nested = pa.types.is_list(array.type) or pa.types.is_fixed_size_list(array.type)
    flat = array.flatten() if nested else array
    numbers = pa.types.is_floating(flat.type) or pa.types.is_integer(flat.type)
    fits = numbers or pa.types.is_boolean(flat.type)
    if name.endswith('_index'):
        fits = pa.types.is_integer(flat.type)
    if not fits or flat.null_count or len(flat) != len(array) * width:
        raise ExchangeError(f"{path}: '{name}' is not {width} numbers a row")
    if pa.types.is_list(array.type) and np.any(np.diff(array.offsets.to_numpy()) != width):
        raise ExchangeError(f"{path}: '{name}' is not {width} numbers a row")
    values: NDArray[Any] = flat.to_numpy(zero_copy_only=False)
    return values.reshape(len(array), width) if feature['shape'] != (1,) or nested else values


def check_size(file: parquet.ParquetFile, names: Sequence[str], path: Path) -> None:
    """Refuse what would unpack into more memory than such files need.

    Raises:
        ExchangeError: A column is absent, or a row group is too large.
    """
    meta = file.metadata
    missing = [name for name in names if name not in file.schema_arrow.names]
    if missing:
        raise ExchangeError(f"{path} has no column '{missing[0]}'")
    # Of all columns: pyarrow ends the process when it looks at a column of a damaged footer.
    for number in range(meta.num_row_groups):
        size = meta.row_group(number).total_byte_size
        if size > MAX_GROUP_BYTES:
            raise ExchangeError(f'{path}: a row group of {size} bytes, over {MAX_GROUP_BYTES}')


def _joined(parts: Sequence[Columns]) -> Columns:
    return {
        name: (
            [cell for part in parts for cell in part[name]]
            if isinstance(parts[0][name], list)
            else np.concatenate([part[name] for part in parts])
        )
        for name in parts[0]
    }
