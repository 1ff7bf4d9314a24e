"""RandomAgent: uniformly random actions. The floor that every learner must leave."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium import Space, spaces
from torch import Tensor

from mbrl.interfaces import State
from mbrl.replay import Replay
from mbrl.spaces import ActionSpec
from mbrl.steps import Steps


@dataclass(frozen=True)
class RandomConfig:
    """Nothing to configure."""


class RandomAgent:
    def __init__(
        self,
        config: RandomConfig,
        observation_space: spaces.Dict,
        action_space: Space[Any],
        device: torch.device | str = "cpu",
    ) -> None:
        self.config = config
        self.action_spec = ActionSpec.of(action_space)
        self.num_parameters = 0

    def initial_state(self, n: int) -> State:
        return {}

    def act(self, step: Steps, state: State, explore: bool) -> tuple[Tensor, State]:
        """Random whether exploring or not; draws from torch's generator, as every agent does."""
        generator = np.random.default_rng(int(torch.randint(2**62, ())))
        return self.action_spec.sample(len(step.reward), generator), state

    def latents(self, state: State) -> State:
        return {}

    def latent_spec(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        return {}

    def update(self, replay: Replay) -> dict[str, Tensor | float]:
        return {}

    def report(self, replay: Replay) -> dict[str, Any]:
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {"model": {}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert not state["model"], state["model"].keys()

    def describe(self) -> str:
        return f"obs ignored   action {self.action_spec}   uniformly random"
