"""The goals for speed and memory, each with its verdict: computed from the newest run, never written by hand."""

from __future__ import annotations

from .cases import DTYPES, HUGE_BATCH, TRACK, TRAIN
from .contenders import YARDSTICK
from .selection import Both, Results, Shape
from .tables import Table, number, short_state

Judged = tuple[str, bool | None]  # what was measured in words, and whether that meets the goal; None: not measured

WORKSPACE_MB = 64.0  # the fixed workspace that the memory goal allows


def goals(found: Both) -> Table:
    """Every goal for speed and memory with what was measured."""
    cpu, cuda = found["cpu"], found["cuda"]
    train, huge = Shape(**TRAIN.to_dict()), Shape(**HUGE_BATCH.to_dict())
    search, half = train._replace(mode="forward"), train._replace(dtype="bfloat16")
    cpu_name = cpu.runs["headline"].hardware if "headline" in cpu.runs else ""
    product = 1.3 if cpu_name and "avx512bf16" not in cpu_name else 0.7  # without bf16 dot products, or with
    bag, small = "mm + topk + bag bf16", "outputs, O(B k + N), 64 MB"
    judged: list[tuple[str, str, str, str, Judged]] = [
        ("CPU", "published code", case_words(train), ">= 8x our time", _slower(cpu, train, "published", 8)),
        ("CPU", "torch.mm alone", case_words(train), f"ours <= {product}x its time", _product(cpu, train, product)),
        ("CPU", "faiss", case_words(search), ">= 2x our time", _slower(cpu, search, "faiss", 2)),
        ("CPU", "memory", "every case of the memory suite", small, _memory(cpu)),
        ("GPU", "published code", case_words(train), ">= 20x our time", _slower(cuda, train, "published", 20)),
        ("GPU", bag, case_words(half), ">= 2x our time", _slower(cuda, half, bag, 2)),
        ("GPU", "both hardware floors", "every case with D >= 512", "ours <= 1.5x their sum", _floors(cuda, 1.5)),
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


def _slower(results: Results, shape: Shape, backend: str, least: float) -> Judged:
    ratio = results.get("headline", shape, backend, "ratio")
    if ratio is None or ratio.value is None:
        return _unmeasured(results, shape, backend)
    spread = f" ({number(ratio.low, 3)}-{number(ratio.high, 3)})" if ratio.low and ratio.high else ""
    return f"{number(ratio.value, 3)}x{spread}", ratio.value >= least


def _product(results: Results, shape: Shape, most: float) -> Judged:
    ratio = results.value("headline", shape, YARDSTICK, "ratio")
    return (f"{number(1 / ratio, 3)}x", 1 / ratio <= most) if ratio else _unmeasured(results, shape, YARDSTICK)


def _floors(results: Results, most: float) -> Judged:
    shapes = [shape for shape in results.shapes("headline") if shape.D >= 512]
    return _every({(shape, _ours(results, shape, "of the floor")) for shape in shapes}, most, "x")


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
    gradient = 0 if shape.mode == "forward" else shape.B * shape.D * DTYPES[shape.dtype].itemsize
    return (gradient + 16 * shape.B * k + 16 * (shape.B + shape.N)) / 1e6 + WORKSPACE_MB


def _runs(results: Results, shape: Shape) -> Judged:
    time = _ours(results, shape, "time")
    note = results.state("headline", shape, results.ours("headline", shape))
    if time is None:
        return short_state(note), False if short_state(note) in ("out of memory", "wrong", "failed") else None
    return f"{number(time, 3)} ms", True


def _ours(results: Results, shape: Shape, statistic: str, suite: str = "headline") -> float | None:
    return results.value(suite, shape, results.ours(suite, shape), statistic)
