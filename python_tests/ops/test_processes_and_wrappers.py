"""Where training scripts put the ops: workers, data loaders, DataParallel, GradScaler, torch.save, torch.export.

Forks are in kernels/test_threads.py, several Python threads and any number of torch's in kernels/test_determinism.py.
"""

from __future__ import annotations

import functools
import io
import multiprocessing

import cases
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

import ldreg_kernels as ldk

BACKENDS = [
    pytest.param(name, marks=pytest.mark.skipif(reason is not None, reason=str(reason)))
    for name, reason in ldk.backends().items()
    if name in ("reference", "cpu")
]


@pytest.fixture
def x() -> torch.Tensor:
    return cases.features(64, 12)


class Lids(Dataset):
    """Computes in the worker, as a data loader does that scores its samples."""

    def __init__(self, x: torch.Tensor, backend: str) -> None:
        self.x, self.backend = x, backend

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> torch.Tensor:
        return ldk.lid(self.x + index, k=8, backend=self.backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_data_loader_workers_after_use(backend, x):
    expected = torch.stack([ldk.lid(x + i, k=8, backend=backend) for i in range(4)])  # the pool is up when it forks
    loader = DataLoader(Lids(x, backend), batch_size=2, num_workers=2, multiprocessing_context="fork", timeout=120)
    for _ in range(2):
        assert torch.equal(torch.cat(list(loader)), expected)
    assert torch.equal(ldk.lid(x, k=8, backend=backend), expected[0])


def test_a_spawned_process(x):
    expected = [ldk.lid(x, k=8, backend=param.values[0]) for param in BACKENDS]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        calls = [functools.partial(ldk.lid, k=8, backend=param.values[0]) for param in BACKENDS]
        found = [pool.apply_async(call, (x,)).get(timeout=300) for call in calls]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


class Model(nn.Module):
    """A network with its loss inside."""

    def __init__(self, backend: str) -> None:
        super().__init__()
        self.layer = nn.Linear(12, 6)
        self.loss = ldk.LDRegLoss(k=8, backend=backend)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.loss(self.layer(x))


@pytest.fixture
def model(request) -> Model:
    torch.manual_seed(0)
    return Model(request.param)


@pytest.mark.parametrize("model", BACKENDS, indirect=True)
def test_data_parallel(model, x):
    expected = torch.autograd.grad(model(x), model.layer.weight)[0]
    assert torch.equal(torch.autograd.grad(nn.DataParallel(model)(x), model.layer.weight)[0], expected)


@pytest.mark.parametrize("model", BACKENDS, indirect=True)
def test_grad_scaler(model, x):
    expected = torch.autograd.grad(model(x), model.layer.weight)[0]
    optimiser = torch.optim.SGD(model.parameters(), lr=1.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    before = model.layer.weight.detach().clone()
    scaler.scale(model(x)).backward()
    scaler.unscale_(optimiser)
    assert torch.equal(model.layer.weight.grad, expected)  # powers of two change no digit
    scaler.step(optimiser)
    assert torch.equal(model.layer.weight, before - expected)


@pytest.mark.parametrize("after_use", [False, True])
@pytest.mark.parametrize("model", BACKENDS, indirect=True)
def test_saved_whole(model, x, after_use):
    if after_use:
        model(x)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert torch.equal(loaded(x), model(x))
    assert loaded.state_dict().keys() == {"layer.weight", "layer.bias"}  # the loss has no state of its own


class Values(nn.Module):
    """The functions, as an exported program holds them."""

    def __init__(self, backend: str) -> None:
        super().__init__()
        self.backend = backend

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return ldk.ldreg_loss(x, k=8, backend=self.backend), ldk.lid(x, k=8, backend=self.backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_exported_with_a_varying_batch(backend, x):
    values = Values(backend)
    program = torch.export.export(values, (x,), dynamic_shapes={"x": {0: torch.export.Dim("rows", min=16, max=4096)}})
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    for rows in (64, 40, 200):
        other = cases.features(rows, 12)
        for found, expected in zip(loaded(other), values(other), strict=True):
            assert torch.equal(found, expected)
