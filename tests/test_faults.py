"""Environments that raise, hang, die, leak or return NaN: restarted, counted, and in the end refused by name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import TINY, refused
from toy_envs import Breaking, Counting, Hopeless, Seeded
from toys import ListLog, make_agent, make_replay

import envs as environments
from envs import EnvError
from envs.vector import MAX_RESTARTS, RestartingVectorEnv, merge
from mbrl.checkpoint import latest
from mbrl.driver import Driver
from mbrl.errors import UserError
from mbrl.evaluation import evaluate
from mbrl.logger import Logger
from mbrl.training import TrainConfig, train
from scripts.main import main

TOYS = Path(__file__).with_name("toy_envs.py")


@contextmanager
def vector(n: int = 1, parallel: bool = False, timeout: float = 60.0, **kwargs: Any) -> Iterator[RestartingVectorEnv]:
    """The first environment breaks, the others do not."""
    names = [lambda: environments.make_env(lambda: Breaking(**kwargs))]
    names += [lambda: environments.make_env(lambda: Counting(8))] * (n - 1)
    with closing(RestartingVectorEnv(names, parallel, timeout)) as envs:
        yield envs


@pytest.fixture
def one_life(tmp_path: Path) -> Path:
    (tmp_path / "lives").write_bytes(b"x")
    return tmp_path / "lives"


WAYS = {
    "raise": (False, "RuntimeError: the simulator diverged"),
    "observation": (False, "the observation 'state' is nan"),
    "reward": (True, "the reward is inf"),
    "sleep": (True, "a timeout: no answer within 1 seconds"),
    "exit": (True, "ended by itself (exit code 7)"),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_broken_environment_is_replaced_and_the_others_go_on(way: str, one_life: Path) -> None:
    parallel, message = WAYS[way]
    with vector(2, parallel, 1.0, way=way, lives=one_life) as envs:
        driver = Driver(envs)
        steps = [driver.reset(seed=0)]
        for t in range(1, 8):
            steps.append(driver.step(torch.zeros(2, 1)))
            assert list(driver.faults) == ([0] if t == 5 else []), t
            assert driver.restarts == (t == 5)
            if t == 5:
                assert message in driver.faults[0]
        assert [int(step.obs["state"][0, 0]) for step in steps] == [0, 1, 2, 3, 4, 0, 1, 2]
        assert [bool(step.is_first[0]) for step in steps] == [t in (0, 5) for t in range(8)]
        assert [int(step.obs["state"][1, 0]) for step in steps] == list(range(8))
        cut = steps[5]
        assert cut.reward[0] == 0 and (cut.action[0] == 0).all() and not cut.is_last[0] and not cut.is_terminal[0]
        assert driver.decisions == 13


def test_by_gymnasiums_interface_alone_the_episode_is_truncated(one_life: Path) -> None:
    with vector(lives=one_life) as envs:
        envs.reset(seed=0)
        for _ in range(4):
            good, *_ = envs.step(np.zeros((1, 1), np.float32))
        obs, reward, terminated, truncated, info = envs.step(np.zeros((1, 1), np.float32))
        np.testing.assert_equal(obs, good)
        assert (reward[0], terminated[0], truncated[0], info["env_restarts"][0]) == (0, False, True, 1)
        obs, *_, truncated, info = envs.step(np.zeros((1, 1), np.float32))
        assert obs["state"][0, 0] == 0 and not truncated[0] and "env_restarts" not in info


def test_the_new_environment_does_not_repeat_the_old_ones_episodes(one_life: Path) -> None:
    with vector(lives=one_life) as envs:
        driver = Driver(envs)
        noise = [driver.reset(seed=0).obs["state"][0, 3]]
        noise += [driver.step(torch.zeros(1, 1)).obs["state"][0, 3] for _ in range(7)]
        assert len(set(map(float, noise))) == 8


@pytest.mark.parametrize("way", ["init", "reset"])
def test_a_restart_that_fails_is_tried_again(way: str, one_life: Path) -> None:
    one_life.write_bytes(b"xx")
    later = one_life.with_name("later")

    def make() -> Any:
        return environments.make_env(lambda: Breaking(way, lives=later))

    with closing(RestartingVectorEnv([make], False)) as envs:
        driver = Driver(envs)
        driver.reset(seed=0)
        one_life.rename(later)  # from now on it breaks
        if way == "init":
            envs.workers[0].kill()  # as a dead process is found
            driver.reset()
        else:
            while not driver.step(torch.zeros(1, 1)).is_last[0]:
                pass
            assert driver.step(torch.zeros(1, 1)).is_first[0]
        assert driver.restarts == (2 if way == "init" else 1)


@pytest.mark.parametrize("parallel", [False, True])
def test_after_some_restarts_the_error_holds_the_environments_own_traceback(parallel: bool) -> None:
    with vector(parallel=parallel, at=3) as envs:
        driver = Driver(envs)
        driver.reset(seed=0)
        for _ in range(3 * MAX_RESTARTS + 2):
            driver.step(torch.zeros(1, 1))
        with pytest.raises(EnvError, match=r"(?s)broke 4 times.*diverged.*toy_envs.py.*in step: raise RuntimeError"):
            driver.step(torch.zeros(1, 1))


def test_faults_with_many_good_steps_between_are_forgiven() -> None:
    with vector(at=60) as envs:
        driver = Driver(envs)
        driver.reset(seed=0)
        restarts = 0
        for _ in range(700):
            driver.step(torch.zeros(1, 1))
            restarts += driver.restarts
        assert restarts > MAX_RESTARTS + 4


def test_an_environment_that_cannot_be_made_is_refused_at_once() -> None:
    def fail() -> Any:
        raise RuntimeError("no licence")

    for parallel in (False, True):
        with pytest.raises(EnvError, match=r"(?s)Environment 0 could not be created.*no licence.*in fail"):
            environments.make_envs(fail, 1, parallel=parallel)


def test_calls_raise_what_the_environment_raises_and_survive_its_death() -> None:
    with closing(environments.make_envs(Seeded, 2, parallel=True)) as envs:
        envs.reset(seed=0)
        with pytest.raises(AttributeError, match="nothing_here"):
            envs.call("nothing_here")
        assert len(environments.get_states(envs)[0]) > 0
        os.kill(envs.workers[0]._process.pid or 0, 9)
        states = environments.get_states(envs)
        assert states[0] == {} and states[1] != {}
        *_, truncated, info = envs.step(np.zeros((2, 1), np.float32))
        assert truncated[0] and "SIGKILL" in info["env_fault"][0]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] != "Z"
    except OSError:
        return False


def pids(envs: Any) -> list[int]:
    return [worker._process.pid for worker in envs.workers]


needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks into /proc")


@needs_proc
def test_closing_ends_every_process_even_one_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("envs.vector.CLOSE_SECONDS", 0.5)
    with vector(2, parallel=True, way="sleep", at=1) as envs:
        envs.reset(seed=0)
        for worker in envs.workers:
            worker.send("step", np.zeros(1, np.float32))
        found = pids(envs)
        assert all(map(is_running, found))
    assert not any(map(is_running, found))


@needs_proc
def test_workers_end_when_their_parent_is_killed() -> None:
    """Also the one in the middle of an endless step."""
    code = (
        "import os, signal, numpy as np\n"
        "from envs.vector import RestartingVectorEnv\n"
        "from toy_envs import Breaking\n"
        "envs = RestartingVectorEnv([lambda: Breaking('sleep', at=1)] * 2, True)\n"
        "envs.reset(seed=0)\n"
        "for worker in envs.workers: worker.send('step', np.zeros(1, np.float32))\n"
        "print(*[worker._process.pid for worker in envs.workers], flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    environ = {**os.environ, "PYTHONPATH": f"{TOYS.parent.parent}{os.pathsep}{TOYS.parent}"}
    done = subprocess.run([sys.executable, "-c", code], env=environ, stdout=subprocess.PIPE, text=True, timeout=60)
    found = [int(word) for word in done.stdout.split()]
    deadline = time.monotonic() + 20
    while any(map(is_running, found)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(found) == 2 and not any(map(is_running, found))


@needs_proc
def test_a_process_that_leaks_is_replaced_between_episodes() -> None:
    def make() -> Any:
        return environments.make_env(lambda: Breaking("leak", at=2))

    with closing(RestartingVectorEnv([make], True)) as envs:
        envs.reset(seed=0)
        envs.memory_limit = envs.worker_memory()[0] + 128
        before, restarts, over = pids(envs), 0, []
        for _ in range(10):
            *_, truncated, info = envs.step(np.zeros((1, 1), np.float32))
            over.append(bool(truncated[0]))
            restarts += int("env_restarts" in info)
            if not any(over):
                assert pids(envs) == before
        assert over == [t == 7 for t in range(10)] and not restarts
        assert pids(envs) != before


# Training and evaluation

CONFIG = TrainConfig(steps=120, prefill=20, update_ratio=0.1, eval_every=10**6, log_every=40)


def run(make: Callable[[], Any], directory: Path, config: TrainConfig = CONFIG, **kwargs: Any) -> Any:
    envs = environments.make_envs(make, 2)
    agent = make_agent(envs)
    replay, resume = make_replay(agent, envs), latest(directory)
    with Logger(directory, None if resume is None else resume.step, sinks=()) as log:
        result = train(
            agent, envs, replay, config, log, directory=directory, resume=resume, env_states=environments, **kwargs
        )
    return result, replay


def test_the_unfinished_episode_is_closed_as_truncated_with_its_last_good_step(tmp_path: Path) -> None:
    (tmp_path / "lives").write_bytes(b"xx")
    result, replay = run(lambda: Breaking(at=30, lives=tmp_path / "lives"), tmp_path / "run")
    steps = replay.latest(replay.time).steps
    time_in_episode = steps.obs["state"][..., 0]
    assert torch.equal(steps.is_first[:, 1:], steps.is_last[:, :-1])
    assert (time_in_episode[steps.is_first] == 0).all()
    assert (time_in_episode.diff(dim=1)[~steps.is_first[:, 1:]] == 1).all()
    assert torch.equal(steps.reward, time_in_episode), "every reward is of the step that it stands with"
    cut = steps.is_last & (time_in_episode < 8 + steps.obs["state"][..., 1])
    assert cut.sum() >= 2 and not steps.is_terminal[cut].any()
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    assert [line["train/env_restarts"] for line in lines if "train/env_restarts" in line][-1] == 2
    assert "the simulator diverged" in result.notes[0] and "restarts so far: 2" in result.notes[0]


def test_a_run_that_an_environment_ends_can_go_on(tmp_path: Path) -> None:
    lives = tmp_path / "lives"
    lives.write_bytes(b"x" * 100)
    with pytest.raises(EnvError, match="broke 4 times"):
        run(lambda: Breaking(at=10, lives=lives), tmp_path / "run")
    saved = latest(tmp_path / "run")
    assert saved is not None and saved.step > 40
    lives.unlink()
    result, replay = run(lambda: Breaking(at=10, lives=lives), tmp_path / "run")
    assert result.env_steps >= CONFIG.steps and "were cut" in result.notes[0]
    steps = replay.latest(replay.time).steps
    assert torch.equal(steps.is_first[:, 1:], steps.is_last[:, :-1])
    assert (steps.obs["state"][..., 0].diff(dim=1)[~steps.is_first[:, 1:]] == 1).all()


def test_a_run_that_its_evaluation_ends_is_saved_exactly(tmp_path: Path) -> None:
    eval_envs = environments.make_envs(Hopeless, 1)
    with pytest.raises(EnvError, match="broke 4 times"):
        run(Seeded, tmp_path, eval_envs=eval_envs)
    result, _ = run(Seeded, tmp_path)
    assert result.env_steps >= CONFIG.steps and not result.notes


def test_scores_are_of_whole_episodes(tmp_path: Path) -> None:
    """Each first episode of these lasts 8 steps and gives 1 + ... + 8; one breaks in its fifth step."""
    (tmp_path / "lives").write_bytes(b"x")
    notes: list[str] = []
    with vector(2, lives=tmp_path / "lives") as envs:
        returns = evaluate(make_agent(envs), envs, seed=0, note=notes.append)
    assert returns.tolist() == [36.0, 36.0]
    assert len(notes) == 1 and "broke 1 times" in notes[0] and "0 of 2" in notes[0]


def test_episodes_that_never_end_well_are_left_out_of_the_score() -> None:
    class Long(Counting):
        def step(self, action: Any) -> Any:
            if self.time == 60:
                raise RuntimeError("the simulator diverged")
            return super().step(action)

    notes: list[str] = []
    makers = [lambda: environments.make_env(lambda: Long(100)), lambda: environments.make_env(lambda: Counting(8))]
    with closing(RestartingVectorEnv(makers)) as envs:
        returns = evaluate(make_agent(envs), envs, seed=0, note=notes.append)
        assert returns.tolist() == [36.0] and "but for 1 of 2 that are left out" in notes[0]
    with closing(RestartingVectorEnv(makers[:1])) as envs, pytest.raises(UserError, match=r"no result.*diverged"):
        evaluate(make_agent(envs), envs, seed=0)


def test_a_whole_run_on_an_environment_that_raises_now_and_then(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["train", f"{TOYS}:Periodic", "--runs-dir", str(tmp_path), *TINY]
    assert main([*line, "--steps", "450", "--training.log-every", "100"]) == 0
    metrics = [json.loads(text) for text in next(tmp_path.rglob("metrics.jsonl")).open()]
    counts = [values["train/env_restarts"] for values in metrics if "train/env_restarts" in values]
    assert counts == sorted(counts) and counts[-1] >= 4
    assert "the simulator diverged" in capsys.readouterr().out


def test_a_run_on_an_environment_that_always_raises(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = refused(capsys, "train", f"{TOYS}:Hopeless", "--runs-dir", str(tmp_path), "--steps", "400", *TINY)
    assert "broke 4 times" in message and "toy_envs.py" in message and "diverged" in message
    assert latest(next(tmp_path.rglob("status.json")).parent) is not None


def test_restarts_are_counted_by_the_log_of_training() -> None:
    envs = environments.make_envs(Breaking, 1, parallel=True)
    agent, log = make_agent(envs), ListLog()
    with closing(envs), pytest.raises(EnvError):
        train(agent, envs, make_replay(agent, envs), TrainConfig(steps=100, prefill=50, log_every=5), log)
    assert [metrics["train/env_restarts"] for _, metrics in log.metrics] == [1, 2, 3]
    assert all(metrics["env/worker_rss_mb"] > 1 for _, metrics in log.metrics)


# ---- what environments say beside ------------------------------------------------------------------


def test_what_rows_say_is_laid_side_by_side_as_gymnasium_does() -> None:
    plain = {0: {"a": 1, "b": np.ones(2), "c": {"d": 2.5}}, 2: {"a": 3, "b": np.zeros(2), "c": {"d": 1.5}, "e": "x"}}
    ours, theirs = merge(plain, 3), {}
    with vector(3) as envs:
        for i, info in plain.items():
            theirs = envs._add_info(theirs, info, i)
    assert ours.keys() == theirs.keys()
    np.testing.assert_equal(ours, theirs)


def test_what_rows_say_need_not_fit_together() -> None:
    """Contacts differ in number, and a goal may be None: nothing is cut, rounded or raised."""
    infos = {0: {"contacts": np.zeros(2), "goal": 1, "mean": 1}, 1: {"contacts": np.ones(3), "goal": None, "mean": 0.5}}
    merged = merge(infos, 2)
    assert [len(value) for value in merged["contacts"]] == [2, 3]
    assert merged["goal"].tolist() == [1, None] and merged["mean"].tolist() == [1.0, 0.5]
    assert merged["_goal"].tolist() == [True, True]
