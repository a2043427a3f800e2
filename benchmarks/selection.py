"""Which rows count: the newest run of every suite on a GPU, and on a CPU with each instruction set.

Milliseconds of different runs are not comparable, so whatever is shown together comes from one run. What one processor
did with its instructions does not displace what another did with its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from .contenders import CONTENDERS
from .isa import place
from .records import Record, Row, Run

OURS = tuple(c.name for c in CONTENDERS if c.ours)  # the first that ran is "ours" in every ratio
ORDER = tuple(c.name for c in CONTENDERS)
NOBODY = ("roofline", "-")  # in the contender's column: the hardware, and all of a case that was not reached
INTELEX = "scikit-learn-intelex"  # the grid counts it by itself: its goal allows some losses
LIBRARIES = tuple(c.name for c in CONTENDERS if c.rival and c.name != INTELEX)  # whom the grid counts
MODES = {"forward": "neighbours only", "lid": "LID only", "gradient": "loss + gradient", "tracked": "with tracked LIDs"}
HOST = "host"  # the suite of host times, whose unit is us
CONTRASTIVE = "contrastive"  # the losses over all pairs of a batch
COMMANDS = {HOST: "python -m benchmarks.host", CONTRASTIVE: "python -m benchmarks.contrastive"}
EMPTY = "empty function"  # there: an autograd.Function over a registered op that does nothing


class Shape(NamedTuple):
    """What identifies a case in the file."""

    B: int
    N: int
    D: int
    k: int
    dtype: str
    mode: str

    @property
    def size(self) -> str:
        return f"({self.B}, {self.N}, {self.D}, {self.k})"

    @property
    def words(self) -> str:
        return f"{self.dtype}, {MODES.get(self.mode, self.mode)}"


class Results:
    """The newest run of every suite of one device, on a CPU with one instruction set."""

    def __init__(self, records: Iterable[Record], device: str, isa: str = "") -> None:
        self.device, self.isa = device, isa
        mine = [record for record in records if (record.run.device, record.run.isa) == (device, isa)]
        self.runs: dict[str, Run] = {}  # by suite
        for run, row in ((record.run, record.row) for record in mine):
            if row.suite not in self.runs or run.run >= self.runs[row.suite].run:  # a run's name begins with its time
                self.runs[row.suite] = run
        self._rows: dict[tuple[str, Shape, str, str], Row] = {}
        for run, row in ((record.run, record.row) for record in mine):
            if run.run == self.runs[row.suite].run:
                shape = Shape(row.B, row.N, row.D, row.k, row.dtype, row.mode)
                self._rows[row.suite, shape, row.backend, row.statistic] = row

    @property
    def place(self) -> str:
        """In titles: "GPU", or "CPU with avx2"."""
        return "GPU" if self.device == "cuda" else f"CPU with {self.isa}"

    @property
    def file_name(self) -> str:
        """In names of files: "cuda", or "cpu-avx2"."""
        return "-".join(filter(None, (self.device, self.isa)))

    def get(self, suite: str, shape: Shape, backend: str, statistic: str) -> Row | None:
        """The row, where it holds a value."""
        row = self._rows.get((suite, shape, backend, statistic))
        return row if row is not None and row.value is not None else None

    def value(self, suite: str, shape: Shape, backend: str, statistic: str) -> float | None:
        row = self.get(suite, shape, backend, statistic)
        return None if row is None else row.value

    def state(self, suite: str, shape: Shape, backend: str) -> str:
        """Why a contender has no value here; empty where nothing was noted."""
        row = self._rows.get((suite, shape, backend, "state"))
        return "" if row is None else row.note

    def shapes(self, suite: str) -> list[Shape]:
        """The cases of a suite, in the file's order."""
        found = {shape: None for s, shape, _, _ in self._rows if s == suite}
        return list(found)

    def backends(self, suite: str, *statistics: str) -> list[str]:
        """Who has one of these statistics somewhere in a suite, in the contenders' order, unknown names last."""
        found = {b: None for s, _, b, t in self._rows if s == suite and t in statistics and b not in NOBODY}
        return sorted(found, key=lambda b: ORDER.index(b) if b in ORDER else len(ORDER))

    def ours(self, suite: str, shape: Shape) -> str:
        """The backend of this package that the ratios of a case refer to."""
        for statistic in ("time", "peak memory", "state"):
            for backend in OURS:
                if (suite, shape, backend, statistic) in self._rows:
                    return backend
        return ""

    def rows(self, suite: str) -> list[Row]:
        return [row for (s, *_), row in self._rows.items() if s == suite]

    def memory_suites(self) -> list[str]:
        """The suites in which memory was measured, the one that was made for it first."""
        return [suite for suite in ("memory", "headline", "n") if self.backends(suite, "peak memory")]

    def caption(self, suite: str) -> str:
        """Where the numbers of a suite come from, and how to get them again."""
        run = self.runs[suite]
        isa = f" --isa {self.isa}" if self.isa else ""
        command = COMMANDS.get(suite, f"ldreg bench --device {self.device}{isa} --suite {suite}")
        return f"{run.hardware}; {run.versions}; commit {run.commit}, {run.date}; `{command}`."


@dataclass(frozen=True)
class Found:
    """The newest runs of both devices.

    Attributes:
        cpu: one for every instruction set that was measured, the widest first.
        cuda: empty where nothing was measured.
    """

    cpu: tuple[Results, ...]
    cuda: Results

    def __iter__(self) -> Iterator[Results]:
        """Where anything was measured."""
        return (results for results in (*self.cpu, self.cuda) if results.runs)

    def on_cpu(self, isa: str) -> Results:
        """With this instruction set; empty where nothing was measured."""
        return next((results for results in self.cpu if results.isa == isa), Results((), "cpu", isa))


def newest(records: Iterable[Record]) -> Found:
    """What counts of all that was recorded."""
    records = list(records)
    isas = {record.run.isa for record in records if record.run.device == "cpu"}
    sets = sorted(isas, key=lambda isa: (place(isa), isa))
    return Found(tuple(Results(records, "cpu", isa) for isa in sets), Results(records, "cuda"))
