# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Bags -> replay folder, through the observation code of the policy node.

bag ─▶ scan: stamps ─▶ ticks ─▶ kept frames decoded, into staging/ ─▶ ReplayWriter
      └──────────── in a worker, one bag at a time ────────────┘    └─ in order ─┘
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Collection, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from qt_core.contract import RobotContract, require_same
from qt_core.instruction import BUNDLED_MODEL
from qt_core.replay import ReplayError, ReplayFolder, ReplayWriter
from qt_core.replay.writer import Embed
from qt_ros.bags.engines import Died, run_here, run_in_processes, run_on_ray
from qt_ros.bags.episode import BagError
from qt_ros.bags.episodes import Converted, convert_bag, convert_episode
from qt_ros.bags.reader import EpisodeBag
from qt_ros.bags.segments import Staging

__all__ = ['ENGINES', 'Report', 'Unrecorded', 'convert', 'convert_bag', 'convert_episode']

ENGINES = ('process', 'ray')


@dataclass(frozen=True)
class Report:
    """What a conversion did.

    Attributes:
        episodes: Episodes written.
        steps: Actions written.
        stale: Ticks left out because a stream was too old.
        skipped: Bags that were in the folder already.
        failures: One line per bag that could not be converted.
        notes: One line per bag that was converted and is not whole.
    """

    episodes: int
    steps: int
    stale: int
    skipped: int
    failures: tuple[str, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Unrecorded:
    """What the command line says of bags that have no record; see `EpisodeBag`."""

    contract: RobotContract | None = None
    outcome: str = 'unlabeled'
    instruction: str | None = None


@dataclass(frozen=True)
class _Work:
    """One bag, converted: what goes from a worker to the writer.

    Attributes:
        converted: Its episodes; None where the folder has them already.
        folder: What holds their images; the writer removes it.
        source_hash: The bag's content hash.
    """

    converted: Converted | None
    folder: Path | None
    source_hash: str


def convert(
    bags: Sequence[Path],
    out: Path,
    embed: Embed,
    *,
    sentence_model: str = BUNDLED_MODEL,
    contract: RobotContract | None = None,
    outcome: str = 'unlabeled',
    instruction: str | None = None,
    workers: int = 1,
    engine: str = 'process',
    ray_address: str | None = None,
    resume: bool = False,
    image_format: str = 'raw',
    jpeg_quality: int = 95,
    shard_steps: int = 4096,
    progress: Callable[[str | None], None] = lambda failure: None,
) -> Report:
    """Convert bags into a replay folder.

    A bag that cannot be converted is reported and the others go on. A bag whose content has been
    converted is skipped, whatever its name.

    Args:
        bags: Bag folders or files.
        out: The replay folder; must not exist or be empty, unless `resume`.
        embed: Sentences to embeddings (n, E).
        sentence_model: What `embed` embeds with; see `SentenceEncoder`.
        contract: Contract every bag must have been recorded under, and that of bags without a
            record; None takes that of the first bag that can be read.
        outcome: That of bags without a record.
        instruction: As `outcome`; None takes it from the instruction topic.
        workers: Processes, or with Ray half the tasks in flight (0: by the cluster's cores).
        engine: One of `ENGINES`.
        ray_address: Of an existing Ray cluster, whose machines see `bags` and `out`.
        resume: Go on with `out` where it was left: the same bags, in the same order, give the
            bytes that an undisturbed conversion gives. Other bags are appended.
        image_format: As of `ReplayWriter`.
        jpeg_quality: As of `ReplayWriter`.
        shard_steps: As of `ReplayWriter`.
        progress: Called after each bag, with the line of its failure or None.

    Raises:
        ReplayError: `out` is not empty, or differs from what is to be appended.
        BagError: No bag could be converted.
    """
    from qt_ros.bags.report import earlier_failures, write_report

    if engine not in ENGINES:
        raise BagError(f'engine is {engine!r}, expected {" or ".join(ENGINES)}')
    unrecorded = Unrecorded(contract, outcome, instruction)
    contract = contract or _first_contract(bags, unrecorded)
    failures: list[str] = []
    notes: list[str] = []
    stale = episodes = steps = skipped = 0
    with ReplayWriter(
        out,
        contract,
        embed,
        sentence_model=sentence_model,
        shard_steps=shard_steps,
        image_format=image_format,
        jpeg_quality=jpeg_quality,
        append=resume,
    ) as writer:
        # Only the bag of the last episode may be there in part.
        last = ReplayFolder(out).episodes[-1]['source_hash'] if writer.sources else ''
        seen = set(writer.sources) - {last}
        attempt = partial(
            _attempt,
            contract=contract,
            unrecorded=unrecorded,
            seen=frozenset(seen),
            staging=Staging(writer.staging, image_format, jpeg_quality),
        )
        with closing(_results(attempt, bags, engine, workers, ray_address)) as results:
            for path, result in zip(bags, results, strict=True):
                failure = None
                if isinstance(result, Died | str):
                    failure = result if isinstance(result, str) else f'{path}: {result.reason}'
                elif result.converted is None or result.source_hash in seen:
                    skipped += 1
                else:
                    seen.add(result.source_hash)
                    added = 0
                    try:
                        there = writer.sources.get(result.source_hash, 0)
                        for episode in result.converted.episodes[there:]:
                            writer.add(episode)
                            added, steps = added + 1, steps + len(episode.bins)
                    except ReplayError as error:
                        failure = f'{path}: {error}'
                    episodes, stale = (
                        episodes + added,
                        stale + result.converted.stale * bool(added),
                    )
                    skipped += not added and failure is None
                    if added and result.converted.damage:
                        notes.append(f'{path}: not whole: {result.converted.damage}')
                if isinstance(result, _Work) and result.folder is not None:
                    shutil.rmtree(result.folder, ignore_errors=True)
                if failure is not None:
                    failures.append(failure)
                progress(failure)
        if episodes + skipped == 0:
            raise BagError(f'no bag could be converted; the first: {failures[0]}')
    names = tuple(f'{path}{end}' for path in bags for end in (':', ' '))
    earlier = [line for line in earlier_failures(out) if not line.startswith(names)]
    write_report(out, [*earlier, *failures])
    return Report(episodes, steps, stale, skipped, tuple(failures), tuple(notes))


def _first_contract(bags: Sequence[Path], unrecorded: Unrecorded) -> RobotContract:
    failure: ValueError = BagError('no bag to convert')
    for path in bags:
        try:
            return EpisodeBag(path).contract
        except ValueError as error:
            failure = error
    raise failure


def _attempt(
    path: Path,
    contract: RobotContract,
    unrecorded: Unrecorded,
    seen: Collection[str],
    staging: Staging,
) -> _Work | str:
    """Convert one bag, or say in one line why not."""
    folder: Path | None = None
    try:
        bag = EpisodeBag(
            path,
            contract=unrecorded.contract,
            outcome=unrecorded.outcome,
            instruction=unrecorded.instruction,
        )
        require_same(contract, bag.contract, 'this conversion', str(path))
        source_hash = bag.content_hash()
        if source_hash in seen:
            return _Work(None, None, source_hash)
        folder = Path(tempfile.mkdtemp(dir=staging.folder))
        own = Staging(folder, staging.image_format, staging.jpeg_quality)
        return _Work(convert_bag(bag, own, source_hash=source_hash), folder, source_hash)
    except Exception as error:  # whatever a bag holds, the others are converted
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        line = ' '.join(str(error).split())
        if not isinstance(error, ValueError | OSError):
            line = f'{type(error).__name__}: {line}'
        return line if str(path) in line else f'{path}: {line}'


def _results(
    attempt: Callable[[Path], _Work | str],
    bags: Sequence[Path],
    engine: str,
    workers: int,
    ray_address: str | None,
) -> Generator[_Work | str | Died, None, None]:
    if engine == 'ray':
        return run_on_ray(attempt, bags, workers or None, ray_address)
    if min(workers, len(bags)) <= 1:
        return run_here(attempt, bags)
    return run_in_processes(attempt, bags, workers)
