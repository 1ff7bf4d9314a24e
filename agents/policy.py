"""Policy: a trained agent in the environment's own language.

    agent = agents.load("runs/CartPole-v1/dreamer/seed0")
    action, state = agent.predict(observation, state)

``predict`` is what Stable-Baselines3 calls so: its ``evaluate_policy`` takes a Policy.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium import Space, spaces

from mbrl.interfaces import Agent
from mbrl.spaces import ActionSpec, check_observation_space, first_row
from mbrl.steps import Steps

Array = np.ndarray[Any, Any]


class Policy:
    def __init__(self, agent: Agent, observation_space: Space[Any], action_space: Space[Any]) -> None:
        self.agent = agent
        self.observation_space = check_observation_space(observation_space)
        self.action_space = action_space
        self.action_spec = ActionSpec.of(action_space)

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = True,
    ) -> tuple[Any, Any]:
        """Observation, single or a batch (N, ...) -> action likewise, and the state for the next call.

        Args:
            observation: a dict, or the bare array where there is one key.
            state: what the last call returned; None at the start.
            episode_start: (N,) bool: where an episode begins; by default where ``state`` is None.
        """
        obs, single = self._read(observation)
        n = len(next(iter(obs.values())))
        start = np.asarray(False if episode_start is None else episode_start, bool) | (state is None)
        first = torch.from_numpy(np.broadcast_to(start, (n,)).copy())
        memory, last = state or (self.agent.initial_state(n), self.action_spec.zero(n))
        no = torch.zeros(n, dtype=torch.bool)
        step = Steps(obs, torch.where(first[:, None], 0.0, last), torch.zeros(n), first, no, no)
        action, memory = self.agent.act(step, memory, explore=not deterministic)
        action = action.detach().cpu()
        chosen = self.action_spec.to_env(action)
        return (first_row(chosen) if single else chosen), (memory, action.clamp(-1, 1))

    def _read(self, observation: Any) -> tuple[dict[str, torch.Tensor], bool]:
        """-> tensors (N, ...), and whether it was a single observation."""
        entries = self.observation_space.spaces
        if not isinstance(observation, dict):
            assert len(entries) == 1, f"a dict of {list(entries)} is expected, not {type(observation)}"
            observation = dict.fromkeys(entries, observation)
        arrays = {key: np.asarray(observation[key]) for key in entries}
        key, space = next(iter(entries.items()))
        single = arrays[key].ndim == len(space.shape or ())
        obs = {}
        for key, space in entries.items():
            dtype = np.int64 if isinstance(space, spaces.Discrete) else space.dtype
            array = np.array(arrays[key], np.float32 if np.dtype(dtype).kind == "f" else dtype)
            obs[key] = torch.from_numpy(array[None] if single else array)
        return obs, single
