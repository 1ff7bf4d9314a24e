"""Dreamer: it learns a trivial task in seconds; its losses, gradients, memory and options.

Letters as in agents/dreamer.py. That the numbers are right is the business of test_parity.py.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from torch import Tensor

from agents.dreamer import Dreamer, DreamerConfig, debug
from agents.random_agent import RandomAgent, RandomConfig
from mbrl.distributions import Categoricals, SymexpTwoHot
from mbrl.driver import Driver
from mbrl.dynamics.rssm import RSSMConfig
from mbrl.errors import UserError
from mbrl.evaluation import evaluate
from mbrl.interfaces import Agent, Imagined
from mbrl.replay import Replay, ReplayConfig
from mbrl.world_model import WorldModelConfig


class Identity(gymnasium.Env[Any, Any]):
    """Reward 1 for answering with what is shown: a one of two, or the sign of a number. Eight questions."""

    def __init__(self, discrete: bool) -> None:
        self.discrete, self.time, self.shown = discrete, 0, 0
        self.observation_space = spaces.Dict({"shown": spaces.Box(0, 1, (2,), np.float32)})
        self.action_space = spaces.Discrete(2) if discrete else spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.time = 0
        return self._ask(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.time += 1
        answer = int(action) if self.discrete else int(action[0] > 0)
        reward = float(answer == self.shown)
        return self._ask(), reward, False, self.time == 8, {}

    def _ask(self) -> dict[str, Any]:
        self.shown = int(self.np_random.integers(2))
        return {"shown": np.eye(2, dtype=np.float32)[self.shown]}


def identity(discrete: bool, n: int) -> SyncVectorEnv:
    return SyncVectorEnv([lambda: Identity(discrete)] * n, autoreset_mode=AutoresetMode.NEXT_STEP)


def tiny(gradient: str = "reinforce") -> DreamerConfig:
    """Learns the identity task in a few seconds."""
    rssm = RSSMConfig(deter=32, stoch=4, classes=4, hidden=32, blocks=4)
    model = WorldModelConfig(rssm=rssm, units=32, layers=1, bins=41, norm="layer", horizon=10)
    return DreamerConfig(
        model=model, batch_size=8, batch_length=8, horizon=3, actor_gradient=gradient, actor_layers=1,
        critic_layers=1, return_debias=True, entropy=0.03, pathwise_entropy=0.03, lr=1e-2, behaviour_lr=2e-3, warmup=0,
    )  # fmt: skip


class Experience:
    """An agent in its environments, with a replay of what happened."""

    def __init__(self, agent: Agent, envs: SyncVectorEnv) -> None:
        self.agent, self.driver, self.random = agent, Driver(envs), np.random.default_rng(0)
        size = self.driver.action_spec.size
        space: Any = envs.single_observation_space
        limits = ReplayConfig(capacity=1024 * envs.num_envs)
        self.replay = Replay(space, size, envs.num_envs, agent.latent_spec(), limits)
        self.step, self.state = self.driver.reset(seed=0), agent.initial_state(envs.num_envs)

    def gather(self, decisions: int, at_random: bool = False) -> None:
        for _ in range(decisions):
            action, self.state = self.agent.act(self.step, self.state, explore=True)
            self.replay.add(self.step, self.agent.latents(self.state))
            if at_random:
                action = self.driver.action_spec.sample(self.driver.num_envs, self.random)
            self.step = self.driver.step(action)


# ---- it learns --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("discrete", "gradient"), [(True, "reinforce"), (False, "reinforce"), (False, "pathwise")]
)
def test_learns_the_identity_task(discrete: bool, gradient: str) -> None:
    """Random answers are worth 4, right ones 8. Usually 200 updates are enough."""
    envs, others = identity(discrete, 8), identity(discrete, 20)
    agent = Dreamer(tiny(gradient), envs.single_observation_space, envs.single_action_space)
    experience, score = Experience(agent, envs), 0.0
    experience.gather(36, at_random=True)
    assert evaluate(agent, others, seed=1, explore=True).mean() < 5.5
    for n in range(500):
        agent.update(experience.replay)
        experience.gather(1)
        if n % 50 == 49:
            score = min(evaluate(agent, others, seed=1, explore=explore).mean() for explore in (False, True))
        if score > 7:
            break
    assert score > 7


@pytest.mark.parametrize("discrete", [True, False])
def test_random_actions_do_not_solve_the_identity_task(discrete: bool) -> None:
    envs = identity(discrete, 20)
    agent = RandomAgent(RandomConfig(), envs.single_observation_space, envs.single_action_space)  # type: ignore[arg-type]
    assert evaluate(agent, envs, seed=1, episodes=100).mean() < 5.5


# ---- losses and gradients ---------------------------------------------------------------------------

MIXED = spaces.Dict({
    "image": spaces.Box(0, 255, (16, 16, 3), np.uint8),
    "state": spaces.Box(-np.inf, np.inf, (3,)),
    "mode": spaces.Discrete(3),
})  # fmt: skip
BOX, CHOICE = spaces.Box(-1, 1, (2,)), spaces.Discrete(3)
B, T, H = 4, 8, 3


class Noise(gymnasium.Env[Any, Any]):
    """Random observations and rewards, episodes of about ten steps."""

    observation_space = MIXED

    def __init__(self, action_space: spaces.Space) -> None:
        self.action_space = action_space

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.observation_space = copy.deepcopy(MIXED)
        self.observation_space.seed(seed or 0)
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        terminated, truncated = self.np_random.random(2) < 0.05
        return self.observation_space.sample(), self.np_random.normal(), terminated, truncated, {}


def experienced(action_space: spaces.Space = BOX, seed: int = 0, **options: Any) -> Experience:
    """The preset ``debug`` (B, T, H as above) and 40 steps of two environments."""
    torch.manual_seed(seed)
    agent = Dreamer(replace(debug().agent, **options), MIXED, action_space)
    envs = SyncVectorEnv([lambda: Noise(action_space)] * 2, autoreset_mode=AutoresetMode.NEXT_STEP)
    experience = Experience(agent, envs)
    experience.gather(40)
    return experience


@pytest.mark.parametrize("gradient", ["reinforce", "pathwise"])
@pytest.mark.parametrize("action_space", [BOX, CHOICE], ids=["box", "choice"])
def test_losses_have_their_shapes(action_space: spaces.Space, gradient: str) -> None:
    experience = experienced(action_space, actor_gradient=gradient)
    agent = experience.agent
    assert isinstance(agent, Dreamer)
    batch = experience.replay.sample(B, T)
    losses, states, *_ = agent.losses(batch.steps, agent.initial_state(B))
    shapes = dict.fromkeys(["dyn", "rep", "rew", "con", "rec_image", "rec_state", "rec_mode"], (B, T))
    shapes |= {"policy": (B * T, H), "value": (B * T, H), "repval": (B, T - 1)}
    assert {name: tuple(loss.shape) for name, loss in losses.items()} == shapes
    assert all(loss.isfinite().all() for loss in losses.values())
    assert states["deter"].shape[:2] == (B, T)


def gradients(agent: Dreamer, loss: Tensor) -> set[str]:
    """Which parts of the agent a loss trains."""
    agent.modules.zero_grad()
    loss.mean().backward()
    named = agent.modules.named_parameters()
    return {name.split(".")[0] for name, p in named if p.grad is not None and p.grad.abs().sum() > 0}


@pytest.mark.parametrize(
    ("action_space", "gradient"), [(BOX, "reinforce"), (BOX, "pathwise"), (CHOICE, "pathwise")]
)
def test_each_loss_trains_its_own_part(action_space: spaces.Space, gradient: str) -> None:
    """Actor and critic leave the world model alone in imagination; the replayed value loss shapes it."""
    experience = experienced(action_space, actor_gradient=gradient)
    agent = experience.agent
    assert isinstance(agent, Dreamer)
    for _ in range(3):  # reward and value start at zero, where no gradient passes
        agent.update(experience.replay)
    steps = experience.replay.sample(B, T).steps
    for name, parts in [
        ("policy", {"actor"}),
        ("value", {"critic"}),
        ("repval", {"critic", "world_model"}),
        ("rew", {"world_model"}),
    ]:
        losses, *_ = agent.losses(steps, agent.initial_state(B))
        assert gradients(agent, losses[name]) == parts, name


def test_pathwise_gradients_are_those_of_the_imagined_return(monkeypatch: pytest.MonkeyPatch) -> None:
    """With smooth latents, over one step: equal to the finite difference on the same random numbers."""
    monkeypatch.setattr(Categoricals, "sample", lambda self: self.probs)
    experience = experienced(actor_gradient="pathwise", horizon=1, saturation=0.0, pathwise_entropy=0.0)
    agent = experience.agent
    assert isinstance(agent, Dreamer)
    for _ in range(10):
        agent.update(experience.replay)
    agent.modules.double()
    bias = agent.modules.get_parameter("actor.out.0.bias")
    with (
        torch.no_grad()
    ):  # the smallest deviation: no action leaves [-1, 1], where its gradient would be another
        agent.modules.get_parameter("actor.out.1.bias").fill_(-10)

    def value(shift: float = 0.0) -> Tensor:
        torch.manual_seed(1)
        with torch.no_grad():
            bias.add_(shift)
        losses, _, _ = agent.behaviour._behaviour_losses(*agent.behaviour._imagine(agent.initial_state(64)))
        with torch.no_grad():
            bias.sub_(shift)
        assert agent.behaviour.returns.scale == 1
        return losses["policy"].mean()

    (slope,) = torch.autograd.grad(value(), [bias])
    # Bins of 5e8 cost the mean 8 digits, so the step is not too small.
    difference = (value(3e-4) - value(-3e-4)).item() / 6e-4
    assert abs(difference) > 1e-4
    assert slope.sum().item() == pytest.approx(difference, rel=0.02)


def test_a_subset_of_the_starts_is_imagined_from() -> None:
    experience = experienced(starts=5)
    agent = experience.agent
    assert isinstance(agent, Dreamer)
    steps = experience.replay.sample(B, T).steps
    _, states = agent.world_model.loss(steps, agent.initial_state(B))
    chosen, start = agent.behaviour._choose_starts(states)
    assert torch.equal(start["deter"], states["deter"].flatten(0, 1)[chosen])
    assert len(set(chosen.tolist())) == 5 and chosen.min() >= 0 and chosen.max() < B * T
    losses, *_ = agent.losses(steps, agent.initial_state(B))
    assert losses["policy"].shape == (5, H) and losses["repval"].shape == (B, T - 1)
    # Their returns are the bootstrap: they matter to the sequences that they come from, and to no others.
    for _ in range(3):  # a critic that says the same of everything has the same loss whatever the target
        agent.update(experience.replay)
    features = torch.randn(B, T, agent.world_model.feature_size)
    steps.is_last[:] = steps.is_terminal[:] = False
    chosen = torch.tensor([T - 1, 2 * T + 3])
    low, high = (agent.behaviour._replay_value_loss(features, steps, chosen, torch.full((2,), x)) for x in (1.0, 7.0))
    changed = low != high
    assert changed.any(1).tolist() == [True, False, True, False]
    assert changed[0].all() and changed[2].tolist() == [True] * 3 + [False] * (T - 4)
    agent.update(experience.replay)


# ---- updates ----------------------------------------------------------------------------------------


def test_further_critic_updates_change_the_critic_alone() -> None:
    once, often = (experienced(critic_updates=k) for k in (1, 4))
    for experience in (once, often):
        torch.manual_seed(1)
        assert isinstance(experience.agent, Dreamer)
        experience.agent.update(experience.replay)
    a, b = (dict(experience.agent.modules.named_parameters()) for experience in (once, often))  # type: ignore[attr-defined]
    changed = {name.split(".")[0] for name in a if not torch.equal(a[name], b[name])}
    assert changed == {"critic", "slow_critic"}
    optimiser = often.agent.optimiser  # type: ignore[attr-defined]
    assert [int(group["count"]) for group in optimiser.param_groups] == [1, 1, 4]


def test_critic_updates_carry_a_reward_further_along_a_rollout() -> None:
    """One rollout whose last step is rewarded: the value of its start grows with each further update."""
    agent = experienced(horizon=3, lr=1e-2, critic_updates=2).agent
    assert isinstance(agent, Dreamer)
    features = torch.randn(1, 4, agent.world_model.feature_size).repeat(2, 1, 1)
    rollout = Imagined(features, torch.zeros(2, 4, 1), torch.tensor([[0.0, 0, 0, 9]] * 2), torch.full((2, 4), 0.99))
    values = []
    for _ in range(40):
        agent.behaviour._fit_critic(rollout, agent.optimiser)
        values.append(SymexpTwoHot(agent.behaviour.critic(features)).mean[0, 0].item())
    assert values[0] < 0.5 < 5 < values[-1]


def test_a_run_can_go_on_with_critic_updates_that_it_began_without() -> None:
    experience = experienced()
    agent = experience.agent
    assert isinstance(agent, Dreamer)
    agent.update(experience.replay)
    state = agent.state_dict()
    again = experienced(seed=5, critic_updates=3).agent
    again.load_state_dict(copy.deepcopy(state))
    assert isinstance(again, Dreamer)
    loaded = again.optimiser.state_dict()
    model, behaviour = state["optimiser"]["param_groups"]
    places = [group["params"] for group in loaded["param_groups"]]
    assert len(places) == 3 and places[0] == model["params"] and places[1] + places[2] == behaviour["params"]
    assert len(places[1]) == len(list(agent.behaviour.actor.parameters()))
    assert all(torch.equal(loaded["state"][k]["mu"], state["optimiser"]["state"][k]["mu"]) for k in loaded["state"])
    again.update(experience.replay)


def test_a_run_goes_on_with_the_learning_rates_that_it_is_given_now() -> None:
    """Not with those that the stored optimiser had: who is told to lower the rate must be heard."""
    experience = experienced(lr=0.1)
    state = experience.agent.state_dict()
    again = experienced(seed=5, lr=0.0, behaviour_lr=0.0, agc=0.1).agent
    again.load_state_dict(copy.deepcopy(state))
    assert isinstance(again, Dreamer)
    before = copy.deepcopy(again.modules.state_dict())
    again.update(experience.replay)
    for name, value in again.modules.state_dict().items():
        assert torch.equal(value, before[name]) or name.startswith("slow_critic") or "scaling" in name
    assert {group["agc"] for group in again.optimiser.param_groups} == {0.1}


@pytest.mark.parametrize("gradient", ["reinforce", "pathwise"])
def test_updates_follow_the_seed(gradient: str) -> None:
    results = []
    for seed in (0, 0, 1):
        experience = experienced(seed=seed, actor_gradient=gradient, starts=6)
        for _ in range(3):
            metrics = experience.agent.update(experience.replay)
        results.append({name: float(value) for name, value in metrics.items()})
    assert results[0] == results[1] != results[2]
    assert all(np.isfinite(value) for value in results[0].values())


def test_an_update_rewrites_the_latents_of_its_batch() -> None:
    """Those of the context step stay."""
    experience = experienced()
    agent, replay = experience.agent, experience.replay
    replay.arrays["latent/deter"][:] = 9.0  # a GRU's state stays below 1
    sampling = copy.deepcopy(replay.rng)
    agent.update(replay)
    replay.rng, replay.fresh = sampling, np.zeros_like(replay.fresh)
    env, time = replay.sample(B, T + 1).index  # the same batch again
    expected = np.zeros(replay.arrays["reward"].shape, bool)
    expected[env, time[:, 1:]] = True
    assert ((replay.arrays["latent/deter"] != 9.0).all(-1) == expected).all()


def test_a_stored_agent_goes_on_as_if_nothing_had_happened() -> None:
    experience = experienced()
    other = experienced(seed=1)
    for _ in range(2):
        experience.agent.update(experience.replay)
    other.agent.load_state_dict(copy.deepcopy(experience.agent.state_dict()))
    losses = []
    for agent in (experience.agent, other.agent):
        replay = copy.deepcopy(experience.replay)
        for _ in range(2):
            torch.manual_seed(3)
            metrics = agent.update(replay)
        losses.append({name: float(value) for name, value in metrics.items()})
    assert losses[0] == losses[1]


# ---- memory and acting ------------------------------------------------------------------------------


def test_latents_survive_the_replay() -> None:
    """Deter in half precision, classes exactly."""
    experience = experienced()
    agent = experience.agent
    assert isinstance(agent, Dreamer)
    state = experience.state
    compact = agent.latents(state)
    assert {name: (tuple(x.shape[1:]), x.dtype) for name, x in compact.items()} == agent.latent_spec()
    restored = agent.world_model.recall(experience.step, compact)
    assert torch.equal(restored["stoch"], state["stoch"]) and state["stoch"].sum() > 0
    torch.testing.assert_close(restored["deter"], state["deter"], rtol=1e-3, atol=1e-6)


def test_exploration_noise_is_correlated_has_unit_variance_and_forgets_at_a_first_step() -> None:
    experience = experienced(noise_correlation=0.8)
    agent = experience.agent
    assert isinstance(agent, Dreamer)
    no, first = torch.zeros(20_000, dtype=torch.bool), torch.ones(20_000, dtype=torch.bool)
    old = agent._explore(agent.initial_state(20_000)["noise"], first)
    new, other = agent._explore(old, no), agent._explore(old, first)
    assert all(abs(noise.std().item() - 1) < 0.03 for noise in (old, new, other))
    assert (old * new).mean().item() == pytest.approx(0.8, abs=0.03)
    assert abs((old * other).mean().item()) < 0.03


def test_the_noise_drives_what_is_explored_and_the_mode_leaves_it_alone() -> None:
    """With full correlation the noise stays what it was, so what is explored is known."""
    experience = experienced(noise_correlation=1.0, min_std=0.4)
    agent, step = experience.agent, experience.step
    assert isinstance(agent, Dreamer)
    step.is_first[:] = False
    state = {**experience.state, "noise": torch.full_like(experience.state["noise"], 2.0)}
    torch.manual_seed(0)
    action, after = agent.act(step, state, explore=True)
    policy = agent.behaviour.actor(agent.world_model.features(after))
    assert torch.equal(after["noise"], state["noise"])
    torch.testing.assert_close(action, policy.mean + 2 * policy.std)
    assert policy.std.min() >= 0.4
    torch.manual_seed(0)
    action, after = agent.act(step, state, explore=False)
    assert torch.equal(after["noise"], state["noise"])
    policy = agent.behaviour.actor(agent.world_model.features(after))
    torch.testing.assert_close(action, policy.mean)


@pytest.mark.parametrize("action_space", [BOX, CHOICE], ids=["box", "choice"])
def test_actions_are_drawn_or_the_mode(action_space: spaces.Space) -> None:
    experience = experienced(action_space)
    agent, step, state = experience.agent, experience.step, experience.state
    assert isinstance(agent, Dreamer)
    drawn = []
    for seed in range(20):
        torch.manual_seed(seed)
        action, after = agent.act(step, state, explore=False)
        assert torch.equal(action, agent.behaviour.actor(agent.world_model.features(after)).mode)
        drawn.append(agent.act(step, state, explore=True)[0])
    assert torch.stack(drawn).std(0).max() > 0.2


def test_acting_leaves_no_graph_behind() -> None:
    experience = experienced()
    action, state = experience.agent.act(experience.step, experience.state, explore=True)
    assert not action.requires_grad and not any(value.requires_grad for value in state.values())


# ---- the rest ---------------------------------------------------------------------------------------


def test_report_dreams_on_from_what_was_seen() -> None:
    experience = experienced()
    report = experience.agent.report(experience.replay)
    assert len(report["report/open_loop_error"]) == 15
    assert all(np.isfinite(error) for error in report["report/open_loop_error"])
    assert report["report/video"].shape == (23, 16, 48, 3) and report["report/video"].dtype == np.uint8


def test_description_names_encoders_actions_and_size() -> None:
    agent = experienced().agent
    text = agent.describe()
    for part in (
        "image (16, 16, 3) -> CNN",
        "state (3,) -> MLP",
        "Box(2)",
        f"{agent.num_parameters / 1e6:.2f} M",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("option", "message"),
    [({"actor_gradient": "other"}, "'reinforce', 'pathwise' or 'action_values'"),
     ({"family": "other"}, "'rssm' or 'ensemble'"), ({"precision": "half"}, "'float32' or 'bfloat16'"),
     ({"norm": "other"}, "'rms' or 'layer'"), ({"batch_length": 1}, "batch-length is 1; it must be at least 2"),
     ({"starts": 0}, "config.starts is 0"), ({"horizon": 0}, "config.horizon is 0"),
     ({"bins": 16}, "bins is 16; it must be odd"), ({"depth": 3, "blocks": 8}, "four times as many must divide by"),
     ({"deter": 15}, "deter is 15; it must divide by its blocks, 2"), ({"classes": 300}, "at most 256")],
)  # fmt: skip
def test_settings_that_nothing_could_be_done_with_are_refused(option: dict[str, Any], message: str) -> None:
    config = debug().agent
    rssm, model = config.model.rssm, config.model
    for name, value in option.items():
        if hasattr(rssm, name):
            rssm = replace(rssm, **{name: value})
        elif name != "horizon" and hasattr(model, name):
            model = replace(model, **{name: value})
        else:
            config = replace(config, **{name: value})
    with pytest.raises(UserError, match=message):
        Dreamer(replace(config, model=replace(model, rssm=rssm)), MIXED, BOX)
