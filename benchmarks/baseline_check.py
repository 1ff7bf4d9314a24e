"""Is our baseline crippled? Its measured scores beside what others published of the same algorithm.

    python -m benchmarks.baseline_check benchmarks/results/cpu8/scores.csv --agent sac

On every task and step that both have, our mean should lie within the spread of the published curves: between the
lowest mean minus, and the highest mean plus, one standard deviation over seeds. Exit code 1 where it lies below.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks import collect
from benchmarks.reference import Curve, published
from benchmarks.summary import read_curves, write_steps
from mbrl.errors import UserError
from mbrl.screen import number


@dataclass(frozen=True)
class Finding:
    env: str
    step: float
    ours: np.ndarray
    """(runs,)"""
    low: float
    high: float
    """The spread of the published curves."""
    names: tuple[str, ...]

    @property
    def verdict(self) -> str:
        mean = self.ours.mean()
        return "below" if mean < self.low else "above" if mean > self.high else "inside"


def findings(rows: Sequence[collect.Row], agent: str) -> Iterator[Finding]:
    """By task and step; an algorithm's published curves are those whose name is ``agent`` or begins with 'AGENT ('."""
    curves, _ = read_curves([row for row in rows if row["agent"] == agent and row["mode"] == "mode"])
    for (_, env), ours in curves.items():
        known = {name: curve for name, curve in published(env).items() if _is_like(name, curve, agent)}
        for step in ours.steps:
            there = {name: spread for name, curve in known.items() if (spread := _spread(curve, step)) is not None}
            if there:
                low, high = min(low for low, _ in there.values()), max(high for _, high in there.values())
                yield Finding(env, float(step), ours.at(step), low, high, tuple(there))


def _is_like(name: str, curve: Curve, agent: str) -> bool:
    """The same algorithm, and evaluated as ours is."""
    return curve.protocol == "eval" and (name.lower() == agent or name.lower().startswith(f"{agent} ("))


def _spread(curve: Curve, step: float) -> tuple[float, float] | None:
    """Of one published curve at a step; None where it has no value there, or only one seed."""
    at = np.flatnonzero(curve.steps == step)
    if not len(at) or not np.isfinite(curve.low[at[0]]):
        return None
    return float(curve.low[at[0]]), float(curve.high[at[0]])


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.baseline_check", description=__doc__.split("\n")[0])
    parser.add_argument("scores", type=Path, help="a scores.csv, a run, or a directory of runs")
    parser.add_argument("--agent", default="sac", help="(sac)")
    options = parser.parse_args(argv)
    try:
        rows, _ = collect.read(options.scores)
        found = list(findings(rows, options.agent))
        if not found:
            raise UserError(f"no evaluation of {options.agent} in {options.scores} has a published one beside it")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for one in found:
        ours = f"{number(float(one.ours.mean()))} (n={len(one.ours)})"
        spread = f"{number(one.low)} to {number(one.high)}"
        print(f"{one.verdict:7} {one.env:26} {write_steps(one.step):>5}  {ours:16} {spread:18} {', '.join(one.names)}")
    return int(any(one.verdict == "below" for one in found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
