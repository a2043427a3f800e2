"""Training end to end on a few steps: the run folder, determinism, what the regulariser sees and does."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

import ldreg_kernels as ldk
from ldreg_kernels.trainer.checkpoint import load_encoder
from ldreg_kernels.trainer.config import ConfigError, TrainConfig
from ldreg_kernels.trainer.engine import NonFiniteLossError, Observer, Step, prepare, train
from ldreg_kernels.trainer.evaluation import encode
from ldreg_kernels.trainer.methods.base import Output
from ldreg_kernels.trainer.run_folder import RunFolder, RunFolderError, read_records

METHODS = ("simclr", "byol", "mae")
TinyOf = Callable[..., TrainConfig]


class Outputs(Observer):
    """Keeps what every step handed out."""

    def __init__(self) -> None:
        self.seen: list[Output] = []

    def step(self, step: Step) -> None:
        self.seen.append(step.output)


def test_a_run_leaves_everything_in_its_folder(tiny: TrainConfig, tmp_path: Path) -> None:
    config = tiny.with_regulariser("ldreg-naive")
    folder = RunFolder.create(tmp_path / "run", config)
    result = train(config, folder)

    assert json.loads((folder.path / "config.json").read_text()) == config.model_dump(mode="json")
    assert "torch" in json.loads((folder.path / "environment.json").read_text())
    records = read_records(folder.metrics)
    steps = [r for r in records if r["kind"] == "step"]
    assert steps == result.steps
    assert [r["step"] for r in steps] == list(range(10))  # 718 // 128 = 5 steps in each of 2 epochs
    always = {"kind", "step", "epoch", "loss", "ssl_loss", "regulariser", "lid", "degenerate", "lr"}
    at_readings = always | {"gradient_ratio", "batch_effective_rank"}  # every third step, and where an epoch ends
    assert [set(s) for s in steps] == [at_readings if s["step"] in (2, 4, 5, 8, 9) else always for s in steps]
    assert [r["step"] for r in records if r["kind"] == "geometry"] == [5, 10]
    summary = json.loads(folder.summary.read_text())
    assert summary["probe_accuracy"] == result.final.probe_accuracy
    assert summary["images_per_second"] > 0
    assert summary["unreadable"] == []
    assert len(summary["covariance_spectrum"]) == 64
    assert any((folder.path / "tensorboard").iterdir())

    encoder = load_encoder(folder.encoder)
    run = prepare(config)
    features = encode(encoder, run.data.test, run.clean).features
    lids = ldk.lid(features, k=16, backend="reference")
    assert lids.log().mean().exp().item() == pytest.approx(result.final.geometry.lid_geometric_mean, rel=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_the_loss_is_ssl_plus_beta_times_r(method: str, tiny_of: TinyOf) -> None:
    config = tiny_of(method, epochs=1, regularisers__0__weight=0.5).with_regulariser("ldreg-naive")
    outputs = Outputs()
    result = train(config, observers=[outputs])
    rows = {"simclr": 256, "byol": 256, "mae": 128}[method]
    for numbers, output in zip(result.steps, outputs.seen, strict=True):
        assert numbers["loss"] == pytest.approx(numbers["ssl_loss"] + 0.5 * numbers["regulariser"], rel=1e-5)
        assert len(output.features) == rows
        assert not output.features.requires_grad
        references = output.features
        if method == "byol":
            references = torch.cat([references, output.extra_references])
            assert len(references) == 512
        again = ldk.ldreg_loss(output.features, references, k=16, self_index=0, backend="reference").item()
        assert numbers["regulariser"] == pytest.approx(again, rel=1e-6)
        assert numbers["lid"] == pytest.approx(math.exp(-again), rel=1e-5)  # R = -mean ln LID


@pytest.mark.parametrize("method", METHODS)
def test_training_lowers_the_loss_and_the_regulariser_has_a_gradient(method: str, tiny_of: TinyOf) -> None:
    steps = train(tiny_of(method, epochs=4)).steps
    first, last = (sum(s["ssl_loss"] for s in part) / 5 for part in (steps[:5], steps[-5:]))
    assert last < 0.97 * first
    ratios = [s["gradient_ratio"] for s in steps if "gradient_ratio" in s]
    assert len(ratios) >= 4
    assert all(ratio > 0 for ratio in ratios)


@pytest.mark.parametrize("method", METHODS)
def test_mixed_precision_keeps_the_features_on_the_way_of_the_loss(method: str, tiny_of: TinyOf) -> None:
    """accelerate converts what a half-precision forward returns; a copy that the loss does not come from gets no
    gradient of its own, and the ratio would be infinite.
    """
    outputs = Outputs()
    full, half = (
        train(tiny_of(method, epochs=1, precision=precision), observers=[outputs]) for precision in ("no", "bf16")
    )
    assert {output.features.dtype for output in outputs.seen} == {torch.float32}
    assert half.steps[-1]["gradient_ratio"] == pytest.approx(full.steps[-1]["gradient_ratio"], rel=0.5)
    assert half.steps[-1]["loss"] == pytest.approx(full.steps[-1]["loss"], rel=0.1)


@pytest.mark.parametrize(("method", "regulariser"), [*((m, "ldreg") for m in METHODS), ("simclr", "ldreg-naive")])
def test_two_runs_of_one_seed_are_identical_and_another_seed_is_not(
    method: str, regulariser: str, tiny_of: TinyOf
) -> None:
    config = tiny_of(method, epochs=1).with_regulariser(regulariser)
    one = train(config)
    torch.rand(7)  # what the process has drawn before does not matter
    two, other = train(config), train(config.derive({"seed": 1}))
    assert one.steps == two.steps
    assert one.final == two.final
    assert one.steps[0]["loss"] != other.steps[0]["loss"]


def test_the_split_has_its_own_seed(tiny: TrainConfig) -> None:
    labels = [
        [run.data.test.label(i) for i in range(40)]
        for run in (prepare(tiny), prepare(tiny.derive({"seed": 5})), prepare(tiny.derive({"data.split_seed": 5})))
    ]
    assert labels[0] == labels[1] != labels[2]


def test_during_warmup_the_regulariser_is_logged_but_changes_nothing(tiny: TrainConfig) -> None:
    plain = train(tiny.with_regulariser("none"))
    warming = train(tiny.with_regulariser("ldreg-naive", warmup_epochs=1))
    names = ("loss", "ssl_loss", "lr")
    first = [[step[n] for n in names] for step in plain.steps]
    second = [[step[n] for n in names] for step in warming.steps]
    assert first[:5] == second[:5]
    assert first[6:] != second[6:]
    assert all("regulariser" in step for step in warming.steps)
    assert not any("regulariser" in step for step in plain.steps)


def test_minlid_lowers_lid_and_effective_rank(tiny: TrainConfig) -> None:
    """The one effect that is asserted at this scale; LDReg's own shift is within noise."""
    strong = tiny.derive({"optimiser.lr": 5e-3, "epochs": 6})
    plain = train(strong.with_regulariser("none")).final.geometry
    minlid = train(strong.with_regulariser("minlid", weight=1.0)).final.geometry
    assert minlid.lid_geometric_mean < 0.95 * plain.lid_geometric_mean
    assert minlid.effective_rank < 0.9 * plain.effective_rank


def test_weights_that_break_in_the_last_step_are_a_divergence(tiny: TrainConfig) -> None:
    broken = tiny.derive({"epochs": 1, "optimiser.name": "sgd", "optimiser.lr": 1e30, "optimiser.warmup_epochs": 0})
    with pytest.raises(NonFiniteLossError):
        train(broken.derive({"data.train_images": 128}))  # a single step: its own loss is finite


def test_several_processes_are_refused(tiny: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="WORLD_SIZE: the trainer runs in one process for now, got 2"):
        train(tiny)


def test_one_bad_image_is_counted_and_reported(tiny: TrainConfig, tmp_path: Path) -> None:
    images = torch.randint(0, 255, (40, 12, 12, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for i, image in enumerate(images.numpy()):
        path = tmp_path / f"class{i % 2}" / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(image).save(path)
    bad = tmp_path / "class0" / "8.png"
    bad.write_bytes(bad.read_bytes()[:60])
    config = tiny.derive(
        {
            "data": {"dataset": "folder", "root": str(tmp_path), "test_fraction": 0.4},
            "augmentation.image_size": 12,
            "batch_size": 8,
            "regularisers.0.k": 4,
            "evaluation.lid_k": 4,
            "epochs": 1,
        }
    )
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        result = train(config)
    assert len(result.unreadable) == 1
    assert "8.png" in result.unreadable[0]


def test_a_run_folder_is_not_overwritten_by_accident(tiny: TrainConfig, tmp_path: Path) -> None:
    RunFolder.create(tmp_path / "run", tiny)
    with pytest.raises(RunFolderError, match="holds a run"):
        RunFolder.create(tmp_path / "run", tiny)
    RunFolder.create(tmp_path / "run", tiny, overwrite=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    with pytest.raises(RunFolderError, match="is not a run folder"):
        RunFolder.create(tmp_path / "other", tiny, overwrite=True)
    assert (tmp_path / "other" / "thesis.tex").exists()
    with pytest.raises(RunFolderError, match="holds no run"):
        RunFolder.open(tmp_path / "other")
