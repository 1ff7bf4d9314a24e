"""The table of published results: readable, explained, and a few of its numbers."""

import csv
from pathlib import Path

import numpy as np
import pytest

from benchmarks import reference, suites


def rows() -> list[dict[str, str]]:
    with reference.TABLE.open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_row_can_be_read() -> None:
    seen = set()
    for row in rows():
        key = row["agent"], row["env"], row["observe"], row["step"]
        assert key not in seen
        seen.add(key)
        assert int(row["step"]) > 0
        assert row["protocol"] in reference.PROTOCOLS
        assert row["observe"] in ("state", "pixels")
        if row["env"].startswith("dmc/"):
            assert -1 < float(row["mean"]) <= 1000
        if row["low"]:
            assert float(row["low"]) <= float(row["mean"]) + 0.5
            assert float(row["high"]) >= float(row["mean"]) - 0.5
    assert reference.TABLE.stat().st_size < 150_000


def test_every_source_is_explained() -> None:
    readme = (Path(reference.__file__).parent / "README.md").read_text()
    used = {row["source"] for row in rows()}
    assert used == set(reference.SOURCES)
    assert all(f"`{source}`" in readme for source in used)
    assert all(f"| {agent} |" in readme for agent in {row["agent"] for row in rows()})


def test_a_curve_has_one_protocol_and_rising_steps() -> None:
    for env in reference.environments():
        for agent, curve in reference.published(env).items():
            assert (np.diff(curve.steps) > 0).all(), (env, agent)
    by_curve: dict[tuple[str, ...], set[tuple[str, ...]]] = {}
    for row in rows():
        key = row["agent"], row["env"], row["observe"]
        by_curve.setdefault(key, set()).add((row["protocol"], row["action_repeat"], row["source"]))
    assert all(len(facts) == 1 for facts in by_curve.values())


@pytest.mark.parametrize(
    ("agent", "env", "observe", "step", "mean"),
    [
        ("DreamerV3", "dmc/walker-walk", "state", 100_000, 475.2),
        ("DreamerV3", "dmc/walker-walk", "pixels", 500_000, 943.4),
        ("SAC (pytorch_sac)", "dmc/walker-walk", "state", 100_000, 847.2),
        ("SAC (SimBa)", "dmc/walker-walk", "state", 500_000, 956.7),
        ("TD-MPC2", "dmc/reacher-easy", "state", 100_000, 936.9),  # of 972.8, 977.9 and 859.9
        ("BMPC", "dmc/acrobot-swingup", "state", 100_000, 203.8),
        ("BMPC", "dmc/ball_in_cup-catch", "state", 100_000, 939.0),
        ("D4PG", "dmc/walker-walk", "state", 500_000, 967.0),
        ("PPO", "dmc/walker-walk", "state", 500_000, 73.0),
        ("BRO (UTD 10)", "dmc/walker-walk", "state", 100_000, 963.2),
        ("SimbaV2 (UTD 8)", "dmc/walker-walk", "state", 100_000, 958.8),
        ("DrQ-v2", "dmc/walker-walk", "pixels", 500_000, 722.3),
        ("MR.Q", "HalfCheetah-v4", "state", 100_000, 7872.5),
    ],
)
def test_numbers_of_the_sources(agent: str, env: str, observe: str, step: int, mean: float) -> None:
    curve = reference.published(env, observe)[agent]
    assert curve.mean[curve.steps == step] == [mean]


def test_a_band_is_one_standard_deviation_over_seeds() -> None:
    curve = reference.published("dmc/reacher-easy")["TD-MPC2"]
    scores = np.array([972.8, 977.9, 859.9])
    assert curve.low[0] == pytest.approx(scores.mean() - scores.std(), abs=0.5)
    assert curve.high[0] == pytest.approx(scores.mean() + scores.std(), abs=0.5)
    assert (curve.seeds, curve.protocol, curve.action_repeat) == (3, "eval", 2)
    unknown = reference.published("dmc/reacher-easy")["BMPC"]
    assert unknown.seeds is None and np.isnan(unknown.low).all()


def test_names_of_environments() -> None:
    assert reference.published("dm_control/walker-walk-v0").keys() == reference.published("dmc/walker-walk").keys()
    assert reference.published("HalfCheetah-v4") and not reference.published("HalfCheetah-v5")
    assert reference.published("MyEnv-v0") == {}


def test_the_published_suites_are_covered() -> None:
    for env in suites.find("cpu8").envs:
        assert {"DreamerV3", "SAC (pytorch_sac)", "PPO", "TD-MPC2", "BMPC", "D4PG"} < reference.published(env).keys()
    assert set(suites.find("dmc18").envs) < set(reference.environments())
    assert set(suites.find("dmc20-pixels").envs) <= set(reference.environments("pixels"))
