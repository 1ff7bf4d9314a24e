"""A tiny agent with everything that a real one has: memory, noise, optimiser."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from toy_envs import Counting, Seeded

from mbrl.replay import Replay
from mbrl.spaces import ActionSpec, vector_size
from mbrl.steps import Steps

__all__ = ["Counting", "ListLog", "Seeded", "ToyAgent", "make_agent", "make_replay"]


class ToyAgent:
    """Regresses the reward from observation and memory; acts by a noisy linear policy."""

    min_steps = 4

    def __init__(self, config: Any, observation_space: Any, action_space: Any, device: str = "cpu") -> None:
        self.spec = ActionSpec.of(action_space)
        size = sum(vector_size(space) for space in observation_space.spaces.values())
        self.memory = nn.Linear(size + self.spec.size + 2, 2)
        self.head = nn.Linear(2, self.spec.size + 1)
        self.modules = nn.ModuleDict({"memory": self.memory, "head": self.head})
        self.optimiser = torch.optim.Adam(self.modules.parameters(), lr=1e-2)
        self.num_parameters = sum(p.numel() for p in self.modules.parameters())
        self.last_batch: Any = None

    def initial_state(self, n: int) -> dict[str, Tensor]:
        return {"hidden": torch.zeros(n, 2)}

    def _remember(self, step: Steps, hidden: Tensor) -> Tensor:
        hidden = hidden * (~step.is_first).float()[..., None]
        return torch.tanh(self.memory(torch.cat([*step.obs.values(), step.action, hidden], -1) / 10))

    @torch.no_grad()
    def act(self, step: Steps, state: dict[str, Tensor], explore: bool) -> tuple[Tensor, dict[str, Tensor]]:
        hidden = self._remember(step, state["hidden"])
        action = self.head(hidden)[..., :-1]
        return action + 0.3 * torch.randn_like(action) * explore, {"hidden": hidden}

    def latents(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"hidden": state["hidden"]}

    def latent_spec(self) -> dict[str, Any]:
        return {"hidden": ((2,), torch.float32)}

    def update(self, replay: Replay) -> dict[str, Tensor | float]:
        self.last_batch = batch = replay.sample(2, 4)
        hidden = self._remember(batch.steps[:, 1:], batch.latents["hidden"][:, :-1])
        noisy = hidden + 0.1 * torch.randn_like(hidden)
        loss = (self.head(noisy)[..., -1] - batch.steps.reward[:, 1:]).square().mean()
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        env, time = batch.index
        replay.write_latents((env, time[:, 1:]), {"hidden": hidden.detach()})
        return {"train/loss/rew": loss.detach(), "train/loss/total": loss.detach()}

    def report(self, replay: Replay) -> dict[str, Any]:
        noise = torch.rand(())
        return {"report/open_loop_error": [0.1, 0.2], "report/truth": np.zeros((3, 1)), "report/noise": noise}

    def state_dict(self) -> dict[str, Any]:
        return {"model": self.modules.state_dict(), "optimiser": self.optimiser.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.modules.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])

    def describe(self) -> str:
        return "toy"


def make_agent(envs: Any, kind: type[ToyAgent] = ToyAgent) -> ToyAgent:
    torch.manual_seed(0)
    return kind(None, envs.single_observation_space, envs.single_action_space)


def make_replay(agent: Any, envs: Any, seed: int = 0) -> Replay:
    size = ActionSpec.of(envs.single_action_space).size
    return Replay(envs.single_observation_space, size, envs.num_envs, latents=agent.latent_spec(), seed=seed)


class ListLog:
    """Remembers what was logged."""

    def __init__(self) -> None:
        self.metrics: list[tuple[int, dict[str, Any]]] = []
        self.episodes: list[tuple[int, float, int]] = []
        self.evaluations: list[tuple[int, str, list[float]]] = []

    def open(self) -> None: ...

    def scalars(self, step: int, metrics: dict[str, Any]) -> None:
        self.metrics.append((step, metrics))

    def episode(self, step: int, ret: float, length: int) -> None:
        self.episodes.append((step, ret, length))

    def evaluation(self, step: int, mode: str, returns: Any) -> None:
        self.evaluations.append((step, mode, list(returns)))
