"""Distributions: what the heads of a world model, an actor and a critic put out.

All are built from raw network outputs, know ``log_prob`` or ``loss``, and reduce over their own event
dims only. Source of the definitions: Hafner et al., "Mastering diverse control tasks through world
models" (Nature, 2025), called DreamerV3 below.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property, lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor


def symlog(x: Tensor) -> Tensor:
    """sign(x) ln(1 + |x|): compresses large magnitudes of either sign (DreamerV3, eq. 9)."""
    return torch.sign(x) * torch.log1p(torch.abs(x))


def symexp(x: Tensor) -> Tensor:
    """The inverse of symlog."""
    return torch.sign(x) * torch.expm1(torch.abs(x))


def full_precision(x: Tensor) -> AbstractContextManager[object]:
    """Inside, no autocast makes products of tensors like x less precise."""
    kind = x.device.type
    lowered = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return torch.autocast(kind, enabled=False) if lowered else nullcontext()


@lru_cache
def symexp_bins(count: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """(count,) odd: exponentially spaced between -4.85e8 and 4.85e8, exactly symmetric around 0."""
    half = symexp(torch.linspace(-20, 0, count // 2 + 1, dtype=torch.float64))
    return torch.cat([half, -half[:-1].flip(0)]).to(device, dtype)


def two_hot(x: Tensor, bins: Tensor) -> tuple[Tensor, Tensor]:
    """(...) -> indices (..., 2) of the bins around x and their weights, linear in x; all on the end bin outside."""
    x = x.clamp(bins[0], bins[-1])
    above = torch.searchsorted(bins, x.contiguous()).clamp(1, len(bins) - 1)
    low, high = bins[above - 1], bins[above]
    weight = (x - low) / (high - low)
    return torch.stack([above - 1, above], -1), torch.stack([1 - weight, weight], -1)


class SymexpTwoHot:
    """A scalar as a softmax over exponentially spaced bins (DreamerV3, eqs. 10-11).

    Args:
        logits: (..., bins), an odd number of bins; after them may stand a last one of -inf.
    """

    def __init__(self, logits: Tensor):
        self.logits = logits
        count = logits.shape[-1] - 1 | 1  # the odd one of the two
        self.bins = symexp_bins(count, logits.device, logits.dtype)

    @cached_property
    def log_probs(self) -> Tensor:
        return torch.log_softmax(self.logits, -1)

    @property
    def mean(self) -> Tensor:
        """(...): summed in mirrored pairs, so that a uniform softmax has a mean of exactly 0."""
        probs, count = torch.softmax(self.logits, -1), len(self.bins)
        middle = count // 2
        with full_precision(probs):  # the largest bins are 1e8 times the smallest
            return (probs[..., middle + 1 : count] - probs[..., :middle].flip(-1)) @ self.bins[middle + 1 :]

    def loss(self, target: Tensor) -> Tensor:
        """(...): cross entropy to the two-hot target, which is NOT symlogged."""
        return self.cross_entropy(*two_hot(target, self.bins))

    def cross_entropy(self, index: Tensor, weight: Tensor) -> Tensor:
        """(...): to targets that are 0 but for some bins, given by ``index`` and ``weight``, both (..., k).

        Where an axis of theirs is shorter than the distribution's, only its beginning counts.
        """
        return -(weight * self.log_probs.gather(-1, index)).sum(-1)


class Categoricals:
    """S independent categoricals over K classes, mixed with a little uniform ("unimix").

    Args:
        logits: (..., S, K) raw.
        unimix: probability mass that is spread evenly, for samples, gradients and KL alike.
    """

    def __init__(self, logits: Tensor, unimix: float = 0.01):
        # For so few classes several times faster than torch.softmax on a CPU.
        weight = (logits - logits.detach().amax(-1, keepdim=True)).exp_()
        share = (1 - unimix) / weight.sum(-1, keepdim=True)
        self.probs = (weight * share).add_(unimix / logits.shape[-1])

    def sample(self) -> Tensor:
        """(..., S, K): one-hot, with the gradient of the probabilities (straight-through)."""
        hard = one_hot_sample(self.probs.detach())
        return hard + (self.probs - self.probs.detach()) if self.probs.requires_grad else hard

    def entropy(self) -> Tensor:
        """(...): nats, summed over the S variables."""
        return -(self.probs * torch.log(self.probs)).sum((-2, -1))


def one_hot_sample(probs: Tensor) -> Tensor:
    """(..., K) -> (..., K): one-hot samples, the class in whose share of [0, 1) a uniform number falls."""
    u = torch.rand(*probs.shape[:-1], 1, device=probs.device, dtype=probs.dtype)
    passed = probs.new_empty(*probs.shape[:-1], probs.shape[-1] + 1)  # the borders that u is not below
    torch.ge(u, probs.cumsum(-1), out=passed[..., 1:])
    passed[..., 0], passed[..., -1] = 1, 0
    return passed[..., :-1] - passed[..., 1:]


def one_hot_of(scores: Tensor) -> Tensor:
    """(..., K) -> (..., K): one-hot of the largest entry, the first on ties."""
    return torch.zeros_like(scores).scatter_(-1, scores.argmax(-1, keepdim=True), 1.0)


def categorical_kl(p: Categoricals, q: Categoricals) -> Tensor:
    """(...): KL(p || q) in nats, summed over the S variables."""
    return (p.probs * (torch.log(p.probs) - torch.log(q.probs))).sum((-2, -1))


class BoundedNormal:
    """Independent normals with a mean in (-1, 1) and a standard deviation between two bounds.

    Args:
        raw_mean, raw_std: (..., A).
    """

    def __init__(self, raw_mean: Tensor, raw_std: Tensor, min_std: float = 0.1, max_std: float = 1.0):
        self.raw_mean = raw_mean
        self.mean = torch.tanh(raw_mean)
        self.std = (max_std - min_std) * torch.sigmoid(raw_std + 2.0) + min_std

    @property
    def mode(self) -> Tensor:
        return self.mean

    def sample(self, noise: Tensor | None = None) -> Tensor:
        """(..., A): reparameterised, not clipped; whoever acts clips. ``noise`` (..., A) of unit variance."""
        return self.mean + self.std * (torch.randn_like(self.mean) if noise is None else noise)

    def log_prob(self, action: Tensor) -> Tensor:
        """(...): density of the unclipped normal, summed over A."""
        z = (action - self.mean) / self.std
        return (-0.5 * z * z - torch.log(self.std) - 0.5 * math.log(2 * math.pi)).sum(-1)

    def entropy(self) -> Tensor:
        """(...): nats, summed over A."""
        return (torch.log(self.std) + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)


class SquashedNormal:
    """The tanh of independent normals (Haarnoja et al., "Soft actor-critic", 2018, appendix C).

    Args:
        raw_mean, raw_std: (..., A).
        min_std, max_std: bounds of the deviation before the tanh; it lies between them on a logarithmic scale.
    """

    def __init__(self, raw_mean: Tensor, raw_std: Tensor, min_std: float = 0.02, max_std: float = 1.0):
        self.raw_mean = raw_mean
        low, high = math.log(min_std), math.log(max_std)
        self.log_std = low + (high - low) * torch.sigmoid(raw_std + 3.0)

    @property
    def mode(self) -> Tensor:
        return torch.tanh(self.raw_mean)

    def sample(self, noise: Tensor | None = None) -> Tensor:
        """(..., A): reparameterised; ``noise`` (..., A) of unit variance."""
        return torch.tanh(self._before(self._noise(noise)))

    def sample_with_log_prob(self) -> tuple[Tensor, Tensor]:
        """An action (..., A) and its log density (...), which the action alone does not tell: the tanh may saturate."""
        noise = self._noise(None)
        raw = self._before(noise)
        normal = -0.5 * noise.square() - self.log_std - 0.5 * math.log(2 * math.pi)
        slope = 2 * (math.log(2) - raw - F.softplus(-2 * raw))  # ln(1 - tanh(raw)^2)
        return torch.tanh(raw), (normal - slope).sum(-1)

    def _noise(self, noise: Tensor | None) -> Tensor:
        return torch.randn_like(self.raw_mean) if noise is None else noise

    def _before(self, noise: Tensor) -> Tensor:
        """Before the tanh."""
        return self.raw_mean + self.log_std.exp() * noise


class OneHotChoice:
    """Independent discrete choices as one-hot vectors side by side.

    Args:
        logits: (..., A).
        sizes: the number of classes of each choice, A in all; None: a single choice among A.
    """

    def __init__(self, logits: Tensor, sizes: Sequence[int] | None = None):
        self.sizes = list(sizes or logits.shape[-1:])
        self.log_probs = torch.cat([torch.log_softmax(part, -1) for part in logits.split(self.sizes, -1)], -1)

    @property
    def mode(self) -> Tensor:
        return torch.cat([one_hot_of(part) for part in self.log_probs.split(self.sizes, -1)], -1)

    def sample(self) -> Tensor:
        """(..., A): one-hot, without gradient."""
        probs = self.log_probs.detach().exp()
        return torch.cat([one_hot_sample(part) for part in probs.split(self.sizes, -1)], -1)

    def log_prob(self, action: Tensor) -> Tensor:
        return (self.log_probs * action).sum(-1)

    def entropy(self) -> Tensor:
        return -(self.log_probs.exp() * self.log_probs).sum(-1)


class Both:
    """Continuous dimensions and, after them, discrete choices; independent."""

    def __init__(self, continuous: BoundedNormal, choice: OneHotChoice):
        self.continuous, self.choice = continuous, choice

    @property
    def mode(self) -> Tensor:
        return torch.cat([self.continuous.mode, self.choice.mode], -1)

    def sample(self, noise: Tensor | None = None) -> Tensor:
        """(..., A): ``noise`` is that of the continuous dimensions."""
        return torch.cat([self.continuous.sample(noise), self.choice.sample()], -1)

    def log_prob(self, action: Tensor) -> Tensor:
        continuous, choice = action.tensor_split([self.continuous.mean.shape[-1]], -1)
        return self.continuous.log_prob(continuous) + self.choice.log_prob(choice)

    def entropy(self) -> Tensor:
        return self.continuous.entropy() + self.choice.entropy()


ActionDistribution = BoundedNormal | OneHotChoice | Both
"""What knows the probability of any action, and its entropy."""
Policy = ActionDistribution | SquashedNormal
"""What can be sampled, and has a mode."""


def bernoulli_loss(logit: Tensor, target: Tensor) -> Tensor:
    """(...): binary cross entropy; targets may lie between 0 and 1."""
    return F.binary_cross_entropy_with_logits(logit, target, reduction="none")
