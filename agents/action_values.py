"""Behaviour by action values: a critic Q(x, a) of real rewards, and an actor that learns from it in dreams.

    critic   y = r + d (mean_k Q'_k(x', a') - alpha ln pi(a' | x')),  a' ~ pi(x'),  on replayed steps
    actor    max  mean_k Q_k(x_h, a) - alpha ln pi(a | x_h),          a ~ pi(x_h),  at dreamt x_0 ... x_H

A model that errs a little misleads a critic that learns in it, and a policy goes where it errs; replayed rewards do
not err, and many steps on them cost little. What the actor is to do where its own actions lead, only the model can ask.
Sources: the entropy is that of soft actor-critic (Haarnoja et al., 2018); norms, a mean over the critics instead of
their minimum, and many steps from BRO (Nauman et al., NeurIPS 2024); a critic of replayed steps with an actor in
short dreams from SAC-SVG (Amos et al., L4DC 2021). What each is worth here is in benchmarks/EFFICIENCY.md.

Letters: M transitions, N dreams, H dreamt steps, K critics, X what actor and critics see, A action, F features.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mbrl.distributions import SquashedNormal
from mbrl.errors import UserError
from mbrl.interfaces import Imagined, State
from mbrl.networks import ResidualEnsemble
from mbrl.optim import LaProp, track
from mbrl.replay import Replay
from mbrl.steps import Steps
from mbrl.world_model import WorldModel, frozen

Metrics = dict[str, Tensor | float]
Restore = Callable[[dict[str, Tensor]], State]
"""The agent's states from what the replay keeps of them."""


@dataclass(frozen=True)
class ActionValueConfig:
    critic_steps: int = 10
    """Gradient steps of the critics in an update of the agent."""
    actor_every: int = 4
    """The actor takes a step with the first of so many of theirs."""
    batch_size: int = 128
    """M: replayed transitions of a step; also N (H + 1), the states that the actor learns at."""
    dream: int = 2
    """H: dreamt steps."""
    horizon: float = 50.0
    """Decisions that the discount d = 1 - 1/horizon looks ahead."""
    memory: bool = False
    """Actor and critics see the world model's state beside the observation: for environments that hide something."""
    critics: int = 2
    """K."""
    units: int = 256
    """Width of actor and critics."""
    lr: float = 3e-4
    """Learning rate of actor, critics and temperature."""
    slow_rate: float = 0.02
    """How fast the slow critics follow the critics."""
    temperature: float = 0.01
    """alpha at the beginning; it rises and falls until the entropy is what it should be."""
    entropy: float = -0.5
    """What the policy's entropy should be: nats for each continuous dimension."""


def _check(config: ActionValueConfig) -> None:
    """Raises:
    UserError: a number that nothing could be done with.
    """
    least = {"critic_steps": 1, "actor_every": 1, "batch_size": 1, "dream": 0, "critics": 1, "units": 1, "horizon": 1}
    for name, value in least.items():
        if getattr(config, name) < value:
            option = f"--config.action-values.{name.replace('_', '-')}"
            raise UserError(f"{option} is {getattr(config, name)}; it must be at least {value}")
    if config.temperature <= 0:
        raise UserError(f"--config.action-values.temperature is {config.temperature}; it must be above 0")


class SoftActor(nn.Module):
    """What is seen (n, X) -> a distribution over actions (n, A)."""

    def __init__(self, inputs: int, actions: int, units: int):
        super().__init__()
        self.net = ResidualEnsemble(1, inputs, 2 * actions, units, scale=0.01)

    def forward(self, x: Tensor) -> SquashedNormal:
        return SquashedNormal(*self.net(x).squeeze(0).chunk(2, -1))


class ActionValues:
    """Implements Behaviour of agents/dreamer.py.

    Args:
        config: everything that can be chosen.
        world_model: whose dreams the actor learns in.
        actions: A, all continuous.
        device: where the networks live.

    Raises:
        UserError: a number of ``config`` that nothing could be done with.
    """

    def __init__(self, config: ActionValueConfig, world_model: WorldModel, actions: int, device: torch.device):
        _check(config)
        self.config, self.world_model, self.device = config, world_model, device
        self.discount = 1 - 1 / config.horizon
        size = world_model.encoder.view.size + (world_model.feature_size if config.memory else 0)
        self.actor = SoftActor(size, actions, config.units).to(device)
        self.critics = ResidualEnsemble(config.critics, size + actions, 1, config.units).to(device)
        self.slow_critics = copy.deepcopy(self.critics).requires_grad_(False)
        self.log_temperature = nn.Parameter(torch.tensor(math.log(config.temperature), device=device))
        self.reward_scale = nn.Parameter(torch.ones((), device=device), requires_grad=False)
        """The largest reward so far, of either sign, and at least 1: values are learnt in units of it."""
        self.wanted_entropy = config.entropy * actions
        learnt = (self.actor.parameters(), self.critics.parameters(), [self.log_temperature])
        fused = device.type in ("cpu", "cuda")
        self.optimisers = [torch.optim.Adam(params, config.lr, fused=fused) for params in learnt]
        numbers = nn.ParameterDict({"log_temperature": self.log_temperature, "reward_scale": self.reward_scale})
        self.modules: dict[str, nn.Module] = {
            "actor": self.actor, "critic": self.critics, "slow_critic": self.slow_critics, "behaviour": numbers,
        }  # fmt: skip

    # ---- what is seen ----------------------------------------------------------------------------

    def see(self, obs: dict[str, Tensor], state: State) -> Tensor:
        """Real observations (n, ...), and the states (n,) that they led to -> (n, X)."""
        x = self.world_model.encoder.view(obs, lead=1)
        return torch.cat([x, self.world_model.dynamics.features(state)], -1) if self.config.memory else x

    def see_dreamt(self, features: Tensor) -> Tensor:
        """Features (n, F) of a dream -> (n, X)."""
        x = self.world_model.expected(features)
        return torch.cat([x, features], -1) if self.config.memory else x

    def policy(self, obs: dict[str, Tensor], state: State) -> SquashedNormal:
        """What to do (n,) in the states that observations (n, ...) have led to."""
        policy: SquashedNormal = self.actor(self.see(obs, state))
        return policy

    def dreamt_policy(self, features: Tensor) -> SquashedNormal:
        """The same in a dream of features (n, F)."""
        policy: SquashedNormal = self.actor(self.see_dreamt(features))
        return policy

    # ---- learning: nothing together with the world model, all in steps of its own -----------------

    def groups(self) -> list[dict[str, Any]]:
        return []

    def losses(self, steps: Steps, states: State) -> tuple[dict[str, Tensor], None, Metrics]:
        return {}, None, {}

    def settle(self, imagined: Imagined | None, optimiser: LaProp) -> None: ...

    def update(self, replay: Replay, restore: Restore) -> Metrics:
        """The steps that go with one of the world model."""
        metrics: Metrics = {}
        for k in range(self.config.critic_steps):
            batch = replay.draw(self.config.batch_size, 2)
            metrics |= self._fit_critics(batch.steps.to(self.device), restore(batch.latents))
            if k % self.config.actor_every == 0:
                starts = replay.draw(max(1, self.config.batch_size // (self.config.dream + 1)), 1)
                metrics |= self._improve_actor(starts.steps.to(self.device), restore(starts.latents))
        return metrics

    def _fit_critics(self, steps: Steps, states: State) -> Metrics:
        """A gradient step on transitions: steps and states (M, 2)."""
        (before, x), (after, next_x) = (self._seen(steps, states, t) for t in range(2))
        with torch.no_grad():
            self.reward_scale.copy_(torch.maximum(self.reward_scale, after.reward.abs().max()))
            action, log_prob = self.actor(next_x).sample_with_log_prob()
            value = self._value(self.slow_critics, next_x, action).mean(0) - self.log_temperature.exp() * log_prob
            live = self.discount * (~after.is_terminal).float()
            target = after.reward / self.reward_scale + live * value
        values = self._value(self.critics, x, after.action.clamp(-1, 1))
        # From a last step nothing leads to the next one: that is a reset.
        loss = ((~before.is_last).float() * (values - target).square()).mean(1).sum()
        self._descend(1, loss)
        track(self.slow_critics, self.critics, self.config.slow_rate)
        return {"train/loss/value": loss.detach(), "train/value": self.reward_scale * values.detach().mean()}

    def _seen(self, steps: Steps, states: State, t: int) -> tuple[Steps, Tensor]:
        step = steps[:, t]
        return step, self.see(step.obs, {name: value[:, t] for name, value in states.items()})

    def _improve_actor(self, steps: Steps, states: State) -> Metrics:
        """A gradient step of actor and temperature at states dreamt from replayed ones: steps and states (N, 1)."""
        start = {name: value[:, 0] for name, value in states.items()}
        x = self._dream(start, self.see(steps[:, 0].obs, start))
        action, log_prob = self.actor(x).sample_with_log_prob()
        with frozen(self.critics):
            value = self._value(self.critics, x, action).mean(0)
        loss = (self.log_temperature.exp().detach() * log_prob - value).mean()
        self._descend(0, loss)
        entropy = -log_prob.detach().mean()
        self._descend(2, self.log_temperature.exp() * (entropy - self.wanted_entropy))
        temperature = self.log_temperature.detach().exp()
        return {"train/loss/policy": loss.detach(), "train/entropy": entropy, "train/temperature": temperature}

    @torch.no_grad()
    def _dream(self, state: State, x: Tensor) -> Tensor:
        """What the policy sees from the start states (N,), where it sees x (N, X), and H steps on: (N (H+1), X)."""
        seen = [x]
        for _ in range(self.config.dream):
            state = self.world_model.dynamics.step(state, self.actor(seen[-1]).sample())
            seen.append(self.see_dreamt(self.world_model.dynamics.features(state)))
        return torch.cat(seen)

    def _value(self, critics: nn.Module, x: Tensor, action: Tensor) -> Tensor:
        """(K, n): in units of the reward scale."""
        return critics(torch.cat([x, action], -1)).squeeze(-1)

    def _descend(self, part: int, loss: Tensor) -> None:
        optimiser = self.optimisers[part]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    def adapt(self, optimiser: dict[str, Any]) -> dict[str, Any]:
        return optimiser

    def state_dict(self) -> dict[str, Any]:
        return {"action_values": [optimiser.state_dict() for optimiser in self.optimisers]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for optimiser, stored in zip(self.optimisers, state["action_values"], strict=True):
            optimiser.load_state_dict(stored)
