"""benchmarks/train_step.py: the rows it gives, the answers it refuses, the budget it keeps. Networks cut down to run in
milliseconds.
"""

import itertools
import statistics
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("transformers", reason="the networks come from transformers: install the extra [train]")

from benchmarks import simclr_step, train_step
from benchmarks.gate import WrongAnswerError
from benchmarks.simclr_step import NETWORKS, StepCase, TrainStep, step_cases
from benchmarks.train_step import VARIANTS, check, measure_step

CPU = torch.device("cpu")
SMALL = {
    "resnet50": {"depths": [1, 1, 1, 1], "embedding_size": 8, "hidden_sizes": [8, 16, 32, 64]},
    "vit-b": {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 96},
}
CASES = [StepCase(network, 40, 32, k=16, overrides=SMALL[network]) for network in NETWORKS]
CASE = CASES[0]


@pytest.fixture(params=CASES, ids=NETWORKS)
def case(request):
    return request.param


def by_key(rows):
    found = {(row.backend, row.statistic): row for row in rows}
    assert len(found) == len(rows)
    return found


# ---------------------------------------------------------------- rows


def test_every_variant_gives_its_rows(case):
    rows = by_key(measure_step(case, CPU, seconds=0.0))

    shared = {("naive", "share"), ("fused", "share"), ("none", "ratio"), ("naive", "ratio")}
    assert set(rows) == {(name, "time") for name in VARIANTS} | shared
    D = TrainStep(case, CPU).encoder.output_dim
    for row in rows.values():
        assert (row.suite, row.op, row.dtype) == ("train-step", "train_step", "float32")
        assert (row.B, row.N, row.D, row.k) == (80, 80, D, 16)
        assert row.mode == f"simclr {case.network} (cut down) 32px"
        assert row.repetitions == train_step.MIN_ROUNDS
        if row.statistic != "share":
            assert 0 < row.low <= row.value <= row.high
    assert all(0 < rows[name, "share"].value < 1 for name in ("naive", "fused"))
    assert {row.unit for row in rows.values()} == {"ms", "1"}
    assert "mle 512 ran with k = 78" in rows["naive", "time"].note


def test_share_and_ratio_are_those_of_the_samples(monkeypatch):
    samples = {
        "none": train_step.Samples(step=[4.0, 4.0, 4.0]),
        "naive": train_step.Samples(step=[10.0, 20.0, 30.0], regulariser=[5.0, 5.0, 6.0]),
        "fused": train_step.Samples(step=[5.0, 5.0, 5.0], regulariser=[1.0, 2.0, 1.0]),
    }
    monkeypatch.setattr(train_step, "sample", lambda *_: (64, samples, ""))
    rows = by_key(measure_step(CASE, CPU, 0.0))
    assert rows["naive", "time"].value == 20.0
    assert rows["naive", "share"].value == 5.0 / 20.0
    assert rows["naive", "share"].note.startswith("5 ms alone")
    assert rows["fused", "share"].value == pytest.approx(0.2)
    assert rows["naive", "ratio"].value == statistics.median([2.0, 4.0, 6.0])
    assert rows["none", "ratio"].value == pytest.approx(0.8)


def test_a_machine_without_a_fused_backend_says_so_and_times_the_others(monkeypatch):
    reasons = {"cuda": "no", "triton": "no", "cpu": "not built", "reference": None}
    monkeypatch.setattr(train_step.ldk, "backends", lambda: reasons)
    rows = by_key(measure_step(CASE, CPU, 0.0))
    assert set(rows) == {("none", "time"), ("naive", "time"), ("naive", "share"), ("fused", "state")}
    assert rows["fused", "state"].note == "no fused backend: cpu: not built"
    assert rows["fused", "state"].value is None


def test_a_gpu_needs_cuda_or_triton(monkeypatch):
    monkeypatch.setattr(train_step.ldk, "backends", lambda: {"cuda": "a", "triton": "b", "cpu": None})
    assert train_step.fused_reason(torch.device("cuda")) == "cuda: a; triton: b"
    monkeypatch.setattr(train_step.ldk, "backends", lambda: {"cuda": "a", "triton": None, "cpu": None})
    assert train_step.fused_reason(torch.device("cuda")) is None


def test_memory_that_runs_out_is_a_row_for_every_variant(monkeypatch):
    def sample(*_):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(train_step, "sample", sample)
    rows = by_key(measure_step(CASE, CPU, 0.0))
    assert set(rows) == {(name, "state") for name in VARIANTS}


# ---------------------------------------------------------------- budget


@pytest.mark.parametrize(("seconds", "rounds"), [(0, 2), (36, 2), (56, 3), (57, 4)])
def test_rounds_stop_when_the_budget_is_spent(monkeypatch, seconds, rounds):
    # A second passes at every look at the clock: two looks for each of 3 steps and 2 x 3 calls alone, so 18 s
    # a round, and one more before each that the budget decides on: at 37, 56, 75 s.
    ticks = itertools.count()
    monkeypatch.setattr(train_step, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    rows = measure_step(CASE, CPU, seconds)
    assert {row.repetitions for row in rows} == {rounds}


# ---------------------------------------------------------------- gate


def wrong_value(value, logged):
    return value * 1.001, logged


def wrong_gradient(value, logged):
    return value.detach() + 1.001 * (value - value.detach()), logged


def wrong_logged(value, logged):
    return value, [logged[0], logged[1] * 1.001]


def not_a_number(value, logged):
    return value * float("nan"), logged


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (wrong_value, "fused: R off"),
        (not_a_number, "fused: R off"),
        (wrong_gradient, "fused: the gradient off"),
        (wrong_logged, "the LIDs"),
    ],
)
def test_a_wrong_fused_answer_is_not_timed(monkeypatch, spoil, message):
    right = train_step.fused

    monkeypatch.setattr(train_step, "fused", lambda *arguments: spoil(*right(*arguments)))
    with pytest.raises(WrongAnswerError, match=message):
        measure_step(CASE, CPU, 0.0)


def test_a_naive_form_that_computes_something_else_is_not_timed(monkeypatch):
    right = train_step.naive
    monkeypatch.setattr(train_step, "naive", lambda f, k, track: right(f, k + 1, track))
    rows = by_key(measure_step(CASE, CPU, 0.0))
    assert rows["naive", "state"].note.startswith("wrong: R off by")  # which is not our failure
    assert ("naive", "time") not in rows
    assert ("fused", "time") in rows


def test_bfloat16_features_pass_the_gate():
    features = TrainStep(CASE, CPU).run(0, None).bfloat16()  # what a GPU's autocast hands over
    check(features, CASE, CPU)


# ---------------------------------------------------------------- the step


def test_every_step_begins_from_the_same_weights(case):
    step = TrainStep(case, CPU)
    before = [p.detach().clone() for p in step.encoder.parameters()]
    first = step.run(0, None)
    for regulariser in train_step.regularisers(CPU).values():
        step.run(1, regulariser)
    assert all(torch.equal(a, b) for a, b in zip(before, step.encoder.parameters(), strict=True))
    assert torch.equal(first, step.run(simclr_step.BUFFERS, None))  # images rotate over so many batches
    assert not torch.equal(first, step.run(1, None))


def test_the_regulariser_reaches_the_weights():
    def gradients(regulariser):
        step = TrainStep(CASE, CPU)
        step.optimiser.zero_grad = lambda set_to_none: None
        step.run(0, regulariser)
        return torch.cat([p.grad.flatten() for p in step.encoder.parameters()])

    plain, naive, fused = (gradients(train_step.regularisers(CPU)[name]) for name in VARIANTS)
    added = fused - plain
    assert added.norm() > 1e-3 * plain.norm()
    # Both terms went through the network in float32, in which the difference of two such gradients has few digits.
    assert (fused - naive).norm() < 1e-2 * added.norm()


def test_projector_is_the_trainers():
    heads = pytest.importorskip(
        "ldreg_kernels.trainer.networks.heads", reason="the trainer needs the whole extra [train]", exc_type=ImportError
    )
    ours, theirs = simclr_step.projector(6, 5, 4), heads.simclr_projector(6, 5, 4)
    assert str(ours) == str(theirs)
    assert [p.requires_grad for p in ours.parameters()] == [p.requires_grad for p in theirs.parameters()]
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(8, 6)
    assert torch.equal(ours(x), theirs(x))


# ---------------------------------------------------------------- cases


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_both_networks_are_timed_on_every_device(device):
    assert {case.network for case in step_cases(device)} == set(NETWORKS)
    assert step_cases(device, quick=True)


def test_logged_neighbours_are_cut_only_where_the_batch_is_too_small():
    assert StepCase("resnet50", 257, 32).track == (("mle", 32), ("mle", 512))
    assert StepCase("resnet50", 257, 32).note == ""
    assert StepCase("resnet50", 256, 32).track == (("mle", 32), ("mle", 510))
    assert StepCase("resnet50", 256, 32).note == "only 512 rows: mle 512 ran with k = 510"


def test_bad_cases_are_refused():
    with pytest.raises(ValueError, match=r"network must be one of resnet50, vit-b, got 'vgg'"):
        replace(CASE, network="vgg")
    with pytest.raises(ValueError, match=r"k must be in \[2, 2 \* images - 2 = 78\], got 79"):
        replace(CASE, k=79)
    with pytest.raises(ValueError, match="device must be cpu or cuda, got 'tpu'"):
        step_cases("tpu")
