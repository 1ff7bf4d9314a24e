"""Observability: does an observation tell what matters for the next one, or would the one before it tell more?

Two regressions foresee by how much each number will change: one from the observation and the action, one that sees
the step before, too. Where an observation hides nothing the second has nothing to add; where it hides velocities, the
second knows them and the first does not. Both are kernel ridge regressions (Saunders et al., ICML 1998), judged on
stretches of experience that they were not fitted to; of each the best of a few widths and ridges counts.

Letters: N environments, T steps, n transitions, X numbers in an observation, A action, D inputs, K folds.
"""

from __future__ import annotations

import torch
from torch import Tensor

FEWEST, MOST = 200, 1000
"""Transitions that are needed, and more than that would only take time."""
HIDDEN = 0.3
"""Shares above this mean that something is hidden: clear cases only, so that nobody is alarmed for nothing."""
STRETCH, FOLDS = 25, 4
"""Successive steps tell of each other, so whole stretches are left out at a time: every K-th."""
WIDTHS, RIDGES = (1.0, 2.0), (0.01, 0.1, 1.0)


def hidden_share(x: Tensor, action: Tensor, is_first: Tensor) -> float | None:
    """Of how much observations change, the share that the step before foretells and the last one alone does not.

    Args:
        x: (N, T, X), what is seen; newest last.
        action: (N, T, A), what led to it.
        is_first: (N, T).

    Returns:
        About 0, or less, where nothing is hidden; None where there are too few transitions to tell, or nothing changes.
    """
    x, action = x.double().cpu(), action.double().cpu()
    change, is_first = x.diff(dim=1), is_first.cpu()
    known = ~is_first[:, 1:-1] & ~is_first[:, 2:]  # an episode's first step has none before it
    now = torch.cat([x[:, 1:-1], action[:, 2:]], -1)[known]
    before = torch.cat([change[:, :-1], action[:, 1:-1]], -1)[known]
    target = change[:, 1:][known]  # (n, X)
    if len(target) < FEWEST or not target.any():
        return None
    fold = (torch.arange(known.numel()).view_as(known) // STRETCH % FOLDS)[known]
    target = _standard(target[:, target.any(0)])
    return _explained(torch.cat([now, before], -1), target, fold) - _explained(now, target, fold)


def _explained(inputs: Tensor, target: Tensor, fold: Tensor) -> float:
    """Of the variance of targets (n, X), the share that the best regression on inputs (n, D) foretells."""
    z = _standard(inputs)
    linear, square = z @ z.T / z.shape[1], torch.cdist(z, z).square() / z.shape[1]
    kernels = [linear + torch.exp(-square / (2 * width**2)) for width in WIDTHS]
    errors = [_error(kernel, target, fold, ridge) for kernel in kernels for ridge in RIDGES]
    return 1 - min(errors)


def _error(kernel: Tensor, target: Tensor, fold: Tensor, ridge: float) -> float:
    """Mean squared error on each fold (n,) of a regression fitted to the others; kernel (n, n)."""
    total = 0.0
    for k in fold.unique():
        out, fit = fold == k, fold != k
        mean = target[fit].mean(0)
        inner = kernel[fit][:, fit] + ridge * torch.eye(int(fit.sum()), dtype=kernel.dtype)
        foretold = mean + kernel[out][:, fit] @ torch.linalg.solve(inner, target[fit] - mean)
        total += float((target[out] - foretold).square().sum())
    return total / target.numel()


def _standard(z: Tensor) -> Tensor:
    """(n, D): each column with mean 0 and variance 1, or 0 where nothing changes."""
    spread = z.std(0)
    return (z - z.mean(0)) / spread.where(spread > 0, 1)
