"""A pendulum that hangs still, a motor that is too weak to lift it at once, and a reward at the top alone.

A directory with this file on the path: mbrl train swing:Swing-v0
"""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.classic_control.pendulum import PendulumEnv


class Swing(PendulumEnv):
    def __init__(self, torque: float = 1.0, **options: Any) -> None:
        super().__init__(**options)
        self.max_torque = torque
        self.action_space = gym.spaces.Box(-torque, torque, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.state = np.array([np.pi, 0.0]) + self.np_random.uniform(-0.1, 0.1, 2)
        self.last_u = None
        return self._get_obs(), {}

    def step(self, u: Any) -> Any:
        obs, _, *rest = super().step(u)
        return obs, float(obs[0] > 0.98), *rest


gym.register("Swing-v0", entry_point=Swing, max_episode_steps=250)
