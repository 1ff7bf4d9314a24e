"""Model-free baselines: algorithms of Stable-Baselines3 and sb3-contrib, on our environments and in our runs.

They keep their own loop and their own buffer, which is what users trust: ``learn()`` runs as it is. What it steps
is a VecEnv that passes every action on to train()'s environments, and lets train() evaluate, log, save or stop
before each decision, when the last one is stored and learnt from.

A run that was interrupted goes on with its networks, optimisers, normaliser, buffer and step; not bit for bit,
and PPO gathers the rollout anew that it was in the middle of.

Observation spaces: vectors are joined into one, a single picture is one, and several, or both, are a dict.
N parallel environments, A action dims.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, ClassVar, get_type_hints

import numpy as np
import torch
from gymnasium import Space, spaces
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from agents.sb3_config import CrossqConfig, DqnConfig, PpoConfig, SacConfig, Td3Config, TqcConfig, tuned
from mbrl.errors import UserError
from mbrl.interfaces import Loop, State
from mbrl.replay import Replay
from mbrl.spaces import ActionSpec, check_observation_space, is_image, vector_size
from mbrl.steps import Steps
from mbrl.training import TrainConfig

try:
    import sb3_contrib
    import stable_baselines3
    from stable_baselines3.common.logger import Logger
    from stable_baselines3.common.noise import NormalActionNoise
    from stable_baselines3.common.save_util import recursive_getattr
    from stable_baselines3.common.vec_env import VecEnv, VecNormalize
except ImportError as error:
    raise UserError(
        f"the model-free baselines need Stable-Baselines3 and sb3-contrib, and {error}; install them with: "
        "pip install -c constraints.txt -e '.[baselines]'"
    ) from error

from agents.sb3_bridge import Array, Environments, Leave, Memory  # needs them too

SMALLEST_PICTURE = 36
"""Pixels of a side that the convolutions of Stable-Baselines3's CnnPolicy need."""
COUNTERS = ("_n_updates", "_n_calls", "_episode_num", "exploration_rate", "_current_progress_remaining")
METRICS = {
    "actor_loss": "loss/policy",
    "policy_gradient_loss": "loss/policy",
    "critic_loss": "loss/value",
    "value_loss": "loss/value",
    "loss": "loss/total",
}
"""Stable-Baselines3's names, and ours where there is one."""


@dataclass(frozen=True)
class Preset:
    agent: Any
    training: TrainConfig
    num_envs: int = 1


class Baseline:
    """What the algorithms share. Implements Agent and OwnLoop of ``mbrl.interfaces``.

    Raises:
        UserError: an observation or action space that the algorithm cannot take.
    """

    algorithm_class: ClassVar[Any]
    actions: ClassVar[str]
    """"continuous", "discrete" or "any"."""
    advice: ClassVar[str] = "use sac or ppo"
    policies: ClassVar[tuple[str, ...]] = ("MlpPolicy", "CnnPolicy", "MultiInputPolicy")

    def __init__(
        self,
        config: Any,
        observation_space: spaces.Dict,
        action_space: Space[Any],
        device: torch.device | str = "cpu",
    ) -> None:
        self.config, self.device = config, torch.device(device)
        self.action_spec = ActionSpec.of(action_space)
        self.observation_space = check_observation_space(observation_space)
        self.policy_name, self.sb3_observation_space = self._observations()
        self.sb3_action_space = self._actions()
        with warnings.catch_warnings():  # of the number of environments, which is not known yet
            warnings.filterwarnings("ignore", message="You have specified a mini-batch size")
            self._build(num_envs=1, decisions=1)

    @classmethod
    def presets(cls, env: str) -> dict[str, Preset]:
        """"tuned", where the zoo has settings for the environment, and "default"."""
        config = get_type_hints(cls)["config"]
        found = tuned(config, env)
        # Nothing of train()'s own loop: it does no updates for these agents.
        training = TrainConfig(update_ratio=0.0, prefill=0)
        default = {"default": Preset(config(), training)}
        return default if found is None else {"tuned": Preset(found[0], training, found[1]), **default}

    # ---- spaces ----------------------------------------------------------------------------------

    def _observations(self) -> tuple[str, Space[Any]]:
        """The name of the policy, and what it sees."""
        entries = self.observation_space.spaces
        self.pictures = [key for key, space in entries.items() if is_image(space)]
        self.vectors = [key for key in entries if key not in self.pictures]
        for key in self.pictures:
            if min(entries[key].shape[:2]) < SMALLEST_PICTURE:  # type: ignore[index]
                raise UserError(
                    f"observation '{key}' is a picture of {entries[key].shape}, too small for the convolutions of "
                    f"Stable-Baselines3, which need {SMALLEST_PICTURE} x {SMALLEST_PICTURE}; use --size 64, or "
                    "--agent dreamer"
                )
        found: dict[str, Space[Any]] = {key: _channels_first(entries[key]) for key in self.pictures}
        if self.vectors:
            size = sum(vector_size(entries[key]) for key in self.vectors)
            found["vector"] = spaces.Box(-np.inf, np.inf, (size,), np.float32)
        name = "MultiInputPolicy" if len(found) > 1 else "CnnPolicy" if self.pictures else "MlpPolicy"
        if name not in self.policies:
            raise UserError(
                f"{type(self).__name__.lower()} takes vectors only, and this environment shows pictures "
                f"({', '.join(self.pictures)}); use --agent sac, or --observe state where the environment has one"
            )
        return name, spaces.Dict(found) if len(found) > 1 else next(iter(found.values()))

    def _actions(self) -> Space[Any]:
        spec = self.action_spec
        if spec.continuous and not spec.choices and self.actions != "discrete":
            return spaces.Box(-1.0, 1.0, (spec.continuous,), np.float32)
        if len(spec.choices) == 1 and not spec.continuous and self.actions != "continuous":
            return spaces.Discrete(spec.choices[0])
        if spec.choices and not spec.continuous and self.actions == "any":
            return spaces.MultiDiscrete(list(spec.choices))
        mixed = bool(spec.choices) and bool(spec.continuous)
        advice = "use dreamer" if mixed else "use ppo" if len(spec.choices) > 1 else self.advice
        raise UserError(f"{type(self).__name__.lower()} cannot take the action space {spec}; {advice}")

    def read(self, obs: dict[str, Tensor]) -> Any:
        """Observations, each (N, ...), as Stable-Baselines3 sees them: an array, or a dict of them."""
        found: dict[str, Array] = {key: obs[key].cpu().numpy().transpose(0, 3, 1, 2) for key in self.pictures}
        if self.vectors:
            parts = []
            for key in self.vectors:
                space = self.observation_space[key]
                value = obs[key].cpu()
                if isinstance(space, spaces.Discrete):
                    value = torch.nn.functional.one_hot(value.long() - int(space.start), int(space.n))
                parts.append(value.reshape(len(value), -1).float())
            found["vector"] = torch.cat(parts, -1).numpy()
        return found if len(found) > 1 else next(iter(found.values()))

    def to_ours(self, actions: Array) -> Tensor:
        """Stable-Baselines3's actions -> (N, A)."""
        if self.action_spec.continuous:
            return torch.as_tensor(actions, dtype=torch.float32)
        chosen = torch.as_tensor(actions).reshape(len(actions), -1)
        parts = [torch.nn.functional.one_hot(chosen[:, i], n) for i, n in enumerate(self.action_spec.choices)]
        return torch.cat(parts, -1).float()

    # ---- the algorithm ---------------------------------------------------------------------------

    def _build(self, num_envs: int, decisions: int) -> None:
        """The algorithm, for so many environments and, at most, decisions."""
        self.env = Environments(self, num_envs)
        values = {name: value for name, value in asdict(self.config).items() if name not in SPECIAL}
        policy = {name: value for name in POLICY if (value := getattr(self.config, name, None)) is not None}
        if "activation" in policy:
            policy["activation_fn"] = {"tanh": torch.nn.Tanh, "relu": torch.nn.ReLU}[policy.pop("activation")]
        if "net_arch" in policy:
            policy["net_arch"] = list(policy["net_arch"])
        if "critic_arch" in policy:
            critic = list(policy.pop("critic_arch"))
            policy["net_arch"] = {"pi": policy.get("net_arch", critic), "qf": critic}
        if "ent_coef" in values and values["ent_coef"] is None:
            values["ent_coef"] = "auto"
        if "buffer_size" in values:  # what cannot be filled need not be held
            values["buffer_size"] = min(values["buffer_size"], num_envs * math.ceil(decisions / num_envs))
        if noise := getattr(self.config, "noise_std", 0.0):
            size = self.action_spec.continuous
            values["action_noise"] = NormalActionNoise(np.zeros(size), noise * np.ones(size))
        if getattr(self.config, "linear_schedule", False):
            for name in ("learning_rate", "clip_range"):
                values[name] = partial(_linear, values[name])
        vector: VecEnv = self.env
        self.normaliser: VecNormalize | None = None
        if getattr(self.config, "normalize", False):
            plain = isinstance(self.sb3_observation_space, spaces.Box) and not self.pictures
            vector = self.normaliser = VecNormalize(self.env, norm_obs=plain, gamma=self.config.gamma)
        self.algorithm = self.algorithm_class(
            self.policy_name, vector, policy_kwargs=policy, device=self.device, **values
        )
        self.algorithm.set_logger(Logger(None, []))
        self.flops_per_update: float | None = None
        self._train = self.algorithm.train
        if self.device.type == "cpu":
            self.algorithm.train = self._count_flops

    def _count_flops(self, *args: Any, **kwargs: Any) -> None:
        """The arithmetic of the very first updates is counted; it rounds otherwise, so a resumed run does not."""
        if self.updates:
            self._train(*args, **kwargs)
        else:
            with FlopCounterMode(display=False) as counter:
                self._train(*args, **kwargs)
            self.flops_per_update = counter.get_total_flops() / max(1, self.updates)

    def memory(self, num_envs: int, decisions: int) -> Memory:
        """Get ready to train, and the algorithm's buffer."""
        self._build(num_envs, decisions)
        return Memory(getattr(self.algorithm, "replay_buffer", None), num_envs, self.device)

    def run(self, loop: Loop) -> None:
        algorithm, self.env.loop = self.algorithm, loop
        decisions = math.ceil(loop.config.steps / loop.driver.action_repeat)
        algorithm.action_space.seed(loop.seed + loop.driver.decisions)
        loop.begin_episodes()  # where one could not be continued
        try:
            while True:
                algorithm.num_timesteps = loop.driver.decisions
                left = max(0, decisions - loop.driver.decisions)
                algorithm.learn(left, log_interval=None, reset_num_timesteps=False)
                self.env.settle()
        except Leave:
            return

    def metrics(self) -> dict[str, Tensor | float]:
        """What the last update said."""
        values: dict[str, Any] = self.algorithm.logger.name_to_value
        found = {name.removeprefix("train/"): value for name, value in values.items() if name.startswith("train/")}
        found.pop("n_updates", None)
        return {f"train/{METRICS.get(name, name)}": float(value) for name, value in found.items()}

    # ---- Agent -----------------------------------------------------------------------------------

    @property
    def updates(self) -> int:
        return int(self.algorithm._n_updates)

    @property
    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.algorithm.policy.parameters())

    def initial_state(self, n: int) -> State:
        return {}

    def act(self, step: Steps, state: State, explore: bool) -> tuple[Tensor, State]:
        obs = self.read(step.obs)
        if self.normaliser is not None:
            obs = self.normaliser.normalize_obs(obs)
        with self._other_noise(len(step.reward)) if explore else nullcontext():
            actions, _ = self.algorithm.policy.predict(obs, deterministic=not explore)
        actions = self.to_ours(actions)
        return (self._explore(actions) if explore else actions), state

    def _explore(self, actions: Tensor) -> Tensor:
        """Exploration (N, A) that is not part of the policy's own distribution."""
        return actions

    @contextmanager
    def _other_noise(self, n: int) -> Iterator[None]:
        """Inside, noise that depends on the state (gSDE) is drawn anew for n; the training goes on with its own."""
        policy = self.algorithm.policy
        noisy = getattr(policy, "actor", policy)
        if not getattr(self.config, "use_sde", False):
            yield
            return
        kept = {name: getattr(noisy.action_dist, name) for name in ("exploration_mat", "exploration_matrices")}
        noisy.reset_noise(n)
        try:
            yield
        finally:
            vars(noisy.action_dist).update(kept)

    def latents(self, state: State) -> State:
        return {}

    def latent_spec(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        return {}

    def update(self, replay: Replay) -> dict[str, Tensor | float]:
        raise AssertionError("Stable-Baselines3's own loop does the updates")

    def report(self, replay: Replay) -> dict[str, Any]:
        return {}

    def state_dict(self) -> dict[str, Any]:
        algorithm = self.algorithm
        parameters = dict(algorithm.get_parameters())
        names = algorithm._get_torch_save_params()[1]
        state = {
            "model": parameters.pop("policy"),
            "optimisers": parameters,
            "variables": {name: recursive_getattr(algorithm, name).detach().cpu().clone() for name in names},
            "counters": {name: getattr(algorithm, name) for name in COUNTERS if hasattr(algorithm, name)},
            "flops_per_update": self.flops_per_update,
        }
        if self.normaliser is not None:
            state["normaliser"] = {
                name: {key: torch.as_tensor(value) for key, value in vars(part).items() if key != "epsilon"}
                for name, part in self._statistics().items()
            }
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        algorithm = self.algorithm
        algorithm.set_parameters({"policy": state["model"], **state["optimisers"]}, device=self.device)
        with torch.no_grad():
            for name, value in state["variables"].items():
                recursive_getattr(algorithm, name).copy_(value)
        for name, value in state["counters"].items():
            setattr(algorithm, name, value)
        self.flops_per_update = state.get("flops_per_update")
        for name, part in self._statistics().items():
            for key, value in state["normaliser"][name].items():
                setattr(part, key, value.numpy() if value.ndim else value.item())

    def _statistics(self) -> dict[str, Any]:
        if self.normaliser is None:
            return {}
        observations = {"observations": self.normaliser.obs_rms} if self.normaliser.norm_obs else {}
        return {**observations, "returns": self.normaliser.ret_rms}

    def describe(self) -> str:
        package = sb3_contrib if self.algorithm_class.__module__.startswith("sb3_contrib") else stable_baselines3
        seen = ", ".join(f"{key} {space.shape or space}" for key, space in self.observation_space.spaces.items())
        return (
            f"obs {seen} -> {self.policy_name}   action {self.action_spec}   "
            f"{package.__name__} {package.__version__}   {self.num_parameters / 1e6:.2f} M parameters"
        )


POLICY = ("net_arch", "critic_arch", "activation", "log_std_init", "ortho_init")
SPECIAL = (*POLICY, "linear_schedule", "normalize", "noise_std")
"""Fields that are not arguments of the algorithm."""


class Sac(Baseline):
    config: SacConfig
    algorithm_class = stable_baselines3.SAC
    actions, advice = "continuous", "use ppo or dqn"


class Tqc(Baseline):
    config: TqcConfig
    algorithm_class = sb3_contrib.TQC
    actions, advice = "continuous", "use ppo or dqn"


class Crossq(Baseline):
    config: CrossqConfig
    algorithm_class = sb3_contrib.CrossQ
    actions, advice = "continuous", "use ppo or dqn"
    policies = ("MlpPolicy",)


class Td3(Baseline):
    config: Td3Config
    algorithm_class = stable_baselines3.TD3
    actions, advice = "continuous", "use ppo or dqn"

    def _explore(self, actions: Tensor) -> Tensor:
        return (actions + self.config.noise_std * torch.randn_like(actions)).clamp(-1, 1)


class Dqn(Baseline):
    config: DqnConfig
    algorithm_class = stable_baselines3.DQN
    actions = "discrete"

    def _explore(self, actions: Tensor) -> Tensor:
        n, choices = actions.shape
        uniform = torch.nn.functional.one_hot(torch.randint(choices, (n,)), choices).float()
        return torch.where(torch.rand(n, 1) < self.algorithm.exploration_rate, uniform, actions)


class Ppo(Baseline):
    config: PpoConfig
    algorithm_class = stable_baselines3.PPO
    actions = "any"


def _linear(initial: float, remaining: float) -> float:
    return initial * remaining


def _channels_first(space: Space[Any]) -> spaces.Box:
    assert isinstance(space, spaces.Box), space
    return spaces.Box(space.low.transpose(2, 0, 1), space.high.transpose(2, 0, 1), dtype=np.uint8)
