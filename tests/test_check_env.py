"""`mbrl check-env`: one small environment per finding, which it shows and a healthy one does not."""

import json
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from commands import refused
from gymnasium import spaces

from envs.checks import check
from envs.findings import Finding
from scripts import check_env
from scripts.main import main

HERE = Path(__file__)


class Healthy(gymnasium.Env[Any, Any]):
    """A random walk that ends when it leaves [-1, 1]; every mistake below is one change of it."""

    observation_space: Any = spaces.Dict({"place": spaces.Box(-2, 2, (2,)), "kind": spaces.Discrete(3)})
    action_space: Any = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.t, self.place = 0, self.np_random.uniform(-0.5, 0.5, 2)
        return self.observe(), {}

    def step(self, action: Any) -> Any:
        self.t += 1
        self.place = np.clip(self.place + self.np_random.normal(0, 0.2, 2), -2, 2)
        over = bool(np.abs(self.place).max() > 1) and self.t > 1
        return self.observe(), self.reward(), over, False, {}

    def observe(self) -> Any:
        return {"place": self.place.astype(np.float32), "kind": int(self.np_random.integers(3))}

    def reward(self) -> Any:
        return float(1 - abs(self.place[0]))


def find(env: Callable[[], gymnasium.Env[Any, Any]], steps: int = 600) -> list[Finding]:
    return check(env, steps=steps)[0]


def found(env: Callable[[], gymnasium.Env[Any, Any]], severity: str, name: str) -> Finding:
    """The one finding of this check."""
    [finding] = [finding for finding in find(env) if finding.check == name]
    assert finding.severity == severity and finding.mend
    return finding


def test_nothing_is_found_where_nothing_is_wrong() -> None:
    assert find(Healthy) == []


# ---- randomness --------------------------------------------------------------------------------


def test_ignored_seed() -> None:
    class Seedless(Healthy):
        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            return super().reset()

    finding = found(Seedless, "warning", "seed")
    assert "two different observations" in finding.what and "super().reset(seed=seed)" in finding.mend


def test_the_same_start_for_every_seed() -> None:
    class Fixed(Healthy):
        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            super().reset(seed=seed)
            self.place = np.zeros(2)
            return {"place": self.place.astype(np.float32), "kind": 0}, {}

    assert "every seed" in found(Fixed, "note", "seed").what


def test_chance_that_the_seed_does_not_decide() -> None:
    rng = np.random.default_rng()

    class Unseeded(Healthy):
        def reward(self) -> float:
            return float(rng.random())

    assert "reward" in found(Unseeded, "warning", "determinism").what


def test_chance_at_construction() -> None:
    rng = np.random.default_rng()

    class Built(Healthy):
        def __init__(self) -> None:
            self.scale = rng.random()

        def reward(self) -> float:
            return self.scale

    assert "another instance" in found(Built, "warning", "determinism").what


# ---- observations ------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e39])
def test_observation_that_is_not_finite(value: float) -> None:
    class NotFinite(Healthy):
        observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float64)

        def observe(self) -> Any:
            return np.array([self.place[0], value if self.t == 7 else 0.1 * self.t])

    with np.errstate(over="ignore"):
        finding = found(NotFinite, "error", "observation-finite")
    assert "'state' is" in finding.what and "at step" in finding.what


def test_observation_outside_its_bounds() -> None:
    class Outside(Healthy):
        observation_space = spaces.Box(-1, 1, (2,))

        def observe(self) -> Any:
            return np.array([0.5 * self.place[0], 3 if self.t == 2 else 0.1], np.float32)

    finding = found(Outside, "warning", "observation-bounds")
    assert "'state'[1] is 3 at step 2, outside its bounds -1 to 1" in finding.what


def test_discrete_observation_outside_its_space() -> None:
    class Outside(Healthy):
        def observe(self) -> Any:
            return {**super().observe(), "kind": 3}

    assert "'kind' is 3" in found(Outside, "error", "observation-bounds").what


def test_observation_of_another_shape() -> None:
    class Shape(Healthy):
        def observe(self) -> Any:
            return {**super().observe(), "place": np.zeros(3 if self.t == 2 else 2, np.float32)}

    finding = found(Shape, "error", "step")
    assert "step 2" in finding.what and "(3,)" in finding.what


def test_observations_that_never_change() -> None:
    class Blind(Healthy):
        def observe(self) -> Any:
            return {"place": np.ones(2, np.float32), "kind": 1}

    class OneKey(Healthy):
        def observe(self) -> Any:
            return {**super().observe(), "kind": 1}

    class OneNumber(Healthy):
        def observe(self) -> Any:
            return {**super().observe(), "place": np.array([self.place[0], 0], np.float32)}

    assert "blind" in found(Blind, "warning", "constant").what
    assert "FilterObservation(env, ['place'])" in found(OneKey, "note", "constant").mend
    assert "1 of the 2 numbers of 'place'" in found(OneNumber, "note", "constant").what


class Picture(Healthy):
    observation_space = spaces.Box(0, 255, (32, 32, 3), np.uint8)
    factor, kind = 255, np.uint8

    def observe(self) -> Any:
        return (self.np_random.random((32, 32, 3)) * self.factor).astype(self.kind)


def test_pictures() -> None:
    class Float(Picture):
        factor, kind = 1, np.float32

    class Wide(Picture):
        factor, kind = 300, np.int64

    class Vector(Picture):
        observation_space = spaces.Box(-1, 1, (32, 32, 3), np.float32)
        factor, kind = 1, np.float32

    assert not find(Picture, 50)
    assert "becomes black" in found(Float, "error", "observation-type").what
    assert "wrap around" in found(Wide, "error", "observation-type").what
    assert "vector of 3072 numbers" in found(Vector, "warning", "image-type").what


def test_whole_numbers_that_float32_rounds() -> None:
    class Clock(Healthy):
        observation_space = spaces.Box(0, 2**40, (1,), np.int64)

        def observe(self) -> Any:
            return np.array([2**30 + self.t + self.np_random.integers(9)])

    assert "float32 rounds" in found(Clock, "warning", "observation-type").what


# ---- rewards -----------------------------------------------------------------------------------


def rewarding(value: Any) -> type[Healthy]:
    class Rewarding(Healthy):
        def reward(self) -> Any:
            return value

    return Rewarding


@pytest.mark.parametrize(
    ("reward", "severity", "check_name", "says"),
    [
        (float("nan"), "error", "reward-finite", "the reward is nan at step 1"),
        (None, "error", "step", "TypeError"),
        (0.0, "note", "reward-scale", "every reward was 0"),
        (2e3, "note", "reward-scale", "4.8e8"),
        (2e5, "warning", "reward-scale", "4.8e8"),
        (5e-4, "note", "reward-scale", "entropy"),
        (5e-5, "warning", "reward-scale", "entropy"),
    ],
)
def test_rewards(reward: Any, severity: str, check_name: str, says: str) -> None:
    finding = found(rewarding(reward), severity, check_name)
    assert says in finding.what
    if severity == "warning":
        assert "gymnasium.wrappers.TransformReward" in finding.mend
    if reward is None:
        assert "float(reward)" in finding.mend


# ---- episodes ----------------------------------------------------------------------------------


def ending(end: Callable[[int], tuple[bool, bool]]) -> type[Healthy]:
    class Ending(Healthy):
        def step(self, action: Any) -> Any:
            obs, reward, _, _, info = super().step(action)
            return obs, reward, *end(self.t), info

    return Ending


def test_episodes_without_end() -> None:
    endless = ending(lambda t: (False, False))
    assert "TimeLimit" in found(endless, "warning", "time-limit").mend
    assert not find(lambda: gymnasium.wrappers.TimeLimit(endless(), 1000)), "its limit is after the sample"
    assert not check(endless, steps=600, max_episode_steps=100)[0], "and the option mends it"
    assert not find(endless, 100), "a sample too short to tell"


def test_episodes_of_one_step() -> None:
    assert "first action" in found(ending(lambda t: (True, False)), "warning", "episode-length").what


def test_both_ends_at_once() -> None:
    assert "at once" in found(ending(lambda t: (t == 9, t == 9)), "note", "episode-end").what


def test_time_limit_that_terminates() -> None:
    assert "exactly 20 steps" in found(ending(lambda t: (t == 20, False)), "note", "episode-end").what
    assert not find(ending(lambda t: (False, t == 20)))


# ---- failures ----------------------------------------------------------------------------------


def test_what_raises_is_shown_with_its_place() -> None:
    class Raising(Healthy):
        def reward(self) -> float:
            if self.t == 3:
                raise KeyError("the joint")
            return 1.0

    finding = found(Raising, "error", "step")
    assert "step 3" in finding.what and "action" in finding.what and "KeyError: 'the joint'" in finding.what
    assert finding.mend.startswith(f"correct {HERE}:") and finding.mend.endswith("in reward")


def test_the_old_interface() -> None:
    class Old(Healthy):
        def step(self, action: Any) -> Any:
            return self.observe(), 1.0, False, {}

    assert "terminated, truncated" in found(Old, "error", "step").mend


def test_construction_that_fails() -> None:
    def fail() -> Any:
        raise OSError("no licence")

    finding = found(fail, "error", "construction")
    assert "no licence" in finding.what and finding.mend.endswith("in fail")
    [finding] = check("CartPool-v1")[0]
    assert finding.check == "construction" and "CartPole" in finding.mend


def test_gymnasiums_own_checker_is_asked() -> None:
    class Sharing(Healthy):
        info: dict[str, Any] = {}  # noqa: RUF012

        def step(self, action: Any) -> Any:
            return (*super().step(action)[:4], self.info)

    class Textual(Healthy):
        def step(self, action: Any) -> Any:
            obs, reward, terminated, truncated, info = super().step(action)
            return obs, np.float32(reward), np.int64(terminated), truncated, info

    assert "share an object" in found(Sharing, "warning", "gymnasium").what
    assert any(f.check == "gymnasium" and "terminated" in f.what for f in find(Textual))


# ---- the command -------------------------------------------------------------------------------

FILE = """
    import os, time
    import gymnasium
    import numpy as np
    from gymnasium import spaces

    class Noisy(gymnasium.Env):
        observation_space = spaces.Box(-1e6, 1e6, (3,), np.float32)
        action_space = spaces.Discrete(2)

        def reset(self, *, seed=None, options=None):
            print("not JSON")
            super().reset(seed=seed)
            self.t = 0
            return self.observe(), {}

        def step(self, action):
            self.t += 1
            return self.observe(), 1.0, False, self.t >= 10, {}

        def observe(self):
            return self.np_random.uniform(-5e4, 5e4, 3).astype(np.float32)

    class Hanging(Noisy):
        def step(self, action):
            if self.t == 4:
                time.sleep(600)
            return super().step(action)

    class Dying(Noisy):
        def reset(self, *, seed=None, options=None):
            os.abort()

    class Unbounded(Noisy):
        action_space = spaces.Box(-np.inf, np.inf, (2,))

    class Speaking(Noisy):
        action_space = spaces.Text(3)
"""


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "tried.py"
    path.write_text(textwrap.dedent(FILE))
    return str(path)


def examine(*words: str) -> dict[str, Any]:
    return check_env.examine(check_env.parse([*words, "--steps", "200"]))


@pytest.mark.parametrize("env", ["CartPole-v1", "HalfCheetah-v5", "dmc/walker-walk"])
def test_known_environments_raise_no_false_alarm(env: str) -> None:
    report = check_env.examine(check_env.parse([env]))
    assert report["ok"] and not [f for f in report["findings"] if f["severity"] != "note"], report["findings"]
    assert report["plan"]["parameters"] > 0 and report["plan"]["replay_bytes"] > 0
    assert report["plan"]["action_repeat"] == (2 if env.startswith("dmc") else 1)
    assert report["measured"]["steps_per_second"] > 0


def test_the_agent_says_what_it_cannot_take(file: str) -> None:
    report = examine(f"{file}:Unbounded")
    [finding] = [f for f in report["findings"] if f["severity"] == "warning"]
    assert report["ok"] and finding["check"] == "action-bounds" and "2 of the action's" in finding["what"]
    [finding] = [f for f in examine(f"{file}:Speaking")["findings"] if f["severity"] == "error"]
    assert finding["check"] == "action-space" and "TransformAction" in finding["mend"]


def test_large_observations_matter_where_nothing_normalises(file: str) -> None:
    checks = {preset: [f["check"] for f in examine(f"{file}:Noisy", "--preset", preset)["findings"]]
              for preset in ("laptop", "debug")}  # fmt: skip
    assert checks == {"laptop": [], "debug": ["observation-scale"]}


def test_an_update_that_is_not_finite(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agents.dreamer.Dreamer.update", lambda self, replay: {"train/loss/total": float("nan")})
    [finding] = examine(f"{file}:Noisy")["findings"]
    assert finding["severity"] == "error" and "train/loss/total" in finding["what"]


def test_a_replay_larger_than_the_memory(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_env, "free_memory", lambda: 1_000_000)
    [finding] = examine(f"{file}:Noisy")["findings"]
    assert finding["check"] == "memory" and "--training.replay.gigabytes" in finding["mend"]


def test_one_json_object_and_nothing_else(file: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["check-env", f"{file}:Noisy", "--json", "--steps", "100"]) == 0
    out, err = capfd.readouterr()
    assert "not JSON" in err
    report = json.loads(out)
    assert report.keys() == {"env", "ok", "findings", "plan", "measured"} and report["ok"]


def test_a_hang_is_found(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check-env", f"{file}:Hanging", "--json", "--patience", "1"]) == 2
    [finding] = json.loads(capsys.readouterr().out)["findings"]
    assert finding["check"] == "hang" and "step 5" in finding["what"]
    assert "tried.py" in finding["what"] and "check" not in finding["what"]


def test_a_crash_is_found(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check-env", f"{file}:Dying"]) == 2
    out = capsys.readouterr().out
    assert "error    crash: reset(seed=0) ended the whole process (SIGABRT)" in out and "tried.py" in out
    assert "mend: " in out


def test_text_shows_plan_and_findings() -> None:
    finding = {"severity": "note", "check": "seed", "what": "one\ntwo", "mend": "three"}
    report = {"env": "E", "ok": True, "findings": [finding], "plan": {}, "measured": {}}
    text = check_env.describe(report)
    assert "0 errors, 0 warnings, 1 note" in text and "mend: three" in text and "mbrl train E" in text
    assert "training would work" not in check_env.describe({**report, "ok": False})


@pytest.mark.parametrize(
    ("words", "says"),
    [([], "ENV"), (["CartPole-v1", "--steps", "0"], "--steps"), (["CartPole-v1", "--preset", "no"], "laptop")],
)
def test_bad_options(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert says in refused(capsys, "check-env", *words)
