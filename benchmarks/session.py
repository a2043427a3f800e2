"""A run: suites of cases, contenders that take turns, rows in the results file.

For every case all contenders are prepared and checked first. Then, round after round, each one has its turn, so that
whatever the machine does meanwhile happens to all of them: a ratio compares times of one round, and its median over
the rounds is what the tables show. What was not measured leaves a row that says why.

Several instruction sets of our CPU kernels may take part at once. Each has a run of its own, with its own ratios; what
concerns all, a library's time for example, is measured once and becomes a row of every run.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
import torch

from ldreg_kernels.kernels import native

from .cases import GRID, Case
from .contenders import CPU, YARDSTICK, Contender, named
from .gate import WrongAnswerError
from .records import RecordFile, Row, Run
from .roofline import Rates
from .simclr_step import StepCase
from .train_step import measure_step
from .worker import NoMeasurementError, Worker

UNITS = {"time": "ms", "gemm floor": "ms", "gather floor": "ms", "peak memory": "MB"}
GRACE_SECONDS = 10.0  # for what is under way when a run's time is over
TURN_MS = {"cpu": 40.0, "cuda": 10.0}  # a turn repeats a short call until it has taken about so long
MOST_CALLS = 20
Result = TypeVar("Result")


@dataclass(frozen=True)
class Options:
    """How much effort a run makes.

    Attributes:
        device: "cpu" or "cuda".
        threads: CPU threads of every contender.
        rounds: turns of every contender in a case.
        patience: seconds after which a contender that had a turn gets no more in this case.
        limit: seconds one call may take.
        seconds: of the whole run, after which cases are reported as not reached.
    """

    device: str
    threads: int
    rounds: int
    patience: float
    limit: float
    seconds: float = math.inf


@dataclass
class Times:
    """Milliseconds of one contender, the median of each turn."""

    turns: list[float] = field(default_factory=list)
    calls: int = 0
    spent: float = 0.0  # seconds


@dataclass(frozen=True)
class Entrant:
    """Who takes turns: a contender; our CPU kernels once for every instruction set that was asked for.

    Attributes:
        contender: who.
        isa: the instruction set; empty for what the environment says, and for everybody else.
    """

    contender: Contender
    isa: str = ""

    @property
    def name(self) -> str:
        return self.contender.name

    def __str__(self) -> str:
        return f"{self.name} {self.isa}".rstrip()


class Session:
    """Runs suites and appends rows.

    Args:
        runs: what rows share, by the instruction set that was asked for; under "" where none was.
        file: where rows go.
        options: how much effort.
        contenders: who takes part, this package's backends first.
        say: prints a line of progress.
    """

    def __init__(
        self,
        runs: Mapping[str, Run],
        file: RecordFile,
        options: Options,
        contenders: Sequence[Contender],
        say: Callable[[str], None],
    ) -> None:
        self.runs, self.file, self.options, self.say = runs, file, options, say
        self.entrants = [entrant for contender in contenders for entrant in entrants(contender, runs)]
        self.started = time.monotonic()
        self.workers = {entrant: self._worker(entrant) for entrant in self.entrants}
        self.rates: Rates | None = None
        self.rows: list[tuple[str, Row]] = []  # with its instruction set, or "" for a row of every run
        self.done: dict[Case, list[tuple[str, Row]]] = {}  # a case of two suites is measured once
        self.wrong: list[str] = []  # this package's own wrong answers, which fail the run
        self.not_reached: list[str] = []

    def __enter__(self) -> Session:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        for worker in self.workers.values():
            worker.stop()

    @property
    def seconds_left(self) -> float:
        """Of the run's budget."""
        return self.options.seconds - (time.monotonic() - self.started)

    def measure_rates(self) -> None:
        """Rates of the hardware, from which the floors of every case are made."""
        yardstick = Entrant(named(YARDSTICK))
        worker = self.workers.get(yardstick) or self._worker(yardstick)
        try:
            self.rates = Rates(**worker.rates())
        except NoMeasurementError as state:
            self.say(f"the hardware's rates were not measured, so there are no floors: {state}\n{state.details}")
            return
        if yardstick not in self.workers:
            worker.stop()
        for precision, rate in self.rates.products.items():
            self._append(_rate_row(f"{YARDSTICK} {precision}", rate, "GFLOP/s"))
        self._append(_rate_row("copy", self.rates.copy, "GB/s"))
        products = ", ".join(f"{name} {rate:.0f} GFLOP/s" for name, rate in self.rates.products.items())
        self.say(f"measured rates: matrix product {products}; copy {self.rates.copy:.0f} GB/s")

    def measure(self, suite: str, cases: Iterable[Case]) -> None:
        """Time every case of a suite."""
        for case in self._affordable(suite, cases):
            self._announce(f"{suite} {case}")
            if case in self.done:
                self.say("  as above")
                for isa, row in self.done[case]:
                    self._write(replace(row, suite=suite), isa)
                continue
            begin = len(self.rows)
            ready = self._prepare(suite, case, self._taking_part(suite, case))
            times = self._rounds(suite, case, ready)
            self._report(suite, case, times)
            if self.options.device == "cuda" and suite != GRID:  # which is about who is faster
                for entrant in times:
                    self._count_memory(suite, case, entrant)
                for entrant in times:  # last, because a profiler slows down what comes after it
                    self._count_launches(suite, case, entrant)
            for worker in self.workers.values():
                worker.release()
            self.done[case] = self.rows[begin:]

    def measure_memory(self, suite: str, cases: Iterable[Case]) -> None:
        """Peak resident memory of every case, each measurement in a fresh process: for the CPU."""
        for case in self._affordable(suite, cases):
            self._announce(f"{suite} {case}")
            # Memory does not depend on who else is running; only two large ones together might not fit.
            together = 2 if case.B * case.N <= 2**26 else 1
            memory_limit = int(0.85 * available_memory() / together)

            def resident(entrant: Entrant, case: Case = case, memory_limit: int = memory_limit) -> tuple[Entrant, Row]:
                worker = self._worker(entrant, memory_limit)
                try:
                    peak = worker.resident_memory(case, self.options.limit)
                    return entrant, _row(suite, case, entrant.name, "peak memory", peak, repetitions=1)
                except NoMeasurementError as state:
                    limit = f" at {memory_limit / 1e9:.1f} GB" if str(state) == "out of memory" else ""
                    return entrant, state_row(suite, case, entrant.name, f"{state}{limit}")
                finally:
                    worker.stop()

            for entrant, row in self._at_once(together, resident, [e for e in self.entrants if e.contender.checked]):
                self._append(row, entrant.isa)
                self.say(f"  {entrant!s:24} {row.note or f'{row.value:.0f} MB'}")

    def measure_train_steps(self, suite: str, cases: Iterable[StepCase]) -> None:
        """SimCLR steps with each regulariser, in this process: they share the network, and nobody else is timed now.

        So they run with this process' instruction set, and belong to its run.
        """
        own = next((isa for isa, run in self.runs.items() if isa in ("", native.isa())), None)
        if own is None:
            self.say(f"{suite}: left out, because it runs in this process, whose instruction set is {native.isa()}")
            return
        for case in cases:
            name = f"{suite} {case.mode} {case.images} images"
            if self.seconds_left <= 0:
                self.not_reached.append(name)
                continue
            self._announce(name)
            try:
                budget = min(3 * self.options.patience, self.seconds_left)  # three variants
                rows = measure_step(case, torch.device(self.options.device), budget)
            except (WrongAnswerError, RuntimeError) as error:  # of ours, or of the step it is part of
                self._wrong(f"{name}: {error}")
                continue
            for row in rows:
                self._append(row, own)
                if row.statistic in ("time", "state"):
                    value = "" if row.value is None else f"{row.value:10.2f} ms  "
                    self.say(f"  {row.backend:24} {value}{row.note}")

    # --------------------------------------------------------------------------------------------- one case

    def _affordable(self, suite: str, cases: Iterable[Case]) -> Iterator[Case]:
        for case in cases:
            if self.seconds_left > 0:
                yield case
            else:
                self.not_reached.append(f"{suite} {case}")
                self._append(state_row(suite, case, "-", "not reached"))

    def _taking_part(self, suite: str, case: Case) -> list[Entrant]:
        """Everybody, in the grid its rivals; against the clock, those that compile for every shape once only."""
        if suite == GRID:
            return [e for e in self.entrants if e.contender.ours or self.options.device in e.contender.rival]
        hurried = bool(self.done) and self.options.seconds < math.inf
        for entrant in self.entrants:
            if hurried and entrant.contender.compiles:
                self._append(state_row(suite, case, entrant.name, "not reached: compiling takes too long"))
        return [entrant for entrant in self.entrants if not (hurried and entrant.contender.compiles)]

    def _prepare(self, suite: str, case: Case, entrants: Sequence[Entrant]) -> dict[Entrant, float]:
        """Who gave a right answer, with the time of the first call in ms; rows for all others."""

        def prepare(entrant: Entrant) -> tuple[Entrant, dict[str, float] | NoMeasurementError]:
            try:
                return entrant, self.workers[entrant].prepare(case, self.options.limit)
            except NoMeasurementError as state:
                return entrant, state

        for entrant in entrants:
            self.workers[entrant].start()  # all of them import at once
        ready = {}
        # Nothing is timed yet, so on the CPU two may compile at once; a GPU's memory is better used one by one.
        together = 2 if self.options.device == "cpu" and case.B * case.N <= 2**26 else 1
        for entrant, found in self._at_once(together, prepare, entrants):
            if isinstance(found, NoMeasurementError):
                self._no_value(suite, case, entrant, found)
                continue
            ready[entrant] = found.pop("expected")
            for statistic, value in found.items():
                self._append(_row(suite, case, entrant.name, statistic, value), entrant.isa)
        return ready

    def _at_once(
        self, together: int, work: Callable[[Entrant], Result], entrants: Sequence[Entrant]
    ) -> Iterator[Result]:
        """`work` for so many at once, in order; then alone those whose pilot is a measurement."""
        with ThreadPoolExecutor(together) as pool:
            yield from pool.map(work, [entrant for entrant in entrants if not entrant.contender.pilot])
        yield from map(work, [entrant for entrant in entrants if entrant.contender.pilot])

    def _no_value(self, suite: str, case: Case, entrant: Entrant, state: NoMeasurementError) -> None:
        self._append(state_row(suite, case, entrant.name, str(state)), entrant.isa)
        self.say(f"  {entrant!s:24} {state}")
        if state.details:
            self.say(state.details)
        if entrant.contender.ours and str(state).startswith(("wrong", "failed", "no answer")):
            self._wrong(f"{entrant} {case}: {state}")

    def _wrong(self, what: str) -> None:
        self.wrong.append(what)
        self.say(f"WRONG: {what}")

    def _worker(self, entrant: Entrant, memory_limit: int = 0) -> Worker:
        device, threads = self.options.device, self.options.threads
        worker = Worker(entrant.name, device, threads, memory_limit=memory_limit, isa=entrant.isa)
        worker.deadline = self.started + self.options.seconds + GRACE_SECONDS
        return worker

    def _rounds(self, suite: str, case: Case, ready: dict[Entrant, float]) -> dict[Entrant, Times]:
        times = {entrant: Times() for entrant in ready}
        for _ in range(self.options.rounds):
            for entrant, had in list(times.items()):
                if had.turns and (had.spent > self.options.patience or self.seconds_left <= 0):
                    continue
                try:
                    self._turn(entrant, had, expected=had.turns[-1] if had.turns else ready[entrant])
                except NoMeasurementError as state:
                    del times[entrant]
                    self._no_value(suite, case, entrant, state)
        return times

    def _turn(self, entrant: Entrant, had: Times, expected: float) -> None:
        calls = max(1, min(MOST_CALLS, math.ceil(TURN_MS[self.options.device] / expected)))
        start = time.monotonic()
        taken = self.workers[entrant].milliseconds(calls, self.options.limit)
        had.spent += time.monotonic() - start
        had.calls += calls
        had.turns.append(statistics.median(taken))

    def _report(self, suite: str, case: Case, times: dict[Entrant, Times]) -> None:
        """The first of ours in a run is the measure of everybody else in it."""
        measure = {isa: next((e for e in times if e.contender.ours and e.isa == isa), None) for isa in self.runs}
        for entrant, had in times.items():
            self._append(_spread(suite, case, entrant.name, "time", had.turns, had.calls), entrant.isa)
            line = f"  {entrant!s:24} {statistics.median(had.turns):10.2f} ms"
            for isa, ours in measure.items():
                if ours is None or entrant == ours or (entrant.contender.ours and entrant.isa != isa):
                    continue
                ratios = [theirs / mine for theirs, mine in zip(had.turns, times[ours].turns, strict=False)]
                self._append(_spread(suite, case, entrant.name, "ratio", ratios, had.calls), isa)
                line += f"  {statistics.median(ratios):6.2f}x {isa}".rstrip()
            self.say(line)
        if self.rates is None:
            return
        floors = dict(zip(("gemm floor", "gather floor"), self.rates.floors_ms(case), strict=True))
        for statistic, value in floors.items():
            self._append(_row(suite, case, "roofline", statistic, value))
        for entrant, had in times.items():
            if entrant.contender.ours:
                shares = [turn / sum(floors.values()) for turn in had.turns]
                self._append(_spread(suite, case, entrant.name, "of the floor", shares, len(shares)), entrant.isa)

    def _count_memory(self, suite: str, case: Case, entrant: Entrant) -> None:
        try:
            peak = self.workers[entrant].peak_memory()
        except NoMeasurementError as state:
            self._no_value(suite, case, entrant, state)
            return
        if peak is not None:
            self._append(_row(suite, case, entrant.name, "peak memory", peak, repetitions=1), entrant.isa)

    def _count_launches(self, suite: str, case: Case, entrant: Entrant) -> None:
        try:
            kernels = self.workers[entrant].kernels()
        except NoMeasurementError as state:
            self._no_value(suite, case, entrant, state)
            return
        if kernels is not None:
            own = sum("ldreg" in kernel for kernel in kernels)
            self._append(_row(suite, case, entrant.name, "launches", len(kernels), repetitions=1), entrant.isa)
            self._append(_row(suite, case, entrant.name, "own launches", own, repetitions=1), entrant.isa)

    def _announce(self, what: str) -> None:
        self.say(f"{what}, after {time.monotonic() - self.started:.0f} s")

    def _append(self, row: Row, isa: str = "") -> None:
        """A row of the run of an instruction set, or of all runs."""
        self.rows.append((isa, row))
        self._write(row, isa)

    def _write(self, row: Row, isa: str) -> None:
        for run in [self.runs[isa]] if isa else self.runs.values():
            self.file.append(run, [row])


def entrants(contender: Contender, isas: Iterable[str]) -> list[Entrant]:
    """Our CPU kernels with every instruction set, anybody else once."""
    cpu_kernels = contender.ours and contender.devices == CPU
    return [Entrant(contender, isa) for isa in isas] if cpu_kernels else [Entrant(contender)]


def available_memory() -> int:
    """Bytes a process can have without pushing others out, as Linux estimates it."""
    line = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemAvailable"))
    return int(line.split()[1]) * 1024


# ------------------------------------------------------------------------------------------------- rows


def _row(suite: str, case: Case, backend: str, statistic: str, value: float, **more: Any) -> Row:
    unit = UNITS.get(statistic, "1")
    return Row(suite, case.op, backend, **case.to_dict(), statistic=statistic, unit=unit, value=value, **more)


def state_row(suite: str, case: Case, backend: str, note: str) -> Row:
    """A row without a value, and why."""
    return Row(suite, case.op, backend, **case.to_dict(), statistic="state", note=note)


def _spread(suite: str, case: Case, backend: str, statistic: str, values: list[float], repetitions: int) -> Row:
    low, median, high = np.percentile(values, (20, 50, 80)).tolist()
    return _row(suite, case, backend, statistic, median, low=low, high=high, repetitions=repetitions)


def _rate_row(name: str, rate: float, unit: str) -> Row:
    return Row("rates", "rate", name, 0, 0, 0, 0, "", "", "rate", unit, rate)
