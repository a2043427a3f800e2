"""benchmarks/{harness,worker,session,records}.py: turns, processes, memory, rows, and what leaves no value."""

import json
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks import records, worker
from benchmarks.cases import Case
from benchmarks.contenders import Answer, Contender, named
from benchmarks.harness import OutOfMemoryError, Trial, kernel_names, peak_resident_memory
from benchmarks.isa import instruction_sets
from benchmarks.records import FILE_NAME, RecordFile, Row, Run
from benchmarks.searches import UnavailableError
from benchmarks.session import Entrant, Options, Session
from benchmarks.worker import NoMeasurementError, Worker

CPU = torch.device("cpu")
CASE = Case(200, 200, 16, 8)
OPTIONS = Options("cpu", 1, rounds=2, patience=1.0, limit=10.0)


def contender(call, **more):
    return Contender("a test's", lambda case: call, checked=False, **more)


# ---------------------------------------------------------------- one process


def test_a_trial_times_and_rotates_its_inputs():
    seen = []
    trial = Trial(contender(lambda x, y: seen.append(float(x[0, 0])) or Answer()), CASE, CPU)
    seen.clear()
    times = trial.milliseconds(4)
    assert len(times) == 4
    assert min(times) > 0
    assert seen[0] != seen[1]
    assert seen[:2] == seen[2:]
    assert (trial.peak_memory(), trial.kernels()) == (None, None)  # the CPU has neither
    trial.close()


def test_a_pilot_gives_up_before_it_takes_forever():
    def slow(x, y):
        time.sleep(0.002 * len(x))
        return Answer()

    Trial(contender(slow, pilot=True), CASE, CPU, limit=10.0).close()
    with pytest.raises(UnavailableError, match=r"over the limit of 0.1 s: 0.0\d+ s for 6 of 200 queries"):
        Trial(contender(slow, pilot=True), CASE, CPU, limit=0.1)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_running_out_of_memory_is_told_from_other_errors(error):
    def fail(x, y, error=error):
        raise error

    def break_(x, y):
        raise RuntimeError("shape mismatch")

    with pytest.raises(OutOfMemoryError, match="out of memory"):
        Trial(contender(fail), CASE, CPU)
    with pytest.raises(RuntimeError, match="shape mismatch"):
        Trial(contender(break_), CASE, CPU)


def test_peak_memory_is_what_a_call_holds_at_once():
    def allocate(x, y):
        blocks = [torch.ones(2**23) for _ in range(2 if len(x) == 200 else 0)]  # 2 x 33.6 MB
        del blocks
        return Answer()

    assert peak_resident_memory(contender(allocate), CASE) == pytest.approx(67.1, abs=8)


def test_kernels_are_told_from_copies_and_annotations():
    def event(name, device="DeviceType.CUDA", annotation=False):
        return SimpleNamespace(name=name, device_type=device, is_user_annotation=annotation)

    events = [
        event("ldreg_search"),
        event("Memcpy DtoD"),
        event("Memset (Device)"),
        event("Torch-Compiled Region", annotation=True),
        event("aten::mm", device="DeviceType.CPU"),
        event("gemm_kernel"),
    ]
    assert kernel_names(events) == ["ldreg_search", "gemm_kernel"]


# ---------------------------------------------------------------- processes


@pytest.fixture
def start():
    started = []

    def make(name, **more):
        started.append(Worker(name, "cpu", 1, **more))
        return started[-1]

    yield make
    for each in started:
        each.stop()


def test_a_worker_prepares_times_and_releases(start):
    ours = start("ldreg cpu")
    found = ours.prepare(CASE, limit=10)
    assert set(found) == {"lid error", "gradient error", "expected"}
    assert len(ours.milliseconds(3, limit=10)) == 3
    assert (ours.peak_memory(), ours.kernels()) == (None, None)
    ours.release()
    ours.prepare(replace(CASE, mode="forward"), limit=10)  # the same process goes on
    with pytest.raises(NoMeasurementError, match="failed: AttributeError") as failed:
        ours._ask(10, do="nonsense")
    assert "Traceback" in failed.value.details


def test_a_worker_does_not_outlive_the_run(start):
    ours = start("torch.mm")
    ours.prepare(CASE, limit=10)
    ours.deadline = time.monotonic() + 0.05
    with pytest.raises(NoMeasurementError, match="not reached: the run's time was over"):
        ours.prepare(Case(8192, 8192, 2048, 8), limit=10)
    with pytest.raises(NoMeasurementError, match="not reached"):
        ours.prepare(CASE, limit=10)


@pytest.mark.skipif(find_spec("cuvs") is not None, reason="cuVS is installed here")
def test_a_worker_says_what_is_missing(start):
    with pytest.raises(NoMeasurementError, match="missing: No module named 'cuvs'"):
        start("cuVS").prepare(CASE, limit=10)


def test_a_worker_that_does_not_answer_is_stopped(start, monkeypatch):
    ours = start("torch.mm")
    ours.prepare(CASE, limit=10)
    monkeypatch.setattr(worker, "START_SECONDS", 0.1)
    with pytest.raises(NoMeasurementError, match="no answer within 0 s"):
        ours.prepare(Case(8192, 8192, 2048, 8), limit=0.01)
    monkeypatch.undo()
    assert ours.prepare(CASE, limit=10)["expected"] > 0  # a new process


def test_a_worker_that_dies_says_how(start):
    with pytest.raises(NoMeasurementError, match="failed: the process ended with code 1") as failed:
        start("no such contender").prepare(CASE, limit=10)
    assert "contender must be one of" in failed.value.details


def test_a_worker_keeps_to_its_memory(start):
    case = Case(8192, 8192, 16, 8)  # the published form wants 1.3 GB beyond its inputs
    with pytest.raises(NoMeasurementError, match="out of memory"):
        start("published", memory_limit=1_300_000_000).resident_memory(case, limit=60)


# ---------------------------------------------------------------- a run


@pytest.fixture
def session(tmp_path):
    names = ("ldreg cpu", "cdist + topk", "cuVS", "torch.mm")
    said = []
    file = RecordFile(tmp_path / FILE_NAME)
    with Session({"": Run.start("cpu", 1)}, file, OPTIONS, [named(name) for name in names], said.append) as found:
        found.said = said
        yield found


def by_key(rows):
    found = {(row.suite, row.backend, row.statistic): row for row in rows}
    assert len(found) == len(rows)
    return found


def test_a_run_leaves_every_row(session):
    session.rates = None
    session.measure("headline", [CASE])
    session.measure("k", [CASE])
    rows = by_key([record.row for record in session.file.read()])

    timed = {"ldreg cpu", "cdist + topk", "torch.mm"}
    assert {b for s, b, t in rows if (s, t) == ("headline", "time")} == timed
    assert {b for s, b, t in rows if (s, t) == ("headline", "ratio")} == timed - {"ldreg cpu"}
    assert rows["headline", "cuVS", "state"].note.startswith("missing")
    assert rows["headline", "ldreg cpu", "gradient error"].value < 1e-5
    for suite, _, statistic in rows:
        row = rows[suite, _, statistic]
        assert (row.B, row.N, row.D, row.k, row.dtype, row.mode, row.op) == (
            200, 200, 16, 8, "float32", "gradient", "ldreg_loss",
        )  # fmt: skip
        if statistic in ("time", "ratio"):
            assert 0 < row.low <= row.value <= row.high
            assert row.repetitions >= OPTIONS.rounds
    # A case of two suites is measured once.
    assert "  as above" in session.said
    assert rows["k", "ldreg cpu", "time"].value == rows["headline", "ldreg cpu", "time"].value
    assert not session.wrong


def test_in_the_grid_only_rivals_take_part(session):
    rival = Entrant(named("mm + topk + bag fp32"))
    session.entrants.append(rival)
    session.workers[rival] = session._worker(rival)
    session.measure("grid", [CASE])
    rows = by_key([record.row for record in session.file.read()])
    assert {backend for _, backend, statistic in rows if statistic == "time"} == {"ldreg cpu", "mm + topk + bag fp32"}
    assert rows["grid", "mm + topk + bag fp32", "ratio"].value > 0


def test_floors_follow_from_the_rates(session):
    session.measure_rates()
    session.measure("headline", [CASE])
    rows = by_key([record.row for record in session.file.read()])
    rates = {backend: row.value for (suite, backend, _), row in rows.items() if suite == "rates"}
    assert set(rates) == {"torch.mm float32", "torch.mm bfloat16", "copy"}
    fastest = max(rates["torch.mm float32"], rates["torch.mm bfloat16"])
    gemm, gather = (rows["headline", "roofline", f"{name} floor"].value for name in ("gemm", "gather"))
    assert gemm == pytest.approx(1e3 * 2 * 200 * 200 * 16 / (fastest * 1e9), rel=1e-4)
    assert gather == pytest.approx(1e3 * 200 * 8 * 16 * 4 / (rates["copy"] * 1e9), rel=1e-4)
    ours = rows["headline", "ldreg cpu", "time"].value
    assert rows["headline", "ldreg cpu", "of the floor"].value == pytest.approx(ours / (gemm + gather), rel=1e-4)


def test_memory_is_measured_by_everybody_who_has_an_answer(session):
    session.measure_memory("memory", [CASE])
    rows = by_key([record.row for record in session.file.read()])
    assert {key for key in rows if key[2] == "peak memory"} == {
        ("memory", name, "peak memory") for name in ("ldreg cpu", "cdist + topk")
    }


def test_what_time_does_not_allow_is_named(session):
    session.options = replace(OPTIONS, seconds=0.0)
    session.measure("headline", [CASE])
    session.measure_train_steps("train-step", [])
    assert session.not_reached == [f"headline {CASE}"]
    assert [record.row.note for record in session.file.read()] == ["not reached"]


@pytest.mark.parametrize(
    "state", ["wrong: gradient off by 1e-1", "failed: RuntimeError: boom", "no answer within 60 s"]
)
def test_our_own_wrong_answer_fails_the_run_and_is_not_timed(session, monkeypatch, state):
    def refuse(case, limit):
        raise NoMeasurementError(state, "the traceback")

    monkeypatch.setattr(session.workers[Entrant(named("ldreg cpu"))], "prepare", refuse)
    session.measure("headline", [CASE])
    assert session.wrong == [f"ldreg cpu {CASE}: {state}"]
    assert "the traceback" in session.said
    rows = by_key([record.row for record in session.file.read()])
    assert rows["headline", "ldreg cpu", "state"].note == state
    assert ("headline", "ldreg cpu", "time") not in rows
    assert not [key for key in rows if key[2] == "ratio"]  # to what?


def test_every_instruction_set_has_its_run_and_the_others_are_measured_once(tmp_path):
    """Our rows belong to one run each; a library's time is the same in every run, its ratio is not."""
    isas = tuple(isa for isa in instruction_sets() if isa in ("avx2", "portable"))
    runs = {isa: Run.start("cpu", 1, isa) for isa in isas}
    file = RecordFile(tmp_path / FILE_NAME)
    with Session(runs, file, OPTIONS, [named("ldreg cpu"), named("torch.mm")], lambda _: None) as session:
        session.measure("headline", [Case(400, 400, 512, 8)])
        session.measure("k", [Case(400, 400, 512, 8)])
    found = {(r.run.isa, r.row.suite, r.row.backend, r.row.statistic): r.row.value for r in file.read()}
    for isa in isas:
        for suite in ("headline", "k"):
            ours, theirs = (found[isa, suite, name, "time"] for name in ("ldreg cpu", "torch.mm"))
            assert found[isa, suite, "torch.mm", "ratio"] == pytest.approx(theirs / ours, rel=0.5)
            assert (isa, suite, "ldreg cpu", "ratio") not in found
            assert theirs == found[isas[0], suite, "torch.mm", "time"]
    assert len({found[isa, "headline", "ldreg cpu", "time"] for isa in isas}) == len(isas)
    assert len({record.run.run for record in file.read()}) == len(isas)


def test_a_worker_computes_with_the_set_it_was_told(start):
    for isa in instruction_sets():
        told = start("ldreg cpu", isa=isa)
        told.prepare(CASE, limit=10)
        environ = Path(f"/proc/{told._process.pid}/environ").read_text().split("\0")
        assert f"LDREG_CPU_ISA={isa}" in environ


def test_training_steps_belong_to_the_set_of_this_process(tmp_path):
    said = []
    with Session({"mmx": Run.start("cpu", 1)}, RecordFile(tmp_path / FILE_NAME), OPTIONS, [], said.append) as session:
        session.measure_train_steps("train-step", [None])
    assert "left out, because it runs in this process" in said[0]


# ---------------------------------------------------------------- rows


def test_hardware_says_the_set_and_what_the_machine_has_beyond_it(monkeypatch):
    monkeypatch.setattr(records, "instruction_sets", lambda: ("avx512bf16", "avx2", "portable"))
    lesser = Run.start("cpu", 2, "avx2")
    assert lesser.hardware.endswith(" with avx512bf16, 2 threads, avx2")
    assert (lesser.isa, lesser.run[-9:]) == ("avx2", "-cpu-avx2")
    own = Run.start("cpu", 2, "avx512bf16")
    assert own.hardware.endswith(", 2 threads, avx512bf16")
    assert " with " not in own.hardware


def test_rows_come_back_as_they_went(tmp_path):
    file = RecordFile(tmp_path / "a" / FILE_NAME)
    run = Run.start("cpu", 2)
    rows = [
        Row("headline", "knn", "faiss", 1, 2, 3, 4, "float32", "forward", "time", "ms", 1.25, 1.0, 1.5, 7),
        Row("headline", "knn", "cuVS", 1, 2, 3, 4, "float32", "forward", "state", note='missing: "cuvs", it says'),
    ]
    file.append(run, rows[:1])
    file.append(run, rows[1:])  # at the end, under one header
    assert [(record.run, record.row) for record in file.read()] == [(run, row) for row in rows]
    assert json.dumps(run.__dict__)
    assert all((run.commit, run.hardware, run.versions))


def test_a_file_of_another_version_is_left_alone(tmp_path):
    path = tmp_path / FILE_NAME
    path.write_text("when,what\n1,2\n")
    with pytest.raises(ValueError, match="has columns when, what"):
        RecordFile(path).append(Run.start("cpu", 2), [])
    assert path.read_text() == "when,what\n1,2\n"
