"""What only a GPU can show of its backends: one launch, streams, graphs, devices, large offsets, full tiles.

Everything else is judged by the suite over all backends, by test_triton*.py, test_cuda.py and test_parity.py, without a
GPU as well. There, on a GPU, small shapes get every pair; here they reach the tiles with the blocks that are shipped.
"""

from __future__ import annotations

from typing import Any

import cases
import oracle
import pytest
import tolerances
import torch

import ldreg_kernels as ldk
from ldreg_kernels.kernels import cuda_backend, notice, reference_pairs, triton_backend
from ldreg_kernels.kernels.contract import Pairs
from ldreg_kernels.ops import own_rows

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
    own_rows._watches.clear()
    for _ in range(2):  # in the first call with references their copies are counted
        ldk.ldreg_loss(leaf, y, k=k, backend=name)
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        ldk.ldreg_loss(leaf, y, k=k, backend=name)
        torch.cuda.synchronize()
    events = [e.name for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    # Activities on the GPU that are no kernels are in the list as well.
    kernels = [event for event in events if not event.startswith(("Mem", "cuda", "Activity", "Context", "Command"))]
    assert len([kernel for kernel in kernels if "ldreg" in kernel]) == 1
    assert len(kernels) == 1, f"besides ours: {kernels}"


def test_own_rows_are_missed_without_waiting(name, monkeypatch):
    """Counting copies among the references makes the host wait for nothing; the warning comes a call or two later."""
    monkeypatch.setattr(notice, "_said", set())
    own_rows._watches.clear()
    y = cases.features(2000, 64).cuda()
    x = y[100:400].clone()
    ldk.ldreg_loss(x, y, k=8, self_index=100, track=[("hill", 8)], backend=name)  # compiles

    def calls() -> None:
        for _ in range(3):
            torch.cuda.set_sync_debug_mode("error")
            try:
                ldk.ldreg_loss(x, y, k=8, backend=name)
            finally:
                torch.cuda.set_sync_debug_mode("default")
            torch.cuda.synchronize()

    with pytest.warns(UserWarning, match="300 of 300 rows have a reference at distance 0"):
        calls()


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


class Model(torch.nn.Module):
    """An encoder with the loss behind it: LDReg as users call it."""

    def __init__(self, columns: int, k: int, name: str) -> None:
        super().__init__()
        self.encoder = torch.nn.Linear(columns, columns, device="cuda")
        self.ldreg = ldk.LDRegLoss(k=k, track=[("mle", 8)], backend=name)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.ldreg(self.encoder(x)) + self.encoder.weight.square().mean()


def steps(model: torch.nn.Module, call: Any, B: int, D: int) -> list[tuple[float, torch.Tensor]]:
    """Loss and gradient of the weights in some steps, on features that change."""
    found = []
    for seed in range(4):
        model.zero_grad(set_to_none=True)
        loss = call(cases.features(B, D, seed=seed).cuda())
        loss.backward()
        found.append((loss.item(), model.encoder.weight.grad.clone()))
    return found


@pytest.mark.parametrize(("B", "N", "D", "k"), SHAPES[:2])
def test_reduce_overhead_on_a_model_that_contains_the_loss(name, B, N, D, k):
    """torch.compile then warms up inside the memory pool of a CUDA graph, in which nothing of ours may stay."""
    torch._dynamo.reset()
    model = Model(D, k, name)
    expected = steps(model, model, B, D)
    compiled = torch.compile(model, mode="reduce-overhead")
    for (loss, gradient), (truth, weight) in zip(steps(model, compiled, B, D), expected, strict=True):
        assert loss == pytest.approx(truth, rel=tolerances.COMPILED["rtol"])
        torch.testing.assert_close(gradient, weight, **tolerances.COMPILED)


def test_a_captured_training_step(name):
    """Forward and backward in one graph, replayed beside eager calls on the same stream."""
    x = cases.features(2048, 256).cuda().requires_grad_()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.autograd.grad(ldk.ldreg_loss(x, k=64, backend=name), x)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = ldk.ldreg_loss(x, k=64, backend=name)
        (gradient,) = torch.autograd.grad(loss, x)
    for seed in (1, 2):
        with torch.no_grad():
            x.copy_(cases.features(2048, 256, seed=seed))
        eager = ldk.ldreg_loss(x, k=64, backend=name)
        (expected,) = torch.autograd.grad(eager, x)
        graph.replay()
        assert torch.equal(loss, eager)
        assert torch.equal(gradient, expected)


@pytest.mark.parametrize(("B", "N", "D", "k"), SHAPES)
def test_counters_are_zero_again(name, B, N, D, k):
    """The next launch on this stream begins with what this one leaves: a broken counter shows here first."""
    x, y = problem(B, N, D)
    everything(x, y, k, name)
    counters = kept_counters(name, x.device)
    assert counters, "a launch has counters"
    assert not any(counters)


def kept_counters(name: str, device: torch.device) -> list[int]:
    """Of the current stream."""
    stream = torch.cuda.current_stream(device).cuda_stream
    if name == "cuda":
        return list(cuda_backend._cuda.state_of(device.index, stream))
    from ldreg_kernels.kernels import triton_launch

    return list(triton_launch._states[device.index, stream].tolist())


# ------------------------------------------------------------------------------------------------- tiles

WAYS = [("cuda", "mma"), ("cuda", "wgmma"), ("triton", "")]  # backend, and main loop of the CUDA backend
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
FULL_ROWS, FULL_COLUMNS, FULL_K = (4095, 4097), (768, 2048), 32
ROWS = 96  # that are judged: the first and the last, and others between


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("D", FULL_COLUMNS)
@pytest.mark.parametrize("N", FULL_ROWS)
@pytest.mark.parametrize("own", ["batch", "offset"])
@pytest.mark.parametrize(("backend", "loop"), WAYS, ids=lambda v: v or "-")
def test_shapes_that_fill_tiles(backend, loop, own, N, D, dtype, monkeypatch):
    """One row less and one more than whole tiles, judged by the float64 oracle (float64 itself gets every pair)."""
    reason = ldk.backends()[backend]
    if reason is not None:
        pytest.skip(f"backend {backend!r} is unavailable: {reason}")
    if loop == "wgmma" and torch.cuda.get_device_capability()[0] != 9:
        pytest.skip("wgmma is Hopper's")
    if loop:
        monkeypatch.setenv("LDREG_CUDA_LOOP", loop)
    everything_of = cases.features(N, D).to(dtype)
    x = everything_of.cuda().requires_grad_()
    where: dict[str, Any] = {"k": FULL_K, "backend": backend}
    y = None if own == "batch" else x.detach().clone()
    if y is not None:
        where["self_index"] = 0
    found = ldk.knn(x, y, **where)
    lid = ldk.lid(x, y, **where)
    weight = 0.5 + torch.rand(N, generator=cases.seeded(1), dtype=lid.dtype)
    (gradient,) = torch.autograd.grad((lid * weight.cuda()).sum(), x)

    rows = torch.linspace(0, N - 1, ROWS).long()
    some, indices = everything_of[rows], found.indices.cpu()[rows]
    judged = {"k": FULL_K, "self_index": rows}
    oracle.check_knn(ldk.KNN(found.distances.cpu()[rows], indices), some, everything_of, **judged, name=backend)
    truth, _ = oracle.lid(some, everything_of, **judged)
    oracle.check_lid(lid.detach().cpu()[rows], truth, backend, dtype)
    expected, values = oracle.lid_gradient_given(some, everything_of, indices, "mom", weight[rows])
    tolerance = tolerances.gradient(backend, dtype, values.max().item())
    oracle.check_gradient(gradient.cpu()[rows], expected, tolerance, dtype)


# ------------------------------------------------------------------------------------------------- streams and sizes


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


# ------------------------------------------------------------------------------------------------- sums over pairs


@pytest.mark.parametrize("M", [2048, 17000])  # candidates in parts, and all in one program
@pytest.mark.parametrize("same", [True, False], ids=["rows", "others"])
@pytest.mark.parametrize("bias", [None, -5.0], ids=["logsumexp", "softplus"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_triton_pairs_with_the_blocks_that_are_shipped(
    dtype: torch.dtype, bias: float | None, same: bool, M: int
) -> None:
    """Rows of 128 against float64, value by value and gradient row by gradient row; then the same bits again."""
    reason = triton_backend.unavailable_reason()
    if reason is not None:
        pytest.skip(f"backend 'triton' is unavailable: {reason}")
    N, P, temperature = M if same else 3001, 128, 0.1
    g = cases.seeded(5)

    def rows(count: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        t = torch.nn.functional.normalize(torch.randn(count, P, generator=g), dim=1).cuda()
        if dtype == torch.float32:
            return t, None
        t = (3 * t).to(dtype)
        return t, 1 / t.float().norm(dim=1)

    x, x_factor = rows(M)
    y, y_factor = (x, x_factor) if same else rows(N)
    scale = torch.tensor(1 / temperature, device="cuda")
    offset = None if bias is None else torch.tensor(bias, device="cuda")
    pairs = Pairs(x, y, scale, offset, 0 if same else None, 2 if same and bias is None else 1, x_factor, y_factor)
    exact_x = x.double() if x_factor is None else x.double() * x_factor.double()[:, None]
    exact_y = exact_x if same else y.double() if y_factor is None else y.double() * y_factor.double()[:, None]
    exact = Pairs(exact_x, exact_y, scale.double(), None if offset is None else offset.double(), pairs.own, pairs.views)
    by_value = (0.5 + torch.rand(M, generator=g)).cuda()
    state = triton_backend.pair_sums(pairs)[0]
    gradients = triton_backend.pair_gradients(pairs, state, by_value, True, True)
    truth = reference_pairs.pair_sums(exact)[0]
    expected = reference_pairs.pair_gradients(exact, truth, by_value.double(), True, True)
    # Halves leave 2^-22 of each entry and tensor cores truncate their sums over 128 columns: cosines within 3e-6.
    relative = 3e-6 / temperature
    values = [s[1] if bias is not None else scale.double() * s[0] + s[1].log() for s in (state.double(), truth)]
    torch.testing.assert_close(*values, rtol=2 * relative, atol=2 * relative)
    # Weights of half precision rows are rounded.
    rounding = {torch.float32: 0.0, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}[dtype]
    for ours, true in zip(gradients, expected, strict=True):
        if true is None:
            assert ours is None
            continue
        # Rounded by chance, errors add up like the directions of the candidates: to a share of the whole.
        assert (ours - true).norm() <= (4 * relative + rounding) * true.norm()
    assert torch.equal(state, triton_backend.pair_sums(pairs)[0])
    again = triton_backend.pair_gradients(pairs, state, by_value, True, True)
    assert all(one is None or torch.equal(one, other) for one, other in zip(gradients, again, strict=True))
