"""`mbrl benchmark SUITE`: every agent on every task with every seed, some runs at a time, and a report.

The same command continues where it stopped. Exit code 0 when every run is finished, 1 when some failed, 130
after Ctrl-C (the runs save first).
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

import envs
from agents import AGENTS, agent_class
from benchmarks import cluster, collect, suites
from benchmarks.board import Screen, describe
from benchmarks.report import Failed, write_report
from benchmarks.runner import Outcome, Paces, Run, execute, makespan, position
from benchmarks.suites import Suite
from mbrl.errors import UserError
from mbrl.screen import duration
from mbrl.spaces import ActionSpec
from scripts.options import presets_of, read_count

JOBS = 2
"""Runs at a time, without a cluster."""
EPISODES = 20
"""Of every evaluation, in each mode."""
PLACE = "*/*/seed*"
"""Of runs, in the directory of a benchmark."""
STORED = Path(suites.__file__).parent / "results"


def main(argv: list[str]) -> int:
    options = parse(argv)
    runs = plan(options)
    stored = take_stored(options.stored, runs, options.suite, options.runs_dir) if options.stored else []
    check_same(runs, options.suite)
    paces = known_paces(options.runs_dir)
    if options.dry_run:
        show_plan(runs, options.jobs or JOBS, paces)
        return 0
    outcome = carry_out(runs, options, paces)
    print(describe(outcome))
    if outcome.signal is not None:
        print("interrupted; everything is saved, and the same command continues")
        return outcome.exit_code
    for failure in outcome.failed:
        print(f"\nfailed: {failure.run.name} (exit code {failure.exit_code}), {failure.run.log}", file=sys.stderr)
        print("".join(f"  {line}\n" for line in failure.log), end="", file=sys.stderr)
    report(outcome, options, stored)
    return outcome.exit_code


def carry_out(runs: Sequence[Run], options: argparse.Namespace, paces: Paces) -> Outcome:
    """By processes here, or by those of a cluster."""
    if options.cluster is None:
        jobs = options.jobs or JOBS
        with Screen(jobs, paces) as screen:
            return execute(runs, jobs, screen)
    with cluster.Cluster(options.cluster, options.gpus_per_run) as found:
        jobs = options.jobs or max(1, found.room())
        with Screen(jobs, paces) as screen:
            return cluster.execute(runs, options.jobs, screen, found)


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="mbrl benchmark", description=__doc__.split("\n")[0])
    known = ", ".join(suites.SUITES)
    parser.add_argument("suite", help=f"{known}; environments, as CartPole-v1,dmc/walker-walk; or a file of them")
    parser.add_argument(
        "--agents", type=names, default=["dreamer", "random"], help="the one to judge, comparators (dreamer,random)"
    )
    parser.add_argument("--seeds", type=seeds, default=[0, 1, 2], help="how many, as 3, or which, as 10,11,12 (3)")
    parser.add_argument(
        "--jobs", type=positive, help=f"runs at a time, one thread each ({JOBS}; with --cluster all there is room for)"
    )
    parser.add_argument(
        "--cluster", metavar="ADDRESS", help="train on an existing Ray cluster: HOST:6379 (on a node of it) or ray://HOST:10001"
    )
    parser.add_argument(
        "--gpus-per-run", type=gpus, metavar="GPUS", help="of the cluster, as 1 or 0.25 (0: no run sees any)"
    )
    parser.add_argument("--steps", type=count, metavar="STEPS", help="of each run, as 100k (the suite's)")
    parser.add_argument("--preset", help="of the agents that have it: laptop, reference, debug (each agent's first)")
    parser.add_argument("--only", default="", metavar="TEXT", help="runs with every word of TEXT in 'ENV AGENT seedK'")
    parser.add_argument("--runs-dir", type=Path, metavar="DIR", help="where runs are (runs/SUITE)")
    parser.add_argument("--report", type=Path, metavar="DIR", help="where the report goes (RUNS_DIR/report)")
    parser.add_argument(
        "--stored", type=Path, metavar="DIR", help="where finished runs are stored (scores.csv, runs.json), to be taken"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the runs and the predicted hours only")
    options = parser.parse_args(argv)
    if options.gpus_per_run is not None and options.cluster is None:
        parser.error("--gpus-per-run needs --cluster; without it every run chooses a device itself")
    options.gpus_per_run = options.gpus_per_run or 0.0
    options.suite = suites.find(options.suite)
    if options.steps is not None:
        options.suite = options.suite.until(options.steps)
    options.runs_dir = options.runs_dir or Path("runs") / options.suite.name
    options.report = options.report or options.runs_dir / "report"
    return options


def names(text: str) -> list[str]:
    return list(dict.fromkeys(word for word in text.split(",") if word))


def seeds(text: str) -> list[int]:
    """A number of seeds, or a list, which one comma makes it: '7,' is seed 7."""
    words = text.removesuffix(",").split(",")
    if not all(word.isdigit() for word in words) or ("," not in text and int(text) == 0):
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of seeds, as 3, or a list of them, as 10,11,12")
    return list(range(int(text))) if "," not in text else list(dict.fromkeys(map(int, words)))


def positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number of 1 or more")
    return int(text)


def gpus(text: str) -> float:
    """A whole number, or a share of one GPU: Ray gives out nothing in between."""
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not (0 <= number < 1 or number.is_integer()):
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of GPUs, as 1, or a part of one, as 0.25")
    return number


def count(text: str) -> int:
    try:
        return read_count(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


# ---- which runs ----------------------------------------------------------------------------------


def plan(options: argparse.Namespace) -> list[Run]:
    """All runs, the first seed of everything first.

    Raises:
        UserError: no such agent or preset, or no run is left.
    """
    pairs = [(env, agent) for env in options.suite.envs for agent in able(env, options.agents)]
    if not pairs:
        raise UserError(f"none of the agents {', '.join(options.agents)} can act in any of these environments")
    presets = {(env, agent): preset_of(agent, env, options.preset) for env, agent in pairs}
    if options.preset is not None and options.preset not in presets.values():
        raise UserError(f"none of the agents {', '.join(options.agents)} has a preset '{options.preset}'")
    runs = [
        run_of(options.suite, env, agent, seed, presets[env, agent], options.runs_dir)
        for seed in options.seeds
        for env, agent in pairs
    ]
    wanted = [run for run in runs if all(word in run.name for word in options.only.split())]
    if not wanted:
        raise UserError(f"--only '{options.only}' leaves no run; runs are named as '{runs[0].name}'")
    return wanted


def able(env: str, agents: Sequence[str]) -> list[str]:
    """The agents that take the environment's kind of actions; which do not is said.

    Raises:
        EnvError: there is no such environment.
    """
    made = envs.make_envs(env, 1)
    spec = ActionSpec.of(made.single_action_space)
    made.close()
    refused = {"continuous": bool(spec.choices), "discrete": bool(spec.continuous), "any": False}
    found = [agent for agent in agents if not refused[getattr(agent_class(agent), "actions", "any")]]
    for agent in set(agents) - set(found):
        print(f"left out: {agent} on {env}, whose actions are {spec}", file=sys.stderr)
    return found


def preset_of(agent: str, env: str, wanted: str | None) -> str:
    """The preset that was asked for, where the agent has it, else the agent's first for the environment."""
    presets = presets_of(agent, env)
    return wanted if wanted in presets else next(iter(presets))


def run_of(suite: Suite, env: str, agent: str, seed: int, preset: str, runs_dir: Path) -> Run:
    options = [*evaluation_options(suite.evaluate_at), "--training.eval-episodes", str(EPISODES)]
    options += ["--training.final-episodes", str(EPISODES)]
    for name, value in suite.options.items():
        options += [f"--{name.replace('_', '-')}", str(value)]
    return Run(env, agent, seed, suite.steps, runs_dir, tuple(options), preset)


def evaluation_options(at: Sequence[int]) -> tuple[str, ...]:
    """The same steps for every agent, and none besides."""
    return ("--training.eval-every", "0", "--training.eval-at", *map(str, at))


def check_same(runs: Sequence[Run], suite: Suite) -> None:
    """Runs that are there already must be what is asked for now.

    Raises:
        UserError: a run was made with another preset, or with other options.
    """
    for run in runs:
        path = run.directory / "config.yaml"
        stored = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else None
        other = "" if stored is None else suite.difference(stored)
        if stored and stored.get("preset") != run.preset:
            other = f"preset {stored.get('preset')}, not {run.preset}"
        if other:
            raise UserError(f"{run.directory} was made with the {other}; put these runs elsewhere with --runs-dir")


def take_stored(directory: Path, runs: Sequence[Run], suite: Suite, runs_dir: Path) -> list[collect.Row]:
    """Lay out those of the runs that are stored in a directory, finished, of the same preset and options; its rows.

    Raises:
        UserError: nothing is stored there.
    """
    rows, entries = collect.read(directory)
    same = {(run.env, run.agent, run.seed, run.preset) for run in runs}
    found = [
        entry for entry in entries
        if _key(entry) in same and entry["status"].get("step", 0) >= runs[0].steps
        and not suite.difference(entry["config"])
    ]  # fmt: skip
    written = collect.restore(found, runs_dir)
    print(f"{len(found)} of {len(runs)} runs are stored in {directory}; {len(written)} of them were not here yet")
    return rows


def _key(entry: collect.Entry) -> tuple[str, str, int, str]:
    return (entry["env"], entry["agent"], entry["seed"], entry["config"].get("preset"))


# ---- how long it takes ---------------------------------------------------------------------------


def known_paces(runs_dir: Path) -> Paces:
    """Of the stored results, the newest of each task, and of the runs that are here."""
    paces = Paces()
    stored = [entry for path in filter(is_scores, STORED.glob("*/scores.csv")) for entry in collect.read(path)[1]]
    stored.sort(key=lambda entry: str(entry["status"].get("time", "")))
    for entries, add in ((stored, paces.know), (collect.read_entries(runs_dir, PLACE), paces.learn)):
        for entry in entries:
            agent, env, status = entry["agent"], entry["env"], entry["status"]
            if agent in AGENTS and status.get("seconds") and status.get("step"):
                preset = entry["config"].get("preset") or preset_of(agent, env, None)
                add(agent, preset, env, status["seconds"] / status["step"])
    return paces


def is_scores(path: Path) -> bool:
    """Tables of another kind lie among the stored results, too."""
    with path.open(encoding="utf-8") as file:
        return set(collect.COLUMNS) <= set(file.readline().strip().split(","))


def show_plan(runs: Sequence[Run], jobs: int, paces: Paces) -> None:
    left: list[float] = []
    unknown = 0
    for run in runs:
        pace = paces.of(run)
        if run.finished:
            text = "finished"
        elif pace is None:
            text, unknown = "unknown", unknown + 1
        else:
            left.append(pace * max(0, run.steps - position(run).step))
            text = duration(left[-1])
        print(f"{text:>9}  mbrl {shlex.join(run.words)}")
    hours = makespan(left, jobs) / 3600
    total = f"{len(runs)} runs, {jobs} at a time: predicted {hours:.1f} hours"
    if unknown:
        total += f" without {unknown} runs of agents that were never timed"
    print(f"{total} (by the steps/s of earlier runs, which may have been on another machine)")


# ---- what came out -------------------------------------------------------------------------------


def report(outcome: Outcome, options: argparse.Namespace, stored: Sequence[collect.Row]) -> None:
    """All seeds of these agents and tasks, made in the same way, that are there, also those of earlier commands."""
    suite = options.suite
    entries = [
        entry for entry in collect.read_entries(options.runs_dir, PLACE)
        if entry["env"] in suite.envs and entry["agent"] in options.agents and not suite.difference(entry["config"])
        and entry["config"].get("preset") == preset_of(entry["agent"], entry["env"], options.preset)
    ]  # fmt: skip
    path = options.report / "scores.csv"
    earlier = [*stored, *(collect.read_scores(path) if path.exists() else [])]
    rows = collect.write(options.report, entries, earlier)
    if not rows:
        print(f"no run was evaluated, so there is no report; the logs are in {options.runs_dir / 'logs'}")
        return
    failed = [Failed(item.run.name, item.exit_code, item.log) for item in outcome.failed]
    page = write_report(options.report, rows, entries, options.agents, options.suite.name, failed)
    print(f"report: {page}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
