"""Who is decayed, who is adapted, at which rate, and what is refused; and the section of the configuration."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from ldreg_kernels.trainer.config.optim import OptimiserConfig
from ldreg_kernels.trainer.methods.base import Group, Time
from ldreg_kernels.trainer.optim import LearningRate, build_optimiser, parameter_groups, set_learning_rate


class Net(nn.Module):
    """One of everything that has a rule."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.ln = nn.LayerNorm(4)
        self.linear = nn.Linear(4, 2)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 4))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, 4))
        self.positions = nn.Parameter(torch.zeros(1, 5, 4), requires_grad=False)
        self.temperature = nn.Parameter(torch.tensor(1.0))
        self.table = nn.Module()
        self.table.bias = nn.Parameter(torch.zeros(2, 3))  # a bias with two dimensions is one by its name
        self.debiased = nn.Linear(2, 2, bias=False)  # and `bias` inside a name means nothing


DECAYED = {"conv.weight", "linear.weight", "cls_token", "mask_token", "debiased.weight"}


def trained(net: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in net.named_parameters() if p.requires_grad}


def names(net: nn.Module, group: dict) -> set[str]:
    by_identity = {id(p): name for name, p in net.named_parameters()}
    return {by_identity[id(p)] for p in group["params"]}


def test_biases_norms_and_scalars_are_not_decayed() -> None:
    net = Net()
    decayed, plain = parameter_groups([Group(trained(net))], OptimiserConfig(weight_decay=0.05), net)
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.05, 0.0)
    assert names(net, decayed) == DECAYED
    assert names(net, plain) == set(trained(net)) - DECAYED
    assert "adapt" not in decayed


def test_lars_adapts_what_it_decays() -> None:
    net = Net()
    decayed, plain = parameter_groups([Group(trained(net))], OptimiserConfig(name="lars"), net)
    assert (decayed["adapt"], plain["adapt"]) == (True, False)


@pytest.mark.parametrize("name", ["adamw", "sgd", "lars", "larc"])
def test_decay_all_decays_all_and_adapts_no_bias(name: str) -> None:
    net = Net()
    groups = parameter_groups([Group(trained(net))], OptimiserConfig(name=name, weight_decay=0.3, decay_all=True))
    assert [g["weight_decay"] for g in groups] == [0.3, 0.3]
    assert [g.get("adapt") for g in groups] == ([True, False] if name == "lars" else [None, None])


def test_every_group_keeps_its_rules_and_empty_ones_are_left_out() -> None:
    net = Net()
    predictor = {n: p for n, p in trained(net).items() if n.startswith("debiased")}
    rest = {n: p for n, p in trained(net).items() if n not in predictor}
    groups = [Group(rest), Group(predictor, lr_scale=10.0, constant_lr=True), Group({})]
    optimiser = build_optimiser(OptimiserConfig(name="sgd", lr=0.5), groups, net)
    assert [g["lr"] for g in optimiser.param_groups] == [0.5, 0.5, 5.0]
    rate_of = LearningRate(peak=2.0, floor=0.0, warmup_steps=4)
    assert set_learning_rate(optimiser, rate_of, Time(1, 10, 0)) == 0.5
    assert [g["lr"] for g in optimiser.param_groups] == [0.5, 0.5, 20.0]  # constant: the peak, times its scale


def test_a_parameter_in_two_places_is_refused() -> None:
    weight = nn.Parameter(torch.ones(2, 2))
    for groups in ([Group({"a": weight, "b": weight})], [Group({"a": weight}), Group({"b": weight})]):
        with pytest.raises(ValueError, match="b is in the parameter groups twice, first as a"):
            parameter_groups(groups, OptimiserConfig())


def test_a_forgotten_parameter_is_refused() -> None:
    net = Net()
    some = {n: p for n, p in trained(net).items() if n not in ("cls_token", "bn.bias")}
    with pytest.raises(ValueError, match=r"in no parameter group, though trainable: cls_token, bn.bias"):
        build_optimiser(OptimiserConfig(), [Group(some)], net)


def test_nothing_to_train_is_refused() -> None:
    with pytest.raises(ValueError, match="no parameters to train"):
        parameter_groups([Group({})], OptimiserConfig())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "adamw", "momentum": 0.9}, "momentum has no meaning for adamw, leave it out"),
        ({"name": "sgd", "betas": [0.9, 0.95]}, "betas has no meaning for sgd"),
        ({"name": "lars", "nesterov": False}, "nesterov has no meaning for lars"),
        ({"name": "sgd", "trust_coefficient": 0.001}, r"trust_coefficient has no meaning for sgd.*for lars, larc"),
        ({"name": "sgd", "nesterov": True, "momentum": 0}, "nesterov needs a momentum above 0"),
        ({"betas": [0.9, 1.0]}, "less than 1"),
        ({"final_lr": 1.5}, "less than or equal to 1"),
        ({"name": "adam"}, "'adamw', 'sgd', 'lars' or 'larc'"),
    ],
)
def test_settings_without_a_meaning_are_errors(values: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        OptimiserConfig.model_validate(values)


@pytest.mark.parametrize("name", ["adamw", "sgd", "lars", "larc"])
def test_what_is_written_down_can_be_read_again(name: str) -> None:
    config = OptimiserConfig(name=name, lr=0.2)
    assert OptimiserConfig.model_validate(config.model_dump(mode="json")) == config
    assert OptimiserConfig.model_validate_json(config.model_dump_json()) == config
    assert ("betas" in config.model_dump()) == (name == "adamw")
