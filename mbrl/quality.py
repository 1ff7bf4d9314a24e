"""judge(): how good a world model is, beside what the policy earns.

An agent plays episodes of its own, which nothing learns from. Now and then it stops to imagine some steps; then
those very actions are taken in the environment, from the same state, and the two are held against each other.
That is what a policy learns from in imagination, so errors that it has found and exploits are in it.

Letters: N parallel environments, H imagined steps, K further dreams with the same actions, P probes, E elements.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
from gymnasium.vector import VectorEnv
from torch import Tensor

from mbrl.distributions import Policy
from mbrl.driver import Driver
from mbrl.evaluation import Interrupted
from mbrl.interfaces import Agent, State
from mbrl.randomness import own_randomness
from mbrl.steps import Steps
from mbrl.world_model import WorldModel

DREAMS = 19
"""K: of so many, the truth lies between the lowest and the highest in 18 of 20 cases, if they are calibrated."""
COVERAGE = (DREAMS - 1) / (DREAMS + 1)
LEAD = 50
"""Decisions between two probes, at most."""

Metrics = dict[str, Any]
Found = dict[str, Tensor]
"""Of each probe, (P, H)."""


@runtime_checkable
class Imaginer(Agent, Protocol):
    """An agent that has a world model, and can act in its dreams."""

    world_model: WorldModel

    def policy(self, features: Tensor) -> Policy:
        """Features (n, F) of a dream -> what the agent would do there."""


@torch.no_grad()
def judge(
    agent: Imaginer,
    envs: VectorEnv[Any, Any, Any],
    seed: int,
    probes: int = 100,
    horizon: int = 15,
    stop: Callable[[], bool] = lambda: False,
) -> Metrics:
    """Metrics of the world model, lists over the horizon (H,) but for the first three; None where nothing is known.

    - ``model/probes``: how many there were.
    - ``model/continue_accuracy``: of the steps, on how many it is right that the episode goes on or ends.
    - ``model/ends_foreseen``: of the ends, how many it foresaw.
    - ``model/error``: mean absolute error of the observation, in the networks' units; images in [0, 1].
    - ``model/reward_error``: mean absolute error of the reward.
    - ``model/coverage`` and ``model/reward_coverage``: how often the truth lies within the range of K dreams;
      calibrated is ``COVERAGE``, less is overconfident.
    - ``model/spread``: the dreams' standard deviation by the error of their mean; calibrated is 1.
    - ``model/imagined_return`` and ``model/true_return``: sums of the first rewards, undiscounted.
    - ``model/exploitation_gap``: their difference.

    Raises:
        Interrupted: ``stop()`` became true.
    """
    with own_randomness(seed):
        player = _Player(agent, envs, seed, stop)
        found = []
        for _ in range(-(-probes // envs.num_envs)):
            player.play(int(torch.randint(1, LEAD + 1, ())))
            found.append(_probe(agent, player, horizon))
    return _metrics({name: torch.cat([probe[name] for probe in found]) for name in found[0]})


class _Player:
    """The agent in its environments."""

    def __init__(self, agent: Agent, envs: VectorEnv[Any, Any, Any], seed: int, stop: Callable[[], bool]) -> None:
        self.agent, self.driver, self.stop = agent, Driver(envs), stop
        self.step = self.driver.reset(seed)
        self.action, self.state = agent.act(self.step, agent.initial_state(envs.num_envs), explore=True)

    def take(self, action: Tensor) -> Steps:
        """Action (N, A) -> the step that it led to."""
        if self.stop():
            raise Interrupted
        self.step = self.driver.step(action)
        self.action, self.state = self.agent.act(self.step, self.state, explore=True)
        return self.step

    def play(self, decisions: int) -> None:
        for _ in range(decisions):
            self.take(self.action)


def _probe(agent: Imaginer, player: _Player, horizon: int) -> Found:
    """Imagine, then do it; (N, H) of everything that there is to compare."""
    model, alive = agent.world_model, ~player.step.is_last
    features, actions = _dream(agent, player.state, horizon)
    found: dict[str, list[Tensor]] = {}
    survival, gone = torch.ones(len(alive)), torch.zeros(len(alive), dtype=torch.bool)
    for step_features, action in zip(features, actions, strict=True):
        step = player.take(action.cpu())
        valid = alive & ~step.is_first
        reward, proceed = (value.cpu() for value in model.predict(step_features))
        proceed = (proceed / (1 - 1 / model.config.horizon)).clamp(max=1)
        values = {
            "valid": valid,
            "known": valid | gone,
            "reward": step.reward * valid,
            "imagined_reward": survival * reward[0],
            "reward_error": (reward[0] - step.reward).abs(),
            "reward_covered": _within(reward[1:], step.reward),
            "end": step.is_terminal & valid,
            "continue": proceed[0],
            **_observation(model, step_features, step),
        }
        for name, value in values.items():
            found.setdefault(name, []).append(value.cpu())
        survival = survival * proceed[0]
        gone |= values["end"]
        alive = valid & ~step.is_last
    return {name: torch.stack(value, 1) for name, value in found.items()}


def _dream(agent: Imaginer, start: State, horizon: int) -> tuple[list[Tensor], list[Tensor]]:
    """Per imagined step the features (1 + K, N, F) and the actions (N, A), which the first dream's policy chose."""
    model, dreams = agent.world_model, DREAMS + 1
    state = {name: value.repeat(dreams, *[1] * (value.ndim - 1)) for name, value in start.items()}
    view = model.features(state).unflatten(0, (dreams, -1))
    features, actions = [], []
    for _ in range(horizon):
        actions.append(agent.policy(view[0]).sample())
        state = model.step(state, actions[-1].repeat(dreams, 1))
        view = model.features(state).unflatten(0, (dreams, -1))
        features.append(view)
    return features, actions


def _observation(model: WorldModel, features: Tensor, step: Steps) -> Found:
    """(N,) each, means over the elements of every key, then over keys: features (1 + K, N, F) against the step."""
    found: dict[str, list[Tensor]] = {"error": [], "covered": [], "variance": [], "squared_error": []}
    targets = model.targets(step.to(features.device).obs, lead=1)
    for dreamt, truth in zip(model.predictions(features), targets, strict=True):
        dreams = dreamt[1:]
        found["error"].append((dreamt[0] - truth).abs().mean(-1))
        found["covered"].append(_within(dreams, truth).mean(-1))
        found["variance"].append(dreams.var(0).mean(-1) * (1 + 1 / DREAMS))
        found["squared_error"].append((dreams.mean(0) - truth).square().mean(-1))
    return {name: torch.stack(parts).mean(0) for name, parts in found.items() if parts}


def _within(dreams: Tensor, truth: Tensor) -> Tensor:
    """(...): 1 where the truth (...) lies within the range of the dreams (K, ...), else 0."""
    return ((dreams.amin(0) <= truth) & (truth <= dreams.amax(0))).float()


def _metrics(found: Found) -> Metrics:
    valid, known, end = found["valid"], found["known"], found["end"]

    def mean(values: Tensor, where: Tensor = valid) -> list[float | None]:
        """(P, H) -> (H,)"""
        return _plain(values.float().mul(where).sum(0) / where.sum(0))

    foreseen = found["continue"] < 0.5
    imagined, true = found["imagined_reward"].cumsum(1), found["reward"].cumsum(1)
    metrics: Metrics = {
        "model/probes": int(valid[:, 0].sum()),
        "model/continue_accuracy": _plain((foreseen == end)[valid].float().mean()),
        "model/ends_foreseen": _plain(foreseen[end].float().mean()),
        "model/reward_error": mean(found["reward_error"]),
        "model/reward_coverage": mean(found["reward_covered"]),
        "model/imagined_return": mean(imagined, known),
        "model/true_return": mean(true, known),
        "model/exploitation_gap": mean(imagined - true, known),
    }
    if "error" in found:
        ratio = (found["variance"] * valid).sum(0) / (found["squared_error"] * valid).sum(0)
        metrics |= {"model/error": mean(found["error"]), "model/coverage": mean(found["covered"])}
        metrics["model/spread"] = _plain(ratio.sqrt())
    return metrics


def _plain(value: Tensor) -> Any:
    """Numbers, None in place of what is not finite."""
    if value.ndim:
        return [_plain(item) for item in value]
    return value.item() if value.isfinite() else None
