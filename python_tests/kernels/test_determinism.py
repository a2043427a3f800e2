"""The same bits every time: run after run, on any number of threads, over memory that held anything before.

Outputs are poisoned by the `backend` fixture in every test; here the poison is also changed between two runs.
"""

import threading

import cases
import pytest
import torch

import ldreg_kernels as ldk

SHAPES = [(300, 300, 64, 33), (97, 1500, 31, 64), (768, 768, 128, 64), (33, 8000, 16, 100)]


RETURNED = (
    *(
        "distances",
        "indices",
        "lid",
        "loss",
        "loss per row",
        "stats.lid",
        "degenerate",
        "tracked mle",
        "tracked mom",
    ),
    *("gradient of lid", "gradient of the loss", "gradient of the loss per row"),
)


def everything(backend, x, y, k, self_index=None):
    """All that the three functions return, gradients included."""
    x = x.detach().requires_grad_()
    found = backend.knn(x, y, k=k, self_index=self_index)
    lid = backend.lid(x, y, k=k, estimator="hill", self_index=self_index)
    loss, stats = backend.loss(x, y, k=k, track=[("mle", 8), ("mom", k)], self_index=self_index)
    per_row, _ = backend.loss(x, y, k=k, reduction="none", form="l1_abs", self_index=self_index)
    gradients = [torch.autograd.grad(value.sum(), x)[0] for value in (lid, loss, per_row)]
    return [*found, lid, loss, per_row, stats.lid, stats.degenerate, *stats.tracked.values(), *gradients]


def assert_same_bits(one, other):
    different = [slot for slot, (a, b) in enumerate(zip(one, other, strict=True)) if not torch.equal(a, b)]
    assert not different, f"differ: {', '.join(RETURNED[slot] for slot in different)}"


def problem(B, N, D):
    x = cases.features(B, D)
    return x, None if B == N else cases.features(N, D, seed=3)


@pytest.mark.parametrize(("B", "N", "D", "k"), SHAPES)
def test_two_runs(backend, B, N, D, k):
    x, y = problem(B, N, D)
    assert_same_bits(everything(backend, x, y, k), everything(backend, x, y, k))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("B", "N", "D", "k"), SHAPES)
def test_any_number_of_threads(backend, threads, shared, B, N, D, k, dtype):
    """How the work is divided decides in which order neighbours are found, and must decide nothing else."""
    if backend.name in ("triton", "cuda"):
        pytest.skip("torch's threads divide the work on CPU backends only; test_triton_launch.py varies the programs")
    x, y = problem(B, N, D)
    x, y = x.to(dtype), None if y is None else y.to(dtype)
    outcome = []
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        outcome.append(everything(backend, x, y, k))
    assert_same_bits(outcome[0], outcome[1])
    assert_same_bits(outcome[0], outcome[2])


def test_memory_held_something_else(backend):
    """Freed blocks full of NaN, then of zeros: a result that reads what it did not write would differ."""
    x, _ = problem(200, 200, 48)
    outcome = []
    for poison in (torch.nan, 0.0, 1e30):
        blocks = [torch.full((n,), poison) for n in (200, 200 * 48, 200 * 33, 200 * 200, 1 << 20) for _ in range(4)]
        del blocks
        outcome.append(everything(backend, x, None, 33))
    assert_same_bits(outcome[0], outcome[1])
    assert_same_bits(outcome[0], outcome[2])
    assert all(t.double().isfinite().all() for t in outcome[0])


def test_inputs_are_left_alone(backend):
    x, y = cases.features(120, 17), cases.features(90, 17, seed=2)
    x_before, y_before = x.clone(), y.clone()
    everything(backend, x, y, 12)
    assert torch.equal(x, x_before)
    assert torch.equal(y, y_before)


def test_calls_from_several_python_threads(backend, shared):
    """Concurrent callers get what a single one gets."""
    x = backend.put(cases.features(400, 40))
    expected = ldk.lid(x, k=32, backend=backend.name)
    outcome: list[torch.Tensor | None] = [None] * 4

    def work(slot):
        for _ in range(5):
            outcome[slot] = ldk.lid(x, k=32, backend=backend.name)

    workers = [threading.Thread(target=work, args=(slot,)) for slot in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert all(found is not None and torch.equal(found, expected) for found in outcome)


def test_backward_on_another_thread_count(backend, threads):
    x = cases.features(150, 20).requires_grad_()
    torch.set_num_threads(2)
    value, _ = backend.loss(x, k=16)
    torch.set_num_threads(1)
    (gradient,) = torch.autograd.grad(value, x)
    torch.set_num_threads(2)
    value, _ = backend.loss(x, k=16)
    assert torch.equal(gradient, torch.autograd.grad(value, x)[0])
