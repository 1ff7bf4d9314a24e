"""The RSSM's loop over a sequence with its gradient written out by hand.

It computes what the plain loop in ``RSSM.observe`` computes, and autograd the same gradients; but a
handful of small operations per step and parameter (its product, its sum, its accumulation) become one
large operation for the whole sequence. The plain loop is what to read, and what tests compare this with.

Letters as in rssm.py; g_x is the gradient of the loss with respect to x.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mbrl.distributions import Categoricals, full_precision
from mbrl.networks import tanh, to_unit_length, to_unit_length_backward

if TYPE_CHECKING:
    from mbrl.dynamics.rssm import RSSM

aten = torch.ops.aten


def scan(
    rssm: RSSM, embeds: Tensor, actions: Tensor, is_first: Tensor, deter: Tensor, stoch: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Filter sequences.

    Args:
        rssm: with a single hidden layer in the posterior.
        embeds, actions: (B, T, hidden), the hidden layers that see no state.
        is_first: (B, T).
        deter: (B, D) before the first step.
        stoch: (B, S, K) likewise.

    Returns:
        Posterior deter (B, T, D), stoch (B, T, S, K) and logits (B, T, S, K).
    """
    parameters = [p for layer in _layers(rssm) for p in layer]
    with full_precision(deter):
        result: tuple[Tensor, Tensor, Tensor] = Scan.apply(rssm, embeds, actions, is_first, deter, stoch, *parameters)
    return result


def _layers(rssm: RSSM) -> list[list[Tensor]]:
    """The parameters inside the loop, layer by layer, in the order of their gradients in ``Scan.backward``."""
    (deter_in, deter_norm, _), (stoch_in, stoch_norm, _) = rssm.deter_in, rssm.stoch_in
    from_deter, _ = rssm._posterior_weights()
    norms = (deter_norm, stoch_norm, rssm.mix_norm, rssm.posterior_norm)
    layers: list[list[Any]] = [
        [deter_in.weight, deter_in.bias],
        [stoch_in.weight, stoch_in.bias],
        [rssm.mix.weight, rssm.mix.bias],
        [rssm.gates.weight, rssm.gates.bias],
        [from_deter],
        [rssm.posterior.out.weight, rssm.posterior.out.bias],
        *([*norm.parameters()] for norm in norms),
    ]
    return layers


class NormSiLU:
    """SiLU of a normalised tensor, step by step; keeps what its gradient needs."""

    def __init__(self, norm: nn.Module):
        self.weight: Tensor = norm.weight  # type: ignore[assignment]
        self.bias: Tensor | None = getattr(norm, "bias", None)
        self.eps: float = norm.eps  # type: ignore[assignment]
        self.scale = self.weight * math.sqrt(len(self.weight))
        self.saved: list[tuple[Tensor, ...]] = []
        self.gradients: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        if self.bias is not None:
            y, mean, rstd = aten.native_layer_norm(x, x.shape[-1:], self.weight, self.bias, self.eps)
            self.saved.append((x, mean, rstd, y))
        else:
            unit, inverse = to_unit_length(x, self.eps)
            y = unit * self.scale
            self.saved.append((unit, inverse, y))
        return F.silu(y)

    def backward(self, g: Tensor, t: int) -> Tensor:
        """g_x of step t; steps come last to first."""
        g = aten.silu_backward(g, self.saved[t][-1])
        self.gradients.append(g)
        if self.bias is not None:
            x, mean, rstd, _ = self.saved[t]
            only_x = [True, False, False]
            dx: Tensor = aten.native_layer_norm_backward(
                g, x, x.shape[-1:], mean, rstd, self.weight, self.bias, only_x
            )[0]
            return dx
        unit, inverse, _ = self.saved[t]
        return to_unit_length_backward(g * self.scale, unit, inverse)

    def parameter_gradients(self) -> list[Tensor]:
        g = torch.cat(self.gradients[::-1])
        saved = [torch.cat(parts) for parts in zip(*self.saved, strict=True)]
        if self.bias is None:
            return [(g * saved[0]).sum(0) * math.sqrt(len(self.weight))]
        x, mean, rstd, _ = saved
        not_x = [False, True, True]
        _, weight, bias = aten.native_layer_norm_backward(
            g, x, x.shape[-1:], mean, rstd, self.weight, self.bias, not_x
        )
        return [weight, bias]


class Step(NamedTuple):
    """What a step's gradient needs."""

    before: Tensor  # deter (B, D)
    stoch: Tensor  # (B, S K) before
    inputs: Tensor  # (B, 3 hidden) of deter, stoch and action
    x: Tensor  # (B, D) before the gates
    reset: Tensor  # (G, B, D / G), the gates and
    candidate: Tensor
    update: Tensor
    new: Tensor  # tanh(reset candidate)
    after: Tensor  # deter (B, D)
    y: Tensor  # (B, hidden) before the logits
    probs: Tensor  # (B, S, K)


class Gradient(NamedTuple):
    """Of what a step's linear layers put out, and of the action's hidden layer."""

    deter: Tensor
    stoch: Tensor
    mix: Tensor
    gates: Tensor
    posterior: Tensor
    logit: Tensor
    action: Tensor


class Scan(torch.autograd.Function):
    """See ``scan``."""

    @staticmethod
    def forward(
        ctx: Any, rssm: RSSM, embeds: Tensor, actions: Tensor, is_first: Tensor, deter: Tensor, stoch: Tensor,
        *parameters: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        c = rssm.config
        blocks, latent = c.blocks, c.stoch * c.classes
        weights = Weights(rssm, parameters)
        norms = [NormSiLU(n) for n in (rssm.deter_in[1], rssm.stoch_in[1], rssm.mix_norm, rssm.posterior_norm)]
        deter_norm, stoch_norm, mix_norm, posterior_norm = norms
        steps: list[Step] = []
        outputs: list[tuple[Tensor, Tensor, Tensor]] = []
        resets, keep = find_resets(is_first), (~is_first).to(deter.dtype)
        h, z = deter, stoch.flatten(-2)
        for t, (embed, action) in enumerate(zip(embeds.unbind(1), actions.unbind(1), strict=True)):
            if resets[t]:
                h, z = h * keep[:, t : t + 1], z * keep[:, t : t + 1]
            a = deter_norm.forward(torch.addmm(weights.deter_bias, h, weights.deter.T))
            b = stoch_norm.forward(torch.addmm(weights.stoch_bias, z, weights.stoch.T))
            inputs = torch.cat([a, b, action], -1)
            own = torch.bmm(split(h, blocks), weights.mix_own)
            x = mix_norm.forward(torch.addmm(join(own) + weights.mix_bias, inputs, weights.mix_shared))
            reset, candidate, update = torch.baddbmm(weights.gates_bias, split(x, blocks), weights.gates).chunk(3, -1)
            reset, update = torch.sigmoid(reset), torch.sigmoid(update)
            new = tanh(reset * candidate)
            before, after = h, join(torch.lerp(split(h, blocks), new, update))
            y = posterior_norm.forward(torch.addmm(embed, after, weights.from_deter.T))
            logit = torch.addmm(weights.out_bias, y, weights.out.T).unflatten(-1, (c.stoch, c.classes))
            latents = Categoricals(logit, c.unimix)
            steps.append(Step(before, z, inputs, x, reset, candidate, update, new, after, y, latents.probs))
            h, z = after, latents.sample().reshape(-1, latent)
            outputs.append((h, z.view_as(logit), logit))
        ctx.rssm, ctx.weights, ctx.norms, ctx.steps, ctx.resets, ctx.keep = rssm, weights, norms, steps, resets, keep
        deters, stochs, logits = (torch.stack(parts, 1) for parts in zip(*outputs, strict=True))
        return deters, stochs, logits

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        g_deters, g_stochs, g_logits = gradients
        c, weights, steps, resets, keep = ctx.rssm.config, ctx.weights, ctx.steps, ctx.resets, ctx.keep
        deter_norm, stoch_norm, mix_norm, posterior_norm = ctx.norms
        blocks, mixed = c.blocks, 1 - c.unimix
        g_h, g_z = torch.zeros_like(g_deters[:, 0]), torch.zeros_like(g_stochs[:, 0]).flatten(-2)
        found: list[Gradient] = []
        for t in reversed(range(len(steps))):
            s: Step = steps[t]
            soft = (s.probs - c.unimix / c.classes) / mixed
            g = mixed * (g_z.view_as(soft) + g_stochs[:, t])  # straight through the sample
            g = torch.addcmul(g_logits[:, t], soft, g - (g * soft).sum(-1, keepdim=True))
            g_logit = g.flatten(-2)
            g_posterior = posterior_norm.backward(g_logit @ weights.out, t)
            g_h = torch.addmm(g_h + g_deters[:, t], g_posterior, weights.from_deter)

            g = split(g_h, blocks)
            g_new = g * s.update
            g_update = aten.sigmoid_backward(g * (s.new - split(s.before, blocks)), s.update)
            g_tanh = aten.tanh_backward(g_new, s.new)
            g_reset = aten.sigmoid_backward(g_tanh * s.candidate, s.reset)
            g_gates = torch.cat([g_reset, g_tanh * s.reset, g_update], -1)
            g_mix = mix_norm.backward(join(torch.bmm(g_gates, weights.gates.mT)), t)

            g_inputs = g_mix @ weights.mix_shared.T
            g_deter, g_stoch, g_action = g_inputs.split(c.hidden, -1)
            g_deter, g_stoch = deter_norm.backward(g_deter, t), stoch_norm.backward(g_stoch, t)
            g_h = join(torch.baddbmm(g - g_new, split(g_mix, blocks), weights.mix_own.mT))
            g_h, g_z = torch.addmm(g_h, g_deter, weights.deter), g_stoch @ weights.stoch
            if resets[t]:
                g_h, g_z = g_h * keep[:, t : t + 1], g_z * keep[:, t : t + 1]
            found.append(Gradient(g_deter, g_stoch, g_mix, join(g_gates), g_posterior, g_logit, g_action))

        # Gradients of the parameters, from all steps at once: T times B rows.
        found.reverse()

        def rows(name: str) -> Tensor:
            return torch.cat([getattr(step, name) for step in steps])

        of = Gradient(*(torch.cat(parts) for parts in zip(*found, strict=True)))
        before = rows("before")
        own = torch.bmm(split(before, blocks).mT, split(of.mix, blocks))
        shared = (rows("inputs").T @ of.mix).unflatten(-1, (blocks, -1)).transpose(0, 1)
        parameters = [
            of.deter.T @ before, of.deter.sum(0),
            of.stoch.T @ rows("stoch"), of.stoch.sum(0),
            torch.cat([own, shared], 1), of.mix.sum(0).view(blocks, -1),
            torch.bmm(split(rows("x"), blocks).mT, split(of.gates, blocks)), of.gates.sum(0).view(blocks, -1),
            of.posterior.T @ rows("after"),
            of.logit.T @ rows("y"), of.logit.sum(0),
            *(gradient for norm in ctx.norms for gradient in norm.parameter_gradients()),
        ]  # fmt: skip
        g_embeds = torch.stack([g.posterior for g in found], 1)
        g_actions = torch.stack([g.action for g in found], 1)
        return None, g_embeds, g_actions, None, g_h, g_z.view_as(g_stochs[:, 0]), *parameters


def find_resets(is_first: Tensor) -> list[bool]:
    """Per step of (B, T), whether anything may begin there: on a GPU always, as nothing waits for it to answer."""
    return is_first.any(0).tolist() if is_first.device.type == "cpu" else [True] * is_first.shape[1]


class Weights:
    """Parameters of the loop in the shapes that it multiplies with."""

    def __init__(self, rssm: RSSM, parameters: Sequence[Tensor]):
        self.deter, self.deter_bias, self.stoch, self.stoch_bias, mix, mix_bias, *rest = parameters[:11]
        self.gates, gates_bias, self.from_deter, self.out, self.out_bias = rest
        self.mix_own, shared = mix.tensor_split([rssm.config.deter // rssm.config.blocks], 1)  # (G, D / G, D / G)
        self.mix_shared = shared.transpose(0, 1).flatten(1)  # (3 hidden, D)
        self.mix_bias = mix_bias.flatten()
        reset, candidate, update = gates_bias.unsqueeze(1).chunk(3, -1)
        self.gates_bias = torch.cat([reset, candidate, update - 1], -1)


def split(x: Tensor, blocks: int) -> Tensor:
    """(n, G k) -> (G, n, k)."""
    return x.unflatten(-1, (blocks, -1)).transpose(0, 1)


def join(x: Tensor) -> Tensor:
    """(G, n, k) -> (n, G k)."""
    return x.transpose(0, 1).flatten(1)
