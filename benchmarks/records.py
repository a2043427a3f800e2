"""One row per measurement, appended to a CSV file that is never rewritten.

A row says what was measured (op, backend, shape, dtype, mode, statistic), what came (value with its spread), and what
it depends on (hardware, versions, commit, date). Something that could not be measured is a row too, with its reason
in `note`: a missing library, an answer that was wrong, memory that ran out.
"""

from __future__ import annotations

import csv
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timezone
from pathlib import Path

import torch

from ldreg_kernels.kernels import native

from .isa import instruction_sets

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
FILE_NAME = "measurements.csv"

# distribution -> the name in `versions`; those that are installed are listed
_VERSIONS = (
    "torch",
    "triton",
    "numpy",
    "faiss-cpu",
    "faiss-gpu-cu12",
    "pykeops",
    "scikit-learn",
    "scikit-learn-intelex",
    "usearch",
    "numkong",
    "cuvs-cu12",
    "cuvs-cu13",
    "flashlib",
    "torchid",
    "transformers",
    "lightly",
    "pytorch-metric-learning",
)


@dataclass(frozen=True)
class Run:
    """What all rows of one run share."""

    run: str  # start in UTC, to the second, the device, an instruction set asked for: unique enough to select rows by
    date: str
    commit: str
    device: str  # "cpu" or "cuda"
    hardware: str
    versions: str

    @classmethod
    def start(cls, device: str, threads: int, isa: str = "") -> Run:
        """Describe this machine, this checkout and this moment; `isa` is the CPU's instruction set, if asked for."""
        now = datetime.now(timezone.utc)
        return cls(
            run="-".join(filter(None, (f"{now:%Y%m%dT%H%M%S}", device, isa))),
            date=f"{now:%Y-%m-%d}",
            commit=commit(),
            device=device,
            hardware=hardware(device, threads, isa),
            versions=versions(),
        )

    @property
    def isa(self) -> str:
        """The instruction set of the CPU kernels, with which `hardware` ends; empty on a GPU."""
        return self.hardware.rpartition(", ")[2] if self.device == "cpu" else ""


@dataclass(frozen=True)
class Row:
    """One measurement. Strings and numbers only: this is a line of the file.

    statistic, unit and what the value is:

        time            ms     median over rounds (of each turn's median call), low and high the 20th and 80th
                               percentiles; `repetitions` counts all calls. In suite "host" us, of the host's part alone
        ratio           1      median over rounds of this contender's time over this package's, spread likewise
        peak memory     MB     beyond the inputs, 1 MB = 1e6 bytes
        saved memory    MB     kept by autograd between forward and backward, beyond the inputs
        peak resident   MB     of the whole process in which the peak memory was measured
        launches        1      kernels started on the GPU for one call, torch's small ones in front and behind included
        own launches    1      those of them that are this package's
        loss error      1      relative error of a loss against float64
        lid error       1      mean relative error of the LIDs against float64
        gradient error  1      relative error of the gradient in L2 against float64
        recall          1      share of the k nearest neighbours found
        rate            GFLOP/s or GB/s   of a large matrix product or copy
        gemm floor, gather floor   ms   what the hardware needs at those rates
        of the floor    1      time over the sum of both floors
        share           1      of a training step, spent in the regulariser
        state           -      no value; `note` says why nothing was measured
    """

    suite: str
    op: str  # "knn", "lid", "ldreg_loss", "train_step", "rate", the contrastive losses
    backend: str  # contender
    B: int
    N: int
    D: int
    k: int
    dtype: str
    mode: str
    statistic: str
    unit: str = ""
    value: float | None = None
    low: float | None = None
    high: float | None = None
    repetitions: int = 0
    note: str = ""


COLUMNS = tuple(field.name for kind in (Run, Row) for field in fields(kind))


@dataclass(frozen=True)
class Record:
    """A row with its run, as read back from the file."""

    run: Run
    row: Row


class RecordFile:
    """An append-only CSV file of measurements."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, run: Run, rows: Iterable[Row]) -> None:
        """Add rows at the end, the header first where the file is new.

        Raises:
            ValueError: the file has other columns than this version writes.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        new = not self.path.exists()
        if not new:
            self._check_header()
        with self.path.open("a", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            if new:
                writer.writeheader()
            for row in rows:
                writer.writerow({name: _text(value) for name, value in {**asdict(run), **asdict(row)}.items()})

    def read(self) -> list[Record]:
        """All rows, oldest first; none where there is no file."""
        if not self.path.exists():
            return []
        self._check_header()
        with self.path.open(newline="") as file:
            return [_record(line) for line in csv.DictReader(file)]

    def _check_header(self) -> None:
        with self.path.open(newline="") as file:
            header = tuple(next(csv.reader(file), ()))
        if header != COLUMNS:
            raise ValueError(f"{self.path} has columns {', '.join(header)}; this version writes {', '.join(COLUMNS)}")


def _text(value: object) -> object:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else value


def _record(line: dict[str, str]) -> Record:
    integers = {"B", "N", "D", "k", "repetitions"}
    numbers = {"value", "low", "high"}
    values: dict[str, object] = {
        name: int(text) if name in integers else (float(text) if text else None) if name in numbers else text
        for name, text in line.items()
    }
    run = Run(**{field.name: values[field.name] for field in fields(Run)})  # type: ignore[arg-type]
    row = Row(**{field.name: values[field.name] for field in fields(Row)})  # type: ignore[arg-type]
    return Record(run, row)


# ------------------------------------------------------------------------------------------------- provenance


def commit() -> str:
    """Short hash of the checkout, with "-dirty" where something is not committed; "unknown" outside git."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("LDREG_COMMIT", "unknown")  # a copy without .git: gpu_gate.sh may say what it is
    return found.stdout.strip()


def hardware(device: str, threads: int, isa: str = "") -> str:
    """For example "NVIDIA H200" or "AMD EPYC, 2 threads, avx512bf16".

    "AMD EPYC with avx512bf16, 2 threads, avx2" where a lesser set than the machine's was asked for, by `isa` or by the
    environment: the other contenders take what the machine has.
    """
    if device == "cuda":
        return torch.cuda.get_device_name()
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        model = names[0] if names else model
    if native.unavailable_reason() is not None:
        return f"{model}, {threads} threads, no CPU extension"
    isa, best = isa or native.isa(), instruction_sets()[0]
    return f"{model}{f' with {best}' if isa != best else ''}, {threads} threads, {isa}"


def versions() -> str:
    """For example "python 3.11.7; torch 2.13.0+cpu; faiss-cpu 1.15.1": what is installed of what matters."""
    found = [f"python {platform.python_version()}"]
    for name in _VERSIONS:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    if torch.version.cuda:
        found.append(f"cuda {torch.version.cuda}")
        if (known := driver()) is not None:
            found.append(f"driver {known}")
    return "; ".join(found)


def driver() -> str | None:
    """Version of the GPU's driver, such as "580.159.03"; None where nothing says it."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        text = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return next(iter(text.split()), None)
