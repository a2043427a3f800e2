"""A run: suites of cases, contenders that take turns, rows in the results file.

For every case all contenders are prepared and checked first. Then, round after round, each one has its turn, so that
whatever the machine does meanwhile happens to all of them: a ratio compares times of one round, and its median over
the rounds is what the tables show. What was not measured leaves a row that says why.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
import torch

from .cases import GRID, Case
from .contenders import YARDSTICK, Contender, named
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


class Session:
    """Runs suites and appends rows.

    Args:
        run: what all rows share.
        file: where rows go.
        options: how much effort.
        contenders: who takes part, this package's backends first.
        say: prints a line of progress.
    """

    def __init__(
        self, run: Run, file: RecordFile, options: Options, contenders: Sequence[Contender], say: Callable[[str], None]
    ) -> None:
        self.run, self.file, self.options, self.say = run, file, options, say
        self.contenders = contenders
        self.started = time.monotonic()
        self.workers = {c.name: self._worker(c.name) for c in contenders}
        self.rates: Rates | None = None
        self.rows: list[Row] = []
        self.done: dict[Case, list[Row]] = {}  # a case of two suites is measured once
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
        worker = self.workers.get(YARDSTICK) or self._worker(YARDSTICK)
        try:
            self.rates = Rates(**worker.rates())
        except NoMeasurementError as state:
            self.say(f"the hardware's rates were not measured, so there are no floors: {state}\n{state.details}")
            return
        if YARDSTICK not in self.workers:
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
                self.file.append(self.run, [replace(row, suite=suite) for row in self.done[case]])
                continue
            begin = len(self.rows)
            ready = self._prepare(suite, case, self._taking_part(suite, case))
            times = self._rounds(suite, case, ready)
            self._report(suite, case, times)
            if self.options.device == "cuda" and suite != GRID:  # which is about who is faster
                for name in times:
                    self._count_memory(suite, case, name)
                for name in times:  # last, because a profiler slows down what comes after it
                    self._count_launches(suite, case, name)
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

            def resident(contender: Contender, case: Case = case, memory_limit: int = memory_limit) -> Row:
                worker = self._worker(contender.name, memory_limit)
                try:
                    peak = worker.resident_memory(case, self.options.limit)
                    return _row(suite, case, contender.name, "peak memory", peak, repetitions=1)
                except NoMeasurementError as state:
                    limit = f" at {memory_limit / 1e9:.1f} GB" if str(state) == "out of memory" else ""
                    return state_row(suite, case, contender.name, f"{state}{limit}")
                finally:
                    worker.stop()

            for row in self._at_once(together, resident, [c for c in self.contenders if c.checked]):
                self._append(row)
                self.say(f"  {row.backend:24} {row.note or f'{row.value:.0f} MB'}")

    def measure_train_steps(self, suite: str, cases: Iterable[StepCase]) -> None:
        """SimCLR steps with each regulariser, in this process: they share the network, and nobody else is timed now."""
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
                self._append(row)
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

    def _taking_part(self, suite: str, case: Case) -> list[Contender]:
        """Everybody, in the grid its rivals; against the clock, those that compile for every shape once only."""
        if suite == GRID:
            return [c for c in self.contenders if c.ours or self.options.device in c.rival]
        hurried = bool(self.done) and self.options.seconds < math.inf
        for contender in self.contenders:
            if hurried and contender.compiles:
                self._append(state_row(suite, case, contender.name, "not reached: compiling takes too long"))
        return [contender for contender in self.contenders if not (hurried and contender.compiles)]

    def _prepare(self, suite: str, case: Case, contenders: Sequence[Contender]) -> dict[str, float]:
        """Contenders that gave a right answer, with the time of their first call in ms; rows for all others."""

        def prepare(contender: Contender) -> tuple[Contender, dict[str, float] | NoMeasurementError]:
            try:
                return contender, self.workers[contender.name].prepare(case, self.options.limit)
            except NoMeasurementError as state:
                return contender, state

        for contender in contenders:
            self.workers[contender.name].start()  # all of them import at once
        ready = {}
        # Nothing is timed yet, so on the CPU two may compile at once; a GPU's memory is better used one by one.
        together = 2 if self.options.device == "cpu" and case.B * case.N <= 2**26 else 1
        for contender, found in self._at_once(together, prepare, contenders):
            if isinstance(found, NoMeasurementError):
                self._no_value(suite, case, contender.name, found)
                continue
            ready[contender.name] = found.pop("expected")
            for statistic, value in found.items():
                self._append(_row(suite, case, contender.name, statistic, value))
        return ready

    def _at_once(
        self, together: int, work: Callable[[Contender], Result], contenders: Sequence[Contender]
    ) -> Iterator[Result]:
        """`work` for so many contenders at once, in order; then alone those whose pilot is a measurement."""
        with ThreadPoolExecutor(together) as pool:
            yield from pool.map(work, [contender for contender in contenders if not contender.pilot])
        yield from map(work, [contender for contender in contenders if contender.pilot])

    def _no_value(self, suite: str, case: Case, name: str, state: NoMeasurementError) -> None:
        self._append(state_row(suite, case, name, str(state)))
        self.say(f"  {name:24} {state}")
        if state.details:
            self.say(state.details)
        if named(name).ours and str(state).startswith(("wrong", "failed", "no answer")):
            self._wrong(f"{name} {case}: {state}")

    def _wrong(self, what: str) -> None:
        self.wrong.append(what)
        self.say(f"WRONG: {what}")

    def _worker(self, name: str, memory_limit: int = 0) -> Worker:
        worker = Worker(name, self.options.device, self.options.threads, memory_limit=memory_limit)
        worker.deadline = self.started + self.options.seconds + GRACE_SECONDS
        return worker

    def _rounds(self, suite: str, case: Case, ready: dict[str, float]) -> dict[str, Times]:
        times = {name: Times() for name in ready}
        for _ in range(self.options.rounds):
            for name, had in list(times.items()):
                if had.turns and (had.spent > self.options.patience or self.seconds_left <= 0):
                    continue
                try:
                    self._turn(name, had, expected=had.turns[-1] if had.turns else ready[name])
                except NoMeasurementError as state:
                    del times[name]
                    self._no_value(suite, case, name, state)
        return times

    def _turn(self, name: str, had: Times, expected: float) -> None:
        calls = max(1, min(MOST_CALLS, math.ceil(TURN_MS[self.options.device] / expected)))
        start = time.monotonic()
        taken = self.workers[name].milliseconds(calls, self.options.limit)
        had.spent += time.monotonic() - start
        had.calls += calls
        had.turns.append(statistics.median(taken))

    def _report(self, suite: str, case: Case, times: dict[str, Times]) -> None:
        ours = next((c.name for c in self.contenders if c.ours and c.name in times), None)
        for name, had in times.items():
            self._append(_spread(suite, case, name, "time", had.turns, had.calls))
            line = f"  {name:24} {statistics.median(had.turns):10.2f} ms"
            if ours is not None and name != ours:
                ratios = [theirs / mine for theirs, mine in zip(had.turns, times[ours].turns, strict=False)]
                self._append(_spread(suite, case, name, "ratio", ratios, had.calls))
                line += f"  {statistics.median(ratios):6.2f}x"
            self.say(line)
        if self.rates is None:
            return
        floors = dict(zip(("gemm floor", "gather floor"), self.rates.floors_ms(case), strict=True))
        for statistic, value in floors.items():
            self._append(_row(suite, case, "roofline", statistic, value))
        for contender in self.contenders:
            if contender.ours and contender.name in times:
                shares = [turn / sum(floors.values()) for turn in times[contender.name].turns]
                self._append(_spread(suite, case, contender.name, "of the floor", shares, len(shares)))

    def _count_memory(self, suite: str, case: Case, name: str) -> None:
        try:
            peak = self.workers[name].peak_memory()
        except NoMeasurementError as state:
            self._no_value(suite, case, name, state)
            return
        if peak is not None:
            self._append(_row(suite, case, name, "peak memory", peak, repetitions=1))

    def _count_launches(self, suite: str, case: Case, name: str) -> None:
        try:
            kernels = self.workers[name].kernels()
        except NoMeasurementError as state:
            self._no_value(suite, case, name, state)
            return
        if kernels is not None:
            own = sum("ldreg" in kernel for kernel in kernels)
            self._append(_row(suite, case, name, "launches", len(kernels), repetitions=1))
            self._append(_row(suite, case, name, "own launches", own, repetitions=1))

    def _announce(self, what: str) -> None:
        self.say(f"{what}, after {time.monotonic() - self.started:.0f} s")

    def _append(self, row: Row) -> None:
        self.rows.append(row)
        self.file.append(self.run, [row])


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
