"""The ensemble of transitions and the world model made of it: it learns what happens, and knows where it does not.

Letters as in mbrl/dynamics/ensemble.py.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from test_dreamer import BOX, CHOICE, Experience
from torch import Tensor

from agents.action_values import ActionValueConfig
from agents.dreamer import Dreamer, DreamerConfig, debug, laptop
from mbrl.dynamics.ensemble import Ensemble, EnsembleConfig
from mbrl.errors import UserError
from mbrl.quality import judge
from mbrl.steps import Steps
from mbrl.world_model import LatentModel, ObservationModel, WorldModelConfig

STATE = spaces.Dict({"place": spaces.Box(-np.inf, np.inf, (2,)), "speed": spaces.Box(-np.inf, np.inf, (1,))})
CONFIG = WorldModelConfig("ensemble", ensemble=EnsembleConfig(members=3, units=32), normalise=True, horizon=10)


def transitions(n: int) -> tuple[Tensor, ...]:
    """x' = x + (0.2 a, 0.1 x_0), rewarded with 3 a; it ends where x_1 is above 1."""
    x, action = torch.randn(n, 2), torch.rand(n, 1) * 2 - 1
    next_x = x + torch.cat([0.2 * action, 0.1 * x[:, :1]], -1)
    return x, action, next_x, 3 * action.squeeze(-1), (x[:, 1] <= 1).float(), torch.ones(n)


def trained(updates: int) -> Ensemble:
    torch.manual_seed(0)
    ensemble = Ensemble(EnsembleConfig(members=3, units=32), 2, 1)
    optimiser = torch.optim.Adam(ensemble.parameters(), 3e-3)
    for _ in range(updates):
        losses = ensemble.loss(*transitions(128))
        optimiser.zero_grad()
        torch.stack([value.mean() for value in losses.values()]).sum().backward()
        optimiser.step()
    return ensemble


# ---- the networks ------------------------------------------------------------------------------------


def test_members_learn_what_happens_and_disagree_where_nothing_did() -> None:
    ensemble = trained(400)
    x, action, next_x, reward, proceed, _ = transitions(500)
    with torch.no_grad():
        said_x, said_reward, logit = ensemble(x, action)
        far = ensemble(10 * torch.randn(500, 2), action)[0]
    assert said_x.shape == (3, 500, 2) and said_reward.shape == logit.shape == (3, 500)
    change = (next_x - x).square().mean()
    assert ((said_x - next_x).square().mean() / change).item() < 0.05
    assert (said_reward - reward).abs().mean() < 0.2
    assert ((logit > 0).float() == proceed).float().mean() > 0.95
    assert far.std(0).mean() > 2 * said_x.std(0).mean()


def test_doubt_is_small_where_much_happened_large_elsewhere_and_in_units_of_what_usually_changes() -> None:
    ensemble = trained(400)
    x, action = transitions(500)[:2]
    near, far = ensemble.doubt(x, action), ensemble.doubt(10 * torch.randn(500, 2), action)
    assert near.shape == (500,) and not near.requires_grad and (near >= 0).all()
    assert near.mean() < 0.05 and far.median() > 10 * near.median()
    with torch.no_grad():
        variance = ensemble(x, action)[0].var(0)
    torch.testing.assert_close(near, (variance / ensemble._step_size().square()).mean(-1), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("members", [1, 2])
def test_a_single_member_has_nobody_to_differ_from(members: int) -> None:
    config = configured()
    ensemble = replace(config.model.ensemble, members=members)
    space = spaces.Dict({"state": spaces.Box(-1, 1, (3,))})
    model = ObservationModel(replace(config.model, ensemble=ensemble), space, 1)
    assert model.doubts == (members > 1)


def test_a_step_is_what_one_member_says_each_time_another() -> None:
    ensemble = trained(20)
    x, action = (part[:50] for part in transitions(200)[:2])
    with torch.no_grad():
        said = [part.clone() for part in ensemble(x, action)]
        said[0] = torch.minimum(torch.maximum(said[0], ensemble.low), ensemble.high)
        chosen = set()
        for _ in range(10):
            next_x, reward, proceed = ensemble.step(x, action)
            same = (said[0] == next_x).all(-1) & (said[1] == reward) & torch.isclose(torch.sigmoid(said[2]), proceed)
            assert same.any(0).all()
            chosen |= {int(member) for member in same.float().argmax(0)}
    assert chosen == {0, 1, 2}


def test_what_is_dreamt_stays_within_what_was_seen() -> None:
    ensemble = trained(20)
    with torch.no_grad():
        next_x, *_ = ensemble.step(100 * torch.randn(50, 2), torch.zeros(50, 1))
    assert (next_x >= ensemble.low).all() and (next_x <= ensemble.high).all()
    assert (ensemble.high - ensemble.low).max() < 12


def test_transitions_without_weight_count_for_nothing() -> None:
    torch.manual_seed(0)
    ensemble = Ensemble(EnsembleConfig(members=3, units=32), 2, 1)
    x, action, next_x, reward, proceed, weight = transitions(10)
    ensemble.loss(x, action, next_x, reward, proceed, weight)
    change = ensemble.change.clone()
    torch.testing.assert_close(change, (next_x - x).square().mean(0))  # the first batch counts in full
    weight = (torch.arange(10) < 5).float()
    losses = ensemble.loss(x, action, next_x, reward, proceed, weight)
    assert all((value[5:] == 0).all() and (value[:5] > 0).all() for value in losses.values())
    expected = (change + (next_x - x)[:5].square().mean(0)) / 2
    torch.testing.assert_close(ensemble.change, expected)


def test_rewards_are_learnt_in_units_of_the_largest() -> None:
    ensemble = trained(5)
    assert 2.9 < ensemble.reward_size.item() <= 3
    assert Ensemble(EnsembleConfig(), 2, 1).reward_size.item() == 1


# ---- the world model ---------------------------------------------------------------------------------


def steps(batch: int, time: int) -> Steps:
    torch.manual_seed(1)
    obs = {"place": 5 + 2 * torch.randn(batch, time, 2), "speed": torch.randn(batch, time, 1)}
    no = torch.zeros(batch, time, dtype=torch.bool)
    return Steps(obs, torch.randn(batch, time, 1), torch.randn(batch, time), no, no.clone(), no.clone())


def test_a_state_is_an_observation_and_what_came_with_it() -> None:
    torch.manual_seed(0)
    model = ObservationModel(CONFIG, STATE, 1)
    found = steps(4, 6)
    found.is_terminal[0, 3] = True
    for _ in range(50):
        model.encoder.update(found.obs)
    states = model.recall(found, {})
    assert model.latent_spec() == model.latents(states) == {}
    later = model.observe(found[:, 2], model.initial_state(4))
    assert all(torch.equal(later[name], value[:, 2]) for name, value in states.items())
    features = model.features(states)
    assert features.shape == (4, 6, model.feature_size)
    reward, proceed = model.predict(features)
    assert torch.equal(reward, found.reward)
    torch.testing.assert_close(proceed, 0.9 * (~found.is_terminal).float())
    assert torch.equal(model.expected(features), model.encoder.view(found.obs, lead=2))
    decoded = model.decode(states)
    for name, value in found.obs.items():
        torch.testing.assert_close(decoded[name], value, rtol=1e-4, atol=1e-4)
    assert (model.errors(found.obs, states) < 1e-6).all()


def test_only_transitions_within_an_episode_are_learnt() -> None:
    model, found = ObservationModel(CONFIG, STATE, 1), steps(4, 6)
    found.is_first[1, 3] = True
    losses, states = model.loss(found, model.initial_state(4))
    assert set(losses) == {"dyn", "rew", "con"} and states["x"].shape == (4, 6, 3)
    for value in losses.values():
        gone = (value.unflatten(0, (4, 5)) == 0).nonzero().tolist()
        assert gone == [[1, 2]]


def test_a_dream_begins_with_the_start_and_goes_where_the_ensemble_says() -> None:
    model, found = ObservationModel(CONFIG, STATE, 1), steps(4, 6)
    start = model.recall(found[:, 0], {})
    imagined = model.imagine(lambda features: torch.tanh(features[:, :1]), start, 5)
    assert imagined.features.shape == (4, 6, 5) and imagined.action.shape == (4, 6, 1)
    assert torch.equal(imagined.features[:, 0], model.features(start))
    assert torch.equal(imagined.reward, imagined.features[..., 3])


# ---- the agent ---------------------------------------------------------------------------------------


class Chase(gym.Env[Any, Any]):
    """A point moves by the action; each step is rewarded with its nearness to 0."""

    observation_space, action_space = spaces.Dict({"place": spaces.Box(-5, 5, (2,))}), BOX

    def __init__(self) -> None:
        self.time, self.place = 0, np.zeros(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.time, self.place = 0, self.np_random.uniform(-1, 1, 2)
        return self._look(), {}

    def step(self, action: Any) -> Any:
        self.time += 1
        self.place = np.clip(self.place + 0.5 * action, -5, 5)
        return self._look(), float(np.exp(-np.square(self.place).sum())), False, self.time == 20, {}

    def _look(self) -> Any:
        return {"place": self.place.astype(np.float32)}


def configured(**options: Any) -> DreamerConfig:
    config = debug().agent
    return replace(config, actor_gradient="action_values", model=replace(CONFIG, **options))


@pytest.mark.parametrize(
    ("space", "action", "memory", "family"),
    [
        (STATE, BOX, False, ObservationModel),
        (STATE, BOX, True, LatentModel),
        (STATE, CHOICE, False, LatentModel),
        (spaces.Dict({**STATE, "mode": spaces.Discrete(3)}), BOX, False, LatentModel),
        (spaces.Dict({**STATE, "image": spaces.Box(0, 255, (16, 16, 3), np.uint8)}), BOX, False, LatentModel),
    ],
    ids=["numbers", "memory", "choice", "discrete", "image"],
)
def test_it_is_taken_where_numbers_tell_all(space: spaces.Dict, action: Any, memory: bool, family: type) -> None:
    config = replace(debug().agent, actor_gradient="action_values", action_values=ActionValueConfig(memory=memory))
    config = replace(config, model=replace(config.model, family="ensemble", ensemble=EnsembleConfig(2, 8)))
    assert type(Dreamer(config, space, action).world_model) is family


def test_laptop_takes_it_and_reference_does_not() -> None:
    assert isinstance(Dreamer(laptop().agent, STATE, BOX).world_model, ObservationModel)
    assert isinstance(Dreamer(debug().agent, STATE, BOX).world_model, LatentModel)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"family": "transformer"}, "'rssm' or 'ensemble'"),
        ({"ensemble": EnsembleConfig(members=0)}, "--config.model.ensemble.members is 0; it must be at least 1"),
        ({"ensemble": EnsembleConfig(steps=0)}, "--config.model.ensemble.steps is 0"),
        ({"ensemble": EnsembleConfig(batch_size=0)}, "--config.model.ensemble.batch-size is 0"),
    ],
)
def test_what_nothing_could_be_done_with_is_refused(options: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Dreamer(configured(**options), STATE, BOX)


def test_an_update_takes_as_many_steps_of_the_model_as_are_asked_for() -> None:
    """Each with transitions of their own, and not with the sequences of other families."""
    agent = Dreamer(configured(ensemble=EnsembleConfig(2, 8, steps=3, batch_size=7)), Chase.observation_space, BOX)
    experience = Experience(agent, SyncVectorEnv([Chase] * 2, autoreset_mode=AutoresetMode.NEXT_STEP))
    experience.gather(20)
    agent.update(experience.replay)
    assert agent.optimiser.param_groups[0]["count"] == agent.world_model.dynamics.count == 3
    assert agent.last_batch.steps.reward.shape == (7, 3) and agent.min_steps == 3


def test_the_agent_foresees_what_its_environment_does() -> None:
    """After 300 updates its dreams err by little; it is judged and reported on like any other."""
    torch.manual_seed(0)
    agent = Dreamer(configured(), Chase.observation_space, BOX)
    make = [Chase] * 2
    experience = Experience(agent, SyncVectorEnv(make, autoreset_mode=AutoresetMode.NEXT_STEP))
    experience.gather(200)
    for _ in range(300):
        metrics = agent.update(experience.replay)
    assert {"train/loss/dyn", "train/loss/value", "train/loss/policy"} <= set(metrics)
    found = judge(agent, SyncVectorEnv(make, autoreset_mode=AutoresetMode.NEXT_STEP), seed=3, probes=20, horizon=5)
    assert found["model/error"][0] < 0.1 and found["model/reward_error"][0] < 0.2
    assert found["model/spread"][0] > 0.1
    report = agent.report(experience.replay)
    assert report["report/open_loop_error"][0] < 0.2 and report["report/dream"].shape == report["report/truth"].shape
