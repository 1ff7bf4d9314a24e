"""Optimisation as in DreamerV3: adaptive gradient clipping, then LaProp; slow copies of a network."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


class LaProp(torch.optim.Optimizer):
    """RMS-normalise first, then momentum (Ziyin et al. 2020), on adaptively clipped gradients.

    Per tensor g with parameter p, update n = 1, 2, ...:

        g  <- g * min(1, agc * max(1e-3, |p|) / |g|)          adaptive clipping (Brock et al. 2021)
        nu <- b2 nu + (1 - b2) g^2;   u = g / (sqrt(nu / (1 - b2^n)) + eps)
        mu <- b1 mu + (1 - b1) u;     p <- p - lr_n mu / (1 - b1^n)

    lr_n = lr min(1, (n - 1) / warmup): with a warm-up the first update changes nothing. Norms run over
    whole tensors. Every parameter must have received a gradient. n is counted for each group of parameters, in
    a tensor beside them, so that a step needs nothing from the host and can be recorded on a GPU.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter] | list[dict[str, Any]],
        lr: float = 4e-5,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-20,
        agc: float = 0.3,
        warmup: int = 1000,
    ):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "agc": agc, "warmup": warmup})
        for group in self.param_groups:
            device = group["params"][0].device
            group["count"] = torch.zeros((), dtype=torch.float64, device=device)
            for p in group["params"]:
                self.state[p] = {"mu": torch.zeros_like(p), "nu": torch.zeros_like(p)}

    @torch.no_grad()
    def step(self, closure: None = None, only: int | None = None) -> None:  # type: ignore[override]
        """``only``: the group to update; the others, which need no gradients, stay as they are."""
        for group in self.param_groups if only is None else [self.param_groups[only]]:
            params = group["params"]
            grads = [p.grad for p in params]
            count, (beta1, beta2), lr = group["count"].add_(1), group["betas"], group["lr"]
            if group["warmup"]:
                lr = lr * ((count - 1) / group["warmup"]).clamp_max(1)
            correction = (1 - beta2**count).float()
            rate = (-lr / (1 - beta1**count)).float()

            clip_adaptively(params, grads, group["agc"])
            nu = [self.state[p]["nu"] for p in params]
            mu = [self.state[p]["mu"] for p in params]
            torch._foreach_mul_(nu, beta2)
            torch._foreach_addcmul_(nu, grads, grads, 1 - beta2)
            denominator = torch._foreach_div(nu, correction)
            torch._foreach_sqrt_(denominator)
            torch._foreach_add_(denominator, group["eps"])
            torch._foreach_mul_(mu, beta1)
            torch._foreach_addcdiv_(mu, grads, denominator, 1 - beta1)
            torch._foreach_add_(params, torch._foreach_mul(mu, rate))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Moments and counts become the stored ones; learning rates and all else that was chosen stay as they are."""
        stored = ("params", "count")
        chosen = [{name: v for name, v in group.items() if name not in stored} for group in self.param_groups]
        super().load_state_dict(state_dict)
        for group, own in zip(self.param_groups, chosen, strict=True):
            group.update(own)
            device = group["params"][0].device
            group["count"] = torch.as_tensor(group["count"], dtype=torch.float64, device=device).clone()


def clip_adaptively(params: list[Tensor], grads: list[Tensor], clip: float, floor: float = 1e-3) -> None:
    """Shorten, in place, each gradient longer than ``clip`` times its parameter's norm."""
    limits = clip * torch.stack(torch._foreach_norm(params)).clamp_min(floor)
    norms = torch.stack(torch._foreach_norm(grads))
    factors = (limits / norms.clamp_min(1e-30)).clamp_max(1.0)
    torch._foreach_mul_(grads, list(factors.unbind()))


@torch.no_grad()
def track(slow: nn.Module, fast: nn.Module, rate: float) -> None:
    """Move the slow copy towards the fast network: slow <- rate fast + (1 - rate) slow."""
    torch._foreach_lerp_(list(slow.parameters()), list(fast.parameters()), rate)
