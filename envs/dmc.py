"""DmControl: a task of dm_control as a Gymnasium environment, observed by its state.

`dmc/walker-walk` is of the Control Suite, `dmc/manipulation-reach_site_features` of the manipulation tasks (all
whose observations are features), `dmc/locomotion-cmu_humanoid_go_to_target` of the locomotion tasks (the one
that needs no camera). Nothing is rendered, and no OpenGL library is loaded, unless a picture is asked for.
"""

import difflib
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec

from envs import rendering
from envs.errors import EnvError
from envs.wrappers import Painter

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
        self._painter: Painter | None = None
        _forbid_rendering(self._env)
        if render_mode is not None:
            rendering.enable()
        limit = _step_limit(self._env, max_episode_steps)
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
        _generator(self._env).seed(int(self.np_random.integers(2**32)))
        with quiet_mujoco():
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
        if self._painter is None:
            self._painter = self.painter(self.render_size)
        return self._painter.render()

    def painter(self, size: int, camera: int | str | None = None) -> Painter:
        """What draws pictures of this task, by default from the camera that the literature uses."""
        if _is_composer(self._env):
            return ComposerPainter(self._env, size, 0 if camera is None else camera)
        physics = self._env.physics
        model, data = physics.model.ptr, physics.data.ptr
        if camera is None:
            camera = 2 if self._domain == "quadruped" else min(0, model.ncam - 1)
        return rendering.Renderer(model, data, size, rendering.find_camera(model, camera))

    def close(self) -> None:
        if self._painter is not None:
            self._painter.close()
        self._env.close()


class ComposerPainter:
    """Draws a composer task, whose physics is another in each episode, with dm_control's own renderer."""

    def __init__(self, env: Any, size: int, camera: int | str) -> None:
        rendering.enable()
        self._env, self._size, self._camera = env, size, camera

    def render(self) -> Any:
        physics, flags = self._env.physics, {"shadow": False, "reflection": False}
        physics.model.vis.quality.offsamples = 0  # multisampling is slow in software
        return physics.render(self._size, self._size, camera_id=self._camera, render_flag_overrides=flags)

    def close(self) -> None:
        pass  # the environment's


def is_dmc(name: str) -> bool:
    return name.startswith(PREFIXES)


def suggest(name: str) -> list[str]:
    """Tasks with names like this one, closest first."""
    wanted = re.sub(r"-v\d+$", "", name.rpartition("/")[2])
    tasks = ["-".join(task) for task in _suite().ALL_TASKS]
    domain = wanted.partition("-")[0]
    tasks += [f"{domain}-{task}" for task in _composer_tasks(domain)]
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
    composer = _composer_tasks(domain)
    if task in composer:
        with quiet_mujoco():
            env = composer[task](0)
        env._max_reset_attempts = 10  # props are placed at random, and sometimes do not fit
        return env
    if (domain, task) not in suite.ALL_TASKS:
        tasks = composer or suite.TASKS_BY_DOMAIN.get(domain, ())
        domains = (*suite.TASKS_BY_DOMAIN, "manipulation", "locomotion")
        known = [f"dmc/{domain}-{task}" for task in tasks] or [f"dmc/{domain}-..." for domain in domains]
        close = suggest(name)
        hint = f"Did you mean {' or '.join(close)}? " if close else ""
        which = " that needs no camera" if composer else ""
        raise EnvError(f"{name} is not a task of dm_control{which}. {hint}It has: {', '.join(known)}")
    # The seed fixes what is drawn once, at construction: the springs of the lqr tasks.
    with quiet_mujoco():
        return suite.load(domain, task, task_kwargs={"random": 0})


def _composer_tasks(domain: str) -> dict[str, Callable[[int], Any]]:
    """Task -> what makes it from a seed: the domains built with dm_control.composer, without a camera."""
    try:
        with rendering.without_gl():
            if domain == "manipulation":
                from dm_control import manipulation

                tasks = manipulation.get_environments_by_tag("features")
                return {task: partial(manipulation.load, task) for task in tasks}
            if domain == "locomotion":
                from dm_control.locomotion.examples import basic_cmu_2019

                return {"cmu_humanoid_go_to_target": basic_cmu_2019.cmu_humanoid_go_to_target}
    except ModuleNotFoundError as error:
        raise EnvError(f"dmc/{domain} needs a missing package ({error}). Run: pip install {error.name}") from error
    return {}


def _is_composer(env: Any) -> bool:
    return hasattr(env, "random_state")


def _generator(env: Any) -> Any:
    """What an episode's randomness is drawn from."""
    return env.random_state if _is_composer(env) else env.task.random


def _step_limit(env: Any, max_episode_steps: int | None) -> float:
    """Control steps of an episode, after setting them where they are given."""
    if not _is_composer(env):
        if max_episode_steps is not None:
            env._step_limit = max_episode_steps
        return float(env._step_limit)
    if max_episode_steps is not None:  # composer counts seconds; half a step is room for rounding
        env._time_limit = (max_episode_steps - 0.5) * env.control_timestep()
    return float(np.ceil(env._time_limit / env.control_timestep()))


@contextmanager
def quiet_mujoco() -> Iterator[None]:
    """MuJoCo warns of deprecations in models that come with packages, dm_control of an arm that it could not
    place at the first try; users can do nothing.
    """
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _forbid_rendering(env: Any) -> None:
    """Say there is no rendering context of dm_control's own: quadruped-escape asks, and asking would make one."""
    if _is_composer(env):
        return  # makes a new physics for every episode, and asks for nothing
    physics = env.physics
    cls = type(physics)
    physics.__class__ = type(cls.__name__, (cls,), {"contexts": None})


def _float32(observation: dict[str, Any]) -> Obs:
    return {key: np.array(value, np.float32, ndmin=1) for key, value in observation.items()}
