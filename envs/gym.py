"""Environments from Gymnasium's registry, a module, a file, another package's suite or a callable."""

import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import gymnasium
import numpy as np
from gymnasium.wrappers import TimeLimit

from envs import atari, dmc, minigrid, plugins, rendering
from envs.errors import EnvError, missing_extra
from envs.wrappers import Env, Painter

# Packages that register their environments when imported: prefix of the id -> (module, extra that installs it).
REGISTERED_BY = {
    "MiniGrid-": ("minigrid", "minigrid"),
    "BabyAI-": ("minigrid", "minigrid"),
}


def make(name: str | Callable[..., Any], max_episode_steps: int | None, render_mode: str | None) -> Env:
    if not isinstance(name, str):
        env = _call(name, getattr(name, "__name__", str(name)), render_mode)
    elif (target := _factory(name)) is not None:
        env = _call(target, name, render_mode)
    else:
        return minigrid.adapt(_from_registry(name, max_episode_steps, render_mode))
    return minigrid.adapt(_limit(env, max_episode_steps))


def _factory(name: str) -> Callable[..., Any] | None:
    """What to call for this environment; None where Gymnasium's registry is to be asked."""
    path, separator, attribute = name.rpartition(":")
    if separator and path.endswith(".py"):
        return _from_file(Path(path), attribute)
    return plugins.find(name)


def make_atari(name: str, action_repeat: int, max_episode_steps: int | None, render_mode: str | None) -> Env:
    ale = _import_registering(name, "ale_py", "atari")
    ale.ALEInterface.setLoggerMode(ale.LoggerMode.Error)  # no banner
    env = _from_registry(name, max_episode_steps, render_mode, frameskip=1)
    return atari.Atari(env, action_repeat)


def _from_registry(name: str, max_episode_steps: int | None, render_mode: str | None, **kwargs: Any) -> Env:
    for prefix, (module, extra) in REGISTERED_BY.items():
        if name.startswith(prefix):
            _import_registering(name, module, extra)
    if render_mode is not None:
        kwargs["render_mode"] = render_mode
    try:
        with dmc.quiet_mujoco():
            env = gymnasium.make(name, max_episode_steps, disable_env_checker=True, **kwargs)
    except gymnasium.error.DependencyNotInstalled as error:
        raise EnvError(f"{name} needs a package that is missing: {error}") from error
    except ImportError as error:
        raise EnvError(_missing(name, error)) from error
    except gymnasium.error.Error as error:
        raise EnvError(_unknown(name, error)) from error
    if render_mode is not None:
        _enable_rendering(env)
    return env


def _enable_rendering(env: Env) -> None:
    """MuJoCo reads MUJOCO_GL again when it draws its first picture, so this may come after its import."""
    if not os.environ.get("DISPLAY"):
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # pygame complains where there is no screen
    try:
        rendering.enable()
    except EnvError:
        if any("mujoco" in cls.__module__ for cls in type(env.unwrapped).__mro__):
            raise  # others may draw without OpenGL


def _import_registering(name: str, module: str, extra: str) -> ModuleType:
    try:
        imported = importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise EnvError(missing_extra(name, error, extra)) from error
    gymnasium.register_envs(imported)
    return imported


def _missing(name: str, error: ImportError) -> str:
    spec = gymnasium.registry.get(name)
    if spec is not None and str(spec.entry_point).startswith("gymnasium.envs."):
        extra = str(spec.entry_point).split(".")[2].replace("_", "-")
        return f'{name} needs a missing package ({error}). Run: pip install "gymnasium[{extra}]"'
    package = (error.name or name.partition(":")[0]).partition(".")[0]
    reason = str(error).rstrip(".")
    return (
        f"{name} could not be imported: {reason}. If {package!r} is a package, run: pip install {package}. "
        "If it is your own file, run from its folder, or name it: path/to/file.py:Class"
    )


def _unknown(name: str, error: Exception) -> str:
    """Gymnasium's own message with its suggestion, and what else the name may have meant."""
    message = f"{name}: {error}"
    try:
        close = dmc.suggest(name)
    except EnvError:
        close = []
    if close:
        message += f" In dm_control there is {' and '.join(close)}."
    if "Did you mean" in message or close:
        return message
    message += " Other forms of a name: dmc/walker-walk, crafter/reward, module:EnvId-v0, path/to/file.py:Class."
    if others := plugins.prefixes():
        message += f" Packages that are installed make {', '.join(f'{prefix}/...' for prefix in others)}."
    return message


def _from_file(path: Path, attribute: str) -> Callable[..., Any]:
    rendering.prepare()
    if not path.is_file():
        raise EnvError(f"There is no file {path} (looked in {Path.cwd()}).")
    module = _load_file(path.resolve())
    target = getattr(module, attribute, None)
    if callable(target):
        return target
    own = [key for key, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
    names = ", ".join(f"{path}:{key}" for key in own if not key.startswith("_")) or "neither"
    raise EnvError(f"{path} has no class or function {attribute!r}. It has: {names}")


def _load_file(path: Path) -> ModuleType:
    """Import a file that is in no package; the files beside it can be imported by it, as in a script."""
    name = f"envs_file_{path.stem}_{abs(hash(str(path))):x}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    try:
        spec.loader.exec_module(module)
    except ImportError as error:
        del sys.modules[name]
        raise EnvError(_missing(str(path), error)) from error
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _call(target: Callable[..., Any], label: str, render_mode: str | None) -> Env:
    kwargs = {}
    if render_mode is not None:
        parameters = inspect.signature(target).parameters.values()
        if any(p.name == "render_mode" or p.kind is p.VAR_KEYWORD for p in parameters):
            kwargs["render_mode"] = render_mode
    rendering.prepare()
    try:
        env = target(**kwargs)
    except ImportError as error:
        raise EnvError(_missing(label, error)) from error
    except gymnasium.error.Error as error:
        raise EnvError(f"{label}: {error}") from error
    if not isinstance(env, gymnasium.Env):
        raise EnvError(f"{label} gave a {type(env).__name__}; it must give a gymnasium.Env (derive from it).")
    if render_mode is not None:
        _enable_rendering(env)
    return env


def _limit(env: Env, max_episode_steps: int | None) -> Env:
    """Put the time limit in place of the environment's own, if it has one."""
    if max_episode_steps is None:
        return env
    inner = env
    while isinstance(inner, gymnasium.Wrapper):
        if isinstance(inner, TimeLimit):
            inner._max_episode_steps = max_episode_steps
            return env
        inner = inner.env
    return TimeLimit(env, max_episode_steps)


def painter(env: Env, camera: int | str | None, size: int) -> Painter:
    """What draws this environment: our renderer where it is a MuJoCo model, else its own `render`."""
    mujoco, inner = sys.modules.get("mujoco"), env.unwrapped
    model, data = getattr(inner, "model", None), getattr(inner, "data", None)
    if mujoco is None or not isinstance(model, mujoco.MjModel):
        return _Resized(env, camera, size)
    return rendering.Renderer(model, data, size, _camera(inner, model, camera))


def _camera(inner: Env, model: Any, camera: int | str | None) -> Any:
    """By default the one that follows the body, else the free one where Gymnasium puts it."""
    if camera is not None:
        return rendering.find_camera(model, camera)
    if any(model.camera(k).name == "track" for k in range(model.ncam)):
        return rendering.find_camera(model, "track")
    import mujoco

    start, free = mujoco.MjData(model), rendering.find_camera(model, -1)
    mujoco.mj_kinematics(model, start)
    free.lookat[:], free.distance = np.median(start.geom_xpos, 0), model.stat.extent
    settings = getattr(getattr(inner, "mujoco_renderer", None), "default_cam_config", None) or {}
    for key, value in settings.items():
        if isinstance(value, np.ndarray):
            getattr(free, key)[:] = value
        else:
            setattr(free, key, value)
    return free


class _Resized:
    """The environment's own pictures, squeezed into a square."""

    def __init__(self, env: Env, camera: int | str | None, size: int) -> None:
        name = env.spec.id if env.spec is not None else type(env.unwrapped).__name__
        if env.render_mode != "rgb_array":
            modes = env.metadata.get("render_modes")
            raise EnvError(
                f"{name} cannot be observed by pixels: it has no render_mode 'rgb_array' (it has {modes}). "
                "Use observe='state', or give it one that its constructor takes."
            )
        if camera is not None:
            raise EnvError(f"{name} is no MuJoCo model and has no camera {camera!r}; leave out the camera.")
        self._env, self._name, self._size = env, name, size

    def render(self) -> np.ndarray[Any, np.dtype[np.uint8]]:
        try:
            picture: Any = self._env.render()
        except gymnasium.error.DependencyNotInstalled as error:
            raise EnvError(f"{self._name} needs a package that is missing to draw: {error}") from error
        if not isinstance(picture, np.ndarray) or picture.dtype != np.uint8 or picture.shape[2:] != (3,):
            what = f"{picture.dtype} {picture.shape}" if isinstance(picture, np.ndarray) else type(picture).__name__
            raise EnvError(f"{self._name}'s render() gave {what}; it must give uint8 (height, width, 3).")
        return resize(picture, self._size)

    def close(self) -> None:
        """The environment closes what it draws with."""


def resize(picture: Any, size: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """(H, W, C) -> (size, size, C): each pixel is the mean of the area that it covers."""
    rows, columns = (_areas(length, size) for length in picture.shape[:2])
    squeezed = np.tensordot(rows, picture.astype(np.float32), 1)
    mean = np.tensordot(columns, squeezed, (1, 1)).swapaxes(0, 1)
    return np.ascontiguousarray(np.rint(mean).astype(np.uint8))


@lru_cache
def _areas(length: int, size: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """(size, length): what share of each of `size` equal parts of a line each of its `length` pixels is."""
    edges, left = np.arange(size + 1)[:, None] * (length / size), np.arange(length)
    overlap = np.minimum(edges[1:], left + 1) - np.maximum(edges[:-1], left)
    return (overlap.clip(0) * (size / length)).astype(np.float32)
