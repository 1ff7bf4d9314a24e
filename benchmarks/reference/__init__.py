"""Published results: learning curves of other agents, as their authors or others report them. Nothing measured here.

    published("dmc/walker-walk")["SAC (SimBa)"].mean

`curves.csv` has one row for each agent, environment, kind of observation and step; README.md says where each comes
from and how it was measured. Protocols differ: show them beside the curve, and never average published with measured.
"""

from __future__ import annotations

import csv
import math
from collections import defaultdict
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

TABLE = Path(__file__).parent / "curves.csv"
SOURCES = {
    "dreamerv3": "danijar/dreamerv3, scores/, 2411f7d",
    "pytorch_sac": "denisyarats/pytorch_sac, data/sac.csv, 3ecf500",
    "simba": "SonyResearch/simba, results/, 4e83770",
    "simbav2": "dojeon-ai/SimbaV2, results/",
    "tdmpc2": "nicklashansen/tdmpc2, results/tdmpc2/, 88095e7 and add30b5",
    "bmpc": "wertyuilife2/bmpc, results/, d5dabc6",
    "mrq": "facebookresearch/MRQ, results/",
}
"""Repository, folder, commit; README.md has the papers."""
PROTOCOLS = {"train": "returns of training episodes", "eval": "returns of separate evaluation episodes"}


@dataclass(frozen=True)
class Curve:
    """One agent on one environment. `low` and `high` are one standard deviation over seeds below and above the mean,
    NaN where it is not known; `seeds` is None where the source does not say."""

    steps: np.ndarray
    """(T,) environment steps, action repeat included."""
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    seeds: int | None
    protocol: str
    """`train` or `eval`, see PROTOCOLS."""
    action_repeat: int | None
    """None: not known."""
    source: str
    """See SOURCES."""


def published(env: str, observe: str = "state") -> dict[str, Curve]:
    """The published curves of an environment by agent; empty where there are none.

    `env` is matched exactly, `dm_control/walker-walk-v0` counting as `dmc/walker-walk`: Gymnasium's tasks are
    published as v4, which is another task than v5. `observe` is `state` or `pixels`.
    """
    if env.startswith("dm_control/"):
        env = "dmc/" + env.removeprefix("dm_control/").removesuffix("-v0")
    return dict(_table().get((env, observe), {}))


def environments(observe: str = "state") -> tuple[str, ...]:
    """Those that have published curves."""
    return tuple(sorted(env for env, seen in _table() if seen == observe))


@cache
def _table() -> dict[tuple[str, str], dict[str, Curve]]:
    """(environment, observation) to agent to curve."""
    rows: dict[tuple[str, str, str], list[dict[str, str]]] = defaultdict(list)
    with TABLE.open(newline="") as file:
        for row in csv.DictReader(file):
            rows[row["env"], row["observe"], row["agent"]].append(row)
    table: dict[tuple[str, str], dict[str, Curve]] = defaultdict(dict)
    for (env, observe, agent), group in rows.items():
        table[env, observe][agent] = _curve(group)
    return table


def _curve(rows: list[dict[str, str]]) -> Curve:
    def column(name: str) -> np.ndarray:
        return np.array([float(row[name] or math.nan) for row in rows])

    seeds = [int(row["seeds"]) for row in rows if row["seeds"]]
    return Curve(
        steps=column("step"),
        mean=column("mean"),
        low=column("low"),
        high=column("high"),
        seeds=min(seeds) if seeds else None,
        protocol=rows[0]["protocol"],
        action_repeat=int(rows[0]["action_repeat"]) if rows[0]["action_repeat"] else None,
        source=rows[0]["source"],
    )
