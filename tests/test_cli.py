"""The command line: its commands, its options, and what they leave behind. Bad input: test_bad_input.py."""

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from commands import SHORT, TINY, refused

from mbrl import commit
from mbrl.checkpoint import latest
from mbrl.errors import UserError
from scripts import options
from scripts.main import COMMANDS, main
from scripts.train import check_unchanged

# ---- commands ----------------------------------------------------------------------------------


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"  {command} " in out for command in COMMANDS)


def test_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert "did you mean `mbrl train`?" in refused(capsys, "trian")
    assert "train, evaluate, benchmark, compare, doctor, check-env" in refused(capsys, "xyz")


def test_debug_shows_the_traceback() -> None:
    with pytest.raises(ValueError, match="NoSuchEnv"):
        main(["train", "NoSuchEnv-v0", "--debug"])


def test_a_defect_of_ours_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(argv: list[str]) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("scripts.doctor.main", fail)
    with pytest.raises(ZeroDivisionError):
        main(["doctor"])


def test_interrupt_has_its_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(argv: list[str]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("scripts.doctor.main", interrupt)
    assert main(["doctor"]) == 130


def test_doctor_prints_one_json_object(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "scripts.doctor.rendering", lambda: {"backend": None, "problems": {"egl": "no library"}}
    )
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["versions"]["torch"] and found["physical_cores"] >= 1
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert "egl: no library" in text and "dm_control (dmc/walker-walk): installed" in text


# ---- mbrl train --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "number"),
    [("100000", 100_000), ("100_000", 100_000), ("1e5", 100_000), ("100k", 100_000), ("1M", 1_000_000),
     ("0.5M", 500_000), ("1.5k", 1500), ("7", 7)],
)  # fmt: skip
def test_steps_are_read_in_every_spelling(text: str, number: int) -> None:
    assert options.read_count(text) == number
    assert options.read_count(options.write_count(number)) == number


@pytest.mark.parametrize("text", ["0", "-5", "-1e5", "many", "", "1.5", "1e400", "nan", "inf", "10kk", "_"])
def test_steps_that_no_run_can_have(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="step"):
        options.read_count(text)
    assert "step" in refused(capsys, "train", "CartPole-v1", "--steps", text)


def test_defaults_in_the_help_are_those_of_the_preset(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    shown = {}
    for preset in ("debug", "reference"):
        with pytest.raises(SystemExit) as exit:
            main(["train", "CartPole-v1", "--preset", preset, "--runs-dir", str(tmp_path), "--help"])
        assert exit.value.code == 0
        shown[preset] = capsys.readouterr().out
        config = options.presets_of("dreamer")[preset].agent
        assert f"(default: {config.lr})" in shown[preset]
    assert shown["debug"] != shown["reference"]


def test_options_reach_every_field(tmp_path: Path) -> None:
    line = [
        "dmc/walker-walk",
        "--seed",
        "3",
        "--steps",
        "2k",
        "--minutes",
        "1.5",
        "--runs-dir",
        str(tmp_path),
    ]
    parsed, resume = options.parse([*line, "--config.lr", "1e-3", "--training.replay.capacity", "5000"])
    assert resume is None
    assert parsed.directory == tmp_path / "dmc_walker-walk" / "dreamer" / "seed3"
    assert (parsed.train_config.steps, parsed.train_config.minutes) == (2000, 1.5)
    assert parsed.config.lr == 1e-3 and parsed.train_config.replay.capacity == 5000


def test_run_directories_hold_any_name() -> None:
    def folder(env: str) -> str:
        return str(options.run_directory(Path("runs"), env, "dreamer", 0))

    assert folder("CartPole-v1") == "runs/CartPole-v1/dreamer/seed0"
    assert folder("dm_control/walker-walk-v0") == folder("dmc/walker-walk")
    assert folder("../my envs/file.py:Env").startswith("runs/my_envs_file.py_Env/")


def test_a_run_holds_everything_about_itself(trained: Path) -> None:
    run = trained / "CartPole-v1/dreamer/seed0"
    assert {
        "config.yaml",
        "metrics.jsonl",
        "scores.jsonl",
        "checkpoint",
        "replay",
        "status.json",
        "report.html",
        "eval.gif",
        "dream.gif",
    } <= {path.name for path in run.iterdir()}
    assert list(run.glob("events*"))
    assert json.loads((run / "status.json").read_text())["state"] == "finished"


def test_more_steps_continue_and_the_command_line_wins(
    run_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["train", "CartPole-v1", "--runs-dir", str(run_copy), *SHORT]
    assert main([*line, "--steps", "400", "--config.lr", "0.5"]) == 0
    out = capsys.readouterr().out
    assert "continuing from step 300" in out
    assert "config.lr" in out and "-> 0.5" in out and "training.steps: 300 -> 400" in out
    config = (run_copy / "CartPole-v1/dreamer/seed0/config.yaml").read_text()
    assert "preset: debug" in config and "lr: 0.5" in config
    steps = [
        json.loads(line)["step"] for line in (run_copy / "CartPole-v1/dreamer/seed0/scores.jsonl").open()
    ]
    assert max(steps) == 400 and steps == sorted(steps)


def test_sigterm_saves_and_the_same_command_continues(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["train", "CartPole-v1", "--runs-dir", str(tmp_path), *TINY]
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "scripts.main", *line, "--steps", "1M", "--training.log-every", "20"],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    while not process.stdout.readline().startswith("step "):
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    rest = process.stdout.read()
    assert process.wait() == 128 + signal.SIGTERM
    assert "interrupted at step" in rest
    step = json.loads(next(tmp_path.rglob("status.json")).read_text())["step"]
    assert main([*line, "--steps", str(step + 10)]) == 0
    assert f"continuing from step {options.write_count(step)}" in capsys.readouterr().out


def test_fresh_removes_the_old_run_and_says_so(run_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    marker = run_copy / "CartPole-v1/dreamer/seed0/old"
    marker.touch()
    line = ["train", "CartPole-v1", "--runs-dir", str(run_copy), "--steps", "30", "--agent", "random"]
    assert main([*line, "--fresh", "--training.final-episodes", "1", "--no-pictures"]) == 0
    assert marker.exists(), "another agent's run is another directory"
    elsewhere = run_copy / "elsewhere"
    elsewhere.mkdir()
    (marker.parent / "link").symlink_to(elsewhere)
    line = ["train", "CartPole-v1", "--runs-dir", str(run_copy), "--steps", "30", *TINY]
    assert main([*line, "--fresh"]) == 0
    assert elsewhere.exists() and not (marker.parent / "link").exists()
    assert not marker.exists()
    assert "--fresh: removing" in capsys.readouterr().err


def test_fresh_leaves_what_is_not_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    precious = tmp_path / "CartPole-v1/dreamer/seed0/thesis.tex"
    precious.parent.mkdir(parents=True)
    precious.touch()
    message = refused(capsys, "train", "CartPole-v1", "--runs-dir", str(tmp_path), "--fresh")
    assert "does not look like a run" in message and precious.exists()


@pytest.mark.parametrize(
    "wrong", [["--sinks", "paper"], ["--device", "mps"], ["--config.actor-gradient", "none"]], ids=" ".join
)
def test_fresh_removes_nothing_for_a_command_that_is_refused(
    wrong: list[str], run_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(capsys, "train", "CartPole-v1", "--runs-dir", str(run_copy), *TINY, "--fresh", *wrong)
    assert latest(run_copy / "CartPole-v1/dreamer/seed0") is not None


def test_a_run_that_went_on_meanwhile_is_not_overwritten(run_copy: Path) -> None:
    directory = run_copy / "CartPole-v1/dreamer/seed0"
    found = latest(directory)
    assert found is not None
    check_unchanged(directory, found)
    check_unchanged(run_copy / "elsewhere", None)
    older = replace(found, path=found.path.with_name("000000000001"))
    for seen in (older, None):
        with pytest.raises(UserError, match="went on while"):
            check_unchanged(directory, seen)


def test_the_commit_of_a_project_that_the_package_is_installed_in_is_not_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "commit.py"
    file.touch()
    monkeypatch.setattr(commit, "__file__", str(file))
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], [*identity, "commit", "-q", "--allow-empty", "-m", "theirs"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    assert commit.git_commit() is None
    subprocess.run(["git", "add", "commit.py"], cwd=tmp_path, check=True)
    assert commit.git_commit() is not None


# ---- mbrl evaluate -----------------------------------------------------------------------------


def test_evaluate_prints_one_json_object(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(trained / "CartPole-v1/dreamer/seed0")
    line = ["evaluate", run, "--episodes", "3", "--json", "--seed", "5"]
    capsys.readouterr()
    assert main(line) == 0
    first = json.loads(capsys.readouterr().out)
    assert first.keys() == {"mode", "sample"}
    for score in first.values():
        assert score.keys() == {"mean", "std", "returns"} and len(score["returns"]) == 3
        assert score["mean"] == pytest.approx(sum(score["returns"]) / 3)
    assert main(line) == 0
    assert json.loads(capsys.readouterr().out) == first, "the same seed gives the same returns"
    assert main([*line, "--mode", "mode"]) == 0
    assert json.loads(capsys.readouterr().out) == {"mode": first["mode"]}


def test_evaluate_judges_the_world_model(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = trained / "CartPole-v1/dreamer/seed0"
    line = ["evaluate", str(run), "--episodes", "2", "--mode", "mode", "--world-model"]
    capsys.readouterr()
    assert main([*line, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["world_model"]
    assert len(found["error"]) == len(found["exploitation_gap"]) == 15 and found["probes"] > 0
    assert main(line) == 0
    assert "world model: exploitation gap" in capsys.readouterr().out
    logged = [json.loads(text) for text in (run / "metrics.jsonl").read_text().splitlines()]
    assert any("model/exploitation_gap" in values for values in logged), "training measures it at each evaluation"
    assert json.loads((run / "status.json").read_text())["flops_per_update"] > 1e5


def test_evaluate_of_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no checkpoint" in refused(capsys, "evaluate", str(tmp_path))
    assert "no checkpoint" in refused(capsys, "evaluate", str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    "bad", [["--episodes", "0"], ["--episodes", "x"], ["--mode", "best"], ["--seed", "-1"]]
)
def test_evaluate_bad_options(trained: Path, bad: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert bad[1] in refused(capsys, "evaluate", str(trained / "CartPole-v1/dreamer/seed0"), *bad)


def test_console_command_in_its_own_process(tmp_path: Path) -> None:
    """What the shell sees: exit code, one line on stderr, nothing on stdout."""
    done = subprocess.run(
        [sys.executable, "-m", "scripts.main", "train", "NoSuchEnv-v0", "--runs-dir", str(tmp_path)],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ") and "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir()), "a run that never began leaves nothing"
