"""Published: what others report of the same tasks, beside what was measured here. Never averaged with it."""

from __future__ import annotations

import numpy as np

from benchmarks.reference import PROTOCOLS, Curve, published
from benchmarks.summary import Summary, Task
from benchmarks.tables import Table

LATER = (200e3, 500e3, 1e6)
"""Environment steps that are shown besides those at which we have means."""


def published_table(summary: Summary) -> Table | None:
    """Published means over the tasks that every agent was run on, and when they come to where the judged agent ends.

    None where no agent was published on all of these tasks, or nothing was measured on all of them.
    """
    tasks, ours = summary.common, summary.along(summary.agents[0], "mean")
    curves = [published(task.env, task.observe) for task in tasks if not task.scale.measured]
    if not ours or len(curves) < len(tasks):
        return None
    end, reached = ours[-1]
    steps = sorted({step for agent in summary.agents for step, _ in summary.along(agent, "mean")} | set(LATER))
    rows = []
    for agent in set.intersection(*map(set, curves)):
        group = [found[agent] for found in curves]
        means = mean_over(tasks, group)
        when = min((step for step, mean in means.items() if mean >= reached.value), default=np.inf)
        cells = [f"{means[step]:.2f}" if step in means else "" for step in steps]
        last = f"{when:,.0f}" if np.isfinite(when) else f"> {max(means):,.0f}"
        rows.append((when, agent, (f"{agent}, {_runs(group)}, {group[0].protocol}", *cells, last)))
    if not rows:
        return None
    header = ("published", *(f"{step:,.0f}" for step in steps), f"{reached.value:.2f} after")
    kinds = "; ".join(f"{name}: {text}" for name, text in PROTOCOLS.items())
    note = f"Means of the same {len(tasks)} tasks as others published them (benchmarks/reference/), not measured here. "
    note += f"Nothing is interpolated. {kinds}. "
    note += f"Last column: the first published step with {summary.agents[0]}'s score after {end:,.0f}. "
    note += "Agents that were not published on all of these tasks are left out."
    return Table("Published by others", header, [row for _, _, row in sorted(rows)], note)


def mean_over(tasks: list[Task], curves: list[Curve]) -> dict[float, float]:
    """The normalised mean over tasks, a curve for each, by step; where one has no value there is none."""
    values = [dict(zip(curve.steps, task.scale.normalise(curve.mean))) for task, curve in zip(tasks, curves)]
    steps = sorted(set.intersection(*map(set, values)))
    return {float(step): float(np.mean([points[step] for points in values])) for step in steps}


def _runs(curves: list[Curve]) -> str:
    """How many runs there were, of the task that had fewest and of that which had most."""
    counts = [curve.seeds for curve in curves if curve.seeds is not None]
    if len(counts) < len(curves):
        return "unknown seeds"
    low, high = min(counts), max(counts)
    return f"{low} seed{'s' * (high > 1)}" if low == high else f"{low} to {high} seeds"
