"""The commands as a user types them: output, files, exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ldreg_kernels import cli
from ldreg_kernels.trainer.checks import Check
from ldreg_kernels.trainer.config import TrainConfig
from ldreg_kernels.trainer.verify import Report

runner = CliRunner()


@pytest.fixture
def config_file(tiny: TrainConfig, tmp_path: Path) -> Path:
    path = tmp_path / "tiny.json"
    path.write_text(tiny.derive({"epochs": 1}).model_dump_json())
    return path


def test_help_lists_the_commands() -> None:
    result = runner.invoke(cli.app, ["--help"])
    assert result.exit_code == 0
    assert all(name in result.output for name in ("train", "verify", "demo", "doctor"))


def test_train_then_refuse_then_resume(config_file: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "run")
    arguments = ["train", str(config_file), "--regulariser", "none", "--set", "temperature=0.5", "--out", out]
    result = runner.invoke(cli.app, arguments)
    assert result.exit_code == 0, result.output
    assert "effective" in result.output
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["temperature"], config["regulariser"]["name"]) == (0.5, "none")
    assert (tmp_path / "run" / "plots" / "run.png").exists()

    assert runner.invoke(cli.app, arguments).exit_code == 2  # a run is there already
    summary = (tmp_path / "run" / "summary.json").read_text()
    result = runner.invoke(cli.app, ["train", "--resume", "--out", out])  # finished: nothing left to train
    assert result.exit_code == 0, result.output
    assert (tmp_path / "run" / "summary.json").read_text() == summary


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "regulariser.wieght=1"], "regulariser.wieght: no such setting"),
        (["--set", "epochs"], "must look like"),
        (["--set", "batch_size=100000"], "batch_size: must be at most 1347"),
        (["absent.toml"], "absent.toml: No such file"),
        (["--resume"], "holds no run"),
        (["--resume", "--epochs", "3"], "--resume takes the configuration of the run"),
    ],
)
def test_wrong_requests_exit_with_2_and_one_line(arguments: list[str], message: str, tmp_path: Path) -> None:
    result = runner.invoke(cli.app, ["train", *arguments, "--out", str(tmp_path / "run")])
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
    assert "Traceback" not in result.output


@pytest.mark.parametrize(("measured", "code"), [(0.5, 0), (2.0, 1), (float("nan"), 1)])
def test_verify_exits_with_its_verdict(
    measured: float, code: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from ldreg_kernels.trainer import verify as module
    from ldreg_kernels.trainer.comparison import StepComparison

    step = StepComparison(0, 1.0, 0.0, 0.0, 0.0, 8, 0, 0, 0)

    def verify(*_: Any, **__: Any) -> Report:
        return Report([Check("gradient, worst step", measured, 1.0)], [step])

    monkeypatch.setattr(module, "verify", verify)
    result = runner.invoke(cli.app, ["verify", "--out", str(tmp_path)])
    assert result.exit_code == code
    assert ("Verified" in result.output) == (code == 0)


def test_doctor_hands_on_the_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    from ldreg_kernels import doctor

    monkeypatch.setattr(doctor, "main", lambda: 1)
    assert runner.invoke(cli.app, ["doctor"]).exit_code == 1
