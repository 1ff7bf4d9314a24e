"""Optimisation: a trajectory of the official DreamerV3, the clipping, the warm-up, resuming."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mbrl.optim import LaProp, clip_adaptively, track

# A bias that starts at 0, lr 1e-3: gradients, and the parameter after each update without warm-up and
# with one of 3 updates. The first and fourth gradients are clipped; in the fifth everything is momentum.
GRADIENTS = [
    [7.437482476e-01, -4.372280091e-02, -5.346233249e-01, -1.392619312e-01],
    [1.758085637e-05, 2.448662781e-05, 3.665850818e-05, -2.547246368e-05],
    [2.489175870e-07, 5.262939339e-06, 6.351000593e-06, -1.317888291e-06],
    [-2.373470692e-03, -2.143684775e-03, 1.042532036e-03, -1.908308268e-02],
    [0.0, 0.0, 0.0, 0.0],
]
PLAIN = [
    [-1.000000000e-03, 1.000000000e-03, 1.000000000e-03, 1.000000000e-03],
    [-1.527950136e-03, 8.292136644e-04, 1.319285956e-03, 1.840124115e-03],
    [-1.861744628e-03, 6.044881797e-04, 1.497794438e-03, 2.386517591e-03],
    [-1.828975192e-03, 1.008576270e-03, 1.450538884e-03, 3.354403692e-03],
    [-1.804207866e-03, 1.313988359e-03, 1.414822866e-03, 4.085937543e-03],
]
WARM = [
    [0.0, 0.0, 0.0, 0.0],
    [-1.759834074e-04, -5.692878787e-05, 1.064286695e-04, 2.800414175e-04],
    [-3.985130859e-04, -2.067457892e-04, 2.254343335e-04, 6.443037629e-04],
    [-5.475953313e-04, 7.324098103e-05, 2.991483380e-04, 1.604248338e-03],
    [-6.602725450e-04, 2.848565832e-04, 3.548618042e-04, 2.329779938e-03],
]


@pytest.mark.parametrize(("warmup", "path"), [(0, PLAIN), (3, WARM)])
def test_golden_trajectory(warmup: int, path: list[list[float]]) -> None:
    p = nn.Parameter(torch.zeros(4))
    optimiser = LaProp([p], lr=1e-3, warmup=warmup)
    for gradient, expected in zip(GRADIENTS, path, strict=True):
        p.grad = torch.tensor(gradient)
        optimiser.step()
        torch.testing.assert_close(p.detach(), torch.tensor(expected), rtol=2e-5, atol=1e-9)


def test_first_step_is_the_learning_rate_however_large_the_gradient() -> None:
    p = nn.Parameter(torch.ones(3))
    optimiser = LaProp([p], lr=0.01, warmup=0)
    p.grad = torch.tensor([1e-6, -1e3, 0.0])
    optimiser.step()
    torch.testing.assert_close(p.detach(), torch.tensor([0.99, 1.01, 1.0]))


def test_clipping_shortens_long_gradients_per_tensor() -> None:
    """The longest allowed is 0.3 |p|: 1.5 for |p| = 5; at least 0.3 * 1e-3 for |p| = 0."""
    params = [torch.tensor([3.0, 4.0]), torch.tensor([3.0, 4.0]), torch.zeros(1)]
    grads = [torch.tensor([30.0, 40.0]), torch.tensor([0.3, 0.4]), torch.tensor([-1.0])]
    clip_adaptively(params, grads, 0.3)
    for grad, expected in zip(grads, [[0.9, 1.2], [0.3, 0.4], [-3e-4]], strict=True):
        torch.testing.assert_close(grad, torch.tensor(expected))


def test_clipping_leaves_zero_gradients_alone() -> None:
    grads = [torch.zeros(3)]
    clip_adaptively([torch.ones(3)], grads, 0.3)
    assert torch.equal(grads[0], torch.zeros(3))


def quadratic(p: Tensor) -> Tensor:
    return (p * torch.tensor([1.0, 10.0, 100.0])).square().sum()


def test_finds_the_minimum_of_a_badly_scaled_bowl() -> None:
    p = nn.Parameter(torch.ones(3))
    optimiser = LaProp([p], lr=0.01, warmup=0)
    for _ in range(300):
        optimiser.zero_grad()
        quadratic(p).backward()
        optimiser.step()
    assert p.detach().abs().max() < 0.05


def test_learning_rates_of_groups_differ() -> None:
    slow, fast = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    groups: list[dict[str, Any]] = [{"params": [slow]}, {"params": [fast], "lr": 0.1}]
    optimiser = LaProp(groups, lr=0.01, warmup=0)
    (slow.sum() + fast.sum()).backward()
    optimiser.step()
    torch.testing.assert_close(slow.detach(), torch.full((2,), 0.99))
    torch.testing.assert_close(fast.detach(), torch.full((2,), 0.9))


def test_resumes_in_the_middle_of_the_warm_up() -> None:
    """Moments and the count of updates are part of the stored state."""

    def run(p: nn.Parameter, optimiser: LaProp, updates: int) -> None:
        for _ in range(updates):
            optimiser.zero_grad()
            quadratic(p).backward()
            optimiser.step()

    whole = nn.Parameter(torch.ones(3))
    run(whole, LaProp([whole], lr=0.01, warmup=10), 8)

    half = nn.Parameter(torch.ones(3))
    first = LaProp([half], lr=0.01, warmup=10)
    run(half, first, 4)
    rest = nn.Parameter(half.detach().clone())
    second = LaProp([rest], lr=0.01, warmup=10)
    second.load_state_dict(first.state_dict())
    run(rest, second, 4)
    assert torch.equal(rest, whole) and not torch.equal(whole, torch.ones(3))


def test_what_was_chosen_is_not_part_of_the_stored_state() -> None:
    old, new = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    first, second = LaProp([old], lr=0.1, agc=0.3, warmup=5), LaProp([new], lr=0.02, agc=10.0, warmup=0)
    quadratic(old).backward()
    first.step()
    second.load_state_dict(first.state_dict())
    assert second.param_groups[0]["count"] == 1
    chosen = {name: second.param_groups[0][name] for name in ("lr", "agc", "warmup")}
    assert chosen == {"lr": 0.02, "agc": 10.0, "warmup": 0}


def test_track_moves_the_slow_copy_by_the_rate() -> None:
    slow, fast = nn.Linear(1, 1), nn.Linear(1, 1)
    for module, value in ((slow, 1.0), (fast, 2.0)):
        for p in module.parameters():
            nn.init.constant_(p, value)
    track(slow, fast, 0.25)
    assert slow.weight.item() == slow.bias.item() == 1.25
    assert fast.weight.item() == 2.0
