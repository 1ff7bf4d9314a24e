"""Environments by name, all with the same face: a flat dict of observations, and resumable.

    env = make_env("dmc/walker-walk")
    envs = make_envs("CartPole-v1", num_envs=4, parallel=True)

A name is a Gymnasium id (`CartPole-v1`, `ALE/Pong-v5`, `MiniGrid-Empty-5x5-v0`), `dmc/walker-walk` (or
`dm_control/walker-walk-v0`), `crafter/reward`, `module:EnvId-v0`, `path/to/file.py:Class` (or a function in it
that returns an environment), or, in Python, a callable.

Another package adds a suite with an entry point in the group `mbrl.envs`: `metaworld = "my_adapter:make"` makes
`metaworld/reach-v3` by `my_adapter.make("reach-v3", render_mode=...)`, which returns a gymnasium.Env. Names
with the prefixes above stay what they are. See docs/environments.md.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
from gymnasium.vector.utils import create_empty_array

from envs import atari, crafter, dmc, gym
from envs.errors import EnvError
from envs.vector import RestartingVectorEnv as Vector
from envs.vector import StepResult
from envs.wrappers import ActionRepeat, Env, FlatDict, Pixels, Resumable, State

__all__ = ["EnvError", "Name", "Observe", "get_states", "make_env", "make_envs", "restore", "set_states"]

Name = str | Callable[..., Any]
Observe = Literal["state", "pixels", "both"]


OPTIONS: dict[str, Any] = {
    "action_repeat": None, "max_episode_steps": None, "observe": "state", "camera": None, "size": 64,
}  # fmt: skip
"""What may be asked of every environment, and what holds unless it is."""


def make_env(
    name: Name,
    *,
    action_repeat: int | None = None,
    max_episode_steps: int | None = None,
    render_mode: str | None = None,
    render_size: int = 240,
    observe: Observe = "state",
    camera: int | str | None = None,
    size: int = 64,
) -> Env:
    """One environment with a flat Dict observation space and its own action space.

    `action_repeat` is 2 for dm_control, 4 for Atari and 1 for the others unless given; `max_episode_steps`
    counts the simulator's steps, repeats included; `render_size` is the side of dm_control's and Crafter's
    square pictures.
    `observe` what: the environment's own observations, `image`, a picture of it (size, size, 3), or both;
    `camera` is the index or name of one of a MuJoCo model's cameras, the usual one unless given.
    """
    for label, number in (("action_repeat", action_repeat), ("max_episode_steps", max_episode_steps)):
        if number is not None and number < 1:
            raise EnvError(f"{label} must be 1 or more, not {number}.")
    _check_pixels(observe, size)
    if isinstance(name, str) and dmc.is_dmc(name):
        repeat = action_repeat or dmc.DEFAULT_ACTION_REPEAT
        env: Env
        env = task = dmc.DmControl(
            name,
            action_repeat=repeat,
            max_episode_steps=max_episode_steps,
            render_mode=render_mode,
            render_size=render_size,
        )
        if observe != "state":
            env = Pixels(env, task.painter(size, camera), size, observe == "both")
        return Resumable(env, repeat)
    if isinstance(name, str) and atari.is_atari(name):
        if observe != "state":
            raise EnvError(f"{name} is observed by its picture already; leave out observe={observe!r}.")
        repeat = action_repeat or atari.DEFAULT_ACTION_REPEAT
        return Resumable(FlatDict(gym.make_atari(name, repeat, max_episode_steps, render_mode)), repeat)
    repeat = action_repeat or 1
    drawn = observe != "state"
    if drawn:
        render_mode = "rgb_array"
    if isinstance(name, str) and crafter.is_crafter(name):
        base: Env = crafter.Crafter(
            name, max_episode_steps=max_episode_steps, render_mode=render_mode, render_size=render_size
        )
    else:
        base = gym.make(name, max_episode_steps, render_mode)
    env = ActionRepeat(base, repeat) if repeat > 1 else base
    if observe != "pixels":
        env = FlatDict(env)
    if drawn:
        env = Pixels(env, gym.painter(base, camera, size), size, observe == "both")
    return Resumable(env, repeat)


def _check_pixels(observe: str, size: int) -> None:
    if observe not in get_args(Observe):
        raise EnvError(f"observe must be one of {', '.join(get_args(Observe))}, not {observe!r}.")
    if size < 16:
        raise EnvError(f"size must be 16 or more, as 64, not {size}.")


def make_envs(
    name: Name,
    num_envs: int,
    *,
    parallel: bool = False,
    timeout: float = 60.0,
    memory_limit: float | None = None,
    **kwargs: Any,
) -> Vector:
    """Several copies of an environment; in processes of their own if `parallel`. See make_env for `kwargs`.

    Episodes that end are reset by the next step (NEXT_STEP). An environment that breaks is replaced: see
    RestartingVectorEnv, also for `timeout` (seconds a step) and `memory_limit` (MB a process). The result has an
    attribute `action_repeat`.
    """
    if num_envs < 1:
        raise EnvError(f"num_envs must be 1 or more, not {num_envs}.")
    envs = Vector([partial(make_env, name, **kwargs)] * num_envs, parallel, timeout, memory_limit)
    envs.action_repeat = envs.get_attr("action_repeat")[0]  # type: ignore[attr-defined]
    return envs


def get_states(envs: Vector) -> list[State]:
    """The running episode of each environment, as plain data to save."""
    return list(envs.call("get_state"))


def restore(envs: Vector, states: Sequence[State]) -> tuple[list[bool], StepResult]:
    """Continue the saved episodes: which were restored exactly, and what the vector's last step gave out.

    The next `envs.step` does what it would have done without the interruption, automatic resets included.
    Where an episode did not come out the same, that environment starts a new one: its observation is then
    a reset's, with reward 0.
    """
    if len(states) != envs.num_envs:
        raise EnvError(f"There are {len(states)} saved episodes for {envs.num_envs} environments.")
    envs.set_attr("pending", list(states))
    envs.reset()
    ignored = create_empty_array(envs.single_action_space, envs.num_envs, fn=np.zeros)
    last = envs.step(ignored)
    return list(envs.get_attr("restored")), last


def set_states(envs: Vector, states: Sequence[State]) -> list[bool]:
    """`restore` without the last step: which episodes were restored exactly."""
    return restore(envs, states)[0]
