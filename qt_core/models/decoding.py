# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Choose an action dimension by dimension: greedy, by beam search, guided, or exploring."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from qt_core.configuration import require
from qt_core.models.critic import CriticState

if TYPE_CHECKING:
    from qt_core.models.q_transformer import QRoboticTransformer


@dataclass(frozen=True)
class Decoding:
    """How to choose.

    Attributes:
        beam: Prefixes kept at each dimension; 1 is greedy.
        cond_scale: Guidance s: logits = null + s·(conditioned - null); 1 is none
            (Ho & Salimans 2022).
        prob_random_action: Each dimension's probability of a uniformly random bin.
        random_dims: (N,) bool; only these dimensions are ever random. None for all.
        temperature: Above 0, bins are drawn in proportion to exp(Q / temperature).
    """

    beam: int = 1
    cond_scale: float = 1.0
    prob_random_action: float = 0.0
    random_dims: Tensor | None = None
    temperature: float = 0.0

    def __post_init__(self) -> None:
        share = self.prob_random_action
        require(self.beam >= 1, 'beam', self.beam, 'at least 1')
        require(self.cond_scale >= 0, 'cond_scale', self.cond_scale, 'zero or more')
        require(0 <= share <= 1, 'prob_random_action', share, '0..1')
        require(self.temperature >= 0, 'temperature', self.temperature, 'zero or more')
        require(self.beam == 1 or not self.explores, 'beam', self.beam, '1 when exploring')

    @property
    def explores(self) -> bool:
        """Whether another bin than the best may be chosen."""
        return self.prob_random_action > 0 or self.temperature > 0

    @property
    def greedy(self) -> bool:
        """Whether each dimension takes its best bin."""
        return self.beam == 1 and not self.explores


@torch.no_grad()
def decode_actions(
    model: QRoboticTransformer,
    tokens: Tensor,
    how: Decoding,
    guide: Tensor | None = None,
    prefix: Tensor | None = None,
    past: Tensor | None = None,
    order: Sequence[int] | None = None,
    draft: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Choose the bins of the newest frame.

    Q(a_1..a_i) is the value of the best way to go on, so a beam keeps the prefixes of largest Q,
    and the action is the one of largest Q at the last dimension. A wide beam also finds what is
    valued too highly because nobody ever did it: greedy, as in the paper, is often better.

    Args:
        model: Whose critics to ask; the smaller of two values counts.
        tokens: (B, F, M, D) of `model.encode`.
        how: How to choose.
        guide: The same frames' tokens under the null sentence, when `how.cond_scale` is not 1.
        prefix: (B, k) bins of the first k dimensions of the order.
        past: (B, F-1, N) bins executed at the earlier frames.
        order: N numbers, the order of the dimensions; None for 0..N-1.
        draft: (B, N) a guess, such as the action before. It changes how long greedy decoding
            takes, not what comes out.

    Returns:
        Bins (B, N), and the values (B, N, A) they were chosen from; both by dimension.

    Raises:
        ValueError: The prefix is longer than an action, or holds a bin that does not exist.
    """
    config = model.config
    batch = len(tokens)
    order = range(config.num_actions) if order is None else order
    given = 0 if prefix is None else prefix.shape[1]
    if prefix is not None and not _fits(prefix, config.num_actions, config.action_bins):
        raise ValueError(
            f'actions given are {tuple(prefix.shape)}, expected at most {config.num_actions} bins '
            f'in 0..{config.action_bins - 1}'
        )
    streams = [tokens] if guide is None else [tokens, guide]
    states = [[critic.begin(stream, past) for critic in model.critics] for stream in streams]
    if draft is not None and how.greedy:
        return _refine(model, states, how.cond_scale, draft, prefix, order)
    bins: list[Tensor] = []  # per dimension of the order, (B·beams,)
    chosen_from: list[Tensor] = []  # (B·beams, A)
    for position in range(config.num_actions):
        previous = bins[-1] if bins else None
        values = _values(model, states, how.cond_scale, previous, position, order)
        chosen_from.append(values)
        if prefix is not None and position < given:
            bins.append(prefix[:, position])
        elif how.beam == 1:
            bins.append(_explore(values, how, order[position]))
        else:
            beams = len(values) // batch
            flat = values.view(batch, beams * config.action_bins)
            best = flat.topk(min(how.beam, flat.shape[1])).indices
            first = torch.arange(batch, device=tokens.device)[:, None] * beams
            rows = (first + best // config.action_bins).flatten()
            states = [[state.select(rows) for state in stream] for stream in states]
            bins = [chosen[rows] for chosen in bins]
            chosen_from = [values[rows] for values in chosen_from]
            bins.append((best % config.action_bins).flatten())
    place = [list(order).index(dimension) for dimension in range(config.num_actions)]
    every = len(bins[-1]) // batch  # beams come sorted by their last value
    return (
        torch.stack([bins[position] for position in place], dim=1)[::every],
        torch.stack([chosen_from[position] for position in place], dim=1)[::every],
    )


def _refine(
    model: QRoboticTransformer,
    states: list[list[CriticState]],
    cond_scale: float,
    bins: Tensor,
    prefix: Tensor | None,
    order: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """Choose greedily from a draft (B, N): read all dimensions at once until nothing changes.

    Where the bins of the first k dimensions are right, so is dimension k after one more reading:
    at worst N + 1 readings, each as long as one dimension decoded by itself, and at best one
    (Jacobi decoding: Song et al. 2021; Santilli et al. 2023).
    """
    given = [] if prefix is None else list(order[: prefix.shape[1]])
    place = [list(order).index(dimension) for dimension in range(len(order))]
    natural = place == list(range(len(place)))
    while True:
        if prefix is not None:
            bins = bins.clone()
            bins[:, given] = prefix
        logits = [
            torch.stack([critic.read(state, bins, order) for critic, state in pairs])
            for pairs in (zip(model.critics, stream, strict=True) for stream in states)
        ]
        values = model.values(_guide(logits, cond_scale)).amin(0)
        if not natural:
            values = values[:, place]
        chosen = values.argmax(-1)
        if prefix is not None:
            chosen[:, given] = prefix
        if torch.equal(chosen, bins):
            return bins, values
        bins = chosen


def _values(
    model: QRoboticTransformer,
    states: list[list[CriticState]],
    cond_scale: float,
    previous: Tensor | None,
    position: int,
    order: Sequence[int],
) -> Tensor:
    """Advance every critic by one dimension; give the smallest of their values (B, A)."""
    least: Tensor | None = None
    for index, critic in enumerate(model.critics):
        logits = []
        for stream in states:
            out, stream[index] = critic.extend(stream[index], previous, position, order)
            logits.append(out)
        values = model.values(_guide(logits, cond_scale))
        least = values if least is None else torch.minimum(least, values)
    assert least is not None
    return least


def _guide(logits: list[Tensor], cond_scale: float) -> Tensor:
    """Combine conditioned logits with those under the null sentence, where there are any."""
    if len(logits) == 1:
        return logits[0]
    conditioned, null = logits
    return null + cond_scale * (conditioned - null)


def _explore(values: Tensor, how: Decoding, dimension: int) -> Tensor:
    """Choose from values (B, A): the best, or one drawn by temperature, or now and then any."""
    if how.temperature > 0:
        noise = -torch.empty_like(values).exponential_().log()
        choice = (values / how.temperature + noise).argmax(-1)
    else:
        choice = values.argmax(-1)
    if how.prob_random_action > 0:
        any_bin = torch.randint_like(choice, values.shape[-1])
        random = torch.rand(choice.shape, device=choice.device) < how.prob_random_action
        if how.random_dims is not None:
            random = random & how.random_dims[dimension]
        choice = torch.where(random, any_bin, choice)
    return choice


def _fits(prefix: Tensor, dimensions: int, bins: int) -> bool:
    inside = prefix.numel() == 0 or bool((prefix.min() >= 0) & (prefix.max() < bins))
    return prefix.dim() == 2 and prefix.shape[1] <= dimensions and inside
