"""benchmarks/{cases,contenders,searches,gate}.py: everybody computes the same thing, and the gate sees who does not."""

from dataclasses import replace

import pytest
import torch

import ldreg_kernels as ldk
from benchmarks.cases import MODES, Case, suites
from benchmarks.contenders import CONTENDERS, Answer, _gather_gradient, contenders, named
from benchmarks.gate import WrongAnswerError, check
from benchmarks.searches import UnavailableError, _without_self

CPU = torch.device("cpu")
SQUARE = Case(96, 96, 24, 10)  # sizes at which a bf16 product still finds the neighbours
LONG = Case(600, 600, 24, 10, "tracked")
SHAPES = {
    "y is x": [replace(SQUARE, mode="forward"), SQUARE, LONG],
    "more references": [Case(64, 96, 24, 10, "forward"), Case(64, 96, 24, 10)],
    "bfloat16": [Case(96, 96, 24, 10, dtype="bfloat16")],
}


def answer_of(contender, case):
    x, y = case.inputs(0, CPU)
    try:
        return x, y, contender.build(case)(x, y)
    except UnavailableError as state:
        pytest.skip(str(state))


# ---------------------------------------------------------------- cases


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"B": 0}, "B must be"),
        ({"B": 97}, "B must be"),
        ({"k": 1}, "k must be"),
        ({"k": 96}, "k must be"),
        ({"mode": "tracked"}, "k must be .* got 512"),
        ({"mode": "backward"}, "mode must be"),
        ({"dtype": "float8"}, "dtype must be"),
    ],
)
def test_a_case_that_cannot_be_is_refused(wrong, named):
    with pytest.raises(ValueError, match=named):
        replace(SQUARE, **wrong)


def test_inputs_are_those_of_the_case_and_of_the_seed():
    case = Case(5, 9, 4, 3, dtype="bfloat16")
    x, y = case.inputs(1, CPU)
    assert (x.shape, y.shape, x.dtype) == ((5, 4), (9, 4), torch.bfloat16)
    assert torch.equal(x, y[:5])
    assert torch.equal(x, case.inputs(1, CPU)[0])
    assert not torch.equal(x, case.inputs(2, CPU)[0])
    assert Case(9, 9, 4, 3).inputs(1, CPU)[1] is None


def test_suites_hold_the_shapes_of_the_goals():
    shapes = {(c.B, c.N, c.D, c.k) for c in suites("cuda")["headline"]}
    named_shapes = {(1024, 4096, 2048, 64), (4096, 4096, 2048, 64), (8192, 8192, 2048, 128), (32768, 32768, 768, 64)}
    assert shapes >= named_shapes | {(131072, 131072, 512, 64)}
    for device in ("cpu", "cuda"):
        assert {c.k for c in suites(device)["k"]} == {16, 32, 64, 128, 512}
        assert {c.mode for c in suites(device)["headline"]} == set(MODES)
    with pytest.raises(ValueError, match="device must be"):
        suites("tpu")


# ---------------------------------------------------------------- contenders


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("contender", contenders("cpu"), ids=lambda contender: contender.name)
def test_everybody_gives_the_answer(contender, shape):
    if contender.compiles and shape != "y is x":
        pytest.skip("compiling takes seconds; one shape is enough")
    for case in SHAPES[shape]:
        x, y, answer = answer_of(contender, case)
        if not contender.checked:
            continue
        if contender.name.endswith("bf16") and case.mode != "forward":
            with pytest.raises(WrongAnswerError, match="off by"):  # a bf16 product rounds distances away on a CPU
                check(case, x, y, answer, exact=False)
            continue
        errors = check(case, x, y, answer, exact=contender.ours)
        assert set(errors) == ({"recall"} if case.mode == "forward" else {"lid error", "gradient error"})


def test_names_are_unique_and_found():
    assert len({c.name for c in CONTENDERS}) == len(CONTENDERS)
    assert [c.name for c in CONTENDERS if c.ours] == ["ldreg cuda", "ldreg triton", "ldreg cpu"]
    assert named("faiss").name == "faiss"
    with pytest.raises(ValueError, match="contender must be one of"):
        named("annoy")


@pytest.mark.parametrize("name", ["cuVS", "faiss gpu"])
def test_a_missing_library_says_so(name, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, {"cuVS": "cuvs", "faiss gpu": "faiss"}[name], None)
    with pytest.raises(UnavailableError, match="missing"):
        named(name).build(SQUARE)


def test_the_gathered_gradient_is_that_of_autograd():
    x, y = torch.randn(7, 5, dtype=torch.float64).requires_grad_(), torch.randn(30, 5, dtype=torch.float64)
    d, idx = torch.cdist(x, y).sort(dim=1)
    d, idx = d[:, :6], idx[:, :6]
    m = d[:, :-1].mean(1)
    lid = m / (d[:, -1] - m)
    (truth,) = torch.autograd.grad(-lid.log().mean(), x)
    ours, gradient = _gather_gradient(x.detach(), y, d.detach(), idx)
    torch.testing.assert_close(ours, lid.detach())
    torch.testing.assert_close(gradient, truth)


def test_the_row_itself_leaves_the_list_and_else_the_last_one():
    indices = torch.tensor([[0, 2, 1], [2, 1, 0], [0, 1, 3]])  # found first, found second, not found
    d, idx = _without_self(torch.arange(9.0).view(3, 3), indices)
    assert idx.tolist() == [[2, 1], [2, 0], [0, 1]]
    assert d.tolist() == [[1, 2], [3, 5], [6, 7]]


# ---------------------------------------------------------------- the gate


@pytest.fixture
def searched():
    case = replace(SQUARE, mode="forward")
    x, y = case.inputs(0, CPU)
    found = ldk.knn(x, k=case.k, backend="reference")
    return case, x, y, found.distances.clone(), found.indices.clone()


def test_the_gate_passes_the_truth_and_refuses_what_is_near_it(searched):
    case, x, y, distances, indices = searched
    assert check(case, x, y, Answer(distances, indices), exact=True) == {"recall": 1.0}
    with pytest.raises(WrongAnswerError, match="distances off"):
        check(case, x, y, Answer(distances * (1 + 1e-5), indices), exact=True)
    check(case, x, y, Answer(distances * (1 + 1e-5), indices), exact=False)
    with pytest.raises(WrongAnswerError, match="distances off"):
        check(case, x, y, Answer(distances * torch.nan, indices), exact=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda idx: idx[:, [0, *range(9)]], "listed twice"),
        (lambda idx: torch.cat([torch.arange(96)[:, None], idx[:, 1:]], 1), "own neighbour"),
        (lambda idx: idx[:, 1:], "shape"),
    ],
)
def test_the_gate_refuses_lists_that_are_none(searched, change, message):
    case, x, y, distances, indices = searched
    indices = change(indices)
    with pytest.raises(WrongAnswerError, match=message):
        check(case, x, y, Answer(distances[:, : indices.shape[1]], indices), exact=False)


def test_the_gate_counts_neighbours_that_were_missed(searched):
    case, x, y, _, indices = searched
    farther = ldk.knn(x, k=40, backend="reference").indices[:, 30:]
    indices[:, 5:] = farther[:, 5:]
    distances = torch.stack([(x[idx] - row).norm(dim=1) for row, idx in zip(x, indices, strict=True)])
    with pytest.raises(WrongAnswerError, match=r"recall 0\.5"):
        check(case, x, y, Answer(distances, indices), exact=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lid": 1 + 1e-5}, "the contract allows|loss off"),
        ({"lid": 1.5}, "LID off"),
        ({"gradient": 1 + 1e-4}, "gradient off"),
        ({"gradient": torch.nan}, "gradient off"),
        ({"loss": 1 + 1e-3}, "loss off"),
    ],
)
def test_the_gate_refuses_a_wrong_loss(change, message):
    x, y = SQUARE.inputs(0, CPU)
    answer = named("ldreg cpu").build(SQUARE)(x, y)
    check(SQUARE, x, y, answer, exact=True)
    wrong = replace(answer, **{part: getattr(answer, part) * factor for part, factor in change.items()})
    with pytest.raises(WrongAnswerError, match=message):
        check(SQUARE, x, y, wrong, exact=True)


def test_the_gate_refuses_half_an_answer():
    x, y = LONG.inputs(0, CPU)
    answer = named("ldreg cpu").build(LONG)(x, y)
    with pytest.raises(WrongAnswerError, match="was not returned"):
        check(LONG, x, y, replace(answer, tracked=answer.tracked[:1]), exact=True)
    with pytest.raises(WrongAnswerError, match="no neighbours"):
        check(replace(SQUARE, mode="forward"), x, y, answer, exact=True)
