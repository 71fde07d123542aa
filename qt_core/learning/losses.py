# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The losses of the Q-Transformer as pure functions (Chebotar et al. 2023, section 4)."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def autoregressive_targets(
    q: Tensor, q_next: Tensor, reward: Tensor, terminal: Tensor, returns: Tensor, discount: float
) -> Tensor:
    """Compute the target of every action dimension (eq. 1 and the Monte-Carlo bound).

        y_i = max_b Q'(s_t, a_1..a_i, b) for i < N
        y_N = r_t + γ · max_b Q'(s_{t+1}, b), without the second term where terminal
        every target is then max(y_i, G_t)

    Args:
        q: (B, T, N, A) values Q' of the target network along the data's actions.
        q_next: (B, T, A) values Q' of the first dimension one step later.
        reward: (B, T).
        terminal: (B, T) bool. A timeout is not terminal: it bootstraps.
        returns: (B, T) discounted return-to-go G_t.
        discount: γ.

    Returns:
        (B, T, N).
    """
    last = reward + discount * torch.where(terminal, 0.0, q_next.amax(dim=-1))
    targets = torch.cat([q[:, :, 1:].amax(dim=-1), last.unsqueeze(-1)], dim=-1)
    return torch.maximum(targets, returns.unsqueeze(-1))


def temporal_difference_loss(q: Tensor, taken: Tensor, targets: Tensor, valid: Tensor) -> Tensor:
    """Regress the value of the bins in the data to their targets.

    L = 1/2 · mean (Q(s, a_1..a_{i-1}, a_i) - y_i)²

    Args:
        q: (B, T, N, A) values.
        taken: (B, T, N) bins in the data.
        targets: (B, T, N).
        valid: (B, T) bool; other steps do not count.
    """
    error = q.gather(-1, taken.unsqueeze(-1)).squeeze(-1) - targets
    return 0.5 * _mean_where(error.square().mean(-1), valid)


def conservative_loss(q: Tensor, taken: Tensor, valid: Tensor) -> Tensor:
    """Pull the value of actions that are not in the data towards zero (eq. 2).

    L = 1/2 · mean over bins b ≠ taken of Q(s, a_1..a_{i-1}, b)²

    Args:
        q: (B, T, N, A) values, not logits.
        taken: (B, T, N) bins in the data.
        valid: (B, T) bool; other steps do not count.

    Returns:
        Scalar, averaged over valid steps, N and the A-1 other bins, so that its weight against the
        TD term depends neither on the batch nor on the number of bins.
    """
    others = torch.ones_like(q).scatter_(-1, taken.unsqueeze(-1), 0.0)
    per_step = (others * q.square()).sum((-1, -2)) / (q.shape[-2] * (q.shape[-1] - 1))
    return 0.5 * _mean_where(per_step, valid)


def _mean_where(values: Tensor, valid: Tensor) -> Tensor:
    weight = valid.to(values.dtype)
    return (values * weight).sum() / weight.sum().clamp(min=1)
