"""What the Triton backend does before a launch: plans kept, kernels shared, memory outside the pools of graphs.

Launches are prepared for a pretended GPU (benchmarks/stub_driver.py), in a process of its own where Triton compiles
instead of interpreting. What only a GPU can show: test_gpu.py.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ldreg_kernels.kernels import triton_backend

ROOT = Path(__file__).resolve().parent.parent.parent
MISSING = triton_backend.unavailable_reason()
pytestmark = pytest.mark.skipif(
    not triton_backend.interpreting(),
    reason=f"for machines without a GPU, with Triton: {MISSING}",
)


def told(script: str) -> dict:
    """The last line that a script prints, in JSON; 3 is said by one that cannot run here."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    run = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    if run.returncode == 3:
        pytest.skip(run.stdout.strip())
    assert run.returncode == 0, run.stdout + run.stderr
    return json.loads(run.stdout.splitlines()[-1])


CALLS = """
import json, sys, torch
import ldreg_kernels as ldk
from benchmarks import stub_driver
from ldreg_kernels.kernels import triton_backend, triton_fused

reason = stub_driver.unavailable_reason()
if reason is not None:
    print(f"no pretended GPU: {reason}")
    sys.exit(3)
planned, plan = [], triton_backend._plan
triton_backend._plan = lambda *given: planned.append(given) or plan(*given)
# Long enough for rows of 16 bytes to begin anywhere.
x, y = torch.randn(81, 16, requires_grad=True), torch.randn(81 * 16 + 1)
with stub_driver.pretended_gpu() as gpu:
    def so_far():
        kernels = sum(len(cache[0]) for cache in triton_fused.ldreg_fused_direct.device_caches.values())
        return {"plans": len(planned), "kernels": kernels, "launches": gpu.launches()}

    def loss(rows, references=y[:-1].view(81, 16), offset=0, target=3.0):
        value = ldk.ldreg_loss(
            x[:rows], references, k=5, form="target", target=target, self_index=offset, backend="triton"
        )
        torch.autograd.grad(value, x)

    told = {}
    for _ in range(3):
        loss(64)
    told["the same thrice"] = so_far()
    for target in (3.5, 1.0, 40.0):
        loss(64, target=target)
    told["other targets"] = so_far()
    for offset in (1, 16, 17):
        loss(64, offset=offset)
    told["other offsets"] = so_far()
    for rows in (1, 3, 17, 80):
        loss(rows)
    told["other batches"] = so_far()
    loss(64, y[1:].view(81, 16))
    told["unaligned references"] = so_far()
    loss(64, y[1:].view(81, 16))
    told["unaligned references again"] = so_far()
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def calls() -> dict:
    """{what was called: totals so far}."""
    return told(CALLS)


def test_calls_alike_are_planned_and_compiled_once(calls: dict) -> None:
    assert calls["the same thrice"] == {"plans": 1, "kernels": 1, "launches": 3}


@pytest.mark.parametrize(
    ("after", "before"), [("other targets", "the same thrice"), ("other offsets", "other targets")]
)
def test_a_new_target_or_offset_plans_and_compiles_nothing(calls: dict, after: str, before: str) -> None:
    assert calls[after] == {**calls[before], "launches": calls[before]["launches"] + 3}


def test_a_smaller_last_batch_compiles_nothing(calls: dict) -> None:
    """One row, fewer than 16, a multiple of 16, neither."""
    assert calls["other batches"] == {"plans": 5, "kernels": 1, "launches": 13}


def test_pointers_that_16_does_not_divide_have_a_kernel_of_their_own(calls: dict) -> None:
    """The one for aligned pointers would read them in 16 bytes at a time."""
    assert calls["unaligned references"] == {"plans": 6, "kernels": 2, "launches": 14}
    assert calls["unaligned references again"] == {"plans": 6, "kernels": 2, "launches": 15}


ORDER = """
import json, sys, torch
from types import SimpleNamespace
from unittest import mock
import ldreg_kernels as ldk
from benchmarks import stub_driver
from ldreg_kernels.kernels import triton_launch

reason = stub_driver.unavailable_reason()
if reason is not None:
    print(f"no pretended GPU: {reason}")
    sys.exit(3)

def flat(value):
    if isinstance(value, (tuple, list)):
        return [item for part in value for item in flat(part)]
    return [value.data_ptr() if hasattr(value, "data_ptr") else value]

class Kernel:  # keeps what it is launched with, through Triton and afterwards
    def __getitem__(self, grid):
        def launch(*arguments, **options):
            through_triton.append(flat(arguments))
            again = lambda *given: directly.append(flat(given[9:]))
            return SimpleNamespace(run=again, function=1, packed_metadata=())
        return launch

through_triton, directly, kept = [], [], []
memory, run = triton_launch.memory, triton_launch.run

def twice(plan, call):
    kept.append(memory(plan, call.x))
    plan.kernel = None
    with mock.patch.object(triton_launch, "memory", lambda *_: kept[-1]):
        run(plan, call), run(plan, call)

kernels = {"ldreg_fused_direct": Kernel(), "ldreg_fused_tiles": Kernel()}
with stub_driver.pretended_gpu(), mock.patch.multiple(triton_launch, run=twice, **kernels):
    for B, N, D in ((64, 64, 16), (1100, 1100, 256), (512, 20000, 64)):  # every pair; slab; lists
        y = torch.randn(N, D)
        x, references = (y, None) if B == N else (y[:B].clone(), y)
        x.requires_grad_()
        ldk.knn(x, references, k=8, backend="triton")
        ldk.ldreg_loss(x, references, k=8, track=[("mle", 4)], backend="triton")
        ldk.lid(x, references, k=8, backend="triton")
same = [str(one) == str(other) for one, other in zip(through_triton, directly, strict=True)]
print(json.dumps({"same": same, "lengths": sorted({len(one) for one in directly})}))
"""


def test_a_kernel_is_called_with_what_triton_gave_it() -> None:
    """A later launch lists the addresses itself: in another order they would be somebody else's memory."""
    found = told(ORDER)
    assert found["same"] == [True] * 9
    assert min(found["lengths"]) > 20


KERNELS = """
import json
from benchmarks.compiled import Case, kernel_of

batches = (65, 80, 96, 100, 1000, 1024, 2047, 2048, 4095, 4096)
kinds = {"slab": (4096, 768), "lists": (65536, 512)}
print(json.dumps({
    kind: len({kernel_of(Case(B, N, D, 64, own="offset"), 90) for B in batches}) for kind, (N, D) in kinds.items()
}))
"""


def test_one_kernel_of_each_kind_serves_every_batch() -> None:
    assert told(KERNELS) == {"slab": 1, "lists": 1}


# ------------------------------------------------------------------------------------------------- the state


class Pool:
    """Stands for the private pool of a graph, which takes a thread's allocations: none of it may stay alive."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.here, self.inside, zeros = threading.get_ident(), [], torch.zeros

        def allocate(*shape, **options):
            self.inside.append(threading.get_ident() == self.here)
            return zeros(*shape, **options)

        monkeypatch.setattr(torch, "zeros", allocate)


@pytest.fixture
def launch(monkeypatch: pytest.MonkeyPatch):
    """triton_launch, on a stream that the test names, with no state yet."""
    from ldreg_kernels.kernels import triton_launch

    stream = SimpleNamespace(number=1, capturing=False)
    driver = SimpleNamespace(active=SimpleNamespace(get_current_stream=lambda _: stream.number))
    monkeypatch.setattr(triton_launch.triton.runtime, "driver", driver)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: stream.capturing)
    monkeypatch.setattr(triton_launch, "_states", {})
    plan, x = SimpleNamespace(nbytes=16, setup=SimpleNamespace(fused=True)), torch.zeros(2, 2)
    return SimpleNamespace(stream=stream, state=lambda: triton_launch.memory(plan, x)[1], kept=triton_launch._states)


def test_the_state_is_kept_for_each_stream_outside_a_graphs_pool(launch, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = Pool(monkeypatch)
    state = launch.state()
    assert state is launch.state(), "kept"
    launch.stream.number = 2
    assert state is not launch.state(), "launches on two streams may overlap"
    assert pool.inside == [False, False]
    assert state.dtype == torch.int64
    assert not state.any()


def test_a_captured_launch_has_a_state_of_its_own_in_its_pool(launch, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = Pool(monkeypatch)
    launch.stream.capturing = True
    assert launch.state() is not launch.state()
    assert pool.inside == [True, True]
    assert not launch.kept, "a graph's memory must not stay alive"
