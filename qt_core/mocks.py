# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Stand-ins for trying the learning system without a task."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from qt_core.environments.base import BaseEnvironment

SENTENCES = ('please clean the kitchen', 'please pass the butter')


class MockEnvironment(BaseEnvironment):
    """Noise to look at, and nothing to learn: an environment that keeps all the rules.

    Frames are uint8 noise as float in -1..1; stacks slide by one frame; vectors are in -1..1. A
    step ends the episode by chance, one time in twenty, with reward 1 half of the time; all other
    rewards are 0.

    Args:
        state_shape: (C, F, H, W), (C, H, W) or (S,).
        text_embed_shape: (E,).
        seed: What the noise follows from.
    """

    def __init__(
        self,
        state_shape: Sequence[int],
        text_embed_shape: int | Sequence[int] = (),
        *,
        seed: int = 0,
    ) -> None:
        super().__init__(state_shape, text_embed_shape)
        self._random = torch.Generator().manual_seed(seed)
        self._state = torch.zeros(self.state_shape)

    def init(self) -> tuple[str, Tensor]:
        """Start an episode."""
        self._state = self._noise(self.state_shape)
        sentence = SENTENCES[int(torch.randint(len(SENTENCES), (), generator=self._random))]
        return sentence, self._state.to(self.device)

    def forward(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Take any action."""
        if len(self.state_shape) == 4:
            channels, _, height, width = self.state_shape
            newest = self._noise((channels, 1, height, width))
            self._state = torch.cat([self._state[:, 1:], newest], dim=1)
        else:
            self._state = self._noise(self.state_shape)
        ends, succeeds = torch.rand(2, generator=self._random)
        done = ends < 0.05
        reward = (done & (succeeds < 0.5)).float()
        return reward.to(self.device), self._state.to(self.device), done.to(self.device)

    def _noise(self, shape: Sequence[int]) -> Tensor:
        if len(shape) == 1:
            return 2 * torch.rand(tuple(shape), generator=self._random) - 1
        pixels = torch.randint(256, tuple(shape), generator=self._random, dtype=torch.uint8)
        return pixels / 127.5 - 1
