"""Returns: the recursion by hand, what ends an episode and what merely cuts it, the running scale."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mbrl.returns import ReturnScale, lambda_return


def close(a: Tensor, b: list | float) -> None:
    torch.testing.assert_close(a, torch.tensor(b, dtype=a.dtype), rtol=1e-5, atol=1e-6)


def test_two_steps_by_hand() -> None:
    """R_1 = 2 + 0.9 (0.5 * 30 + 0.5 * 30) = 29;  R_0 = 1 + 0.5 (0.5 * 20 + 0.5 * 29) = 13.25."""
    reward = torch.tensor([[99.0, 1.0, 2.0]])
    discount = torch.tensor([[99.0, 0.5, 0.9]])
    value = torch.tensor([[99.0, 20.0, 30.0]])
    close(lambda_return(reward, discount, value, 0.5), [[13.25, 29.0]])


def test_golden_imagined_return() -> None:
    """The last steps of a row that the official DreamerV3 computed, lambda 0.95."""
    reward = torch.tensor([0.68276262, -0.65430278, 0.04802702, 1.75154924])
    proceed = torch.tensor([0.80530506, 0.86105126, 0.66489530, 0.73158246])
    value = torch.tensor([-1.49228632, -6.81685543, 2.27979469, 2.18019390])
    close(lambda_return(reward, proceed, value, 0.95), [0.88261920, 2.23766258, 3.34654087])


def test_lambda_one_sums_the_rewards_and_zero_looks_one_step_ahead() -> None:
    reward, value, discount = torch.randn(4, 6), torch.randn(4, 6), torch.full((4, 6), 0.9)
    powers = 0.9 ** torch.arange(5)
    summed = (reward[:, 1:] * powers).sum(1) + 0.9**5 * value[:, -1]
    torch.testing.assert_close(lambda_return(reward, discount, value, 1.0)[:, 0], summed)
    torch.testing.assert_close(lambda_return(reward, discount, value, 0.0), (reward + 0.9 * value)[:, 1:])


@pytest.mark.parametrize("lam", [0.0, 0.95, 1.0])
def test_a_true_value_is_a_fixed_point(lam: float) -> None:
    """Reward 1 for ever has the value 1 / (1 - discount): no lambda changes it."""
    ones = torch.ones(2, 9)
    returns = lambda_return(ones, 0.9 * ones, 10 * ones, lam)
    torch.testing.assert_close(returns, torch.full((2, 8), 10.0))


def test_termination_ends_the_return_and_truncation_bootstraps() -> None:
    """Reward 1 per step, value 10, discount 0.9; the episode ends at step 2, another begins at step 3.

    Terminated: R_1 = 1, R_0 = 1 + 0.9 = 1.9. Cut short: R_1 = 1 + 0.9 * 10 = 10, a true value is a
    fixed point. Neither sees the next episode's reward of 100.
    """
    reward = torch.tensor([0.0, 1.0, 1.0, 0.0, 100.0])
    value = torch.full((5,), 10.0)
    discount = torch.full((5,), 0.9)
    lam = torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0])
    close(lambda_return(reward, discount, value, lam)[:2], [10.0, 10.0])
    discount[2] = 0.0
    close(lambda_return(reward, discount, value, lam)[:2], [1.9, 1.0])


def test_gradient_reaches_rewards_and_bootstrap() -> None:
    """Pathwise actors need it; what lies beyond a termination gets none."""
    reward, value = torch.zeros(4, requires_grad=True), torch.zeros(4, requires_grad=True)
    discount = torch.tensor([1.0, 1.0, 0.0, 1.0])
    lambda_return(reward, discount, value, 1.0)[0].backward()
    assert reward.grad is not None and value.grad is not None
    close(reward.grad, [0.0, 1.0, 1.0, 0.0])
    close(value.grad, [0.0, 0.0, 0.0, 0.0])


# ---- the scale --------------------------------------------------------------------------------------


def test_scale_starts_at_zero_and_follows_the_percentiles() -> None:
    """Percentiles 5 and 95 of 0..100 are 5 and 95; a hundredth of them after one update."""
    scale = ReturnScale()
    assert scale.scale == 1
    scale.update(torch.arange(101.0).reshape(1, 101))
    close(scale.low, 0.05)
    close(scale.high, 0.95)
    for _ in range(1000):
        scale.update(torch.arange(101.0))
    close(scale.scale, 90 * (1 - 0.99**1001))


def test_small_returns_are_not_blown_up() -> None:
    scale = ReturnScale(rate=1.0)
    scale.update(torch.arange(101.0) / 1000)
    assert scale.scale == 1
    scale = ReturnScale(rate=1.0, minimum=0.01)
    scale.update(torch.arange(101.0) / 1000)
    close(scale.scale, 0.09)


def test_debiased_scale_holds_from_the_first_update() -> None:
    scale = ReturnScale(debias=True)
    for _ in range(3):
        scale.update(torch.arange(101.0))
        close(scale.scale, 90.0)


def test_scale_survives_storing() -> None:
    scale, other = ReturnScale(debias=True), ReturnScale(debias=True)
    scale.update(torch.randn(100) * 50)
    other.load_state_dict(scale.state_dict())
    for each in (scale, other):
        each.update(torch.arange(100.0))
    assert scale.scale == other.scale and scale.scale > 1
