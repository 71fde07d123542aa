# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Gato's tokens as vectors: a table for ids, a small network for images, and where they stand.

    id      ─ table ──────────────────────┐
    pixels  ─ ResNet block ─ + row, column ┼─ + place in the observation ─▶ (B, L, D)
                                          │   or + `action`

Reed et al. 2022, section 2.2 and appendix C.2, C.3.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qt_core.models.gato_configuration import GatoConfig
from qt_core.models.gato_tokens import ACTION_POSITION, POSITIONS, GatoSequence, ImageTokens

GROUPS = 32  # of GroupNorm, or as many as the channels allow
GRID = 6  # rows and columns that are left of a whole image
TABLE_STD = 0.02


class GatoEmbedding(nn.Module):
    """Embeds sequences; its table of ids also gives the logits of the network.

    Args:
        config: Sizes, and the bodies whose images are seen.
    """

    def __init__(self, config: GatoConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        # Tables are small for the logits' sake; what comes of them is to be as large as images.
        self.scale = math.sqrt(width)
        self.tokens = nn.Embedding(config.ids.vocabulary, width)
        self.positions = nn.Embedding(POSITIONS, width)
        self.action_position: nn.Parameter | None = None
        if config.action_position == 'shared':
            self.action_position = nn.Parameter(torch.randn(width) * TABLE_STD)
        self.timesteps: nn.Embedding | None = None
        if config.timestep_positions:
            self.timesteps = nn.Embedding(config.max_timesteps, width)
        channels = {camera.channels for body in config.bodies for camera in body.cameras}
        self.patches = config.image_tokens == 'patches'
        stem = PatchEmbedding if self.patches else ImageEmbedding
        self.images = nn.ModuleDict(
            {str(count): stem(config, count) for count in sorted(channels)}
        )
        if self.patches and channels:
            self.rows = nn.Embedding(config.position_rows, width)
            self.columns = nn.Embedding(config.position_columns, width)
        for module in self.modules():
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=TABLE_STD)

    def forward(self, sequence: GatoSequence) -> Tensor:
        """Embed a sequence as (B, L, D)."""
        # What padding holds is clamped: it may be anything.
        position, last = sequence.position, self.tokens.num_embeddings - 1
        x = self.tokens(sequence.ids.clamp(0, last))
        seen: set[str] = set()
        for image in sequence.images:
            seen.add(str(image.pixels.shape[-1]))
            features = self._embed_images(image).to(x.dtype)
            x = x.index_put(tuple(image.place.unbind(-1)), features)
        local = self.positions(position.clamp(0, POSITIONS - 1))
        x = x + torch.where((position >= 0).unsqueeze(-1), local, 0)
        if self.action_position is not None:
            x = x + (position == ACTION_POSITION).unsqueeze(-1) * self.action_position
        if self.timesteps is not None:
            x = x + self.timesteps(sequence.timestep.clamp(0, self.config.max_timesteps - 1))
        idle = [stem for channels, stem in self.images.items() if channels not in seen]
        if self.patches and idle and not seen:
            idle += [self.rows, self.columns]
        for module in idle if self.training else ():
            # Copies of a network that meet in each step want a gradient for every weight.
            x = x + 0 * sum(weight.sum() for weight in module.parameters())
        return x * self.scale

    def _embed_images(self, image: ImageTokens) -> Tensor:
        pixels = image.pixels.movedim(-1, 1).to(self.tokens.weight.dtype) / 127.5 - 1
        features = self.images[str(image.pixels.shape[-1])](pixels) / self.scale
        if not self.patches:
            return features
        for table, interval in ((self.rows, image.rows), (self.columns, image.columns)):
            index = position_index(interval, table.num_embeddings, sample=self.training)
            features = features + table(index)
        return features


class PatchEmbedding(nn.Module):
    """Embeds patches: a convolution, a ResNet block (v2: He et al. 2016) and a matrix.

    Args:
        config: Sizes.
        channels: Channels C of the images.
    """

    def __init__(self, config: GatoConfig, channels: int) -> None:
        super().__init__()
        inner = config.image_channels
        # Of two channels or more: a small patch may have one number left of each.
        groups = max(n for n in range(1, GROUPS + 1) if inner % n == 0 and 2 * n <= inner)
        self.scale = 1 / math.sqrt(config.patch_size)
        self.first = nn.Conv2d(channels, inner, 3, stride=2, padding=1)
        self.block = nn.Sequential(
            nn.GroupNorm(groups, inner),
            nn.GELU(),
            nn.Conv2d(inner, inner, 3, stride=2, padding=1),
            nn.GroupNorm(groups, inner),
            nn.GELU(),
            nn.Conv2d(inner, inner, 3, padding=1),
        )
        self.skip = nn.Conv2d(inner, inner, 1, stride=2)
        side = -(-config.patch_size // 4)
        self.out = nn.Linear(inner * side * side, config.width)

    def forward(self, pixels: Tensor) -> Tensor:
        """Embed patches (P, C, h, w) in -1..1 as (P, D)."""
        x = self.first(pixels * self.scale)
        return self.out((self.skip(x) + self.block(x)).flatten(1))


class ImageEmbedding(nn.Module):
    """Embeds whole images of any size: four convolutions, a grid of averages and a matrix.

    Args:
        config: Sizes.
        channels: Channels C of the images.
    """

    def __init__(self, config: GatoConfig, channels: int) -> None:
        super().__init__()
        inner = config.image_channels
        self.layers = nn.Sequential()
        for before in (channels, inner, inner, inner):
            convolution = nn.Conv2d(before, inner, 3, stride=2, padding=1)
            # One group: with more, an image of one colour would look like one of another.
            self.layers.extend([convolution, nn.GroupNorm(1, inner), nn.GELU()])
        self.out = nn.Linear(inner * GRID * GRID, config.width)

    def forward(self, pixels: Tensor) -> Tensor:
        """Embed images (P, C, H, W) in -1..1 as (P, D)."""
        return self.out(F.adaptive_avg_pool2d(self.layers(pixels), GRID).flatten(1))


def position_index(interval: Tensor, count: int, *, sample: bool) -> Tensor:
    """Say where in an image a patch stands, as a row of a table (Reed et al. 2022, appendix C.3).

    The interval is quantised to `count` steps. Training draws one of those inside, each time anew;
    otherwise it is their mean, rounded.

    Args:
        interval: (P, 2), begin and end, 0..1.
        count: Rows of the table.
        sample: Whether to draw.

    Returns:
        (P,) int64.
    """
    edges = (interval * count).long()
    low = edges[:, 0].clamp(0, count - 1)
    high = edges[:, 1].clamp(max=count).maximum(low + 1)
    if sample:
        return low + (torch.rand(low.shape, device=low.device) * (high - low)).long()
    return ((low + high) / 2).round().long().minimum(high - 1)
