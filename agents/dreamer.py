"""Dreamer: an actor and a critic that learn inside a learned world model.

The order of ``update`` is the paper's: learn the model from replayed sequences, imagine rollouts from
their states, learn the critic and the actor from those. Source: Hafner et al., "Mastering diverse
control tasks through world models" (Nature, 2025), called DreamerV3; what our own presets change is
said where it is changed. World models are in ``mbrl/world_model.py``; actor and critic are the paper's in
``state_values.py``, ours in ``action_values.py``.

Letters: B sequences, T steps, N imagined rollouts, H imagined steps, A action, F features.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import gymnasium as gym
import torch
from gymnasium import spaces
from torch import Tensor, nn

from agents.action_values import ActionValueConfig, ActionValues
from agents.state_values import StateValues
from mbrl.cuda_graph import CudaGraph
from mbrl.distributions import OneHotChoice, Policy
from mbrl.dynamics.rssm import RSSMConfig
from mbrl.errors import UserError, check_least
from mbrl.interfaces import Advice, Imagined, State
from mbrl.observability import HIDDEN, MOST, hidden_share
from mbrl.open_loop import open_loop
from mbrl.optim import LaProp
from mbrl.replay import Batch, Replay
from mbrl.spaces import ActionSpec, check_observation_space, is_image
from mbrl.steps import Steps
from mbrl.training import TrainConfig
from mbrl.world_model import LatentModel, ObservationModel, WorldModel, WorldModelConfig

Metrics = dict[str, Tensor | float]


@dataclass(frozen=True)
class DreamerConfig:
    model: WorldModelConfig = field(default_factory=WorldModelConfig)
    """The world model."""
    batch_size: int = 16
    """B: replayed sequences in an update; an ensemble takes single transitions instead."""
    batch_length: int = 64
    """T: steps of a sequence, beside one step of context."""
    horizon: int = 15
    """H: imagined steps."""
    starts: int | None = None
    """N: imagined rollouts, from states drawn among the B T replayed ones; None: from all of them."""
    actor_gradient: str = "reinforce"
    """How the actor learns: "reinforce"; "pathwise", through the imagined dynamics (all actions continuous); or
    "action_values", at imagined states, from a critic of actions that learns from replayed and imagined rewards
    (besides, no pictures). Where one cannot be, the one before it is taken."""
    action_values: ActionValueConfig = field(default_factory=ActionValueConfig)
    """Actor and critics of "action_values", whose starts, horizon, layers, rates and precision are not the ones
    below: those are of the other two, and of the world model."""
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


def _check(config: DreamerConfig) -> None:
    """Raises:
    UserError: a word that is unknown, or a number that nothing could be done with.
    """
    if config.actor_gradient not in ("reinforce", "pathwise", "action_values"):
        raise UserError(
            f"actor_gradient {config.actor_gradient!r} is unknown; use 'reinforce', 'pathwise' or 'action_values'"
        )
    if config.model.family not in ("rssm", "ensemble"):
        raise UserError(f"model.family {config.model.family!r} is unknown; use 'rssm' or 'ensemble'")
    if config.precision not in ("float32", "bfloat16"):
        raise UserError(f"precision {config.precision!r} is unknown; use 'float32' or 'bfloat16'")
    if config.model.horizon <= 1:
        raise UserError(f"--config.model.horizon is {config.model.horizon}; it must be more than 1 step")
    counts, layers = ("batch_size", "horizon", "critic_updates"), ("actor_layers", "critic_layers")
    least = {**dict.fromkeys(counts, 1), **dict.fromkeys(layers, 0), "batch_length": 2}
    check_least(config, "--config", least if config.starts is None else least | {"starts": 1})


class Behaviour(Protocol):
    """Actor and critics: what acts, and what learns on top of the world model."""

    modules: dict[str, nn.Module]
    """All that is learnt, by name."""
    update_ratio: float
    """Updates of the agent per decision that suit it."""
    aimless: bool
    """Nothing that was experienced tells yet one action from another: then noise explores farther than a policy."""

    def policy(self, obs: dict[str, Tensor], state: State) -> Policy:
        """What to do (n,) in the states that observations (n, ...) have led to."""

    def dreamt_policy(self, features: Tensor) -> Policy:
        """The same in a dream of features (n, F)."""

    def groups(self) -> list[dict[str, Any]]:
        """The parameters that are learnt together with the world model, for its optimiser."""

    def losses(self, steps: Steps, states: State) -> tuple[dict[str, Tensor], Imagined | None, Metrics]:
        """Of those, scaled, on steps and posterior states (B, T); the rollouts that they come from; metrics."""

    def settle(self, imagined: Imagined | None, optimiser: LaProp) -> None:
        """What follows the step on those losses."""

    def update(self, replay: Replay) -> Metrics:
        """Steps of its own."""

    def adapt(self, optimiser: dict[str, Any]) -> dict[str, Any]:
        """The state of an optimiser, also of a run that began with other ``groups``."""

    def state_dict(self) -> dict[str, Any]:
        """What ``modules`` and the optimiser do not hold."""

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Dreamer:
    """Implements interfaces.Agent.

    Args:
        config: everything that can be chosen.
        observation_space: flat Dict of Box and Discrete.
        action_space: Box, Discrete, MultiDiscrete, MultiBinary, or a Dict or Tuple of them.
        device: where the networks live.

    Raises:
        UserError: a space that is not supported, or a setting.
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
        _check(config)
        self.world_model = self._make_world_model().to(self.device)
        self.behaviour = self._make_behaviour()
        self.modules = nn.ModuleDict({"world_model": self.world_model, **self.behaviour.modules}).to(self.device)
        groups = [{"params": list(self.world_model.parameters())}, *self.behaviour.groups()]
        self.optimiser = LaProp(groups, lr=config.lr, agc=config.agc, warmup=config.warmup)
        self.learn = self._recorded(self._learn)
        self.batch = self.world_model.batch or (config.batch_size, config.batch_length)
        """(B, T) of a gradient step of the world model."""
        self.min_steps = self.batch[1] + 1
        """Steps a replay must hold before the first update."""
        self.update_ratio = self.behaviour.update_ratio
        self.last_batch: Batch | None = None
        """What the last update learnt from; kept for a post-mortem."""

    def _make_world_model(self) -> WorldModel:
        """What the configuration asks for, or the RSSM where actor and critics need more than it can give."""
        numbers = all(isinstance(space, spaces.Box) for space in self.space.values())
        suits = self._by_action_values() and not self.config.action_values.memory and numbers
        family = ObservationModel if self.config.model.family == "ensemble" and suits else LatentModel
        return family(self.config.model, self.space, self.spec.size)

    def _by_action_values(self) -> bool:
        """Whether they are asked for and possible."""
        images = any(is_image(space) for space in self.space.values())
        return self.config.actor_gradient == "action_values" and not self.spec.choices and not images

    def _make_behaviour(self) -> Behaviour:
        """What the configuration asks for, or the next best that actions and observations allow."""
        config, continuous = self.config, not self.spec.choices
        if self._by_action_values():
            return ActionValues(config.action_values, self.world_model, self.spec.size, self.device, self._recorded)
        pathwise = config.actor_gradient != "reinforce" and continuous
        return StateValues(config, self.world_model, self.spec, pathwise, self._precision, self.device)

    # ---- acting --------------------------------------------------------------------------------

    def initial_state(self, n: int) -> State:
        noise = torch.zeros(n, self.spec.continuous, device=self.device)
        return {**self.world_model.initial_state(n), "noise": noise}

    @torch.no_grad()
    def act(self, step: Steps, state: State, explore: bool) -> tuple[Tensor, State]:
        """Filter the step (N,), then sample the policy, or take its mode."""
        step, noise = step.to(self.device), state["noise"]
        state = self.world_model.observe(step, state)
        policy = self.behaviour.policy(step.obs, state)
        if not explore:
            action = policy.mode
        elif isinstance(policy, OneHotChoice):
            action = policy.sample()
        else:
            noise = self._explore(noise, step.is_first)
            action = noise.clamp(-1, 1) if self.behaviour.aimless else policy.sample(noise)
        return action.cpu(), {**state, "noise": noise}

    def policy(self, features: Tensor) -> Policy:
        """Features (n, F) of a dream -> what the agent would do there."""
        return self.behaviour.dreamt_policy(features)

    def _explore(self, noise: Tensor, is_first: Tensor) -> Tensor:
        """The next value of an autoregressive process of unit variance, for each continuous dimension.

        White noise hardly moves what has inertia; correlated noise does (Eberhard et al., "Pink noise is
        all you need", ICLR 2023).
        """
        rho = self.config.noise_correlation * (~is_first).float().unsqueeze(-1)
        return rho * noise + torch.sqrt(1 - rho**2) * torch.randn_like(noise)

    def latent_spec(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        return self.world_model.latent_spec()

    def latents(self, state: State) -> State:
        return self.world_model.latents(state)

    # ---- learning ------------------------------------------------------------------------------

    def update(self, replay: Replay) -> Metrics:
        """Gradient steps of the world model, and of actor and critics as many as go with them; new latents."""
        size, length = self.batch
        for _ in range(self.world_model.gradient_steps):
            self.last_batch = batch = replay.sample(size, length + 1)
            latents, metrics = self.learn(*self._split(batch))
            env, time = batch.index
            replay.write_latents((env, time[:, 1:]), latents)
        further = self.behaviour.update(replay)
        losses = [value for name, value in further.items() if name.startswith("train/loss/")]
        return {**metrics, **further, "train/loss/total": sum(losses, metrics["train/loss/total"])}

    def _split(self, batch: Batch) -> tuple[Steps, State]:
        """A batch (B, T+1) -> its last T steps, and the state (B,) before them."""
        steps, latents = batch.on(self.device)
        first = {name: value[:, 0] for name, value in latents.items()}
        return steps[:, 1:], self.world_model.recall(steps[:, 0], first)

    def _learn(self, steps: Steps, context: State) -> tuple[State, Metrics]:
        """The gradient step on steps (B, T) after the states ``context`` (B,): new latents (B, T), metrics."""
        self.world_model.encoder.update(steps.obs)
        with self._precision():
            losses, states, imagined, metrics = self.losses(steps, context)
        total = torch.stack([value.mean() for value in losses.values()]).sum()
        self.optimiser.zero_grad()
        total.backward()
        self.optimiser.step()
        self.behaviour.settle(imagined, self.optimiser)
        metrics |= {f"train/loss/{name}": value.detach().mean() for name, value in losses.items()}
        return self.world_model.latents(states), metrics | {"train/loss/total": total.detach()}

    def _recorded(self, learn: Callable[..., Any]) -> Callable[..., Any]:
        """A function that learns, on a GPU as a CUDA graph."""
        return CudaGraph(learn) if self.device.type == "cuda" and self.config.cuda_graph else learn

    def _precision(self) -> AbstractContextManager[object]:
        """Inside, matrix products and convolutions are computed in the configured precision."""
        bfloat16 = self.config.precision == "bfloat16"
        return torch.autocast(self.device.type, torch.bfloat16) if bfloat16 else nullcontext()

    def losses(self, steps: Steps, context: State) -> tuple[dict[str, Tensor], State, Imagined | None, Metrics]:
        """All losses by name, scaled, not yet averaged; the posterior states (B, T); rollouts from them; metrics.

        Args:
            steps: (B, T).
            context: (B,) state before the first step.
        """
        losses, states = self.world_model.loss(steps, context)  # (B, T)
        behaviour_losses, imagined, metrics = self.behaviour.losses(steps, states)
        return {**losses, **behaviour_losses}, states, imagined, metrics

    # ---- looking at it -------------------------------------------------------------------------

    def report(self, replay: Replay) -> dict[str, Any]:
        """``mbrl.open_loop`` on replayed sequences; nothing while there are too few."""
        seen, horizon = 8, max(15, self.config.horizon)
        if not replay.ready(seen + horizon + 1):
            return {}
        steps, context = self._split(replay.peek(16, seen + horizon + 1))
        return open_loop(self.world_model, steps, context, seen)

    def advise(self, replay: Replay) -> list[Advice]:
        """Says so if observations hide something and nothing here remembers what the last one does not tell."""
        if not isinstance(self.world_model, ObservationModel):
            return []
        steps = replay.latest(max(3, min(len(replay), MOST) // replay.num_envs)).steps
        share = hidden_share(self.world_model.encoder.view.raw(steps.obs, 2), steps.action, steps.is_first)
        if share is None or share < HIDDEN:
            return []
        what = f"observations hide something, such as velocities: with the one before, {share:.0%} more can be foretold"
        return [Advice(f"{what} of how they change", "--config.action-values.memory")]

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
        return {"model": self.modules.state_dict(), "optimiser": optimiser, **self.behaviour.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.modules.load_state_dict(state["model"])
        self.optimiser.load_state_dict(self.behaviour.adapt(state["optimiser"]))
        self.behaviour.load_state_dict(state)
        self.learn = self._recorded(self._learn)  # a recording knows the old tensors


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
    """What learns most from few steps, as far as we have measured (benchmarks/EFFICIENCY.md), at about a second of a
    CPU core for a dozen environment steps of dm_control.

    Against ``reference``: small and short batches, few and short rollouts, learning rates 10 to 25 times
    higher, normalised vectors, a discount over 100 decisions. Where all actions are continuous, correlated noise to
    explore by, and action values learnt from replayed and dreamt rewards (agents/action_values.py), in dreams of an
    ensemble where observations are numbers (mbrl/dynamics/ensemble.py), or, from pictures, pathwise gradients. Where
    they are not, a critic that takes four steps where the rest takes one.
    """
    rssm = RSSMConfig(deter=256, hidden=64, free_nats=0.3)
    agent = DreamerConfig(
        model=WorldModelConfig("ensemble", rssm, layers=2, bins=127, norm="layer", normalise=True, horizon=100.0),
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
    """A whole training in seconds, with the RSSM and REINFORCE unless asked otherwise; nothing is learnt."""
    model = replace(sized(8), rssm=RSSMConfig(deter=16, stoch=4, classes=4, hidden=8, blocks=2), bins=15)
    values = ActionValueConfig(critic_steps=2, actor_every=2, batch_size=8, dreams=4, dream=2, units=8)
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
