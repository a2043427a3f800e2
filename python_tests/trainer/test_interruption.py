"""A process may end anywhere in a save, and files may be damaged later: a whole checkpoint is found and used."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from ldreg_kernels.trainer import checkpoint
from ldreg_kernels.trainer.checkpoint import CheckpointError, Progress, newest_first
from ldreg_kernels.trainer.config import TrainConfig
from ldreg_kernels.trainer.engine import _parts, prepare
from ldreg_kernels.trainer.run_folder import RunFolderWarning

pytestmark = pytest.mark.filterwarnings("ignore::ldreg_kernels.trainer.run_folder.RunFolderWarning")


SUMS = "sha256.json"


class KilledError(BaseException):
    """Ends a process where it stands: no `except Exception` sees it."""


class SmallRun:
    """All that a checkpoint needs: a layer whose weights are the step, an optimiser with a state, the progress."""

    def __init__(self, width: int = 3) -> None:
        self.accelerator = Accelerator(cpu=True)
        self.layer = nn.Linear(width, 2)
        self.optimiser = torch.optim.SGD(self.layer.parameters(), lr=0.0, momentum=0.9)
        self.prepared = self.accelerator.prepare(self.layer, self.optimiser)
        self.progress = Progress()
        self.accelerator.register_for_checkpointing(self.progress)
        self.layer(torch.ones(1, width)).sum().backward()
        self.optimiser.step()

    def save(self, folder: Path, step: int) -> None:
        self.progress.step = step
        with torch.no_grad():
            self.layer.weight.fill_(step)
        checkpoint.save(self.accelerator, folder, step)

    def restore(self, folder: Path) -> int:
        parts: dict[str, Callable[[Any], Any]] = {
            checkpoint.WEIGHTS: self.layer.load_state_dict,
            checkpoint.OPTIMISER: self.optimiser.load_state_dict,
            checkpoint.PROGRESS: self.progress.load_state_dict,
        }
        checkpoint.restore(folder, parts)
        assert (self.layer.weight == self.progress.step).all()
        return self.progress.step


class Kill:
    """Ends the process at the n-th moment of a save: before, in the middle of, and after whatever changes the disk."""

    def __init__(self, moment: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.moment, self.passed = moment, 0
        rmtree, rename, save_state = shutil.rmtree, Path.rename, Accelerator.save_state

        def half_removed(path: Path, **_: Any) -> None:
            for file in sorted(Path(path).rglob("*"))[::2]:
                file.unlink()

        def half_written(accelerator: Accelerator, path: str) -> None:
            save_state(accelerator, path)
            for i, file in enumerate(sorted(Path(path).iterdir())):
                file.unlink() if i % 2 else file.write_bytes(file.read_bytes()[:50])

        def rmtree_or_die(path: Path, **options: Any) -> None:
            if Path(path).exists():
                self._around(rmtree, half_removed, path, **options)

        def renamed(path: Path, target: Path) -> None:
            self._around(rename, None, path, target)

        def saved(accelerator: Accelerator, path: str) -> None:
            self._around(save_state, half_written, accelerator, path)

        monkeypatch.setattr(checkpoint.shutil, "rmtree", rmtree_or_die)
        monkeypatch.setattr(Path, "rename", renamed)
        monkeypatch.setattr(Accelerator, "save_state", saved)

    def _around(self, whole: Callable[..., Any], half: Callable[..., Any] | None, *args: Any, **options: Any) -> None:
        self._now()
        if half is not None and self.passed == self.moment:
            half(*args, **options)
        if half is not None:
            self._now()
        whole(*args, **options)
        self._now()

    def _now(self) -> None:
        if self.passed == self.moment:
            raise KilledError
        self.passed += 1


@pytest.fixture
def run() -> SmallRun:
    return SmallRun()


# What is on the disk before the save that is killed: steps, and whether the newest of them is damaged.
BEFORE: dict[str, tuple[list[int], bool]] = {
    "nothing": ([], False),
    "one": ([5], False),
    "two": ([5, 10], False),
    "two, the newest damaged": ([5, 10], True),
}


@pytest.mark.parametrize("before", BEFORE)
def test_killed_at_any_moment_of_a_save_a_whole_checkpoint_is_found(
    before: str, run: SmallRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps, damaged = BEFORE[before]
    for moment in range(40):
        folder = tmp_path / str(moment)
        for step in steps:
            run.save(folder, step)
        if damaged:
            (folder / "step-00000010" / checkpoint.WEIGHTS).write_bytes(b"")
        last = 5 if damaged else max(steps, default=0)
        for _ in range(3):  # and killed at the same moment again, after it was resumed
            with monkeypatch.context() as patch:
                kill = Kill(moment, patch)
                with suppress(KilledError):
                    run.save(folder, last + 5)
            if last or newest_first(folder):
                found = run.restore(folder)
                assert found in (last, last + 5), moment
                last = found
        run.save(folder, last + 5)
        assert run.restore(folder) == last + 5
        assert len(list(folder.iterdir())) <= 2
        if kill.passed < moment:  # the save was done before it could be killed
            break
    assert 5 <= moment < 39


@pytest.mark.parametrize("name", [checkpoint.WEIGHTS, checkpoint.OPTIMISER, checkpoint.PROGRESS, SUMS])
def test_whatever_happened_to_a_file_the_checkpoint_before_is_used(name: str, run: SmallRun, tmp_path: Path) -> None:
    run.save(tmp_path, 5)
    run.save(tmp_path, 10)
    victim = tmp_path / "step-00000010" / name
    whole = victim.read_bytes()
    for at in {*range(0, len(whole), max(1, len(whole) // 40)), len(whole) - 1}:
        zeros = whole[:at] + bytes(len(whole) - at)  # after a power cut; of weights they would be valid
        flipped = whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]
        for damage in {whole[:at], zeros, flipped} - {whole}:
            victim.write_bytes(damage)
            found = run.restore(tmp_path)
            assert found == 5 or (name == SUMS and found == 10), at  # a space, or the sum of a file that is not read
    victim.write_bytes(whole)
    assert run.restore(tmp_path) == 10
    victim.unlink()
    with pytest.warns(RunFolderWarning, match=rf"step-00000010/{name}: .*; step-00000005 is used"):
        assert run.restore(tmp_path) == 5


def test_garbage_of_any_kind_is_passed_over(run: SmallRun, tmp_path: Path) -> None:
    run.save(tmp_path, 5)
    run.save(tmp_path, 10)
    drawn = random.Random(0)
    for _ in range(60):
        name = drawn.choice([checkpoint.WEIGHTS, checkpoint.OPTIMISER, checkpoint.PROGRESS])
        (tmp_path / "step-00000010" / name).write_bytes(drawn.randbytes(drawn.randrange(400)))
        assert run.restore(tmp_path) == 5


def test_weights_of_another_width_are_named(run: SmallRun, tmp_path: Path) -> None:
    wide = SmallRun(width=7)
    wide.save(tmp_path, 5)
    with pytest.raises(CheckpointError, match=r"step-00000005/model.safetensors: .*size mismatch.*no other") as error:
        run.restore(tmp_path)
    assert "\n" not in str(error.value)
    wide.save(tmp_path / "other", 10)
    for name in (checkpoint.WEIGHTS, checkpoint.OPTIMISER):
        run.save(tmp_path, 10)
        shutil.copy(tmp_path / "other" / "step-00000010" / name, tmp_path / "step-00000010" / name)
        with pytest.raises(CheckpointError, match=rf"step-00000010/{name}: "):
            run.restore(tmp_path)


def test_a_gradient_scaler_comes_back(tiny: TrainConfig, tmp_path: Path) -> None:
    """fp16 alone has one, and needs a GPU: here it is put in by hand."""
    run = prepare(tiny)
    run.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    checkpoint.save(run.accelerator, tmp_path, 5)
    run.accelerator.scaler.load_state_dict(run.accelerator.scaler.state_dict() | {"scale": 2.0})
    checkpoint.restore(tmp_path, _parts(run))
    assert run.accelerator.scaler.state_dict()["scale"] == 8.0


@pytest.mark.parametrize("files", [0, 1, 3])
def test_a_full_disk_costs_the_new_checkpoint_alone(
    files: int, run: SmallRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.save(tmp_path, 5)

    def full(accelerator: Accelerator, path: str) -> None:
        Path(path).mkdir()
        for i in range(files):
            (Path(path) / f"{i}.bin").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Accelerator, "save_state", full)
        with pytest.raises(CheckpointError, match=r"step-00000010: the checkpoint could not be written: .*No space"):
            run.save(tmp_path, 10)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000005"]
    assert run.restore(tmp_path) == 5
