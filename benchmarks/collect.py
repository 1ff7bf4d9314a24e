"""Collect: what runs have scored, out of their directories and into ``scores.csv`` and ``runs.json``, and back.

``scores.csv`` has one row per evaluation and mode; ``runs.json`` one entry per run with its status (command,
commit, versions, machine), its configuration and every single return. Nothing is chosen: every run that is
there is in it, unfinished ones as well.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from mbrl.errors import UserError
from mbrl.logger import read_lines
from mbrl.run import read_status, write_atomically
from scripts.options import run_directory

Row = dict[str, Any]
Entry = dict[str, Any]
"""One run: agent, env, seed, status, config, evaluations, and quality, the judgements of its world model."""

COLUMNS = ("agent", "env", "seed", "step", "mode", "mean", "std", "episodes", "wall_s", "commit")
"""What every scores.csv has, also those of earlier commits."""
MORE_COLUMNS = ("preset", "updates", "flops", "parameters", "peak_memory_mb")
NUMBERS = {"seed": int, "step": int, "mean": float, "std": float, "episodes": int, "wall_s": float}


def read_entries(runs_dir: Path, place: str = "**") -> list[Entry]:
    """All runs at or below a directory, or at ``place`` in it, by environment, agent and seed."""
    found = [entry for path in sorted(runs_dir.glob(f"{place}/status.json")) if (entry := read_entry(path.parent))]
    return sorted(found, key=run_key)


def run_key(entry: Entry | Row) -> tuple[str, str, int]:
    """Of which run it is."""
    return entry["env"], entry["agent"], entry["seed"]


def read_entry(run: Path) -> Entry | None:
    """One run; None where no `mbrl train` has written what it is."""
    path = run / "config.yaml"
    config = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else None
    if not isinstance(config, dict) or not {"agent", "env", "seed"} <= config.keys():
        return None
    evaluations = []
    updates: dict[int, int] = {}
    quality = []
    for line in read_lines(run / "metrics.jsonl"):
        if "time/updates" in line:
            updates[line["step"]] = int(line["time/updates"])
        if "model/probes" in line:
            known = {name: value for name, value in line.items() if name == "step" or name.startswith("model/")}
            quality.append({name.removeprefix("model/"): value for name, value in known.items()})
    for line in read_lines(run / "scores.jsonl"):
        if "mode" in line:
            evaluations.append({**line, "updates": updates.get(line["step"])})
    entry = {name: config[name] for name in ("agent", "env", "seed")}
    return {**entry, "status": read_status(run), "config": config, "evaluations": evaluations, "quality": quality}


def rows_of(entries: Iterable[Entry], earlier: Sequence[Row] = ()) -> list[Row]:
    """The evaluations; a run that went on with a later commit keeps, from ``earlier``, those of its first scores."""
    commits = {_key(row): row["commit"] for row in earlier}
    rows = []
    for entry in entries:
        status = entry["status"]
        run = {name: entry[name] for name in ("agent", "env", "seed")}
        more = {name: status.get(name) for name in ("parameters", "peak_memory_mb")}
        for line in entry["evaluations"]:
            score = {name: line[name] for name in ("step", "mode", "mean", "std", "episodes")}
            row = {**run, **score, "wall_s": line["wall"], "commit": line.get("commit", status.get("git"))}
            row |= {"preset": entry["config"].get("preset"), "updates": line.get("updates"), **more}
            if row["updates"] is not None and "flops_per_update" in status:
                row["flops"] = row["updates"] * status["flops_per_update"]
            row["commit"] = commits.get(_key(row), row["commit"])
            rows.append(row)
    return rows


def _key(row: Row) -> tuple[str, ...]:
    return tuple(str(row[name]) for name in ("agent", "env", "seed", "step", "mode", "mean", "episodes"))


def write(directory: Path, entries: Sequence[Entry], earlier: Sequence[Row] = ()) -> list[Row]:
    """Write scores.csv and runs.json, and return the rows."""
    rows = rows_of(entries, earlier)
    directory.mkdir(parents=True, exist_ok=True)
    write_scores(directory / "scores.csv", rows)
    (directory / "runs.json").write_text(json.dumps(entries, indent=1, default=str) + "\n", encoding="utf-8")
    return rows


def restore(entries: Iterable[Entry], runs_dir: Path) -> list[Path]:
    """Lay finished runs out as directories again: they say what they scored, but have no checkpoint to go on from.

    Returns:
        The directories that were written; one that is there already is left as it is.
    """
    written = []
    for entry in entries:
        run = run_directory(runs_dir, entry["env"], entry["agent"], entry["seed"])
        if run.exists() or entry["status"].get("state") != "finished":
            continue
        run.mkdir(parents=True)
        quality = [{"step" if name == "step" else f"model/{name}": value for name, value in line.items()}
                   for line in entry.get("quality", ())]  # fmt: skip
        updates = {line["step"]: line["updates"] for line in entry["evaluations"] if line.get("updates") is not None}
        metrics = [*({"step": step, "time/updates": number} for step, number in updates.items()), *quality]
        scores = [{name: value for name, value in line.items() if name != "updates"} for line in entry["evaluations"]]
        for name, lines in (("metrics.jsonl", metrics), ("scores.jsonl", scores)):
            (run / name).write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        (run / "config.yaml").write_text(yaml.safe_dump(entry["config"], sort_keys=False), encoding="utf-8")
        write_atomically(run / "status.json", json.dumps(entry["status"], indent=1))
        written.append(run)
    return written


def write_scores(path: Path, rows: Sequence[Row]) -> None:
    extra = [name for name in MORE_COLUMNS if any(row.get(name) not in (None, "") for row in rows)]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, (*COLUMNS, *extra), extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


def read_scores(path: Path) -> list[Row]:
    """The rows of a scores.csv, numbers as numbers.

    Raises:
        UserError: a column is missing, or a number is none.
    """
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
        if missing:
            raise UserError(f"{path} lacks the columns {', '.join(missing)}; scores.csv has {', '.join(COLUMNS)}")
        try:
            return [{**row, **{name: kind(row[name]) for name, kind in NUMBERS.items()}} for row in reader]
        except (ValueError, TypeError) as error:  # TypeError: a line that ends too soon
            raise UserError(f"{path} holds something that is not a number: {error}") from error


def read(path: Path) -> tuple[list[Row], list[Entry]]:
    """Rows and runs of a run directory, of a directory of runs, or of a scores.csv with the runs.json beside it.

    Raises:
        UserError: no run is there, or one seed of an agent on a task twice.
    """
    stored = path / "scores.csv" if path.is_dir() and not any(path.glob("**/status.json")) else path
    if stored.is_file():
        entries = stored.with_name("runs.json")
        return read_scores(stored), json.loads(entries.read_text(encoding="utf-8")) if entries.is_file() else []
    entries_there = read_entries(path) if path.is_dir() else []
    if not entries_there:
        raise UserError(
            f"no run is in {path}; name run directories as runs/CartPole-v1/dreamer/seed0, directories of them, "
            "or files scores.csv"
        )
    for one, other in pairwise(entries_there):
        if run_key(one) == run_key(other):
            raise UserError(
                f"two runs in {path} are both {one['agent']} on {one['env']} with seed {one['seed']}; name only one of "
                "the directories that they lie in"
            )
    return rows_of(entries_there), entries_there
