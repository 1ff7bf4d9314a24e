"""Behaviour by the values of states: DreamerV3's actor and critic, which learn from imagined rollouts.

Source: Hafner et al., "Mastering diverse control tasks through world models" (Nature, 2025), eqs. 6 to 10; what is
not in it is said where it is done.

Letters: B sequences, T steps, N imagined rollouts, H imagined steps, A action, F features.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mbrl.distributions import ActionDistribution, Both, BoundedNormal, OneHotChoice, SymexpTwoHot, two_hot
from mbrl.interfaces import Imagined, State
from mbrl.networks import MLP, Linear, TwoHotHead
from mbrl.optim import LaProp, track
from mbrl.replay import Replay
from mbrl.returns import ReturnScale, lambda_return
from mbrl.spaces import ActionSpec
from mbrl.steps import Steps
from mbrl.world_model import WorldModel, frozen

if TYPE_CHECKING:
    from agents.dreamer import DreamerConfig

Metrics = dict[str, Tensor | float]
CRITIC = 2
"""Its place among the parameter groups, where it takes steps of its own."""


class Actor(nn.Module):
    """Features (..., F) -> a distribution over actions (..., A)."""

    def __init__(self, features: int, spec: ActionSpec, units: int, layers: int, norm: str, min_std: float):
        super().__init__()
        self.spec, self.min_std = spec, min_std
        self.mlp = MLP(features, units, layers, norm)
        # Mean, deviation and choices have a layer each: gradients are clipped per tensor.
        sizes = (spec.continuous, spec.continuous, sum(spec.choices))
        self.out = nn.ModuleList(Linear(self.mlp.outputs, size, scale=0.01) for size in sizes if size)

    def outputs(self, features: Tensor) -> list[Tensor]:
        """What ``distribution`` is made of: mean and deviation, if any, and logits, if any."""
        x = self.mlp(features)
        return [out(x) for out in self.out]

    def distribution(self, *outputs: Tensor) -> ActionDistribution:
        if not self.spec.continuous:
            return OneHotChoice(outputs[0], self.spec.choices)
        normal = BoundedNormal(outputs[0], outputs[1], self.min_std)
        return Both(normal, OneHotChoice(outputs[2], self.spec.choices)) if self.spec.choices else normal

    def forward(self, features: Tensor) -> ActionDistribution:
        return self.distribution(*self.outputs(features))


class StateValues:
    """Implements Behaviour of agents/dreamer.py.

    Args:
        config: the agent's.
        world_model: what is imagined in.
        spec: the actions.
        pathwise: the actor's gradient goes through the imagined dynamics, instead of by REINFORCE.
        precision: makes the context in which the critic's further steps are computed.
    """

    update_ratio = 0.5
    aimless = False

    def __init__(
        self,
        config: DreamerConfig,
        world_model: WorldModel,
        spec: ActionSpec,
        pathwise: bool,
        precision: Callable[[], AbstractContextManager[object]],
        device: torch.device,
    ):
        self.config, self.world_model, self.pathwise, self.precision = config, world_model, pathwise, precision
        model, features = config.model, world_model.feature_size
        self.actor = Actor(features, spec, model.units, config.actor_layers, model.norm, config.min_std)
        self.critic = TwoHotHead(features, model.bins, model.units, config.critic_layers, model.norm)
        self.slow_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self.modules: dict[str, nn.Module] = {
            "actor": self.actor, "critic": self.critic, "slow_critic": self.slow_critic,
        }  # fmt: skip
        self.returns = ReturnScale(config.return_rate, config.return_minimum, config.return_debias, device)

    def groups(self) -> list[dict[str, Any]]:
        """What is learnt together with the world model; the critic apart where it takes steps of its own."""
        actor, critic = list(self.actor.parameters()), list(self.critic.parameters())
        parts = [[*actor, *critic]] if self.config.critic_updates == 1 else [actor, critic]
        lr = self.config.behaviour_lr or self.config.lr
        return [{"params": params, "lr": lr} for params in parts]

    def policy(self, obs: dict[str, Tensor], state: State) -> ActionDistribution:
        """What to do (n,) in the states that observations (n, ...) have led to."""
        return self.dreamt_policy(self.world_model.features(state))

    def dreamt_policy(self, features: Tensor) -> ActionDistribution:
        """The same in a dream of features (n, F)."""
        policy: ActionDistribution = self.actor(features)
        return policy

    # ---- learning with the world model ------------------------------------------------------------

    def losses(self, steps: Steps, states: State) -> tuple[dict[str, Tensor], Imagined, Metrics]:
        """Losses by name, scaled; the rollouts that they come from; metrics. Steps and posterior states are (B, T)."""
        chosen, start = self._choose_starts(states)  # (N,) among the B T states
        imagined, policy = self._imagine(start)  # (N, H+1), (N, H)
        losses, returns, metrics = self._behaviour_losses(imagined, policy)
        features = self.world_model.features(states)
        replayed = self._replay_value_loss(features, steps, chosen, returns[:, 0])
        return {**losses, "repval": self.config.repval_scale * replayed}, imagined, metrics

    def settle(self, imagined: Imagined | None, optimiser: LaProp) -> None:
        """What follows the step on them: the slow critic, and further steps of the critic alone."""
        assert imagined is not None
        track(self.slow_critic, self.critic, self.config.slow_rate)
        for _ in range(self.config.critic_updates - 1):
            self._fit_critic(imagined, optimiser)

    def _fit_critic(self, imagined: Imagined, optimiser: LaProp) -> None:
        """A gradient step of the critic alone on rollouts (N, H+1) that it has learnt from already (eqs. 7 and 8).

        Its targets are its own values, H steps on: with each step what it knows of rewards travels that much further.
        """
        features, reward, proceed = (value.detach() for value in (imagined.features, imagined.reward, imagined.proceed))
        with self.precision():
            critic = SymexpTwoHot(self.critic(features))
            returns = lambda_return(reward, proceed, critic.mean.detach(), self.config.lam)
            loss = (proceed.cumprod(1)[:, :-1] * self._value_loss(critic, features, returns)).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step(only=CRITIC)
        track(self.slow_critic, self.critic, self.config.slow_rate)

    def _imagine(self, start: State) -> tuple[Imagined, ActionDistribution]:
        """Rollouts (N, H+1) from the start states (N,), and the policy (N, H) that chose their actions.

        The world model learns nothing here. Through the actions that it took the actor does, if its
        gradient is pathwise.
        """
        outputs = []

        def policy(features: Tensor) -> Tensor:
            outputs.append(self.actor.outputs(features.detach()))
            action = self.actor.distribution(*outputs[-1]).sample()
            return action if self.pathwise else action.detach()

        with frozen(self.world_model):
            imagined = self.world_model.imagine(policy, start, self.config.horizon)
        path = [torch.stack(output, 1) for output in zip(*outputs[:-1], strict=True)]
        return imagined, self.actor.distribution(*path)

    def _behaviour_losses(
        self, imagined: Imagined, policy: ActionDistribution
    ) -> tuple[dict[str, Tensor], Tensor, Metrics]:
        """Actor and critic losses on imagined rollouts (eqs. 7, 8 and 10) and their returns, all (N, H)."""
        features = imagined.features.detach()
        critic = SymexpTwoHot(self.critic(features))
        if self.pathwise:
            with frozen(self.critic):
                value = SymexpTwoHot(self.critic(imagined.features)).mean
        else:
            value = critic.mean.detach()
        # The continue probability already holds the discount.
        returns = lambda_return(imagined.reward, imagined.proceed, value, self.config.lam)
        self.returns.update(returns)
        scale = self.returns.scale
        weight = imagined.proceed.detach().cumprod(1)[:, :-1]  # the chance to get there alive
        value_loss = weight * self._value_loss(critic, features, returns.detach())

        entropy = policy.entropy()
        if self.pathwise:
            assert isinstance(policy, BoundedNormal)
            # A saturated tanh has no gradient to come back by.
            excess = torch.relu(policy.raw_mean.abs() - 1).square().sum(-1)
            gain = returns / scale - self.config.saturation * excess
            bonus = self.config.pathwise_entropy * entropy
        else:
            advantage = (returns - value[:, :-1]) / scale
            gain = policy.log_prob(imagined.action[:, :-1]) * advantage
            bonus = self.config.entropy * entropy
        policy_loss = -weight * (gain + bonus)
        returns = returns.detach()
        metrics: Metrics = {
            "train/entropy": entropy.detach().mean(),
            "train/saturated": (policy.mode.detach().abs() > 0.97).float().mean(),
            "train/return_scale": scale,
            "train/imagined_return": returns.mean(),
            "train/imagined_reward": imagined.reward.detach().mean(),
        }
        return {"policy": policy_loss, "value": value_loss}, returns, metrics

    def _replay_value_loss(self, features: Tensor, steps: Steps, chosen: Tensor, imagined: Tensor) -> Tensor:
        """(B, T-1): the critic on replayed rewards; its gradient shapes the world model too.

        Args:
            features: (B, T, F).
            steps: (B, T).
            chosen: (N,) which of the B T states were imagined from; the other returns end in the critic's value.
            imagined: (N,) the returns of those.
        """
        critic = SymexpTwoHot(self.critic(features))
        bootstrap = critic.mean.detach().flatten()
        bootstrap[chosen] = imagined
        live = (~steps.is_terminal).float() * (1 - 1 / self.config.model.horizon)
        lam = (~steps.is_last).float() * self.config.lam
        returns = lambda_return(steps.reward, live, bootstrap.view_as(live), lam)
        return (~steps.is_last[:, :-1]).float() * self._value_loss(critic, features, returns)

    def _value_loss(self, critic: SymexpTwoHot, features: Tensor, returns: Tensor) -> Tensor:
        """(..., T): critic and features are of T + 1 steps, the returns of all but the last.

        Towards the returns, and towards the slow critic as a regulariser.
        """
        with torch.no_grad():
            slow = SymexpTwoHot(self.slow_critic(features)).mean[:, :-1]
        index, weight = two_hot(torch.stack([returns, slow], -1), critic.bins)  # (..., T, 2, 2)
        weight[..., 1, :].mul_(self.config.slow_scale)
        return critic.cross_entropy(index.flatten(-2), weight.flatten(-2))

    def _choose_starts(self, states: State) -> tuple[Tensor, State]:
        """States to imagine from, (N,): all of the (B, T) or some, and their indices."""
        flat = {name: value.detach().flatten(0, 1) for name, value in states.items()}
        total = len(flat["deter"])
        if self.config.starts is None or self.config.starts >= total:
            return torch.arange(total, device=flat["deter"].device), flat
        chosen = torch.rand(total, device=flat["deter"].device).topk(self.config.starts).indices
        return chosen, {name: value[chosen] for name, value in flat.items()}

    # ---- afterwards -------------------------------------------------------------------------------

    def update(self, replay: Replay) -> Metrics:
        """Nothing more is learnt from the replay."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {"returns": self.returns.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.returns.load_state_dict(state["returns"])

    def adapt(self, optimiser: dict[str, Any]) -> dict[str, Any]:
        """The state of an optimiser, also of a run that began with other ``groups``."""
        if self.config.critic_updates == 1:
            return optimiser
        return _with_critic_apart(optimiser, len(list(self.actor.parameters())))


def _with_critic_apart(state: dict[str, Any], actor: int) -> dict[str, Any]:
    """An optimiser's state, also of a run that has actor (so many parameters) and critic in one group."""
    groups = state["param_groups"]
    if len(groups) > CRITIC:
        return state
    model, behaviour = groups
    parts = [{**behaviour, "params": part} for part in (behaviour["params"][:actor], behaviour["params"][actor:])]
    return {**state, "param_groups": [model, *parts]}
