# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A batch of windows of consecutive steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class WindowBatch:
    """B windows of F actions between F + 1 observations of one episode each.

    Beyond the end of an episode its last observation is repeated, and bins, reward, terminal and
    returns are zero.

    Attributes:
        images: Camera name to (B, F+1, H, W, C) uint8.
        state: (B, F+1, S) float32, normalised to -1..1 where a contract says how; S may be 0.
        text: (B, E) float32 sentence embedding; None without sentences.
        bins: (B, F, N) int64.
        reward: (B, F) float32.
        terminal: (B, F) bool; no future return after this action.
        returns: (B, F) float32 discounted return-to-go G_t.
        valid: (B, F) bool; the steps to train on.
        length: (B,) int64 actions of the episode that lie inside the window, at most F.
        instruction: (B,) int64 row of the folder's table of sentences.
        start: (B,) int64 number, in its episode, of the window's first step; (B, F) numbers of all
            steps where some of another episode were put in front.
        action: (B, F, N) float32 actions, their range scaled to -1..1; None where not asked for.
        dataset: Which of a training's datasets it is of.
    """

    images: dict[str, Tensor]
    state: Tensor
    text: Tensor | None
    bins: Tensor
    reward: Tensor
    terminal: Tensor
    returns: Tensor
    valid: Tensor
    length: Tensor
    instruction: Tensor
    start: Tensor
    action: Tensor | None = None
    dataset: int = 0

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> WindowBatch:
        """Copy the batch to `device`."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> WindowBatch:
        """Copy the batch to page-locked memory, from which a GPU reads on its own."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> WindowBatch:
        changed: dict[str, Any] = {}
        for name, value in vars(self).items():
            if isinstance(value, dict):
                changed[name] = {camera: change(frames) for camera, frames in value.items()}
            else:
                changed[name] = change(value) if isinstance(value, Tensor) else value
        return WindowBatch(**changed)
