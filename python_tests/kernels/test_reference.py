"""The formulas of the reference against closed forms written down independently, so that the truth is not its
own judge.

Estimators and their derivatives (a table of d ln LID / d d_j), the identities between them, and the loss
forms on LIDs chosen by hand. All in float64.
"""

import math

import pytest
import tolerances
import torch

from ldreg_kernels.kernels import reference
from ldreg_kernels.kernels.contract import ESTIMATORS, MLE_EPSILON


def distances(rows: int = 40, k: int = 64, seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return (1 + torch.rand(rows, k, generator=g, dtype=torch.float64)).sort(dim=1).values


def table(d: torch.Tensor, estimator: str) -> tuple[torch.Tensor, torch.Tensor]:
    """LID [B] and d ln LID / d d_j [B, k], transcribed from the table of derivatives."""
    k, near, last = d.shape[1], d[:, :-1], d[:, -1:]
    m, M = near.mean(1, keepdim=True), d.mean(1, keepdim=True)
    a, A = last - m, last - M
    S = torch.log(last / near).sum(1, keepdim=True)
    S_e = -torch.log(near / last + MLE_EPSILON).sum(1, keepdim=True)
    h = k // 2
    ratio = torch.log(last / d[:, h - 1 : h])
    middle = torch.zeros_like(near)
    middle[:, h - 1 : h] = 1 / (d[:, h - 1 : h] * ratio)
    return {
        "mom": (m / a, torch.cat([(last / ((k - 1) * m * a)).expand_as(near), -1 / a], 1)),
        "mom_amsaleg": (
            M / A,
            torch.cat([(last / (k * M * A)).expand_as(near), (last / k - M) / (M * A)], 1),
        ),
        "mle": (
            k / S_e,
            torch.cat(
                [
                    1 / (S_e * (near + MLE_EPSILON * last)),
                    -(near / (near + MLE_EPSILON * last)).sum(1, keepdim=True) / (S_e * last),
                ],
                1,
            ),
        ),
        "hill": ((k - 1) / S, torch.cat([1 / (S * near), -(k - 1) / (S * last)], 1)),
        "hill_unbiased": ((k - 2) / S, torch.cat([1 / (S * near), -(k - 1) / (S * last)], 1)),
        "mada": (math.log(2) / ratio, torch.cat([middle, -1 / (last * ratio)], 1)),
    }[estimator]


def autograd(d: torch.Tensor, estimator: str) -> tuple[torch.Tensor, torch.Tensor]:
    d = d.clone().requires_grad_()
    lid, degenerate = reference.estimate(d, estimator)
    assert not degenerate.any()
    (w,) = torch.autograd.grad(lid.log().sum(), d)
    return lid.detach(), w


@pytest.mark.parametrize("k", [3, 4, 5, 16, 64, 513])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_estimators_and_derivatives_equal_their_closed_forms(estimator, k):
    d = distances(k=k)
    lid, w = autograd(d, estimator)
    expected, expected_w = table(d, estimator)
    close = tolerances.CLOSED_FORM * (1 + expected)  # the conditioning of any estimator
    assert ((lid[:, None] - expected).abs() <= close * expected).all()
    assert ((w - expected_w).abs() <= close * expected_w.abs().amax(1, keepdim=True)).all()


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_estimators_are_scale_free(estimator):
    d = distances()
    lid, w = autograd(d, estimator)
    terms = d * w
    bound = tolerances.SCALE_FREE * (1 + lid) * terms.abs().sum(1)
    assert (terms.sum(1).abs() <= bound).all()
    scaled, _ = reference.estimate(d * 2.0**20, estimator)
    assert torch.equal(scaled, lid)  # a power of two changes no mantissa


def test_conversions_between_estimators():
    d = distances()
    k = d.shape[1]
    lid = {name: reference.estimate(d, name)[0] for name in ESTIMATORS}
    close = tolerances.CLOSED_FORM * (1 + lid["mom"]) * lid["mom"]
    assert ((1 + lid["mom_amsaleg"] - (1 + lid["mom"]) * k / (k - 1)).abs() <= close).all()
    assert ((lid["hill_unbiased"] * (k - 1) / (k - 2) - lid["hill"]).abs() <= close).all()
    without_epsilon = -k / torch.log(d[:, :-1] / d[:, -1:]).sum(1)
    assert ((without_epsilon - lid["hill"] * k / (k - 1)).abs() <= close).all()
    assert (lid["mle"] > without_epsilon).all()  # epsilon only ever shortens the sum of logarithms


def test_known_values():
    d = torch.tensor([[1.0, 2.0, 4.0, 8.0]], dtype=torch.float64)
    expected = {
        "mom": (7 / 3) / (8 - 7 / 3),
        "mom_amsaleg": 3.75 / (8 - 3.75),
        "mle": -4 / sum(math.log(r + 1e-4) for r in (1 / 8, 1 / 4, 1 / 2)),
        "hill": 3 / (6 * math.log(2)),
        "hill_unbiased": 2 / (6 * math.log(2)),
        "mada": math.log(2) / math.log(4),
    }
    for name, value in expected.items():
        assert reference.estimate(d, name)[0].item() == pytest.approx(value, rel=tolerances.CLOSED_FORM)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("value", [0.0, 1.0], ids=["all_zero", "all_equal"])
def test_distances_that_cannot_be_told_apart_are_degenerate(estimator, value):
    d = torch.full((2, 8), value, dtype=torch.float64)
    d[1] = torch.arange(1, 9)
    d.requires_grad_()
    lid, degenerate = reference.estimate(d, estimator)
    assert degenerate.tolist() == [True, False]
    assert lid[0].isnan()
    (w,) = torch.autograd.grad(lid[1], d)
    assert (w[0] == 0).all()
    assert w[1].isfinite().all()


LIDS = torch.tensor([0.5, 1.0, 4.0, float("nan")], dtype=torch.float64)
DEGENERATE = torch.tensor([False, False, False, True])
LN2 = math.log(2)


@pytest.mark.parametrize(
    ("form", "target", "reduction", "expected"),
    [
        ("l1", None, "mean", -LN2 / 3),
        ("l1", None, "sum", -LN2),
        ("l1", None, "none", [LN2, 0, -2 * LN2, 0]),
        ("l1_abs", None, "mean", -LN2),
        ("l1_abs", None, "none", [-LN2, 0, -2 * LN2, 0]),
        ("min", None, "mean", LN2 / 3),
        ("min", None, "sum", LN2),
        ("l2", None, "mean", -LN2 * math.sqrt(5 / 3)),
        ("target", 2.0, "mean", LN2 * 4 / 3),
        ("target", 2.0, "none", [2 * LN2, LN2, LN2, 0]),
    ],
)
def test_loss_forms_by_hand(form, target, reduction, expected):
    value = reference.loss(LIDS, DEGENERATE, form, target, reduction)
    assert value.tolist() == pytest.approx(expected, abs=tolerances.CLOSED_FORM)
