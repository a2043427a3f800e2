"""MAE: what is masked, what the loss sees, where the features come from, and a whole step against float64 formulas."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ldreg_kernels.kernels.reference import published_lid
from ldreg_kernels.trainer.config import TrainConfig
from ldreg_kernels.trainer.methods import MAE, Output, Time, build_method, mae
from ldreg_kernels.trainer.regularisers import build_regulariser

TinyOf = Callable[..., TrainConfig]
State = dict[str, Tensor]
START = Time(0, 1, 0)


def build(tiny_of: TinyOf, **changes: Any) -> MAE:
    """16 patches of 2 x 2 pixels; LN and biases disturbed, so that they are seen to be used."""
    torch.manual_seed(0)
    method = build_method(tiny_of("mae", encoder__patch_size=2, **changes), channels=1, image_size=8).double()
    assert isinstance(method, MAE)
    with torch.no_grad():
        for parameter in method.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return method


def pictures(count: int = 6) -> Tensor:
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.fixture
def masks(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, Tensor, Tensor]]:
    """What the method was given by `random_masking`: keep, mask, restore of every forward."""
    drawn: list[tuple[Tensor, Tensor, Tensor]] = []
    draw = mae.random_masking

    def note(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        drawn.append(draw(*arguments))
        return drawn[-1]

    monkeypatch.setattr(mae, "random_masking", note)
    return drawn


Masks = list[tuple[Tensor, Tensor, Tensor]]


def forward(method: MAE, images: Tensor) -> Output:
    """With the same masks every time."""
    torch.manual_seed(7)
    output: Output = method([images], START)
    return output


# ---------------------------------------------------------------- masks and loss


def test_three_quarters_are_masked_and_the_encoder_sees_the_rest(tiny_of: TinyOf, masks: Masks) -> None:
    method, tokens = build(tiny_of), []
    method.encoder.layers[0].register_forward_pre_hook(lambda _, inputs: tokens.append(inputs[0].shape))
    forward(method, pictures())
    (_, mask, _) = masks[0]
    assert mask.sum(1).tolist() == [12.0] * 6
    assert tokens == [(6, 1 + 4, 96)]


def test_masks_are_new_in_every_step(tiny_of: TinyOf, masks: Masks) -> None:
    method = build(tiny_of)
    method([pictures()], START)
    method([pictures()], START)
    assert not torch.equal(masks[0][1], masks[1][1])


def patches_of(mask: Tensor) -> Tensor:
    """[N, 1, 8, 8]: 1 where a pixel belongs to a patch with 1 in `mask` [N, 16]."""
    return mask.reshape(-1, 1, 4, 4).repeat_interleave(2, 2).repeat_interleave(2, 3)


@pytest.mark.parametrize("norm_pix", [True, False])
def test_the_loss_sees_masked_patches_alone(norm_pix: bool, tiny_of: TinyOf, masks: Masks) -> None:
    method, images = build(tiny_of, method__norm_pix=norm_pix), pictures()
    prediction = torch.randn(6, 16, 4, dtype=torch.float64)
    method.decoder.register_forward_hook(lambda *_: prediction)  # whatever the encoder saw
    loss = forward(method, images).loss
    masked = patches_of(masks[0][1]) == 1
    assert int(masked.sum()) == 6 * 12 * 4
    noise = torch.rand_like(images)
    assert torch.equal(forward(method, torch.where(masked, images, noise)).loss, loss)
    one = torch.zeros_like(masked)
    one.view(-1)[int(masked.flatten().nonzero()[17])] = True  # a single pixel of a masked patch
    assert not torch.equal(forward(method, torch.where(one, noise, images)).loss, loss)

    # The formula, patch by patch.
    total = 0.0
    for image in range(6):
        for patch in range(16):
            row, column = 2 * (patch // 4), 2 * (patch % 4)
            pixels = images[image, 0, row : row + 2, column : column + 2].flatten().tolist()
            if norm_pix:
                mean = math.fsum(pixels) / 4
                deviation = math.sqrt(math.fsum((v - mean) ** 2 for v in pixels) / 3 + 1e-6)
                pixels = [(v - mean) / deviation for v in pixels]
            if masks[0][1][image, patch] == 1:
                guess = prediction[image, patch].tolist()
                total += math.fsum((g - v) ** 2 for g, v in zip(guess, pixels, strict=True)) / 4
    assert loss.item() == pytest.approx(total / (6 * 12), rel=1e-12)


# ---------------------------------------------------------------- features


def test_features_are_cls_after_the_last_norm(tiny_of: TinyOf) -> None:
    method, normed = build(tiny_of), []
    method.encoder.norm.register_forward_hook(lambda _, inputs, tokens: normed.append((inputs[0], tokens)))
    features = forward(method, pictures()).features
    before, after = normed[0]
    assert torch.equal(features, after[:, 0])
    assert not torch.allclose(features, before[:, 0])


def test_the_gradient_at_the_features_is_all_that_reaches_cls(tiny_of: TinyOf) -> None:
    """CLS moved by a small step, wherever it is used: the loss moves by what the gradient at `features` says."""
    method, images = build(tiny_of), pictures()
    output = forward(method, images)
    (gradient,) = torch.autograd.grad(output.loss, output.features)
    direction = torch.randn(6, 96, dtype=torch.float64)
    steps = [1e-4, -1e-4]

    def move(_: Any, __: Any, tokens: Tensor) -> Tensor:
        return torch.cat([tokens[:, :1] + steps[len(losses)] * direction[:, None], tokens[:, 1:]], 1)

    method.encoder.norm.register_forward_hook(move)
    losses: list[float] = []
    for _ in steps:
        losses.append(forward(method, images).loss.item())
    slope = (losses[0] - losses[1]) / 2e-4
    assert slope == pytest.approx(float((gradient * direction).sum()), rel=1e-6)
    assert abs(slope) > 1e-4


def test_a_common_offset_does_not_hurt_the_regulariser(tiny_of: TinyOf) -> None:
    """CLS tokens share a large part. Distances by a matrix product drown in it (methods that use them switch it off
    for MAE); the op has nothing to switch.
    """
    config = tiny_of("mae", regularisers__0__k=16)
    generator = torch.Generator().manual_seed(0)
    spread, offset = torch.randn(256, 96, generator=generator), torch.randn(96, generator=generator)
    features = spread + 1000 * offset  # float32
    truth, fused = (
        build_regulariser(config.with_regulariser(name).regularisers[0], torch.device("cpu"))
        for name in ("ldreg-naive", "ldreg")
    )
    wide = features.double().requires_grad_()
    exact = truth(Output(torch.tensor(0.0), wide))
    exact.value.backward()
    leaf = features.clone().requires_grad_()
    ours = fused(Output(torch.tensor(0.0), leaf))
    ours.value.backward()
    assert exact.stats is not None
    assert ours.stats is not None
    assert ours.value.item() == pytest.approx(exact.value.item(), abs=1e-4)
    assert ((ours.stats.lid.double() - exact.stats.lid) / exact.stats.lid).abs().max() < 1e-4
    assert wide.grad is not None
    assert leaf.grad is not None
    assert (leaf.grad - wide.grad).norm() < 1e-4 * wide.grad.norm()

    product = published_lid(features, features, 16, compute_mode="use_mm_for_euclid_dist").double()
    assert not (((product - exact.stats.lid) / exact.stats.lid).abs().median() < 0.1)  # NaN is no success either


# ---------------------------------------------------------------- a whole step against formulas


def layer_norm(x: Tensor, w: State, prefix: str) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    normal = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    return normal * w[f"{prefix}.weight"] + w[f"{prefix}.bias"]


def linear(x: Tensor, w: State, prefix: str) -> Tensor:
    return x @ w[f"{prefix}.weight"].T + w[f"{prefix}.bias"]


def block(x: Tensor, w: State, prefix: str, heads: int) -> Tensor:
    """Pre-norm attention and MLP, each added to what went in."""
    normed, width = layer_norm(x, w, f"{prefix}.layernorm_before"), x.shape[2] // heads
    q, k, v = (linear(normed, w, f"{prefix}.attention.{part}_proj") for part in "qkv")
    mixed = []
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        scores = q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(width)
        weights = scores.exp() / scores.exp().sum(2, keepdim=True)
        mixed.append(weights @ v[..., part])
    x = x + linear(torch.cat(mixed, 2), w, f"{prefix}.attention.o_proj")
    hidden = linear(layer_norm(x, w, f"{prefix}.layernorm_after"), w, f"{prefix}.mlp.fc1")
    hidden = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2  # GELU
    return x + linear(hidden, w, f"{prefix}.mlp.fc2")


def written_out(method: MAE, w: State, images: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """(loss, CLS), image by image: patches stay in their order, and masked ones are left out or replaced."""
    total, features = torch.tensor(0.0, dtype=torch.float64), []
    cut = [images[:, 0, r : r + 2, c : c + 2].flatten(1) for r in range(0, 8, 2) for c in range(0, 8, 2)]
    pixels = torch.stack(cut, 1)  # [N, 16, 4]
    for image in range(len(images)):
        visible = mask[image] == 0
        kernel = w["encoder.patch_embedding.weight"].flatten(1)  # [D, 4]
        patches = pixels[image] @ kernel.T + w["encoder.patch_embedding.bias"] + method.encoder.positions[1:]
        tokens = torch.cat([w["encoder.cls_token"][0] + method.encoder.positions[:1], patches[visible]])[None]
        for layer in range(len(method.encoder.layers)):
            tokens = block(tokens, w, f"encoder.layers.{layer}", 3)
        tokens = layer_norm(tokens, w, "encoder.norm")
        features.append(tokens[0, 0])
        small = linear(tokens[0], w, "decoder.embedding")
        placed = w["decoder.mask_token"][0].expand(16, -1).clone()
        placed[visible] = small[1:]
        tokens = (torch.cat([small[:1], placed]) + method.decoder.positions)[None]
        for layer in range(len(method.decoder.layers)):
            tokens = block(tokens, w, f"decoder.layers.{layer}", 4)
        guess = linear(layer_norm(tokens[0, 1:], w, "decoder.norm"), w, "decoder.pixels")
        wanted = pixels[image]
        centred = wanted - wanted.mean(1, keepdim=True)
        wanted = centred / (centred.square().sum(1, keepdim=True) / 3 + 1e-6).sqrt()
        total = total + (guess - wanted).square().mean(1)[~visible].sum()
    return total / mask.sum(), torch.stack(features)


def test_value_and_gradient_equal_the_formula(tiny_of: TinyOf, masks: Masks) -> None:
    method, images = build(tiny_of), pictures(4)
    output = forward(method, images)
    output.loss.backward()
    w = {name: p.detach().clone().requires_grad_() for name, p in method.named_parameters()}
    expected, cls = written_out(method, w, images, masks[0][1])
    expected.backward()
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-6)
    # The bound asked for; float64 on both sides leaves it room. The absolute part is for features near 0.
    torch.testing.assert_close(output.features, cls, rtol=1e-6, atol=1e-9)
    whole = math.sqrt(sum(float(p.grad.square().sum()) for p in method.parameters()))
    for name, parameter in method.named_parameters():
        difference = (parameter.grad - w[name].grad).norm()
        assert difference <= 1e-6 * w[name].grad.norm() + 1e-12 * whole, name
