"""The headline of the README: what a stored benchmark says, in sentences, three tables and a curve.

    python -m benchmarks.headline benchmarks/results/cpu8           write it into README.md, the curve beside the scores
    python -m benchmarks.headline benchmarks/results/cpu8 --check   only see that README.md says what the scores say

The section stands between two comments that name the benchmark; all between them is replaced. Exit code 1 where
``--check`` finds another text, 2 where there is nothing to write or no place to write it to.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import collect
from benchmarks.charts import Chart, aggregate_curves
from benchmarks.published import published_table
from benchmarks.report import headlines, losses, means_table, setting, steps_table
from benchmarks.summary import Summary, summarise
from mbrl.errors import UserError
from mbrl.run import write_atomically

AGENTS = "dreamer,sac,ppo"
"""The judged one, then its comparators."""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="a folder with scores.csv and runs.json")
    parser.add_argument("--agents", type=lambda text: text.split(","), default=AGENTS, help=f"({AGENTS})")
    parser.add_argument("--readme", type=Path, default=Path("README.md"), help="(README.md)")
    parser.add_argument("--check", action="store_true", help="write nothing")
    options = parser.parse_args(argv)
    try:
        rows, entries = collect.read(options.results)
        rows = [row for row in rows if row["agent"] in options.agents]
        summary = summarise(options.results.name, rows, entries, options.agents)
        before = options.readme.read_text() if options.readme.exists() else ""
        curve = aggregate_curves(summary, "mean")
        text = section(summary, curve, options.results, setting(summary, rows))
        after = replace(before, options.results.name, text)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.check:
        print(f"{options.readme} {'says what the scores say' if before == after else 'says something else'}")
        return int(before != after)
    write_atomically(options.readme, after)
    if curve:
        curve.save(options.results, kinds=("svg",))
    return 0


def section(summary: Summary, curve: Chart | None, results: Path, about: str) -> str:
    """Markdown. The curve lies in ``results``; ``about``: what was run."""
    lines = [f"**{line}**" for line in headlines(summary)]
    lines += [line for pair in summary.comparisons if (line := catching_up(summary, pair.theirs))]
    if curve:
        lines += [f"![{curve.title}]({results.as_posix()}/{curve.name}.svg)", curve.caption]
    for table in (means_table(summary), published_table(summary), steps_table(summary)):
        lines += ["\n".join(table.grid()), table.note] if table else []
    return "\n\n".join([*lines, *losses(summary), about, *(f"{line}." for line in summary.left_out)])


def catching_up(summary: Summary, theirs: str) -> str:
    """When the judged agent's mean over tasks comes to where the comparator's ends; nothing where it does not."""
    ours, theirs_along = summary.agents[0], summary.along(theirs, "mean")
    if not theirs_along:
        return ""
    budget, end = theirs_along[-1]
    reached = [(step, found.value) for step, found in summary.along(ours, "mean") if found.value >= end.value]
    if not reached:
        return ""
    step, value = reached[0]
    return (
        f"Averaged over the {len(summary.common)} tasks, {ours} scores {value:.2f} after {step:,.0f} steps; {theirs} "
        f"scores {end.value:.2f} after {budget:,.0f}."
    )


def replace(text: str, name: str, section: str) -> str:
    """The text with another section between the comments that name it.

    Raises:
        UserError: it lacks one of them.
    """
    begin, end = f"<!-- {name}: made by benchmarks/headline.py -->", f"<!-- {name}: end -->"
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise UserError(f"The README has no place for the section; put these lines where it belongs:\n{begin}\n{end}")
    return f"{before}{begin}\n\n{section}\n\n{end}{after}"


if __name__ == "__main__":
    sys.exit(main())
