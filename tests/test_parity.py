"""The preset ``reference`` computes what the official DreamerV3 computes: golden numbers of the whole agent.

Cases: A has vectors and continuous actions, B an image, vectors and discrete actions. "random" starts
from parameters that are all informative, "default" from the official initialisation. Sampling is
replaced by rules on both sides: arg max for categoricals, mean + std / 2 for normals.

The numbers lie outside of the repository; ``MBRL_PARITY`` names their folder. Shape letters as in
agents/dreamer.py.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from gymnasium import spaces
from torch import Tensor

import mbrl.distributions
from agents.dreamer import Dreamer, reference
from mbrl.distributions import BoundedNormal, Categoricals, SymexpTwoHot, one_hot_of
from mbrl.replay import Batch
from mbrl.steps import Steps

FOLDER = Path(os.environ.get("MBRL_PARITY", Path(__file__).parent.parent.parent / "shared" / "parity"))
B, T, H, D, S, K = 3, 7, 5, 64, 4, 4

pytestmark = pytest.mark.skipif(
    not (FOLDER / "A_random.npz").exists(),
    reason=f"the golden numbers of the official agent are not in {FOLDER}; MBRL_PARITY may name their folder",
)

CASES = ["A_random", "A_default", "B_random", "B_default"]


# ---- the official parameters under our names --------------------------------------------------------

Convert = Callable[[Tensor], Tensor]
LAYOUTS: dict[str, Convert] = {
    "linear": lambda kernel: kernel.T,
    "blocks": lambda kernel: kernel,
    "conv": lambda kernel: kernel.permute(3, 2, 0, 1),
    # The official decoder reads [stoch, deter], ours [deter, stoch] like every other head.
    "swapped": lambda kernel: torch.cat([kernel[S * K :], kernel[: S * K]]).T,
}


def mlp(theirs: str, ours: str, layers: int) -> list[tuple[str, str, str]]:
    """A stack of linear, norm, SiLU: ours has three modules per layer."""
    rows = []
    for i in range(layers):
        rows += [
            (f"{theirs}/linear{i}", f"{ours}.{3 * i}", "linear"),
            (f"{theirs}/norm{i}", f"{ours}.{3 * i + 1}", "norm"),
        ]
    return rows


def hidden(theirs: str, ours: str) -> list[tuple[str, str, str]]:
    """One hidden layer: linear and norm."""
    return [(theirs, f"{ours}.0", "linear"), (f"{theirs}norm", f"{ours}.1", "norm")]


def correspondence(case: str) -> list[tuple[str, str, str]]:
    """(official module, our module, layout) of everything that has parameters."""
    model, dynamics, decoder = "world_model", "world_model.dynamics", "world_model.decoder"
    table = [row for i in range(3) for row in [
        (f"enc/mlp{i}", f"{model}.encoder.mlp.{3 * i}", "linear"),
        (f"enc/mlp{i}norm", f"{model}.encoder.mlp.{3 * i + 1}", "norm"),
    ]]  # fmt: skip
    table += hidden("dyn/dynin0", f"{dynamics}.deter_in")
    table += hidden("dyn/dynin1", f"{dynamics}.stoch_in")
    table += hidden("dyn/dynin2", f"{dynamics}.action_in")
    table += [
        ("dyn/dynhid0", f"{dynamics}.mix", "blocks"),
        ("dyn/dynhid0norm", f"{dynamics}.mix_norm", "norm"),
        ("dyn/dyngru", f"{dynamics}.gates", "blocks"),
        ("dyn/obs0", f"{dynamics}.posterior_in", "linear"),
        ("dyn/obs0norm", f"{dynamics}.posterior_norm", "norm"),
        ("dyn/obslogit", f"{dynamics}.posterior.out", "linear"),
        ("dyn/prior0", f"{dynamics}.prior.mlp.0", "linear"),
        ("dyn/prior0norm", f"{dynamics}.prior.mlp.1", "norm"),
        ("dyn/prior1", f"{dynamics}.prior.mlp.3", "linear"),
        ("dyn/prior1norm", f"{dynamics}.prior.mlp.4", "norm"),
        ("dyn/priorlogit", f"{dynamics}.prior.out", "linear"),
    ]
    table += [("dec/mlp/linear0", f"{decoder}.mlp.0", "swapped"), *mlp("dec/mlp", f"{decoder}.mlp", 3)[1:]]
    table += [(f"dec/vec/{key}/pred", f"{decoder}.out.{key}", "linear") for key in ("position", "velocity")]
    for theirs, ours, layers, output in [
        ("rew", f"{model}.reward", 1, "logits"),
        ("con", f"{model}.proceed", 1, "logit"),
        ("val", "critic", 3, "logits"),
        ("slowval", "slow_critic", 3, "logits"),
    ]:
        table += [
            *mlp(f"{theirs}/mlp", f"{ours}.mlp", layers),
            (f"{theirs}/head/{output}", f"{ours}.out", "linear"),
        ]
    outputs = ["mean", "stddev"] if case.startswith("A") else ["logits"]
    table += mlp("pol/mlp", "actor.mlp", 3)
    table += [(f"pol/head/action/{name}", f"actor.out.{i}", "linear") for i, name in enumerate(outputs)]
    if case.startswith("B"):
        for i in range(4):
            table += [(f"enc/cnn{i}", f"{model}.encoder.conv.convs.{i}", "conv")]
            table += [(f"enc/cnn{i}norm", f"{model}.encoder.conv.norms.{i}", "norm")]
        for i, theirs in enumerate(["conv2", "conv1", "conv0", "imgout"]):
            table += [(f"dec/{theirs}", f"{decoder}.conv.convs.{i}", "conv")]
        for i, theirs in enumerate(["conv2norm", "conv1norm", "conv0norm"]):
            table += [(f"dec/{theirs}", f"{decoder}.conv.norms.{i}", "norm")]
        table += [
            ("dec/sp0", f"{decoder}.conv.from_deter", "blocks"),
            ("dec/sp2", f"{decoder}.conv.from_stoch.out", "linear"),
        ]
        table += [("dec/sp1", f"{decoder}.conv.from_stoch.mlp.0", "linear")]
        table += [
            ("dec/sp1norm", f"{decoder}.conv.from_stoch.mlp.1", "norm"),
            ("dec/spnorm", f"{decoder}.conv.norm", "norm"),
        ]
    return table


def translate(case: str, golden: dict[str, Tensor]) -> dict[str, Tensor]:
    """Official arrays by official name -> in our layout by our name; every array must have a place."""
    ours, rest = {}, set(golden)
    for theirs, module, layout in correspondence(case):
        kinds = {"scale": "weight"} if layout == "norm" else {"kernel": "weight", "bias": "bias"}
        for name, attribute in kinds.items():
            value = golden.get(f"{theirs}/{name}")
            if value is None:
                continue
            if name == "kernel":
                value = LAYOUTS[layout](value)
            if name == "bias" and layout == "blocks":
                value = value.unflatten(0, (8, -1))
            ours[f"{module}.{attribute}"] = value
            rest.discard(f"{theirs}/{name}")
    assert not rest, f"no place for {sorted(rest)}"
    return ours


# ---- running both sides -----------------------------------------------------------------------------


@cache
def load(name: str) -> dict[str, np.ndarray]:
    with np.load(FOLDER / f"{name}.npz") as file:
        return {key: file[key] for key in file.files}


class Golden:
    """One case in one precision: inputs in single precision, results in the precision asked for."""

    def __init__(self, case: str, double: bool):
        self.case, self.double = case, double
        self.dtype = torch.float64 if double else torch.float32
        self.results = load(case) | (load(f"{case}_f64") if double else {})

    def __getitem__(self, key: str) -> Tensor:
        value = torch.from_numpy(np.asarray(self.results[key]))
        return value.to(self.dtype) if value.is_floating_point() else value

    def __contains__(self, key: str) -> bool:
        return key in self.results

    def part(self, prefix: str) -> dict[str, Tensor]:
        """Everything below a prefix, by the rest of its name."""
        return {key.removeprefix(prefix): self[key] for key in self.results if key.startswith(prefix)}

    def updates(self) -> Golden:
        """The parameters after updates."""
        later = Golden(self.case, self.double)
        later.results = load(f"{self.case}_opt" + ("_f64" if self.double else ""))
        return later

    def actions(self, value: Tensor) -> Tensor:
        """Actions in our language: discrete ones are one-hot."""
        return value if self.case.startswith("A") else F.one_hot(value.long(), 5).to(self.dtype)

    def steps(self) -> Steps:
        """(B, T)."""
        keys = ["position", "velocity"] + ["image"] * self.case.startswith("B")
        obs = {key: self[f"batch/{key}"] for key in keys}
        flags = (self[f"batch/{name}"] for name in ("is_first", "is_last", "is_terminal"))
        return Steps(obs, self.actions(self["prevact/action"]), self["batch/reward"], *flags)

    def context(self) -> dict[str, Tensor]:
        """(B,) states before the first step."""
        return {"deter": self["init/deter"], "stoch": self["init/stoch"]}

    def agent(self, **options: Any) -> Dreamer:
        """Ours, with the official parameters."""
        preset = reference().agent
        rssm = replace(preset.model.rssm, deter=D, stoch=S, classes=K, hidden=16)
        config = replace(
            preset, model=replace(preset.model, rssm=rssm, units=16, depth=4), horizon=H, **options
        )
        boxes: dict[str, spaces.Space] = {
            "position": spaces.Box(-np.inf, np.inf, (5,)), "velocity": spaces.Box(-np.inf, np.inf, (3,))
        }  # fmt: skip
        action: spaces.Space = spaces.Box(-1, 1, (2,))
        if self.case.startswith("B"):
            boxes["image"], action = spaces.Box(0, 255, (64, 64, 3), np.uint8), spaces.Discrete(5)
        agent = Dreamer(config, spaces.Dict(boxes), action)
        parameters = translate(self.case, self.part("param/"))
        assert set(parameters) == {name for name, _ in agent.modules.named_parameters()}
        agent.modules.load_state_dict(parameters)
        agent.behaviour.returns.low = self["retnorm/lo"].clone()
        agent.behaviour.returns.high = self["retnorm/hi"].clone()
        return agent


class GoldenReplay:
    """Gives the golden batch again and again, after a step of context, and keeps what is written back."""

    def __init__(self, golden: Golden):
        self.steps, self.context = golden.steps(), golden.context()

    def sample(self, batch_size: int, length: int) -> Batch:
        steps = self.steps.map(lambda x: torch.cat([x[:, :1], x], 1))
        latents = {name: x.unsqueeze(1).expand(-1, T + 1, *x.shape[1:]) for name, x in self.context.items()}
        return Batch(steps, latents, (np.arange(B)[:, None], 100 * np.arange(B)[:, None] + np.arange(T + 1)))

    def write_latents(self, index: tuple[np.ndarray, np.ndarray], latents: dict[str, Tensor]) -> None:
        self.written = index, latents


@pytest.fixture(params=[False, True], ids=["float32", "float64"])
def double(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Whether everything is computed in double precision, ``.float()`` included."""
    if not request.param:
        yield False
        return
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    torch.set_default_dtype(torch.float64)
    yield True
    torch.set_default_dtype(torch.float32)


@pytest.fixture(autouse=True)
def _no_randomness(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mbrl.distributions, "one_hot_sample", one_hot_of)
    monkeypatch.setattr(BoundedNormal, "sample", lambda self, noise=None: self.mean + 0.5 * self.std)


def error(mine: Tensor, golden: Tensor) -> float:
    """Largest difference, relative to the largest element."""
    assert mine.shape == golden.shape, (mine.shape, golden.shape)
    return ((mine.detach() - golden).abs().max() / golden.abs().max().clamp_min(1e-30)).item()


def distance(mine: Tensor, golden: Tensor) -> float:
    """Norm of the difference, relative to the norm."""
    assert mine.shape == golden.shape, (mine.shape, golden.shape)
    return ((mine.detach() - golden).norm() / golden.norm().clamp_min(1e-30)).item()


def largest(errors: dict[str, float], tolerance: float) -> None:
    """Fails with a list of everything that is too far off."""
    off = {name: value for name, value in errors.items() if not value <= tolerance}
    assert not off, off


# ---- comparisons ------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_filtering(case: str, double: bool) -> None:
    """Tokens, states, both categoricals and every prediction of the world model."""
    golden = Golden(case, double)
    agent, steps = golden.agent(), golden.steps()
    model, dynamics = agent.world_model, agent.world_model.dynamics
    embed = model.encoder(steps.obs, lead=2)
    states, _ = dynamics.observe(embed, steps.action, steps.is_first, golden.context())
    features = dynamics.features(states)
    joint = dynamics.posterior_in(torch.cat([states["deter"], embed], -1))
    posterior = dynamics.posterior(F.silu(dynamics.posterior_norm(joint)))
    prior = dynamics.prior(states["deter"])
    reward = model.reward(features)
    mine = {
        "tokens": embed,
        "post/deter": states["deter"],
        "post/stoch": states["stoch"],
        "post/feat": features,
        "post/logit": posterior,
        "post/entropy": Categoricals(posterior).entropy(),
        "prior/logit": prior,
        "prior/entropy": Categoricals(prior).entropy(),
        "rew/logit": reward[..., :-1],
        "rew/pred": SymexpTwoHot(reward).mean,
        "con/logit": model.proceed(features).squeeze(-1),
        "con/prob": model.predict(features)[1],
    }
    mine |= {f"recon/{key}": value for key, value in model.decoder(features).items()}
    if double and "image" in steps.obs:
        del mine["recon/image"]  # stored in single precision only
    largest({key: error(value, golden[key]) for key, value in mine.items()}, 1e-12 if double else 1e-5)


@pytest.mark.parametrize("case", CASES)
def test_imagination(case: str, double: bool) -> None:
    """Rollouts from every posterior state, their returns, weights, advantages, and the actor on them."""
    golden = Golden(case, double)
    agent = golden.agent()
    start = {"deter": golden["post/deter"].flatten(0, 1), "stoch": golden["post/stoch"].flatten(0, 1)}
    imagined, policy = agent.behaviour._imagine(start)
    _, returns, _ = agent.behaviour._behaviour_losses(imagined, policy)
    value, slow_value = (
        SymexpTwoHot(net(imagined.features)).mean for net in (agent.behaviour.critic, agent.behaviour.slow_critic)
    )
    actor = agent.behaviour.actor(imagined.features)
    mine = {
        "img/feat": imagined.features,
        "img/action/action": imagined.action,
        "img/rew": imagined.reward,
        "img/con": imagined.proceed,
        "img/val": value,
        "img/slowval": slow_value,
        "img/ret": returns,
        "img/weight": imagined.proceed.cumprod(1),
        "img/retnorm_offset": agent.behaviour.returns.low,
        "img/retnorm_scale": agent.behaviour.returns.scale,
        "img/entropy/action": actor.entropy()[:, :-1],
        "img/logpi": actor.log_prob(imagined.action)[:, :-1],
    }
    if isinstance(actor, BoundedNormal):
        mine |= {"img/policy_mean/action": actor.mean, "img/policy_std/action": actor.std}
    expected = {key: golden[key] for key in mine}
    expected["img/action/action"] = golden.actions(expected["img/action/action"])
    errors = {key: error(x, expected[key]) for key, x in mine.items()}
    errors["img/adv"] = error((returns - value[:, :-1]) / agent.behaviour.returns.scale, golden["img/adv"])
    largest(errors, 1e-12 if double else 1e-5)


SCALES = {"rep": 0.1, "repval": 0.3}


@pytest.mark.parametrize("case", CASES)
def test_losses_and_gradients(case: str, double: bool) -> None:
    """Every loss per element and on average, and the gradient of their sum for every tensor."""
    golden = Golden(case, double)
    agent = golden.agent()
    losses, states, *_ = agent.losses(golden.steps(), golden.context())
    losses = {name.removeprefix("rec_"): loss / SCALES.get(name, 1.0) for name, loss in losses.items()}
    assert set(losses) == set(golden.part("lossmean/"))
    errors = {}
    for name, loss in losses.items():
        each = loss.mean(1).unflatten(0, (B, T)) if name in ("policy", "value") else loss
        errors[f"loss/{name}"] = error(each, golden[f"loss/{name}"])
        errors[f"lossmean/{name}"] = error(loss.mean(), golden[f"lossmean/{name}"])
    for name in ("policy", "value"):
        errors[f"img/{name}_loss_per_step"] = error(losses[name], golden[f"img/{name}_loss_per_step"])
    for name in ("deter", "stoch"):
        if f"replay_write/{name}" in golden:
            errors[f"replay_write/{name}"] = error(states[name], golden[f"replay_write/{name}"])
    total = torch.stack([SCALES.get(name, 1.0) * loss.mean() for name, loss in losses.items()]).sum()
    errors["loss_total"] = error(total, golden["loss_total"])
    largest(errors, 1e-12 if double else 1e-5)

    total.backward()
    gradients = {name: p.grad for name, p in agent.modules.named_parameters() if p.grad is not None}
    expected = translate(case, golden.part("grad/"))
    assert set(gradients) == set(expected)
    errors = {name: distance(gradients[name], g) for name, g in expected.items()}
    if case == "B_random" and not double:
        # In one max-pool window of 172032 the two best values are 4e-8 apart: rounding decides.
        assert errors.pop("world_model.encoder.conv.convs.0.weight") < 3e-3
    largest(errors, 1e-10 if double else 3e-5)


@pytest.mark.parametrize("setting", ["official", "fast"])
@pytest.mark.parametrize("case", CASES)
def test_updates(case: str, setting: str, double: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three updates: losses, return normaliser, parameters, the slow critic, moments, what is written back.

    Where gradients are rounding noise, the optimiser makes full steps of it: the untouched
    initialisation, whose value and reward are exactly zero, is good for one update, and even there a
    single element may go the other way, so its parameters are compared as a whole.
    """
    if double and case.endswith("default"):
        pytest.skip("the golden numbers hold no updates of the default cases in double precision")
    golden = Golden(case, double)
    later = golden.updates()
    agent = golden.agent(**{"official": {}, "fast": {"lr": 1e-3, "warmup": 0}}[setting])
    # The golden states are not compact.
    monkeypatch.setattr(agent.world_model, "recall", lambda steps, latents: latents)
    replay, errors = GoldenReplay(golden), {}
    updates = 3 if case.endswith("random") else 1
    for n in range(updates):
        metrics = agent.update(replay)  # type: ignore[arg-type]
        for name, expected in later.part(f"{setting}/lossmean/").items():
            key = f"train/loss/rec_{name}" if name in replay.steps.obs else f"train/loss/{name}"
            errors[f"{name} {n}"] = error(torch.as_tensor(metrics[key]) / SCALES.get(name, 1.0), expected[n])
        errors[f"low {n}"] = error(agent.behaviour.returns.low, later[f"{setting}/retnorm_lo"][n + 1])
        errors[f"high {n}"] = error(agent.behaviour.returns.high, later[f"{setting}/retnorm_hi"][n + 1])
        for name, expected in translate(case, later.part(f"{setting}/param{n + 1}/")).items():
            parameter = agent.modules.get_parameter(name)
            if updates == 3:
                errors[f"{name} {n}"] = error(parameter, expected)
            else:
                assert distance(parameter, expected) < 1e-3, name
        if n == 0:
            check_written(replay, golden)
    largest(errors, 1e-9 if double else 1e-4)
    if updates == 3:
        # The first moment weighs elements with a tiny gradient, which is mostly rounding, like all others.
        check_moments("mu", agent, translate(case, later.part(f"{setting}/mu3/")), 3e-3)
        check_moments("nu", agent, translate(case, later.part(f"{setting}/nu3/")), 3e-3)


def check_written(replay: GoldenReplay, golden: Golden) -> None:
    """The posterior states went to the steps after the context, as compact as the replay keeps them."""
    (env, time), latents = replay.written
    assert env.shape == (B, 1) and (time == 100 * np.arange(B)[:, None] + np.arange(1, T + 1)).all()
    assert torch.equal(latents["stoch"].long(), golden["post/stoch"].argmax(-1))
    assert error(latents["deter"].to(golden.dtype), golden["post/deter"]) < 1e-3


def check_moments(moment: str, agent: Dreamer, expected: dict[str, Tensor], tolerance: float) -> None:
    state = agent.optimiser.state
    errors = {
        name: distance(state[agent.modules.get_parameter(name)][moment], x) for name, x in expected.items()
    }
    if errors:
        largest(errors, tolerance)


@pytest.mark.parametrize("case", CASES)
def test_acting(case: str, double: bool) -> None:
    """Three steps in the environment from the initial state."""
    golden = Golden(case, double)
    agent, steps = golden.agent(), golden.steps()
    state, action = agent.initial_state(B), torch.zeros(B, agent.spec.size)
    errors = {}
    for t in range(3):
        step = steps[:, t]
        step = Steps(
            step.obs, action, step.reward, golden["acting/is_first"][t], step.is_last, step.is_terminal
        )
        action, state = agent.act(step, state, explore=True)
        errors[f"deter {t}"] = error(state["deter"], golden["acting/deter"][t])
        errors[f"stoch {t}"] = error(state["stoch"], golden["acting/stoch"][t])
        errors[f"action {t}"] = error(action, golden.actions(golden["acting/action"])[t])
    largest(errors, 1e-12 if double else 1e-5)
