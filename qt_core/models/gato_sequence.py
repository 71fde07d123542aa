# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Steps of an episode -> the flat sequence of tokens that Gato reads (Reed et al. 2022, 2.1, 2.2).

    sentence: step      t t i i i i s s | a a   t t i i i i s s | a a
    sentence: window    t t   i i i i s s | a a   i i i i s s | a a

    t  sentence            s  state, mu-law          |  separator
    i  patches of images   a  action, a bin each     the first a is predicted from |

A step is never cut: whole steps follow each other from the left, and rows that hold fewer are
padded on the right. Cameras come in the order of their names. Sentence and actions are targets,
as they are in the paper; what cannot be predicted from the left, the very first token, is none.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor

from qt_core.configuration import require
from qt_core.models.gato_configuration import Body, GatoConfig
from qt_core.models.gato_tokens import (
    ACTION_POSITION,
    IMAGE,
    NO_POSITION,
    POSITIONS,
    GatoSequence,
    ImageTokens,
)


@dataclass(frozen=True)
class Steps:
    """Consecutive steps of one body, in B rows of at most K.

    Attributes:
        images: Camera name to (B, K, H, W, C) uint8.
        state: (B, K, S) float, normalised where a contract says how.
        bins: (B, K, n) int64 bins of the first n <= N action dimensions: fewer where an action is
            still to be chosen.
        count: (B,) int64 steps of each row.
        sentences: Tokens of each row's sentence.
        number: (B, K) int64 number of each step in its episode.
    """

    images: Mapping[str, Tensor]
    state: Tensor
    bins: Tensor
    count: Tensor
    sentences: Sequence[Sequence[int]]
    number: Tensor


def step_tokens(config: GatoConfig, body: Body) -> int:
    """Count the tokens of one step, without its sentence."""
    side = config.patch_size
    patches = [-(-camera.height // side) * -(-camera.width // side) for camera in body.cameras]
    images = sum(patches) if config.image_tokens == 'patches' else len(patches)
    return images + body.state_dim + 1 + body.num_actions


def steps_that_fit(config: GatoConfig, body: Body, sentence: int) -> int:
    """Count the whole steps that fit into the context with a sentence of so many tokens.

    Raises:
        ConfigurationError: Not one does, or an observation has more tokens than have a position.
    """
    inside = config.sentence == 'step'
    step = step_tokens(config, body)
    observed = step - 1 - body.num_actions + (sentence if inside else 0)
    few = f'at most {POSITIONS}: larger patches, or image_tokens: single'
    require(observed <= POSITIONS, f'{body.name}: tokens of an observation', observed, few)
    least = f'at least {sentence + step}, a step of {body.name} with its sentence'
    require(config.context >= sentence + step, 'model.context', config.context, least)
    return config.context // (sentence + step) if inside else (config.context - sentence) // step


def step_sequence(config: GatoConfig, body: Body, steps: Steps) -> GatoSequence:
    """Build the sequence of the steps."""
    rows, most, actions = steps.bins.shape
    device = steps.bins.device
    inside = config.sentence == 'step'
    words, lengths = _filled(steps.sentences, device)
    before = lengths if inside else torch.zeros_like(lengths)  # words at the front of each step
    stride = before + step_tokens(config, body) - body.num_actions + actions
    exists = torch.arange(most, device=device) < steps.count[:, None]
    begin = (lengths - before)[:, None] + torch.arange(most, device=device) * stride[:, None]
    ends = (lengths - before) + steps.count * stride
    sheet = _Sheet(rows, int(ends.max()), device)
    each, time = exists[..., None], steps.number[..., None]  # of every token of a step

    word = torch.arange(words.shape[1], device=device)
    spoken = word < lengths[:, None]
    if inside:
        there = each & spoken[:, None]
        sheet.write(begin[..., None] + word, there, words[:, None], word, time, target=True)
    else:
        place = word.expand_as(words)
        sheet.write(place, spoken, words, NO_POSITION, 0, target=True)

    place, local = (begin + before[:, None])[..., None], before[:, None, None]
    images = []
    for camera in sorted(body.cameras, key=lambda camera: camera.name):
        pixels, *spans = _cut(config, steps.images[camera.name][exists])
        index = torch.arange(pixels.shape[1], device=device)
        sheet.write(place + index, each, IMAGE, local + index, time)
        row = torch.arange(rows, device=device)[:, None, None].expand_as(place + index)
        at = torch.stack([row[exists], (place + index)[exists]], dim=-1)
        down, across = (repeat(span, 'm ends -> (p m) ends', p=len(pixels)) for span in spans)
        images.append(ImageTokens(pixels.flatten(0, 1), down, across, at.flatten(0, 1)))
        place, local = place + len(index), local + len(index)
    index = torch.arange(body.state_dim, device=device)
    # A contract says how states become -1..1; without one they may be anything.
    ids = config.ids.of_values(steps.state, companded=body.contract == '')
    sheet.write(place + index, each, ids, local + index, time)
    place = place + body.state_dim
    sheet.write(place, each, config.ids.separator, NO_POSITION, time)
    place = place + 1 + torch.arange(actions, device=device)
    ids = config.ids.of_bins(steps.bins)
    sheet.write(place, each, ids, ACTION_POSITION, time, target=True)
    return sheet.sequence(images)


def text_sequence(
    config: GatoConfig, texts: Sequence[Sequence[int]], device: torch.device | str = 'cpu'
) -> GatoSequence:
    """Build the sequence of texts that belong to no step: they have no local positions."""
    words, lengths = _filled(texts, device)
    sheet = _Sheet(len(words), words.shape[1], device)
    place = torch.arange(words.shape[1], device=device).expand_as(words)
    sheet.write(place, place < lengths[:, None], words, NO_POSITION, 0, target=True)
    return sheet.sequence([])


def action_sequence(config: GatoConfig, bins: Tensor, number: int) -> GatoSequence:
    """Build the sequence of the bins (B, n) alone, of step `number` of an episode."""
    sheet = _Sheet(len(bins), bins.shape[1], bins.device)
    place = torch.arange(bins.shape[1], device=bins.device).expand_as(bins)
    sheet.write(place, bins >= 0, config.ids.of_bins(bins), ACTION_POSITION, number, target=True)
    return sheet.sequence([])


def stacked(first: GatoSequence, second: GatoSequence) -> GatoSequence:
    """Put the rows of two sequences into one, the shorter ones padded."""
    longest = max(first.ids.shape[1], second.ids.shape[1])
    below = torch.tensor([len(first.ids), 0], device=first.ids.device)

    def both(name: str) -> Tensor:
        parts = (getattr(part, name) for part in (first, second))
        return torch.cat([F.pad(part, (0, longest - part.shape[1])) for part in parts])

    images = [
        *first.images,
        *(dataclasses.replace(each, place=each.place + below) for each in second.images),
    ]
    names = ('ids', 'position', 'timestep', 'valid', 'target')
    return GatoSequence(**{name: both(name) for name in names}, images=images)


def padded(images: Tensor, side: int) -> Tensor:
    """Make the sides of images (P, H, W, C) multiples of `side`.

    The last row and column are repeated: nothing is rescaled, and nothing is lost.
    """
    for dim in (1, 2):
        size = images.shape[dim]
        if size % side:
            index = torch.arange(size + -size % side, device=images.device).clamp(max=size - 1)
            images = images.index_select(dim, index)
    return images


def cut(images: Tensor, side: int) -> tuple[Tensor, Tensor, Tensor]:
    """Cut images (P, H, W, C), whose sides are multiples of `side`, into patches.

    Returns:
        (P, M, side, side, C) in raster order, and where they begin and end: rows (M, 2) and
        columns (M, 2), 0..1.
    """
    down, across = images.shape[1] // side, images.shape[2] // side
    patches = rearrange(images, 'p (y h) (x w) c -> p (y x) h w c', h=side, w=side)
    place = torch.arange(down * across, device=images.device)
    spans = [
        torch.stack([index / count, (index + 1) / count], dim=-1)
        for index, count in ((place // across, down), (place % across, across))
    ]
    return patches, spans[0], spans[1]


def _cut(config: GatoConfig, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if config.image_tokens == 'patches':
        return cut(padded(images, config.patch_size), config.patch_size)
    whole = torch.tensor([[0.0, 1.0]], device=images.device)
    return images[:, None], whole, whole


def _filled(texts: Sequence[Sequence[int]], device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Give tokens (B, longest), zero beyond each text's end, and the lengths (B,)."""
    lengths = [len(text) for text in texts]
    rows = [[*text, *[0] * (max(lengths) - len(text))] for text in texts]
    words = torch.tensor(rows, dtype=torch.int64, device=device).reshape(len(texts), -1)
    return words, torch.tensor(lengths, device=device)


class _Sheet:
    """Rows of tokens that are written field by field, one column wider than what is kept."""

    def __init__(self, rows: int, width: int, device: torch.device | str) -> None:
        shape = (rows, width + 1)
        self.ids = torch.zeros(shape, dtype=torch.int64, device=device)
        self.position = torch.full(shape, NO_POSITION, device=device)
        self.timestep = torch.zeros(shape, dtype=torch.int64, device=device)
        self.valid = torch.zeros(shape, dtype=torch.bool, device=device)
        self.target = torch.zeros(shape, dtype=torch.bool, device=device)

    def write(
        self,
        place: Tensor,
        there: Tensor,
        ids: Tensor | int,
        position: Tensor | int,
        timestep: Tensor | int,
        *,
        target: bool = False,
    ) -> None:
        """Write tokens at columns `place` (B, ...), where they are `there`."""
        column = torch.where(there, place, self.ids.shape[1] - 1).flatten(1)
        fields = (self.ids, self.position, self.timestep, self.valid, self.target)
        for field, value in zip(fields, (ids, position, timestep, True, target), strict=True):
            whole = torch.as_tensor(value, dtype=field.dtype, device=place.device)
            field.scatter_(1, column, whole.expand_as(place).flatten(1))

    def sequence(self, images: list[ImageTokens]) -> GatoSequence:
        """Give what was written."""
        self.target[:, 0] = False
        return GatoSequence(
            ids=self.ids[:, :-1],
            position=self.position[:, :-1],
            timestep=self.timestep[:, :-1],
            valid=self.valid[:, :-1],
            target=self.target[:, :-1],
            images=images,
        )
