"""A benchmark on a cluster: two nodes of a local Ray, which share no directory as far as the runs can tell."""

import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import refused
from test_benchmark import FAKE, ROOT, Board, starts

from benchmarks import cluster, runner
from benchmarks.cluster import Cluster
from benchmarks.runner import Outcome, Run
from mbrl.checkpoint import latest
from mbrl.run import is_being_written, read_status


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Two nodes with one CPU each."""
    pytest.importorskip("ray", reason="a cluster needs: pip install -e '.[ray]'")
    from ray.cluster_utils import Cluster as Local

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PYTHONPATH", str(ROOT))  # as if it were installed there
        patch.setenv("TMPDIR", str(tmp_path_factory.mktemp("nodes")))
        found = Local()
        try:
            found.add_node(num_cpus=1, include_dashboard=False)
            found.add_node(num_cpus=1)
            yield found
        finally:
            found.shutdown()


@pytest.fixture(scope="module")
def ray(local: Any) -> Iterator[Cluster]:
    with Cluster(local.address) as found:
        yield found


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "POLL", 0.01)
    monkeypatch.setattr(cluster, "LOOK", 0.1)
    monkeypatch.setattr(cluster, "SYNC", 0)


def plan(tmp_path: Path, *envs: str) -> list[Run]:
    """Runs at home, which is not where any node trains; `slow` ones wait for a file there."""
    return [Run(env, "random", seed, 100, tmp_path, ("--go", str(tmp_path / "go"))) for seed, env in enumerate(envs)]


def once_they_train(runs: list[Run], act: Callable[[], object]) -> Callable[[Outcome], None]:
    """What they have written is home: now ``act``, once."""
    done: list[bool] = []

    def look(outcome: Outcome) -> None:
        if not done and all(read_status(run.directory) for run in runs):
            done.append(True)
            act()

    return look


def test_all_come_home_and_what_dies_is_tried_twice(tmp_path: Path, ray: Cluster) -> None:
    assert ray.room() == 2
    fine, flaky, broken = runs = plan(tmp_path, "fine", "flaky", "broken")
    board = Board()
    outcome = cluster.execute(runs, None, board, ray, FAKE)
    assert set(outcome.finished) == {fine, flaky} and outcome.exit_code == 1
    [failure] = outcome.failed
    assert (failure.run, failure.exit_code, failure.log) == (broken, 3, ("it broke",))
    assert [starts(run) for run in runs] == [1, 2, 2]
    assert not any("warning" in note or "lost" in note for note in board.notes)
    assert not list(tmp_path.rglob(".*.tmp")) and not is_being_written(broken.directory)
    assert cluster.execute([fine, flaky], None, board, ray, FAKE).exit_code == 0
    assert board.notes[-1] == "2 of 2 runs were finished already" and starts(flaky) == 2


def test_no_more_than_jobs_at_a_time_and_other_code_is_told(
    tmp_path: Path, ray: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.node.code", lambda: "mbrl-toolkit 9, commit abc")
    runs = plan(tmp_path, "slow", "fine")
    seen: list[int] = []

    def look(outcome: Outcome) -> None:
        seen.append(len(outcome.running))
        if seen.count(1) == 20:
            (tmp_path / "go").touch()

    board = Board(look)
    assert set(cluster.execute(runs, 1, board, ray, FAKE).finished) == set(runs)
    assert max(seen) == 1
    [warning] = {note for note in board.notes if "warning" in note}
    assert "here is mbrl-toolkit 9, commit abc" in warning


def test_interrupted_runs_save_come_home_and_go_on_without_a_cluster(tmp_path: Path, ray: Cluster) -> None:
    [run] = plan(tmp_path, "slow")
    written: list[bool] = []

    def interrupt() -> None:
        written.append(is_being_written(run.directory))
        os.kill(os.getpid(), signal.SIGINT)

    board = Board(once_they_train([run], interrupt))
    outcome = cluster.execute([run], None, board, ray, FAKE)
    assert outcome.exit_code == 130 and outcome.waiting == [run] and not outcome.failed
    assert read_status(run.directory)["state"] == "interrupted"
    assert written == [True] and not is_being_written(run.directory), "while a node trained it, nobody here could"
    (tmp_path / "go").touch()
    assert runner.execute([run], 1, Board(), FAKE).finished == [run] and starts(run) == 2


FORGETFUL = """
import json, shutil, sys
from pathlib import Path
run = Path(sys.argv[sys.argv.index("--runs-dir") + 1]) / "a/random/seed0"
old, new = run / "checkpoint/1", run / "checkpoint/2"
assert (old / "state.pt").read_text() == "from home"
shutil.rmtree(old)
new.mkdir()
(new / "state.pt").write_bytes(bytes(range(100)) * 3)
(run / "status.json").write_text(json.dumps({"state": "finished", "step": 100}))
"""


def test_both_sides_have_the_same_files(tmp_path: Path, ray: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.node.PIECE", 7)  # of what is sent
    [run] = plan(tmp_path, "a")
    old = run.directory / "checkpoint/1"
    old.mkdir(parents=True)
    (old / "state.pt").write_text("from home")
    assert cluster.execute([run], None, Board(), ray, (sys.executable, "-c", FORGETFUL)).finished == [run]
    assert not old.exists()
    assert (run.directory / "checkpoint/2/state.pt").read_bytes() == bytes(range(100)) * 3


def test_files_that_others_rely_on_come_first() -> None:
    names = ["r/status.json", "r/checkpoint/2/manifest.json", "r/checkpoint/2/state.pt", "r/replay/chunk-0.npz"]
    assert sorted(names, key=cluster._turn) == names[::-1]


def test_a_training_goes_on_from_its_checkpoint_on_a_node(run_copy: Path, ray: Cluster) -> None:
    options = ("--training.final-episodes", "1")
    run = Run("CartPole-v1", "dreamer", 0, 400, run_copy, options, "debug")
    assert cluster.execute([run], None, Board(), ray).finished == [run]
    checkpoint = latest(run.directory)
    assert checkpoint is not None and checkpoint.step == 400 and not checkpoint.notes
    assert "continuing from step 300" in run.log.read_text()
    assert (run.directory / "report.html").is_file() and is_being_written(run.directory) is False


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends children with their parent")
def test_a_run_whose_node_is_lost_goes_on_elsewhere(tmp_path: Path, local: Any, ray: Cluster) -> None:
    """Comes last in this file: one node is left."""
    runs = plan(tmp_path, "slow", "slow")

    board = Board()
    lose = once_they_train(runs, lambda: local.remove_node(local.list_all_nodes()[-1], allow_graceful=False))

    def look(outcome: Outcome) -> None:
        lose(outcome)
        if any(note.startswith("lost") for note in board.notes):
            (tmp_path / "go").touch()

    board.look = look
    assert set(cluster.execute(runs, None, board, ray, FAKE).finished) == set(runs)
    [lost] = [note for note in board.notes if note.startswith("lost")]
    assert re.search(r"slow random seed[01]  .* was lost: .*; it goes on elsewhere", lost)
    assert sorted(starts(run) for run in runs) == [1, 2] and not any("died" in note for note in board.notes)


# ---- without a cluster ---------------------------------------------------------------------------


def test_clusters_that_cannot_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    line = ["benchmark", "CartPole-v1", "--agents", "random", "--runs-dir", str(tmp_path)]
    assert "needs --cluster" in refused(capsys, *line, "--gpus-per-run", "0.5")
    assert "1.5' is not a number of GPUs" in refused(capsys, *line, "--cluster", "x:1", "--gpus-per-run", "1.5")
    monkeypatch.setitem(sys.modules, "ray", None)
    assert "pip install 'mbrl-toolkit[ray]'" in refused(capsys, *line, "--cluster", "127.0.0.1:1")
    assert not list(tmp_path.iterdir())


def test_a_cluster_that_does_not_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("ray", reason="a cluster needs: pip install -e '.[ray]'")
    line = ["benchmark", "CartPole-v1", "--agents", "random", "--runs-dir", str(tmp_path), "--cluster"]
    assert "no Ray cluster answers at 127.0.0.1:1" in refused(capsys, *line, "127.0.0.1:1")
    assert "'nowhere' is no address" in refused(capsys, *line, "nowhere")
