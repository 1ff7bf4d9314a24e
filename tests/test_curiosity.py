"""Exploring before there is a reward: by noise, or led by what the world model doubts; and how that ends.

Letters as in agents/action_values.py.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import gymnasium as gym
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from test_action_values import VECTOR, Short, configured, experienced, replayed
from test_dreamer import BOX, Experience

from agents import action_values
from agents.action_values import MOST_CURIOUS, ActionValues, Transitions
from agents.dreamer import Dreamer
from mbrl.distributions import SquashedNormal


class Nothing(Short):
    """Each step gives the same reward and no episode ends, except as said of the last step of every second one."""

    last_reward, terminal = 0.5, False

    def step(self, action: Any) -> Any:
        obs, _, special, over, info = super().step(action)
        return obs, self.last_reward if special else 0.5, special and self.terminal, over, info


class Rewarding(Nothing):
    last_reward = 0.75


class Ending(Nothing):
    terminal = True


@pytest.mark.parametrize(("kind", "aimless"), [(Nothing, True), (Rewarding, False), (Ending, False)])
def test_noise_alone_explores_until_a_reward_or_an_end_differs(
    kind: type[Short], aimless: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reset's reward of 0 is none; a policy that always says 1 shows which of the two acts."""
    torch.manual_seed(0)
    agent = Dreamer(configured(batch_size=200), VECTOR, BOX)
    experience = Experience(agent, SyncVectorEnv([kind] * 2, autoreset_mode=AutoresetMode.NEXT_STEP))
    experience.gather(40)
    assert agent.behaviour.aimless
    agent.update(experience.replay)
    assert agent.behaviour.aimless is aimless
    assert isinstance(agent.behaviour, ActionValues) and agent.behaviour.aimed != aimless
    decided = SquashedNormal(torch.full((2, 1), 9.0), torch.full((2, 1), -9.0))
    monkeypatch.setattr(agent.behaviour, "policy", lambda obs, state: decided)
    for explore, by_noise in ((True, aimless), (False, False)):
        actions = torch.cat([agent.act(experience.step, experience.state, explore)[0] for _ in range(200)])
        assert (actions.mean() < 0.3 and (actions.abs() == 1).float().mean() > 0.2) == by_noise
        assert (actions > 0.9).all() != by_noise


def without_aim(kind: type[Short], family: str) -> tuple[Dreamer, ActionValues, Experience]:
    torch.manual_seed(0)
    config = configured(batch_size=200, lr=3e-3)
    space = spaces.Dict({"state": VECTOR["state"]})
    agent = Dreamer(replace(config, model=replace(config.model, family=family)), space, BOX)
    vectors = [lambda: gym.wrappers.FilterObservation(kind(), ["state"])] * 2
    experience = Experience(agent, SyncVectorEnv(vectors, autoreset_mode=AutoresetMode.NEXT_STEP))
    experience.gather(40)
    assert isinstance(agent.behaviour, ActionValues)
    return agent, agent.behaviour, experience


@pytest.mark.parametrize(("family", "learns"), [("ensemble", True), ("rssm", False)])
def test_without_an_aim_the_policy_seeks_what_the_model_does_not_know_if_that_can_tell(
    family: str, learns: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(action_values, "PRACTICE", 20)
    agent, values, experience = without_aim(Nothing, family)
    monkeypatch.setattr(type(agent.world_model), "doubt", lambda self, x, action: action[:, 0] + 1)
    for n in range(1, 31):
        agent.update(experience.replay)
        assert values.aimed == 0 and values.curious == n * learns and values.aimless == (not learns or n < 20)
    modes = torch.cat([agent.act(experience.step, experience.state, False)[0] for _ in range(5)])
    assert (modes[:, 0] > 0.5).all() == learns


@pytest.mark.parametrize(("family", "worth"), [("ensemble", [1, 0.75, 0.5, 0.25, 0, 0]), ("rssm", [0, 0, 0])])
def test_curiosity_fades_over_as_many_updates_as_the_first_difference_in_rewards_took(
    family: str, worth: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    agent, values, experience = without_aim(Rewarding, family)
    asked: list[int] = []
    doubt = type(agent.world_model).doubt
    monkeypatch.setattr(type(agent.world_model), "doubt", lambda *args: asked.append(len(args[1])) or doubt(*args))
    values.curious = 4 * values.world_model.doubts
    for n, expected in enumerate(worth):
        asked.clear()
        agent.update(experience.replay)
        assert values.curiosity == expected and len(asked) == (2 if expected else 0)  # replayed and dreamt
        assert values.aimed == n + 1 and values.curious == 4 * values.world_model.doubts and not values.aimless


def test_nobody_is_curious_where_rewards_differ_from_the_first_update_on() -> None:
    agent, values, experience = without_aim(Rewarding, "ensemble")
    for _ in range(2):
        agent.update(experience.replay)
    assert values.curiosity == 0 and values.curious == 0


def test_doubt_is_rewarded_against_the_usual_one_up_to_the_largest_reward() -> None:
    agent, values, experience = without_aim(Nothing, "ensemble")
    real = replayed(agent, experience, 30)
    values.reward_scale.fill_(3.0)
    values.curiosity.fill_(0.5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(agent.world_model), "doubt", lambda self, x, action: torch.linspace(0, 2, len(x)))
        first, second = values._doubtful(real, Transitions(*(part[:20] for part in real)))
        patch.setattr(type(agent.world_model), "doubt", lambda self, x, action: torch.zeros(len(x)))
        assert torch.equal(values._doubtful(real)[0].reward, real.reward)
    assert torch.allclose(first.reward, real.reward + 1.5 * torch.linspace(0, 2 / MOST_CURIOUS, 30))
    assert torch.allclose(second.reward, real.reward[:20] + 1.5 * torch.linspace(0, 2 / MOST_CURIOUS, 20))
    for name in ("x", "action", "proceed", "next_x", "weight"):
        assert torch.equal(getattr(first, name), getattr(real, name))


def test_an_agent_that_goes_on_has_the_aim_that_it_had() -> None:
    agent, values, _ = experienced()
    for aimless in (True, False):
        values.aimless = aimless
        state = copy.deepcopy(agent.state_dict())
        again = experienced(seed=5)[0]
        again.load_state_dict(state)
        assert again.behaviour.aimless is aimless
    for name in ("aimless", "aimed", "curious"):  # of a run from before there were such things
        state.pop(name)
    again.behaviour.aimless = True
    again.load_state_dict(state)
    assert not again.behaviour.aimless
    assert isinstance(again.behaviour, ActionValues)
    assert again.behaviour.aimed == 1  # a batch whose rewards are alike changes nothing now


# ---- a run -------------------------------------------------------------------------------------------
