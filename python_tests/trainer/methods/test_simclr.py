"""SimCLR's step against a formula, and the SimCLR-Tuned preset in small."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from ldreg_kernels.trainer.config import TrainConfig, make_config
from ldreg_kernels.trainer.engine import Recorder, prepare, step_log, train_one_epoch
from ldreg_kernels.trainer.methods import SimCLR, Time, build_method
from ldreg_kernels.trainer.optim import LARS

TinyOf = Callable[..., TrainConfig]


def test_loss_is_nt_xent_of_the_projections_as_a_mean_over_2n_rows(tiny_of: TinyOf) -> None:
    torch.manual_seed(0)
    method = build_method(tiny_of("simclr"), channels=1, image_size=8).double()
    views = [torch.rand(5, 1, 8, 8, dtype=torch.float64) for _ in range(2)]
    output = method(views, Time(0, 1, 0))
    assert output.projections is not None
    z = output.projections / output.projections.norm(dim=1, keepdim=True)
    expected = torch.tensor(0.0, dtype=torch.float64)
    for i in range(10):
        positive = z[i] @ z[(i + 5) % 10] / 0.2
        others = torch.stack([z[i] @ z[j] / 0.2 for j in range(10) if j != i])
        expected = expected + (others.exp().sum().log() - positive) / 10
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-12)
    for ours, theirs in zip(
        *(torch.autograd.grad(v, output.features, retain_graph=True) for v in (output.loss, expected)), strict=True
    ):
        # float64 both; the gradients of a softmax are differences of its terms.
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-15)


def test_simclr_tuned_builds_and_steps_in_small() -> None:
    small = {
        "epochs": 11,  # the regulariser's warm-up takes ten
        "batch_size": 32,
        "device": "cpu",
        "precision": "no",
        "data.dataset": "synthetic",
        "data.workers": 0,
        "data.synthetic.channels": 3,
        "data.synthetic.images": 48,
        "data.test_fraction": 0.3,
        "augmentation.image_size": 16,
        "encoder.width": 8,
        "method.projector.hidden_dim": 64,
        "method.projector.output_dim": 32,
        "regularisers.0.k": 8,
        "evaluation.lid_k": 8,
    }
    run = prepare(make_config({}, small, preset="simclr-tuned"))
    method = run.bare_method
    assert isinstance(method, SimCLR)
    assert method.temperature == 0.15
    linear = [module for module in method.projector if isinstance(module, nn.Linear)]
    assert [(layer.in_features, layer.out_features, layer.bias is not None) for layer in linear] == [
        (256, 64, True),
        (64, 64, True),
        (64, 32, False),
    ]
    assert isinstance(run.optimiser.optimizer, LARS)
    assert run.learning_rate.peak == pytest.approx(0.5 * 32 / 256)
    recorder = Recorder()
    log = step_log(run, [recorder])
    before = [p.detach().clone() for p in method.parameters() if p.requires_grad]
    for epoch in (0, 1, 10):
        train_one_epoch(run, epoch, log)
    first, second, third = recorder.steps  # one step an epoch
    assert first["loss"] == first["ssl_loss"]
    assert second["loss"] == second["ssl_loss"]
    assert third["loss"] == pytest.approx(third["ssl_loss"] + 0.01 * third["regulariser"], rel=1e-6)
    assert third["loss"] != third["ssl_loss"]
    after = [p for p in method.parameters() if p.requires_grad]
    assert not any(map(torch.equal, before, after))
