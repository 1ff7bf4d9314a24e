"""Where an update's time goes, and what arithmetic it is: medians of calls, counts, and a stopwatch for its parts."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.profiler import profile, record_function, supported_activities
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from agents.dreamer import Dreamer
from mbrl.replay import Replay
from mbrl.world_model import LatentModel

SECTIONS = (
    "replay sampling", "observe", "heads", "imagine", "actor-critic", "further steps", "backward", "optimiser", "rest",
)  # fmt: skip


def now() -> float:
    """Seconds; waits for what a GPU still has to do."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def seconds_per_call(call: Callable[[], object], budget: float, warmup: int = 1) -> float:
    """Median over as many calls as fit into the budget, at least three."""
    for _ in range(warmup):
        call()
    taken: list[float] = []
    while len(taken) < 3 or sum(taken) < budget:
        begin = now()
        call()
        taken.append(now() - begin)
    return statistics.median(taken)


def peak_gflops(side: int, budget: float, device: str) -> float:
    """GFLOP/s of a float32 matrix product."""
    a, b, out = torch.randn(3, side, side, device=device)
    return 2e-9 * side**3 / seconds_per_call(lambda: torch.mm(a, b, out=out), budget, warmup=2)


def count_gflop(call: Callable[[], object]) -> float:
    """Arithmetic of the matrix products and convolutions of one call, forward and backward."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops() * 1e-9


def count_kernels(call: Callable[[], object]) -> int:
    """Operations of one call that compute something, forward and backward; views cost next to nothing."""

    class Counter(TorchDispatchMode):
        kernels = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.kernels += not func.is_view
            return func(*args, **(kwargs or {}))

    with Counter() as counter:
        call()
    return counter.kernels


class Stopwatch:
    """Seconds per section since ``seconds`` was last emptied; an inner section's are not its outer's."""

    def __init__(self, clock: Callable[[], float] = now):
        self.clock = clock
        self.seconds: dict[str, float] = {}
        self._inner: list[float] = []  # per open section, the seconds of the sections inside it

    def timing(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, its time booked under ``name``, and named so in a trace."""

        @wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            self._inner.append(0.0)
            begin = self.clock()
            try:
                with record_function(name):
                    return function(*args, **kwargs)
            finally:
                spent = self.clock() - begin
                self.seconds[name] = self.seconds.get(name, 0.0) + spent - self._inner.pop()
                if self._inner:
                    self._inner[-1] += spent

        return timed


@contextmanager
def watched(agent: Dreamer, replay: Replay) -> Iterator[Stopwatch]:
    """Inside, the parts of ``agent.update(replay)`` are timed."""
    watch, model = Stopwatch(), agent.world_model
    parts: dict[str, tuple[Any, str]] = {
        "replay sampling": (replay, "sample"),
        **({"observe": (model.dynamics, "observe")} if isinstance(model, LatentModel) else {}),
        "heads": (model, "loss"),  # what is left of it: encoder, heads, their losses
        "imagine": (model, "imagine"),
        "actor-critic": (agent, "losses"),  # what is left of it: returns, actor, critic, slow critic
        "further steps": (agent.behaviour, "update"),  # of actor and critics alone
        "backward": (Tensor, "backward"),
        "optimiser": (agent.optimiser, "step"),
        "rest": (agent, "update"),  # what is left of it: slow critic's step, latents, metrics
    }
    with ExitStack() as stack:
        for name, (owner, method) in parts.items():
            timed = watch.timing(name, getattr(owner, method))
            stack.enter_context(mock.patch.object(owner, method, timed))
        yield watch


def breakdown(agent: Dreamer, replay: Replay, budget: float) -> dict[str, float]:
    """Milliseconds of each part of an update; on a GPU what is recorded counts as the rest, or as further steps."""
    rows: list[dict[str, float]] = []
    with watched(agent, replay) as watch:

        def update() -> None:
            watch.seconds = {}
            agent.update(replay)
            rows.append(watch.seconds)

        seconds_per_call(update, budget)
    return {name: 1000 * statistics.median(row.get(name, 0.0) for row in rows[1:]) for name in SECTIONS}


def write_trace(agent: Dreamer, replay: Replay, path: Path) -> None:
    """A torch profiler trace of one update, its parts by name."""
    with profile(activities=list(supported_activities())) as profiler, watched(agent, replay):
        agent.update(replay)
    profiler.export_chrome_trace(str(path))
