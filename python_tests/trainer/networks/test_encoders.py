"""Every encoder: its size, its stem, its start, its layers, and that all of it trains."""

from __future__ import annotations

from math import sqrt
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import TypeAdapter, ValidationError
from torch import nn

from ldreg_kernels.trainer.config.networks import EncoderConfig
from ldreg_kernels.trainer.networks.encoder import Encoder, build_encoder

SMALL: dict[str, dict[str, Any]] = {
    "conv": {"name": "conv", "width": 4},
    "resnet18": {"name": "resnet18", "width": 8},
    "resnet50": {"name": "resnet50", "width": 8, "stem": "imagenet"},
    "vit": {"name": "vit-micro", "patch_size": 8},
    "vit-moco": {"name": "vit-micro", "patch_size": 8, "initialisation": "moco-v3"},
}


def build(settings: dict[str, Any], channels: int = 3, image_size: int = 32, seed: int = 0) -> Encoder:
    torch.manual_seed(seed)
    config = TypeAdapter(EncoderConfig).validate_python(settings)
    return build_encoder(config, channels=channels, image_size=image_size)


def count(encoder: nn.Module) -> int:
    return sum(p.numel() for p in encoder.parameters())


# torchvision's and timm's counts without the classifier. timm's ViTs learn their 1 + 14^2 positions; ours are fixed.
@pytest.mark.parametrize(
    ("settings", "weights", "width"),
    [
        ({"name": "resnet18", "stem": "imagenet"}, 11_176_512, 512),
        ({"name": "resnet50", "stem": "imagenet"}, 23_508_032, 2048),
        ({"name": "vit-tiny"}, 5_524_416 - 197 * 192, 192),
        ({"name": "vit-small"}, 21_665_664 - 197 * 384, 384),
        ({"name": "vit-base"}, 85_798_656 - 197 * 768, 768),
    ],
    ids=lambda value: value["name"] if isinstance(value, dict) else "",
)
def test_published_networks_have_their_published_sizes(settings: dict[str, Any], weights: int, width: int) -> None:
    with torch.device("meta"):  # shapes alone
        encoder = build(settings, image_size=224)
    assert count(encoder) == weights
    assert encoder.output_dim == width


def test_small_networks_have_the_sizes_their_descriptions_state() -> None:
    assert count(build({"name": "conv"}, channels=1, image_size=28)) == pytest.approx(0.1e6, rel=0.02)
    micro = build({"name": "vit-micro", "patch_size": 4}, channels=1, image_size=28)
    block = 12 * 96**2 + 13 * 96  # 4 matrices of D x D and 2 of D x 4D; 4 + 1 + 4 biases and 2 norms of 2
    assert count(micro) == 6 * block + (16 * 96 + 96) + 96 + 2 * 96  # blocks, patch embedding, CLS, last norm


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_small_stem_keeps_the_side_and_the_imagenet_stem_quarters_it(name: str) -> None:
    small = build({"name": name, "width": 8, "stem": "small"}, channels=1)
    imagenet = build({"name": name, "width": 8, "stem": "imagenet"}, channels=1)
    images = torch.zeros(1, 1, 32, 32)
    assert small.network.embedder(images).shape == (1, 8, 32, 32)
    assert imagenet.network.embedder(images).shape == (1, 8, 8, 8)
    assert count(imagenet) - count(small) == 8 * (7 * 7 - 3 * 3)


def test_resnet50_strides_in_the_3_by_3_convolution() -> None:
    for stage in build(SMALL["resnet50"]).network.encoder.stages[1:]:
        strides = [layer.convolution.stride for layer in stage.layers[0].layer]
        assert strides == [(1, 1), (2, 2), (1, 1)]
        assert stage.layers[0].layer[1].convolution.kernel_size == (3, 3)


@pytest.mark.parametrize("name", ["conv", "resnet18", "resnet50"])
def test_convolutions_begin_as_he_says_and_norms_as_1_and_0(name: str) -> None:
    for module in build(SMALL[name]).modules():
        if isinstance(module, nn.Conv2d):
            weight = module.weight.detach()
            fan_out = module.out_channels * module.kernel_size[0] * module.kernel_size[1]
            normalised = weight / sqrt(2 / fan_out)
            # Of n normal numbers: the mean has sigma 1 / sqrt(n), the standard deviation 1 / sqrt(2n).
            assert abs(normalised.mean().item()) < 5 / sqrt(weight.numel())
            assert abs(normalised.std().item() - 1) < 5 / sqrt(2 * weight.numel())
        elif isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all()
            assert (module.bias == 0).all()


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
@pytest.mark.parametrize("zero_init", [True, False])
def test_zero_init_starts_each_block_as_its_shortcut(name: str, zero_init: bool) -> None:
    encoder = build({**SMALL[name], "zero_init": zero_init})
    maps = encoder.network.embedder(torch.rand(2, 3, 32, 32))
    same = []
    for stage in encoder.network.encoder.stages:
        for block in stage.layers:
            shortcut = F.relu(block.shortcut(maps))  # where the shape stays, the shortcut is the identity
            maps = block(maps)
            same.append(torch.equal(maps, shortcut))
            *others, last = (bool(layer.normalization.weight.any()) for layer in block.layer)
            assert all(others)  # a zero earlier would look the same, and nothing behind it could learn
            assert last is not zero_init
    assert all(same) if zero_init else not any(same)


@pytest.mark.parametrize("name", SMALL)
def test_hidden_ends_with_the_features(name: str) -> None:
    encoder = build(SMALL[name]).eval()
    images = torch.rand(4, 3, 32, 32)
    with torch.no_grad():
        features, hidden = encoder(images), encoder.hidden(images)
    layers, word = (6, "layer") if name.startswith("vit") else (4, "stage")
    assert list(hidden) == [f"{word}{number}" for number in range(1, layers + 1)]
    assert features.shape == (4, encoder.output_dim)
    assert all(rows.shape[0] == 4 and rows.ndim == 2 for rows in hidden.values())
    assert torch.equal(hidden[f"{word}{layers}"], features)
    assert not any(torch.equal(rows, features) for rows in list(hidden.values())[:-1])


@pytest.mark.parametrize("name", SMALL)
def test_gradient_reaches_all_that_trains(name: str) -> None:
    encoder = build(SMALL[name])
    encoder(torch.rand(8, 3, 32, 32)).square().sum().backward()
    for parameter_name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, parameter_name
        # A key's bias moves all scores of a query alike, which softmax does not see: its gradient is rounding alone.
        assert parameter.grad.any() or parameter_name.endswith("k_proj.bias"), parameter_name


@pytest.mark.parametrize("name", SMALL)
def test_start_and_evaluation_are_deterministic(name: str) -> None:
    first, again, other = build(SMALL[name]).eval(), build(SMALL[name]).eval(), build(SMALL[name], seed=1).eval()
    images = torch.rand(4, 3, 32, 32)
    with torch.no_grad():
        features = first(images)
        assert torch.equal(first(images), features)
        assert torch.equal(again(images), features)
        assert not torch.equal(other(images), features)


def test_small_images_pass_the_conv_net() -> None:
    assert build(SMALL["conv"], channels=1)(torch.rand(4, 1, 8, 8)).shape == (4, 32)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "resnet34"}, "resnet34"),
        ({"width": 16}, "name"),
        ({"name": "conv", "stem": "small"}, "stem"),
        ({"name": "vit-base", "width": 64}, "width"),
        ({"name": "resnet18", "width": 4}, "width"),
    ],
)
def test_wrong_settings_are_refused_by_name(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TypeAdapter(EncoderConfig).validate_python(settings)
