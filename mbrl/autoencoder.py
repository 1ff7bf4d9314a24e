"""Autoencoder: what networks see of an observation, and what they predict of it, over its dict of vectors and images.

Letters: E embedding, F features, X numbers in an observation. Source: Hafner et al. (Nature, 2025), eq. 3.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from gymnasium import spaces
from torch import Tensor, nn

from mbrl.errors import UserError
from mbrl.networks import MLP, ConvDecoder, ConvEncoder, Linear, VectorView
from mbrl.spaces import is_image

if TYPE_CHECKING:
    from mbrl.world_model import WorldModelConfig


class Plain(nn.Module):
    """Observations (...) without images -> what networks see of them (..., X)."""

    def __init__(self, config: WorldModelConfig, space: spaces.Dict):
        super().__init__()
        self.images: list[str] = []
        self.view = VectorView(space, config.normalise)

    def update(self, obs: dict[str, Tensor]) -> None:
        """Take a batch (B, T) into the running statistics of vectors."""
        if self.view.numeric:
            self.view.scaling.update(self.view.raw(obs, 2))

    def forward(self, obs: dict[str, Tensor], lead: int) -> Tensor:
        """``lead`` is the number of leading dims."""
        x: Tensor = self.view(obs, lead)
        return x


class Encoder(Plain):
    """Observations (...) -> embedding (..., E)."""

    def __init__(self, config: WorldModelConfig, space: spaces.Dict):
        super().__init__(config, space)
        self.images, image_shape = image_keys(space)
        self.outputs = 0
        if self.view.size:
            self.mlp = MLP(self.view.size, config.units, config.layers, config.norm)
            self.outputs += self.mlp.outputs
        if self.images:
            self.conv = ConvEncoder(image_shape, config.depth, config.norm)
            self.outputs += self.conv.outputs

    def forward(self, obs: dict[str, Tensor], lead: int) -> Tensor:
        """``lead`` is the number of leading dims."""
        parts = []
        if self.view.size:
            parts.append(self.mlp(self.view(obs, lead)))
        if self.images:
            image = torch.cat([obs[key] for key in self.images], -1).float() / 255 - 0.5
            flat = self.conv(image.flatten(0, lead - 1))
            parts.append(flat.unflatten(0, image.shape[:lead]))
        return torch.cat(parts, -1)


class Decoder(nn.Module):
    """Features (..., F) -> predictions per key: vectors as networks see them, images in [0, 1]."""

    def __init__(self, config: WorldModelConfig, space: spaces.Dict, view: VectorView, sizes: tuple[int, int]):
        super().__init__()
        self.sizes, self.discrete = sizes, set(view.discrete)
        self.images, image_shape = image_keys(space)
        self.names = module_names(view.sizes)
        self.channels = {key: space[key].shape[-1] for key in self.images}  # type: ignore[index]
        if view.size:
            self.mlp = MLP(sum(sizes), config.units, config.layers, config.norm)
            self.out = nn.ModuleDict({self.names[key]: Linear(self.mlp.outputs, n) for key, n in view.sizes.items()})
        if self.images:
            blocks = config.rssm.blocks
            self.conv = ConvDecoder(sizes, image_shape, config.depth, config.units, blocks, config.norm)

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        predictions = {}
        if self.names:
            x = self.mlp(features)
            predictions = {key: self.out[name](x) for key, name in self.names.items()}
        if self.images:
            flat = features.flatten(0, -2)
            image = self.conv(*flat.split(self.sizes, -1)).unflatten(0, features.shape[:-1])
            parts = image.split(list(self.channels.values()), -1)
            predictions |= dict(zip(self.images, parts, strict=True))
        return predictions


def module_names(keys: Iterable[str]) -> dict[str, str]:
    """By key a name that a ModuleDict takes: without a dot, no attribute of its own, and no two alike."""
    names: dict[str, str] = {}
    for key in keys:
        name = key.replace(".", "_")
        while hasattr(nn.ModuleDict(), name) or name in names.values():
            name += "_"
        names[key] = name
    return names


def image_keys(space: spaces.Dict) -> tuple[list[str], tuple[int, int, int]]:
    """The image keys, sorted, and the shape of all of them stacked along the channels.

    Raises:
        UserError: images of different sizes.
    """
    keys = sorted(k for k, s in space.spaces.items() if is_image(s))
    if not keys:
        return [], (0, 0, 0)
    shapes = {key: space[key].shape for key in keys}
    sizes = {shape[:2] for shape in shapes.values() if shape is not None}
    if len(sizes) > 1:
        raise UserError(
            f"images must share one size, these are {shapes}; "
            "wrap the environment in gymnasium.wrappers.ResizeObservation(env, (64, 64))"
        )
    (height, width), *_ = sizes
    return keys, (height, width, sum(shape[2] for shape in shapes.values() if shape is not None))
