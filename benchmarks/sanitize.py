"""The workload of compute-sanitizer: every operation on some small shapes, through the public API.

    python -m benchmarks.sanitize --backend cuda|triton|cpu|reference [--list]

The shapes are those at which kernels read too far or leave something unwritten: sizes beside those of a tile, lists as
long as N allows, rows of a wider matrix, half precision, ties, NaN. Answers are compared with the float64 reference,
but roughly: exact bounds are the business of python_tests. Nothing is timed.

One line per shape. Exit code 0: all right; 1: one was wrong; 3: this backend has nothing to run here. What could not be
run is a line "not reached: ..." with its reason.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

import ldreg_kernels as ldk
from ldreg_kernels.kernels import triton_backend

WRONG, NOTHING_TO_RUN = 1, 3
TOLERANCE = 1e-3  # relative in L2: lets every rounding pass, and no wrong row
HALF_GRADIENT = 1e-2  # the gradient comes in the dtype of x, and bfloat16 has three digits

Own = Literal["batch", "offset", "map", "none"]
# large: normal, with too many rows for every k-th neighbour to stand apart
Data = Literal["normal", "large", "copies", "not finite"]


@dataclass(frozen=True)
class Shape:
    """B queries, N references, D features, k neighbours, and what is special about them."""

    B: int
    N: int
    D: int
    k: int
    own: Own = "batch"  # where a query sits among the references; "batch": the references are the queries
    dtype: torch.dtype = torch.float32
    data: Data = "normal"
    strided: bool = False  # x and y are columns of wider matrices
    track: tuple[tuple[str, int], ...] = ()

    def __str__(self) -> str:
        """For example "(31, 257, 100, 64) float32, self by map"."""
        words = [f"({self.B}, {self.N}, {self.D}, {self.k}) {self.dtype}".replace("torch.", ""), f"self by {self.own}"]
        words += [self.data] * (self.data != "normal") + ["strided"] * self.strided
        return ", ".join(words + [f"{name} {k} tracked" for name, k in self.track])


SHAPES = (
    Shape(5, 5, 3, 2),  # smaller than any tile
    Shape(33, 33, 17, 5),
    Shape(64, 64, 64, 16, track=(("mle", 32),)),  # aligned
    Shape(65, 129, 65, 31, own="offset", track=(("mle", 32), ("hill", 100))),
    Shape(31, 257, 100, 64, own="map"),
    Shape(127, 127, 130, 126),  # every other row is a neighbour
    Shape(1, 300, 520, 300, own="none"),  # one query, every reference
    Shape(64, 200, 72, 33, own="none", dtype=torch.bfloat16),
    Shape(40, 96, 33, 9, own="offset", dtype=torch.float16),
    Shape(17, 50, 12, 6, own="map", dtype=torch.float64),
    Shape(70, 70, 9, 12, data="copies"),
    Shape(45, 90, 20, 7, own="offset", data="not finite"),
    Shape(48, 80, 24, 10, own="map", strided=True),
    Shape(1031, 1031, 129, 33, data="large", track=(("mle", 64),)),  # enough for Triton's tiles: keys of all references
    Shape(131, 8209, 129, 20, own="offset", data="large"),  # ... and lists, because of N
)


@dataclass(frozen=True)
class Inputs:
    """x [B, D], y [N, D] or None, and `self_index`."""

    x: Tensor
    y: Tensor | None
    own: int | Tensor | None

    def reference(self) -> Inputs:
        """The same in float64 on the CPU."""
        own = self.own.cpu() if isinstance(self.own, Tensor) else self.own
        return Inputs(self.x.cpu().double(), None if self.y is None else self.y.cpu().double(), own)


def inputs(shape: Shape, device: torch.device) -> Inputs:
    """Made on the CPU and copied over, because initcheck counts copied memory as written."""
    generator = torch.Generator().manual_seed(shape.B * shape.D + 5)  # test_sanitize.py: no ties
    y = torch.randn(shape.N, shape.D, generator=generator, dtype=torch.float64)
    offset = min(7, shape.N - shape.B)
    if shape.data == "copies":
        y[: shape.k + 5] = y[0]  # more than k rows at distance 0: degenerate; the others meet ties
        y[-20:-10] = y[-10:]
    if shape.data == "not finite":
        y[offset + 3, 1], y[-1, 0] = torch.nan, torch.inf  # a query and a reference that is none
    rows = torch.arange(shape.B)
    where = {"batch": rows, "offset": rows + offset, "map": (rows * 5) % shape.N, "none": rows}[shape.own]
    x = y[where] if shape.own != "none" else torch.randn(shape.B, shape.D, generator=generator, dtype=torch.float64)
    own = {"batch": None, "offset": offset, "map": where.masked_fill(rows % 4 == 3, -1), "none": None}[shape.own]

    def put(values: Tensor) -> Tensor:
        values = values.to(shape.dtype)
        if not shape.strided:
            return values.to(device)
        wide = values.new_full((values.shape[0], shape.D + 5), torch.nan)
        wide[:, 3:-2] = values
        return wide.to(device)[:, 3:-2]

    return Inputs(put(x), None if shape.own == "batch" else put(y), own.to(device) if isinstance(own, Tensor) else own)


def answers(shape: Shape, given: Inputs, backend: str) -> dict[str, Tensor]:
    """Everything the three operations return, gradients included, on the CPU in float64."""
    found = ldk.knn(given.x, given.y, k=shape.k, self_index=given.own, backend=backend)
    references = given.x if given.y is None else given.y
    out = {"distances": found.distances, "rows listed": _distances(given.x, references, found.indices)}

    x = given.x.detach().requires_grad_()
    out["lid"] = ldk.lid(x, given.y, k=shape.k, self_index=given.own, backend=backend)
    (out["lid gradient"],) = torch.autograd.grad(out["lid"].sum(), x)

    loss, stats = ldk.ldreg_loss(
        x, given.y, k=shape.k, self_index=given.own, track=shape.track, backend=backend, return_stats=True
    )
    (out["loss gradient"],) = torch.autograd.grad(loss, x)
    out |= {"loss": loss, **{f"{name} {k}": lid for (name, k), lid in stats.tracked.items()}}
    return {name: value.detach().cpu().double() for name, value in out.items()}


def _distances(x: Tensor, y: Tensor, indices: Tensor) -> Tensor:
    """[B, k] in float64, NaN where either row is not finite: whatever index is listed, its distance has to be right."""
    pairs = x.double()[:, None] - y.double()[indices]  # [B, k, D]
    finite = pairs.isfinite().all(2)
    return torch.where(finite, pairs.norm(dim=2), torch.nan)


def error(found: Tensor, truth: Tensor) -> float:
    """Relative error in L2 where the truth is finite; infinite unless all else, NaN and Inf, is where it belongs."""
    finite = truth.isfinite()
    if not torch.equal(found.isfinite(), finite) or not torch.equal(found.isnan(), truth.isnan()):
        return float("inf")
    off, size = float((found - truth)[finite].norm()), float(truth[finite].norm())
    return off / size if size > 0 else off


def check_shape(shape: Shape, backend: str, device: torch.device) -> tuple[bool, str]:
    """Whether the answers are right, and the worst of them in words."""
    given = inputs(shape, device)
    truth = answers(shape, given.reference(), "reference")
    found = answers(shape, given, backend)
    half = shape.dtype in (torch.bfloat16, torch.float16)
    allowed = {name: HALF_GRADIENT if half and "gradient" in name else TOLERANCE for name in truth}
    share = {name: error(found[name], truth[name]) / allowed[name] for name in truth}
    worst = max(share, key=lambda name: share[name])
    return share[worst] <= 1, f"worst is {worst}, off by {share[worst] * allowed[worst]:.1e}"


def check_probe(k: int) -> tuple[bool, str]:
    """The formulas of csrc/lid_math.h, one kernel: device against host, in float64."""
    cuda = importlib.import_module("ldreg_kernels._cuda")
    distances = torch.rand(k, generator=torch.Generator().manual_seed(k), dtype=torch.float64).add(0.1).sort().values
    host, device = (torch.tensor(cuda.lid_formulas(distances.tolist(), on_device=on)) for on in (False, True))
    off = error(device.double(), host.double())
    return off <= TOLERANCE, f"off by {off:.1e}"


def probe_reason() -> str | None:
    """Why the kernel of csrc/cuda/probe.cu cannot run, or None."""
    try:
        reason: str | None = importlib.import_module("ldreg_kernels._cuda").unavailable_reason()
    except ImportError:
        return "ldreg_kernels._cuda is not built"
    return reason


Check = tuple[str, Callable[[], tuple[bool, str]]]


def checks(backend: str) -> Iterator[Check | str]:
    """What there is to run on a backend: (name, check), or the reason for which a part cannot run."""
    if backend == "cuda":
        reason = probe_reason()
        if reason is None:
            yield from ((f"formulas, k = {k}", partial(check_probe, k)) for k in (3, 10, 64))
        else:
            yield f"formulas: {reason}"
    reason = ldk.backends()[backend]
    if reason is not None:
        yield f"knn, lid and ldreg_loss: {reason}"
        return
    interpreted = backend == "triton" and triton_backend.interpreting()
    device = torch.device("cuda" if backend in ("cuda", "triton") and not interpreted else "cpu")
    for shape in SHAPES:
        yield str(shape), partial(check_shape, shape, backend, device)


def main(arguments: list[str] | None = None) -> int:
    """Run or list the checks of one backend; see the exit codes above."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sanitize", description="Small shapes, answers checked.")
    parser.add_argument("--backend", required=True, choices=tuple(ldk.backends()))
    parser.add_argument("--list", action="store_true", help="print what would run")
    options = parser.parse_args(arguments)

    ran = wrong = 0
    for item in checks(options.backend):
        if isinstance(item, str):
            print(f"not reached: {options.backend}: {item}", flush=True)
            continue
        name, check = item
        ran += 1
        if options.list:
            print(f"{options.backend}: {name}")
            continue
        print(f"{options.backend}: {name}", end=": ", flush=True)  # before it runs: a crash leaves its name behind
        right, words = check()
        wrong += not right
        print(f"{'ok' if right else 'WRONG'}, {words}", flush=True)
    if not options.list:
        print(f"{ran} checked, {wrong} wrong")
    return WRONG if wrong else 0 if ran else NOTHING_TO_RUN


if __name__ == "__main__":
    sys.exit(main())
