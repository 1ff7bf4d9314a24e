"""Bad input: one message that says what, why and what mends it, exit code 2, no traceback, nothing lost."""

import errno
import json
import os
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from commands import SHORT, TINY, refused

from scripts.main import main

BROKEN_ENVS = """
    import gymnasium
    import numpy as np
    from gymnasium import spaces

    class Base(gymnasium.Env):
        observation_space = spaces.Box(-1, 1, (3,), np.float32)
        action_space = spaces.Discrete(2)
        broken_after = 3

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            self.t = 0
            return np.zeros(3, np.float32), {}

        def step(self, action):
            self.t += 1
            return self.observe(self.t >= self.broken_after), self.reward(self.t), False, self.t >= 10, {}

        def observe(self, broken):
            return np.zeros(3, np.float32)

        def reward(self, t):
            return 0.0

    class NanObservation(Base):
        def observe(self, broken):
            return np.full(3, np.nan if broken else 0, np.float32)

    class NanReward(Base):
        def reward(self, t):
            return float("nan") if t >= self.broken_after else 0.0

    class WrongShape(Base):
        def observe(self, broken):
            return np.zeros(4 if broken else 3, np.float32)

    class WrongType(Base):
        def observe(self, broken):
            return np.array(["text"] * 3) if broken else np.zeros(3, np.float32)

    class SequenceObservation(Base):
        observation_space = spaces.Sequence(spaces.Discrete(2))

    class TextAction(Base):
        action_space = spaces.Text(5)

    class NotAnEnv:
        pass
"""


@pytest.fixture
def broken(tmp_path: Path) -> str:
    file = tmp_path / "broken.py"
    file.write_text(textwrap.dedent(BROKEN_ENVS))
    return str(file)


def train(runs: Path | str, env: str, *more: str) -> list[str]:
    return ["train", env, "--runs-dir", str(runs), "--steps", "400", *TINY, *more]


@pytest.mark.parametrize(
    ("env", "says"),
    [
        ("CartPole-v7", "[ `v0`, `v1` ]"),
        ("CartPool-v1", "Did you mean: `CartPole`?"),
        ("dmc/walker-wolk", "dmc/walker-walk"),
        ("no/such/file.py:Env", "no/such/file.py"),
        ("no_such_module:Env-v0", "no_such_module"),
    ],
)
def test_unknown_environment(env: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert says in refused(capsys, *train(tmp_path, env))


def test_missing_extra(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "minigrid", None)  # as if it were not installed
    assert 'pip install "mbrl-toolkit[minigrid]"' in refused(capsys, *train(tmp_path, "MiniGrid-Empty-5x5-v0"))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("NanObservation", "Environment 0 broke 4 times"),
        ("NanObservation", "the observation 'state' is nan"),
        ("NanReward", "reward is nan"),
        ("WrongShape", "shape"),
        ("WrongType", "type"),
        ("SequenceObservation", "supported"),
        ("TextAction", "supported are"),
        ("NotAnEnv", "gymnasium.Env"),
        ("Missing", "NanReward"),
    ],
)
def test_broken_environments(
    name: str, says: str, broken: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert says in refused(capsys, *train(tmp_path / "runs", f"{broken}:{name}"))


def test_run_directory_of_another_environment(run_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run_copy / "CartPole-v1").rename(run_copy / "Pendulum-v1")
    message = refused(capsys, *train(run_copy, "Pendulum-v1"))
    assert "CartPole-v1" in message and "--fresh" in message


def test_run_directory_of_another_agent(run_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run_copy / "CartPole-v1/dreamer").rename(run_copy / "CartPole-v1/random")
    message = refused(capsys, "train", "CartPole-v1", "--runs-dir", str(run_copy), "--agent", "random")
    assert "dreamer" in message and "--fresh" in message


def checkpoints(runs: Path) -> list[Path]:
    return sorted((runs / "CartPole-v1/dreamer/seed0/checkpoint").iterdir())


def test_run_directory_of_another_format(run_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = checkpoints(run_copy)[-1] / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "format": 99}))
    assert "format 99" in refused(capsys, *train(run_copy, "CartPole-v1"))


def test_another_size_of_model(run_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_copy / "CartPole-v1/dreamer/seed0"
    before = [(run / name).read_bytes() for name in ("config.yaml", "status.json", "metrics.jsonl")]
    message = refused(capsys, *train(run_copy, "CartPole-v1", "--config.model.units", "24"))
    assert "--fresh" in message
    assert [(run / name).read_bytes() for name in ("config.yaml", "status.json", "metrics.jsonl")] == before


def test_corrupted_checkpoint_without_another(run_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in checkpoints(run_copy):
        (path / "model.safetensors").write_bytes(b"spoilt")
    assert "--fresh" in refused(capsys, *train(run_copy, "CartPole-v1"))
    assert "damaged" in refused(capsys, "evaluate", str(run_copy / "CartPole-v1/dreamer/seed0"))


def test_corrupted_checkpoint_falls_back(run_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["train", "CartPole-v1", "--runs-dir", str(run_copy), *SHORT]
    assert main([*line, "--steps", "350"]) == 0
    newest = checkpoints(run_copy)[-1] / "state.pt"
    newest.write_bytes(newest.read_bytes()[:100])
    capsys.readouterr()
    assert main([*line, "--steps", "360"]) == 0
    out = capsys.readouterr().out
    assert "damaged" in out and "continuing from step 300" in out


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_disk_that_takes_nothing(
    number: int, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(number, os.strerror(number), str(tmp_path))

    monkeypatch.setattr(os, "fsync", fail)
    assert os.strerror(number) in refused(capsys, *train(tmp_path, "CartPole-v1"))


def test_runs_directory_that_is_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "runs").touch()
    assert "--runs-dir" in refused(capsys, *train(tmp_path / "runs", "CartPole-v1"))


def test_non_finite_loss(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = refused(capsys, *train(tmp_path, "CartPole-v1", "--config.lr", "nan"))
    assert "non-finite" in message
    assert list(tmp_path.rglob("nonfinite_batch.pt"))


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--agent", "dremer"], "dreamer"),
        (["--preset", "huge"], "laptop"),
        (["--seed", "-1"], "--seed"),
        (["--num-envs", "0"], "--num-envs"),
        (["--threads", "0"], "--threads"),
        (["--minutes", "0"], "--minutes"),
        (["--training.eval-every", "-1"], "--training.eval-every"),
        (["--config.learning-rate", "1"], "--config.learning-rate"),
        (["--device", "cuda:99"], "cuda"),
        (["--device", "mps"], "use auto, cpu or cuda"),
        (["--training.eval-probes", "-1"], "--training.eval-probes"),
        (["--training.replay.capacity", "-1"], "--training.replay.capacity"),
        (["--sinks", "paper"], "tensorboard"),
    ],
)
def test_bad_options(more: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert says in refused(capsys, "train", "CartPole-v1", "--runs-dir", str(tmp_path), *more)


def test_environment_must_be_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert "mbrl train CartPole-v1" in refused(capsys, "train", "--steps", "5")
    assert "mbrl train CartPole-v1" in refused(capsys, "train")
