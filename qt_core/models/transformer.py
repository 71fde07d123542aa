# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Pre-norm transformer blocks over tokens (B, L, D)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


class Attention(nn.Module):
    """Multi-head attention of a sequence on itself or on a context (Vaswani et al. 2017)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, width, bias=False)
        self.key_value = nn.Linear(width, 2 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(
        self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """Attend from x (B, L, D) to itself, or to context (B, K, D) which is not normalised here.

        Args:
            x: Queries.
            context: Keys and values, when not x.
            mask: (L, K) bool, True where attention is allowed.
        """
        x = self.norm(x)
        key, value = self.key_value(x if context is None else context).chunk(2, dim=-1)
        query, key, value = (
            rearrange(t, 'b l (h d) -> b h l d', h=self.heads) for t in (self.query(x), key, value)
        )
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.out(rearrange(out, 'b h l d -> b l (h d)'))


class FeedForward(nn.Sequential):
    """Norm, widen, GELU, narrow."""

    def __init__(self, width: int, multiple: int = 4) -> None:
        super().__init__(
            nn.LayerNorm(width),
            nn.Linear(width, multiple * width),
            nn.GELU(),
            nn.Linear(multiple * width, width),
        )


class Block(nn.Module):
    """Self-attention, optional cross-attention, feed-forward; each added to its input."""

    def __init__(self, width: int, heads: int, *, cross: bool = False) -> None:
        super().__init__()
        self.attention = Attention(width, heads)
        self.cross = Attention(width, heads) if cross else None
        self.feed_forward = FeedForward(width)

    def forward(self, x: Tensor, mask: Tensor, context: Tensor | None = None) -> Tensor:
        """Transform x (B, L, D) under mask (L, L), looking at context (B, K, D)."""
        x = x + self.attention(x, mask=mask)
        if self.cross is not None:
            x = x + self.cross(x, context)
        return x + self.feed_forward(x)


def frame_causal_mask(frames: int, tokens: int, device: torch.device) -> Tensor:
    """Let each token see all tokens of its own and of earlier frames: (F·M, F·M) bool."""
    frame = torch.arange(frames * tokens, device=device) // tokens
    return frame[:, None] >= frame[None, :]
