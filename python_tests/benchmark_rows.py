"""Rows as a run would leave them, shared by the tests of what is made from rows: tables, goals, plots, page."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from benchmarks import goals, report
from benchmarks.cases import TRAIN, Case
from benchmarks.records import FILE_NAME, RecordFile, Row, Run
from benchmarks.selection import Results
from benchmarks.tables import Table

ISA = "avx512bf16"  # of the processor that measured, where a test says nothing else
NEW, OLD = "20250102T000000", "20250101T000000"
SEARCH = replace(TRAIN, mode="forward")
HALF = replace(TRAIN, dtype="bfloat16")


def run(device: str = "cpu", start: str = NEW, hardware: str = f"Some CPU, 2 threads, {ISA}") -> Run:
    return Run(f"{start}-{device}", "2025-01-02", "abc1234", device, hardware, "python 3.11.7; torch 2.13.0")


def row(case: Case, backend: str, statistic: str, value: float | None = None, suite: str = "headline", **more) -> Row:
    return Row(suite, case.op, backend, **case.to_dict(), statistic=statistic, value=value, **more)


def timed(case: Case, backend: str, time: float, ratio: float | None = None, suite: str = "headline") -> list[Row]:
    rows = [row(case, backend, "time", time, suite, low=0.9 * time, high=1.1 * time)]
    return rows if ratio is None else [*rows, row(case, backend, "ratio", ratio, suite)]


def state(case: Case, backend: str, note: str, suite: str = "headline") -> Row:
    return row(case, backend, "state", suite=suite, note=note)


def cpu_rows(published: float = 9.0, product: float = 2.0, faiss: float = 3.0) -> list[Row]:
    """A headline with a loss and a search; ratios are times over ours."""
    return [
        *timed(TRAIN, "ldreg cpu", 218.0),
        *timed(TRAIN, "published", 218 * published, published),
        *timed(TRAIN, "torch.mm", 218 * product, product),
        *timed(SEARCH, "ldreg cpu", 150.0),
        *timed(SEARCH, "faiss", 150 * faiss, faiss),
        row(TRAIN, "roofline", "gemm floor", 100.0),
        row(TRAIN, "roofline", "gather floor", 50.0),
        row(TRAIN, "ldreg cpu", "of the floor", 218 / 150),
    ]


def curve_rows() -> list[Row]:
    """Suites n, k and memory, in which the published code runs out of memory and KeOps out of time."""
    rows: list[Row] = []
    for i, N in enumerate((1024, 2048, 4096)):
        case = Case(N, N, 512, 64)
        rows += timed(case, "ldreg cpu", 4.0**i, suite="n") + timed(case, "published", 9 * 4.0**i, 9.0, suite="n")
        rows += [row(case, "ldreg cpu", "peak memory", 20.0 + i, "memory")]
        rows += [row(case, "published", "peak memory", 90 * 4.0**i, "memory")] if i < 2 else []
    rows += [state(case, "KeOps", "over the limit of 10 s: 3.1 s for 256 of 4096 queries", "n")]
    rows += [state(case, "published", "out of memory at 19.2 GB", "memory")]
    return rows + [r for k in (16, 64) for r in timed(Case(1024, 1024, 512, k), "ldreg cpu", 3.0, suite="k")]


def record(folder: Path, rows: list[Row], of: Run | None = None) -> Path:
    RecordFile(folder / FILE_NAME).append(of or run(), rows)
    return folder


def results(folder: Path, device: str = "cpu", isa: str = ISA) -> Results:
    found = report.read(folder)
    return found.cuda if device == "cuda" else found.on_cpu(isa)


def verdicts(folder: Path) -> dict[tuple[str, str], str]:
    return {(where, against): verdict for where, against, *_, verdict in goals.goals(report.read(folder)).rows}


def cell(table: Table, line: int, column: str) -> str:
    return table.rows[line][table.header.index(column)]
