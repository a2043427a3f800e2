"""`ldreg train --resume` on a damaged folder, a disk that fills up, an `--out` that takes no files: one line each."""

from __future__ import annotations

import io
import json
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner, Result

from ldreg_kernels import cli
from ldreg_kernels.trainer import engine
from ldreg_kernels.trainer.config import TrainConfig
from ldreg_kernels.trainer.engine import train
from ldreg_kernels.trainer.run_folder import RunFolder, read_records

runner = CliRunner()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_of: Callable[..., TrainConfig]) -> Path:
    """A run of three epochs of five steps, with checkpoints after each."""
    config = tiny_of("simclr", epochs=3, checkpoint_every_epochs=1, log_every=1)
    folder = RunFolder.create(tmp_path_factory.mktemp("runs") / "whole", config)
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the tests, whose fixture comes after this one: sums depend on it in the last digit
    train(config, folder)
    torch.set_num_threads(before)
    return folder.path


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def resume(run: Path) -> Result:
    return runner.invoke(cli.app, ["train", "--resume", "--out", str(run)])


def said(result: Result) -> list[str]:
    """Lines that are about the run, not its results."""
    assert "Traceback" not in result.output
    return [line for line in result.output.splitlines() if line.startswith("ldreg: ")]


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def other_width(path: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(path)
    save_file({name: torch.cat([tensor, tensor]) if tensor.dim() else tensor for name, tensor in tensors.items()}, path)


DAMAGE: list[tuple[str, Callable[[Path], None]]] = [
    ("model.safetensors", half),
    ("model.safetensors", other_width),
    ("optimizer.bin", emptied),
    ("custom_checkpoint_0.pkl", half),
    ("sha256.json", Path.unlink),
]


@pytest.mark.parametrize(("name", "damage"), DAMAGE)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    name: str, damage: Callable[[Path], None], run: Path, finished: Path
) -> None:
    damage(run / "checkpoints" / "step-00000015" / name)
    result = resume(run)
    assert result.exit_code == 0, result.output
    (line,) = said(result)
    assert f"checkpoints/step-00000015/{name}: " in line
    assert line.endswith("step-00000010 is used")
    assert read_records(run / "metrics.jsonl") == read_records(finished / "metrics.jsonl")  # the last epoch, again
    anew = run / "checkpoints" / "step-00000015" / name
    assert anew.stat().st_size == (finished / anew.relative_to(run)).stat().st_size


@pytest.mark.parametrize(("name", "damage"), DAMAGE)
def test_no_whole_checkpoint_is_one_line_that_names_the_file(
    name: str, damage: Callable[[Path], None], run: Path
) -> None:
    for checkpoint in (run / "checkpoints").iterdir():
        damage(checkpoint / name)
    result = resume(run)
    assert result.exit_code == 1
    (line,) = said(result)
    assert f"checkpoints/step-00000015/{name}: " in line
    assert "there is no other checkpoint" in line
    assert len(result.output.splitlines()) == 1


def test_an_error_before_the_first_step_leaves_no_bar(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for checkpoint in (run / "checkpoints").iterdir():
        emptied(checkpoint / "optimizer.bin")
    console = Console(force_terminal=True, width=100, file=io.StringIO())
    monkeypatch.setattr(cli, "console", console)
    assert resume(run).exit_code == 1
    assert re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", console.file.getvalue()).strip() == ""


def test_a_configuration_of_another_width_names_the_weights(run: Path) -> None:
    config = json.loads((run / "config.json").read_text())
    config["encoder"]["width"] = 16
    (run / "config.json").write_text(json.dumps(config))
    result = resume(run)
    assert result.exit_code == 1
    (line,) = said(result)
    assert "model.safetensors: " in line
    assert "size mismatch" in line


@pytest.mark.parametrize("torn", [b'{"kind": "st', b"\0" * 4096, b'{"kind": "step", "step": 15, "name": "\xc3'])
def test_a_torn_line_is_dropped_with_a_note(torn: bytes, run: Path, finished: Path) -> None:
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(torn)
    result = resume(run)
    assert result.exit_code == 0, result.output
    (line,) = said(result)
    assert line.endswith("metrics.jsonl: line 19 is torn and left out")
    assert (run / "metrics.jsonl").read_bytes() == (finished / "metrics.jsonl").read_bytes()


def test_a_torn_line_in_the_middle_is_an_error(run: Path) -> None:
    lines = (run / "metrics.jsonl").read_bytes().split(b"\n")
    lines[3] = lines[3][:30]
    (run / "metrics.jsonl").write_bytes(b"\n".join(lines))
    result = resume(run)
    assert result.exit_code == 2
    assert said(result) == [f"ldreg: {run / 'metrics.jsonl'}: line 4 is not a record, and others follow"]


@pytest.mark.parametrize("room", [100_000, 250_000])
def test_a_file_size_limit_costs_the_new_checkpoint_alone(room: int, run: Path) -> None:
    """In the weights (157 kB) and in the optimiser's state (318 kB)."""
    (run / "checkpoints" / "step-00000015" / "model.safetensors").unlink()

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        result = resume(run)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert result.exit_code == 1, result.output
    passed_over, line = said(result)
    assert passed_over.endswith("step-00000010 is used")
    assert "step-00000015: the checkpoint could not be written: " in line
    assert "step-00000010" in {path.name for path in (run / "checkpoints").iterdir()}
    assert not (run / "checkpoints" / "unfinished").exists()
    assert resume(run).exit_code == 0


def test_an_encoder_that_does_not_fit_on_the_disk_is_one_line(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors import SafetensorError

    from ldreg_kernels.trainer import checkpoint

    def full(_: object, path: str, **__: object) -> None:
        Path(path).write_bytes(b"half")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(checkpoint, "save_file", full)
    result = resume(run)
    assert result.exit_code == 1
    (line,) = said(result)
    assert "encoder.safetensors: the encoder could not be written: " in line
    assert not (run / "encoder.safetensors").exists()


def test_the_encoder_is_written_before_it_is_judged(
    tiny: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ValueError("an evaluation that fails")

    monkeypatch.setattr(engine, "judge", broken)
    folder = RunFolder.create(tmp_path / "run", tiny)
    with pytest.raises(ValueError, match="an evaluation that fails"):
        train(tiny.derive({"epochs": 1}), folder)
    assert folder.encoder.exists()


@pytest.mark.parametrize("out", ["/proc/nope", "/sys/nope/run", "file", "file/run"])
@pytest.mark.parametrize("command", ["train", "verify", "demo"])
def test_out_that_cannot_be_written_is_refused_before_the_first_step(
    command: str, out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(engine, "prepare", lambda *_, **__: pytest.fail("something was built"))
    result = runner.invoke(cli.app, [command, "--out", str(tmp_path / out)])
    assert result.exit_code == 2, result.output
    assert [line[:15] for line in said(result)] == ["ldreg: --out: /"]
    assert len(result.output.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


READ_ONLY = """
import subprocess, sys
from pathlib import Path
from ldreg_kernels.trainer.run_folder import RunFolderError, require_writable
if subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", sys.argv[1]]).returncode:
    sys.exit(77)
for path in (Path(sys.argv[1]), Path(sys.argv[1], "run", "deeper")):
    try:
        require_writable(path)
    except RunFolderError as error:
        print(error)
"""


def test_a_read_only_file_system_is_refused(tmp_path: Path) -> None:
    if shutil.which("unshare") is None:
        pytest.skip("no unshare here to mount a file system with")
    script = ["unshare", "--mount", "--map-root-user", sys.executable, "-c", READ_ONLY, str(tmp_path)]
    done = subprocess.run(script, capture_output=True, text=True, check=False, timeout=300)
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    refused = [f"--out: {tmp_path}{end} cannot be written: Read-only file system" for end in ("", "/run/deeper")]
    assert done.stdout.splitlines() == refused, done.stderr


def test_a_resumed_run_that_cannot_be_written_is_refused(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("ldreg_kernels.trainer.run_folder.TemporaryFile", refused)
    result = resume(run)
    assert result.exit_code == 2
    assert said(result) == [f"ldreg: --out: {run} cannot be written: Read-only file system"]
