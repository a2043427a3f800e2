"""Tables, verdicts, plots, page and README markers, from rows that were made up."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from benchmarks import goals, plots, report, tables
from benchmarks.cases import HUGE_BATCH, TRAIN, Case
from benchmarks.records import FILE_NAME, RESULTS, ROOT, RecordFile, Row, Run
from benchmarks.selection import Results, Shape
from benchmarks.tables import Table

NEW, OLD = "20250102T000000", "20250101T000000"
SEARCH = replace(TRAIN, mode="forward")
HALF = replace(TRAIN, dtype="bfloat16")
VOID = {"br", "img", "meta"}


def run(device: str = "cpu", start: str = NEW, hardware: str = "Some CPU, 2 threads, avx512bf16") -> Run:
    return Run(f"{start}-{device}", "2025-01-02", "abc1234", device, hardware, "python 3.11.7; torch 2.13.0")


def row(case: Case, backend: str, statistic: str, value: float | None = None, suite: str = "headline", **more) -> Row:
    return Row(suite, case.op, backend, **case.to_dict(), statistic=statistic, value=value, **more)


def timed(case: Case, backend: str, time: float, ratio: float | None = None, suite: str = "headline") -> list[Row]:
    rows = [row(case, backend, "time", time, suite, low=0.9 * time, high=1.1 * time)]
    return rows if ratio is None else [*rows, row(case, backend, "ratio", ratio, suite)]


def state(case: Case, backend: str, note: str, suite: str = "headline") -> Row:
    return row(case, backend, "state", suite=suite, note=note)


def cpu_rows(published: float = 9.0, product: float = 2.0, faiss: float = 3.0) -> list[Row]:
    """A headline with both CPU cases that goals are about; ratios are times over ours."""
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


def results(folder: Path, device: str = "cpu") -> Results:
    return report.read(folder)[device]


def verdicts(folder: Path) -> dict[tuple[str, str], str]:
    return {(where, against): verdict for where, against, *_, verdict in goals.goals(report.read(folder)).rows}


def cell(table: Table, line: int, column: str) -> str:
    return table.rows[line][table.header.index(column)]


# ------------------------------------------------------------------------------------------------- selection


def test_newest_run_wins_whatever_the_order_in_the_file(tmp_path: Path) -> None:
    record(tmp_path, timed(TRAIN, "ldreg cpu", 218.0))
    record(tmp_path, [*timed(TRAIN, "ldreg cpu", 999.0), *timed(TRAIN, "faiss", 1998.0, 2.0)], run(start=OLD))
    table = tables.headline(results(tmp_path))
    assert cell(table, 0, "ours, ms (p20-p80)") == "218 (196-240)"
    assert "faiss" not in table.header  # the older run's rows are not mixed in
    assert "abc1234, 2025-01-02; `ldreg bench --device cpu --suite headline`" in table.caption


def test_every_suite_and_device_has_its_own_newest_run(tmp_path: Path) -> None:
    record(tmp_path, [*timed(TRAIN, "ldreg cpu", 1.0), *timed(TRAIN, "ldreg cpu", 2.0, suite="n")], run(start=OLD))
    record(tmp_path, timed(TRAIN, "ldreg cpu", 3.0))
    record(tmp_path, timed(TRAIN, "ldreg cuda", 4.0), run("cuda", start=OLD, hardware="Some GPU"))
    assert {suite: made.run for suite, made in results(tmp_path).runs.items()} == {
        "headline": f"{NEW}-cpu",
        "n": f"{OLD}-cpu",
    }
    assert cell(tables.headline(results(tmp_path, "cuda")), 0, "ours, ms (p20-p80)").startswith("4.00 ")


# ------------------------------------------------------------------------------------------------- tables


def test_headline_shows_ratios_and_reasons(tmp_path: Path) -> None:
    rows = [
        *cpu_rows(),
        state(TRAIN, "KeOps", "over the limit of 10 s: 3.1 s for 256 of 4096 queries"),
        state(TRAIN, "published compiled", "out of memory at 19.2 GB"),
        state(TRAIN, "faiss", "wrong: recall 0.41"),
        state(TRAIN, "cuVS", "missing: No module named 'cuvs'"),
        state(HALF, "-", "not reached"),
    ]
    table = tables.headline(results(record(tmp_path, rows)))
    assert cell(table, 0, "published") == "9.0x"
    assert cell(table, 0, "torch.mm") == "0.50x its time"
    assert cell(table, 0, "KeOps") == "> 10 s"
    assert cell(table, 0, "published compiled") == "out of memory [1]"
    assert cell(table, 0, "faiss") == "wrong [2]"
    assert cell(table, 1, "faiss") == "3.0x"
    assert "cuVS" not in table.header
    assert table.notes == (
        "[1] out of memory at 19.2 GB",
        "[2] wrong: recall 0.41",
        "Without a column: cuVS (missing: No module named 'cuvs').",
        "Not reached: (4096, 4096, 2048, 64) bfloat16, loss + gradient.",
    )
    listed = {(who, why) for who, _, why in tables.not_measured(results(tmp_path)).rows}
    assert {("everybody", "not reached"), ("cuVS", "missing: No module named 'cuvs'")} <= listed


def test_readme_names_the_best_of_the_matrix_products(tmp_path: Path) -> None:
    rows = [
        *timed(TRAIN, "ldreg cpu", 218.0),
        *timed(TRAIN, "mm + topk + bag fp32", 872.0, 4.0),
        *timed(TRAIN, "mm + topk + bag bf16", 654.0, 3.0),
    ]
    table = tables.headline(results(record(tmp_path, rows)), short=True)
    assert table.header[3:] == (tables.BEST_PRODUCT,)
    assert cell(table, 0, tables.BEST_PRODUCT) == "3.0x (bf16)"


def test_ratios_refer_to_the_first_backend_of_ours_that_ran(tmp_path: Path) -> None:
    rows = [*timed(TRAIN, "ldreg triton", 3.0, 1.5), *timed(TRAIN, "ldreg cuda", 2.0)]
    table = tables.headline(results(record(tmp_path, rows, run("cuda")), "cuda"))
    assert cell(table, 0, "ours, ms (p20-p80)").startswith("2.00")
    assert cell(table, 0, "ldreg triton") == "1.5x"


def test_accuracy_is_the_worst_case_and_recall_is_not_rounded_up(tmp_path: Path) -> None:
    rows = [
        row(TRAIN, "published", "lid error", 3e-7),
        row(replace(TRAIN, k=32), "published", "lid error", 2e-3),
        row(TRAIN, "published", "recall", 0.99996),
    ]
    table = tables.accuracy(results(record(tmp_path, rows)))
    assert table.rows == (("published", "2.0e-03", "-", "0.9999"),)


def test_memory_and_train_step(tmp_path: Path) -> None:
    step = {"op": "train_step", "B": 512, "N": 512, "D": 2048, "k": 64, "dtype": "float32", "mode": "simclr resnet50"}
    steps = [
        Row("train-step", backend=backend, statistic=statistic, value=value, **step)
        for backend, statistic, value in (
            ("none", "time", 9000.0),
            ("naive", "time", 9400.0),
            ("naive", "share", 0.043),
            ("naive", "ratio", 1.04),
        )
    ]
    steps.append(Row("train-step", backend="fused", statistic="state", note="no fused backend: not built", **step))
    found = results(record(tmp_path, curve_rows() + steps))
    table = tables.memory(found, "memory")
    assert [cell(table, i, "published") for i in range(3)] == ["90.0", "360", "out of memory [1]"]
    assert cell(table, 0, "B x N in float32") == "4.2"
    table = tables.train_step(found)
    assert table.rows[0][:6] == ("simclr resnet50", "512 x 2048", "64", "float32", "9000", "9400 (4.3 %)")
    assert table.rows[0][6:8] == ("unavailable [1]", "1.04x")


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0581, "0.058"), (0.9965, "1.0"), (8.44, "8.4"), (9.96, "9.96"), (19.87, "19.9"), (1822.4, "1822")],
)
def test_numbers_have_two_or_three_digits(value: float, text: str) -> None:
    assert tables.number(value) == text


# ------------------------------------------------------------------------------------------------- goals


def test_goals_are_judged_by_the_rows(tmp_path: Path) -> None:
    record(tmp_path, cpu_rows(published=7.9, product=1.3, faiss=1.9), run(start=OLD))
    named = [("CPU", "published code"), ("CPU", "torch.mm alone"), ("CPU", "faiss")]
    assert {verdicts(tmp_path)[name] for name in named} == {"NOT met"}
    assert "3 not met (CPU published code, CPU torch.mm alone, CPU faiss)" in report.outcome(report.read(tmp_path))
    record(tmp_path, cpu_rows(published=8.0, product=1.43, faiss=2.0))
    assert {verdicts(tmp_path)[name] for name in named} == {"met"}
    assert verdicts(tmp_path)["GPU", "published code"] == "not measured"


def test_goal_against_the_product_depends_on_the_cpu(tmp_path: Path) -> None:
    record(tmp_path, cpu_rows(product=1 / 1.2), run(hardware="Old CPU, 2 threads, avx2"))
    assert verdicts(tmp_path)["CPU", "torch.mm alone"] == "met"
    record(tmp_path, cpu_rows(product=1 / 1.2), run(start="20250103T000000"))
    assert verdicts(tmp_path)["CPU", "torch.mm alone"] == "NOT met"


def test_goals_on_a_gpu(tmp_path: Path) -> None:
    ours, gpu = "ldreg cuda", run("cuda", hardware="Some GPU")
    rows = [r for case in (TRAIN, HALF, HUGE_BATCH) for r in timed(case, ours, 1.0)]
    rows += [row(case, ours, "of the floor", 1.4) for case in (TRAIN, HALF, HUGE_BATCH)]
    rows += [row(case, ours, "own launches", 1.0) for case in (TRAIN, HALF)]
    rows += [row(TRAIN, "published", "ratio", 20.0), row(HALF, "mm + topk + bag bf16", "ratio", 1.9)]
    found = verdicts(record(tmp_path, rows, gpu))
    assert found["GPU", "published code"] == "met"
    assert found["GPU", "mm + topk + bag bf16"] == "NOT met"
    assert found["GPU", "both hardware floors"] == "met"
    assert found["GPU", "launches of our kernels"] == "not measured"  # one case is open
    assert found["GPU", "memory of one GPU"] == "met"
    record(tmp_path, [row(HUGE_BATCH, ours, "own launches", 2.0), row(HALF, ours, "of the floor", 1.6)], gpu)
    found = verdicts(tmp_path)
    assert found["GPU", "launches of our kernels"] == found["GPU", "both hardware floors"] == "NOT met"


def test_memory_goal_allows_outputs_and_a_fixed_workspace(tmp_path: Path) -> None:
    case = Case(16384, 16384, 512, 64)
    allowed = goals.allowed_mb(Shape(**case.to_dict()))
    assert allowed == pytest.approx((16384 * (512 * 4 + 64 * 16) + 2 * 16384 * 16) / 1e6 + 64)
    record(tmp_path, [row(case, "ldreg cpu", "peak memory", 0.99 * allowed, "memory")])
    assert verdicts(tmp_path)["CPU", "memory"] == "met"
    record(tmp_path, [row(case, "ldreg cpu", "peak memory", 1.01 * allowed, "memory")])
    assert verdicts(tmp_path)["CPU", "memory"] == "NOT met"


# ------------------------------------------------------------------------------------------------- plots and page


def test_every_plot_is_a_png_and_is_drawn_only_from_rows(tmp_path: Path) -> None:
    paths = report.save_plots(record(tmp_path, cpu_rows() + curve_rows()))
    kinds = ("time-n", "time-k", "memory-n", "speed-up", "roofline")
    assert {path.name for path in paths} == {f"{kind}-cpu-float32.png" for kind in kinds}
    for path in paths:
        with Image.open(path) as image:
            image.verify()
            assert image.format == "PNG"
            assert image.width >= 600
    contents = [path.read_bytes() for path in paths]
    report.save_plots(tmp_path)
    assert [path.read_bytes() for path in paths] == contents  # an unchanged file leaves no diff


def test_out_of_memory_is_marked_at_the_limit(tmp_path: Path) -> None:
    figure = plots.figures(results(record(tmp_path, curve_rows())))["memory-n-cpu-float32"]
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
    kinds = ("headline", "memory", "roofline", "errors", "train-step")
    names = {"goals", *(f"{kind}-{device}" for kind in kinds for device in ("cpu", "cuda"))}
    found = report.readme_tables(report.read(record(tmp_path, cpu_rows())))
    assert set(found) == names
    for make in found.values():
        lines = [line for line in report.to_markdown(make()).splitlines() if line.startswith("|")]
        assert len({len(line) for line in lines}) <= 1  # columns line up


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
