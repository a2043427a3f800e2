"""What only a GPU can show of its backends: one launch, streams, graphs, devices, large offsets.

Everything else is judged by the suite over all backends, by test_triton*.py and by test_cuda.py, without a GPU as well.
"""

from __future__ import annotations

import cases
import oracle
import pytest
import torch

import ldreg_kernels as ldk

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.fixture(params=["triton", "cuda"])
def name(request: pytest.FixtureRequest) -> str:
    reason = ldk.backends()[request.param]
    if reason is not None:
        pytest.skip(f"backend {request.param!r} is unavailable: {reason}")
    return request.param


# (B, N, D, k): every pair; keys of all references in a slab (Triton); lists in steps
SHAPES = [(300, 300, 64, 33), (2048, 2048, 256, 64), (512, 20000, 256, 64)]


def problem(B: int, N: int, D: int, device: str = "cuda") -> tuple[torch.Tensor, torch.Tensor | None]:
    x = cases.features(B, D).to(device)
    return x, None if B == N else cases.features(N, D, seed=3).to(device)


def everything(x: torch.Tensor, y: torch.Tensor | None, k: int, name: str) -> list[torch.Tensor]:
    leaf = x.detach().clone().requires_grad_()
    found = ldk.knn(x, y, k=k, backend=name)
    loss, stats = ldk.ldreg_loss(leaf, y, k=k, track=[("mle", 8)], backend=name, return_stats=True)
    (gradient,) = torch.autograd.grad(loss, leaf)
    return [*found, loss.detach(), stats.lid, stats.tracked["mle", 8], gradient]


@pytest.mark.parametrize(("B", "N", "D", "k"), SHAPES)
def test_triton_fused_and_staged_give_the_same_bits(B, N, D, k, monkeypatch):
    x, y = problem(B, N, D)
    fused = everything(x, y, k, "triton")
    monkeypatch.setenv("LDREG_TRITON_STAGED", "1")
    for one, other in zip(fused, everything(x, y, k, "triton"), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(("B", "N", "D", "k"), SHAPES)
def test_cuda_main_loops_find_the_same_neighbours(B, N, D, k, monkeypatch):
    if torch.cuda.get_device_capability()[0] != 9:
        pytest.skip("wgmma is Hopper's")
    x, y = problem(B, N, D)
    monkeypatch.setenv("LDREG_CUDA_LOOP", "mma")
    portable = ldk.knn(x, y, k=k, backend="cuda")
    monkeypatch.setenv("LDREG_CUDA_LOOP", "wgmma")
    for one, other in zip(portable, ldk.knn(x, y, k=k, backend="cuda"), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(("B", "N", "D", "k"), SHAPES)
def test_one_launch(name, B, N, D, k):
    x, y = problem(B, N, D)
    leaf = x.requires_grad_()
    ldk.ldreg_loss(leaf, y, k=k, backend=name)
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        ldk.ldreg_loss(leaf, y, k=k, backend=name)
        torch.cuda.synchronize()
    kernels = [e.name for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    assert [kernel for kernel in kernels if "ldreg" in kernel] == [kernels[0]]
    assert len(kernels) == 1, f"besides ours: {kernels}"


@pytest.mark.parametrize(("B", "N", "D", "k"), SHAPES)
def test_graph_capture_and_replay(name, B, N, D, k):
    x, y = problem(B, N, D)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):  # compiles
        ldk.lid(x, y, k=k, backend=name)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        lid = ldk.lid(x, y, k=k, backend=name)
    for seed in (1, 2):
        x.copy_(cases.features(B, D, seed=seed))
        graph.replay()
        assert torch.equal(lid, ldk.lid(x, y, k=k, backend=name))


def test_two_streams_at_once(name):
    """Each stream has a state of its own: barriers of one launch must not count the programs of another."""
    x, _ = problem(2048, 2048, 256)
    expected = ldk.lid(x, k=64, backend=name)
    streams = [torch.cuda.Stream() for _ in range(3)]
    torch.cuda.synchronize()
    outcome = []
    for _ in range(5):
        for stream in streams:
            with torch.cuda.stream(stream):
                outcome.append(ldk.lid(x, k=64, backend=name))
    torch.cuda.synchronize()
    assert all(torch.equal(found, expected) for found in outcome)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_tensors_on_another_device_than_the_current_one(name):
    x, _ = problem(600, 600, 64, "cuda:1")
    with torch.cuda.device(0):
        found = ldk.knn(x, k=16, backend=name)
    assert found.distances.device == x.device
    oracle.check_knn(ldk.KNN(found.distances.cpu(), found.indices.cpu()), x.cpu(), k=16, name=name)


def test_offsets_beyond_31_bits(name):
    """More than 2^31 features: the nearest neighbour of row j of y, slightly moved, is j."""
    rows, columns = (1 << 20) + 100, 2050
    if torch.cuda.mem_get_info()[0] < 3 * rows * columns * 2:
        pytest.skip("needs 13 GB of GPU memory")
    y = torch.randn(rows, columns, device="cuda", dtype=torch.bfloat16)
    picked = torch.tensor([0, 5, rows // 2, rows - 2, rows - 1], device="cuda")
    found = ldk.knn(y[picked] + 1e-2, y, k=4, backend=name)
    assert torch.equal(found.indices[:, 0], picked)


def test_memory_beyond_inputs_and_outputs(name):
    """(131072, 131072, 512, 64): less than 200 MB, where one float32 B x N matrix is 69 GB."""
    if torch.cuda.mem_get_info()[0] < 2 << 30:
        pytest.skip("needs 2 GB of GPU memory")
    x = torch.randn(131072, 512, device="cuda").requires_grad_()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    value = ldk.ldreg_loss(x, k=64, backend=name)
    outputs = 131072 * 512 * 4
    assert value.isfinite()
    assert torch.cuda.max_memory_allocated() - before - outputs < 200e6
