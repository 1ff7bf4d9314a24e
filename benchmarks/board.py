"""Board: all runs of a benchmark on one screen while they go on, with the time that the whole will take.

On a terminal a table of the runs that train now, always below what has happened; anywhere else plain lines, one
per event and one every half minute.
"""

from __future__ import annotations

import sys
import time
from typing import TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from benchmarks.runner import Outcome, Paces, Position, Run, position, seconds_left
from mbrl.screen import duration, number, steps

EVERY_TERMINAL = 1.0
EVERY_PLAIN = 30.0
"""Seconds between two looks at the files of the runs."""
BAR = 20


class Screen:
    """Use as a context: it gives the terminal back."""

    def __init__(self, jobs: int, paces: Paces, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stdout
        self._jobs, self._paces = jobs, paces
        self._shown = self._begin = time.monotonic()
        self._every = EVERY_PLAIN
        self._live: Live | None = None
        console = Console(file=self._stream, highlight=False)
        if self._stream.isatty() and not console.is_dumb_terminal:
            # No thread of its own: processes are forked beside it.
            self._live = Live(console=console, auto_refresh=False, transient=True)
            self._every = EVERY_TERMINAL

    def __enter__(self) -> Screen:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            self._live.stop()

    def note(self, text: str) -> None:
        if self._live is None:
            print(f"{time.strftime('%H:%M:%S')}  {text}", file=self._stream, flush=True)
        else:
            style = "red" if text.startswith(("died", "failed")) else "green" if text.startswith("finished") else "cyan"
            self._live.console.print(Text(text, style=style))

    def show(self, outcome: Outcome) -> None:
        """Look at the runs, but not more often than people can read."""
        now = time.monotonic()
        if now - self._shown < self._every:
            return
        self._shown = now
        positions = {run: position(run) for run in outcome.running}
        summary = f"{describe(outcome)}, {duration(now - self._begin)} so far, {self._left(outcome)} left"
        if self._live is not None:
            self._live.update(Group(table(positions), Text(summary, style="bold")), refresh=True)
            return
        runs = "   ".join(f"{run.name} {line(run, found)}" for run, found in positions.items())
        self.note(f"{summary}   {runs}".rstrip())

    def _left(self, outcome: Outcome) -> str:
        seconds = seconds_left(outcome, self._jobs, self._paces)
        return "unknown time" if seconds is None else duration(seconds)


def describe(outcome: Outcome) -> str:
    """Where all runs stand: '3/12 finished, 2 running, 7 waiting'."""
    parts = [f"{len(outcome.finished)}/{outcome.total} finished", f"{len(outcome.running)} running"]
    parts += [f"{len(outcome.waiting)} waiting"] if outcome.waiting else []
    parts += [f"{len(outcome.failed)} failed"] if outcome.failed else []
    return ", ".join(parts)


def line(run: Run, found: Position) -> str:
    """'2.0k/100.0k 345'."""
    score = "" if found.score is None else f" score {number(found.score)}"
    return f"{steps(found.step)}/{steps(run.steps)}{score}"


def table(positions: dict[Run, Position]) -> Table:
    rows = Table(box=None, pad_edge=False, header_style="dim")
    for name, justify in (("run", "left"), ("", "left"), ("step", "right"), ("score", "right"), ("steps/s", "right")):
        rows.add_column(name, justify="right" if justify == "right" else "left", no_wrap=True)
    for run, found in positions.items():
        done = round(BAR * min(1.0, found.step / run.steps))
        bar = "━" * done + "╌" * (BAR - done)
        score = "-" if found.score is None else number(found.score)
        pace = "-" if not found.seconds_per_step else number(1 / found.seconds_per_step)
        rows.add_row(run.name, bar, f"{steps(found.step)}/{steps(run.steps)}", score, pace)
    return rows
