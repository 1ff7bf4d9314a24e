"""Catch: a ball falls, a bat moves below it. Seen as a picture, steered by a Dict action."""

import gymnasium
import numpy as np
from gymnasium import spaces

SIZE = 32


class Catch(gymnasium.Env):
    observation_space = spaces.Box(0, 255, (SIZE, SIZE, 1), np.uint8)
    action_space = spaces.Dict({"move": spaces.Box(-3, 3, (1,)), "run": spaces.Discrete(2)})

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.ball = np.array([0.0, self.np_random.uniform(2, SIZE - 2)])
        self.drift = self.np_random.uniform(-1, 1)
        self.bat = SIZE / 2
        return self._picture(), {}

    def step(self, action):
        speed = 2 if action["run"] else 1
        self.bat = float(np.clip(self.bat + speed * action["move"][0], 2, SIZE - 3))
        self.ball += 2, self.drift
        self.ball[1] = np.clip(self.ball[1], 1, SIZE - 2)
        over = bool(self.ball[0] >= SIZE - 3)
        reward = max(0.0, 1 - abs(self.ball[1] - self.bat) / 8) if over else 0.0
        return self._picture(), reward, over, False, {}

    def _picture(self):
        picture = np.zeros((SIZE, SIZE, 1), np.uint8)
        row, column = self.ball.astype(int)
        picture[row : row + 3, column - 1 : column + 2] = 255
        picture[-2:, int(self.bat) - 2 : int(self.bat) + 3] = 160
        return picture
