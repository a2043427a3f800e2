"""benchmarks/{cases,contenders,searches,gate}.py: everybody computes the same thing, and the gate sees who does not."""

import sys
from dataclasses import replace
from types import ModuleType, SimpleNamespace

import pytest
import torch

import ldreg_kernels as ldk
from benchmarks import searches
from benchmarks.cases import MODES, RIVALS, Case, suites
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
    "LID only": [replace(SQUARE, mode="lid"), Case(64, 96, 24, 10, "lid")],
}
ERRORS = {"forward": {"recall"}, "lid": {"lid error"}}  # what the gate reports, by mode


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
        assert {c.mode for c in suites(device)["headline"]} == set(MODES) - {"lid"}
    with pytest.raises(ValueError, match="device must be"):
        suites("tpu")


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_grid_is_sixty_cases_whatever_the_effort(device):
    grid = suites(device)["grid"]
    assert len(set(grid)) == len(grid) == 60
    assert suites(device, quick=True)["grid"] == grid
    assert {c.mode for c in grid} == {"gradient", "tracked"}
    assert {c.dtype for c in grid} == {"float32", "bfloat16"}
    assert any(c.B < c.N for c in grid)


def test_rivals_are_the_shapes_with_a_published_time():
    assert suites("cuda")["rivals"] == suites("cuda", quick=True)["rivals"] == RIVALS
    assert {(c.B, c.N, c.D, c.k, c.mode) for c in RIVALS} == {
        *((16384, 100000, 128, k, "forward") for k in (4, 16, 32)),
        (8192, 65536, 256, 16, "forward"),
        (5000, 8192, 2048, 32, "forward"),
        (20000, 20000, 1024, 20, "lid"),
    }


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
        if contender.name.endswith("bf16") and case.mode not in ERRORS:
            with pytest.raises(WrongAnswerError, match="off by"):  # a bf16 product rounds distances away on a CPU
                check(case, x, y, answer, exact=False)
            continue
        errors = check(case, x, y, answer, exact=contender.ours)
        assert set(errors) == ERRORS.get(case.mode, {"lid error", "gradient error"})


def test_names_are_unique_and_found():
    assert len({c.name for c in CONTENDERS}) == len(CONTENDERS)
    assert [c.name for c in CONTENDERS if c.ours] == ["ldreg cuda", "ldreg triton", "ldreg cpu"]
    assert named("faiss").name == "faiss"
    with pytest.raises(ValueError, match="contender must be one of"):
        named("annoy")


def test_the_grid_counts_libraries_and_the_simple_form():
    rivals = {device: [c.name for c in contenders(device) if device in c.rival] for device in ("cpu", "cuda")}
    assert rivals["cpu"] == [
        *("mm + topk + bag fp32", "faiss", "scikit-learn", "scikit-learn-intelex", "usearch", "NumKong"),
    ]
    products = [f"mm + topk + bag {precision}" for precision in ("fp32", "tf32", "bf16")]
    assert rivals["cuda"] == [*products, "faiss gpu", "cuVS", "flashlib"]
    assert not any(c.ours and c.rival for c in CONTENDERS)


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("cuVS", "cuvs"),
        ("faiss gpu", "faiss"),
        ("flashlib", "flashlib"),
        ("torchid", "torchid"),
        ("scikit-learn-intelex", "sklearnex.neighbors"),
        ("usearch", "usearch.index"),
        ("NumKong", "numkong"),
    ],
)
def test_a_missing_library_says_so(name, module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UnavailableError, match="missing"):
        named(name).build(replace(SQUARE, mode="lid"))


def test_intelex_leaves_scikit_learn_as_it_is_and_hands_nothing_on_to_it():
    pytest.importorskip("sklearnex", reason="scikit-learn-intelex is not installed")
    answer_of(named("scikit-learn-intelex"), SQUARE)
    neighbors = sys.modules.get("sklearn.neighbors") or pytest.importorskip("sklearn.neighbors")
    assert neighbors.NearestNeighbors.__module__.startswith("sklearn.")
    assert "sklearnex" not in neighbors.NearestNeighbors.kneighbors.__module__
    import sklearnex

    before = sklearnex.get_config()["allow_sklearn_after_onedal"]
    answer_of(named("scikit-learn-intelex"), SQUARE)
    assert sklearnex.get_config()["allow_sklearn_after_onedal"] == before


# ---------------------------------------------------------------- stand-ins of the same interface: a CPU's libraries


def nearest(x, y, k):
    """Squared distances in float32 and indices of the k nearest, the row itself among them, in float64."""
    found = torch.cdist(x.double(), y.double()).topk(k, largest=False)
    return found.values.square().float(), found.indices


@pytest.fixture
def pretend(monkeypatch):
    """Put a module with these attributes in a library's place, its packages included."""

    def install(name, **attributes):
        for i, _ in enumerate(parts := name.split("."), 1):
            monkeypatch.setitem(sys.modules, ".".join(parts[:i]), ModuleType(".".join(parts[:i])))
        vars(sys.modules[name]).update(attributes)

    return install


def judged(contender, case):
    x, y = case.inputs(0, CPU)
    return check(case, x, y, contender.build(case)(x, y), exact=False)


@pytest.fixture
def seen():
    """Dtypes and k of every call."""
    return []


@pytest.fixture
def usearch(pretend, seen):
    """usearch 2.26's `search`: half precision as the bits of an unsigned integer, whose meaning `dtype` says."""

    def search(dataset, query, count, metric, *, exact, threads, dtype):
        assert exact
        assert threads == torch.get_num_threads()
        assert metric == "l2sq"
        x, y = (torch.from_numpy(t).view(torch.bfloat16) if dtype else torch.from_numpy(t) for t in (query, dataset))
        seen.append((x.dtype, y.dtype, count))
        squares, indices = nearest(x, y, count)
        return SimpleNamespace(distances=squares.numpy(), keys=indices.numpy().astype("uint64"))

    kinds = {"ScalarKind": SimpleNamespace(BF16="bf16"), "MetricKind": SimpleNamespace(L2sq="l2sq")}
    pretend("usearch.index", search=search, **kinds)


@pytest.fixture
def numkong(pretend, seen):
    """NumKong 7.8's packed distances into a part of the rows of an output."""

    def euclideans_packed(a, b, *, out, start_row, end_row):
        seen.append((a.dtype, b.rows.dtype, end_row - start_row))
        out[start_row:end_row] = torch.cdist(a[start_row:end_row].double(), b.rows.double()).to(out.dtype)

    pretend(
        "numkong",
        from_dlpack=lambda t: t,
        dots_pack=lambda t: SimpleNamespace(rows=t, width=len(t)),
        empty=lambda shape, dtype: torch.full(shape, torch.nan, dtype=getattr(torch, dtype)),
        euclideans_packed=euclideans_packed,
    )


@pytest.mark.parametrize("shape", ["y is x", "more references", "bfloat16"])
@pytest.mark.parametrize("library", ["usearch", "numkong"])
def test_a_search_of_a_cpu_library_is_completed(library, shape, request, seen, monkeypatch):
    """Half precision goes in as it is; a block of NumKong's is shared among the threads, without a row left out."""
    request.getfixturevalue(library)
    monkeypatch.setattr(searches, "NUMKONG_ROWS", 41)
    for case in SHAPES[shape]:
        judged(named({"numkong": "NumKong"}.get(library, library)), case)
        dtype = torch.bfloat16 if case.dtype == "bfloat16" else torch.float32
        assert {call[:2] for call in seen} == {(dtype, dtype)}
        if library == "numkong":
            assert sum(rows for *_, rows in seen) == case.B
        seen.clear()


# ---------------------------------------------------------------- stand-ins of the same interface: a GPU's libraries


@pytest.fixture
def flashlib(pretend, seen):
    def flash_knn(x, c, k, *, tol=None, backend=None, return_distances=True):
        assert x.dim() == c.dim() == 2
        seen.append((x.dtype, c.dtype, k))
        squares, indices = nearest(x, c, k)
        return squares, indices.int()

    pretend("flashlib.primitives.knn", flash_knn=flash_knn)


@pytest.fixture
def faiss_gpu(pretend, seen):
    def knn_gpu(res, xq, xb, k, D=None, I=None, metric=1, device=-1, use_cuvs=False):  # noqa: E741 (its names)
        seen.append((xq.dtype, xb.dtype, k))
        return nearest(xq, xb, k)

    pretend("faiss.contrib.torch_utils")
    vars(sys.modules["faiss"]).update(knn_gpu=knn_gpu, StandardGpuResources=object, DistanceDataType_BF16=2)


@pytest.fixture
def cuvs(pretend, seen, monkeypatch):
    def build(dataset, metric="sqeuclidean", metric_arg=2.0, resources=None):
        assert metric == "sqeuclidean"
        assert resources == "stream 7"
        return dataset

    def search(index, queries, k, neighbors=None, distances=None, resources=None, prefilter=None):
        seen.append((queries.dtype, index.dtype, k))
        return nearest(queries, index, k)

    pretend("cuvs.common", Resources=lambda stream: f"stream {stream}")
    common = sys.modules["cuvs.common"]
    pretend("cuvs.neighbors.brute_force", build=build, search=search)
    monkeypatch.setitem(sys.modules, "cuvs.common", common)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(cuda_stream=7))


@pytest.mark.parametrize("shape", ["y is x", "more references", "LID only"])
@pytest.mark.parametrize(("name", "library"), [("flashlib", "flashlib"), ("faiss gpu", "faiss_gpu"), ("cuVS", "cuvs")])
def test_a_search_of_a_gpu_library_is_completed(name, library, shape, request, seen):
    request.getfixturevalue(library)
    for case in SHAPES[shape]:
        assert set(judged(named(name), case)) == ERRORS.get(case.mode, {"lid error", "gradient error"})
        assert seen.pop() == (torch.float32, torch.float32, case.k_max + 1)  # one more: the row finds itself


@pytest.mark.parametrize(
    ("name", "library", "taken"),
    [
        ("flashlib", "flashlib", {"float16": torch.float16, "bfloat16": torch.bfloat16}),
        ("faiss gpu", "faiss_gpu", {"float16": torch.float16, "bfloat16": torch.bfloat16}),
        ("cuVS", "cuvs", {"float16": torch.float16, "bfloat16": torch.float32}),  # it has no bfloat16
    ],
)
def test_half_precision_goes_in_as_the_library_takes_it(name, library, taken, request, seen):
    request.getfixturevalue(library)
    for dtype, given in taken.items():
        judged(named(name), replace(SQUARE, mode="forward", dtype=dtype))
        assert seen.pop()[:2] == (given, given)


def test_an_old_faiss_gets_bfloat16_as_float32(faiss_gpu, seen):
    del sys.modules["faiss"].DistanceDataType_BF16
    judged(named("faiss gpu"), replace(SQUARE, mode="forward", dtype="bfloat16"))
    assert seen.pop()[:2] == (torch.float32, torch.float32)


@pytest.fixture
def torchid(pretend):
    class MLE:
        def fit(self, X, y=None, *, n_neighbors=None, comb="mle"):
            squares, _ = nearest(X, X, n_neighbors + 1)
            d = squares.sqrt()[:, 1:]
            self.dimension_pw_ = (n_neighbors - 1) / (d[:, -1:] / d[:, :-1]).log().sum(1)
            self.dimension_ = float(1 / (1 / self.dimension_pw_).mean())
            return self

    pretend("torchid.estimators", MLE=MLE)


def test_torchid_estimates_a_batch_and_does_nothing_else(torchid):
    assert judged(named("torchid"), replace(SQUARE, mode="lid"))["lid error"] < 1e-4
    for case in (SQUARE, replace(SQUARE, mode="forward"), Case(64, 96, 24, 10, "lid")):
        with pytest.raises(UnavailableError, match="does not apply"):
            named("torchid").build(case)


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


@pytest.mark.parametrize(
    ("change", "message"),
    [(lambda lid: lid * 1.2, "LID off"), (lambda lid: lid * torch.nan, "LID off"), (lambda lid: lid[1:], "no LID")],
)
def test_the_gate_refuses_wrong_lids(change, message):
    case = replace(SQUARE, mode="lid")
    x, y = case.inputs(0, CPU)
    answer = named("ldreg cpu").build(case)(x, y)
    check(case, x, y, answer, exact=True)
    with pytest.raises(WrongAnswerError, match=message):
        check(case, x, y, Answer(lid=change(answer.lid)), exact=False)
    with pytest.raises(WrongAnswerError, match="the contract allows"):
        check(case, x, y, Answer(lid=answer.lid * (1 + 5e-5)), exact=True)


def test_the_gate_refuses_half_an_answer():
    x, y = LONG.inputs(0, CPU)
    answer = named("ldreg cpu").build(LONG)(x, y)
    with pytest.raises(WrongAnswerError, match="was not returned"):
        check(LONG, x, y, replace(answer, tracked=answer.tracked[:1]), exact=True)
    with pytest.raises(WrongAnswerError, match="no neighbours"):
        check(replace(SQUARE, mode="forward"), x, y, answer, exact=True)
