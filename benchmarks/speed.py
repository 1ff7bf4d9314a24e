"""Speed: what one update costs on this machine, what part of the machine's limit that is, where it goes.

    python -m benchmarks.speed                        a table
    python -m benchmarks.speed --work pixels          the official 12 M parameters on 64 x 64 images, and drawing them
    python -m benchmarks.speed --json                 one JSON object
    python -m benchmarks.speed --profile trace.json   also a trace for https://ui.perfetto.dev

The work is fixed, so that figures can be compared: full updates on random replayed sequences shaped like
dm_control's walker-walk, sampling and the rewriting of latents included. Every figure is a median of one
process after a warm-up; arithmetic is counted, and the limit is a large matrix product's speed, measured.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import wraps
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from gymnasium import spaces
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.profiler import profile, record_function, supported_activities
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from agents.dreamer import Dreamer, DreamerConfig, debug, laptop, reference, sized
from benchmarks.frames import frames_per_s
from envs import EnvError, make_envs
from mbrl.driver import Driver
from mbrl.errors import UserError
from mbrl.interfaces import State
from mbrl.replay import Replay, ReplayConfig
from mbrl.spaces import is_image
from mbrl.steps import Steps
from mbrl.world_model import LatentModel
from scripts.machine import choose_device, keep_freed_memory, physical_cores, set_threads

ENV = "dmc/walker-walk"
OBSERVATIONS = spaces.Dict(
    {
        name: spaces.Box(-np.inf, np.inf, shape, np.float32)
        for name, shape in (("orientations", (14,)), ("height", (1,)), ("velocity", (9,)))
    }
)
IMAGES = spaces.Dict({"image": spaces.Box(0, 255, (64, 64, 3), np.uint8)})
ACTIONS = spaces.Box(-1, 1, (6,), np.float32)
EPISODE = 501  # records of a walker-walk episode at action repeat 2, the reset included
RINGS = 16  # environments that the replay holds
ACTING = (1, 4, 16)  # environments acted in
SECTIONS = (
    "replay sampling", "observe", "heads", "imagine", "actor-critic", "further steps", "backward", "optimiser", "rest",
)  # fmt: skip


@dataclass(frozen=True)
class Work:
    name: str
    agent: DreamerConfig
    """Sizes, batch and horizon."""
    images: bool = False
    """Whether the agent sees images instead of walker-walk's floats."""
    stored: int = 2048
    """Steps in each of the replay's rings."""
    matrix: int = 2048
    """Side of the square matrices whose product is the machine's limit."""

    @property
    def observations(self) -> spaces.Dict:
        return IMAGES if self.images else OBSERVATIONS


WORKS = {
    work.name: work
    for work in (
        Work("reference", reference().agent),
        Work("laptop", laptop().agent),
        Work("size12m", replace(reference().agent, model=sized(256))),
        Work("pixels", replace(reference().agent, model=sized(256)), images=True, stored=256),
        Work("debug", debug().agent, stored=64, matrix=256),
    )
}


# ---- the work ----------------------------------------------------------------------------------------


def random_steps(space: spaces.Dict, n: int, first: Tensor, last: Tensor) -> Steps:
    """(n,) records of nothing in particular; walker-walk never terminates."""

    def values(entry: spaces.Space[Any]) -> Tensor:
        shape = (n, *(entry.shape or ()))
        return torch.randint(256, shape, dtype=torch.uint8) if is_image(entry) else torch.randn(shape)

    obs = {name: values(entry) for name, entry in space.spaces.items()}
    action = torch.rand(n, *ACTIONS.shape) * 2 - 1
    return Steps(obs, action, torch.rand(n), first, last, torch.zeros(n, dtype=torch.bool))


def random_state(agent: Dreamer, n: int) -> State:
    """Of n environments; nothing where the replay keeps nothing of it."""
    if not agent.latent_spec():
        return {}
    rssm = agent.config.model.rssm
    classes = torch.randint(rssm.classes, (n, rssm.stoch))
    return {"deter": torch.rand(n, rssm.deter) * 2 - 1, "stoch": F.one_hot(classes, rssm.classes)}


def build(work: Work, device: str = "cpu") -> tuple[Dreamer, Replay]:
    """An untrained agent, and a replay whose rings are in different places of their episodes."""
    torch.manual_seed(0)
    agent = Dreamer(work.agent, work.observations, ACTIONS, device)
    config = ReplayConfig(capacity=RINGS * max(1024, work.stored))
    replay = Replay(work.observations, ACTIONS.shape[0], RINGS, agent.latent_spec(), config, seed=0, device=device)
    offset = torch.arange(RINGS) * EPISODE // RINGS
    for k in range(work.stored):
        time_in_episode = (offset + k) % EPISODE
        latents = agent.latents(random_state(agent, RINGS))
        first, last = time_in_episode == 0, time_in_episode == EPISODE - 1
        replay.add(random_steps(work.observations, RINGS, first, last), latents)
    return agent, replay


# ---- measuring ---------------------------------------------------------------------------------------


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


def unrecorded(agent: Dreamer) -> Dreamer:
    """The same where an update's operations can be seen, or one like it: a CUDA graph hides them."""
    if agent.device.type != "cuda":
        return agent
    return Dreamer(replace(agent.config, cuda_graph=False), agent.space, ACTIONS, agent.device)


def act_steps_per_s(agent: Dreamer, n: int, budget: float) -> float:
    """``agent.act`` alone, for n environments at a time."""
    no = torch.zeros(n, dtype=torch.bool)
    step, state = random_steps(agent.space, n, no, no), agent.initial_state(n)

    def act() -> None:
        nonlocal state
        _, state = agent.act(step, state, explore=True)

    return n / seconds_per_call(act, budget, warmup=10)


def env_steps_per_s(budget: float) -> float:
    """One environment and the driver without an agent; action repeat counted."""
    envs = make_envs(ENV, 1)
    try:
        driver = Driver(envs)
        driver.reset(seed=0)
        actions = driver.action_spec.sample(1, np.random.default_rng(0))
        return driver.action_repeat / seconds_per_call(lambda: driver.step(actions), budget, warmup=10)
    finally:
        envs.close()


def peak_rss_mb() -> float:
    """The most memory that this process ever held, in MiB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


# ---- where the time goes -----------------------------------------------------------------------------


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


# ---- together ----------------------------------------------------------------------------------------


def measure(work: Work, budget: float, device: str = "cpu", trace: Path | None = None) -> dict[str, Any]:
    """Everything, in one run.

    Args:
        work: what an update is.
        budget: seconds for each measurement.
        device: where the networks are.
        trace: where a profiler trace goes.
    """
    load = os.getloadavg()[0]
    say("the machine's matrix product")
    peak = peak_gflops(work.matrix, budget, device)
    say("updates")
    agent, replay = build(work, device)
    begin = now()
    agent.update(replay)
    first = now() - begin
    updates = 1 / seconds_per_call(lambda: agent.update(replay), budget, warmup=2)
    open_agent = unrecorded(agent)
    gflop = count_gflop(lambda: open_agent.update(replay))
    kernels = count_kernels(lambda: open_agent.update(replay))
    say("the parts of an update")
    parts = breakdown(agent, replay, budget)
    size, length = agent.batch
    sampling = seconds_per_call(lambda: replay.sample(size, length + 1), budget, warmup=3)  # with a step of context
    say("acting")
    acting = {str(n): act_steps_per_s(agent, n, budget) for n in ACTING}
    say("the environment")
    env_steps = env_steps_per_s(budget)
    memory = peak_rss_mb()
    if trace:
        write_trace(agent, replay, trace)
    frames = {}
    if work.images:
        say("drawing")
        frames = frames_per_s(budget)
    return {
        **describe(work, agent),
        "load_average": load,  # what others were using: figures of a busy machine are too low
        "updates_per_s": updates,
        "replayed_steps_per_s": updates * size * length,
        "gflop_per_update": gflop,
        "kernels_per_update": kernels,
        "peak_gflops": peak,
        "utilisation": updates * gflop / peak,
        "breakdown_ms": parts,
        "replay_sample_ms": 1000 * sampling,
        "act_steps_per_s": acting,
        "env_steps_per_s": env_steps,
        "peak_rss_mb": memory,
        "replay_gb_per_million_steps": replay.bytes_per_step * 1e6 / 2**30,
        "peak_device_mb": torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_initialized() else 0.0,
        "first_update_s": first,
        "compile_s": 0.0,  # nothing is compiled
        **({"render_frames_per_s": frames, "render_ratio": render_ratio(frames)} if frames else {}),
    }


def render_ratio(frames: dict[str, float]) -> float:
    """Two processes of ours against one of dm_control's, each as it is used."""
    return frames["ours_parallel"] / frames["dm_control"]


def describe(work: Work, agent: Dreamer) -> dict[str, Any]:
    """What was measured, and on what."""
    config = work.agent
    size, length = agent.batch
    return {
        "work": work.name,
        "parameters": agent.num_parameters,
        "batch_size": size,
        "batch_length": length,
        "horizon": config.horizon,
        "starts": min(config.starts or size * length, size * length),
        "device": torch.cuda.get_device_name() if agent.device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "platform": platform.platform(),
    }


def say(what: str) -> None:
    """Progress, which must not mix with what is printed at the end."""
    print(f"measuring {what} ...", file=sys.stderr, flush=True)


def rounded(value: Any) -> Any:
    """Every float of a nest to four digits."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value


def show(found: dict[str, Any], console: Console) -> None:
    """The table."""
    f = found
    console.print(
        f"{f['work']}: {f['parameters'] / 1e6:.2f} M parameters, "
        f"batch {f['batch_size']} x {f['batch_length']}, horizon {f['horizon']} from {f['starts']} states\n"
        f"{f['device']}, {f['threads']} thread{'s' * (f['threads'] > 1)}, torch {f['torch']}, "
        f"load average before: {f['load_average']:.1f}"
    )
    table = Table("what")
    table.add_column("value", justify="right")

    def row(what: str, value: float, unit: str = "", digits: int = 2) -> None:
        table.add_row(what, f"{value:,.{digits}f} {unit}".rstrip())

    row("updates/s", f["updates_per_s"])
    row("replayed steps/s", f["replayed_steps_per_s"], digits=0)
    row("arithmetic of an update", f["gflop_per_update"], "GFLOP", 3)
    row("operations of an update", f["kernels_per_update"], digits=0)
    row("float32 matrix product", f["peak_gflops"], "GFLOP/s", 1)
    row("utilisation", f["utilisation"], digits=3)
    table.add_section()
    for name, milliseconds in f["breakdown_ms"].items():
        row(f"an update's {name}", milliseconds, "ms")
    table.add_section()
    row("replay sampling alone", f["replay_sample_ms"], "ms")
    for n, rate in f["act_steps_per_s"].items():
        row(f"acting, {n} environment{'s' * (n != '1')}: steps/s", rate, digits=0)
    row(f"{ENV} alone: env steps/s", f["env_steps_per_s"], digits=0)
    row("peak memory", f["peak_rss_mb"], "MiB", 0)
    if f["peak_device_mb"]:
        row("peak memory of the GPU", f["peak_device_mb"], "MiB", 0)
    row("a replay of a million steps", f["replay_gb_per_million_steps"], "GiB")
    for kind, rate in f.get("render_frames_per_s", {}).items():
        row(f"pictures, {kind.replace('_', ' ')}: frames/s", rate, digits=0)
    if "render_ratio" in f:
        row("pictures, ours parallel / dm_control", f["render_ratio"], digits=1)
    row("first update", f["first_update_s"], "s")
    row("compiling", f["compile_s"], "s")
    console.print(table)


def main(argv: list[str] | None = None) -> int:
    about = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=about)
    parser.add_argument("--work", choices=WORKS, default="reference", help="preset whose update is measured")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the table")
    parser.add_argument("--threads", type=int, help="default: OMP_NUM_THREADS, else one per physical core")
    parser.add_argument("--seconds", type=float, default=5.0, help="per measurement (default: %(default)s)")
    parser.add_argument("--profile", type=Path, metavar="PATH", help="also write a torch profiler trace")
    arguments = parser.parse_args(argv)
    if arguments.seconds <= 0:
        parser.error(f"--seconds {arguments.seconds}: must be more than 0")
    if arguments.threads is not None and arguments.threads < 1:
        parser.error(f"--threads {arguments.threads}: must be 1 or more")
    trace = arguments.profile
    if trace and not trace.parent.is_dir():
        parser.error(f"--profile {trace}: there is no directory {trace.parent}; create it")
    everything = None if "OMP_NUM_THREADS" in os.environ else physical_cores()
    set_threads(arguments.threads or everything)
    keep_freed_memory()
    try:
        device = choose_device(arguments.device)
        found = rounded(measure(WORKS[arguments.work], arguments.seconds, device, trace))
    except (UserError, EnvError) as error:
        parser.error(str(error))
    if arguments.json:
        print(json.dumps(found))
    else:
        show(found, Console(highlight=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
