"""What a run computes with: asked for, remembered, or measured."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from gymnasium import spaces

from agents.dreamer import debug
from envs import make_env
from mbrl.errors import UserError
from scripts import machine, probe
from scripts.machine import choose_device
from scripts.main import main
from scripts.probe import Compute, candidates, choose, pick, write

ONE, TWO, GPU = Compute("cpu", 1), Compute("cpu", 2), Compute("cuda", 1)
SPACE = spaces.Dict(
    {
        "wide": spaces.Box(-3.4e38, 3.4e38, (2,), np.float32),
        "image": spaces.Box(0, 255, (16, 16, 3), np.uint8),
        "switch": spaces.Discrete(3, start=1),
    }
)
ACTIONS = spaces.Box(-1, 1, (2,), np.float32)


@pytest.fixture
def two_idle_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(probe, "idle_cores", lambda: 2)
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)  # the tests' own number stays


def test_what_was_asked_for_is_not_put_in_question(two_idle_cores: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert candidates("cpu", 3) == [Compute("cpu", 3)]
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert candidates("cpu", None) == [Compute("cpu", 4)]
    assert candidates("cpu", 2) == [TWO]


def test_otherwise_idle_cores_and_a_gpu_are_candidates(two_idle_cores: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert candidates("auto", None) == [ONE, TWO]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert candidates("auto", None) == [ONE, TWO, GPU]
    assert candidates("cuda", None) == [GPU]


def test_cores_that_others_use_are_not_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "physical_cores", lambda: 4)
    for load, idle in ((0.2, 4), (1.1, 3), (9.0, 1)):
        monkeypatch.setattr("os.getloadavg", lambda load=load: (load, 0, 0))
        assert machine.idle_cores() == idle


def test_the_modest_one_wins_unless_another_is_clearly_faster() -> None:
    assert pick({ONE: 1.0, TWO: 0.9}) == ONE
    assert pick({ONE: 1.0, TWO: 0.5}) == TWO
    assert pick({ONE: 1.0, TWO: 0.5, GPU: 0.45}) == TWO
    assert pick({ONE: 1.0, TWO: 2.0, GPU: 0.1}) == GPU


def test_an_update_is_timed_on_every_candidate_and_nothing_random_moves(
    two_idle_cores: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed = []

    def seconds(update: probe.Callable[[], object], threads: int) -> float:
        update()  # on this odd space, a real one
        timed.append(threads)
        return 1.0 / threads

    monkeypatch.setattr(probe, "seconds", seconds)
    before = torch.get_rng_state()
    chosen = choose([ONE, TWO], "dreamer", debug().agent, SPACE, ACTIONS)
    assert torch.equal(torch.get_rng_state(), before)
    assert timed == [1, 2]
    assert (chosen.device, chosen.threads) == ("cpu", 2)
    assert str(chosen) == "cpu, 2 threads (500 ms an update; 1 s on cpu, 1 thread)"


def test_seconds_are_those_of_the_quickest_update() -> None:
    calls = []
    assert 0 <= probe.seconds(lambda: calls.append(1), 1, budget=0.0) < 1
    assert len(calls) == 3, "one that does not count, and two that do"


@pytest.mark.parametrize(("step", "num_envs", "parallel"), [(0.01, 4, True), (1e-5, 4, False), (0.01, 1, False)])
def test_processes_must_be_worth_it(
    two_idle_cores: None, monkeypatch: pytest.MonkeyPatch, step: float, num_envs: int, parallel: bool
) -> None:
    monkeypatch.setattr(probe, "seconds_per_step", lambda env: step)
    found, why = probe.worth_processes(partial(make_env, "CartPole-v1"), num_envs)
    assert found == parallel
    assert ("processes" in why) == parallel and (num_envs == 1 or f"{write(step)} a step" in why)


def test_a_step_is_timed_over_the_ends_of_episodes() -> None:
    assert probe.seconds_per_step(make_env("CartPole-v1", max_episode_steps=1), budget=0.0) > 0


def test_a_run_keeps_its_threads(
    two_idle_cores: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(probe, "seconds", lambda update, threads: 1.0 / threads)
    line = ["train", "CartPole-v1", "--preset", "debug", "--no-pictures", "--runs-dir", str(tmp_path)]
    assert main([*line, "--steps", "60", "--training.final-episodes", "1"]) == 0
    assert "cpu, 2 threads (500 ms an update" in capsys.readouterr().out
    assert yaml.safe_load((tmp_path / "CartPole-v1/dreamer/seed0/config.yaml").read_text())["threads"] == 2
    assert main([*line, "--steps", "80"]) == 0
    assert "cpu, 2 threads\n" in capsys.readouterr().out, "remembered, not measured again"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(UserError, match="mbrl doctor"):
        choose_device("cuda")
