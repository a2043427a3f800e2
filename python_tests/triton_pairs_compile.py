"""Compile the Triton sums over pairs ahead of time: python python_tests/triton_pairs_compile.py [CAPABILITY ...].

Every row of triton_pairs_launch.TABLE for the GPUs that it is for, and the modes that ask most of registers. The public
backend is called on tensors without memory, and the launches that it ends in are compiled as Triton's JIT would. In a
process of its own, without the interpreter. Prints one line of JSON for each kernel. Nothing is run.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from types import SimpleNamespace
from typing import Any
from unittest import mock

from benchmarks.compiled import CAPABILITIES, MATRIX, SERIALIZED, Recorder, cache_folder, compiled, cuobjdump, figure


@dataclass(frozen=True)
class Case:
    """One call of `pair_sums` or `pair_gradients`: by the rows, or by the candidates if they are others."""

    kernel: str  # "sums", "join" for the parts of some, or "gradient"
    capability: int
    dtype: str
    P: int
    same: bool = True
    views: int = 1
    bias: bool = False
    exchanged: bool = False
    odd: bool = False  # a row stride that 16 does not divide
    rows: int = 1 << 16  # with fewer, candidates are divided


def table(capability: int) -> list[Case]:
    """A case for every row of the table that this GPU uses; those of both half precisions once."""
    from ldreg_kernels.kernels.triton_pairs_launch import TABLE, blocks_for

    cases, seen = [], set()
    for kernel, dtype, _ in TABLE:
        for P in (128, 256, 512):
            blocks = blocks_for(kernel, dtype, P, capability)
            half = "half" if kernel == "sums" and dtype.itemsize == 2 else str(dtype)
            if (kernel, half, blocks) not in seen:
                seen.add((kernel, half, blocks))
                cases.append(Case(kernel, capability, str(dtype).removeprefix("torch."), P))
    return cases


HARD = [
    Case("sums", 90, "float32", 128, same=False, views=2),
    Case("sums", 90, "bfloat16", 128, same=False, bias=True),
    Case("sums", 90, "float32", 200, odd=True),
    Case("gradient", 90, "float32", 128, views=2),
    Case("gradient", 90, "float32", 128, same=False, views=2, exchanged=True),
    Case("gradient", 90, "bfloat16", 128, views=2),
    Case("gradient", 90, "bfloat16", 128, same=False, bias=True, exchanged=True),
    Case("gradient", 90, "float32", 127, odd=True),
    Case("gradient", 90, "bfloat16", 1, same=False),
    Case("sums", 90, "float32", 128, rows=4096),
    Case("join", 90, "float32", 128, rows=4096),
    Case("gradient", 90, "float32", 128, rows=4096),
    Case("gradient", 90, "bfloat16", 128, rows=4096),
]


def launch_of(case: Case) -> Recorder:
    """The launch that the backend comes to for this call, on a GPU of this capability."""
    import torch

    from ldreg_kernels.kernels import triton_backend, triton_pairs_launch
    from ldreg_kernels.kernels.contract import Pairs

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    dtype, wide = getattr(torch, case.dtype), case.P + (1 if case.odd else 0)
    x = empty(case.rows, wide, dtype=dtype)[:, : case.P]
    y = x if case.same else empty(2 * case.rows, wide, dtype=dtype)[:, : case.P]
    factors = (empty(len(x)), empty(len(y))) if dtype.itemsize == 2 else (None, None)
    own = 0 if case.same else case.rows if case.views > 1 else None
    pairs = Pairs(x, y, empty(), empty() if case.bias else None, own, case.views, *factors)
    recorders: dict[str, Any] = {
        name: Recorder(getattr(triton_pairs_launch, name))
        for name in ("ldreg_pair_sums", "ldreg_pair_join", "ldreg_pair_gradient")
    }
    gpu: dict[str, Any] = {
        "current_device": lambda: -1,
        "get_device_capability": lambda *_: divmod(case.capability, 10),
        "get_device_properties": lambda *_: SimpleNamespace(multi_processor_count=132),
    }
    triton_backend.forget_plans()
    with mock.patch.multiple("torch.cuda", **gpu), mock.patch.multiple(triton_pairs_launch, **recorders):
        if case.kernel != "gradient":
            triton_backend.pair_sums(pairs)
        else:
            need = (not case.exchanged, case.exchanged)
            triton_backend.pair_gradients(pairs, empty(2, len(x)), empty(len(x)), *need)
    triton_backend.forget_plans()
    return recorders[f"ldreg_pair_{case.kernel}"]


def figures(case: Case) -> dict[str, Any]:
    """What the kernel compiles to."""
    launch = launch_of(case)
    assert launch.options is not None
    binary, said = compiled(launch, case.capability)
    usage, code = (cuobjdump(binary.asm["cubin"], what) for what in ("-res-usage", "-sass"))
    return {
        **asdict(case),
        "warps": launch.options["num_warps"],
        "registers": figure("REG", usage),
        "spilled": figure("STACK", usage),
        "spill_instructions": len(re.findall(r"\b(?:STL|LDL)\b", code)),
        "shared": binary.metadata.shared,
        "matrix": sorted({found.group(1) for found in MATRIX.finditer(binary.asm["ptx"])}),
        "atomics": sorted(set(re.findall(r"\b(?:ATOM|RED|ATOMG)\.[\w.]+", code))),
        "serialized": SERIALIZED in said,
    }


def main() -> None:
    """Compile, and print."""
    capabilities = [int(text) for text in sys.argv[1:]] or list(CAPABILITIES)
    cases = [case for capability in capabilities for case in table(capability)]
    cases += [case for case in HARD if case.capability in capabilities]
    with cache_folder(), ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        for found in pool.map(figures, cases):
            print(json.dumps(found), flush=True)


if __name__ == "__main__":
    os.environ.pop("TRITON_INTERPRET", None)
    main()
