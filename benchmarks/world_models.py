"""World models in a report: how good the learned ones are, beside what the policies earn (mbrl/quality.py)."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.charts import Chart, Colours, legend_below, new_panel
from benchmarks.collect import Entry
from benchmarks.statistics import interval_of_mean
from benchmarks.tables import Table
from mbrl.quality import COVERAGE, DREAMS
from mbrl.screen import number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Quality = dict[str, Any]
"""One judgement: the step, and the metrics of ``mbrl.quality.judge`` by their last name."""
Judged = dict[str, list[Quality]]
"""By task, the last judgement of each run of one agent."""

OVERALL = ("probes", "continue_accuracy", "ends_foreseen")
"""Metrics that are one number, not a list over the horizon."""


def judged(entries: Sequence[Entry]) -> dict[str, Judged]:
    """By agent; without those that have no world model."""
    found: dict[str, Judged] = {}
    for entry in entries:
        if entry.get("quality"):
            found.setdefault(entry["agent"], {}).setdefault(entry["env"], []).append(entry["quality"][-1])
    return found


def curve(runs: Sequence[Quality], name: str) -> NDArray[np.float64]:
    """(runs, H) of one metric, NaN where nothing is known."""
    return np.array([[np.nan if value is None else value for value in run[name]] for run in runs], np.float64)


# ---- table ---------------------------------------------------------------------------------------


def tables(entries: Sequence[Entry]) -> list[Table]:
    return [_table(agent, tasks) for agent, tasks in judged(entries).items()]


def _table(agent: str, tasks: Judged) -> Table:
    rows: list[tuple[str, ...]] = []
    for env, runs in tasks.items():
        end = len(runs[0]["reward_error"])
        at = sorted({1, min(5, end), end})
        gap, true = (curve(runs, name)[:, -1] for name in ("exploitation_gap", "true_return"))
        rows.append((
            env,
            " / ".join(_mean(runs, "error", k) for k in at),
            _mean(runs, "reward_error", end),
            _mean(runs, "coverage", end),
            _single(runs, "continue_accuracy"),
            _single(runs, "ends_foreseen"),
            number(float(true.mean())),
            str(interval_of_mean(gap)) if np.isfinite(gap).all() else "-",
        ))  # fmt: skip
    header = (
        "task", "error", "reward error", "coverage", "continue", "ends foreseen", "true return",
        "exploitation gap",
    )  # fmt: skip
    note = (
        f"At the last evaluation the agent dreams {end} steps, then does in the environment, from the same state, what "
        "it did in the dream; means over seeds. Error: mean absolute, of observations in the networks' units (images "
        f"in [0, 1]) after {', '.join(map(str, at))} steps; of the reward after the last. Coverage: how often the "
        f"truth then lies within the range of {DREAMS} dreams; calibrated is {COVERAGE:.2f}, less is overconfident. "
        "Continue: how often it is right that the episode goes on or ends. Exploitation gap: the return of the steps "
        "that the dream promised, minus the true one."
    )
    return Table(f"World model of {agent}", header, rows, note)


def _mean(runs: Sequence[Quality], name: str, ahead: int) -> str:
    if name not in runs[0]:
        return "-"
    value = float(curve(runs, name)[:, ahead - 1].mean())
    return number(value) if np.isfinite(value) else "-"


def _single(runs: Sequence[Quality], name: str) -> str:
    values = [run[name] for run in runs if run[name] is not None]
    return number(float(np.mean(values))) if values else "-"


# ---- chart ---------------------------------------------------------------------------------------


def charts(entries: Sequence[Entry]) -> list[Chart]:
    return [_chart(agent, tasks) for agent, tasks in judged(entries).items()]


def _chart(agent: str, tasks: Judged) -> Chart:
    panels = {
        "error": "error of the observation",
        "exploitation_gap": "exploitation gap of the return",
        "coverage": f"coverage (calibrated: {COVERAGE:.2f})",
    }

    def draw(figure: Figure, colours: Colours) -> None:
        names = [name for name in colours if name.startswith("a")]
        for k, (name, title) in enumerate(panels.items()):
            panel = new_panel(figure, 1, len(panels), k + 1, colours)
            for place, (env, runs) in enumerate(tasks.items()):
                if name in runs[0]:
                    values = curve(runs, name).mean(0)
                    style = "-" if place < len(names) else "--"
                    panel.plot(
                        range(1, len(values) + 1), values, style, lw=1.4, color=colours[names[place % len(names)]],
                        label=env,
                    )  # fmt: skip
            panel.set_title(title, fontsize=9, loc="left", color=colours["ink"])
            panel.set_xlabel("imagined steps")
        panel.axhline(COVERAGE, color=colours["faint"], lw=1, ls="--")
        panel.set_ylim(0, 1.02)
        lines, labels = figure.axes[1].get_legend_handles_labels()
        legend_below(figure, dict(zip(labels, lines)), colours)

    caption = f"What {agent} imagines, against what the same actions do in the environment from the same state; means "
    caption += "over seeds, at the last evaluation."
    return Chart(f"world-model-{agent.replace('/', '-')}", f"World model of {agent}", caption, 3.4, draw)


# ---- file ----------------------------------------------------------------------------------------


def write_csv(path: Path, entries: Sequence[Entry]) -> None:
    """One row per judgement and imagined step; nothing where no agent has a world model."""
    rows = list(_rows(entries))
    if not rows:
        return
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)))
        writer.writeheader()
        writer.writerows(rows)


def _rows(entries: Sequence[Entry]) -> Iterator[dict[str, Any]]:
    for entry in entries:
        for quality in entry.get("quality", ()):
            run = {name: entry[name] for name in ("agent", "env", "seed")}
            whole = {name: quality[name] for name in ("step", *OVERALL)}
            lists = {name: values for name, values in quality.items() if name not in whole}
            for k in range(len(quality["reward_error"])):
                yield {**run, **whole, "ahead": k + 1, **{name: values[k] for name, values in lists.items()}}
