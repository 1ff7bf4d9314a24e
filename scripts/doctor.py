"""`mbrl doctor`: what this machine has, and the line that installs what is missing."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from scripts.machine import free_memory, physical_cores

DISTRIBUTIONS = ("mbrl-toolkit", "torch", "numpy", "gymnasium", "mujoco", "dm-control", "tensorboard", "tyro")

SUITES = {
    "classic control (CartPole-v1, Pendulum-v1)": ("gymnasium", "gymnasium"),
    "pictures of classic control": ("pygame", "pygame-ce"),
    "MuJoCo (HalfCheetah-v5)": ("mujoco", "'mujoco>=3.17,<4'"),
    "dm_control (dmc/walker-walk)": ("dm_control", "--no-deps dm-control"),
    "Atari (ALE/Pong-v5)": ("ale_py", "'mbrl-toolkit[atari]'"),
    "MiniGrid": ("minigrid", "'mbrl-toolkit[minigrid]'"),
    "Crafter": ("crafter", "'mbrl-toolkit[crafter]'"),
    "Stable-Baselines3 (baselines)": ("stable_baselines3", "stable-baselines3 sb3-contrib"),
    "Weights & Biases": ("wandb", "wandb"),
}
"""What one can do -> the module it needs, and what `pip install` takes to get it."""

RENDER = """
import time, mujoco
model = mujoco.MjModel.from_xml_string('''<mujoco><worldbody><light pos="0 0 3"/>
<geom type="plane" size="2 2 .1"/><geom type="box" size=".2 .2 .2" pos="0 0 .2"/></worldbody></mujoco>''')
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
with mujoco.Renderer(model, 64, 64) as renderer:
    def frame():
        renderer.update_scene(data)
        return renderer.render()
    assert frame().any()
    start, frames = time.perf_counter(), 0
    while time.perf_counter() - start < 0.5:
        frame()
        frames += 1
print(frames / (time.perf_counter() - start))
"""


def versions() -> dict[str, str | None]:
    def of(name: str) -> str | None:
        try:
            return version(name)
        except PackageNotFoundError:
            return None

    return {"python": platform.python_version(), **{name: of(name) for name in DISTRIBUTIONS}}


def device() -> dict[str, Any]:
    import torch

    has_cuda = torch.cuda.is_available()
    threads = os.environ.get("OMP_NUM_THREADS")
    return {
        "device": f"cuda: {torch.cuda.get_device_name()}" if has_cuda else "cpu",
        "platform": platform.platform(),
        "physical_cores": physical_cores(),
        "threads": int(threads) if threads and threads.isdecimal() else 1,
    }


def rendering(timeout: float = 60) -> dict[str, Any]:
    """The first GL backend that renders a small MuJoCo scene, tried in its own process: GL can crash."""
    chosen = os.environ.get("MUJOCO_GL")
    problems = {}
    for backend in [chosen] if chosen else ["egl", "osmesa", "glfw"]:
        try:
            done = subprocess.run(
                [sys.executable, "-c", RENDER],
                env={**os.environ, "MUJOCO_GL": backend},
                capture_output=True,
                text=True,
                timeout=timeout,
            )
            if done.returncode == 0:
                return {"backend": backend, "frames_per_second": round(float(done.stdout.split()[-1]))}
            lines = done.stderr.strip().splitlines()
            problems[backend] = lines[-1] if lines else f"exit code {done.returncode}"
        except subprocess.TimeoutExpired:
            problems[backend] = f"no picture within {timeout:.0f} s"
    return {"backend": None, "problems": problems}


def suites() -> dict[str, str | None]:
    """Suite -> None where it is installed, else the line that installs it."""
    return {
        suite: None if importlib.util.find_spec(module) else f"pip install {what}"
        for suite, (module, what) in SUITES.items()
    }


def examine() -> dict[str, Any]:
    disk = shutil.disk_usage(Path.cwd())
    return {
        "versions": versions(),
        **device(),
        "rendering": rendering(),
        "memory_free_bytes": free_memory(),
        "disk_free_bytes": disk.free,
        "suites": suites(),
    }


def show(found: dict[str, Any]) -> None:
    def line(name: str, text: str) -> None:
        print(f"{name:10} {text}")

    line("versions", "  ".join(f"{name} {number or 'MISSING'}" for name, number in found["versions"].items()))
    line("device", f"{found['device']}   {found['platform']}")
    line("threads", f"{found['threads']}   ({found['physical_cores']} physical cores)")
    gl, memory = found["rendering"], found["memory_free_bytes"]
    if gl["backend"]:
        line("rendering", f"{gl['backend']}, {gl['frames_per_second']} frames/s at 64x64")
    else:
        line("rendering", "none. Training from states needs none; for images and video install a GL library,")
        line("", "on Debian and Ubuntu: apt-get install libegl1 libgl1 (or libosmesa6)")
        for backend, problem in gl["problems"].items():
            line("", f"{backend}: {problem}")
    line("memory", f"{memory / 1e9:.1f} GB free" if memory is not None else "unknown")
    line("disk", f"{found['disk_free_bytes'] / 1e9:.1f} GB free here")
    for suite, install in found["suites"].items():
        line("suite", f"{suite}: {'installed' if install is None else 'missing; ' + install}")


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="mbrl doctor", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the table")
    arguments = parser.parse_args(argv)
    found = examine()
    if arguments.json:
        print(json.dumps(found))
    else:
        show(found)


if __name__ == "__main__":
    main(sys.argv[1:])
