"""`mbrl train ENV`: compose environments, agent, replay and logger; train; show what came out.

The run directory follows from the command, so the same command again continues the run.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from gymnasium.vector import VectorEnv

import envs
from agents import make_agent
from mbrl.checkpoint import Checkpoint, flatten, latest, newest_path
from mbrl.commit import git_commit
from mbrl.driver import read_action_repeat
from mbrl.errors import UserError
from mbrl.interfaces import Agent, EnvStates, OwnLoop
from mbrl.logger import Logger
from mbrl.replay import Replay
from mbrl.report import write_report
from mbrl.run import only_writer
from mbrl.screen import Screen
from mbrl.spaces import ActionSpec, check_observation_space, is_image
from mbrl.trainer import Result
from mbrl.training import train
from scripts.machine import choose_device, free_memory, keep_freed_memory
from scripts.options import Options, has_own_loop, parse, write_count
from scripts.pictures import draw
from scripts.probe import Compute, candidates, choose, worth_processes

Envs = VectorEnv[Any, Any, Any]
RUN_FILES = ("config.yaml", "checkpoint", "metrics.jsonl", "status.json", ".lock")


def main(argv: list[str]) -> int:
    return run(*parse(argv))


def run(options: Options[Any, Any], resume: Checkpoint | None) -> int:
    """Train; 0 when the run is complete, 128 + signal when it was interrupted (and saved)."""
    choose_device(options.device)  # refuses what is not there
    keep_freed_memory()
    processes = ""
    if options.parallel is None:
        make = partial(envs.make_env, options.env, **options.env_options)
        parallel, processes = worth_processes(make, options.num_envs)
        options = replace(options, parallel=parallel)
    train_envs = envs.make_envs(
        options.env, options.num_envs, parallel=bool(options.parallel), **options.env_options
    )
    eval_envs = envs.make_envs(options.env, options.train_config.eval_episodes, **options.env_options)
    try:
        compute = choose_compute(options, train_envs)
        options = replace(options, threads=compute.threads)
        torch.manual_seed(options.seed)
        space, actions = train_envs.single_observation_space, train_envs.single_action_space
        agent = make_agent(options.agent, options.config, space, actions, compute.device)
        decisions = math.ceil(options.train_config.steps / read_action_repeat(train_envs))
        replay = make_replay(options, agent, train_envs, decisions, compute.device)
        computed = f"{compute}   {processes}".rstrip()
        lines = [*header(options, agent, replay, computed, decisions), *differences(options, resume)]
        result = carry_out(options, resume, agent, replay, train_envs, eval_envs, lines)
    finally:
        train_envs.close()
        eval_envs.close()
    return 0 if result.signal is None else 128 + result.signal


def choose_compute(options: Options[Any, Any], train_envs: Envs) -> Compute:
    """Device and threads."""
    space, actions = check_observation_space(train_envs.single_observation_space), train_envs.single_action_space
    found = candidates(options.device, options.threads)
    if has_own_loop(options.agent):  # nothing to time; small networks want one thread, pictures a GPU
        wanted = any(map(is_image, space.spaces.values()))
        found = [compute for compute in found if compute.device != "cpu"][:1] * wanted or found[:1]
    return choose(found, options.agent, options.config, space, actions)


def make_replay(
    options: Options[Any, Any], agent: Agent, train_envs: Envs, decisions: int, device: str
) -> Replay:
    """For a training of so many decisions; of an agent with a loop of its own, what takes its place."""
    if isinstance(agent, OwnLoop):
        return cast(Replay, agent.memory(options.num_envs, decisions))
    space = check_observation_space(train_envs.single_observation_space)
    size, limits = ActionSpec.of(train_envs.single_action_space).size, options.train_config.replay
    return Replay(space, size, options.num_envs, agent.latent_spec(), limits, options.seed, device)


def carry_out(
    options: Options[Any, Any], resume: Checkpoint | None, agent: Agent, replay: Replay, train_envs: Envs,
    eval_envs: Envs, lines: list[str],
) -> Result:  # fmt: skip
    """Train in the run's directory, where nobody else writes meanwhile; ``lines`` head the screen."""
    directory, (step, wall) = options.directory, (None, 0.0) if resume is None else (resume.step, resume.wall)
    if options.fresh:
        check_is_run(directory)
    with only_writer(directory):  # before anything there is touched
        if not options.fresh:
            check_unchanged(directory, resume)
        log = Logger(directory, step, wall_offset=wall, sinks=options.sinks, commit=git_commit())
        if options.fresh:
            start_over(directory)
        with log, Screen(lines) as screen:
            result = train(
                agent,
                train_envs,
                replay,
                options.train_config,
                log,
                eval_envs=eval_envs,
                directory=directory,
                seed=options.seed,
                screen=screen,
                resume=resume,
                env_states=cast(EnvStates, envs),
                run_config=options.plain(),
            )
            screen.heartbeat("writing the report")
            screen.close(finish(options, agent, result))
    return result


def header(
    options: Options[Any, Any], agent: Agent, replay: Replay, computed: str, decisions: int
) -> list[str]:
    """What is about to happen: what is seen, what acts, what it will take."""
    config = options.train_config
    steps = min(replay.capacity * options.num_envs, decisions)
    needed, free = steps * replay.bytes_per_step, free_memory()
    budget = f"{write_count(config.steps)} env steps"
    if config.minutes is not None:
        budget += f", at most {config.minutes:g} min"
    kind = f"{options.agent}/{options.preset}"
    where = " on the GPU" if replay.device.type == "cuda" else ", batches pinned" if replay.pinned else ""
    lines = [
        f"{options.env}   {agent.describe()}   {kind}",
        computed,
        f"replay {write_count(steps)} steps = {size(needed)}{where}   budget {budget}   {options.directory}",
    ]
    if free is not None and needed > 0.8 * free:
        fewer = f"--training.replay.gigabytes {math.floor(5 * free / 1e9) / 10:g}"
        if has_own_loop(options.agent):
            fewer = f"--config.buffer-size {free // (2 * replay.bytes_per_step)}"
        lines.append(
            f"warning: the replay will take {size(needed)} of {size(free)} that are free; keep less with {fewer}"
        )
    return lines


def differences(options: Options[Any, Any], resume: Checkpoint | None) -> list[str]:
    """How the run is continued, and every setting that is not what it was."""
    if resume is None:
        return []
    old, new = flatten(resume.config), flatten(json.loads(json.dumps(options.plain())))
    changed = [f"  {key}: {old.get(key)} -> {value}" for key, value in new.items() if old.get(key) != value]
    minutes = resume.wall / 60
    lines = [f"continuing from step {write_count(resume.step)} ({minutes:.1f} min); --fresh starts over"]
    return [*lines, *resume.notes, *(["changed since then:", *changed] if changed else [])]


def finish(options: Options[Any, Any], agent: Agent, result: Result) -> list[str]:
    """Write what a person looks at afterwards, and say where it is."""
    directory, step = options.directory, write_count(result.env_steps)
    if result.interrupted:
        return [f"interrupted at step {step}; everything is saved, and the same command continues"]
    saved: list[str] = []
    lines: list[str] = []
    if options.pictures:
        saved, lines = draw(directory, options.env, options.env_options, agent, result, options.seed)
    saved = ["checkpoint", *saved, write_report(directory).name]
    # Settings that differ, and damage that was passed over, were shown at the start.
    lines += [note for note in result.notes if "continues with" not in note and "damaged" not in note]
    if result.scores:
        returns = torch.tensor(result.scores["mode"])
        lines.append(
            f"reached {returns.mean():.1f} +- {returns.std(correction=0):.1f} over {len(returns)} episodes "
            f"after {step} env steps, {result.updates} updates, {result.seconds / 60:.1f} min"
        )
    return [
        *lines,
        f"saved: {', '.join(saved)}",
        f"report: {directory / 'report.html'}",
        f"next:  mbrl evaluate {directory}",
    ]


def check_is_run(directory: Path) -> None:
    """That what ``--fresh`` is to remove is a run.

    Raises:
        UserError: it is something else.
    """
    names = {path.name for path in directory.iterdir()} if directory.is_dir() else set()
    if names and not names & set(RUN_FILES):
        raise UserError(
            f"{directory} does not look like a run; --fresh will not remove it. Remove it yourself"
        )


def check_unchanged(directory: Path, resume: Checkpoint | None) -> None:
    """That the run, which nobody else can write to any more, is still where this command found it.

    Raises:
        UserError: another process has saved it since then.
    """
    if resume is not None and newest_path(directory) == resume.path:
        return  # nothing large is read twice
    found = latest(directory)
    if found and (resume is None or found.path != resume.path):
        raise UserError(f"the run in {directory} went on while this command began; give the same command again")


def start_over(directory: Path) -> None:
    """Remove the run that is there, but for the lock on it."""
    rest = [path for path in directory.iterdir() if path.name != ".lock"]
    if rest:
        print(f"--fresh: removing the run in {directory}", file=sys.stderr)
    for path in rest:
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def size(number: float) -> str:
    for unit, bytes_ in (("GB", 1e9), ("MB", 1e6)):
        if number >= bytes_:
            return f"{number / bytes_:.2g} {unit}"
    return f"{number / 1e3:.0f} kB"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
