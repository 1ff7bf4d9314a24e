"""Runner: every agent x task x seed as an `mbrl train` process of its own, some at a time, none lost.

A run that dies is started again once, and continues from its checkpoint; a run that dies twice is listed with
the end of its log, and the rest goes on. What is finished is never run again, so the same command continues
where it stopped. Trainings end with the runner, also when it is killed (on Linux at once; elsewhere the next
runner waits for those that still write, as it does for those that somebody else has started).
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from benchmarks.processes import PROGRAM, start
from mbrl.run import is_being_written, read_status
from mbrl.screen import duration
from mbrl.signals import StopRequest
from scripts.options import run_directory

TRIES = 2
POLL = 0.2
"""Seconds between two looks at the processes."""
LOG_LINES = 12
"""What is shown of the log of a run that failed."""
TAIL = 65_536
"""Bytes of a run's metrics that tell how far it is."""


@dataclass(frozen=True)
class Run:
    """One training."""

    env: str
    agent: str
    seed: int
    steps: int
    """Environment steps, action repeat included."""
    runs_dir: Path
    options: tuple[str, ...] = ()
    """Further options of `mbrl train`."""
    preset: str | None = None

    @property
    def name(self) -> str:
        return f"{self.env} {self.agent} seed{self.seed}"

    @property
    def directory(self) -> Path:
        return run_directory(self.runs_dir, self.env, self.agent, self.seed)

    @property
    def log(self) -> Path:
        return self.runs_dir / "logs" / f"{'-'.join(self.directory.parts[-3:])}.txt"

    @property
    def words(self) -> tuple[str, ...]:
        """What follows `mbrl` on the command line."""
        words = ("train", self.env, "--agent", self.agent, "--seed", str(self.seed), "--steps", str(self.steps))
        preset = () if self.preset is None else ("--preset", self.preset)
        return (*words, *preset, "--runs-dir", str(self.runs_dir), "--no-pictures", *self.options)

    @property
    def finished(self) -> bool:
        status = read_status(self.directory)
        return status.get("state") == "finished" and status.get("step", 0) >= self.steps


@dataclass(frozen=True)
class Failure:
    run: Run
    exit_code: int
    """Of its last try; minus the signal that ended it."""
    log: tuple[str, ...]
    """The last lines."""


@dataclass
class Outcome:
    """Where every run stands; each is in one list."""

    waiting: list[Run]
    running: list[Run] = field(default_factory=list)
    finished: list[Run] = field(default_factory=list)
    failed: list[Failure] = field(default_factory=list)
    signal: int | None = None
    """What interrupted the benchmark."""

    @property
    def total(self) -> int:
        return len(self.waiting) + len(self.running) + len(self.finished) + len(self.failed)

    @property
    def exit_code(self) -> int:
        if self.signal is not None:
            return 128 + self.signal
        return 1 if self.failed else 0


class Board(Protocol):
    """Shows people what goes on."""

    def show(self, outcome: Outcome) -> None:
        """Called some times a second."""

    def note(self, text: str) -> None:
        """An event."""


class Lost(Exception):
    """A training is gone through no fault of its own, and can go on elsewhere."""


class Training(Protocol):
    """What `subprocess.Popen` does, wherever the training is."""

    def poll(self) -> int | None:
        """The exit code, minus the signal that ended it; None as long as it trains.

        Raises:
            Lost: the machine that it was on.
        """

    def wait(self) -> int:
        """Until it has ended."""

    def terminate(self) -> None:
        """Ask it to save and end."""

    def kill(self) -> None:
        """End it at once."""


Launch = Callable[[Run, int], Training | None]
"""Starts a training, the first of so many that wait; None while there is no room."""


def execute(runs: Sequence[Run], jobs: int, board: Board, program: Sequence[str] = PROGRAM) -> Outcome:
    """Run what is not finished, ``jobs`` at a time; SIGINT, SIGTERM and SIGHUP stop all, and they save."""
    return carry_out(runs, jobs, board, lambda run, waiting: start(run.words, run.log, program))


def carry_out(runs: Sequence[Run], jobs: int, board: Board, launch: Launch) -> Outcome:
    """`execute`, wherever ``launch`` starts the trainings."""
    outcome = Outcome([run for run in runs if not run.finished])
    outcome.finished = [run for run in runs if run not in outcome.waiting]
    if outcome.finished:
        board.note(f"{len(outcome.finished)} of {len(runs)} runs were finished already")
    trainings = _Trainings(outcome, jobs, board, launch)
    with StopRequest() as stop:
        try:
            while (outcome.waiting or outcome.running) and not stop:
                trainings.reap()
                trainings.start()
                board.show(outcome)
                time.sleep(POLL)
        finally:
            trainings.stop()
        outcome.signal = stop.signal
    return outcome


class _Trainings:
    """All started from the main thread: the kernel ends processes with the thread that started them."""

    def __init__(self, outcome: Outcome, jobs: int, board: Board, launch: Launch) -> None:
        self.outcome, self.jobs, self.board, self.launch = outcome, jobs, board, launch
        self.processes: dict[Run, Training] = {}
        self.deaths: dict[Run, int] = {}

    def start(self) -> None:
        """Fill the free places; a run in whose directory another process trains has to wait for it."""
        for run in list(self.outcome.waiting):
            if len(self.processes) >= self.jobs:
                return
            if is_being_written(run.directory):
                continue
            if run.finished:  # by another process
                self.outcome.waiting.remove(run)
                self.outcome.finished.append(run)
                continue
            training = self.launch(run, len(self.outcome.waiting))
            if training is None:
                return
            self.processes[run] = training
            self.outcome.waiting.remove(run)
            self.outcome.running.append(run)
            self.board.note(f"start     {run.name}")

    def reap(self) -> None:
        for run, process in list(self.processes.items()):
            lost = None
            try:
                code = process.poll()
            except Lost as error:
                code, lost = -signal.SIGKILL, error
            if code is None:
                continue
            del self.processes[run]
            self.outcome.running.remove(run)
            if run.finished:
                self.outcome.finished.append(run)
                self.board.note(f"finished  {run.name}  {_reached(run)}")
            elif is_being_written(run.directory):  # somebody else was there first
                self.outcome.waiting.append(run)
            elif lost is not None:
                self.outcome.waiting.insert(0, run)
                self.board.note(f"lost      {run.name}  {lost}; it goes on elsewhere")
            else:
                self._died(run, code)

    def _died(self, run: Run, code: int) -> None:
        self.deaths[run] = self.deaths.get(run, 0) + 1
        if self.deaths[run] < TRIES:
            self.outcome.waiting.insert(0, run)
            self.board.note(f"died      {run.name}  {describe_exit(code)}; it is started again")
        else:
            self.outcome.failed.append(Failure(run, code, last_lines(run.log)))
            self.board.note(f"failed    {run.name}  {describe_exit(code)}; see {run.log}")

    def stop(self) -> None:
        """Ask the trainings that are left to save and end, and wait for them; a second Ctrl-C ends them at once."""
        if self.processes:
            self.board.note(f"stopping {len(self.processes)} runs; they save first, and the same command continues")
        for process in self.processes.values():
            process.terminate()
        try:
            for process in self.processes.values():
                process.wait()
        except KeyboardInterrupt:
            for process in self.processes.values():
                process.kill()
                process.wait()
            raise
        finally:
            self.outcome.waiting[:0] = self.processes
            self.outcome.running.clear()
            self.processes.clear()


def describe_exit(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"


def last_lines(log: Path) -> tuple[str, ...]:
    """The end of what the last try printed."""
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    start = max((k for k, line in enumerate(lines) if line.startswith("$ mbrl ")), default=-1)
    return tuple(lines[start + 1 :][-LOG_LINES:])


# ---- how far a run is ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Position:
    step: int = 0
    score: float | None = None
    """Mean return of the last evaluation, of the policy's mode."""
    seconds_per_step: float | None = None


def position(run: Run) -> Position:
    """How far a run is, finished or not, from the end of its files."""
    metrics = read_tail(run.directory / "metrics.jsonl")
    scores = [line["mean"] for line in read_tail(run.directory / "scores.jsonl") if line.get("mode") == "mode"]
    step = max((int(line["step"]) for line in metrics), default=0)
    return Position(step, scores[-1] if scores else None, _pace(metrics))


def _pace(metrics: Sequence[dict[str, Any]]) -> float | None:
    """Seconds per environment step lately, once there are updates; those that fill the replay are faster."""
    lines = [line for line in metrics if "time/seconds" in line]
    lines = [line for line in lines if line.get("time/updates")] or lines
    if not lines or lines[0]["step"] == lines[-1]["step"]:
        return None
    first, last = lines[0], lines[-1]
    return (last["time/seconds"] - first["time/seconds"]) / (last["step"] - first["step"])


def read_tail(path: Path) -> list[dict[str, Any]]:
    """The last records of a .jsonl file, without reading a long one whole."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - TAIL))
            lines = file.read().split(b"\n")[1 if size > TAIL else 0 :]
    except FileNotFoundError:
        return []
    found = []
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:  # torn, or just being written
            continue
        if isinstance(record, dict) and "step" in record:
            found.append(record)
    return found


def _reached(run: Run) -> str:
    status, score = read_status(run.directory), position(run).score
    text = "" if score is None else f"{score:.1f}"
    return f"{text} after {status.get('step')} steps, {duration(status.get('seconds', 0))}".strip()


# ---- how long it takes ---------------------------------------------------------------------------


class Paces:
    """Seconds per environment step: of this agent on this task, else of this agent, else nothing.

    What other runs took, elsewhere or with an older preset (``known``), tells how tasks differ; by what factor an
    agent is slower or faster here, its own runs tell.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[str, str | None], dict[str, float]] = {}
        self._here: dict[tuple[str, str | None], dict[str, float]] = {}

    def know(self, agent: str, preset: str | None, env: str, seconds_per_step: float) -> None:
        """Of a run of some other time and place."""
        self._known.setdefault((agent, preset), {})[env] = seconds_per_step

    def learn(self, agent: str, preset: str | None, env: str, seconds_per_step: float) -> None:
        """Of a run of this benchmark; what is learnt later replaces what was learnt before."""
        self._here.setdefault((agent, preset), {})[env] = seconds_per_step

    def of(self, run: Run) -> float | None:
        known, here = (paces.get((run.agent, run.preset), {}) for paces in (self._known, self._here))
        if run.env in here:
            return here[run.env]
        factors = [pace / known[env] for env, pace in here.items() if env in known]
        if run.env in known and (factors or not here):
            return known[run.env] * (statistics.mean(factors) if factors else 1.0)
        return statistics.mean((here or known).values()) if here or known else None


def seconds_left(outcome: Outcome, jobs: int, paces: Paces) -> float | None:
    """Until the last run ends; None while no pace is known. Runs of unknown pace count as the mean of the others."""
    for run in outcome.finished:
        status = read_status(run.directory)
        if status.get("seconds") and status.get("step"):
            paces.learn(run.agent, run.preset, run.env, status["seconds"] / status["step"])
    positions = {run: position(run) for run in [*outcome.running, *outcome.waiting]}
    for run, found in positions.items():
        if found.seconds_per_step is not None:
            paces.learn(run.agent, run.preset, run.env, found.seconds_per_step)
    left = {
        run: pace * max(0, run.steps - found.step)
        for run, found in positions.items()
        if (pace := paces.of(run)) is not None
    }
    if positions and not left:
        return None
    mean = sum(left.values()) / max(1, len(left))
    return makespan([left.get(run, mean) for run in positions], jobs)


def makespan(durations: Sequence[float], jobs: int) -> float:
    """When the last of ``durations`` ends, begun in this order, ``jobs`` at a time."""
    ends = [0.0] * jobs
    for seconds in durations:
        ends[ends.index(min(ends))] += seconds
    return max(ends)
