"""InfoNCE against loops in float64: in the batch, against a queue, its gradients, edges and settings."""

from __future__ import annotations

import math
import re

import pytest
import torch
from contrastive_loops import (
    assert_gradients_equal,
    assert_half_rows_are_the_rows,
    assert_near,
    assert_no_gradient_on_a_line,
    lengths,
    loop_info_nce,
    mean,
    rows,
)
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from ldreg_kernels.losses import InfoNCELoss, info_nce_loss


@pytest.mark.parametrize("k", [0, 1, 7])
@pytest.mark.parametrize(("n", "d", "temperature"), [(2, 1, 0.5), (5, 3, 0.1), (6, 16, 1.0)])
def test_equals_the_loops(n: int, d: int, temperature: float, k: int) -> None:
    """In value and in every gradient: queries, keys, queue and temperature."""
    query, key = rows(2, n, d)
    bank = rows(1, k, d, seed=1) if k else []
    t = torch.tensor(temperature, dtype=torch.float64)
    leaves = [leaf.requires_grad_() for leaf in (query, key, t, *bank)]
    assert_gradients_equal(
        info_nce_loss(query, key, *bank, temperature=t), mean(loop_info_nce(query, key, t, *bank)), leaves
    )


def test_equals_torchs_cross_entropy() -> None:
    """MoCo v3's logits and labels, its factor 2t, and CLIP's two directions."""
    query, key = rows(2, 6, 4)
    logits = F.normalize(query) @ F.normalize(key).T
    one, other = (F.cross_entropy(m / 0.2, torch.arange(6)) for m in (logits, logits.T))
    assert info_nce_loss(query, key).item() == pytest.approx(one.item(), rel=1e-12)
    assert info_nce_loss(query, key, base_temperature=0.5).item() == pytest.approx(0.4 * one.item(), rel=1e-12)
    both = info_nce_loss(query, key) / 2 + info_nce_loss(key, query) / 2
    assert both.item() == pytest.approx((one.item() + other.item()) / 2, rel=1e-12)
    assert abs(one.item() - other.item()) > 1e-3  # so the direction is told apart


def test_equals_mocos_cross_entropy() -> None:
    query, key, bank = (*rows(2, 5, 4), rows(1, 9, 4, seed=1)[0])
    q, k, queue = (F.normalize(z) for z in (query, key, bank))
    logits = torch.cat([(q * k).sum(1, keepdim=True), q @ queue.T], dim=1)
    expected = F.cross_entropy(logits / 0.07, torch.zeros(5, dtype=torch.int64))
    assert info_nce_loss(query, key, bank, temperature=0.07).item() == pytest.approx(expected.item(), rel=1e-12)


def test_beside_a_queue_the_other_keys_are_no_candidates() -> None:
    query, key, bank = (*rows(2, 3, 4), rows(1, 5, 4, seed=1)[0])
    alone = [info_nce_loss(query[i : i + 1], key[i : i + 1], bank).item() for i in range(3)]
    assert info_nce_loss(query, key, bank).item() == pytest.approx(sum(alone) / 3, rel=1e-12)


def test_known_value_for_orthogonal_pairs() -> None:
    z = torch.eye(4, dtype=torch.float64)
    assert info_nce_loss(z, 3 * z, temperature=0.5).item() == pytest.approx(math.log1p(3 * math.exp(-2)), rel=1e-14)


@pytest.mark.parametrize("bank", [False, True])
def test_gradient_by_finite_differences(bank: bool) -> None:
    leaves = [z.requires_grad_() for z in rows(3 if bank else 2, 3, 3)]
    t = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t, *z: info_nce_loss(*z, temperature=t, base_temperature=0.5), (t, *leaves))


def test_gradients_reach_what_requires_them() -> None:
    query, key, bank = (z.requires_grad_() for z in rows(3, 4, 3))
    by_query = torch.autograd.grad(info_nce_loss(query, key.detach(), bank.detach()), query)[0]
    torch.testing.assert_close(by_query, torch.autograd.grad(info_nce_loss(query, key, bank), query)[0])
    info_nce_loss(query.detach(), key, bank.detach()).backward()
    assert (query.grad, bank.grad) == (None, None)
    assert float(key.grad.norm()) > 1e-3


@pytest.mark.parametrize("temperature", [0.01, 1.0])
@pytest.mark.parametrize("k", [0, 5])
def test_collapse(k: int, temperature: float) -> None:
    """All rows equal: the logarithm of the number of candidates; on a line: no gradient."""
    query = torch.tensor([[1.0, -2.0, 0.5]], dtype=torch.float64).repeat(4, 1)
    bank = query[:1].repeat(k, 1) if k else None
    loss = info_nce_loss(query, 2 * query, bank, temperature=temperature)
    assert loss.item() == pytest.approx(math.log(1 + k if k else 4), rel=1e-12)
    batches = [6, 6, k] if k else [6, 6]
    assert_no_gradient_on_a_line(lambda *z: info_nce_loss(*z, temperature=temperature), batches, 1 / temperature)


def test_a_zero_row_has_cosine_0_and_gradient_0() -> None:
    leaves = rows(3, 4, 3)
    leaves[0][1], leaves[1][2], leaves[2][3] = 0, 0, 0
    query, key, bank = (z.requires_grad_() for z in leaves)
    for others in ([], [bank]):
        loss = info_nce_loss(query, key, *others)
        expected = mean(loop_info_nce(query.detach(), key.detach(), 0.2, *[b.detach() for b in others]))
        assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
        gradients = torch.autograd.grad(loss, [query, key, *others])
        assert all(bool(g.isfinite().all()) for g in gradients)
        for gradient, row in zip(gradients, (1, 2, 3), strict=False):
            assert gradient[row].tolist() == [0] * 3


@pytest.mark.parametrize("k", [0, 4])
def test_small_losses_keep_their_digits(k: int) -> None:
    """Losses of e^-20 and less in float32: only the logits' roundings, 1/t times those of cosines, are left."""
    query, temperature = torch.eye(8), 0.05
    key = query + 0.01 * rows(1, 8, 8, dtype=torch.float32)[0]
    bank = [-query[:k] + 0.01] if k else []
    loss = info_nce_loss(query, key, *bank, temperature=temperature)
    truth = mean(loop_info_nce(query, key, temperature, *bank)).item()
    assert 0 < truth < 1e-7
    assert loss.item() == pytest.approx(truth, rel=1.2e-7 * (1 + 4 / temperature))


@given(
    n=st.integers(1, 5),
    d=st.integers(1, 16),
    k=st.integers(0, 5),
    exponent=st.floats(-30, 30),
    spread=st.floats(0, 1),
    temperature=st.floats(0.01, 20),
    double=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_any_shape_scale_and_temperature(n, d, k, exponent, spread, temperature, double, seed) -> None:
    if n == 1 and k == 0:
        k = 1
    batch = [*rows(2, n, d, seed), *(rows(1, k, d, seed + 1) if k else [])]
    leaves = lengths(batch, exponent, spread, seed, torch.float64 if double else torch.float32)
    assert_near(
        lambda *z: info_nce_loss(*z, temperature=temperature),
        lambda q, k, *bank: mean(loop_info_nce(q, k, temperature, *bank)),
        leaves,
        1 / temperature,
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    query, key, bank = rows(3, 4, 8, dtype=dtype)
    loss = info_nce_loss(query, key, bank)
    assert loss.dtype == torch.float32
    expected = mean(loop_info_nce(query, key, 0.2, bank)).item()
    assert loss.item() == pytest.approx(expected, rel=1e-6)  # of the same, rounded inputs
    with torch.autocast("cpu", torch.bfloat16):  # beside a queue that was kept in float32
        assert info_nce_loss(query, key, bank.float()).item() == loss.item()


@pytest.mark.parametrize("k", [0, 5])
def test_half_precision_rows_with_a_factor(monkeypatch, k: int) -> None:
    leaves = [*rows(2, 4, 8, dtype=torch.bfloat16), *(rows(1, k, 8, seed=1, dtype=torch.bfloat16) if k else [])]
    assert_half_rows_are_the_rows(monkeypatch, "infonce", lambda *z: info_nce_loss(*z, backend="reference"), leaves)


def test_compiles_into_one_graph_whatever_the_temperature() -> None:
    compiled = torch.compile(info_nce_loss, fullgraph=True, backend="aot_eager")
    query, key, bank = rows(3, 4, 8, dtype=torch.float32)
    for temperature in (0.1, 0.2):
        for others in ([], [bank]):
            torch.testing.assert_close(
                compiled(query, key, *others, temperature=temperature, base_temperature=0.5),
                info_nce_loss(query, key, *others, temperature=temperature, base_temperature=0.5),
            )


def test_module_is_the_function() -> None:
    query, key, bank = rows(3, 5, 4)
    module = InfoNCELoss(0.3, base_temperature=0.5)
    for others in ([], [bank]):
        expected = info_nce_loss(query, key, *others, temperature=0.3, base_temperature=0.5)
        assert torch.equal(module(query, key, *others), expected)
    assert repr(module) == "InfoNCELoss(base_temperature=0.5, temperature=0.3, gather=True, equal_rows=False)"


def test_a_learned_temperature_is_a_parameter() -> None:
    module = InfoNCELoss(nn.Parameter(torch.tensor(0.3)))
    module(*rows(2, 5, 4)).backward()
    assert [name for name, _ in module.named_parameters()] == ["temperature"]
    assert float(module.temperature.grad.abs()) > 1e-3


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ([torch.ones(3), torch.ones(3)], ValueError, "query must have shape [N, D], got [3]"),
        ([torch.ones(3, 2), [1.0]], TypeError, "key must be a floating point tensor, got list"),
        ([torch.ones(3, 2), torch.ones(2, 2)], ValueError, "key must have the shape of query, [3, 2], got [2, 2]"),
        (
            [torch.ones(3, 2), torch.ones(3, 2).double()],
            TypeError,
            "key must have the dtype of query, torch.float32, got torch.float64",
        ),
        ([torch.ones(1, 2)] * 2, ValueError, "query must have at least 2 rows, so that negatives exist, got 1"),
        ([torch.ones(0, 2)] * 2 + [torch.ones(1, 2)], ValueError, "query must have at least 1 row, got 0"),
        (
            [torch.ones(3, 2)] * 2 + [torch.ones(2, 5)],
            ValueError,
            "negatives must have shape [K, 2] with K >= 1, the D of query, got [2, 5]",
        ),
        (
            [torch.ones(3, 2)] * 2 + [torch.ones(3, 2).double()],
            TypeError,
            "negatives must have the dtype of query, torch.float32, got torch.float64",
        ),
    ],
)
def test_bad_input_names_the_argument(arguments, error, message: str) -> None:
    for call in (info_nce_loss, InfoNCELoss()):
        with pytest.raises(error, match=f"^{re.escape(message)}$"):
            call(*arguments)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"temperature": 0.0}, ValueError, "temperature must be positive and finite, got 0.0"),
        ({"temperature": "0.1"}, TypeError, "temperature must be a number or a 0-d tensor, got '0.1'"),
        ({"temperature": torch.ones(1)}, ValueError, "temperature must be a number or a 0-d tensor, got shape [1]"),
        ({"base_temperature": -1}, ValueError, "base_temperature must be positive and finite, got -1"),
        ({"base_temperature": True}, TypeError, "base_temperature must be a number, got True"),
        (
            {"base_temperature": torch.tensor(0.5)},
            TypeError,
            "base_temperature must be a number, got a Tensor of shape () and dtype torch.float32",
        ),
        ({"backend": "cudaa"}, ValueError, "backend must be one of auto, triton, cpu, reference, got 'cudaa'"),
        ({"equal_rows": 1}, TypeError, "equal_rows must be True or False, got int 1"),
    ],
)
def test_bad_settings_are_refused_when_the_module_is_built_or_called(options, error, message: str) -> None:
    for call in (InfoNCELoss, lambda **options: info_nce_loss(torch.ones(3, 2), torch.ones(3, 2), **options)):
        with pytest.raises(error, match=f"^{re.escape(message)}$"):
            call(**options)
