"""`mbrl evaluate RUN`: whole episodes with a trained agent, on environments of its own.

`--json` prints one JSON object, {"mode": {"mean", "std", "returns"}, "sample": {...}}: the policy's mode, and
the policy sampled as in training; with `--world-model` also {"world_model": {...}}, the metrics of mbrl/quality.py.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

import agents
import envs
from mbrl.checkpoint import best, latest
from mbrl.errors import UserError
from mbrl.evaluation import evaluate
from mbrl.quality import Imaginer, judge
from scripts.machine import choose_device, set_threads
from scripts.options import ENV_OPTIONS
from scripts.pictures import film

MODES = ("mode", "sample")
PARALLEL = 10
"""Environments side by side: one call of the networks serves them all."""
PROBES = 200
"""Of the world model."""


def main(argv: list[str]) -> None:
    options = parse(argv)
    found = (best if options.best else latest)(options.run)
    if found is None:
        raise UserError(
            f"there is no checkpoint in {options.run}; a run directory is "
            "runs/<environment>/<agent>/seed<k>, as `mbrl train ENV` makes it"
        )
    set_threads()
    policy = agents.restore(found, choose_device(options.device))
    if "env" not in found.config:
        raise UserError(
            f"{options.run} was made in Python and does not name its environment; call evaluate() there"
        )
    env = found.config["env"]
    env_options = {name: found.config[name] for name in ENV_OPTIONS if name in found.config}
    with_envs = envs.make_envs(env, min(options.episodes, PARALLEL), **env_options)
    try:
        scores = {
            mode: summary(
                evaluate(policy.agent, with_envs, options.seed, options.episodes, mode == "sample", note=say)
            )
            for mode in options.mode
        }
        quality = judge_model(policy.agent, with_envs, options) if options.world_model else {}
    finally:
        with_envs.close()
    if options.json:
        print(json.dumps(scores | ({"world_model": quality} if quality else {})))
    else:
        print(f"{env}   {options.run}   checkpoint at step {found.step}   seed {options.seed}")
        for mode, score in scores.items():
            print(f"{mode:6}  {score['mean']:.2f} +- {score['std']:.2f}   {options.episodes} episodes")
        print("".join(f"{line}\n" for line in lines_of(quality)), end="")
    if options.video is not None:
        frames = film(policy.agent, env, env_options, options.seed, options.video)
        print(f"{options.video}: {frames} frames", file=sys.stderr)


def judge_model(agent: Any, with_envs: Any, options: argparse.Namespace) -> dict[str, Any]:
    """
    Raises:
        UserError: the agent has no world model.
    """
    if not isinstance(agent, Imaginer):
        raise UserError(f"the agent of {options.run} has no world model; leave out --world-model")
    found = judge(agent, with_envs, options.seed, PROBES)
    return {name.removeprefix("model/"): value for name, value in found.items()}


def lines_of(quality: dict[str, Any]) -> list[str]:
    """For people: single numbers as they are, lists after the first, the fifth and the last imagined step."""
    lines = []
    for name, value in quality.items():
        picked = {k: value[k - 1] for k in (1, 5, len(value))} if isinstance(value, list) else {0: value}
        numbers = ["-" if number is None else f"{number:.4g}" for number in picked.values()]
        steps = f"   after {', '.join(map(str, picked))} imagined steps" if isinstance(value, list) else ""
        lines.append(f"world model: {name.replace('_', ' '):20}  {', '.join(numbers)}{steps}")
    return lines


def say(text: str) -> None:
    print(text, file=sys.stderr)


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="mbrl evaluate", description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path, help="run directory, as runs/CartPole-v1/dreamer/seed0")
    parser.add_argument("--episodes", type=at_least(1), default=10, help="whole episodes in each mode (10)")
    parser.add_argument(
        "--mode", type=modes, default=list(MODES), help="mode, sample or both: mode,sample (both)"
    )
    parser.add_argument("--seed", type=at_least(0), default=0, help="of environments and policy (0)")
    parser.add_argument("--best", action="store_true", help="the best-evaluated checkpoint, not the last one")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or auto (cpu)")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    parser.add_argument("--world-model", action="store_true", help="measure the world model, too")
    parser.add_argument("--video", type=Path, metavar="GIF", help="write one episode of the mode as a GIF")
    return parser.parse_args(argv)


def at_least(minimum: int) -> Any:
    def number(text: str) -> int:
        if not text.lstrip("-").isdigit() or int(text) < minimum:
            raise argparse.ArgumentTypeError(f"'{text}' is not a whole number of {minimum} or more")
        return int(text)

    return number


def modes(text: str) -> list[str]:
    chosen = [word for word in text.split(",") if word]
    if not chosen or set(chosen) - set(MODES):
        raise argparse.ArgumentTypeError(f"'{text}' is not one of: mode, sample, mode,sample")
    return list(dict.fromkeys(chosen))


def summary(returns: np.ndarray[Any, Any]) -> dict[str, Any]:
    return {"mean": float(returns.mean()), "std": float(returns.std()), "returns": returns.tolist()}


if __name__ == "__main__":
    main(sys.argv[1:])
