"""Screen: what a user sees while a run goes on.

On a terminal: the header once, one table row per log, and below them a line that keeps moving, so that
nobody has to ask whether it hangs. Anywhere else: one plain line per log, each value beside its name
(``step 2.0k  return 22  ...``), so that a log file greps well.
"""

from __future__ import annotations

import atexit
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TextIO

from rich.console import Console
from rich.live import Live
from rich.text import Text

Cell = str | float | tuple[float, float] | None
"""A number, a mean with its spread, ready text, or nothing to show yet."""

WIDTHS = {
    "step": 7,
    "return": 8,
    "eval": 12,
    "model": 8,
    "horizon-15 error": 17,
    "updates/s": 10,
    "steps/s": 9,
    "left": 7,
}
"""The columns and their places. ``model`` is the world model's loss, ``left`` the seconds to go."""

PLAIN_WIDTHS = {"step": 6, "return": 5, "eval": 10, "model": 5, "horizon-15 error": 5, "left": 5}
REPEAT_HEADER = 30
"""Rows between two headers on a terminal."""


class Screen:
    """``row`` for each log, ``note`` for events, ``close`` at the end, also after Ctrl-C (use ``with``)."""

    def __init__(
        self,
        title_lines: Sequence[str],
        stream: TextIO | None = None,
        columns: Sequence[str] = tuple(WIDTHS),
    ) -> None:
        self._stream = stream or sys.stdout
        self._columns = tuple(columns)
        self._begin = self._last_row = time.monotonic()
        self._heartbeat = "starting"
        self._rows = 0
        self._closed = False
        self._live = _start(self._stream, self._moving_line)
        atexit.register(self.close)  # an exception that nobody caught must still give the cursor back
        for k, line in enumerate(title_lines):
            self._print(line, "bold" if k == 0 else "")

    def row(self, values: Mapping[str, Cell]) -> None:
        """One log; columns without a key are left out, None is shown as "-", ``note`` ends the line."""
        unknown = set(values) - {*self._columns, "note"}
        assert not unknown, f"no such columns: {sorted(unknown)}"
        cells = {name: cell(name, values.get(name)) for name in self._columns if name in values}
        remark = str(values.get("note") or "")
        self._last_row = time.monotonic()
        self._heartbeat = f"step {cells.get('step', '')}".rstrip()
        if cells.get("left", "-") != "-":
            self._heartbeat += f", {cells['left']} left"
        if self._live is None:
            named = [f"{name} {text:>{PLAIN_WIDTHS.get(name, 6)}}" for name, text in cells.items()]
            self._print("  ".join([*named, remark] if remark else named))
            return
        if self._rows % REPEAT_HEADER == 0:
            self._print("".join(f"{name:>{WIDTHS.get(name, 12)}}" for name in cells), "dim")
        self._rows += 1
        line = Text("".join(f"{text:>{WIDTHS.get(name, 12)}}" for name, text in cells.items()))
        line.append(f"   {remark}" if remark else "", "green")
        self._live.console.print(line, no_wrap=True, overflow="ellipsis")

    def note(self, text: str) -> None:
        """An event: a checkpoint, a resume, a warning."""
        self._print(text, "cyan")

    def heartbeat(self, text: str) -> None:
        """What is going on until the next row, as in 'evaluating 10 episodes'. Terminals only."""
        self._heartbeat = text

    def close(self, footer_lines: Sequence[str] = ()) -> None:
        """Give the terminal back and say what was saved and what comes next. A second call does nothing."""
        if self._closed:
            return
        self._closed = True
        atexit.unregister(self.close)
        console = None
        if self._live is not None:
            console = self._live.console
            self._live.stop()
        for line in footer_lines:
            _write(line, "", self._stream, console)

    def __enter__(self) -> Screen:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _print(self, line: str, style: str = "") -> None:
        _write(line, style, self._stream, self._live.console if self._live else None)

    def _moving_line(self) -> Text:
        now = time.monotonic()
        dots = "." * (1 + int(now - self._begin) % 3)
        waited = f"running {duration(now - self._begin)}, last row {duration(now - self._last_row)} ago"
        return Text(f"  {self._heartbeat}{dots:<3}  {waited}", style="dim", no_wrap=True, overflow="ellipsis")


def steps(count: float) -> str:
    """Steps as people write them: 500, 2.0k, 1.25M."""
    if count < 1000:
        return f"{count:.0f}"
    return f"{count / 1e3:.1f}k" if count < 999_950 else f"{count / 1e6:.2f}M"


def duration(seconds: float) -> str:
    """45s, 2m30, 3h05, 2d04h."""
    if not math.isfinite(seconds):
        return "-"
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes}m{rest:02d}"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}" if hours < 24 else f"{hours // 24}d{hours % 24:02d}h"


def number(value: float) -> str:
    """About three digits, and no more: 489, 31.2, 0.31, 3.1e-04."""
    size = abs(value)
    if not math.isfinite(value):
        return f"{value}"
    if size >= 1e6 or 0 < size < 0.001:
        return f"{value:.1e}"
    decimals = 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 0.1 else 3
    return f"{value:.{decimals}f}"


def cell(column: str, value: Cell) -> str:
    """The text of a value in its column."""
    if value is None:
        return "-"
    if isinstance(value, str):
        return value
    if isinstance(value, tuple):
        mean, spread = (f"{part:.0f}" if abs(value[0]) >= 10 else number(part) for part in value)
        return f"{mean} +- {spread}"
    formats = {"step": steps, "left": duration}
    return formats.get(column, number)(float(value))


def _start(stream: TextIO, moving_line: Callable[[], Text]) -> Live | None:
    """A live display on a real terminal; None elsewhere (FORCE_COLOR must not fill a log with codes)."""
    try:
        console = Console(file=stream, highlight=False)
        if not stream.isatty() or console.is_dumb_terminal:
            return None
        live = Live(console=console, get_renderable=moving_line, refresh_per_second=2, transient=True)
        live.start()
        return live
    except (AttributeError, ValueError):  # a stream without isatty, or already closed
        return None


def _write(line: str, style: str, stream: TextIO, console: Console | None) -> None:
    if console is None:
        print(line, file=stream, flush=True)
    else:
        console.print(Text(line, style=style))
