"""The first proof of learning: five tasks, three seeds each, the laptop preset on a CPU.

    python -m benchmarks.first_runs            train what is missing, two runs at a time, then collect
    python -m benchmarks.first_runs --collect  only collect what runs/first-runs holds

Every run is an ordinary ``mbrl train`` with one thread, so an interrupted suite goes on where it was.
What is kept: ``scores.csv`` with every evaluation, ``runs.json`` with command, commit, versions, machine
and configuration of every run. Nothing is chosen: every seed and every evaluation stands there.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml

from mbrl.logger import read_lines

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
COLUMNS = ("agent", "env", "seed", "step", "mode", "mean", "std", "episodes", "wall_s", "commit")


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
    collect()


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


def read_scores() -> list[dict[str, Any]]:
    """What was collected before."""
    path = RESULTS / "scores.csv"
    return list(csv.DictReader(path.open())) if path.exists() else []


def key(row: dict[str, Any]) -> tuple[str, ...]:
    return tuple(str(row[name]) for name in ("agent", "env", "seed", "step", "mode", "episodes"))


def collect() -> None:
    """Read all runs there are into the results folder."""
    rows: list[dict[str, Any]] = []
    runs: list[dict[str, Any]] = []
    for path in sorted(RUNS.glob("**/status.json")):
        status = json.loads(path.read_text())
        config = yaml.safe_load((path.parent / "config.yaml").read_text())
        run = {"agent": config["agent"], "env": config["env"], "seed": config["seed"]}
        evaluations = [line for line in read_lines(path.parent / "scores.jsonl") if "mode" in line]
        status["command"] = " ".join(["mbrl", *command(config["env"], config["seed"])])
        runs.append({**run, "status": status, "config": config, "evaluations": evaluations})
        for line in evaluations:
            score = {key: line[key] for key in ("step", "mode", "mean", "std", "episodes")}
            rows.append({**run, **score, "wall_s": line["wall"], "commit": status.get("git")})
    earlier = {key(row): row["commit"] for row in read_scores()}
    for row in rows:  # a run that went on with a later commit keeps those of its earlier scores
        row["commit"] = earlier.get(key(row), row["commit"])
    RESULTS.mkdir(parents=True, exist_ok=True)
    with (RESULTS / "scores.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    (RESULTS / "runs.json").write_text(json.dumps(runs, indent=1) + "\n")
    for env in BUDGETS:
        last: dict[tuple[int, str], dict[str, Any]] = {}
        for row in rows:
            if row["env"] == env:
                last[row["seed"], row["mode"]] = row
        for (seed, mode), row in sorted(last.items()):
            print(f"{env:22s} seed {seed} {mode:6s} {row['mean']:8.1f} +- {row['std']:.1f} at {row['step']}")


if __name__ == "__main__":
    main()
