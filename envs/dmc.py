"""DmControl: a task of the DeepMind Control Suite as a Gymnasium environment, observed by its state.

Nothing is rendered, and no OpenGL library is loaded, unless a picture is asked for.
"""

import difflib
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec

from envs import rendering
from envs.errors import EnvError

PREFIXES = ("dmc/", "dm_control/")
DEFAULT_ACTION_REPEAT = 2
UNLIMITED = 1e10  # what MuJoCo calls unlimited (mjMAXVAL)

Obs = dict[str, np.ndarray[Any, Any]]
Options = dict[str, Any] | None


class DmControl(gymnasium.Env[Any, Any]):
    """Observations keep the suite's names, as float32 vectors; rewards of repeated actions are added up.

    The suite's time limit truncates; only a discount of zero terminates. Actuators without limits
    (the lqr tasks) take actions in [-1, 1].
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"]}  # noqa: RUF012

    def __init__(
        self,
        name: str,
        *,
        action_repeat: int = DEFAULT_ACTION_REPEAT,
        max_episode_steps: int | None = None,
        render_mode: str | None = None,
        render_size: int = 240,
    ) -> None:
        if render_mode not in (None, "rgb_array"):
            raise EnvError(f"{name} has no render_mode {render_mode!r}; use render_mode='rgb_array'.")
        self.render_mode = render_mode
        self.render_size = render_size
        self.action_repeat = action_repeat
        self._domain, task = _split(name)
        self._env = _load(name, self._domain, task)
        self._renderer: rendering.Renderer | None = None
        _forbid_rendering(self._env.physics)
        if render_mode is not None:
            rendering.enable()
        if max_episode_steps is not None:
            self._env._step_limit = max_episode_steps

        limit = self._env._step_limit
        self.spec = EnvSpec(name, max_episode_steps=None if limit == float("inf") else round(limit))
        fps = round(1 / (self._env.control_timestep() * action_repeat))
        self.metadata = {**self.metadata, "render_fps": fps}
        actions = self._env.action_spec()
        unlimited = actions.maximum >= UNLIMITED
        self.action_space = spaces.Box(
            np.where(unlimited, -1, actions.minimum).astype(np.float32),
            np.where(unlimited, 1, actions.maximum).astype(np.float32),
        )
        self.observation_space = spaces.Dict(
            {
                key: spaces.Box(-np.inf, np.inf, spec.shape or (1,), np.float32)
                for key, spec in self._env.observation_spec().items()
            }
        )

    def reset(self, *, seed: int | None = None, options: Options = None) -> tuple[Obs, dict[str, Any]]:
        super().reset(seed=seed, options=options)
        # The task's own generator starts anew each episode, so np_random alone decides what comes.
        self._env.task.random.seed(int(self.np_random.integers(2**32)))
        return _float32(self._env.reset().observation), {}

    def step(self, action: Any) -> tuple[Obs, float, bool, bool, dict[str, Any]]:
        reward = 0.0
        for _ in range(self.action_repeat):
            step = self._env.step(action)
            reward += step.reward
            if step.last():
                terminated = step.discount == 0
                return _float32(step.observation), reward, terminated, not terminated, {}
        return _float32(step.observation), reward, False, False, {}

    def render(self) -> Any:
        if self.render_mode is None:
            return None
        if self._renderer is None:
            self._renderer = self.renderer(self.render_size)
        return self._renderer.render()

    def renderer(self, size: int, camera: int | str | None = None) -> rendering.Renderer:
        """What draws pictures of this task, by default from the camera that the literature uses."""
        physics = self._env.physics
        model, data = physics.model.ptr, physics.data.ptr
        if camera is None:
            camera = 2 if self._domain == "quadruped" else min(0, model.ncam - 1)
        return rendering.Renderer(model, data, size, rendering.find_camera(model, camera))

    def close(self) -> None:
        if self._renderer is not None:
            self._renderer.close()
        self._env.close()


def is_dmc(name: str) -> bool:
    return name.startswith(PREFIXES)


def suggest(name: str) -> list[str]:
    """Tasks of the suite with names like this one, closest first."""
    wanted = re.sub(r"-v\d+$", "", name.rpartition("/")[2])
    tasks = ["-".join(task) for task in _suite().ALL_TASKS]
    found = difflib.get_close_matches(wanted.lower(), tasks, cutoff=0.7)
    return [f"dmc/{task}" for task in found]


def _suite() -> Any:
    try:
        with rendering.without_gl():
            from dm_control import suite
    except ModuleNotFoundError as error:
        raise EnvError(f"dm_control is not installed ({error}). Run: pip install dm-control") from error
    return suite


def _split(name: str) -> tuple[str, str]:
    """dmc/walker-walk and dm_control/walker-walk-v0 -> walker, walk."""
    domain, _, task = re.sub(r"-v\d+$", "", name.partition("/")[2]).partition("-")
    return domain, task


def _load(name: str, domain: str, task: str) -> Any:
    suite = _suite()
    if (domain, task) not in suite.ALL_TASKS:
        tasks = suite.TASKS_BY_DOMAIN.get(domain, ())
        known = [f"dmc/{domain}-{task}" for task in tasks] or [f"dmc/{d}-..." for d in suite.TASKS_BY_DOMAIN]
        close = suggest(name)
        hint = f"Did you mean {' or '.join(close)}? " if close else ""
        raise EnvError(f"{name} is not a task of dm_control. {hint}It has: {', '.join(known)}")
    # The seed fixes what is drawn once, at construction: the springs of the lqr tasks.
    with quiet_mujoco():
        return suite.load(domain, task, task_kwargs={"random": 0})


@contextmanager
def quiet_mujoco() -> Iterator[None]:
    """MuJoCo warns of its own deprecations in models that come with packages; users can do nothing."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _forbid_rendering(physics: Any) -> None:
    """Say there is no rendering context of dm_control's own: quadruped-escape asks, and asking would make one."""
    cls = type(physics)
    physics.__class__ = type(cls.__name__, (cls,), {"contexts": None})


def _float32(observation: dict[str, Any]) -> Obs:
    return {key: np.array(value, np.float32, ndmin=1) for key, value in observation.items()}
