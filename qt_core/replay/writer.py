# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Write a replay folder, whole shards of whole episodes at a time."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from qt_core.contract import RobotContract
from qt_core.instruction import BUNDLED_MODEL
from qt_core.replay.episode import ReplayEpisode, check_episode
from qt_core.replay.folder import ReplayFolder
from qt_core.replay.layout import (
    LOCK,
    META,
    PARTIAL,
    SHARDS,
    STAGING,
    Meta,
    ReplayError,
    complete_shards,
    shard_path,
    sync,
)
from qt_core.replay.shard import OpenShard
from qt_core.spec import Spec

Embed = Callable[[Sequence[str]], NDArray[np.float32]]


class ReplayWriter:
    """Writes a replay folder, or appends to one; used as a context manager.

        add ─▶ NNNNNN.partial ─▶ at `shard_steps`, or on close: NNNNNN, which readers see

    One process writes at a time. On an exception, and when the process is killed, the complete
    shards stay and the open one is lost; a folder that this writer created, and that has no
    complete shard, is removed. The same episodes in the same order give the same bytes.

    Args:
        folder: Must not exist, or be empty, unless `append`.
        contract: The contract of every episode, or only shapes where they are of no robot.
        embed: Sentences to embeddings (n, E); asked once per sentence. None for a folder without
            sentences.
        sentence_model: What `embed` embeds with; see `SentenceEncoder`.
        shard_steps: A shard is closed when it holds at least this many actions.
        image_format: `raw`, or `jpeg`: a tenth of the size, at a small loss and some time to
            decode at each sample.
        jpeg_quality: Of images that do not come as jpegs, 1..100.
        append: Add to the folder where it exists; it must be of the same contract, sentence
            model and image format.

    Attributes:
        sources: How many episodes of each `source_hash` were in the folder when it was opened.
        staging: A folder for files that make up episodes, empty now and removed on close.

    Raises:
        ReplayError: `folder` exists and is not empty, differs from what is to be appended, is
            damaged, or is being written by another process.
    """

    def __init__(
        self,
        folder: Path,
        contract: RobotContract | Spec,
        embed: Embed | None,
        *,
        sentence_model: str = BUNDLED_MODEL,
        shard_steps: int = 4096,
        image_format: str = 'raw',
        jpeg_quality: int = 95,
        append: bool = False,
    ) -> None:
        self.folder = Path(folder)
        self.contract: RobotContract | None = None
        if isinstance(contract, RobotContract):
            self.contract, self.spec = contract, Spec.of(contract)
        else:
            # A model's configuration is a Spec with more in it.
            self.spec = Spec(**contract.fields())  # type: ignore[arg-type]
        self.meta = Meta(
            contract=self.contract,
            spec=self.spec,
            sentence_model=sentence_model if embed is not None else '',
            image_format=image_format,
            jpeg_quality=jpeg_quality,
        )
        self.sentence_model = self.meta.sentence_model
        self.shard_steps = shard_steps
        self._embed = embed
        self._shard: OpenShard | None = None
        self._embeddings: dict[str, NDArray[np.float32]] = {}
        self._refuse_content(append)
        existed = self.folder.exists()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = _locked(self.folder)
        try:
            self._refuse_content(append)  # another writer may have been quicker
            self._created = _bare(self.folder)
            if self._created:
                self.meta.save(self.folder)
                sync(self.folder)
            self.sources: Mapping[str, int] = MappingProxyType(self._open())
        except BaseException:
            self._lock.close()
            raise
        self._removable = self._created and not existed
        self.staging = self.folder / STAGING
        shutil.rmtree(self.staging, ignore_errors=True)
        self.staging.mkdir()

    def __enter__(self) -> ReplayWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._release()

    def add(self, episode: ReplayEpisode) -> None:
        """Append an episode; images go to the disk at once.

        Raises:
            ReplayError: Its arrays do not fit each other or the contract, an image cannot be
                read, or it has a sentence that nothing embeds. The writer can go on.
        """
        if self._lock.closed:
            raise ReplayError(f'{self.folder}: the writer is closed')
        check_episode(episode, self.spec, in_units=self.contract is not None)
        if episode.instruction and self._embed is None:
            raise ReplayError(
                f'episode {episode.source!r} has the instruction {episode.instruction!r}, but the '
                'folder is written without sentences: give `embed`'
            )
        self._remember(episode.instruction)
        if self._shard is not None and self._shard.steps >= self.shard_steps:
            self._finish()  # the last time it was interrupted
        if self._shard is None:
            self._shard = OpenShard(shard_path(self.folder, self._count), self.meta)
        self._shard.add(episode)
        if self._shard.steps >= self.shard_steps:
            self._finish()

    def close(self) -> None:
        """Complete the open shard and let others write.

        Raises:
            ReplayError: No episode was added, and the folder has none; it is removed.
        """
        if self._lock.closed:
            return
        try:
            if self._shard is not None and self._shard.episodes:
                self._finish()
            if self._count == 0:
                raise ReplayError(f'{self.folder}: no episode to write')
        finally:
            self._release()

    def _refuse_content(self, append: bool) -> None:
        if self.folder.exists() and not self.folder.is_dir():
            raise ReplayError(f'{self.folder} exists and is not a folder')
        if not append and not _bare(self.folder):
            raise ReplayError(
                f'{self.folder} exists and is not empty; choose a new folder, or append to it'
            )

    def _open(self) -> Counter[str]:
        """Compare with what is in the folder, and remove what an earlier writer left open."""
        theirs = Meta.load(self.folder)
        differences = theirs.differences(self.meta)
        if differences:
            raise ReplayError(
                f'{self.folder} cannot be appended to, it differs: {"; ".join(differences)}'
            )
        (self.folder / SHARDS).mkdir(exist_ok=True)
        for left in (self.folder / SHARDS).glob(f'*{PARTIAL}'):
            shutil.rmtree(left, ignore_errors=True)
        self._count = complete_shards(self.folder)
        if self._count == 0:
            return Counter()
        found = ReplayFolder(self.folder)
        if found.embeddings is not None:
            self._embeddings |= zip(found.instructions, found.embeddings, strict=True)
        hashes = (str(episode['source_hash']) for episode in found.episodes)
        return Counter(source for source in hashes if source)

    def _remember(self, sentence: str) -> None:
        if self._embed is None or sentence in self._embeddings:
            return
        row = np.asarray(self._embed([sentence]), np.float32)
        width = next((len(known) for known in self._embeddings.values()), row.size)
        if row.shape != (1, width) or not np.isfinite(row).all():
            raise ReplayError(
                f'{self.folder}: the embedding of {sentence!r} is {row.shape}, '
                f'expected (1, {width}) finite numbers'
            )
        self._embeddings[sentence] = row[0]

    def _finish(self) -> None:
        shard = self._shard
        assert shard is not None
        rows = [self._embeddings[sentence] for sentence in shard.instructions if self._embed]
        shard.finish(np.stack(rows) if rows else None)
        self._shard = None
        self._count += 1

    def _release(self) -> None:
        """Drop what is open, and let others write."""
        if self._lock.closed:
            return
        if self._shard is not None:
            self._shard.drop()
            self._shard = None
        shutil.rmtree(self.staging, ignore_errors=True)
        if self._created and self._count == 0:
            for path in (self.folder / SHARDS, self.folder / META, self.folder / LOCK):
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            if self._removable and not any(self.folder.iterdir()):
                self.folder.rmdir()
        self._lock.close()


def _bare(folder: Path) -> bool:
    """Whether a folder holds nothing but what a writer that was killed at once leaves."""
    return not folder.exists() or all(
        path.name in (LOCK, META + PARTIAL) for path in folder.iterdir()
    )


def _locked(folder: Path) -> BinaryIO:
    """Take the lock that the one writer holds; it ends with the process."""
    file = (folder / LOCK).open('ab')
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # The writer before may have removed the folder since the file was opened.
        held = os.fstat(file.fileno()).st_ino == (folder / LOCK).stat().st_ino
    except (BlockingIOError, FileNotFoundError):
        held = False
    if not held:
        file.close()
        raise ReplayError(f'{folder} is being written by another process; wait until it is done')
    return file
