"""Spaces: what an agent may see and do, read off Gymnasium spaces.

Agents speak one action language, (N, A) float tensors: each continuous dimension in [-1, 1], each
discrete choice one-hot. ActionSpec translates to and from the environment's own language.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from mbrl.errors import UserError


def is_image(space: gym.Space) -> bool:
    """Images are uint8 boxes (height, width, channels)."""
    return isinstance(space, spaces.Box) and space.dtype == np.uint8 and len(space.shape) == 3


def vector_size(space: gym.Space) -> int:
    """Floats that an observation of this space becomes: a flat Box, or a one-hot Discrete."""
    if isinstance(space, spaces.Discrete):
        return int(space.n)
    assert isinstance(space, spaces.Box), space
    return int(np.prod(space.shape))


def check_observation_space(space: gym.Space) -> spaces.Dict:
    """The space, if agents can encode it.

    Raises:
        UserError: not a flat Dict of Box and Discrete entries.
    """
    if not isinstance(space, spaces.Dict):
        raise UserError(f"observation space {space} is not a Dict; create the environment with envs.make_env")
    for key, entry in space.spaces.items():
        if isinstance(entry, spaces.Discrete):
            continue
        if not isinstance(entry, spaces.Box):
            raise UserError(
                f"observation '{key}' has the space {entry}, which is not supported; "
                "supported are Box (vectors, uint8 images) and Discrete, alone or in a Dict. "
                "Convert it with a gymnasium.ObservationWrapper."
            )
    return space


@dataclass(frozen=True)
class ActionSpec:
    """One action space as (N, A) float tensors.

    Raises:
        UserError: from ``of``, for a space that is neither a bounded Box nor Discrete.
    """

    space: spaces.Box | spaces.Discrete
    size: int
    """A: floats in an action."""
    discrete: bool

    @staticmethod
    def of(space: gym.Space) -> ActionSpec:
        if isinstance(space, spaces.Discrete):
            return ActionSpec(space, int(space.n), discrete=True)
        if isinstance(space, spaces.Box):
            if not (np.isfinite(space.low).all() and np.isfinite(space.high).all()):
                raise UserError(
                    f"action space {space} has infinite bounds; "
                    "wrap the environment in gymnasium.wrappers.RescaleAction or give finite bounds"
                )
            return ActionSpec(space, int(np.prod(space.shape)), discrete=False)
        raise UserError(
            f"action space {space} is not supported; supported are Box and Discrete. "
            "Convert it with a gymnasium.ActionWrapper."
        )

    def zero(self, n: int) -> Tensor:
        """(n, A): the action that stands in a reset step."""
        return torch.zeros(n, self.size)

    def sample(self, n: int, generator: np.random.Generator) -> Tensor:
        """(n, A): uniformly random actions."""
        if self.discrete:
            choice = torch.from_numpy(generator.integers(self.size, size=n))
            return torch.nn.functional.one_hot(choice, self.size).float()
        return torch.from_numpy(generator.uniform(-1, 1, (n, self.size)).astype(np.float32))

    def to_env(self, action: Tensor) -> np.ndarray:
        """(N, A) -> the batch that ``VectorEnv.step`` takes, clipped and rescaled to the bounds."""
        if isinstance(self.space, spaces.Discrete):
            return action.argmax(-1).numpy() + self.space.start
        unit = action.clamp(-1, 1).numpy().reshape(len(action), *self.space.shape)
        low, high = self.space.low, self.space.high
        return (low + (unit + 1) * 0.5 * (high - low)).astype(self.space.dtype)


def space_to_json(space: gym.Space) -> dict[str, Any]:
    """A Dict, Box or Discrete space as plain data, so that a stored agent needs no environment."""
    if isinstance(space, spaces.Dict):
        return {"dict": {key: space_to_json(entry) for key, entry in space.spaces.items()}}
    if isinstance(space, spaces.Discrete):
        return {"discrete": int(space.n), "start": int(space.start)}
    assert isinstance(space, spaces.Box), space
    bounds = {
        name: bound.flat[0].item() if bound.size and (bound == bound.flat[0]).all() else bound.tolist()
        for name, bound in (("low", space.low), ("high", space.high))
    }
    return {"box": list(space.shape), "dtype": str(space.dtype), **bounds}


def space_from_json(data: dict[str, Any]) -> gym.Space:
    """The inverse of ``space_to_json``."""
    if "dict" in data:
        return spaces.Dict({key: space_from_json(entry) for key, entry in data["dict"].items()})
    if "discrete" in data:
        return spaces.Discrete(data["discrete"], start=data["start"])
    dtype = np.dtype(data["dtype"])
    low, high = (np.broadcast_to(np.array(data[name], dtype), data["box"]) for name in ("low", "high"))
    return spaces.Box(low, high, dtype=dtype.type)
