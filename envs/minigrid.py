"""MiniGrid and BabyAI: what is seen, as codes, for agents that read neither pictures of 7 x 7 nor text."""

import sys
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from envs.wrappers import Env


class Codes(gymnasium.ObservationWrapper[Any, Any, Any]):
    """The view as MultiDiscrete (width, height, 3): kind of object, colour, state; the direction stays.

    MiniGrid declares bytes from 0 to 255, which looks like a picture. The mission, a text, is left out: where
    it changes from episode to episode (most of BabyAI), an agent cannot know what is asked of it.
    """

    def __init__(self, env: Env) -> None:
        from minigrid.core.constants import COLOR_TO_IDX, DIR_TO_VEC, OBJECT_TO_IDX, STATE_TO_IDX

        super().__init__(env)
        states = max(len(STATE_TO_IDX), len(DIR_TO_VEC))  # of a door; of an agent, its direction
        codes = (len(OBJECT_TO_IDX), len(COLOR_TO_IDX), states)
        seen: Any = env.observation_space
        view = spaces.MultiDiscrete(np.broadcast_to(codes, seen["image"].shape))
        self.observation_space = spaces.Dict(image=view, direction=seen["direction"])

    def observation(self, observation: Any) -> dict[str, Any]:
        return {key: observation[key] for key in self.observation_space}  # type: ignore[attr-defined]


def adapt(env: Env) -> Env:
    """With Codes, if this is a MiniGrid environment whose observations nobody has changed."""
    module = sys.modules.get("minigrid.minigrid_env")
    if module is None or not isinstance(env.unwrapped, module.MiniGridEnv):
        return env
    return Codes(env) if env.observation_space is env.unwrapped.observation_space else env
