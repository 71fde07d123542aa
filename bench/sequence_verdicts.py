# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What the runs of `sequence_checks.py` have to show, and whether they do.

Requirements were stated before the runs that are in `results`. Means are over the episodes of all
seeds; what chance alone may do to them is allowed, and nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean

import numpy as np
from numpy.typing import NDArray
from sequence_tasks import TASKS

Z = 3.0  # standard errors that chance may move a mean: of 25 comparisons, one in fifteen runs
# Of the best return. Chen et al. 2021, section 5.5, found 10% less at most for either.
NEAR = 0.10
LEAST = 0.80  # of the best return counts as learned; random walks have 0.20
RECALLED = 0.95  # a cue that is seen can always be recalled; the sampling costs a little
ORDERED = 0.90  # least rank correlation of the asked and the achieved; 0 if they had no connection
LOOSE = 0.50  # and what it stays below where the data's returns were shuffled
SHARE = 0.90  # of the score of a network of its own that the common one has at least
USEFUL = 0.50  # score below which a comparison says nothing: nobody learned
MISLED = 0.50  # of that, at most, for who is told to do something else
READ = 0.5  # of the nats per token of whoever knows frequencies alone; context tells the rest

WHO = ('random', 'expert', 'alone', 'together', 'misled')  # acts with a body


@dataclass(frozen=True)
class Run:
    """What one training achieved in one respect.

    Attributes:
        check: Which check.
        variant: The variant; of gato, the body and who acts with it.
        seed: Of data, weights and episodes.
        returns: Of each episode that it was tried on.
        asked: The return that was asked for, in multiples of the best; None for none.
        seconds: That training and trying took.
    """

    check: str
    variant: str
    seed: int
    returns: tuple[float, ...]
    asked: float | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        name: What it is called.
        found: What was measured, in words.
        required: What it had to be, in words; empty where it is only told.
        met: Whether it was.
        seconds: Of one training and trying, on average.
    """

    name: str
    found: str
    required: str = ''
    met: bool = True
    seconds: float = 0.0


@dataclass(frozen=True)
class Mean:
    """The mean of returns, in multiples of the best, and its standard error."""

    value: float
    error: float
    count: int

    @classmethod
    def of(cls, runs: Sequence[Run], best: float = 1.0) -> Mean:
        """Pool the episodes of several seeds."""
        values = np.array([value for run in runs for value in run.returns]) / best
        return cls(float(values.mean()), float(values.std() / math.sqrt(len(values))), len(values))

    def is_at(self, chance: float) -> bool:
        """Say whether it is that probability, but for chance."""
        return abs(self.value - chance) <= Z * math.sqrt(chance * (1 - chance) / self.count)

    def __str__(self) -> str:
        return f'{self.value:.3f} ± {Z * self.error:.3f}'


class Found:
    """The runs of one check, by variant and by what was asked for."""

    def __init__(self, check: str, runs: Sequence[Run]) -> None:
        self.check = check
        self.runs = [run for run in runs if run.check == check]
        self.best = TASKS[check].best if check in TASKS else 1.0

    def __contains__(self, variant: str) -> bool:
        return any(run.variant == variant for run in self.runs)

    def of(self, variant: str, asked: float | None = None) -> list[Run]:
        """Give a variant's runs, all or those in which that return was asked for."""
        ours = [run for run in self.runs if run.variant == variant]
        return ours if asked is None else [run for run in ours if run.asked == asked]

    def mean(self, variant: str, asked: float | None = None) -> Mean:
        """Give the mean of those."""
        return Mean.of(self.of(variant, asked), self.best)

    def row(self, variant: str, required: str = '', met: bool = True) -> Row:
        """Lay out a variant's mean."""
        seconds = mean(run.seconds for run in self.of(variant))
        return Row(f'{self.check}, {variant}', str(self.mean(variant)), required, met, seconds)

    def at_chance(self, variants: Sequence[str], chance: float) -> list[Row]:
        """Require of those variants that there are the mean of who knows nothing."""
        required = f'chance, {chance:.3f}'
        ours = [variant for variant in variants if variant in self]
        return [self.row(v, required, self.mean(v).is_at(chance)) for v in ours]


def judge(runs: Sequence[Run]) -> list[Row]:
    """Lay out all runs; a requirement needs the runs that it compares, and is else left out."""
    rows = _judge_credit(Found('key-to-door', runs))
    rows += _judge_sweep(Found('wages', runs))
    rows += _judge_memory(Found('recall', runs))
    return rows + _judge_bodies(Found('gato', runs))


def _judge_credit(found: Found) -> list[Row]:
    """Asked for the best, as good as cloning the best; nothing else is."""
    rows = []
    chance = TASKS['key-to-door']().random_level()
    if 'asked' in found:
        least = LEAST
        if 'filtered' in found:
            least = max(LEAST, found.mean('filtered').value - NEAR)
        met = found.mean('asked').value >= least
        rows.append(found.row('asked', f'≥ {least:.2f}, filtered − {NEAR:.2f}', met))
    if 'filtered' in found:
        met = found.mean('filtered').value >= LEAST
        rows.append(found.row('filtered', f'≥ {LEAST:.2f}', met))
    return rows + found.at_chance(('cloning', 'shuffled'), chance)


def _judge_sweep(found: Found) -> list[Row]:
    """The more is asked for, the more is achieved."""
    rows = []
    for variant in ('asked', 'shuffled'):
        if variant not in found:
            continue
        name, intact = f'{found.check}, {variant}', variant == 'asked'
        asked = sorted({run.asked for run in found.of(variant) if run.asked is not None})
        means = [found.mean(variant, ratio) for ratio in asked]
        for index, (ratio, now) in enumerate(zip(asked, means, strict=True)):
            before = means[index - 1] if index else now
            slack = Z * math.hypot(before.error, now.error)
            judged = intact and index > 0
            rows.append(
                Row(
                    f'{name} {ratio:.3f}',
                    str(now),
                    f'≥ {before.value - slack:.3f}, the one before' if judged else '',
                    not judged or now.value >= before.value - slack,
                )
            )
        pairs = [(run.asked or 0.0, value) for run in found.of(variant) for value in run.returns]
        order = rank_correlation(*np.transpose(pairs))
        required, met = (
            (f'≥ {ORDERED}', order >= ORDERED) if intact else (f'< {LOOSE}', abs(order) < LOOSE)
        )
        seconds = len(asked) * mean(run.seconds for run in found.of(variant))
        rows.append(Row(f'{name}, order', f'Spearman {order:.3f}', required, met, seconds))
    return rows


def _judge_memory(found: Found) -> list[Row]:
    """What lies within the context is known, and nothing before it."""
    rows = []
    chance = TASKS['recall']().random_level()
    if 'long' in found:
        met = found.mean('long').value >= RECALLED
        rows.append(found.row('long', f'≥ {RECALLED:.2f}', met))
    return rows + found.at_chance(('short', 'middle'), chance)


def _judge_bodies(found: Found) -> list[Row]:
    """One network for all bodies does with each nearly what one of its own does."""
    rows = []
    if 'text together' in found:
        nats, least = (found.mean(f'text {who}').value for who in ('together', 'frequencies'))
        found_text = f'{nats:.2f} nats per token'
        required = f'≤ {READ * least:.2f}, {READ} of frequencies alone'
        rows.append(Row('gato, text together', found_text, required, nats <= READ * least))
    bodies = dict.fromkeys(run.variant.split()[0] for run in found.runs)
    for body in [name for name in bodies if name != 'text']:
        names = {who: f'{body} {who}' for who in WHO}
        rows += [
            Row(f'gato, {names[who]}', f'return {found.mean(names[who]).value:.1f}')
            for who in ('random', 'expert')
            if names[who] in found
        ]
        if not all(names[who] in found for who in ('random', 'expert')):
            continue
        low, high = (found.mean(names[who]).value for who in ('random', 'expert'))
        scores: dict[str, float] = {}
        for who in ('alone', 'together', 'misled'):
            if names[who] not in found:
                continue
            ours = found.of(names[who])
            scores[who] = (Mean.of(ours).value - low) / (high - low)
            error = Z * Mean.of(ours).error / (high - low)
            required, met = _bodies_required(who, scores)
            seconds = mean(run.seconds for run in ours)
            shown = f'{scores[who]:.3f} ± {error:.3f}'
            rows.append(Row(f'gato, {names[who]}', shown, required, met, seconds))
    return rows


def _bodies_required(who: str, scores: Mapping[str, float]) -> tuple[str, bool]:
    """Say what a score must be, and whether it is."""
    if who == 'alone':
        return f'≥ {USEFUL:.3f}', scores[who] >= USEFUL
    base, share = ('alone', SHARE) if who == 'together' else ('together', MISLED)
    if base not in scores:
        return '', True
    bound = share * scores[base]
    met = scores[who] >= bound if who == 'together' else scores[who] <= bound
    return f'{"≥" if who == "together" else "≤"} {bound:.3f}, {share} of {base}', met


def rank_correlation(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Give Spearman's ρ, with equal values at their mean rank; 0 where all are equal."""
    ranks = [_ranks(values) for values in (one, other)]
    if any(np.ptp(rank) == 0 for rank in ranks):
        return 0.0
    return float(np.corrcoef(*ranks)[0, 1])


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    mean_rank = counts.cumsum() - (counts - 1) / 2
    return np.asarray(mean_rank[place], np.float64)
