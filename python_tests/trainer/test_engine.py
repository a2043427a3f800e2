"""Training end to end on a few steps: the run folder, determinism, what the regulariser sees and does."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

import ldreg_kernels as ldk
from ldreg_kernels.trainer.checkpoint import load_encoder
from ldreg_kernels.trainer.config import TrainConfig
from ldreg_kernels.trainer.engine import NonFiniteLossError, Step, prepare, train
from ldreg_kernels.trainer.evaluation import encode
from ldreg_kernels.trainer.regulariser import NoBackendError, build_regulariser, fused_backend, milliseconds
from ldreg_kernels.trainer.run_folder import RunFolder, RunFolderError, read_records


def test_a_run_leaves_everything_in_its_folder(tiny: TrainConfig, tmp_path: Path) -> None:
    config = tiny.derive({"regulariser.name": "ldreg-naive"})
    folder = RunFolder.create(tmp_path / "run", config)
    result = train(config, folder)

    assert json.loads((folder.path / "config.json").read_text()) == config.model_dump(mode="json")
    assert "torch" in json.loads((folder.path / "environment.json").read_text())
    records = read_records(folder.metrics)
    steps = [r for r in records if r["kind"] == "step"]
    assert steps == result.steps
    assert [r["step"] for r in steps] == list(range(10))  # 718 // 128 = 5 steps in each of 2 epochs
    assert set(steps[0]) == {
        "kind", "step", "epoch", "loss", "ssl_loss", "regulariser", "lid", "degenerate", "lr",
    }  # fmt: skip
    assert [r["step"] for r in records if r["kind"] == "geometry"] == [5, 10]
    summary = json.loads(folder.summary.read_text())
    assert summary["probe_accuracy"] == result.final.probe_accuracy
    assert len(summary["covariance_spectrum"]) == 64
    assert any((folder.path / "tensorboard").iterdir())

    encoder = load_encoder(folder.encoder)
    run = prepare(config)
    features = encode(encoder, run.data.test_images, torch.device("cpu"))
    lids = ldk.lid(features, k=16, backend="reference")
    assert lids.log().mean().exp().item() == pytest.approx(result.final.geometry.lid_geometric_mean, rel=1e-5)


def test_the_loss_is_ssl_plus_beta_times_r(tiny: TrainConfig) -> None:
    config = tiny.derive({"regulariser.name": "ldreg-naive", "regulariser.weight": 0.5, "epochs": 1})
    seen: list[Step] = []
    train(config, observers=[seen.append])
    for step in seen:
        numbers = step.numbers
        assert numbers["loss"] == pytest.approx(numbers["ssl_loss"] + 0.5 * numbers["regulariser"], rel=1e-5)
        assert step.features.shape == (256, 64)  # both views
        assert not step.features.requires_grad
        again = ldk.ldreg_loss(step.features, k=16, backend="reference").item()
        assert numbers["regulariser"] == pytest.approx(again, rel=1e-6)
        assert numbers["lid"] == pytest.approx(math.exp(-again), rel=1e-5)  # R = -mean ln LID


@pytest.mark.parametrize("name", ["ldreg", "ldreg-naive"])
def test_two_runs_of_one_seed_are_identical_and_another_seed_is_not(tiny: TrainConfig, name: str) -> None:
    config = tiny.derive({"regulariser.name": name, "epochs": 1})
    one, two, other = train(config), train(config), train(config.derive({"seed": 1}))
    assert one.steps == two.steps
    assert one.final == two.final
    assert one.steps[0]["loss"] != other.steps[0]["loss"]


def test_during_warmup_the_regulariser_is_logged_but_changes_nothing(tiny: TrainConfig) -> None:
    plain = train(tiny.derive({"regulariser.name": "none"}))
    warming = train(tiny.derive({"regulariser.name": "ldreg-naive", "regulariser.warmup_epochs": 1}))
    names = ("loss", "ssl_loss", "lr")
    first = [[step[n] for n in names] for step in plain.steps]
    second = [[step[n] for n in names] for step in warming.steps]
    assert first[:5] == second[:5]
    assert first[6:] != second[6:]
    assert all("regulariser" in step for step in warming.steps)
    assert not any("regulariser" in step for step in plain.steps)


def test_minlid_lowers_lid_and_effective_rank(tiny: TrainConfig) -> None:
    """The one effect that is asserted at this scale; LDReg's own shift is within noise."""
    strong = {"regulariser.weight": 1.0, "optimiser.lr": 5e-3, "epochs": 6}
    plain = train(tiny.derive({**strong, "regulariser.name": "none"})).final.geometry
    minlid = train(tiny.derive({**strong, "regulariser.name": "minlid"})).final.geometry
    assert minlid.lid_geometric_mean < 0.95 * plain.lid_geometric_mean
    assert minlid.effective_rank < 0.9 * plain.effective_rank


def test_a_loss_that_is_not_finite_stops_the_run_and_says_where(tiny: TrainConfig) -> None:
    naive = build_regulariser(tiny.derive({"regulariser.name": "ldreg-naive"}).regulariser, torch.device("cpu"))
    calls = 0

    def breaks_at_the_third_call(features: Tensor) -> tuple[Tensor, ldk.LDRegStats]:
        nonlocal calls
        calls += 1
        assert naive is not None
        value, stats = naive(features)
        return (value * math.nan if calls == 3 else value), stats

    with pytest.raises(NonFiniteLossError, match="the loss is nan in epoch 0, step 2"):
        train(tiny, regulariser=breaks_at_the_third_call)


def test_none_has_no_regulariser_and_naive_is_the_reference(tiny: TrainConfig) -> None:
    cpu = torch.device("cpu")
    x = torch.randn(40, 8, dtype=torch.float64)
    assert build_regulariser(tiny.derive({"regulariser.name": "none"}).regulariser, cpu) is None
    naive = build_regulariser(tiny.derive({"regulariser.name": "ldreg-naive"}).regulariser, cpu)
    assert naive is not None
    assert torch.equal(naive(x)[0], ldk.ldreg_loss(x, k=16, backend="reference"))
    assert milliseconds(lambda features: naive(features)[0], x) > 0


def test_fused_never_means_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ldreg_kernels.trainer.regulariser.backends", lambda: {"cpu": "not built", "reference": None})
    with pytest.raises(NoBackendError, match=r"no fused backend runs on cpu \(cpu: not built\)"):
        fused_backend(torch.device("cpu"))


def test_a_backend_asked_for_by_name_is_not_replaced(tiny: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ldreg_kernels.trainer.regulariser.backends", lambda: {"cuda": "no driver", "cpu": None})
    with pytest.raises(NoBackendError, match=r"regulariser.backend: cuda is unavailable: no driver"):
        train(tiny.derive({"regulariser.backend": "cuda"}))


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
