"""benchmarks/contrastive.py: its truth against loops, what its gate refuses, its rows and its table. Tiny shapes."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from benchmark_rows import ISA, cell, record, results, run
from ntxent_loops import loop_loss, unit
from torch import Tensor

from benchmarks import contrastive, report, tables
from benchmarks.contrastive import INFO_NCE, NT_XENT, SIGMOID, Case, Contender, check, measure, nt_xent, step, truth
from benchmarks.gate import WrongAnswerError
from benchmarks.records import FILE_NAME, RecordFile, Row
from benchmarks.searches import UnavailableError

CPU = torch.device("cpu")
CASES = [nt_xent(12, P=5), Case(INFO_NCE, 6, 9, 5), Case(SIGMOID, 7, 7, 5)]
CASE = CASES[0]
METRIC = "pytorch-metric-learning"


def loops(case: Case, inputs: tuple[Tensor, ...]) -> Tensor:
    """The three losses written out, pair by pair, in float64."""
    if case.loss == NT_XENT:
        return loop_loss(*inputs, temperature=0.1)
    x, y, *queue = [[unit(row.double()) for row in z] for z in inputs]
    if case.loss == INFO_NCE:
        terms = []
        for q, k in zip(x, y, strict=True):
            logits = [(q * other).sum() / 0.2 for other in (k, *queue[0])]
            terms.append(sum(logit.exp() for logit in logits).log() - logits[0])
        return sum(terms) / len(x)
    signed = [(1 if i == j else -1) * (10 * (a * b).sum() - 10) for i, a in enumerate(x) for j, b in enumerate(y)]
    return sum((1 + (-s).exp()).log() for s in signed) / len(x)


def by_key(rows: list[Row]) -> dict[tuple[str, str], Row]:
    found = {(row.backend, row.statistic): row for row in rows}
    assert len(found) == len(rows)
    return found


# ------------------------------------------------------------------------------------------------- truth and gate


@pytest.mark.parametrize("case", CASES, ids=str)
def test_truth_equals_loops(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """In several blocks of rows; 1e-12 are sums of a few dozen float64 terms in another order."""
    monkeypatch.setattr(contrastive, "BLOCK", 4)
    inputs = case.inputs(CPU)
    value, gradients = truth(case, inputs)
    expected = loops(case, inputs)
    assert value.item() == pytest.approx(expected.item(), rel=1e-12)
    assert len(gradients) == (1 if case.loss == INFO_NCE else 2)
    by_loops = torch.autograd.grad(expected, [z for z in inputs if z.requires_grad])
    for ours, theirs in zip(gradients, by_loops, strict=True):
        torch.testing.assert_close(ours.float(), theirs, rtol=1e-6, atol=1e-7)  # they are returned in float32


@pytest.mark.parametrize("case", [*CASES, replace(CASE, dtype="bfloat16")], ids=str)
def test_eager_passes_the_gate(case: Case) -> None:
    inputs = case.inputs(CPU)
    check(case, step(contrastive._eager(case), inputs), truth(case, inputs))


@pytest.mark.parametrize("name", ["ldreg cpu", "lightly", *(f"{METRIC} {n}" for n in ("NTXentLoss", "SupConLoss"))])
def test_every_library_computes_this_loss(name: str) -> None:
    if not name.startswith("ldreg"):
        pytest.importorskip(name.split()[0].replace("-", "_"))
    case = nt_xent(64, P=16)
    inputs, before = case.inputs(CPU), set(sys.modules)
    check(case, step(contrastive._named(name, "cpu").build(case), inputs), truth(case, inputs))
    assert not {"lightly.loss", "lightly.models"} & (set(sys.modules) - before)  # no stub stays behind


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda value, gradients: (value * (1 + 1e-5), gradients), "loss error 1.0e-05, 1e-06 allowed"),
        (lambda value, gradients: (value, (gradients[0] * 1.01, gradients[1])), "gradient error .*, 1e-05 allowed"),
        (lambda value, gradients: (value * math.nan, gradients), "loss error nan"),
        (lambda value, gradients: (value, (gradients[0], gradients[1] * math.nan)), "gradient error nan"),
    ],
)
def test_a_wrong_answer_is_refused(spoil, message: str) -> None:
    true = truth(CASE, CASE.inputs(CPU))
    assert check(CASE, true, true) == {"loss error": 0.0, "gradient error": 0.0}
    with pytest.raises(WrongAnswerError, match=message):
        check(CASE, spoil(*true), true)


# ------------------------------------------------------------------------------------------------- rows


def fake(name: str, change: float = 1.0, error: Exception | None = None) -> Contender:
    """The eager loss times `change`."""

    def build(case: Case) -> contrastive.Call:
        if error is not None:
            raise error
        return lambda *inputs: change * contrastive._eager(case)(*inputs)

    return Contender(name, build, all_losses=True)


def test_rows_of_a_case_and_reasons_for_what_is_not_there() -> None:
    who = [
        fake("ldreg cpu"),
        fake("eager"),
        fake("wrong one", change=1.01),
        fake("absent", error=ImportError("No module named 'absent'")),
        fake("large", error=UnavailableError("out of memory: 34 GB")),
        Contender("torch.mm", contrastive._product),
    ]
    rows = by_key(measure(CASE, CPU, rounds=2, who=who))
    checked = {"loss error", "gradient error", "saved memory"}
    assert {key for key in rows if key[1] != "state"} == {
        *((name, what) for name in ("ldreg cpu", "eager") for what in checked),
        *((name, "time") for name in ("ldreg cpu", "eager", "torch.mm")),
        *((name, "ratio") for name in ("eager", "torch.mm")),
    }
    assert rows["wrong one", "state"].note.startswith("wrong: loss error 1.0e-02")  # and it has no time
    assert rows["absent", "state"].note == "missing: No module named 'absent'"
    assert rows["large", "state"].note == "out of memory: 34 GB"
    for row in rows.values():
        assert (row.suite, row.op, row.B, row.N, row.D, row.mode) == ("contrastive", "nt_xent_loss", 12, 12, 5, NT_XENT)
        if row.statistic in ("time", "ratio"):
            assert 0 < row.low <= row.value <= row.high
            assert row.repetitions >= 2


def test_patience_ends_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contrastive, "PATIENCE_MS", 0.0)
    monkeypatch.setattr(contrastive, "MOST_CALLS", 1)
    rows = by_key(measure(CASE, CPU, rounds=5, who=[fake("ldreg cpu"), fake("eager")]))
    assert rows["eager", "time"].repetitions == rows["eager", "ratio"].repetitions == contrastive.MIN_ROUNDS


@pytest.mark.parametrize("case", CASES[1:], ids=str)
def test_a_loss_that_is_not_there_is_named(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    name = contrastive.OPS[case.loss]
    monkeypatch.delattr(contrastive.losses, name, raising=False)
    rows = by_key(measure(case, CPU, rounds=2))
    assert rows["ldreg cpu", "state"].note == f"missing: ldreg_kernels.losses has no {name} yet"
    assert {backend for backend, statistic in rows if statistic == "time"} == {"eager", "torch.mm"}


def test_a_case_that_is_not_timed_has_a_reason_and_memory_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contrastive, "peak_megabytes", lambda *_: {"peak memory": 250.0, "peak resident": 480.0})
    rows = by_key(measure(replace(CASE, timed=False, memory=True), CPU, rounds=2))
    assert set(rows) == {("ldreg cpu", what) for what in ("state", "peak memory", "peak resident")}
    assert rows["ldreg cpu", "state"].note.startswith("not timed")


def test_saved_memory_counts_each_storage_once_and_no_input() -> None:
    x, weight = torch.randn(1000, requires_grad=True), torch.randn(1000)

    def call(z: Tensor) -> Tensor:
        y = z.exp()  # saves y
        return (y * weight + y.view(10, 100).square().flatten()).sum()  # weight, y again, and a view of y

    assert contrastive.saved_megabytes(call, [x]) == pytest.approx(8e-3)
    assert contrastive.saved_megabytes(lambda z, _: call(z), [x, weight]) == pytest.approx(4e-3)


# ------------------------------------------------------------------------------------------------- table and command


def test_table_has_ratios_memory_and_reasons(tmp_path: Path) -> None:
    small, large = nt_xent(8192), nt_xent(65536)
    rows = [
        replace(small.row("ldreg cpu", "time", "ms", 225.0), low=220.0, high=230.0),
        small.row("eager", "ratio", "1", 5.6),
        small.row("torch.mm", "ratio", "1", 0.64),
        small.row("metric", "state", note="out of memory: its mask alone has 2198 GB"),
        small.row("lightly", "state", note="missing: No module named 'lightly'"),
        *(small.row(name, "saved memory", "MB", mb) for name, mb in (("ldreg cpu", 8.6), ("eager", 344.0))),
        *(small.row(name, "peak memory", "MB", mb) for name, mb in (("ldreg cpu", 46.0), ("eager", 908.0))),
        large.row("ldreg cpu", "state", note="not timed: it would take minutes"),
        large.row("ldreg cpu", "peak memory", "MB", 252.0),
        large.row("ldreg cpu", "peak resident", "MB", 481.0),
    ]
    table = tables.contrastive(results(record(tmp_path, rows, run(hardware=f"Some CPU, 2 threads, {ISA}"))))
    assert table.header[4:7] == ("eager", "metric", "torch.mm")
    assert table.rows[0][:4] == (NT_XENT, "(8192, 8192, 128)", "float32", "225 (220-230)")
    assert cell(table, 0, "eager") == "5.6x"
    assert cell(table, 0, "torch.mm") == "1.6x its time"
    assert cell(table, 0, "metric").startswith("out of memory [")
    assert table.rows[0][-2:] == ("8.6 / 344 / -", "46.0 / 908 / -")
    assert cell(table, 1, "ours, ms (p20-p80)").startswith("not timed [")
    assert table.rows[1][-2:] == ("-", "252 / - / -")
    assert "Without a column: lightly (missing: No module named 'lightly')." in table.notes
    assert "With ours the whole process took 481 MB at 65536 rows" in table.notes
    assert table.caption.endswith("`python -m benchmarks.contrastive`.")
    readme = tmp_path / "README.md"
    readme.write_text("<!-- bench:contrastive-cuda -->\n<!-- /bench:contrastive-cuda -->")
    report.update_readme(readme, tmp_path)
    assert "Not measured on a GPU." in readme.read_text()


def test_command_measures_prints_and_appends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(contrastive, "QUICK", (CASE,))
    monkeypatch.setattr(contrastive, "contenders", lambda _: (fake("ldreg cpu", 1.01), fake("eager")))
    threads = str(torch.get_num_threads())
    assert contrastive.main(["--quick", "--rounds", "2", "--threads", threads, "--out", str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    assert "NT-Xent (12, 12, 5) float32" in printed
    assert "wrong: loss error 1.0e-02" in printed
    rows = [made.row for made in RecordFile(tmp_path / FILE_NAME).read()]
    assert {(row.backend, row.statistic) for row in rows} >= {("ldreg cpu", "state"), ("eager", "time")}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--record", "--quick"], "--record is for the complete suite"),
        (["--rounds", "1"], "--rounds must be at least 2, got 1"),
        (["--threads", "0"], "--threads must be at least 1, got 0"),
    ],
)
def test_bad_requests_are_refused(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        contrastive.main(arguments)
    assert message in capsys.readouterr().err
