"""Behaviour by action values: a critic Q(x, a) of real and dreamt rewards, and an actor that learns from it in dreams.

    critic   y = r + d (mean_k Q'_k(x', a') - alpha ln pi(a' | x')),  a' ~ pi(x'),  on replayed and dreamt steps
    actor    max  mean_k Q_k(x_h, a) - alpha ln pi(a | x_h),          a ~ pi(x_h),  at dreamt x_0 ... x_H

A model that errs a little misleads a critic that learns in it, and a policy goes where it errs; replayed rewards do
not err, and many steps on them cost little. What the actor is to do where its own actions lead, only the model can ask.
And a critic that has only seen what was done promises as much everywhere else: half of its transitions are dreamt, and
half of the dreams wander off the policy's path, so that it learns what is lost there.

As long as rewards are all alike and nothing ends, nothing tells one action from another. Then what the world model
does not know is worth finding out: where its members differ is a reward, too. Once something tells it fades, over as
many updates as that took.
Sources: the entropy is that of soft actor-critic (Haarnoja et al., 2018); norms, a mean over the critics instead of
their minimum, and many steps from BRO (Nauman et al., NeurIPS 2024); a critic of replayed steps with an actor in
short dreams from SAC-SVG (Amos et al., L4DC 2021); a share of dreamt steps for a critic from MAD-TD (Voelcker et al.,
ICLR 2025); doubt as a reward from disagreement (Pathak et al., ICML 2019) and Plan2Explore (Sekar et al., ICML
2020). What each is worth here is in benchmarks/EFFICIENCY.md.

Letters: M transitions, N dreams, H dreamt steps, K critics, X what actor and critics see, A action, F features.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mbrl.distributions import SquashedNormal
from mbrl.errors import UserError, check_least
from mbrl.interfaces import Imagined, State
from mbrl.networks import ResidualEnsemble
from mbrl.optim import LaProp, track
from mbrl.replay import Replay
from mbrl.steps import Steps
from mbrl.world_model import WorldModel, frozen

Metrics = dict[str, Tensor | float]
Record = Callable[[Callable[..., Any]], Callable[..., Any]]
WANDERING = 0.8
"""Correlation of the noise in dreams from one step to the next."""
PRACTICE = 100
"""Updates after which curiosity explores farther than noise."""
MOST_CURIOUS = 5.0
"""A doubt so many times the usual one is worth as much as the largest reward, and a larger one no more."""


@dataclass(frozen=True)
class ActionValueConfig:
    critic_steps: int = 10
    """Gradient steps of the critics in an update of the agent."""
    actor_every: int = 4
    """The actor takes a step with the first of so many of theirs."""
    batch_size: int = 128
    """M: transitions of a step; the states that the actor learns at are as many."""
    dreamt: float = 0.5
    """Share of them that comes out of dreams; the others are replayed."""
    dreams: int = 64
    """N: dreams of an update of the agent, begun from replayed states."""
    dream: int = 6
    """H: dreamt steps."""
    wander: float = 1.0
    """Deviation of the noise on the actions of every second dream, so that it leaves the policy's path."""
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
    """What the policy's entropy should be at first: nats for each continuous dimension."""
    final_entropy: float = -2.5
    """... and in the end: actions near their bounds, often the best ones, have little of it."""
    settling: int = 10_000
    """Updates, from the first that learns from rewards or ends that differ, over which the one becomes the other."""


def _check(config: ActionValueConfig) -> None:
    """Raises:
    UserError: a number that nothing could be done with.
    """
    counts = ("critic_steps", "actor_every", "batch_size", "dreams", "dream", "critics", "units", "horizon", "settling")
    check_least(config, "--config.action-values", {**dict.fromkeys(counts, 1), "dreamt": 0, "wander": 0})
    if config.dreamt >= 1:
        raise UserError(f"--config.action-values.dreamt is {config.dreamt}; it must be below 1: real rewards count")
    if config.temperature <= 0:
        raise UserError(f"--config.action-values.temperature is {config.temperature}; it must be above 0")


class Transitions(NamedTuple):
    """M steps from what was seen, by an action, to what was seen next."""

    x: Tensor
    """(M, X)."""
    action: Tensor
    """(M, A)."""
    reward: Tensor
    """(M,)."""
    proceed: Tensor
    """(M,): probability that the episode is not over."""
    next_x: Tensor
    """(M, X)."""
    weight: Tensor
    """(M,): 0 where there was no such step, in a dream the probability of getting there."""


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
        record: makes of a function of tensors one that does the same, on a GPU from a recording.

    Raises:
        UserError: a number of ``config`` that nothing could be done with.
    """

    update_ratio = 1.0
    """Without dreamt transitions the critics would promise too much after so many updates."""

    def __init__(
        self, config: ActionValueConfig, world_model: WorldModel, actions: int, device: torch.device, record: Record
    ):
        _check(config)
        self.config, self.world_model, self.actions = config, world_model, actions
        self.device, self.record = device, record
        self.discount = 1 - 1 / config.horizon
        self.from_dreams = int(config.dreamt * config.batch_size)
        """Of the transitions of a step."""
        size = world_model.encoder.view.size + (world_model.feature_size if config.memory else 0)
        self.actor = SoftActor(size, actions, config.units).to(device)
        self.critics = ResidualEnsemble(config.critics, size + actions, 1, config.units).to(device)
        self.slow_critics = copy.deepcopy(self.critics).requires_grad_(False)
        self.log_temperature = nn.Parameter(torch.tensor(math.log(config.temperature), device=device))
        self.reward_scale = nn.Parameter(torch.ones((), device=device), requires_grad=False)
        """The largest reward so far, of either sign, and at least 1: values are learnt in units of it."""
        self.aimless = True
        """Noise explores farther than the policy."""
        self.curious, self.aimed = 0, 0
        """Updates while nothing told one action from another and the model could doubt; updates since something did."""
        self.curiosity = torch.zeros((), device=device)
        """What the largest doubt is worth, in units of the reward scale."""
        self.wanted_entropy = torch.full((), config.entropy * actions, device=device)
        learnt = (self.actor.parameters(), self.critics.parameters(), [self.log_temperature])
        fused, capturable = device.type in ("cpu", "cuda"), device.type == "cuda"
        self.optimisers = [torch.optim.Adam(params, config.lr, fused=fused, capturable=capturable) for params in learnt]
        numbers = nn.ParameterDict({"log_temperature": self.log_temperature, "reward_scale": self.reward_scale})
        self.modules: dict[str, nn.Module] = {
            "actor": self.actor, "critic": self.critics, "slow_critic": self.slow_critics, "behaviour": numbers,
        }  # fmt: skip
        self._record()

    def _record(self) -> None:
        """Learning from what is rewarded, and from doubt besides."""
        self.learn, self.wonder = self.record(self._learn), self.record(partial(self._learn, curious=True))

    # ---- what is seen ----------------------------------------------------------------------------

    def see(self, obs: dict[str, Tensor], state: State) -> Tensor:
        """Real observations (n, ...), and the states (n,) that they led to -> (n, X)."""
        x = self.world_model.encoder.view(obs, lead=1)
        return torch.cat([x, self.world_model.features(state)], -1) if self.config.memory else x

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

    def update(self, replay: Replay) -> Metrics:
        """The steps that go with one of the world model."""
        config = self.config
        starts = replay.draw(config.dreams, 1)
        batch = replay.draw(config.critic_steps * (config.batch_size - self.from_dreams), 2)
        self.wanted_entropy.fill_(self._entropy())
        self.curiosity.fill_(curiosity := self._curiosity())
        learn = self.wonder if curiosity else self.learn
        metrics, alike = learn(*starts.on(self.device), *batch.on(self.device))
        if self.aimed or not alike:
            self.aimed += 1
        else:
            self.curious += self.world_model.doubts
        self.aimless = not self.aimed and self.curious < PRACTICE
        return metrics

    def _curiosity(self) -> float:
        """What doubt is worth by now: all once nothing told one action from another, ever less since something did."""
        return max(0.0, 1 - self.aimed / self.curious) if self.curious else 0.0

    def _entropy(self) -> float:
        """What all dimensions' together should be by now: much while there is everything to find, then little."""
        config, settled = self.config, min(1.0, self.aimed / self.config.settling)
        return self.actions * (config.entropy + settled * (config.final_entropy - config.entropy))

    def _learn(
        self, starts: Steps, start_latents: State, replayed: Steps, latents: State, curious: bool = False
    ) -> tuple[Metrics, Tensor]:
        """The same from steps (N, 1) to dream from and steps (M', 2) for all the critics' own, each with its latents.

        Args:
            curious: whether the world model's doubt is rewarded.

        Returns:
            Metrics, and whether the replayed steps were all alike.
        """
        config, steps, from_dreams = self.config, self.config.critic_steps, self.from_dreams
        metrics: Metrics = {}
        seen, dreamt = self._dream(starts, self.world_model.recall(starts, start_latents))
        real = self._replayed(replayed, self.world_model.recall(replayed, latents))
        self.reward_scale.copy_(torch.maximum(self.reward_scale, real.reward.abs().max()))
        alike = _all_alike(real)
        if curious:
            real, dreamt = self._doubtful(real, dreamt)
        picked = self._pick(steps * from_dreams, len(dreamt.x))
        parts = [torch.cat([_split(r, steps), _split(d[picked], steps)], 1) for r, d in zip(real, dreamt, strict=True)]
        for k, transitions in enumerate(map(Transitions, *parts)):
            metrics |= self._fit_critics(transitions)
            if k % config.actor_every == 0:
                metrics |= self._improve_actor(seen[self._pick(config.batch_size, len(seen))])
        return metrics, alike

    def _pick(self, n: int, among: int) -> Tensor:
        return torch.randint(among, (n,), device=self.device)

    def _replayed(self, steps: Steps, states: State) -> Transitions:
        """Transitions (M,) from steps and states (M, 2)."""
        before, after = steps[:, 0], steps[:, 1]
        x, next_x = (self.see(step.obs, _at(states, t)) for t, step in enumerate((before, after)))
        proceed, weight = (~after.is_terminal).float(), (~before.is_last).float()  # a last step is followed by a reset
        return Transitions(x, after.action.clamp(-1, 1), after.reward, proceed, next_x, weight)

    def _doubtful(self, *parts: Transitions) -> list[Transitions]:
        """The same transitions with doubt rewarded, by how much more of it there is than usual in the first part."""
        doubts = [self.world_model.doubt(part.x, part.action) for part in parts]
        most = (MOST_CURIOUS * doubts[0].mean()).clamp_min(1e-12)
        worth = self.curiosity * self.reward_scale
        bonuses = [worth * (doubt / most).clamp(max=1) for doubt in doubts]
        return [part._replace(reward=part.reward + bonus) for part, bonus in zip(parts, bonuses, strict=True)]

    @torch.no_grad()
    def _dream(self, steps: Steps, states: State) -> tuple[Tensor, Transitions]:
        """Dreams from steps and states (N, 1): what is seen in them (N (H+1), X), and their transitions (N H)."""
        model, start, state = self.world_model, steps[:, 0], _at(states, 0)
        seen, actions, features = [self.see(start.obs, state)], [], []
        noise = torch.randn_like(start.action)
        apart = self.config.wander * (torch.arange(len(noise), device=self.device) % 2).unsqueeze(1)
        for _ in range(self.config.dream):
            actions.append((self.actor(seen[-1]).sample() + apart * noise).clamp(-1, 1))
            noise = WANDERING * noise + math.sqrt(1 - WANDERING**2) * torch.randn_like(noise)
            state = model.step(state, actions[-1])
            features.append(model.features(state))
            seen.append(self.see_dreamt(features[-1]))
        reward, proceed = model.predict(torch.stack(features))  # (H, N)
        proceed = (proceed / (1 - 1 / model.config.horizon)).clamp(max=1)  # the discount in it is the model's own
        weight = torch.cat([(~start.is_terminal).float().unsqueeze(0), proceed[:-1]]).cumprod(0)
        path, n = torch.cat(seen), len(noise)
        x, next_x = path[:-n], path[n:]
        return path, Transitions(x, torch.cat(actions), reward.flatten(), proceed.flatten(), next_x, weight.flatten())

    def _fit_critics(self, steps: Transitions) -> Metrics:
        """A gradient step of the critics."""
        with torch.no_grad():
            action, log_prob = self.actor(steps.next_x).sample_with_log_prob()
            value = self._value(self.slow_critics, steps.next_x, action).mean(0) - self.log_temperature.exp() * log_prob
            target = steps.reward / self.reward_scale + self.discount * steps.proceed * value
        values = self._value(self.critics, steps.x, steps.action)
        loss = (steps.weight * (values - target).square()).mean(1).sum()
        self._descend(1, loss)
        track(self.slow_critics, self.critics, self.config.slow_rate)
        return {"train/loss/value": loss.detach(), "train/value": self.reward_scale * values.detach().mean()}

    def _improve_actor(self, x: Tensor) -> Metrics:
        """A gradient step of actor and temperature where x (M, X) is seen."""
        action, log_prob = self.actor(x).sample_with_log_prob()
        with frozen(self.critics):
            value = self._value(self.critics, x, action).mean(0)
        loss = (self.log_temperature.exp().detach() * log_prob - value).mean()
        self._descend(0, loss)
        entropy = -log_prob.detach().mean()
        self._descend(2, self.log_temperature.exp() * (entropy - self.wanted_entropy))
        temperature = self.log_temperature.detach().exp()
        return {"train/loss/policy": loss.detach(), "train/entropy": entropy, "train/temperature": temperature}

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
        optimisers = [optimiser.state_dict() for optimiser in self.optimisers]
        return {"action_values": optimisers, "aimless": self.aimless, "aimed": self.aimed, "curious": self.curious}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for optimiser, stored in zip(self.optimisers, state["action_values"], strict=True):
            optimiser.load_state_dict(stored)
            for group in optimiser.param_groups:  # the run may have begun with another rate, on another device
                group.update(lr=self.config.lr, capturable=self.device.type == "cuda")
        self.aimless = state.get("aimless", False)
        self.aimed, self.curious = state.get("aimed", int(not self.aimless)), state.get("curious", 0)
        self._record()  # a recording knows the old tensors


def _all_alike(steps: Transitions) -> Tensor:
    """(): whether no reward and no end tells one action from another."""
    counts = steps.weight > 0
    low, high = steps.reward.where(counts, math.inf).min(), steps.reward.where(counts, -math.inf).max()
    return (low >= high) & (steps.proceed > 0).where(counts, True).all()


def _at(states: State, t: int) -> State:
    """(n, T) -> (n,)."""
    return {name: value[:, t] for name, value in states.items()}


def _split(part: Tensor, steps: int) -> Tensor:
    """(steps n, ...) -> (steps, n, ...)."""
    return part.unflatten(0, (steps, len(part) // steps))
