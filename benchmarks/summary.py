"""Summary: every number of a benchmark's report, computed once, out of the rows of scores.csv.

Scores are the mean returns of the policy's mode. Over tasks they are normalised: 0 is a task's floor, 1 its full
score (``scale_of``). The first agent is the one that is judged; the others are its comparators, random only where
there is nothing else.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import statistics
from benchmarks.collect import Entry, Row
from benchmarks.statistics import Interval, StepsRatio
from benchmarks.suites import reference_range
from mbrl.errors import UserError

Array = NDArray[np.float64]
Point = tuple[float, float, float]
"""Of an evaluation: mean return, seconds and FLOPs until then."""

TARGET = 0.8
"""The normalised score that agents are timed to: 800 on dm_control."""
AGGREGATES = {
    "IQM": statistics.iqm,
    "median": statistics.median,
    "mean": statistics.mean,
    "optimality gap": statistics.optimality_gap,
}


@dataclass(frozen=True)
class Curves:
    """One agent on one task: the evaluations of its runs."""

    seeds: tuple[int, ...]
    steps: Array
    """(T,) environment steps."""
    returns: Array
    """(runs, T)"""
    wall: Array
    """(runs, T) seconds of training until then."""
    flops: Array
    """(runs, T) floating-point operations of the updates until then; NaN where they were not counted."""

    def at(self, step: float) -> Array:
        """(runs,) scores of the last evaluation until ``step``, which is not before the first one."""
        return self.returns[:, np.flatnonzero(self.steps <= step)[-1]]


@dataclass(frozen=True)
class Scale:
    low: float
    high: float
    measured: bool
    """Not known for the task: from the lowest to the highest mean score at the end, of these very agents."""

    def normalise(self, scores: Array) -> Array:
        return (scores - self.low) / (self.high - self.low)

    @property
    def target(self) -> float:
        return self.low + TARGET * (self.high - self.low)


@dataclass(frozen=True)
class Task:
    """One task with the agents that were run on it."""

    env: str
    curves: dict[str, Curves]
    end: float
    """The last step that all agents have come to."""
    scale: Scale
    observe: str = "state"
    """What the agents saw, as in ``envs.make_env``."""

    def final(self, agent: str) -> Array:
        """(runs,) scores at the end."""
        return self.curves[agent].at(self.end)

    def normalised(self, agent: str) -> Array:
        return self.scale.normalise(self.final(agent))


@dataclass(frozen=True)
class Steps:
    """Environment steps to the target on one task, by agent."""

    task: Task
    runs: dict[str, Array]
    """(runs,); inf: not within the budget."""
    budgets: dict[str, float]
    """The last step at which it was looked."""

    def median(self, agent: str) -> float:
        return float(np.median(self.runs[agent]))


@dataclass(frozen=True)
class Comparison:
    """The judged agent beside one comparator, on the tasks that both were run on."""

    ours: str
    theirs: str
    tasks: list[Task]
    ratio: StepsRatio
    ratios: dict[str, StepsRatio]
    """The same for every task alone."""
    steps: dict[str, tuple[float, bool]]
    """By agent: the geometric mean over the tasks that count of the median steps to the target, and whether it is
    censored: steps of runs that never came there count as the budget."""
    probability: Interval
    """That a run of ours scores higher than a run of theirs."""
    lost: list[str]
    """Tasks on which ours is lower at the last step that both have come to, or needs more steps, with the numbers."""

    @property
    def ends(self) -> str:
        """The last steps that both have come to: 25k, or 25k to 100k."""
        return " to ".join(write_steps(end) for end in sorted({f(t.end for t in self.tasks) for f in (min, max)}))


@dataclass(frozen=True)
class Summary:
    title: str
    agents: list[str]
    tasks: list[Task]
    comparisons: list[Comparison]
    aggregates: dict[str, dict[str, Interval]]
    """By agent and name, over the tasks that every agent was run on."""
    left_out: list[str]
    """Runs that do not count, or not as they are, and why."""

    @property
    def common(self) -> list[Task]:
        """The tasks that every agent was run on."""
        return [task for task in self.tasks if len(task.curves) == len(self.agents)]

    def along(self, agent: str, name: str) -> list[tuple[float, Interval]]:
        """An aggregate of AGGREGATES over the common tasks, at every step at which all of them were evaluated."""
        curves = [(task.scale, task.curves[agent]) for task in self.common]
        steps = sorted(set.intersection(*(set(one.steps) for _, one in curves))) if curves else []
        scores = {step: [scale.normalise(one.at(step)) for scale, one in curves] for step in steps}
        return [(step, statistics.aggregate(AGGREGATES[name], found)) for step, found in scores.items()]


def summarise(
    title: str, rows: Sequence[Row], entries: Sequence[Entry], agents: Sequence[str], broken: Iterable[str] = ()
) -> Summary:
    """``agents`` in order, the judged one first; those without a score are left out.

    Args:
        broken: runs, as 'ENV AGENT seedK', that ended before they should have, beside those that say so themselves.

    Raises:
        UserError: nothing was evaluated.
    """
    scored = [row for row in rows if row["mode"] == "mode" and row["agent"] in agents]
    found, left_out = read_curves(scored, [entry for entry in entries if entry["agent"] in agents], broken)
    left_out += _drop_without_a_step_in_common(found)
    known = [agent for agent in agents if any(agent == key[0] for key in found)]
    if not known:
        raise UserError("these runs have no evaluation yet; let them run on, and make the report then")
    envs = list(dict.fromkeys(env for _, env in found))
    seen = {entry["env"]: entry["config"].get("observe", "state") for entry in entries}
    tasks = [
        _task(env, {agent: found[agent, env] for agent in known if (agent, env) in found}, seen.get(env, "state"))
        for env in envs
    ]
    common = [task for task in tasks if len(task.curves) == len(known)]
    aggregates: dict[str, dict[str, Interval]] = {}
    for agent in known if common else []:
        scores = [task.normalised(agent) for task in common]
        aggregates[agent] = {name: statistics.aggregate(function, scores) for name, function in AGGREGATES.items()}
    others = [agent for agent in known[1:] if agent != "random"] or known[1:]
    pairs = [_compare(known[0], other, tasks) for other in others]
    comparisons = [pair for pair in pairs if pair is not None]
    return Summary(title, known, tasks, comparisons, aggregates, left_out)


def read_curves(
    rows: Iterable[Row], entries: Sequence[Entry] = (), broken: Iterable[str] = ()
) -> tuple[dict[tuple[str, str], Curves], list[str]]:
    """By agent and task, at the steps that all of their runs have; and which runs do not count, or not as they are.

    A run that is finished counts. One that broke, or is named in ``broken``, keeps its last score up to where it was
    to come. Any other counts where no seed has come further, and else not.
    """
    runs: dict[tuple[str, str], dict[int, dict[float, Point]]] = defaultdict(lambda: defaultdict(dict))
    grids: dict[str, set[float]] = defaultdict(set)
    for row in rows:
        point = row["mean"], row["wall_s"], float(row.get("flops") or math.nan)
        runs[row["agent"], row["env"]][row["seed"]][snap(row["step"])] = point
        grids[row["env"]].add(snap(row["step"]))
    about = {_name(entry["env"], entry["agent"], entry["seed"]): entry for entry in entries}
    states = {name: entry["status"].get("state") for name, entry in about.items()}
    failed = {name for name, state in states.items() if state == "failed"} | set(broken)
    scored = {_name(env, agent, seed) for (agent, env), seeds in runs.items() for seed in seeds}
    found, left_out = {}, []
    for (agent, env), seeds in runs.items():
        end = max(max(points) for points in seeds.values())
        for seed, points in list(seeds.items()):
            name, last = _name(env, agent, seed), max(points)
            if name in failed:
                goal = max(end, _goal(about.get(name)))
                points |= dict.fromkeys((step for step in grids[env] | {goal} if last < step <= goal), points[last])
                if last < goal:
                    left_out.append(f"{name} broke after step {last:.0f}: its last score counts for all later steps")
            elif last < end and states.get(name) == "finished":
                left_out.append(f"{name} ended at step {last:.0f}: of the other seeds nothing later counts")
            elif last < end:
                del seeds[seed]
                left_out.append(f"{name} has come to step {last:.0f} of {end:.0f}: it does not count")
        steps = sorted(set.intersection(*(set(points) for points in seeds.values())))
        if not steps:
            left_out.append(f"{env} {agent}: its runs were evaluated at no step in common, so none counts")
            continue
        values = np.array([[points[step] for step in steps] for points in seeds.values()], np.float64)
        found[agent, env] = Curves(tuple(seeds), np.array(steps, np.float64), *np.moveaxis(values, -1, 0))
    for name in sorted((about.keys() | failed) - scored):
        left_out.append(f"{name} {'broke before its first evaluation' if name in failed else 'was not evaluated yet'}")
    return found, left_out


def _drop_without_a_step_in_common(found: dict[tuple[str, str], Curves]) -> list[str]:
    """Remove, of each task, the agents whose last evaluation is before another's first one; who, in words."""
    dropped = []
    for env in dict.fromkeys(env for _, env in found):
        while True:
            curves = {agent: one for (agent, other), one in found.items() if other == env}
            begin, end = max(one.steps[0] for one in curves.values()), min(one.steps[-1] for one in curves.values())
            if begin <= end:
                break
            agent = min(curves, key=lambda agent: curves[agent].steps[-1])
            del found[agent, env]
            dropped.append(f"{env} {agent} ended at step {end:.0f}, before others were evaluated: it does not count")
    return dropped


def _goal(entry: Entry | None) -> float:
    """The step that a run was to come to; 0 where it is not known."""
    return snap(entry["config"].get("training", {}).get("steps", 0)) if entry else 0.0


def snap(step: float) -> float:
    """Runs end some steps after their budget, as vectors and action repeat have it: three digits or thousands count."""
    return float(f"{step:.{max(3, len(str(int(step))) - 3)}g}")


def _name(env: str, agent: str, seed: int) -> str:
    return f"{env} {agent} seed{seed}"


def _task(env: str, curves: dict[str, Curves], observe: str) -> Task:
    end = min(float(one.steps[-1]) for one in curves.values())
    finals = {agent: float(one.at(end).mean()) for agent, one in curves.items()}
    return Task(env, curves, end, scale_of(env, finals), observe)


def scale_of(env: str, finals: Mapping[str, float]) -> Scale:
    """What counts as nothing and as everything; of a task that we do not know, by the agents' scores at the end."""
    known = reference_range(env)
    if known is not None:
        return Scale(*known, measured=False)
    low, high = finals.get("random", min(finals.values())), max(finals.values())
    return Scale(low, high if high > low else low + 1, measured=True)


# ---- two agents ----------------------------------------------------------------------------------


def steps_of(task: Task, agents: Sequence[str]) -> Steps:
    """Steps to the target, seen at the evaluations that all agents share, and at each one's own beyond them."""
    shared = set.intersection(*(set(task.curves[agent].steps) for agent in agents))
    end = min(task.curves[agent].steps[-1] for agent in agents)
    runs, budgets = {}, {}
    for agent in agents:
        curves = task.curves[agent]
        seen = np.array([not shared or step in shared or step > end for step in curves.steps])
        runs[agent] = statistics.steps_to_threshold(curves.steps[seen], curves.returns[:, seen], task.scale.target)
        budgets[agent] = float(curves.steps[seen][-1])
    return Steps(task, runs, budgets)


def _compare(ours: str, theirs: str, tasks: Sequence[Task]) -> Comparison | None:
    """None where they share no task."""
    shared = [_pair(task, ours, theirs) for task in tasks if ours in task.curves and theirs in task.curves]
    if not shared:
        return None
    found = [steps_of(task, [ours, theirs]) for task in shared]
    ratios = {steps.task.env: _ratio([steps], ours, theirs) for steps in found}
    x, y = ([task.normalised(agent) for task in shared] for agent in (ours, theirs))
    better = statistics.probability_of_improvement(x, y)
    known = [steps for steps in found if any(math.isfinite(steps.median(agent)) for agent in (ours, theirs))]
    means = {agent: _geometric_mean(known, agent) for agent in (ours, theirs)}
    lost = [text for task in shared if (text := _lost(task, ours, theirs, ratios[task.env]))]
    return Comparison(ours, theirs, shared, _ratio(found, ours, theirs), ratios, means, better, lost)


def _pair(task: Task, ours: str, theirs: str) -> Task:
    """The task with these two alone: they are compared where both have come to."""
    curves = {agent: task.curves[agent] for agent in (ours, theirs)}
    return replace(task, curves=curves, end=min(float(one.steps[-1]) for one in curves.values()))


def _ratio(found: Sequence[Steps], ours: str, theirs: str) -> StepsRatio:
    a, b = ([steps.runs[agent] for steps in found] for agent in (ours, theirs))
    budget_a, budget_b = ([steps.budgets[agent] for steps in found] for agent in (ours, theirs))
    return statistics.ratio_of_steps(a, b, budget_a, budget_b)


def _geometric_mean(found: Sequence[Steps], agent: str) -> tuple[float, bool]:
    """Of the medians, and whether one of them is censored."""
    medians = []
    for steps in found:
        runs = steps.runs[agent]
        medians.append(float(np.median(np.where(np.isinf(runs), steps.budgets[agent], runs))))
    censored = any(math.isinf(steps.median(agent)) for steps in found)
    return (float(np.exp(np.mean(np.log(medians)))) if medians else math.nan), censored


def _lost(task: Task, ours: str, theirs: str, ratio: StepsRatio) -> str:
    a, b = task.final(ours), task.final(theirs)
    gap = statistics.difference_of_means(a, b)
    noise = ", within the noise of the seeds" if gap.high >= 0 else ""
    scores = f"{a.mean():.4g} against {b.mean():.4g} after {write_steps(task.end)} steps{noise}"
    reasons = [scores] if gap.value < 0 else []
    if ratio.value < 1:
        reasons.append(f"{1 / ratio.value:.2g} times the steps to {task.scale.target:.4g}")
    return f"{task.env} ({', '.join(reasons)})" if reasons else ""


# ---- words ---------------------------------------------------------------------------------------


def target_name(tasks: Sequence[Task]) -> str:
    """800 where all tasks have one scale, else a share of it."""
    targets = {task.scale.target for task in tasks}
    return f"{targets.pop():.4g}" if len(targets) == 1 else f"{TARGET:.0%} of the full score"


def headline(pair: Comparison, suite: str) -> str:
    """One sentence, with comparator, tasks, and what is not known."""
    count, left_out = len(pair.tasks), pair.ratio.left_out
    where = pair.tasks[0].env if count == 1 else f"{count} tasks ({suite})"
    target = target_name(pair.tasks)
    if math.isnan(pair.ratio.value):
        return f"Neither {pair.ours} nor {pair.theirs} reaches {target} on {where} within the budget."
    ours, theirs = (_steps_text(*pair.steps[agent]) for agent in (pair.ours, pair.theirs))
    where = f"{count - left_out} of {where}; elsewhere neither reaches it" if left_out else where
    return f"{pair.ours} reaches {target} in {ours} steps, {pair.theirs} in {theirs}: {times(pair.ratio)}, on {where}."


def times(ratio: StepsRatio) -> str:
    """'3.1 times fewer [2.2, 4.0]', or how many times more where that is so."""
    if math.isnan(ratio.value):
        return "neither reached it"
    value, low, high, bound = ratio.value, ratio.low, ratio.high, ratio.censored
    word = "times fewer"
    if value < 1 or (bound == "at most" and value == 1):  # "at most 1.0 times fewer" hides who is ahead
        value, low, high = 1 / value, 1 / high if high else math.inf, 1 / low if low else math.inf
        bound, word = {"at least": "at most", "at most": "at least"}.get(bound, bound), "times more"
    prefix = f"{bound} " if bound in ("at least", "at most") else ""
    interval = "(n=1: no interval)" if ratio.n == 1 else f"[{_factor(low)}, {_factor(high)}]"
    doubt = ", each where the other did not reach it: no bound" if bound == "neither bound" else ""
    return f"{prefix}{_factor(value)} {word} {interval}{doubt}"


def short_ratio(ratio: StepsRatio) -> str:
    """For a table: '≥ 3.1 [2.2, ∞]'; below 1 ours needs more steps."""
    if math.isnan(ratio.value):
        return "neither"
    sign = {"at least": "≥ ", "at most": "≤ ", "neither bound": "? "}.get(ratio.censored, "")
    if ratio.n == 1:
        return f"{sign}{ratio.value:.2f}"
    high = "∞" if math.isinf(ratio.high) else f"{ratio.high:.2f}"
    return f"{sign}{ratio.value:.2f} [{ratio.low:.2f}, {high}]"


def _factor(value: float) -> str:
    return "∞" if math.isinf(value) else f"{value:.1f}" if value < 10 else f"{value:.0f}"


def _steps_text(count: float, censored: bool) -> str:
    return f"{'more than ' if censored else ''}{write_steps(count)}"


def write_steps(count: float) -> str:
    """12300 -> 12k, in two or three digits."""
    if count < 1000:
        return f"{count:.0f}"
    unit, size = ("k", 1e3) if count < 999_500 else ("M", 1e6)
    return f"{float(f'{count / size:.3g}'):g}{unit}"


def plain(summary: Summary) -> dict[str, Any]:
    """The numbers for summary.json; NaN and infinity as null."""
    return {
        "title": summary.title,
        "agents": summary.agents,
        "headlines": [headline(pair, summary.title) for pair in summary.comparisons],
        "comparisons": [
            {
                "ours": pair.ours,
                "theirs": pair.theirs,
                "target": target_name(pair.tasks),
                "steps": {agent: {"value": _finite(v), "censored": c} for agent, (v, c) in pair.steps.items()},
                "ratio": _record(pair.ratio),
                "ratio_by_task": {env: _record(ratio) for env, ratio in pair.ratios.items()},
                "probability_of_improvement": _record(pair.probability),
                "lost": pair.lost,
            }
            for pair in summary.comparisons
        ],
        "aggregates": {a: {n: _record(i) for n, i in found.items()} for a, found in summary.aggregates.items()},
        "tasks": {
            task.env: {
                "end": task.end,
                "scale": [task.scale.low, task.scale.high],
                "scale_measured": task.scale.measured,
                "agents": {
                    agent: {
                        "seeds": list(curves.seeds),
                        "steps": curves.steps.tolist(),
                        "returns": curves.returns.tolist(),
                        "final": _record(statistics.interval_of_mean(task.final(agent))),
                    }
                    for agent, curves in task.curves.items()
                },
            }
            for task in summary.tasks
        },
        "left_out": summary.left_out,
    }


def _record(found: Interval | StepsRatio) -> dict[str, Any]:
    return {name: _finite(value) for name, value in vars(found).items()}


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
