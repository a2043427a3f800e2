"""The CPU extension as two compilers build it, every instruction set that runs here, side by side in one run.

    python -m benchmarks.builds [--compiler g++ --compiler clang++] [--threads N] [--rounds 9]

A loss with gradient at (1024, 1024, 2048, 64), each build and set in a process of its own, in turns, after its answer
passed the gate. Two clauses are judged, because a compiler that keeps vectors on the stack gives right answers slowly:
avx2 at least 3 times as fast as portable code, in every build; and no build more than 1.3 times slower than another
with the same set. A compiler that is missing is named, and its clause is skipped. Copies of the checkout as it stands
are built in a temporary folder (about a minute each, on two cores); nothing is recorded.

Exit codes: 0 every clause that could be judged is met, 1 one is not.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from .cases import Case
from .compare import run_in
from .isa import instruction_sets
from .records import ROOT, commit, hardware
from .report import to_markdown
from .tables import Table, number
from .worker import NoMeasurementError, Worker

CASE = Case(1024, 1024, 2048, 64)
COMPILERS = ("g++", "clang++")
OVER_PORTABLE = 3.0  # avx2, at least
APART = 1.3  # two builds, at most
CALLS, LIMIT = 3, 30.0  # calls of a turn, of which the median counts; seconds one may take
NEEDED = ("setup.py", "pyproject.toml", "README.md", "LICENSE", "csrc", "ldreg_kernels")
Turns = dict[tuple[str, str], list[float]]  # ms by set and compiler, one of every round


@dataclass(frozen=True)
class Clause:
    """What is demanded, what came, and whether that is enough; None where it could not be judged."""

    demand: str
    measured: str
    met: bool | None

    def __str__(self) -> str:
        verdict = {True: "met", False: "NOT met", None: "skipped"}[self.met]
        return f"{verdict}: {self.demand}: {self.measured}"


def build(compiler: str, folder: Path) -> None:
    """A copy of this checkout, its CPU extension built by a compiler."""
    folder.mkdir()
    for name in NEEDED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
        else:
            shutil.copy(ROOT / name, folder)
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    run_in(folder, command, CXX=compiler, LDREG_BUILD_CUDA="0")


def measure(builds: dict[str, Path], isas: Sequence[str], threads: int, rounds: int) -> Turns:
    """Every build with every set, in turns.

    Raises:
        NoMeasurementError: one of them gave no right answer.
    """
    workers = {
        (isa, compiler): Worker("ldreg cpu", "cpu", threads, package=folder, isa=isa)
        for isa in isas
        for compiler, folder in builds.items()
    }
    times: Turns = {who: [] for who in workers}
    try:
        for worker in workers.values():
            worker.prepare(CASE, LIMIT)
        for index in range(rounds):
            for who, worker in list(workers.items())[:: -1 if index % 2 else 1]:  # nobody is always first
                times[who].append(float(np.median(worker.milliseconds(CALLS, LIMIT))))
    finally:
        for worker in workers.values():
            worker.stop()
    return times


def ratio(times: Turns, slow: tuple[str, str], fast: tuple[str, str]) -> float:
    """How many times the other's time, the median over rounds."""
    return float(np.median(np.array(times[slow]) / np.array(times[fast])))


def clauses(times: Turns, missing: Sequence[str]) -> list[Clause]:
    """Both demands, for every build and every set."""
    isas, compilers = (list(dict.fromkeys(column)) for column in zip(*times, strict=True))
    found = []
    for compiler in compilers:
        demand = f"avx2 by {compiler} >= {OVER_PORTABLE:g} times as fast as portable"
        if {"avx2", "portable"} <= set(isas):
            faster = ratio(times, ("portable", compiler), ("avx2", compiler))
            found.append(Clause(demand, f"{number(faster, 3)}x", faster >= OVER_PORTABLE))
        else:
            found.append(Clause(demand, f"this machine executes {', '.join(isas)}", None))
    for isa in isas:
        demand = f"builds with {isa} within {APART:g} times of each other"
        if len(compilers) < 2:
            found.append(Clause(demand, f"not found: {', '.join(missing)}", None))
            continue
        apart = {(a, b): ratio(times, (isa, a), (isa, b)) for a in compilers for b in compilers if a != b}
        slow, fast = max(apart, key=lambda pair: apart[pair])
        words = f"{slow} takes {number(apart[slow, fast], 3)} times the time of {fast}"
        found.append(Clause(demand, words, apart[slow, fast] <= APART))
    return found


def table(times: Turns, versions: dict[str, str], caption: str) -> Table:
    """Milliseconds by set and build; beside them how many times portable code of the same build takes."""
    isas = list(dict.fromkeys(isa for isa, _ in times))
    rows = []
    for isa in isas:
        cells = []
        for compiler in versions:
            over = f" ({number(ratio(times, ('portable', compiler), (isa, compiler)))}x)" if "portable" in isas else ""
            cells.append(f"{number(float(np.median(times[isa, compiler])), 3)}{over}")
        rows.append((isa, *cells))
    header = ("instruction set", *(f"{version}, ms (portable / this)" for version in versions.values()))
    return Table("Builds of the CPU extension", header, tuple(rows), caption=caption)


def version(compiler: str) -> str:
    """Such as "g++ (Debian 12.2.0-14) 12.2.0": the first line of what it says of itself."""
    done = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[0]


def main(arguments: list[str] | None = None) -> int:
    """Build, measure, print, judge."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.builds", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--compiler", action="append", help=f"repeatable; default: {', '.join(COMPILERS)}")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="default: all")
    parser.add_argument("--rounds", type=int, default=9, help="turns of everybody (default: 9)")
    options = parser.parse_args(arguments)
    if min(options.threads, options.rounds) < 1:
        parser.error("--threads and --rounds must be at least 1")
    wanted = list(dict.fromkeys(options.compiler or COMPILERS))
    missing = [compiler for compiler in wanted if shutil.which(compiler) is None]
    versions = {compiler: version(compiler) for compiler in wanted if compiler not in missing}
    if not versions:
        print(f"not found: {', '.join(missing)}")
        return 1
    with tempfile.TemporaryDirectory(prefix="ldreg-builds-") as temporary:
        builds = {compiler: Path(temporary) / str(i) for i, compiler in enumerate(versions)}
        for compiler, folder in builds.items():
            print(f"building with {versions[compiler]}", flush=True)
            build(compiler, folder)
        try:
            times = measure(builds, instruction_sets(), options.threads, options.rounds)
        except NoMeasurementError as state:
            print(f"{state}\n{state.details}")
            return 1
    machine = hardware("cpu", options.threads).rpartition(", ")[0]
    caption = f"{CASE}; {machine}; commit {commit()}; median of {options.rounds} turns; `python -m benchmarks.builds`."
    print(to_markdown(table(times, versions, caption)))
    judged = clauses(times, missing)
    print("\n".join(map(str, judged)))
    return 1 if any(clause.met is False for clause in judged) else 0


if __name__ == "__main__":
    sys.exit(main())
