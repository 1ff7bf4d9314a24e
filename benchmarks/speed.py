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
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from agents.dreamer import Dreamer
from benchmarks.frames import frames_per_s
from benchmarks.stopwatch import breakdown, count_gflop, count_kernels, now, peak_gflops, seconds_per_call, write_trace
from benchmarks.work import ENV, WORKS, Work, build, random_steps, unrecorded
from envs import EnvError, make_envs
from mbrl.driver import Driver
from mbrl.errors import UserError
from scripts.machine import choose_device, keep_freed_memory, physical_cores, set_threads

ACTING = (1, 4, 16)  # environments acted in


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
