"""The seams: what an agent and a family of dynamics must offer. Nothing here computes.

N parallel environments or imagined rollouts, B sequences, T steps, H imagined steps, A action dims,
F features, E embedding floats. A State is an opaque nest of tensors with common leading dims.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import torch
from gymnasium.vector import VectorEnv
from torch import Tensor

from mbrl.replay import Replay
from mbrl.steps import Steps

if TYPE_CHECKING:
    from mbrl.driver import Driver
    from mbrl.training import TrainConfig

State = dict[str, Tensor]


class Agent(Protocol):
    """Constructed by convention as ``Agent(config, observation_space, action_space, device)``."""

    def initial_state(self, n: int) -> State:
        """The memory of n environments before their first step."""

    def act(self, step: Steps, state: State, explore: bool) -> tuple[Tensor, State]:
        """Steps (N,) -> action (N, A) and the state after ``step``: sampled, or the mode if not explore."""

    def latents(self, state: State) -> State:
        """Compact arrays (N, ...) that the replay keeps with the step; {} where there are none."""

    def latent_spec(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Shape (without N) and type of each of ``latents``."""

    def update(self, replay: Replay) -> dict[str, Tensor | float]:
        """One gradient update on a batch of its own choice -> metrics."""

    def report(self, replay: Replay) -> dict[str, Any]:
        """Scalars, and arrays to draw; may be empty."""

    def state_dict(self) -> dict[str, Any]:
        """Everything learnt, as nested dicts of tensors and numbers; "model" holds named tensors."""

    def load_state_dict(self, state: dict[str, Any]) -> None: ...

    @property
    def num_parameters(self) -> int: ...

    def describe(self) -> str:
        """One line: how observations are encoded, the action head, the number of parameters."""


class Advice(NamedTuple):
    """What a user should know of the environment, and the option of ``mbrl train`` that helps."""

    what: str
    option: str


@runtime_checkable
class Adviser(Protocol):
    """An agent that looks at what was experienced before it learns from it."""

    def advise(self, replay: Replay) -> list[Advice]: ...


@runtime_checkable
class OwnLoop(Protocol):
    """An agent that brings its own training loop and memory along; train() keeps the run around it."""

    def memory(self, num_envs: int, decisions: int) -> Memory:
        """Get ready for a training of so many decisions at most; what takes the place of the replay."""

    def run(self, loop: Loop) -> None:
        """Train until ``loop.settle()`` says stop; it is asked before each decision, and at the end."""


class Memory(Protocol):
    """What train() does with a replay that it does not fill; see Replay for each."""

    def save(self, directory: Path, checkpoint: Path) -> dict[str, Any]: ...
    def load(self, directory: Path, checkpoint: Path, manifest: dict[str, Any]) -> None: ...
    def clear(self) -> None: ...
    def close_episode(self, env: int) -> None: ...


class Loop(Protocol):
    """What train() lends to an agent that runs its own loop; mbrl.trainer.Trainer is one."""

    driver: Driver
    config: TrainConfig
    seed: int
    step: Steps
    """(N,): the newest."""

    def settle(self) -> bool:
        """Evaluate, log and save what is due; whether to leave."""

    def advance(self, action: Tensor) -> None:
        """Action (N, A): step the environments."""

    def begin_episodes(self) -> None:
        """Reset the environments whose episode ended with the newest step."""

    def learned(self, updates: int, metrics: dict[str, Tensor | float], flops: float | None) -> None:
        """Tell the number of updates so far, the metrics of the last and the FLOPs of one, if known."""


class Dynamics(Protocol):
    """Latent dynamics, what LatentModel of mbrl/world_model.py is built around."""

    feature_sizes: tuple[int, int]
    """F as a sum: the deterministic share of the features, then the stochastic one."""

    def initial_state(self, n: int) -> State: ...

    def filter(self, state: State, embed: Tensor, action: Tensor, is_first: Tensor) -> State:
        """One observed step while acting: embed (N, E), the action (N, A) that led to it, is_first (N,)."""

    def observe(
        self, embed: Tensor, action: Tensor, is_first: Tensor, state: State
    ) -> tuple[State, dict[str, Tensor]]:
        """embed (B, T, E), action (B, T, A) -> states (B, T) and losses (B, T) by name."""

    def step(self, state: State, action: Tensor) -> State:
        """One imagined step: state (N,), action (N, A)."""

    def features(self, state: State) -> Tensor:
        """(..., F): all that agents and heads ever see."""


@dataclass(frozen=True)
class Imagined:
    """Rollouts in imagination, (N, H+1); entry 0 is the start."""

    features: Tensor
    """(N, H+1, F)."""
    action: Tensor
    """(N, H+1, A): the action taken at that step."""
    reward: Tensor
    """(N, H+1): the reward that came with that step."""
    proceed: Tensor
    """(N, H+1): the probability that the episode goes on after that step."""


class Log(Protocol):
    """Where results go; mbrl.logger.Logger is one."""

    def open(self) -> None:
        """The run begins; nothing can refuse it any more."""

    def scalars(self, step: int, metrics: dict[str, Any], /) -> None: ...
    def episode(self, step: int, ret: float, length: int, /) -> None: ...
    def evaluation(self, step: int, mode: Any, returns: Any, /) -> None: ...


class Rows(Protocol):
    """Where a person looks; mbrl.screen.Screen is one."""

    def row(self, values: dict[str, Any], /) -> None: ...
    def note(self, text: str, /) -> None: ...
    def heartbeat(self, text: str, /) -> None: ...


class EnvStates(Protocol):
    """Puts environments back into the middle of an episode."""

    def get_states(self, envs: VectorEnv[Any, Any, Any], /) -> list[Any]: ...
    def set_states(self, envs: VectorEnv[Any, Any, Any], states: list[Any], /) -> list[bool]: ...
