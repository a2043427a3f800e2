"""The figures of a benchmark: time and memory against size, speed-ups, distance from the hardware's limits.

A contender has one colour, line and marker in every figure; colours are Okabe and Ito's, which colour-blind readers can
tell apart, and relatives (the precisions of one method, a library's CPU and GPU form) share one. A figure is legible on
a phone: one column, legend below. Nothing is global (no pyplot), nothing is drawn that was not measured.
"""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from .contenders import YARDSTICK
from .records import Row
from .selection import MODES, OURS, Results, Shape
from .tables import limit, number, short_state

_STYLES: dict[str, tuple[str, str, str]] = {  # colour, line, marker
    "ldreg cuda": ("#0072B2", "-", "o"),
    "ldreg cpu": ("#0072B2", "-", "o"),
    "ldreg triton": ("#56B4E9", "-", "o"),
    "published": ("#D55E00", "-", "s"),
    "published compiled": ("#D55E00", "--", "D"),
    "cdist + topk": ("#E69F00", "-", "s"),
    "mm + topk + bag fp32": ("#009E73", "-", "^"),
    "mm + topk + bag tf32": ("#009E73", "--", "v"),
    "mm + topk + bag bf16": ("#009E73", ":", ">"),
    "faiss": ("#CC79A7", "-", "P"),
    "faiss gpu": ("#CC79A7", "--", "P"),
    "cuVS": ("#882255", "-", "*"),
    "flashlib": ("#AA4499", "-", "X"),
    "torchid": ("#661100", "-", "p"),
    "KeOps": ("#000000", "-", "d"),
    "scikit-learn": ("#999933", "-", "p"),
    "scikit-learn-intelex": ("#999933", "--", "v"),
    "usearch": ("#AA4499", "-", "X"),
    "NumKong": ("#661100", "-", "*"),
    YARDSTICK: ("#888888", "--", ""),
}
_OTHER = ("#555555", "-.", "h")  # a contender this file does not know
_ENDED = ("out of memory", ">", "over the limit")  # states that a figure shows: the contender tried and could not
_WIDTH = 6.8  # inches


def png(figure: Figure, dpi: int = 100) -> bytes:
    """The figure as a PNG file; the same figure gives the same bytes under one version of matplotlib."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=dpi, format="png", metadata={"Software": None})
    return buffer.getvalue()


def figures(results: Results) -> dict[str, Figure]:
    """Every figure that these rows allow, by file name without its ending.

    Returns:
        time-n, time-k, memory-n, speed-up and roofline, each once per dtype: "time-n-cpu-avx2-float32" for example.
    """
    memory_suite = next((suite for suite in results.memory_suites() if suite != "headline"), "")
    against = (
        ("time-n", "n", "N", "time"),
        ("time-k", "k", "k", "time"),
        ("memory-n", memory_suite, "N", "peak memory"),
    )
    found: dict[str, Figure] = {}
    for name, suite, axis, statistic in against:
        for shapes in _groups(results, suite, axis):
            if len(shapes) > 1:  # one point is no curve
                found[_free(f"{name}-{results.file_name}-{shapes[0].dtype}", found)] = _against(
                    results, suite, axis, statistic, shapes
                )
    for dtype in sorted({shape.dtype for shape in results.shapes("headline")}, reverse=True):  # float32 first
        shapes = [shape for shape in results.shapes("headline") if shape.dtype == dtype]
        if any(_bars(results, shape) for shape in shapes):
            found[f"speed-up-{results.file_name}-{dtype}"] = _speed_up(results, shapes)
        if any(_parts(results, shape) for shape in shapes):
            found[f"roofline-{results.file_name}-{dtype}"] = _roofline(results, shapes)
    return found


def _free(name: str, taken: dict[str, Figure]) -> str:
    """The name, numbered where another width or mode of the same dtype has it already."""
    numbered = (f"{name}-{i}" if i > 1 else name for i in range(1, len(taken) + 2))
    return next(candidate for candidate in numbered if candidate not in taken)


# ------------------------------------------------------------------------------------------------- curves


def _groups(results: Results, suite: str, axis: str) -> list[list[Shape]]:
    """The cases of a suite that differ in one thing only, in its order."""
    found: dict[tuple[Any, ...], list[Shape]] = {}
    for shape in results.shapes(suite):
        fixed = (shape.D, shape.k) if axis == "N" else (shape.B, shape.N, shape.D)
        found.setdefault((shape.dtype, shape.mode, *fixed), []).append(shape)
    return [sorted(shapes, key=lambda shape: int(getattr(shape, axis))) for shapes in found.values()]


def _against(results: Results, suite: str, axis: str, statistic: str, shapes: Sequence[Shape]) -> Figure:
    """Time or memory against N or k, both logarithmic: one curve per contender."""
    figure = Figure(figsize=(_WIDTH, 6.4), layout="constrained")
    axes = figure.add_subplot()
    sizes = [int(getattr(shape, axis)) for shape in shapes]
    if statistic == "peak memory":
        squares = [4e-6 * shape.B * shape.N for shape in shapes]
        axes.plot(sizes, squares, color="#888888", linestyle="--", linewidth=1.5, label="B x N in float32 alone")
    for backend in reversed(results.backends(suite, statistic)):  # ours last, on top
        rows = {getattr(s, axis): row for s in shapes if (row := results.get(suite, s, backend, statistic))}
        if rows and (backend, statistic) != (YARDSTICK, "peak memory"):  # the line above says the same
            _curve(axes, rows, backend)
    _log_axes(axes, sizes)
    _crosses(axes, results, suite, axis, shapes, statistic)
    what = "N, references (= queries)" if axis == "N" else "k, neighbours"
    axes.set_xlabel(what, fontsize=12)
    axes.set_ylabel("time per call, ms" if statistic == "time" else "peak memory beyond the inputs, MB", fontsize=12)
    first = shapes[0]
    fixed = f"D = {first.D}, k = {first.k}" if axis == "N" else f"B = {first.B}, N = {first.N}, D = {first.D}"
    what = "Time" if statistic == "time" else "Peak memory"
    _title(figure, f"{what} against {axis}", f"{fixed}, {first.words}", results.runs[suite].hardware)
    _legend(figure, axes)
    return figure


def _curve(axes: Axes, rows: dict[int, Row], backend: str) -> None:
    """Medians as a line; the 20th to 80th percentile as a band, where it was taken."""
    colour, line, marker = _STYLES.get(backend, _OTHER)
    values = [row.value or math.nan for row in rows.values()]
    wide = 2.8 if backend in OURS else 1.6
    axes.plot(
        list(rows), values, color=colour, linestyle=line, marker=marker, markersize=7, linewidth=wide, label=backend
    )
    if all(row.low and row.high for row in rows.values()):
        low, high = [row.low or 0.0 for row in rows.values()], [row.high or 0.0 for row in rows.values()]
        axes.fill_between(list(rows), low, high, color=colour, alpha=0.15, linewidth=0)


def _crosses(axes: Axes, results: Results, suite: str, axis: str, shapes: Sequence[Shape], statistic: str) -> None:
    """A mark where a contender gave up, at the limit if the note says it, tied to the end of its curve."""
    named: set[str] = set()
    bottom, top = axes.get_ylim()
    height = top
    for column, (backend, ends) in enumerate(_ends(results, suite, axis, shapes, statistic)):
        colour = _STYLES.get(backend, _OTHER)[0]
        curve = [(getattr(s, axis), v) for s in shapes if (v := results.value(suite, s, backend, statistic))]
        marks = [(x * 1.08**column, _height(note, statistic, 1.5 * top)) for x, note in ends]  # side by side
        before = [point for point in curve if point[0] < marks[0][0]][-1:]
        axes.plot(*zip(*before, marks[0], strict=True), color=colour, linestyle=(0, (1, 2)), linewidth=1.6)
        for (x, y), (_, note) in zip(marks, ends, strict=True):
            word = short_state(note)
            axes.plot(x, y, "X" if word == "out of memory" else "^", color=colour, markersize=12, mec="black", zorder=6)
            if word not in named:
                left = x > getattr(shapes[0], axis) * 1.5  # of the mark; at the left edge, right of it
                place: dict[str, Any] = {"xytext": (-9 if left else 9, 7), "ha": "right" if left else "left"}
                axes.annotate(word, (x, y), textcoords="offset points", fontsize=11, **place)
            named.add(word)
            height = max(height, 2 * y)
    axes.set_ylim(bottom, height)


def _ends(
    results: Results, suite: str, axis: str, shapes: Sequence[Shape], statistic: str
) -> list[tuple[str, list[tuple[int, str]]]]:
    """Who gave up, and at which sizes with which note. Time has its limit too; memory only that of memory."""
    reasons = _ENDED if statistic == "time" else _ENDED[:1]
    found = []
    for backend in results.backends(suite, "state"):
        notes = [(int(getattr(shape, axis)), results.state(suite, shape, backend)) for shape in shapes]
        ends = [(size, note) for size, note in notes if short_state(note).startswith(reasons)]
        found += [(backend, ends)] if ends else []
    return found


def _height(note: str, statistic: str, otherwise: float) -> float:
    """Where a contender gave up in ms or MB, if its note says so in that axis' unit."""
    found = limit(note)
    return 1e3 * found[0] if found and found[1] == ("s" if statistic == "time" else "GB") else otherwise


def _log_axes(axes: Axes, sizes: Sequence[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.xaxis.set_major_locator(FixedLocator(sizes))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}"))
    bottom, top = axes.get_ylim()
    if top < 2000 * bottom:  # few powers of ten: 2 and 5 are labelled too
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.tick_params(labelsize=11)
    axes.grid(alpha=0.3)


def _legend(figure: Figure, axes: Axes) -> None:
    """Below the axes, in the order of the tables: curves were drawn from the last to the first."""
    handles, labels = axes.get_legend_handles_labels()
    place: dict[str, Any] = {"loc": "outside lower center", "ncols": 2, "frameon": False}
    figure.legend(handles[::-1], labels[::-1], fontsize=11, handlelength=3, **place)


def _title(figure: Figure, title: str, *lines: str) -> None:
    wrapped = [part for line in lines for part in textwrap.wrap(line, 66)]
    figure.suptitle("\n".join([title, *wrapped]), fontsize=12)


# ------------------------------------------------------------------------------------------------- bars


def _bars(results: Results, shape: Shape) -> list[tuple[str, Row | None, str]]:
    """Backend, ratio and state of everybody who tried a case, the slowest last."""
    found = []
    for backend in results.backends("headline", "ratio", "state"):
        row = results.get("headline", shape, backend, "ratio")
        word = short_state(results.state("headline", shape, backend))
        if row is not None or word.startswith(_ENDED):
            found.append((backend, row, word))
    return sorted(found, key=lambda bar: bar[1].value or math.inf if bar[1] else math.inf)


def _speed_up(results: Results, shapes: Sequence[Shape]) -> Figure:
    """How many times our time everybody takes, one panel per case, one logarithmic axis for all."""
    panels = [(shape, bars) for shape in shapes if (bars := _bars(results, shape))]
    heights = [len(bars) + 1.2 for _, bars in panels]
    figure = Figure(figsize=(_WIDTH, max(2.5, 1.5 + 0.23 * sum(heights))), layout="constrained")
    ratios = [row.value or 1.0 for _, bars in panels for _, row, _ in bars if row]
    limits = (0.6 * min([1.0, *ratios]), 3.5 * max([1.0, *ratios]))
    grid = figure.add_gridspec(len(panels), 1, height_ratios=heights)
    for i, (shape, bars) in enumerate(panels):
        axes = figure.add_subplot(grid[i])
        time = results.value("headline", shape, results.ours("headline", shape), "time")
        ours = f"; ours {number(time)} ms" if time else ""
        axes.set_title(f"{shape.size}, {MODES.get(shape.mode, shape.mode)}{ours}", fontsize=11, loc="left")
        _speed_up_panel(axes, bars, limits)
        axes.tick_params(labelbottom=i == len(panels) - 1)
        if i == len(panels) - 1:
            axes.set_xlabel("time divided by ours (log scale; right of the line, ours is faster)", fontsize=11)
    title = f"Speed-up at (B, N, D, k), {shapes[0].dtype}"
    _title(figure, title, results.runs["headline"].hardware)
    return figure


def _speed_up_panel(axes: Axes, bars: Sequence[tuple[str, Row | None, str]], limits: tuple[float, float]) -> None:
    for y, (backend, row, word) in enumerate(bars):
        if row is None or row.value is None:
            axes.text(1.08, y, word, va="center", fontsize=10, style="italic", color="#555555")
            continue
        colour = _STYLES.get(backend, _OTHER)[0]
        axes.barh(y, row.value - 1, left=1, height=0.72, color=colour)  # from 1: a bar to the left is a slower "ours"
        if row.low and row.high:
            axes.plot([row.low, row.high], [y, y], color="#333333", linewidth=1.2)
        end = max(row.value, row.high or 0.0, 1.0) * 1.08
        axes.text(end, y, f"{number(row.value)}x", va="center", fontsize=10)
    axes.axvline(1, color="#0072B2", linewidth=2)
    axes.set_xscale("log")
    axes.set_xlim(limits)
    axes.set_ylim(len(bars) - 0.4, -0.6)  # the nearest rival on top
    axes.set_yticks(range(len(bars)), [backend for backend, _, _ in bars], fontsize=10)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _parts(results: Results, shape: Shape) -> list[tuple[str, float, float]]:
    """Backend, time over the sum of both floors, and time in ms, for each of ours."""
    found = []
    for backend in OURS:
        part = results.value("headline", shape, backend, "of the floor")
        time = results.value("headline", shape, backend, "time")
        if part is not None and time is not None:
            found.append((backend, part, time))
    return found


def _roofline(results: Results, shapes: Sequence[Shape]) -> Figure:
    """The two floors, stacked to 1, and our time in the same unit: how far a case is from what the hardware allows."""
    lines: list[tuple[Shape, list[tuple[str, float, float]]]] = []
    lines = [(shape, parts) for shape in shapes if (parts := _parts(results, shape))]
    bars = sum(1 + len(parts) for _, parts in lines)
    figure = Figure(figsize=(_WIDTH, 2.2 + 0.3 * bars + 0.18 * len(lines)), layout="constrained")
    axes = figure.add_subplot()
    y, ticks = 0.0, []
    for shape, parts in lines:
        ticks.append(y + len(parts) / 2)
        _floors(axes, results, shape, y)
        for i, (backend, part, time) in enumerate(parts, 1):
            axes.barh(y + i, part, height=0.8, color=_STYLES[backend][0], label=backend)
            axes.text(part, y + i, f" {number(part)}x = {number(time)} ms", va="center", fontsize=10)
        y += len(parts) + 1.6
    axes.set_yticks(ticks, [f"{shape.size}\n{MODES.get(shape.mode, shape.mode)}" for shape, _ in lines], fontsize=10)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.4 * max(max(1.0, part) for _, parts in lines for _, part, _ in parts))
    axes.set_xlabel("time divided by the sum of both floors", fontsize=11)
    axes.grid(axis="x", alpha=0.3)
    handles, labels = axes.get_legend_handles_labels()
    once = dict(zip(labels, handles, strict=True))  # every case brought the same labels
    figure.legend(once.values(), once.keys(), loc="outside lower center", ncols=2, fontsize=11, frameon=False)
    _title(figure, f"Time against the hardware's floors, {shapes[0].dtype}", results.runs["headline"].hardware)
    return figure


def _floors(axes: Axes, results: Results, shape: Shape, y: float) -> None:
    floors = (results.value("headline", shape, "roofline", name) or 0.0 for name in ("gemm floor", "gather floor"))
    product, gather = floors
    total = product + gather or math.nan
    axes.barh(y, product / total, height=0.8, color="#777777", label="floor: matrix product")
    axes.barh(y, gather / total, left=product / total, height=0.8, color="#C4C4C4", label="floor: gathering neighbours")
    axes.text(1, y, f" {number(product)} + {number(gather)} ms", va="center", fontsize=10, color="#555555")
