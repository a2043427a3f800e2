"""`ldreg_loss` and `LDRegLoss`: every form, reduction, tracked LID and statistic, with the gradient, against
float64.
"""

import cases
import oracle
import pytest
import tolerances
import torch

import ldreg_kernels as ldk
from ldreg_kernels.kernels import reference
from ldreg_kernels.kernels.contract import ESTIMATORS

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
FORMS = [("l1", None), ("l1_abs", None), ("l2", None), ("min", None), ("target", 8.0)]
CASES = [
    (form, target, reduction)
    for form, target in FORMS
    for reduction in ("mean", "sum", "none")
    if (form, reduction) not in {("l2", "sum"), ("l2", "none")}
]


def check(backend, x, y=None, *, k, form="l1", target=None, reduction="mean", estimator="mom", self_index=None):
    """The loss, its statistics and its gradient for one problem."""
    x = x.detach().requires_grad_()
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    options = {"k": k, "form": form, "target": target, "reduction": reduction, "estimator": estimator}
    value, stats = backend.loss(x, y, self_index=self_index, **options)
    truth, degenerate = oracle.lid(x, y, k=k, estimator=estimator, self_index=self_index)
    expected = reference.loss(truth, degenerate, form, target, reduction)
    assert value.dtype == wide
    assert value.shape == expected.shape
    scale = len(x) if reduction == "sum" else 1
    bound = tolerances.LOSS_FLOAT64 if wide == torch.float64 else tolerances.LOSS
    assert ((value.detach() - expected).abs() <= bound * (scale + expected.abs())).all()
    oracle.check_lid(stats.lid, truth, backend.name, x.dtype)
    assert stats.degenerate.item() == degenerate.sum().item()

    weight = torch.arange(1, value.numel() + 1) if reduction == "none" else 1.0
    (gradient,) = torch.autograd.grad((value * weight).sum(), x)
    indices = backend.knn(x, y, k=k, self_index=self_index).indices
    _, expected = oracle.loss_given(x, y, indices, estimator, form, target, reduction)
    tolerance = tolerances.gradient(backend.name, x.dtype, truth.nan_to_num(0).max().item())
    oracle.check_gradient(gradient, expected, tolerance, x.dtype)


@pytest.mark.parametrize(("form", "target", "reduction"), CASES)
def test_forms_and_reductions(backend, form, target, reduction):
    check(backend, cases.features(150, 33), k=24, form=form, target=target, reduction=reduction)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize(("form", "target"), FORMS)
def test_forms_and_estimators(backend, form, target, estimator):
    check(backend, cases.features(90, 20), k=17, form=form, target=target, estimator=estimator)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("form", ["l1", "l2"])
def test_dtypes(backend, form, dtype):
    check(backend, cases.features(130, 40).to(dtype), k=32, form=form)


@pytest.mark.parametrize(("rows", "D", "k"), [(65, 1, 16), (300, 129, 64), (128, 2048, 127), (70, 3, 69)])
def test_shapes(backend, rows, D, k):
    check(backend, cases.features(rows, D), k=k)


def test_two_sets_and_self_index(backend):
    y = cases.features(200, 16)
    x = y[50:120] + 0.01
    check(backend, x, y, k=20)
    check(backend, x, y, k=20, self_index=50)
    own = torch.arange(50, 120)
    own[1::2] = -1
    check(backend, x, y, k=20, self_index=own)


def test_rows_below_and_above_lid_1(backend):
    """|ln LID| and ln LID part where LID < 1: both signs in one batch."""
    g = cases.seeded(3)
    near = torch.cat([1e-2 * torch.randn(30, 2, generator=g), 5 + torch.randn(30, 2, generator=g)])
    far = torch.randn(60, 2, generator=g) ** 5
    x = torch.cat([near, far])
    lid, _ = oracle.lid(x, k=40)
    assert (lid < 0.9).sum() > 5
    assert (lid > 1.1).sum() > 5
    for form, target in FORMS:
        check(backend, x, k=40, form=form, target=target)


@pytest.mark.parametrize("k", [16, 64, 150])
def test_tracked_lids_come_from_the_same_pass(backend, k):
    """Tracked k below, at and above the k of the loss, every estimator, in the order asked for."""
    x = cases.features(260, 24).requires_grad_()
    track = [
        ("mle", 32),
        ("mle", 200),
        ("mom", 64),
        ("hill", 16),
        ("mada", 33),
        ("mom_amsaleg", 259),
        ("hill_unbiased", 3),
    ]
    plain, _ = backend.loss(x, k=k)
    value, stats = backend.loss(x, k=k, track=track)
    assert list(stats.tracked) == track
    for (estimator, tracked_k), found in stats.tracked.items():
        truth, _ = oracle.lid(x, k=tracked_k, estimator=estimator)
        oracle.check_lid(found, truth, backend.name, x.dtype)
        assert not found.requires_grad
    bound = tolerances.LOSS * (1 + plain.abs())
    assert (value - plain).abs() <= bound
    (gradient,) = torch.autograd.grad(value, x)
    (without,) = torch.autograd.grad(plain, x)
    tolerance = tolerances.gradient(backend.name, x.dtype, stats.lid.max().item())
    oracle.check_gradient(gradient, without.double(), tolerance, x.dtype)


def test_stats_are_detached_and_on_the_device(backend):
    x = backend.put(cases.features(50, 6)).requires_grad_()
    value, stats = ldk.ldreg_loss(x, k=8, track=[("mle", 4)], backend=backend.name, return_stats=True)
    assert value.requires_grad
    assert stats.degenerate.shape == ()
    assert stats.degenerate.dtype == torch.int64
    for t in (stats.lid, stats.degenerate, stats.tracked["mle", 4]):
        assert not t.requires_grad
        assert t.device == x.device


def test_without_stats_only_the_loss(backend):
    x = backend.put(cases.features(50, 6))
    value = ldk.ldreg_loss(x, k=8, backend=backend.name)
    assert isinstance(value, torch.Tensor)
    assert value.shape == ()


def test_l2_at_lid_1_has_zero_gradient(backend):
    """Every LID exactly 1: the published root has a NaN gradient there."""
    # One query at 0, references at 1, 1, 2 (mean of the nearer 1, d_k 2): mom = 1 / (2 - 1)
    x = torch.zeros(3, 2, requires_grad=True)
    y = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 0.0]])
    value, stats = backend.loss(x, y, k=3, form="l2")
    assert stats.lid.tolist() == [1.0, 1.0, 1.0]
    assert value.item() == 0
    (gradient,) = torch.autograd.grad(value, x)
    assert torch.equal(gradient, torch.zeros(3, 2))


def test_empty_batch(backend):
    x = torch.empty(0, 7, requires_grad=True)
    for reduction in ("mean", "sum", "none"):
        value, stats = backend.loss(x, k=4, reduction=reduction, track=[("mle", 3)])
        assert value.shape == ((0,) if reduction == "none" else ())
        assert value.sum().item() == 0
        assert stats.lid.shape == stats.tracked["mle", 3].shape == (0,)
        assert stats.degenerate.item() == 0
        (gradient,) = torch.autograd.grad(value.sum(), x)
        assert gradient.shape == (0, 7)


# ------------------------------------------------------------------------------------------------- the module


def test_module_equals_the_function(backend):
    x = backend.put(cases.features(80, 12))
    leaf, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    options = {"k": 16, "form": "target", "estimator": "hill", "target": 6.0, "track": [("mle", 8)]}
    module = ldk.LDRegLoss(weight=0.01, backend=backend.name, **options)
    assert module.stats is None
    value = module(leaf)
    expected, stats = ldk.ldreg_loss(other, backend=backend.name, return_stats=True, **options)
    assert torch.equal(value, 0.01 * expected)
    assert torch.equal(module.stats.lid, stats.lid)
    assert torch.equal(module.stats.tracked["mle", 8], stats.tracked["mle", 8])
    value.backward()
    (0.01 * expected).backward()
    assert torch.equal(leaf.grad, other.grad)


def test_module_with_extra_references(backend):
    """Rows look among themselves, left out by index, and among the extra ones; gradient reaches the features
    only.
    """
    x = backend.put(cases.features(40, 12)).requires_grad_()
    extra = backend.put(cases.features(70, 12, seed=8)).requires_grad_()
    module = ldk.LDRegLoss(k=16, backend=backend.name)
    value = module(x, extra)
    together = torch.cat([x, extra]).detach()
    expected = ldk.ldreg_loss(x, together, k=16, self_index=0, backend=backend.name)
    assert torch.equal(value, expected)
    value.backward()
    assert extra.grad is None
    assert x.grad.abs().sum() > 0


def test_module_has_no_state_and_says_what_it_does():
    module = ldk.LDRegLoss(k=32, form="min", weight=0.5)
    assert not module.state_dict()
    assert not list(module.parameters())
    assert "k=32" in repr(module)
    assert "form='min'" in repr(module)
