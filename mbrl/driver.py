"""Driver: steps a Gymnasium vector environment and speaks Steps.

A reset is an ordinary ``is_first`` step with zero action and zero reward, which is what Gymnasium's
NEXT_STEP autoreset gives. The other modes are converted here. SAME_STEP: the true last observation is read
from ``final_obs`` and the reset follows as a step of its own. DISABLED: the driver resets.

Where an environment broke and was restarted (``info["env_restarts"]``, see ``faults``), the step that failed
is left out: its row is the new episode's reset, and the step before it was the old episode's last.

N parallel environments, A action dims.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from torch import Tensor

from mbrl.errors import UserError
from mbrl.spaces import ActionSpec, check_observation_space
from mbrl.steps import Steps

Array = np.ndarray[Any, Any]


def autoreset_mode(envs: VectorEnv[Any, Any, Any]) -> AutoresetMode:
    """How these environments reset themselves.

    Raises:
        UserError: in a way that their metadata do not name.
    """
    mode = envs.metadata.get("autoreset_mode")
    if isinstance(mode, str) and mode in {known.value for known in AutoresetMode}:
        mode = AutoresetMode(mode)
    if isinstance(mode, AutoresetMode):
        return mode
    raise UserError(
        f"the vector environment {type(envs).__name__} has the autoreset mode {mode}, and an episode's end "
        "would be misread; supported are NEXT_STEP, SAME_STEP and DISABLED. "
        "Create it with envs.make_envs, or pass autoreset_mode=AutoresetMode.NEXT_STEP "
        "(a foreign one: set metadata['autoreset_mode'])."
    )


def read_action_repeat(envs: VectorEnv[Any, Any, Any]) -> int:
    """Environment steps per action: the ``action_repeat`` of the environments, 1 where they have none."""
    repeat = getattr(envs, "action_repeat", None) or envs.metadata.get("action_repeat")
    base = envs.unwrapped
    if repeat is None and isinstance(base, SyncVectorEnv):
        first = base.envs[0]
        repeat = first.get_wrapper_attr("action_repeat") if first.has_wrapper_attr("action_repeat") else None
    return int(repeat or 1)


class Driver:
    """Raises:
    UserError: an observation space or autoreset mode that is not supported, or a broken observation.
    """

    def __init__(self, envs: VectorEnv[Any, Any, Any], action_repeat: int | None = None) -> None:
        self.envs = envs
        self.space = check_observation_space(envs.single_observation_space)
        self.action_spec = ActionSpec.of(envs.single_action_space)
        self.num_envs = envs.num_envs
        self.action_repeat = action_repeat or read_action_repeat(envs)
        self.decisions = 0
        """Actions that were executed, over all environments; resets do not count."""
        self.faults: dict[int, str] = {}
        """Environments that were restarted in the last step or reset, and why."""
        self.restarts = 0
        """How often, over all environments: one may need several tries."""
        mode = autoreset_mode(envs)
        self._same_step, self._disabled = mode is AutoresetMode.SAME_STEP, mode is AutoresetMode.DISABLED
        self._resets_rows = (
            self._disabled  # by Gymnasium's definition
            or isinstance(envs.unwrapped, SyncVectorEnv | AsyncVectorEnv)
            or bool(envs.metadata.get("reset_mask"))
        )
        self._done = np.zeros(self.num_envs, bool)  # the next record is the first of an episode
        self._waiting = np.zeros(self.num_envs, bool)  # of those, already reset: their record is due
        self._reset_obs: dict[str, Tensor] = {}

    @property
    def env_steps(self) -> int:
        """Environment steps, action repeat included."""
        return self.decisions * self.action_repeat

    def reset(self, seed: int | None = None) -> Steps:
        """-> Steps (N,), all ``is_first``."""
        self.faults, self.restarts = {}, 0
        obs, info = self.envs.reset(seed=seed)
        self._heed(info)
        self._done = np.zeros(self.num_envs, bool)
        self._waiting = np.zeros(self.num_envs, bool)
        return self._first(self._read(obs))

    def step(self, action: Tensor) -> Steps:
        """Action (N, A) -> Steps (N,); where the last step ended an episode, the action is ignored."""
        action = action.detach().to("cpu", torch.float32)
        assert action.shape == (self.num_envs, self.action_spec.size), action.shape
        self.faults, self.restarts = {}, 0
        if self._disabled and (due := self._done & ~self._waiting).any():
            self._reset_obs = self._read(self._reset_rows(None, due))
            self._waiting = self._done.copy()
        if self._waiting.all():
            self._done[:] = self._waiting[:] = False
            return self._first(self._reset_obs)

        first, waiting = self._done, self._waiting
        action = torch.where(torch.from_numpy(first)[:, None], 0.0, action).clamp(-1, 1)
        raw, reward, terminated, truncated, info = self.envs.step(self.action_spec.to_env(action))
        cut = self._heed(info) & ~first
        if cut.any():
            first, waiting = first | cut, waiting | cut
            action = torch.where(torch.from_numpy(cut)[:, None], 0.0, action)
        terminated = np.asarray(terminated, bool) & ~first
        last = (terminated | np.asarray(truncated, bool)) & ~first
        reward = self._read_reward(reward, first)
        if waiting.any():
            raw = self._reset_rows(raw, waiting)
        obs = self._read(raw)
        if self._same_step and last.any():
            self._reset_obs = obs
            obs = self._with_final(obs, info, last)
        self._done, self._waiting = last, (last.copy() if self._same_step else np.zeros_like(last))
        self.decisions += int((~first).sum())
        return Steps(
            obs,
            action,
            torch.from_numpy(reward.astype(np.float32)),
            torch.from_numpy(first),
            torch.from_numpy(last.copy()),
            torch.from_numpy(terminated),
        )

    def begin_episodes(self, last: Steps) -> Steps:
        """Reset the environments that the next step would begin an episode in, now; ``last`` was the last step.

        Returns Steps (N,), ``is_first`` where one begins and as in ``last`` elsewhere.
        """
        self.faults, self.restarts = {}, 0
        rows, obs = self._done, self._reset_obs
        if not rows.any():
            return last
        if (due := rows & ~self._waiting).any():
            assert self._resets_rows or due.all(), "this vector environment resets all or none"
            obs = self._read(self._reset_rows(None, due) if self._resets_rows else self.envs.reset()[0])
        self._done, self._waiting = np.zeros_like(rows), np.zeros_like(rows)
        steps = last.map(torch.clone)
        for old, new in zip(steps.tensors(), self._first(obs).tensors(), strict=True):
            old[rows] = new[rows]
        return steps

    def resume(self, last: Steps, restored: list[bool]) -> list[bool]:
        """Continue after ``last``; ``restored`` tells which environments were put back where they were.

        Returns, per environment, whether it goes on from there. The others begin a new episode with the
        next step.
        """
        rows = ~np.array(restored, bool)
        if self._same_step:
            rows |= last.is_last.numpy()  # restored as they ended; this mode would have reset them already
        self.faults, self.restarts = {}, 0
        if rows.any() and not self._resets_rows:
            rows[:] = True  # a foreign vector environment resets all or none
        if rows.any():
            raw = self._reset_rows(None, rows) if self._resets_rows else self.envs.reset()[0]
            self._reset_obs = self._read(raw)
        self._done, self._waiting = rows | last.is_last.numpy(), rows
        return [not row for row in rows]

    def _first(self, obs: dict[str, Tensor]) -> Steps:
        n = self.num_envs
        no = torch.zeros(n, dtype=torch.bool)
        action = self.action_spec.zero(n)
        return Steps(obs, action, torch.zeros(n), torch.ones(n, dtype=torch.bool), no, no.clone())

    def _reset_rows(self, raw: Any, rows: Array) -> Any:
        """Reset these environments alone, which took one idle action since their first reset.

        A foreign vector environment with SAME_STEP cannot; its episodes begin with what that led to.
        """
        if not self._resets_rows:
            return raw
        raw, info = self.envs.reset(options={"reset_mask": rows.copy()})
        self._heed(info)
        return raw

    def _heed(self, info: dict[str, Any]) -> Array:
        """Remember the restarts that ``info`` tells of -> the rows (N,) of them."""
        count = np.asarray(info.get("env_restarts", np.zeros(self.num_envs, int)))
        self.faults |= {int(i): str(info["env_fault"][i]) for i in np.flatnonzero(count)}
        self.restarts += int(count.sum())
        return count > 0

    def _with_final(self, obs: dict[str, Tensor], info: dict[str, Any], last: Array) -> dict[str, Tensor]:
        """The observations, with the true last one of each episode that ended in this step."""
        final = info.get("final_obs", info.get("final_observation"))
        if final is None:
            raise UserError(
                "the vector environment resets in the SAME_STEP mode but its info has no 'final_obs': the "
                "last observation of an episode is lost; use AutoresetMode.NEXT_STEP"
            )
        obs = {key: value.clone() for key, value in obs.items()}
        for env in np.flatnonzero(last):
            for key in obs:
                value = final[key][env] if isinstance(final, dict) else final[env][key]
                obs[key][env] = self._tensor(key, np.asarray(value)[None])[0]
        return obs

    def _read(self, raw: dict[str, Any]) -> dict[str, Tensor]:
        """Raw observations -> tensors of their own (N, ...), checked."""
        obs = {}
        for key, space in self.space.spaces.items():
            if key not in raw:
                raise UserError(f"{self._where()}: the observation lacks '{key}', which its space declares")
            array = np.asarray(raw[key])
            expected = (self.num_envs, *(space.shape or ()))
            if array.shape != expected:
                raise UserError(
                    f"{self._where()}: observation '{key}' has the shape {array.shape}, its space {space} "
                    f"means {expected}; correct the environment's observation_space or its observation"
                )
            obs[key] = self._tensor(key, array)
        return obs

    def _tensor(self, key: str, array: Array) -> Tensor:
        space = self.space[key]
        if space.dtype is not None and array.dtype.kind != space.dtype.kind:
            raise UserError(
                f"{self._where()}: observation '{key}' has the type {array.dtype}, its space {space} "
                f"declares {space.dtype}; correct the environment's observation_space or its observation"
            )
        if array.dtype.kind == "f":
            array = array.astype(np.float32)
            if not np.isfinite(array).all():
                self._refuse(f"observation '{key}'", array)
            return torch.from_numpy(array)
        if isinstance(space, spaces.Discrete) or array.dtype in (np.uint16, np.uint32, np.uint64):
            array = array.astype(np.int64)
        return torch.from_numpy(np.array(array))

    def _read_reward(self, raw: Any, first: Array) -> Array:
        """(N,), zero where a step is a reset."""
        reward = np.asarray(raw, np.float64)
        if reward.shape != (self.num_envs,):
            raise UserError(f"{self._where()}: rewards have the shape {reward.shape}, not ({self.num_envs},)")
        reward = np.where(first, 0.0, reward)
        if not np.isfinite(reward).all():
            self._refuse("the reward", reward)
        return reward

    def _refuse(self, what: str, array: Array) -> None:
        env = int(np.argwhere(~np.isfinite(array))[0][0])
        value = array[env][~np.isfinite(array[env])].flat[0]
        raise UserError(
            f"{what} is {value} in environment {env} at environment step {self.env_steps}; training on it "
            "would ruin the agent. Correct the environment: 'mbrl check-env ENV' looks for the cause"
        )

    def _where(self) -> str:
        return f"environment step {self.env_steps}"
