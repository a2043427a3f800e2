"""Contrastive losses by loops in float64, to judge the library's by, and what their tests have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from ntxent_loops import unit
from torch import Tensor

from ldreg_kernels.losses.cosine import half_rows
from ldreg_kernels.ops.pairs import HalfRows

Leaves = Sequence[Tensor]


def rows(count: int, n: int, d: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """`count` batches of n rows."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, d, generator=generator, dtype=torch.float64).to(dtype) for _ in range(count)]


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Of two rows, from their own numbers in float64."""
    return (unit(a.double()) * unit(b.double())).sum()


def loop_info_nce(
    query: Tensor, key: Tensor, temperature: float | Tensor, negatives: Tensor | None = None
) -> list[Tensor]:
    """The N terms: of key i among the batch's keys, or beside the rows of a queue."""
    terms = []
    for i, q in enumerate(query):
        others = [k for j, k in enumerate(key) if j != i] if negatives is None else list(negatives)
        positive = cosine(q, key[i]) / temperature
        terms.append(torch.log1p(sum(torch.exp(cosine(q, other) / temperature - positive) for other in others)))
    return terms


def loop_nnclr(nn1: Tensor, nn2: Tensor, p1: Tensor, p2: Tensor, temperature: float | Tensor) -> list[Tensor]:
    """The N terms, each the mean of both directions."""
    one, other = loop_info_nce(nn1, p2, temperature), loop_info_nce(nn2, p1, temperature)
    return [(a + b) / 2 for a, b in zip(one, other, strict=True)]


def loop_sigmoid(z1: Tensor, z2: Tensor, scale: float | Tensor, bias: float | Tensor) -> list[Tensor]:
    """The N rows' sums over all pairs of ln(1 + exp(-l a)), every pair by itself."""
    zero = torch.zeros((), dtype=torch.float64)
    return [
        sum(
            torch.logaddexp((-1 if i == j else 1) * (scale * cosine(one, other) + bias), zero)
            for j, other in enumerate(z2)
        )
        for i, one in enumerate(z1)
    ]


def mean(terms: list[Tensor]) -> Tensor:
    return torch.stack(terms).mean()


def assert_gradients_equal(loss: Tensor, truth: Tensor, leaves: Leaves, others: Leaves | None = None) -> None:
    """Value and gradients of two float64 losses; sums of some dozens of terms, in another order."""
    assert abs(loss.item() - truth.item()) <= 1e-12 * (1 + abs(truth.item()))
    others = leaves if others is None else others
    for ours, theirs in zip(torch.autograd.grad(loss, leaves), torch.autograd.grad(truth, others), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def assert_near(
    loss: Callable[..., Tensor], truth: Callable[..., Tensor], leaves: Leaves, steepness: float, weight: float = 1
) -> None:
    """A loss in the dtype of its rows, of any lengths, is the float64 loss up to the roundings of its logits.

    A cosine of a few dozen terms is off by a few roundings, a logit by `steepness` times as many, and the loss by
    `weight` times that, or by roundings of its own size. The gradient is taken per unit of a row's length: at most
    `weight` times `steepness` in all, off by its roundings and by what a logit's do to exp.
    """
    doubles = [leaf.detach().double().requires_grad_() for leaf in leaves]
    leaves = [leaf.detach().clone().requires_grad_() for leaf in leaves]
    ours, theirs = loss(*leaves), truth(*doubles)
    rounding = 8 * torch.finfo(leaves[0].dtype).eps
    assert abs(ours.item() - theirs.item()) <= rounding * (weight * (1 + steepness) + abs(theirs.item()))
    ours.backward()
    theirs.backward()
    for leaf, double in zip(leaves, doubles, strict=True):
        if double.grad is None:
            assert leaf.grad is None
            continue
        a, b = (gradient.double() * double.detach().norm(dim=1, keepdim=True) for gradient in (leaf.grad, double.grad))
        assert float((a - b).abs().max()) <= rounding * (1 + steepness) * steepness * weight


def assert_half_rows_are_the_rows(monkeypatch, module: str, loss: Callable[..., Tensor], leaves: Leaves) -> None:
    """Half precision rows as a GPU's kernels get them, a factor beside each, give what rows in float32 do."""
    given, seen = half_rows, []

    def as_on_a_gpu(z: Tensor, backend: str) -> HalfRows | None:
        assert backend == "reference"
        seen.append(given(z, "triton"))
        return seen[-1]

    results = []
    for _ in range(2):
        batch = [leaf.detach().clone().requires_grad_() for leaf in leaves]
        value = loss(*batch)
        results.append((value.detach(), *torch.autograd.grad(value, batch)))
        monkeypatch.setattr(f"ldreg_kernels.losses.{module}.half_rows", as_on_a_gpu)
    assert seen
    assert all(half is not None for half in seen)
    for plain, half in zip(*results, strict=True):
        # Logits of 10 cosines, in other roundings; gradients are rounded to half precision once more.
        eps = torch.finfo(plain.dtype).eps
        torch.testing.assert_close(half, plain, rtol=max(eps, 1e-5), atol=max(eps, 1e-5) * float(plain.abs().max()))


def lengths(batch: Sequence[Tensor], exponent: float, spread: float, seed: int, dtype: torch.dtype) -> list[Tensor]:
    """The batches with rows of 10^exponent, or of lengths 10^-30 to 10^30 as far as `spread` goes to 1."""
    generator = torch.Generator().manual_seed(seed)
    powers = [exponent * (1 - spread) + spread * (60 * torch.rand(len(z), 1, generator=generator) - 30) for z in batch]
    return [(z * 10 ** power.double()).to(dtype) for z, power in zip(batch, powers, strict=True)]


def assert_no_gradient_on_a_line(loss: Callable[..., Tensor], batches: Sequence[int], steepness: float) -> None:
    """Rows on one line through 0, of several lengths, on both sides of it: roundings of a float64 gradient are left."""
    generator = torch.Generator().manual_seed(0)
    along = torch.randn(sum(batches), 1, generator=generator).double()
    leaves = [z.requires_grad_() for z in (along * torch.tensor([[1.0, -2.0, 0.5]]).double()).split(list(batches))]
    for z, gradient in zip(leaves, torch.autograd.grad(loss(*leaves), leaves), strict=True):
        assert len(set(z.detach()[:, 0].sign().tolist())) == 2
        assert float((gradient * z.detach().norm(dim=1, keepdim=True)).abs().max()) < 1e-15 * steepness
