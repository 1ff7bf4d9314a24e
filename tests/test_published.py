"""The table of what others published: of the very tasks that were measured, and beside them, not among them."""

from __future__ import annotations

import math

import pytest
from test_summary import RUN, WALK, rows_of, summary_of

from benchmarks.published import mean_over, published_table
from benchmarks.reference import published
from benchmarks.summary import Summary


def summary_on(*envs: str) -> Summary:
    """Dreamer ends at a normalised 0.6 on each."""
    return summary_of(*(rows_of("dreamer", env, (100, 300, 600), (100, 500, 600)) for env in envs))


def test_each_agent_stands_with_the_mean_over_the_tasks_and_when_it_came_to_ours() -> None:
    table = published_table(summary_on(WALK, RUN))
    assert table is not None
    rows = {row[0].split(",")[0]: dict(zip(table.header, row)) for row in table.rows}
    walk, run = published(WALK), published(RUN)
    for name, cells in rows.items():
        shared = sorted(set(walk[name].steps) & set(run[name].steps))
        means = {}
        for step in shared:
            a, b = (float(curve.mean[curve.steps == step][0]) for curve in (walk[name], run[name]))
            means[step] = (a + b) / 2000
        assert all(cells[f"{step:,.0f}"] == f"{mean:.2f}" for step, mean in means.items() if f"{step:,.0f}" in cells)
        first = min((step for step, mean in means.items() if mean >= 0.6), default=math.inf)
        assert cells["0.60 after"] == (f"{first:,.0f}" if first < math.inf else f"> {max(means):,.0f}")
    assert rows["PPO"]["0.60 after"] == "> 500,000" and rows["BRO (UTD 10)"]["0.60 after"] == "50,000"
    order = list(rows)  # the fastest first
    assert order[0] == "BRO (UTD 10)" and order[-1] == "PPO"
    assert "dreamer" not in rows and "not measured here" in table.note


def test_nothing_is_averaged_over_a_task_that_an_agent_was_not_published_on() -> None:
    cup = "dmc/ball_in_cup-catch"
    name = "SAC (SimBa)"
    assert name in published(WALK) and name not in published(cup)
    with_cup, without = (published_table(summary_on(*envs)) for envs in ((WALK, cup), (WALK,)))
    assert with_cup is not None and without is not None
    assert not any(name in row[0] for row in with_cup.rows) and any(name in row[0] for row in without.rows)


def test_steps_that_one_task_lacks_are_left_out() -> None:
    tasks = summary_on(WALK, RUN).common
    walk, run = (published(env)["TD-MPC2"] for env in (WALK, RUN))
    assert set(mean_over(tasks, [walk, run])) == set(walk.steps) & set(run.steps)
    shorter = published(RUN)["BRO (UTD 10)"]
    assert set(mean_over(tasks, [walk, shorter])) == set(walk.steps) & set(shorter.steps)


@pytest.mark.parametrize("env", ["CartPole-v1", "file.py:MyEnv"])
def test_there_is_no_table_where_nothing_was_published(env: str) -> None:
    assert published_table(summary_on(env)) is None
    assert published_table(summary_on(WALK, env)) is None
