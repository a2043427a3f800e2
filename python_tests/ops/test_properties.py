"""Hypothesis: every contract at once, over shapes, k, layouts, dtypes, self indices, duplicates, NaN and Inf.

Derandomised and bounded (conftest.py), so a failure is the same failure on every machine.
"""

import cases
import oracle
import pytest
import tolerances
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ldreg_kernels.kernels.contract import ESTIMATORS, FORMS

# Both sides of 8, 16, 48, 64, 128 and 256, primes, and the smallest
SIZES = [
    1,
    2,
    3,
    5,
    7,
    8,
    9,
    13,
    15,
    16,
    17,
    31,
    47,
    48,
    49,
    63,
    64,
    65,
    97,
    127,
    128,
    129,
    191,
    255,
    256,
    257,
]
KS = [0, 1, *SIZES[1:]]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


class Drawn:
    """One problem: tensors as a caller may hold them, and the options that go with them."""

    def __init__(self, x, y, k, self_index, largest_k):
        self.x, self.y, self.k, self.self_index, self.largest_k = x, y, k, self_index, largest_k

    def __repr__(self) -> str:  # what a failure prints: a tensor's values would bury the rest
        def show(t):
            return t if not isinstance(t, torch.Tensor) else f"{t.dtype} {tuple(t.shape)} stride {t.stride()}"

        return f"x={show(self.x)}, y={show(self.y)}, k={self.k}, self_index={show(self.self_index)}"

    @property
    def options(self):
        return {"k": self.k, "self_index": self.self_index}


@st.composite
def problems(draw) -> Drawn:
    dtype = draw(st.sampled_from(DTYPES))
    D = draw(st.sampled_from(SIZES))
    N = draw(st.sampled_from(SIZES[1:]))
    mode = draw(st.sampled_from(["own", "apart", "offset", "map"]))
    B = N if mode == "own" else draw(st.sampled_from(SIZES).filter(lambda b: mode != "offset" or b <= N))
    generator = cases.seeded(draw(st.integers(0, 2**20)))

    rows = torch.randn(N, D, generator=generator) * draw(st.sampled_from([1e-6, 1.0, 50.0]))
    rows = rows + draw(st.sampled_from([0.0, 3.0]))
    for _ in range(draw(st.integers(0, 3))):  # duplicates
        a, b = (torch.randint(N, (2,), generator=generator)).tolist()
        rows[a] = rows[b].clone()
    for bad in draw(st.lists(st.sampled_from([torch.nan, torch.inf, -torch.inf]), max_size=2)):
        rows[torch.randint(N, (1,), generator=generator), torch.randint(D, (1,), generator=generator)] = bad
    rows = rows.to(dtype)

    self_index = None
    if mode == "own":
        x, y = rows, None
    elif mode == "offset":
        self_index = draw(st.integers(0, N - B))
        x, y = rows[self_index : self_index + B].clone(), rows
    elif mode == "map":
        own = torch.randint(-1, N, (B,), generator=generator)
        x, y, self_index = rows[own.clamp(min=0)].clone(), rows, own
    else:
        x, y = torch.randn(B, D, generator=generator).to(dtype), rows
    layout = draw(st.sampled_from(["plain", *sorted(cases.layouts(torch.zeros(2, 2)))]))
    if layout != "plain":
        x = cases.layouts(x)[layout]
        y = None if y is None else cases.layouts(y)[layout]
    largest = N - int(mode != "apart")
    k = draw(st.sampled_from([k for k in KS if k <= largest] + [largest]))
    return Drawn(x, y, k, self_index, largest)


def refused(drawn: Drawn, smallest: int, call) -> bool:
    """Whether k is out of range; if so, that the call says so."""
    if smallest <= drawn.k <= drawn.largest_k:
        return False
    with pytest.raises(ValueError, match=rf"^k must be in \[{smallest}, {drawn.largest_k}\] for .*, got {drawn.k}$"):
        call()
    return True


@settings(max_examples=150)
@given(drawn=problems())
def test_knn(backend, drawn):
    if refused(drawn, 1, lambda: backend.knn(drawn.x, drawn.y, **drawn.options)):
        return
    found = backend.knn(drawn.x, drawn.y, **drawn.options)
    oracle.check_knn(found, drawn.x, drawn.y, name=backend.name, **drawn.options)


@settings(max_examples=120)
@given(drawn=problems(), estimator=st.sampled_from(ESTIMATORS))
def test_lid(backend, drawn, estimator):
    x = drawn.x.detach().requires_grad_()
    smallest = 3 if estimator == "hill_unbiased" else 2
    call = lambda: backend.lid(x, drawn.y, estimator=estimator, **drawn.options)  # noqa: E731
    if refused(drawn, smallest, call):
        return
    lid = call()
    truth, _ = oracle.lid(x, drawn.y, estimator=estimator, **drawn.options)
    oracle.check_lid(lid.detach(), truth, backend.name, x.dtype)

    (gradient,) = torch.autograd.grad(lid.sum(), x)
    indices = backend.knn(x, drawn.y, **drawn.options).indices
    expected, values = oracle.lid_gradient_given(x, drawn.y, indices, estimator, torch.ones(len(x)))
    resolved = oracle.resolved_rows(lid.detach(), values, x.dtype)
    largest = torch.cat([values[resolved], torch.zeros(1)]).nan_to_num(0.0).max().item()
    tolerance = tolerances.gradient(backend.name, x.dtype, largest)
    oracle.check_gradient(gradient[resolved], expected[resolved], tolerance, x.dtype)


@settings(max_examples=100)
@given(drawn=problems(), estimator=st.sampled_from(ESTIMATORS), form=st.sampled_from(FORMS), data=st.data())
def test_loss(backend, drawn, estimator, form, data):
    from ldreg_kernels.kernels import reference

    x = drawn.x.detach().requires_grad_()
    reduction = "mean" if form == "l2" else data.draw(st.sampled_from(["mean", "sum", "none"]))
    target = data.draw(st.sampled_from([0.5, 4.0, 30.0])) if form == "target" else None
    smallest = 3 if estimator == "hill_unbiased" else 2
    track = []
    if drawn.largest_k >= 2:
        other_k = data.draw(st.sampled_from([k for k in KS if 2 <= k <= drawn.largest_k]))
        track = [("mle", other_k), ("mom", other_k)]
    options = {"estimator": estimator, "form": form, "target": target, "reduction": reduction, "track": track}
    call = lambda: backend.loss(x, drawn.y, **options, **drawn.options)  # noqa: E731
    if refused(drawn, smallest, call):
        return
    value, stats = call()
    truth, degenerate = oracle.lid(x, drawn.y, estimator=estimator, **drawn.options)
    oracle.check_lid(stats.lid, truth, backend.name, x.dtype)
    for (name, k), found in stats.tracked.items():
        tracked, _ = oracle.lid(x, drawn.y, k=k, estimator=name, self_index=drawn.self_index)
        oracle.check_lid(found, tracked, backend.name, x.dtype)
    if not oracle.resolved_rows(stats.lid, truth, x.dtype).all():
        return  # such a row may be degenerate in float32 and not in float64
    assert stats.degenerate.item() == degenerate.sum().item()
    expected = reference.loss(truth, degenerate, form, target, reduction)
    assert torch.equal(value.isnan(), expected.isnan())
    scale = len(x) if reduction == "sum" else 1
    spread = (1 + truth.nan_to_num(0.0).max().item()) * tolerances.LID_PER_LID  # error of one ln LID, at worst
    wide = x.dtype == torch.float64
    bound = tolerances.LOSS_FLOAT64 * (1 + truth.nan_to_num(0.0).max().item()) if wide else tolerances.LOSS + spread
    assert ((value.detach() - expected).abs().nan_to_num(0.0) <= bound * (scale + expected.abs().nan_to_num(0.0))).all()
    (gradient,) = torch.autograd.grad(value.sum(), x)
    assert gradient.shape == x.shape
    if not expected.isnan().any():
        assert gradient.isfinite().all() or x.dtype == torch.float16  # which ends at 65504
        assert (gradient[degenerate] == 0).all()


@settings(max_examples=40)
@given(drawn=problems())
def test_two_runs_are_bitwise_equal(backend, drawn):
    if drawn.k < 2:
        return
    outcome = []
    for _ in range(2):
        x = drawn.x.detach().clone().requires_grad_()
        value, stats = backend.loss(x, drawn.y, **drawn.options)
        found = backend.knn(x, drawn.y, **drawn.options)
        outcome.append([value, stats.lid, *found, *torch.autograd.grad(value, x)])
    for one, other in zip(*outcome, strict=True):
        assert torch.equal(one.nan_to_num(-1.0), other.nan_to_num(-1.0))
