"""Networks: the layers that world models, actors and critics are made of.

Every hidden layer is linear (or convolution), norm, SiLU; every output layer is linear alone.
Initialisation is DreamerV3's: truncated normal of variance 1 / fan-in, biases 0.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from gymnasium import spaces
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mbrl.distributions import symexp, symlog
from mbrl.errors import UserError
from mbrl.spaces import is_image, vector_size

TRUNCATION = 1.1368  # restores unit variance after cutting a normal at two standard deviations


@torch.no_grad()
def initialise(weight: Tensor, fan_in: int, scale: float = 1.0) -> None:
    """Truncated normal with standard deviation ``scale / sqrt(fan_in)``, in place."""
    if scale == 0:
        weight.zero_()
        return
    std = TRUNCATION * math.sqrt(1 / fan_in)
    nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)
    weight.mul_(scale)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """(..., in), (out, in), (out,) -> (..., out) in the type of x, whatever autocast computes it in."""
    return F.linear(x, weight, bias).to(x.dtype)


class Linear(nn.Linear):
    """(..., in) -> (..., out). ``scale`` multiplies the initial weights; 0 starts at exactly zero."""

    def __init__(self, inputs: int, outputs: int, scale: float = 1.0):
        super().__init__(inputs, outputs)
        initialise(self.weight, inputs, scale)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class Conv(nn.Conv2d):
    """(n, in, H, W) -> (n, out, H, W): 5 x 5, initialised as every layer."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__(inputs, outputs, 5, padding=2)
        initialise(self.weight, inputs * 25)
        nn.init.zeros_(self.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).to(x.dtype)


class UpConv(Conv):
    """(n, in, H, W) -> (n, out, 2 H, 2 W): every pixel doubled both ways, then 5 x 5.

    Each of the four pixels that one becomes sees 3 x 3 of the old ones. As four convolutions of that size,
    whose weights are sums of the 5 x 5 ones, it takes 9/25 of the arithmetic and has more channels at once.
    """

    sums: Tensor

    def __init__(self, inputs: int, outputs: int):
        super().__init__(inputs, outputs)
        first = [[1, 1, 0, 0, 0], [0, 0, 1, 1, 0], [0, 0, 0, 0, 1]]  # which of 5 taps fall on which of 3 old pixels
        second = [[1, 0, 0, 0, 0], [0, 1, 1, 0, 0], [0, 0, 0, 1, 1]]
        self.register_buffer("sums", torch.tensor([first, second]).to(self.weight.dtype), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        weight = torch.einsum("pik,qjl,ockl->pqocij", self.sums, self.sums, self.weight)
        y = F.conv2d(x, weight.flatten(0, 2), self.bias.repeat(4), padding=1).to(x.dtype)  # type: ignore[union-attr]
        y = y.permute(0, 2, 3, 1).unflatten(-1, (2, 2, -1)).permute(0, 1, 3, 2, 4, 5)  # (n, H, 2, W, 2, out)
        return y.flatten(1, 2).flatten(2, 3).permute(0, 3, 1, 2)


class BlockLinear(nn.Module):
    """One matrix per block, a linear layer with G times fewer weights; all blocks may also see ``shared`` inputs.

    (..., G, in / G - shared) and (..., shared) -> (..., G, out / G)
    """

    def __init__(self, inputs: int, outputs: int, blocks: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(blocks, inputs // blocks, outputs // blocks))
        self.bias = nn.Parameter(torch.zeros(blocks, outputs // blocks))
        initialise(self.weight, inputs)  # the official fan-in is that of all blocks together

    def forward(self, x: Tensor, shared: Tensor | None = None) -> Tensor:
        own, bias = x.reshape(-1, *x.shape[-2:]).transpose(0, 1), self.bias.unsqueeze(1)  # (G, n, ...)
        if shared is None:
            y = torch.baddbmm(bias, own, self.weight)
        else:  # the shared inputs are not copied for every block
            for_own, for_shared = self.weight.tensor_split([own.shape[-1]], 1)
            shared = shared.reshape(-1, shared.shape[-1]).expand(len(own), -1, -1)
            y = torch.baddbmm(torch.baddbmm(bias, own, for_own), shared, for_shared)
        return y.transpose(0, 1).reshape(*x.shape[:-1], -1).to(x.dtype)


class EnsembleLinear(nn.Module):
    """K linear layers side by side: (K, n, in), or one (n, in) for all, -> (K, n, out)."""

    def __init__(self, members: int, inputs: int, outputs: int, scale: float = 1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(members, inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(members, 1, outputs))
        initialise(self.weight, inputs, scale)

    def forward(self, x: Tensor) -> Tensor:
        x = x.expand(len(self.weight), *x.shape[-2:])
        return torch.baddbmm(self.bias, x, self.weight).to(x.dtype)


class ResidualEnsemble(nn.Module):
    """K networks side by side: (n, in) -> (K, n, out). A layer, a residual block, a norm, then the output.

    The norms, whose gains the members share, keep values learnt with many updates per step from diverging (Nauman
    et al., "Bigger, regularized, optimistic", NeurIPS 2024).
    """

    def __init__(self, members: int, inputs: int, outputs: int, units: int, scale: float = 1.0):
        super().__init__()
        self.first, self.first_norm = EnsembleLinear(members, inputs, units), make_norm("layer", units)
        self.inner, self.outer = EnsembleLinear(members, units, units), EnsembleLinear(members, units, units)
        self.last_norm, self.out = make_norm("layer", units), EnsembleLinear(members, units, outputs, scale)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.first_norm(self.first(x)))
        x = x + self.outer(F.silu(self.inner(x)))
        y: Tensor = self.out(self.last_norm(x))
        return y


class RMSNorm(nn.Module):
    """(..., size) -> (..., size): nn.RMSNorm with its gradient written out, in half as many operations."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(size)), eps

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = ScaleByRMS.apply(x, self.weight, self.eps)
        return y


class ScaleByRMS(torch.autograd.Function):
    """w x / sqrt(mean(x^2) + eps) over the last axis (Zhang and Sennrich, NeurIPS 2019, eq. 4)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        unit, inverse = to_unit_length(x, eps)
        weight = weight * math.sqrt(x.shape[-1])
        if not any(ctx.needs_input_grad):
            return unit.mul_(weight)
        ctx.save_for_backward(unit, inverse, weight)
        return unit * weight

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        unit, inverse, weight = ctx.saved_tensors
        need_x, need_weight, _ = ctx.needs_input_grad
        g_x = to_unit_length_backward(g * weight, unit, inverse) if need_x else None
        g_weight = (g * unit).flatten(0, -2).sum(0) * math.sqrt(g.shape[-1]) if need_weight else None
        return g_x, g_weight, None


def to_unit_length(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x (..., n) divided by sqrt(|x|^2 + n eps), and the inverse of that (..., 1): the RMS norm without its sqrt(n)."""
    inverse = (inner(x, x) + x.shape[-1] * eps).rsqrt_()
    return x * inverse, inverse


def to_unit_length_backward(g: Tensor, unit: Tensor, inverse: Tensor) -> Tensor:
    """The gradient with respect to x, from that with respect to ``unit``."""
    return torch.addcmul(g, unit, inner(g, unit), value=-1).mul_(inverse)


def inner(x: Tensor, y: Tensor) -> Tensor:
    """(..., n) each -> (..., 1)."""
    return (x * y).sum(-1, keepdim=True)


def make_norm(kind: str, size: int) -> nn.Module:
    """Over the last axis: "rms" as in DreamerV3, or "layer", which is fused and faster on a CPU."""
    if kind == "rms":
        return RMSNorm(size, eps=1e-4)
    if kind == "layer":
        return nn.LayerNorm(size, eps=1e-4)
    raise UserError(f"norm {kind!r} is unknown; use 'rms' or 'layer'")


def tanh(x: Tensor) -> Tensor:
    """2 sigmoid(2 x) - 1, on a CPU far faster than torch.tanh."""
    return (x * 2).sigmoid_().mul(2).sub_(1)


class MLP(nn.Sequential):
    """(..., in) -> (..., units): ``layers`` times linear, norm, SiLU."""

    def __init__(self, inputs: int, units: int, layers: int, norm: str = "rms"):
        super().__init__()
        self.outputs = units if layers else inputs
        for _ in range(layers):
            self.extend([Linear(inputs, units), make_norm(norm, units), nn.SiLU()])
            inputs = units


class Head(nn.Module):
    """(..., F) -> (..., *shape): an MLP and a linear output layer whose weights start scaled by ``scale``."""

    def __init__(
        self, inputs: int, shape: tuple[int, ...], units: int, layers: int, *, scale: float = 1.0, norm: str = "rms"
    ):
        super().__init__()
        self.shape = shape
        self.mlp = MLP(inputs, units, layers, norm)
        self.out = Linear(self.mlp.outputs, math.prod(shape), scale)

    def forward(self, features: Tensor) -> Tensor:
        y: Tensor = self.out(self.mlp(features))
        return y.reshape(*y.shape[:-1], *self.shape)


class TwoHotHead(Head):
    """(..., F) -> logits (..., bins + 1) of a SymexpTwoHot: one for each of the odd number of bins, and -inf.

    The last column is only there to make rows even: a product with rows of 256 floats takes half the time
    of one with 255.
    """

    def __init__(self, inputs: int, bins: int, units: int, layers: int, norm: str):
        super().__init__(inputs, (bins,), units, layers, scale=0.0, norm=norm)

    def forward(self, features: Tensor) -> Tensor:
        weight = F.pad(self.out.weight, (0, 0, 0, 1))
        bias = F.pad(self.out.bias, (0, 1), value=-math.inf)
        return linear(self.mlp(features), weight, bias)


class VectorScaling(nn.Module):
    """What networks see of a vector: its symlog, or the vector normalised by its running statistics.

    Normalisation lets a squared error weigh a pole's tiny angle like a wheel's large speed. Statistics
    are an average over all batches at first and over about the last thousand later.
    """

    mean: Tensor
    variance: Tensor
    count: Tensor

    def __init__(self, size: int, normalise: bool):
        super().__init__()
        self.normalise = normalise
        if normalise:
            self.register_buffer("mean", torch.zeros(size))
            self.register_buffer("variance", torch.ones(size))
            self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """(..., size) raw -> (..., size) of magnitude about 1."""
        if not self.normalise:
            return symlog(x)
        return ((x - self.mean) / self.variance.sqrt().clamp_min(1e-3)).clamp(-10, 10)

    def inverse(self, y: Tensor) -> Tensor:
        """Back to the environment's units."""
        if not self.normalise:
            return symexp(y)
        return y * self.variance.sqrt().clamp_min(1e-3) + self.mean

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        """Take in a batch (..., size) of raw vectors."""
        if not self.normalise:
            return
        flat = x.flatten(0, -2)
        self.count += 1
        rate = (1 / self.count).clamp_min(1e-3)
        shift = flat.mean(0) - self.mean
        spread = flat.var(0, unbiased=False) + (1 - rate) * shift.square()
        self.variance.lerp_(spread, rate)
        self.mean.add_(rate * shift)


class VectorView(nn.Module):
    """A dict of observations -> one vector: numeric keys scaled, then discrete ones one-hot, each sorted."""

    def __init__(self, space: spaces.Dict, normalise: bool):
        super().__init__()
        entries = sorted((k, s) for k, s in space.spaces.items() if not is_image(s))
        self.numeric = {k: vector_size(s) for k, s in entries if isinstance(s, spaces.Box)}
        self.discrete = {k: (int(s.n), int(s.start)) for k, s in entries if isinstance(s, spaces.Discrete)}
        self.scaling = VectorScaling(sum(self.numeric.values()), normalise)
        self.sizes = {**self.numeric, **{k: n for k, (n, _) in self.discrete.items()}}
        self.size = sum(self.sizes.values())

    def raw(self, obs: dict[str, Tensor], lead: int) -> Tensor:
        """(..., numeric): the numeric keys side by side, in the environment's units."""
        return torch.cat([obs[key].reshape(*obs[key].shape[:lead], -1).float() for key in self.numeric], -1)

    def forward(self, obs: dict[str, Tensor], lead: int) -> Tensor:
        """(..., size), where ``lead`` is the number of leading dims."""
        parts = [self.scaling(self.raw(obs, lead))] if self.numeric else []
        for key, (n, start) in self.discrete.items():
            parts.append(F.one_hot(obs[key].long() - start, n).float())
        return torch.cat(parts, -1)


class ConvEncoder(nn.Module):
    """(n, H, W, C) in [-0.5, 0.5] -> (n, outputs): four times convolution, 2x2 max pool, norm, SiLU.

    Sides that do not divide by 16 are padded at their ends.
    """

    def __init__(self, shape: tuple[int, int, int], depth: int, norm: str):
        super().__init__()
        height, width, channels = shape
        self.padding = (0, -width % 16, 0, -height % 16)
        depths = [depth * m for m in (2, 3, 4, 4)]
        self.convs, self.norms = nn.ModuleList(), nn.ModuleList()
        for size in depths:
            self.convs.append(Conv(channels, size))
            self.norms.append(make_norm(norm, size))
            channels = size
        self.outputs = math.ceil(height / 16) * math.ceil(width / 16) * channels

    def forward(self, image: Tensor) -> Tensor:
        x = F.pad(image.permute(0, 3, 1, 2), self.padding)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.max_pool2d(conv(x), 2)
            x = F.silu(norm(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
        return x.permute(0, 2, 3, 1).flatten(1)


class ConvDecoder(nn.Module):
    """(n, D), (n, S) -> (n, H, W, C) in [0, 1]: a 4x4-like map from both, upsampled four times, cut to size."""

    def __init__(
        self, sizes: tuple[int, int], shape: tuple[int, int, int], depth: int, units: int, blocks: int, norm: str
    ):
        super().__init__()
        height, width, channels = shape
        depths = [depth * m for m in (2, 3, 4, 4)]
        self.size, self.blocks = (height, width), blocks
        self.map = math.ceil(height / 16), math.ceil(width / 16), depths[-1]
        cells = math.prod(self.map)
        self.from_deter = BlockLinear(sizes[0], cells, blocks)
        self.from_stoch = Head(sizes[1], self.map, 2 * units, 1, norm=norm)
        self.norm = make_norm(norm, depths[-1])
        self.convs, self.norms = nn.ModuleList(), nn.ModuleList()
        inputs = depths[-1]
        for size in [*depths[-2::-1], channels]:
            self.convs.append(UpConv(inputs, size))
            inputs = size
        for size in depths[-2::-1]:
            self.norms.append(make_norm(norm, size))

    def forward(self, deter: Tensor, stoch: Tensor) -> Tensor:
        rows, columns, channels = self.map
        n, groups = len(deter), self.blocks
        x = self.from_deter(deter.reshape(n, groups, -1))
        # Each block writes its own consecutive channels of the map.
        x = x.reshape(n, groups, rows, columns, channels // groups).permute(0, 2, 3, 1, 4)
        x = x.reshape(n, rows, columns, channels) + self.from_stoch(stoch)
        x = F.silu(self.norm(x)).permute(0, 3, 1, 2)
        for conv, norm in zip(self.convs, self.norms, strict=False):
            x = F.silu(norm(conv(x).permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
        x = self.convs[-1](x)
        height, width = self.size
        return torch.sigmoid(x).permute(0, 2, 3, 1)[:, :height, :width]
