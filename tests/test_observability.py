"""Whether observations hide something: it is found in experience, said once, and not where they tell all."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor
from toys import ListLog

import envs
from agents.dreamer import Dreamer, debug
from mbrl.driver import Driver
from mbrl.observability import HIDDEN, hidden_share
from mbrl.replay import Replay
from mbrl.training import train
from scripts.main import main

HERE = Path(__file__)


class Slider(gymnasium.Env[Any, Any]):
    """A mass that actions push to and fro between two walls, for 50 steps; its velocity is seen, too."""

    action_space: Any = spaces.Box(-1, 1, (1,), np.float32)
    sees_velocity = True

    @property
    def observation_space(self) -> Any:
        return spaces.Box(-np.inf, np.inf, (1 + self.sees_velocity,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.t, self.place, self.velocity = 0, self.np_random.uniform(-1, 1), self.np_random.normal()
        return self._see(), {}

    def step(self, action: Any) -> Any:
        self.t += 1
        self.velocity = 0.9 * self.velocity + 0.5 * float(action[0]) - 0.1 * self.place
        self.place += 0.2 * self.velocity
        return self._see(), -abs(self.place), False, self.t == 50, {}

    def _see(self) -> Any:
        return np.array([self.place, self.velocity][: 1 + self.sees_velocity], np.float32)


class Blindfolded(Slider):
    """Its velocity is hidden."""

    sees_velocity = False


def experience(env: Any, steps: int, num_envs: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Observations (N, T, X), actions (N, T, A), is_first (N, T) of random actions."""
    vector = envs.make_envs(env, num_envs)
    driver, generator = Driver(vector), np.random.default_rng(0)
    path = [driver.reset(0)]
    while len(path) < steps:
        path.append(driver.step(driver.action_spec.sample(num_envs, generator)))
    vector.close()
    x = torch.stack([torch.cat([value.flatten(1) for value in step.obs.values()], -1) for step in path], 1)
    return x, torch.stack([step.action for step in path], 1), torch.stack([step.is_first for step in path], 1)


@pytest.mark.parametrize("num_envs", [1, 4, 32])
def test_a_velocity_that_is_hidden_is_found(num_envs: int) -> None:
    def share(env: type[Slider]) -> float:
        found = hidden_share(*experience(env, 640 // num_envs, num_envs))
        assert found is not None
        return found

    assert share(Blindfolded) > 0.5 and share(Slider) < 0.05


@pytest.mark.parametrize("task", ["cartpole-swingup", "walker-walk", "cheetah-run", "hopper-hop"])
def test_tasks_of_dm_control_hide_nothing_until_their_velocities_are_left_out(task: str) -> None:
    space = envs.make_env(f"dmc/{task}").observation_space
    assert isinstance(space, spaces.Dict)
    sizes = {key: math.prod(box.shape or ()) for key, box in space.spaces.items()}
    x, action, is_first = experience(f"dmc/{task}", 500)
    places = torch.cat([part for key, part in zip(sizes, x.split(list(sizes.values()), -1), strict=True)
                        if key != "velocity"], -1)  # fmt: skip
    full, blind = hidden_share(x, action, is_first), hidden_share(places, action, is_first)
    assert full is not None and full < 0.2
    assert blind is not None and blind > HIDDEN


def test_resets_do_not_count() -> None:
    x, action, is_first = experience(Slider, 400)
    there = hidden_share(x, action, is_first)
    disturbed = torch.where(is_first.unsqueeze(-1), 1e6 * torch.randn_like(action), action)  # led nowhere
    assert is_first.sum() > 5 and hidden_share(x, disturbed, is_first) == there


def test_nothing_is_said_of_too_little() -> None:
    x, action, is_first = experience(Blindfolded, 100)
    assert hidden_share(x, action, is_first) is None
    assert hidden_share(torch.ones(1, 400, 2), torch.randn(1, 400, 1), torch.zeros(1, 400, dtype=torch.bool)) is None
    assert hidden_share(x[:, :2], action[:, :2], is_first[:, :2]) is None


@pytest.mark.parametrize(
    ("env", "memory", "notes"), [(Blindfolded, False, 1), (Blindfolded, True, 0), (Slider, False, 0)]
)
def test_training_says_so_before_it_learns(env: type[Slider], memory: bool, notes: int) -> None:
    preset = debug()
    values = replace(preset.agent.action_values, memory=memory)
    model = replace(preset.agent.model, family="ensemble")
    config = replace(preset.agent, model=model, actor_gradient="action_values", action_values=values)
    vector = envs.make_envs(env, 1)
    agent = Dreamer(config, vector.single_observation_space, vector.single_action_space)
    replay = Replay(agent.space, agent.spec.size, 1, agent.latent_spec())
    result = train(agent, vector, replay, replace(preset.training, steps=410, prefill=400), ListLog())
    vector.close()
    said = [note for note in result.notes if "observations hide something" in note]
    assert len(said) == notes
    assert all("--config.action-values.memory" in note for note in said)


def test_check_env_warns(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check-env", f"{HERE}:Blindfolded", "--json"]) == 0
    [finding] = [f for f in json.loads(capsys.readouterr().out)["findings"] if f["check"] == "hidden"]
    assert finding["severity"] == "warning" and finding["mend"].endswith("--config.action-values.memory")
