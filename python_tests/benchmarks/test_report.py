"""benchmarks/{plots,report}.py: pictures, the page, and the README's tables between their markers."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from benchmark_rows import HALF, ISA, cpu_rows, curve_rows, record, results, run, state
from PIL import Image

from benchmarks import plots, report
from benchmarks.cases import TRAIN
from benchmarks.records import RESULTS, ROOT

VOID = {"br", "img", "meta"}


# ------------------------------------------------------------------------------------------------- plots and page


def test_every_plot_is_a_png_and_is_drawn_only_from_rows(tmp_path: Path) -> None:
    paths = report.save_plots(record(tmp_path, cpu_rows() + curve_rows()))
    kinds = ("time-n", "time-k", "memory-n", "speed-up", "roofline")
    assert {path.name for path in paths} == {f"{kind}-cpu-{ISA}-float32.png" for kind in kinds}
    for path in paths:
        with Image.open(path) as image:
            image.verify()
            assert image.format == "PNG"
            assert image.width >= 600
    contents = [path.read_bytes() for path in paths]
    report.save_plots(tmp_path)
    assert [path.read_bytes() for path in paths] == contents  # an unchanged file leaves no diff


def test_out_of_memory_is_marked_at_the_limit(tmp_path: Path) -> None:
    figure = plots.figures(results(record(tmp_path, curve_rows())))[f"memory-n-cpu-{ISA}-float32"]
    (axes,) = figure.axes
    crosses = [tuple(float(v[0]) for v in line.get_data()) for line in axes.lines if line.get_marker() == "X"]
    assert crosses == [(4096.0, 19200.0)]
    assert [text.get_text() for text in axes.texts] == ["out of memory"]
    assert "memory" in axes.get_ylabel()
    assert "MB" in axes.get_ylabel()


class Page(HTMLParser):
    """Tags that were opened and not closed, and every attribute that could load something."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open += [] if tag in VOID else [tag]
        self.loads += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_page_is_complete_and_self_contained(tmp_path: Path) -> None:
    rows = [*cpu_rows(), *curve_rows(), state(TRAIN, "cuVS", "missing: <no module>")]
    text = report.write_report(record(tmp_path, rows)).read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    assert len(page.loads) == 5
    for source in page.loads:
        prefix, _, data = source.partition("base64,")
        assert prefix == "data:image/png;"
        Image.open(io.BytesIO(base64.b64decode(data))).verify()
    assert not re.search(r"https?:|url\(|@import|<script|<link", text)
    assert "the published code takes 9.0x our time over 1 case." in text
    assert "missing: &lt;no module&gt;" in text


def test_wrong_answers_of_ours_open_the_page(tmp_path: Path) -> None:
    record(tmp_path, [*cpu_rows(), state(HALF, "ldreg cpu", "wrong: recall 0.9")])
    assert "WRONG OR FAILED: ldreg cpu at (4096, 4096, 2048, 64) bfloat16" in report.outcome(report.read(tmp_path))


def test_a_faster_rival_is_named(tmp_path: Path) -> None:
    record(tmp_path, cpu_rows(faiss=0.9))
    expected = (
        "NOT the fastest everywhere: the best rival takes 0.90x our time, faiss at (4096, 4096, 2048, 64) float32"
    )
    assert expected in report.outcome(report.read(tmp_path))


def test_no_measurements_say_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"measurements\.csv holds no measurements: run `ldreg bench` first"):
        report.write_report(tmp_path)
    record(tmp_path, [])
    with pytest.raises(ValueError, match="holds no measurements"):
        report.write_report(tmp_path)
    assert report.save_plots(tmp_path) == []


# ------------------------------------------------------------------------------------------------- the README


def marked(*names: str) -> str:
    return "".join(f"text before\r\n<!-- bench:{name} -->\nold\n<!-- /bench:{name} -->\n" for name in names) + "end"


def test_readme_changes_between_markers_only(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_bytes(marked("headline-cpu", "headline-cuda", "memory-cpu").encode())
    record(tmp_path, cpu_rows())
    assert report.update_readme(readme, tmp_path)
    marker = re.compile(r"(<!-- bench:\S+ -->\n)(.*?)(\n<!-- /)", flags=re.DOTALL)
    text = readme.read_bytes().decode()
    first, second, third = (found[2] for found in marker.finditer(text))
    assert first.startswith("| (B, N, D, k) ")
    assert (second, third) == ("Not measured on a GPU.", "Not measured.")
    assert marker.sub(r"\1old\3", text) == marked("headline-cpu", "headline-cuda", "memory-cpu")
    assert not report.update_readme(readme, tmp_path)  # the second time nothing is left to do


def test_every_documented_table_has_a_name(tmp_path: Path) -> None:
    kinds = ("headline", "memory", "roofline", "errors", "train-step", "rivals", "grid", "host", "contrastive")
    names = {"goals", *(f"{kind}-{device}" for kind in kinds for device in ("cpu", "cuda"))}
    found = report.readme_tables(report.read(record(tmp_path, cpu_rows())))
    assert set(found) == names
    for table in (table for make in found.values() for table in make()):
        lines = [line for line in report.to_markdown(table).splitlines() if line.startswith("|")]
        assert len({len(line) for line in lines}) == 1  # columns line up


def test_readme_has_a_table_of_every_instruction_set(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("<!-- bench:headline-cpu -->\n<!-- /bench:headline-cpu -->")
    record(tmp_path, cpu_rows(published=5.0), run(hardware="Old CPU, 2 threads, avx2"))
    report.update_readme(readme, record(tmp_path, cpu_rows()))
    first, second = readme.read_text().split("**Time per call, CPU with avx2**")
    assert "**Time per call, CPU with avx512bf16**" in first
    assert ("9.0x" in first, "9.0x" in second) == (True, False)
    assert ("Some CPU, 2 threads, avx512bf16" in first, "Old CPU, 2 threads, avx2" in second) == (True, True)
    titles = re.findall(r"<h2>(Time per call, [^<]*)</h2>", report.write_report(tmp_path).read_text(encoding="utf-8"))
    assert titles == ["Time per call, CPU with avx512bf16", "Time per call, CPU with avx2"]
    named = {name for results in report.read(tmp_path) for name in plots.figures(results)}
    assert {"speed-up-cpu-avx2-float32", "speed-up-cpu-avx512bf16-float32"} <= named


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- bench:speed -->\n<!-- /bench:speed -->", "unknown table 'speed'"),
        ("<!-- bench:goals -->", "bench:goals is not closed"),
        ("<!-- /bench:goals -->", r"<!-- /bench:goals --> has no partner"),
        ("<!-- bench:goals --><!-- bench:goals --><!-- /bench:goals -->", "stands inside goals"),
        ("<!-- bench:goals --><!-- /bench:headline-cpu -->", r"/bench:headline-cpu --> has no partner"),
    ],
)
def test_bad_markers_are_named_and_nothing_is_written(tmp_path: Path, text: str, message: str) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(text)
    with pytest.raises(ValueError, match=message):
        report.update_readme(readme, record(tmp_path, cpu_rows()))
    assert readme.read_text() == text


def test_the_readme_shows_what_is_recorded(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_bytes((ROOT / "README.md").read_bytes())
    assert not report.update_readme(readme, RESULTS), "run `ldreg bench --report`"
