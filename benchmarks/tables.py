"""Rows of the measurement file as tables of text. What was not measured says why.

Every table takes all its numbers from one run (selection.py). How a table looks on a page is report.py's business.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from .contenders import YARDSTICK
from .records import Row
from .selection import CONTRASTIVE, NOBODY, OURS, Results, Shape

PRODUCTS = tuple(f"mm + topk + bag {precision}" for precision in ("fp32", "tf32", "bf16"))
_KEEPERS = ("eager", "torch.compile")  # of all logits, in the table of contrastive losses
BEST_PRODUCT = "mm + topk + bag, the best"  # a column of the README's


@dataclass(frozen=True)
class Table:
    """Text in rows and columns; no rows where nothing was measured."""

    title: str
    header: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    notes: tuple[str, ...] = ()
    caption: str = ""


# ------------------------------------------------------------------------------------------------- numbers as text


def number(value: float, digits: int | None = None) -> str:
    """So many digits, by default two below 10 and three above, and all of an integer part: 0.058, 8.4, 19.9, 1822."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    digits = digits or (2 if abs(value) < 9.95 else 3)
    rounded = float(f"{value:.{digits - 1}e}")
    return f"{value:.{max(0, digits - 1 - math.floor(math.log10(abs(rounded))))}f}"


def milliseconds(row: Row) -> str:
    """The median, and the 20th and 80th percentiles where they were taken."""
    median, low, high = (None if v is None else number(v, 3) for v in (row.value, row.low, row.high))
    return f"{median}" if low is None else f"{median} ({low}-{high})"


def limit(note: str) -> tuple[float, str] | None:
    """Where a contender gave up, (10.0, "s") or (19.2, "GB"), if the reason says it."""
    found = re.search(r"(?:over the limit of|takes more than) ([\d.]+) (s)\b|at ([\d.]+) (GB)\b", note)
    number_and_unit = [group for group in found.groups() if group] if found else []
    return (float(number_and_unit[0]), number_and_unit[1]) if found else None


def short_state(note: str) -> str:
    """A word or two for the reason in a `state` row."""
    where = limit(note)
    if note.startswith("over the limit") and where:
        return f"> {where[0]:g} s"
    words = {"does not apply": "n/a", "ran out of GPU memory": "out of memory"}
    words |= {
        word: word
        for word in ("missing", "out of memory", "over the limit", "wrong", "failed", "not reached", "not timed")
    }
    return next(
        (word for beginning, word in words.items() if note.startswith(beginning)), "unavailable" if note else "-"
    )


class _Notes:
    """Footnotes: the same reason is written once, whoever it concerns."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def cell(self, note: str) -> str:
        """The reason in a word, with the number of its footnote where that says more."""
        short = short_state(note)
        if short in (note, "-") or note.startswith("over the limit"):  # a limit differs in every case and is no news
            return short
        if note not in self.texts:
            self.texts.append(note)
        return f"{short} [{self.texts.index(note) + 1}]"

    def lines(self) -> tuple[str, ...]:
        return tuple(f"[{i}] {text}" for i, text in enumerate(self.texts, 1))


# ------------------------------------------------------------------------------------------------- the tables


def headline(results: Results, *, short: bool = False, suite: str = "headline") -> Table:
    """One line per case: our time, then how many times that everybody else takes.

    Args:
        results: of one device.
        short: the README's selection of columns.
        suite: "headline", or "rivals", which has the same columns.
    """
    notes = _Notes()
    others = _columns(results, suite, "ratio", short=short)
    rows = []
    for shape in results.shapes(suite):
        if ours := results.ours(suite, shape):
            time = results.get(suite, shape, ours, "time")
            first = notes.cell(results.state(suite, shape, ours)) if time is None else milliseconds(time)
            cells = (_comparison(results, suite, shape, backend, "ratio", notes) for backend in others)
            rows.append((shape.size, shape.words, first, *cells))
    lines = (*notes.lines(), *_left_out(results, suite))
    header = ("(B, N, D, k)", "what", "ours, ms (p20-p80)", *others)
    return make_table(results, suite, f"Time per call, {results.place}", header, rows, lines)


def accuracy(results: Results) -> Table:
    """What each contender's answer is worth: the worst of the headline cases, against float64."""
    suite = "headline"
    statistics = ("lid error", "gradient error", "recall")
    dtypes = sorted({shape.dtype for shape in results.shapes(suite)}, reverse=True)  # float32 first
    columns = [(dtype, statistic) for dtype in dtypes for statistic in statistics]
    rows = []
    for backend in results.backends(suite, *statistics):
        cells = [_worst(results, suite, backend, dtype, statistic) for dtype, statistic in columns]
        rows.append((backend, *cells))
    header = ("contender", *(f"{dtype}: {statistic.replace('lid', 'LID')}" for dtype, statistic in columns))
    return make_table(results, suite, f"Accuracy, {results.place}", header, rows)


def memory(results: Results, suite: str, *, short: bool = False) -> Table:
    """Peak memory beyond the inputs, in MB, beside what the B x N matrix alone would take."""
    notes = _Notes()
    others = [b for b in _columns(results, suite, "peak memory", short=short) if b != YARDSTICK]
    rows = []
    for shape in results.shapes(suite):
        if ours := results.ours(suite, shape):
            cells = (_comparison(results, suite, shape, b, "peak memory", notes) for b in (ours, *others))
            rows.append((shape.size, shape.words, number(4e-6 * shape.B * shape.N), *cells))
    header = ("(B, N, D, k)", "what", "B x N in float32", "ours", *others)
    lines = (*notes.lines(), *_left_out(results, suite))
    title = f"Peak memory beyond the inputs in MB, {results.place}"
    return make_table(results, suite, title, header, rows, lines)


def roofline(results: Results) -> Table:
    """Our time against what the hardware needs for the matrix product and for gathering the neighbours."""
    suite, rows, below = "headline", [], False
    for shape in results.shapes(suite):
        floors = [results.value(suite, shape, "roofline", name) for name in ("gemm floor", "gather floor")]
        for backend in OURS:
            part = results.value(suite, shape, backend, "of the floor")
            time = results.value(suite, shape, backend, "time")
            if part is not None and time is not None:
                numbers = ("-" if value is None else number(value, 3) for value in (*floors, time))
                rows.append((shape.size, shape.words, backend, *numbers, f"{number(part)}x"))
                below |= part < 1
    header = (
        "(B, N, D, k)",
        "what",
        "backend",
        "product floor, ms",
        "gather floor, ms",
        "time, ms",
        "time / both floors",
    )
    title = f"Against what the hardware could do, {results.place}"
    faster = "Below 1x, caches or the symmetry of y = x beat what a floor assumes." if below else ""
    return make_table(
        results, suite, title, header, rows, tuple(filter(None, (_rates(results), faster))) if rows else ()
    )


def train_step(results: Results) -> Table:
    """The regulariser inside a training step: without it, as published, fused."""
    suite, variants = "train-step", ("none", "naive", "fused")
    rows, notes = [], _Notes()
    for shape in results.shapes(suite):
        steps = (_step(results, shape, variant, notes) for variant in variants)
        peaks = [results.value(suite, shape, variant, "peak memory") for variant in variants]
        memory_cell = " / ".join("-" if peak is None else number(peak) for peak in peaks) if any(peaks) else "-"
        faster = results.value(suite, shape, "naive", "ratio")
        first = (shape.mode, f"{shape.B} x {shape.D}", str(shape.k), shape.dtype)
        rows.append((*first, *steps, f"{number(faster, 3)}x" if faster else "-", memory_cell))
    step_columns = ("without, ms", "naive, ms (LDReg's share)", "fused, ms (LDReg's share)", "naive / fused")
    header = ("model", "features", "k", "dtype", *step_columns, "peak MB: without / naive / fused")
    remarks = {row.note: None for row in results.rows(suite) if row.statistic == "time" and row.note}
    title = f"One training step, {results.place}"
    return make_table(results, suite, title, header, rows, (*notes.lines(), *remarks))


def contrastive(results: Results) -> Table:
    """Losses over all pairs: our time, how many times that everybody else takes, memory saved and at the peak."""
    suite, notes = CONTRASTIVE, _Notes()
    compared = results.backends(suite, "ratio")
    others = sorted(
        _columns(results, suite, "ratio", short=False), key=lambda b: 2 if b == YARDSTICK else b not in compared
    )
    rows = []
    for shape in results.shapes(suite):
        ours = results.ours(suite, shape)
        time = results.get(suite, shape, ours, "time")
        first = notes.cell(results.state(suite, shape, ours)) if time is None else milliseconds(time)
        cells = (_comparison(results, suite, shape, backend, "ratio", notes) for backend in others)
        saved, peak = (
            " / ".join("-" if value is None else number(value) for value in values) if any(values) else "-"
            for statistic in ("saved memory", "peak memory")
            for values in [[results.value(suite, shape, b, statistic) for b in (ours, *_KEEPERS)]]
        )
        size = f"({shape.B}, {shape.N}, {shape.D})"
        rows.append((shape.mode, size, shape.dtype, first, *cells, saved, peak))
    kept = f"MB: ours / {' / '.join(_KEEPERS)}"
    header = ("loss", "(B, N, P)", "dtype", "ours, ms (p20-p80)", *others, f"saved, {kept}", f"peak, {kept}")
    whole = (
        f"With ours the whole process took {number(value)} MB at {shape.B} rows"
        for shape in results.shapes(suite)
        if (value := results.value(suite, shape, results.ours(suite, shape), "peak resident"))
    )
    title = f"Contrastive losses, forward and backward, {results.place}"
    return make_table(results, suite, title, header, rows, (*notes.lines(), *_left_out(results, suite), *whole))


def not_measured(results: Results) -> Table:
    """Every contender that has no value somewhere, and why; what it does not claim to do is left out."""
    found: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for suite in results.runs:
        for row in results.rows(suite):
            word = short_state(row.note)
            if row.statistic == "state" and word != "n/a":
                case = f"{suite} ({row.B}, {row.N}, {row.D}, {row.k}) {row.dtype} {row.mode}"
                found.setdefault((row.backend, word), []).append((case, row.note))
    rows = []
    for (backend, _), places in found.items():
        cases, reasons = (list(dict.fromkeys(column)) for column in zip(*places, strict=True))
        where = "; ".join(cases) if len(cases) <= 2 else f"{len(cases)} cases"
        others = f" (and {len(reasons) - 1} similar)" if len(reasons) > 1 else ""
        rows.append(("everybody" if backend in NOBODY else backend, where, reasons[0] + others))
    return Table(f"Not measured, {results.place}", ("contender", "where", "why"), tuple(rows))


# ------------------------------------------------------------------------------------------------- their cells


def make_table(
    results: Results,
    suite: str,
    title: str,
    header: Sequence[str],
    rows: Sequence[tuple[str, ...]],
    notes: tuple[str, ...] = (),
) -> Table:
    return Table(title, tuple(header), tuple(rows), notes, results.caption(suite)) if rows else Table(title)


def _took_part(results: Results, suite: str, backend: str, statistic: str) -> bool:
    """Could do at least one case, or tried."""
    shapes = results.shapes(suite)
    words = (short_state(results.state(suite, shape, backend)) for shape in shapes)
    measured = any(results.get(suite, shape, backend, statistic) for shape in shapes)
    return measured or any(word not in ("missing", "unavailable", "n/a", "-") for word in words)


def _columns(results: Results, suite: str, statistic: str, *, short: bool) -> list[str]:
    """Who gets a column beside "ours": contenders that took part, and a second backend of ours.

    The short selection has one column for the matrix product in all precisions.
    """
    ours = {results.ours(suite, shape) for shape in results.shapes(suite)}
    found = [
        backend
        for backend in results.backends(suite, statistic, "state")
        if (backend not in ours or len(ours - {""}) > 1) and _took_part(results, suite, backend, statistic)
    ]
    if not short:
        return found
    merged = dict.fromkeys(BEST_PRODUCT if backend in PRODUCTS else backend for backend in found)
    return [backend for backend in merged if backend != "cdist + topk"]


def _left_out(results: Results, suite: str) -> tuple[str, ...]:
    """Lines for who has no column and what has no row."""
    reasons = {}
    for backend in results.backends(suite, "state"):
        if not any(_took_part(results, suite, backend, statistic) for statistic in ("time", "peak memory")):
            states = (results.state(suite, shape, backend) for shape in results.shapes(suite))
            reason = next(note for note in states if note)
            if short_state(reason) != "n/a":  # what it does not claim to do is no absence
                reasons[backend] = reason
    absent = "; ".join(f"{backend} ({reason})" for backend, reason in reasons.items())
    skipped = "; ".join(f"{s.size} {s.words}" for s in results.shapes(suite) if not results.ours(suite, s))
    return (*((f"Without a column: {absent}.",) if absent else ()), *((f"Not reached: {skipped}.",) if skipped else ()))


def _comparison(results: Results, suite: str, shape: Shape, backend: str, statistic: str, notes: _Notes) -> str:
    """A ratio or a peak in MB, or the reason why there is none."""
    if backend == BEST_PRODUCT:
        values = {b: v for b in PRODUCTS if (v := results.value(suite, shape, b, statistic))}
        best = min(values, key=lambda b: values[b], default=PRODUCTS[-1])
        cell = _comparison(results, suite, shape, best, statistic, notes)
        return f"{cell} ({best.rsplit(' ', 1)[1]})" if values else cell
    value = results.value(suite, shape, backend, statistic)
    if value is not None and statistic == "ratio":
        return f"{number(1 / value)}x its time" if backend == YARDSTICK else f"{number(value)}x"
    if value is not None:
        return number(value)
    if backend == results.ours(suite, shape) and statistic == "ratio":
        return "ours"
    return notes.cell(results.state(suite, shape, backend))


def _worst(results: Results, suite: str, backend: str, dtype: str, statistic: str) -> str:
    shapes = (shape for shape in results.shapes(suite) if shape.dtype == dtype)
    values = [v for shape in shapes if (v := results.value(suite, shape, backend, statistic)) is not None]
    if not values:
        return "-"
    if statistic == "recall":
        return f"{math.floor(min(values) * 1e4) / 1e4:g}"  # rounded down: 1 means that nothing was missed
    return f"{max(values):.1e}" if max(values) else "0"


def _rates(results: Results) -> str:
    if "rates" not in results.runs or results.runs["rates"].run != results.runs["headline"].run:
        return ""
    listed = ", ".join(f"{row.backend} {number(row.value or 0)} {row.unit}" for row in results.rows("rates"))
    return f"Measured in the same run: {listed}."


def _step(results: Results, shape: Shape, variant: str, notes: _Notes) -> str:
    time = results.value("train-step", shape, variant, "time")
    share = results.value("train-step", shape, variant, "share")
    if time is None:
        return notes.cell(results.state("train-step", shape, variant))
    return number(time, 3) if share is None else f"{number(time, 3)} ({number(100 * share)} %)"
