"""Countable environments, and some that break. Without torch, so that their processes start fast."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces


class Counting(gymnasium.Env[Any, Any]):
    """Observes (step of the episode, episode, last action, a random number).

    Each step is rewarded with its number. Episodes last ``length`` steps and one more each time; odd ones
    terminate, even ones are truncated.
    """

    observation_space = spaces.Dict({"state": spaces.Box(-np.inf, np.inf, (4,), np.float32)})
    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, length: int = 3) -> None:
        self.length, self.time, self.episode = length, 0, -1
        self.log: list[tuple[Any, float, float | None, bool, bool]] = []

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.time, self.episode = 0, self.episode + 1
        return self._observe(0.0, None, False, False), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.time += 1
        over = self.time >= self.length + self.episode
        terminated, truncated = over and self.episode % 2 == 1, over and self.episode % 2 == 0
        obs = self._observe(float(action[0]), float(self.time), terminated, truncated)
        return obs, float(self.time), terminated, truncated, {}

    def _observe(self, action: float, reward: float | None, terminated: bool, truncated: bool) -> Any:
        state = np.array([self.time, self.episode, action, self.np_random.random()], np.float32)
        self.log.append((state, action, reward, terminated, truncated))
        return {"state": state}


class Seeded(Counting):
    """Episodes of random lengths that depend on the seed alone, not on how often it was reset before."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.episode, self.length = 1, int(self.np_random.integers(3, 12))
        return self._observe(0.0, None, False, False), {}


class Same(gymnasium.Env[Any, Any]):
    """Every episode begins and ends the same: (step, last action, noise of its seed), for ``length`` steps."""

    observation_space = spaces.Dict({"state": spaces.Box(-np.inf, np.inf, (3,), np.float32)})
    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, length: int) -> None:
        self.length, self.noise, self.time = length, 0.0, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.time = 0
        if seed is not None:
            self.noise = float(self.np_random.random())
        return self.observe(0.0), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.time += 1
        over = self.time == self.length
        return self.observe(action[0]), self.time + self.noise, over and self.length % 2 == 1, over, {}

    def observe(self, action: float) -> Any:
        return {"state": np.array([self.time, action, self.noise], np.float32)}


class Breaking(Counting):
    """Breaks in a way, in its ``at``-th step, as often as the file ``lives`` has bytes (always, without one)."""

    def __init__(self, way: str = "raise", at: int = 5, lives: Path | None = None) -> None:
        super().__init__(length=8)
        self.way, self.left, self.lives = way, at, lives
        self.ballast: list[Any] = []
        if way == "init" and lives is not None and lives.exists() and self.is_due():
            raise RuntimeError("no licence")

    def is_due(self) -> bool:
        if self.lives is None:
            return True
        left = self.lives.stat().st_size if self.lives.exists() else 0
        if left:
            self.lives.write_bytes(b"x" * (left - 1))
        return left > 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        if self.way == "reset" and self.episode >= 0 and self.is_due():
            raise RuntimeError("no level")
        return super().reset(seed=seed, options=options)

    def step(self, action: Any) -> Any:
        obs, reward, *rest = super().step(action)
        self.left -= 1
        if self.left == 0 and self.way != "init" and self.is_due():
            if self.way == "raise":
                raise RuntimeError("the simulator diverged")
            if self.way == "sleep":
                time.sleep(1000)
            if self.way == "exit":
                os._exit(7)
            if self.way == "observation":
                obs = {"state": np.full(4, np.nan, np.float32)}
            if self.way == "reward":
                reward = float("inf")
            if self.way == "leak":
                self.ballast.append(np.ones(2**25))  # 256 MB
        return obs, reward, *rest


class Periodic(Seeded):
    """Raises in every 100th step of its process."""

    steps = 0

    def step(self, action: Any) -> Any:
        Periodic.steps += 1
        if Periodic.steps % 100 == 0:
            raise RuntimeError("the simulator diverged")
        return super().step(action)


class Hopeless(Seeded):
    def step(self, action: Any) -> Any:
        raise RuntimeError("the simulator diverged")
