"""The work whose speed is measured: updates of a preset's agent on random replayed sequences of a fixed shape.

Shaped like dm_control's walker-walk, or 64 x 64 images.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from gymnasium import spaces
from torch import Tensor

from agents.dreamer import Dreamer, DreamerConfig, debug, laptop, reference, sized
from mbrl.interfaces import State
from mbrl.replay import Replay, ReplayConfig
from mbrl.spaces import is_image
from mbrl.steps import Steps

ENV = "dmc/walker-walk"
OBSERVATIONS = spaces.Dict(
    {
        name: spaces.Box(-np.inf, np.inf, shape, np.float32)
        for name, shape in (("orientations", (14,)), ("height", (1,)), ("velocity", (9,)))
    }
)
IMAGES = spaces.Dict({"image": spaces.Box(0, 255, (64, 64, 3), np.uint8)})
ACTIONS = spaces.Box(-1, 1, (6,), np.float32)
EPISODE = 501  # records of a walker-walk episode at action repeat 2, the reset included
RINGS = 16  # environments that the replay holds


@dataclass(frozen=True)
class Work:
    name: str
    agent: DreamerConfig
    """Sizes, batch and horizon."""
    images: bool = False
    """Whether the agent sees images instead of walker-walk's floats."""
    stored: int = 2048
    """Steps in each of the replay's rings."""
    matrix: int = 2048
    """Side of the square matrices whose product is the machine's limit."""

    @property
    def observations(self) -> spaces.Dict:
        return IMAGES if self.images else OBSERVATIONS


WORKS = {
    work.name: work
    for work in (
        Work("reference", reference().agent),
        Work("laptop", laptop().agent),
        Work("size12m", replace(reference().agent, model=sized(256))),
        Work("pixels", replace(reference().agent, model=sized(256)), images=True, stored=256),
        Work("debug", debug().agent, stored=64, matrix=256),
    )
}


def random_steps(space: spaces.Dict, n: int, first: Tensor, last: Tensor) -> Steps:
    """(n,) records of nothing in particular; walker-walk never terminates."""

    def values(entry: spaces.Space[Any]) -> Tensor:
        shape = (n, *(entry.shape or ()))
        return torch.randint(256, shape, dtype=torch.uint8) if is_image(entry) else torch.randn(shape)

    obs = {name: values(entry) for name, entry in space.spaces.items()}
    action = torch.rand(n, *ACTIONS.shape) * 2 - 1
    return Steps(obs, action, torch.rand(n), first, last, torch.zeros(n, dtype=torch.bool))


def random_state(agent: Dreamer, n: int) -> State:
    """Of n environments; nothing where the replay keeps nothing of it."""
    if not agent.latent_spec():
        return {}
    rssm = agent.config.model.rssm
    classes = torch.randint(rssm.classes, (n, rssm.stoch))
    return {"deter": torch.rand(n, rssm.deter) * 2 - 1, "stoch": F.one_hot(classes, rssm.classes)}


def build(work: Work, device: str = "cpu") -> tuple[Dreamer, Replay]:
    """An untrained agent, and a replay whose rings are in different places of their episodes."""
    torch.manual_seed(0)
    agent = Dreamer(work.agent, work.observations, ACTIONS, device)
    config = ReplayConfig(capacity=RINGS * max(1024, work.stored))
    replay = Replay(work.observations, ACTIONS.shape[0], RINGS, agent.latent_spec(), config, seed=0, device=device)
    offset = torch.arange(RINGS) * EPISODE // RINGS
    for k in range(work.stored):
        time_in_episode = (offset + k) % EPISODE
        latents = agent.latents(random_state(agent, RINGS))
        first, last = time_in_episode == 0, time_in_episode == EPISODE - 1
        replay.add(random_steps(work.observations, RINGS, first, last), latents)
    return agent, replay


def unrecorded(agent: Dreamer) -> Dreamer:
    """The same where an update's operations can be seen, or one like it: a CUDA graph hides them."""
    if agent.device.type != "cuda":
        return agent
    return Dreamer(replace(agent.config, cuda_graph=False), agent.space, ACTIONS, agent.device)
