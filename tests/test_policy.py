"""agents.load: a trained agent from a run directory, acting in the environment's own language."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from toys import ToyAgent

import agents
import envs as environments
from agents.policy import Policy
from agents.random_agent import RandomAgent, RandomConfig
from mbrl.checkpoint import Checkpoints
from mbrl.driver import Driver
from mbrl.errors import UserError
from mbrl.spaces import space_to_json
from mbrl.training import TrainConfig, train


def test_a_run_is_loaded_with_one_line(tmp_path: Path) -> None:
    from toys import ListLog, make_replay

    envs = environments.make_envs("CartPole-v1", 1)
    agent = agents.make_agent("random", None, envs.single_observation_space, envs.single_action_space)
    train(agent, envs, make_replay(agent, envs), TrainConfig(steps=20), ListLog(), directory=tmp_path)
    policy = agents.load(tmp_path)
    assert isinstance(policy.agent, RandomAgent)
    env = gymnasium.make("CartPole-v1")  # the environment as its author made it, not wrapped
    observation, _ = env.reset(seed=0)
    state, over = None, False
    while not over:
        action, state = policy.predict(observation, state)
        observation, _, terminated, truncated, _ = env.step(action)
        over = terminated or truncated


def test_prediction_equals_acting_in_the_loop() -> None:
    envs = environments.make_envs("Pendulum-v1", 2, max_episode_steps=20)
    toy = ToyAgent(None, envs.single_observation_space, envs.single_action_space)
    policy = Policy(toy, envs.single_observation_space, envs.single_action_space)
    driver = Driver(envs)
    step, memory = driver.reset(seed=0), toy.initial_state(2)
    state: Any = None
    for _ in range(50):
        action, memory = toy.act(step, memory, explore=False)
        observation = {key: value.numpy() for key, value in step.obs.items()}
        chosen, state = policy.predict(observation, state, step.is_first.numpy())
        assert np.allclose(chosen, driver.action_spec.to_env(action))
        assert torch.allclose(state[0]["hidden"], memory["hidden"])
        step = driver.step(action)
    assert step.is_first.any() or driver.decisions < 100


def test_single_observations_and_batches() -> None:
    space = spaces.Dict({"state": spaces.Box(-1, 1, (3,)), "kind": spaces.Discrete(2)})
    policy = Policy(RandomAgent(RandomConfig(), space, spaces.Discrete(4)), space, spaces.Discrete(4))
    action, _ = policy.predict({"state": np.zeros(3), "kind": 1})
    assert np.shape(action) == () and action in range(4)
    action, _ = policy.predict({"state": np.zeros((5, 3)), "kind": np.ones(5, int)})
    assert action.shape == (5,)


def test_no_run_and_unknown_agents_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="mbrl train"):
        agents.load(tmp_path)
    with pytest.raises(UserError, match="dreamer, random"):
        agents.make_agent("dreemer", None, spaces.Dict({}), spaces.Discrete(2))


def test_only_known_classes_are_built_from_a_checkpoint(tmp_path: Path) -> None:
    class NoReplay:
        def save(self, directory: Path, checkpoint: Path) -> dict[str, Any]:
            directory.mkdir()
            return {}

    space = space_to_json(spaces.Discrete(2))
    about = {
        "wall": 0.0,
        "agent": {"class": "os:system", "config": {}},
        "observation_space": space,
        "action_space": space,
    }
    Checkpoints(tmp_path, {}, starting=True).save(1, {"model": {}}, {}, NoReplay(), about)
    with pytest.raises(UserError, match="os:system"):
        agents.load(tmp_path)
