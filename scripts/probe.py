"""What a run computes with, where nobody has said: a few updates on made-up data, timed before it begins.

Small models gain little from more threads, and lose an order of magnitude to threads that wait for each
other where the machine has other work too; large ones gain. So what costs more must prove that it pays.
"""

from __future__ import annotations

import copy
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from agents import make_agent
from mbrl.replay import CHUNK, Replay, ReplayConfig
from mbrl.spaces import ActionSpec, check_observation_space
from mbrl.steps import Steps
from scripts.machine import idle_cores

WORTH_IT = 1.25
"""How many times faster it must be to be worth a second core, or a GPU."""
PIPE = 3e-4
"""Seconds that a step costs beside the simulation when it is another process's."""


@dataclass(frozen=True)
class Compute:
    """Where the networks are, and CPU threads."""

    device: str
    threads: int
    reason: str = ""

    def __str__(self) -> str:
        text = self.device if self.device != "cpu" else f"cpu, {self.threads} thread{'s' * (self.threads > 1)}"
        return f"{text} ({self.reason})" if self.reason else text


def candidates(device: str, threads: int | None) -> list[Compute]:
    """What could be computed with, the most modest first; what was asked for is not put in question.

    Args:
        device: "auto", or the one that was asked for.
        threads: the number that was asked for, if any; else OMP_NUM_THREADS holds, if it is set.
    """
    if threads is None and os.environ.get("OMP_NUM_THREADS", "").isdecimal():
        threads = int(os.environ["OMP_NUM_THREADS"])
    counts = [threads] if threads else sorted({1, idle_cores()})
    found = [Compute("cpu", count) for count in counts] if device in ("auto", "cpu") else []
    if device != "cpu" and torch.cuda.is_available():
        found.append(Compute("cuda" if device == "auto" else device, counts[0]))
    return found


def choose(
    found: list[Compute], agent: str, config: Any, observation_space: gym.Space[Any], action_space: gym.Space[Any]
) -> Compute:
    """The fastest of the candidates, as far as it is worth it, and why; torch's threads are set to it."""
    chosen = found[0]
    if len(found) > 1:
        with torch.random.fork_rng():  # a probe must not change what a seed gives
            updates = {
                device: made_up_update(agent, config, observation_space, action_space, device)
                for device in {compute.device for compute in found}
            }
            taken = {compute: seconds(updates[compute.device], compute.threads) for compute in found}
        chosen = pick(taken)
        others = [f"{write(taken[compute])} on {compute}" for compute in found if compute != chosen]
        chosen = replace(chosen, reason=f"{write(taken[chosen])} an update; {', '.join(others)}")
    torch.set_num_threads(chosen.threads)
    return chosen


def pick(taken: dict[Compute, float]) -> Compute:
    """The most modest, unless another takes clearly fewer seconds."""
    best = next(iter(taken))
    for compute, value in taken.items():
        if value * WORTH_IT < taken[best]:
            best = compute
    return best


def worth_processes(make: Callable[[], gym.Env[Any, Any]], num_envs: int) -> tuple[bool, str]:
    """Whether ``num_envs`` such environments are stepped faster in processes of their own, and why."""
    cores = min(num_envs, idle_cores())
    if cores == 1:
        return False, ""
    env = make()
    try:
        taken = seconds_per_step(env)
    finally:
        env.close()
    here, apart = num_envs * taken, math.ceil(num_envs / cores) * taken + PIPE
    parallel = apart * WORTH_IT < here
    where = "processes of their own" if parallel else "this process"
    return parallel, f"{num_envs} environments in {where} ({write(taken)} a step)"


def seconds_per_step(env: gym.Env[Any, Any], budget: float = 0.2) -> float:
    """Of random actions, resets included."""
    env.action_space.seed(0)
    env.reset(seed=0)
    begin, steps = time.perf_counter(), 0
    while steps < 2 or time.perf_counter() - begin < budget:
        *_, terminated, truncated, _ = env.step(env.action_space.sample())
        steps += 1
        if terminated or truncated:
            env.reset()
    return (time.perf_counter() - begin) / steps


def made_up_update(
    name: str, config: Any, observation_space: gym.Space[Any], action_space: gym.Space[Any], device: str
) -> Callable[[], object]:
    """An update of an untrained agent on random steps."""
    agent: Any = make_agent(name, config, observation_space, action_space, device)
    space, actions = copy.deepcopy(check_observation_space(observation_space)), ActionSpec.of(action_space)
    space.seed(0)
    rng, length, spec = np.random.default_rng(0), 2 * getattr(agent, "min_steps", 1), agent.latent_spec()
    capacity = CHUNK * math.ceil(length / CHUNK)
    replay = Replay(space, actions.size, 1, spec, ReplayConfig(capacity))
    latents = {key: torch.zeros(1, *shape, dtype=dtype) for key, (shape, dtype) in spec.items()}
    no = torch.zeros(1, dtype=torch.bool)
    for k in range(length):
        obs = {key: _moderate(value) for key, value in space.sample().items()}
        replay.add(Steps(obs, actions.sample(1, rng), torch.zeros(1), no | (k == 0), no, no), latents)
    return lambda: agent.update(replay)


def _moderate(value: Any) -> torch.Tensor:
    """A sample as a tensor (1, ...); where a space is as wide as floats go, no value is."""
    tensor = torch.as_tensor(value).unsqueeze(0)
    return tensor.clamp(-1, 1) if tensor.is_floating_point() else tensor


def seconds(update: Callable[[], object], threads: int, budget: float = 0.5) -> float:
    """The shortest of at least two updates, after one that does not count."""
    torch.set_num_threads(threads)
    update()
    taken: list[float] = []
    while len(taken) < 2 or sum(taken) < budget:
        begin = time.perf_counter()
        update()
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - begin)
    return min(taken)


def write(seconds: float) -> str:
    return f"{seconds:.2g} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"
