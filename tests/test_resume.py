"""A run is never lost: interrupted and continued it equals the uninterrupted one, whatever happens to it."""

from __future__ import annotations

import fcntl
import json
import os
import random
import resource
import shutil
import signal
import time
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from toys import Counting, Seeded, ToyAgent, make_agent, make_replay

import envs as environments
from agents.dreamer import Dreamer, debug
from mbrl.checkpoint import Checkpoints, best, latest, pack, unpack
from mbrl.errors import UserError
from mbrl.logger import Logger
from mbrl.run import only_writer, read_status
from mbrl.trainer import Result
from mbrl.training import TrainConfig, train

CONFIG = TrainConfig(
    steps=90, prefill=20, pretrain=10, update_ratio=0.7, eval_every=40, eval_episodes=2, final_episodes=2,
    log_every=15,
)  # fmt: skip


def interrupt(agent: Any, act_at: int = -1, update_at: int = -1) -> None:
    """The agent signals its own process at a call of ``act`` (by the training loop) or ``update``."""
    left = {"act": act_at, "update": update_at}

    def counted(name: str, function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            left[name] -= kwargs.get("explore", name == "update")  # evaluation passes it by position
            if left[name] == 0:
                os.kill(os.getpid(), signal.SIGTERM)
            return function(*args, **kwargs)

        return call

    agent.act, agent.update = counted("act", agent.act), counted("update", agent.update)


def make_dreamer(envs: Any, gradient: str = "reinforce") -> Dreamer:
    torch.manual_seed(0)
    config = replace(debug().agent, actor_gradient=gradient)
    return Dreamer(config, envs.single_observation_space, envs.single_action_space)


def run(
    directory: Path, name: Any = Seeded, n: int = 1, config: TrainConfig = CONFIG, act_at: int = -1,
    update_at: int = -1, env_states: Any = environments, make: Any = make_agent, **kwargs: Any,
) -> tuple[Result, Any, Any]:  # fmt: skip
    """One process's part of a run: from its newest checkpoint on, if there is one."""
    random.seed(time.time_ns())  # a new process knows nothing of the old one's generators
    np.random.seed(random.randrange(2**32))  # noqa: NPY002
    train_envs, eval_envs = (environments.make_envs(name, k) for k in (n, 2))
    agent: Any = make(train_envs)
    torch.manual_seed(random.randrange(2**32))
    interrupt(agent, act_at, update_at)
    replay, resume = make_replay(agent, train_envs), latest(directory)
    with Logger(directory, None if resume is None else resume.step, sinks=()) as log:
        result = train(
            agent, train_envs, replay, config, log, eval_envs=eval_envs, directory=directory, resume=resume,
            env_states=env_states, **kwargs,
        )  # fmt: skip
    return result, agent, replay


def metrics(directory: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith("time/")} for line in lines]


def assert_same(one: Any, other: Any) -> None:
    """Same agents, bit by bit."""
    a, b = pack(one.state_dict()), pack(other.state_dict())
    assert str(a) == str(b)
    for name, value in a["model"].items():
        assert torch.equal(value, b["model"][name]), name


@pytest.mark.parametrize(
    "moment",
    [{"act_at": 5}, {"update_at": 4}, {"act_at": 40}, {"act_at": 41}, {"act_at": 42}, {"update_at": 37}],
    ids=["prefill", "pretrain", "middle", "next", "next but one", "update"],
)
def test_interrupted_and_resumed_equals_uninterrupted(tmp_path: Path, moment: dict[str, int]) -> None:
    check_resume(tmp_path, moment, Seeded, 1)


def test_several_environments_resume_too(tmp_path: Path) -> None:
    check_resume(tmp_path, {"act_at": 30}, "CartPole-v1", 3)


@pytest.mark.parametrize(
    ("name", "n", "gradient"),
    [("CartPole-v1", 2, "reinforce"), ("Pendulum-v1", 1, "reinforce"), ("Pendulum-v1", 2, "action_values")],
)
def test_dreamer_resumes(tmp_path: Path, name: str, n: int, gradient: str) -> None:
    config = replace(CONFIG, prefill=40, update_ratio=0.2, eval_every=60, final_episodes=1)
    check_resume(tmp_path, {"act_at": 70 // n}, name, n, config=config, make=partial(make_dreamer, gradient=gradient))


def check_resume(directory: Path, moment: dict[str, Any], name: Any, n: int, **kwargs: Any) -> None:
    _, whole, _ = run(directory / "whole", name, n, **kwargs)
    first, _, _ = run(directory / "parts", name, n, **moment, **kwargs)
    assert first.interrupted
    assert read_status(directory / "parts")["state"] == "interrupted"
    second, resumed, _ = run(directory / "parts", name, n, **kwargs)
    assert not second.interrupted and not second.notes
    saved = latest(directory / "parts")
    assert saved is not None and first.env_steps < second.env_steps == saved.step
    assert metrics(directory / "whole") == metrics(directory / "parts")
    assert_same(whole, resumed)
    assert read_status(directory / "parts")["state"] == "finished"


def test_many_interruptions_in_a_row(tmp_path: Path) -> None:
    _, whole, _ = run(tmp_path / "whole")
    parts = 0
    while run(tmp_path / "parts", act_at=13)[0].interrupted:
        parts += 1
    assert parts > 5
    _, resumed, _ = run(tmp_path / "parts")
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "parts")
    assert_same(whole, resumed)


def test_a_crash_costs_what_came_after_the_last_checkpoint_only(tmp_path: Path) -> None:
    _, whole, _ = run(tmp_path / "whole")
    run(tmp_path / "parts", act_at=50)
    saved = latest(tmp_path / "parts")
    assert saved is not None
    shutil.copytree(tmp_path / "parts" / "checkpoint", tmp_path / "kept")
    run(tmp_path / "parts", act_at=30)  # goes on, and is then put back as a crash would have left it
    shutil.rmtree(tmp_path / "parts" / "checkpoint")
    shutil.move(tmp_path / "kept", tmp_path / "parts" / "checkpoint")
    _, resumed, _ = run(tmp_path / "parts")
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "parts")
    assert_same(whole, resumed)


def test_a_finished_run_stays_as_it_is_and_can_be_prolonged(tmp_path: Path) -> None:
    first, agent, _ = run(tmp_path)
    lines = metrics(tmp_path)
    again, same, _ = run(tmp_path)
    assert again.scores == first.scores and metrics(tmp_path) == lines
    assert_same(agent, same)
    longer, _, _ = run(tmp_path, config=replace(CONFIG, steps=120))
    assert longer.env_steps == 120 and longer.updates > first.updates


def test_episodes_that_cannot_be_restored_are_cut(tmp_path: Path) -> None:
    run(tmp_path, Counting, 2, act_at=40, env_states=None)
    result, _, replay = run(tmp_path, Counting, 2, env_states=None)
    assert "cut" in result.notes[0]
    steps = replay.latest(replay.time).steps
    assert torch.equal(steps.is_first[:, 1:], steps.is_last[:, :-1])
    time_in_episode = steps.obs["state"][..., 0]
    inside = ~steps.is_first[:, 1:]
    assert (time_in_episode.diff(dim=1)[inside] == 1).all()
    cut = steps.is_last & (time_in_episode < 3 + steps.obs["state"][..., 1])
    assert cut.any() and not steps.is_terminal[cut].any()


def test_some_episodes_that_cannot_be_restored_are_cut_alone(tmp_path: Path) -> None:
    class HalfForgetful:
        get_states = staticmethod(environments.get_states)

        @staticmethod
        def set_states(envs: Any, states: Any) -> list[bool]:
            environments.set_states(envs, [states[0], {}])
            return [True, False]

    run(tmp_path, Seeded, 2, act_at=44, env_states=HalfForgetful)
    result, _, replay = run(tmp_path, Seeded, 2, env_states=HalfForgetful)
    assert "[1]" in result.notes[0]
    steps = replay.latest(replay.time).steps
    assert torch.equal(steps.is_first[:, 1:], steps.is_last[:, :-1])
    assert (steps.obs["state"][..., 0].diff(dim=1)[~steps.is_first[:, 1:]] == 1).all()


def damage(path: Path, how: str) -> None:
    data = path.read_bytes()
    if how == "missing":
        path.unlink()
    elif how == "truncated":
        path.write_bytes(data[: len(data) // 2])
    else:
        middle = len(data) // 2
        path.write_bytes(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])


@pytest.fixture(scope="module")
def twice_saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("run")
    run(directory, act_at=30)
    run(directory, act_at=20)
    return directory


@pytest.mark.parametrize("name", ["model.safetensors", "state.pt", "replay.npz", "manifest.json"])
@pytest.mark.parametrize("how", ["flipped", "truncated", "missing"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    tmp_path: Path, twice_saved: Path, name: str, how: str
) -> None:
    shutil.copytree(twice_saved, tmp_path / "run")
    before, newest = sorted((tmp_path / "run" / "checkpoint").iterdir())
    damage(newest / name, how)
    found = latest(tmp_path / "run")
    assert found is not None and found.path == before
    assert str(newest) in found.notes[0] and "damaged" in found.notes[0]


def test_a_run_goes_on_from_before_the_damage(tmp_path: Path, twice_saved: Path) -> None:
    shutil.copytree(twice_saved, tmp_path / "run")
    _, newest = sorted((tmp_path / "run" / "checkpoint").iterdir())
    damage(newest / "state.pt", "truncated")
    result, resumed, _ = run(tmp_path / "run")
    assert result.env_steps == CONFIG.steps and "damaged" in result.notes[0]
    assert not newest.exists()
    _, whole, _ = run(tmp_path / "whole")
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "run")
    assert_same(whole, resumed)


def test_when_all_are_damaged_the_error_says_what_to_do(tmp_path: Path) -> None:
    run(tmp_path, act_at=30)
    for path in (tmp_path / "checkpoint").iterdir():
        (path / "state.pt").write_bytes(b"")
    with pytest.raises(UserError, match="--fresh"):
        latest(tmp_path)


def test_damaged_experience_costs_the_experience_alone(tmp_path: Path) -> None:
    run(tmp_path, act_at=50)
    saved = latest(tmp_path)
    assert saved is not None
    saved.manifest["replay"]["time"] = 5000  # asks for chunks that are not there
    train_envs = environments.make_envs(Seeded, 1)
    agent = make_agent(train_envs)
    replay = make_replay(agent, train_envs)
    with Logger(tmp_path, saved.step, sinks=()) as log:
        result = train(agent, train_envs, replay, CONFIG, log, directory=tmp_path, resume=saved)
    assert "experience is damaged" in result.notes[0]
    assert result.env_steps == CONFIG.steps and len(replay) < 60


def test_damaged_experience_does_not_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is gathered in its place is stored whole, and continued from."""
    monkeypatch.setattr("mbrl.replay.CHUNK", 8)
    run(tmp_path, act_at=40)
    chunk = tmp_path / "replay/chunk-000001.npz"
    old = chunk.read_bytes()
    chunk.write_bytes(old[:50])
    first, _, _ = run(tmp_path, act_at=30)
    assert first.interrupted and "experience is damaged" in first.notes[0]
    assert (tmp_path / "replay-damaged/chunk-000001.npz").read_bytes() == old[:50]
    shutil.rmtree(tmp_path / "replay")  # as if killed before the next checkpoint
    second, _, _ = run(tmp_path, act_at=20)
    assert (tmp_path / "replay-damaged/chunk-000001.npz").read_bytes() == old[:50]
    third, _, replay = run(tmp_path)
    assert not third.notes and not third.interrupted
    assert len(replay) >= 20 + CONFIG.steps - second.env_steps


def test_a_finished_run_that_is_asked_for_with_what_does_not_fit_stays_as_it_was(tmp_path: Path) -> None:
    run(tmp_path, run_config={"size": 1})
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    with pytest.raises(UserError, match="number of environments"):
        run(tmp_path, n=2, run_config={"size": 2})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == {"size": 1}


def test_the_commands_that_made_a_run_are_kept_in_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for part, arguments in enumerate((["--a"], ["--a"], ["--b"], ["--a"])):
        monkeypatch.setattr("sys.argv", ["mbrl", *arguments])
        run(tmp_path, act_at=10 if part < 3 else -1)
    status = read_status(tmp_path)
    assert status["command"] == "mbrl --a" and status["continued_with"] == ["mbrl --b", "mbrl --a"]


def test_other_runs_and_other_agents_are_refused(tmp_path: Path) -> None:
    run(tmp_path, act_at=30)
    with pytest.raises(UserError, match=r"number of environments: 1 there, 2 now.*--fresh"):
        run(tmp_path, n=2)
    with pytest.raises(UserError, match="observation space"):
        run(tmp_path, "CartPole-v1")

    def wider(envs: Any) -> ToyAgent:
        agent = ToyAgent(None, envs.single_observation_space, envs.single_action_space)
        agent.memory = torch.nn.Linear(8, 2)
        agent.modules["memory"] = agent.memory
        return agent

    with pytest.raises(UserError, match=r"built differently.*--fresh"):
        run(tmp_path, make=wider)
    with pytest.raises(UserError, match="already holds a run"):
        train_envs = environments.make_envs(Seeded, 1)
        agent = make_agent(train_envs)
        with Logger(tmp_path, 0, sinks=()) as log:
            train(agent, train_envs, make_replay(agent, train_envs), CONFIG, log, directory=tmp_path)


def test_another_format_is_refused(tmp_path: Path) -> None:
    run(tmp_path, act_at=30)
    for path in (tmp_path / "checkpoint").iterdir():
        manifest = json.loads((path / "manifest.json").read_text())
        (path / "manifest.json").write_text(json.dumps({**manifest, "format": 99}))
    with pytest.raises(UserError, match="format 99"):
        latest(tmp_path)


def test_settings_that_changed_are_named_and_the_new_ones_hold(tmp_path: Path) -> None:
    run(tmp_path, act_at=30, run_config={"agent": {"lr": 0.1, "size": 2}})
    result, _, _ = run(tmp_path, run_config={"agent": {"lr": 0.2, "size": 2}})
    assert result.notes == ["agent.lr was 0.1, continues with 0.2"]


class Kept:
    """A replay whose manifest is all there is to it."""

    def save(self, directory: Path, checkpoint: Path) -> dict[str, Any]:
        directory.mkdir(exist_ok=True)
        return {}


def test_a_step_that_is_saved_often_keeps_its_newest(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, {}, starting=True)
    for n in range(6):
        checkpoints.save(7, {"model": {}}, {}, Kept(), {"wall": float(n)})
        newest = latest(tmp_path)
        assert newest is not None and newest.wall == n
    assert len(list((tmp_path / "checkpoint").iterdir())) == 2


def test_the_last_two_and_the_best_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, {}, starting=True)
    for step, score in enumerate([None, 5.0, 9.0, None, 7.0, None, None]):
        checkpoints.save(step, {"model": {}}, {}, Kept(), {"wall": 0.0, "score": score})
    assert sorted(int(path.name) for path in (tmp_path / "checkpoint").iterdir()) == [2, 5, 6]
    newest, highest = latest(tmp_path), best(tmp_path)
    assert newest is not None and highest is not None and (newest.step, highest.step) == (6, 2)
    again = checkpoints.save(6, {"model": {}}, {}, Kept(), {"wall": 1.0, "score": None})
    newest = latest(tmp_path)
    assert newest is not None and newest.path == again and newest.step == 6


def test_a_full_disk_leaves_the_last_checkpoint_whole(tmp_path: Path) -> None:
    run(tmp_path, act_at=30)
    before = latest(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, hard))  # no file may grow further: as on a full disk
    try:
        with pytest.raises(UserError, match=f"cannot write.*{tmp_path}"):
            run(tmp_path, config=replace(CONFIG, log_every=10**6, eval_every=10**6, checkpoint_every=0.0))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    after = latest(tmp_path)
    assert before is not None and after is not None and (after.path, after.notes) == (before.path, ())
    assert not list((tmp_path / "checkpoint").glob(".tmp*"))
    assert read_status(tmp_path)["state"] == "failed"


def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    run(tmp_path, act_at=30)
    shutil.rmtree(tmp_path / "replay")
    (tmp_path / "replay").write_text("in the way")
    (tmp_path / "checkpoint").rename(tmp_path / "elsewhere")
    (tmp_path / "checkpoint").write_text("in the way")
    with pytest.raises(UserError, match=f"cannot write the checkpoint {tmp_path}"):
        run(tmp_path, act_at=30)


def test_two_processes_cannot_train_in_one_directory(tmp_path: Path) -> None:
    with (tmp_path / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another process"):
            run(tmp_path)
    with only_writer(tmp_path), only_writer(tmp_path):  # but one process may say so twice
        run(tmp_path, act_at=5)


def write_for_ever(directory: Path) -> None:
    run(directory, config=replace(CONFIG, steps=10**6, eval_every=10**6, checkpoint_every=0.0))


def test_killed_while_writing_checkpoints_it_never_loses_the_last(tmp_path: Path) -> None:
    delays, last = random.Random(0), -1
    for _ in range(5):
        process = get_context("fork").Process(target=write_for_ever, args=(tmp_path,))
        process.start()
        while newest_step(tmp_path) <= last + 3 and process.is_alive():
            time.sleep(0.01)
        time.sleep(delays.uniform(0, 0.03))
        seen = newest_step(tmp_path)
        process.kill()
        process.join()
        found = latest(tmp_path)
        assert found is not None and not found.notes
        assert found.step >= seen > last
        last = found.step
    result, _, _ = run(tmp_path, config=replace(CONFIG, steps=last + 30))
    assert result.env_steps == last + 30 and not result.notes


def newest_step(directory: Path) -> int:
    names = [path.name[:12] for path in (directory / "checkpoint").glob("*")]
    return max((int(name) for name in names if name.isdigit()), default=-1)


def test_pack_and_unpack_are_inverse(tmp_path: Path) -> None:
    arrays = [np.arange(6.0).reshape(2, 3).T, np.zeros((0, 2)), np.array(["a", "bc"]), np.array(3)]
    generators = [random.getstate(), np.random.default_rng(0).bit_generator.state]
    rest = [np.float64(2.5), (1, [2, None], "x"), b"\x00\xff", 2**127 + 1, generators]
    value = {"arrays": arrays, "rest": rest}
    torch.save(pack(value), tmp_path / "x.pt")
    back = unpack(torch.load(tmp_path / "x.pt", weights_only=True))
    assert back["rest"] == rest
    for one, other in zip(arrays, back["arrays"], strict=True):
        assert np.array_equal(one, other) and one.dtype == other.dtype
    with pytest.raises(TypeError):
        pack(object())


def test_state_files_hold_no_code(tmp_path: Path) -> None:
    run(tmp_path, act_at=60)
    saved = latest(tmp_path)
    assert saved is not None
    assert set(saved.state()) == {"agent", "loop"}
    assert set(saved.model()) == {"memory.weight", "memory.bias", "head.weight", "head.bias"}
    assert saved.wall > 0
