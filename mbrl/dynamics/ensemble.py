"""Ensemble: several networks that tell from an observation and an action what happens, a family of dynamics.

    x_{t+1} = x_t + s f_k(x_t, a_t)     r_{t+1}, c_{t+1} likewise     k drawn anew for each step of a dream

Where an observation hides nothing, it is the whole state, and nothing has to be remembered or compressed. From few
steps such a model foresees the next ones better than a recurrent one does, whose memory learns sequences by heart
(benchmarks/EFFICIENCY.md). The members differ most where there was little to learn from, so what is dreamt there
is uncertain. Sources: PETS (Chua et al., NeurIPS 2018), MBPO (Janner et al., NeurIPS 2019).

Letters: n transitions, X numbers in an observation, A action, K members.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mbrl.distributions import bernoulli_loss
from mbrl.errors import check_least
from mbrl.networks import ResidualEnsemble

REWARD_SCALE = 10.0
"""Weight of the error of the reward against that of the observation."""
SLOWLY = 0.01
"""Rate at which statistics follow what is observed."""


@dataclass(frozen=True)
class EnsembleConfig:
    members: int = 5
    """K."""
    units: int = 256
    """Width of a member."""
    steps: int = 2
    """Gradient steps in an update of the agent."""
    batch_size: int = 240
    """n: transitions of a gradient step, each drawn for itself: neighbours would tell the same."""


class Ensemble(nn.Module):
    """K networks side by side, and what they need to know of the size of things.

    Args:
        config: sizes.
        size: X.
        action_size: A.

    Raises:
        UserError: a number of ``config`` that nothing could be done with.
    """

    change: Tensor
    low: Tensor
    high: Tensor
    reward_size: Tensor
    count: Tensor

    def __init__(self, config: EnsembleConfig, size: int, action_size: int):
        super().__init__()
        counts = ("members", "units", "steps", "batch_size")
        check_least(config, "--config.model.ensemble", dict.fromkeys(counts, 1))
        self.size, self.net = size, ResidualEnsemble(config.members, size + action_size, size + 2, config.units)
        self.register_buffer("change", torch.zeros(size))  # mean square of x' - x
        self.register_buffer("low", torch.zeros(size))
        self.register_buffer("high", torch.zeros(size))
        self.register_buffer("reward_size", torch.ones(()))  # the largest reward so far, of either sign, at least 1
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(n, X), (n, A) -> by each member the next observation (K, n, X), the reward (K, n) and the logit that the
        episode goes on."""
        change, reward, logit = self.net(torch.cat([x, action], -1)).split([self.size, 1, 1], -1)
        return x + self._step_size() * change, self.reward_size * reward.squeeze(-1), logit.squeeze(-1)

    def step(self, x: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(n, X), (n, A) -> what one member each says: (n, X), reward (n,), probability of going on (n,)."""
        next_x, reward, logit = self(x, action)
        each = torch.arange(len(x), device=x.device)
        member = torch.randint(len(next_x), (len(x),), device=x.device)
        next_x = torch.minimum(torch.maximum(next_x[member, each], self.low), self.high)
        return next_x, reward[member, each], torch.sigmoid(logit[member, each])

    @torch.no_grad()
    def doubt(self, x: Tensor, action: Tensor) -> Tensor:
        """(n, X), (n, A) -> (n,): variance of what the members say, in units of how much there usually is."""
        return self.net(torch.cat([x, action], -1))[..., : self.size].var(0).mean(-1)

    def loss(
        self, x: Tensor, action: Tensor, next_x: Tensor, reward: Tensor, proceed: Tensor, weight: Tensor
    ) -> dict[str, Tensor]:
        """Errors (n,) by name, means over the members, in units of how much there usually is.

        Args:
            x: (n, X).
            action: (n, A).
            next_x: (n, X).
            reward: (n,).
            proceed: (n,), 0 where the episode ended.
            weight: (n,), 0 where there was no such transition.
        """
        self._measure(next_x - x, next_x, reward, weight)
        said_x, said_reward, logit = self(x, action)
        errors = ((said_x - next_x) / self._step_size()).square().mean(-1)
        reward_errors = ((said_reward - reward) / self.reward_size).square()
        con = bernoulli_loss(logit, proceed.expand_as(logit))
        losses = {"dyn": errors, "rew": REWARD_SCALE * reward_errors, "con": con}
        return {name: weight * value.mean(0) for name, value in losses.items()}

    @torch.no_grad()
    def _measure(self, change: Tensor, x: Tensor, reward: Tensor, weight: Tensor) -> None:
        """Take transitions (n, ...) into the statistics."""
        self.count += 1
        square = (weight.unsqueeze(-1) * change.square()).sum(0) / weight.sum().clamp_min(1)
        self.change.lerp_(square, (1 / self.count).clamp_min(SLOWLY))
        low, high = x.amin(0), x.amax(0)  # at once outwards, slowly inwards
        self.low.copy_(torch.minimum(low, torch.lerp(self.low, low, SLOWLY)))
        self.high.copy_(torch.maximum(high, torch.lerp(self.high, high, SLOWLY)))
        self.reward_size.copy_(torch.maximum(self.reward_size, reward.abs().max()))

    def _step_size(self) -> Tensor:
        """(X,): s, by how much an observation changes."""
        return self.change.sqrt() + 1e-3
