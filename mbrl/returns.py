"""Returns: lambda-returns over imagined and replayed steps, and their normalisation."""

from __future__ import annotations

import torch
from torch import Tensor


def lambda_return(reward: Tensor, discount: Tensor, bootstrap: Tensor, lam: Tensor | float) -> Tensor:
    """R_t = r_{t+1} + d_{t+1} ((1 - lam) b_{t+1} + lam R_{t+1}), with R_T = b_T (DreamerV3, eq. 6).

    Args:
        reward: (..., T+1); entry 0 is not used.
        discount: (..., T+1), 0 where no reward can follow; entry 0 is not used.
        bootstrap: (..., T+1) estimates of the value.
        lam: a number, or (..., T+1) where 0 cuts the recursion (the end of a replayed episode).

    Returns:
        (..., T): returns of the states 0 to T-1.
    """
    # Everything that does not depend on the recursion is computed at once.
    base = reward + discount * (1 - lam) * bootstrap
    carry = discount * lam
    result, returns = bootstrap[..., -1], []
    for t in range(reward.shape[-1] - 1, 0, -1):
        result = base[..., t] + carry[..., t] * result
        returns.append(result)
    return torch.stack(returns[::-1], -1)


class ReturnScale:
    """Running range of returns, 5th to 95th percentile, that scales advantages (DreamerV3, eq. 8).

    Small returns are not blown up: the scale is at least ``minimum``. The running average starts at 0
    and is not debiased, as in the official agent, unless ``debias``. It lives on ``device``.
    """

    def __init__(
        self, rate: float = 0.01, minimum: float = 1.0, debias: bool = False, device: torch.device | str = "cpu"
    ):
        self.rate, self.minimum, self.debias = rate, minimum, debias
        self.levels = torch.tensor([0.05, 0.95], dtype=torch.float64, device=device)
        self.low, self.high, self.mass = torch.zeros(3, device=device).unbind()

    def update(self, returns: Tensor) -> None:
        """Move towards the percentiles of this batch of returns, any shape."""
        flat = returns.detach().flatten()
        low, high = torch.quantile(flat, self.levels.to(flat.dtype))
        self.low += self.rate * (low - self.low)
        self.high += self.rate * (high - self.high)
        self.mass += self.rate * (1 - self.mass)

    @property
    def scale(self) -> Tensor:
        spread = self.high - self.low
        if self.debias:
            spread = spread / self.mass.clamp_min(self.rate)
        return spread.clamp_min(self.minimum)

    def state_dict(self) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in self._state().items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name, value in self._state().items():
            value.copy_(state[name])

    def _state(self) -> dict[str, Tensor]:
        return {"low": self.low, "high": self.high, "mass": self.mass}
