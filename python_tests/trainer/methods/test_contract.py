"""What every method owes the engine: shapes, who gets a gradient, who is trained, and the order of the hooks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ldreg_kernels.trainer.config import TrainConfig
from ldreg_kernels.trainer.engine import prepare, step_log, train_one_epoch
from ldreg_kernels.trainer.methods import VIEWS_PER_IMAGE, Method, Time, build_method
from ldreg_kernels.trainer.networks.vit import ViTEncoder

METHODS = ("simclr", "byol", "mae")
TinyOf = Callable[..., TrainConfig]
START = Time(0, 10, 0)

# In exact arithmetic their gradient is 0: softmax does not see a shift of all keys, batch normalisation none of a row.
BLIND = (".k_proj.bias", "projector.0.bias", "predictor.0.bias")


def build(config: TrainConfig) -> Method:
    torch.manual_seed(0)
    return build_method(config, channels=1, image_size=8)


def views_for(method: str, count: int = 6) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(count, 1, 8, 8, generator=generator) for _ in range(VIEWS_PER_IMAGE[method])]


@pytest.mark.parametrize(
    ("method", "rows", "width", "references", "projections"),
    [("simclr", 12, 64, None, (12, 32)), ("byol", 12, 64, (12, 64), (12, 32)), ("mae", 6, 96, None, None)],
)
def test_shapes_of_the_output(
    method: str, rows: int, width: int, references: Any, projections: Any, tiny_of: TinyOf
) -> None:
    output = build(tiny_of(method))(views_for(method), START)
    assert output.loss.shape == ()
    assert output.loss.dtype == torch.float32
    assert output.features.shape == (rows, width)
    assert output.features.requires_grad
    assert (output.extra_references is None) == (references is None)
    if output.extra_references is not None:
        assert output.extra_references.shape == references
        assert not output.extra_references.requires_grad
    assert (None if output.projections is None else tuple(output.projections.shape)) == projections


@pytest.mark.parametrize("method", ["simclr", "byol"])
def test_features_are_view_1_on_view_2_from_one_pass(method: str, tiny_of: TinyOf) -> None:
    built, (one, two) = build(tiny_of(method)), views_for(method)
    features = built((one, two), START).features
    torch.testing.assert_close(features, built.encoder(torch.cat([one, two])))  # batch normalisation over both
    built.eval()
    features = built((one, two), START).features
    torch.testing.assert_close(features[:6], built.encoder(one))
    torch.testing.assert_close(features[6:], built.encoder(two))


@pytest.mark.parametrize("method", METHODS)
def test_the_gradient_reaches_what_is_trained_and_nothing_else(method: str, tiny_of: TinyOf) -> None:
    built = build(tiny_of(method, **({"encoder__patch_size": 2} if method == "mae" else {})))
    output = built(views_for(method), START)
    output.loss.backward()
    for name, parameter in built.named_parameters():
        assert parameter.requires_grad == (not name.startswith("momentum_networks.") and name != "projector.4.bias")
        assert (parameter.grad is not None) == parameter.requires_grad, name
        if parameter.grad is not None:
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.any() or name.endswith(BLIND), name


@pytest.mark.parametrize("method", METHODS)
def test_groups_hold_every_trained_parameter_once(method: str, tiny_of: TinyOf) -> None:
    built = build(tiny_of(method))
    grouped = [(name, id(p)) for group in built.parameter_groups() for name, p in group.parameters.items()]
    trained = [(name, id(p)) for name, p in built.named_parameters() if p.requires_grad]
    assert sorted(grouped) == sorted(trained)
    assert not any(name.startswith("momentum_networks.") for name, _ in grouped)


def test_a_frozen_patch_embedding_is_in_no_group(tiny_of: TinyOf) -> None:
    config = tiny_of("simclr").derive({"encoder": {"name": "vit-micro", "frozen_patch_embedding": True}})
    built = build(config)
    assert isinstance(built.encoder, ViTEncoder)
    built(views_for("simclr"), START).loss.backward()
    names = {name for group in built.parameter_groups() for name in group.parameters}
    assert "encoder.cls_token" in names
    assert not any(name.startswith("encoder.patch_embedding") for name in names)
    assert built.encoder.patch_embedding.weight.grad is None


@pytest.mark.parametrize("method", METHODS)
def test_hooks_are_called_around_every_step_with_its_time(
    method: str, tiny_of: TinyOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = prepare(tiny_of(method, epochs=1, optimiser__warmup_epochs=0))
    built = run.bare_method
    weight = next(iter(built.parameter_groups()[0].parameters.values()))
    calls: list[tuple[str, int]] = []
    marks: dict[str, list[Any]] = {"before": [], "after": [], "gradients": []}
    forward = built.forward

    def before_step(time: Time) -> None:
        calls.append(("before_step", time.step))
        marks["before"].append(weight.detach().clone())

    def forward_and_note(views: Any, time: Time) -> Any:
        calls.append(("forward", time.step))
        return forward(views, time)

    def after_backward(time: Time) -> None:
        calls.append(("after_backward", time.step))
        assert torch.equal(weight, marks["before"][-1])  # the optimiser has not run yet
        marks["gradients"].append(weight.grad is not None and bool(weight.grad.any()))

    def after_step(time: Time) -> None:
        calls.append(("after_step", time.step))
        assert time.steps == 5
        assert time.epoch == 0
        assert not torch.equal(weight, marks["before"][-1])

    for name, hook in {
        "before_step": before_step,
        "forward": forward_and_note,
        "after_backward": after_backward,
        "after_step": after_step,
    }.items():
        monkeypatch.setattr(built, name, hook)
    train_one_epoch(run, 0, step_log(run, []))
    order = ("before_step", "forward", "after_backward", "after_step")
    assert calls == [(name, step) for step in range(5) for name in order]
    assert marks["gradients"] == [True] * 5
