"""Statistics over runs and tasks: intervals, aggregates, profiles, and environment steps to reach a threshold.

The aggregates are those of Agarwal et al., "Deep RL at the edge of the statistical precipice" (NeurIPS 2021), with
percentile bootstrap intervals in which runs are resampled within each task (stratified): tasks are fixed, runs are
random. Scores are one number a run, for example the mean return of its last evaluation.

    scores       (runs, tasks), or a list with one (runs,) array a task, whose numbers of runs may differ
    steps        (T,) environment steps of the evaluations, rising, action repeat included
    returns      (runs, T) each run's evaluations at these steps

Every task counts the same, however many runs it has. A score that is NaN or infinite is an error (ValueError): a
run that diverged is to be counted with what it earned, not to vanish. With one run there is no interval.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

Scores = np.ndarray | Sequence[np.ndarray]
Numbers = np.float64 | np.ndarray
Statistic = Callable[[np.ndarray], Numbers]
"""From (..., runs, tasks) to (...)."""

CHUNK = 4_000_000
"""Resampled scores in memory at a time."""


@dataclass(frozen=True)
class Interval:
    """An estimate and its interval; `low` and `high` are NaN where `n`, the runs of the task with fewest, is 1."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        if self.n == 1:
            return f"{_short(self.value)} (n=1: no interval)"
        return f"{_short(self.value)} [{_short(self.low)}, {_short(self.high)}]"


@dataclass(frozen=True)
class StepsRatio:
    """How many times fewer steps; see ratio_of_steps for what `censored` says.

    `n` is the number of runs of the task with fewest, `tasks` how many tasks count, `left_out` how many do not
    because neither agent reached the threshold there.
    """

    value: float
    low: float
    high: float
    censored: str
    n: int
    tasks: int
    left_out: int


def interval_of_mean(scores: np.ndarray, confidence: float = 0.95, replicates: int = 10_000, seed: int = 0) -> Interval:
    """The mean of one task's runs (runs,) and its percentile bootstrap interval."""
    return aggregate(mean, [np.asarray(scores)], confidence, replicates, seed)


def difference_of_means(
    x: np.ndarray, y: np.ndarray, confidence: float = 0.95, replicates: int = 10_000, seed: int = 0
) -> Interval:
    """Mean of one task's runs `x` less that of others `y`, (runs,) each, and its percentile bootstrap interval."""
    (x,), (y,) = _per_task([x]), _per_task([y])
    n, value = min(len(x), len(y)), float(x.mean() - y.mean())
    if n == 1:
        return Interval(value, math.nan, math.nan, n)
    rng = np.random.default_rng(seed)
    replicated = _weights(rng, replicates, len(x)) @ x - _weights(rng, replicates, len(y)) @ y
    low, high = np.quantile(replicated, _ends(confidence))
    return Interval(value, float(low), float(high), n)


def iqm(scores: np.ndarray) -> Numbers:
    """Interquartile mean of all runs and tasks (..., runs, tasks): the middle half, a quarter cut off on each side."""
    flat = np.asarray(scores, float)
    flat = flat.reshape(*flat.shape[:-2], -1)
    count = flat.shape[-1]
    cut = count // 4
    middle = np.partition(flat, (cut, count - cut - 1), axis=-1)[..., cut : count - cut]
    return middle.mean(-1)


def mean(scores: np.ndarray) -> Numbers:
    """Mean of all runs and tasks (..., runs, tasks)."""
    return np.mean(scores, axis=(-2, -1))


def median(scores: np.ndarray) -> Numbers:
    """Median over tasks of the tasks' means (..., runs, tasks)."""
    return np.median(np.mean(scores, axis=-2), axis=-1)


def optimality_gap(scores: np.ndarray, target: float = 1.0) -> Numbers:
    """How far runs stay below `target` on average (..., runs, tasks); what lies above it does not count."""
    return target - np.minimum(scores, target).mean((-2, -1))


def aggregate(
    function: Statistic, scores: Scores, confidence: float = 0.95, replicates: int = 2000, seed: int = 0
) -> Interval:
    """One number over runs and tasks and its stratified percentile bootstrap interval.

    `function` is iqm, mean, median, optimality_gap or another of (..., runs, tasks). Where tasks differ in their
    numbers of runs, each task's runs are repeated until all are equally long, so that tasks weigh the same.
    """
    tasks = _per_task(scores)
    n = min(map(len, tasks))
    value = float(function(_stack(tasks)))
    if n == 1:
        return Interval(value, math.nan, math.nan, n)
    replicated = [function(_stack(drawn)) for drawn in _resampled(tasks, replicates, seed)]
    low, high = np.quantile(np.concatenate(replicated), _ends(confidence))
    return Interval(value, float(low), float(high), n)


def probability_of_improvement(
    x: Scores, y: Scores, confidence: float = 0.95, replicates: int = 2000, seed: int = 0
) -> Interval:
    """P(X > Y) + P(X = Y) / 2 for a run of `x` and a run of `y` on the same task, averaged over tasks.

    `x` and `y` have the same tasks in the same order; their numbers of runs may differ.
    """
    ours, theirs = _per_task(x), _per_task(y)
    _check_same_tasks(ours, theirs)
    n = min(map(len, [*ours, *theirs]))
    wins = [(a[:, None] > b) + 0.5 * (a[:, None] == b) for a, b in zip(ours, theirs)]  # (runs of x, runs of y)
    value = float(np.mean([win.mean() for win in wins]))
    if n == 1:
        return Interval(value, math.nan, math.nan, n)
    rng = np.random.default_rng(seed)
    replicated = np.zeros(replicates)
    for win in wins:
        weight_x, weight_y = (_weights(rng, replicates, runs) for runs in win.shape)
        replicated += np.einsum("bi,ij,bj->b", weight_x, win, weight_y, optimize=True) / len(wins)
    low, high = np.quantile(replicated, _ends(confidence))
    return Interval(value, float(low), float(high), n)


def performance_profile(
    scores: Scores, thresholds: np.ndarray, confidence: float = 0.95, replicates: int = 2000, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Share of runs with a score above each threshold, and a pointwise band: value, low, high (len(thresholds),).

    The band is NaN where a task has only one run.
    """
    tasks = _per_task(scores)
    above = [(task[:, None] > np.asarray(thresholds)).astype(float) for task in tasks]  # (runs, thresholds)
    value = np.mean([task.mean(0) for task in above], axis=0)
    if min(map(len, tasks)) == 1:
        return value, np.full_like(value, math.nan), np.full_like(value, math.nan)
    rng = np.random.default_rng(seed)
    replicated = np.mean([_weights(rng, replicates, len(task)) @ task for task in above], axis=0)
    low, high = np.quantile(replicated, _ends(confidence), axis=0)
    return value, low, high


def steps_to_threshold(steps: np.ndarray, returns: np.ndarray, threshold: float) -> np.ndarray:
    """Environment steps of each run's first evaluation at or above `threshold` (runs,); inf: not within the budget.

    Nothing is interpolated: a run is credited only with a return that was measured. So the result depends on how
    often was evaluated; compare agents that were evaluated at the same steps.
    """
    steps, returns = _curves(steps, returns)
    reached = returns >= threshold
    return np.where(reached.any(1), steps[reached.argmax(1)], math.inf)


def ratio_of_steps(
    ours: Sequence[np.ndarray],
    theirs: Sequence[np.ndarray],
    budget_ours: float | Sequence[float],
    budget_theirs: float | Sequence[float],
    confidence: float = 0.95,
    replicates: int = 2000,
    seed: int = 0,
) -> StepsRatio:
    """How many times fewer steps `ours` needs than `theirs`; above 1 is in favour of `ours`.

    Each list has one (runs,) array a task, from steps_to_threshold: inf is a run that did not reach the threshold
    within its agent's budget (censored), which is the step of its last evaluation: one for all tasks, or one for
    each. A task's ratio is median(theirs) / median(ours); the value is the geometric mean of the tasks' ratios.

    Censored runs count: they stand last in the order from which the median is taken, so a median is known as long
    as more than half of the runs reached the threshold. A median is censored where it depends on a run that did not
    (half of the runs or more); all that is known is that it is at least what it would be had these runs reached the
    threshold at the budget, and this is what it counts as. What this makes of the value is told by `censored`:

        ""               no median is censored: an estimate
        "at least"       theirs are, in some task, and ours are not: a lower bound
        "at most"        ours are, in some task, and theirs are not: an upper bound
        "neither bound"  theirs in one task, ours in another: no bound. Here censored runs of ours count with the
                         larger of the task's two budgets, so that a small budget is no advantage
        "unknown"        in no task did either median reach the threshold: value and interval are NaN

    A task where both medians are censored says nothing about the ratio: it is left out and counted in `left_out`.
    (So all other tasks may still be in favour of one agent: name the tasks that were left out beside the value.)

    The interval resamples runs within each task, and takes in every replicate the worst case for its low end (ours:
    if censored, never; theirs: if censored, at the budget) and the best case for its high end. So `low` is 0 and
    `high` inf where censored runs leave that end open. NaN where a task has a single run of either agent.
    """
    _check_same_tasks(ours, theirs)
    budgets = (np.broadcast_to(budget, len(ours)) for budget in (budget_ours, budget_theirs))
    tasks = [_Timed(_check_steps(a, p), _check_steps(b, q), p, q) for a, b, p, q in zip(ours, theirs, *budgets)]
    known = [task for task in tasks if np.isfinite(np.median(task.ours)) or np.isfinite(np.median(task.theirs))]
    left_out = len(tasks) - len(known)
    n = min(min(len(task.ours), len(task.theirs)) for task in tasks)
    if not known:
        return StepsRatio(math.nan, math.nan, math.nan, "unknown", n, 0, left_out)
    ours_censored = any(np.isinf(np.median(task.ours)) for task in known)
    theirs_censored = any(np.isinf(np.median(task.theirs)) for task in known)
    censored = {
        (False, False): "",
        (False, True): "at least",
        (True, False): "at most",
        (True, True): "neither bound",
    }[ours_censored, theirs_censored]
    logs = []
    for a, b, budget_a, budget_b in known:
        cap = max(budget_a, budget_b) if censored == "neither bound" else budget_a
        logs.append(np.log(np.median(_at(b, budget_b)) / np.median(_at(a, cap))))
    value = float(np.exp(np.mean(logs)))
    if n == 1:
        return StepsRatio(value, math.nan, math.nan, censored, n, len(known), left_out)
    low, high = _interval_of_ratio(known, confidence, replicates, seed)
    return StepsRatio(value, low, high, censored, n, len(known), left_out)


class _Timed(NamedTuple):
    """One task's steps to the threshold (runs,), and the budgets within which they were looked for."""

    ours: np.ndarray
    theirs: np.ndarray
    budget_ours: float
    budget_theirs: float


def _interval_of_ratio(
    tasks: Sequence[_Timed], confidence: float, replicates: int, seed: int
) -> tuple[float, float]:
    rng = np.random.default_rng(seed)
    worst, best = np.zeros(replicates), np.zeros(replicates)  # sums of log ratios
    for *pair, budget_ours, budget_theirs in tasks:
        drawn = [runs[rng.integers(len(runs), size=(replicates, len(runs)))] for runs in pair]
        never_ours, never_theirs = (np.log(np.median(runs, axis=1)) for runs in drawn)
        budgets = (budget_ours, budget_theirs)
        ours, theirs = (np.log(np.median(_at(runs, budget), axis=1)) for runs, budget in zip(drawn, budgets))
        worst += theirs - never_ours
        best += never_theirs - ours
    ends = _ends(confidence)
    low = np.quantile(worst, ends[0], method="lower")  # interpolation between infinities is NaN
    high = np.quantile(best, ends[1], method="higher")
    return float(np.exp(low / len(tasks))), float(np.exp(high / len(tasks)))


def _at(steps: np.ndarray, budget: float) -> np.ndarray:
    """Steps with the runs that did not reach the threshold at `budget`."""
    return np.where(np.isinf(steps), budget, steps)


def _resampled(tasks: Sequence[np.ndarray], replicates: int, seed: int) -> Iterator[list[np.ndarray]]:
    """Each task's runs drawn with replacement, (chunk, runs) a task, until there were `replicates`."""
    rng = np.random.default_rng(seed)
    size = max(1, CHUNK // (_length(tasks) * len(tasks)))
    for start in range(0, replicates, size):
        count = min(size, replicates - start)
        yield [task[rng.integers(len(task), size=(count, len(task)))] for task in tasks]


def _weights(rng: np.random.Generator, replicates: int, runs: int) -> np.ndarray:
    """How often each run is drawn when `runs` are drawn with replacement, as a share (replicates, runs)."""
    return rng.multinomial(runs, np.full(runs, 1 / runs), size=replicates) / runs


def _length(tasks: Sequence[np.ndarray]) -> int:
    return math.lcm(*(task.shape[-1] for task in tasks))


def _stack(tasks: Sequence[np.ndarray]) -> np.ndarray:
    """(..., runs of the task) each to (..., runs, tasks), runs repeated where tasks differ in their number."""
    length = _length(tasks)
    return np.stack([np.repeat(task, length // task.shape[-1], axis=-1) for task in tasks], axis=-1)


def _per_task(scores: Scores) -> list[np.ndarray]:
    """One (runs,) array a task."""
    if isinstance(scores, np.ndarray):
        if scores.ndim != 2:
            raise ValueError(f"Scores are (runs, tasks) or a list with one array a task, not of shape {scores.shape}.")
        scores = list(scores.T)
    tasks = [np.asarray(task, float) for task in scores]
    if not tasks or any(task.ndim != 1 or not len(task) for task in tasks):
        raise ValueError(f"Every task needs one score a run: shapes {[task.shape for task in tasks]}.")
    if not all(np.isfinite(task).all() for task in tasks):
        raise ValueError("Scores must be finite; give a run that diverged the score it earned, do not leave it out.")
    return tasks


def _curves(steps: np.ndarray, returns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    steps, returns = np.asarray(steps, float), np.asarray(returns, float)
    if returns.ndim != 2 or not steps.size or steps.shape != returns.shape[1:]:
        raise ValueError(f"Steps (T,) and returns (runs, T) are wanted, not {steps.shape} and {returns.shape}.")
    if steps[0] < 0 or (np.diff(steps) <= 0).any() or steps[-1] == 0:
        raise ValueError(f"Steps must rise from 0 or later, not {steps.tolist()}.")
    if not np.isfinite(returns).all():
        raise ValueError("Returns must be finite; cut steps and returns to the evaluations that every run has.")
    return steps, returns


def _check_steps(runs: np.ndarray, budget: float) -> np.ndarray:
    runs = np.asarray(runs, float)
    finite = runs[np.isfinite(runs)]
    if runs.ndim != 1 or not len(runs) or np.isnan(runs).any() or (finite <= 0).any() or (finite > budget).any():
        raise ValueError(
            f"Steps to a threshold (runs,) lie above 0 and within the budget {budget:g}, or are inf: {runs}."
        )
    return runs


def _check_same_tasks(x: Sequence[np.ndarray], y: Sequence[np.ndarray]) -> None:
    if len(x) != len(y) or not len(x):
        raise ValueError(f"Both agents need scores of the same tasks, at least one: {len(x)} and {len(y)}.")


def _ends(confidence: float) -> tuple[float, float]:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, not {confidence}.")
    return (1 - confidence) / 2, (1 + confidence) / 2


def _short(number: float) -> str:
    return f"{number:.0f}" if abs(number) >= 100 else f"{number:.3g}"
