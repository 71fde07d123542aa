# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""MaxViT frame encoder, conditioned on a sentence by FiLM in every block.

Tu et al. 2022, "MaxViT: Multi-Axis Vision Transformer"; Perez et al. 2018, "FiLM". Normalisation
is per pixel over channels: batch statistics would differ between training and a robot's single
frame. Feature maps are (B, H, W, C) throughout.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from qt_core.configuration import require


@dataclass(frozen=True)
class MaxViTConfig:
    """Sizes of the frame encoder.

    Attributes:
        stem: Channels after the stem, which halves the image.
        widths: Channels of each stage; every stage halves the feature map.
        depths: Blocks of each stage.
        window: Side of the attention windows and grids; divides the feature map of every stage.
        heads: Attention heads.
        expansion: Channel expansion of the MBConv blocks.
        feed_forward: Channel expansion of the feed-forward layers.
    """

    stem: int = 24
    widths: tuple[int, ...] = (48, 96)
    depths: tuple[int, ...] = (1, 1)
    window: int = 4
    heads: int = 4
    expansion: int = 2
    feed_forward: int = 2

    def __post_init__(self) -> None:
        for name in ('stem', 'window', 'heads', 'expansion', 'feed_forward'):
            require(getattr(self, name) >= 1, f'maxvit.{name}', getattr(self, name), 'at least 1')
        same = len(self.widths) == len(self.depths) > 0
        require(
            same, 'maxvit.depths', self.depths, 'as many numbers as maxvit.widths, at least one'
        )
        for depth in self.depths:
            require(depth >= 1, 'maxvit.depths', self.depths, 'each at least 1')
        for width in self.widths:
            divides = width > 0 and width % (4 * self.heads) == 0
            require(divides, 'maxvit.widths', width, f'a multiple of 4·heads = {4 * self.heads}')

    @property
    def reduction(self) -> int:
        """Pixels of the image per pixel of the last feature map, along one side."""
        return int(2 ** (1 + len(self.widths)))

    def check_image(self, height: int, width: int) -> None:
        """Check that windows tile the feature map of every stage.

        Raises:
            ConfigurationError: They do not; says which sizes would do.
        """
        unit = self.reduction * self.window
        fits = height % unit == 0 and width % unit == 0
        require(fits, 'image size', f'{height}x{width}', f'multiples of {unit} pixels')


class FiLM(nn.Module):
    """Scale and shift channels by a sentence: x · (1 + γ(text)) + β(text)."""

    def __init__(self, text: int, channels: int) -> None:
        super().__init__()
        self.project = nn.Linear(text, 2 * channels)

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        """Condition x (B, H, W, C) on text (B, E)."""
        scale, shift = self.project(text)[:, None, None].chunk(2, dim=-1)
        return torch.addcmul(x + shift, x, scale)


class MBConv(nn.Module):
    """Inverted bottleneck with squeeze and excitation (Sandler et al. 2018; Hu et al. 2018).

    The sentence conditions the depthwise convolution's output before its non-linearity. On the
    residual stream, before normalisation, a policy took ten times as long to start listening.
    """

    def __init__(self, channels: int, out: int, expansion: int, stride: int, text: int) -> None:
        super().__init__()
        hidden = expansion * channels
        self.stride = stride
        self.norm = nn.LayerNorm(channels)
        self.expand = nn.Linear(channels, hidden)
        self.depthwise = nn.Conv2d(hidden, hidden, 3, stride, padding=1, groups=hidden)
        self.film = FiLM(text, hidden)
        self.squeeze = nn.Linear(hidden, max(8, hidden // 4))
        self.excite = nn.Linear(max(8, hidden // 4), hidden)
        self.project = nn.Linear(hidden, out)
        self.shortcut = nn.Identity() if channels == out else nn.Linear(channels, out, bias=False)

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        """Transform (B, H, W, C) into (B, H/stride, W/stride, out) under text (B, E)."""
        hidden = F.gelu(self.expand(self.norm(x)))
        hidden = F.gelu(self.film(_channels_first(self.depthwise, hidden), text))
        gate = torch.sigmoid(self.excite(F.gelu(self.squeeze(hidden.mean((1, 2))))))
        out = self.project(hidden * gate[:, None, None])
        if self.stride > 1:
            x = rearrange(
                x, 'b (h i) (w j) c -> b h w c (i j)', i=self.stride, j=self.stride
            ).mean(-1)
        return out + self.shortcut(x)


class AxisAttention(nn.Module):
    """Attention within tiles of window x window pixels, then a feed-forward layer.

    `grid` attends among pixels that stand at the same place of every tile of a window x window
    grid instead of among neighbours (Tu et al. 2022, fig. 3). Positions are rotary (Su et al.
    2021), rows in one half of the channels and columns in the other.
    """

    cosine: Tensor
    sine: Tensor

    def __init__(self, width: int, config: MaxViTConfig, *, grid: bool) -> None:
        super().__init__()
        window = config.window
        self.heads, self.window = config.heads, window
        self.pattern = '(i x) (j y)' if grid else '(x i) (y j)'
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, config.feed_forward * width),
            nn.GELU(),
            nn.Linear(config.feed_forward * width, width),
        )
        cosine, sine = _axial_rotary(window, width // config.heads)
        self.register_buffer('cosine', cosine, persistent=False)
        self.register_buffer('sine', sine, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Transform (B, H, W, C)."""
        rows, columns = x.shape[1] // self.window, x.shape[2] // self.window
        tiles = rearrange(
            self.qkv(self.norm(x)),
            f'b {self.pattern} (n h d) -> n (b x y) h (i j) d',
            n=3,
            h=self.heads,
            i=self.window,
            j=self.window,
            x=rows,
            y=columns,
        )
        query, key = (_rotate(t, self.cosine, self.sine) for t in tiles[:2])
        out = F.scaled_dot_product_attention(query, key, tiles[2])
        x = x + self.out(
            rearrange(
                out,
                f'(b x y) h (i j) d -> b {self.pattern} (h d)',
                x=rows,
                y=columns,
                i=self.window,
            )
        )
        return x + self.feed_forward(x)


class MaxViTBlock(nn.Module):
    """MBConv under FiLM, block attention, grid attention."""

    def __init__(
        self, channels: int, width: int, stride: int, text: int, config: MaxViTConfig
    ) -> None:
        super().__init__()
        self.convolution = MBConv(channels, width, config.expansion, stride, text)
        self.block = AxisAttention(width, config, grid=False)
        self.grid = AxisAttention(width, config, grid=True)

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        """Transform (B, H, W, C) under text (B, E)."""
        return self.grid(self.block(self.convolution(x, text)))


class MaxViT(nn.Module):
    """Images (B, H, W, 3) in -1..1 to feature maps (B, H/r, W/r, D), r = config.reduction."""

    def __init__(self, config: MaxViTConfig, text: int) -> None:
        super().__init__()
        self.config = config
        self.stem = nn.Conv2d(3, config.stem, 5, 2, padding=2)
        blocks = []
        channels = config.stem
        for width, depth in zip(config.widths, config.depths, strict=True):
            for index in range(depth):
                blocks.append(MaxViTBlock(channels, width, 2 if index == 0 else 1, text, config))
                channels = width
        self.blocks = nn.ModuleList(blocks)

    def forward(self, images: Tensor, text: Tensor) -> Tensor:
        """Encode images (B, H, W, 3) under text (B, E)."""
        x = F.gelu(_channels_first(self.stem, images))
        for block in self.blocks:
            x = block(x, text)
        return x


def _channels_first(layer: nn.Module, x: Tensor) -> Tensor:
    """Run a convolution on (B, H, W, C); the permuted view is channels-last memory, no copy."""
    return layer(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def _axial_rotary(window: int, width: int) -> tuple[Tensor, Tensor]:
    """Give cosines and sines (window², width): rows turn the first half, columns the second."""
    frequencies = math.pi / 2 * torch.linspace(0.25, 1, width // 4)
    row, column = torch.meshgrid(torch.arange(window), torch.arange(window), indexing='ij')
    angles = torch.cat([p.reshape(-1, 1) * frequencies for p in (row, column)], dim=-1)
    angles = angles.repeat_interleave(2, dim=-1)
    return angles.cos(), angles.sin()


def _rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    pairs = rearrange(x, '... (d two) -> ... d two', two=2)
    turned = torch.stack([-pairs[..., 1], pairs[..., 0]], dim=-1).flatten(-2)
    return x * cosine + turned * sine
