"""The momentum copy: equal at the start, then an exponential average of the parameters and of nothing else."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ldreg_kernels.trainer.config.networks import ConvConfig, ResNetConfig
from ldreg_kernels.trainer.networks.conv import ConvEncoder
from ldreg_kernels.trainer.networks.heads import byol_projector, simclr_projector
from ldreg_kernels.trainer.networks.momentum import MomentumCopy
from ldreg_kernels.trainer.networks.resnet import ResNetEncoder

IMAGES = (16, 1, 8, 8)


@pytest.fixture
def online() -> list[nn.Module]:
    torch.manual_seed(0)
    return [ConvEncoder(1, ConvConfig(width=4)), byol_projector(32, 16, 8)]


def disturb(networks: list[nn.Module]) -> None:
    with torch.no_grad():
        for network in networks:
            for parameter in network.parameters():
                parameter.add_(torch.randn_like(parameter))


def test_it_starts_as_an_exact_copy_that_does_not_train(online: list[nn.Module]) -> None:
    target = MomentumCopy(*online)
    images = torch.rand(IMAGES)
    features, projections = target(images)
    expected = online[0](images)
    assert torch.equal(features, expected)
    assert torch.equal(projections, online[1](expected))
    assert not any(output.requires_grad for output in target(images.clone().requires_grad_()))
    assert not any(p.requires_grad for p in target.parameters())
    assert all(p.requires_grad for network in online for p in network.parameters())  # the original still does
    disturb(online)
    assert not torch.equal(online[0](images), features)
    assert torch.equal(target(images)[0], features)  # nothing is shared


def test_update_is_the_average_of_the_formula_over_five_steps(online: list[nn.Module]) -> None:
    target = MomentumCopy(*online)
    expected = [p.detach().double() for network in online for p in network.parameters()]
    for momentum in (0.996, 0.9, 0.5, 0.99, 0.97):
        disturb(online)
        target.update(*online, momentum=momentum)
        now = [p.detach().double() for network in online for p in network.parameters()]
        expected = [momentum * old + (1 - momentum) * new for old, new in zip(expected, now, strict=True)]
    for ours, theirs in zip(target.parameters(), expected, strict=True):
        # Five steps; each rounds twice, a product and a sum, by at most 2^-24 of values that stay below about 6.
        torch.testing.assert_close(ours.double(), theirs, atol=5 * 6 * 2**-23, rtol=0)


def test_momentum_1_stays_and_0_becomes_the_online_network(online: list[nn.Module]) -> None:
    target = MomentumCopy(*online)
    before = [p.clone() for p in target.parameters()]
    disturb(online)
    target.update(*online, momentum=1.0)
    assert all(map(torch.equal, target.parameters(), before))
    target.update(*online, momentum=0.0)
    assert all(map(torch.equal, target.parameters(), nn.ModuleList(online).parameters()))


def test_buffers_are_its_own(online: list[nn.Module]) -> None:
    target = MomentumCopy(*online)
    statistics = [b.clone() for b in target.buffers()]
    for network, inputs in zip(online, (torch.rand(IMAGES), torch.randn(16, 32)), strict=True):
        network(inputs)  # the online statistics move
    target.update(*online, momentum=0.5)
    assert all(map(torch.equal, target.buffers(), statistics))
    target(torch.rand(IMAGES))  # in training mode the copy's own forward moves them
    assert not any(map(torch.equal, target.buffers(), statistics))
    statistics = [b.clone() for b in target.buffers()]
    target.eval()
    target(torch.rand(IMAGES))
    assert all(map(torch.equal, target.buffers(), statistics))


def test_state_goes_round(online: list[nn.Module]) -> None:
    target, other = MomentumCopy(*online), MomentumCopy(*online)
    disturb(online)
    target.update(*online, momentum=0.5)
    target(torch.rand(IMAGES))
    other.load_state_dict(target.state_dict())
    images = torch.rand(IMAGES)
    assert all(map(torch.equal, other.eval()(images), target.eval()(images)))


def test_it_copies_transformers_networks_and_frozen_parameters() -> None:
    online = [ResNetEncoder(1, ResNetConfig(width=8)), simclr_projector(64, 16, 8)]
    target = MomentumCopy(*online)
    disturb(online)
    target.update(*online, momentum=0.0)
    images = torch.rand(IMAGES)
    assert torch.equal(target(images)[1], online[1](online[0](images)))
    assert [n for n, p in online[1].named_parameters() if not p.requires_grad] == ["4.bias"]


def test_wrong_arguments_are_refused(online: list[nn.Module]) -> None:
    target = MomentumCopy(*online)
    for momentum in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="momentum must be from 0 to 1"):
            target.update(*online, momentum=momentum)
    with pytest.raises(ValueError, match="networks must be those that were copied"):
        target.update(online[0], momentum=0.9)
    with pytest.raises(ValueError, match="networks must be those that were copied"):
        target.update(online[0], byol_projector(32, 16, 9), momentum=0.9)
