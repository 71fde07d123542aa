# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What a path is - bag, folder of bags, replay folder, checkpoint, contract - and what is in it.

Everything is plain JSON content; nothing is held in memory whole, and nothing is changed.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qt_core.configuration import plain
from qt_core.contract import RobotContract
from qt_core.replay import ReplayFolder
from qt_ros.bags.contents import bag_contents, bags_in, is_bag, summarise_bag

ROWS = 65536  # read at a time


class InspectionError(ValueError):
    """A path that is nothing this package knows."""


def inspect(path: Path) -> dict[str, Any]:
    """Say what `path` is, as `kind`, and what is in it.

    Raises:
        InspectionError: It is none of the kinds, or does not exist.
        BagError, ReplayError, CheckpointError, ContractError: It is one, but cannot be read.
    """
    if not path.exists():
        raise InspectionError(f'{path}: no such file or folder')
    if is_bag(path):
        return {'kind': 'bag', **bag_contents(path)}
    if path.is_file():
        if path.suffix in ('.yaml', '.yml'):
            return {'kind': 'contract', **plain(RobotContract.load(path))}
    elif (path / 'meta.json').exists():
        return {'kind': 'replay folder', **inspect_replay(path)}
    elif (path / 'config.json').exists():
        return {'kind': 'checkpoint', **inspect_checkpoint(path)}
    elif (path / 'last/config.json').exists():  # a training run
        return {'kind': 'checkpoint', **inspect_checkpoint(path / 'last')}
    elif bags := bags_in(path):
        return {
            'kind': 'folder of bags',
            'path': str(path),
            'bags': list(map(summarise_bag, bags)),
        }
    raise InspectionError(
        f'{path}: no bag, folder of bags, replay folder (meta.json), checkpoint (config.json) '
        'or contract (.yaml)'
    )


def inspect_replay(path: Path) -> dict[str, Any]:
    """Describe a replay folder.

    Raises:
        ReplayError: It cannot be read.
    """
    replay = ReplayFolder(path)
    contract = replay.contract
    counts = Counter(replay.instructions[e['instruction']] for e in replay.episodes)
    actions = [(e['shard'], e['start'], e['start'] + e['steps']) for e in replay.episodes]
    rows = [(shard, start, stop + 1) for shard, start, stop in actions]
    joints = commanded = None
    if contract is not None:
        joints = list(contract.state.joints)
        commanded = [*contract.action.joints, *['terminate'] * contract.action.terminate]
    field = 'bins' if contract is None else 'action'
    return {
        'path': str(path),
        'contract': None if contract is None else plain(contract),
        'spec': plain(replay.spec),
        'episodes': len(replay.episodes),
        'steps': replay.steps,
        'duration': None if contract is None else replay.steps * contract.period,
        'shards': len(replay.shards),
        'outcomes': dict(Counter(e['outcome'] for e in replay.episodes)),
        'instructions': dict(counts.most_common()),
        'sentence_model': replay.sentence_model,
        'image_format': replay.image_format,
        'bytes': size_on_disk(path),
        'state': _statistics(replay, 'state', rows, joints) if replay.spec.state_dim else [],
        'action': _statistics(replay, field, actions, commanded),
    }


def inspect_checkpoint(path: Path) -> dict[str, Any]:
    """Describe a checkpoint; of the weights only names and shapes are read.

    Raises:
        CheckpointError: It is not one, or is damaged.
        ContractError: The contract in it is not valid.
    """
    from safetensors import SafetensorError, safe_open

    from qt_core.models.pretrained import CheckpointError, read_config

    config = read_config(path)
    text = config.get('contract')
    contract = None if text is None else RobotContract.from_text(text, f'{path}/config.json')
    try:
        with safe_open(path / 'model.safetensors', 'np') as weights:
            shapes = [weights.get_slice(name).get_shape() for name in weights.keys()]  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        line = ' '.join(str(error).split())
        raise CheckpointError(
            f'{path}/model.safetensors: damaged or truncated ({line})'
        ) from error
    for name, kind in (('model', dict), ('training', dict), ('sentences', list)):
        if not isinstance(config.setdefault(name, kind()), kind):
            raise CheckpointError(f'{path}: damaged config.json ({name})')
    return {
        'path': str(path),
        'policy': config['policy'],
        'contract': None if contract is None else plain(contract),
        'parameters': sum(math.prod(shape) for shape in shapes),
        'bytes': size_on_disk(path),
        'sentences': config['sentences'],
        'sentence_model': config.get('sentence_model', ''),
        'training': config['training'],
        'model': config['model'],
    }


def size_on_disk(path: Path) -> int:
    """Add up the files of a folder, or give the size of a file, bytes."""
    files = path.rglob('*') if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file() and not file.is_symlink())


def _statistics(
    replay: ReplayFolder, field: str, rows: list[tuple[int, int, int]], names: list[str] | None
) -> list[dict[str, Any]]:
    """Give range, mean and standard deviation of each column over (shard, start, stop) rows."""
    count, mean, squares = 0, np.zeros(1), np.zeros(1)
    low, high = np.array(np.inf), np.array(-np.inf)
    for values in _blocks(replay, field, rows):
        # Chan, Golub and LeVeque (1983): sums of squares of parts, without cancellation.
        n, part = len(values), values.mean(0)
        delta = part - mean
        squares = squares + ((values - part) ** 2).sum(0) + delta**2 * count * n / (count + n)
        mean = mean + delta * n / (count + n)
        count += n
        low, high = np.minimum(low, values.min(0)), np.maximum(high, values.max(0))
    deviation = np.sqrt(squares / max(1, count))
    names = names or [f'{field}[{index}]' for index in range(len(mean))]
    return [
        {'name': name, 'min': _six(a), 'max': _six(b), 'mean': _six(m), 'std': _six(s)}
        for name, a, b, m, s in zip(names, low, high, mean, deviation, strict=True)
    ]


def _blocks(
    replay: ReplayFolder, field: str, rows: list[tuple[int, int, int]]
) -> Iterator[NDArray[np.float64]]:
    for shard, start, stop in rows:
        for first in range(start, stop, ROWS):
            values = replay.shards[shard][field][first : min(stop, first + ROWS)]
            yield np.asarray(values, np.float64)


def _six(value: Any) -> float | None:
    """Round to six digits; None for what is not finite, which JSON has no number for."""
    return float(f'{float(value):.6g}') if np.isfinite(value) else None
