"""Distributions: golden numbers of the official DreamerV3 (in double precision), and hand computation."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mbrl.distributions import (
    Both,
    BoundedNormal,
    Categoricals,
    OneHotChoice,
    SquashedNormal,
    SymexpTwoHot,
    bernoulli_loss,
    categorical_kl,
    one_hot_of,
    symexp,
    symexp_bins,
    symlog,
    two_hot,
)

FLOAT = torch.float32


def close(a: Tensor, b: list | float, tolerance: float = 1e-6) -> None:
    torch.testing.assert_close(a, torch.tensor(b, dtype=a.dtype), rtol=tolerance, atol=tolerance)


def test_symlog_and_symexp_are_inverse_and_odd() -> None:
    x = torch.tensor([-1e4, -1.0, -1e-3, 0.0, 1e-3, 1.0, 1e4])
    close(symlog(x)[-2:], [math.log(2), math.log(10001)])
    torch.testing.assert_close(symexp(symlog(x)), x, rtol=1e-5, atol=0)
    assert torch.equal(symlog(-x), -symlog(x))


# ---- two-hot ----------------------------------------------------------------------------------------


def test_bins_are_spaced_exponentially_and_mirrored() -> None:
    bins = symexp_bins(255, torch.device("cpu"), FLOAT)
    assert len(bins) == 255 and bins[127] == 0
    assert torch.equal(bins, -bins.flip(0))
    close(bins[128], math.expm1(20 / 127))
    torch.testing.assert_close(bins[-1], torch.tensor(math.expm1(20)))
    assert (bins[1:] > bins[:-1]).all()


def spread(x: torch.Tensor, bins: torch.Tensor) -> torch.Tensor:
    """(...) -> (..., bins): the two-hot encoding as one weight for every bin."""
    index, weight = two_hot(x, bins)
    return torch.zeros(*x.shape, len(bins), dtype=x.dtype).scatter(-1, index, weight)


@pytest.mark.parametrize(
    ("x", "weights"),
    [
        (0.5, [0.0, 0.75, 0.25]),
        (-0.25, [0.25, 0.75, 0.0]),
        (0.0, [0.0, 1.0, 0.0]),
        (2.0, [0.0, 0.0, 1.0]),
        (9.0, [0.0, 0.0, 1.0]),
        (-9.0, [1.0, 0.0, 0.0]),
    ],
)
def test_two_hot_is_linear_between_bins_and_saturates_outside(x: float, weights: list[float]) -> None:
    assert torch.equal(spread(torch.tensor(x), torch.tensor([-1.0, 0.0, 2.0])), torch.tensor(weights))


def test_two_hot_keeps_the_mean() -> None:
    bins = symexp_bins(255, torch.device("cpu"), torch.float64)
    x = torch.tensor([[-300.0, -0.01, 0.0], [0.3, 7.0, 1e6]], dtype=torch.float64)
    torch.testing.assert_close((spread(x, bins) * bins).sum(-1), x)


def test_uniform_logits_have_a_mean_of_exactly_zero() -> None:
    """A plain sum of 255 products up to 1e6 would be off by about 0.1."""
    logits = torch.full((4, 255), 0.3)
    assert (SymexpTwoHot(logits).mean == 0).all()


def test_two_hot_loss_of_uniform_logits_is_the_entropy_whatever_the_target() -> None:
    target = torch.tensor([0.0, -3.5, 1e5, 1e12])
    close(SymexpTwoHot(torch.zeros(4, 255)).loss(target), [math.log(255)] * 4)


def test_a_last_logit_of_minus_infinity_changes_nothing() -> None:
    """Nor does a gradient reach it."""
    logits, target = torch.randn(5, 41, dtype=torch.float64), torch.tensor([-30.0, -0.5, 0.0, 2.0, 1e9]).double()
    found = []
    for end in ((0, 0), (0, 1)):
        padded = torch.nn.functional.pad(logits, end, value=-math.inf).requires_grad_()
        head = SymexpTwoHot(padded)
        loss = head.loss(target)
        (loss.sum() + head.mean.sum() * 1e-6).backward()
        assert padded.grad is not None and (padded.grad[:, 41:] == 0).all()
        found.append((head.mean, loss, padded.grad[:, :41]))
    torch.testing.assert_close(*found, rtol=1e-12, atol=0)


def test_two_hot_loss_is_least_at_the_target() -> None:
    """Its gradient is softmax minus two-hot."""
    target = torch.tensor([3.0])
    logits = torch.randn(1, 255, requires_grad=True)
    head = SymexpTwoHot(logits)
    head.loss(target).sum().backward()
    torch.testing.assert_close(logits.grad, (logits.softmax(-1) - spread(target, head.bins)).detach())
    perfect = SymexpTwoHot(spread(target, head.bins).log())
    torch.testing.assert_close(perfect.mean, target)


# ---- categoricals -----------------------------------------------------------------------------------

LOGITS = [-1.50524700, 1.28956294, -1.19543421, 0.38747558, 1.07231164]


def test_unimix_is_in_the_probabilities() -> None:
    """Golden: log of the mixed probabilities."""
    mixed = [-3.58641105, -0.86180330, -3.29602321, -1.75697926, -1.07790632]
    close(Categoricals(torch.tensor([LOGITS])).probs.log()[0], mixed)
    close(Categoricals(torch.tensor([LOGITS])).entropy(), 1.25542556)


def test_straight_through_gradient_is_that_of_the_mixed_probabilities() -> None:
    """Golden: gradient of a weighted sample; whatever the sample is."""
    logits = torch.tensor([LOGITS], requires_grad=True)
    weight = torch.tensor([0.88634169, -0.87433386, -1.32248569, -0.99801517, 1.80646849])
    sample = Categoricals(logits).sample()
    assert sorted(sample.detach().flatten().round().tolist()) == [0, 0, 0, 0, 1]
    (sample * weight).sum().backward()
    assert logits.grad is not None
    close(logits.grad[0], [0.02148428, -0.38871489, -0.04808880, -0.17880588, 0.59412529])


def test_categorical_samples_follow_the_probabilities() -> None:
    logits = torch.tensor([[2.0, 0.0, -1.0]]).expand(20_000, 1, 3)
    with torch.no_grad():
        drawn = Categoricals(logits).sample()
    assert torch.equal(drawn.sum(-1), torch.ones(20_000, 1))
    torch.testing.assert_close(drawn.mean(0), Categoricals(logits[0]).probs, rtol=0, atol=0.015)


POSTERIOR = [
    [0.915151, -0.481165, 0.875856, 1.907905],
    [-2.988829, 0.303046, 0.968657, -0.566855],
    [-1.319254, 2.972705, -0.205526, -0.207226],
    [-1.110512, -0.632685, -0.635133, -0.235947],
]
PRIOR = [
    [1.057448, -0.427464, 1.351737, 0.735819],
    [-0.372180, -0.029458, -0.775113, 0.678966],
    [0.103951, 1.962746, -2.547688, -1.199908],
    [-0.502727, 0.519043, -0.356229, -0.704781],
]


def test_kl_of_mixed_categoricals_is_summed_over_the_variables() -> None:
    """Golden."""
    p, q = Categoricals(torch.tensor(POSTERIOR)), Categoricals(torch.tensor(PRIOR))
    close(categorical_kl(p, q), 1.33515636, 3e-6)
    assert categorical_kl(p, p) == 0


def test_one_hot_of_takes_the_first_of_equals() -> None:
    assert torch.equal(one_hot_of(torch.tensor([1.0, 2.0, 2.0])), torch.tensor([0.0, 1.0, 0.0]))


# ---- actions ----------------------------------------------------------------------------------------


def test_bounded_normal() -> None:
    """Golden: mean, deviation, log density of an action beyond the bounds, entropy."""
    normal = BoundedNormal(
        torch.tensor([1.01151443, -0.30004093, -3.23669815]),
        torch.tensor([1.40504444, 0.24681425, 0.74616545]),
    )
    close(normal.mean, [0.76638767, -0.29135007, -0.99691681])
    close(normal.std, [0.97107563, 0.91393785, 0.94572678])
    close(normal.log_prob(torch.tensor([0.53406054, -0.68821937, 1.07668328])), -5.10831900)
    close(normal.entropy(), 4.08167040)
    assert torch.equal(normal.mode, normal.mean)


def test_bounded_normal_keeps_its_deviation_between_the_bounds() -> None:
    normal = BoundedNormal(torch.zeros(2), torch.tensor([-100.0, 100.0]))
    close(normal.std, [0.1, 1.0])


def test_bounded_normal_samples_are_reparameterised_and_not_clipped() -> None:
    raw = torch.zeros(20_000, 2, requires_grad=True)
    normal = BoundedNormal(raw[:, :1], raw[:, 1:])
    drawn = normal.sample()
    close(drawn.mean(), 0.0, 0.03)
    close(drawn.std(), normal.std[0].item(), 0.03)
    assert drawn.abs().max() > 1
    drawn.sum().backward()
    assert raw.grad is not None and (raw.grad != 0).all()


def test_squashed_normal_is_the_tanh_of_a_normal() -> None:
    policy = SquashedNormal(torch.tensor([[0.3, -2.0]] * 500), torch.tensor([[0.0, 40.0]] * 500))
    torch.manual_seed(0)
    action, log_prob = policy.sample_with_log_prob()
    std = policy.log_std.exp()
    assert std[0, 1] == pytest.approx(1.0) and 0.02 < std[0, 0] < 1
    normal = torch.distributions.Normal(policy.raw_mean.double(), std.double())
    squashed = torch.distributions.TransformedDistribution(normal, torch.distributions.TanhTransform())
    inside = action.abs().amax(-1) < 0.99  # beyond, the action no longer tells what it was before the tanh
    expected = squashed.log_prob(action.double()).sum(-1)
    torch.testing.assert_close(log_prob[inside], expected[inside].float(), atol=1e-3, rtol=1e-3)
    assert torch.equal(policy.mode, torch.tanh(policy.raw_mean))
    assert torch.equal(policy.sample(torch.zeros(500, 2)), policy.mode)


def test_a_saturated_squashed_normal_keeps_its_gradient_finite() -> None:
    raw = torch.tensor([[60.0, -60.0]], requires_grad=True)
    action, log_prob = SquashedNormal(raw, torch.zeros(1, 2)).sample_with_log_prob()
    (action.sum() + log_prob.sum()).backward()
    assert log_prob.isfinite().all() and raw.grad is not None and raw.grad.isfinite().all()


def test_choice_is_not_mixed() -> None:
    """Golden: log probability of the fourth, entropy."""
    choice = OneHotChoice(torch.tensor(LOGITS))
    close(choice.log_prob(torch.tensor([0.0, 0.0, 0.0, 1.0, 0.0])), -1.75858642)
    close(choice.entropy(), 1.24663252)
    assert torch.equal(choice.mode, torch.tensor([0.0, 1.0, 0.0, 0.0, 0.0]))


def test_choice_samples_follow_the_probabilities() -> None:
    logits = torch.tensor([1.0, 0.0, -2.0])
    drawn = OneHotChoice(logits.expand(20_000, 3)).sample()
    torch.testing.assert_close(drawn.mean(0), logits.softmax(-1), rtol=0, atol=0.015)


def test_bernoulli_loss_takes_soft_targets() -> None:
    """-(t ln p + (1 - t) ln (1 - p)) with p = 3/4."""
    logit, target = torch.tensor([math.log(3)] * 3), torch.tensor([1.0, 0.0, 0.997])
    third = -0.997 * math.log(0.75) - 0.003 * math.log(0.25)
    close(bernoulli_loss(logit, target), [-math.log(0.75), -math.log(0.25), third])


# ---- actions of several parts -----------------------------------------------------------------------


def test_choices_side_by_side_are_independent() -> None:
    logits = torch.randn(7, 5)
    together = OneHotChoice(logits, (2, 3))
    alone = OneHotChoice(logits[:, :2]), OneHotChoice(logits[:, 2:])
    action = together.sample()
    assert (action[:, :2].sum(-1) == 1).all() and (action[:, 2:].sum(-1) == 1).all()
    expected = alone[0].log_prob(action[:, :2]) + alone[1].log_prob(action[:, 2:])
    torch.testing.assert_close(together.log_prob(action), expected)
    torch.testing.assert_close(together.entropy(), alone[0].entropy() + alone[1].entropy())
    assert torch.equal(together.mode, torch.cat([alone[0].mode, alone[1].mode], -1))


def test_continuous_and_discrete_parts_are_independent() -> None:
    normal, choice = BoundedNormal(torch.randn(4, 2), torch.randn(4, 2)), OneHotChoice(torch.randn(4, 3))
    both, noise = Both(normal, choice), torch.randn(4, 2)
    action = both.sample(noise)
    assert torch.equal(action[:, :2], normal.sample(noise)) and (action[:, 2:].sum(-1) == 1).all()
    torch.testing.assert_close(both.log_prob(action), normal.log_prob(action[:, :2]) + choice.log_prob(action[:, 2:]))
    torch.testing.assert_close(both.entropy(), normal.entropy() + choice.entropy())
    assert torch.equal(both.mode, torch.cat([normal.mode, choice.mode], -1))
