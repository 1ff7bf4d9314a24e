"""Progress: what the training loop itself must remember across an interruption. Pace: how fast it is."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

Scores = dict[str, list[float]]


@dataclass
class Progress:
    """Numbers and tensors only, so that a checkpoint can hold it."""

    updates: int = 0
    flops_per_update: float | None = None
    """Of matrix products and convolutions; None where they were not counted."""
    owed: float = 0.0
    """Updates that the decisions so far have earned and that are not done yet."""
    learning: bool = False
    """The prefill is complete."""
    next_log: int = 0
    next_eval: float = 0
    """Infinity: no evaluation but the one at the end."""
    finished: bool = False
    wall: float = 0.0
    first_update_wall: float = 0.0
    first_update_step: int = 0
    sums: dict[str, Any] = field(default_factory=dict)
    """Metrics summed since the last line."""
    counts: dict[str, int] = field(default_factory=dict)
    running_return: list[float] = field(default_factory=list)
    """Per environment, of its unfinished episode."""
    running_length: list[int] = field(default_factory=list)
    returns: list[float] = field(default_factory=list)
    """Of episodes finished since the last line."""
    scores: Scores = field(default_factory=dict)
    best: float | None = None
    env_restarts: int = 0
    """Of environments that broke, since the start of the run."""


@dataclass
class Pace:
    """Environment steps and updates per second of wall-clock since it was last asked."""

    begin: float = field(default_factory=time.monotonic)
    steps: int = 0
    updates: int = 0

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.begin

    def lap(self, steps: int, updates: int) -> tuple[float, float]:
        """So many there have been by now; the next lap begins."""
        seconds = max(self.seconds, 1e-9)
        paces = (steps - self.steps) / seconds, (updates - self.updates) / seconds
        self.begin, self.steps, self.updates = time.monotonic(), steps, updates
        return paces
