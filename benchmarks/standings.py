"""Tables about the others: sizes at which libraries published a time, the grid that counts wins, host times.

As in tables.py, every number comes from a row of one run; what others published is cited in a note, as theirs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from .cases import GRID
from .selection import EMPTY, HOST, INTELEX, LIBRARIES, OURS, Results, Shape
from .tables import Table, headline, make_table, milliseconds, number, short_state

PUBLISHED = (  # at cases.RIVALS: (B, N, D, k), who, ms: read in what they publish, never measured here
    ("(16384, 100000, 128, 4 to 32)", "flashlib, H200", "2.6 to 4.9"),
    ("(8192, 65536, 256, 16)", "flashlib, H200", "2.64"),
    ("(5000, 8192, 2048, 32)", "faiss#3045, torch.mm + topk / faiss", "1.5 / 9.8"),
    ("(20000, 20000, 1024, 20)", "torchid, H100", "28.4"),
)


def rivals(results: Results, *, short: bool = False) -> Table:
    """The cases at which other libraries published a time: measured side by side, their own figures in a note."""
    table = headline(results, short=short, suite="rivals")
    cited = "; ".join(f"{size} {who} {time} ms" for size, who, time in PUBLISHED)
    title = f"At the sizes of published times, {results.place}"
    if not table.rows:
        return replace(table, title=title)
    note = f"As published by their authors, on their machines and not measured here: {cited}"
    return replace(table, title=title, notes=(*table.notes, note))


@dataclass(frozen=True)
class Standing:
    """How the grid went in one case: the best of the other libraries, and its time over ours."""

    shape: Shape
    ratio: float  # 0 where we have no time and somebody else does
    backend: str

    @property
    def won(self) -> bool:
        """Never slower: a tie is won."""
        return self.ratio >= 1

    def __str__(self) -> str:
        usual = (self.shape.dtype, self.shape.mode) == ("float32", "gradient")
        words = self.shape.size if usual else f"{self.shape.size} {self.shape.words}"
        return f"{words} {number(self.ratio)}x by {self.backend}" if self.ratio else f"{words} no answer of ours"


def standings(results: Results, libraries: tuple[str, ...] = LIBRARIES) -> list[Standing]:
    """Every case of the grid in which we or one of these libraries have a time, in the file's order."""
    found = []
    for shape in results.shapes(GRID):
        ours = results.ours(GRID, shape)
        if results.get(GRID, shape, ours, "time") is None:
            times = {b: t for b in libraries if (t := results.value(GRID, shape, b, "time"))}
            found += [Standing(shape, 0.0, min(times, key=lambda b: times[b]))] if times else []
            continue
        ratios = {b: r for b in libraries if (r := results.value(GRID, shape, b, "ratio"))}
        if ratios:
            best = min(ratios, key=lambda b: ratios[b])
            found.append(Standing(shape, ratios[best], best))
    return found


def grid(results: Results) -> Table:
    """How many cases of the grid were won against the best of the other libraries and against each; every loss."""
    best, intelex = standings(results), standings(results, (INTELEX,))
    rows = [_line("the best of these", best)] if best else []
    for name in (*LIBRARIES, INTELEX):
        if found := standings(results, (name,)):
            rows.append(_line(f"{name}, counted by itself" if name == INTELEX else name, found))
        elif reason := absence(results, name):
            rows.append((name, reason, "-", "-"))
    notes = [_losses("the best other library", best)] if best else []
    notes += [_losses(INTELEX, intelex)] if intelex else []
    if not all(standing.won for standing in (*best, *intelex)):
        notes += ["Lost: its time over ours; loss with gradient of float32 features, where a case says nothing else"]
    left = [shape for shape in results.shapes(GRID) if shape not in {standing.shape for standing in best}]
    notes += [f"Not reached or without another library: {len(left)} cases"] if left else []
    header = ("against", "won", "their time over ours, at worst", "(B, N, D, k) there")
    return make_table(results, GRID, f"A grid of training shapes, {results.place}", header, rows, tuple(notes))


def absence(results: Results, name: str) -> str:
    """Why the grid has no time of a library; empty where it has one, or where the library does not belong there."""
    notes = [note for shape in results.shapes(GRID) if (note := results.state(GRID, shape, name))]
    if not notes or standings(results, (name,)):
        return ""
    word = short_state(notes[0])
    return "not installed" if word == "missing" else word


def _line(name: str, found: list[Standing]) -> tuple[str, ...]:
    worst = min(found, key=lambda standing: standing.ratio)
    won = sum(standing.won for standing in found)
    ratio = f"{number(worst.ratio)}x" if worst.ratio else "no answer of ours"
    return name, f"{won} of {len(found)}", ratio, f"{worst.shape.size} {worst.shape.words}"


def _losses(name: str, found: list[Standing]) -> str:
    """How many were won, and every loss, the worst first."""
    lost = sorted((standing for standing in found if not standing.won), key=lambda standing: standing.ratio)
    words = f"Won {len(found) - len(lost)} of {len(found)} against {name}"
    return f"{words}; lost {'; '.join(map(str, lost))}" if lost else words


def host(results: Results) -> Table:
    """What a forward and backward cost the host, launch and kernel left out."""
    rows = []
    for shape in results.shapes(HOST):
        empty = results.value(HOST, shape, EMPTY, "time")
        for backend in (*OURS, EMPTY):
            time = results.get(HOST, shape, backend, "time")
            if time is not None and time.value is not None:
                beyond = "-" if empty is None or backend == EMPTY else number(time.value - empty, 3)
                rows.append((shape.size, shape.words, backend, milliseconds(time), beyond))
    header = ("(B, N, D, k)", "what", "backend", "us (p20-p80)", "beyond an empty function, us")
    return make_table(results, HOST, f"Host time of forward and backward, {results.place}", header, rows)
