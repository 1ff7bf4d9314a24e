"""What a GPU needs of the code, tested without one: an update on the device "meta", which holds no values."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from agents.action_values import ActionValues
from agents.dreamer import Dreamer, DreamerConfig, debug
from mbrl.cuda_graph import CudaGraph, tensors
from mbrl.replay import Replay, ReplayConfig
from mbrl.steps import Steps

B, T = 4, 8
VECTOR = {"state": spaces.Box(-np.inf, np.inf, (3,))}
BOTH = {**VECTOR, "image": spaces.Box(0, 255, (16, 16, 3), np.uint8), "mode": spaces.Discrete(3)}
BOX, DISCRETE = spaces.Box(-1, 1, (2,)), spaces.Discrete(3)
CONFIG = debug().agent
PATHWISE = replace(CONFIG, actor_gradient="pathwise", starts=5, return_debias=True)
ENSEMBLE = replace(CONFIG, actor_gradient="action_values", model=replace(CONFIG.model, family="ensemble"))
MEMORY = replace(ENSEMBLE, action_values=replace(ENSEMBLE.action_values, memory=True))
NORMALISED = replace(CONFIG, model=replace(CONFIG.model, norm="layer", normalise=True))
CASES = {
    "reinforce": (CONFIG, VECTOR, BOX),
    "pathwise": (PATHWISE, VECTOR, BOX),
    "ensemble": (ENSEMBLE, VECTOR, BOX),
    "discrete": (NORMALISED, VECTOR, DISCRETE),
    "images": (CONFIG, BOTH, BOX),
}


class StaysThere(TorchDispatchMode):
    """Refuses whatever mixes devices; numbers (tensors without dimensions) may come along."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        strangers = [leaf for leaf in found if leaf.device.type != "meta" and leaf.ndim]
        assert not strangers, f"{func} takes {strangers[0].shape} from the CPU"
        result = func(*args, **(kwargs or {}))
        copied = "copy" in str(func) and any(leaf.device.type != "meta" for leaf in found)
        assert not copied, f"{func} brings a number from the CPU"
        return result


def random_steps(observations: dict[str, Any], action: Any, device: str) -> Steps:
    obs = {key: torch.zeros(B, T, *space.shape, dtype=torch.from_numpy(np.empty(0, space.dtype)).dtype, device=device)
           for key, space in observations.items()}  # fmt: skip
    no = torch.zeros(B, T, dtype=torch.bool, device=device)
    size = action.n if isinstance(action, spaces.Discrete) else action.shape[0]
    values = torch.zeros(B, T, int(size), device=device), torch.zeros(B, T, device=device)
    return Steps(obs, *values, no, no.clone(), no.clone())


def update(config: DreamerConfig, observations: dict[str, Any], action: Any, first: Any = nullcontext) -> None:
    agent = Dreamer(config, spaces.Dict(observations), action, "meta")
    steps, context = random_steps(observations, action, "meta"), agent.world_model.initial_state(B)
    agent.learn(steps, context)  # constants that are kept are made here
    with first():
        latents, metrics = agent.learn(steps, context)
    assert all(value.device.type == "meta" for value in (*latents.values(), *tensors(metrics)))


@pytest.mark.parametrize("case", CASES)
def test_an_update_neither_waits_for_the_device_nor_brings_anything_to_it(case: str) -> None:
    """Asking "meta" for a value raises an error."""
    update(*CASES[case], first=StaysThere)


@pytest.mark.parametrize("config", [ENSEMBLE, MEMORY, replace(CONFIG, actor_gradient="action_values")])
def test_all_steps_of_action_values_stay_on_the_device(config: DreamerConfig) -> None:
    agent = Dreamer(config, spaces.Dict(VECTOR), BOX, "meta")
    values, steps = agent.behaviour, random_steps(VECTOR, BOX, "meta")[:, :2]
    assert isinstance(values, ActionValues)
    latents = {name: torch.zeros(B, 2, *shape, dtype=kind, device="meta")
               for name, (shape, kind) in agent.latent_spec().items()}  # fmt: skip
    starts = steps[:, :1], {name: value[:, :1] for name, value in latents.items()}
    for first in (nullcontext, StaysThere):
        for learn in (values.learn, values.wonder)[: 1 + values.world_model.doubts]:
            with first():
                metrics, alike = learn(*starts, steps, latents)
            assert len(metrics) == 5 and all(value.device.type == "meta" for value in (*tensors(metrics), alike))


def test_all_that_learns_is_recorded_and_anew_when_tensors_are_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded: list[Any] = []
    monkeypatch.setattr(Dreamer, "_recorded", lambda self, learn: recorded.append(learn) or learn)
    agent = Dreamer(ENSEMBLE, spaces.Dict(VECTOR), BOX)
    for _ in range(2):
        in_use = (agent.behaviour.learn, agent.behaviour.wonder, agent.learn)  # type: ignore[attr-defined]
        assert len(recorded) == 3 and all(one is other for one, other in zip(recorded, in_use, strict=True))
        recorded.clear()
        agent.load_state_dict(agent.state_dict())


def test_the_guard_notices() -> None:
    x = torch.zeros(3, device="meta")
    with StaysThere():
        with pytest.raises(AssertionError, match="brings a number"):
            torch.zeros(3, device="meta").copy_(torch.tensor(1.0))
        with pytest.raises(AssertionError, match="from the CPU"):
            x.add(torch.ones(3))
        with pytest.raises(RuntimeError):
            x.sum().item()


# ---- recording ---------------------------------------------------------------------------------------


class Recording:
    """Stands for a CUDA graph: knows the function, and does it again in the same memory."""

    def __init__(self) -> None:
        self.again: Any = None

    def replay(self) -> None:
        self.again()


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CudaGraph can be made without CUDA."""
    stream = type("Stream", (), {"wait_stream": lambda *_: None})
    for name, value in (("Stream", stream), ("current_stream", stream), ("synchronize", lambda: None),
                        ("stream", lambda _: nullcontext()), ("CUDAGraph", Recording),
                        ("graph", lambda _: nullcontext())):  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, value)


def test_a_recording_is_fed_through_the_memory_it_was_made_with(pretended: None) -> None:
    calls = []

    def double(steps: dict[str, Tensor], shift: Tensor) -> dict[str, Tensor]:
        calls.append(None)
        return {"y": 2 * steps["x"] + shift}

    recorded = CudaGraph(double, warmup=2)
    for n in range(2):
        assert recorded({"x": torch.tensor(1.0 * n)}, torch.tensor(0.5))["y"] == 2 * n + 0.5
    first = torch.tensor(7.0)
    assert recorded.graph is None and len(calls) == 2

    def again() -> None:
        steps, shift = recorded.inputs
        recorded.outputs["y"].copy_(2 * steps["x"] + shift)

    recorded._record(({"x": first}, torch.tensor(0.0)))
    recorded.graph.again = again
    assert recorded({"x": torch.tensor(3.0)}, torch.tensor(1.0))["y"] == 7
    assert recorded({"x": torch.tensor(5.0)}, torch.tensor(1.0))["y"] == 11
    assert len(calls) == 3 and first == 5


def test_tensors_of_a_nest_keep_their_order() -> None:
    steps = random_steps(BOTH, BOX, "cpu")
    found = list(tensors((steps, {"a": torch.ones(1)}, 3.0)))
    assert found[0] is steps.obs["state"] and found[3] is steps.action and found[-1] == 1 and len(found) == 9


# ---- precision ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_bfloat16_changes_losses_and_gradients_a_little(case: str) -> None:
    """Parameters, gradients, states and losses stay float32."""
    config, observations, action = CASES[case]
    found = []
    for precision in ("float32", "bfloat16"):
        torch.manual_seed(0)
        agent = Dreamer(replace(config, precision=precision), spaces.Dict(observations), action)
        context = agent.world_model.initial_state(B)
        steps = random_steps(observations, action, "cpu")
        steps.obs["state"].normal_()
        with agent._precision():
            losses, states, *_ = agent.losses(steps, context)
        total = torch.stack([value.mean() for value in losses.values()]).sum()
        total.backward()
        gradients = [parameter.grad for parameter in agent.modules.parameters() if parameter.grad is not None]
        assert {value.dtype for value in (*losses.values(), *states.values(), *gradients)} == {torch.float32}
        found.append((total.item(), torch.cat([gradient.flatten() for gradient in gradients])))
    (plain, plain_gradient), (low, low_gradient) = found
    assert low != plain and low == pytest.approx(plain, rel=0.02)
    assert torch.cosine_similarity(plain_gradient, low_gradient, dim=0) > 0.9


# ---- replay ------------------------------------------------------------------------------------------


def test_a_replay_too_large_for_the_device_stays_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (100_000, 200_000))
    replay = Replay(spaces.Dict(VECTOR), 2, 1, None, ReplayConfig(capacity=4096), device="cuda")
    assert replay.device.type == "cpu" and replay.pinned
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10_000_000, 20_000_000))
    assert replay._fits(torch.device("cuda"))

