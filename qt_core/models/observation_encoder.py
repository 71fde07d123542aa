# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""All that is seen at one step -> one vector."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from einops import rearrange
from torch import Tensor, nn

from qt_core.configuration import require
from qt_core.models.decision_transformer_configuration import DecisionTransformerConfig
from qt_core.models.encoder import FrameEncoder
from qt_core.spec import Camera

LAYERS = ((32, 8, 4), (64, 4, 2), (64, 3, 1))  # channels, kernel, stride
LEAST = 36  # pixels: of fewer, nothing is left after the last layer


class AtariEncoder(nn.Module):
    """Turn an image into features as agents for Atari games do (Mnih et al. 2015).

    Conv 32 of 8x8 by 4 ─ ReLU ─ Conv 64 of 4x4 by 2 ─ ReLU ─ Conv 64 of 3x3 by 1 ─ ReLU

    Attributes:
        features: Length of the vector; 3136 for 84x84 pixels.

    Raises:
        ConfigurationError: The image is too small.
    """

    def __init__(self, camera: Camera) -> None:
        super().__init__()
        large = camera.height >= LEAST and camera.width >= LEAST
        size = f'{camera.height}x{camera.width}'
        require(large, 'image size', size, f'at least {LEAST}x{LEAST} for image_encoder atari')
        height, width, channels = camera.height, camera.width, camera.channels
        layers: list[nn.Module] = []
        for out, kernel, stride in LAYERS:
            layers += [nn.Conv2d(channels, out, kernel, stride), nn.ReLU()]
            height, width = ((side - kernel) // stride + 1 for side in (height, width))
            channels = out
        self.layers = nn.Sequential(*layers)
        self.features = channels * height * width

    def forward(self, images: Tensor) -> Tensor:
        """Encode (B, H, W, C) uint8 as (B, features)."""
        weight = next(self.layers.parameters())
        pixels = rearrange(images, 'b h w c -> b c h w').to(weight.dtype) / 255
        return torch.flatten(self.layers(pixels), 1)


class ObservationEncoder(nn.Module):
    """Turn all that is seen at one step into one vector (D).

    Without cameras it is a linear layer of the state.

    Raises:
        ConfigurationError: A camera's size does not suit the image encoder.
    """

    def __init__(self, config: DecisionTransformerConfig) -> None:
        super().__init__()
        self.frames: FrameEncoder | None = None
        self.images = nn.ModuleDict()
        if config.cameras and config.image_encoder == 'maxvit':
            self.frames = FrameEncoder(config.frame())
            width = self.frames.config.tokens * config.dim
        elif config.cameras:
            self.images = nn.ModuleDict({c.name: AtariEncoder(c) for c in config.cameras})
            width = config.state_dim + sum(e.features for e in self.images.values())  # type: ignore[misc]
        else:
            width = config.state_dim
        self.project = nn.Linear(width, config.dim)

    def forward(self, images: Mapping[str, Tensor], state: Tensor, text: Tensor | None) -> Tensor:
        """Encode steps, each by itself.

        Args:
            images: Camera name to (B, H, W, C) uint8; of all cameras.
            state: (B, S), standardised; S may be 0.
            text: (B, E) sentence embeddings, or None.

        Returns:
            (B, D).
        """
        if self.frames is not None:
            single = {name: frames[:, None] for name, frames in images.items()}
            given = state[:, None] if state.shape[-1] else None
            return self.project(self.frames(single, given, text).flatten(1))
        if not self.images:
            return self.project(state)
        seen = [encode(images[name]) for name, encode in self.images.items()]
        return self.project(torch.cat([*seen, state], dim=-1)).tanh()
