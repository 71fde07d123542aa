# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The targets and losses of the Q-Transformer as pure functions (Chebotar et al. 2023, section 4).

Values are in units of the return, `low` to `high`; the losses divide by the span `high - low`, so
that their weights and the learning rate mean the same for any range. Dimensions 1..N are in the
order in which they are decoded.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qt_core.configuration import ConfigurationError, require


@torch.no_grad()
def n_step_returns(
    reward: Tensor, terminal: Tensor, bootstrap: Tensor, length: Tensor, discount: float, n: int
) -> Tensor:
    """Compute the value of every action from the next n rewards and what the state after is worth.

        y_t = Σ_{k<m} γ^k r_{t+k} + γ^m · v_{t+m-1}, without the second term where terminal

    where m is n, or less: up to the first terminal step, the end of the episode or of the window.

    Args:
        reward: (B, T).
        terminal: (B, T) bool. A timeout is not terminal: it bootstraps.
        bootstrap: (B, T, *) values v_t of the state after action t: max_b Q'(s_{t+1}, b).
        length: (B,) actions of the episode inside the window; what follows is padding.
        discount: γ.
        n: Most rewards to sum; 1 is the one-step rule.

    Returns:
        Like `bootstrap`; 0 at padded steps.
    """
    require(n >= 1, 'n', n, 'at least 1')
    window = reward.shape[1]
    shape = (*reward.shape, *(1 for _ in bootstrap.shape[2:]))
    step = torch.arange(window, device=length.device)
    length = length.clamp(max=window).unsqueeze(-1)
    is_last, is_padding = (step >= length - 1).view(shape), (step >= length).view(shape)
    reward, terminal = reward.view(shape), terminal.view(shape)

    # y⁽ⁿ⁾_t = r_t + γ · y⁽ⁿ⁻¹⁾_{t+1}; where no action follows, v_t takes the place of the latter.
    returns = future = bootstrap
    for _ in range(min(n, window)):
        returns = reward + discount * torch.where(terminal, 0.0, future)
        future = torch.where(is_last, bootstrap, returns.roll(-1, dims=1))
    return torch.where(is_padding, 0.0, returns)


@torch.no_grad()
def autoregressive_targets(
    q: Tensor, last: Tensor, returns: Tensor | None, n_step_actions: int = 1
) -> Tensor:
    """Compute the target of every action dimension (eq. 1 and the Monte-Carlo bound).

        y_i = max_b Q'(s_t, a_1..a_{i+n-1}, b) for i + n ≤ N, with n = n_step_actions
        y_i = last for the others
        every target is then max(y_i, G_t)

    Args:
        q: (B, T, N, A) values Q' of the target network along the data's actions.
        last: (B, T) target of the last dimension, from `n_step_returns`.
        returns: (B, T) discounted return-to-go G_t, or None for no bound.
        n_step_actions: Dimensions to look ahead; N skips every maximisation inside a step.

    Returns:
        (B, T, N).
    """
    dims = q.shape[2]
    require(1 <= n_step_actions <= dims, 'n_step_actions', n_step_actions, f'1 to {dims}')
    within = q[:, :, n_step_actions:].amax(dim=-1)
    final = last.unsqueeze(-1).expand(-1, -1, n_step_actions)
    return independent_targets(torch.cat([within, final], dim=-1), returns)


@torch.no_grad()
def independent_targets(last: Tensor, returns: Tensor | None) -> Tensor:
    """Compute the targets of heads whose dimensions do not see each other: max(last, G_t).

    Args:
        last: (B, T, N) targets of each dimension, from `n_step_returns`.
        returns: (B, T) discounted return-to-go G_t, or None for no bound.

    Returns:
        (B, T, N).
    """
    return last if returns is None else torch.maximum(last, returns.unsqueeze(-1))


def temporal_difference_loss(
    q: Tensor, taken: Tensor, targets: Tensor, valid: Tensor, span: float = 1.0
) -> Tensor:
    """Regress the value of the bins in the data to their targets.

    L = 1/2 · mean ((Q(s, a_1..a_{i-1}, a_i) - y_i) / span)²

    Args:
        q: (B, T, N, A) values.
        taken: (B, T, N) bins in the data.
        targets: (B, T, N), taken as constants.
        valid: (B, T) bool; other steps do not count.
        span: Width of the return range.
    """
    error = _precise(q.gather(-1, taken.unsqueeze(-1)).squeeze(-1)) - targets.detach()
    return 0.5 * _mean_where((error / span).square().mean(-1), valid)


def conservative_loss(
    q: Tensor, taken: Tensor, valid: Tensor, low: float = 0.0, span: float = 1.0
) -> Tensor:
    """Pull the value of actions that are not in the data towards the lowest return (eq. 2).

    L = 1/2 · mean over bins b ≠ taken of ((Q(s, a_1..a_{i-1}, b) - low) / span)²

    Args:
        q: (B, T, N, A) values, not logits.
        taken: (B, T, N) bins in the data.
        valid: (B, T) bool; other steps do not count.
        low: Minimum of the return range, the paper's minimal attainable value.
        span: Width of the return range.

    Returns:
        Scalar, averaged over valid steps, N and the A-1 other bins, so that its weight against the
        TD term depends neither on the batch nor on the number of bins.
    """
    # Zeroing the taken bins in place holds one tensor of q's size; subtracting their squares from
    # the total would hold none, but what is left of 1 + 255 · 1e-8 then is mostly rounding.
    others = (_precise(q) - low).scatter_(-1, taken.unsqueeze(-1), 0.0)
    per_step = others.square().sum((-1, -2)) / (q.shape[-2] * (q.shape[-1] - 1) * span**2)
    return 0.5 * _mean_where(per_step, valid)


@torch.no_grad()
def hl_gauss_targets(
    values: Tensor, low: float, high: float, value_bins: int, sigma_ratio: float = 0.75
) -> Tensor:
    """Turn values into histograms of a Gaussian around them, truncated to the range.

        p_j ∝ Φ((e_{j+1} - y) / σ) - Φ((e_j - y) / σ), with edges e from low to high

    (Imani & White 2018; Farebrother et al. 2024, "Stop Regressing".)

    Args:
        values: (...); an estimate outside of the range counts as its nearest end.
        low: Minimum of the return range.
        high: Maximum of the return range.
        value_bins: V.
        sigma_ratio: σ in widths of a bin.

    Returns:
        (..., V) probabilities.
    """
    values = _precise(values).clamp(low, high).unsqueeze(-1)
    edges = torch.linspace(low, high, value_bins + 1, dtype=values.dtype, device=values.device)
    sigma = sigma_ratio * (high - low) / value_bins
    cumulative = torch.erf((edges - values) / (sigma * math.sqrt(2.0)))
    return cumulative.diff(dim=-1) / (cumulative[..., -1:] - cumulative[..., :1])


def hl_gauss_value(logits: Tensor, low: float, high: float) -> Tensor:
    """Turn the logits of a histogram into its mean: Σ softmax · centres of the bins.

    Args:
        logits: (..., V).
        low: Minimum of the return range.
        high: Maximum of the return range.

    Returns:
        (...).
    """
    logits = _precise(logits)
    half = 0.5 * (high - low) / logits.shape[-1]
    centres = torch.linspace(
        low + half, high - half, logits.shape[-1], dtype=logits.dtype, device=logits.device
    )
    return logits.softmax(-1) @ centres


def hl_gauss_loss(
    logits: Tensor,
    targets: Tensor,
    valid: Tensor,
    low: float,
    high: float,
    sigma_ratio: float = 0.75,
) -> Tensor:
    """Classify the value of the bins in the data, instead of regressing it.

    L = mean of the cross-entropy between `hl_gauss_targets` and softmax(logits)

    Args:
        logits: (B, T, N, V) of the bins in the data.
        targets: (B, T, N), taken as constants.
        valid: (B, T) bool; other steps do not count.
        low: Minimum of the return range.
        high: Maximum of the return range.
        sigma_ratio: σ in widths of a bin.
    """
    wanted = hl_gauss_targets(targets, low, high, logits.shape[-1], sigma_ratio)
    cross_entropy = -(wanted * _precise(logits).log_softmax(-1)).sum(-1)
    return _mean_where(cross_entropy.mean(-1), valid)


@torch.no_grad()
def regenerate_(parameters: Iterable[Tensor], initial: Iterable[Tensor], rate: float) -> None:
    """Move parameters towards their initial values in place (L2-init; Kumar et al. 2023).

    p ← p + rate · (p_initial - p), decoupled from the gradient as in AdamW

    Args:
        parameters: Of the model.
        initial: Their values before training.
        rate: Learning rate × strength, 0 to 1.
    """
    parameters, initial = list(parameters), list(initial)
    if parameters:
        torch._foreach_lerp_(parameters, initial, rate)


def check_returns(returns: Tensor | np.ndarray[Any, Any], low: float, high: float) -> None:
    """Refuse data whose return-to-go does not fit the declared range; nothing is clipped.

    Raises:
        ConfigurationError: A return is outside of the range, or not a number.
    """
    if math.prod(returns.shape) == 0:
        return
    least, most = float(returns.min()), float(returns.max())
    rounding = 1e-5 * max(abs(low), abs(high))
    if not (low - rounding <= least and most <= high + rounding):
        raise ConfigurationError(
            f'returns of {least:g}..{most:g} lie outside return_range {low:g}..{high:g}; '
            'declare return_range'
        )


def _precise(values: Tensor) -> Tensor:
    # Sums over bins and steps lose too much in half precision.
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _mean_where(values: Tensor, valid: Tensor) -> Tensor:
    weight = valid.to(values.dtype)
    return (values * weight).sum() / weight.sum().clamp(min=1)
