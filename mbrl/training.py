"""train(): a training of any agent, from its first step or from a checkpoint to its end; the loop is trainer.py's."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from gymnasium.vector import VectorEnv

from mbrl.checkpoint import Checkpoint, Checkpoints
from mbrl.evaluation import LIMIT
from mbrl.interfaces import Agent, EnvStates, Log, Rows
from mbrl.replay import Replay, ReplayConfig
from mbrl.run import (
    RunState,
    circumstances,
    commands,
    only_writer,
    readable_disk_errors,
    write_atomically,
    write_status,
)
from mbrl.suspension import go_on
from mbrl.trainer import Result, Trainer


@dataclass(frozen=True)
class TrainConfig:
    steps: int = 100_000
    """Environment steps, action repeat included."""
    minutes: float | None = None
    """Stop after so many minutes of wall-clock, evaluation and earlier parts of the run included."""
    update_ratio: float | None = None
    """Gradient updates per decision of the agent, fractions are carried over; None: what suits the agent, or 0.5."""
    prefill: int = 1000
    """Decisions before the first update."""
    random_prefill: bool = True
    """Take those at random, not by the untrained agent."""
    pretrain: int = 0
    """Updates done at once when the prefill is complete."""
    eval_every: int = 5000
    """Environment steps between evaluations; 0: none but those of ``eval_at`` and the one at the end."""
    eval_at: tuple[int, ...] = ()
    """Environment steps to evaluate at besides, as soon as they are reached."""
    eval_episodes: int = 10
    """Episodes of each evaluation on the way, in each mode."""
    final_episodes: int = 20
    """Episodes of the evaluation at the end, in each mode."""
    eval_limit: int = LIMIT
    """Decisions after which an episode of an evaluation is cut, if it has not ended."""
    eval_probes: int = 100
    """Probes of the world model in each evaluation, where the agent has one (mbrl/quality.py); 0: none."""
    log_every: int = 1000
    """Environment steps between lines of metrics."""
    checkpoint_every: float = 5.0
    """Minutes between checkpoints."""
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    """How much experience is kept."""


def train(
    agent: Agent,
    envs: VectorEnv[Any, Any, Any],
    replay: Replay,
    config: TrainConfig,
    log: Log,
    *,
    eval_envs: VectorEnv[Any, Any, Any] | None = None,
    directory: Path | None = None,
    seed: int = 0,
    screen: Rows | None = None,
    resume: Checkpoint | None = None,
    env_states: EnvStates | None = None,
    run_config: dict[str, Any] | None = None,
) -> Result:
    """Train until ``config`` says stop, or SIGINT or SIGTERM asks for it.

    Seeds the global generators of torch, numpy and Python. With a ``directory`` the run is checkpointed
    there; ``resume=mbrl.checkpoint.latest(directory)`` continues it as if it had never stopped.
    ``run_config`` is kept in the checkpoint and in config.yaml: what this run is, as plain dicts.

    Raises:
        UserError: a broken observation, a non-finite loss, a checkpoint that does not fit, a full disk.
    """
    trainer = Trainer(agent, envs, replay, config, log, eval_envs, seed, screen)
    trainer.env_states, trainer.run_config = env_states, run_config or {}
    if directory is None:
        with trainer.stop:
            trainer.start() if resume is None else go_on(trainer, resume)
            log.open()
            trainer.run()
        return trainer.result()
    directory = Path(directory)
    with only_writer(directory), readable_disk_errors(directory), trainer.stop:
        trainer.checkpoints = Checkpoints(directory, trainer.run_config, starting=resume is None)
        if resume is not None:
            go_on(trainer, resume)  # refuses what does not fit, before anything is written
        log.open()
        if run_config is not None:
            plain = json.loads(json.dumps(run_config, default=str))
            write_atomically(directory / "config.yaml", yaml.safe_dump(plain, sort_keys=False))
        write_status(directory, "running", error=None, **circumstances(), **commands(directory, resume is not None))
        try:
            if resume is None:
                trainer.start()
            trainer.run()
        except BaseException as error:
            with suppress(OSError):
                write_status(directory, "failed", error=f"{type(error).__name__}: {error}")
            raise
        result = trainer.result()
        state: RunState = "interrupted" if result.interrupted else "finished"
        write_status(directory, state, **trainer.totals())
    return result
