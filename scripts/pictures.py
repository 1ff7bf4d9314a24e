"""The pictures of a run: an episode played by the agent, and what its world model dreams."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import envs
from agents.policy import Policy
from mbrl.interfaces import Agent
from mbrl.pictures import dream_gif, dream_plot, write_gif
from mbrl.randomness import own_randomness
from mbrl.trainer import Result

FRAMES = 150
"""About as many are drawn of an episode, however long it is."""
SECONDS = 30
"""Rendering without a GPU can be slow; a film ends where this has passed."""


def draw(
    directory: Path, env: str, env_options: dict[str, Any], agent: Agent, result: Result, seed: int
) -> tuple[list[str], list[str]]:
    """Names of the pictures that were written, and why others were not. Never fails: the run is safe."""
    saved, notes = [], []
    for name, write in (
        ("eval.gif", lambda path: film(agent, env, env_options, seed, path)),
        ("dream.gif", lambda path: dream(path, result.report)),
    ):
        try:
            if write(directory / name):
                saved.append(name)
        except Exception as error:  # GL drivers, foreign render() methods: anything can happen
            notes.append(f"no {name}: {error}")
    return saved, notes


def film(agent: Agent, env_name: str, env_options: dict[str, Any], seed: int, path: Path) -> int:
    """One episode of the policy's mode as a GIF; returns the number of frames, 0 where nothing is drawn."""
    env = envs.make_env(env_name, **env_options, render_mode="rgb_array")
    try:
        frames, every = [], _stride(env)
        with own_randomness(seed), torch.no_grad():
            policy = Policy(agent, env.observation_space, env.action_space)
            obs, _ = env.reset(seed=seed)
            state, done, step, begin = None, False, 0, time.monotonic()
            while not done and time.monotonic() - begin < SECONDS:
                if step % every == 0:
                    frame = env.render()
                    if frame is None:
                        return 0
                    frames.append(np.asarray(frame, np.uint8))
                action, state = policy.predict(obs, state)
                obs, _, terminated, truncated, _ = env.step(action)
                done, step = bool(terminated or truncated), step + 1
        fps = float(env.metadata.get("render_fps") or 30) / every
        write_gif(path, np.stack(frames), min(fps, 30.0))
        return len(frames)
    finally:
        env.close()


def dream(path: Path, report: dict[str, Any]) -> bool:
    """Truth, dream and error side by side; real against dreamt curves where observations are vectors."""
    context = int(report.get("report/context", 8))
    if "report/video" in report:
        truth, dreamt, error = np.split(np.asarray(report["report/video"]), 3, axis=2)
        dream_gif(path, truth, dreamt, error, context=context)
    elif "report/truth" in report:
        dream_plot(
            path, np.asarray(report["report/truth"]), np.asarray(report["report/dream"]), context=context
        )
    else:
        return False
    return True


def _stride(env: Any) -> int:
    """Decisions from one frame to the next, so that a whole episode takes about FRAMES of them."""
    limit = env.spec.max_episode_steps if env.spec is not None else None
    return max(1, round((limit or 500) / env.action_repeat / FRAMES))
