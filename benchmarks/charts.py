"""Charts: the pictures of a benchmark's report, each in three forms.

Inside the page an SVG takes its colours from the page's style, light or dark; as files an SVG and a PNG are light.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks import statistics
from benchmarks.reference import Curve, published
from benchmarks.summary import Curves, Summary, Task
from mbrl.report import axis_number, inline_svg, style_panel

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Colours = dict[str, str]

LIGHT: Colours = {
    "ink": "#1c2024",
    "faint": "#667079",
    "grid": "#e4e6e8",
    "a1": "#2f6db5",
    "a2": "#c8553d",
    "a3": "#3d8b63",
    "a4": "#8a5bb0",
    "a5": "#a67c12",
    "a6": "#1f8a93",
    "a7": "#b5487f",
    "rest": "#858e96",
}
DARK: Colours = {
    "ink": "#e6e8ea",
    "faint": "#98a2ab",
    "grid": "#30363c",
    "a1": "#74aef0",
    "a2": "#f0907a",
    "a3": "#77c79c",
    "a4": "#c4a3ea",
    "a5": "#e0b84e",
    "a6": "#62cbd3",
    "a7": "#ec86b8",
    "rest": "#7b858d",
}
MARKERS: Colours = {name: f"#0101{k:02x}" for k, name in enumerate(LIGHT, 1)}
"""What the SVG of the page is drawn in; each becomes the CSS variable of its name."""
SHAPES = "os^DvPX"
LONG, DOTTED, MIXED, SPARSE = (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)), (0, (3, 4))
PUBLISHED = {
    "DreamerV3": LONG,
    "SAC (pytorch_sac)": DOTTED,
    "SAC (SimBa)": MIXED,
    "BRO (UTD 10)": SPARSE,
    "DrQ-v2": DOTTED,
    "CrossQ": LONG,
    "SAC (CrossQ)": MIXED,
}
"""Whose published curves are drawn, where they have two points within the budget; those of more would hide ours."""
WIDTH = 9.2
COLUMNS = 3
TASK_HEIGHT = 2.5
PROFILE_POINTS = 101
REPLICATES = 2000


@dataclass(frozen=True)
class Chart:
    """One figure, not drawn yet: ``draw(figure, colours)``."""

    name: str
    title: str
    caption: str
    height: float
    draw: Callable[[Figure, Colours], None]

    def inline(self) -> str:
        """The SVG for a page whose style has the variables."""
        return inline_svg(self._render("svg", MARKERS).decode(), MARKERS)

    def save(self, directory: Path, kinds: Sequence[str] = ("svg", "png")) -> None:
        """NAME.svg and NAME.png."""
        for kind in kinds:
            (directory / f"{self.name}.{kind}").write_bytes(self._render(kind, LIGHT))

    def _render(self, kind: str, colours: Colours) -> bytes:
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        settings: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": self.name, "font.size": 9}
        with matplotlib.rc_context(settings):
            figure = Figure(figsize=(WIDTH, self.height), layout="constrained")
            FigureCanvasAgg(figure)
            figure.patch.set_facecolor("none" if colours is MARKERS else "white")
            self.draw(figure, colours)
            buffer = io.BytesIO()
            figure.savefig(buffer, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)
        return buffer.getvalue()


def charts(summary: Summary) -> list[Chart]:
    """All that the data allow."""
    found = [aggregate_curves(summary), aggregates(summary), improvement(summary), profiles(summary)]
    counted = any(np.isfinite(ARITHMETIC.of(curves)).any() for task in summary.tasks for curves in task.curves.values())
    axes = [STEPS, CLOCK, ARITHMETIC][: 3 if counted else 2]
    return [chart for chart in found if chart is not None] + [learning_curves(summary, axis) for axis in axes]


def colour_of(summary: Summary, agent: str) -> str:
    """The name of an agent's colour; random, the floor, is grey."""
    others = [name for name in summary.agents if name != "random"]
    place = others.index(agent) + 1 if agent in others else 0
    return f"a{place}" if 0 < place < 8 else "rest"


# ---- over tasks ----------------------------------------------------------------------------------


def aggregate_curves(summary: Summary, name: str = "IQM") -> Chart | None:
    """An aggregate of normalised scores against steps; None where tasks were not evaluated at the same steps."""
    found = {agent: summary.along(agent, name) for agent in summary.agents}
    curves = {agent: points for agent, points in found.items() if len(points) > 1}
    if not curves:
        return None

    def draw(figure: Figure, colours: Colours) -> None:
        panel = new_panel(figure, 1, 1, 1, colours)
        for agent, points in curves.items():
            x = [step for step, _ in points]
            _line(panel, summary, agent, colours, x, *_bounds([interval for _, interval in points]))
        panel.set_xlabel("environment steps")
        panel.set_ylabel(f"{name} of normalised scores")
        panel.set_ylim(bottom=min(0.0, panel.get_ylim()[0]))
        _steps_axis(panel, 8)
        _legend(panel, colours)

    over = "Interquartile mean" if name == "IQM" else name.capitalize()
    caption = f"{over} over {_tasks(summary.common)} and all runs, normalised; bands: 95 % stratified bootstrap."
    return Chart("aggregate-curve", "All tasks together", caption, 3.4, draw)


def aggregates(summary: Summary) -> Chart | None:
    found = summary.aggregates
    if not found:
        return None
    names = list(next(iter(found.values())))

    def draw(figure: Figure, colours: Colours) -> None:
        for k, name in enumerate(names):
            panel = new_panel(figure, 1, len(names), k + 1, colours)
            for row, agent in enumerate(summary.agents):
                _bar(panel, row, found[agent][name], colours[colour_of(summary, agent)])
            _rows(panel, summary.agents if k == 0 else [""] * len(summary.agents), colours)
            panel.set_title(name, fontsize=9, loc="left", color=colours["ink"])
            low, high = panel.get_xlim()
            panel.set_xlim(min(low, -0.1), max(high, 1.1))

    end = "lower is better for the optimality gap"
    caption = f"Normalised scores at the end, {_tasks(summary.common)}; bars: 95 % stratified bootstrap; {end}."
    return Chart("aggregates", "Scores at the end", caption, 0.8 + 0.32 * len(summary.agents), draw)


def improvement(summary: Summary) -> Chart | None:
    if not summary.comparisons:
        return None
    ours, names = summary.agents[0], [pair.theirs for pair in summary.comparisons]

    def draw(figure: Figure, colours: Colours) -> None:
        panel = new_panel(figure, 1, 1, 1, colours)
        for row, pair in enumerate(summary.comparisons):
            _bar(panel, row, pair.probability, colours[colour_of(summary, pair.theirs)])
        panel.axvline(0.5, color=colours["faint"], lw=1, ls="--")
        panel.set_xlim(-0.02, 1.02)
        _rows(panel, [f"over {name}" for name in names], colours)
        panel.set_xlabel(f"P({ours} scores higher)")

    caption = f"Probability that a run of {ours} scores higher than a run of the other agent on one task, at the last "
    caption += "step that both have come to."
    return Chart("probability-of-improvement", "Probability of improvement", caption, 1.0 + 0.32 * len(names), draw)


def profiles(summary: Summary) -> Chart | None:
    common = summary.common
    if not common:
        return None
    scores = {agent: [task.normalised(agent) for task in common] for agent in summary.agents}
    every = np.concatenate([task for found in scores.values() for task in found])
    thresholds = np.linspace(min(0.0, float(every.min())), max(1.0, float(every.max())), PROFILE_POINTS)

    def draw(figure: Figure, colours: Colours) -> None:
        panel = new_panel(figure, 1, 1, 1, colours)
        for agent, found in scores.items():
            value, low, high = statistics.performance_profile(found, thresholds)
            colour = colours[colour_of(summary, agent)]
            panel.plot(thresholds, value, color=colour, lw=1.6, label=agent, drawstyle="steps-post")
            panel.fill_between(thresholds, low, high, color=colour, alpha=0.15, lw=0, step="post")
        panel.set_xlabel("normalised score")
        panel.set_ylabel("share of runs above it")
        panel.set_ylim(-0.03, 1.03)
        _legend(panel, colours)

    caption = f"Performance profile at the end, {_tasks(common)}: how many of the runs score more; higher is better."
    return Chart("profiles", "Performance profile", caption, 3.0, draw)


# ---- task by task --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Axis:
    """What a learning curve is drawn against."""

    name: str
    title: str
    label: str
    of: Callable[[Curves], np.ndarray]
    """-> (T,)"""
    note: str = ""


STEPS = Axis("learning-curves", "Learning curves", "environment steps", lambda curves: curves.steps)
CLOCK = Axis(
    "wall-clock",
    "Against wall-clock",
    "minutes of training",
    lambda curves: curves.wall.mean(0) / 60,
    " Minutes are those of training and evaluation, at the mean of the seeds.",
)
ARITHMETIC = Axis(
    "flops",
    "Against arithmetic",
    "TFLOP of the updates",
    lambda curves: curves.flops.mean(0) / 1e12,
    " Matrix products and convolutions of the updates; acting is not counted.",
)


def learning_curves(summary: Summary, axis: Axis) -> Chart:
    """One panel a task: mean over seeds and its interval."""
    rows = -(-len(summary.tasks) // COLUMNS)
    columns = min(COLUMNS, len(summary.tasks))

    def draw(figure: Figure, colours: Colours) -> None:
        handles: dict[str, Any] = {}
        for k, task in enumerate(summary.tasks):
            panel = new_panel(figure, rows, columns, k + 1, colours)
            _draw_task(panel, summary, task, colours, axis)
            panel.set_title(task.env, fontsize=9, loc="left", color=colours["ink"])
            if k >= len(summary.tasks) - columns:
                panel.set_xlabel(axis.label)
            lines, labels = panel.get_legend_handles_labels()
            handles |= dict(zip(labels, lines))
        legend_below(figure, handles, colours)

    caption = "Mean return of the policy's mode over seeds; bands: 95 % bootstrap interval (none for one seed)."
    caption += axis.note
    if axis is STEPS and any(_published(task) for task in summary.tasks):
        caption += " Thin broken lines: published by others, not measured here; (train) returns of training episodes,"
        caption += " (eval) of separate evaluations, so do not take their difference for one of agents."
    return Chart(axis.name, axis.title, caption, TASK_HEIGHT * rows + 0.5, draw)


def _draw_task(panel: Axes, summary: Summary, task: Task, colours: Colours, axis: Axis) -> None:
    for agent in summary.agents:
        if agent in task.curves:
            curves, x = task.curves[agent], axis.of(task.curves[agent])
            known = np.isfinite(x)
            found = curves.returns[:, known].T
            intervals = [statistics.interval_of_mean(scores, replicates=REPLICATES) for scores in found]
            if intervals:
                _line(panel, summary, agent, colours, x[known], *_bounds(intervals))
    if axis is ARITHMETIC:
        panel.set_xscale("log")
    elif axis is CLOCK:
        panel.set_xlim(left=0)
    else:
        _steps_axis(panel, 4)
        _draw_published(panel, task, colours)


def _draw_published(panel: Axes, task: Task, colours: Colours) -> None:
    panel.set_xlim(right=panel.get_xlim()[1])
    for name, curve in _published(task).items():
        label = f"{name}, published ({curve.protocol})"
        until = curve.steps <= panel.get_xlim()[1]
        x, y = curve.steps[until], curve.mean[until]
        panel.plot(x, y, color=colours["faint"], lw=0.9, ls=PUBLISHED[name], label=label, zorder=1.5)


def _published(task: Task) -> dict[str, Curve]:
    """Other people's results on this task, where there are two points until its last step here."""
    end = max(float(curves.steps[-1]) for curves in task.curves.values())
    found = published(task.env, task.observe)
    return {name: found[name] for name in PUBLISHED if name in found and (found[name].steps <= end).sum() > 1}


# ---- parts of a figure ---------------------------------------------------------------------------


def new_panel(figure: Figure, rows: int, columns: int, place: int, colours: Colours) -> Axes:
    panel = figure.add_subplot(rows, columns, place)
    style_panel(panel, colours)
    return panel


def _line(
    panel: Axes,
    summary: Summary,
    agent: str,
    colours: Colours,
    x: Any,
    value: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
) -> None:
    colour = colours[colour_of(summary, agent)]
    shape = SHAPES[summary.agents.index(agent) % len(SHAPES)]
    panel.plot(x, value, color=colour, lw=1.6, marker=shape, ms=3.5 if len(value) <= 25 else 0, label=agent)
    if len(value) > 1:
        panel.fill_between(x, low, high, color=colour, alpha=0.18, lw=0)
    else:
        panel.vlines(x, low, high, color=colour, alpha=0.35, lw=4)


def _bar(panel: Axes, row: int, found: statistics.Interval, colour: str) -> None:
    if math.isfinite(found.low):
        panel.plot([found.low, found.high], [row, row], color=colour, lw=7, alpha=0.35, solid_capstyle="butt")
    panel.plot([found.value], [row], color=colour, marker="|", ms=11, mew=2.2)


def _rows(panel: Axes, names: Sequence[str], colours: Colours) -> None:
    panel.set_yticks(range(len(names)), names)
    panel.tick_params(axis="y", labelcolor=colours["ink"], labelsize=9)
    panel.set_ylim(len(names) - 0.4, -0.6)
    panel.grid(visible=False, axis="y")
    panel.locator_params(axis="x", nbins=4)


def _bounds(intervals: Sequence[statistics.Interval]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    value, low, high = np.array([(one.value, one.low, one.high) for one in intervals]).T
    return value, low, high


def _steps_axis(panel: Axes, ticks: int) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    panel.set_xlim(left=0)
    panel.xaxis.set_major_locator(MaxNLocator(ticks, integer=True, steps=[1, 2, 2.5, 5, 10]))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: axis_number(value)))


def legend_below(figure: Figure, handles: dict[str, Any], colours: Colours) -> None:
    """One legend for all panels: labels and what they stand for."""
    figure.legend(
        list(handles.values()),
        list(handles),
        loc="outside lower center",
        ncols=min(4, len(handles)),
        frameon=False,
        labelcolor=colours["ink"],
        fontsize=8.5,
    )


def _legend(panel: Axes, colours: Colours) -> None:
    panel.legend(frameon=False, fontsize=8.5, labelcolor=colours["ink"], loc="best")


def _tasks(tasks: Sequence[Task]) -> str:
    return tasks[0].env if len(tasks) == 1 else f"{len(tasks)} tasks"
