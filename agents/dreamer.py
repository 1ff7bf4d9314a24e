"""Dreamer: an actor and a critic that learn inside a learned world model.

The order of ``update`` is the paper's: learn the model from replayed sequences, imagine rollouts from
their states, learn the critic and the actor from those. Source: Hafner et al., "Mastering diverse
control tasks through world models" (Nature, 2025), called DreamerV3; what our own presets change is
said where it is changed.

Letters: B sequences, T steps, N imagined rollouts, H imagined steps, A action, F features.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import gymnasium as gym
import torch
from gymnasium import spaces
from torch import Tensor, nn

from agents.action_values import ActionValueConfig, ActionValues
from mbrl.cuda_graph import CudaGraph
from mbrl.distributions import ActionDistribution, Both, BoundedNormal, OneHotChoice, Policy, SymexpTwoHot, two_hot
from mbrl.dynamics.rssm import RSSMConfig
from mbrl.errors import UserError
from mbrl.interfaces import Imagined, State
from mbrl.networks import MLP, Linear, TwoHotHead
from mbrl.open_loop import open_loop
from mbrl.optim import LaProp, track
from mbrl.replay import Batch, Replay
from mbrl.returns import ReturnScale, lambda_return
from mbrl.spaces import ActionSpec, check_observation_space
from mbrl.steps import Steps
from mbrl.training import TrainConfig
from mbrl.world_model import WorldModel, WorldModelConfig, frozen

Metrics = dict[str, Tensor | float]


@dataclass(frozen=True)
class DreamerConfig:
    model: WorldModelConfig = field(default_factory=WorldModelConfig)
    """The world model."""
    batch_size: int = 16
    """B: replayed sequences in an update."""
    batch_length: int = 64
    """T: steps of a sequence, beside one step of context."""
    horizon: int = 15
    """H: imagined steps."""
    starts: int | None = None
    """N: imagined rollouts, from states drawn among the B T replayed ones; None: from all of them."""
    actor_gradient: str = "reinforce"
    """"reinforce"; where all actions are continuous also "pathwise", through the imagined dynamics; where there are
    no pictures either also "action_values", at imagined states: a critic of actions, learnt from replayed rewards, then
    takes the place of the one below. Where one cannot be, the one before it is taken."""
    action_values: ActionValueConfig = field(default_factory=ActionValueConfig)
    """Actor and critics where that is "action_values"; of what follows they share noise and learning of the model."""
    actor_layers: int = 3
    """Hidden layers of the actor, as wide as the model's heads."""
    critic_layers: int = 3
    """Hidden layers of the critic."""
    critic_updates: int = 1
    """Gradient steps of the critic in an update: the first with all else, the others alone, on the same rollouts."""
    lam: float = 0.95
    """Lambda of the returns."""
    entropy: float = 3e-4
    """Weight of the actor's entropy where its gradient is REINFORCE."""
    pathwise_entropy: float = 3e-3
    """Weight of the actor's entropy where its gradient is pathwise."""
    saturation: float = 0.02
    """Pathwise only: penalty on an actor's mean before its tanh, squared beyond 1."""
    min_std: float = 0.1
    """Least standard deviation of a continuous policy, between its bounds of -1 and 1."""
    noise_correlation: float = 0.0
    """Correlation of the exploration noise from one decision to the next; continuous actions only."""
    return_rate: float = 0.01
    """Rate of the return normaliser."""
    return_minimum: float = 1.0
    """Returns whose range is smaller than this are not scaled up."""
    return_debias: bool = False
    """Debias the return normaliser, so that it holds from the first update."""
    slow_rate: float = 0.02
    """How fast the slow critic follows the critic."""
    slow_scale: float = 1.0
    """Weight of the critic's loss towards the slow critic."""
    repval_scale: float = 0.3
    """Weight of the critic's loss on replayed rewards."""
    lr: float = 4e-5
    """Learning rate of the world model."""
    behaviour_lr: float | None = None
    """Learning rate of actor and critic; None: the same."""
    agc: float = 0.3
    """Adaptive gradient clipping: the longest gradient, relative to its parameter."""
    warmup: int = 1000
    """Updates over which the learning rate rises."""
    precision: str = "float32"
    """Of matrix products while learning: "float32" or "bfloat16"; all else stays in float32."""
    cuda_graph: bool = True
    """On a GPU, record an update as one CUDA graph."""


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


class Dreamer:
    """Implements interfaces.Agent.

    Args:
        config: everything that can be chosen.
        observation_space: flat Dict of Box and Discrete.
        action_space: Box or Discrete.
        device: where the networks live.

    Raises:
        UserError: a space that is not supported.
    """

    def __init__(
        self,
        config: DreamerConfig,
        observation_space: gym.Space,
        action_space: gym.Space,
        device: torch.device | str = "cpu",
    ):
        self.config, self.device = config, torch.device(device)
        self.space: spaces.Dict = check_observation_space(observation_space)
        self.spec = ActionSpec.of(action_space)
        if config.actor_gradient not in ("reinforce", "pathwise", "action_values"):
            raise UserError(
                f"actor_gradient {config.actor_gradient!r} is unknown; use 'reinforce', 'pathwise' or 'action_values'"
            )
        if config.precision not in ("float32", "bfloat16"):
            raise UserError(f"precision {config.precision!r} is unknown; use 'float32' or 'bfloat16'")
        model = config.model
        self.world_model = WorldModel(model, self.space, self.spec.size).to(self.device)
        self.pathwise = config.actor_gradient != "reinforce" and not self.spec.choices
        self.action_values: ActionValues | None = None
        if config.actor_gradient == "action_values" and self.pathwise and not self.world_model.encoder.images:
            self.action_values = ActionValues(config.action_values, self.world_model, self.spec.size, self.device)
        self.modules = nn.ModuleDict({"world_model": self.world_model, **self._behaviour()}).to(self.device)
        self.optimiser = LaProp(self._parameter_groups(), lr=config.lr, agc=config.agc, warmup=config.warmup)
        self.returns = ReturnScale(config.return_rate, config.return_minimum, config.return_debias, self.device)
        self.learn = self._recorded()
        self.min_steps = config.batch_length + 1
        """Steps a replay must hold before the first update."""
        self.last_batch: Batch | None = None
        """What the last update learnt from; kept for a post-mortem."""

    def _behaviour(self) -> dict[str, nn.Module]:
        """Actor and critics."""
        if self.action_values is not None:
            return self.action_values.modules()
        config, model, features = self.config, self.config.model, self.world_model.feature_size
        self.actor = Actor(features, self.spec, model.units, config.actor_layers, model.norm, config.min_std)
        self.critic = TwoHotHead(features, model.bins, model.units, config.critic_layers, model.norm)
        self.slow_critic = copy.deepcopy(self.critic).requires_grad_(False)
        return {"actor": self.actor, "critic": self.critic, "slow_critic": self.slow_critic}

    # ---- acting --------------------------------------------------------------------------------

    def initial_state(self, n: int) -> State:
        noise = torch.zeros(n, self.spec.continuous, device=self.device)
        return {**self.world_model.dynamics.initial_state(n), "noise": noise}

    @torch.no_grad()
    def act(self, step: Steps, state: State, explore: bool) -> tuple[Tensor, State]:
        """Filter the step (N,), then sample the policy, or take its mode."""
        step, noise = step.to(self.device), state["noise"]
        state = self.world_model.observe(step, state)
        if self.action_values is not None:
            policy: Policy = self.action_values.policy(step.obs, state)
        else:
            policy = self.actor(self.world_model.dynamics.features(state))
        if not explore:
            action = policy.mode
        elif isinstance(policy, OneHotChoice):
            action = policy.sample()
        else:
            noise = self._explore(noise, step.is_first)
            action = policy.sample(noise)
        return action.cpu(), {**state, "noise": noise}

    def policy(self, features: Tensor) -> Policy:
        """Features (..., F) of a dream -> what the agent would do there."""
        if self.action_values is not None:
            return self.action_values.dreamt_policy(features)
        policy: ActionDistribution = self.actor(features)
        return policy

    def _explore(self, noise: Tensor, is_first: Tensor) -> Tensor:
        """The next value of an autoregressive process of unit variance, for each continuous dimension.

        White noise hardly moves what has inertia; correlated noise does (Eberhard et al., "Pink noise is
        all you need", ICLR 2023).
        """
        rho = self.config.noise_correlation * (~is_first).float().unsqueeze(-1)
        return rho * noise + torch.sqrt(1 - rho**2) * torch.randn_like(noise)

    def latent_spec(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        c = self.config.model.rssm
        return {"deter": ((c.deter,), torch.float16), "stoch": ((c.stoch,), torch.uint8)}

    def latents(self, state: State) -> State:
        """Half-precision deter and class indices as bytes: a quarter of the floats' size or less."""
        stoch = state["stoch"].detach().argmax(-1).to(torch.uint8)
        return {"deter": state["deter"].detach().to(torch.float16), "stoch": stoch}

    def _restore(self, latents: State) -> State:
        """The inverse of ``latents``."""
        latents = {name: value.to(self.device) for name, value in latents.items()}
        stoch = nn.functional.one_hot(latents["stoch"].long(), self.config.model.rssm.classes).float()
        return {"deter": latents["deter"].float(), "stoch": stoch}

    # ---- learning ------------------------------------------------------------------------------

    def update(self, replay: Replay) -> Metrics:
        """One gradient update of world model, critic and actor; rewrites the batch's latents."""
        self.last_batch = batch = replay.sample(self.config.batch_size, self.config.batch_length + 1)
        steps = batch.steps.to(self.device)[:, 1:]
        context = self._restore({name: value[:, 0] for name, value in batch.latents.items()})
        latents, metrics = self.learn(steps, context)
        env, time = batch.index
        replay.write_latents((env, time[:, 1:]), latents)
        return dict(metrics) if self.action_values is None else self._with_action_values(metrics, replay)

    def _with_action_values(self, metrics: Metrics, replay: Replay) -> Metrics:
        assert self.action_values is not None
        metrics = {**metrics, **self.action_values.update(replay, self._restore)}
        losses = (metrics[f"train/loss/{name}"] for name in ("total", "value", "policy"))
        return {**metrics, "train/loss/total": sum(losses)}

    def _learn(self, steps: Steps, context: State) -> tuple[State, Metrics]:
        """The gradient step on steps (B, T) after the states ``context`` (B,): new latents (B, T), metrics."""
        self.world_model.encoder.update(steps.obs)
        with self._precision():
            losses, states, imagined, metrics = self.losses(steps, context)
        total = torch.stack([value.mean() for value in losses.values()]).sum()
        self.optimiser.zero_grad()
        total.backward()
        self.optimiser.step()
        if imagined is not None:
            track(self.slow_critic, self.critic, self.config.slow_rate)
            for _ in range(self.config.critic_updates - 1):
                self._fit_critic(imagined)
        metrics |= {f"train/loss/{name}": value.detach().mean() for name, value in losses.items()}
        return self.latents(states), metrics | {"train/loss/total": total.detach()}

    def _fit_critic(self, imagined: Imagined) -> None:
        """A gradient step of the critic alone on rollouts (N, H+1) that it has learnt from already (eqs. 7 and 8).

        Its targets are its own values, H steps on: with each step what it knows of rewards travels that much further.
        """
        features, reward, proceed = (value.detach() for value in (imagined.features, imagined.reward, imagined.proceed))
        with self._precision():
            critic = SymexpTwoHot(self.critic(features))
            returns = lambda_return(reward, proceed, critic.mean.detach(), self.config.lam)
            loss = (proceed.cumprod(1)[:, :-1] * self._value_loss(critic, features, returns)).mean()
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step(only=CRITIC)
        track(self.slow_critic, self.critic, self.config.slow_rate)

    def _recorded(self) -> Callable[[Steps, State], tuple[State, Metrics]]:
        """``_learn``, on a GPU as a CUDA graph."""
        recorded = self.device.type == "cuda" and self.config.cuda_graph
        return CudaGraph(self._learn) if recorded else self._learn

    def _precision(self) -> AbstractContextManager[object]:
        """Inside, matrix products and convolutions are computed in the configured precision."""
        bfloat16 = self.config.precision == "bfloat16"
        return torch.autocast(self.device.type, torch.bfloat16) if bfloat16 else nullcontext()

    def losses(self, steps: Steps, context: State) -> tuple[dict[str, Tensor], State, Imagined | None, Metrics]:
        """All losses by name, scaled, not yet averaged; the posterior states (B, T); rollouts from them; metrics.

        With action values those of the world model alone, and no rollouts.

        Args:
            steps: (B, T).
            context: (B,) state before the first step.
        """
        dynamics = self.world_model.dynamics
        losses, states = self.world_model.loss(steps, context)  # (B, T)
        if self.action_values is not None:
            return losses, states, None, {}

        chosen, start = self._choose_starts(states)  # (N,) among the B T states
        imagined, policy = self._imagine(start)  # (N, H+1), (N, H)
        behaviour_losses, returns, metrics = self._behaviour_losses(imagined, policy)
        replayed = self._replay_value_loss(dynamics.features(states), steps, chosen, returns[:, 0])
        losses |= {**behaviour_losses, "repval": self.config.repval_scale * replayed}
        return losses, states, imagined, metrics

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
            return torch.arange(total, device=self.device), flat
        chosen = torch.rand(total, device=self.device).topk(self.config.starts).indices
        return chosen, {name: value[chosen] for name, value in flat.items()}

    # ---- looking at it -------------------------------------------------------------------------

    def report(self, replay: Replay) -> dict[str, Any]:
        """``mbrl.open_loop`` on replayed sequences; nothing while there are too few."""
        seen, horizon = 8, max(15, self.config.horizon)
        if not replay.ready(seen + horizon + 1):
            return {}
        batch = replay.peek(16, seen + horizon + 1)
        context = self._restore({name: value[:, 0] for name, value in batch.latents.items()})
        return open_loop(self.world_model, batch.steps.to(self.device)[:, 1:], context, seen)

    def describe(self) -> str:
        """One line: encoders, action head, size."""
        parts = [f"{key} {tuple(s.shape or ())} -> {'CNN' if key in self.world_model.encoder.images else 'MLP'}"
                 for key, s in self.space.spaces.items()]  # fmt: skip
        return f"obs {', '.join(parts)}   action {self.spec}   {self.num_parameters / 1e6:.2f} M params"

    @property
    def num_parameters(self) -> int:
        """Trained parameters; the slow critic is not among them."""
        return sum(p.numel() for p in self.modules.parameters() if p.requires_grad)

    def state_dict(self) -> dict[str, Any]:
        optimiser = self.optimiser.state_dict()
        state = {"model": self.modules.state_dict(), "optimiser": optimiser, "returns": self.returns.state_dict()}
        return state if self.action_values is None else {**state, "action_values": self.action_values.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.modules.load_state_dict(state["model"])
        if "optimiser" in state:
            optimiser = state["optimiser"]
            if self.action_values is not None:
                self.action_values.load_state_dict(state["action_values"])
            elif self.config.critic_updates > 1:
                optimiser = _with_critic_apart(optimiser, len(list(self.actor.parameters())))
            self.optimiser.load_state_dict(optimiser)
            self.returns.load_state_dict(state["returns"])
        self.learn = self._recorded()  # a recording knows the old tensors

    def _parameter_groups(self) -> list[dict[str, Any]]:
        """World model and behaviour; the critic apart where it takes steps of its own. Action values are not here."""
        model: dict[str, Any] = {"params": list(self.world_model.parameters())}
        if self.action_values is not None:
            return [model]
        actor, critic = list(self.actor.parameters()), list(self.critic.parameters())
        behaviour = [[*actor, *critic]] if self.config.critic_updates == 1 else [actor, critic]
        lr = self.config.behaviour_lr or self.config.lr
        return [model, *({"params": params, "lr": lr} for params in behaviour)]


CRITIC = 2
"""Its place among the parameter groups."""


def _with_critic_apart(state: dict[str, Any], actor: int) -> dict[str, Any]:
    """An optimiser's state, also of a run that has actor (so many parameters) and critic in one group."""
    groups = state["param_groups"]
    if len(groups) > CRITIC:
        return state
    model, behaviour = groups
    parts = [{**behaviour, "params": part} for part in (behaviour["params"][:actor], behaviour["params"][actor:])]
    return {**state, "param_groups": [model, *parts]}


# ---- presets: functions that return a configuration -------------------------------------------------


@dataclass(frozen=True)
class Preset:
    agent: DreamerConfig
    training: TrainConfig


def sized(units: int) -> WorldModelConfig:
    """One dial for the official sizes: 64 is size1m, 256 size12m, 1024 size200m; 32 is our ``micro``."""
    classes = max(4, units // 16)
    rssm = RSSMConfig(deter=8 * units, classes=classes, hidden=units)
    return WorldModelConfig(rssm=rssm, units=units, depth=classes)


def reference() -> Preset:
    """The official agent's size1m and losses, one update a decision as its dm_control benchmark does."""
    training = TrainConfig(steps=500_000, update_ratio=1.0, prefill=1024, random_prefill=False)
    return Preset(DreamerConfig(model=sized(64)), training)


def laptop() -> Preset:
    """What learns most per hour on two CPU cores, as far as we have measured (benchmarks/EFFICIENCY.md).

    Against ``reference``: small and short batches, few and short rollouts, learning rates 10 to 25 times
    higher, normalised vectors, a discount over 100 decisions. Where all actions are continuous, correlated noise to
    explore by, and action values learnt from replayed rewards (agents/action_values.py), or, from pictures, pathwise
    gradients. Where they are not, a critic that takes four steps where the rest takes one.
    """
    rssm = RSSMConfig(deter=256, hidden=64, free_nats=0.3)
    agent = DreamerConfig(
        model=WorldModelConfig(rssm, layers=2, bins=127, norm="layer", normalise=True, horizon=100.0),
        batch_length=16,
        horizon=5,
        starts=128,
        actor_gradient="action_values",
        actor_layers=2,
        critic_layers=2,
        critic_updates=4,
        min_std=0.3,
        noise_correlation=0.9,
        return_debias=True,
        lr=1e-3,
        behaviour_lr=5e-4,
        warmup=100,
    )
    return Preset(agent, TrainConfig(prefill=500, random_prefill=False))


def debug() -> Preset:
    """Everything runs, in seconds; nothing is learnt."""
    model = replace(sized(8), rssm=RSSMConfig(deter=16, stoch=4, classes=4, hidden=8, blocks=2), bins=15)
    values = ActionValueConfig(critic_steps=2, actor_every=2, batch_size=8, units=8)
    agent = DreamerConfig(
        model=model, action_values=values, batch_size=4, batch_length=8, horizon=3, warmup=0, lr=1e-3
    )
    training = TrainConfig(
        steps=400,
        update_ratio=0.1,
        prefill=40,
        log_every=100,
        eval_every=200,
        eval_episodes=2,
        final_episodes=2,
        eval_limit=200,
        eval_probes=10,
    )
    return Preset(agent, training)
