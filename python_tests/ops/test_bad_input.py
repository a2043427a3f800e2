"""Every error is raised before any launch, names the argument, and says what was expected and what came."""

import re

import pytest
import torch

import ldreg_kernels as ldk

X = torch.randn(256, 8, generator=torch.Generator().manual_seed(0))
Y = torch.randn(40, 8, generator=torch.Generator().manual_seed(1))
Q = Y[:4]
KNN, LID, LOSS = [ldk.knn], [ldk.lid], [ldk.ldreg_loss]
DIFFERENTIABLE, EVERY = LID + LOSS, KNN + LID + LOSS
NAN, INF = float("nan"), float("inf")


def bad(exception, functions, *arguments, says, **options):
    """One parameter set for each function; `...` in `says` stands for anything, the rest is literal."""
    message = "^" + ".*".join(re.escape(part) for part in says.split("...")) + "$"
    return [
        pytest.param(function, arguments, {"k": 2} | options, exception, message, id=f"{function.__name__}: {says}")
        for function in functions
    ]


def value(*arguments, **options):
    return bad(ValueError, *arguments, **options)


def kind(*arguments, **options):
    return bad(TypeError, *arguments, **options)


K = [
    value(DIFFERENTIABLE, X, k=300, says="k must be in [2, 255] for 256 rows with self excluded, got 300"),
    value(KNN, X, k=300, says="k must be in [1, 255] for 256 rows with self excluded, got 300"),
    value(EVERY, X, k=256, says="k must be in [..., 255] for 256 rows with self excluded, got 256"),
    value(EVERY, X, Y, k=41, says="k must be in [..., 40] for 40 rows, got 41"),
    value(EVERY, Y, Y, k=40, self_index=0, says="k must be in [..., 39] for 40 rows with self excluded, got 40"),
    value(EVERY, X, k=0, says="k must be in [..., 255] for 256 rows with self excluded, got 0"),
    value(EVERY, X, k=-3, says="k must be in [..., 255] for 256 rows with self excluded, got -3"),
    value(DIFFERENTIABLE, X, k=1, says="k must be in [2, 255] for 256 rows with self excluded, got 1"),
    value(DIFFERENTIABLE, X, estimator="hill_unbiased", says="k must be in [3, 255] for 256 rows ..., got 2"),
    value(EVERY, X[:1], says="k must be in [..., 0] for 1 rows with self excluded, got 2"),
    value(EVERY, X, Y[:0], says="k must be in [..., 0] for 0 rows, got 2"),
    value(EVERY, X[:0], k=0, says="k must be in ..., got 0"),
    kind(EVERY, X, k=8.0, says="k must be an int, got float 8.0"),
    kind(EVERY, X, k=True, says="k must be an int, got bool True"),
    kind(EVERY, X, k=None, says="k must be an int, got NoneType None"),
    kind(EVERY, X, k="8", says="k must be an int, got str '8'"),
    kind(EVERY, X, k=torch.tensor(8), says="k must be an int, got a Tensor of shape () and dtype torch.int64"),
]
FEATURES = [
    kind(EVERY, [[1.0, 2.0]], says="x must be a torch.Tensor, got list"),
    value(EVERY, X[0], says="x must be 2-D (rows, features), got shape (8,)"),
    value(EVERY, X[None], says="x must be 2-D (rows, features), got shape (1, 256, 8)"),
    kind(EVERY, X.long(), says="x must be float32, float64, bfloat16 or float16, got torch.int64"),
    kind(EVERY, X.cfloat(), says="x must be float32, float64, bfloat16 or float16, got torch.complex64"),
    value(EVERY, X[:, :0], says="x must have at least one feature (D >= 1), got shape (256, 0)"),
    kind(EVERY, X.to_sparse(), says="x must be a dense (strided) tensor, got layout torch.sparse_coo"),
    kind(EVERY, X, [1.0], says="y must be a torch.Tensor, got list"),
    value(EVERY, X, Y[0], says="y must be 2-D (rows, features), got shape (8,)"),
    value(EVERY, X, Y[:, :5], says="y must have the same number of features as x (8), got shape (40, 5)"),
    kind(EVERY, X, Y.double(), says="y must have the dtype of x (torch.float32), got torch.float64"),
    kind(EVERY, X, Y.int(), says="y must be float32, float64, bfloat16 or float16, got torch.int32"),
    value(EVERY, X, Y.to("meta"), says="y must be on the device of x (cpu), got meta"),
]
SELF_INDEX = [
    value(EVERY, X, self_index=0, says="self_index must be None when y is None ..., got 0"),
    value(EVERY, Q, Y, self_index=-1, says="self_index must be an offset in [0, 36] ..., got -1"),
    value(EVERY, Q, Y, self_index=37, says="self_index must be an offset in [0, 36] ..., got 37"),
    kind(EVERY, Q, Y, self_index=1.5, says="self_index must be an int, got float 1.5"),
    kind(EVERY, Q, Y, self_index=True, says="self_index must be an int, got bool True"),
    kind(
        EVERY,
        Q,
        Y,
        self_index=torch.zeros(4, dtype=torch.int32),
        says="self_index must be ... a torch.int32 tensor",
    ),
    value(
        EVERY,
        *(Q, Y),
        self_index=torch.zeros(5, dtype=torch.int64),
        says="self_index must have shape (4,), one entry for each row of x, got (5,)",
    ),
    value(
        EVERY,
        *(Q, Y),
        self_index=torch.tensor([0, 1, 40, 3]),
        says="self_index entries must be in [-1, 39] for 40 reference rows, got 40",
    ),
    value(
        EVERY,
        *(Q, Y),
        self_index=torch.tensor([0, -2, 2, 3]),
        says="self_index entries must be in [-1, 39] for 40 reference rows, got -2",
    ),
]
NAMES = [
    value(EVERY, X, backend="gpu", says="backend must be one of auto, ..., got 'gpu'"),
    value(EVERY, X, backend=None, says="backend must be one of auto, ..., got None"),
    value(EVERY, X, precision="tf32", says="precision must be one of exact, fast, got 'tf32'"),
    value(DIFFERENTIABLE, X, estimator="twonn", says="estimator must be one of mom, ..., got 'twonn'"),
    value(LOSS, X, form="L1", says="form must be one of l1, l1_abs, l2, min, target, got 'L1'"),
    value(LOSS, X, reduction="avg", says="reduction must be one of mean, sum, none, got 'avg'"),
    value(LOSS, X, form="l2", reduction="sum", says='reduction must be "mean" with form="l2" ..., got \'sum\''),
]
TARGET = [
    value(
        LOSS,
        X,
        form="target",
        target=target,
        says=f"target must be a positive finite number ..., got {target!r}",
    )
    for target in (None, 0, -1.0, NAN, INF, "8", True)
] + [value(LOSS, X, target=8.0, says="target is used by form=\"target\" only, got target=8.0 with form='l1'")]
TRACK = [
    kind(LOSS, X, track=["mle"], says="track must be a sequence of (estimator, k) pairs, got ['mle']"),
    kind(LOSS, X, track=5, says="track must be a sequence of (estimator, k) pairs, got 5"),
    value(LOSS, X, track=[("mle", 8), ("pca", 8)], says="track[1] estimator must be one of mom, ..., got 'pca'"),
    value(LOSS, X, track=[("mle", 999)], says="track[0] k must be in [2, 255] for 256 rows ..., got 999"),
    value(LOSS, X, track=[("mle", 1)], says="track[0] k must be at least 2, got 1"),
    kind(LOSS, X, track=[("mle", 8.5)], says="track[0] k must be an int, got float 8.5"),
]


@pytest.mark.parametrize(
    ("function", "arguments", "options", "exception", "message"),
    [case for group in (K, FEATURES, SELF_INDEX, NAMES, TARGET, TRACK) for cases in group for case in cases],
)
def test_error_names_the_argument(function, arguments, options, exception, message):
    with pytest.raises(exception, match=message):
        function(*arguments, **options)


def test_the_ends_of_the_ranges_are_accepted(backend):
    x = backend.put(X[:40])
    for k in (1, 39):
        assert ldk.knn(x, k=k, backend=backend.name).indices.shape == (40, k)
    for k in (2, 39):
        assert ldk.lid(x, k=k, backend=backend.name).shape == (40,)
        assert ldk.ldreg_loss(x, k=k, backend=backend.name).shape == ()
    with pytest.raises(ValueError, match=r"^k must be in \[2, 39\] for 40 rows with self excluded, got 40$"):
        ldk.lid(x, k=40, backend=backend.name)


def test_knn_requires_k():
    with pytest.raises(TypeError, match="'k'"):
        ldk.knn(X)


PARAMETER = torch.nn.Parameter(torch.zeros(300, 300))


@pytest.mark.parametrize(
    ("options", "exception", "message"),
    [
        ({"k": 1}, ValueError, r"^k must be at least 2, got 1$"),
        ({"k": 2, "estimator": "hill_unbiased"}, ValueError, r"^k must be at least 3, got 2$"),
        ({"k": 4.0}, TypeError, r"^k must be an int, got float 4\.0$"),
        ({"form": "l3"}, ValueError, r"^form must be one of .*got 'l3'$"),
        ({"form": "target"}, ValueError, r"^target must be a positive finite number .*got None$"),
        ({"target": 8.0}, ValueError, r"^target is used by form=\"target\" only"),
        ({"form": "l2", "reduction": "sum"}, ValueError, r"^reduction must be \"mean\" with form=\"l2\""),
        ({"estimator": "twonn"}, ValueError, r"^estimator must be one of"),
        ({"backend": "gpu"}, ValueError, r"^backend must be one of"),
        ({"precision": "tf32"}, ValueError, r"^precision must be one of"),
        ({"track": [("mle", 1)]}, ValueError, r"^track\[0\] k must be at least 2, got 1$"),
        ({"track": ["mle"]}, TypeError, r"^track must be a sequence of \(estimator, k\) pairs"),
        ({"weight": float("nan")}, TypeError, r"^weight must be a finite number, got float nan$"),
        ({"clamp": 1}, TypeError, r"^clamp must be True or False, got int 1$"),
        ({"gather": None}, TypeError, r"^gather must be True or False, got NoneType None$"),
        # A tensor passed by mistake is not printed.
        (
            {"k": PARAMETER},
            TypeError,
            r"^k must be an int, got a Parameter of shape \(300, 300\) and dtype torch.float32$",
        ),
        (
            {"form": PARAMETER},
            ValueError,
            r"^form must be one of .*got a Parameter of shape \(300, 300\) and dtype \S+$",
        ),
        ({"weight": PARAMETER}, TypeError, r"^weight must be a finite number, got a Parameter of shape \(300, 300\)"),
        (
            {"form": "target", "target": PARAMETER},
            ValueError,
            r"^target must be .*got a Parameter of shape \(300, 300\)",
        ),
    ],
)
def test_the_module_checks_when_it_is_made(options, exception, message):
    with pytest.raises(exception, match=message):
        ldk.LDRegLoss(**options)


def test_the_module_names_its_own_arguments():
    loss = ldk.LDRegLoss(k=4)
    for arguments, exception, message in [
        ((X[0],), ValueError, r"^features must be 2-D"),
        ((X, Y[:, :5]), ValueError, r"^extra_references must have the same number of features as features \(8\)"),
        ((X, Y.double()), TypeError, r"^extra_references must have the dtype of features \(torch.float32\), got"),
        ((X.bfloat16(), Y), TypeError, r"^extra_references must have the dtype of features \(torch.bfloat16\), got"),
        ((X, Y.to("meta")), ValueError, r"^extra_references must be on the device of features"),
        ((X, [1.0]), TypeError, r"^extra_references must be a torch.Tensor, got list$"),
    ]:
        with pytest.raises(exception, match=message):
            loss(*arguments)
    with pytest.raises(ValueError, match=r"^k must be in \[2, 255\]"):
        ldk.LDRegLoss(k=300, clamp=False)(X)


def test_integers_may_be_numpys():
    numpy = pytest.importorskip("numpy")
    assert torch.equal(ldk.lid(X, k=numpy.int64(8)), ldk.lid(X, k=8))
    assert torch.equal(ldk.lid(Q, Y, k=8, self_index=numpy.int32(0)), ldk.lid(Q, Y, k=8, self_index=0))


def test_tracing_is_refused():
    """torch.jit.trace would record the neighbours of one batch, or fail without a word of why."""
    for function in (lambda t: ldk.knn(t, k=4), lambda t: ldk.lid(t, k=4), lambda t: ldk.ldreg_loss(t, k=4)):
        with pytest.raises(RuntimeError, match=r"torch\.jit\.trace cannot record these functions"):
            torch.jit.trace(function, X)
