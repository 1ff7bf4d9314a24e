"""Statistics over runs and tasks, against scipy and against cases small enough to do by hand."""

import math

import numpy as np
import pytest
import scipy.stats

from benchmarks import statistics
from benchmarks.report import TOO_NARROW

INF = math.inf


def scores(runs: int = 7, tasks: int = 5, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).gamma(2.0, 0.4, (runs, tasks))


def test_iqm_is_scipys_trimmed_mean() -> None:
    for runs, tasks in ((1, 1), (1, 3), (3, 3), (7, 5), (8, 2)):
        some = scores(runs, tasks)
        assert statistics.iqm(some) == pytest.approx(scipy.stats.trim_mean(some, 0.25, axis=None))


def test_aggregates_by_hand_and_batched() -> None:
    one = np.array([[0.0, 1.0, 0.9], [0.4, 2.0, 0.1]])  # (runs, tasks)
    assert statistics.mean(one) == pytest.approx(4.4 / 6)
    assert statistics.median(one) == pytest.approx(0.5)  # of 0.2, 1.5, 0.5
    assert statistics.optimality_gap(one) == pytest.approx((1 + 0 + 0.1 + 0.6 + 0 + 0.9) / 6)  # 2.0 counts as 1.0
    assert statistics.optimality_gap(one, target=2.0) == pytest.approx(2 - 4.4 / 6)
    batch = np.stack([scores(seed=seed) for seed in range(4)]).reshape(2, 2, 7, 5)
    for function in (statistics.iqm, statistics.mean, statistics.median, statistics.optimality_gap):
        got = np.asarray(function(batch))
        assert got.shape == (2, 2)
        assert got[1, 0] == pytest.approx(function(batch[1, 0]))


def test_interval_of_mean_is_scipys_percentile_bootstrap() -> None:
    runs = scores()[:, 0] * 1000
    ours = statistics.interval_of_mean(runs)
    theirs = scipy.stats.bootstrap((runs,), np.mean, method="percentile", n_resamples=10_000, rng=1)
    width = ours.high - ours.low
    assert ours.value == pytest.approx(runs.mean())
    assert ours.low == pytest.approx(theirs.confidence_interval.low, abs=0.03 * width)
    assert ours.high == pytest.approx(theirs.confidence_interval.high, abs=0.03 * width)


def test_the_interval_of_a_difference_is_scipys() -> None:
    ours, theirs = scores()[:, 0], scores()[:6, 1]
    found = statistics.difference_of_means(ours, theirs)
    expected = scipy.stats.bootstrap(
        (ours, theirs), lambda x, y, axis: x.mean(axis) - y.mean(axis), method="percentile", n_resamples=10_000, rng=1
    ).confidence_interval
    width = found.high - found.low
    assert found.value == pytest.approx(ours.mean() - theirs.mean()) and found.n == 6
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.03 * width)
    assert math.isnan(statistics.difference_of_means(ours, theirs[:1]).high)


def test_stratified_interval_is_that_of_resampling_each_task() -> None:
    some = scores()
    rng = np.random.default_rng(1)
    drawn = [np.mean([rng.choice(task, len(task)).mean() for task in some.T]) for _ in range(2000)]
    ours = statistics.aggregate(statistics.mean, some)
    width = ours.high - ours.low
    assert (ours.low, ours.high) == pytest.approx(tuple(np.quantile(drawn, (0.025, 0.975))), abs=0.06 * width)


def test_the_interval_of_ten_runs_covers_the_true_mean() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(400):
        interval = statistics.interval_of_mean(rng.normal(700, 120, 10), replicates=1000, seed=trial)
        hits += interval.low <= 700 <= interval.high
    assert 0.85 <= hits / 400 <= 0.98


def test_the_interval_over_tasks_covers_the_true_mean() -> None:
    rng = np.random.default_rng(0)
    centres = np.array([0.2, 0.9, 0.5, 0.7])
    hits = 0
    for trial in range(300):
        drawn = [rng.normal(centre, 0.1, runs) for centre, runs in zip(centres, (10, 10, 5, 10))]
        interval = statistics.aggregate(statistics.mean, drawn, replicates=500, seed=trial)
        hits += interval.low <= centres.mean() <= interval.high
    assert 0.85 <= hits / 300 <= 0.98


def test_tasks_with_fewer_runs_weigh_the_same() -> None:
    ragged = [np.array([1.0, 2.0, 3.0]), np.array([10.0, 20.0])]
    interval = statistics.aggregate(statistics.mean, ragged)
    assert (interval.value, interval.n) == (pytest.approx(8.5), 2)
    assert interval.low < 8.5 < interval.high
    even = [np.array([1.0, 2.0, 3.0]), np.array([10.0, 10.0, 10.0])]
    same = statistics.aggregate(statistics.iqm, [even[0], np.array([10.0])])
    assert same.value == statistics.aggregate(statistics.iqm, even).value


def test_chunks_change_nothing_but_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = statistics.aggregate(statistics.iqm, scores(), replicates=600)
    monkeypatch.setattr(statistics, "CHUNK", 1000)
    parts = statistics.aggregate(statistics.iqm, scores(), replicates=600)
    assert parts.value == whole.value
    assert (parts.low, parts.high) == pytest.approx((whole.low, whole.high), rel=0.05)


def test_one_run_has_no_interval() -> None:
    one = statistics.interval_of_mean(np.array([812.4]))
    assert str(one) == "812 (n=1: no interval)"
    assert math.isnan(one.low) and math.isnan(one.high)
    assert statistics.aggregate(statistics.iqm, [np.array([1.0, 2.0]), np.array([3.0])]).n == 1
    assert math.isnan(statistics.probability_of_improvement(np.ones((5, 1)), np.ones((1, 1))).low)
    assert np.isnan(statistics.performance_profile(np.ones((1, 3)), np.array([0.5]))[1]).all()
    ratio = statistics.ratio_of_steps([np.array([10.0])], [np.array([20.0])], 100, 100)
    assert ratio.value == pytest.approx(2) and math.isnan(ratio.low) and math.isnan(ratio.high)


def test_intervals_read_well() -> None:
    assert str(statistics.Interval(812.4, 790.1, 834.6, 5)) == "812 [790, 835]"
    assert str(statistics.Interval(0.8314, 0.79, 0.8449, 5)) == "0.831 [0.79, 0.845]"
    assert str(statistics.Interval(12345.6, 9000.0, INF, 5)) == "12346 [9000, inf]"


def test_probability_of_improvement_is_mann_whitneys() -> None:
    x, y = np.round(scores(9, 3, 1), 1), np.round(scores(6, 3, 2), 1)  # rounded: ties
    u = [scipy.stats.mannwhitneyu(x[:, task], y[:, task]).statistic / (9 * 6) for task in range(3)]
    ours = statistics.probability_of_improvement(x, y)
    assert ours.value == pytest.approx(np.mean(u))
    assert ours.low < ours.value < ours.high
    assert statistics.probability_of_improvement(y, x).value == pytest.approx(1 - ours.value)
    assert statistics.probability_of_improvement(x, x).value == pytest.approx(0.5)


def test_interval_of_improvement_is_that_of_resampling() -> None:
    x, y = scores(8, 2, 1), scores(8, 2, 2)
    rng = np.random.default_rng(3)
    drawn = []
    for _ in range(2000):
        shares = [np.mean(rng.choice(a, 8)[:, None] > rng.choice(b, 8)) for a, b in zip(x.T, y.T)]
        drawn.append(np.mean(shares))
    ours = statistics.probability_of_improvement(x, y)
    assert (ours.low, ours.high) == pytest.approx(tuple(np.quantile(drawn, (0.025, 0.975))), abs=0.03)


def test_performance_profile_counts_runs_above() -> None:
    some = np.array([[0.1, 0.5], [0.3, 0.9]])
    value, low, high = statistics.performance_profile(some, np.array([0.0, 0.3, 0.6, 1.0]))
    assert value.tolist() == [1.0, 0.5, 0.25, 0.0]  # 0.3 is not above 0.3
    assert (low <= value).all() and (value <= high).all()
    assert (low[2], high[2]) == (0.0, 0.5)  # the task whose runs are all below never gets above
    ragged = statistics.performance_profile([np.array([1.0, 0.0, 0.0]), np.array([1.0, 1.0])], np.array([0.5]))[0]
    assert ragged.tolist() == [pytest.approx((1 / 3 + 1) / 2)]


def test_steps_to_threshold_takes_the_first_evaluation_there() -> None:
    steps = np.array([10, 20, 40])
    returns = np.array([[0, 5, 9], [9, 0, 0], [0, 0, 4.9], [0, 4, 6]])
    assert statistics.steps_to_threshold(steps, returns, 5.0).tolist() == [20, 10, INF, 40]


def test_ratio_of_steps_by_hand() -> None:
    ours = [np.array([10.0, 20.0, 30.0]), np.array([50.0, 50.0, 50.0])]
    theirs = [np.array([80.0, 80.0, INF]), np.array([50.0, 60.0, 40.0])]
    ratio = statistics.ratio_of_steps(ours, theirs, 100, 100)
    assert ratio.value == pytest.approx(2.0)  # of 80 / 20 and 50 / 50: two of three runs reached it, so 80 is known
    assert (ratio.censored, ratio.n, ratio.tasks, ratio.left_out) == ("", 3, 2, 0)
    assert ratio.high == INF  # many a resample of (80, 80, inf) has a censored median
    assert 1.0 < ratio.low < 2.0


def test_ratio_of_steps_interval_without_censoring() -> None:
    rng = np.random.default_rng(0)
    ours, theirs = [rng.uniform(10, 20, 41)], [rng.uniform(40, 80, 41)]
    drawn = [np.median(rng.choice(theirs[0], 41)) / np.median(rng.choice(ours[0], 41)) for _ in range(2000)]
    ratio = statistics.ratio_of_steps(ours, theirs, 100, 100)
    assert (ratio.low, ratio.high) == pytest.approx(tuple(np.quantile(drawn, (0.025, 0.975))), rel=0.03)


def test_a_censored_comparator_gives_a_lower_bound() -> None:
    ratio = statistics.ratio_of_steps([np.array([10.0, 20.0, 20.0])], [np.array([90.0, INF, INF])], 100, 100)
    assert (ratio.value, ratio.censored, ratio.high) == (pytest.approx(5.0), "at least", INF)
    half = statistics.ratio_of_steps([np.array([10.0, 10.0])], [np.array([60.0, INF])], 100, 100)
    assert (half.value, half.censored) == (pytest.approx(8.0), "at least")  # (60 + 100) / 2 at least


def test_a_censored_run_of_ours_gives_an_upper_bound() -> None:
    ratio = statistics.ratio_of_steps([np.array([10.0, INF, INF])], [np.array([50.0, 50.0, 50.0])], 100, 200)
    assert (ratio.value, ratio.censored, ratio.low) == (pytest.approx(0.5), "at most", 0.0)


def test_one_failed_run_of_ours_opens_the_low_end() -> None:
    ratio = statistics.ratio_of_steps([np.array([10.0] * 4 + [INF])], [np.full(5, 50.0)], 100, 100)
    assert (ratio.value, ratio.censored) == (pytest.approx(5.0), "")
    assert ratio.low == 0.0  # 5.8 % of the resamples have a censored median


def test_each_reached_it_where_the_other_did_not() -> None:
    never = np.full(3, INF)
    ours, theirs = [np.full(3, 10.0), never], [never, np.full(3, 80.0)]
    ratio = statistics.ratio_of_steps(ours, theirs, 50, 100)
    assert ratio.censored == "neither bound"
    assert ratio.value == pytest.approx(math.sqrt(100 / 10 * 80 / 100))  # not 80 / 50: that would favour us
    assert (ratio.low, ratio.high) == (0.0, INF)


def test_tasks_that_neither_reached_are_left_out_and_counted() -> None:
    never = np.full(3, INF)
    one = statistics.ratio_of_steps([np.full(3, 10.0), never], [np.full(3, 20.0), never], 100, 100)
    assert (one.value, one.tasks, one.left_out) == (pytest.approx(2.0), 1, 1)
    assert (one.low, one.high) == (pytest.approx(2.0), pytest.approx(2.0))
    none = statistics.ratio_of_steps([never], [never], 50, 100)
    assert math.isnan(none.value) and math.isnan(none.low) and math.isnan(none.high)
    assert (none.censored, none.tasks) == ("unknown", 0)


def test_the_ratio_turned_around_is_its_inverse() -> None:
    rng = np.random.default_rng(0)
    ours, theirs = [rng.uniform(10, 60, 5), rng.uniform(10, 90, 5)], [rng.uniform(40, 80, 5), np.full(5, INF)]
    one = statistics.ratio_of_steps(ours, theirs, 100, 100)
    other = statistics.ratio_of_steps(theirs, ours, 100, 100)
    assert (one.censored, other.censored) == ("at least", "at most")
    assert one.value * other.value == pytest.approx(1)


def test_a_task_s_own_budget_bounds_its_ratio() -> None:
    """Another task's smaller budget changes nothing, and a task that only they reached does not vanish."""
    never = np.full(3, INF)
    ours, theirs = [np.full(3, 10.0), never], [np.full(3, 50.0), np.full(3, 50.0)]
    ratio = statistics.ratio_of_steps(ours, theirs, [100, 25], [100, 100])
    assert (ratio.censored, ratio.tasks, ratio.left_out) == ("at most", 2, 0)
    assert ratio.value == pytest.approx(math.sqrt(5 * 50 / 25)) and ratio.low == 0
    ratio = statistics.ratio_of_steps(ours, [never, np.full(3, 50.0)], [100, 25], [200, 100])
    assert ratio.censored == "neither bound"
    assert ratio.value == pytest.approx(math.sqrt(200 / 10 * 50 / 100))  # the larger of the task's two


@pytest.mark.parametrize(("runs", "covered"), [(2, 0.80), (3, 0.85)])
def test_intervals_over_few_runs_are_too_narrow_by_what_the_report_says(runs: int, covered: float) -> None:
    rng, hits = np.random.default_rng(1), 0
    for seed in range(300):
        found = statistics.aggregate(statistics.mean, rng.normal(size=(runs, 8)), replicates=300, seed=seed)
        hits += found.low <= 0 <= found.high
    assert hits / 300 == pytest.approx(covered, abs=0.06)  # two and a half standard errors
    assert f"{covered:.0%}"[:-1] in TOO_NARROW


def test_scores_that_hide_something_are_refused() -> None:
    with pytest.raises(ValueError, match="finite"):
        statistics.aggregate(statistics.mean, np.array([[1.0, math.nan]]))
    with pytest.raises(ValueError, match="finite"):
        statistics.steps_to_threshold(np.array([1, 2]), np.array([[1.0, math.nan]]), 1)
    with pytest.raises(ValueError, match="one score a run"):
        statistics.aggregate(statistics.mean, [np.array([1.0]), np.array([])])
    with pytest.raises(ValueError, match=r"\(runs, tasks\)"):
        statistics.aggregate(statistics.mean, np.ones(3))
    with pytest.raises(ValueError, match="rise"):
        statistics.steps_to_threshold(np.array([2, 1]), np.ones((1, 2)), 1)
    with pytest.raises(ValueError, match="same tasks"):
        statistics.probability_of_improvement(np.ones((2, 2)), np.ones((2, 3)))
    with pytest.raises(ValueError, match="budget"):
        statistics.ratio_of_steps([np.array([10.0])], [np.array([200.0])], 100, 100)
