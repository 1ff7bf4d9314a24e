"""Driver: what the environment emitted is what the agent gets, across resets and autoreset modes."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from toys import Counting

from mbrl.driver import Driver
from mbrl.errors import UserError
from mbrl.steps import Steps


def roll(driver: Driver, count: int) -> Steps:
    """(N, T): a reset and random actions."""
    steps = [driver.reset(seed=0)]
    for _ in range(count):
        steps.append(driver.step(torch.rand(driver.num_envs, driver.action_spec.size) * 2 - 1))
    columns = [s.map(lambda x: x[:, None]) for s in steps]
    obs = {key: torch.cat([c.obs[key] for c in columns], 1) for key in steps[0].obs}
    names = ("action", "reward", "is_first", "is_last", "is_terminal")
    return Steps(obs, *(torch.cat([getattr(c, name) for c in columns], 1) for name in names))


def check_episodes(steps: Steps, lengths: list[int]) -> None:
    """The rules of Counting hold in every row: nothing lost, doubled or shifted."""
    for row, length in enumerate(lengths):
        s = steps[row]
        time, action = s.obs["state"][:, 0], s.obs["state"][:, 2]
        first = s.is_first
        assert torch.equal(first[1:], s.is_last[:-1])
        assert (s.reward[first] == 0).all() and (s.action[first] == 0).all()
        assert (time[first] == 0).all()
        assert torch.equal(s.reward[~first], time[~first])
        assert torch.equal(s.action[~first, 0], action[~first])
        assert (time.diff()[~first[1:]] == 1).all()
        last, episode = s.is_last, s.obs["state"][:, 1]
        assert last.any()
        assert torch.equal(last, (time >= length + episode))
        assert torch.equal(s.is_terminal, last & (episode % 2 == 1))


def vector(lengths: list[int], mode: AutoresetMode, **kwargs: Any) -> SyncVectorEnv[Any, Any]:
    return SyncVectorEnv([lambda n=n: Counting(n) for n in lengths], autoreset_mode=mode, **kwargs)  # type: ignore[misc]


def test_steps_are_what_the_environment_emitted() -> None:
    envs = vector([2, 3], AutoresetMode.NEXT_STEP)
    steps = roll(Driver(envs), 30)
    for row, env in enumerate(envs.envs):
        log = env.unwrapped.log  # type: ignore[attr-defined]
        assert len(log) == 31
        for t, (state, action, reward, terminated, truncated) in enumerate(log):
            s = steps[row, t]
            assert np.array_equal(s.obs["state"].numpy(), state)
            assert s.action.item() == pytest.approx(action)
            assert s.reward == (reward or 0.0)
            assert s.is_first == (reward is None)
            assert s.is_last == (terminated or truncated) and s.is_terminal == terminated
    check_episodes(steps, [2, 3])


@pytest.mark.parametrize("lengths", [[2], [2, 2, 2], [1, 2, 5]], ids=["one", "together", "apart"])
def test_same_step_is_converted(lengths: list[int]) -> None:
    driver = Driver(vector(lengths, AutoresetMode.SAME_STEP))
    check_episodes(roll(driver, 40), lengths)


def test_same_step_equals_next_step_where_all_episodes_end_together() -> None:
    streams = []
    for mode in (AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP):
        torch.manual_seed(0)
        streams.append(roll(Driver(vector([2, 2], mode)), 30))
    assert torch.equal(streams[0].obs["state"], streams[1].obs["state"])
    assert torch.equal(streams[0].is_last, streams[1].is_last)


class Foreign(VectorEnv[Any, Any, Any]):
    """A vector environment that is not Gymnasium's own, and that may be wrong."""

    def __init__(self, inner: SyncVectorEnv[Any, Any], **changes: Any) -> None:
        self.inner, self.changes = inner, changes
        self.num_envs, self.metadata = inner.num_envs, dict(inner.metadata)
        self.single_observation_space = inner.single_observation_space
        self.single_action_space = inner.single_action_space

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        assert not options
        return self.inner.reset(seed=seed)

    def step(self, actions: Any) -> Any:
        obs, reward, *rest = self.inner.step(actions)
        obs = {key: self.changes.get("obs", lambda x: x)(value) for key, value in obs.items()}
        return obs, self.changes.get("reward", lambda x: x)(reward), *rest


def test_foreign_same_step_begins_after_an_idle_step() -> None:
    driver = Driver(Foreign(vector([2, 5], AutoresetMode.SAME_STEP)))
    steps = roll(driver, 40)
    later = steps[:, 1:]
    alone = later.is_first & ~later.is_first.all(0)
    assert alone.any()
    assert (later.obs["state"][..., 0][alone] == 1).all()
    assert (later.obs["state"][..., 0][later.is_first & ~alone] == 0).all()
    assert (later.obs["state"][..., 2][later.is_first] == 0).all()
    ends = later.is_last & ~later.is_first
    assert torch.equal(later.reward[ends], later.obs["state"][..., 0][ends])


def test_reused_buffers_are_copied() -> None:
    driver = Driver(vector([4], AutoresetMode.NEXT_STEP, copy=False))
    first = driver.reset(seed=0)
    driver.step(torch.zeros(1, 1))
    assert first.obs["state"][0, 0] == 0


def test_processes_give_the_same_steps() -> None:
    makers = [lambda n=n: Counting(n) for n in (2, 3)]
    streams = []
    for envs in (SyncVectorEnv(makers), AsyncVectorEnv(makers, context="fork")):
        torch.manual_seed(0)
        streams.append(roll(Driver(envs), 20))
        envs.close()
    assert torch.equal(streams[0].obs["state"], streams[1].obs["state"])
    assert torch.equal(streams[0].reward, streams[1].reward)


@pytest.mark.parametrize("mode", [None, "sometimes"])
def test_other_autoreset_modes_are_refused(mode: Any) -> None:
    envs = vector([3], AutoresetMode.NEXT_STEP)
    envs.metadata["autoreset_mode"] = mode
    with pytest.raises(UserError, match=r"autoreset mode.*NEXT_STEP"):
        Driver(envs)


def broken(array: np.ndarray[Any, Any], value: float) -> np.ndarray[Any, Any]:
    array = array.copy()
    array[1, ...] = value
    return array


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"obs": lambda x: broken(x, np.nan)}, r"'state' is nan in environment 1 at environment step 2"),
        ({"reward": lambda x: broken(x, np.inf)}, r"reward is inf in environment 1 at environment step"),
        ({"obs": lambda x: x[:, :3]}, r"'state' has the shape \(2, 3\)"),
        ({"obs": lambda x: x.astype(np.int64)}, r"'state' has the type int64"),
        ({"reward": lambda x: x[:, None]}, r"rewards have the shape \(2, 1\)"),
    ],
)
def test_broken_environments_are_named(changes: dict[str, Any], message: str) -> None:
    envs = Foreign(vector([9, 9], AutoresetMode.NEXT_STEP))
    driver = Driver(envs)
    driver.reset(seed=0)
    driver.step(torch.zeros(2, 1))
    envs.changes = changes
    with pytest.raises(UserError, match=message):
        driver.step(torch.zeros(2, 1))


def test_doubles_become_floats() -> None:
    envs = Foreign(vector([3], AutoresetMode.NEXT_STEP), obs=lambda x: x.astype(np.float64))
    driver = Driver(envs)
    driver.reset(seed=0)
    assert driver.step(torch.zeros(1, 1)).obs["state"].dtype == torch.float32


def test_environment_steps_count_repeats_but_no_resets() -> None:
    driver = Driver(vector([3], AutoresetMode.NEXT_STEP), action_repeat=2)
    steps = roll(driver, 20)
    real = int((~steps.is_first).sum())
    assert real < 20
    assert (driver.decisions, driver.env_steps) == (real, 2 * real)


def test_actions_out_of_bounds_are_recorded_as_executed() -> None:
    driver = Driver(vector([3], AutoresetMode.NEXT_STEP))
    driver.reset(seed=0)
    step = driver.step(torch.tensor([[7.0]]))
    assert step.action.item() == step.obs["state"][0, 2] == 1.0


class Images(gymnasium.Env[Any, Any]):
    pixels = spaces.Box(0, 255, (2, 2, 3), np.uint8)
    observation_space = spaces.Dict({"image": pixels, "kind": spaces.Discrete(3)})
    action_space = spaces.Discrete(4, start=2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return {"image": np.full((2, 2, 3), 7, np.uint8), "kind": 1}, {}

    def step(self, action: Any) -> Any:
        return {"image": np.full((2, 2, 3), action, np.uint8), "kind": 2}, 0.0, False, False, {}


def test_images_stay_bytes_and_choices_start_where_their_space_does() -> None:
    driver = Driver(SyncVectorEnv([Images]))
    driver.reset(seed=0)
    step = driver.step(torch.eye(4)[[3]])
    assert step.obs["image"].dtype == torch.uint8 and (step.obs["image"] == 5).all()
    assert step.obs["kind"].dtype == torch.int64 and step.obs["kind"].shape == (1,)
