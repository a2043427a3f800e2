"""The commands as a user types them: output, files, exit codes."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from ldreg_kernels import cli
from ldreg_kernels.trainer.checks import Check
from ldreg_kernels.trainer.config import TrainConfig
from ldreg_kernels.trainer.methods import Time
from ldreg_kernels.trainer.step_log import Window
from ldreg_kernels.trainer.terminal import progress_bars
from ldreg_kernels.trainer.verify import Cost, Report

runner = CliRunner()


@pytest.fixture
def config_file(tiny: TrainConfig, tmp_path: Path) -> Path:
    path = tmp_path / "tiny.json"
    path.write_text(tiny.derive({"epochs": 1}).model_dump_json())
    return path


def test_help_lists_the_commands() -> None:
    result = runner.invoke(cli.app, ["--help"])
    assert result.exit_code == 0
    assert all(name in result.output for name in ("train", "verify", "demo", "data", "doctor"))


def test_train_then_refuse_then_resume(config_file: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "run")
    arguments = ["train", str(config_file), "--regulariser", "none", "--set", "method.temperature=0.5", "--out", out]
    result = runner.invoke(cli.app, arguments)
    assert result.exit_code == 0, result.output
    assert "effective" in result.output
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["method"]["temperature"], config["regularisers"]) == (0.5, [])
    assert (tmp_path / "run" / "plots" / "run.png").exists()

    assert runner.invoke(cli.app, arguments).exit_code == 2  # a run is there already
    summary = (tmp_path / "run" / "summary.json").read_text()
    result = runner.invoke(cli.app, ["train", "--resume", "--out", out])  # finished: nothing left to train
    assert result.exit_code == 0, result.output
    assert (tmp_path / "run" / "summary.json").read_text() == summary


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "regularisers.0.wieght=1"], "got 1; the nearest is regularisers.0.weight"),
        (["--set", "regularizers.0.wieght=1"], "got 1; the nearest is regularisers.0.weight"),
        (["--set", "regulariser.wieght=1"], "no such setting any more, it is now regularisers.0.weight"),
        (["--set", "regularizer.weight=1"], "no such setting any more, it is now regularisers.0.weight"),
        (["--set", "temperature=1"], "temperature: no such setting any more, it is now method.temperature"),
        (["--method", "simsiam"], "method.name: must be one of 'simclr', 'byol', 'mae'"),
        (["--preset", "simclr-tuend"], "preset: must be one of"),
        (["--preset", "simclr-tuned"], "root: must be given for the data set 'folder'"),
        (["--regularizer", "ldrag"], "regularisers.0.name"),
        (["--set", "data.test_fraction=0.01"], "evaluation.lid_k: must be at most"),
        (["--set", "data.test_fraction=0.001"], "evaluation.lid_k: must be at most"),
        (["--set", "data.test_fraction=0.0001"], "data.test_fraction: leaves"),
        (["--set", "data.test_fraction=1e-300"], "data.test_fraction: leaves"),
        (["--set", "data.test_fraction=0.9999999"], "data.test_fraction: leaves"),
        (["--method", "mae", "--set", "encoder.patch_size=8"], "method.mask_ratio: must leave some of 1 patches"),
        (["--set", "precision=fp16", "--set", "device=cpu"], "precision: fp16 needs a GPU"),
        (["--set", "seed=100000000000000000000"], "seed: "),
        (["--set", "regularisers.²=4"], "there is no regularisers.²"),
        (["--resume", "--overwrite"], "--resume takes the configuration of the run"),
        (["--dataset", "fashion-mnist", "--root", "/nowhere"], "`ldreg data fashion-mnist` says how to get it"),
        (["--set", "epochs"], "must look like"),
        (["--set", "batch_size=100000"], "batch_size: must be at most 1348"),
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


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (["trian"], "train"),
        (["verfy"], "verify"),
        (["docter"], "doctor"),
        (["train", "--methd", "byol"], "--method"),
        (["train", "--regularizr", "none"], "--regularizer"),
        (["train", "--overwite"], "--overwrite"),
        (["verify", "--epoch", "3"], "--epochs"),
        (["demo", "--outt", "x"], "--out"),
        (["data", "fashion-mnits"], "fashion-mnist"),
    ],
)
def test_a_misspelt_command_or_option_suggests_the_nearest(typed: list[str], meant: str) -> None:
    result = runner.invoke(cli.app, typed)
    assert result.exit_code == 2
    assert re.search(rf"(?<![\w-]){meant}(?![\w-])", result.output.split("rror", 1)[-1])
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("override", "name"),
    [
        ("data.dataset=cifar10", "data.root: no cifar10 in"),
        ("data.dataset=cifar100", "data.root: no cifar100 in"),
        ("device=cuda", "device: cuda was asked for, and torch finds no GPU"),
        ("data.dataset=cifar", "data.dataset: Input should be 'digits', "),
        ("encoder.name=resnet49", "encoder.name: must be one of"),
        ("precision=fp8", "precision: Input should be 'no', 'bf16' or 'fp16'"),
        ("method=bylo", "method.name: must be one of 'simclr', 'byol', 'mae'"),
    ],
)
def test_what_exists_but_is_not_here_says_so(
    override: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = runner.invoke(cli.app, ["train", "--set", override, "--out", str(tmp_path / "run")])
    assert result.exit_code == 2, result.output
    assert f"ldreg: {name}" in " ".join(result.output.split())


def test_a_wrong_request_leaves_a_finished_run_alone(config_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert runner.invoke(cli.app, ["train", str(config_file), "--out", str(out)]).exit_code == 0
    before = sorted(path.name for path in out.iterdir())
    wrong = ["train", "--dataset", "cifar10", "--root", "/nowhere", "--overwrite", "--out", str(out)]
    assert runner.invoke(cli.app, wrong).exit_code == 2
    assert sorted(path.name for path in out.iterdir()) == before


@pytest.mark.parametrize("command", ["train", "verify", "demo"])
def test_out_that_is_a_file_is_refused_at_once(command: str, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    result = runner.invoke(cli.app, [command, "--out", str(tmp_path / "thesis.tex" / "run")])
    assert result.exit_code == 2
    assert "--out" in result.output
    assert "is a file, not a folder" in result.output


@pytest.mark.parametrize(("measured", "code"), [(0.5, 0), (2.0, 1), (float("nan"), 1)])
def test_verify_exits_with_its_verdict(
    measured: float, code: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from ldreg_kernels.trainer import verify as module
    from ldreg_kernels.trainer.comparison import StepComparison

    step = StepComparison(0, 1.0, 0.0, 0.0, 0.0, 8, 0, 0, 0)
    cost = Cost(step=91.0, naive=10.0, fused=1.0)

    def verify(*_: Any, **__: Any) -> Report:
        return Report([Check("gradient, worst step", measured, 1.0)], [step], cost=cost)

    monkeypatch.setattr(module, "verify", verify)
    result = runner.invoke(cli.app, ["verify", "--out", str(tmp_path)])
    assert result.exit_code == code
    assert ("Verified" in result.output) == (code == 0)
    assert "naive 10 % (10.0 ms), fused 1.1 % (1.0 ms)" in " ".join(result.output.split())


def test_data_says_how_to_get_it() -> None:
    result = runner.invoke(cli.app, ["data", "fashion-mnist"])
    assert result.exit_code == 0
    assert "apt-get download dataset-fashion-mnist" in result.output
    wrong = runner.invoke(cli.app, ["data", "imagenet"])
    assert wrong.exit_code == 2
    assert "digits" in wrong.output


def test_no_bars_where_there_is_no_terminal(config_file: Path, tmp_path: Path) -> None:
    result = runner.invoke(cli.app, ["train", str(config_file), "--out", str(tmp_path / "run")])
    assert result.exit_code == 0, result.output
    assert "images/s" not in result.output


def test_a_bar_shows_the_numbers_and_the_time_left() -> None:
    console = Console(force_terminal=True, width=200, file=io.StringIO())
    records = [{"loss": 1.25, "lid": 7.5, "batch_effective_rank": 12.5}]
    with progress_bars(console) as watch:
        bar = watch("simclr + ldreg")
        for step in (2, 3, 4):
            bar.window(Window(records, Time(step, 10, 0), 321.0))
    text = console.file.getvalue()
    for part in ("simclr + ldreg", "5/10", "loss 1.250", "LID 7.5", "rank 12.5", "321 images/s", "0:00:0"):
        assert part in text


def test_doctor_hands_on_the_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    from ldreg_kernels import doctor

    monkeypatch.setattr(doctor, "main", lambda: 1)
    assert runner.invoke(cli.app, ["doctor"]).exit_code == 1
