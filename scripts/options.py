"""What `mbrl train` was asked for: two-stage parsing, so that the defaults are those of the run at hand.

First the words that decide which defaults hold (environment, agent, preset, where the run is), then the
whole line against them. Defaults are the stored configuration of a run that exists, else the preset's.
What stands on the command line always wins.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

import tyro

import envs
from agents import agent_class, config_class, from_dict
from mbrl.checkpoint import Checkpoint, latest
from mbrl.errors import UserError
from mbrl.replay import ReplayConfig
from mbrl.training import TrainConfig

Config = TypeVar("Config")
Training = TypeVar("Training", bound="Loop")
PRESETS = ("laptop", "reference", "debug")
ENV_OPTIONS = tuple(envs.OPTIONS)
"""What a run says about its environment beside the name; as in ``envs.make_env``."""
UNITS = {"": 1, "k": 1_000, "m": 1_000_000}


def read_count(text: str) -> int:
    """100000, 100_000, 1e5, 100k and 0.1M are the same number of steps."""
    match = re.fullmatch(r"([0-9_]*\.?[0-9_]+(?:e\+?[0-9]+)?)([km]?)", text.strip().lower())
    try:
        number = float(match[1].replace("_", "")) * UNITS[match[2]] if match else math.nan
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and number == int(number)):
        raise ValueError(f"'{text}' is not a number of steps; write it like 100000, 100_000, 1e5 or 100k")
    if number < 1:
        raise ValueError("at least one step is needed; write it like 100000, 100_000, 1e5 or 100k")
    return int(number)


def write_count(number: int) -> str:
    """100000 -> 100k."""
    for unit, size in (("M", 1_000_000), ("k", 1_000)):
        if number >= size and number % (size // 10) == 0:
            return f"{number / size:g}{unit}"
    return str(number)


Count = Annotated[
    int,
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="STEPS",
        instance_from_str=lambda words: read_count(words[0]),
        is_instance=lambda value: isinstance(value, int),
        str_from_instance=lambda number: [write_count(number)],
    ),
]


@dataclass(frozen=True)
class Loop(TrainConfig):
    """The training loop."""

    # These two are options of their own: --steps, --minutes.
    steps: tyro.conf.Suppress[int] = 0
    minutes: tyro.conf.Suppress[float | None] = None
    eval_at: tuple[Count, ...] = ()
    """Environment steps to evaluate at besides, as soon as they are reached: 10k 25k."""


@dataclass(frozen=True)
class OuterLoop(Loop):
    """The training loop."""

    # Of agents with a loop and a memory of their own: what only our own loop does.
    update_ratio: tyro.conf.Suppress[float | None] = 0.0
    prefill: tyro.conf.Suppress[int] = 0
    random_prefill: tyro.conf.Suppress[bool] = True
    pretrain: tyro.conf.Suppress[int] = 0
    replay: tyro.conf.Suppress[ReplayConfig] = field(default_factory=ReplayConfig)


@dataclass(frozen=True)
class Preset:
    """What holds unless the command line says otherwise."""

    agent: Any
    training: TrainConfig
    num_envs: int = 1


@dataclass(frozen=True)
class Options(Generic[Config, Training]):
    config: Config
    """The agent."""
    training: Training
    """The training loop."""
    steps: Count
    """Environment steps, action repeat included: 100000, 100_000, 1e5 or 100k."""
    minutes: float | None
    """Stop after so many minutes, evaluation and earlier parts of the run included."""
    agent: str = "dreamer"
    """Which agent."""
    preset: str = "laptop"
    """Which defaults."""
    seed: int = 0
    """Of everything random; each seed is a run of its own."""
    num_envs: int = 1
    """Environments side by side."""
    parallel: bool | None = None
    """Each environment in a process of its own; None: what timed steps say."""
    action_repeat: int | None = None
    """Steps that each action is held for; None: 2 for dm_control, 4 for Atari, 1 for the others."""
    max_episode_steps: int | None = None
    """The simulator's steps after which an episode is cut off; None: the environment's own limit."""
    observe: envs.Observe = "state"
    """What the agent sees: the environment's own observations, pictures of it, or both."""
    camera: int | str | None = None
    """The camera of a MuJoCo model that takes the pictures; None: the usual one."""
    size: int = 64
    """Side of the pictures that the agent sees."""
    device: str = "auto"
    """auto, cpu or cuda; auto is what a timed update says."""
    threads: int | None = None
    """CPU threads; None: OMP_NUM_THREADS, else what a timed update says."""
    runs_dir: Path = Path("runs")
    """Where runs are: RUNS_DIR/<environment>/<agent>/seed<k>."""
    sinks: tuple[str, ...] = ("tensorboard",)
    """Where metrics go beside metrics.jsonl: tensorboard, wandb, trackio."""
    pictures: bool = True
    """Draw eval.gif and dream.gif at the end."""
    fresh: bool = False
    """Start over: removes the run that is there."""
    env: tyro.conf.Suppress[str] = ""

    @property
    def train_config(self) -> TrainConfig:
        values = {f.name: getattr(self.training, f.name) for f in dataclasses.fields(TrainConfig)}
        return TrainConfig(**{**values, "steps": self.steps, "minutes": self.minutes})

    @property
    def env_options(self) -> dict[str, Any]:
        """Of every environment of the run, for ``envs.make_env``."""
        return {name: getattr(self, name) for name in ENV_OPTIONS}

    @property
    def directory(self) -> Path:
        return run_directory(self.runs_dir, self.env, self.agent, self.seed)

    def plain(self) -> dict[str, Any]:
        """What this run is, as it is stored with it."""
        names = ("env", "agent", "preset", "seed", "num_envs", "parallel", *ENV_OPTIONS, "threads")
        return {
            **{name: getattr(self, name) for name in names},
            "config": dataclasses.asdict(self.config),  # type: ignore[call-overload]
            "training": dataclasses.asdict(self.train_config),
        }


def run_directory(runs_dir: Path, env: str, agent: str, seed: int | str) -> Path:
    """One folder for the environment, whatever its name holds; both spellings of dm_control share it."""
    name = re.sub(r"^dm_control/(.*)-v\d+$", r"dmc/\1", env)
    return runs_dir / (re.sub(r"[^\w.-]+", "_", name).strip("._") or "env") / agent / f"seed{seed}"


def parse(argv: list[str]) -> tuple[Options[Any, Any], Checkpoint | None]:
    """The command line, on top of the run that exists (its checkpoint), on top of the preset."""
    wants_help = bool({"-h", "--help"} & set(argv))
    if (not argv or argv[0].startswith("-")) and not wants_help:
        raise UserError("name the environment first, as in: mbrl train CartPole-v1 --steps 20k")
    env, rest = ("ENV", argv) if argv[0].startswith("-") else (argv[0], argv[1:])
    first = _first_stage(rest)
    presets = presets_of(first.agent, env)
    if first.preset is not None and first.preset not in presets:
        raise UserError(
            f"there is no preset '{first.preset}' of {first.agent}; there are: {', '.join(presets)}"
        )
    seed = int(first.seed) if first.seed.isdecimal() else first.seed  # 07 is 7; what is no number is refused below
    directory = run_directory(Path(first.runs_dir), env, first.agent, seed)
    resume = None if first.fresh or env == "ENV" else latest(directory)
    if resume is not None:
        _check_same(resume, env, first.agent, directory)
    defaults = _defaults(env, first.agent, first.preset, resume)
    form: Any = Options[type(defaults.config), type(defaults.training)]  # type: ignore[misc]
    options: Options[Any, Any] = tyro.cli(
        form,
        args=rest,
        default=defaults,
        prog=f"mbrl train {env}",
        description="Train an agent; the same command again continues the run. Defaults below are those of "
        + (f"the run in {directory}." if resume else f"{env} with the preset {defaults.preset}."),
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    return _checked(options), resume


def presets_of(agent: str, env: str = "") -> dict[str, Preset]:
    """Those that an agent has for an environment; the default comes first."""
    kind = agent_class(agent)
    if hasattr(kind, "presets"):
        found = kind.presets(env)
    else:
        module = sys.modules[kind.__module__]
        found = {name: getattr(module, name)() for name in PRESETS if hasattr(module, name)}
    if not found:
        return {"default": Preset(config_class(agent)(), TrainConfig(update_ratio=0))}
    return {
        name: Preset(preset.agent, preset.training, getattr(preset, "num_envs", 1)) for name, preset in found.items()
    }


def has_own_loop(agent: str) -> bool:
    return hasattr(agent_class(agent), "memory")


def _first_stage(rest: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--agent", default="dreamer")
    parser.add_argument("--preset")
    parser.add_argument("--seed", default="0")
    parser.add_argument("--runs-dir", "--runs_dir", default="runs")
    parser.add_argument("--fresh", action="store_true")
    return parser.parse_known_args(rest)[0]


def _check_same(resume: Checkpoint, env: str, agent: str, directory: Path) -> None:
    for name, wanted in (("env", env), ("agent", agent)):
        there = resume.config.get(name)
        if there != wanted and run_directory(Path(), str(there), "", 0) != run_directory(
            Path(), wanted, "", 0
        ):
            raise UserError(
                f"{directory} holds a run of {name} {there}, not {wanted}; choose another --runs-dir, "
                "or start over with --fresh"
            )


def _defaults(env: str, agent: str, preset: str | None, resume: Checkpoint | None) -> Options[Any, Any]:
    stored = resume.config if resume is not None else {}
    presets = presets_of(agent, env)
    name = preset or stored.get("preset") or next(iter(presets))
    config, training, num_envs = presets[name].agent, presets[name].training, presets[name].num_envs
    if stored and name == stored["preset"]:
        config = from_dict(type(config), stored["config"])
        training = from_dict(TrainConfig, stored["training"])
    kept = {key: stored[key] for key in ("num_envs", "parallel", *ENV_OPTIONS, "threads") if key in stored}
    if "OMP_NUM_THREADS" in os.environ:
        kept.pop("threads", None)
    kept.setdefault("num_envs", num_envs)
    kind = OuterLoop if has_own_loop(agent) else Loop
    loop = kind(**{f.name: getattr(training, f.name) for f in dataclasses.fields(TrainConfig)})
    return Options(config, loop, training.steps, training.minutes, agent, name, env=env, **kept)


def _checked(options: Options[Any, Any]) -> Options[Any, Any]:
    """Raises:
    UserError: a number that no run can have.
    """
    loop = options.training
    least = {
        "--seed": (options.seed, 0),
        "--num-envs": (options.num_envs, 1),
        "--training.update-ratio": (loop.update_ratio or 0, 0),
        "--training.eval-every": (loop.eval_every, 0),
        "--training.log-every": (loop.log_every, 1),
        "--training.eval-episodes": (loop.eval_episodes, 1),
        "--training.eval-limit": (loop.eval_limit, 1),
        "--training.eval-probes": (loop.eval_probes, 0),
        "--training.prefill": (loop.prefill, 0),
        "--training.pretrain": (loop.pretrain, 0),
        "--training.final-episodes": (loop.final_episodes, 1),
        "--training.checkpoint-every": (loop.checkpoint_every, 0),
    }
    if options.threads is not None:
        least["--threads"] = (options.threads, 1)
    for name, (value, minimum) in least.items():
        if not value >= minimum:
            raise UserError(f"{name} must be {minimum} or more, not {value}")
    if options.minutes is not None and not options.minutes > 0:
        raise UserError(f"--minutes must be more than 0, not {options.minutes}")
    return options
