"""Benchmarks: every run is run, none twice and none lost, and what they scored is collected."""

import csv
import fcntl
import io
import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from commands import refused

from benchmarks import board, collect, runner, suites
from benchmarks.runner import Outcome, Paces, Run, execute, makespan, position, seconds_left
from mbrl.errors import UserError
from mbrl.run import is_being_written
from scripts import benchmark
from scripts.benchmark import able, check_same, is_scores, known_paces, seeds
from scripts.main import main

ROOT = Path(__file__).parent.parent
FAKE = (sys.executable, str(Path(__file__).with_name("fake_training.py")))


class Board:
    """Remembers the events; ``look`` is called at each look."""

    def __init__(self, look: Any = None) -> None:
        self.notes: list[str] = []
        self.look = look

    def note(self, text: str) -> None:
        self.notes.append(text)

    def show(self, outcome: Outcome) -> None:
        if self.look is not None:
            self.look(outcome)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "POLL", 0.01)


def plan(tmp_path: Path, *envs: str) -> list[Run]:
    return [Run(env, "random", 0, 100, tmp_path) for env in envs]


def starts(run: Run) -> int:
    return len((run.directory / "starts").read_text().split())


# ---- the runner ----------------------------------------------------------------------------------


def test_every_run_is_run_once(tmp_path: Path) -> None:
    runs = plan(tmp_path, "a", "b", "c")
    outcome = execute(runs, 2, Board(), FAKE)
    assert set(outcome.finished) == set(runs) and outcome.exit_code == 0
    board = Board()
    assert set(execute(runs, 2, board, FAKE).finished) == set(runs)
    assert [starts(run) for run in runs] == [1, 1, 1], "what is finished is not run again"
    assert board.notes == ["3 of 3 runs were finished already"]


def test_a_larger_budget_continues_a_finished_run(tmp_path: Path) -> None:
    [run] = plan(tmp_path, "a")
    execute([run], 1, Board(), FAKE)
    longer = Run("a", "random", 0, 200, tmp_path)
    assert execute([longer], 1, Board(), FAKE).finished == [longer] and starts(run) == 2


def test_a_run_that_dies_is_tried_twice_and_the_rest_goes_on(tmp_path: Path) -> None:
    flaky, broken, fine = plan(tmp_path, "flaky", "broken", "fine")
    outcome = execute([flaky, broken, fine], 1, Board(), FAKE)
    assert set(outcome.finished) == {flaky, fine} and outcome.exit_code == 1
    [failure] = outcome.failed
    assert (failure.run, failure.exit_code, failure.log) == (broken, 3, ("it broke",))
    assert starts(flaky) == starts(broken) == 2


def test_no_more_than_jobs_at_a_time(tmp_path: Path) -> None:
    seen: list[int] = []

    def look(outcome: Outcome) -> None:
        seen.append(len(outcome.running))
        if len(seen) == 5:
            (tmp_path / "go").touch()

    runs = [Run("slow", "random", seed, 100, tmp_path) for seed in range(3)]
    assert len(execute(runs, 2, Board(look), FAKE).finished) == 3
    assert max(seen) == 2


def test_what_somebody_else_trains_is_waited_for(tmp_path: Path) -> None:
    [run] = plan(tmp_path, "a")
    run.directory.mkdir(parents=True)
    lock = (run.directory / ".lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    waited: list[bool] = []

    def look(outcome: Outcome) -> None:
        waited.append(outcome.waiting == [run])
        if len(waited) == 3:
            lock.close()

    assert execute([run], 2, Board(look), FAKE).finished == [run]
    assert waited[:3] == [True] * 3 and starts(run) == 1


DRIVER = """
import sys
from pathlib import Path
from benchmarks.runner import Run, execute
class Board:
    def note(self, text): print(text, flush=True)
    def show(self, outcome): pass
runs = [Run(env, "random", seed, 100, Path(sys.argv[1])) for seed in (0, 1) for env in ("fine", "slow")]
sys.exit(execute(runs, 2, Board(), sys.argv[2:]).exit_code)
"""


def start_driver(tmp_path: Path) -> subprocess.Popen[str]:
    """A benchmark of its own, until both slow runs are on."""
    command = [sys.executable, "-c", DRIVER, str(tmp_path), *FAKE]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    wait_for(lambda: all((tmp_path / f"slow/random/seed{k}/status.json").exists() for k in (0, 1)))
    return process


def wait_for(condition: Any) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.02)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends children with their parent")
def test_killed_in_the_middle_and_started_again_gives_the_same(tmp_path: Path) -> None:
    process = start_driver(tmp_path)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    wait_for(lambda: not any(is_being_written(path.parent) for path in tmp_path.rglob(".lock")))
    states = {path.parent: json.loads(path.read_text())["state"] for path in tmp_path.rglob("status.json")}
    assert list(states.values()).count("interrupted") == 2, "the trainings ended with it, and saved"
    (tmp_path / "go").touch()
    runs = [Run(env, "random", seed, 100, tmp_path) for seed in (0, 1) for env in ("fine", "slow")]
    assert set(execute(runs, 2, Board(), FAKE).finished) == set(runs)
    assert [starts(run) for run in runs] == [1, 2, 1, 2]


def test_interrupted_runs_save_and_nothing_counts_as_failed(tmp_path: Path) -> None:
    process = start_driver(tmp_path)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "stopping 2 runs" in out and "failed" not in out
    states = [json.loads(path.read_text())["state"] for path in tmp_path.glob("slow/random/*/status.json")]
    assert states == ["interrupted", "interrupted"]


def test_paces_of_other_times_tell_how_tasks_differ_and_those_of_here_by_what_factor(tmp_path: Path) -> None:
    paces, (a, b, c) = Paces(), (Run(env, "sac", 0, 1000, tmp_path) for env in "abc")
    assert paces.of(a) is None
    paces.know("sac", None, "a", 0.01)
    paces.know("sac", None, "b", 0.03)
    assert [paces.of(run) for run in (a, b, c)] == pytest.approx([0.01, 0.03, 0.02])
    paces.learn("sac", None, "a", 0.1)  # ten times slower here
    assert [paces.of(run) for run in (a, b, c)] == pytest.approx([0.1, 0.3, 0.1])
    assert paces.of(replace(a, agent="ppo")) is None


def test_position_and_time_left(tmp_path: Path) -> None:
    run, other = Run("a", "random", 0, 1000, tmp_path), Run("a", "random", 1, 1000, tmp_path)
    run.directory.mkdir(parents=True)
    lines = [{"step": 100, "time/seconds": 1.0}, {"step": 300, "time/seconds": 5.0}, {"step": 400, "x": 1}]
    (run.directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 9')
    (run.directory / "scores.jsonl").write_text('{"step": 300, "mode": "mode", "mean": 7.5}\n')
    assert position(run) == runner.Position(400, 7.5, 0.02)
    assert seconds_left(Outcome([other], [run]), 1, Paces()) == pytest.approx(0.02 * (600 + 1000))
    assert seconds_left(Outcome([other], [run]), 2, Paces()) == pytest.approx(0.02 * 1000)
    assert seconds_left(Outcome([other]), 2, Paces()) is None
    (run.directory / "metrics.jsonl").write_text('{"step": 100, "time/seconds": 1.0}\n')
    assert position(run).seconds_per_step is None
    updating = [{"step": 1000 * k, "time/seconds": 1.0 + 50 * (k - 2), "time/updates": k - 2} for k in range(2, 5)]
    (run.directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in updating))
    assert position(run).seconds_per_step == pytest.approx(0.05)
    assert makespan([3, 1, 1, 1], 2) == 3


def test_the_board_shows_every_run_that_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(board, "EVERY_PLAIN", 0)
    stream, run = io.StringIO(), Run("a", "random", 0, 1000, tmp_path)
    with board.Screen(2, Paces(), stream) as screen:
        screen.show(Outcome([], [run], [run, run]))
    assert "2/3 finished, 1 running" in stream.getvalue() and "a random seed0 0/1.0k" in stream.getvalue()
    assert "\x1b" not in stream.getvalue()
    assert board.table({run: position(run)}).row_count == 1


# ---- the command ---------------------------------------------------------------------------------


def test_dry_run_prints_commands_and_hours_and_runs_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run(tmp_path / "made/CartPole-v1/dreamer/seed3", seconds=100.0, step=10_000)
    collect.write(tmp_path / "results/timed", collect.read_entries(tmp_path / "made"))
    monkeypatch.setattr(benchmark, "STORED", tmp_path / "results")
    line = ["benchmark", "CartPole-v1,Pendulum-v1", "--agents", "dreamer,random", "--seeds", "2", "--dry-run"]
    assert main([*line, "--steps", "50k", "--runs-dir", str(tmp_path / "runs")]) == 0
    out = capsys.readouterr().out
    assert out.count("mbrl train ") == 8 and out.count("--steps 50000") == 8
    assert "8 runs, 2 at a time: predicted" in out and "unknown  mbrl train CartPole-v1 --agent random" in out
    assert not (tmp_path / "runs").exists()
    assert main([*line, "--only", "Cart seed1 dreamer"]) == 0
    assert capsys.readouterr().out.count("mbrl train ") == 1


def test_seeds_by_number_or_by_name() -> None:
    assert seeds("3") == [0, 1, 2] and seeds("10,11,12") == [10, 11, 12] and seeds("7,") == [7]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--agents", "dremer"], "there is no agent 'dremer'"),
        (["--agents", "dreamer", "--preset", "huge"], "preset 'huge'"),
        (["--only", "nothing"], "leaves no run"),
        (["--seeds", "x"], "not a number of seeds"),
        (["--jobs", "0"], "1 or more"),
    ],
)
def test_benchmarks_that_cannot_be(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refused(capsys, "benchmark", "CartPole-v1", "--runs-dir", str(tmp_path), *options)
    assert not list(tmp_path.iterdir())


def test_runs_of_another_preset_are_not_taken_for_these(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["benchmark", "CartPole-v1", "--agents", "dreamer", "--seeds", "1", "--runs-dir", str(trained)]
    assert "made with the preset debug, not laptop" in refused(capsys, *line)


def test_agents_are_left_out_where_they_cannot_act(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("agents.random_agent.RandomAgent.actions", "continuous", raising=False)
    assert able("CartPole-v1", ["dreamer", "random"]) == ["dreamer"]
    assert "left out: random on CartPole-v1" in capsys.readouterr().err
    assert able("Pendulum-v1", ["dreamer", "random"]) == ["dreamer", "random"]


def test_a_benchmark_from_the_command_to_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["benchmark", "CartPole-v1", "--agents", "dreamer,random", "--seeds", "1", "--steps", "300"]
    line += ["--preset", "debug", "--runs-dir", str(tmp_path)]
    assert main(line) == 0
    out = capsys.readouterr().out
    assert out.count("finished  CartPole-v1") == 2 and "2/2 finished" in out
    report = tmp_path / "report"
    names = {path.name for path in report.iterdir()}
    assert {"report.html", "report.md", "summary.json", "scores.csv", "runs.json", "learning-curves.png"} <= names
    rows = collect.read_scores(report / "scores.csv")
    assert {(row["agent"], row["preset"]) for row in rows} == {("dreamer", "debug"), ("random", "default")}
    assert {(row["step"], row["episodes"]) for row in rows} == {(300, 20)}
    assert all(float(row["peak_memory_mb"]) > 50 and row["commit"] for row in rows)
    assert "n=1: no interval" in (report / "report.html").read_text()
    before = (report / "scores.csv").read_bytes()
    assert main(line) == 0
    assert "2 of 2 runs were finished already" in capsys.readouterr().out
    assert (report / "scores.csv").read_bytes() == before
    assert main(["compare", str(report / "scores.csv"), "--report", str(tmp_path / "again")]) == 0
    assert (tmp_path / "again/report.html").exists()


# ---- what runs have scored -----------------------------------------------------------------------


def make_run(directory: Path, **status: Any) -> Path:
    """``directory`` ends as .../<env>/dreamer/seed3."""
    directory.mkdir(parents=True)
    env = directory.parts[-3]
    (directory / "config.yaml").write_text(f"env: {env}\nagent: dreamer\npreset: laptop\nseed: 3\n")
    (directory / "status.json").write_text(json.dumps({"state": "finished", "git": "abc", **status}))
    scores = [
        {"step": 50, "episode/score": 9.0, "episode/length": 9},
        {"step": 100, "mode": "mode", "mean": 20.5, "std": 1.5, "episodes": 2, "returns": [19, 22], "wall": 4.5},
        {"step": 100, "mode": "sample", "mean": 10.0, "std": 0.0, "episodes": 2, "returns": [10, 10], "wall": 4.6},
    ]
    (directory / "scores.jsonl").write_text("".join(json.dumps(line) + "\n" for line in scores))
    metrics = [{"step": 100, "time/updates": 25}, {"step": 100, "model/probes": 7, "time/x": 1}]
    (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics))
    return directory


def test_scores_are_collected_and_read_again(tmp_path: Path) -> None:
    make_run(tmp_path / "runs/CartPole-v1/dreamer/seed3", peak_memory_mb=321.5, flops_per_update=1e6)
    rows = collect.write(tmp_path, collect.read_entries(tmp_path / "runs"))
    assert [(row["mode"], row["mean"], row["updates"]) for row in rows] == [("mode", 20.5, 25), ("sample", 10.0, 25)]
    with (tmp_path / "scores.csv").open() as file:
        header = next(csv.reader(file))
    assert tuple(header[:10]) == collect.COLUMNS and "peak_memory_mb" in header and rows[0]["flops"] == 25e6
    again = collect.read_scores(tmp_path / "scores.csv")
    assert [again[0][name] for name in collect.COLUMNS] == [rows[0][name] for name in collect.COLUMNS]
    _, entries = collect.read(tmp_path / "scores.csv")
    assert entries[0]["evaluations"][0]["returns"] == [19, 22] and entries[0]["quality"] == [{"step": 100, "probes": 7}]


def test_stored_runs_are_laid_out_again(tmp_path: Path) -> None:
    make_run(tmp_path / "one/CartPole-v1/dreamer/seed3", peak_memory_mb=321.5)
    make_run(tmp_path / "one/Other-v1/dreamer/seed3", state="interrupted")
    entries = collect.read_entries(tmp_path / "one")
    [run] = collect.restore(entries, tmp_path / "two")
    assert run == tmp_path / "two/CartPole-v1/dreamer/seed3"
    assert [entry for entry in entries if entry["status"]["state"] == "finished"] == collect.read_entries(run)
    assert collect.restore(entries, tmp_path / "two") == [], "what is there is left alone"


def test_a_benchmark_takes_what_is_stored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["benchmark", "CartPole-v1", "--agents", "random", "--seeds", "1", "--steps", "300"]
    assert main([*line, "--runs-dir", str(tmp_path / "one")]) == 0
    stored = tmp_path / "one/report"
    capsys.readouterr()
    again = [*line, "--runs-dir", str(tmp_path / "two"), "--stored", str(stored)]
    assert main(again) == 0
    out = capsys.readouterr().out
    assert "1 of 1 runs are stored" in out and "1 of 1 runs were finished already" in out
    assert (tmp_path / "two/report/scores.csv").read_bytes() == (stored / "scores.csv").read_bytes()
    longer = [*again[:6], "--steps", "600", "--runs-dir", str(tmp_path / "three"), "--stored", str(stored), "--dry-run"]
    assert main(longer) == 0 and "0 of 1 runs are stored" in capsys.readouterr().out
    assert "no run is in" in refused(capsys, *line, "--stored", str(tmp_path / "nowhere"))


def test_scores_keep_the_commit_that_made_them(tmp_path: Path) -> None:
    entries = collect.read_entries(make_run(tmp_path / "run", git="new"))
    earlier = collect.rows_of(collect.read_entries(tmp_path))
    kept = collect.rows_of(entries, [{**earlier[0], "commit": "old"}])
    assert [row["commit"] for row in kept] == ["old", "new"]
    entries[0]["evaluations"][1]["commit"] = "its own"
    assert [row["commit"] for row in collect.rows_of(entries)] == ["new", "its own"]


def test_stored_results_can_be_read() -> None:
    for path in (ROOT / "benchmarks/results").glob("first-runs*/scores.csv"):
        assert is_scores(path) and collect.read_scores(path)


def test_what_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no run is in" in refused(capsys, "compare", str(tmp_path))
    (tmp_path / "scores.csv").write_text("agent,env\n")
    assert "lacks the columns seed, step" in refused(capsys, "compare", str(tmp_path))


def test_the_same_run_in_two_places_is_refused(tmp_path: Path) -> None:
    for place in ("a", "b/c"):
        make_run(tmp_path / place / "CartPole-v1/dreamer/seed3")
    with pytest.raises(UserError, match="are both dreamer on CartPole-v1 with seed 3"):
        collect.read(tmp_path)
    assert len(collect.read(tmp_path / "a")[1]) == 1
    assert known_paces(tmp_path) and len(collect.read_entries(tmp_path / "a", benchmark.PLACE)) == 1


def test_stored_runs_tell_the_pace_of_the_newest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder, day, seconds in (("a", "2026-02-02", 300.0), ("b", "2026-01-01", 100.0)):
        status = {"time": day, "seconds": seconds, "step": 100}
        make_run(tmp_path / "runs" / folder / "CartPole-v1/dreamer/seed3", **status)
        collect.write(tmp_path / folder, collect.read_entries(tmp_path / "runs" / folder))
    monkeypatch.setattr("scripts.benchmark.STORED", tmp_path)
    paces = known_paces(tmp_path / "nothing")
    assert paces.of(Run("CartPole-v1", "dreamer", 0, 1000, tmp_path, (), "laptop")) == 3.0


def test_runs_with_other_options_are_not_taken_for_these(trained: Path) -> None:
    run = Run("CartPole-v1", "dreamer", 0, 300, trained, (), "debug")
    check_same([run], suites.Suite("toy", ("CartPole-v1",)))
    check_same([run], suites.Suite("toy", ("CartPole-v1",), options={"observe": "state", "size": "64"}))
    assert suites.Suite("toy", ("CartPole-v1",)).difference({"observe": "pixels"}) == "observe pixels, not state"
    with pytest.raises(UserError, match="made with the observe state, not pixels"):
        check_same([run], suites.Suite("toy", ("CartPole-v1",), options={"observe": "pixels"}))


def test_baselines_run_with_the_settings_that_are_tuned_for_the_task() -> None:
    pytest.importorskip("stable_baselines3", reason="the baselines need: pip install -e '.[baselines]'")
    options = benchmark.parse(["CartPole-v1,dmc/walker-walk", "--agents", "sac,dqn,ppo", "--seeds", "1"])
    presets = {(run.env, run.agent): run.preset for run in benchmark.plan(options)}
    assert presets[("CartPole-v1", "ppo")] == presets[("CartPole-v1", "dqn")] == "tuned"
    assert presets[("dmc/walker-walk", "sac")] == "tuned"
