"""The logger: valid lines, resuming, dashboards. The screen: a table for eyes, lines for logs."""

import io
import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mbrl.errors import UserError
from mbrl.logger import Logger, cut
from mbrl.screen import Screen, duration, number, steps


def lines(path):
    """Strict JSON: a NaN token fails here."""

    def refuse(token):
        raise AssertionError(f"not JSON: {token}")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


def test_scalars_and_curves_become_one_line(tmp_path):
    with Logger(tmp_path, sinks=()) as log:
        film = np.ones((2, 3))
        log.scalars(7, {"a": 1, "b": torch.tensor(2.0), "c": [0.5, 1.5], "d": np.float32(3), "film": film})
        assert lines(tmp_path / "metrics.jsonl") == [{"step": 7, "a": 1, "b": 2, "c": [0.5, 1.5], "d": 3}]


def test_non_finite_numbers_become_null(tmp_path):
    with Logger(tmp_path, sinks=()) as log:
        log.scalars(1, {"nan": float("nan"), "curve": [1.0, float("inf")]})
        log.evaluation(1, "mode", [1.0, float("-inf")])
    assert lines(tmp_path / "metrics.jsonl")[0] == {"step": 1, "nan": None, "curve": [1.0, None]}
    assert lines(tmp_path / "scores.jsonl")[0]["returns"] == [1.0, None]


def test_episodes_and_evaluations(tmp_path):
    with Logger(tmp_path, sinks=(), episode_window=2) as log:
        for k, ret in enumerate([10.0, 20.0, 40.0]):
            log.episode(100 * k, ret, 50)
        log.evaluation(300, "mode", [1.0, 3.0])
        log.evaluation(300, "sample", np.array([5.0]))
        with pytest.raises(ValueError, match="'best'"):
            log.evaluation(300, "best", [1.0])
    scores, metrics = lines(tmp_path / "scores.jsonl"), lines(tmp_path / "metrics.jsonl")
    assert scores[2] == {"step": 200, "episode/score": 40, "episode/length": 50}
    assert metrics[2]["charts/episodic_return"] == 40 and metrics[2]["rollout/ep_rew_mean"] == 30
    wall = scores[3].pop("wall")
    assert wall >= 0
    assert scores[3] == {"step": 300, "mode": "mode", "mean": 2, "std": 1, "episodes": 2, "returns": [1, 3]}
    assert metrics[3:] == [{"step": 300, "eval/mean_reward": 2}, {"step": 300, "eval/sample_mean_reward": 5}]


def test_evaluations_name_the_commit_that_scored_them(tmp_path):
    for resume, commit in ((None, "old"), (10, "new")):
        with Logger(tmp_path, resume, sinks=(), commit=commit) as log:
            log.evaluation(10 if resume is None else 20, "mode", [1.0])
    assert [line["commit"] for line in lines(tmp_path / "scores.jsonl")] == ["old", "new"]


def test_resume_cuts_what_ran_ahead_and_torn_lines(tmp_path):
    with Logger(tmp_path, sinks=()) as log:
        for step in (10, 20, 30):
            log.episode(step, step, 10)
    for name in ("metrics.jsonl", "scores.jsonl"):
        with (tmp_path / name).open("a") as file:
            file.write('{"step": 15, "train/lo')
    with Logger(tmp_path, resume_step=20, sinks=(), wall_offset=100.0) as log:
        assert log.wall >= 100
        log.episode(40, 60.0, 10)
    assert [line["step"] for line in lines(tmp_path / "scores.jsonl")] == [10, 20, 40]
    metrics = lines(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in metrics] == [10, 20, 40]
    assert metrics[-1]["rollout/ep_rew_mean"] == 30  # (10 + 20 + 60) / 3: the window came back, without 30
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl", "scores.jsonl"]


def test_a_crash_while_cutting_loses_nothing(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n')

    def crash(*_):
        raise OSError("power cut")

    monkeypatch.setattr("mbrl.logger.os.fsync", crash)
    with pytest.raises(OSError, match="power cut"):
        cut(path, 1)
    assert [line["step"] for line in lines(path)] == [1, 2]


def test_a_new_run_does_not_mix_with_an_old_one(tmp_path):
    for value in (1.0, 2.0):
        with Logger(tmp_path, sinks=()) as log:
            log.scalars(5, {"value": value})
    assert lines(tmp_path / "metrics.jsonl") == [{"step": 5, "value": 2}]
    assert lines(tmp_path / "metrics.jsonl.old") == [{"step": 5, "value": 1}]


def test_nothing_is_touched_before_the_first_line(tmp_path):
    with Logger(tmp_path, sinks=()) as log:
        log.scalars(5, {"value": 1.0})
    for resume_step in (None, 2):
        with Logger(tmp_path, resume_step):
            pass
    assert [path.name for path in tmp_path.iterdir() if "old" in path.name or "events" in path.name] == []
    assert lines(tmp_path / "metrics.jsonl") == [{"step": 5, "value": 1}]
    with Logger(tmp_path, sinks=()) as log:
        log.open()
    assert lines(tmp_path / "metrics.jsonl.old") == [{"step": 5, "value": 1}]


def test_tensorboard_forgets_what_ran_ahead(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with Logger(tmp_path) as log:
        for step in (10, 20, 30):
            log.scalars(step, {"loss": float(step), "curve": [1.0, 2.0, 3.0, 4.0, 5.0]})
    with Logger(tmp_path, resume_step=20) as log:
        log.scalars(25, {"loss": 25.0})
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(10, 10.0), (20, 20.0), (25, 25.0)]
    assert [e.value for e in events.Scalars("curve/5")] == [5.0, 5.0]


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_trackers_go_on_under_one_name(tmp_path, monkeypatch, name):
    calls = []
    fake = SimpleNamespace(
        __name__=name,
        init=lambda **options: calls.append(options),
        log=lambda values, step: calls.append((step, values)),
        finish=lambda: calls.append("finish"),
    )
    monkeypatch.setitem(sys.modules, name, fake)
    for resume_step in (None, 3):
        with Logger(tmp_path, resume_step, sinks=(name,)) as log:
            log.scalars(3, {"loss": 1.0, "curve": [2.0]})
    assert calls[1] == (3, {"loss": 1.0, "curve/1": 2.0}) and calls[2] == "finish"
    assert calls[0] == calls[3] and calls[0]["resume"] == "allow"


def test_a_missing_sink_says_how_to_get_it_and_touches_nothing(tmp_path, monkeypatch):
    (tmp_path / "metrics.jsonl").write_text('{"step": 9}\n')
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="pip install wandb"):
        Logger(tmp_path, resume_step=1, sinks=("wandb",))
    with pytest.raises(UserError, match="tensorboard, wandb, trackio"):
        Logger(tmp_path, sinks=("tensorbord",))
    assert lines(tmp_path / "metrics.jsonl") == [{"step": 9}]


def test_importing_the_logger_is_cheap():
    heavy = ("matplotlib", "tensorboard", "torch")
    code = f"import sys, mbrl.logger; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_screen_writes_one_plain_line_per_log_where_nobody_watches(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # set by many a CI
    stream = io.StringIO()
    with Screen(["CartPole-v1"], stream) as screen:
        screen.heartbeat("training")
        screen.row({"step": 2000, "return": 22.0, "eval": (21.0, 1.2), "model": None, "left": 150.0})
        screen.note("checkpoint saved")
        screen.row({"step": 20000, "return": 489.0, "left": 0.0, "note": "solved (475)"})
        screen.close(["next:  mbrl evaluate"])
    text = stream.getvalue()
    assert "\x1b" not in text and "\r" not in text
    assert [" ".join(line.split()) for line in text.splitlines()] == [
        "CartPole-v1",
        "step 2.0k return 22.0 eval 21 +- 1 model - left 2m30",
        "checkpoint saved",
        "step 20.0k return 489 left 0s solved (475)",
        "next: mbrl evaluate",
    ]


def test_screen_gives_the_terminal_back_after_ctrl_c(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    with pytest.raises(KeyboardInterrupt), Screen(["title"], terminal) as screen:
        screen.row({"step": 1, "return": 2.0})
        raise KeyboardInterrupt
    text, hide, show = terminal.getvalue(), "\x1b[?25l", "\x1b[?25h"
    assert hide in text and text.rindex(show) > text.rindex(hide)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_numbers_as_people_write_them():
    assert [steps(n) for n in (500, 2000, 999_960, 1_250_000)] == ["500", "2.0k", "1.00M", "1.25M"]
    assert [duration(s) for s in (45, 59.7, 150, 11_100, 187_200)] == ["45s", "1m00", "2m30", "3h05", "2d04h"]
    assert [number(x) for x in (489.2, 31.23, -0.05, 3.1e-4)] == ["489", "31.2", "-0.050", "3.1e-04"]
    assert number(float("nan")) == "nan" and duration(float("inf")) == "-"
