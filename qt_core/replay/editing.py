# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""New replay folders out of others: merged, split, filtered, relabelled.

The folders that are read stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from qt_core.action_space import ActionSpace
from qt_core.configuration import require
from qt_core.instruction import SentenceEncoder
from qt_core.replay.dataset import split_episodes
from qt_core.replay.episode import ReplayEpisode
from qt_core.replay.folder import ReplayFolder
from qt_core.replay.layout import OUTCOMES, ReplayError
from qt_core.replay.writer import Embed, ReplayWriter

Entry = Mapping[str, Any]


def copy_episodes(
    out: Path,
    sources: Sequence[ReplayFolder],
    *,
    keep: Callable[[Entry], bool] = lambda entry: True,
    change: Callable[[ReplayEpisode], ReplayEpisode] = lambda episode: episode,
    embed: Embed | None = None,
    shard_steps: int = 4096,
) -> int:
    """Write episodes of other folders into a new one, in their order.

    Args:
        out: The new folder; must not exist, or be empty.
        sources: Folders of the same contract, sentence model and image format.
        keep: Whether to copy an episode, by its entry in `ReplayFolder.episodes`, where the
            sentence itself stands under `instruction`.
        change: What to make of each episode.
        embed: Embeds sentences that `change` brings in; None for the sentence model of the
            sources.
        shard_steps: As of `ReplayWriter`.

    Returns:
        The number of episodes.

    Raises:
        ReplayError: The sources differ, no episode is kept, or `out` is not empty.
    """
    first = sources[0]
    for other in sources[1:]:
        differences = first.meta.differences(other.meta)
        if differences:
            raise ReplayError(
                f'{other.folder} differs from {first.folder}: {"; ".join(differences)}'
            )
    encoder = None
    if first.sentence_model:
        encoder = SentenceEncoder(first.sentence_model)
        for source in reversed(sources):  # of a sentence in several, the first one's counts
            assert source.embeddings is not None
            encoder.remember(source.instructions, source.embeddings)
    known = {sentence for source in sources for sentence in source.instructions}

    def embedded(sentences: Sequence[str]) -> Any:
        assert encoder is not None
        new = [sentence for sentence in sentences if sentence not in known]
        if new and embed is not None:
            encoder.remember(new, embed(new))
        return encoder.embed(sentences)

    copied = 0
    with ReplayWriter(
        out,
        first.contract or first.spec,
        embedded if encoder else None,
        sentence_model=first.sentence_model,
        shard_steps=shard_steps,
        image_format=first.image_format,
        jpeg_quality=first.jpeg_quality,
    ) as writer:
        for source in sources:
            for number, entry in enumerate(source.episodes):
                sentence = source.instructions[entry['instruction']]
                if keep({**entry, 'instruction': sentence}):
                    writer.add(change(source.episode(number)))
                    copied += 1
        if copied == 0:
            raise ReplayError(f'{out}: no episode to write, none is kept')
    return copied


def merge(sources: Sequence[ReplayFolder], out: Path) -> int:
    """Copy all episodes of several folders into a new one; give their number.

    Raises:
        ReplayError: The folders differ, or `out` is not empty.
    """
    return copy_episodes(out, sources)


def split(source: ReplayFolder, out: Path, *, fraction: float, seed: int) -> tuple[int, int]:
    """Copy a share of the episodes to `out`/validation, and the others to `out`/train.

    Args:
        source: The folder to split.
        out: Must not exist, or be empty.
        fraction: Share of the episodes to validate on; at least one, and never all.
        seed: Seed of the choice.

    Returns:
        The number of episodes to train on, and to validate on.

    Raises:
        ConfigurationError: The fraction is not between 0 and 1.
        ReplayError: There are too few episodes, or `out` is not empty.
    """
    require(0 < fraction < 1, 'validation', fraction, '0 < validation < 1')
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ReplayError(f'{out} exists and is not empty; choose a new folder')
    counts = []
    numbers = split_episodes(source, fraction, seed)
    for name, chosen in zip(('train', 'validation'), numbers, strict=True):
        places = {(source.episodes[n]['shard'], source.episodes[n]['start']) for n in chosen}
        counts.append(copy_episodes(out / name, [source], keep=_at(places)))
    return counts[0], counts[1]


def select(
    source: ReplayFolder, out: Path, *, outcome: str | None = None, instruction: str | None = None
) -> int:
    """Copy the episodes of one outcome whose sentence matches a pattern; give their number.

    Args:
        source: The folder to filter.
        out: The new folder.
        outcome: One of `OUTCOMES`; None for any.
        instruction: A pattern like `touch the * block`; None for any.

    Raises:
        ReplayError: The outcome does not exist, nothing is left, or `out` is not empty.
    """
    if outcome is not None:
        _require_outcome(outcome, OUTCOMES)

    def keep(entry: Entry) -> bool:
        return (outcome is None or entry['outcome'] == outcome) and (
            instruction is None or fnmatchcase(entry['instruction'], instruction)
        )

    return copy_episodes(out, [source], keep=keep)


def relabel(
    source: ReplayFolder,
    out: Path,
    *,
    outcomes: Mapping[str, str],
    instructions: Mapping[str, str],
    embed: Embed | None = None,
) -> int:
    """Copy all episodes, some with another outcome or sentence; give how many were changed.

    An outcome that is set is the task's end: the episode is terminal, and its reward is 1 at the
    last action of a success and 0 elsewhere.

    Args:
        source: The folder to relabel.
        out: The new folder.
        outcomes: Source or source hash of one episode to `success` or `failure`.
        instructions: Sentence to the one that replaces it.
        embed: Embeds new sentences; None for the folder's sentence model.

    Raises:
        ReplayError: An outcome is not one of the two, no episode or more than one has such a
            source, no episode has such a sentence, or `out` is not empty.
    """
    for outcome in outcomes.values():
        _require_outcome(outcome, ('success', 'failure'))
    if instructions and not source.sentence_model:
        raise ReplayError(f'{source.folder} has no sentences to replace')
    for name in outcomes:
        hashes = [e['source_hash'] for e in source.episodes if name in _names(e)]
        if not hashes:
            raise ReplayError(f'{source.folder} has no episode of source {name!r}')
        if len(hashes) > 1:
            raise ReplayError(
                f'{source.folder} has {len(hashes)} episodes of source {name!r}; give the hash of '
                f'one in its place: {", ".join(hashes[:4])}'
            )
    unknown = sorted(set(instructions) - set(source.instructions))
    if unknown:
        raise ReplayError(f'{source.folder} has no episode of instruction {unknown[0]!r}')
    space = None
    if source.contract is not None and source.contract.action.terminate:
        space = ActionSpace(source.contract)
    changed = 0

    def change(episode: ReplayEpisode) -> ReplayEpisode:
        nonlocal changed
        labelled = replace(
            episode, instruction=instructions.get(episode.instruction, episode.instruction)
        )
        for name in (episode.source, episode.source_hash):
            if name in outcomes:
                labelled = _ended(labelled, outcomes[name], space)
        before = (episode.instruction, episode.outcome)
        changed += before != (labelled.instruction, labelled.outcome)
        return labelled

    copy_episodes(out, [source], change=change, embed=embed)
    return changed


def _ended(episode: ReplayEpisode, outcome: str, space: ActionSpace | None) -> ReplayEpisode:
    """Let an episode end in `outcome`; `space` is of actions that say so, or None."""
    reward = np.zeros(len(episode.bins), np.float32)
    reward[-1] = float(outcome == 'success')
    ended = replace(episode, outcome=outcome, reward=reward, terminal=True, timeout=False)
    if space is None or episode.action is None:
        return ended
    action, bins = np.array(episode.action), np.array(episode.bins)
    action[-1, -1] = 1.0
    bins[-1, -1] = space.encode(action[-1:])[0, -1]
    return replace(ended, action=action, bins=bins)


def _names(entry: Entry) -> tuple[str, str]:
    return entry['source'], entry['source_hash']


def _at(places: Collection[tuple[int, int]]) -> Callable[[Entry], bool]:
    return lambda entry: (entry['shard'], entry['start']) in places


def _require_outcome(outcome: str, allowed: Sequence[str]) -> None:
    if outcome not in allowed:
        raise ReplayError(f'outcome is {outcome!r}, expected {" or ".join(allowed)}')
