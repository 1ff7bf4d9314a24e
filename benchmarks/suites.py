"""Suites: which tasks, for how many environment steps, evaluated when. Data, and a reader for suites of your own.

    find("cpu8")                                  one of SUITES
    find("my-suite.yaml")                         a file, see read()
    find("CartPole-v1,dmc/walker-walk")           environments by name; also a list of them

Steps are environment steps, action repeat included.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import yaml

import envs
from mbrl.errors import UserError

FILES = (".yaml", ".yml", ".txt")


@dataclass(frozen=True)
class Suite:
    name: str
    envs: tuple[str, ...]
    """As in ``envs.make_env``."""
    steps: int = 100_000
    """The budget of a run, the same for every task."""
    evaluate_at: tuple[int, ...] = (10_000, 25_000, 50_000, 100_000)
    """Rising; the last one is `steps`."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Of every environment, as in ``envs.make_env``: observe, action_repeat, max_episode_steps, camera, size."""
    about: str = ""

    def __post_init__(self) -> None:
        at = self.evaluate_at
        if not self.envs:
            raise UserError(f"Suite {self.name} has no environments; name at least one under envs:.")
        if twice := sorted({env for env in self.envs if self.envs.count(env) > 1}):
            raise UserError(f"Suite {self.name} names {', '.join(twice)} more than once; leave out the repetition.")
        if not at or at[-1] != self.steps or list(at) != sorted(set(at)) or at[0] < 1:
            raise UserError(
                f"Suite {self.name} is to be evaluated at {list(at)}: that must rise and end with its "
                f"{self.steps} steps, as in evaluate_at: [{self.steps // 2}, {self.steps}]."
            )

    def difference(self, config: Mapping[str, Any]) -> str:
        """In what a run (its config.yaml) was made otherwise than this suite has it, in words; empty: in nothing."""
        for name, wanted in {**envs.OPTIONS, **self.options}.items():
            if str(found := config.get(name, wanted)) != str(wanted):
                return f"{name} {found}, not {wanted}"
        return ""

    def until(self, steps: int) -> Suite:
        """The same suite with another budget: its evaluations up to there, and one at the end."""
        return replace(self, steps=steps, evaluate_at=(*(at for at in self.evaluate_at if at < steps), steps))


def _dmc(tasks: str) -> tuple[str, ...]:
    return tuple(f"dmc/{task}" for task in tasks.split())


GAMES = {
    "Alien": (227.8, 7127.7),
    "Amidar": (5.8, 1719.5),
    "Assault": (222.4, 742.0),
    "Asterix": (210.0, 8503.3),
    "BankHeist": (14.2, 753.1),
    "BattleZone": (2360.0, 37187.5),
    "Boxing": (0.1, 12.1),
    "Breakout": (1.7, 30.5),
    "ChopperCommand": (811.0, 7387.8),
    "CrazyClimber": (10780.5, 35829.4),
    "DemonAttack": (152.1, 1971.0),
    "Freeway": (0.0, 29.6),
    "Frostbite": (65.2, 4334.7),
    "Gopher": (257.6, 2412.5),
    "Hero": (1027.0, 30826.4),
    "Jamesbond": (29.0, 302.8),
    "Kangaroo": (52.0, 3035.0),
    "Krull": (1598.0, 2665.5),
    "KungFuMaster": (258.5, 22736.3),
    "MsPacman": (307.3, 6951.6),
    "Pong": (-20.7, 14.6),
    "PrivateEye": (24.9, 69571.3),
    "Qbert": (163.9, 13455.0),
    "RoadRunner": (11.5, 7845.0),
    "Seaquest": (68.4, 42054.7),
    "UpNDown": (533.4, 11693.2),
}
"""Of Atari100k: a random policy's and a human tester's scores (Mnih et al., 2015), between which all normalise."""
SUITES = {
    suite.name: suite
    for suite in (
        Suite(
            "quick",
            ("CartPole-v1", "Pendulum-v1", "dmc/cartpole-balance"),
            7_500,
            (2_500, 5_000, 7_500),
            about="three easy tasks in minutes: does everything work, and does it learn?",
        ),
        Suite(
            "cpu8",
            _dmc(
                "cartpole-swingup ball_in_cup-catch reacher-easy finger-spin pendulum-swingup walker-walk"
                " walker-stand cheetah-run"
            ),
            about="eight dm_control tasks from states that a CPU can do",
        ),
        Suite(
            "dmc18",
            _dmc(
                "acrobot-swingup ball_in_cup-catch cartpole-balance cartpole-balance_sparse cartpole-swingup"
                " cartpole-swingup_sparse cheetah-run finger-spin finger-turn_easy finger-turn_hard hopper-hop"
                " hopper-stand pendulum-swingup reacher-easy reacher-hard walker-run walker-stand walker-walk"
            ),
            500_000,
            (10_000, 25_000, 50_000, 100_000, 200_000, 300_000, 400_000, 500_000),
            about="the 18 dm_control tasks from states of the DreamerV3 paper",
        ),
        Suite(
            "dmc20-pixels",
            _dmc(
                "acrobot-swingup ball_in_cup-catch cartpole-balance cartpole-balance_sparse cartpole-swingup"
                " cartpole-swingup_sparse cheetah-run finger-spin finger-turn_easy finger-turn_hard hopper-hop"
                " hopper-stand pendulum-swingup quadruped-run quadruped-walk reacher-easy reacher-hard walker-run"
                " walker-stand walker-walk"
            ),
            1_000_000,
            (50_000, *range(100_000, 1_000_001, 100_000)),
            {"observe": "pixels"},
            about="the 20 dm_control tasks from pixels of the DreamerV3 paper",
        ),
        Suite(
            "gym-mujoco",
            ("Ant-v5", "HalfCheetah-v5", "Hopper-v5", "Humanoid-v5", "Walker2d-v5"),
            1_000_000,
            (50_000, *range(100_000, 1_000_001, 100_000)),
            about="Gymnasium's five locomotion tasks",
        ),
        Suite(
            "atari100k",
            tuple(f"{game}NoFrameskip-v4" for game in GAMES),
            400_000,
            (40_000, 100_000, 200_000, 300_000, 400_000),
            about="26 Atari games without sticky actions for 100k decisions: 400k environment steps, 4 a decision",
        ),
    )
}

REFERENCES = {
    "CartPole-v1": (0.0, 500.0),  # the limits
    "Pendulum-v1": (-1208.0, -150.0),  # a random policy, measured over 100 episodes; about what good agents reach
    # A random policy's and TD3's returns on the v4 tasks (Fujimoto et al., "For SALE", 2023). No limits of the v5.
    "Ant-v5": (-70.288, 3942.0),
    "HalfCheetah-v5": (-289.415, 10574.0),
    "Hopper-v5": (18.791, 3226.0),
    "Humanoid-v5": (120.423, 5165.0),
    "Walker2d-v5": (2.791, 3946.0),
    **{f"{game}NoFrameskip-v4": scores for game, scores in GAMES.items()},
}


def reference_range(env: str) -> tuple[float, float] | None:
    """The returns that count as 0 and as 1 where tasks are averaged; None: this task has no agreed scale.

    The Control Suite's rewards lie in [0, 1] for 1000 steps. Others are in REFERENCES; a return may lie outside.
    """
    task = re.fullmatch(r"(?:dmc|dm_control)/(.+?)(?:-v\d+)?", env)
    if task:
        unbounded = task[1].startswith(("lqr-", "manipulation-", "locomotion-"))
        return None if unbounded else (0.0, 1000.0)
    return REFERENCES.get(env)


def find(suite: str | Sequence[str]) -> Suite:
    """A suite by name, from a file, or of environments (a list, or one text with commas).

    Raises:
        UserError: neither is meant; the message lists the suites.
    """
    words = _split(suite) if isinstance(suite, str) else list(suite)
    if len(words) == 1:
        [word] = words
        if word in SUITES:
            return SUITES[word]
        if Path(word).suffix in FILES:
            return read(Path(word))
    wrong = [word for word in words if not _names_an_env(word)]
    if wrong or not words:
        raise UserError(_unknown(wrong))
    return Suite("custom", tuple(words), about="environments named on the command line")


def read(path: Path) -> Suite:
    """A suite from a file: text with one environment a line, `#` before remarks; or YAML with the fields of Suite.

        envs: [CartPole-v1, dmc/walker-walk]
        steps: 50k                      # 100k unless given
        evaluate_at: [10k, 25k, 50k]    # unless given: 10k, 25k, 50k, 100k up to steps, and steps
        options: {action_repeat: 4}
        about: what it is for

    Raises:
        UserError: the file cannot be read, or not understood.
    """
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The suite {path} cannot be read: {error}. There are also: {', '.join(SUITES)}.") from error
    if path.suffix == ".txt":
        lines = (line.partition("#")[0].strip() for line in text.splitlines())
        return Suite(path.stem, tuple(line for line in lines if line))
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"The suite {path} is not YAML: {error}") from error
    known = [field.name for field in fields(Suite)]
    envs = found.get("envs") if isinstance(found, dict) else None
    if not isinstance(envs, list) or not all(isinstance(env, str) for env in envs):
        raise UserError(f"The suite {path} must list its environments, as in\n    envs: [CartPole-v1, dmc/walker-walk]")
    if extra := sorted(map(str, set(found) - set(known))):
        raise UserError(
            f"The suite {path} has fields that mean nothing: {', '.join(extra)}. Known: {', '.join(known)}."
        )
    options = found.get("options", {})
    if not isinstance(options, dict):
        raise UserError(f"In the suite {path} options must be a mapping, as in\n    options: {{action_repeat: 4}}")
    suite = Suite(found.get("name", path.stem), tuple(envs), options=options, about=found.get("about", ""))
    if "steps" in found:
        suite = suite.until(_count(path, found["steps"]))
    if "evaluate_at" in found:
        suite = replace(suite, evaluate_at=tuple(_count(path, at) for at in _listed(found["evaluate_at"])))
    return suite


def _count(path: Path, steps: Any) -> int:
    from scripts.options import read_count  # imports torch

    try:
        return read_count(str(steps))
    except ValueError as error:
        raise UserError(f"In the suite {path}: {error}.") from error


def _listed(value: Any) -> Iterable[Any]:
    return value if isinstance(value, list) else [value]


def _split(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _names_an_env(word: str) -> bool:
    """`dmc/walker-walk`, `file.py:MyEnv`, `CartPole-v1`; a bare word would be a suite."""
    return "/" in word or ":" in word or re.search(r"-v\d+$", word) is not None


def _unknown(words: Sequence[str]) -> str:
    there = "\n".join(f"    {suite.name:14s}{len(suite.envs):3d} tasks  {suite.about}" for suite in SUITES.values())
    near = [match for word in words for match in difflib.get_close_matches(word, SUITES, 1)]
    guess = f" Did you mean {near[0]}?" if near else ""
    named = f"There is no suite or environment {', '.join(words)}." if words else "No suite was named."
    return (
        f"{named}{guess} Suites:\n{there}\n"
        "or environments, as CartPole-v1,dmc/walker-walk, or a file that lists them, as my-suite.yaml."
    )
