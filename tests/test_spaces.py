"""Spaces: every action space in the agents' language, and as plain data."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import chain
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from agents.dreamer import Dreamer, debug
from mbrl.driver import Driver
from mbrl.errors import UserError
from mbrl.replay import Replay, ReplayConfig
from mbrl.spaces import ActionSpec, finite_bounds, first_row, space_from_json, space_to_json

BOX = spaces.Box(np.array([0, -2], np.float32), np.array([10, 2], np.float32))
NESTED = spaces.Dict(
    {
        "gripper": spaces.Discrete(3, start=-1),
        "arm": spaces.Tuple([BOX, spaces.MultiBinary(2)]),
        "keys": spaces.MultiDiscrete([[2, 4]], start=[[0, 5]]),
        "speed": spaces.Box(0, 4, (1, 1), np.int32),
    }
)
CASES = {
    "Box(2)": BOX,
    "Box(1)": spaces.Box(-1, 1, (), np.float64),
    "Discrete(3)": spaces.Discrete(3, start=2),
    "Discrete(3) + Discrete(2)": spaces.MultiDiscrete([3, 2]),
    "4 Discrete(2)": spaces.MultiBinary([2, 2]),
    "Box(3) + 2 Discrete(2) + Discrete(3) + Discrete(2) + Discrete(4)": NESTED,
}



@pytest.mark.parametrize("text", CASES)
def test_actions_of_every_kind_are_the_environment_s_own(text: str) -> None:
    space = CASES[text]
    spec = ActionSpec.of(space)
    assert str(spec) == text
    actions = spec.sample(50, np.random.default_rng(0))
    assert actions.shape == (50, spec.size) and actions.abs().max() <= 1
    batch = spec.to_env(actions)
    assert batch_has_the_layout_of(batch, space)
    singles = list(gymnasium.vector.utils.iterate(gymnasium.vector.utils.batch_space(space, 50), batch))
    assert all(single in space for single in singles)
    np.testing.assert_equal(first_row(batch), singles[0])
    seen = {json.dumps(space.to_jsonable([single])) for single in singles}
    assert len(seen) > 2, "different actions are different"
    assert spec.zero(2).shape == (2, spec.size) and spec.to_env(spec.zero(2)) is not None


def batch_has_the_layout_of(batch: Any, space: spaces.Space[Any]) -> bool:
    if isinstance(space, spaces.Dict):
        return all(batch_has_the_layout_of(batch[key], entry) for key, entry in space.spaces.items())
    if isinstance(space, spaces.Tuple):
        return all(batch_has_the_layout_of(part, entry) for part, entry in zip(batch, space.spaces, strict=True))
    return batch.shape == (50, *(space.shape or ())) and batch.dtype == space.dtype


def test_a_nested_action_by_hand() -> None:
    """Continuous dimensions first, whatever stands before them; then each choice in its order."""
    spec = ActionSpec.of(NESTED)
    assert (spec.continuous, spec.choices) == (3, (2, 2, 3, 2, 4))
    one_hots = [[0, 1], [1, 0], [0, 0, 1], [1, 0], [0, 0, 0, 1]]
    action = torch.tensor([[1.0, 0.5, 0.2, *chain(*one_hots)]])
    found = first_row(spec.to_env(action))
    assert found["gripper"] == 1
    np.testing.assert_allclose(found["arm"][0], [10, 1])
    np.testing.assert_equal(found["arm"][1], [1, 0])
    np.testing.assert_equal(found["keys"], [[0, 8]])
    np.testing.assert_equal(found["speed"], [[2]])  # 2.4, rounded


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_actions_never_leave_their_bounds(dtype: Any) -> None:
    """Whatever rounding does: an environment may refuse what its space does not contain."""
    rng = np.random.default_rng(0)
    low, high = np.sort(rng.uniform(-3, 3, (2, 1000)).round(2), 0).astype(dtype)
    space = spaces.Box(low, high, dtype=dtype)
    for value, bound in ((-1.0, low), (1.0, high)):
        [action] = ActionSpec.of(space).to_env(torch.full((1, 1000), value))
        assert space.contains(action)
        np.testing.assert_allclose(action, bound, rtol=1e-6, atol=1e-7)


def test_infinite_bounds_are_replaced() -> None:
    inf = np.inf
    space = spaces.Box(np.array([-inf, -inf, 3, -1e38], np.float32), np.array([inf, 5, inf, 1e38], np.float32))
    low, high = finite_bounds(space)
    np.testing.assert_equal((low, high), ([-1, 3, 3, -1], [1, 5, 5, 1]))


@pytest.mark.parametrize("space", [spaces.Text(3), spaces.Dict({"a": spaces.Sequence(spaces.Discrete(2))})])
def test_other_actions_are_refused_by_name(space: Any) -> None:
    with pytest.raises(UserError, match=r"(Text|Sequence).*supported are Box.*TransformAction"):
        ActionSpec.of(space)


class Match(gymnasium.Env[Any, Any]):
    """One step long: a reward for the right class and one for the right sign."""

    observation_space = spaces.Dict({"state": spaces.Box(0, 1, (1,))})
    action_space = spaces.Dict({"push": spaces.Box(-np.inf, np.inf, (1,)), "pick": spaces.MultiDiscrete([2, 3])})

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return {"state": np.zeros(1, np.float32)}, {}

    def step(self, action: Any) -> Any:
        reward = float(action["push"][0] > 0) + float(action["pick"][1] == 2)
        return {"state": np.zeros(1, np.float32)}, reward, True, False, {}


@pytest.mark.parametrize("gradient", ["reinforce", "pathwise"])
def test_an_agent_of_a_mixed_action_explores_and_learns(gradient: str) -> None:
    """Where something is discrete, REINFORCE trains all of it; the noise is the continuous dimensions' own."""
    torch.manual_seed(0)
    driver = Driver(SyncVectorEnv([Match] * 4, autoreset_mode=AutoresetMode.NEXT_STEP))
    config = replace(debug().agent, actor_gradient=gradient, noise_correlation=0.5)
    agent = Dreamer(config, driver.space, Match.action_space)
    assert agent.describe().startswith("obs state (1,) -> MLP   action Box(1) + Discrete(2) + Discrete(3)")
    replay = Replay(driver.space, 6, 4, agent.latent_spec(), ReplayConfig(capacity=4096))
    step, state = driver.reset(seed=0), agent.initial_state(4)
    assert state["noise"].shape == (4, 1)
    for _ in range(20):
        action, state = agent.act(step, state, explore=True)
        assert (action[:, 1:3].sum(-1) == 1).all() and (action[:, 3:].sum(-1) == 1).all()
        replay.add(step, agent.latents(state))
        step = driver.step(action)
    outputs = list(agent.behaviour.actor.out.parameters())
    before = [p.detach().clone() for p in outputs]
    for _ in range(5):  # the first rewards are predicted as exactly 0
        metrics = agent.update(replay)
    assert np.isfinite(float(metrics["train/loss/total"]))
    assert all(not torch.equal(old, new) for old, new in zip(before, outputs, strict=True))
    mode, _ = agent.act(step, state, explore=False)
    assert (mode[:, 1:3].sum(-1) == 1).all()


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(-np.inf, np.array([1, 2], np.float32), (2,), np.float32),
        spaces.Box(0, 255, (4, 4, 3), np.uint8),
        spaces.Discrete(3, start=-1),
        spaces.Dict({"b": spaces.Discrete(2), "a": spaces.Box(-1, 1, (0,))}),
        NESTED,
    ],
)
def test_spaces_survive_json(space: Any) -> None:
    back = space_from_json(json.loads(json.dumps(space_to_json(space))))
    assert back == space
    if isinstance(space, spaces.Dict):
        assert list(back.spaces) == list(space.spaces)
