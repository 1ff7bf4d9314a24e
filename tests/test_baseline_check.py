"""The check of a baseline against published curves of the same algorithm."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import baseline_check, collect
from benchmarks.baseline_check import findings
from benchmarks.reference import published

TASK = "dmc/walker-walk"


def rows(*means: float, agent: str = "sac", env: str = TASK) -> list[collect.Row]:
    common = {"agent": agent, "env": env, "step": 100_000, "mode": "mode", "std": 0.0, "episodes": 20}
    return [{**common, "seed": k, "mean": mean, "wall_s": 1.0, "commit": ""} for k, mean in enumerate(means)]


def test_a_baseline_lies_inside_below_or_above_what_others_published() -> None:
    [found] = findings(rows(800, 850), "sac")
    assert found.verdict == "inside" and set(found.names) == {"SAC (SimBa)", "SAC (pytorch_sac)"}
    curves = [published(TASK)[name] for name in found.names]
    assert found.low == min(float(curve.low[curve.steps == 100_000][0]) for curve in curves)
    assert [next(findings(rows(mean), "sac")).verdict for mean in (100, 999)] == ["below", "above"]


def test_only_the_same_algorithm_task_and_protocol_count() -> None:
    assert not list(findings(rows(800, agent="td3"), "td3"))
    assert not list(findings(rows(800, env="My-v0"), "sac"))
    assert not list(findings(rows(300, agent="ppo"), "ppo")), "PPO's are returns of training episodes"


def test_the_command_says_and_tells_by_its_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for mean, code in ((800.0, 0), (100.0, 1)):
        collect.write_scores(tmp_path / "scores.csv", rows(mean))
        assert baseline_check.main([str(tmp_path / "scores.csv")]) == code
    assert "below   dmc/walker-walk" in capsys.readouterr().out
    assert baseline_check.main([str(tmp_path / "scores.csv"), "--agent", "ppo"]) == 2
