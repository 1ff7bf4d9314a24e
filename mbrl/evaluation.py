"""evaluate(): the returns of whole episodes, without a trace in the training run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from gymnasium.vector import VectorEnv

from mbrl.driver import Driver
from mbrl.interfaces import Agent
from mbrl.randomness import own_randomness


class Interrupted(Exception):
    """The evaluation was asked to stop; what it had is discarded."""


def evaluate(
    agent: Agent,
    envs: VectorEnv[Any, Any, Any],
    seed: int,
    episodes: int | None = None,
    explore: bool = False,
    stop: Callable[[], bool] = lambda: False,
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Undiscounted returns (episodes,), one episode per environment unless told otherwise.

    Each environment contributes its fixed share of episodes, so short episodes are not over-counted.
    The same agent, environments and seed give the same returns.

    Raises:
        Interrupted: ``stop()`` became true.
    """
    episodes = envs.num_envs if episodes is None else episodes
    share = [episodes // envs.num_envs + (i < episodes % envs.num_envs) for i in range(envs.num_envs)]
    returns: list[list[float]] = [[] for _ in share]
    with own_randomness(seed):
        driver = Driver(envs)
        step, state = driver.reset(seed), agent.initial_state(envs.num_envs)
        running = np.zeros(envs.num_envs)
        while any(len(done) < wanted for done, wanted in zip(returns, share, strict=True)):
            if stop():
                raise Interrupted
            action, state = agent.act(step, state, explore)
            step = driver.step(action)
            running += step.reward.numpy()
            for i in np.flatnonzero(step.is_last.numpy()):
                if len(returns[i]) < share[i]:
                    returns[i].append(float(running[i]))
                running[i] = 0.0
    return np.array([value for done in returns for value in done])
