"""RSSM: observing, filtering and imagining are one model, resets forget, gradients get where they should.

Sampling is off (arg max) unless a test is about it. Letters as in mbrl/dynamics/rssm.py.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import mbrl.distributions
from mbrl.distributions import one_hot_of
from mbrl.dynamics.rssm import RSSM, RSSMConfig, State

B, T, E, A = 3, 6, 10, 2
CONFIG = RSSMConfig(deter=32, stoch=3, classes=4, hidden=8, blocks=4)


@pytest.fixture(autouse=True)
def _no_randomness(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mbrl.distributions, "one_hot_sample", one_hot_of)


@pytest.fixture(params=["rms", "layer"])
def rssm(request: pytest.FixtureRequest) -> RSSM:
    model = RSSM(CONFIG, E, A, request.param)
    with torch.no_grad():  # leave the initialisation, where biases are zero
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return model


def sequences() -> tuple[Tensor, Tensor, Tensor]:
    """embed (B, T, E), action (B, T, A), is_first (B, T) with resets here and there."""
    is_first = torch.zeros(B, T, dtype=torch.bool)
    is_first[0, 0] = is_first[1, 3] = True
    return torch.randn(B, T, E), torch.randn(B, T, A), is_first


def some_state(model: RSSM, n: int = B) -> State:
    """(n,) a state in the middle of an episode."""
    state = model.initial_state(n)
    for _ in range(3):
        state = model.step(state, torch.randn(n, A))
    return {name: value.detach() for name, value in state.items()}


def same(a: State, b: State) -> None:
    assert set(a) == set(b)
    for name in a:
        torch.testing.assert_close(a[name], b[name])


def at(states: State, *index: int | slice) -> State:
    return {name: value[index] for name, value in states.items()}


ALL = slice(None)


def test_observing_is_filtering_step_by_step(rssm: RSSM) -> None:
    embed, action, is_first = sequences()
    state = some_state(rssm)
    states, _ = rssm.observe(embed, action, is_first, state)
    for t in range(T):
        state = rssm.filter(state, embed[:, t], action[:, t], is_first[:, t])
        same(state, at(states, ALL, t))


def test_the_scan_is_the_loop_with_its_gradient_written_out(rssm: RSSM) -> None:
    """Everything that comes out, and the gradient of everything that goes in."""
    embed, action, is_first = sequences()
    state = {name: value.double().requires_grad_() for name, value in some_state(rssm).items()}
    rssm.double()
    inputs = [embed.double().requires_grad_(), action.double().requires_grad_(), *state.values(), *rssm.parameters()]
    results = []
    for fused in (True, False):
        rssm.fused = fused
        torch.manual_seed(0)
        states, losses = rssm.observe(inputs[0], inputs[1], is_first, state)
        outputs = {**states, **losses}
        total = torch.stack([(value * torch.randn_like(value)).sum() for value in outputs.values()]).sum()
        results.append((outputs, torch.autograd.grad(total, inputs)))
    (outputs, gradients), (expected, others) = results
    for name in outputs:
        torch.testing.assert_close(outputs[name], expected[name], rtol=1e-12, atol=1e-12)
    for gradient, other in zip(gradients, others, strict=True):
        assert gradient.abs().max() > 0
        torch.testing.assert_close(gradient, other, rtol=1e-9, atol=1e-9)


def test_more_hidden_layers_in_the_posterior_go_through_the_loop() -> None:
    model = RSSM(replace(CONFIG, posterior_layers=2), E, A)
    embed, action, is_first = sequences()
    states, _ = model.observe(embed, action, is_first, model.initial_state(B))
    assert states["deter"].shape == (B, T, 32)


def test_filtering_and_imagining_share_the_recurrence(rssm: RSSM) -> None:
    """Only the latents differ: posterior here, prior there."""
    embed, action, _ = sequences()
    state = some_state(rssm)
    filtered = rssm.filter(state, embed[:, 0], action[:, 0], torch.zeros(B, dtype=torch.bool))
    imagined = rssm.step(state, action[:, 0])
    torch.testing.assert_close(filtered["deter"], imagined["deter"])
    prior = rssm.prior(filtered["deter"])
    assert torch.equal(imagined["stoch"].argmax(-1), prior.argmax(-1))


def test_the_posterior_sees_the_observation_and_the_past(rssm: RSSM) -> None:
    embed, action, no = torch.randn(64, E), torch.randn(64, A), torch.zeros(64, dtype=torch.bool)
    state = some_state(rssm, 64)
    stoch = rssm.filter(state, embed, action, no)["stoch"]
    assert not torch.equal(stoch, rssm.filter(state, 3 * torch.randn(64, E), action, no)["stoch"])
    assert not torch.equal(stoch, rssm.filter(some_state(rssm, 64), embed, action, no)["stoch"])


def test_a_first_step_forgets_state_and_action(rssm: RSSM) -> None:
    embed, first = torch.randn(B, E), torch.ones(B, dtype=torch.bool)
    fresh = rssm.filter(rssm.initial_state(B), embed, torch.zeros(B, A), ~first)
    same(rssm.filter(some_state(rssm), embed, torch.randn(B, A), first), fresh)


def test_nothing_before_a_reset_reaches_what_comes_after(rssm: RSSM) -> None:
    """Neither values nor gradients."""
    embed, action, is_first = sequences()
    is_first[:] = False
    is_first[:, 3] = True
    embed.requires_grad_(True)
    states, losses = rssm.observe(embed, action, is_first, some_state(rssm))
    later, _ = rssm.observe(embed[:, 3:], action[:, 3:], is_first[:, 3:], rssm.initial_state(B))
    same(at(states, ALL, slice(3, None)), later)
    (rssm.features(states)[:, 3:].square().sum() + losses["rep"][:, 3:].sum()).backward()
    assert embed.grad is not None
    assert (embed.grad[:, :3] == 0).all() and (embed.grad[:, 3:] != 0).any()


def test_sequences_of_a_batch_do_not_mix(rssm: RSSM) -> None:
    embed, action, is_first = sequences()
    state = some_state(rssm)
    states, losses = rssm.observe(embed, action, is_first, state)
    for b in range(B):
        one = slice(b, b + 1)
        alone, alone_losses = rssm.observe(embed[one], action[one], is_first[one], at(state, one))
        same(alone, at(states, one))
        same(alone_losses, at(losses, one))


def test_gradient_reaches_actions_through_imagination(rssm: RSSM) -> None:
    """What pathwise actors need: the last feature moves with the first action."""
    action = torch.zeros(B, A, requires_grad=True)
    state = rssm.step(some_state(rssm), action)
    for _ in range(3):
        state = rssm.step(state, torch.zeros(B, A))
    state["stoch"][..., 0].sum().backward()
    assert action.grad is not None and (action.grad != 0).all()


def test_actions_beyond_one_count_as_one(rssm: RSSM) -> None:
    state = some_state(rssm)
    far, near = torch.tensor([[7.0, -0.5]]).expand(B, A), torch.tensor([[1.0, -0.5]]).expand(B, A)
    same(rssm.step(state, far), rssm.step(state, near))


def test_latent_losses_stop_the_gradient_on_one_side() -> None:
    """dyn trains the prior alone, rep the posterior alone (and the recurrence that both share)."""
    model = RSSM(RSSMConfig(deter=32, stoch=3, classes=4, hidden=8, blocks=4, free_nats=0.0), E, A)
    embed, action, is_first = sequences()
    for loss, trained, untouched in (
        ("dyn", model.prior, model.posterior),
        ("rep", model.posterior, model.prior),
    ):
        model.zero_grad()
        # One step: later ones depend on the posterior through its samples.
        _, losses = model.observe(embed[:, :1], action[:, :1], is_first[:, :1], model.initial_state(B))
        losses[loss].sum().backward()
        assert trained.out.weight.grad is not None and trained.out.weight.grad.abs().sum() > 0
        gradient = untouched.out.weight.grad
        assert gradient is None or (gradient == 0).all()


def test_free_nats_cost_nothing_and_teach_nothing(rssm: RSSM) -> None:
    rssm.config = RSSMConfig(deter=32, stoch=3, classes=4, hidden=8, blocks=4, free_nats=1e3)
    embed, action, is_first = sequences()
    _, losses = rssm.observe(embed, action, is_first, rssm.initial_state(B))
    assert (losses["dyn"] == 1e3).all() and (losses["rep"] == 1e3).all()
    (losses["dyn"] + losses["rep"]).sum().backward()
    assert all((p.grad == 0).all() for p in rssm.parameters() if p.grad is not None)


def test_shapes(rssm: RSSM) -> None:
    embed, action, is_first = sequences()
    states, losses = rssm.observe(embed, action, is_first, rssm.initial_state(B))
    assert states["deter"].shape == (B, T, 32) and states["stoch"].shape == (B, T, 3, 4)
    assert losses["dyn"].shape == losses["rep"].shape == (B, T)
    assert rssm.features(states).shape == (B, T, 32 + 12) and sum(rssm.feature_sizes) == 44
    torch.testing.assert_close(states["stoch"].sum(-1), torch.ones(B, T, 3))


def test_blocks_do_not_see_each_others_deter() -> None:
    """Except through the shared layers: with those at zero, a block is on its own."""
    model = RSSM(CONFIG, E, A)
    with torch.no_grad():
        for part in (model.deter_in, model.stoch_in, model.action_in):
            for p in part.parameters():
                p.zero_()
    state = some_state(model, 1)
    deter = state["deter"].clone().requires_grad_(True)
    # The norm runs over all blocks; take it out to see the connections.
    model.mix_norm = torch.nn.Identity()
    model.step({"deter": deter, "stoch": state["stoch"]}, torch.zeros(1, A))["deter"][0, :8].sum().backward()
    assert deter.grad is not None
    assert (deter.grad[0, :8] != 0).all() and (deter.grad[0, 8:] == 0).all()


def test_latents_are_drawn_at_random(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    model = RSSM(CONFIG, E, A)
    state = model.step(model.initial_state(400), torch.zeros(400, A))
    frequencies = state["stoch"].mean(0)
    expected = model._latents(model.prior(state["deter"][:1])).probs[0]
    torch.testing.assert_close(frequencies, expected, rtol=0, atol=0.1)
