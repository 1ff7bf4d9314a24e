"""The first proof of learning: five tasks, three seeds each, the laptop preset on a CPU.

    python -m benchmarks.first_runs            train what is missing, two runs at a time, then collect
    python -m benchmarks.first_runs --collect  only collect what runs/first-runs holds

Every run is an ordinary ``mbrl train`` with one thread, so an interrupted suite goes on where it was.
What is kept: ``scores.csv`` with every evaluation, ``runs.json`` with command, commit, versions, machine
and configuration of every run. Nothing is chosen: every seed and every evaluation stands there.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks import collect
from benchmarks.collect import Row

RUNS = Path("runs/first-runs")
RESULTS = Path(__file__).parent / "results" / "first-runs"
SEEDS = (10, 11, 12)
"""Nobody had looked at these when the preset was settled (EFFICIENCY.md tells what was tuned on which)."""
BUDGETS = {
    "dmc/cartpole-swingup": 60_000,
    "dmc/reacher-easy": 100_000,
    "dmc/walker-walk": 100_000,
    "CartPole-v1": 15_000,
    "Pendulum-v1": 5_000,
}
"""Environment steps per task, action repeat included; evaluated ten times on the way."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--only", nargs="*", default=list(BUDGETS), choices=list(BUDGETS), help="tasks")
    parser.add_argument("--collect", action="store_true", help="train nothing")
    options = parser.parse_args()
    if not options.collect:
        runs = [(env, seed) for env in options.only for seed in SEEDS]
        with ThreadPoolExecutor(options.jobs) as pool:
            list(pool.map(lambda run: train(*run), runs))
    store()


def command(env: str, seed: int) -> list[str]:
    """What follows `mbrl` on the command line."""
    words = ["train", env, "--seed", str(seed), "--steps", str(BUDGETS[env]), "--runs-dir", str(RUNS)]
    return [*words, "--no-pictures", "--training.eval-every", str(BUDGETS[env] // 10)]


def train(env: str, seed: int) -> None:
    """One run, in a process of its own."""
    arguments = command(env, seed)
    print("mbrl", *arguments, flush=True)
    folder = RUNS / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{env.replace('/', '-')}-{seed}.txt").open("a") as log:
        environ = {**os.environ, "OMP_NUM_THREADS": "1"}
        words = [sys.executable, "-m", "scripts.main", *arguments]
        done = subprocess.run(words, stdout=log, stderr=subprocess.STDOUT, env=environ, check=False)
    if done.returncode:
        print(f"{env} seed {seed} ended with exit code {done.returncode}; see {log.name}", flush=True)


def read_scores() -> list[Row]:
    """What was collected before."""
    path = RESULTS / "scores.csv"
    return collect.read_scores(path) if path.exists() else []


def store() -> None:
    """Read all runs there are into the results folder."""
    entries = collect.read_entries(RUNS)
    for entry in entries:
        entry["status"]["command"] = " ".join(["mbrl", *command(entry["env"], entry["seed"])])
    rows = collect.write(RESULTS, entries, read_scores())
    for env in BUDGETS:
        last: dict[tuple[int, str], Row] = {}
        for row in rows:
            if row["env"] == env:
                last[row["seed"], row["mode"]] = row
        for (seed, mode), row in sorted(last.items()):
            print(f"{env:22s} seed {seed} {mode:6s} {row['mean']:8.1f} +- {row['std']:.1f} at {row['step']}")


if __name__ == "__main__":
    main()
