"""Crafter (Hafner, ICLR 2022) as a Gymnasium environment: pictures (64, 64, 3), 17 actions, 22 achievements."""

import collections
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec

from envs.errors import EnvError, missing_extra

NAMES = {
    "crafter/reward": True,
    "CrafterReward-v1": True,
    "crafter/noreward": False,
    "CrafterNoReward-v1": False,
}
LIMIT = 10_000

Options = dict[str, Any] | None
Picture = np.ndarray[Any, Any]


class Crafter(gymnasium.Env[Any, Any]):
    """`info` holds counts, of the episode so far: `achievements` and `inventory`, by name.

    Death terminates; the time limit, 10,000 steps unless given, truncates.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012
    observation_space = spaces.Box(0, 255, (64, 64, 3), np.uint8)

    def __init__(
        self,
        name: str,
        *,
        max_episode_steps: int | None = None,
        render_mode: str | None = None,
        render_size: int = 240,
    ) -> None:
        if render_mode not in (None, "rgb_array"):
            raise EnvError(f"{name} has no render_mode {render_mode!r}; use render_mode='rgb_array'.")
        if name not in NAMES:
            raise EnvError(f"{name} is not a task of Crafter. It has: {', '.join(NAMES)}")
        limit = max_episode_steps or LIMIT
        self.render_mode, self.render_size = render_mode, render_size
        self.spec = EnvSpec(name, max_episode_steps=limit)
        self._env = _load(name, reward=NAMES[name], length=limit)
        self.action_space = spaces.Discrete(self._env.action_space.n)

    def reset(self, *, seed: int | None = None, options: Options = None) -> tuple[Picture, dict[str, Any]]:
        super().reset(seed=seed, options=options)
        # Crafter seeds a world by its own seed and a count of episodes.
        self._env._seed, self._env._episode = int(self.np_random.integers(2**31)), 0
        picture, player = self._env.reset(), self._env._player
        return picture, {"achievements": dict(player.achievements), "inventory": dict(player.inventory)}

    def step(self, action: Any) -> tuple[Picture, float, bool, bool, dict[str, Any]]:
        picture, reward, done, info = self._env.step(int(action))
        terminated = info["discount"] == 0
        kept = {key: info[key] for key in ("achievements", "inventory")}
        return picture, float(reward), terminated, bool(done and not terminated), kept

    def render(self) -> Any:
        if self.render_mode is None:
            return None
        random = self._env._world.random
        before = random.get_state()  # at night a picture draws noise from the world's own generator
        picture = self._env.render((self.render_size, self.render_size))
        random.set_state(before)
        return picture


class _OrderedSet(dict[Any, None]):
    """Iterates in the order of insertion."""

    def add(self, item: Any) -> None:
        self[item] = None

    def remove(self, item: Any) -> None:
        del self[item]


def is_crafter(name: str) -> bool:
    return name.startswith("crafter/") or name in NAMES


def _load(name: str, reward: bool, length: int) -> Any:
    try:
        import crafter
        from crafter.engine import World
    except ModuleNotFoundError as error:
        raise EnvError(missing_extra(name, error, "crafter")) from error

    class OrderedWorld(World):
        """Crafter walks through sets of objects, whose order is their addresses': no two runs are the same."""

        def reset(self, seed: int | None = None) -> None:
            super().reset(seed)
            self._chunks: Any = collections.defaultdict(_OrderedSet)

    env = crafter.Env(reward=reward, length=length, seed=0)
    env._world.__class__ = OrderedWorld
    return env
