"""evaluate(): the returns of whole episodes, without a trace in the training run.

An episode whose environment broke and was restarted counts for nothing; another takes its place.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from gymnasium.vector import VectorEnv

from mbrl.driver import Driver
from mbrl.errors import UserError
from mbrl.interfaces import Agent
from mbrl.randomness import own_randomness

TRIES = 4
"""Of an episode whose environment breaks; then it is left out."""
LIMIT = 10_000
"""Decisions after which an episode that does not end is cut."""


class Interrupted(Exception):
    """The evaluation was asked to stop; what it had is discarded."""


def evaluate(
    agent: Agent,
    envs: VectorEnv[Any, Any, Any],
    seed: int,
    episodes: int | None = None,
    explore: bool = False,
    stop: Callable[[], bool] = lambda: False,
    note: Callable[[str], None] = warnings.warn,
    limit: int = LIMIT,
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Undiscounted returns (episodes,), one episode per environment unless told otherwise.

    Each environment contributes its fixed share of episodes, so short episodes are not over-counted.
    The same agent, environments and seed give the same returns. Where environments broke, ``note`` is told
    how many episodes were repeated, and how many are missing in the result. An episode of ``limit``
    decisions counts as one, so that episodes without end can be scored; ``note`` is told that too.

    Raises:
        Interrupted: ``stop()`` became true.
        UserError: the environments broke in every episode.
    """
    episodes = envs.num_envs if episodes is None else episodes
    share = [episodes // envs.num_envs + (i < episodes % envs.num_envs) for i in range(envs.num_envs)]
    returns: list[list[float]] = [[] for _ in share]  # NaN: left out
    broken, repeated, fault = [0] * envs.num_envs, 0, ""
    length, cut = np.zeros(envs.num_envs, int), 0
    with own_randomness(seed):
        driver = Driver(envs)
        step, state = driver.reset(seed), agent.initial_state(envs.num_envs)
        running = np.zeros(envs.num_envs)
        while any(len(done) < wanted for done, wanted in zip(returns, share, strict=True)):
            if stop():
                raise Interrupted
            action, state = agent.act(step, state, explore)
            step = driver.step(action)
            for row, fault in driver.faults.items():  # noqa: B007  the last one is told
                running[row], length[row], broken[row] = 0.0, 0, broken[row] + 1
                repeated += len(returns[row]) < share[row]
                if broken[row] % TRIES == 0:
                    returns[row].append(np.nan)
            running += step.reward.numpy()
            length += (~step.is_first).numpy()
            ended = step.is_last.numpy()
            for i in np.flatnonzero(ended | (length >= limit)):
                if len(returns[i]) < share[i]:
                    returns[i].append(float(running[i]))
                    cut += not ended[i]
                running[i], length[i], broken[i] = 0.0, 0, 0
    every = np.array([value for done, wanted in zip(returns, share, strict=True) for value in done[:wanted]])
    for text in _remarks(every, repeated, fault, cut, limit):
        note(text)
    return every[~np.isnan(every)]


def _remarks(every: np.ndarray, repeated: int, fault: str, cut: int, limit: int) -> Iterator[str]:
    """What whoever reads the returns (episodes,), NaN where one is left out, should know.

    Raises:
        UserError: there is none.
    """
    missing = int(np.isnan(every).sum())
    if missing == len(every):
        raise UserError(f"the evaluation has no result: environments broke in every episode, the last with {fault}")
    if repeated:
        yield (
            f"evaluation: environments broke {repeated} times, the last with {fault}\nThose episodes were repeated, "
            f"but for {missing} of {len(every)} that are left out"
        )
    if cut:
        yield (
            f"evaluation: {cut} of {len(every)} episodes had not ended after {limit} decisions and were cut there; "
            "give the environment a time limit with --max-episode-steps"
        )
