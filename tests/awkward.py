"""Environments that are legal, or nearly so, and give trouble elsewhere. Episodes of fifty steps, but for two."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces


class Awkward(gymnasium.Env[Any, Any]):
    """A point that an action pushes; subclasses are each odd in one way."""

    observation_space: spaces.Space[Any] = spaces.Box(-10, 10, (3,), np.float32)
    action_space: spaces.Space[Any] = spaces.Box(-1, 1, (1,), np.float32)
    length: float = 50

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.time, self.place = 0, float(self.np_random.uniform(-1, 1))
        return self.observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.time += 1
        self.place = float(np.clip(self.place + 0.1 * self.push(action) + self.np_random.normal(0, 0.01), -9, 9))
        return self.observe(), self.reward(), False, self.time >= self.length, {}

    def push(self, action: Any) -> float:
        return float(action[0])

    def observe(self) -> Any:
        return np.array([self.place, abs(self.place), self.time % 50 / 50], np.float32)

    def reward(self) -> float:
        return -abs(self.place)


class Float64(Awkward):
    observation_space = spaces.Box(-10, 10, (3,), np.float64)

    def observe(self) -> Any:
        return super().observe().astype(np.float64)


class ChannelsFirst(Awkward):
    observation_space = spaces.Box(0, 255, (3, 24, 40), np.uint8)

    def observe(self) -> Any:
        picture = np.zeros((3, 24, 40), np.uint8)
        picture[:, 8:16, int(np.clip(20 + 4 * self.place, 0, 35)) :][:, :, :4] = 255
        picture[0, 0, self.time % 40] = 255
        return picture


class UnboundedBox(Awkward):
    observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float32)
    action_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)


class TupleObservation(Awkward):
    observation_space = spaces.Tuple([spaces.Box(-10, 10, (1,)), spaces.Discrete(2), spaces.MultiBinary(3)])

    def observe(self) -> Any:
        bits = np.array([self.time >> k & 1 for k in range(3)], np.int8)
        return np.array([self.place], np.float32), int(self.place > 0), bits


class BinaryAction(Awkward):
    action_space = spaces.MultiBinary(3)

    def push(self, action: Any) -> float:
        return float(action.sum()) - 1.5


class DictAction(Awkward):
    action_space = spaces.Dict({"way": spaces.Discrete(2), "how": spaces.Tuple([spaces.Box(0, 2, (1,))])})

    def push(self, action: Any) -> float:
        return float(action["how"][0][0]) * (1 if action["way"] else -1)


class OneStep(Awkward):
    length = 1


class NeverEnding(Awkward):
    length = np.inf


class HugeRewards(Awkward):
    def reward(self) -> float:
        return 1e6 * super().reward()


class TinyRewards(Awkward):
    def reward(self) -> float:
        return 1e-6 * super().reward()


class SometimesNaN(Awkward):
    def observe(self) -> Any:
        return super().observe() * (np.nan if self.time and self.np_random.random() < 1e-3 else 1)


class SometimesRaises(Awkward):
    def reward(self) -> float:
        if self.np_random.random() < 1e-3:
            raise RuntimeError("the simulator lost its balance")
        return super().reward()


ALL = (
    Float64, ChannelsFirst, UnboundedBox, TupleObservation, BinaryAction, DictAction,
    OneStep, NeverEnding, HugeRewards, TinyRewards, SometimesNaN, SometimesRaises,
)  # fmt: skip
