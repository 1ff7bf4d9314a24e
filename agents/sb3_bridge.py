"""What train() and Stable-Baselines3 see of each other: our environments as its VecEnv, its buffer as our replay.

N parallel environments.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from stable_baselines3.common.vec_env import VecEnv

from mbrl.interfaces import Loop

if TYPE_CHECKING:
    from agents.sb3 import Baseline

Array = np.ndarray[Any, Any]


class Leave(Exception):
    """train() wants to end: learn() is left between two decisions."""


class Environments(VecEnv):
    """train()'s environments as Stable-Baselines3 sees them: an episode that ends is reset in the same step."""

    def __init__(self, agent: Baseline, num_envs: int) -> None:
        self.agent = agent
        self.loop: Loop | None = None
        self.seen = 0  # updates that train() knows of
        super().__init__(num_envs, agent.sb3_observation_space, agent.sb3_action_space)

    def reset(self) -> Any:
        """train() has reset them, or put them back into the episode where the run was interrupted."""
        assert self.loop is not None
        return self.agent.read(self.loop.step.obs)

    def settle(self) -> None:
        """Raises:
        Leave: the run is over, or was asked to stop.
        """
        assert self.loop is not None
        if self.agent.updates != self.seen:
            self.seen = self.agent.updates
            self.loop.learned(self.seen, self.agent.metrics(), self.agent.flops_per_update)
        if self.loop.settle():
            raise Leave

    def step_async(self, actions: Array) -> None:
        self._actions = actions

    def step_wait(self) -> Any:
        """-> observations, rewards (N,), dones (N,), infos.

        Where an environment broke and was restarted, its last transition is one that led nowhere, truncated.
        """
        loop = self.loop
        assert loop is not None
        self.settle()
        self.agent.algorithm.num_timesteps = loop.driver.decisions
        before = self.agent.read(loop.step.obs)
        loop.advance(self.agent.to_ours(self._actions))
        step = loop.step
        broken, reward = step.is_first.numpy(), step.reward.numpy()
        done, terminal = step.is_last.numpy() | broken, step.is_terminal.numpy()
        ends = self.agent.read(step.obs)
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for i in np.flatnonzero(done).tolist():
            last = _row(before if broken[i] else ends, i)
            infos[i] = {"terminal_observation": last, "TimeLimit.truncated": not terminal[i]}
        if step.is_last.any():
            loop.begin_episodes()
        return self.agent.read(loop.step.obs), reward, done, infos

    def close(self) -> None:
        """train()'s caller closes them."""

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        if attr_name != "render_mode":
            raise AttributeError(attr_name)
        return [None] * self.num_envs

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        raise AttributeError(attr_name)

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        raise AttributeError(method_name)

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        return [False] * self.num_envs


class Memory:
    """An algorithm's replay buffer in the place of ours: saved with each checkpoint, as far as it is filled."""

    def __init__(self, buffer: Any, num_envs: int, device: torch.device) -> None:
        self.buffer, self.num_envs, self.device, self.pinned = buffer, num_envs, device, False
        self.capacity = 0 if buffer is None else buffer.buffer_size
        """Decisions of each environment."""
        size = sum(array.nbytes for array in self._arrays().values())
        self.bytes_per_step = size // max(1, self.capacity * num_envs)

    def _arrays(self) -> dict[str, Array]:
        """Each (capacity, N, ...)."""
        if self.buffer is None:
            return {}
        found: dict[str, Array] = {}
        for name in ("observations", "next_observations", "actions", "rewards", "dones", "timeouts"):
            value = getattr(self.buffer, name)
            parts = {f"{name}.{key}": part for key, part in value.items()} if isinstance(value, dict) else {name: value}
            found |= parts
        return found

    def save(self, directory: Path, checkpoint: Path) -> dict[str, Any]:
        directory.mkdir(parents=True, exist_ok=True)
        if self.buffer is None:
            return {"length": 0}
        length, start = self.buffer.size(), self.buffer.pos if self.buffer.full else 0
        order = (start + np.arange(length)) % max(1, self.capacity)
        np.savez(checkpoint / "replay.npz", **{name: array[order] for name, array in self._arrays().items()})
        return {"length": length}

    def load(self, directory: Path, checkpoint: Path, manifest: dict[str, Any]) -> None:
        """The oldest transitions are left out where the buffer is smaller now."""
        if self.buffer is None:
            return
        kept = min(manifest["length"], self.capacity)
        with np.load(checkpoint / "replay.npz") as stored:
            for name, array in self._arrays().items():
                array[:kept] = stored[name][len(stored[name]) - kept :]
        self.buffer.full, self.buffer.pos = kept == self.capacity, kept % self.capacity

    def clear(self) -> None:
        if self.buffer is not None:
            self.buffer.reset()

    def close_episode(self, env: int) -> None:
        """The transition that an environment broke in says itself that it was the last."""


def _row(batch: Any, i: int) -> Any:
    return {key: value[i] for key, value in batch.items()} if isinstance(batch, dict) else batch[i]
