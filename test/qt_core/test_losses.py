# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The targets and losses against the equations written out with explicit loops.

The tests named test_defect_... are about behaviour of q-transformer 0.5.0: each writes the wrong
rule down and requires that the comparison with the equations rejects it.
"""

import math
from itertools import product

import numpy as np
import pytest
import torch

from qt_core.configuration import ConfigurationError
from qt_core.learning.losses import (
    autoregressive_targets,
    check_returns,
    conservative_loss,
    hl_gauss_loss,
    hl_gauss_targets,
    hl_gauss_value,
    independent_targets,
    n_step_returns,
    regenerate_,
    temporal_difference_loss,
)

B, T, N, A = 6, 7, 4, 5


@pytest.fixture
def data():
    random = torch.Generator().manual_seed(0)
    made = {
        'q': torch.rand(B, T, N, A, generator=random),
        'bootstrap': torch.rand(B, T, generator=random),
        'reward': torch.randn(B, T, generator=random),
        'terminal': torch.rand(B, T, generator=random) < 0.2,
        'length': torch.tensor([7, 9, 8, 5, 2, 1]),
        'returns': torch.rand(B, T, generator=random),
        'targets': torch.rand(B, T, N, generator=random),
        'taken': torch.randint(0, A, (B, T, N), generator=random),
        'valid': torch.rand(B, T, generator=random) < 0.7,
    }
    made['terminal'][1:, -1] = False  # let windows end without the episode
    return made


def twice(x):
    return torch.cat([x, x])


def mean(numbers):
    numbers = list(numbers)
    return sum(numbers) / len(numbers)


def trained(data):
    return [(b, t) for b, t in product(range(B), range(T)) if data['valid'][b, t]]


# Slow references.


def slow_return(reward, terminal, bootstrap, length, discount, n, t):
    """Walk from step t of one episode: lists in, a number out."""
    total = 0.0
    for k in range(n):
        total += discount**k * reward[t + k]
        if terminal[t + k]:
            return total
        is_last = k == n - 1 or t + k + 1 == length or t + k + 1 == len(reward)
        if is_last:
            return total + discount ** (k + 1) * bootstrap[t + k]
    raise AssertionError


def check_n_step(function, data):
    lists = [data[name].tolist() for name in ('reward', 'terminal', 'bootstrap', 'length')]
    tensors = [data[name] for name in ('reward', 'terminal', 'bootstrap', 'length')]
    for discount, n in product((0.0, 0.5, 0.98, 1.0), (1, 2, 3, T, 3 * T)):
        result = function(*tensors, discount, n)
        for b in range(B):
            episode = [values[b] for values in lists]
            for t in range(min(episode[-1], T)):
                expected = slow_return(*episode, discount, n, t)
                assert result[b, t].item() == pytest.approx(expected, abs=1e-5)


def check_autoregressive(function, data, n_step_actions=1):
    q, last, returns = (data[name].tolist() for name in ('q', 'bootstrap', 'returns'))
    result = function(data['q'], data['bootstrap'], data['returns'], n_step_actions)
    for b, t, i in product(range(B), range(T), range(N)):
        expected = max(q[b][t][i + n_step_actions]) if i + n_step_actions < N else last[b][t]
        assert result[b, t, i].item() == pytest.approx(max(expected, returns[b][t]), abs=1e-6)


def check_conservative(function, data, low=0.0, span=1.0):
    expected = mean(
        0.5 * ((data['q'][b, t, i, k].item() - low) / span) ** 2
        for b, t in trained(data)
        for i, k in product(range(N), range(A))
        if k != data['taken'][b, t, i]
    )
    loss = function(data['q'], data['taken'], data['valid'], low, span)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def slow_histogram(value, low, high, bins, ratio):
    def below(x):
        sigma = ratio * (high - low) / bins
        return 0.5 * (1 + math.erf((x - min(max(value, low), high)) / (sigma * math.sqrt(2))))

    edges = [low + (high - low) * j / bins for j in range(bins + 1)]
    masses = [below(edges[j + 1]) - below(edges[j]) for j in range(bins)]
    return [mass / sum(masses) for mass in masses]


# n-step returns over time.


def test_n_step_returns_follow_the_equations(data):
    assert data['terminal'][:, 1:-1].any()
    check_n_step(n_step_returns, data)


def test_n_step_returns_of_each_dimension(data):
    bootstrap = torch.rand(B, T, N)
    arguments = data['length'], 0.9, 3
    together = n_step_returns(data['reward'], data['terminal'], bootstrap, *arguments)
    for i in range(N):
        alone = n_step_returns(data['reward'], data['terminal'], bootstrap[..., i], *arguments)
        assert torch.equal(together[..., i], alone)


def test_n_step_returns_by_hand():
    def returns(n, terminal=(False, False, False), length=3):
        rewards, values = torch.tensor([[1.0, 2.0, 4.0]]), torch.tensor([[8.0, 16.0, 32.0]])
        ends = torch.tensor([terminal])
        return n_step_returns(rewards, ends, values, torch.tensor([length]), 0.5, n)[0].tolist()

    assert returns(1) == [5.0, 10.0, 20.0]
    assert returns(2) == [1 + 1 + 4, 2 + 2 + 8, 20.0]  # the window ends: fewer steps
    assert returns(3) == [1 + 1 + 1 + 4, 12.0, 20.0]
    assert returns(3, (False, True, False)) == [1 + 1, 2.0, 20.0]
    assert returns(3, length=2)[:2] == [1 + 1 + 4, 10.0]  # a timeout bootstraps


def test_padding_reaches_no_step_and_stays_finite(data):
    padded = torch.arange(T) >= data['length'].unsqueeze(-1)
    spoilt = {
        **data,
        'reward': data['reward'].masked_fill(padded, math.nan),
        'bootstrap': data['bootstrap'].masked_fill(padded, math.nan),
        'terminal': data['terminal'] | padded,
    }
    check_n_step(n_step_returns, spoilt)
    names = ('reward', 'terminal', 'bootstrap', 'length')
    assert n_step_returns(*(spoilt[name] for name in names), 0.9, 3).isfinite().all()


def test_n_must_be_positive(data):
    names = ('reward', 'terminal', 'bootstrap', 'length')
    with pytest.raises(ConfigurationError, match='n is 0'):
        n_step_returns(*(data[name] for name in names), 0.9, 0)


# Targets over action dimensions.


@pytest.mark.parametrize('n_step_actions', range(1, N + 1))
def test_autoregressive_targets_follow_the_equations(data, n_step_actions):
    check_autoregressive(autoregressive_targets, data, n_step_actions)


def test_autoregressive_targets_without_a_bound(data):
    unbound = autoregressive_targets(data['q'], data['bootstrap'], None)
    never = torch.full((B, T), -math.inf)
    assert torch.equal(unbound, autoregressive_targets(data['q'], data['bootstrap'], never))


def test_looking_ahead_over_all_dimensions_skips_every_maximisation(data):
    targets = autoregressive_targets(data['q'], data['bootstrap'], None, n_step_actions=N)
    assert torch.equal(targets, data['bootstrap'].unsqueeze(-1).expand(-1, -1, N))


@pytest.mark.parametrize('n_step_actions', [0, N + 1])
def test_looking_ahead_is_within_the_dimensions(data, n_step_actions):
    with pytest.raises(ConfigurationError, match=f'expected 1 to {N}'):
        autoregressive_targets(data['q'], data['bootstrap'], None, n_step_actions)


def test_independent_targets_follow_the_equation(data):
    targets = independent_targets(data['targets'], data['returns'])
    for b, t, i in product(range(B), range(T), range(N)):
        expected = max(data['targets'][b, t, i].item(), data['returns'][b, t].item())
        assert targets[b, t, i].item() == expected
    assert torch.equal(independent_targets(data['targets'], None), data['targets'])


def test_one_dimension_is_single_action_learning(data):
    last, returns = data['bootstrap'], data['returns']
    autoregressive = autoregressive_targets(data['q'][:, :, :1], last, returns)
    assert torch.equal(autoregressive, independent_targets(last.unsqueeze(-1), returns))


def test_no_gradient_reaches_the_targets(data):
    q = data['q'].clone().requires_grad_()
    last = n_step_returns(
        data['reward'], data['terminal'], q[:, :, 0].amax(-1), data['length'], 0.9, 2
    )
    targets = autoregressive_targets(q, last, data['returns'])
    assert not last.requires_grad
    assert not targets.requires_grad

    wanted = data['targets'].clone().requires_grad_()
    temporal_difference_loss(q, data['taken'], wanted, data['valid']).backward()
    hl_gauss_loss(q, wanted, data['valid'], 0.0, 1.0).backward()
    assert wanted.grad is None


# Losses on values.


@pytest.mark.parametrize('span', [1.0, 2.5])
def test_temporal_difference_loss_follows_the_equation(data, span):
    q, taken, targets = data['q'], data['taken'], data['targets']
    expected = mean(
        0.5 * ((q[b, t, i, taken[b, t, i]] - targets[b, t, i]).item() / span) ** 2
        for b, t in trained(data)
        for i in range(N)
    )
    loss = temporal_difference_loss(q, taken, targets, data['valid'], span)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(('low', 'span'), [(0.0, 1.0), (-2.0, 3.0), (0.5, 0.1)])
def test_conservative_loss_follows_the_equation(data, low, span):
    check_conservative(conservative_loss, data, low, span)


def test_conservative_gradient_pulls_every_unseen_value_towards_the_minimum(data):
    q = (data['q'] - 0.5).requires_grad_()
    conservative_loss(q, data['taken'], data['valid'], low=-0.2).backward()
    unseen = torch.ones(B, T, N, A).scatter_(-1, data['taken'].unsqueeze(-1), 0).bool()
    counted = unseen & data['valid'][:, :, None, None]
    assert torch.equal(q.grad[counted].sign(), (q.detach()[counted] + 0.2).sign())
    assert (q.grad[~counted] == 0).all()


def test_conservative_loss_is_exact_where_all_but_the_taken_bin_are_low():
    q = torch.full((1, 1, 1, 256), 1e-4)
    q[..., 3] = 1.0
    loss = conservative_loss(q, torch.tensor([[[3]]]), torch.ones(1, 1, dtype=torch.bool))
    assert loss.item() == pytest.approx(0.5e-8, rel=1e-5)


def test_losses_leave_the_values_as_they_are(data):
    before = data['q'].clone()
    conservative_loss(data['q'], data['taken'], data['valid'])
    temporal_difference_loss(data['q'], data['taken'], data['targets'], data['valid'])
    assert torch.equal(data['q'], before)


def test_half_precision_is_averaged_in_single(data):
    q, taken, valid = data['q'].bfloat16(), data['taken'], data['valid']
    for loss in (
        lambda q: conservative_loss(q, taken, valid),
        lambda q: temporal_difference_loss(q, taken, data['targets'], valid),
        lambda q: hl_gauss_loss(q, data['targets'], valid, 0.0, 1.0),
    ):
        assert torch.equal(loss(q), loss(q.float()))


def test_losses_without_a_valid_step_are_zero(data):
    none = torch.zeros(B, T, dtype=torch.bool)
    assert temporal_difference_loss(data['q'], data['taken'], data['targets'], none) == 0
    assert conservative_loss(data['q'], data['taken'], none) == 0
    assert hl_gauss_loss(data['q'], data['targets'], none, 0.0, 1.0) == 0


# Classification of values.


@pytest.mark.parametrize(('low', 'high'), [(0.0, 1.0), (-3.0, 2.0)])
@pytest.mark.parametrize(('bins', 'ratio'), [(2, 0.75), (11, 0.75), (51, 2.0)])
def test_hl_gauss_targets_follow_the_equation(low, high, bins, ratio):
    values = [low, high, 0.3, 0.123, 0.5 * (low + high), low - 1, high + 0.1]
    histograms = hl_gauss_targets(torch.tensor(values), low, high, bins, ratio)
    for value, histogram in zip(values, histograms.tolist(), strict=True):
        expected = slow_histogram(value, low, high, bins, ratio)
        assert histogram == pytest.approx(expected, abs=1e-5)


def test_hl_gauss_value_is_the_mean_of_the_histogram():
    logits = torch.randn(3, 4, 7)
    probabilities = logits.softmax(-1).tolist()
    for i, j in product(range(3), range(4)):
        expected = sum(p * (-1 + 3 * (k + 0.5) / 7) for k, p in enumerate(probabilities[i][j]))
        assert hl_gauss_value(logits, -1.0, 2.0)[i, j].item() == pytest.approx(expected, abs=1e-5)


def test_values_survive_the_histogram():
    low, high, bins = -1.0, 2.0, 51
    values = torch.linspace(low, high, 101)
    restored = hl_gauss_value(hl_gauss_targets(values, low, high, bins).log(), low, high)
    width = (high - low) / bins
    inside = (values > low + 3 * width) & (values < high - 3 * width)
    assert (restored - values)[inside].abs().max() < 0.02 * width
    assert (restored - values).abs().max() < width  # truncation moves the mean inwards


def test_hl_gauss_loss_follows_the_equation(data):
    low, high, ratio = -0.5, 1.0, 0.6
    expected = mean(
        -sum(
            p * math.log(q)
            for p, q in zip(
                slow_histogram(data['targets'][b, t, i].item(), low, high, A, ratio),
                data['q'][b, t, i].softmax(-1).tolist(),
                strict=True,
            )
        )
        for b, t in trained(data)
        for i in range(N)
    )
    loss = hl_gauss_loss(data['q'], data['targets'], data['valid'], low, high, ratio)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_hl_gauss_gradient_vanishes_at_the_target(data):
    wanted = hl_gauss_targets(data['targets'], 0.0, 1.0, A)
    logits = wanted.log().requires_grad_()
    hl_gauss_loss(logits, data['targets'], data['valid'], 0.0, 1.0).backward()
    assert logits.grad.abs().max() < 1e-7


# Regeneration and the return range.


def test_regenerate_moves_towards_the_initial_values_in_place():
    model = torch.nn.Linear(3, 2)
    initial = [torch.zeros_like(p) + 2.0 for p in model.parameters()]
    before = [p.detach().clone() for p in model.parameters()]
    regenerate_(model.parameters(), initial, 0.1)
    for p, old in zip(model.parameters(), before, strict=True):
        assert torch.allclose(p, old + 0.1 * (2.0 - old))
        assert p.requires_grad
    regenerate_(model.parameters(), initial, 1.0)
    assert all((p == 2.0).all() for p in model.parameters())
    regenerate_([], [], 0.1)


def test_check_returns_names_both_ranges():
    with pytest.raises(ConfigurationError) as error:
        check_returns(torch.tensor([[-1.5, 0.0], [3.0, 1.0]]), 0.0, 1.0)
    message = 'returns of -1.5..3 lie outside return_range 0..1; declare return_range'
    assert str(error.value) == message


def test_check_returns_accepts_what_fits():
    check_returns(torch.tensor([-1.5, 3.0]), -1.5, 3.0)
    check_returns(np.array([0.0, 1.0 + 1e-6]), 0.0, 1.0)  # rounding of a discounted sum
    check_returns(np.array([]), 0.0, 1.0)


@pytest.mark.parametrize('value', [1.001, -0.001, math.nan, math.inf])
def test_check_returns_refuses_what_does_not(value):
    with pytest.raises(ConfigurationError):
        check_returns(torch.tensor([0.5, value]), 0.0, 1.0)


# Defects of q-transformer 0.5.0.


def test_defect_d1_reward_and_discount_never_enter_the_last_target(data):
    def without_reward(reward, terminal, bootstrap, length, discount, n):
        return bootstrap

    def without_discount(reward, terminal, bootstrap, length, discount, n):
        return n_step_returns(reward, terminal, bootstrap, length, 1.0, n)

    for broken in (without_reward, without_discount):
        with pytest.raises(AssertionError):
            check_n_step(broken, data)

    def loss(scale, discount):
        reward = scale * data['reward']
        last = n_step_returns(
            reward, data['terminal'], data['bootstrap'], data['length'], discount, 1
        )
        targets = autoregressive_targets(data['q'], last, None)
        return temporal_difference_loss(data['q'], data['taken'], targets, data['valid']).item()

    assert len({loss(0, 0.98), loss(1, 0.98), loss(100, 0.98), loss(1, 0.5)}) == 4


def test_defect_d5_conservative_term_on_logits(data):
    def on_logits(q, taken, valid, low, span):
        return conservative_loss(q.logit(), taken, valid, low, span)

    with pytest.raises(AssertionError):
        check_conservative(on_logits, data)

    def gradient(function):
        logits = torch.full((B, T, N, A), -1.0, requires_grad=True)  # Q = 0.27, below a half
        function(logits.sigmoid(), data['taken'], data['valid'], 0.0, 1.0).backward()
        return logits.grad

    assert gradient(conservative_loss).sum() > 0  # descent lowers Q
    assert gradient(on_logits).sum() < 0  # descent raises Q to a half


def test_defect_d5_conservative_term_grows_with_the_batch(data):
    def summed(q, taken, valid, low=0.0, span=1.0):
        count = valid.sum() * N
        return conservative_loss(q, taken, valid, low, span) * count

    with pytest.raises(AssertionError):
        check_conservative(summed, data)

    q, taken, valid, targets = (data[name] for name in ('q', 'taken', 'valid', 'targets'))
    assert not torch.allclose(summed(q, taken, valid), summed(*map(twice, (q, taken, valid))))
    for loss, arguments in (
        (conservative_loss, (q, taken, valid)),
        (temporal_difference_loss, (q, taken, targets, valid)),
        (lambda *tensors: hl_gauss_loss(*tensors, 0.0, 1.0), (q, targets, valid)),
    ):
        assert torch.allclose(loss(*arguments), loss(*map(twice, arguments)))


def test_defect_d7_terminal_states_bootstrap(data):
    def everywhere(reward, terminal, bootstrap, length, discount, n):
        return n_step_returns(reward, torch.zeros_like(terminal), bootstrap, length, discount, n)

    def only_rewards_masked(reward, terminal, bootstrap, length, discount, n):
        after = (terminal.cumsum(1) - terminal.long()) > 0
        return everywhere(reward * ~after, terminal, bootstrap, length, discount, n)

    for broken in (everywhere, only_rewards_masked):
        with pytest.raises(AssertionError):
            check_n_step(broken, data)

    arguments = data['reward'], data['bootstrap'], data['length']
    ends, goes_on = torch.ones(B, T, dtype=torch.bool), torch.zeros(B, T, dtype=torch.bool)
    inside = torch.arange(T) < data['length'].unsqueeze(-1)
    ended, cut = (
        n_step_returns(arguments[0], terminal, *arguments[1:], 0.9, 3)[inside]
        for terminal in (ends, goes_on)
    )
    assert torch.equal(ended, data['reward'][inside])
    assert not torch.equal(cut, ended)


@pytest.mark.parametrize('constant', [0.0, 0.5, 1.0])
def test_defect_d9_monte_carlo_bound_is_one_constant(data, constant):
    def clamped(q, last, returns, n_step_actions):
        return autoregressive_targets(q, last, None, n_step_actions).clamp(min=constant)

    def clamped_logits(q, last, returns, n_step_actions):
        logits = autoregressive_targets(q, last, None, n_step_actions).logit()
        return logits.clamp(min=constant).sigmoid()  # 0 becomes Q ≥ 0.5

    for broken in (clamped, clamped_logits):
        with pytest.raises(AssertionError):
            check_autoregressive(broken, data)


def test_defect_d9_bound_belongs_to_its_step(data):
    returns = torch.zeros(B, T)
    returns[1, 2] = 5.0
    targets = autoregressive_targets(data['q'], data['bootstrap'], returns)
    assert (targets[1, 2] == 5.0).all()
    assert targets.flatten(0, 1)[torch.arange(B * T) != T + 2].max() < 2.0


def test_defect_d24_minimum_grows_with_the_window(data):
    def minimum_times_steps(q, taken, valid, low, span):
        return conservative_loss(q, taken, valid, low * T, span)

    with pytest.raises(AssertionError):
        check_conservative(minimum_times_steps, data, low=-1.0, span=2.0)
    for steps in (1, T):
        q, taken = torch.full((B, steps, N, A), -1.0), data['taken'][:, :steps]
        assert conservative_loss(q, taken, torch.ones(B, steps), low=-1.0, span=2.0) == 0


def test_defect_d31_only_returns_within_zero_and_one(data):
    def squashed(*arguments):
        return n_step_returns(*arguments).clamp(0, 1)

    with pytest.raises(AssertionError):
        check_n_step(squashed, data)

    # The same data in another range gives the same losses.
    low, span = -4.0, 5.0
    q, taken, targets, valid = (data[name] for name in ('q', 'taken', 'targets', 'valid'))
    moved_q, moved_targets = low + span * q, low + span * targets
    for plain, moved in (
        (
            temporal_difference_loss(q, taken, targets, valid),
            temporal_difference_loss(moved_q, taken, moved_targets, valid, span),
        ),
        (
            conservative_loss(q, taken, valid),
            conservative_loss(moved_q, taken, valid, low, span),
        ),
        (
            hl_gauss_loss(q, targets, valid, 0.0, 1.0),
            hl_gauss_loss(q, moved_targets, valid, low, low + span),
        ),
    ):
        assert moved.item() == pytest.approx(plain.item(), rel=1e-4)
