"""The ways of the CUDA backend, each forced on small problems: fields of every call are set, and results judged.

Used by test_cuda.py and its neighbours; their fixture `forced` is in conftest.py.
"""

from __future__ import annotations

from typing import Any

import cases
import oracle
import pytest
import tolerances
import torch
from conftest import Backend

from ldreg_kernels.kernels import cuda_backend

DEVICE = cuda_backend.device_types()[0]
CUDA = Backend("cuda", torch.device(DEVICE))

WAYS = {
    "direct": {"tiles": False, "pairs": "direct"},
    "dense": {"tiles": False, "pairs": "dense"},
    "mma": {"tiles": True, "loop": "mma"},
    "wgmma": {"tiles": True, "loop": "wgmma"},
}
TILES = ["mma", "wgmma"]


class Forced:
    """The module, with some fields of every call forced; keeps the plans in words."""

    def __init__(self, module: Any) -> None:
        self.module, self.simulated, self.Call = module, module.simulated, module.Call
        self.fields: dict[str, object] = {}
        self.plans: list[str] = []
        self.left: list[int] = []  # counters that were not 0 after a launch

    def __call__(self, way: str, **fields: object) -> None:
        self.fields = {**WAYS[way], **fields}
        cuda_backend.forget_plans()

    def Planned(self, call: Any) -> Watched:
        for name, value in self.fields.items():
            setattr(call, name, value)
        planned = self.module.Planned(call)
        self.plans.append(planned.words)
        return Watched(self, call.device, planned)


class Watched:
    """A plan whose launches are looked at when they are through."""

    def __init__(self, forced: Forced, device: int, planned: Any) -> None:
        self.forced, self.device, self.planned = forced, device, planned
        self.workspace = planned.workspace

    def launch(self, *arguments: Any) -> None:
        self.planned.launch(*arguments)
        self.forced.left += [word for word in self.forced.module.state_of(self.device, arguments[-1]) if word]


def there(way: str) -> str:
    if way == "wgmma" and DEVICE == "cuda" and torch.cuda.get_device_capability()[0] != 9:
        pytest.skip("wgmma is Hopper's")
    return way


def check(x, y=None, *, k, estimator="mom", self_index=None, **options):
    """Neighbours, LID and gradient of one problem, against float64."""
    where = {"k": k, "self_index": self_index}
    found = CUDA.knn(x, y, **where, **options)
    oracle.check_knn(found, x, y, **where, name="cuda")
    if k > 1:
        leaf = x.detach().requires_grad_()
        lid = CUDA.lid(leaf, y, estimator=estimator, **where, **options)
        truth, _ = oracle.lid(x, y, estimator=estimator, **where)
        oracle.check_lid(lid.detach(), truth, "cuda", x.dtype)
        weight = 0.5 + torch.rand(len(x), generator=cases.seeded(1), dtype=lid.dtype)
        (gradient,) = torch.autograd.grad((lid * weight).sum(), leaf)
        expected, values = oracle.lid_gradient_given(x, y, found.indices, estimator, weight)
        resolved = oracle.resolved_rows(lid.detach(), values, x.dtype)
        largest = values[resolved].nan_to_num(0).max().item() if resolved.any() else 0.0
        oracle.check_gradient(
            gradient[resolved], expected[resolved], tolerances.gradient("cuda", x.dtype, largest), x.dtype
        )


def bits(result: Any) -> list[bytes]:
    return [t.cpu().reshape(-1).view(torch.uint8).numpy().tobytes() for t in result]
