"""BYOL: its momentum networks, the published weight of the regulariser, and a whole step against float64 formulas."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ldreg_kernels.compat import lid_mom_est
from ldreg_kernels.trainer.config import TrainConfig
from ldreg_kernels.trainer.engine import prepare, step_log, train_one_epoch
from ldreg_kernels.trainer.methods import BYOL, Output, Time, build_method
from ldreg_kernels.trainer.regularisers import build_regulariser
from ldreg_kernels.trainer.step_log import Observer, Step

TinyOf = Callable[..., TrainConfig]
State = dict[str, Tensor]


def build(config: TrainConfig) -> BYOL:
    torch.manual_seed(0)
    method = build_method(config, channels=1, image_size=8).double()
    assert isinstance(method, BYOL)
    return method


def disturbed(config: TrainConfig) -> BYOL:
    """As after some steps: the online networks have left their copy."""
    method = build(config)
    with torch.no_grad():
        for parameter in method.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return method


def two_views(count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(count, 1, 8, 8, generator=generator, dtype=torch.float64) for _ in range(2)]


# ---------------------------------------------------------------- momentum networks


def online_weights(method: BYOL) -> list[Tensor]:
    networks = [method.encoder, method.projector]
    return [p.detach().double() for network in networks for p in network.parameters()]


class Snapshots(Observer):
    """The online weights after every step, and how far the momentum networks are from the formula."""

    def __init__(self, method: BYOL, base: float, steps: int) -> None:
        self.method, self.base, self.steps = method, base, steps
        self.expected = online_weights(method)
        self.errors: list[float] = []

    def step(self, step: Step) -> None:
        m = 1 - (1 - self.base) * (math.cos(math.pi * step.time.step / self.steps) + 1) / 2
        now = online_weights(self.method)
        self.expected = [m * old + (1 - m) * new for old, new in zip(self.expected, now, strict=True)]
        ours = self.method.momentum_networks.parameters()
        self.errors.append(max(float((p - e).abs().max()) for p, e in zip(ours, self.expected, strict=True)))


def test_momentum_networks_begin_as_a_copy_and_follow_by_the_cosine(tiny_of: TinyOf) -> None:
    run = prepare(tiny_of("byol", epochs=1, method__ema_momentum=0.6, optimiser__lr=0.1, optimiser__warmup_epochs=0))
    method = run.bare_method
    assert isinstance(method, BYOL)
    ours = list(method.momentum_networks.parameters())
    start = [p.clone() for p in ours]
    assert all(torch.equal(a.double(), b) for a, b in zip(ours, online_weights(method), strict=True))

    snapshots = Snapshots(method, 0.6, 5)
    train_one_epoch(run, 0, step_log(run, [snapshots]))
    # Each step rounds once, by 2^-24 of weights that stay below 2; the weights themselves have moved by tenths.
    assert len(snapshots.errors) == 5
    assert max(snapshots.errors) < 5 * 2 * 2**-24
    assert max(float((a - b).abs().max()) for a, b in zip(ours, start, strict=True)) > 0.1
    assert max(float((a - b).abs().max()) for a, b in zip(ours, online_weights(method), strict=True)) > 0.01


def test_momentum_features_are_of_the_same_views_and_carry_no_gradient(tiny_of: TinyOf) -> None:
    method, views = disturbed(tiny_of("byol")), two_views(6)
    output = method(views, Time(0, 1, 0))
    assert output.extra_references is not None
    assert output.extra_references.grad_fn is None
    torch.testing.assert_close(output.extra_references, method.momentum_networks.networks[0](torch.cat(views)))
    assert not torch.allclose(output.extra_references, output.features)
    method.encoder.load_state_dict(method.momentum_networks.networks[0].state_dict())
    same = method(views, Time(0, 1, 0))
    assert torch.equal(same.extra_references, same.features)


# ---------------------------------------------------------------- the published weight


@pytest.mark.parametrize("name", ["ldreg", "ldreg-naive"])
def test_the_published_sum_over_views_is_twice_our_mean(name: str, tiny_of: TinyOf) -> None:
    """LDReg's code: for each view, -mean_i ln LID of its N rows against the 4N of both networks; the two are added."""
    n, k = 24, 8
    config = tiny_of("byol", regularisers__0__k=k).with_regulariser(name)
    output = disturbed(config)(two_views(n), Time(0, 1, 0))
    assert output.extra_references is not None
    features = output.features.detach()
    references = torch.cat([features, output.extra_references])
    assert len(references) == 4 * n

    published = features.clone().requires_grad_()
    per_view = [-lid_mom_est(view, references, k).log().mean() for view in published.chunk(2)]
    (per_view[0] + per_view[1]).backward()

    leaf = features.clone().requires_grad_()
    ours = build_regulariser(config.regularisers[0], torch.device("cpu"))(output._replace(features=leaf)).value
    ours.backward()
    assert (per_view[0] + per_view[1]).item() == pytest.approx(2 * ours.item(), rel=1e-9)
    assert leaf.grad is not None
    # float64 both; 1 / (w - m) magnifies the rounding of a distance by 1 + LID.
    torch.testing.assert_close(published.grad, 2 * leaf.grad, rtol=1e-7, atol=1e-12)


# ---------------------------------------------------------------- a whole step against formulas


def batch_norm(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Over all but the second dimension, biased variance, eps 1e-5."""
    over = [d for d in range(x.ndim) if d != 1]
    shape = [1, -1] + [1] * (x.ndim - 2)
    centred = x - x.mean(over, keepdim=True)
    normal = centred / (centred.square().mean(over, keepdim=True) + 1e-5).sqrt()
    return normal * scale.reshape(shape) + shift.reshape(shape)


def encode(images: Tensor, w: State, prefix: str) -> Tensor:
    """The small convolutional net: five times convolution, BN, ReLU; then the mean over positions."""
    maps = images
    for layer, stride in (("stem", 2), ("stages.0", 1), ("stages.1", 2), ("stages.2", 2), ("stages.3", 2)):
        maps = F.conv2d(maps, w[f"{prefix}{layer}.0.weight"], stride=stride, padding=1)
        maps = batch_norm(maps, w[f"{prefix}{layer}.1.weight"], w[f"{prefix}{layer}.1.bias"]).clamp(min=0)
    return maps.flatten(2).mean(2)


def head(x: Tensor, w: State, prefix: str) -> Tensor:
    hidden = x @ w[f"{prefix}0.weight"].T + w[f"{prefix}0.bias"]
    hidden = batch_norm(hidden, w[f"{prefix}1.weight"], w[f"{prefix}1.bias"]).clamp(min=0)
    return hidden @ w[f"{prefix}3.weight"].T


def written_out(w: State, one: Tensor, two: Tensor) -> Tensor:
    """mean_i (2 - 2 cos(p1_i, z2'_i)) + (2 - 2 cos(p2_i, z1'_i)); z' constant."""
    images, n = torch.cat([one, two]), len(one)
    p = head(head(encode(images, w, "encoder."), w, "projector."), w, "predictor.")
    momentum = "momentum_networks.networks."
    z = head(encode(images, w, f"{momentum}0."), w, f"{momentum}1.").detach()
    total: Any = 0
    for i in range(n):
        for prediction, target in ((p[i], z[n + i]), (p[n + i], z[i])):
            cosine = (prediction * target).sum() / (prediction.square().sum() * target.square().sum()).sqrt()
            total = total + (2 - 2 * cosine) / n
    return total


def test_value_and_gradient_equal_the_formula(tiny_of: TinyOf) -> None:
    method, (one, two) = disturbed(tiny_of("byol")), two_views(6)
    output: Output = method((one, two), Time(0, 1, 0))
    output.loss.backward()
    w = {name: p.detach().clone().requires_grad_() for name, p in method.named_parameters()}
    expected = written_out(w, one, two)
    expected.backward()
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-6)
    trained = {name: p for name, p in method.named_parameters() if p.requires_grad}
    assert len(trained) == 25
    whole = math.sqrt(sum(float(p.grad.square().sum()) for p in trained.values()))
    for name, parameter in trained.items():
        difference = (parameter.grad - w[name].grad).norm()
        assert difference <= 1e-6 * w[name].grad.norm() + 1e-12 * whole, name
    assert all(w[name].grad is None for name in w if name not in trained)
