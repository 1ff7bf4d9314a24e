"""Agents by name, and trained ones from a run directory. Nothing heavy is imported before it is needed."""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_origin, get_type_hints

if TYPE_CHECKING:
    from gymnasium import Space

    from agents.policy import Policy
    from mbrl.checkpoint import Checkpoint
    from mbrl.interfaces import Agent

AGENTS = {
    "dreamer": "agents.dreamer:Dreamer",
    "random": "agents.random_agent:RandomAgent",
    "sac": "agents.sb3:Sac",
    "ppo": "agents.sb3:Ppo",
    "td3": "agents.sb3:Td3",
    "tqc": "agents.sb3:Tqc",
    "crossq": "agents.sb3:Crossq",
    "dqn": "agents.sb3:Dqn",
}


def agent_class(name: str) -> Any:
    """The class of a registered name, or of its path "module:Class".

    Raises:
        UserError: there is no such agent.
    """
    from mbrl.errors import UserError

    path = AGENTS.get(name, name)
    if path not in AGENTS.values():
        raise UserError(f"there is no agent {name!r}; there are: {', '.join(AGENTS)}")
    module, _, qualname = path.partition(":")
    return getattr(importlib.import_module(module), qualname)


def config_class(name: str) -> Any:
    """The dataclass that configures an agent: what its class, or else its constructor, says of ``config``."""
    kind = agent_class(name)
    return {**get_type_hints(kind.__init__), **get_type_hints(kind)}["config"]


def make_agent(
    name: str,
    config: Any,
    observation_space: Space[Any],
    action_space: Space[Any],
    device: Any = "cpu",
) -> Agent:
    """An untrained agent; ``config=None`` takes the defaults."""
    config = config_class(name)() if config is None else config
    agent: Agent = agent_class(name)(config, observation_space, action_space, device)
    return agent


def load(run: Path | str, *, best: bool = False, device: Any = "cpu") -> Policy:
    """The agent of a run directory, from its newest checkpoint or its best-evaluated one.

    Raises:
        UserError: no run is there, or its checkpoints are damaged.
    """
    import mbrl.checkpoint as checkpoints
    from mbrl.errors import UserError

    found = checkpoints.best(run) if best else checkpoints.latest(run)
    if found is None:
        raise UserError(f"no checkpoint in {run}; 'mbrl train ENV' writes one to runs/<env>/<agent>/seed<k>")
    return restore(found, device)


def restore(found: Checkpoint, device: Any = "cpu") -> Policy:
    """The agent of a checkpoint.

    Raises:
        UserError: the agent is built differently by now.
    """
    import mbrl.checkpoint as checkpoints
    from agents.policy import Policy
    from mbrl.spaces import space_from_json

    name, values = found.manifest["agent"]["class"], found.manifest["agent"]["config"]
    observation_space = space_from_json(found.manifest["observation_space"])
    action_space = space_from_json(found.manifest["action_space"])
    config = from_dict(config_class(name), values)
    agent = make_agent(name, config, observation_space, action_space, device)
    checkpoints.load_agent(agent, found)
    return Policy(agent, observation_space, action_space)


def from_dict(cls: Any, values: dict[str, Any]) -> Any:
    """The dataclass ``cls``, nested ones included, from ``dataclasses.asdict`` and through JSON.

    A field that ``cls`` no longer has is left out, and one that is new takes its default.
    """
    hints = get_type_hints(cls)
    known = {field.name for field in dataclasses.fields(cls)}
    return cls(**{name: _convert(hints[name], value) for name, value in values.items() if name in known})


def _convert(hint: Any, value: Any) -> Any:
    options = [hint, *get_args(hint)]
    if isinstance(value, dict):
        for option in options:
            if dataclasses.is_dataclass(option):
                return from_dict(option, value)
    if isinstance(value, list) and any(option is tuple or get_origin(option) is tuple for option in options):
        return tuple(value)
    return value
