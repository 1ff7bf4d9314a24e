"""Suites of benchmark tasks: what they hold exists, and what a user may write instead."""

from pathlib import Path

import gymnasium
import pytest

from benchmarks import suites
from mbrl.errors import UserError


def test_the_published_lists_have_their_numbers_of_tasks() -> None:
    sizes = {name: len(suite.envs) for name, suite in suites.SUITES.items()}
    assert sizes == {"quick": 3, "cpu8": 8, "dmc18": 18, "dmc20-pixels": 20, "gym-mujoco": 5, "atari100k": 26}
    assert set(suites.find("cpu8").envs) < set(suites.find("dmc18").envs) < set(suites.find("dmc20-pixels").envs)
    assert suites.find("cpu8").evaluate_at == (10_000, 25_000, 50_000, 100_000)
    assert suites.find("dmc20-pixels").options == {"observe": "pixels"}
    assert suites.find("atari100k").steps == 400_000


def test_every_task_exists_and_has_a_reference_range() -> None:
    dm_control = pytest.importorskip("dm_control.suite")
    known = {f"dmc/{domain}-{task}" for domain, task in dm_control.ALL_TASKS}
    for suite in suites.SUITES.values():
        for env in suite.envs:
            low, high = suites.reference_range(env) or (0, 0)
            assert low < high, env
            assert not env.startswith("dmc/") or env in known
    for env in (*suites.find("gym-mujoco").envs, "CartPole-v1", "Pendulum-v1"):
        gymnasium.spec(env)


def test_every_game_exists() -> None:
    gymnasium.register_envs(pytest.importorskip("ale_py"))
    for env in suites.find("atari100k").envs:
        gymnasium.spec(env)


def test_reference_ranges() -> None:
    assert suites.reference_range("dmc/walker-walk") == (0, 1000)
    assert suites.reference_range("dm_control/walker-walk-v0") == (0, 1000)
    assert suites.reference_range("dmc/lqr-lqr_2_1") is None  # its rewards have no lower limit
    assert suites.reference_range("MyEnv-v0") is None


def test_environments_by_name() -> None:
    suite = suites.find("CartPole-v1, dmc/walker-walk,path/to/file.py:MyEnv")
    assert suite.envs == ("CartPole-v1", "dmc/walker-walk", "path/to/file.py:MyEnv")
    assert (suite.steps, suite.evaluate_at[-1]) == (100_000, 100_000)
    assert suites.find(["CartPole-v1"]).envs == ("CartPole-v1",)
    assert suites.find(["quick"]) is suites.find("quick")


def test_an_unknown_suite_is_told_what_there_is() -> None:
    with pytest.raises(UserError, match=r"no suite or environment cpu9\. Did you mean cpu8") as caught:
        suites.find("cpu9")
    assert all(name in str(caught.value) for name in suites.SUITES)
    with pytest.raises(UserError, match=r"environment walker\."):
        suites.find("CartPole-v1,walker")
    with pytest.raises(UserError, match="No suite"):
        suites.find("")


def test_another_budget_keeps_the_evaluations_up_to_there() -> None:
    assert suites.find("cpu8").until(60_000).evaluate_at == (10_000, 25_000, 50_000, 60_000)
    assert suites.find("cpu8").until(50_000).evaluate_at == (10_000, 25_000, 50_000)
    assert suites.find("quick").until(500).evaluate_at == (500,)


def test_a_suite_in_a_yaml_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "envs: [CartPole-v1, dmc/walker-walk]\nsteps: 50k\nevaluate_at: [10k, 5e4]\noptions: {action_repeat: 4}\n"
    )
    suite = suites.find(str(path))
    assert suite.envs == ("CartPole-v1", "dmc/walker-walk")
    assert (suite.name, suite.steps, suite.evaluate_at) == ("mine", 50_000, (10_000, 50_000))
    assert suite.options == {"action_repeat": 4}
    path.write_text("envs: [CartPole-v1]\nsteps: 30000\nname: other\n")
    assert suites.read(path).evaluate_at == (10_000, 25_000, 30_000)
    assert suites.read(path).name == "other"


def test_a_suite_in_a_text_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("# easy\nCartPole-v1\n\ndmc/walker-walk  # not so easy\n")
    assert suites.find(str(path)).envs == ("CartPole-v1", "dmc/walker-walk")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps: 5k", "must list its environments"),
        ("- CartPole-v1", "must list its environments"),
        ("envs: []", "no environments"),
        ("envs: [CartPole-v1, CartPole-v1]", "more than once"),
        ("envs: [CartPole-v1]\nstep: 5k", "mean nothing: step"),
        ("envs: [CartPole-v1]\nsteps: many", "not a number of steps"),
        ("envs: [CartPole-v1]\nsteps: 5k\nevaluate_at: [1k, 2k]", "end with its 5000 steps"),
        ("envs: [CartPole-v1]\nsteps: 5k\nevaluate_at: [3k, 2k, 5k]", "rise"),
        ("envs: [CartPole-v1]\noptions: 4", "mapping"),
        ("envs: [", "not YAML"),
    ],
)
def test_a_wrong_file_is_explained(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        suites.read(path)


def test_a_file_that_is_not_there_is_explained() -> None:
    with pytest.raises(UserError, match=r"cannot be read.*cpu8"):
        suites.find("missing.yaml")
