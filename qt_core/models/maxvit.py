# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""MaxViT frame encoder, conditioned on a sentence in every block.

Tu et al. 2022, "MaxViT: Multi-Axis Vision Transformer"; Perez et al. 2018, "FiLM". Normalisation
is per pixel over channels: batch statistics would differ between training and a robot's single
frame. Feature maps are (B, H, W, C) throughout, so that a 1x1 convolution is a matrix product.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from qt_core.configuration import require
from qt_core.models.transformer import Attention, KeyValue
from qt_core.spec import MAX_SIZE

TILES_IN_CACHE, FLOATS_IN_CACHE = 8, 1 << 15  # so many tiles, and more where they are small


@dataclass(frozen=True, kw_only=True)
class MaxViTConfig:
    """Sizes of the frame encoder; stage i has dim·2^i channels.

    Attributes:
        dim: Channels of the first stage.
        depth: Blocks of each stage; every stage halves the feature map.
        dim_conv_stem: Channels after the stem, which halves the image; None for `dim`.
        heads: Attention heads.
        dim_head: Width of a head; None for the stage's channels divided by `heads`.
        window_size: Side of the attention windows and grids; divides the feature map of every
            stage.
        mbconv_expansion_rate: Width of an MBConv block per channel that comes out of it.
        mbconv_shrinkage_rate: Width of its squeeze per channel that goes in there.
        ff_mult: Width of the feed-forward layers per channel.
        gated: Scale what each head reads by a sigmoid, so that it can attend to nothing.
        use_layernorm: Normalise pixels over channels; False for the usual batch normalisation.
        activation_checkpointing: In training, keep only what matrix products and attention give,
            and compute the rest again in the backward pass (Chen et al. 2016). Saves memory with
            large images; with small ones it costs more time than it is worth.
        dropout: Share of each attention's and feed-forward layer's output dropped in training.
        num_classes: Classes of a `MaxViT` used alone, as a classifier; a Q-Transformer has none.
    """

    dim: int = 64
    depth: tuple[int, ...] = (2, 2, 5, 2)
    dim_conv_stem: int | None = None
    heads: int = 8
    dim_head: int | None = 64
    window_size: int = 7
    mbconv_expansion_rate: float = 4.0
    mbconv_shrinkage_rate: float = 0.25
    ff_mult: int = 4
    gated: bool = True
    use_layernorm: bool = True
    activation_checkpointing: bool = True
    dropout: float = 0.1
    num_classes: int | None = None

    def __post_init__(self) -> None:
        require(0 < len(self.depth) <= 8, 'vit.depth', self.depth, '1..8 stages')
        for depth in self.depth:
            require(1 <= depth <= MAX_SIZE, 'vit.depth', self.depth, f'each 1..{MAX_SIZE}')
        for name in ('dim', 'heads', 'window_size', 'ff_mult'):
            size = getattr(self, name)
            require(1 <= size <= MAX_SIZE, f'vit.{name}', size, f'1..{MAX_SIZE}')
        for name in ('dim_head', 'dim_conv_stem', 'num_classes'):
            size = getattr(self, name)
            fits = size is None or 1 <= size <= MAX_SIZE
            require(fits, f'vit.{name}', size, f'1..{MAX_SIZE} or nothing')
        for name, high in (('mbconv_expansion_rate', 64), ('mbconv_shrinkage_rate', 1)):
            rate = getattr(self, name)
            require(0 < rate <= high, f'vit.{name}', rate, f'0 < rate <= {high}')
        require(0 <= self.dropout < 1, 'vit.dropout', self.dropout, '0 <= dropout < 1')
        require(self.embed_dim <= MAX_SIZE, 'vit.dim', self.dim, f'{MAX_SIZE} after all stages')
        if self.dim_head is None:
            divides = self.dim % (4 * self.heads) == 0
            require(divides, 'vit.dim', self.dim, f'a multiple of 4·heads = {4 * self.heads}')
        else:
            require(self.dim_head % 4 == 0, 'vit.dim_head', self.dim_head, 'a multiple of 4')

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each stage."""
        return tuple(self.dim * 2**stage for stage in range(len(self.depth)))

    @property
    def embed_dim(self) -> int:
        """Channels of the last feature map."""
        return self.widths[-1]

    @property
    def reduction(self) -> int:
        """Pixels of the image per pixel of the last feature map, along one side."""
        return int(2 ** (1 + len(self.depth)))

    def check_image(self, height: int, width: int) -> None:
        """Check that windows tile the feature map of every stage.

        Raises:
            ConfigurationError: They do not; says which sizes would do.
        """
        unit = self.reduction * self.window_size
        fits = height % unit == 0 and width % unit == 0
        allowed = f'multiples of {unit} pixels, or another vit.window_size than {self.window_size}'
        require(fits, 'image size', f'{height}x{width}', allowed)


class FiLM(nn.Module):
    """Scale and shift channels by a sentence: x · (1 + γ(text)) + β(text)."""

    def __init__(self, text: int, channels: int) -> None:
        super().__init__()
        self.project = nn.Linear(text, 2 * channels)

    def forward(self, x: Tensor, film: Tensor) -> Tensor:
        """Condition x (B, H, W, C) by `film` = `project(text)`, (B, 2C) of text (B, E)."""
        scale, shift = film[:, None, None].chunk(2, dim=-1)
        return torch.addcmul(x + shift, x, scale)


class BatchNorm(nn.BatchNorm1d):
    """Batch normalisation of the last of any number of axes."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (..., C)."""
        return super().forward(input.flatten(0, -2)).view_as(input)


class MBConv(nn.Module):
    """Inverted bottleneck with squeeze and excitation (Sandler et al. 2018; Hu et al. 2018).

    The sentence conditions the depthwise convolution's output before its non-linearity. On the
    residual stream, before normalisation, a policy took ten times as long to start listening.
    """

    def __init__(
        self, channels: int, out: int, stride: int, text: int | None, config: MaxViTConfig
    ) -> None:
        super().__init__()
        hidden = int(config.mbconv_expansion_rate * out)
        squeezed = max(8, int(config.mbconv_shrinkage_rate * hidden))
        self.stride = stride
        self.norm = _norm(channels, config)
        self.expand = nn.Linear(channels, hidden)
        self.depthwise = nn.Conv2d(hidden, hidden, 3, stride, padding=1, groups=hidden)
        self.film = None if text is None else FiLM(text, hidden)
        self.squeeze = nn.Linear(hidden, squeezed)
        self.excite = nn.Linear(squeezed, hidden)
        self.project = nn.Linear(hidden, out)
        self.shortcut = nn.Identity() if channels == out else nn.Linear(channels, out, bias=False)

    def forward(self, x: Tensor, film: Tensor | None) -> Tensor:
        """Transform (B, H, W, C) into (B, H/stride, W/stride, out) under what `film` asks."""
        hidden = _channels_first(self.depthwise, F.gelu(self.expand(self.norm(x))))
        if self.film is not None:
            hidden = self.film(hidden, film)
        hidden = F.gelu(hidden)
        gate = torch.sigmoid(self.excite(F.gelu(self.squeeze(hidden.mean((1, 2))))))
        out = self.project(hidden * gate[:, None, None])
        if self.stride > 1:
            x = F.avg_pool2d(x.permute(0, 3, 1, 2), self.stride).permute(0, 2, 3, 1)
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
        dim_head = config.dim_head or width // config.heads
        inner = config.heads * dim_head
        self.heads, self.inner, self.window = config.heads, inner, config.window_size
        self.map = 'b (i x) (j y) c' if grid else 'b (x i) (y j) c'
        self.norm = _norm(width, config)
        self.qkv = nn.Linear(width, 3 * inner, bias=False)
        self.gate = nn.Linear(width, config.heads) if config.gated else None
        self.out = nn.Linear(inner, width, bias=False)
        self.feed_forward = nn.Sequential(
            _norm(width, config),
            nn.Linear(width, config.ff_mult * width),
            nn.GELU(),
            nn.Linear(config.ff_mult * width, width),
        )
        self.dropout = nn.Dropout(config.dropout)
        cosine, sine = axial_rotary(config.window_size, dim_head)
        self.register_buffer('cosine', cosine.unsqueeze(1), persistent=False)  # for all heads
        self.register_buffer('sine', sine.unsqueeze(1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Transform (B, H, W, C)."""
        sizes = {'i': self.window, 'j': self.window}
        rows, columns = x.shape[1] // self.window, x.shape[2] // self.window
        tiles = rearrange(x, f'{self.map} -> (b x y) (i j) c', **sizes)
        parts = len(tiles) // max(TILES_IN_CACHE, FLOATS_IN_CACHE // tiles.shape[1:].numel())
        if torch.is_grad_enabled() or x.device.type != 'cpu' or parts < 2:
            tiles = self._transform(tiles)
        else:  # a few tiles at a time stay in the processor's cache
            tiles = torch.cat([self._transform(few) for few in tiles.chunk(parts)])
        return rearrange(tiles, f'(b x y) (i j) c -> {self.map}', x=rows, y=columns, **sizes)

    def _transform(self, tiles: Tensor) -> Tensor:
        """Transform tiles (n, window², C), each by itself."""
        count, area, _ = tiles.shape
        normed = self.norm(tiles)
        turning, value = self.qkv(normed).split_with_sizes((2 * self.inner, self.inner), dim=-1)
        turned = rotate(turning.view(count, area, 2 * self.heads, -1), self.cosine, self.sine)
        query, key = turned.transpose(1, 2).chunk(2, dim=1)
        value = value.view(count, area, self.heads, -1).transpose(1, 2)
        out = F.scaled_dot_product_attention(query, key, value).transpose(1, 2)
        if self.gate is not None:
            out = out * torch.sigmoid(self.gate(normed)).unsqueeze(-1)
        tiles = tiles + self.dropout(self.out(out.flatten(-2)))
        return tiles + self.dropout(self.feed_forward(tiles))


class MaxViTBlock(nn.Module):
    """MBConv, block attention, grid attention; the sentence by FiLM or by cross-attention."""

    def __init__(
        self,
        channels: int,
        width: int,
        stride: int,
        text: int | None,
        cross: bool,
        config: MaxViTConfig,
    ) -> None:
        super().__init__()
        self.cross: Attention | None = None
        if cross and text is not None:
            heads, dim_head = config.heads, config.dim_head or max(4, channels // config.heads)
            self.cross = Attention(channels, heads, dim_head, gated=config.gated, context=text)
        self.convolution = MBConv(channels, width, stride, None if cross else text, config)
        self.block = AxisAttention(width, config, grid=False)
        self.grid = AxisAttention(width, config, grid=True)

    def condition(self, text: Tensor | None) -> Tensor | KeyValue | None:
        """Give what text (B, E) or (B, L, E) asks of this block, whatever the image."""
        if text is None:
            return None
        if self.cross is not None:
            return self.cross.project(text)
        film = self.convolution.film
        return None if film is None else film.project(text)

    def forward(
        self, x: Tensor, condition: Tensor | KeyValue | None, mask: Tensor | None
    ) -> Tensor:
        """Transform (B, H, W, C) under `condition`; mask (B, L) is of the text's tokens."""
        if isinstance(condition, tuple):
            pixels = x.flatten(1, 2)
            attend = None if mask is None else mask[:, None, None]
            x = (pixels + self.cross(pixels, condition, attend)).view_as(x)  # type: ignore[misc]
            condition = None
        return self.grid(self.block(self.convolution(x, condition)))


class MaxViT(nn.Module):
    """Images (B, H, W, C) in -1..1 to feature maps (B, H/r, W/r, D), r = config.reduction.

    Args:
        config: Sizes.
        text: Width E of the sentence; None for none.
        cross: Condition by attention to the sentence's tokens in place of FiLM.
        channels: Channels C of the images.
    """

    def __init__(
        self,
        config: MaxViTConfig,
        text: int | None = None,
        *,
        cross: bool = False,
        channels: int = 3,
    ) -> None:
        super().__init__()
        self.config = config
        width = config.dim_conv_stem or config.dim
        self.stem = nn.Conv2d(channels, width, 5, 2, padding=2)
        blocks = []
        for out, depth in zip(config.widths, config.depth, strict=True):
            for index in range(depth):
                stride = 2 if index == 0 else 1
                blocks.append(MaxViTBlock(width, out, stride, text, cross, config))
                width = out
        self.blocks = nn.ModuleList(blocks)
        self.classifier = nn.Linear(width, config.num_classes) if config.num_classes else None

    def forward(
        self, images: Tensor, text: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """Encode images (B, H, W, C) under text (B, E), or (B, L, E) with mask (B, L)."""
        return self.encode(images, self.condition(text), mask)

    def condition(self, text: Tensor | None) -> list[Tensor | KeyValue | None]:
        """Give what text (B, E) or (B, L, E) asks of each block, whatever the image."""
        return [block.condition(text) for block in self.blocks]  # type: ignore[operator]

    def encode(
        self,
        images: Tensor,
        conditions: Sequence[Tensor | KeyValue | None],
        mask: Tensor | None = None,
    ) -> Tensor:
        """Encode images (B, H, W, C) under the `conditions` of the blocks."""
        x = F.gelu(_channels_first(self.stem, images))
        recompute = self.config.activation_checkpointing and torch.is_grad_enabled()
        for block, asked in zip(self.blocks, conditions, strict=True):
            if recompute:
                x = checkpoint(block, x, asked, mask, use_reentrant=False, context_fn=_KEEP_COSTLY)
            else:
                x = block(x, asked, mask)
        return x

    def classify(self, images: Tensor) -> Tensor:
        """Give the logits (B, config.num_classes) of images (B, H, W, C)."""
        if self.classifier is None:
            raise ValueError('this MaxViT has no classes: set num_classes')
        return self.classifier(self(images).mean((1, 2)))


def _policy(context: object, operator: object, *args: object, **kwargs: object) -> object:
    costly = operator in _COSTLY
    return CheckpointPolicy.MUST_SAVE if costly else CheckpointPolicy.PREFER_RECOMPUTE


_COSTLY = {
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten.bmm.default,
    torch.ops.aten.convolution.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
}
_KEEP_COSTLY = partial(create_selective_checkpoint_contexts, _policy)


def _norm(channels: int, config: MaxViTConfig) -> nn.Module:
    return nn.LayerNorm(channels) if config.use_layernorm else BatchNorm(channels)


def _channels_first(layer: nn.Module, x: Tensor) -> Tensor:
    """Run a convolution on (B, H, W, C); the permuted view is channels-last memory, no copy."""
    return layer(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def axial_rotary(window: int, width: int) -> tuple[Tensor, Tensor]:
    """Give cosines and sines (window², width / 2) of the angles by which pairs of channels turn.

    Rows turn the first half of the pairs, columns the second.
    """
    # While transformers loads a model, in whatever thread, linspace has the CPU as its default.
    device = torch.get_default_device()
    frequencies = math.pi / 2 * torch.linspace(0.25, 1, width // 4, device=device)
    row, column = torch.meshgrid(torch.arange(window), torch.arange(window), indexing='ij')
    angles = torch.cat([p.reshape(-1, 1) * frequencies for p in (row, column)], dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Turn each pair of channels of x (..., D) by an angle given as (..., D / 2)."""
    pairs = rearrange(x, '... (d two) -> ... d two', two=2)
    if x.device.type == 'cpu' and x.dtype == torch.float32:
        # One pass over memory in place of seven: a product of complex numbers.
        turned = torch.view_as_complex(pairs) * torch.complex(cosine, sine)
        return torch.view_as_real(turned).flatten(-2)
    first, second = pairs.unbind(-1)
    rotated = (first * cosine - second * sine, second * cosine + first * sine)
    return torch.stack(rotated, dim=-1).flatten(-2)
