"""What a benchmark's report says of its scores, and that it says it right."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest

from benchmarks.collect import Entry, Row
from benchmarks.report import Failed, write_report
from benchmarks.summary import Summary, headline, read_curves, snap, summarise
from scripts.compare import tell_apart

# ---- what it means -------------------------------------------------------------------------------

STEPS = (10_000, 20_000, 40_000)


def rows_of(agent: str, env: str, *returns: tuple[float, ...]) -> list[Row]:
    """One tuple of evaluations a seed."""
    common = {"mode": "mode", "std": 1.0, "episodes": 20, "commit": "abc"}
    return [
        {**common, "agent": agent, "env": env, "seed": seed, "step": step, "mean": mean, "wall_s": step / 100}
        for seed, means in enumerate(returns)
        for step, mean in zip(STEPS, means)
    ]


def summary_of(*rows: list[Row], entries: tuple[Entry, ...] = ()) -> Summary:
    found = [row for part in rows for row in part]
    return summarise("toy", found, entries, list(dict.fromkeys(row["agent"] for row in found)))


WALK, RUN = "dmc/walker-walk", "dmc/walker-run"
FAST = ((850.0, 900.0, 950.0),) * 3
SLOW = ((100.0, 300.0, 820.0),) * 3
NEVER = ((10.0, 20.0, 30.0),) * 3


def test_the_headline_of_one_task() -> None:
    found = summary_of(rows_of("dreamer", WALK, *FAST), rows_of("sac", WALK, *SLOW))
    [pair] = found.comparisons
    text = headline(pair, "toy")
    assert text == (
        f"dreamer reaches 800 in 10k steps, sac in 40k: 4.0 times fewer [4.0, 4.0], on {WALK}."
    )
    assert pair.probability.value == 1 and pair.lost == []


def test_the_headline_of_more_tasks_and_where_it_loses() -> None:
    rows = [rows_of("dreamer", WALK, *FAST), rows_of("sac", WALK, *SLOW)]
    found = summary_of(*rows, rows_of("dreamer", RUN, *SLOW), rows_of("sac", RUN, *((700.0, 880.0, 900.0),) * 3))
    [pair] = found.comparisons
    assert pair.ratio.value == pytest.approx(np.sqrt(4 * 0.5))
    assert headline(pair, "toy").startswith("dreamer reaches 800 in 20k steps, sac in 28.3k: 1.4 times fewer")
    assert pair.lost == [f"{RUN} (820 against 900 after 40k steps, 2 times the steps to 800)"]


def test_a_loss_may_be_within_the_noise_of_the_seeds() -> None:
    slow = rows_of("dreamer", WALK, (0.0, 0.0, 500.0), (0.0, 0.0, 600.0))
    [pair] = summary_of(slow, rows_of("sac", WALK, (0.0, 0.0, 540.0), (0.0, 0.0, 580.0))).comparisons
    assert pair.lost == [f"{WALK} (550 against 560 after 40k steps, within the noise of the seeds)"]
    [pair] = summary_of(slow, rows_of("sac", WALK, (0.0, 0.0, 601.0), (0.0, 0.0, 602.0))).comparisons
    assert pair.lost == [f"{WALK} (550 against 601.5 after 40k steps)"]


def test_a_comparator_that_never_gets_there_is_censored() -> None:
    [pair] = summary_of(rows_of("dreamer", WALK, *FAST), rows_of("sac", WALK, *NEVER)).comparisons
    assert headline(pair, "toy") == (
        f"dreamer reaches 800 in 10k steps, sac in more than 40k: at least 4.0 times fewer [4.0, ∞], on {WALK}."
    )
    [pair] = summary_of(rows_of("dreamer", WALK, *NEVER), rows_of("sac", WALK, *SLOW)).comparisons
    words = "dreamer reaches 800 in more than 40k steps, sac in 40k: at least 1.0 times more"
    assert headline(pair, "toy").startswith(words)
    [pair] = summary_of(rows_of("dreamer", WALK, *NEVER), rows_of("sac", WALK, *NEVER)).comparisons
    assert headline(pair, "toy").startswith("Neither dreamer nor sac reaches 800")


def test_one_seed_has_no_interval(tmp_path: Path) -> None:
    rows = [*rows_of("dreamer", WALK, FAST[0]), *rows_of("sac", WALK, SLOW[0])]
    write_report(tmp_path, rows, [], ["dreamer", "sac"], "toy")
    page = (tmp_path / "report.html").read_text()
    assert "4.0 times fewer (n=1: no interval)" in page and not re.search(r"\bnan\b", page)


def test_unfinished_runs_do_not_count_and_broken_ones_keep_their_last_score() -> None:
    rows = rows_of("sac", WALK, SLOW[0], (100.0, 300.0))
    curves, left_out = read_curves(rows)
    assert curves["sac", WALK].seeds == (0,) and "has come to step 20000 of 40000" in left_out[0]
    curves, left_out = read_curves(rows, (), {f"{WALK} sac seed1"})
    assert curves["sac", WALK].returns.tolist() == [[100, 300, 820], [100, 300, 300]] and "broke" in left_out[0]


def entry_of(agent: str, env: str, seed: int, state: str, steps: int = 40_000) -> Entry:
    config = {"training": {"steps": steps}}
    return {"agent": agent, "env": env, "seed": seed, "status": {"state": state}, "config": config}


def test_finished_runs_of_a_smaller_budget_count_and_broken_ones_up_to_their_own() -> None:
    rows = [*rows_of("dreamer", WALK, SLOW[0], (0.0, 10.0)), *rows_of("sac", WALK, SLOW[0])]
    curves, left_out = read_curves(rows, [entry_of("dreamer", WALK, 1, "finished", 20_000)])
    assert curves["dreamer", WALK].returns.tolist() == [[100, 300], [0, 10]]
    assert left_out == [f"{WALK} dreamer seed1 ended at step 20000: of the other seeds nothing later counts"]
    rows = [*rows_of("dreamer", WALK, (500.0,), (600.0,)), *rows_of("sac", WALK, SLOW[0])]
    entries = [entry_of("dreamer", WALK, seed, "failed") for seed in (0, 1, 2)]
    curves, left_out = read_curves(rows, entries)
    assert curves["dreamer", WALK].steps.tolist() == list(STEPS)
    assert curves["dreamer", WALK].returns.tolist() == [[500] * 3, [600] * 3]
    assert left_out[-1] == f"{WALK} dreamer seed2 broke before its first evaluation" and len(left_out) == 3
    assert summary_of(rows, entries=tuple(entries)).comparisons[0].lost


def test_each_pair_is_compared_where_both_have_come_to() -> None:
    """A third agent's short runs change nothing between two others."""
    rows = [rows_of("dreamer", WALK, *((900.0, 500.0, 400.0),) * 2), rows_of("sac", WALK, *SLOW)]
    found = summary_of(*rows, rows_of("old", WALK, (1.0,), (2.0,)))
    sac, old = found.comparisons
    assert (sac.ends, old.ends) == ("40k", "10k")
    assert sac.probability.value == 0 and old.probability.value == 1
    assert sac.lost == [f"{WALK} (400 against 820 after 40k steps)"] and not old.lost


def test_the_budget_is_the_last_evaluation_that_counts() -> None:
    """Theirs at 25k is no evaluation of ours, so nothing is known of them beyond 20k."""
    grid = [(10_000, 0.0), (20_000, 0.0), (25_000, 900.0)]
    theirs = [{**row, "step": step, "mean": mean} for row, (step, mean) in zip(rows_of("sac", WALK, SLOW[0]), grid)]
    [pair] = summary_of(rows_of("dreamer", WALK, (0.0, 900.0, 900.0)), theirs).comparisons
    assert pair.steps["sac"] == (pytest.approx(20_000), True) and pair.ratio.censored == "at least"


def test_an_agent_that_ended_before_others_were_evaluated_does_not_count_on_that_task() -> None:
    """And costs the others nothing."""
    early = [{**row, "step": row["step"] // 10} for row in rows_of("old", WALK, *SLOW)]
    found = summary_of(rows_of("dreamer", WALK, *FAST), rows_of("sac", WALK, *SLOW), early)
    assert found.agents == ["dreamer", "sac"] and len(found.common) == 1 and len(found.comparisons) == 1
    assert found.left_out == [f"{WALK} old ended at step 4000, before others were evaluated: it does not count"]


def test_runs_of_agents_that_were_not_asked_for_are_not_named() -> None:
    entries = [entry_of(agent, WALK, 0, "running") for agent in ("dreamer", "ppo")]
    found = summarise("toy", rows_of("sac", WALK, *SLOW), entries, ["sac", "dreamer"])
    assert found.left_out == [f"{WALK} dreamer seed0 was not evaluated yet"]


def test_steps_are_told_apart_by_thousands() -> None:
    assert [snap(step) for step in (10_032, 99_999, 1_002_500, 1_005_000)] == [10_000, 100_000, 1_002_000, 1_005_000]


def test_tasks_without_a_known_scale_are_measured_from_random_up() -> None:
    rows = [rows_of("dreamer", "My-v0", (1.0, 5.0, 9.0)), rows_of("random", "My-v0", (1.0, 1.0, 1.0))]
    [task] = summary_of(*rows).tasks
    assert (task.scale.low, task.scale.high, task.scale.measured) == (1, 9, True)


def test_the_report_is_whole_and_needs_nothing_else(tmp_path: Path) -> None:
    rows = [row for agent, means in (("dreamer", FAST), ("sac", SLOW)) for row in rows_of(agent, WALK, *means)]
    failed = [Failed("dmc/walker-walk ppo seed0", 3, ("it <broke>",))]
    page = write_report(tmp_path, rows, [], ["dreamer", "sac"], "toy", failed).read_text()
    assert "4.0 times fewer [4.0, 4.0]" in page and "it &lt;broke&gt;" in page
    assert "prefers-color-scheme: dark" in page and "var(--a1)" in page and "#0101" not in page
    assert not re.search(r'(src|href)="(?!#)', page) and "http" not in page
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["comparisons"][0]["ratio"]["value"] == pytest.approx(4)
    assert "4.0 times fewer" in (tmp_path / "report.md").read_text()
    for chart in ("learning-curves", "wall-clock", "profiles", "aggregates", "aggregate-curve"):
        assert (tmp_path / f"{chart}.svg").exists() and (tmp_path / f"{chart}.png").stat().st_size > 1000


def test_world_models_are_judged_in_the_report(tmp_path: Path) -> None:
    lists = ("error", "reward_error", "coverage", "reward_coverage", "spread", "imagined_return", "true_return")
    quality = {name: [0.1, 0.2, 0.3] for name in lists} | {"probes": 9, "continue_accuracy": 1.0, "ends_foreseen": None}
    gaps = (1.25, 1.75)
    runs = {"dreamer": [{"step": 40, **quality, "exploitation_gap": [0.0, 1.0, gap]} for gap in gaps], "sac": []}
    entries: list[Entry] = [
        {"agent": agent, "env": WALK, "seed": seed, "status": {}, "config": {}, "quality": found}
        for agent, judgements in runs.items()
        for seed, found in enumerate([[one] for one in judgements] or [[]])
    ]
    rows = [row for agent in runs for row in rows_of(agent, WALK, *FAST)]
    page = write_report(tmp_path, rows, entries, ["dreamer", "sac"], "toy").read_text()
    assert "World model of dreamer" in page and "1.5 [1.25, 1.75]" in page and "World model of sac" not in page
    lines = list(csv.DictReader((tmp_path / "world-models.csv").open()))
    assert len(lines) == 2 * 3 and lines[2]["ahead"] == "3" and lines[2]["exploitation_gap"] == "1.25"
    assert lines[0]["ends_foreseen"] == "" and (tmp_path / "world-model-dreamer.svg").exists()


def test_arithmetic_is_an_axis_where_it_was_counted(tmp_path: Path) -> None:
    rows = rows_of("dreamer", WALK, *FAST)
    write_report(tmp_path / "unknown", rows, [], ["dreamer"], "toy")
    assert not (tmp_path / "unknown/flops.svg").exists()
    counted = [{**row, "updates": row["step"], "flops": 1.5e9 * row["step"]} for row in rows]
    page = write_report(tmp_path / "known", counted, [], ["dreamer"], "toy").read_text()
    assert (tmp_path / "known/flops.svg").exists() and "<td>60.0</td>" in page, "40k updates of 1.5 GFLOP"


def test_published_curves_are_named_with_their_protocol_and_stay_out_of_the_numbers(tmp_path: Path) -> None:
    page = write_report(tmp_path, rows_of("dreamer", WALK, *FAST), [], ["dreamer"], "toy").read_text()
    assert "DreamerV3, published (train)" in page and "(eval)" in page
    assert "DreamerV3" not in (tmp_path / "summary.json").read_text()


def test_agents_of_two_commits_or_presets_are_told_apart(tmp_path: Path) -> None:
    old, new = tmp_path / "old/scores.csv", tmp_path / "new/scores.csv"
    rows = rows_of("dreamer", WALK, *FAST)
    names = [found[0]["agent"] for _, found, _ in tell_apart([(new, rows, []), (old, rows, [])])]
    assert names == ["dreamer (new)", "dreamer (old)"]
    single = [(tmp_path / f"seed{k}", rows_of("dreamer", WALK, *FAST)[3 * k : 3 * k + 3], []) for k in (0, 1)]
    assert {found[0]["agent"] for _, found, _ in tell_apart(single)} == {"dreamer"}
    debug = [{**row, "preset": "debug", "seed": 9} for row in rows[:3]]
    mixed = tell_apart([(new, [*({**row, "preset": "laptop"} for row in rows), *debug], [])])
    assert {row["agent"] for row in mixed[0][1]} == {"dreamer/laptop", "dreamer/debug"}
    entries = [{**entry_of("dreamer", WALK, 0, "finished"), "config": {"preset": "laptop"}}]
    for _, found, there in tell_apart([(old, rows, entries), (new, [{**row, "preset": "debug"} for row in rows], [])]):
        assert {entry["agent"] for entry in there} <= {row["agent"] for row in found}
