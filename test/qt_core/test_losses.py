# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The losses against the equations written out with explicit loops."""

import pytest
import torch

from qt_core.learning.losses import (
    autoregressive_targets,
    conservative_loss,
    temporal_difference_loss,
)

B, T, N, A = 3, 4, 5, 6
DISCOUNT = 0.9


@pytest.fixture
def data():
    random = torch.Generator().manual_seed(0)
    return {
        'q': torch.rand(B, T, N, A, generator=random),
        'q_next': torch.rand(B, T, A, generator=random),
        'reward': torch.rand(B, T, generator=random),
        'terminal': torch.rand(B, T, generator=random) < 0.4,
        'returns': 0.6 * torch.rand(B, T, generator=random),
        'taken': torch.randint(0, A, (B, T, N), generator=random),
        'valid': torch.rand(B, T, generator=random) < 0.7,
    }


def targets_of(data, **changes):
    names = ('q', 'q_next', 'reward', 'terminal', 'returns')
    return autoregressive_targets(*({**data, **changes}[n] for n in names), DISCOUNT)


def test_targets_follow_the_equations(data):
    targets = targets_of(data)
    for b in range(B):
        for t in range(T):
            for i in range(N):
                if i < N - 1:
                    expected = max(float(data['q'][b, t, i + 1, k]) for k in range(A))
                else:
                    future = max(float(data['q_next'][b, t, k]) for k in range(A))
                    expected = float(data['reward'][b, t])
                    if not data['terminal'][b, t]:
                        expected += DISCOUNT * future
                expected = max(expected, float(data['returns'][b, t]))
                assert targets[b, t, i].item() == pytest.approx(expected, abs=1e-6)


def test_reward_reaches_only_the_last_dimension(data):
    low = {'returns': torch.zeros(B, T)}
    before, after = targets_of(data, **low), targets_of(data, **low, reward=data['reward'] + 1)
    assert torch.equal(before[..., :-1], after[..., :-1])
    assert torch.allclose(after[..., -1] - before[..., -1], torch.ones(B, T))


def test_terminal_does_not_bootstrap_and_timeout_does(data):
    low = {'returns': torch.zeros(B, T)}
    ended = targets_of(data, **low, terminal=torch.ones(B, T, dtype=torch.bool))
    cut = targets_of(data, **low, terminal=torch.zeros(B, T, dtype=torch.bool))
    assert torch.equal(ended[..., -1], data['reward'])
    assert (cut[..., -1] > ended[..., -1]).all()


def test_monte_carlo_bound_is_per_step(data):
    returns = torch.zeros(B, T)
    returns[1, 2] = 5.0
    targets = targets_of(data, returns=returns)
    assert (targets[1, 2] == 5.0).all()
    assert targets.flatten(0, 1)[torch.arange(B * T) != T + 2].max() < 2.0


def test_temporal_difference_loss_follows_the_equation(data):
    targets = targets_of(data)
    total, count = 0.0, 0
    for b in range(B):
        for t in range(T):
            if data['valid'][b, t]:
                for i in range(N):
                    error = data['q'][b, t, i, data['taken'][b, t, i]] - targets[b, t, i]
                    total, count = total + 0.5 * error.item() ** 2, count + 1
    loss = temporal_difference_loss(data['q'], data['taken'], targets, data['valid'])
    assert loss.item() == pytest.approx(total / count, rel=1e-5)


def test_conservative_loss_follows_the_equation(data):
    total, count = 0.0, 0
    for b in range(B):
        for t in range(T):
            if data['valid'][b, t]:
                for i in range(N):
                    for k in range(A):
                        if k != data['taken'][b, t, i]:
                            total += 0.5 * data['q'][b, t, i, k].item() ** 2
                            count += 1
    loss = conservative_loss(data['q'], data['taken'], data['valid'])
    assert loss.item() == pytest.approx(total / count, rel=1e-5)


def test_conservative_loss_pulls_unseen_values_to_zero_not_to_a_half(data):
    logits = torch.full((B, T, N, A), -1.0, requires_grad=True)  # Q = 0.27, below a half
    conservative_loss(logits.sigmoid(), data['taken'], data['valid']).backward()
    unseen = torch.ones(B, T, N, A).scatter_(-1, data['taken'].unsqueeze(-1), 0).bool()
    counted = unseen & data['valid'][:, :, None, None]
    assert (logits.grad[counted] > 0).all()
    assert (logits.grad[~counted] == 0).all()


def test_weights_do_not_depend_on_the_batch(data):
    def twice(x):
        return torch.cat([x, x])

    targets = targets_of(data)
    q, taken, valid = data['q'], data['taken'], data['valid']
    once = temporal_difference_loss(q, taken, targets, valid), conservative_loss(q, taken, valid)
    again = (
        temporal_difference_loss(twice(q), twice(taken), twice(targets), twice(valid)),
        conservative_loss(twice(q), twice(taken), twice(valid)),
    )
    assert torch.allclose(torch.stack(once), torch.stack(again))
