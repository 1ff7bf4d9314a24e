"""Frames a second of dmc/walker-walk at 64 x 64: our renderer in one process and in two, dm_control's own in one.

`python -m benchmarks.speed --work pixels` measures them with the rest.
"""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from envs import EnvError, make_env, rendering

SIZE = 64
ROUNDS = 3  # by turns, so that what else the machine does falls on all alike


def frames_per_s(seconds: float) -> dict[str, float]:
    """Medians over the rounds; `seconds` is the time for each measurement, all rounds together.

    Raises:
        EnvError: nothing can be drawn here.
    """
    context = multiprocessing.get_context("spawn")  # OpenGL does not survive a fork
    pipes: list[Any] = []
    for draw in (draw_ours, draw_ours, draw_theirs):
        ours, theirs = context.Pipe()
        context.Process(target=_serve, args=(theirs, draw), daemon=True).start()
        theirs.close()
        pipes.append(ours)
    kinds = {"ours": pipes[:1], "ours_parallel": pipes[:2], "dm_control": pipes[2:]}
    try:
        rounds = [{kind: _measure(kinds[kind], seconds / ROUNDS) for kind in kinds} for _ in range(ROUNDS + 1)]
    except (EOFError, ConnectionError) as error:
        raise EnvError("A process that draws died; its own message is above.") from error
    finally:
        for pipe in pipes:
            pipe.close()
    return {kind: statistics.median(rates[kind] for rates in rounds[1:]) for kind in kinds}


def _measure(pipes: list[Any], seconds: float) -> float:
    for pipe in pipes:
        pipe.send(seconds)
    return sum(pipe.recv() for pipe in pipes)


def _serve(pipe: Connection, make: Callable[[], tuple[Callable[[], Any], Callable[[], None]]]) -> None:
    """Draws for as long as it is told to and answers with frames a second, until nobody asks any more."""
    draw, close = make()
    try:
        while True:
            seconds, frames, begin = pipe.recv(), 0, time.perf_counter()
            while time.perf_counter() - begin < seconds:
                draw()
                frames += 1
            pipe.send(frames / (time.perf_counter() - begin))
    except EOFError:
        close()


def draw_ours() -> tuple[Callable[[], Any], Callable[[], None]]:
    env: Any = make_env("dmc/walker-walk", render_mode="rgb_array", render_size=SIZE)
    env.reset(seed=0)
    return env.render, env.close


def draw_theirs() -> tuple[Callable[[], Any], Callable[[], None]]:
    """dm_control as it comes, with as many threads as OpenGL takes."""
    rendering.enable()
    from dm_control import suite

    env = suite.load("walker", "walk")
    env.reset()
    return lambda: env.physics.render(SIZE, SIZE, camera_id=0), env.physics.free
