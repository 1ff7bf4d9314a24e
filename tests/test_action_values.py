"""Behaviour by action values: it learns a trivial task; its targets, dreams, temperature, and what each step changes.

Letters as in agents/action_values.py.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from test_dreamer import BOX, Experience, identity, tiny
from torch import Tensor

from agents.action_values import ActionValueConfig, ActionValues, Transitions
from agents.dreamer import Dreamer, DreamerConfig, debug, laptop
from mbrl.distributions import SquashedNormal
from mbrl.errors import UserError
from mbrl.evaluation import evaluate
from mbrl.interfaces import State
from mbrl.steps import Steps

SMALL = ActionValueConfig(
    critic_steps=4, actor_every=2, batch_size=12, dreamt=0.25, dreams=6, dream=2, units=16, horizon=5.0
)
VECTOR = spaces.Dict({"mode": spaces.Discrete(3), "state": spaces.Box(-1, 1, (4,))})
PICTURE = spaces.Dict({"image": spaces.Box(0, 255, (16, 16, 3), np.uint8)})


class Short(gym.Env[Any, Any]):
    """Episodes of five steps, each rewarded with its number; every second one is terminal."""

    observation_space, action_space = VECTOR, BOX

    def __init__(self) -> None:
        self.time = self.episode = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.time, self.episode = 0, self.episode + 1
        return self._look(), {}

    def step(self, action: Any) -> Any:
        self.time += 1
        over = self.time == 5
        return self._look(), float(self.time), over and self.episode % 2 == 0, over, {}

    def _look(self) -> Any:
        return {"mode": np.int64(self.time % 3), "state": self.np_random.uniform(-1, 1, 4).astype(np.float32)}


def configured(**options: Any) -> DreamerConfig:
    return replace(debug().agent, actor_gradient="action_values", action_values=replace(SMALL, **options))


def experienced(seed: int = 0, **options: Any) -> tuple[Dreamer, ActionValues, Experience]:
    """Forty steps of two environments."""
    torch.manual_seed(seed)
    agent = Dreamer(configured(**options), VECTOR, BOX)
    experience = Experience(agent, SyncVectorEnv([Short] * 2, autoreset_mode=AutoresetMode.NEXT_STEP))
    experience.gather(40)
    assert isinstance(agent.behaviour, ActionValues)
    return agent, agent.behaviour, experience


def drawn(agent: Dreamer, experience: Experience, size: int, length: int) -> tuple[Steps, dict[str, Tensor]]:
    batch = experience.replay.draw(size, length)
    return batch.steps, agent.world_model.recall(batch.steps, batch.latents)


def replayed(agent: Dreamer, experience: Experience, size: int) -> Transitions:
    values = agent.behaviour
    assert isinstance(values, ActionValues)
    return values._replayed(*drawn(agent, experience, size, 2))


def test_learns_the_identity_task() -> None:
    """Random answers are worth 4, right ones 8."""
    torch.manual_seed(0)
    envs, others = identity(False, 8), identity(False, 20)
    values = replace(SMALL, batch_size=32, units=32, lr=3e-3)
    config = replace(tiny("action_values"), action_values=values)
    agent = Dreamer(config, envs.single_observation_space, envs.single_action_space)
    experience, score = Experience(agent, envs), 0.0
    experience.gather(36, at_random=True)
    assert evaluate(agent, others, seed=1, explore=True).mean() < 5.5
    for n in range(300):
        agent.update(experience.replay)
        experience.gather(1)
        if n % 50 == 49:
            score = min(evaluate(agent, others, seed=1, explore=explore).mean() for explore in (False, True))
        if score > 7:
            break
    assert score > 7


# ---- where it is used --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("observations", "actions", "used"),
    [(VECTOR, BOX, True), (VECTOR, spaces.Discrete(3), False), (PICTURE, BOX, False)],
)
def test_elsewhere_the_next_best_gradient_is_taken(observations: Any, actions: Any, used: bool) -> None:
    """Pictures are left to pathwise gradients, discrete actions to REINFORCE."""
    agent = Dreamer(configured(), observations, actions)
    assert isinstance(agent.behaviour, ActionValues) == used
    assert used or agent.behaviour.pathwise == isinstance(actions, spaces.Box)
    assert laptop().agent.actor_gradient == "action_values"


@pytest.mark.parametrize(
    ("option", "message"),
    [({"actor_every": 0}, "actor-every is 0; it must be at least 1"), ({"dream": 0}, "dream is 0"),
     ({"wander": -1.0}, "wander is -1.0; it must be at least 0"),
     ({"dreamt": 1.0}, "dreamt is 1.0; it must be below 1"),
     ({"temperature": 0.0}, "temperature is 0.0; it must be above 0")],
)  # fmt: skip
def test_numbers_that_nothing_could_be_done_with_are_refused(option: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Dreamer(configured(**option), VECTOR, BOX)


def test_memory_adds_the_state_of_the_world_model() -> None:
    """And a dream is seen as what it stands for."""
    for memory in (False, True):
        agent, values, experience = experienced(memory=memory)
        agent.update(experience.replay)
        steps, states = drawn(agent, experience, 6, 1)
        state = {name: value[:, 0] for name, value in states.items()}
        features = agent.world_model.features(state)
        size = 4 + 3 + memory * agent.world_model.feature_size
        seen, dreamt = values.see(steps[:, 0].obs, state), values.see_dreamt(features)
        assert seen.shape == dreamt.shape == (6, size)
        assert torch.equal(seen[:, 7:], dreamt[:, 7:])
        torch.testing.assert_close(dreamt[:, 4:7].sum(-1), torch.ones(6))  # probabilities of the discrete one
        assert isinstance(agent.policy(features), SquashedNormal)
        assert agent.act(steps[:, 0], agent.initial_state(6), explore=True)[0].abs().max() <= 1


# ---- the critics -------------------------------------------------------------------------------------


def test_replayed_transitions_end_where_episodes_do() -> None:
    """An end that is terminal is followed by nothing; from a last step no action leads on."""
    agent, values, experience = experienced()
    steps, states = drawn(agent, experience, 200, 2)
    before, after = steps[:, 0], steps[:, 1]
    assert after.is_terminal.any() and (after.is_last & ~after.is_terminal).any() and before.is_last.any()
    made = values._replayed(steps, states)
    assert torch.equal(made.proceed, (~after.is_terminal).float())
    assert torch.equal(made.weight, (~before.is_last).float())
    assert torch.equal(made.reward, after.reward) and torch.equal(made.action, after.action)
    for seen, step in ((made.x, before), (made.next_x, after)):
        assert torch.equal(seen, values.world_model.encoder.view(step.obs, lead=1))


def test_critics_learn_rewards_and_what_follows_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where slow critics say 10 of everything and entropy is worth nothing: r / scale + d p 10, weighted."""
    agent, values, experience = experienced(temperature=1e-9)
    n, found = 200, dict[str, Tensor]()
    values.reward_scale.fill_(5)
    steps = replayed(agent, experience, n)._replace(proceed=torch.rand(n), weight=torch.rand(n))

    def value(critics: Any, x: Tensor, action: Tensor) -> Tensor:
        if critics is values.slow_critics:
            return torch.full((2, len(x)), 10.0)
        found["value"] = torch.zeros(2, len(x), requires_grad=True)
        return found["value"]

    monkeypatch.setattr(values, "_value", value)
    monkeypatch.setattr(values, "_descend", lambda part, loss: found.update(loss=loss))
    values._fit_critics(steps)
    target = steps.reward / 5 + steps.proceed * 0.8 * 10
    (slope,) = torch.autograd.grad(found["loss"], [found["value"]])
    torch.testing.assert_close(slope, (-2 * target * steps.weight / n).expand(2, -1), atol=1e-5, rtol=1e-4)


def test_critics_learn_from_as_many_dreamt_steps_as_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the unit of values is the largest real reward."""
    agent, values, experience = experienced()
    dream, fitted, batches = values._dream, values._fit_critics, list[Transitions]()

    def marked(*args: Any) -> tuple[Tensor, Transitions]:
        seen, dreamt = dream(*args)
        return seen, dreamt._replace(reward=torch.full_like(dreamt.reward, 77.0))

    def keep(steps: Transitions) -> Any:
        batches.append(steps)
        return fitted(steps)

    monkeypatch.setattr(values, "_dream", marked)
    monkeypatch.setattr(values, "_fit_critics", keep)
    agent.update(experience.replay)
    assert [(len(batch.x), int((batch.reward == 77).sum())) for batch in batches] == [(12, 3)] * 4
    assert values.reward_scale == 5


def changed(before: dict[str, Tensor], agent: Dreamer) -> set[str]:
    after = agent.modules.state_dict()
    return {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}


def test_each_step_changes_its_own_part() -> None:
    agent, values, experience = experienced()
    agent.update(experience.replay)
    before = copy.deepcopy(agent.modules.state_dict())
    values._fit_critics(replayed(agent, experience, 12))
    assert changed(before, agent) == {"critic", "slow_critic"}
    before = copy.deepcopy(agent.modules.state_dict())
    values._improve_actor(replayed(agent, experience, 12).x)
    assert changed(before, agent) == {"actor", "behaviour"}
    assert all(p.requires_grad for p in values.critics.parameters())


# ---- dreams ------------------------------------------------------------------------------------------


def test_dreams_begin_with_what_was_seen_and_follow_the_policy_or_wander(monkeypatch: pytest.MonkeyPatch) -> None:
    agent, values, experience = experienced(dream=3, wander=50.0)
    n, model = 6, agent.world_model
    path, advance = list[State](), model.step

    def recorded(state: State, action: Tensor) -> State:
        path.append(advance(state, action))
        return path[-1]

    monkeypatch.setattr(model, "step", recorded)
    steps, states = drawn(agent, experience, n, 1)
    start = {name: value[:, 0] for name, value in states.items()}
    seen, dreamt = values._dream(steps, states)
    assert seen.shape == (4 * n, 7) and not seen.requires_grad
    assert all(len(part) == 3 * n and not part.requires_grad for part in dreamt)
    assert torch.equal(seen[:n], values.see(steps[:, 0].obs, start))
    assert torch.equal(dreamt.x, seen[: 3 * n]) and torch.equal(dreamt.next_x, seen[n:])
    actions = dreamt.action.unflatten(0, (3, n))
    assert (actions[:, 1::2].abs() == 1).float().mean() > 0.8  # so much noise on every second dream, on the others none
    assert (actions[:, ::2].abs() < 1).all()
    for h in range(3):
        rows, features = slice(h * n, (h + 1) * n), model.features(path[h])
        torch.testing.assert_close(dreamt.next_x[rows], model.expected(features))
        torch.testing.assert_close(dreamt.reward[rows], model.predict(features)[0])


def test_dreamt_steps_weigh_what_the_dream_is_likely_to_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model's continue without its own discount; nothing at all after a start that is terminal."""
    agent, values, experience = experienced(dream=3)
    steps, states = drawn(agent, experience, 40, 1)
    model = agent.world_model
    kept = 1 - 1 / model.config.horizon
    monkeypatch.setattr(model, "predict", lambda x: (x[..., 0], torch.full(x.shape[:2], 0.5 * kept)))
    weight = values._dream(steps, states)[1].weight.unflatten(0, (3, 40))
    begun = ~steps[:, 0].is_terminal
    assert begun.any() and not begun.all()
    torch.testing.assert_close(weight, begun * torch.tensor([1.0, 0.5, 0.25]).unsqueeze(1))


# ---- the actor ---------------------------------------------------------------------------------------


def test_the_actor_goes_where_the_critics_point(monkeypatch: pytest.MonkeyPatch) -> None:
    agent, values, experience = experienced(lr=1e-2)
    monkeypatch.setattr(values, "_value", lambda critics, x, action: -(action - 0.5).square().sum(-1).expand(2, -1))
    for _ in range(60):
        values._improve_actor(replayed(agent, experience, 12).x)
    x = replayed(agent, experience, 12).x
    assert (values.actor(x).mode - 0.5).abs().max() < 0.1


@pytest.mark.parametrize(("wanted", "sign"), [(-20.0, -1), (20.0, 1)])
def test_the_temperature_brings_the_entropy_to_what_it_should_be(wanted: float, sign: int) -> None:
    agent, values, experience = experienced(entropy=wanted)
    before = values.log_temperature.item()
    for _ in range(5):
        values._improve_actor(replayed(agent, experience, 12).x)
    assert (values.log_temperature.item() - before) * sign > 0


def test_the_entropy_that_is_wanted_falls_to_its_end_and_goes_on_falling_in_what_is_loaded() -> None:
    agent, values, experience = experienced(entropy=1.0, final_entropy=-3.0, settling=4)
    wanted = []
    for n in range(7):
        if n == 2:
            again = experienced(seed=5, entropy=1.0, final_entropy=-3.0, settling=4)[0]
            again.load_state_dict(copy.deepcopy(agent.state_dict()))
            again.update(experience.replay)
        agent.update(experience.replay)
        wanted.append(values.wanted_entropy.item() / 2)  # of two dimensions
    assert wanted == [1, 0, -1, -2, -3, -3, -3]
    assert isinstance(again.behaviour, ActionValues) and again.behaviour.wanted_entropy == -2


# ---- exploring ---------------------------------------------------------------------------------------


def test_an_update_is_finite_follows_the_seed_and_counts_every_loss() -> None:
    results = []
    for seed in (0, 0, 1):
        agent, _, experience = experienced(seed)
        for _ in range(3):
            metrics = agent.update(experience.replay)
        results.append({name: float(value) for name, value in metrics.items()})
    assert results[0] == results[1] != results[2]
    assert all(np.isfinite(value) for value in results[0].values())
    losses = {name: value for name, value in results[0].items() if name.startswith("train/loss/")}
    total = losses.pop("train/loss/total")
    assert {"train/loss/value", "train/loss/policy", "train/loss/dyn"} <= losses.keys()
    assert total == pytest.approx(sum(losses.values()), rel=1e-4)


def test_what_is_loaded_learns_at_the_rate_that_it_is_given_now() -> None:
    agent, _, experience = experienced(lr=0.1)
    agent.update(experience.replay)
    again, values, _ = experienced(seed=5, lr=0.0)
    again.load_state_dict(copy.deepcopy(agent.state_dict()))
    before = copy.deepcopy(values.actor.state_dict()), copy.deepcopy(values.critics.state_dict())
    again.update(experience.replay)
    for module, old in zip((values.actor, values.critics), before, strict=True):
        assert all(torch.equal(value, old[name]) for name, value in module.state_dict().items())


def test_what_is_loaded_learns_as_what_was_saved() -> None:
    agent, _, experience = experienced()
    for _ in range(3):
        agent.update(experience.replay)
    again = experienced(seed=5)[0]
    again.load_state_dict(copy.deepcopy(agent.state_dict()))
    replays = experience.replay, copy.deepcopy(experience.replay)
    for one, replay in zip((agent, again), replays, strict=True):
        torch.manual_seed(3)
        one.update(replay)
    for a, b in zip(agent.modules.state_dict().values(), again.modules.state_dict().values(), strict=True):
        assert torch.equal(a, b)
