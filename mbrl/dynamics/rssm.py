"""RSSM: the recurrent state-space model of DreamerV3, a family of dynamics.

    deter    h_t = f(h_{t-1}, z_{t-1}, a_t)      block-GRU, a_t the action that led to x_t
    prior    z^_t ~ p(z^_t | h_t)                what is imagined
    posterior  z_t ~ q(z_t | h_t, x_t)           what is observed

Letters: B sequences, T steps, N rollouts, D deterministic units, S x K latent variables x classes,
G blocks, E embedding, A action. Source: Hafner et al., "Mastering diverse control tasks through world
models" (Nature, 2025), eq. 3, and the official code.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mbrl.distributions import Categoricals, categorical_kl
from mbrl.dynamics.scan import find_resets, scan
from mbrl.errors import UserError, check_least
from mbrl.interfaces import State
from mbrl.networks import MLP, BlockLinear, Head, Linear, linear, make_norm, tanh


@dataclass(frozen=True)
class RSSMConfig:
    deter: int = 512
    """D: deterministic units of the block-GRU."""
    stoch: int = 32
    """S: latent variables."""
    classes: int = 4
    """K: classes of each latent variable."""
    hidden: int = 64
    """Units of the layers around the GRU, of prior and posterior."""
    blocks: int = 8
    """G: blocks of the GRU; D divides by it."""
    prior_layers: int = 2
    """Hidden layers of the prior."""
    posterior_layers: int = 1
    """Hidden layers of the posterior; the first sees the embedding."""
    unimix: float = 0.01
    """Share of every categorical that is uniform."""
    free_nats: float = 1.0
    """KL below which a step costs nothing."""


def _check(config: RSSMConfig) -> None:
    """Raises:
    UserError: a number that nothing could be done with.
    """
    counts = ("deter", "stoch", "hidden", "blocks", "posterior_layers")
    check_least(config, "--config.model.rssm", {**dict.fromkeys(counts, 1), "classes": 2, "prior_layers": 0})
    if config.deter % config.blocks:
        raise UserError(f"--config.model.rssm.deter is {config.deter}; it must divide by its blocks, {config.blocks}")
    if config.classes > 256:
        raise UserError(f"--config.model.rssm.classes is {config.classes}; at most 256 fit into the byte kept of each")


class RSSM(nn.Module):
    """Implements interfaces.Dynamics.

    Args:
        config: sizes.
        embed_size: E.
        action_size: A.
        norm: "rms" or "layer".

    Raises:
        UserError: a number of ``config`` that nothing could be done with.
    """

    def __init__(self, config: RSSMConfig, embed_size: int, action_size: int, norm: str = "rms"):
        super().__init__()
        _check(config)
        self.config = config
        c, latent = config, config.stoch * config.classes
        self.feature_sizes = (c.deter, latent)
        self.fused = True  # False: filter sequences by the plain loop
        self.deter_in = MLP(c.deter, c.hidden, 1, norm)
        self.stoch_in = MLP(latent, c.hidden, 1, norm)
        self.action_in = MLP(action_size, c.hidden, 1, norm)
        self.mix = BlockLinear(c.deter + c.blocks * 3 * c.hidden, c.deter, c.blocks)
        self.mix_norm = make_norm(norm, c.deter)
        self.gates = BlockLinear(c.deter, 3 * c.deter, c.blocks)
        self.prior = Head(c.deter, (c.stoch, c.classes), c.hidden, c.prior_layers, norm=norm)
        self.posterior_in = Linear(c.deter + embed_size, c.hidden)
        self.posterior_norm = make_norm(norm, c.hidden)
        self.posterior = Head(c.hidden, (c.stoch, c.classes), c.hidden, c.posterior_layers - 1, norm=norm)

    def initial_state(self, n: int) -> State:
        """deter (n, D) and stoch (n, S, K), all zero."""
        c, weight = self.config, self.gates.weight
        return {"deter": weight.new_zeros(n, c.deter), "stoch": weight.new_zeros(n, c.stoch, c.classes)}

    def features(self, state: State) -> Tensor:
        """(..., F): everything that heads and agents see; F = D + S K."""
        return torch.cat([state["deter"], state["stoch"].flatten(-2)], -1)

    def step(self, state: State, action: Tensor) -> State:
        """One imagined step: (N,) states and actions (N, A) -> (N,) states drawn from the prior."""
        deter = self._recur(state["deter"], state["stoch"], self._action(action))
        return {"deter": deter, "stoch": self._latents(self.prior(deter)).sample()}

    def filter(self, state: State, embed: Tensor, action: Tensor, is_first: Tensor) -> State:
        """One observed step: embed (N, E), the action (N, A) that led to it, is_first (N,)."""
        state, action = forget(state, is_first), action * (~is_first).unsqueeze(-1)
        from_deter, from_embed = self._posterior_weights()
        deter, stoch, _ = self._filter(state, self._embed(embed, from_embed), self._action(action), from_deter)
        return {"deter": deter, "stoch": stoch}

    def observe(
        self, embed: Tensor, action: Tensor, is_first: Tensor, state: State
    ) -> tuple[State, dict[str, Tensor]]:
        """Filter sequences.

        Args:
            embed: (B, T, E) encoded observations.
            action: (B, T, A), each the one that led to its observation.
            is_first: (B, T) bool; a first step forgets state and action.
            state: (B,) before the first step.

        Returns:
            The posterior states (B, T), and the losses "dyn" and "rep" (B, T): KL of the posterior
            to the prior, at least ``free_nats``, with the gradient stopped on one side (eq. 5).
        """
        # What does not depend on the recursion is computed for all steps at once.
        from_deter, from_embed = self._posterior_weights()
        embeds = self._embed(embed, from_embed)
        actions = self._action(action * (~is_first).unsqueeze(-1))
        if self.fused and self.config.posterior_layers == 1:
            deter, stoch, logits = scan(self, embeds, actions, is_first, state["deter"], state["stoch"])
        else:
            deter, stoch, logits = self._loop(embeds, actions, is_first, state, from_deter)
        return {"deter": deter, "stoch": stoch}, self._kl(logits, self.prior(deter))

    def _loop(
        self, embeds: Tensor, actions: Tensor, is_first: Tensor, state: State, from_deter: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Posterior deter (B, T, D), stoch (B, T, S, K) and logits, step by step; ``scan`` does it faster."""
        resets, steps = find_resets(is_first), []
        for t in range(len(resets)):
            if resets[t]:
                state = forget(state, is_first[:, t])
            deter, stoch, logit = self._filter(state, embeds[:, t], actions[:, t], from_deter)
            state = {"deter": deter, "stoch": stoch}
            steps.append((deter, stoch, logit))
        deters, stochs, logits = (torch.stack(parts, 1) for parts in zip(*steps, strict=True))
        return deters, stochs, logits

    def _kl(self, posterior: Tensor, prior: Tensor) -> dict[str, Tensor]:
        q, p = self._latents(posterior), self._latents(prior)
        free = self.config.free_nats
        dyn = categorical_kl(self._latents(posterior.detach()), p).clamp_min(free)
        rep = categorical_kl(q, self._latents(prior.detach())).clamp_min(free)
        return {"dyn": dyn, "rep": rep}

    def _filter(
        self, state: State, embed: Tensor, action: Tensor, from_deter: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Posterior deter (n, D), stoch (n, S, K), logit (n, S, K) from the layers' inputs."""
        deter = self._recur(state["deter"], state["stoch"], action)
        x = linear(deter, from_deter) + embed
        logit = self.posterior(F.silu(self.posterior_norm(x)))
        return deter, self._latents(logit).sample(), logit

    def _latents(self, logit: Tensor) -> Categoricals:
        return Categoricals(logit, self.config.unimix)

    def _posterior_weights(self) -> tuple[Tensor, Tensor]:
        """The posterior's first layer: its weights for deter and for the embedding."""
        deter, embed = self.posterior_in.weight.tensor_split([self.config.deter], 1)
        return deter, embed

    def _embed(self, embed: Tensor, weight: Tensor) -> Tensor:
        """(..., E) -> (..., hidden): the embedding's share of the posterior's first layer."""
        return linear(embed, weight, self.posterior_in.bias)

    def _action(self, action: Tensor) -> Tensor:
        """(..., A) -> (..., hidden); actions beyond 1 are scaled back, their gradient is not."""
        x: Tensor = self.action_in(action / action.detach().abs().clamp_min(1.0))
        return x

    def _recur(self, deter: Tensor, stoch: Tensor, action: Tensor) -> Tensor:
        """h' = u tanh(r c) + (1 - u) h, the gates r, c, u of a block from that block and all inputs."""
        blocks = deter.unflatten(-1, (self.config.blocks, -1))  # (n, G, D / G)
        inputs = torch.cat([self.deter_in(deter), self.stoch_in(stoch.flatten(-2)), action], -1)
        x = self.mix(blocks, inputs).flatten(-2)
        x = F.silu(self.mix_norm(x)).unflatten(-1, (self.config.blocks, -1))
        reset, candidate, update = self.gates(x).chunk(3, -1)
        candidate = tanh(torch.sigmoid(reset) * candidate)
        return torch.lerp(blocks, candidate, (update - 1).sigmoid_()).flatten(-2)


def forget(state: State, is_first: Tensor) -> State:
    """Zeros where an episode begins: states (N,), is_first (N,)."""
    keep = (~is_first).float()
    return {name: value * keep.view(-1, *[1] * (value.ndim - 1)) for name, value in state.items()}
