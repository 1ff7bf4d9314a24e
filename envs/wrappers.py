"""Wrappers around one environment: FlatDict (observations), ActionRepeat, Pixels, Resumable (outermost)."""

import base64
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import gymnasium
import numpy as np
from gymnasium import spaces

from envs.errors import EnvError

Env = gymnasium.Env[Any, Any]
Obs = dict[str, Any]
State = dict[str, Any]
Options = dict[str, Any] | None
Result = tuple[Any, float, bool, bool, dict[str, Any]]
SUPPORTED = "Box, Discrete, MultiDiscrete, MultiBinary, and Dict or Tuple of these"


MEND = "Correct the environment's observation_space, or the type and shape of what it returns."


def _wrong(key: str, space: spaces.Space[Any]) -> str:
    return f"The observation '{key}' is not of its space {space}"


class FlatDict(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Observations as a flat dict: `state` or `image`, or an environment's own keys joined with "/".

    uint8 images become height x width x channels, every other Box float32 with at least one dimension,
    MultiDiscrete and MultiBinary one-hot vectors; Discrete stays.
    """

    def __init__(self, env: Env) -> None:
        super().__init__(env)
        self._leaves = _leaves(env.observation_space, ())
        keys = [key for key, *_ in self._leaves]
        if twice := sorted({key for key in keys if keys.count(key) > 1}):
            raise EnvError(f"Two parts of the observation come to the same name, {twice[0]!r}; rename one of them.")
        self.observation_space = spaces.Dict({key: space for key, _, space, _ in self._leaves})

    def reset(self, *, seed: int | None = None, options: Options = None) -> tuple[Obs, dict[str, Any]]:
        obs, info = self.env.reset(seed=seed, options=options)
        return self._flat(obs), info

    def step(self, action: Any) -> Result:
        obs, reward, terminated, truncated, info = self.env.step(action)
        return self._flat(obs), float(reward), terminated, truncated, info

    def _flat(self, obs: Any) -> Obs:
        flat = {}
        for key, path, space, convert in self._leaves:
            try:
                value = obs
                for part in path:
                    value = value[part]
                flat[key] = convert(value)
            except (ValueError, TypeError, KeyError, IndexError) as error:
                raise EnvError(f"{_wrong(key, space)}: {type(error).__name__}: {error}. {MEND}") from error
            if np.shape(flat[key]) != (space.shape or ()):
                raise EnvError(f"{_wrong(key, space)}: its shape is {np.shape(flat[key])}. {MEND}")
        return flat


Leaf = tuple[str, tuple[str | int, ...], spaces.Space[Any], Callable[[Any], Any]]


def _leaves(space: spaces.Space[Any], path: tuple[str | int, ...]) -> list[Leaf]:
    """(flat key, path into the observation, new space, conversion) of every leaf of an observation space."""
    if isinstance(space, spaces.Dict):
        return [leaf for key, sub in space.spaces.items() for leaf in _leaves(sub, (*path, key))]
    if isinstance(space, spaces.Tuple):
        return [leaf for index, sub in enumerate(space.spaces) for leaf in _leaves(sub, (*path, index))]
    key = "/".join(map(str, path))
    if isinstance(space, spaces.Discrete):
        return [(key or "state", path, space, np.int64)]
    if isinstance(space, spaces.MultiDiscrete | spaces.MultiBinary):
        one_hot = spaces.Box(0, 1, (spaces.utils.flatdim(space),))
        return [(key or "state", path, one_hot, lambda x: _float32(spaces.utils.flatten(space, x)))]
    if not isinstance(space, spaces.Box):
        where = f" under the key {key!r}" if key else ""
        raise EnvError(
            f"Observation space {type(space).__name__}{where} is not supported; supported are {SUPPORTED}. "
            "Wrap the environment with gymnasium.wrappers.TransformObservation to turn it into one of these."
        )
    if (image := as_image(space)) is not None:
        return [(key or "image", path, *image)]
    with np.errstate(over="ignore"):  # unbounded float64 boxes may be +-1.8e308
        low, high = (np.atleast_1d(bound).astype(np.float32) for bound in (space.low, space.high))
    return [(key or "state", path, spaces.Box(low, high, dtype=np.float32), _float32)]


def _float32(value: Any) -> Any:
    return np.array(value, np.float32, ndmin=1)


def as_image(space: spaces.Box) -> tuple[spaces.Box, Callable[[Any], Any]] | None:
    """Height x width x channels, uint8, from what is a picture: uint8, or floats in [0, 1].

    Channels may come first or last or, in grey pictures, not at all; stacked frames become channels. What
    is smaller than 16 x 16 is a table of numbers.
    """
    rank = len(space.shape)
    if rank not in (2, 3, 4) or sorted(space.shape)[-2] < 16:
        return None
    unit = space.dtype.kind == "f" and rank == 3 and not space.low.any() and bool((space.high == 1).all())
    unit = unit and min(space.shape) <= 4
    if space.dtype != np.uint8 and not unit:
        return None
    frames = _frames_last(space.shape)

    def convert(x: Any) -> Any:
        x = np.asarray(x)
        return frames(np.rint(255 * x).astype(np.uint8) if unit else x.astype(np.uint8, copy=False))

    return spaces.Box(convert(space.low), convert(space.high), dtype=np.uint8), convert


def _frames_last(shape: tuple[int, ...]) -> Callable[[Any], Any]:
    """From (H, W), (C, H, W), (H, W, C), (frames, H, W, C) or (frames, C, H, W) to (H, W, channels)."""
    if len(shape) == 2:
        return lambda x: x[..., None]
    channels_first = shape[-3] <= 16 and shape[-3] < shape[-1]
    if len(shape) == 3:
        return (lambda x: np.moveaxis(x, 0, -1)) if channels_first else (lambda x: x)

    def merge(x: Any) -> Any:
        x = np.moveaxis(x, 0, -1) if not channels_first else np.moveaxis(x, (0, 1), (-2, -1))
        return x.reshape(*x.shape[:2], -1)

    return merge


class ActionRepeat(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Apply each action several times and add up the rewards; stops where the episode ends."""

    def __init__(self, env: Env, repeat: int) -> None:
        super().__init__(env)
        self._repeat = repeat

    def step(self, action: Any) -> Result:
        total = 0.0
        for _ in range(self._repeat):
            obs, reward, terminated, truncated, info = self.env.step(action)
            total += float(reward)
            if terminated or truncated:
                break
        return obs, total, terminated, truncated, info


class Painter(Protocol):
    """Draws the environment as it is now: (size, size, 3), uint8."""

    def render(self) -> np.ndarray[Any, np.dtype[np.uint8]]: ...

    def close(self) -> None: ...


class Pixels(gymnasium.Wrapper[Any, Any, Any, Any]):
    """A flat dict with the entry `image`, (size, size, 3), uint8, alone or beside the environment's own."""

    def __init__(self, env: Env, painter: Painter, size: int, keep_state: bool) -> None:
        super().__init__(env)
        self._painter, self._keep_state, self._shape = painter, keep_state, (size, size, 3)
        self.skip = 0
        """Observations to come that nobody looks at: their image is black."""
        own = env.observation_space.spaces if keep_state else {}  # type: ignore[attr-defined]
        if "image" in own:
            raise EnvError("The environment shows an image of its own; use observe='state' or observe='pixels'.")
        image = spaces.Box(0, 255, self._shape, np.uint8)
        self.observation_space = spaces.Dict({**own, "image": image})

    def reset(self, *, seed: int | None = None, options: Options = None) -> tuple[Obs, dict[str, Any]]:
        obs, info = self.env.reset(seed=seed, options=options)
        return self._see(obs), info

    def step(self, action: Any) -> Result:
        obs, reward, terminated, truncated, info = self.env.step(action)
        return self._see(obs), float(reward), terminated, truncated, info

    def _see(self, obs: Obs) -> Obs:
        skipped, self.skip = self.skip > 0, max(0, self.skip - 1)
        image = np.zeros(self._shape, np.uint8) if skipped else self._painter.render()
        return {**(obs if self._keep_state else {}), "image": image}

    def close(self) -> None:
        self._painter.close()
        super().close()


class Resumable(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Can be put back in the middle of an episode, whatever simulator is inside, by playing it again.

    A state holds what decided the episode: the random generator before the episode's reset (or the seed
    given to it), the actions since, and the last observation, which proves that the replay came out the
    same. Actions are kept for the current episode only, so a state grows with an episode that never ends.
    States are nests of str, int, list and dict: fit for JSON, and for torch.load(weights_only=True).

    Inside a vector environment the state goes in through `pending`: set it, `reset()` the vector, then
    `step()` it once with any action. That step gives out the last result of the restored episode again,
    so the vector's own notion of which episodes are over is right as well (see `envs.restore`).
    """

    def __init__(self, env: Env, action_repeat: int = 1) -> None:
        super().__init__(env)
        self.action_repeat = action_repeat
        self.pending: State | None = None
        self.restored = False
        self._nested = isinstance(env.action_space, spaces.Dict | spaces.Tuple)
        self._seed: int | None = None
        self._rng: Any = None
        self._actions: list[Any] = []
        self._result: Result | None = None
        self._again = False

    def reset(self, *, seed: int | None = None, options: Options = None) -> tuple[Obs, dict[str, Any]]:
        pending, self.pending, self._again = self.pending, None, False
        if pending is not None:
            self.restored, obs = self.set_state(pending)
            self._again = True
            return obs, {}
        self._seed = seed
        self._rng = None if seed is not None else _generator_state(self.env)
        self._actions = []
        obs, info = self.env.reset(seed=seed, options=options)
        self._result = (obs, 0.0, False, False, info)
        return obs, info

    def step(self, action: Any) -> Result:
        if self._again:
            assert self._result is not None
            self._again = False
            return self._result
        self._actions.append(np.array(self._pack(action)))
        self._result = result = self.env.step(action)  # type: ignore[assignment]
        return result  # type: ignore[return-value]

    def _pack(self, action: Any) -> Any:
        """An action as one array."""
        return spaces.flatten(self.action_space, action) if self._nested else action

    def _unpack(self, action: Any) -> Any:
        return spaces.unflatten(self.action_space, action) if self._nested else action

    def get_state(self) -> State:
        """The current episode; an empty dict before the first reset."""
        if self._result is None:
            return {}
        return {
            "seed": self._seed,
            "rng": _plain(self._rng),
            "actions": _plain(np.stack(self._actions)) if self._actions else None,
            "observation": _plain(self._result[0]),
        }

    def set_state(self, state: State) -> tuple[bool, Obs]:
        """Play the episode of `state` again: (True, its last observation), else (False, a fresh reset's)."""
        self.pending, self._again = None, False
        try:
            if state and self._replay(state):
                assert self._result is not None
                return True, self._result[0]
        except Exception as error:  # whatever a foreign environment raises, a fresh episode is right
            gymnasium.logger.warn(f"An episode could not be played again ({type(error).__name__}: {error}).")
        return False, self.reset()[0]

    def _replay(self, state: State) -> bool:
        seed, rng, actions = state["seed"], _array(state["rng"]), _array(state["actions"])
        if rng is not None:
            self.env.unwrapped.np_random.bit_generator.state = rng
        actions = () if actions is None else actions
        with _unseen(self.env, len(actions)):
            self.reset(seed=seed)
            for action in actions:
                self.step(self._unpack(action))
        assert self._result is not None
        before, now = _array(state["observation"]), self._result[0]
        return before.keys() == now.keys() and all(
            np.array_equal(before[key], now[key], equal_nan=True) for key in now
        )


@contextmanager
def _unseen(env: Env, observations: int) -> Iterator[None]:
    """Inside, the first so many observations are not drawn."""
    if isinstance(env, Pixels):
        env.skip = observations
    try:
        yield
    finally:
        if isinstance(env, Pixels):
            env.skip = 0


def _generator_state(env: Env) -> Any:
    generator = getattr(env.unwrapped.np_random, "bit_generator", None)
    return None if generator is None else generator.state


def _plain(value: Any) -> Any:
    """Arrays become a dict of dtype, shape and base64 text; dicts are walked; the rest stays."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        array = np.ascontiguousarray(value)
        data = base64.b64encode(array.tobytes()).decode()
        return {"dtype": array.dtype.str, "shape": list(value.shape), "base64": data}
    return value


def _array(value: Any) -> Any:
    """The inverse of `_plain`."""
    if not isinstance(value, dict):
        return value
    if value.keys() == {"dtype", "shape", "base64"}:
        data = base64.b64decode(value["base64"])
        return np.frombuffer(data, value["dtype"]).reshape(value["shape"]).copy()
    return {key: _array(item) for key, item in value.items()}
