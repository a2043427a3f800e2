"""One training step of each method at the papers' sizes: ResNet-50 and ViT-B on colour images of 224 pixels."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from ldreg_kernels.trainer.config import make_config
from ldreg_kernels.trainer.engine import Recorder, prepare, step_log, train_one_epoch

_SIMCLR = {"method.projector.hidden_dim": 2048, "method.projector.output_dim": 128}
_BYOL = {
    "method.projector.hidden_dim": 4096,
    "method.projector.output_dim": 256,
    "method.predictor.hidden_dim": 4096,
}
_MAE = {"method.decoder.dim": 512, "method.decoder.depth": 8, "method.decoder.heads": 16}
_RESNET = {"name": "resnet50", "stem": "imagenet"}  # zero_init would keep the inner layers still for a step
_VIT = {"name": "vit-base"}
CASES = [
    pytest.param("simclr", _RESNET, 2, _SIMCLR, id="simclr-resnet50"),
    pytest.param("byol", _RESNET, 2, _BYOL, id="byol-resnet50"),
    pytest.param("simclr", _VIT, 2, _SIMCLR, id="simclr-vit-base"),
    pytest.param("byol", _VIT, 2, _BYOL, id="byol-vit-base"),
    pytest.param("mae", _VIT, 4, _MAE, id="mae-vit-base"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("method", "encoder", "images", "heads"), CASES)
def test_a_step_at_full_size(method: str, encoder: dict[str, Any], images: int, heads: dict[str, int]) -> None:
    # Four rows. BYOL's are there twice in its first step: a double at distance 0 and others in pairs, so that k = 2
    # gives LID 0 and k = 3 a constant.
    config = make_config(
        {"encoder": encoder, "regularisers": [{"k": 4 if method == "byol" else 2, "weight": 0.1}]},
        {
            "method.name": method,
            "epochs": 1,
            "batch_size": images,
            "device": "cpu",
            "optimiser.warmup_epochs": 0,  # else the first step has rate 0
            "data.dataset": "synthetic",
            "data.synthetic.size": 224,
            "data.synthetic.channels": 3,
            "data.synthetic.images": images + 4,
            "data.test_fraction": 4 / (images + 4),
            "evaluation.lid_k": 2,
            "evaluation.knn_k": 1,
            "data.synthetic.classes": 1,
            **heads,
        },
    )
    run = prepare(config)
    assert run.image_size == 224
    assert run.data.channels == 3
    trained = {name: p for name, p in run.bare_method.named_parameters() if p.requires_grad}
    before = {name: p.detach().clone() for name, p in trained.items()}
    recorder = Recorder()
    train_one_epoch(run, 0, step_log(run, [recorder]))
    (record,) = recorder.steps
    numbers = {name: record[name] for name in ("loss", "ssl_loss", "regulariser", "lid", "gradient_ratio")}
    assert all(math.isfinite(number) for number in numbers.values()), numbers
    assert record["gradient_ratio"] > 0
    for name, parameter in run.bare_method.named_parameters():
        assert parameter.isfinite().all(), name
    still = {name for name, p in trained.items() if torch.equal(p, before[name])}
    assert still == set()
