"""Settings of the model-free baselines: Stable-Baselines3's defaults, and the zoo's tuned ones by environment.

A field has the name and, where nothing else is said, the default that Stable-Baselines3 gives it. ``tuned`` holds
what rl-baselines3-zoo (hyperparams/*.yml) has found for an environment; the version of the environment's name
does not count (the zoo's HalfCheetah-v4 serves HalfCheetah-v5), and its n_timesteps are left to --steps. The
zoo has nothing for dm_control: there PPO takes what the zoo starts from on MuJoCo tasks (observations and
rewards normalised), and the others Stable-Baselines3's defaults, but two updates for each decision (PER_STEP).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

Layers = tuple[int, ...]


@dataclass(frozen=True)
class OffPolicyConfig:
    """What the algorithms with a replay buffer share."""

    learning_rate: float = 3e-4
    """Of every network."""
    buffer_size: int = 1_000_000
    """Decisions kept; no more memory is taken than --steps can fill."""
    learning_starts: int = 100
    """Random decisions before the first update."""
    batch_size: int = 256
    """Transitions in an update."""
    gamma: float = 0.99
    """Discount per decision."""
    train_freq: int = 1
    """Decisions of each environment between updates."""
    gradient_steps: int = 1
    """Updates done then; -1: one for each decision of all environments."""
    net_arch: Layers | None = None
    """Hidden layers of actor and critics, or of the Q network; None: Stable-Baselines3's."""


@dataclass(frozen=True)
class SacConfig(OffPolicyConfig):
    tau: float = 0.005
    """How far the target critics move in an update."""
    ent_coef: float | None = None
    """Entropy coefficient; None: learnt."""
    use_sde: bool = False
    """State-dependent exploration."""
    log_std_init: float | None = None
    """Initial log standard deviation of that; None: Stable-Baselines3's."""


@dataclass(frozen=True)
class TqcConfig(SacConfig):
    top_quantiles_to_drop_per_net: int = 2
    """Of the 25 quantiles of each critic."""


@dataclass(frozen=True)
class CrossqConfig(OffPolicyConfig):
    learning_rate: float = 1e-3
    """Of actor, critics and entropy coefficient."""
    ent_coef: float | None = None
    """Entropy coefficient; None: learnt."""
    policy_delay: int = 3
    """Updates of the critics for one of the actor."""
    critic_arch: Layers | None = None
    """Hidden layers of the critics where they differ from the actor's."""


@dataclass(frozen=True)
class Td3Config(OffPolicyConfig):
    learning_rate: float = 1e-3
    """Of actor and critics."""
    tau: float = 0.005
    """How far the targets move in an update."""
    policy_delay: int = 2
    """Updates of the critics for one of the actor."""
    noise_std: float = 0.1
    """Of the exploration noise, actions being in [-1, 1]: the paper's and the zoo's; Stable-Baselines3 has none."""


@dataclass(frozen=True)
class DqnConfig(OffPolicyConfig):
    learning_rate: float = 1e-4
    """Of the Q network."""
    batch_size: int = 32
    """Transitions in an update."""
    tau: float = 1.0
    """How far the target network moves when it does."""
    train_freq: int = 4
    """Decisions of each environment between updates."""
    target_update_interval: int = 10_000
    """Decisions between moves of the target network."""
    exploration_fraction: float = 0.1
    """Share of --steps over which exploration is annealed."""
    exploration_final_eps: float = 0.05
    """Share of random actions after that."""


@dataclass(frozen=True)
class PpoConfig:
    learning_rate: float = 3e-4
    """Of actor and critic."""
    n_steps: int = 2048
    """Decisions of each environment in a rollout."""
    batch_size: int = 64
    """Transitions in a minibatch."""
    n_epochs: int = 10
    """Passes over a rollout."""
    gamma: float = 0.99
    """Discount per decision."""
    gae_lambda: float = 0.95
    """Of the advantages."""
    clip_range: float = 0.2
    """Of the probability ratio."""
    linear_schedule: bool = False
    """Learning rate and clip range fall to zero over --steps."""
    ent_coef: float = 0.0
    """Entropy bonus."""
    vf_coef: float = 0.5
    """Weight of the critic's loss."""
    max_grad_norm: float = 0.5
    """Where gradients are clipped."""
    normalize: bool = False
    """Vector observations and rewards by running statistics (VecNormalize)."""
    use_sde: bool = False
    """State-dependent exploration."""
    sde_sample_freq: int = -1
    """Decisions between new noise for that; -1: once a rollout."""
    log_std_init: float | None = None
    """Initial log standard deviation of actions; None: Stable-Baselines3's."""
    ortho_init: bool = True
    """Orthogonal initialisation."""
    activation: Literal["tanh", "relu"] | None = None
    """Between layers; None: Stable-Baselines3's."""
    net_arch: Layers | None = None
    """Hidden layers of actor and of critic; None: Stable-Baselines3's."""


Table = dict[str, dict[str, Any]]
LARGE = {"log_std_init": -2.0, "ortho_init": False, "activation": "relu", "net_arch": (256, 256)}

PER_STEP = {"dm_control": {"gradient_steps": 2}}
"""One update for each environment step, at the action repeat of 2: what published SAC curves on dm_control have."""

SAC: Table = {
    **PER_STEP,
    "Pendulum": {"learning_rate": 1e-3},
    "MountainCarContinuous": {
        "buffer_size": 50_000, "batch_size": 512, "ent_coef": 0.1, "train_freq": 32, "gradient_steps": 32,
        "gamma": 0.9999, "tau": 0.01, "learning_starts": 0, "use_sde": True, "log_std_init": -3.67,
        "net_arch": (64, 64),
    },
    **{name: {"learning_starts": 10_000} for name in ("HalfCheetah", "Ant", "Hopper", "Walker2d", "Humanoid")},
    "Swimmer": {"learning_starts": 10_000, "gamma": 0.9999},
}  # fmt: skip
TQC: Table = {
    **SAC,
    "Pendulum": {
        "learning_rate": 1e-3, "use_sde": True, "gradient_steps": 64, "train_freq": 64, "log_std_init": -2.0,
        "net_arch": (64, 64),
    },
    "Hopper": {"learning_starts": 10_000, "top_quantiles_to_drop_per_net": 5},
}  # fmt: skip
CROSSQ_MUJOCO = {"learning_starts": 5000, "net_arch": (256, 256), "critic_arch": (2048, 2048)}
CROSSQ: Table = {
    **PER_STEP,
    "Pendulum": {"policy_delay": 2, "net_arch": (256, 256)},
    **dict.fromkeys(("HalfCheetah", "Ant", "Hopper", "Walker2d", "Humanoid", "HumanoidStandup"), CROSSQ_MUJOCO),
    "Swimmer": {**CROSSQ_MUJOCO, "gamma": 0.999},
}
TD3_MUJOCO = {"learning_starts": 10_000, "net_arch": (400, 300)}
TD3: Table = {
    **PER_STEP,
    "Pendulum": {"gamma": 0.98, "buffer_size": 200_000, "learning_starts": 10_000, "net_arch": (400, 300)},
    **dict.fromkeys(("HalfCheetah", "Ant", "Hopper", "Walker2d", "Humanoid"), TD3_MUJOCO),
}
DQN: Table = {
    "CartPole": {
        "learning_rate": 2.3e-3, "batch_size": 64, "buffer_size": 100_000, "learning_starts": 1000,
        "target_update_interval": 10, "train_freq": 256, "gradient_steps": 128, "exploration_fraction": 0.16,
        "exploration_final_eps": 0.04, "net_arch": (256, 256),
    },
    "MountainCar": {
        "learning_rate": 4e-3, "batch_size": 128, "buffer_size": 10_000, "learning_starts": 1000, "gamma": 0.98,
        "target_update_interval": 600, "train_freq": 16, "gradient_steps": 8, "exploration_fraction": 0.2,
        "exploration_final_eps": 0.07, "net_arch": (256, 256),
    },
    "Acrobot": {
        "learning_rate": 6.3e-4, "batch_size": 128, "buffer_size": 50_000, "learning_starts": 0,
        "target_update_interval": 250, "gradient_steps": -1, "exploration_fraction": 0.12,
        "exploration_final_eps": 0.1, "net_arch": (256, 256),
    },
}  # fmt: skip
PPO: Table = {
    "CartPole": {
        "num_envs": 8, "n_steps": 32, "batch_size": 256, "gae_lambda": 0.8, "gamma": 0.98, "n_epochs": 20,
        "learning_rate": 1e-3, "linear_schedule": True,
    },
    "Pendulum": {
        "num_envs": 4, "n_steps": 1024, "gamma": 0.9, "learning_rate": 1e-3, "use_sde": True, "sde_sample_freq": 4,
    },
    "MountainCar": {"num_envs": 16, "normalize": True, "n_steps": 16, "gae_lambda": 0.98, "n_epochs": 4},
    "MountainCarContinuous": {
        "normalize": True, "batch_size": 256, "n_steps": 8, "gamma": 0.9999, "learning_rate": 7.77e-5,
        "ent_coef": 0.00429, "clip_range": 0.1, "gae_lambda": 0.9, "max_grad_norm": 5.0, "vf_coef": 0.19,
        "use_sde": True, "log_std_init": -3.29, "ortho_init": False,
    },
    "Acrobot": {"num_envs": 16, "normalize": True, "n_steps": 256, "gae_lambda": 0.94, "n_epochs": 4},
    "HalfCheetah": {
        "normalize": True, "n_steps": 512, "gamma": 0.98, "learning_rate": 2.0633e-5, "ent_coef": 0.000401762,
        "clip_range": 0.1, "n_epochs": 20, "gae_lambda": 0.92, "max_grad_norm": 0.8, "vf_coef": 0.58096, **LARGE,
    },
    "Hopper": {
        "normalize": True, "batch_size": 32, "n_steps": 512, "gamma": 0.999, "learning_rate": 9.80828e-5,
        "ent_coef": 0.00229519, "n_epochs": 5, "gae_lambda": 0.99, "max_grad_norm": 0.7, "vf_coef": 0.835671,
        **LARGE,
    },
    "Humanoid": {
        "normalize": True, "batch_size": 256, "n_steps": 512, "gamma": 0.95, "learning_rate": 3.56987e-5,
        "ent_coef": 0.00238306, "clip_range": 0.3, "n_epochs": 5, "gae_lambda": 0.9, "max_grad_norm": 2.0,
        "vf_coef": 0.431892, **LARGE,
    },
    "Walker2d": {
        "normalize": True, "batch_size": 32, "n_steps": 512, "learning_rate": 5.05041e-5, "ent_coef": 0.000585045,
        "clip_range": 0.1, "n_epochs": 20, "max_grad_norm": 1.0, "vf_coef": 0.871923,
    },
    "Ant": {"normalize": True},
    "Swimmer": {
        "normalize": True, "num_envs": 4, "gamma": 0.9999, "n_steps": 1024, "batch_size": 256,
        "learning_rate": 6e-4, "gae_lambda": 0.98,
    },
    "dm_control": {"normalize": True},
}  # fmt: skip

TABLES: dict[type, Table] = {
    SacConfig: SAC,
    TqcConfig: TQC,
    CrossqConfig: CROSSQ,
    Td3Config: TD3,
    DqnConfig: DQN,
    PpoConfig: PPO,
}


def tuned(config: type, env: str) -> tuple[Any, int] | None:
    """The tuned configuration for an environment's name and its number of environments; None where there is none."""
    name = "dm_control" if env.startswith(("dmc/", "dm_control/")) else re.sub(r"-v\d+$", "", env)
    if name not in TABLES[config]:
        return None
    values = dict(TABLES[config][name])
    num_envs = values.pop("num_envs", 1)
    return config(**values), num_envs
