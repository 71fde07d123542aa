# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What a replay folder consists of on disk.

    meta.json           what all its episodes share; written once
    .lock               held by the one process that writes
    staging/            scratch space of that process
    shards/NNNNNN/      whole episodes; `NNNNNN.partial` until it is complete
        shard.json      its episodes, its sentences, size and checksum of every other file
        quality.json    what the converter measured of each episode
        embeddings.npy  one row per sentence of this shard; absent in a folder without sentences
        FIELD.npy       one row per observation; see `row_fields`
        images_CAMERA.npy, or in a folder of jpegs images_CAMERA.jpegs, one after the other, and
        images_CAMERA.ends.npy, where each ends

An episode of T actions has T + 1 rows: the last one is the final observation, and zeros stand for
its action.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from qt_core.configuration import build, plain
from qt_core.contract import RobotContract, differing_fields
from qt_core.spec import Spec

FORMAT = 'qt-replay'
VERSION = 2
META, SHARD, QUALITY, EMBEDDINGS = 'meta.json', 'shard.json', 'quality.json', 'embeddings.npy'
LOCK, STAGING, SHARDS, PARTIAL = '.lock', 'staging', 'shards', '.partial'
IMAGE_FORMATS = ('raw', 'jpeg')
OUTCOMES = ('success', 'failure', 'unlabeled')


class ReplayError(ValueError):
    """A replay folder that cannot be read or written, and why."""


@dataclass(frozen=True, kw_only=True)
class Meta:
    """What all episodes of a folder share.

    Attributes:
        contract: The contract they were made under; None where they are of no robot.
        spec: Shapes of observations and actions.
        sentence_model: What embedded the sentences; empty in a folder without sentences.
        image_format: One of `IMAGE_FORMATS`.
        jpeg_quality: Of images encoded for this folder, 1..100.
    """

    contract: RobotContract | None
    spec: Spec
    sentence_model: str
    image_format: str = 'raw'
    jpeg_quality: int = 95

    def __post_init__(self) -> None:
        if self.image_format not in IMAGE_FORMATS:
            allowed = ' or '.join(IMAGE_FORMATS)
            raise ReplayError(f'image_format is {self.image_format!r}, expected {allowed}')
        if not isinstance(self.jpeg_quality, int) or not 1 <= self.jpeg_quality <= 100:
            raise ReplayError(f'jpeg_quality is {self.jpeg_quality!r}, expected 1..100')
        for camera in self.spec.cameras:
            if self.image_format == 'jpeg' and camera.channels not in (1, 3):
                raise ReplayError(
                    f"camera '{camera.name}' has {camera.channels} channels, a jpeg holds 1 or 3: "
                    "use image_format 'raw'"
                )

    def save(self, folder: Path) -> None:
        """Write meta.json."""
        shapes = (
            {'contract': self.contract.to_text()}
            if self.contract is not None
            else {'contract': None, 'spec': plain(self.spec)}
        )
        content = {
            'format': FORMAT,
            'version': VERSION,
            **shapes,
            'sentence_model': self.sentence_model,
            'image_format': self.image_format,
            'jpeg_quality': self.jpeg_quality,
        }
        write_json(folder / META, content)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read meta.json.

        Raises:
            ReplayError: `folder` is no replay folder of this version, or meta.json is damaged.
        """
        try:
            content = read_json(folder / META)
        except ReplayError as error:
            raise ReplayError(f'{folder}: not a replay folder ({error})') from error
        if not isinstance(content, dict):
            raise ReplayError(f'{folder}: not a replay folder ({META} holds no object)')
        kind, version = content.get('format'), content.get('version')
        if kind != FORMAT or version != VERSION:
            hint = '; convert its bags again' if kind == FORMAT and version == 1 else ''
            raise ReplayError(
                f'{folder}: {META} has format {kind!r} version {version!r}, '
                f'expected {FORMAT!r} version {VERSION}{hint}'
            )
        try:
            contract = None
            if content['contract'] is not None:
                contract = RobotContract.from_text(content['contract'], f'{folder}/{META}')
            spec = build(Spec, content['spec'], 'spec') if contract is None else Spec.of(contract)
            model = content['sentence_model']
            if not isinstance(model, str):
                raise ReplayError(f'sentence_model is {model!r}, expected text')
            return cls(
                contract=contract,
                spec=spec,
                sentence_model=model,
                image_format=content['image_format'],
                jpeg_quality=content['jpeg_quality'],
            )
        except (KeyError, TypeError, ValueError, ArithmeticError, RecursionError) as error:
            raise ReplayError(f'{folder}: damaged {META} ({error})') from error

    def differences(self, theirs: Meta) -> list[str]:
        """List each field in which they differ as `name: ours != theirs`."""
        found = []
        if self.contract is not None and theirs.contract is not None:
            lines = differing_fields(self.contract, theirs.contract)
            found += [f'contract.{line}' for line in lines]
        elif (self.contract is None) != (theirs.contract is None):
            names = ['none' if m.contract is None else m.contract.name for m in (self, theirs)]
            found.append(f'contract: {" != ".join(names)}')
        elif self.spec != theirs.spec:
            found.append(f'spec: {self.spec} != {theirs.spec}')
        names = ['sentence_model', 'image_format']
        names += ['jpeg_quality'] if self.image_format == 'jpeg' else []
        for name in names:
            mine, other = getattr(self, name), getattr(theirs, name)
            if mine != other:
                found.append(f'{name}: {mine!r} != {other!r}')
        return found


def row_fields(
    spec: Spec, *, in_units: bool
) -> dict[str, tuple[type[np.generic], tuple[int, ...]]]:
    """Give the arrays of a shard: name to number format and shape of one row.

    Args:
        spec: Shapes of observations and actions.
        in_units: Whether actions have units, and so values beside their bins.
    """
    actions = (spec.num_actions,)
    return {
        **{
            f'images_{camera.name}': (np.uint8, (camera.height, camera.width, camera.channels))
            for camera in spec.cameras
        },
        **({'state': (np.float32, (spec.state_dim,))} if spec.state_dim else {}),
        **({'action': (np.float32, actions)} if in_units else {}),
        'bins': (np.int16, actions),
        'reward': (np.float32, ()),
        'terminal': (np.bool_, ()),
        'timeout': (np.bool_, ()),
        'instruction': (np.int32, ()),
    }


def shard_path(folder: Path, number: int) -> Path:
    """Give the folder of shard `number`."""
    return folder / SHARDS / f'{number:06d}'


def complete_shards(folder: Path) -> int:
    """Count the complete shards, 0..n - 1, while a writer may be adding some.

    Raises:
        ReplayError: One is missing in between.
    """
    try:
        found = [int(p.name) for p in (folder / SHARDS).iterdir() if p.name.isdecimal()]
    except FileNotFoundError:
        found = []
    except OSError as error:
        raise ReplayError(f'{folder}: {SHARDS} cannot be read ({error})') from error
    count = 0
    # A listing may miss what is renamed meanwhile; those before one that it shows are there.
    while shard_path(folder, count).is_dir():
        count += 1
    if found and max(found) >= count:
        raise ReplayError(f'{folder}: {SHARDS}/{count:06d} is missing')
    return count


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        ReplayError: It cannot be read; the error names the file without its folder.
    """
    try:
        return json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError, RecursionError) as error:
        line = ' '.join(str(error).split())
        raise ReplayError(f'{path.name}: {line}') from error


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file whole or not at all."""
    partial = path.with_name(path.name + PARTIAL)
    with partial.open('w', encoding='utf-8') as file:
        json.dump(content, file, indent=1, allow_nan=False)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def sync(folder: Path) -> None:
    """Make the names in a folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
