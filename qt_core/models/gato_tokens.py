# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Gato's tokens: what an id means, and values as ids (Reed et al. 2022, section 2.1).

    0 ... text_ids   + 1024         + 1024        + 1
    │ text           │ observations │ actions     │ separator

The paper gives observations and actions the same 1024 ids, and lets discrete observations collide
with text. Here each has a range of its own, so that an id alone says what it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qt_core.configuration import require

VALUES = 1024  # ids of observations, and as many of actions
POSITIONS = 512  # places within the observation of a step
NO_POSITION, ACTION_POSITION = -1, -2
IMAGE = -1  # stands where an id would, for an image or a patch of one
LEAST_TEXT = 257  # the bytes, and one for what is unknown
MU, M = 100.0, 256.0


@dataclass(frozen=True)
class TokenIds:
    """Which ids are what.

    Attributes:
        text: Ids of text, from 0.
    """

    text: int = 32000

    def __post_init__(self) -> None:
        require(self.text >= LEAST_TEXT, 'text_ids', self.text, f'at least {LEAST_TEXT}')
        separators = range(self.separator, self.vocabulary)
        end = 0
        for kind in (range(self.text), self.observations, self.actions, separators):
            assert kind.start == end, 'ranges of ids are disjoint and leave no gap'
            end = kind.stop

    @property
    def observations(self) -> range:
        """Ids of observed values, continuous or discrete."""
        return range(self.text, self.text + VALUES)

    @property
    def actions(self) -> range:
        """Ids of the bins of actions."""
        return range(self.text + VALUES, self.text + 2 * VALUES)

    @property
    def separator(self) -> int:
        """The id between the observation of a step and its action."""
        return self.text + 2 * VALUES

    @property
    def vocabulary(self) -> int:
        """Number V of all ids."""
        return self.separator + 1

    def action_range(self, bins: int) -> tuple[int, int]:
        """First id, and the one after the last, of an action of A = `bins` bins."""
        require(2 <= bins <= VALUES, 'bins', bins, f'2..{VALUES}')
        return self.actions.start, self.actions.start + bins

    def of_values(self, values: Tensor, *, companded: bool = True) -> Tensor:
        """Give the ids of continuous observations of any shape; see `encode_values`."""
        return encode_values(values, companded=companded) + self.observations.start

    def to_values(self, ids: Tensor, *, companded: bool = True) -> Tensor:
        """Invert `of_values`, up to the width of a bin."""
        return decode_values(ids - self.observations.start, companded=companded)

    def of_discrete(self, values: Tensor) -> Tensor:
        """Give the ids of discrete observations of any shape, each in 0..1023.

        Raises:
            ValueError: A value is out of range.
        """
        return _checked(values, VALUES, 'discrete observations') + self.observations.start

    def of_bins(self, bins: Tensor) -> Tensor:
        """Give the ids of actions of any shape, as bins in 0..1023.

        Raises:
            ValueError: A bin is out of range.
        """
        return _checked(bins, VALUES, 'bins') + self.actions.start

    def to_bins(self, ids: Tensor) -> Tensor:
        """Invert `of_bins`.

        Raises:
            ValueError: An id is no action's.
        """
        return _checked(ids - self.actions.start, VALUES, 'bins')


def compress(values: Tensor) -> Tensor:
    """Compress values by the mu-law of Reed et al. 2022, appendix B.

    F(x) = sgn(x) log(|x| μ + 1) / log(M μ + 1),  μ = 100, M = 256

    Beyond ±M the result is beyond ±1.
    """
    return values.sign() * torch.log1p(values.abs() * MU) / math.log1p(M * MU)


def expand(compressed: Tensor) -> Tensor:
    """Invert `compress`."""
    return compressed.sign() * torch.expm1(compressed.abs() * math.log1p(M * MU)) / MU


def encode_values(values: Tensor, *, companded: bool = True) -> Tensor:
    """Cut real values of any shape into 1024 bins that are uniform after `compress`.

    Values beyond ±M take the edge bin. Values that are in -1..1 already are not `companded` (Reed
    et al. 2022, 2.1): their bins are uniform, and those beyond ±1 take the edge bin.

    Raises:
        ValueError: A value is not a number.
    """
    if values.isnan().any():
        raise ValueError('observations hold NaN: a sensor or its driver gives no number')
    unit = compress(values.float()) if companded else values.float()
    unit = (unit.clamp(-1, 1) + 1) / 2
    return (unit * VALUES).long().clamp(max=VALUES - 1)


def decode_values(bins: Tensor, *, companded: bool = True) -> Tensor:
    """Give the value in the middle of each bin, the middle as `compress` sees it."""
    unit = (bins + 0.5) / VALUES * 2 - 1
    return expand(unit) if companded else unit


@dataclass(frozen=True)
class ImageTokens:
    """Patches or whole images of one size that stand in a batch of sequences.

    Attributes:
        pixels: (P, h, w, C) uint8.
        rows: (P, 2) float32, where in its image a patch begins and ends, 0..1.
        columns: (P, 2) float32.
        place: (P, 2) int64, the sample and the place in its sequence.
    """

    pixels: Tensor
    rows: Tensor
    columns: Tensor
    place: Tensor

    def to(self, device: torch.device | str) -> ImageTokens:
        """Copy to `device`."""
        return ImageTokens(*(tensor.to(device) for tensor in vars(self).values()))


@dataclass(frozen=True)
class GatoSequence:
    """A batch of B sequences of at most L tokens.

    Attributes:
        ids: (B, L) int64; `IMAGE` where an image token stands.
        position: (B, L) int64, place within the observation of the step; `NO_POSITION` for none,
            `ACTION_POSITION` for an action.
        timestep: (B, L) int64, number of the step in its episode.
        valid: (B, L) bool; False is padding, and what it holds does not matter.
        target: (B, L) bool; this token is to be predicted, from the place before it.
        images: The image tokens, those of one size together.
    """

    ids: Tensor
    position: Tensor
    timestep: Tensor
    valid: Tensor
    target: Tensor
    images: Sequence[ImageTokens] = ()

    def to(self, device: torch.device | str) -> GatoSequence:
        """Copy to `device`."""
        return GatoSequence(
            ids=self.ids.to(device),
            position=self.position.to(device),
            timestep=self.timestep.to(device),
            valid=self.valid.to(device),
            target=self.target.to(device),
            images=[image.to(device) for image in self.images],
        )

    @property
    def predicted(self) -> Tensor:
        """(B, L) bool: the places from which a token is predicted that counts."""
        counts = self.target & self.valid & (self.ids >= 0)
        predicted = torch.zeros_like(counts)
        predicted[:, :-1] = counts[:, 1:] & self.valid[:, :-1]
        return predicted


def _checked(values: Tensor, size: int, name: str) -> Tensor:
    if values.numel() and (values.min() < 0 or values.max() >= size):
        low, high = int(values.min()), int(values.max())
        raise ValueError(f'{name} {low}..{high} are not all in 0..{size - 1}')
    return values.long()
