"""Spaces: what an agent may see and do, read off Gymnasium spaces.

Agents speak one action language, (N, A) float tensors: continuous dimensions in [-1, 1], discrete
choices one-hot. ActionSpec translates to and from the environment's own language.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from mbrl.errors import UserError

Array = np.ndarray[Any, Any]


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


UNLIMITED = 1e10
"""A bound of an action this far away is none."""


@dataclass(frozen=True)
class ActionSpec:
    """One action space as (N, A) float tensors: its continuous dimensions first, then each choice one-hot.

    Dict and Tuple are read depth first; MultiDiscrete and MultiBinary are several choices.

    Raises:
        UserError: from ``of``, for a space of another kind.
    """

    space: gym.Space[Any]
    continuous: int
    """Continuous dimensions."""
    choices: tuple[int, ...]
    """Number of classes of each discrete choice."""

    @staticmethod
    def of(space: gym.Space[Any]) -> ActionSpec:
        leaves = list(_action_leaves(space))
        continuous = sum(math.prod(leaf.shape) for leaf in leaves if isinstance(leaf, spaces.Box))
        return ActionSpec(space, continuous, tuple(n for leaf in leaves for n in _choices(leaf)))

    @property
    def size(self) -> int:
        """A: floats in an action."""
        return self.continuous + sum(self.choices)

    def __str__(self) -> str:
        parts = [f"Box({self.continuous})"] if self.continuous else []
        for n, group in groupby(self.choices):
            count = len(list(group))
            parts.append(f"{count} Discrete({n})" if count > 1 else f"Discrete({n})")
        return " + ".join(parts)

    def zero(self, n: int) -> Tensor:
        """(n, A): the action that stands in a reset step."""
        return torch.zeros(n, self.size)

    def sample(self, n: int, generator: np.random.Generator) -> Tensor:
        """(n, A): uniformly random actions."""
        parts = [torch.from_numpy(generator.uniform(-1, 1, (n, self.continuous)).astype(np.float32))]
        for classes in self.choices:
            choice = torch.from_numpy(generator.integers(classes, size=n))
            parts.append(torch.nn.functional.one_hot(choice, classes).float())
        return torch.cat(parts, -1)

    def to_env(self, action: Tensor) -> Any:
        """(N, A) -> the batch that ``VectorEnv.step`` takes, clipped and rescaled to the bounds.

        Where a bound is infinite, [-1, 1] becomes a range of 2 that ends in the finite one, or stays.
        """
        unit = action[:, : self.continuous].clamp(-1, 1).numpy()
        scores = action[:, self.continuous :].split(self.choices, -1) if self.choices else ()
        indices = [part.argmax(-1).numpy() for part in scores]
        return _to_env(self.space, unit, iter(range(self.continuous)), iter(indices))


def _action_leaves(space: gym.Space[Any]) -> Iterator[gym.Space[Any]]:
    if isinstance(space, spaces.Dict):
        for entry in space.spaces.values():
            yield from _action_leaves(entry)
    elif isinstance(space, spaces.Tuple):
        for entry in space.spaces:
            yield from _action_leaves(entry)
    elif isinstance(space, spaces.Box | spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary):
        yield space
    else:
        raise UserError(
            f"action space {space} is not supported; supported are Box, Discrete, MultiDiscrete, MultiBinary, and "
            "Dict or Tuple of these. Turn it into one of them with gymnasium.wrappers.TransformAction."
        )


def _choices(leaf: gym.Space[Any]) -> list[int]:
    """Classes of each choice in a leaf."""
    if isinstance(leaf, spaces.Discrete):
        return [int(leaf.n)]
    if isinstance(leaf, spaces.MultiDiscrete):
        return [int(n) for n in leaf.nvec.flat]
    return [2] * math.prod(leaf.shape) if isinstance(leaf, spaces.MultiBinary) else []


def _to_env(space: gym.Space[Any], unit: Array, dims: Iterator[int], indices: Iterator[Array]) -> Any:
    """The batch for one space, from its next dimensions of ``unit`` (N, continuous) and its next choices (N,)."""
    if isinstance(space, spaces.Dict):
        return {key: _to_env(entry, unit, dims, indices) for key, entry in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(_to_env(entry, unit, dims, indices) for entry in space.spaces)
    shape = (len(unit), *(space.shape or ()))
    if isinstance(space, spaces.Box):
        values = unit[:, list(islice(dims, math.prod(space.shape)))].reshape(shape)
        low, high = finite_bounds(space)
        values = low + (values.astype(np.float64) + 1) * 0.5 * (high - low)
        values = (values if space.dtype.kind == "f" else np.rint(values)).astype(space.dtype)
        return np.clip(values, space.low, space.high)  # rounding may have gone beyond
    chosen = np.stack(list(islice(indices, len(_choices(space)))), -1).reshape(shape)
    return (chosen + getattr(space, "start", 0)).astype(space.dtype)


def first_row(batch: Any) -> Any:
    """The first action of a batch of them."""
    if isinstance(batch, dict):
        return {key: first_row(entry) for key, entry in batch.items()}
    return tuple(map(first_row, batch)) if isinstance(batch, tuple) else batch[0]


def count_unlimited(space: gym.Space[Any]) -> int:
    """Continuous dimensions of an action space that lack a finite bound."""
    boxes = [leaf for leaf in _action_leaves(space) if isinstance(leaf, spaces.Box)]
    return sum(int(((box.low <= -UNLIMITED) | (box.high >= UNLIMITED)).sum()) for box in boxes)


def finite_bounds(space: spaces.Box) -> tuple[Array, Array]:
    """Bounds, each of the space's shape, where those that are infinite are 2 away from the other, or -1 and 1."""
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    no_low, no_high = low <= -UNLIMITED, high >= UNLIMITED
    low, high = np.where(no_low & no_high, -1.0, low), np.where(no_low & no_high, 1.0, high)
    low, high = np.where(no_low & ~no_high, high - 2, low), np.where(no_high & ~no_low, low + 2, high)
    return low, high


def space_to_json(space: gym.Space) -> dict[str, Any]:
    """A space as plain data, so that a stored agent needs no environment."""
    if isinstance(space, spaces.Dict):
        return {"dict": {key: space_to_json(entry) for key, entry in space.spaces.items()}}
    if isinstance(space, spaces.Tuple):
        return {"tuple": [space_to_json(entry) for entry in space.spaces]}
    if isinstance(space, spaces.Discrete):
        return {"discrete": int(space.n), "start": int(space.start)}
    if isinstance(space, spaces.MultiDiscrete):
        return {"multidiscrete": space.nvec.tolist(), "start": space.start.tolist()}
    if isinstance(space, spaces.MultiBinary):
        return {"multibinary": space.n if isinstance(space.n, int) else list(space.shape)}
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
    if "tuple" in data:
        return spaces.Tuple([space_from_json(entry) for entry in data["tuple"]])
    if "multidiscrete" in data:
        return spaces.MultiDiscrete(np.array(data["multidiscrete"]), start=np.array(data["start"]))
    if "multibinary" in data:
        return spaces.MultiBinary(data["multibinary"])
    if "discrete" in data:
        return spaces.Discrete(data["discrete"], start=data["start"])
    dtype = np.dtype(data["dtype"])
    low, high = (np.broadcast_to(np.array(data[name], dtype), data["box"]) for name in ("low", "high"))
    return spaces.Box(low, high, dtype=dtype.type)
