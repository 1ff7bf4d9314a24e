"""Atari: a game of the Arcade Learning Environment, prepared as in DreamerV3's Atari100k protocol.

Each action is held for four frames, the picture is the maximum over the last two of them (some games draw a
sprite only every other frame), 64 x 64 in colour; up to 30 frames without action at the start; the game's own
score, and lives that are lost do not end the episode. Sticky actions and the set of actions are the id's own:
`ALE/Pong-v5` repeats the last action with probability 0.25, `PongNoFrameskip-v4` never does.
"""

import re
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from PIL import Image

from envs.wrappers import Env, Options, Result

DEFAULT_ACTION_REPEAT = 4
SIZE = 64
NOOPS = 30

Frame = np.ndarray[Any, Any]


class Atari(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Around a game that shows every frame: pictures (64, 64, 3) uint8; rewards of repeated actions are added up."""

    def __init__(self, env: Env, action_repeat: int = DEFAULT_ACTION_REPEAT) -> None:
        super().__init__(env)
        self.observation_space = spaces.Box(0, 255, (SIZE, SIZE, 3), np.uint8)
        self.metadata = {**env.metadata, "render_fps": env.metadata["render_fps"] / action_repeat}
        self._repeat = action_repeat
        self._before: Frame | None = None  # the frame before the last one

    def reset(self, *, seed: int | None = None, options: Options = None) -> tuple[Frame, dict[str, Any]]:
        # The emulator's own generator starts anew each episode, so np_random alone decides what comes.
        seed = int(self.np_random.integers(2**31)) if seed is None else seed
        frame, info = self.env.reset(seed=seed, options=options)
        for _ in range(self.np_random.integers(NOOPS + 1)):
            frame, _, terminated, _, info = self.unwrapped.step(0)  # past the time limit, which does not count it
            if terminated:
                frame, info = self.unwrapped.reset()
        self._before = frame
        return shrink(frame), info

    def step(self, action: Any) -> Result:
        assert self._before is not None, "reset() comes first"
        total, frame = 0.0, self._before
        for _ in range(self._repeat):
            self._before = frame
            frame, reward, terminated, truncated, info = self.env.step(action)
            total += float(reward)
            if terminated or truncated:
                break
        picture = shrink(np.maximum(self._before, frame))
        self._before = frame
        return picture, total, terminated, truncated, info


def is_atari(name: str) -> bool:
    name = name.rpartition(":")[2]
    return name.startswith("ALE/") or re.search(r"NoFrameskip-v\d+$", name) is not None


def shrink(frame: Frame) -> Frame:
    """(height, width, 3) -> (64, 64, 3)."""
    return np.asarray(Image.fromarray(frame).resize((SIZE, SIZE), Image.Resampling.BILINEAR))
