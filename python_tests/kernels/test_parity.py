"""The GPU backends against the CPU's: the same neighbours by property, the same LID, the same gradient.

Each is held to float64 elsewhere. Here they are held to each other, so that whoever moves a training from one device to
another finds what they had. Without a GPU the backends are emulated, and the problem is small.
"""

from __future__ import annotations

import cases
import oracle
import pytest
import tolerances
import torch
from conftest import Backend

CPU = Backend("cpu", torch.device("cpu"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("own", [True, False])
def test_as_on_the_cpu(backend: Backend, own: bool, dtype: torch.dtype) -> None:
    if backend.name not in ("cuda", "triton"):
        pytest.skip("the CPU backend is what others are compared with")
    N, D = (260, 96) if backend.emulated else (4097, 768)
    references = cases.features(N, D).to(dtype)
    x, y = (references, None) if own else (references[: N // 2].clone(), references)
    where = {"k": 24, "self_index": None if own else 0}

    found, expected = backend.knn(x, y, **where), CPU.knn(x, y, **where)
    tolerance = 2 * tolerances.DISTANCE  # each may be off by one, either way
    oracle.assert_relative(found.distances, expected.distances.double(), tolerance, 0.0, "distance")
    same = (found.indices.sort(1).values == expected.indices.sort(1).values).all(1)
    assert same.double().mean() > 0.99, "ties apart, the sets are the same"

    lids, gradients = zip(*(lid_and_gradient(one, x, y, where) for one in (backend, CPU)), strict=True)
    allowed = 2 * tolerances.lid(backend.name, dtype, lids[1].double())
    assert ((lids[0] - lids[1]).abs() <= allowed).all()
    # A neighbour exchanged with one at the same distance changes a row's gradient.
    tolerance = 2 * tolerances.gradient(backend.name, dtype, lids[1].max().item())
    oracle.check_gradient(gradients[0][same], gradients[1][same].double(), tolerance, dtype)


def lid_and_gradient(one: Backend, x: torch.Tensor, y: torch.Tensor | None, where: dict) -> tuple[torch.Tensor, ...]:
    leaf = x.detach().clone().requires_grad_()
    lid = one.lid(leaf, y, **where)
    (gradient,) = torch.autograd.grad(lid.sum(), leaf)
    return lid.detach(), gradient
