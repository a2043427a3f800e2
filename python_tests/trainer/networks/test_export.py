"""torchvision's names of a ResNet's tensors: the whole list by rule, and a network run from them alone.

torchvision itself is not needed, and publishes no wheel that imports beside a CPU torch.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ldreg_kernels.trainer.config.networks import ResNetConfig
from ldreg_kernels.trainer.networks.export import from_torchvision, to_torchvision
from ldreg_kernels.trainer.networks.resnet import ResNetEncoder

BLOCKS = {"resnet18": [2, 2, 2, 2], "resnet50": [3, 4, 6, 3]}
Shape = tuple[int, ...]


def torchvision_shapes(name: str) -> dict[str, Shape]:
    """Every tensor of a torchvision ResNet but its classifier and the counters of its batch normalisations."""
    shapes: dict[str, Shape] = {}

    def add(convolution: str, norm: str, out: int, into: int, side: int) -> None:
        shapes[f"{convolution}.weight"] = (out, into, side, side)
        shapes.update({f"{norm}.{part}": (out,) for part in ("weight", "bias", "running_mean", "running_var")})

    add("conv1", "bn1", 64, 3, 7)
    into = 64
    for stage, blocks in enumerate(BLOCKS[name], 1):
        inside = 32 * 2**stage
        out = inside if name == "resnet18" else 4 * inside
        for block in range(blocks):
            place = f"layer{stage}.{block}"
            if name == "resnet18":
                convolutions = [(inside, into, 3), (inside, inside, 3)]
            else:
                convolutions = [(inside, into, 1), (inside, inside, 3), (out, inside, 1)]
            for number, sizes in enumerate(convolutions, 1):
                add(f"{place}.conv{number}", f"{place}.bn{number}", *sizes)
            if block == 0 and (stage > 1 or into != out):
                add(f"{place}.downsample.0", f"{place}.downsample.1", out, into, 1)
            into = out
    return shapes


@pytest.mark.parametrize(("name", "tensors"), [("resnet18", 100), ("resnet50", 265)])
def test_names_are_torchvisions_one_to_one(name: str, tensors: int) -> None:
    with torch.device("meta"):  # names and shapes alone
        encoder = ResNetEncoder(3, ResNetConfig.model_validate({"name": name, "stem": "imagenet"}))
    exported = to_torchvision(encoder.state_dict())
    shapes = {key: tuple(t.shape) for key, t in exported.items() if not key.endswith("num_batches_tracked")}
    assert shapes == torchvision_shapes(name)
    assert len(shapes) == tensors
    assert len(exported) == len(encoder.state_dict())


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("stem", ["small", "imagenet"])
def test_there_and_back(name: str, stem: str) -> None:
    settings = ResNetConfig.model_validate({"name": name, "width": 8, "stem": stem})
    first, other = ResNetEncoder(3, settings), ResNetEncoder(3, settings)
    images = torch.rand(4, 3, 32, 32)
    first(images)  # running statistics and counters are no longer 0 and 1
    other.load_state_dict(from_torchvision(to_torchvision(first.state_dict())))
    assert all(map(torch.equal, first.state_dict().values(), other.state_dict().values()))
    assert torch.equal(first.eval()(images), other.eval()(images))


def run_torchvision(weights: dict[str, Tensor], name: str, images: Tensor) -> Tensor:
    """torchvision's forward pass, written out over its names (ImageNet stem, evaluation)."""

    def norm(place: str, x: Tensor) -> Tensor:
        mean, var, scale, shift = (
            weights[f"{place}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return F.batch_norm(x, mean, var, scale, shift)

    def convolve(place: str, x: Tensor, stride: int = 1) -> Tensor:
        weight = weights[f"{place}.weight"]
        return F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)

    x = F.max_pool2d(F.relu(norm("bn1", convolve("conv1", images, 2))), 3, 2, 1)
    last, strided = (2, 1) if name == "resnet18" else (3, 2)  # which convolution of a block halves the side
    for stage, blocks in enumerate(BLOCKS[name], 1):
        for block in range(blocks):
            place, stride = f"layer{stage}.{block}", 2 if block == 0 and stage > 1 else 1
            y, shortcut = x, x
            for number in range(1, last + 1):
                y = convolve(f"{place}.conv{number}", y, stride if number == strided else 1)
                y = norm(f"{place}.bn{number}", y)
                y = F.relu(y) if number < last else y
            if f"{place}.downsample.0.weight" in weights:
                shortcut = norm(f"{place}.downsample.1", convolve(f"{place}.downsample.0", x, stride))
            x = F.relu(y + shortcut)
    return x.mean((2, 3))


@pytest.mark.parametrize("name", BLOCKS)
def test_torchvisions_forward_pass_over_the_exported_tensors_gives_our_features(name: str) -> None:
    torch.manual_seed(0)
    encoder = ResNetEncoder(3, ResNetConfig.model_validate({"name": name, "width": 8, "stem": "imagenet"})).double()
    images = torch.rand(4, 3, 64, 64).double()
    with torch.no_grad():
        for parameter in encoder.parameters():  # scales and shifts take part too
            parameter.add_(0.1 * torch.randn_like(parameter))
        encoder(images)
        features = encoder.eval()(images)
        theirs = run_torchvision(to_torchvision(encoder.state_dict()), name, images)
    # float64, the same layers in another arrangement: 1e-16 for each of their sums, through up to 53 layers.
    torch.testing.assert_close(theirs, features, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("name", ["encoder.stages.0.x", "network.embedder.bias", "network.encoder.stages.0.layers.0.x"])
def test_unknown_tensors_are_refused_going_out(name: str) -> None:
    with pytest.raises(ValueError, match="is not a tensor of a ResNetEncoder"):
        to_torchvision({name: torch.zeros(1)})


@pytest.mark.parametrize("name", ["fc.weight", "layer5.0.conv1.weight", "layer1.0.downsample.2.weight"])
def test_unknown_tensors_are_refused_coming_in(name: str) -> None:
    with pytest.raises(ValueError, match="is not a tensor of a torchvision ResNet"):
        from_torchvision({name: torch.zeros(1)})
