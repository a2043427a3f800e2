"""The goals for speed and memory, each with its verdict: computed from the newest run, never written by hand."""

from __future__ import annotations

from dataclasses import replace

from .cases import DTYPES, GRID, HUGE_BATCH, RIVALS, TRACK, TRAIN, Case, suites
from .contenders import YARDSTICK
from .selection import EMPTY, HOST, Both, Results, Shape
from .standings import standings
from .tables import Table, number, short_state

Judged = tuple[str, bool | None]  # what was measured in words, and whether that meets the goal; None: not measured

TORCHID_CASE = next(case for case in RIVALS if case.mode == "lid")
TORCHID_MS = 28.4  # its BENCHMARKS.md: MLE on an H100, float32, its default of 20 neighbours
FIXED_COST = Case(64, 64, 128, 8)  # as good as nothing to compute

WORKSPACE_MB = 64.0  # the fixed workspace that the memory goal allows


def goals(found: Both) -> Table:
    """Every goal for speed and memory with what was measured."""
    cpu, cuda = found["cpu"], found["cuda"]
    train, huge, half = (Shape(**case.to_dict()) for case in (TRAIN, HUGE_BATCH, replace(TRAIN, dtype="bfloat16")))
    cpu_name = cpu.runs["headline"].hardware if "headline" in cpu.runs else ""
    # With bf16 dot products in the processor, or without; the harder goal stands where nothing was measured.
    published, product = (5, 0.9) if cpu_name and "avx512bf16" not in cpu_name else (10, 0.5)
    bag, small = "mm + topk + bag bf16", "outputs, O(B k + N), 64 MB"
    floors, libraries = "both hardware floors", "the other libraries"
    fixed = Shape(**FIXED_COST.to_dict())
    judged: list[tuple[str, str, str, str, Judged]] = [
        ("CPU", "published code", case_words(train), f">= {published}x our time", _slower(cpu, train, published)),
        ("CPU", "torch.mm alone", case_words(train), f"ours <= {product}x its time", _product(cpu, train, product)),
        ("CPU", libraries, "a grid of 60", "never slower", _grid(cpu)),
        ("CPU", "fixed cost", case_words(fixed), "ours <= 150 us", _fixed_cost(cpu, fixed, 150)),
        ("CPU", "memory", "every case of the memory suite", small, _memory(cpu)),
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
        ("GPU", "memory", "every case", small, _memory(cuda)),
        ("GPU", "memory of one GPU", case_words(huge), "runs", _runs(cuda, huge)),
    ]
    words = {True: "met", False: "NOT met", None: "not measured"}
    rows = tuple((*row, measured, words[met]) for *row, (measured, met) in judged)
    hardware = "; ".join(r.runs["headline"].hardware for r in found.values() if "headline" in r.runs)
    caption = f"Hardware: {hardware or 'nothing measured'}. The GPU goals were set for an H200."
    return Table("Goals", ("where", "against", "(B, N, D, k)", "goal", "measured", "verdict"), rows, caption=caption)


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
    return (f"{words}; {missing} more not measured", None) if missing > 0 else (words, True)


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


def _host(found: Both, backend: str, most: float) -> Judged:
    """Beyond what an empty function costs in the same run; a stub can take the kernel's place, so without a GPU too."""
    results = found["cuda"] if found["cuda"].backends(HOST, "time").count(backend) else found["cpu"]
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
