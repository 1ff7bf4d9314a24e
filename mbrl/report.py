"""Report: one run on one page. ``write_report(run)`` makes report.html out of the run directory alone.

The page needs nothing else: no network, no scripts, pictures inside. It follows the reader's light or
dark setting: plots are drawn in marker colours that become CSS variables. Pieces that a run does not
have (yet) are left out, or said to be missing; no number is made up.
"""

from __future__ import annotations

import base64
import html
import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml
from numpy.typing import NDArray

from mbrl.errors import UserError
from mbrl.logger import read_lines
from mbrl.run import read_status, write_atomically
from mbrl.screen import duration, number, steps

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Record = dict[str, Any]
Points = tuple[NDArray[np.float64], NDArray[np.float64]]

MARKERS = {
    "ink": "#010101",
    "faint": "#020202",
    "grid": "#030303",
    "one": "#040404",
    "two": "#050505",
    "three": "#060606",
}
"""Colours that plots are drawn in, each replaced by the CSS variable of its name."""

SOURCES = ("config.yaml", "metrics.jsonl", "scores.jsonl", "status.json")
MADE_WITH = ("versions", "python", "git", "machine")
MAX_POINTS = 400
MAX_EPISODES = 1500
MAX_PICTURE = 8_000_000

STYLE = """
:root { color-scheme: light dark; --page: #fcfcfa; --card: #fff; --ink: #1c2024; --faint: #667079;
  --grid: #e4e6e8; --one: #2f6db5; --two: #c8553d; --three: #3d8b63; }
@media (prefers-color-scheme: dark) { :root { --page: #14171a; --card: #1c2024; --ink: #e6e8ea;
  --faint: #98a2ab; --grid: #30363c; --one: #74aef0; --two: #f0907a; --three: #77c79c; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2.5rem 1.25rem 4rem; max-width: 960px; background: var(--page);
  color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI", sans-serif; }
h1 { font-size: 1.5rem; margin: 0; } h2 { font-size: 1.1rem; margin: 2.2rem 0 .6rem; }
p { margin: .3rem 0; } .faint, figcaption { color: var(--faint); font-size: .9rem; }
.headline { font-size: 2.6rem; font-weight: 650; letter-spacing: -.02em; margin: 1rem 0 0; line-height: 1.2; }
figure, pre, .scroll { background: var(--card); border: 1px solid var(--grid); border-radius: 8px; margin: 0;
  padding: .8rem; overflow-x: auto; }
figure svg { width: 100%; height: auto; display: block; } figcaption { margin-top: .4rem; }
.pictures { display: flex; flex-wrap: wrap; gap: 1rem; } .pictures img { max-width: 100%;
  image-rendering: pixelated; }
code, pre { font: .85rem/1.5 ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
td { padding: .15rem .8rem .15rem 0; vertical-align: top; overflow-wrap: anywhere; }
td:first-child { color: var(--faint); width: 18rem; } th { text-align: left; padding-top: .7rem; }
summary { cursor: pointer; color: var(--faint); margin-bottom: .5rem; }
"""


def write_report(run_dir: Path | str) -> Path:
    """Write report.html of a run, finished or not, and return its path."""
    run = Path(run_dir)
    if not run.is_dir():
        raise UserError(f"no run directory {run}; see which there are with: ls -d runs/*/*/*")
    if not any((run / name).is_file() for name in SOURCES):
        raise UserError(f"{run} is not a run: it has none of {', '.join(SOURCES)}; try: ls -d runs/*/*/*")
    metrics, scores = list(read_lines(run / "metrics.jsonl")), list(read_lines(run / "scores.jsonl"))
    config, status = _read_config(run / "config.yaml"), read_status(run)
    title = _title(run, config)
    body = [
        f"<h1>{html.escape(title)}</h1>",
        _headline(scores, metrics, status),
        _section("Learning curve", _learning_curve(scores), "No episodes were finished yet."),
        _section("What it does", _pictures(run)),
        _section("Losses", _losses(metrics)),
        _section("How far ahead it can predict", _open_loop(metrics)),
        _section("Speed", _throughput(metrics)),
        _section("Reproduce", _reproduce(config, status)),
        _section("Made with", _table({name: status[name] for name in MADE_WITH if name in status})),
        _section("Configuration", _configuration(config), "No config.yaml was found."),
    ]
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    head += f"<title>{html.escape(title)}</title><style>{STYLE}</style>"
    page = f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body>'
    path = run / "report.html"
    write_atomically(path, page + "\n".join(filter(None, body)) + "</body></html>\n")
    return path


# ---- text ----------------------------------------------------------------------------------------


def _read_config(path: Path) -> Any:
    """The configuration as nested dicts, or as the text that could not be parsed; None without one."""
    if not path.is_file():
        return None
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _title(run: Path, config: Any) -> str:
    """Environment, agent and seed: from the configuration, else from the directory's name."""
    known = config if isinstance(config, dict) else {}
    if known.get("env") and known.get("agent"):
        preset = f" ({known['preset']})" if known.get("preset") else ""
        return f"{known['env']}, {known['agent']}{preset}, seed {known.get('seed', 'unknown')}"
    return " / ".join(run.resolve().parts[-3:])


def _headline(scores: Sequence[Record], metrics: Sequence[Record], status: Record) -> str:
    """The last evaluation: never the best one."""
    last = {line["mode"]: line for line in scores if line.get("mode") and _is_number(line.get("mean"))}
    seconds = [status.get("seconds"), *(line.get("time/seconds") for line in reversed(metrics))]
    wall = next((value for value in seconds if _is_number(value)), None)
    reached = max((line["step"] for line in [*scores[-1:], *metrics[-1:]]), default=0)
    so_far = f"{steps(reached)} environment steps" + (f" in {duration(wall)}" if wall is not None else "")
    states = {"running": "still running", "interrupted": "interrupted, not finished", "failed": "failed"}
    state = states.get(status.get("state", ""))
    foot = f'<p class="faint">{so_far}{f"; {state}" if state else ""}.</p>'
    if status.get("error"):
        foot += f"<p>{html.escape(str(status['error']))}</p>"
    if not last:
        return f'<p class="headline">not evaluated yet</p>{foot}'
    mode = "mode" if "mode" in last else "sample"
    line = last[mode]
    texts = {"mode": "acting by the policy's mode", "sample": "acting by samples of the policy"}
    text = f"return over {_episodes(line)} at step {steps(line['step'])}, {texts[mode]}"
    if mode == "mode" and "sample" in last:
        text += f"; {_spread(last['sample'])} when actions are sampled"
    return f'<p class="headline">{_spread(line)}</p><p>{text}. The last evaluation, not the best.</p>{foot}'


def _spread(line: Record) -> str:
    """One episode has no spread."""
    if line.get("episodes", 0) < 2 or not _is_number(line.get("std")):
        return number(line["mean"])
    decimals = len(number(line["mean"]).partition(".")[2])
    return f"{number(line['mean'])} ± {line['std']:.{decimals}f}"


def _episodes(line: Record) -> str:
    count = line.get("episodes", 1)
    return f"{count} episode{'s' * (count != 1)}"


def _reproduce(config: Any, status: Record) -> str:
    """The commands that made the run, by their program's name and not its place on that machine."""
    command = status.get("command") or (config.get("command") if isinstance(config, dict) else None)
    if not command:
        return '<p class="faint">The command was not recorded.</p>'
    lines = []
    for line in [command, *status.get("continued_with", [])]:
        program, _, rest = (line if isinstance(line, str) else " ".join(line)).partition(" ")
        lines.append(f"{Path(program).name if program.startswith('/') else program} {rest}".strip())
    return f"<pre>{html.escape(chr(10).join(lines))}</pre>"


def _configuration(config: Any) -> str:
    if config is None:
        return ""
    if not isinstance(config, dict):
        return f"<pre>{html.escape(str(config))}</pre>"
    return f"<details><summary>every setting of this run</summary>{_table(config)}</details>"


def _table(values: Mapping[str, Any]) -> str:
    """Nested settings as rows with dotted names."""
    rows: list[str] = []

    def add(prefix: str, value: Any) -> None:
        if isinstance(value, dict) and value:
            for key, inner in value.items():
                add(f"{prefix}.{key}" if prefix else str(key), inner)
        elif value is not None or not prefix.startswith("machine."):
            rows.append(f"<tr><td>{html.escape(prefix)}</td><td>{html.escape(str(value))}</td></tr>")

    add("", dict(values))
    return f'<div class="scroll"><table>{"".join(rows)}</table></div>' if values else ""


def _section(title: str, content: str, otherwise: str = "") -> str:
    if not content and not otherwise:
        return ""
    return f"<section><h2>{title}</h2>{content or f'<p class=faint>{otherwise}</p>'}</section>"


def _pictures(run: Path) -> str:
    """The GIFs inside the page; too large ones by name only."""
    captions = {"eval.gif": "An evaluation episode.", "dream.gif": "What happened, and what was dreamt."}
    found = []
    for name, caption in captions.items():
        path = run / name
        if not path.is_file():
            continue
        image = f"<p>{name} is too large to show here.</p>"
        if path.stat().st_size <= MAX_PICTURE:
            data = base64.b64encode(path.read_bytes()).decode()
            image = f'<img alt="{name}" src="data:image/gif;base64,{data}">'
        found.append(f"<figure>{image}<figcaption>{caption}</figcaption></figure>")
    return f'<div class="pictures">{"".join(found)}</div>' if found else ""


# ---- plots ---------------------------------------------------------------------------------------


def _learning_curve(scores: Sequence[Record]) -> str:
    step, score = _series(scores, "episode/score")
    evaluations = {
        mode: [line for line in scores if line.get("mode") == mode and _is_number(line.get("mean"))]
        for mode in ("mode", "sample")
    }
    if not len(step) and not any(evaluations.values()):
        return ""

    def draw(panel: Axes) -> None:
        if len(step):
            every = max(1, -(-len(step) // MAX_EPISODES))
            x, y = step[::every], score[::every]
            panel.plot(x, y, ".", ms=3, color=MARKERS["faint"], label="training episodes")
        for (mode, lines), colour in zip(evaluations.items(), ("one", "two"), strict=True):
            if not lines:
                continue
            x = np.array([line["step"] for line in lines])
            mean = np.array([line["mean"] for line in lines])
            std = np.array([line["std"] if _is_number(line.get("std")) else 0.0 for line in lines])
            panel.fill_between(x, mean - std, mean + std, color=MARKERS[colour], alpha=0.15, lw=0)
            panel.plot(x, mean, "o-", ms=3.5, lw=1.8, color=MARKERS[colour], label=f"evaluation, {mode}")
        panel.set_xlabel("environment steps")
        panel.set_ylabel("return")
        _legend(panel)

    counts = sorted({line.get("episodes", 1) for lines in evaluations.values() for line in lines})
    caption = "Bands: one standard deviation over the episodes of an evaluation"
    caption += f" ({' or '.join(map(str, counts))} episodes)." if counts else "."
    return _figure("curve", [draw], caption if counts else "No evaluation yet.", height=3.6)


def _losses(metrics: Sequence[Record]) -> str:
    names = sorted({name for line in metrics for name in line if name.startswith("train/loss/")})
    panels = []
    for name in names:
        x, y = _series(metrics, name)
        if len(x):
            panels.append(_curve(name.removeprefix("train/loss/"), x, y))
    caption = "Against environment steps; logarithmic where they span more than two powers of ten."
    return _figure("losses", panels, caption, columns=4, height=1.7) if panels else ""


def _open_loop(metrics: Sequence[Record]) -> str:
    """The latest error by horizon, the first one, and whatever other curve was reported beside it."""
    lines = [line for line in metrics if _is_curve(line.get("report/open_loop_error"))]
    if not lines:
        return ""

    def draw(panel: Axes) -> None:
        for line, colour in ((lines[0], "faint"), (lines[-1], "one"))[len(lines) == 1 :]:
            error = _floats(line["report/open_loop_error"])
            label = f"at step {steps(line['step'])}"
            panel.plot(range(1, len(error) + 1), error, "o-", ms=3, color=MARKERS[colour], label=label)
        for name, curve in lines[-1].items():
            if name.startswith("report/") and name != "report/open_loop_error" and _is_curve(curve):
                label = name.removeprefix("report/").replace("_", " ")
                panel.plot(range(1, len(curve) + 1), _floats(curve), "--", color=MARKERS["two"], label=label)
        panel.set_xlabel("steps ahead")
        panel.set_ylabel("prediction error")
        panel.set_ylim(bottom=0)
        _legend(panel)

    caption = "Open loop: the model sees some steps, then predicts from the true actions alone."
    return _figure("horizon", [draw], caption, height=2.9)


def _throughput(metrics: Sequence[Record]) -> str:
    x, y = _series(metrics, "time/fps")
    panels = [_curve("environment steps / s", x, y, log=False)] if len(x) else []
    names = ("time/updates", "time/seconds")
    both = [line for line in metrics if all(_is_number(line.get(name)) for name in names)]
    (at, updates), (_, seconds) = _series(both, "time/updates"), _series(both, "time/seconds")
    passed = np.diff(seconds) > 0
    if passed.any():
        rate = np.diff(updates)[passed] / np.diff(seconds)[passed]
        panels.append(_curve("gradient updates / s", at[1:][passed], rate, log=False))
    return _figure("speed", panels, "Against environment steps.", columns=2, height=2.1) if panels else ""


def _curve(title: str, x: NDArray[Any], y: NDArray[Any], log: bool = True) -> Callable[[Axes], None]:
    x, y = _thin(x, y)

    def draw(panel: Axes) -> None:
        panel.plot(x, y, lw=1.3, color=MARKERS["one"], marker="o" if len(x) == 1 else None)
        panel.set_title(title, fontsize=9, loc="left", color=MARKERS["ink"])
        if log and np.nanmin(y, initial=np.inf) > 0 and np.nanmax(y) > 100 * np.nanmin(y):
            panel.set_yscale("log")

    return draw


def style_panel(panel: Any, colours: Mapping[str, str]) -> None:
    """No frame; grid and labels in the colours "grid" and "faint"."""
    panel.patch.set_visible(False)
    panel.tick_params(colors=colours["faint"], length=0, labelsize=8, which="both")
    panel.grid(color=colours["grid"], lw=0.8)
    panel.set_axisbelow(True)
    panel.spines[:].set_visible(False)
    panel.xaxis.label.set_color(colours["faint"])
    panel.yaxis.label.set_color(colours["faint"])


def _figure(
    name: str, panels: Sequence[Callable[[Axes], None]], caption: str, columns: int = 1, height: float = 3.0
) -> str:
    """Panels side by side as one SVG inside the page, its colours left to the page's style."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    settings: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": name, "font.size": 9}
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(9.2, height * rows), layout="constrained")
        FigureCanvasSVG(figure)
        figure.patch.set_visible(False)
        for k, draw in enumerate(panels):
            panel = figure.add_subplot(rows, columns, k + 1)
            style_panel(panel, MARKERS)
            draw(panel)
            panel.xaxis.set_major_locator(MaxNLocator(4 if columns > 1 else 8, integer=True))
            panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: axis_number(value)))
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg")
    return f"<figure>{inline_svg(buffer.getvalue(), MARKERS)}<figcaption>{html.escape(caption)}</figcaption></figure>"


def inline_svg(svg: str, markers: Mapping[str, str]) -> str:
    """A standalone SVG as part of the page: no addresses, no ids that are not used, the page's colours."""
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'\s+xmlns(:xlink)?="[^"]*"', "", svg)
    used = set(re.findall(r"#(\w+)[\")]", svg))
    svg = re.sub(r'\s+id="([^"]*)"', lambda found: found[0] if found[1] in used else "", svg)
    for variable, marker in markers.items():
        svg = svg.replace(marker, f"var(--{variable})")
    return svg


def _legend(panel: Axes) -> None:
    if panel.get_legend_handles_labels()[0]:
        panel.legend(frameon=False, fontsize=8.5, labelcolor=MARKERS["ink"], loc="best")


def axis_number(value: float) -> str:
    if value < 1000:
        return f"{value:g}"
    return f"{value / 1e3:g}k" if value < 1e6 else f"{value / 1e6:g}M"


# ---- numbers -------------------------------------------------------------------------------------


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _is_curve(value: Any) -> bool:
    return isinstance(value, list) and any(_is_number(item) for item in value)


def _floats(values: Sequence[Any]) -> NDArray[np.float64]:
    """null becomes a gap."""
    return np.array([value if _is_number(value) else np.nan for value in values], dtype=np.float64)


def _series(lines: Sequence[Record], name: str) -> Points:
    """The steps and values of a metric, where it is a number."""
    found = [(line["step"], line[name]) for line in lines if _is_number(line.get(name))]
    array = np.array(found, dtype=np.float64).reshape(-1, 2)
    return array[:, 0], array[:, 1]


def _thin(x: NDArray[np.float64], y: NDArray[np.float64]) -> Points:
    """Averages over neighbours, so that a long run makes no larger page."""
    every = -(-len(x) // MAX_POINTS)
    if every < 2:
        return x, y
    groups = [list(group) for _, group in groupby(range(len(x)), key=lambda k: k // every)]
    return np.array([x[g].mean() for g in groups]), np.array([y[g].mean() for g in groups])
