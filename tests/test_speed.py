"""The speed benchmark: it prints what it promises, counts instead of assuming, and leaves no trace behind."""

import io
import json
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from agents.dreamer import Dreamer
from benchmarks import frames, speed
from benchmarks.stopwatch import SECTIONS, Stopwatch, breakdown, count_gflop, count_kernels, watched
from benchmarks.work import ACTIONS, ENV, OBSERVATIONS, WORKS, build
from envs import EnvError, make_env, rendering
from mbrl.spaces import check_observation_space

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("speed") / "trace.json"


@pytest.fixture(scope="module")
def found(trace: Path) -> dict[str, Any]:
    """What the command prints, which must be one JSON object and nothing else."""
    command = [sys.executable, "-m", "benchmarks.speed", "--work", "debug", "--json", "--seconds", "0.1"]
    command += ["--threads", "1", "--profile", str(trace)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    printed: dict[str, Any] = json.loads(done.stdout)
    return printed


def test_prints_one_object_with_positive_figures(found: dict[str, Any]) -> None:
    assert found["work"] == "debug" and found["threads"] == 1
    figures = ("updates_per_s", "replayed_steps_per_s", "gflop_per_update", "peak_gflops", "utilisation")
    for key in (*figures, "kernels_per_update", "replay_sample_ms", "env_steps_per_s", "peak_rss_mb", "first_update_s"):
        assert found[key] > 0, key
    assert set(found["act_steps_per_s"]) == {"1", "4", "16"}
    assert min(found["act_steps_per_s"].values()) > 0
    assert tuple(found["breakdown_ms"]) == SECTIONS
    assert min(found["breakdown_ms"].values()) > 0


def test_figures_agree_with_each_other(found: dict[str, Any]) -> None:
    replayed = found["batch_size"] * found["batch_length"]
    assert found["replayed_steps_per_s"] == pytest.approx(found["updates_per_s"] * replayed, rel=1e-2)
    work = found["updates_per_s"] * found["gflop_per_update"]
    assert found["utilisation"] == pytest.approx(work / found["peak_gflops"], rel=1e-2)


def test_trace_names_the_parts_of_an_update(found: dict[str, Any], trace: Path) -> None:
    events = json.loads(trace.read_text())["traceEvents"]
    assert set(SECTIONS) <= {event.get("name") for event in events}


def test_table_shows_every_figure(found: dict[str, Any]) -> None:
    out = io.StringIO()
    speed.show(found, Console(file=out, width=120))
    text = out.getvalue()
    assert f"{found['updates_per_s']:,.2f}" in text
    for what in (*SECTIONS, "utilisation", "16 environments", "dmc/walker-walk", "peak memory"):
        assert what in text, what


def test_arithmetic_is_counted_forward_and_backward() -> None:
    a, b = torch.randn(30, 20, requires_grad=True), torch.randn(20, 10, requires_grad=True)
    product = 2e-9 * 30 * 20 * 10
    assert count_gflop(lambda: a @ b) == pytest.approx(product)
    assert count_gflop(lambda: (a @ b).sum().backward()) == pytest.approx(3 * product)


def test_operations_are_counted_and_views_are_not() -> None:
    a = torch.randn(3, 4)
    assert count_kernels(lambda: (a.T[0].unsqueeze(0) + 1).exp().view(-1)) == 2


@pytest.mark.parametrize(("work", "kernels", "gflop"), [("laptop", 2070, 6.64), ("reference", 11_480, 27.4)])
def test_an_update_has_not_become_dearer(work: str, kernels: int, gflop: float) -> None:
    """Counts, which no busy machine can disturb. Raise a limit only for something that is worth it."""
    agent, replay = build(replace(WORKS[work], stored=80))
    agent.update(replay)
    assert count_kernels(lambda: agent.update(replay)) <= kernels
    assert count_gflop(lambda: agent.update(replay)) <= gflop


def test_parts_that_an_agent_does_not_have_take_no_time() -> None:
    """laptop dreams by an ensemble and within its critics' steps."""
    parts = breakdown(*build(replace(WORKS["laptop"], stored=80)), budget=0.1)
    assert tuple(parts) == SECTIONS
    assert {name for name, took in parts.items() if not took} == {"observe", "imagine"}


def test_inner_sections_are_not_booked_twice() -> None:
    now = 0.0
    watch = Stopwatch(clock=lambda: now)

    def spend(seconds: float) -> None:
        nonlocal now
        now += seconds

    inner = watch.timing("inner", spend)

    def work() -> None:
        spend(1)
        inner(10)
        inner(20)
        spend(2)

    watch.timing("outer", work)()
    assert watch.seconds == {"inner": 30, "outer": 3}


def test_timed_update_computes_the_same_and_is_undone() -> None:
    losses = []
    for timed in (False, True):
        agent, replay = build(WORKS["debug"])
        before = agent.world_model.loss, agent.update, torch.Tensor.backward
        torch.manual_seed(1)
        with watched(agent, replay) if timed else nullcontext() as watch:
            losses.append(agent.update(replay)["train/loss/total"])
        assert watch is None or set(watch.seconds) == set(SECTIONS)
        assert (agent.world_model.loss, agent.update, torch.Tensor.backward) == before
    assert losses[0] == losses[1]


def test_the_work_is_shaped_like_the_environment() -> None:
    env = make_env(ENV)
    space = check_observation_space(env.observation_space)
    shapes = {name: entry.shape for name, entry in space.spaces.items()}
    assert shapes == {name: entry.shape for name, entry in OBSERVATIONS.spaces.items()}
    assert env.action_space == ACTIONS
    env.close()


def test_reference_is_the_work_that_peers_were_measured_on() -> None:
    config = WORKS["reference"].agent
    assert (config.batch_size, config.batch_length, config.horizon, config.starts) == (16, 64, 15, None)
    agent = Dreamer(config, OBSERVATIONS, ACTIONS)
    assert agent.num_parameters == pytest.approx(0.64e6, rel=0.02)


@pytest.mark.parametrize(("work", "gigabytes"), [("pixels", 16), ("reference", 1.5), ("laptop", 1.5)])
def test_a_replay_of_a_million_steps_fits(work: str, gigabytes: float) -> None:
    """Latents included; what is counted is what the arrays take."""
    _, replay = build(replace(WORKS[work], stored=1))
    assert replay.bytes_per_step * 1e6 / 2**30 < gigabytes
    taken = sum(array.nbytes for array in replay.arrays.values())
    assert taken == replay.bytes_per_step * replay.num_envs * replay.capacity


def test_pixels_are_the_official_12_m_parameters_on_images() -> None:
    work = replace(WORKS["pixels"], stored=1)
    agent, replay = build(work)
    assert 9e6 < agent.num_parameters < 13e6
    assert replay.arrays["obs/image"].dtype == torch.uint8 and replay.arrays["obs/image"].shape[2:] == (64, 64, 3)


def test_frames_are_counted_in_one_process_and_in_two() -> None:
    try:
        rendering.make_current()
    except EnvError as error:
        pytest.skip(f"nothing can be drawn here: {error}")
    found = frames.frames_per_s(0.1)
    assert tuple(found) == ("ours", "ours_parallel", "dm_control") and min(found.values()) > 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        speed.main(["--device", "cuda"])
    assert stop.value.code == 2
    assert "mbrl doctor" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--seconds", "0"], ["--threads", "0"], ["--profile", "nowhere/x.json"]])
def test_wrong_options_exit_with_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        speed.main(words)
    assert stop.value.code == 2
    assert words[0] in capsys.readouterr().err
