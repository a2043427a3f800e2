"""The folder of one run: what was asked, what happened, and what came out.

    config.json            the whole configuration, defaults included
    environment.json       versions, threads, device: what one needs to read a timing or a last digit
    metrics.jsonl          one JSON object per line: {"kind": "step", ...} and {"kind": "geometry", ...}
    summary.json           final numbers and the covariance spectrum
    checkpoints/           accelerate's state after finished epochs, the newest two
    encoder.safetensors    the trained encoder
    plots/*.png            drawn from metrics.jsonl
    tensorboard/           the same curves for TensorBoard

What this file does not do: decide what is logged, or draw.
"""

from __future__ import annotations

import json
import math
import os
import platform
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import torch

from .config import TrainConfig, load_config


class RunFolderError(RuntimeError):
    """The folder cannot be used as asked: it is in use, or it holds no run."""


class RunFolderWarning(UserWarning):
    """Something in the folder was damaged, and the run goes on without it."""


class RunFolder:
    """Paths of a run and the writing of its records.

    Args:
        path: the folder; made by `create`, read by `open`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.encoder = path / "encoder.safetensors"
        self.metrics = path / "metrics.jsonl"
        self.summary = path / "summary.json"
        self.plots = path / "plots"
        self._board: Any = None
        self._resumed_at: int | None = None

    @staticmethod
    def check(path: Path, *, overwrite: bool = False) -> None:
        """Whether a new run may be written there; nothing is changed.

        Args:
            path: the folder that `create` will make.
            overwrite: a run that is already there may go.

        Raises:
            RunFolderError: it holds a run and `overwrite` is off, it holds something that is not a run, it is a file,
                or it cannot be written (which is tried, and undone).
        """
        require_writable(path)
        if path.exists() and any(path.iterdir()):
            if not (path / "config.json").exists():
                raise RunFolderError(f"--out: {path} is not empty and is not a run folder: choose another")
            if not overwrite:
                raise RunFolderError(f"--out: {path} holds a run: resume it, overwrite it, or choose another folder")

    @classmethod
    def create(cls, path: Path, config: TrainConfig, *, overwrite: bool = False) -> RunFolder:
        """Make a new run folder and write the configuration into it.

        Args:
            path: where.
            config: the run's configuration.
            overwrite: remove a run that is already there.

        Returns:
            The folder.

        Raises:
            RunFolderError: as `check`.
        """
        cls.check(path, overwrite=overwrite)
        if path.exists():
            shutil.rmtree(path)
        folder = cls(path)
        folder.plots.mkdir(parents=True)
        write_json(path / "config.json", config.model_dump(mode="json"))
        write_json(path / "environment.json", environment())
        return folder

    @classmethod
    def open(cls, path: Path) -> tuple[RunFolder, TrainConfig]:
        """Open an existing run folder to go on with it.

        Args:
            path: where.

        Returns:
            The folder and the configuration it was made with.

        Raises:
            RunFolderError: there is no run, or it cannot be written.
        """
        if not (path / "config.json").exists():
            raise RunFolderError(f"--out: {path} holds no run (no config.json)")
        require_writable(path)
        return cls(path), load_config(path / "config.json")

    def log(self, record: dict[str, Any]) -> None:
        """Append one record to metrics.jsonl and its numbers to the TensorBoard curves.

        Args:
            record: "kind", "step", "epoch" and numbers.
        """
        # JSON has no NaN: a LID that does not exist (every row collapsed onto one point, say) is written as
        # null.
        plain = {name: _json_number(value) for name, value in record.items()}
        with _named(self.metrics), self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(plain) + "\n")
        for name, value in plain.items():
            if name not in {"kind", "step", "epoch"} and value is not None:
                self._tensorboard().add_scalar(f"{record['kind']}/{name}", value, record["step"])

    def rewind(self, step: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Drop the records that came after a checkpoint, which a resumed run will write again.

        Args:
            step: optimiser steps finished at the checkpoint.

        Returns:
            The step records and the geometry records that stay.
        """
        self._resumed_at = step
        # A step record carries its own index, a geometry record the number of steps before it.
        kept = [r for r in read_records(self.metrics) if r["step"] + (r["kind"] == "step") <= step]
        _replace(self.metrics, "".join(json.dumps(r) + "\n" for r in kept))
        steps = [r for r in kept if r["kind"] == "step"]
        if len(steps) < step:
            lost = f"{self.metrics}: only {len(steps)} of the {step} steps before the checkpoint are on record"
            warnings.warn(lost, RunFolderWarning, stacklevel=2)
        return steps, [r for r in kept if r["kind"] == "geometry"]

    def finish(self, numbers: Mapping[str, Any], spectrum: list[float]) -> None:
        """Write summary.json and close the TensorBoard file.

        Args:
            numbers: final evaluation, speed, images that were not read.
            spectrum: covariance eigenvalues.
        """
        write_json(self.summary, {n: _json_number(v) for n, v in numbers.items()} | {"covariance_spectrum": spectrum})
        if self._board is not None:
            self._board.close()
            self._board = None

    def _tensorboard(self) -> Any:
        if self._board is None:
            from torch.utils.tensorboard import (
                SummaryWriter,
            )  # a second of imports, paid only by runs that are recorded

            # What was drawn after the checkpoint is drawn again, and must not stand there twice.
            self._board = SummaryWriter(str(self.path / "tensorboard"), purge_step=self._resumed_at)
        return self._board


def read_records(path: Path) -> list[dict[str, Any]]:
    """Records of a metrics.jsonl file. What a process left that ended while it wrote, half a line at the end, is left
    out with a warning.

    Args:
        path: the file; a missing one has no records.

    Returns:
        One dict per line.

    Raises:
        RunFolderError: a line before the last is no record.
    """
    lines = path.read_bytes().split(b"\n") if path.exists() else []
    numbered = [(number, line) for number, line in enumerate(lines, start=1) if line]
    records = []
    for number, line in numbered:
        try:
            record = json.loads(line)
        except ValueError:  # UnicodeDecodeError is one too
            record = None
        if isinstance(record, dict) and {"kind", "step"} <= record.keys():
            records.append(record)
        elif number == numbered[-1][0]:
            warnings.warn(f"{path}: line {number} is torn and left out", RunFolderWarning, stacklevel=2)
        else:
            raise RunFolderError(f"{path}: line {number} is not a record, and others follow")
    return records


def require_writable(path: Path) -> None:
    """Raise before hours of work if a folder cannot be written in the end.

    Args:
        path: the folder; it need not exist.

    Raises:
        RunFolderError: it cannot be made, or a file cannot be written into it.
    """
    try:
        missing = [place for place in (path, *path.absolute().parents) if not place.exists()]
        nearest = next(place for place in (path, *path.absolute().parents) if place.exists())
        if not nearest.is_dir():
            raise RunFolderError(f"--out: {nearest} is a file, not a folder")
        try:
            # Tried, not asked: access() knows nothing of file systems such as /proc.
            path.mkdir(parents=True, exist_ok=True)
            with TemporaryFile(dir=path):
                pass
        finally:
            for place in missing:
                with suppress(OSError):
                    place.rmdir()
    except OSError as error:
        raise RunFolderError(f"--out: {path} cannot be written: {error.strerror}") from None


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Let an error of a write say which file it was: a full disk does not."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def _replace(path: Path, text: str) -> None:
    """Write a file so that it is the old or the new one wherever the process ends."""
    fresh = path.with_name(f"{path.name}.new")
    with _named(path):
        fresh.write_text(text, encoding="utf-8")
        fresh.replace(path)


def _json_number(value: Any) -> Any:
    """JSON has no NaN and no Inf."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON.

    Args:
        path: the file; folders are made.
        value: anything JSON can hold.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _replace(path, json.dumps(value, indent=2) + "\n")


def environment() -> dict[str, Any]:
    """What the numbers of a run depend on besides its configuration.

    Returns:
        Versions, processor, threads and the accelerator's name.
    """
    accelerator = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "gpu": accelerator,
    }
