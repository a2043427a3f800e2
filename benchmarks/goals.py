"""The goals for speed and memory, each with its verdict: computed from the newest run, never written by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from .cases import BATCH, DTYPES, GRID, HUGE_BATCH, MANY_REFERENCES, RIVALS, TRACK, TRAIN, Case, suites
from .contenders import YARDSTICK
from .isa import place
from .selection import EMPTY, HOST, INTELEX, LIBRARIES, Found, Results, Shape
from .standings import absence, standings
from .tables import Table, number, short_state

Judged = tuple[str, bool | None]  # what was measured in words, and whether that meets the goal; None: not measured
Goal = tuple[str, str, str, str, Judged]  # where, against whom, at which size, the goal in words

TORCHID_CASE = next(case for case in RIVALS if case.mode == "lid")
TORCHID_MS = 28.4  # its BENCHMARKS.md: MLE on an H100, float32, its default of 20 neighbours
FIXED_COST = Shape(**Case(64, 64, 128, 8).to_dict())  # as good as nothing to compute
INTELEX_WINS = 55  # cases of the grid in which scikit-learn-intelex may not be faster

WORKSPACE_MB = 64.0  # the fixed workspace that the memory goal allows
SMALL = "outputs, O(B k + N), 64 MB"


def goals(found: Found) -> Table:
    """Every goal for speed and memory with what was measured."""
    cuda = found.cuda
    train, huge, half = (Shape(**case.to_dict()) for case in (TRAIN, HUGE_BATCH, replace(TRAIN, dtype="bfloat16")))
    bag = "mm + topk + bag bf16"
    floors = "both hardware floors"
    sets = [results.isa for results in found.cpu if results.isa not in CPU_GOALS]
    judged: list[Goal] = [
        *(goal for isa in sorted((*CPU_GOALS, *sets), key=place) for goal in _on_cpu(found.on_cpu(isa))),
        ("GPU", "published code", case_words(train), ">= 20x our time", _slower(cuda, train, 20)),
        ("GPU", bag, case_words(half), ">= 2x our time", _slower(cuda, half, 2, bag)),
        *(
            (
                "GPU",
                floors,
                f"{backend}, every case with D >= 512",
                f"ours <= {most}x their sum",
                _floors(cuda, backend, most),
            )
            for backend, most in (("ldreg cuda", 1.3), ("ldreg triton", 1.6))
        ),
        (
            "GPU",
            f"torchid's published {TORCHID_MS} ms",
            case_words(Shape(**TORCHID_CASE.to_dict())),
            "ours <= 1/5 of it",
            _torchid(cuda),
        ),
        ("GPU", "flashlib, beside it", "its published shapes, k >= 16", "faster", _flashlib(cuda)),
        *(
            (
                "GPU",
                "an empty function",
                f"host time, {backend}",
                f"ours <= {most} us more",
                _host(found, backend, most),
            )
            for backend, most in (("ldreg cuda", 25), ("ldreg triton", 60))
        ),
        ("GPU", "launches of our kernels", "every loss with gradient", "1", _launches(cuda)),
        ("GPU", "memory", "every case", SMALL, _memory(cuda)),
        ("GPU", "memory of one GPU", case_words(huge), "runs", _runs(cuda, huge)),
    ]
    words = {True: "met", False: "NOT met", None: "not measured"}
    rows = tuple((*row, measured, words[met]) for *row, (measured, met) in judged)
    hardware = "; ".join(results.runs["headline"].hardware for results in found if "headline" in results.runs)
    caption = f"Hardware: {hardware or 'nothing measured'}. The GPU goals were set for an H200."
    return Table("Goals", ("where", "against", "(B, N, D, k)", "goal", "measured", "verdict"), rows, caption=caption)


def _on_cpu(results: Results) -> list[Goal]:
    """The goals of one instruction set: those that were set for it, and those of every set but the portable one."""
    if results.isa == "portable":  # it runs everywhere and promises no speed
        return []
    where, own = f"CPU {results.isa}", CPU_GOALS.get(results.isa, ())
    return [
        *((where, what, case_words(shape), goal, judge(results)) for what, shape, goal, judge in own),
        (where, "the other libraries", "a grid of 60", "never slower", _grid(results)),
        (where, INTELEX, "the same grid", f"not slower in {INTELEX_WINS}", _intelex(results)),
        (where, "fixed cost", case_words(FIXED_COST), "ours <= 150 us", _fixed_cost(results, FIXED_COST, 150)),
        (where, "memory", "every case of the memory suite", SMALL, _memory(results)),
    ]


def case_words(shape: Shape) -> str:
    return f"{shape.size} {shape.words}"


def _unmeasured(results: Results, shape: Shape, backend: str) -> Judged:
    """The reason, where there is one: ours first."""
    states = (results.state("headline", shape, b) for b in (results.ours("headline", shape), backend))
    return next((short_state(note) for note in states if note), "-"), None


def _slower(results: Results, shape: Shape, least: float, backend: str = "published") -> Judged:
    ratio = results.get("headline", shape, backend, "ratio")
    if ratio is None or ratio.value is None:
        return _unmeasured(results, shape, backend)
    spread = f" ({number(ratio.low, 3)}-{number(ratio.high, 3)})" if ratio.low and ratio.high else ""
    return f"{number(ratio.value, 3)}x{spread}", ratio.value >= least


def _product(results: Results, shape: Shape, most: float) -> Judged:
    ratio = results.value("headline", shape, YARDSTICK, "ratio")
    return (f"{number(1 / ratio, 3)}x", 1 / ratio <= most) if ratio else _unmeasured(results, shape, YARDSTICK)


def _half_precision(results: Results, shape: Shape) -> Judged:
    """Our time with bfloat16 features in parts of that with float32 ones, two cases of one run."""
    half = shape._replace(dtype="bfloat16")
    times = [_ours(results, each, "time") for each in (half, shape)]
    if times[0] is None or times[1] is None:
        return _unmeasured(results, half if times[0] is None else shape, "")
    ratio = times[0] / times[1]
    return f"{number(ratio, 3)}x", ratio <= 1


def _floors(results: Results, backend: str, most: float) -> Judged:
    shapes = [shape for shape in results.shapes("headline") if shape.D >= 512]
    return _every({(shape, results.value("headline", shape, backend, "of the floor")) for shape in shapes}, most, "x")


def _grid(results: Results) -> Judged:
    """Met where every case of the grid was reached and won; one loss is enough to miss it."""
    found = standings(results)
    if not found:
        return "-", None
    won, worst = sum(standing.won for standing in found), min(found, key=lambda standing: standing.ratio)
    words = f"won {won} of {len(found)}, at worst {worst}"
    if won < len(found):
        return words, False
    missing = len(suites(results.device)[GRID]) - len(found)
    if missing > 0:
        return f"{words}; {missing} more not measured", None
    absent = [f"{name} {reason}" for name in LIBRARIES if (reason := absence(results, name))]
    return (f"{words}; {', '.join(absent)}", None) if absent else (words, True)


def _intelex(results: Results) -> Judged:
    """Met with so many wins, missed when so many are out of reach."""
    found = standings(results, (INTELEX,))
    if not found:
        return absence(results, INTELEX) or "-", None
    won, everything = sum(standing.won for standing in found), len(suites(results.device)[GRID])
    words = f"won {won} of {len(found)}"
    if won < len(found):
        words += f", at worst {min(found, key=lambda standing: standing.ratio)}"
    if won >= INTELEX_WINS:
        return words, True
    return words, False if len(found) - won > everything - INTELEX_WINS else None


def _torchid(results: Results) -> Judged:
    """Against its published figure, from another machine: it is not asked to be installed here."""
    shape = Shape(**TORCHID_CASE.to_dict())
    time = _ours(results, shape, "time", "rivals")
    return ("-", None) if time is None else (f"{number(time, 3)} ms", 5 * time <= TORCHID_MS)


def _flashlib(results: Results) -> Judged:
    """Its time over ours, in every case of `rivals` that it published: the smallest decides."""
    shapes = [Shape(**case.to_dict()) for case in RIVALS if case.k >= 16 and case.mode == "forward" and case.D < 2048]
    ratios = {shape: results.value("rivals", shape, "flashlib", "ratio") for shape in shapes}
    measured = {shape: ratio for shape, ratio in ratios.items() if ratio is not None}
    if not measured:
        states = [note for shape in shapes if (note := results.state("rivals", shape, "flashlib"))]
        return short_state(states[0]) if states else "-", None
    worst = min(measured, key=lambda shape: measured[shape])
    words = f"{number(measured[worst], 3)}x at least, at {case_words(worst)}, of {len(measured)} measured"
    if measured[worst] <= 1:
        return words, False
    return words, True if len(measured) == len(shapes) else None


def _host(found: Found, backend: str, most: float) -> Judged:
    """Beyond what an empty function costs in the same run; a stub can take the kernel's place, so without a GPU too."""
    stubbed = sorted((results for results in found.cpu if HOST in results.runs), key=lambda r: r.runs[HOST].run)
    results = next((r for r in (found.cuda, *stubbed[::-1]) if r.backends(HOST, "time").count(backend)), found.cuda)
    pairs = {
        shape: (results.value(HOST, shape, backend, "time"), results.value(HOST, shape, EMPTY, "time"))
        for shape in results.shapes(HOST)
    }
    beyond = {shape: ours - empty for shape, (ours, empty) in pairs.items() if ours is not None and empty is not None}
    if not beyond:
        return "-", None
    worst = max(beyond, key=lambda shape: beyond[shape])
    return f"{number(beyond[worst], 3)} us at {case_words(worst)}", beyond[worst] <= most


def _fixed_cost(results: Results, shape: Shape, most: float) -> Judged:
    time = results.value(HOST, shape, "ldreg cpu", "time")
    return ("-", None) if time is None else (f"{number(time, 3)} us", time <= most)


def _launches(results: Results) -> Judged:
    shapes = [shape for shape in results.shapes("headline") if shape.mode != "forward"]
    return _every({(shape, _ours(results, shape, "own launches")) for shape in shapes}, 1, "")


def _memory(results: Results) -> Judged:
    """Each case against what its own shape allows."""
    cases = [(suite, shape) for suite in results.memory_suites() for shape in results.shapes(suite)]
    peaks = [(shape, _ours(results, shape, "peak memory", suite)) for suite, shape in cases]
    return _every({(s, None if peak is None else peak / allowed_mb(s)) for s, peak in peaks}, 1, "x what is allowed")


def _every(values: set[tuple[Shape, float | None]], most: float, unit: str) -> Judged:
    """The worst case decides; a goal for every case is met only where none is left open."""
    measured = [(value, shape) for shape, value in values if value is not None]
    if not measured:
        return "-", None
    worst, shape = max(measured)
    missing = len(values) - len(measured)
    words = f"at most {worst:.3g}{unit} at {case_words(shape)}, of {len(measured)} measured"
    if worst > most:
        return words, False
    return (f"{words}; {missing} more not measured", None) if missing else (words, True)


def allowed_mb(shape: Shape) -> float:
    """The memory goal in MB: the gradient [B, D], 16 bytes per neighbour (a 64-bit index, a distance and a weight) and
    per row, and the workspace.
    """
    k = max([shape.k, *(k for _, k in TRACK)]) if shape.mode == "tracked" else shape.k
    gradient = 0 if shape.mode in ("forward", "lid") else shape.B * shape.D * DTYPES[shape.dtype].itemsize
    return (gradient + 16 * shape.B * k + 16 * (shape.B + shape.N)) / 1e6 + WORKSPACE_MB


def _runs(results: Results, shape: Shape) -> Judged:
    time = _ours(results, shape, "time")
    note = results.state("headline", shape, results.ours("headline", shape))
    if time is None:
        return short_state(note), False if short_state(note) in ("out of memory", "wrong", "failed") else None
    return f"{number(time, 3)} ms", True


def _ours(results: Results, shape: Shape, statistic: str, suite: str = "headline") -> float | None:
    return results.value(suite, shape, results.ours(suite, shape), statistic)


def _cpu_goals() -> dict[str, tuple[tuple[str, Shape, str, Callable[[Results], Judged]], ...]]:
    """By instruction set: against whom, at which size, the goal in words, and who judges it."""

    def slower(case: Case, backend: str, least: float) -> tuple[str, Shape, str, Callable[[Results], Judged]]:
        shape, name = Shape(**case.to_dict()), "published code" if backend == "published" else backend
        return name, shape, f">= {least}x our time", lambda results: _slower(results, shape, least, backend)

    def product(most: float) -> tuple[str, Shape, str, Callable[[Results], Judged]]:
        words = f"ours <= {most}x its time"
        return "torch.mm alone", train, words, lambda results: _product(results, train, most)

    train = Shape(**TRAIN.to_dict())
    half = ("bfloat16 features", train, "ours <= that of float32", lambda results: _half_precision(results, train))
    return {
        "avx512bf16": (slower(TRAIN, "published", 10), product(0.5)),
        "avx2": (
            slower(TRAIN, "published", 5),
            product(0.9),
            slower(BATCH, "faiss", 1.4),
            slower(MANY_REFERENCES, "faiss", 1.5),
            half,
        ),
    }


CPU_GOALS = _cpu_goals()
