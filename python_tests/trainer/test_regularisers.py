"""The terms that join a method's loss: sums, warm-up, weights by the ratio of gradients, and who computes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import ldreg_kernels as ldk
from ldreg_kernels.trainer.comparison import milliseconds
from ldreg_kernels.trainer.config import ConfigError, TrainConfig
from ldreg_kernels.trainer.engine import Recorder, prepare, step_log, train, train_one_epoch
from ldreg_kernels.trainer.methods import VIEWS_PER_IMAGE, Method, Output, Time, build_method
from ldreg_kernels.trainer.regularisers import (
    LIDRegulariser,
    NoBackendError,
    Total,
    add_terms,
    build_regulariser,
    fused_backend,
)
from ldreg_kernels.trainer.step_log import step_numbers

CPU = torch.device("cpu")
METHODS = ("simclr", "byol", "mae")
TinyOf = Callable[..., TrainConfig]
START = Time(0, 10, 0)
RATIO = {"regularisers__0__weight": "ratio:0.05"}


class Forward:
    """A method after a few steps, whose forward can be repeated bit by bit."""

    def __init__(self, config: TrainConfig) -> None:
        torch.manual_seed(0)
        self.method: Method = build_method(config, channels=1, image_size=8)
        with torch.no_grad():  # BYOL's momentum networks are no copy any more
            for parameter in self.method.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.02 * torch.randn_like(parameter))
        self.views = [torch.rand(48, 1, 8, 8) for _ in range(VIEWS_PER_IMAGE[config.method.name])]

    def __call__(self) -> Output:
        torch.manual_seed(1)  # MAE's masks
        output: Output = self.method(self.views, START)
        return output

    def step(self, regularisers: list[LIDRegulariser], time: Time = START, *, measure: bool = False) -> tuple[Any, ...]:
        """(total, gradient at the features, gradients of all trained parameters)."""
        self.method.zero_grad()
        output = self()
        output.features.retain_grad()
        total = add_terms(output, regularisers, time, measure=measure)
        total.loss.backward()
        return total, output.features.grad, [p.grad.clone() for p in self.method.parameters() if p.requires_grad]


def regularisers_of(config: TrainConfig) -> list[LIDRegulariser]:
    return [build_regulariser(r, CPU) for r in config.regularisers]


def by_hand(forward: Forward, regularisers: list[LIDRegulariser]) -> tuple[Tensor, list[Tensor], list[float]]:
    """dL/df, and for each regulariser dR/df and R, by autograd.grad on graphs of their own."""
    output = forward()
    (of_loss,) = torch.autograd.grad(output.loss, output.features)
    gradients, values = [], []
    for regulariser in regularisers:
        leaf = output.features.detach().requires_grad_()
        value = regulariser(output._replace(features=leaf)).value
        gradients.append(torch.autograd.grad(value, leaf)[0])
        values.append(value.item())
    return of_loss, gradients, values


def norm(x: Tensor) -> float:
    return float(x.double().norm())


# ---------------------------------------------------------------- sums and warm-up


@pytest.mark.parametrize("method", METHODS)
def test_terms_add_up(method: str, tiny_of: TinyOf) -> None:
    config = tiny_of(method).derive(
        {"regularisers": [{"k": 16, "weight": 0.3}, {"name": "minlid", "k": 8, "weight": 0.7}, {"k": 24, "weight": 0}]}
    )
    forward, terms = Forward(config), regularisers_of(config)
    total, gradient, _ = forward.step(terms)
    of_loss, (one, two, _), values = by_hand(forward, terms)
    assert total.loss.item() == pytest.approx(forward().loss.item() + 0.3 * values[0] + 0.7 * values[1], rel=1e-6)
    torch.testing.assert_close(gradient, of_loss + 0.3 * one + 0.7 * two, rtol=1e-5, atol=1e-8)
    assert [term.value.item() for term in total.terms] == values
    assert total.weights == [0.3, 0.7, 0.0]
    assert not any(term.value.requires_grad for term in total.terms)


@pytest.mark.parametrize("weight", [0.1, "ratio:0.05"])
@pytest.mark.parametrize("method", METHODS)
def test_during_warmup_a_term_is_logged_and_changes_no_bit(method: str, weight: Any, tiny_of: TinyOf) -> None:
    config = tiny_of(method, regularisers__0__weight=weight, regularisers__0__warmup_epochs=3)
    forward, terms = Forward(config), regularisers_of(config)
    plain, _, without = forward.step([])
    for epoch in (0, 2):
        for measure in (False, True):
            total, _, gradients = forward.step(terms, Time(epoch, 10, epoch), measure=measure)
            assert torch.equal(total.loss, plain.loss)
            assert all(map(torch.equal, gradients, without))
            assert total.ratio is None
    logged = step_numbers(forward(), total)
    _, _, (value,) = by_hand(forward, terms)
    assert logged["regulariser"].item() == value
    assert logged["degenerate"].item() == 0
    assert logged["lid"].item() == pytest.approx(torch.tensor(-value).exp().item(), rel=1e-5)

    _, _, gradients = forward.step(terms, Time(3, 10, 3))
    assert not all(map(torch.equal, gradients, without))


def test_weights_over_time(tiny_of: TinyOf) -> None:
    number, ratio = (
        regularisers_of(tiny_of("simclr", regularisers__0__warmup_epochs=2, regularisers__0__weight=weight))[0]
        for weight in (0.25, "ratio:0.05")
    )
    assert [number.weight(Time(epoch, 10, epoch)) for epoch in (0, 1, 2, 9)] == [0, 0, 0.25, 0.25]
    assert [ratio.weight(Time(epoch, 10, epoch)) for epoch in (0, 1, 2, 9)] == [0, 0, 1, 1]
    assert (number.ratio, ratio.ratio) == (None, 0.05)


# ---------------------------------------------------------------- weights by ratio


@pytest.mark.parametrize("method", METHODS)
def test_a_ratio_sets_the_share_of_the_gradient(method: str, tiny_of: TinyOf) -> None:
    config = tiny_of(method, **RATIO)
    forward, terms = Forward(config), regularisers_of(config)
    total, gradient, gradients = forward.step(terms)
    of_loss, (own,), _ = by_hand(forward, terms)
    beta = 0.05 * norm(of_loss) / norm(own)
    assert total.weights[0].item() == pytest.approx(beta, rel=1e-5)
    assert total.ratio is not None
    assert total.ratio.item() == pytest.approx(0.05, rel=1e-4)  # it is a difference of two gradients, in float32
    assert norm(gradient - of_loss) / norm(of_loss) == pytest.approx(0.05, rel=1e-4)
    torch.testing.assert_close(gradient, of_loss + beta * own, rtol=1e-5, atol=1e-6 * norm(of_loss))

    # And this is what reaches the encoder.
    output = forward()
    trained = [p for p in forward.method.encoder.parameters() if p.requires_grad]
    expected = torch.autograd.grad(output.features, trained, of_loss + beta * own, retain_graph=True, allow_unused=True)
    if method == "mae":  # beside CLS, the loss reaches MAE's encoder through the visible patches
        plain = torch.autograd.grad(output.loss, trained, retain_graph=True)
        term = torch.autograd.grad(output.features, trained, beta * own)
        expected = tuple(a + b for a, b in zip(plain, term, strict=True))
    names = [n for n, p in forward.method.named_parameters() if p.requires_grad]
    place = {name: grad for name, grad in zip(names, gradients, strict=True) if name.startswith("encoder.")}
    whole = sum(norm(e) ** 2 for e in expected) ** 0.5
    for (name, ours), theirs in zip(place.items(), expected, strict=True):
        assert norm(ours - theirs) <= 1e-4 * norm(theirs) + 1e-6 * whole, name

    assert total.loss.item() == forward().loss.item()  # the term joins behind the loss; the log puts it back
    logged = step_numbers(output, total)
    assert logged["weight"].item() == pytest.approx(beta, rel=1e-5)
    assert logged["loss"].item() == pytest.approx(output.loss.item() + beta * total.terms[0].value.item(), rel=1e-6)


def test_two_ratios_each_get_their_share(tiny_of: TinyOf) -> None:
    config = tiny_of("simclr").derive(
        {"regularisers": [{"k": 16, "weight": "ratio:0.05"}, {"name": "minlid", "k": 8, "weight": "ratio:0.2"}]}
    )
    forward, terms = Forward(config), regularisers_of(config)
    total, gradient, _ = forward.step(terms)
    of_loss, (one, two), _ = by_hand(forward, terms)
    first, second = 0.05 * norm(of_loss) / norm(one), 0.2 * norm(of_loss) / norm(two)
    assert [w.item() for w in total.weights] == pytest.approx([first, second], rel=1e-5)
    torch.testing.assert_close(gradient, of_loss + first * one + second * two, rtol=1e-5, atol=1e-6 * norm(of_loss))
    assert total.ratio is not None
    assert total.ratio.item() == pytest.approx(norm(first * one + second * two) / norm(of_loss), rel=1e-4)
    logged = step_numbers(forward(), total)
    assert {"regulariser", "regulariser_2", "weight", "weight_2", "gradient_ratio"} <= set(logged)


def test_a_ratio_beside_a_number_is_of_the_loss_alone(tiny_of: TinyOf) -> None:
    config = tiny_of("simclr").derive(
        {"regularisers": [{"k": 16, "weight": 3.0}, {"name": "minlid", "k": 8, "weight": "ratio:0.2"}]}
    )
    forward, terms = Forward(config), regularisers_of(config)
    total, gradient, _ = forward.step(terms)
    of_loss, (one, two), _ = by_hand(forward, terms)
    second = 0.2 * norm(of_loss) / norm(two)
    assert total.weights[0] == 3.0
    assert total.weights[1].item() == pytest.approx(second, rel=1e-4)
    torch.testing.assert_close(gradient, of_loss + 3 * one + second * two, rtol=1e-4, atol=1e-5 * norm(of_loss))
    assert total.ratio is not None
    assert total.ratio.item() == pytest.approx(norm(3 * one + second * two) / norm(of_loss), rel=1e-4)


def test_a_term_without_gradient_gets_weight_0(tiny_of: TinyOf) -> None:
    """Rows that all coincide are degenerate: |dR/df| is 0, and no weight could make it a share of anything."""
    (term,) = regularisers_of(tiny_of("simclr", **RATIO))
    weights = torch.ones(40, 4, requires_grad=True)
    features, of_loss = weights.clone(), torch.randn(40, 4)
    total = add_terms(Output((features * of_loss).sum(), features), [term], START)
    total.loss.backward()
    assert isinstance(total.weights[0], Tensor)
    assert total.weights[0].item() == 0
    assert weights.grad is not None
    assert torch.equal(weights.grad, of_loss)


@pytest.mark.parametrize("method", METHODS)
def test_a_run_keeps_the_ratio_at_every_step(method: str, tiny_of: TinyOf) -> None:
    config = tiny_of(method, epochs=1, **RATIO)
    run, recorder = prepare(config), Recorder()
    train_one_epoch(run, 0, step_log(run, [recorder]))
    assert len(recorder.steps) == 5
    for record in recorder.steps:
        assert record["gradient_ratio"] == pytest.approx(0.05, rel=1e-3)
        assert record["weight"] > 0
        expected = record["ssl_loss"] + record["weight"] * record["regulariser"]
        assert record["loss"] == pytest.approx(expected, rel=1e-5)


# ---------------------------------------------------------------- measuring


@pytest.mark.parametrize("method", METHODS)
def test_measuring_is_right_and_changes_no_bit(method: str, tiny_of: TinyOf) -> None:
    config = tiny_of(method, regularisers__0__weight=0.1)
    forward, terms = Forward(config), regularisers_of(config)
    plain, at_features, gradients = forward.step(terms)
    measured, seen_at_features, seen = forward.step(terms, measure=True)
    assert plain.ratio is None
    assert torch.equal(measured.loss, plain.loss)
    assert torch.equal(seen_at_features, at_features)
    assert all(map(torch.equal, seen, gradients))
    of_loss, (own,), _ = by_hand(forward, terms)
    assert measured.ratio is not None
    assert measured.ratio.item() == pytest.approx(0.1 * norm(own) / norm(of_loss), rel=1e-4)


def test_measuring_several_terms_changes_no_bit_either(tiny_of: TinyOf) -> None:
    config = tiny_of("simclr").derive(
        {"regularisers": [{"k": k, "weight": weight} for k, weight in ((16, 0.3), (8, 0.7), (24, 0.11))]}
    )
    forward, terms = Forward(config), regularisers_of(config)
    _, at_features, gradients = forward.step(terms)
    measured, seen_at_features, seen = forward.step(terms, measure=True)
    assert torch.equal(seen_at_features, at_features)
    assert all(map(torch.equal, seen, gradients))
    of_loss, own, _ = by_hand(forward, terms)
    together = 0.3 * own[0] + 0.7 * own[1] + 0.11 * own[2]
    assert measured.ratio is not None
    assert measured.ratio.item() == pytest.approx(norm(together) / norm(of_loss), rel=1e-4)


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    "weight",
    [-0.1, float("nan"), float("inf"), True, None, "heavy", "0.1", "ratio:", "ratio:0", "ratio:-1", "ratio:nan"],
)
def test_wrong_weights_are_refused_by_name(weight: Any, tiny: TrainConfig) -> None:
    with pytest.raises(ConfigError, match=r"(?s)regularisers\.0\.weight.*must be a number"):
        tiny.derive({"regularisers.0.weight": weight})


def test_a_ratio_is_kept_as_it_was_meant(tiny: TrainConfig) -> None:
    for text in ("ratio:0.05", "ratio: 0.05", "Ratio:5e-2"):
        (regulariser,) = tiny.derive({"regularisers.0.weight": text}).regularisers
        assert regulariser.weight == "ratio:0.05"
        assert regulariser.ratio == 0.05
    with pytest.raises(ConfigError, match="a ratio needs precision no or bf16"):
        tiny.derive({"regularisers.0.weight": "ratio:0.05", "precision": "fp16"})


def test_a_process_group_is_refused(tiny: TrainConfig) -> None:
    (term,) = regularisers_of(tiny)
    output = Output(torch.tensor(0.0), torch.randn(40, 8))
    with pytest.raises(NotImplementedError, match="group must be None"):
        term(output, group=object())
    assert isinstance(add_terms(output, [term], START), Total)


# ---------------------------------------------------------------- who computes


def test_naive_is_the_reference_and_extra_references_are_searched(tiny: TrainConfig) -> None:
    (naive,) = regularisers_of(tiny.with_regulariser("ldreg-naive"))
    x, extra = torch.randn(40, 8, dtype=torch.float64), torch.randn(30, 8, dtype=torch.float64)
    alone = Output(torch.tensor(0.0), x)
    assert torch.equal(naive(alone).value, ldk.ldreg_loss(x, k=16, backend="reference"))
    both = ldk.ldreg_loss(x, torch.cat([x, extra]), k=16, self_index=0, backend="reference")
    assert torch.equal(naive(alone._replace(extra_references=extra)).value, both)
    assert milliseconds(lambda output: naive(output).value, alone) > 0


def test_the_configured_computation_is_the_one_that_runs(tiny: TrainConfig) -> None:
    x = torch.randn(60, 8, dtype=torch.float64)
    output = Output(torch.tensor(0.0), x)
    for changes, arguments in (
        ({"name": "ldreg"}, {"form": "l1"}),
        ({"name": "minlid"}, {"form": "min"}),
        ({"name": "ldreg", "form": "l2", "estimator": "hill", "k": 9}, {"form": "l2", "estimator": "hill", "k": 9}),
        ({"name": "ldreg", "form": "target", "target": 4.0}, {"form": "target", "target": 4.0}),
    ):
        (term,) = regularisers_of(tiny.derive({"regularisers": [{"k": 16, **changes}]}))
        expected = ldk.ldreg_loss(x, backend="cpu", **{"k": 16, **arguments})
        assert torch.equal(term(output).value, expected), changes


def test_fused_never_means_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fused_backend(CPU) == "cpu"
    monkeypatch.setattr("ldreg_kernels.trainer.regularisers.backends", lambda: {"cpu": "not built", "reference": None})
    with pytest.raises(NoBackendError, match=r"no fused backend runs on cpu \(cpu: not built\)"):
        fused_backend(CPU)


def test_a_backend_asked_for_by_name_is_not_replaced(tiny: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ldreg_kernels.trainer.regularisers.backends", lambda: {"cuda": "no driver", "cpu": None})
    with pytest.raises(NoBackendError, match=r"regularisers.backend: cuda is unavailable: no driver"):
        train(tiny.derive({"regularisers.0.backend": "cuda"}))
