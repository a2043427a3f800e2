"""benchmarks/{selection,tables,standings,goals}.py: one run at a time, every number from a row, verdicts from rows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from benchmark_rows import (
    HALF,
    ISA,
    NEW,
    OLD,
    cell,
    cpu_rows,
    curve_rows,
    record,
    results,
    row,
    run,
    state,
    timed,
    verdicts,
)

from benchmarks import goals, report, standings, tables
from benchmarks.cases import HUGE_BATCH, RIVALS, TRAIN, Case, suites
from benchmarks.contenders import named
from benchmarks.records import Row
from benchmarks.selection import INTELEX, LIBRARIES, Shape

CPU = f"CPU {ISA}"

# ------------------------------------------------------------------------------------------------- selection


def test_newest_run_wins_whatever_the_order_in_the_file(tmp_path: Path) -> None:
    record(tmp_path, timed(TRAIN, "ldreg cpu", 218.0))
    record(tmp_path, [*timed(TRAIN, "ldreg cpu", 999.0), *timed(TRAIN, "faiss", 1998.0, 2.0)], run(start=OLD))
    table = tables.headline(results(tmp_path))
    assert cell(table, 0, "ours, ms (p20-p80)") == "218 (196-240)"
    assert "faiss" not in table.header  # the older run's rows are not mixed in
    assert "abc1234, 2025-01-02; `ldreg bench --device cpu --isa avx512bf16 --suite headline`" in table.caption


def test_every_suite_and_device_has_its_own_newest_run(tmp_path: Path) -> None:
    record(tmp_path, [*timed(TRAIN, "ldreg cpu", 1.0), *timed(TRAIN, "ldreg cpu", 2.0, suite="n")], run(start=OLD))
    record(tmp_path, timed(TRAIN, "ldreg cpu", 3.0))
    record(tmp_path, timed(TRAIN, "ldreg cuda", 4.0), run("cuda", start=OLD, hardware="Some GPU"))
    assert {suite: made.run for suite, made in results(tmp_path).runs.items()} == {
        "headline": f"{NEW}-cpu",
        "n": f"{OLD}-cpu",
    }
    assert cell(tables.headline(results(tmp_path, "cuda")), 0, "ours, ms (p20-p80)").startswith("4.00 ")


def test_every_instruction_set_keeps_its_newest_run(tmp_path: Path) -> None:
    """A newer run of one set leaves those of the others as they are; they come out the widest first."""
    rows = {"avx2": 900.0, ISA: 218.0, "neon": 700.0, "portable": 990.0, "avx512": 400.0}
    for isa, time in rows.items():
        record(tmp_path, timed(TRAIN, "ldreg cpu", 999.0), run(start=OLD, hardware=f"Some CPU, 2 threads, {isa}"))
        record(tmp_path, timed(TRAIN, "ldreg cpu", time), run(hardware=f"Some CPU, 1 threads, {isa}"))
    later = run(start="20250103T000000", hardware=f"Other CPU with {ISA}, 2 threads, avx2")
    record(tmp_path, timed(TRAIN, "ldreg cpu", 800.0), later)
    found = report.read(tmp_path).cpu
    assert [each.isa for each in found] == [ISA, "avx512", "avx2", "portable", "neon"]
    times = [cell(tables.headline(each), 0, "ours, ms (p20-p80)").split()[0] for each in found]
    assert times == ["218", "400", "800", "990", "700"]
    assert report.read(tmp_path).on_cpu("mmx").runs == {}


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
    record(tmp_path, cpu_rows(published=9.9, product=1.9), run(start=OLD))
    two = [(CPU, "published code"), (CPU, "torch.mm alone")]
    assert {verdicts(tmp_path)[name] for name in two} == {"NOT met"}
    assert f"2 not met ({CPU} published code, {CPU} torch.mm alone)" in report.outcome(report.read(tmp_path))
    record(tmp_path, cpu_rows(published=10.0, product=2.0))
    assert {verdicts(tmp_path)[name] for name in two} == {"met"}
    assert verdicts(tmp_path)["GPU", "published code"] == "not measured"


def test_goals_on_a_cpu_stand_beside_each_other_by_instruction_set(tmp_path: Path) -> None:
    two = ["published code", "torch.mm alone"]
    record(tmp_path, cpu_rows(published=5.0, product=1.12), run(hardware="Old CPU, 2 threads, avx2"))
    record(tmp_path, cpu_rows(published=5.0, product=1.12), run(start=OLD))
    record(tmp_path, cpu_rows(), run(hardware="Any CPU, 2 threads, portable"))
    record(tmp_path, cpu_rows(), run(hardware="Wide CPU, 2 threads, avx512"))
    found = verdicts(tmp_path)
    assert [found["CPU avx2", name] for name in two] == ["met", "met"]
    assert [found[CPU, name] for name in two] == ["NOT met", "NOT met"]
    assert list(dict.fromkeys(where for where, _ in found)) == [CPU, "CPU avx512", "CPU avx2", "GPU"]
    assert {what for where, what in found if where == "CPU avx512"} == {
        "the other libraries",
        "scikit-learn-intelex",
        "fixed cost",
        "memory",
    }


@pytest.mark.parametrize(("factor", "verdict"), [(1.0, "met"), (0.99, "NOT met")], ids=["just reached", "just missed"])
def test_goals_of_avx2(tmp_path: Path, factor: float, verdict: str) -> None:
    rows = [
        *timed(TRAIN, "ldreg cpu", 700.0),
        row(TRAIN, "published", "ratio", 5 * factor),
        row(TRAIN, "torch.mm", "ratio", 1.112 * factor),
        *timed(HALF, "ldreg cpu", 700.0 / factor),
        row(Case(8192, 8192, 512, 64), "faiss", "ratio", 1.4 * factor),
        row(Case(2048, 65536, 256, 64), "faiss", "ratio", 1.5 * factor),
    ]
    record(tmp_path, rows, run(hardware="Some CPU, 2 threads, avx2"))
    judged = [line for line in goals.goals(report.read(tmp_path)).rows if line[0] == "CPU avx2"][:5]
    assert [line[1] for line in judged] == ["published code", "torch.mm alone", "faiss", "faiss", "bfloat16 features"]
    assert {line[-1] for line in judged} == {verdict}


def test_shapes_of_the_goals_are_measured() -> None:
    headline = set(suites("cpu")["headline"])
    shapes = {(shape, what) for made in goals.CPU_GOALS.values() for what, shape, *_ in made}
    assert {shape for shape, _ in shapes} <= {Shape(**case.to_dict()) for case in headline}
    assert HALF in headline
    small = {Case(64, 64, 128, 8), Case(256, 256, 512, 16), Case(4096, 4096, 16, 16)}
    assert small <= set(suites("cpu")["grid"])


def test_goals_on_a_gpu(tmp_path: Path) -> None:
    ours, gpu = "ldreg cuda", run("cuda", hardware="Some GPU")
    rows = [r for case in (TRAIN, HALF, HUGE_BATCH) for r in timed(case, ours, 1.0)]
    rows += [row(case, ours, "of the floor", 1.3) for case in (TRAIN, HALF, HUGE_BATCH)]
    rows += [row(case, ours, "own launches", 1.0) for case in (TRAIN, HALF)]
    rows += [row(TRAIN, "published", "ratio", 20.0), row(HALF, "mm + topk + bag bf16", "ratio", 1.9)]
    rows += [row(TRAIN, "ldreg triton", "of the floor", 1.7)]
    found = verdicts(record(tmp_path, rows, gpu))
    assert found["GPU", "published code"] == "met"
    assert found["GPU", "mm + topk + bag bf16"] == "NOT met"
    assert floors(tmp_path) == {"ldreg cuda": "met", "ldreg triton": "NOT met"}
    assert found["GPU", "launches of our kernels"] == "not measured"  # one case is open
    assert found["GPU", "memory of one GPU"] == "met"
    record(tmp_path, [row(HUGE_BATCH, ours, "own launches", 2.0), row(HALF, ours, "of the floor", 1.31)], gpu)
    assert verdicts(tmp_path)["GPU", "launches of our kernels"] == "NOT met"
    assert floors(tmp_path)["ldreg cuda"] == "NOT met"


def floors(folder: Path) -> dict[str, str]:
    """Verdicts of the goal against both floors, by backend."""
    rows = goals.goals(report.read(folder)).rows
    return {where.split(",")[0]: verdict for _, what, where, *_, verdict in rows if what == "both hardware floors"}


def grid_rows(
    losses: dict[Case, float], device: str = "cpu", leave_out: int = 0, intelex: dict[Case, float] | None = None
) -> list[Row]:
    """Every case of the grid, won by twice against faiss and thrice against the others, but for faiss's wins."""
    grid = suites(device)["grid"]
    others = [name for name in LIBRARIES if device in named(name).rival and name != "faiss"]
    return [
        made
        for case in grid[: len(grid) - leave_out]
        for made in (
            *timed(case, "ldreg cpu", 1.0, suite="grid"),
            *timed(case, "faiss", 2.0, losses.get(case, 2.0), suite="grid"),
            *(made for name in others for made in timed(case, name, 3.0, 3.0, suite="grid")),
            *(timed(case, INTELEX, 4.0, intelex.get(case, 4.0), suite="grid") if intelex is not None else ()),
            *timed(case, "published", 0.1, 0.1, suite="grid"),  # no rival: the grid does not count it
        )
    ]


def test_the_grid_counts_wins_and_lists_losses(tmp_path: Path) -> None:
    first, half = suites("cpu")["grid"][0], next(c for c in suites("cpu")["grid"] if c.dtype == "bfloat16")
    rows = grid_rows({first: 0.84, half: 0.4}, intelex={first: 0.5})
    table = standings.grid(results(record(tmp_path, rows)))
    there = f"({half.B}, {half.N}, {half.D}, {half.k}) bfloat16, loss + gradient"
    won = ("60 of 60", "3.0x", "(64, 64, 16, 8) float32, loss + gradient")
    assert table.rows == (
        ("the best of these", "58 of 60", "0.40x", there),
        ("mm + topk + bag fp32", *won),
        ("faiss", "58 of 60", "0.40x", there),
        ("scikit-learn", *won),
        ("usearch", *won),
        ("NumKong", *won),
        ("scikit-learn-intelex, counted by itself", "59 of 60", "0.50x", won[-1]),
    )
    assert table.notes[:2] == (
        f"Won 58 of 60 against the best other library; lost {there} 0.40x by faiss; (64, 64, 16, 8) 0.84x by faiss",
        "Won 59 of 60 against scikit-learn-intelex; lost (64, 64, 16, 8) 0.50x by scikit-learn-intelex",
    )
    assert table.title == f"A grid of training shapes, CPU with {ISA}"
    assert verdicts(tmp_path)[CPU, "the other libraries"] == "NOT met"
    assert verdicts(tmp_path)[CPU, INTELEX] == "met"


def test_the_grid_is_won_when_all_of_it_was_measured_and_no_case_is_lost(tmp_path: Path) -> None:
    record(tmp_path, grid_rows({suites("cpu")["grid"][0]: 1.0}))  # a tie is not slower
    assert verdicts(tmp_path)[CPU, "the other libraries"] == "met"
    left = run(start="20250103T000000")
    last = suites("cpu")["grid"][-1]
    record(tmp_path, [*grid_rows({}, leave_out=1), state(last, "-", "not reached", "grid")], left)
    assert verdicts(tmp_path)[CPU, "the other libraries"] == "not measured"
    assert standings.grid(results(tmp_path)).notes[1] == "Not reached or without another library: 1 cases"
    assert verdicts(tmp_path)["GPU", "an empty function"] == "not measured"


@pytest.mark.parametrize(("losses", "verdict"), [(5, "met"), (6, "NOT met")])
def test_intelex_may_win_five_cases_and_is_no_loss_to_the_others(tmp_path: Path, losses: int, verdict: str) -> None:
    record(tmp_path, grid_rows({}, intelex=dict.fromkeys(suites("cpu")["grid"][:losses], 0.7)))
    assert verdicts(tmp_path)[CPU, INTELEX] == verdict
    assert verdicts(tmp_path)[CPU, "the other libraries"] == "met"


def test_a_library_that_is_not_installed_leaves_its_goal_open(tmp_path: Path) -> None:
    grid = suites("cpu")["grid"]
    rows = [made for made in grid_rows({}) if made.backend != "usearch"]
    rows += [state(case, name, "missing: No module named it", "grid") for case in grid for name in ("usearch", INTELEX)]
    table = standings.grid(results(record(tmp_path, rows)))
    assert ("usearch", "not installed", "-", "-") in table.rows
    assert (INTELEX, "not installed", "-", "-") in table.rows
    found = {what: line for where, what, *line in goals.goals(report.read(tmp_path)).rows if where == CPU}
    assert found[INTELEX][-2:] == ["not installed", "not measured"]
    assert found["the other libraries"][-1] == "not measured"
    assert found["the other libraries"][-2].endswith("; usearch not installed")


def test_a_case_of_the_grid_without_an_answer_of_ours_is_lost(tmp_path: Path) -> None:
    case = Case(64, 64, 16, 8)
    rows = [state(case, "ldreg cpu", "wrong: recall 0.9", "grid"), *timed(case, "faiss", 2.0, suite="grid")]
    table = standings.grid(results(record(tmp_path, rows)))
    assert table.rows[0][:3] == ("the best of these", "0 of 1", "no answer of ours")
    assert verdicts(tmp_path)[CPU, "the other libraries"] == "NOT met"


def test_rivals_cite_what_was_published_as_theirs(tmp_path: Path) -> None:
    assert standings.rivals(results(tmp_path, "cuda")).rows == ()
    published = [case for case in RIVALS if case.mode == "forward" and case.D < 2048 and case.k >= 16]
    rows = [r for case in published for r in (*timed(case, "ldreg cuda", 2.0), *timed(case, "flashlib", 2.2, 1.1))]
    rows += timed(goals.TORCHID_CASE, "ldreg cuda", 28.4 / 5)
    rows = [replace(made, suite="rivals") for made in rows]
    table = standings.rivals(results(record(tmp_path, rows, run("cuda")), "cuda"))
    assert cell(table, 0, "flashlib") == "1.1x"
    assert "As published by their authors, on their machines and not measured here" in table.notes[-1]
    assert "torchid, H100 28.4 ms" in table.notes[-1]
    found = verdicts(tmp_path)
    assert found["GPU", "torchid's published 28.4 ms"] == found["GPU", "flashlib, beside it"] == "met"
    slower = [row(published[-1], "flashlib", "ratio", 0.99, "rivals"), *timed(goals.TORCHID_CASE, "ldreg cuda", 5.7)]
    record(tmp_path, [replace(made, suite="rivals") for made in slower], run("cuda"))
    found = verdicts(tmp_path)
    assert found["GPU", "torchid's published 28.4 ms"] == found["GPU", "flashlib, beside it"] == "NOT met"


def host_rows(**microseconds: float) -> list[Row]:
    case = Case(64, 64, 128, 8)
    names = {"cuda": "ldreg cuda", "triton": "ldreg triton", "cpu": "ldreg cpu", "empty": "empty function"}
    return [
        row(case, names[name], "time", time, "host", low=time - 1, high=time + 1, unit="us")
        for name, time in microseconds.items()
    ]


def test_host_times_are_judged_beyond_an_empty_function(tmp_path: Path) -> None:
    def host(folder: Path) -> dict[str, str]:
        rows = goals.goals(report.read(folder)).rows
        found = {what[-1]: verdict for _, against, *what, _, _, verdict in rows if against == "an empty function"}
        return found | {"cpu": verdicts(folder)[CPU, "fixed cost"]}

    record(tmp_path, host_rows(cuda=64.0, triton=101.0, cpu=150.0, empty=40.0))  # a stub in the kernel's place: no GPU
    triton, cuda = "host time, ldreg triton", "host time, ldreg cuda"
    assert host(tmp_path) == {cuda: "met", triton: "NOT met", "cpu": "met"}
    table = standings.host(results(tmp_path))
    assert [line[2:] for line in table.rows] == [
        ("ldreg cuda", "64.0 (63.0-65.0)", "24.0"),
        ("ldreg triton", "101 (100-102)", "61.0"),
        ("ldreg cpu", "150 (149-151)", "110"),
        ("empty function", "40.0 (39.0-41.0)", "-"),
    ]
    assert table.caption.endswith("`python -m benchmarks.host`.")
    record(tmp_path, host_rows(cuda=70.0, triton=90.0, empty=40.0), run("cuda", hardware="Some GPU"))
    assert host(tmp_path) == {cuda: "NOT met", triton: "met", "cpu": "met"}


def test_memory_goal_allows_outputs_and_a_fixed_workspace(tmp_path: Path) -> None:
    case = Case(16384, 16384, 512, 64)
    allowed = goals.allowed_mb(Shape(**case.to_dict()))
    assert allowed == pytest.approx((16384 * (512 * 4 + 64 * 16) + 2 * 16384 * 16) / 1e6 + 64)
    record(tmp_path, [row(case, "ldreg cpu", "peak memory", 0.99 * allowed, "memory")])
    assert verdicts(tmp_path)[CPU, "memory"] == "met"
    record(tmp_path, [row(case, "ldreg cpu", "peak memory", 1.01 * allowed, "memory")])
    assert verdicts(tmp_path)[CPU, "memory"] == "NOT met"
