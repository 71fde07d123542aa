# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""LeRobot dataset -> replay folder; neither needs nor imports the package lerobot.

The action of an episode's last frame is left out, because no observation shows what it led to: L
frames become L - 1 steps, and an episode that `export_lerobot` wrote becomes what it was. Rewards
of the last frame count for the last step. Where the dataset is k times as fast as the contract's
rate, every k-th frame is kept, with the last target sent before the next one kept, and with the
sum of the rewards between them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from qt_core.contract import RobotContract
from qt_core.exchange import lerobot_layout as layout
from qt_core.exchange.errors import ExchangeError
from qt_core.exchange.lerobot_folder import LeRobotFolder
from qt_core.exchange.lerobot_matching import ImportConfig, Matching
from qt_core.instruction import BUNDLED_MODEL
from qt_core.replay import ReplayWriter
from qt_core.replay.writer import Embed


@dataclass(frozen=True, kw_only=True)
class ImportReport:
    """What an import gave: counts, and one line for each episode that was left out."""

    episodes: int
    steps: int
    failures: tuple[str, ...]


def import_lerobot(
    source: Path,
    out: Path,
    embed: Embed,
    config: ImportConfig | None = None,
    *,
    contract: RobotContract | None = None,
    sentence_model: str = BUNDLED_MODEL,
    image_format: str = 'raw',
    progress: Callable[[], object] = lambda: None,
) -> ImportReport:
    """Write a LeRobot dataset as a replay folder.

    Args:
        source: Folder of the dataset, version 3.0 or 2.1.
        out: Replay folder to write.
        embed: Sentences to embeddings (n, E).
        config: How the dataset is understood.
        contract: What the robot observes and commands; None for that of an exported dataset.
        sentence_model: What `embed` embeds with.
        image_format: Of the replay folder.
        progress: Called after each episode.

    Raises:
        ExchangeError: The dataset is damaged, does not fit the contract, or no episode does.
        ReplayError: `out` cannot be written.
    """
    config = config or ImportConfig()
    dataset = LeRobotFolder(source)
    if contract is None:
        if 'contract' not in dataset.ours:
            raise ExchangeError(f'{source} was not exported by qt_ros; give a contract')
        contract = RobotContract.from_text(dataset.ours['contract'], f'{source}/{layout.OURS}')
    matching = Matching(dataset, contract, config)
    failures: list[str] = []
    episodes = steps = 0
    with ReplayWriter(
        out, contract, embed, sentence_model=sentence_model, image_format=image_format
    ) as writer:
        for entry, columns in dataset.rows(matching.columns):
            try:
                if isinstance(columns, ExchangeError):
                    raise columns
                episode = matching.episode(entry, columns, writer.staging, image_format)
                writer.add(episode)
                episodes, steps = episodes + 1, steps + len(episode.bins)
            except (ValueError, RecursionError) as error:  # our error classes are ValueErrors
                line = ' '.join(str(error).split())
                where = f'{source}: episode {entry.index}'
                failures.append(line if where in line else f'{where}: {line}')
            progress()
        if not episodes:
            raise ExchangeError(failures[0])
    return ImportReport(episodes=episodes, steps=steps, failures=tuple(failures))
