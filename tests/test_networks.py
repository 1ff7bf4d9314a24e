"""Networks: which encoder a space gets, running statistics, image shapes, initialisation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

from mbrl.autoencoder import Decoder, Encoder
from mbrl.dynamics.rssm import RSSMConfig
from mbrl.errors import UserError
from mbrl.networks import (
    MLP,
    BlockLinear,
    ConvDecoder,
    ConvEncoder,
    Head,
    Linear,
    ResidualEnsemble,
    UpConv,
    VectorScaling,
    VectorView,
    make_norm,
)
from mbrl.world_model import WorldModelConfig

CONFIG = WorldModelConfig(
    rssm=RSSMConfig(deter=32, stoch=3, classes=4, hidden=8, blocks=4), units=12, depth=2
)
VECTOR = spaces.Box(-1, 1, (3,))
IMAGE = spaces.Box(0, 255, (32, 48, 3), np.uint8)
CHOICE = spaces.Discrete(4, start=-1)


def sample(space: spaces.Dict, *lead: int) -> dict[str, torch.Tensor]:
    """Observations (*lead, *shape)."""
    space.seed(0)
    drawn = [space.sample() for _ in range(int(np.prod(lead)))]
    stacked = {key: np.stack([d[key] for d in drawn]) for key in space.spaces}
    return {key: torch.from_numpy(value).unflatten(0, lead) for key, value in stacked.items()}


# ---- what a space becomes ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entries", "size"),
    [
        ({"state": VECTOR}, 12),
        ({"state": CHOICE}, 12),
        ({"b": VECTOR, "a": spaces.Box(-1, 1, ()), "c": spaces.Box(-1, 1, (2, 2))}, 12),
        ({"image": IMAGE}, 2 * 3 * 8),
        ({"image": IMAGE, "state": VECTOR, "mode": CHOICE}, 12 + 2 * 3 * 8),
        ({"left": IMAGE, "right": IMAGE}, 2 * 3 * 8),
        ({"items": VECTOR, "type": CHOICE, "a.b": VECTOR, "a_b": spaces.Box(-1, 1, (2,))}, 12),
    ],
)
def test_every_space_is_encoded_and_decoded(entries: dict[str, spaces.Space], size: int) -> None:
    space = spaces.Dict(entries)
    encoder = Encoder(CONFIG, space)
    obs = sample(space, 2, 5)
    embed = encoder(obs, lead=2)
    assert embed.shape == (2, 5, size) and encoder.outputs == size
    torch.testing.assert_close(encoder({k: v[0] for k, v in obs.items()}, lead=1), embed[0])

    decoder = Decoder(CONFIG, space, encoder.view, (32, 12))
    predictions = decoder(torch.randn(2, 5, 44))
    assert set(predictions) == set(entries)
    for key, entry in entries.items():
        shape = entry.shape if key in encoder.images else (encoder.view.sizes[key],)
        assert predictions[key].shape == (2, 5, *(shape or ()))


def test_view_sorts_keys_and_puts_one_hots_last() -> None:
    space = spaces.Dict({"z": spaces.Box(-9, 9, (1,)), "c": CHOICE, "a": spaces.Box(-9, 9, (1,))})
    view = VectorView(space, normalise=False)
    obs = {"z": torch.tensor([[-1.0]]), "c": torch.tensor([1]), "a": torch.tensor([[np.e - 1]])}
    expected = torch.tensor([[1.0, -np.log(2), 0, 0, 1, 0]], dtype=torch.float32)
    torch.testing.assert_close(view(obs, lead=1), expected)
    assert view.size == 6


def test_images_of_several_cameras_are_told_apart() -> None:
    space = spaces.Dict({"left": IMAGE, "right": IMAGE})
    encoder = Encoder(CONFIG, space)
    obs = sample(space, 1)
    swapped = {"left": obs["right"], "right": obs["left"]}
    assert not torch.allclose(encoder(obs, lead=1), encoder(swapped, lead=1))


def test_images_of_different_sizes_are_named_with_the_way_out() -> None:
    with pytest.raises(UserError, match=r"share one size.*ResizeObservation"):
        Encoder(CONFIG, spaces.Dict({"a": IMAGE, "b": spaces.Box(0, 255, (64, 64, 3), np.uint8)}))


def test_sides_that_do_not_divide_by_16_are_padded_and_cut() -> None:
    """All of such a picture is seen."""
    space = spaces.Dict({"image": spaces.Box(0, 255, (21, 40, 1), np.uint8)})
    encoder = Encoder(CONFIG, space)
    black = torch.zeros(1, 21, 40, 1, dtype=torch.uint8)
    corner = black.clone()
    corner[0, -1, -1] = 255
    assert not torch.allclose(encoder({"image": black}, lead=1), encoder({"image": corner}, lead=1))
    predictions = Decoder(CONFIG, space, encoder.view, (32, 12))(torch.randn(2, 44))
    assert predictions["image"].shape == (2, 21, 40, 1)


def test_doubling_and_convolving_at_once_is_both_in_turn() -> None:
    conv = UpConv(3, 2).double()
    nn.init.normal_(conv.bias)
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    doubled = nn.functional.interpolate(x, scale_factor=2, mode="nearest")
    torch.testing.assert_close(conv(x), nn.functional.conv2d(doubled, conv.weight, conv.bias, padding=2))


# ---- running statistics -----------------------------------------------------------------------------


def test_statistics_are_those_of_the_whole_stream_at_first() -> None:
    """The average over equal batches is the average over all of their rows."""
    scaling = VectorScaling(3, normalise=True)
    stream = np.random.default_rng(0).normal([0, 5, -2], [1, 0.1, 30], (200, 16, 3)).astype(np.float32)
    for batch in stream:
        scaling.update(torch.from_numpy(batch).unflatten(0, (4, 4)))
    rows = stream.reshape(-1, 3)
    np.testing.assert_allclose(scaling.mean, rows.mean(0), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(scaling.variance, rows.var(0), rtol=1e-4)
    seen = scaling(torch.from_numpy(rows))
    torch.testing.assert_close(seen.std(0), torch.ones(3), rtol=1e-2, atol=0)


def test_statistics_follow_a_stream_that_changes() -> None:
    """After 1000 batches the mean has a memory of about 1000: 3000 new ones leave e^-3 of the old."""
    scaling = VectorScaling(1, normalise=True)
    for value in [0.0] * 1000 + [1.0] * 3000:
        scaling.update(torch.full((2, 1), value))
    assert abs(scaling.mean.item() - (1 - np.exp(-3))) < 0.01


@pytest.mark.parametrize("normalise", [False, True])
def test_scaling_is_undone_by_its_inverse(normalise: bool) -> None:
    scaling = VectorScaling(2, normalise)
    x = torch.randn(50, 2) * torch.tensor([0.1, 20.0]) + 3
    scaling.update(x)
    torch.testing.assert_close(scaling.inverse(scaling(x)), x, rtol=1e-4, atol=1e-4)


def test_constant_and_wild_entries_stay_finite() -> None:
    scaling = VectorScaling(2, normalise=True)
    scaling.update(torch.tensor([[5.0, 0.0], [5.0, 1.0]]))
    seen = scaling(torch.tensor([[5.0, 1e9]]))
    assert torch.equal(seen, torch.tensor([[0.0, 10.0]]))


# ---- layers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), [(64, 64), (32, 48)])
@pytest.mark.parametrize("norm", ["rms", "layer"])
def test_image_shapes(height: int, width: int, norm: str) -> None:
    encoder = ConvEncoder((height, width, 3), 2, norm)
    code = encoder(torch.rand(5, height, width, 3) - 0.5)
    assert code.shape == (5, encoder.outputs) == (5, height // 16 * (width // 16) * 8)
    decoder = ConvDecoder((32, 12), (height, width, 3), 2, 8, 4, norm)
    image = decoder(torch.randn(5, 32), torch.randn(5, 12))
    assert image.shape == (5, height, width, 3)
    assert image.min() >= 0 and image.max() <= 1


def test_decoded_pixels_move_with_their_own_cell() -> None:
    """Rows, columns and channels of the map are not mixed up: a corner of it reaches a corner only."""
    decoder = ConvDecoder((32, 12), (64, 64, 3), 2, 8, 4, "rms")
    with torch.no_grad():
        before = decoder(torch.zeros(1, 32), torch.zeros(1, 12))[0]
        bias = decoder.from_stoch.out.bias.view(4, 4, 8)
        bias[0, 3] += torch.randn(8)  # top right
        moved = (decoder(torch.zeros(1, 32), torch.zeros(1, 12))[0] - before).abs().sum(-1)
    assert moved[:16, 48:].sum() > 0
    assert moved[:, :16].sum() == 0 and moved[48:].sum() == 0


def test_block_linear_is_one_matrix_per_block() -> None:
    layer = BlockLinear(6, 9, 3)
    torch.nn.init.normal_(layer.bias)
    x = torch.randn(2, 5, 3, 2)
    y = layer(x)
    assert y.shape == (2, 5, 3, 3)
    for g in range(3):
        torch.testing.assert_close(y[..., g, :], x[..., g, :] @ layer.weight[g] + layer.bias[g])


def test_block_linear_shows_shared_inputs_to_every_block() -> None:
    layer = BlockLinear(6 + 3 * 4, 9, 3)
    torch.nn.init.normal_(layer.bias)
    x, shared = torch.randn(2, 5, 3, 2), torch.randn(2, 5, 4)
    repeated = torch.cat([x, shared.unsqueeze(-2).expand(2, 5, 3, 4)], -1)
    torch.testing.assert_close(layer(x, shared), layer(repeated))


def test_rms_norm_and_its_gradients_are_those_of_torch() -> None:
    theirs, ours = torch.nn.RMSNorm(5, eps=1e-4).double(), make_norm("rms", 5).double()
    found = []
    for norm in (theirs, ours):
        norm.weight.data = torch.linspace(-1, 2, 5, dtype=torch.float64)
        x = torch.linspace(-3, 2, 40, dtype=torch.float64).view(2, 4, 5).requires_grad_()
        y = norm(x)
        y.square().sum().backward()
        assert x.grad is not None and norm.weight.grad is not None
        with torch.no_grad():
            found.append((y, x.grad, norm.weight.grad, norm(x)))
    torch.testing.assert_close(*found, rtol=1e-12, atol=0)


def test_rms_norm_gives_no_gradient_that_nobody_wants() -> None:
    norm = make_norm("rms", 5)
    norm.requires_grad_(False)
    x = torch.randn(3, 5, requires_grad=True)
    norm(x).sum().backward()
    assert x.grad is not None and norm.weight.grad is None
    assert not norm(x.detach()).requires_grad


def test_rms_norm_has_the_official_epsilon() -> None:
    x = torch.full((1, 4), 0.01)
    torch.testing.assert_close(make_norm("rms", 4)(x), torch.full((1, 4), 0.01 / (2e-4) ** 0.5))
    with pytest.raises(UserError, match="'rms' or 'layer'"):
        make_norm("batch", 4)


def test_initial_weights_keep_the_variance() -> None:
    """Truncated at two standard deviations, of variance 1 / fan-in; outputs may start smaller or at zero."""
    weight = Linear(400, 300).weight
    torch.testing.assert_close(weight.std(), torch.tensor(0.05), rtol=0.02, atol=0)
    assert weight.abs().max() <= 2 * 1.1368 * 0.05 + 1e-6
    torch.testing.assert_close(
        Linear(400, 300, scale=0.01).weight.std(), torch.tensor(0.0005), rtol=0.02, atol=0
    )
    # The official fan-in of block layers is that of all blocks together.
    torch.testing.assert_close(BlockLinear(400, 800, 4).weight.std(), torch.tensor(0.05), rtol=0.02, atol=0)
    head = Head(8, (2, 3), 16, 1, scale=0.0)
    assert torch.equal(head(torch.randn(7, 8)), torch.zeros(7, 2, 3))


def test_an_mlp_without_layers_passes_its_input_on() -> None:
    x = torch.randn(3, 5)
    assert torch.equal(MLP(5, 16, 0)(x), x) and MLP(5, 16, 0).outputs == 5


def test_members_of_an_ensemble_are_networks_of_their_own() -> None:
    ensemble, x = ResidualEnsemble(3, 5, 2, 8), torch.randn(4, 5)
    y = ensemble(x)
    assert y.shape == (3, 4, 2) and not torch.allclose(y[0], y[1])
    torch.testing.assert_close(ensemble(x.expand(3, -1, -1)), y)
    y[1].sum().backward()
    grad = ensemble.inner.weight.grad
    assert grad is not None and grad.flatten(1).abs().sum(1).gt(0).tolist() == [False, True, False]
