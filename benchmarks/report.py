"""`ldreg bench --report`: the page, and the README's tables and plots.

Nothing is measured here, and no number is written by hand. The page holds its style and its pictures, so that it can be
mailed and read offline.
"""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

from . import standings, tables
from .contenders import YARDSTICK
from .goals import case_words, goals
from .plots import figures, png
from .records import FILE_NAME, RecordFile
from .selection import OURS, Found, Results, newest
from .tables import Table, number, short_state


def read(folder: Path) -> Found:
    """The newest runs recorded in a folder."""
    return newest(RecordFile(folder / FILE_NAME).read())


# ------------------------------------------------------------------------------------------------- the page


def write_report(folder: Path) -> Path:
    """Make folder/report.html from folder/measurements.csv.

    Raises:
        ValueError: nothing was recorded there.
    """
    found = read(folder)
    if not list(found):
        raise ValueError(f"{folder / FILE_NAME} holds no measurements: run `ldreg bench` first")
    body = [f"<h1>ldreg_kernels: benchmarks</h1>{outcome(found)}", _section(goals(found))]
    body += [_device(results) for results in found]
    page = folder / "report.html"
    page.write_text(_PAGE.format(style=_STYLE, body="\n".join([*body, _METHOD])), encoding="utf-8")
    return page


def outcome(found: Found) -> str:
    """What came out, in a few sentences of HTML."""
    verdicts = [(row[0], row[1], row[-1]) for row in goals(found).rows]
    failed = ", ".join(f"{where} {what}" for where, what, verdict in verdicts if verdict == "NOT met")
    count = {word: sum(verdict == word for *_, verdict in verdicts) for word in ("met", "NOT met", "not measured")}
    lines = [_device_outcome(results) for results in found if "headline" in results.runs]
    lines.append(
        f"Goals: {count['met']} met, {count['NOT met']} not met{f' ({failed})' if failed else ''}, "
        f"{count['not measured']} not measured."
    )
    return "".join(f'<p class="outcome">{html.escape(line)}</p>' for line in lines)


def _device_outcome(results: Results) -> str:
    suite = "headline"
    ratios = {
        (backend, shape): value
        for backend in results.backends(suite, "ratio")
        if backend not in (*OURS, YARDSTICK)
        for shape in results.shapes(suite)
        if (value := results.value(suite, shape, backend, "ratio"))
    }
    text = f"{results.runs[suite].hardware}:"
    published = [value for (backend, _), value in ratios.items() if backend == "published"]
    if published:
        cases = "case" if len(published) == 1 else "cases"
        times = (
            f"{number(min(published))}x to {number(max(published))}x"
            if len(published) > 1
            else f"{number(published[0])}x"
        )
        text += f" the published code takes {times} our time over {len(published)} {cases}."
    if ratios:
        (backend, shape), value = min(ratios.items(), key=lambda item: item[1])
        judgement = "The nearest rival takes" if value >= 1 else "NOT the fastest everywhere: the best rival takes"
        text += f" {judgement} {number(value)}x our time, {backend} at {case_words(shape)}."
    states = [(b, s, results.state(suite, s, b)) for b in OURS for s in results.shapes(suite)]
    wrong = [f"{b} at {case_words(s)}: {note}" for b, s, note in states if short_state(note) in ("wrong", "failed")]
    return " ".join([text, *(f"WRONG OR FAILED: {line}." for line in wrong)])


def _device(results: Results) -> str:
    """All tables and plots of a device, on a CPU of one instruction set."""
    pictures = figures(results)

    def plots(*kinds: str) -> str:
        names = [name for name in pictures if name.startswith(tuple(f"{kind}-{results.file_name}" for kind in kinds))]
        return "".join(_image(name, png(pictures[name], dpi=130)) for name in names)

    parts = [
        _section(tables.headline(results), plots("speed-up")),
        _section(Table(f"Time against N and k, {results.place}"), plots("time-n", "time-k")),
        *(
            _section(tables.memory(results, suite), "" if suite == "headline" else plots("memory-n"))
            for suite in results.memory_suites()
        ),
        _section(tables.roofline(results), plots("roofline")),
        _section(standings.rivals(results)),
        _section(standings.grid(results)),
        _section(standings.host(results)),
        _section(tables.accuracy(results)),
        _section(tables.train_step(results)),
        _section(tables.contrastive(results)),
        _section(tables.not_measured(results)),
    ]
    return "\n".join(parts)


def _section(table: Table, plots: str = "") -> str:
    """A heading, a table and plots; nothing where there is neither."""
    if not table.rows and not plots:
        return ""
    grid = f'<div class="plots">{plots}</div>' if plots else ""
    return f"<section><h2>{html.escape(table.title)}</h2>{to_html(table)}{grid}</section>"


def _image(name: str, content: bytes) -> str:
    data = base64.b64encode(content).decode()
    return f'<img alt="{html.escape(name.replace("-", " "))}" src="data:image/png;base64,{data}">'


# ------------------------------------------------------------------------------------------------- tables as text


def to_html(table: Table) -> str:
    """A table that scrolls sideways where it does not fit, with its notes and its caption."""
    if not table.rows:
        return ""
    numeric = _numeric(table)
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in table.header)
    body = ""
    for row in table.rows:
        cells = zip(row, numeric, strict=True)
        body += (
            "<tr>" + "".join(f"<td{_class(cell, right)}>{html.escape(cell)}</td>" for cell, right in cells) + "</tr>"
        )
    small = "".join(f'<p class="note">{_code(html.escape(line))}</p>' for line in (*table.notes, table.caption) if line)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>{small}'


def _class(cell: str, right: bool) -> str:
    verdict = {"met": "met", "NOT met": "missed"}.get(cell)
    names = [name for name in (verdict, "n" if right else None) if name]
    return f' class="{" ".join(names)}"' if names else ""


def _code(text: str) -> str:
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", text)


def _numeric(table: Table) -> list[bool]:
    """Columns to be set flush right: short cells, of which most are numbers."""
    columns = list(zip(*table.rows, strict=True))
    return [
        max(map(len, column)) < 30 and 2 * sum(cell[:1].isdigit() for cell in column) > len(column)
        for column in columns
    ]


def to_markdown(table: Table, empty: str = "Not measured.") -> str:
    """A table whose columns line up in a text editor too, with its notes and its caption."""
    if not table.rows:
        return empty
    lines = [tuple(cell.replace("|", "\\|") for cell in row) for row in (table.header, *table.rows)]
    widths = [max(3, *(len(cell) for cell in column)) for column in zip(*lines, strict=True)]
    numeric = _numeric(table)
    rule = [f"{'-' * (width - 1)}:" if right else "-" * width for width, right in zip(widths, numeric, strict=True)]
    columns = list(zip(widths, numeric, strict=True))
    padded = [
        [cell.rjust(width) if right else cell.ljust(width) for cell, (width, right) in zip(line, columns, strict=True)]
        for line in lines
    ]
    text = "\n".join("| " + " | ".join(line) + " |" for line in (padded[0], rule, *padded[1:]))
    notes = " ".join(f"{note.rstrip('.')}." for note in table.notes)
    return "\n\n".join(part for part in (text, notes, table.caption) if part)


# ------------------------------------------------------------------------------------------------- the README


def readme_tables(found: Found) -> dict[str, Callable[[], list[Table]]]:
    """What may stand between markers, by name: on a CPU a table for every instruction set that was measured."""

    def of(results: Results) -> dict[str, Callable[[], Table]]:
        return {
            "headline": lambda: tables.headline(results, short=True),
            "memory": lambda: tables.memory(results, (results.memory_suites() or ["memory"])[0], short=True),
            "roofline": lambda: tables.roofline(results),
            "errors": lambda: tables.accuracy(results),
            "train-step": lambda: tables.train_step(results),
            "rivals": lambda: standings.rivals(results, short=True),
            "grid": lambda: standings.grid(results),
            "host": lambda: standings.host(results),
            "contrastive": lambda: tables.contrastive(results),
        }

    def all_of(kind: str, several: Iterable[Results]) -> list[Table]:
        made = [of(results)[kind]() for results in several]
        return [table for table in made if table.rows]

    places = {"cpu": found.cpu, "cuda": (found.cuda,)}
    kinds = of(found.cuda)
    named = {f"{kind}-{device}": partial(all_of, kind, places[device]) for device in places for kind in kinds}
    return {"goals": lambda: [goals(found)], **named}


def update_readme(readme: Path, folder: Path) -> bool:
    """Write the newest tables between `<!-- bench:NAME -->` and `<!-- /bench:NAME -->`; the rest stays, byte for byte.

    Returns:
        Whether anything changed.

    Raises:
        ValueError: a marker's name is unknown, or a marker has no partner.
    """
    known = readme_tables(read(folder))
    before = readme.read_bytes().decode()
    pieces, at, opened = [], 0, ""
    for marker in re.finditer(r"<!--\s*(/?)bench:(\S*?)\s*-->", before):
        closing, name = marker.groups()
        if name not in known:
            raise ValueError(f"{readme}: unknown table {name!r} in {marker[0]}; known: {', '.join(known)}")
        if (name if closing else "") != opened:
            raise ValueError(f"{readme}: {marker[0]} has no partner, or stands inside {opened or 'nothing'}")
        if closing:
            empty = "Not measured on a GPU." if name.endswith("-cuda") else "Not measured."
            pieces.append(f"\n{_stacked(known[name](), empty)}\n")
        else:
            pieces.append(before[at : marker.end()])
        at, opened = (marker.start(), "") if closing else (marker.end(), name)
    if opened:
        raise ValueError(f"{readme}: bench:{opened} is not closed")
    after = "".join(pieces) + before[at:]
    if after != before:
        readme.write_bytes(after.encode())
    return after != before


def _stacked(made: Sequence[Table], empty: str) -> str:
    """Tables one below the other, under their titles where there are several."""
    headings = [f"**{table.title}**\n\n" if len(made) > 1 else "" for table in made]
    return "\n\n".join(f"{heading}{to_markdown(table)}" for heading, table in zip(headings, made, strict=True)) or empty


def save_plots(folder: Path) -> list[Path]:
    """Write every figure to folder/plots/ for the README; the paths."""
    paths = []
    for results in read(folder):
        for name, figure in figures(results).items():
            path = folder / "plots" / f"{name}.png"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(png(figure))
            paths.append(path)
    return paths


_METHOD = """<section><h2>How it was measured</h2><ul>
<li>A contender is timed only after its answer was checked against float64 on a sample of the rows.</li>
<li>Contenders take turns in every round, each in a process of its own. A ratio compares times of one round, and its
median over the rounds is shown: the speed of a shared machine drifts, and milliseconds of two runs do not compare.</li>
<li>Times are medians, with the 20th and 80th percentiles in brackets or as a band.</li>
<li>torch.mm is the product x y<sup>T</sup> alone: it finds no neighbour, it is there as a yardstick.</li>
<li>Each table takes all its numbers from the newest run of its suite.</li></ul></section>"""

_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>ldreg_kernels: benchmarks</title><style>{style}</style></head>
<body>
{body}
</body></html>
"""

_STYLE = """
:root { color-scheme: light dark; --text: #1b1f24; --page: #fff; --soft: #59636e; --line: #d8dee4; --head: #f3f5f7;
  --met: #00694a; --missed: #b03000 }
@media (prefers-color-scheme: dark) { :root { --text: #e4e8ec; --page: #14171b; --soft: #9ba6b2; --line: #353c45;
  --head: #1f242a; --met: #4fd0a5; --missed: #ff9166 } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--text); background: var(--page); max-width: 76rem;
  margin: 0 auto; padding: 1rem }
h1 { font-size: 1.6rem; margin: .5rem 0 }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem }
.outcome { font-size: 1.05rem; margin: .4rem 0; max-width: 56rem }
.scroll { overflow-x: auto }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums }
th, td { padding: .35rem .65rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top }
th { background: var(--head); vertical-align: bottom }
td:first-child, td.n, .met, .missed { white-space: nowrap }
.met { color: var(--met); font-weight: 600 }
.missed { color: var(--missed); font-weight: 700 }
.note { color: var(--soft); font-size: .82rem; margin: .4rem 0; overflow-wrap: anywhere }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 28rem), 1fr)); gap: 1rem;
  align-items: start; margin-top: 1rem }
.plots img { width: 100%; max-width: 44rem; background: #fff; border: 1px solid var(--line); border-radius: 6px }
"""
