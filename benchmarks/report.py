"""Report: a benchmark on one self-contained page, for a paper's appendix, and the same as files.

``report.html`` (light and dark, no network, no scripts), ``report.md``, ``summary.json`` and every chart as SVG
and PNG. Every number comes from ``summary.py``; nothing is written that was not measured.
"""

from __future__ import annotations

import html
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import statistics, world_models
from benchmarks.charts import DARK, LIGHT, Chart, charts
from benchmarks.collect import Entry, Row
from benchmarks.published import published_table
from benchmarks.statistics import Interval
from benchmarks.summary import (
    TARGET,
    Steps,
    Summary,
    Task,
    headline,
    plain,
    short_ratio,
    steps_of,
    summarise,
    write_steps,
)
from benchmarks.tables import Table
from mbrl.report import STYLE as RUN_STYLE
from mbrl.run import write_atomically
from mbrl.screen import duration, number


@dataclass(frozen=True)
class Failed:
    """A run that died twice."""

    run: str
    exit_code: int
    log: tuple[str, ...]
    """The last lines."""


def _variables(colours: dict[str, str]) -> str:
    return " ".join(f"--{name}: {value};" for name, value in colours.items())


STYLE = f"""{RUN_STYLE}
:root {{ {_variables(LIGHT)} }}
@media (prefers-color-scheme: dark) {{ :root {{ {_variables(DARK)} }} }}
body {{ max-width: 1080px; }}
.headline {{ font-size: 1.75rem; line-height: 1.3; }}
.lost {{ margin-top: .6rem; }}
section {{ break-inside: avoid; }}
h3 {{ font-size: .95rem; margin: 1.2rem 0 .4rem; }}
.scroll table {{ width: auto; min-width: 100%; font-size: .85rem; font-variant-numeric: tabular-nums; }}
.scroll td, .scroll th {{ padding: .2rem 1.1rem .2rem 0; white-space: nowrap; overflow-wrap: normal; }}
.scroll td:first-child {{ width: auto; color: var(--ink); }}
.scroll th {{ color: var(--faint); font-weight: 500; border-bottom: 1px solid var(--grid); }}
.scroll code {{ white-space: nowrap; }}
"""


def write_report(
    directory: Path,
    rows: Sequence[Row],
    entries: Sequence[Entry],
    agents: Sequence[str],
    title: str,
    failed: Sequence[Failed] = (),
) -> Path:
    """Write all forms of the report into ``directory`` and return the page's path.

    Raises:
        UserError: nothing was evaluated.
    """
    rows = [row for row in rows if row["agent"] in agents]
    entries = [entry for entry in entries if entry["agent"] in agents]
    summary = summarise(title, rows, entries, agents, [run.run for run in failed])
    drawn = [*charts(summary), *world_models.charts(entries)]
    directory.mkdir(parents=True, exist_ok=True)
    for chart in drawn:
        chart.save(directory)
    numbers = [*tables(summary), *world_models.tables(entries)]
    found = {"numbers": numbers, "runs": run_tables(rows, entries)}
    world_models.write_csv(directory / "world-models.csv", entries)
    write_atomically(directory / "summary.json", json.dumps(plain(summary), indent=1) + "\n")
    write_atomically(directory / "report.md", markdown(summary, drawn, found, rows, failed))
    path = directory / "report.html"
    write_atomically(path, page(summary, drawn, found, rows, failed))
    return path


# ---- numbers -------------------------------------------------------------------------------------


def tables(summary: Summary) -> list[Table]:
    whole = [_aggregate_table(summary), means_table(summary), published_table(summary), steps_table(summary)]
    found = [*whole, *map(_scores_table, summary.tasks)]
    return [table for table in found if table is not None]


def _aggregate_table(summary: Summary) -> Table | None:
    if not summary.aggregates:
        return None
    names = next(iter(summary.aggregates.values()))
    rows = [(agent, *map(_two_digits, found.values())) for agent, found in summary.aggregates.items()]
    better = {pair.theirs: _two_digits(pair.probability) for pair in summary.comparisons}
    rows = [(*row, better.get(row[0], "")) for row in rows]
    ends = ", ".join(f"{task.env} at {write_steps(task.end)}" for task in summary.common)
    note = f"Normalised scores with 95 % stratified bootstrap intervals: {ends}. P(improvement): that a run of "
    note += f"{summary.agents[0]} scores higher, at the last step that both have come to."
    return Table("All tasks together", ("agent", *names, "P(improvement)"), rows, note)


def means_table(summary: Summary) -> Table | None:
    """The mean over tasks at every step at which all of them were evaluated; None where there is no such step."""
    found = {agent: dict(summary.along(agent, "mean")) for agent in summary.agents}
    steps = sorted({step for points in found.values() for step in points})
    if not steps:
        return None
    rows = [
        (agent, *(_two_digits(points[step]) if step in points else "" for step in steps))
        for agent, points in found.items()
    ]
    header = ("after environment steps", *(f"{step:,.0f}" for step in steps))
    over = _count(len(summary.common), "task")
    note = f"Mean normalised scores over {over} with 95 % stratified bootstrap intervals."
    return Table("All tasks together, on the way", header, rows, note)


def _two_digits(found: Interval) -> str:
    interval = "(n=1: no interval)" if found.n == 1 else f"[{found.low:.2f}, {found.high:.2f}]"
    return f"{found.value:.2f} {interval}"


def steps_table(summary: Summary) -> Table | None:
    """Per task: the median steps of each agent, and the ratio to each comparator."""
    agents = summary.agents
    rows = []
    for task in summary.tasks:
        known = [agent for agent in agents if agent in task.curves]
        steps = steps_of(task, known)
        cells = [_median_steps(steps, agent) if agent in known else "-" for agent in agents]
        ratios = [
            short_ratio(pair.ratios[task.env]) if task.env in pair.ratios else "-" for pair in summary.comparisons
        ]
        rows.append((task.env, f"{task.scale.target:.4g}", *cells, *ratios))
    heads = [f"times fewer than {pair.theirs}" for pair in summary.comparisons]
    if not rows or len(agents) < 2:
        return None
    if len(rows) > 1:
        rows.append(("all", "", *[""] * len(agents), *[short_ratio(pair.ratio) for pair in summary.comparisons]))
    measured = any(task.scale.measured for task in summary.tasks)
    note = (
        f"Median environment steps until an evaluation is at or above {TARGET:.0%} of the task's full score, at "
        "evaluations that the agents share. '>': at least half of the runs did not reach it; they count as if they had "
        f"at the end of their budget, so the ratio is only a bound (≥, ≤). Below 1, {agents[0]} needs more. All: "
        "geometric mean of the tasks that one of the two reached."
        + (" Of a task whose full score nobody has agreed on, it is the best mean here." if measured else "")
    )
    return Table("Environment steps to the target", ("task", "target", *agents, *heads), rows, note)


def _median_steps(steps: Steps, agent: str) -> str:
    median = steps.median(agent)
    return f"> {write_steps(steps.budgets[agent])}" if math.isinf(median) else write_steps(median)


def _scores_table(task: Task) -> Table:
    """Mean return and interval at each evaluation."""
    grid = sorted({step for curves in task.curves.values() for step in curves.steps})
    rows = []
    for step in grid:
        cells = []
        for curves in task.curves.values():
            at = np.flatnonzero(curves.steps == step)
            cells.append(str(statistics.interval_of_mean(curves.returns[:, at[0]])) if len(at) else "-")
        rows.append((write_steps(step), *cells))
    scale = f"Normalised: 0 is {task.scale.low:.4g}, 1 is {task.scale.high:.4g}"
    scale += " (measured here, so not comparable with other reports)." if task.scale.measured else "."
    heads = [f"{agent} ({len(curves.seeds)} seeds)" for agent, curves in task.curves.items()]
    return Table(task.env, ("steps", *heads), rows, scale)


# ---- runs ----------------------------------------------------------------------------------------


def run_tables(rows: Sequence[Row], entries: Sequence[Entry]) -> list[Table]:
    return [_cost_table(rows), _run_table(rows, entries)]


def _cost_table(rows: Sequence[Row]) -> Table:
    """By agent and task: what a run takes."""
    last = _last_rows(rows)
    found: list[tuple[str, ...]] = []
    for agent, env in dict.fromkeys((row["agent"], row["env"]) for row in last):
        runs = [row for row in last if (row["agent"], row["env"]) == (agent, env)]
        cells = (
            _mean(row["step"] / row["wall_s"] for row in runs if row["wall_s"] > 0),
            _mean(row["wall_s"] / 60 for row in runs),
            _mean(row.get("updates") for row in runs),
            _mean(float(row["flops"]) / 1e12 for row in runs if row.get("flops")),
            *(_mean(row.get(name) for row in runs) for name in ("parameters", "peak_memory_mb")),
        )
        found.append((str(agent), str(env), *cells))
    header = ("agent", "task", "env steps / s", "minutes", "updates", "TFLOP", "parameters", "peak memory, MB")
    note = "Means over seeds; the minutes contain evaluations. TFLOP: matrix products and convolutions of the updates. "
    note += "Memory: the largest that the training process had; "
    note += "'-' was not recorded."
    return Table("What a run takes", header, found, note)


def _run_table(rows: Sequence[Row], entries: Sequence[Entry]) -> Table:
    last = {(row["agent"], row["env"], row["seed"]): row for row in _last_rows(rows)}
    commits: dict[tuple[Any, ...], list[str]] = {}
    for row in rows:
        known = commits.setdefault((row["agent"], row["env"], row["seed"]), [])
        if row["commit"] and row["commit"] not in known:
            known.append(row["commit"])
    about: dict[tuple[Any, ...], dict[str, Any]] = {}
    for entry in entries:
        about[entry["agent"], entry["env"], entry["seed"]] = entry["status"]
    found: list[tuple[str, ...]] = []
    for key in sorted({*last, *about}, key=str):
        status, score = about.get(key, {}), "-"
        step, seconds = status.get("step", 0), status.get("seconds", math.nan)
        if key in last:
            end = last[key]
            score = f"{number(end['mean'])} ± {number(end['std'])}"
            step, seconds = max(step, end["step"]), status.get("seconds", end["wall_s"])
        commit = ", ".join(commits.get(key, [])) or status.get("git") or "-"
        found.append((
            f"{key[1]} {key[0]} seed{key[2]}", status.get("state", "-"), write_steps(step), score, duration(seconds),
            commit, status.get("command", "-"),
        ))  # fmt: skip
    header = ("run", "state", "steps", "last score", "time", "commit", "command")
    return Table("Runs", header, found, "The last score is that of the policy's mode, with its spread over episodes.")


def _last_rows(rows: Sequence[Row]) -> list[Row]:
    """Each run's last evaluation of the mode."""
    last: dict[tuple[Any, ...], Row] = {}
    for row in rows:
        key = (row["agent"], row["env"], row["seed"])
        if row["mode"] == "mode" and (key not in last or row["step"] >= last[key]["step"]):
            last[key] = row
    return list(last.values())


def _mean(values: Any) -> str:
    known = [float(value) for value in values if value not in (None, "")]
    if not known:
        return "-"
    mean = sum(known) / len(known)
    return f"{mean:,.0f}" if mean >= 100 or mean == 0 else number(mean)


# ---- text ----------------------------------------------------------------------------------------


def headlines(summary: Summary) -> list[str]:
    return [headline(pair, summary.title) for pair in summary.comparisons]


def losses(summary: Summary) -> list[str]:
    """Where the judged agent is not ahead, by comparator."""
    lines = []
    for pair in summary.comparisons:
        where = f"on none of {_count(len(pair.tasks), 'task')}"
        lines.append(
            f"{pair.ours} loses to {pair.theirs}, by scores after {pair.ends} steps or by steps to the target: "
            f"{'; '.join(pair.lost) or where}."
        )
    return lines


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def setting(summary: Summary, rows: Sequence[Row]) -> str:
    """What was run, in one paragraph."""
    counts = sorted({len(curves.seeds) for task in summary.tasks for curves in task.curves.values()})
    episodes = sorted({int(row["episodes"]) for row in rows})
    seeds = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    commits = sorted({str(row["commit"]) for row in rows if row["commit"]})
    few = " n=1: no interval." if counts[0] == 1 else f" {TOO_NARROW}" if counts[0] < 5 else ""
    return (
        f"{summary.title}: {', '.join(summary.agents)} on {_count(len(summary.tasks), 'task')}, seeds per task: "
        f"{seeds}.{few} Scores are mean returns of the policy's mode over {' or '.join(map(str, episodes))} episodes; "
        f"steps are environment steps, action repeat included. Commit {', '.join(commits) or 'unknown'}."
    )


TOO_NARROW = (
    "Percentile bootstrap intervals over so few seeds are too narrow: over 8 tasks of normal scores, those of 95 % "
    "hold the true mean in about 80 % of cases with two seeds and 85 % with three (tests/test_statistics.py)."
)
METHOD = (
    "Intervals are 95 % percentile bootstrap intervals that resample runs within each task (Agarwal et al., NeurIPS "
    "2021). IQM is the mean of the middle half of all runs and tasks; the optimality gap is how far runs stay below a "
    "normalised score of 1. Steps to a target are medians over the runs of a task, and geometric means "
    "over tasks; nothing between two evaluations is interpolated."
)


def page(
    summary: Summary,
    drawn: Sequence[Chart],
    found: dict[str, list[Table]],
    rows: Sequence[Row],
    failed: Sequence[Failed],
) -> str:
    title = f"Benchmark {summary.title}"
    first, *others = headlines(summary) or [f"{summary.agents[0]} alone: nothing to compare with."]
    body = [f"<h1>{html.escape(title)}</h1>", f'<p class="headline">{html.escape(first)}</p>']
    body += [f"<p>{html.escape(line)}</p>" for line in others]
    body += [f'<p class="lost">{html.escape(line)}</p>' for line in losses(summary)]
    body += [f'<p class="faint">{html.escape(setting(summary, rows))}</p>']
    body += [f'<p class="faint">{html.escape(line)}.</p>' for line in summary.left_out]
    body += [f"<section><h2>Failed runs</h2>{''.join(map(_failed, failed))}</section>"] if failed else []
    body += [
        f"<section><h2>{html.escape(chart.title)}</h2><figure>{chart.inline()}"
        f"<figcaption>{html.escape(chart.caption)}</figcaption></figure></section>"
        for chart in drawn
    ]
    body += ["<h2>Tables</h2>", *(table.html() for table in found["numbers"])]
    cost, runs = found["runs"]
    body += ["<h2>Cost and provenance</h2>", cost.html()]
    body += [f"<details><summary>every run, with command and commit</summary>{runs.html()}</details>"]
    body += [f'<h2>Method</h2><p class="faint">{html.escape(METHOD)}</p>']
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    head += f"<title>{html.escape(title)}</title><style>{STYLE}</style>"
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body>' + "\n".join(body) + "</body></html>\n"


def _failed(run: Failed) -> str:
    log = html.escape("\n".join(run.log))
    return f"<h3>{html.escape(run.run)} (exit code {run.exit_code})</h3><pre>{log}</pre>"


def markdown(
    summary: Summary,
    drawn: Sequence[Chart],
    found: dict[str, list[Table]],
    rows: Sequence[Row],
    failed: Sequence[Failed],
) -> str:
    lines = [f"# Benchmark {summary.title}", ""]
    lines += [f"**{line}**\n" for line in headlines(summary)]
    lines += [f"{line}\n" for line in [*losses(summary), setting(summary, rows), *summary.left_out]]
    for run in failed:
        lines += [f"## Failed: {run.run} (exit code {run.exit_code})", "", "```text", *run.log, "```", ""]
    for chart in drawn:
        lines += [f"## {chart.title}", "", f"![{chart.title}]({chart.name}.png)", "", chart.caption, ""]
    for table in [*found["numbers"], *found["runs"]]:
        lines += table.markdown()
    return "\n".join([*lines, "## Method", "", METHOD, ""])
