"""Batches with fewer neighbours than asked for: `clamp` takes what is there, aloud, on every backend.

The kind behind it: k = 64 with 32 x 2 rows, a last batch of 3 rows, 512 tracked of 256.
"""

import warnings

import cases
import oracle
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import ldreg_kernels as ldk
from ldreg_kernels.kernels import notice, reference
from ldreg_kernels.kernels.contract import ESTIMATORS, FORMS
from ldreg_kernels.ops import validate


@pytest.fixture(autouse=True)
def nothing_said():
    notice._said.clear()
    yield
    notice._said.clear()


def quiet(function):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function()


@pytest.mark.parametrize("rows", [64, 5, 4, 3])
def test_k_is_what_there_is(backend, rows):
    """The value and the gradient are those of the largest k there is."""
    x = backend.put(cases.features(rows, 8)).requires_grad_()
    track = [("mle", 512), ("hill", 3)] if rows > 3 else [("mle", 512)]
    value, stats = quiet(
        lambda: ldk.ldreg_loss(x, k=64, track=track, clamp=True, backend=backend.name, return_stats=True)
    )
    fitting = [(name, min(k, rows - 1)) for name, k in track]
    plain, _ = ldk.ldreg_loss(x, k=rows - 1, track=fitting, backend=backend.name, return_stats=True)
    assert torch.equal(value, plain)
    assert torch.equal(*(torch.autograd.grad(v, x)[0] for v in (value, plain)))
    assert stats.k == rows - 1
    assert stats.tracked_k == {pair: min(pair[1], rows - 1) for pair in track}
    assert list(stats.tracked) == track  # by the names that were asked for
    truth, _ = oracle.lid(x.detach().cpu(), k=rows - 1, estimator="mle")
    oracle.check_lid(stats.tracked["mle", 512].cpu(), truth, backend.name, torch.float32)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize(("rows", "estimator"), [(1, "mom"), (2, "mom"), (2, "mle"), (3, "hill_unbiased")])
def test_too_few_for_the_estimator_is_nothing(rows, estimator, reduction):
    """No row has a LID: all are degenerate, and the loss is 0 with a graph that gives gradient 0."""
    x = cases.features(rows, 8).bfloat16().requires_grad_()
    value, stats = quiet(
        lambda: ldk.ldreg_loss(
            x, k=64, estimator=estimator, reduction=reduction, track=[("mle", 9)], clamp=True, return_stats=True
        )
    )
    assert value.dtype == torch.float32
    assert torch.equal(value, torch.zeros((rows,) if reduction == "none" else ()))
    (gradient,) = torch.autograd.grad(value.sum(), x)
    assert torch.equal(gradient, torch.zeros_like(x))
    assert stats.degenerate == rows
    assert stats.lid.isnan().all()
    assert stats.tracked["mle", 9].isnan().all()
    assert stats.k == rows - 1
    assert stats.geometric_mean.isnan()


def test_a_tracked_estimator_that_needs_more_has_no_lid():
    x = cases.features(3, 8)
    _, stats = quiet(
        lambda: ldk.ldreg_loss(x, k=2, track=[("hill_unbiased", 9), ("mle", 9)], clamp=True, return_stats=True)
    )
    assert stats.tracked["hill_unbiased", 9].isnan().all()
    assert stats.tracked["mle", 9].isfinite().all()


def test_nan_in_a_short_batch_stays_visible():
    x = cases.features(2, 8)
    x[0, 3] = torch.nan
    assert quiet(lambda: ldk.ldreg_loss(x, k=64, clamp=True)).isnan()


def test_it_is_said_once():
    x = cases.features(20, 8)
    with pytest.warns(UserWarning, match=r"^k is 64, but a batch has only 19 neighbours for a row") as caught:
        ldk.ldreg_loss(x, k=64, clamp=True)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ldk.ldreg_loss(x, k=64, clamp=True)
        ldk.ldreg_loss(x[:9], k=64, clamp=True)
        ldk.ldreg_loss(x, k=19, clamp=True)
    with pytest.warns(UserWarning, match=r"^track\[0\] k is 512"):
        ldk.ldreg_loss(x, k=8, track=[("mle", 512)], clamp=True)


def test_without_clamp_it_is_an_error():
    x = cases.features(20, 8)
    for options in ({"k": 64}, {"k": 8, "track": [("mle", 512)]}):
        with pytest.raises(ValueError, match=r"k must be in \[2, 19\] for 20 rows"):
            ldk.ldreg_loss(x, **options)
    with pytest.raises(ValueError, match=r"^k must be in \[2, 19\]"):  # too small is no matter of the batch
        ldk.ldreg_loss(x, k=1, clamp=True)


def test_references_count_too():
    """With y, the neighbours there are those of y, less self."""
    x, y = cases.features(4, 8), cases.features(9, 8, seed=1)
    for own, there in ((None, 9), (0, 8)):
        references = torch.cat([x, y])[:9]
        _, stats = quiet(
            lambda own=own, references=references: ldk.ldreg_loss(
                x, references, k=64, self_index=own, clamp=True, return_stats=True
            )
        )
        assert stats.k == there


@given(
    rows=st.integers(0, 12),
    k=st.integers(3, 40),
    estimator=st.sampled_from(ESTIMATORS),
    form=st.sampled_from(FORMS),
    tracked=st.sampled_from(ESTIMATORS),
)
def test_no_batch_is_too_short(rows, k, estimator, form, tracked):
    """A fuzz: every size trains, with the value that the reference gives for the k there is, or 0."""
    x = cases.normal(rows, 5, seed=rows).requires_grad_()
    target = 4.0 if form == "target" else None
    value, stats = quiet(
        lambda: ldk.ldreg_loss(
            x, k=k, estimator=estimator, form=form, target=target, track=[(tracked, k)], clamp=True, return_stats=True
        )
    )
    there = min(k, rows - 1) if rows else k
    (gradient,) = torch.autograd.grad(value, x)
    assert gradient.isfinite().all()
    assert stats.k == there
    if rows and there >= validate.smallest_k(estimator):
        truth, degenerate = oracle.lid(x.detach(), k=there, estimator=estimator)
        expected = reference.loss(truth, degenerate, form, target, "mean")
        assert value.item() == pytest.approx(expected.item(), rel=1e-4, abs=1e-4)  # float32 LIDs of up to hundreds
    else:
        assert value == 0


# ------------------------------------------------------------------------------------------------- summaries


def test_summaries_leave_degenerate_rows_out(backend):
    """A few copies of one row made the mean of the README's first snippet NaN."""
    x = cases.features(60, 8)
    x[:12] = x[0]  # these have eleven copies each
    x = backend.put(x)
    _, stats = ldk.ldreg_loss(x, k=10, track=[("mle", 11)], backend=backend.name, return_stats=True)
    assert stats.degenerate == 12
    for rows in (stats, stats["mle", 11]):
        usable = rows.lid[rows.lid.isfinite() & (rows.lid > 0)].double()
        assert 0 < len(usable) < 60
        for found, expected in [
            (rows.geometric_mean, usable.log().mean().exp()),
            (rows.arithmetic_mean, usable.mean()),
            (rows.harmonic_mean, 1 / (1 / usable).mean()),
            (rows.median, usable.quantile(0.5)),
        ]:
            assert found.shape == ()
            assert found.item() == pytest.approx(expected.item(), rel=1e-6)  # one float32 rounding of a double sum
    none = ldk.ldreg_loss(torch.zeros(20, 3), k=4, return_stats=True)[1]
    assert all(v.isnan() for v in (none.geometric_mean, none.arithmetic_mean, none.harmonic_mean, none.median))
