"""Checks of your own vector environment, to call from your tests.

    from mbrl.testing import check_vector_env

    def test_my_vector() -> None:
        check_vector_env(lambda: MyVectorEnv(num_envs=3), reference=lambda: SyncVectorEnv([MyEnv] * 3))

N parallel environments, T steps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv

from mbrl.driver import Driver, autoreset_mode
from mbrl.steps import Steps

Make = Callable[[], VectorEnv[Any, Any, Any]]
FLAGS = ("action", "reward", "is_first", "is_last", "is_terminal")


def check_vector_env(make: Make, reference: Make | None = None, *, steps: int = 200, seed: int = 0) -> None:
    """Assert that what ``make`` gives resets as its metadata say, and that seeds decide its episodes.

    With a ``reference`` (Gymnasium's SyncVectorEnv of the same environments, say), the experience must be the
    same bit by bit. That can be asked for where an episode does not depend on how often its environment was
    reset, or where all episodes end together: SAME_STEP and DISABLED reset twice where only some have ended.

    Raises:
        AssertionError: what is wrong, and how it should be.
        UserError: spaces or a mode that cannot be trained on at all.
    """
    check_resets(make, steps, seed)
    first = collect(make, steps, seed)
    _assert_same(first, collect(make, steps, seed), "two runs with the same seed and actions differ; reset(seed=...)")
    if reference is not None:
        _assert_same(first, collect(reference, steps, seed), "it differs from the reference; with the same seed it")


def collect(make: Make, steps: int, seed: int = 0) -> Steps:
    """(N, T): random actions on a new vector environment, as training would record them."""
    envs, generator = make(), np.random.default_rng(seed)
    try:
        driver = Driver(envs)
        records = [driver.reset(seed)]
        for _ in range(steps):
            records.append(driver.step(driver.action_spec.sample(driver.num_envs, generator)))
    finally:
        envs.close()
    obs = {key: torch.stack([record.obs[key] for record in records], 1) for key in records[0].obs}
    return Steps(obs, *(torch.stack([getattr(record, name) for record in records], 1) for name in FLAGS))


def check_resets(make: Make, steps: int = 200, seed: int = 0) -> None:
    """Assert that episodes end and begin as the metadata's autoreset mode says.

    Raises:
        AssertionError: they do not, or none ended.
    """
    envs, generator = make(), np.random.default_rng(seed)
    try:
        mode, n = autoreset_mode(envs), envs.num_envs
        spec = Driver(envs).action_spec
        envs.reset(seed=seed)
        before, ended = np.zeros(n, bool), 0
        for t in range(steps):
            obs, reward, terminated, truncated, info = envs.step(spec.to_env(spec.sample(n, generator)))
            for name, value in (("reward", reward), ("terminated", terminated), ("truncated", truncated)):
                assert np.shape(value) == (n,), f"step {t}: {name} has the shape {np.shape(value)}, it should be ({n},)"
            done = np.asarray(terminated, bool) | np.asarray(truncated, bool)
            if mode is AutoresetMode.NEXT_STEP:
                _check_next_step(t, before, np.asarray(reward), done)
            elif done.any() and mode is AutoresetMode.SAME_STEP:
                _check_same_step(t, done, info)
            elif done.any():
                _check_masked_reset(t, envs, done, obs)
            before, ended = done, ended + int(done.sum())
    finally:
        envs.close()
    assert ended, f"no episode ended within {steps} steps, so no reset was seen: pass more steps"


def _check_next_step(t: int, before: np.ndarray, reward: np.ndarray, done: np.ndarray) -> None:
    wrong = np.flatnonzero(before & ((reward != 0) | done))
    assert not wrong.size, (
        f"step {t}: environments {wrong.tolist()} were done in the step before, so with NEXT_STEP this one is their "
        "reset: reward 0, neither terminated nor truncated, action ignored. They gave "
        f"reward {reward[wrong].tolist()}, done {done[wrong].tolist()}. If they reset in the same step, their "
        "metadata must say SAME_STEP"
    )


def _check_same_step(t: int, done: np.ndarray, info: dict[str, Any]) -> None:
    final = info.get("final_obs", info.get("final_observation"))
    rows = np.flatnonzero(done).tolist()
    assert final is not None, (
        f"step {t}: environments {rows} are done; with SAME_STEP their last observations must be in info['final_obs']"
    )
    missing = [] if isinstance(final, dict) else [i for i in rows if final[i] is None]
    assert not missing, f"step {t}: info['final_obs'] has nothing for environments {missing}, which are done"


def _check_masked_reset(t: int, envs: VectorEnv[Any, Any, Any], done: np.ndarray, obs: Any) -> None:
    kept = {key: np.array(value) for key, value in obs.items()}
    after, _ = envs.reset(options={"reset_mask": done.copy()})
    for key, value in kept.items():
        assert np.array_equal(np.asarray(after[key])[~done], value[~done]), (
            f"step {t}: reset(options={{'reset_mask': mask}}) changed '{key}' of environments outside of the mask"
        )


def _assert_same(one: Steps, other: Steps, what: str) -> None:
    pairs = [(f"observation '{key}'", value, other.obs[key]) for key, value in one.obs.items()]
    pairs += [(name, getattr(one, name), getattr(other, name)) for name in FLAGS]
    differences = []
    for name, a, b in pairs:
        assert a.shape == b.shape, f"{what} should give the same {name}: shapes {tuple(a.shape)}, {tuple(b.shape)}"
        for env, t in (a != b).reshape(*a.shape[:2], -1).any(-1).nonzero().tolist():
            differences.append((t, env, name, a[env, t].tolist(), b[env, t].tolist()))
    if differences:
        t, env, name, mine, others = min(differences, key=lambda difference: difference[:2])
        raise AssertionError(
            f"{what} should give the same experience. First difference: record {t}, environment {env}, {name}: "
            f"{mine} and {others}"
        )
