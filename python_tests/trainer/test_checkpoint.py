"""A run that was interrupted and resumed is the run that was not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ldreg_kernels.trainer.checkpoint import export_encoder, load_encoder, newest_first
from ldreg_kernels.trainer.config import TrainConfig
from ldreg_kernels.trainer.engine import Observer, Window, prepare, train
from ldreg_kernels.trainer.run_folder import RunFolder, read_records


class PowerCutError(Exception):
    """Stands for whatever ends a process."""


@pytest.fixture
def config(tiny: TrainConfig) -> TrainConfig:
    return tiny.with_regulariser("ldreg-naive").derive({"epochs": 3, "checkpoint_every_epochs": 1, "log_every": 1})


class PowerCut(Observer):
    """In the middle of the second epoch: its first steps are on record, but in no checkpoint."""

    def window(self, window: Window) -> None:
        if window.time.step == 7:
            raise PowerCutError


@pytest.mark.parametrize("method", ["simclr", "byol", "mae"])
def test_resumed_equals_uninterrupted(method: str, tiny_of: Callable[..., TrainConfig], tmp_path: Path) -> None:
    config = tiny_of(method, epochs=3, checkpoint_every_epochs=1, log_every=1)

    whole = RunFolder.create(tmp_path / "whole", config)
    expected = train(config, whole)

    broken = RunFolder.create(tmp_path / "broken", config)
    with pytest.raises(PowerCutError):
        train(config, broken, observers=[PowerCut()])
    assert len([r for r in read_records(broken.metrics) if r["kind"] == "step"]) == 8

    folder, settings = RunFolder.open(tmp_path / "broken")
    assert settings == config
    resumed = train(settings, folder, resume=True)
    assert resumed.steps == expected.steps
    assert resumed.geometries == expected.geometries
    assert resumed.final == expected.final
    assert read_records(folder.metrics) == read_records(whole.metrics)
    assert [path.name for path in newest_first(folder.checkpoints)] == ["step-00000015", "step-00000010"]
    assert len(list(folder.checkpoints.iterdir())) == 2  # no half-written one is left behind


def test_nothing_to_resume(config: TrainConfig, tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run", config)
    with pytest.raises(FileNotFoundError, match="nothing to resume from"):
        train(config, folder, resume=True)
    with pytest.raises(ValueError, match="resume needs a run folder"):
        train(config, resume=True)


def test_no_checkpoints_where_none_are_wanted(config: TrainConfig, tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run", config)
    train(config.derive({"checkpoint_every_epochs": 0, "epochs": 1}), folder)
    assert not folder.checkpoints.exists()
    assert folder.encoder.exists()


def test_exported_encoder_gives_the_same_features(config: TrainConfig, tmp_path: Path) -> None:
    run = prepare(config)
    trained, images = run.bare_method.encoder, torch.rand(64, 1, 8, 8)
    trained(images)  # moves the running statistics away from their start
    export_encoder(tmp_path / "encoder.safetensors", trained, config, channels=1, image_size=8)
    encoder = load_encoder(tmp_path / "encoder.safetensors")
    assert not encoder.training
    trained.eval()
    with torch.no_grad():
        assert torch.equal(encoder(images), trained(images))
