"""`mbrl compare RUN...`: the benchmark's report from runs that exist, also of other commits.

A RUN is a run directory, a directory of runs, or a scores.csv. The agent of the first one is judged.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from benchmarks import collect
from benchmarks.collect import Entry, Row
from benchmarks.report import headlines, losses, write_report
from benchmarks.summary import summarise
from mbrl.errors import UserError

Source = tuple[Path, list[Row], list[Entry]]


def main(argv: list[str]) -> int:
    options = parse(argv)
    sources = tell_apart([(path, *collect.read(path)) for path in dict.fromkeys(options.runs)])
    rows = [row for _, found, _ in sources for row in found]
    entries = [entry for _, _, found in sources for entry in found]
    there = list(dict.fromkeys(row["agent"] for row in rows))
    agents = options.agents or there
    if missing := [agent for agent in agents if agent not in there]:
        raise UserError(f"--agents: there is no {', '.join(missing)}; there are: {', '.join(there) or 'none'}")
    page = write_report(options.report, rows, entries, agents, options.title)
    collect.write_scores(options.report / "scores.csv", rows)
    summary = summarise(options.title, rows, entries, agents)
    print("\n".join([*headlines(summary), *losses(summary), *summary.left_out, f"report: {page}"]))
    return 0


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="mbrl compare", description=__doc__.split("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run, a directory of runs, a scores.csv")
    parser.add_argument("--agents", type=lambda text: text.split(","), help="which, the one to judge first (all)")
    parser.add_argument(
        "--report", type=Path, default=Path("runs/comparison"), metavar="DIR", help="(runs/comparison)"
    )
    parser.add_argument("--title", default="comparison", help="what the report calls itself")
    return parser.parse_args(argv)


def tell_apart(sources: Sequence[Source]) -> list[Source]:
    """Agents of one name become two where their preset differs, or where they come out of two collections of runs.

    Single runs of an agent, each named by itself, stay together unless two of them are the same task and seed.
    """
    presets: dict[str, set[str]] = {}
    for _, rows, _ in sources:
        for row in rows:
            presets.setdefault(row["agent"], set()).add(row.get("preset") or "")
    keys = [{(row["agent"], row["env"], row["seed"]) for row in rows} for _, rows, _ in sources]
    twice = {key[0] for key, times in Counter(key for found in keys for key in found).items() if times > 1}
    counts = [Counter(agent for agent, _, _ in found) for found in keys]
    collected = Counter(agent for found in counts for agent in found if max(other[agent] for other in counts) > 1)
    twice |= {agent for agent, times in collected.items() if times > 1}
    names = labels([path for path, _, _ in sources])

    def name(agent: str, preset: str | None, label: str) -> str:
        full = f"{agent}/{preset}" if preset and len(presets.get(agent, ())) > 1 else agent
        return f"{full} ({label})" if agent in twice else full

    return [
        (
            path,
            [{**row, "agent": name(row["agent"], row.get("preset"), label)} for row in rows],
            [{**entry, "agent": name(entry["agent"], preset_in(rows, entry), label)} for entry in entries],
        )
        for (path, rows, entries), label in zip(sources, names)
    ]


def preset_in(rows: Sequence[Row], entry: Entry) -> str | None:
    """The preset of a run as its rows have it, which those of earlier commits have not."""
    run = collect.run_key(entry)
    return next((row.get("preset") for row in rows if collect.run_key(row) == run), None)


def labels(paths: Sequence[Path]) -> list[str]:
    """The part of each path that tells it from the others, as near to its end as there is one."""
    folders = [path.parent if path.suffix == ".csv" else path for path in (path.resolve() for path in paths)]
    for depth in range(1, 1 + min(len(folder.parts) for folder in folders)):
        found = [folder.parts[-depth] for folder in folders]
        if len(set(found)) == len(found):
            return found
    return [str(path) for path in paths]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
