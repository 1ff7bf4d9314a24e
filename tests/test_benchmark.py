"""Benchmarks: every run is run, none twice and none lost; what they scored becomes a report that says it right."""

import csv
import fcntl
import io
import json
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import refused

from benchmarks import board, collect, runner
from benchmarks.collect import Entry, Row
from benchmarks.report import Failed, write_report
from benchmarks.runner import Outcome, Paces, Run, execute, makespan, position, seconds_left
from benchmarks.summary import Summary, headline, read_curves, summarise
from mbrl.run import is_being_written
from scripts import benchmark
from scripts.benchmark import able, is_scores, seeds
from scripts.compare import tell_apart
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
    stored = tmp_path / "results/timed"
    stored.mkdir(parents=True)
    timed = [{**row, "preset": "laptop"} for row in rows_of("dreamer", WALK, FAST[0])]
    collect.write_scores(stored / "scores.csv", timed)
    monkeypatch.setattr(benchmark, "STORED", stored.parent)
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
    directory.mkdir(parents=True)
    (directory / "config.yaml").write_text("env: CartPole-v1\nagent: dreamer\npreset: laptop\nseed: 3\n")
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


# ---- what it means -------------------------------------------------------------------------------

STEPS = (10_000, 20_000, 40_000)


def rows_of(agent: str, env: str, *returns: tuple[float, ...]) -> list[Row]:
    """One tuple of evaluations a seed."""
    common = {"mode": "mode", "std": 1.0, "episodes": 20, "commit": "abc"}
    return [
        {**common, "agent": agent, "env": env, "seed": seed, "step": step, "mean": mean, "wall_s": step / 100}
        for seed, means in enumerate(returns)
        for step, mean in zip(STEPS, means)
    ]


def summary_of(*rows: list[Row], entries: tuple[Entry, ...] = ()) -> Summary:
    found = [row for part in rows for row in part]
    return summarise("toy", found, entries, list(dict.fromkeys(row["agent"] for row in found)))


WALK, RUN = "dmc/walker-walk", "dmc/walker-run"
FAST = ((850.0, 900.0, 950.0),) * 3
SLOW = ((100.0, 300.0, 820.0),) * 3
NEVER = ((10.0, 20.0, 30.0),) * 3


def test_the_headline_of_one_task() -> None:
    found = summary_of(rows_of("dreamer", WALK, *FAST), rows_of("sac", WALK, *SLOW))
    [pair] = found.comparisons
    text = headline(pair, "toy")
    assert text == (
        f"dreamer reaches 800 in 10k steps, sac in 40k: 4.0 times fewer [4.0, 4.0], on {WALK}."
    )
    assert pair.probability.value == 1 and pair.lost == []


def test_the_headline_of_more_tasks_and_where_it_loses() -> None:
    rows = [rows_of("dreamer", WALK, *FAST), rows_of("sac", WALK, *SLOW)]
    found = summary_of(*rows, rows_of("dreamer", RUN, *SLOW), rows_of("sac", RUN, *((700.0, 880.0, 900.0),) * 3))
    [pair] = found.comparisons
    assert pair.ratio.value == pytest.approx(np.sqrt(4 * 0.5))
    assert headline(pair, "toy").startswith("dreamer reaches 800 in 20k steps, sac in 28.3k: 1.4 times fewer")
    assert pair.lost == [f"{RUN} (820 against 900 at the end, 2 times the steps to 800)"]


def test_a_loss_may_be_within_the_noise_of_the_seeds() -> None:
    slow = rows_of("dreamer", WALK, (0.0, 0.0, 500.0), (0.0, 0.0, 600.0))
    [pair] = summary_of(slow, rows_of("sac", WALK, (0.0, 0.0, 540.0), (0.0, 0.0, 580.0))).comparisons
    assert pair.lost == [f"{WALK} (550 against 560 at the end, within the noise of the seeds)"]
    [pair] = summary_of(slow, rows_of("sac", WALK, (0.0, 0.0, 601.0), (0.0, 0.0, 602.0))).comparisons
    assert pair.lost == [f"{WALK} (550 against 601.5 at the end)"]


def test_a_comparator_that_never_gets_there_is_censored() -> None:
    [pair] = summary_of(rows_of("dreamer", WALK, *FAST), rows_of("sac", WALK, *NEVER)).comparisons
    assert headline(pair, "toy") == (
        f"dreamer reaches 800 in 10k steps, sac in more than 40k: at least 4.0 times fewer [4.0, ∞], on {WALK}."
    )
    [pair] = summary_of(rows_of("dreamer", WALK, *NEVER), rows_of("sac", WALK, *SLOW)).comparisons
    words = "dreamer reaches 800 in more than 40k steps, sac in 40k: at least 1.0 times more"
    assert headline(pair, "toy").startswith(words)
    [pair] = summary_of(rows_of("dreamer", WALK, *NEVER), rows_of("sac", WALK, *NEVER)).comparisons
    assert headline(pair, "toy").startswith("Neither dreamer nor sac reaches 800")


def test_one_seed_has_no_interval(tmp_path: Path) -> None:
    rows = [*rows_of("dreamer", WALK, FAST[0]), *rows_of("sac", WALK, SLOW[0])]
    write_report(tmp_path, rows, [], ["dreamer", "sac"], "toy")
    page = (tmp_path / "report.html").read_text()
    assert "4.0 times fewer (n=1: no interval)" in page and not re.search(r"\bnan\b", page)


def test_unfinished_runs_do_not_count_and_broken_ones_keep_their_last_score() -> None:
    rows = rows_of("sac", WALK, SLOW[0], (100.0, 300.0))
    curves, left_out = read_curves(rows, set())
    assert curves["sac", WALK].seeds == (0,) and "has come to step 20000 of 40000" in left_out[0]
    curves, left_out = read_curves(rows, {f"{WALK} sac seed1"})
    assert curves["sac", WALK].returns.tolist() == [[100, 300, 820], [100, 300, 300]] and "broke" in left_out[0]


def test_tasks_without_a_known_scale_are_measured_from_random_up() -> None:
    rows = [rows_of("dreamer", "My-v0", (1.0, 5.0, 9.0)), rows_of("random", "My-v0", (1.0, 1.0, 1.0))]
    [task] = summary_of(*rows).tasks
    assert (task.scale.low, task.scale.high, task.scale.measured) == (1, 9, True)


def test_the_report_is_whole_and_needs_nothing_else(tmp_path: Path) -> None:
    rows = [row for agent, means in (("dreamer", FAST), ("sac", SLOW)) for row in rows_of(agent, WALK, *means)]
    failed = [Failed("dmc/walker-walk ppo seed0", 3, ("it <broke>",))]
    page = write_report(tmp_path, rows, [], ["dreamer", "sac"], "toy", failed).read_text()
    assert "4.0 times fewer [4.0, 4.0]" in page and "it &lt;broke&gt;" in page
    assert "prefers-color-scheme: dark" in page and "var(--a1)" in page and "#0101" not in page
    assert not re.search(r'(src|href)="(?!#)', page) and "http" not in page
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["comparisons"][0]["ratio"]["value"] == pytest.approx(4)
    assert "4.0 times fewer" in (tmp_path / "report.md").read_text()
    for chart in ("learning-curves", "wall-clock", "profiles", "aggregates", "aggregate-curve"):
        assert (tmp_path / f"{chart}.svg").exists() and (tmp_path / f"{chart}.png").stat().st_size > 1000


def test_world_models_are_judged_in_the_report(tmp_path: Path) -> None:
    lists = ("error", "reward_error", "coverage", "reward_coverage", "spread", "imagined_return", "true_return")
    quality = {name: [0.1, 0.2, 0.3] for name in lists} | {"probes": 9, "continue_accuracy": 1.0, "ends_foreseen": None}
    gaps = (1.25, 1.75)
    runs = {"dreamer": [{"step": 40, **quality, "exploitation_gap": [0.0, 1.0, gap]} for gap in gaps], "sac": []}
    entries: list[Entry] = [
        {"agent": agent, "env": WALK, "seed": seed, "status": {}, "config": {}, "quality": found}
        for agent, judgements in runs.items()
        for seed, found in enumerate([[one] for one in judgements] or [[]])
    ]
    rows = [row for agent in runs for row in rows_of(agent, WALK, *FAST)]
    page = write_report(tmp_path, rows, entries, ["dreamer", "sac"], "toy").read_text()
    assert "World model of dreamer" in page and "1.5 [1.25, 1.75]" in page and "World model of sac" not in page
    lines = list(csv.DictReader((tmp_path / "world-models.csv").open()))
    assert len(lines) == 2 * 3 and lines[2]["ahead"] == "3" and lines[2]["exploitation_gap"] == "1.25"
    assert lines[0]["ends_foreseen"] == "" and (tmp_path / "world-model-dreamer.svg").exists()


def test_arithmetic_is_an_axis_where_it_was_counted(tmp_path: Path) -> None:
    rows = rows_of("dreamer", WALK, *FAST)
    write_report(tmp_path / "unknown", rows, [], ["dreamer"], "toy")
    assert not (tmp_path / "unknown/flops.svg").exists()
    counted = [{**row, "updates": row["step"], "flops": 1.5e9 * row["step"]} for row in rows]
    page = write_report(tmp_path / "known", counted, [], ["dreamer"], "toy").read_text()
    assert (tmp_path / "known/flops.svg").exists() and "<td>60.0</td>" in page, "40k updates of 1.5 GFLOP"


def test_published_curves_are_named_with_their_protocol_and_stay_out_of_the_numbers(tmp_path: Path) -> None:
    page = write_report(tmp_path, rows_of("dreamer", WALK, *FAST), [], ["dreamer"], "toy").read_text()
    assert "DreamerV3, published (train)" in page and "(eval)" in page
    assert "DreamerV3" not in (tmp_path / "summary.json").read_text()


def test_agents_of_two_commits_or_presets_are_told_apart(tmp_path: Path) -> None:
    old, new = tmp_path / "old/scores.csv", tmp_path / "new/scores.csv"
    rows = rows_of("dreamer", WALK, *FAST)
    names = [found[0]["agent"] for _, found, _ in tell_apart([(new, rows, []), (old, rows, [])])]
    assert names == ["dreamer (new)", "dreamer (old)"]
    single = [(tmp_path / f"seed{k}", rows_of("dreamer", WALK, *FAST)[3 * k : 3 * k + 3], []) for k in (0, 1)]
    assert {found[0]["agent"] for _, found, _ in tell_apart(single)} == {"dreamer"}
    debug = [{**row, "preset": "debug", "seed": 9} for row in rows[:3]]
    mixed = tell_apart([(new, [*({**row, "preset": "laptop"} for row in rows), *debug], [])])
    assert {row["agent"] for row in mixed[0][1]} == {"dreamer/laptop", "dreamer/debug"}


def test_baselines_run_with_the_settings_that_are_tuned_for_the_task() -> None:
    pytest.importorskip("stable_baselines3", reason="the baselines need: pip install -e '.[baselines]'")
    options = benchmark.parse(["CartPole-v1,dmc/walker-walk", "--agents", "sac,dqn,ppo", "--seeds", "1"])
    presets = {(run.env, run.agent): run.preset for run in benchmark.plan(options)}
    assert presets[("CartPole-v1", "ppo")] == presets[("CartPole-v1", "dqn")] == "tuned"
    assert presets[("dmc/walker-walk", "sac")] == "tuned"
