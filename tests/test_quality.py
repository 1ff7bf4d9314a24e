"""How a world model is judged: against models that are right, or wrong in a known way."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from torch import Tensor

from mbrl.evaluation import Interrupted
from mbrl.quality import COVERAGE, judge
from mbrl.steps import Steps

HORIZON = 6
DISCOUNT = 1 - 1 / 50


class Walk(gymnasium.Env[Any, Any]):
    """Observes (time, place); the place moves by the action and by noise, and each step is rewarded with 1 + action."""

    observation_space = spaces.Dict({"state": spaces.Box(-np.inf, np.inf, (2,), np.float32)})
    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, length: int, terminates: bool, noise: float) -> None:
        self.length, self.terminates, self.noise = length, terminates, noise

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.time, self.place = 0, 0.0
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.time += 1
        self.place += float(action[0]) + self.noise * float(self.np_random.normal())
        over = self.time >= self.length
        return self._observe(), 1 + float(action[0]), over and self.terminates, over, {}

    def _observe(self) -> Any:
        return {"state": np.array([self.time, self.place], np.float32)}


@dataclass
class Model:
    """Knows ``Walk``, but for what is set otherwise; its state is (time, place, last reward)."""

    length: float
    noise: float = 0.0
    drift: float = 0.0
    bonus: float = 0.0
    config: Any = field(default_factory=lambda: SimpleNamespace(horizon=50))

    def features(self, state: dict[str, Tensor]) -> Tensor:
        return state["all"]

    def step(self, state: dict[str, Tensor], action: Tensor) -> dict[str, Tensor]:
        time, place, _ = state["all"].unbind(-1)
        moved = place + action[:, 0] + self.drift + self.noise * torch.randn_like(place)
        return {"all": torch.stack([time + 1, moved, 1 + action[:, 0]], -1)}

    def predict(self, features: Tensor) -> tuple[Tensor, Tensor]:
        return features[..., 2] + self.bonus, DISCOUNT * (features[..., 0] < self.length).float()

    def predictions(self, features: Tensor) -> list[Tensor]:
        return [features[..., :2]]

    def targets(self, obs: dict[str, Tensor], lead: int) -> list[Tensor]:
        return [obs["state"]]


class Walker:
    """Acts at random and knows the state."""

    def __init__(self, model: Model) -> None:
        self.world_model = model

    def initial_state(self, n: int) -> dict[str, Tensor]:
        return {}

    def policy(self, features: Tensor) -> Any:
        return SimpleNamespace(sample=lambda: torch.rand(len(features), 1) * 2 - 1)

    def act(self, step: Steps, state: dict[str, Tensor], explore: bool) -> tuple[Tensor, dict[str, Tensor]]:
        assert explore
        known = torch.cat([step.obs["state"], step.reward[:, None]], -1)
        return self.policy(known).sample(), {"all": known}


def judged(model: Model, length: int = 40, terminates: bool = True, noise: float = 0.0, probes: int = 60) -> Any:
    makers = [lambda: Walk(length, terminates, noise)] * 4
    envs = SyncVectorEnv(makers, autoreset_mode=AutoresetMode.NEXT_STEP)
    return judge(Walker(model), envs, 0, probes, HORIZON)  # type: ignore[arg-type]


def steps(value: float) -> Any:
    return pytest.approx([value * (k + 1) for k in range(HORIZON)], abs=1e-4)


def test_a_model_that_is_right_has_no_error_and_promises_what_comes() -> None:
    found = judged(Model(length=40))
    assert found["model/error"] == pytest.approx([0.0] * HORIZON, abs=1e-5)
    assert found["model/reward_error"] == pytest.approx([0.0] * HORIZON, abs=1e-5)
    assert found["model/exploitation_gap"] == pytest.approx([0.0] * HORIZON, abs=1e-4)
    assert found["model/imagined_return"] == pytest.approx(found["model/true_return"], abs=1e-4)
    assert found["model/continue_accuracy"] == found["model/ends_foreseen"] == 1
    assert 50 <= found["model/probes"] <= 60, "those that would begin after an end are left out"


def test_what_a_model_promises_too_much_is_the_gap() -> None:
    found = judged(Model(length=1000, bonus=0.5), length=1000)
    assert found["model/exploitation_gap"] == steps(0.5)
    assert found["model/reward_error"] == pytest.approx([0.5] * HORIZON, abs=1e-5)
    assert found["model/reward_coverage"] == [0.0] * HORIZON


def test_rewards_after_an_end_that_was_not_foreseen_are_part_of_the_gap() -> None:
    blind = judged(Model(length=1000), length=8)
    assert blind["model/ends_foreseen"] == 0 and blind["model/continue_accuracy"] < 1
    assert blind["model/exploitation_gap"][-1] > 0.5
    timid = judged(Model(length=0), length=1000)
    assert timid["model/exploitation_gap"][0] == pytest.approx(0, abs=1e-5), "the first reward comes for certain"
    assert timid["model/exploitation_gap"][-1] < -3 and timid["model/continue_accuracy"] == 0


def test_an_episode_that_is_truncated_is_compared_until_there() -> None:
    found = judged(Model(length=1000), length=8, terminates=False)
    assert found["model/exploitation_gap"] == pytest.approx([0.0] * HORIZON, abs=1e-4)
    assert found["model/ends_foreseen"] is None and found["model/continue_accuracy"] == 1


def test_errors_grow_with_the_steps_ahead() -> None:
    found = judged(Model(length=1000, drift=0.2), length=1000)
    assert found["model/error"] == steps(0.1), "the time is right, the place is not"


def test_coverage_and_spread_tell_the_calibrated_model_from_the_overconfident() -> None:
    right, sure = (judged(Model(1000, noise), 1000, noise=0.3, probes=800) for noise in (0.3, 0.1))
    place = 2 * np.array(right["model/coverage"]) - 1  # the time, half of the elements, is always right
    assert place == pytest.approx(COVERAGE, abs=0.04)
    assert right["model/spread"] == pytest.approx([1.0] * HORIZON, abs=0.1)
    assert sure["model/spread"] == pytest.approx([1 / 3] * HORIZON, abs=0.1)
    assert (2 * np.array(sure["model/coverage"]) - 1 < 0.6).all()


def test_where_nothing_is_known_there_is_no_number() -> None:
    found = judged(Model(length=1), length=1, terminates=False, probes=20)
    assert found["model/error"][0] == pytest.approx(0, abs=1e-5) and found["model/error"][1] is None


def test_judging_draws_nothing_from_the_training_and_is_the_same_each_time() -> None:
    before = torch.get_rng_state()
    assert judged(Model(40, noise=0.2)) == judged(Model(40, noise=0.2))
    assert torch.equal(before, torch.get_rng_state())


def test_it_can_be_interrupted() -> None:
    envs = SyncVectorEnv([lambda: Walk(5, True, 0.0)], autoreset_mode=AutoresetMode.NEXT_STEP)
    with pytest.raises(Interrupted):
        judge(Walker(Model(5)), envs, 0, 5, HORIZON, stop=lambda: True)  # type: ignore[arg-type]
