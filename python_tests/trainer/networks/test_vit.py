"""The ViT against a transformer written out by hand, its positions, its start, and patches that are left out."""

from __future__ import annotations

from math import sqrt

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldreg_kernels.trainer.config import ConfigError
from ldreg_kernels.trainer.config.networks import ViTConfig
from ldreg_kernels.trainer.networks.vit import ViTEncoder, sincos_positions

PATCH = 4  # of images of 16 x 16: 16 patches


def build(**settings: object) -> ViTEncoder:
    torch.manual_seed(0)
    return ViTEncoder(3, 16, ViTConfig.model_validate({"name": "vit-micro", "patch_size": PATCH, **settings})).eval()


def permute_patches(images: Tensor, order: Tensor) -> Tensor:
    columns = F.unfold(images, PATCH, stride=PATCH)
    return F.fold(columns[:, :, order], 16, PATCH, stride=PATCH)


def choose(count: int, visible: int) -> Tensor:
    """Another subset of the 16 patches, in another order, for each image."""
    return torch.rand(count, 16).argsort(1)[:, :visible]


# ---------------------------------------------------------------- positions


def test_positions_follow_the_formula() -> None:
    side, width = 3, 16
    positions = sincos_positions(side, width).double()
    assert (positions[0] == 0).all()
    for row in range(side):
        for column in range(side):
            frequencies = [10000 ** (-i / 4) for i in range(4)]
            angles = [torch.tensor([place * f for f in frequencies]).double() for place in (row, column)]
            expected = torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())])
            torch.testing.assert_close(positions[1 + row * side + column], expected, atol=1e-7, rtol=0)


def test_permuting_patches_changes_cls_because_of_the_positions_alone() -> None:
    """transformers' ViTMAE built from scratch fails this: its positions are 0."""
    encoder = build()
    images, order = torch.rand(4, 3, 16, 16), torch.randperm(16)
    with torch.no_grad():
        change = (encoder(permute_patches(images, order)) - encoder(images)).abs().max()
        encoder.positions.zero_()
        blind = (encoder(permute_patches(images, order)) - encoder(images)).abs().max()
    assert change > 1e-2
    assert blind < 1e-5  # float32 sums in another order


def test_positions_are_fixed_and_not_in_the_state() -> None:
    encoder = build()
    assert not encoder.positions.requires_grad
    assert "positions" not in encoder.state_dict()
    assert encoder.positions.shape == (17, 96)


# ---------------------------------------------------------------- forward


def by_hand(encoder: ViTEncoder, images: Tensor, keep: Tensor) -> Tensor:
    """Patches as rows, one image at a time, attention written out."""
    weights = dict(encoder.named_parameters())
    projection = weights["patch_embedding.weight"].permute(0, 2, 3, 1).flatten(1)  # [D, row x column x channel]
    outputs = []
    for image, kept in zip(images, keep.tolist(), strict=True):
        rows = [weights["cls_token"][0, 0] + encoder.positions[0]]
        for patch in kept:
            top, left = PATCH * (patch // 4), PATCH * (patch % 4)
            pixels = image[:, top : top + PATCH, left : left + PATCH].permute(1, 2, 0).flatten()
            rows.append(projection @ pixels + weights["patch_embedding.bias"] + encoder.positions[1 + patch])
        x = torch.stack(rows)
        for layer in range(6):

            def linear(name: str, values: Tensor, layer: int = layer) -> Tensor:
                return values @ weights[f"layers.{layer}.{name}.weight"].T + weights[f"layers.{layer}.{name}.bias"]

            def norm(name: str, values: Tensor) -> Tensor:
                centred = values - values.mean(-1, keepdim=True)
                scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
                return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

            y = norm(f"layers.{layer}.layernorm_before", x)
            q, k, v = (linear(f"attention.{name}_proj", y) for name in "qkv")
            heads = []
            for head in range(3):
                part = slice(32 * head, 32 * (head + 1))
                heads.append((q[:, part] @ k[:, part].T / sqrt(32)).softmax(1) @ v[:, part])
            x = x + linear("attention.o_proj", torch.cat(heads, 1))
            y = linear("mlp.fc1", norm(f"layers.{layer}.layernorm_after", x))
            gelu = y * 0.5 * (1 + torch.erf(y / sqrt(2)))
            x = x + linear("mlp.fc2", gelu)
        outputs.append(norm("norm", x))
    return torch.stack(outputs)


def test_masked_is_the_transformer_written_out_by_hand() -> None:
    encoder = build().double()
    with torch.no_grad():
        for parameter in encoder.parameters():  # biases and norms take part too
            parameter.add_(0.1 * torch.randn_like(parameter))
        images, keep = torch.rand(3, 3, 16, 16).double(), choose(3, 5)
        tokens = encoder.masked(images, keep)
        assert tokens.shape == (3, 6, 96)
        torch.testing.assert_close(tokens, by_hand(encoder, images, keep), atol=1e-10, rtol=0)


def test_forward_is_masked_with_every_patch_kept() -> None:
    encoder = build()
    images = torch.rand(4, 3, 16, 16)
    everything = torch.arange(16).expand(4, -1)
    with torch.no_grad():
        features = encoder(images)
        assert torch.equal(encoder.masked(images, everything)[:, 0], features)
        assert torch.equal(encoder.train()(images), features)  # no dropout, and no mask in either mode
        order = choose(4, 16)
        shuffled = encoder.masked(images, order)
        whole = encoder.masked(images, everything)
    places = torch.cat([torch.zeros(4, 1, dtype=torch.long), 1 + order], 1)
    expected = whole.gather(1, places[..., None].expand_as(whole))
    torch.testing.assert_close(shuffled, expected, atol=1e-5, rtol=0)  # float32 sums in another order


def test_masked_does_not_see_what_is_masked() -> None:
    encoder = build()
    images, keep = torch.rand(4, 3, 16, 16), choose(4, 4)
    kept = torch.zeros(4, 16).scatter_(1, keep, 1.0)
    kept = F.interpolate(kept.reshape(4, 1, 4, 4), scale_factor=PATCH)
    with torch.no_grad():
        assert torch.equal(encoder.masked(images, keep), encoder.masked(images * kept - (1 - kept), keep))


def test_patchify_puts_each_pixel_where_it_says() -> None:
    encoder = build()
    images = torch.rand(2, 3, 16, 16)
    patches = encoder.patchify(images)
    assert patches.shape == (2, encoder.patch_count, encoder.patch_pixels) == (2, 16, 48)
    for row, column, channel in [(0, 0, 0), (3, 7, 1), (10, 5, 2), (15, 15, 0)]:
        patch = 4 * (row // PATCH) + column // PATCH
        place = 3 * (PATCH * (row % PATCH) + column % PATCH) + channel
        assert torch.equal(patches[:, patch, place], images[:, channel, row, column])


# ---------------------------------------------------------------- start


def assert_uniform(weight: Tensor, bound: float) -> None:
    """Uniform on [-bound, bound], by its extremes and its standard deviation."""
    values = weight.detach()
    assert 0.99 * bound < values.abs().max() <= bound * (1 + 1e-6)
    assert values.std() / bound == pytest.approx(1 / sqrt(3), rel=0.02)


@pytest.mark.parametrize(("initialisation", "rows_of_qkv", "cls_sigma"), [("mae", 3, 0.02), ("moco-v3", 1, 1e-6)])
def test_start_is_xavier(initialisation: str, rows_of_qkv: int, cls_sigma: float) -> None:
    encoder = build(initialisation=initialisation)
    width = 96
    for layer in encoder.layers:
        for projection in (layer.attention.q_proj, layer.attention.k_proj, layer.attention.v_proj):
            assert_uniform(projection.weight, sqrt(6 / ((1 + rows_of_qkv) * width)))
        assert_uniform(layer.attention.o_proj.weight, sqrt(6 / (2 * width)))
        assert_uniform(layer.mlp.fc1.weight, sqrt(6 / (5 * width)))
        assert_uniform(layer.mlp.fc2.weight, sqrt(6 / (5 * width)))
    assert_uniform(encoder.patch_embedding.weight, sqrt(6 / (3 * PATCH**2 + width)))
    assert encoder.cls_token.std().item() == pytest.approx(cls_sigma, rel=5 / sqrt(2 * width))
    for name, parameter in encoder.named_parameters():
        if name.endswith("bias"):
            assert (parameter == 0).all(), name
    norms = [module for module in encoder.modules() if isinstance(module, nn.LayerNorm)]
    assert len(norms) == 2 * 6 + 1
    assert all(norm.eps == 1e-6 and (norm.weight == 1).all() for norm in norms)


def test_frozen_patch_embedding_freezes_it_alone() -> None:
    frozen = [name for name, p in build(frozen_patch_embedding=True).named_parameters() if not p.requires_grad]
    assert frozen == ["patch_embedding.weight", "patch_embedding.bias"]
    assert all(p.requires_grad for p in build().parameters())


# ---------------------------------------------------------------- refusals


def test_patches_that_do_not_fill_the_image_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"encoder\.patch_size must divide the image's side of 16 pixels, got 5"):
        build(patch_size=5)


@pytest.mark.parametrize("shape", [(2, 3, 20, 20), (2, 1, 16, 16)])
def test_other_images_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"images must be \[N, 3, 16, 16\]"):
        build()(torch.zeros(shape))
