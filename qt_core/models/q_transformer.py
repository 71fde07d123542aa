# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The Q-Transformer: Q(s, a_1..a_{i-1}, a_i) for every bin of action dimension i.

    image ─ MaxViT(FiLM(text)) ─ token learner(text) ─┐
    joint positions ─ Fourier features ─ MLP ─────────┼─▶ M tokens ─▶ frame-causal transformer
    text ─ linear ────────────────────────────────────┘   per frame          │ tokens of frame t
    start, a_1 .. a_{N-1} ─▶ causal decoder, cross-attending to frame t  ◀───┘
                                └─▶ logits (N, A) ─ sigmoid ─▶ Q in (0, 1)

Chebotar et al. 2023, "Q-Transformer: Scalable Offline Reinforcement Learning via Autoregressive
Q-Functions"; the token learner is Ryoo et al. 2021 as in RT-1 (Brohan et al. 2022).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from einops import rearrange
from torch import Tensor, nn

from qt_core.configuration import require
from qt_core.contract import RobotContract
from qt_core.models.maxvit import MaxViT, MaxViTConfig
from qt_core.models.transformer import Block, frame_causal_mask

MAX_SIZE = 8192  # of any dimension: a damaged checkpoint must not exhaust memory


@dataclass(frozen=True)
class QTransformerConfig:
    """Sizes of the network.

    Attributes:
        text_width: Width E of the sentence embedding.
        frames: Frames F the policy looks at, the newest included.
        width: Width D of the transformer.
        depth: Blocks of the frame-causal transformer.
        decoder_depth: Blocks of the action decoder.
        heads: Attention heads.
        image_tokens: Tokens the token learner keeps of one image.
        maxvit: Sizes of the frame encoder.
    """

    text_width: int = 384
    frames: int = 2
    width: int = 128
    depth: int = 2
    decoder_depth: int = 2
    heads: int = 4
    image_tokens: int = 8
    maxvit: MaxViTConfig = field(default_factory=MaxViTConfig)

    def __post_init__(self) -> None:
        sizes = (
            'text_width',
            'frames',
            'width',
            'depth',
            'decoder_depth',
            'heads',
            'image_tokens',
        )
        for name in sizes:
            size = getattr(self, name)
            require(1 <= size <= MAX_SIZE, f'model.{name}', size, f'1..{MAX_SIZE}')
        divides = self.width % self.heads == 0 and self.width % 4 == 0
        allowed = f'a multiple of 4 and of model.heads = {self.heads}'
        require(divides, 'model.width', self.width, allowed)


def grid_position(rows: int, columns: int, width: int) -> Tensor:
    """Give sines and cosines (rows, columns, width) of the place in a grid, both axes in 0..1."""
    frequencies = torch.pi * 2.0 ** torch.arange(width // 4).div(width // 4).mul(4)
    vertical = torch.linspace(0, 1, rows)[:, None, None] * frequencies
    horizontal = torch.linspace(0, 1, columns)[None, :, None] * frequencies
    parts = [
        wave(angles).expand(rows, columns, -1)
        for angles in (vertical, horizontal)
        for wave in (torch.sin, torch.cos)
    ]
    return torch.cat(parts, dim=-1).contiguous()


class TokenLearner(nn.Module):
    """Summarise a feature map by tokens, each a spatial average (after Ryoo et al. 2021).

    What is there decides where to look, and the sentence what to look for; the token then holds
    what is there and where. The sentence must act here and not only by FiLM before: attention
    logits that multiply the two directly ground a sentence in hundreds of steps, not thousands.
    Logits start sharp: near-uniform averages say nothing of places.
    """

    SHARPNESS = 4.0

    def __init__(
        self, channels: int, width: int, tokens: int, rows: int, columns: int, text: int
    ) -> None:
        super().__init__()
        self.tokens = tokens
        self.scale = self.SHARPNESS / channels**0.5
        self.norm = nn.LayerNorm(channels)
        self.query = nn.Linear(text, tokens * channels)
        self.project = nn.Linear(channels, width)
        self.position = nn.Parameter(grid_position(rows, columns, width).flatten(0, 1))

    def forward(self, features: Tensor, text: Tensor) -> Tensor:
        """Reduce features (B, H, W, C) to tokens (B, M, D) under text (B, E)."""
        x = rearrange(self.norm(features), 'b h w c -> b (h w) c')
        query = rearrange(self.query(text), 'b (m c) -> b m c', m=self.tokens)
        weights = (self.scale * query @ x.transpose(1, 2)).softmax(dim=-1)
        return weights @ (self.project(x) + self.position)


class StateEncoder(nn.Module):
    """Turn normalised joint positions into one token by Fourier features (Tancik et al. 2020)."""

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


class QRoboticTransformer(nn.Module):
    """Values of every bin of every action dimension, from camera frames, joints and a sentence.

    Args:
        config: Sizes.
        contract: The robot: cameras, joints, action dimensions and bins.

    Raises:
        ConfigurationError: A camera's size does not suit the frame encoder.
    """

    def __init__(self, config: QTransformerConfig, contract: RobotContract) -> None:
        super().__init__()
        self.config = config
        self.dimensions, self.bins = contract.action.dimensions, contract.action.bins
        self.cameras = [camera.name for camera in contract.cameras]
        width, vit = config.width, config.maxvit
        self.vit = MaxViT(vit, config.text_width)
        self.token_learners = nn.ModuleDict()
        for camera in contract.cameras:
            vit.check_image(camera.height, camera.width)
            rows, columns = camera.height // vit.reduction, camera.width // vit.reduction
            self.token_learners[camera.name] = TokenLearner(
                vit.widths[-1], width, config.image_tokens, rows, columns, config.text_width
            )
        self.state_encoder = StateEncoder(len(contract.state.joints), width)
        # Unit-length embeddings have tiny components; FiLM learns slowly from those.
        self.text_norm = nn.LayerNorm(config.text_width, elementwise_affine=False)
        self.text_encoder = nn.Linear(config.text_width, width)
        self.tokens = len(self.cameras) * config.image_tokens + 2
        self.token_position = nn.Parameter(0.5 * torch.randn(self.tokens, width))
        self.frame_position = nn.Parameter(0.02 * torch.randn(config.frames, 1, width))
        self.blocks = nn.ModuleList(Block(width, config.heads) for _ in range(config.depth))
        self.context_norm = nn.LayerNorm(width)
        self.start = nn.Parameter(0.5 * torch.randn(width))
        self.bin_embedding = nn.Parameter(0.5 * torch.randn(self.dimensions - 1, self.bins, width))
        self.dimension_position = nn.Parameter(0.5 * torch.randn(self.dimensions, width))
        self.decoder = nn.ModuleList(
            Block(width, config.heads, cross=True) for _ in range(config.decoder_depth)
        )
        self.head_norm = nn.LayerNorm(width)
        self.head_weight = nn.Parameter(
            torch.randn(self.dimensions, width, self.bins) / width**0.5
        )
        self.head_bias = nn.Parameter(torch.zeros(self.dimensions, self.bins))
        with torch.no_grad():
            # Start near Q = 1/2, where the sigmoid is steepest; from 1/A, learning starts later.
            self.head_weight.mul_(0.1)

    def forward(
        self, images: Mapping[str, Tensor], state: Tensor, text: Tensor, bins: Tensor
    ) -> Tensor:
        """Give the logits of Q for actions that are known (teacher forcing).

        Args:
            images: Camera name to (B, F, H, W, 3) uint8.
            state: (B, F, S) normalised joint positions.
            text: (B, E) sentence embedding.
            bins: (B, F, N) bins; logits of dimension i use those before i only.

        Returns:
            (B, F, N, A) logits at every frame; sigmoid gives Q.
        """
        return self.decode(self.contextualise(self.encode(images, state, text)), bins)

    def encode(self, images: Mapping[str, Tensor], state: Tensor, text: Tensor) -> Tensor:
        """Encode frames as (B, F, M, D); a frame's tokens do not depend on other frames."""
        batch, frames = state.shape[:2]
        text = self.text_norm(text)
        per_frame = text.repeat_interleave(frames, dim=0)
        tokens = []
        for camera in self.cameras:
            pixels = rearrange(images[camera], 'b f h w c -> (b f) h w c')
            features = self.vit(pixels.to(text.dtype) / 127.5 - 1, per_frame)
            learned = self.token_learners[camera](features, per_frame)
            tokens.append(rearrange(learned, '(b f) m d -> b f m d', b=batch))
        tokens.append(self.state_encoder(state).unsqueeze(2))
        tokens.append(self.text_encoder(text)[:, None, None].expand(-1, frames, -1, -1))
        return torch.cat(tokens, dim=2) + self.token_position

    def contextualise(self, tokens: Tensor) -> Tensor:
        """Let each frame's tokens (B, F, M, D) look at their own and earlier frames."""
        frames, count = tokens.shape[1:3]
        mask = frame_causal_mask(frames, count, tokens.device)
        x = rearrange(tokens + self.frame_position[:frames], 'b f m d -> b (f m) d')
        for block in self.blocks:
            x = block(x, mask)
        return rearrange(self.context_norm(x), 'b (f m) d -> b f m d', m=count)

    def decode(self, context: Tensor, bins: Tensor) -> Tensor:
        """Give logits (B, F, K+1, A) of the first K+1 dimensions, K at most N-1.

        Args:
            context: (B, F, M, D) from `contextualise`.
            bins: (B, F, K) bins of the first K dimensions.
        """
        batch, frames = bins.shape[:2]
        known = min(bins.shape[-1], self.dimensions - 1)
        index = torch.arange(known, device=bins.device)
        previous = self.bin_embedding[index, bins[..., :known]]
        start = self.start.expand(batch, frames, 1, -1)
        x = torch.cat([start, previous], dim=2) + self.dimension_position[: known + 1]
        x = rearrange(x, 'b f n d -> (b f) n d')
        mask = torch.ones(known + 1, known + 1, dtype=torch.bool, device=x.device).tril()
        for block in self.decoder:
            x = block(x, mask, rearrange(context, 'b f m d -> (b f) m d'))
        x = rearrange(self.head_norm(x), '(b f) n d -> b f n d', b=batch)
        logits = torch.einsum('bfnd,nda->bfna', x, self.head_weight[: known + 1])
        return logits + self.head_bias[: known + 1]

    @torch.no_grad()
    def best_actions(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Choose each dimension's best bin given those before it.

        Args:
            context: (B, 1, M, D), one frame of `contextualise`.

        Returns:
            Bins (B, N) and the values (B, N, A) they were chosen from.
        """
        bins = torch.empty(len(context), 1, 0, dtype=torch.long, device=context.device)
        for _ in range(self.dimensions):
            logits = self.decode(context, bins)
            bins = torch.cat([bins, logits[:, :, -1:].argmax(-1)], dim=-1)
        return bins[:, 0], logits[:, 0].sigmoid()
