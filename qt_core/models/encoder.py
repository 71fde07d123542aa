# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Frames -> tokens: images, a state vector and a sentence, each where there is one.

    image ─ MaxViT(text) ─ token learner(text) ─┐
    state ─ Fourier features ─ MLP ─────────────┼─▶ M tokens per frame
    text ─ linear ──────────────────────────────┘

The token learner is Ryoo et al. 2021, used as in RT-1 (Brohan et al. 2022).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from qt_core.models.configuration import QTransformerConfig
from qt_core.models.maxvit import MaxViT
from qt_core.models.transformer import KeyValue


def grid_position(rows: int, columns: int, width: int) -> Tensor:
    """Give sines and cosines (rows, columns, width) of the place in a grid, both axes in 0..1."""
    frequencies = torch.pi * 2.0 ** torch.arange(width // 4).div(width // 4).mul(4)
    at = frequencies.device
    vertical = torch.linspace(0, 1, rows, device=at)[:, None, None] * frequencies
    horizontal = torch.linspace(0, 1, columns, device=at)[None, :, None] * frequencies
    parts = [
        wave(angles).expand(rows, columns, -1)
        for angles in (vertical, horizontal)
        for wave in (torch.sin, torch.cos)
    ]
    return torch.cat(parts, dim=-1).contiguous()


class TokenLearner(nn.Module):
    """Summarise a feature map by tokens, each a spatial average (after Ryoo et al. 2021).

    What is there decides where to look, and the sentence what to look for; the token then holds
    what is there and where. The sentence must act here and not only before: attention logits that
    multiply the two directly ground a sentence in hundreds of steps, not thousands. Logits start
    sharp: near-uniform averages say nothing of places.
    """

    SHARPNESS = 4.0

    def __init__(
        self, channels: int, width: int, tokens: int, rows: int, columns: int, text: int | None
    ) -> None:
        super().__init__()
        self.tokens, self.rows, self.columns = tokens, rows, columns
        self.scale = self.SHARPNESS / channels**0.5
        self.norm = nn.LayerNorm(channels)
        # Without a sentence, what to look for is the same for all.
        self.query = nn.Linear(
            1 if text is None else text, tokens * channels, bias=text is not None
        )
        self.project = nn.Linear(channels, width)
        self.position = nn.Parameter(grid_position(rows, columns, width).flatten(0, 1))

    def queries(self, text: Tensor | None) -> Tensor:
        """Give what to look for (B, M, C) under text (B, E); (1, M, C) without."""
        text = self.position.new_ones(1, 1) if text is None else text
        return rearrange(self.query(text), 'b (m c) -> b m c', m=self.tokens)

    def forward(self, features: Tensor, query: Tensor) -> Tensor:
        """Reduce features (B, H, W, C) to tokens (B, M, D) for `query` of `queries`."""
        rows, columns = features.shape[1:3]
        x = rearrange(self.norm(features), 'b h w c -> b (h w) c')
        weights = (self.scale * query @ x.transpose(1, 2)).softmax(dim=-1)
        return weights @ (self.project(x) + self._position(rows, columns))

    def _position(self, rows: int, columns: int) -> Tensor:
        if (rows, columns) == (self.rows, self.columns):
            return self.position
        learned: Tensor = self.position
        grid = rearrange(learned, '(h w) d -> 1 d h w', h=self.rows)
        grid = F.interpolate(grid, (rows, columns), mode='bilinear', align_corners=True)
        return rearrange(grid, '1 d h w -> (h w) d')


class StateEncoder(nn.Module):
    """Turn a state vector in -1..1 into one token by Fourier features (Tancik et al. 2020)."""

    scale: Tensor

    def __init__(self, joints: int, width: int, octaves: int = 5) -> None:
        super().__init__()
        self.register_buffer('scale', math.pi / 2 * 2.0 ** torch.arange(octaves), persistent=False)
        self.layers = nn.Sequential(
            nn.Linear(joints * (2 * octaves + 1), 2 * width),
            nn.GELU(),
            nn.Linear(2 * width, width),
        )

    def forward(self, state: Tensor) -> Tensor:
        """Encode (..., S) as (..., D)."""
        angles = (state.unsqueeze(-1) * self.scale).flatten(-2)
        return self.layers(torch.cat([state, angles.sin(), angles.cos()], dim=-1))


@dataclass(frozen=True)
class Condition:
    """What a sentence asks of the frame encoder, the same for every frame.

    Attributes:
        blocks: Of `MaxViT.condition`.
        mask: (B, L) which of the sentence's tokens there are; None for a sentence embedding.
        queries: Camera name to those of its token learner.
        token: (B, D) the sentence itself; None without one.
    """

    blocks: Sequence[Tensor | KeyValue | None]
    mask: Tensor | None
    queries: Mapping[str, Tensor]
    token: Tensor | None

    def for_frames(self, frames: int) -> Condition:
        """Repeat it for B x F single frames; the token stays."""
        if frames == 1 or self.token is None:
            return self

        def repeated(asked: Tensor | KeyValue | None) -> Tensor | KeyValue | None:
            if isinstance(asked, tuple):
                key, value = asked
                return key.repeat_interleave(frames, 0), value.repeat_interleave(frames, 0)
            return None if asked is None else asked.repeat_interleave(frames, 0)

        return Condition(
            blocks=[repeated(asked) for asked in self.blocks],
            mask=None if self.mask is None else self.mask.repeat_interleave(frames, 0),
            queries={n: q.repeat_interleave(frames, 0) for n, q in self.queries.items()},
            token=self.token,
        )


class FrameEncoder(nn.Module):
    """Encode what was seen at one step as M tokens, whatever was seen before.

    Raises:
        ConfigurationError: A camera's size does not suit the MaxViT.
    """

    def __init__(self, config: QTransformerConfig) -> None:
        super().__init__()
        self.config = config
        width, vit = config.width, config.vit
        text = config.text_dim if config.condition_on_text else None
        self.vit: MaxViT | None = None
        if config.cameras:
            cross = config.conditioning == 'cross_attention'
            self.vit = MaxViT(vit, text, cross=cross, channels=config.cameras[0].channels)
            self.vit.classifier = None
        self.token_learners = nn.ModuleDict()
        for camera in config.cameras:
            vit.check_image(camera.height, camera.width)
            rows, columns = camera.height // vit.reduction, camera.width // vit.reduction
            self.token_learners[camera.name] = TokenLearner(
                vit.embed_dim,
                width,
                config.token_learner_num_output_tokens,
                rows,
                columns,
                text,
            )
        self.state_encoder = StateEncoder(config.state_dim, width) if config.state_dim else None
        self.text_encoder = None if text is None else nn.Linear(text, width)
        self.null_text: nn.Parameter | None = None
        if config.cond_drop_prob > 0:
            self.null_text = nn.Parameter(0.5 * torch.randn(config.text_dim))
        self.token_position = nn.Parameter(0.5 * torch.randn(config.tokens, width))

    def forward(
        self,
        images: Mapping[str, Tensor],
        state: Tensor | None,
        text: Tensor | Condition | None,
    ) -> Tensor:
        """Encode frames; a frame's tokens do not depend on other frames.

        Args:
            images: Camera name to (B, F, H, W, C) uint8.
            state: (B, F, S), or None where there is no state.
            text: What `condition` takes, or what it gave.

        Returns:
            (B, F, M, D).
        """
        first = state if state is not None and not images else next(iter(images.values()))
        batch, frames = first.shape[:2]
        condition = text if isinstance(text, Condition) else self.condition(text)
        each = condition.for_frames(frames)
        tokens = []
        for camera in self.config.cameras:
            pixels = rearrange(images[camera.name], 'b f h w c -> (b f) h w c')
            pixels = pixels.to(self.token_position.dtype) / 127.5 - 1
            features = self.vit.encode(pixels, each.blocks, each.mask)  # type: ignore[union-attr]
            learned = self.token_learners[camera.name](features, each.queries[camera.name])
            tokens.append(rearrange(learned, '(b f) m d -> b f m d', b=batch))
        if self.state_encoder is not None:
            tokens.append(self.state_encoder(state).unsqueeze(2))
        if condition.token is not None:
            tokens.append(condition.token[:, None, None].expand(-1, frames, -1, -1))
        return torch.cat(tokens, dim=2) + self.token_position

    def condition(self, text: Tensor | None) -> Condition:
        """Compute what a sentence asks, once for all frames.

        In training, the sentence gives way to the null sentence with `cond_drop_prob`.

        Args:
            text: (B, E) sentence embedding, or (B, L, E) embeddings of its tokens with zeros
                after the last; None where there is no sentence.
        """
        text, mask = self._normalised(text)
        pooled = None if text is None else _pool(text, mask)
        cross = self.config.conditioning == 'cross_attention'
        return Condition(
            blocks=[] if self.vit is None else self.vit.condition(text if cross else pooled),
            mask=mask if cross else None,
            queries={
                camera.name: self.token_learners[camera.name].queries(pooled)  # type: ignore[operator]
                for camera in self.config.cameras
            },
            token=None if self.text_encoder is None else self.text_encoder(pooled),
        )

    def null(self, text: Tensor) -> Tensor:
        """Give the null sentence in the shape of `text`.

        Raises:
            ValueError: The network was built without one.
        """
        if self.null_text is None:
            raise ValueError('guidance needs a network trained with cond_drop_prob above 0')
        row = self.null_text.to(text.dtype)
        if text.dim() == 2:
            return row.expand_as(text)
        first = torch.zeros_like(text)
        first[:, 0] = row
        return first

    def _normalised(self, text: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """Normalise the sentence, and drop it now and then in training; give its mask too."""
        if not self.config.condition_on_text:
            return None, None
        if text is None:
            raise ValueError('the network is conditioned on a sentence, and none was given')
        if self.training and self.config.cond_drop_prob > 0:
            drop = torch.rand(len(text), device=text.device) < self.config.cond_drop_prob
            text = torch.where(drop.view(-1, *[1] * (text.dim() - 1)), self.null(text), text)
        mask = text.ne(0).any(-1) if text.dim() == 3 else None
        # Unit-length embeddings have tiny components; FiLM learns slowly from those.
        return F.layer_norm(text, text.shape[-1:]), mask


def _pool(condition: Tensor, mask: Tensor | None) -> Tensor:
    """Average the sentence's tokens (B, L, E); a sentence embedding (B, E) stays as it is."""
    if mask is None:
        return condition
    weight = mask.to(condition.dtype).unsqueeze(-1)
    return (condition * weight).sum(1) / weight.sum(1).clamp(min=1)
