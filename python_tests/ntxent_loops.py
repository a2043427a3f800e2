"""NT-Xent by loops in float64, to judge the library's by, and the views of its tests."""

from __future__ import annotations

import torch
from torch import Tensor


def loop_rows(z1: Tensor, z2: Tensor, temperature: float, negatives: list[Tensor]) -> list[Tensor]:
    """The 2N terms of the SimCLR paper's mean, written out: no matrix product, no cross_entropy, no masking.

    `negatives` has the further candidates of each row: 2N tensors [K, D].
    """
    z = [unit(row) for row in torch.cat([z1, z2]).double()]
    rows, n = len(z), len(z1)
    terms = []
    for i in range(rows):
        bank = [unit(row) for row in negatives[i].double()]
        others = [(z[i] * z[j]).sum() / temperature for j in range(rows) if j != i]
        others += [(z[i] * row).sum() / temperature for row in bank]
        positive = (z[i] * z[(i + n) % rows]).sum() / temperature
        terms.append(sum(torch.exp(s - positive) for s in others).log())  # less overflow, the same number
    return terms


def unit(row: Tensor) -> Tensor:
    return row / row.square().sum().sqrt().clamp_min(1e-300)


def loop_loss(z1: Tensor, z2: Tensor, temperature: float, negatives: Tensor | None = None) -> Tensor:
    bank = z1[:0] if negatives is None else negatives
    return sum(loop_rows(z1, z2, temperature, [bank] * (2 * len(z1)))) / (2 * len(z1))


def loop_nt_xent(z1: Tensor, z2: Tensor, temperature: float, negatives: Tensor | None = None) -> float:
    return loop_loss(z1, z2, temperature, negatives).item()


def views(n: int, d: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(n, d, generator=generator, dtype=torch.float64).to(dtype) for _ in range(2))
