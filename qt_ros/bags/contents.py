# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What is in a bag of anybody's: topics, counts, rates; read raw, without decoding a message."""

from __future__ import annotations

from array import array
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from qt_core.contract import ContractError, RobotContract
from qt_ros.bags.episode import FILE_NAME, BagError, EpisodeRecord
from qt_ros.bags.parts import MAX_METADATA, METADATA, find_parts, is_part, open_part

LEFT = ('.partial', '.unreadable')  # folders that a recorder which was killed leaves


def is_bag(path: Path) -> bool:
    """Whether `path` is a file of a bag, or a folder with one: a bag, whole or unfinished."""
    return is_part(path) or (path.is_dir() and any(map(is_part, _inner(path).iterdir())))


def bags_in(folder: Path) -> list[Path]:
    """List the bags directly inside a folder."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and is_bag(path))


def summarise_bag(path: Path) -> dict[str, Any]:
    """Describe a bag folder in a few words, without reading messages; damage is no error."""
    folder = _inner(path)
    found: dict[str, Any] = {
        'name': path.name,
        'messages': None,
        'duration': None,
        'bytes': _size(folder),
        'outcome': None,
        'instruction': None,
        'damage': '' if folder == path else 'unfinished: still being recorded, or cut off',
    }
    try:
        if (folder / FILE_NAME).exists():
            record = EpisodeRecord.load(folder)
            found['outcome'], found['instruction'] = record.outcome, record.instruction
            found['messages'] = sum(count.messages for count in record.counts)
            found['duration'] = max(0, record.stop - record.start) / 1e9
            found['damage'] = found['damage'] or record.damage
            return found
        found['duration'], found['messages'] = _duration(folder), 0
        for file in find_parts(folder):
            with open_part(file) as part:
                found['messages'] += sum(connection.msgcount for connection in part.connections)
                found['damage'] = found['damage'] or part.damage
    except (BagError, OSError) as error:
        found['damage'] = _line(error)
    return found


def bag_contents(path: Path) -> dict[str, Any]:
    """Read a bag once, and give its topics with counts and rates, and its record.

    Args:
        path: A folder of storage files, with or without metadata.yaml, or one such file.

    Raises:
        BagError: Nothing in it can be read.
    """
    folder = _inner(path) if path.is_dir() else path.parent
    types, arrivals, damage = _read(folder if path.is_dir() else path)
    times = {topic: np.sort(np.frombuffer(t, np.int64)) for topic, t in arrivals.items()}
    filled = [stamps for stamps in times.values() if len(stamps)]
    start = min((int(stamps[0]) for stamps in filled), default=0)
    stop = max((int(stamps[-1]) for stamps in filled), default=0)
    record, problem = _record(folder, alone=path.is_file())
    damage += [problem] if problem else []
    if record is not None and record.damage:
        damage.insert(0, record.damage)
    return {
        'path': str(path),
        'bytes': _size(folder if path.is_dir() else path),
        'start': start,
        'duration': (stop - start) / 1e9,
        'messages': sum(map(len, filled)),
        'outcome': record and record.outcome,
        'ended_by': record and record.ended_by,
        'instruction': record and record.instruction,
        'instructions': [
            {'time': change.time, 'instruction': change.instruction}
            for change in (record.instructions if record else ())
        ],
        'sources': [
            {'time': change.time, 'source': change.source}
            for change in (record.sources if record else ())
        ],
        'contract': record and _contract_name(record),
        'dropped': record and record.dropped,
        'damage': '; '.join(damage),
        'topics': [_topic(topic, types[topic], times[topic], record) for topic in sorted(times)],
    }


def _read(path: Path) -> tuple[dict[str, str], dict[str, array[int]], list[str]]:
    """Give type and receive times of each topic, and what could not be read."""
    types: dict[str, str] = {}
    times: dict[str, array[int]] = {}
    damage: list[str] = []
    opened = False
    for file in find_parts(path):
        try:
            with open_part(file) as part:
                opened = True
                damage += [part.damage] if part.damage else []
                for connection in part.connections:
                    types[connection.topic] = connection.msgtype
                    times.setdefault(connection.topic, array('q'))
                for connection, time, _ in part.messages(part.connections):
                    times[connection.topic].append(time)
        except Exception as error:  # rosbags has no common base class; any of them means damage
            line = _line(error)
            damage.append(line if file.name in line else f'{file.name}: {line}')
    if not opened:
        raise BagError('; '.join(damage) or f'{path}: no file of a bag')
    return types, times, damage


def _topic(
    topic: str, kind: str, times: NDArray[np.int64], record: EpisodeRecord | None
) -> dict[str, Any]:
    counts = () if record is None else record.counts
    count = next((count for count in counts if count.topic == topic), None)
    gaps = np.diff(times) / 1e9
    median = float(np.median(gaps)) if len(gaps) else 0.0
    return {
        'topic': topic,
        'type': kind,
        'name': count.name if count else '',
        'messages': len(times),
        'rate': float(f'{1 / median:.6g}') if median > 0 else None,
        'expected': count and count.expected,
        'largest_gap': float(f'{gaps.max():.6g}') if len(gaps) else None,
        'repeated': count and count.repeated,
        'jumps': count and count.jumps,
    }


def _record(folder: Path, *, alone: bool) -> tuple[EpisodeRecord | None, str]:
    """Read the record beside a bag's files; None, and why, where there is none to trust.

    A file given by itself has the folder's record only where it is the only one there.
    """
    if not (folder / FILE_NAME).exists() or (alone and len(find_parts(folder)) > 1):
        return None, ''
    try:
        return EpisodeRecord.load(folder), ''
    except BagError as error:
        return None, _line(error)


def _contract_name(record: EpisodeRecord) -> str | None:
    try:
        return RobotContract.from_text(record.contract).name
    except ContractError:
        return None


def _duration(folder: Path) -> float | None:
    """Read the seconds that metadata.yaml says; None where it does not."""
    file = folder / METADATA
    try:
        if file.stat().st_size > MAX_METADATA:
            return None
        content = yaml.safe_load(file.read_bytes())
        return int(content['rosbag2_bagfile_information']['duration']['nanoseconds']) / 1e9
    except (OSError, ValueError, KeyError, TypeError, RecursionError, yaml.YAMLError):
        return None


def _inner(path: Path) -> Path:
    """Give the folder of the files: a recorder writes NAME inside `NAME.partial`."""
    inside = path / path.stem
    return inside if path.suffix in LEFT and inside.is_dir() else path


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in find_parts(path) if file.exists())


def _line(error: Exception) -> str:
    return ' '.join(str(error).split()) or type(error).__name__
