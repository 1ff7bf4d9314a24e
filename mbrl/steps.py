"""Steps: the one record of experience, from environment to gradient.

A step is what arrives together: an observation, the action that led to it, the reward that came with
it. Nothing is ever shifted. A reset is an ordinary step with ``is_first``, zero action, zero reward.

Leading dims ``(...)`` are ``(N,)`` in the loop and ``(B, T)`` in a batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Steps:
    obs: dict[str, Tensor]
    """Each (..., *shape), in the environment's dtype: uint8 images stay uint8 until the encoder."""
    action: Tensor
    """(..., A) float32: the action that led to ``obs``; continuous in [-1, 1], discrete one-hot."""
    reward: Tensor
    """(...) float32: the reward that came with ``obs``."""
    is_first: Tensor
    """(...) bool: ``obs`` comes from a reset."""
    is_last: Tensor
    """(...) bool: the next step is a first one."""
    is_terminal: Tensor
    """(...) bool: no reward can follow (terminated, not merely truncated)."""

    def map(self, function: Callable[[Tensor], Tensor]) -> Steps:
        """The same record with ``function`` applied to every tensor."""
        obs = {key: function(value) for key, value in self.obs.items()}
        flags = (self.is_first, self.is_last, self.is_terminal)
        return Steps(obs, function(self.action), function(self.reward), *map(function, flags))

    def tensors(self) -> list[Tensor]:
        """Every tensor, observations first."""
        return [*self.obs.values(), self.action, self.reward, self.is_first, self.is_last, self.is_terminal]

    def __getitem__(self, index: Any) -> Steps:
        return self.map(lambda tensor: tensor[index])

    def to(self, device: torch.device | str) -> Steps:
        return self.map(lambda tensor: tensor.to(device, non_blocking=True))
