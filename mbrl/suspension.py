"""Suspension: a training loop put into a checkpoint, and taken out again as if nothing had happened.

Whatever decides what happens next is in it: the agent, the replay, the environments, every generator,
the step that the agent saw last, what it made of it, and what it is about to do.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

from mbrl.checkpoint import Checkpoint, as_tensors, check_same_run, like, load_agent, pack
from mbrl.errors import UserError
from mbrl.progress import Progress
from mbrl.randomness import get_randomness, set_randomness
from mbrl.steps import Steps

if TYPE_CHECKING:
    from mbrl.trainer import Trainer


def suspend(trainer: Trainer, env_states: bool = True) -> dict[str, Any]:
    """The loop between two iterations; the agent and the replay save themselves.

    Without the environments' states, the unfinished episodes are cut when the run goes on.
    """
    return {
        "progress": {**vars(trainer.progress), "wall": trainer.wall},
        "step": as_tensors(trainer.step),
        "state": trainer.state,
        "action": trainer.action,
        "report": trainer.last_report,
        "decisions": trainer.driver.decisions,
        "generator": trainer.generator.bit_generator.state,
        "randomness": get_randomness(),
        "envs": _env_states(trainer) if env_states else [],
        "lines": {path.name: path.stat().st_size for path in _line_files(trainer)},
    }


def go_on(trainer: Trainer, checkpoint: Checkpoint) -> None:
    """Become what ``checkpoint`` was, so that nothing that follows can tell the difference.

    Raises:
        UserError: it is of a different run.
    """
    trainer.notes += checkpoint.notes
    trainer.notes += check_same_run(checkpoint, identity(trainer), trainer.run_config)
    load_agent(trainer.agent, checkpoint)
    loop = checkpoint.state()["loop"]
    trainer.progress = Progress(**loop["progress"])
    trainer.step = Steps(**loop["step"])
    trainer.state = like(loop["state"], trainer.agent.initial_state(trainer.driver.num_envs))
    trainer.action = loop["action"]
    trainer.last_report = loop["report"]
    trainer.generator.bit_generator.state = loop["generator"]
    _load_replay(trainer, checkpoint)
    _restore_envs(trainer, loop["envs"])
    trainer.driver.decisions = loop["decisions"]
    for pace in (trainer.since_line, trainer.since_row):
        pace.lap(trainer.driver.env_steps, trainer.progress.updates)
    if trainer.checkpoints is not None:
        trainer.checkpoints.forget_after(checkpoint)
    for path in _line_files(trainer):  # what was logged at this very step, but later
        os.truncate(path, min(path.stat().st_size, loop["lines"].get(path.name, 0)))
    set_randomness(loop["randomness"])  # last: everything above may have drawn


def identity(trainer: Trainer) -> dict[str, Any]:
    """What must be the same for a checkpoint to fit."""
    envs = trainer.driver.envs
    return {
        "agent": type(trainer.agent).__name__,
        "observation space": str(envs.single_observation_space),
        "action space": str(envs.single_action_space),
        "number of environments": envs.num_envs,
        "action repeat": trainer.driver.action_repeat,
    }


def _line_files(trainer: Trainer) -> list[Path]:
    return [] if trainer.checkpoints is None else sorted(trainer.checkpoints.directory.glob("*.jsonl"))


def _env_states(trainer: Trainer) -> list[Any]:
    """One per environment; an environment that cannot be stored gets None, and is cut later."""
    if trainer.env_states is None:
        return []
    states: list[Any] = []
    for state in trainer.env_states.get_states(trainer.driver.envs):
        try:
            states.append(pack(state))
        except TypeError:
            states.append(None)
    return states


def _load_replay(trainer: Trainer, checkpoint: Checkpoint) -> None:
    manifest = checkpoint.manifest["replay"]
    try:
        trainer.replay.load(checkpoint.replay_directory, checkpoint.path, manifest)
    except UserError:
        raise
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        trainer.replay.clear()
        aside = checkpoint.replay_directory.with_name("replay-damaged")  # or its files would pass for new ones
        if checkpoint.replay_directory.is_dir():
            shutil.rmtree(aside, ignore_errors=True)
            checkpoint.replay_directory.rename(aside)
        trainer.note(
            f"the stored experience is damaged ({error}): the agent goes on with what it has learnt and "
            f"gathers new experience; what is left of the old is in {aside}"
        )


def _restore_envs(trainer: Trainer, states: list[Any]) -> None:
    """Put the environments back; where that fails, the unfinished episode is cut."""
    driver, progress = trainer.driver, trainer.progress
    # Not the run's own seed: after a cut, its first episode would come again.
    driver.reset(trainer.seed + progress.updates + 1)
    restored = [False] * driver.num_envs
    if trainer.env_states is not None and states and None not in states:
        restored = trainer.env_states.set_states(driver.envs, states)
    going_on = driver.resume(trainer.step, restored)
    cut = [i for i, on in enumerate(going_on) if not on and not trainer.step.is_last[i]]
    for i in cut:
        trainer.replay.close_episode(i)
        progress.running_return[i], progress.running_length[i] = 0.0, 0
    if cut:
        trainer.note(
            f"the unfinished episodes of environments {cut} could not be restored; they were cut, as if "
            "truncated, and new ones begin"
        )
