"""NT-Xent's memory: one copy of the rows is saved for backward, and no matrix of logits is ever there."""

from __future__ import annotations

import pytest
import torch
from ntxent_loops import views

from benchmarks.contrastive import nt_xent, peak_megabytes
from ldreg_kernels.kernels import native
from ldreg_kernels.losses import nt_xent_loss

COPIES = 1  # of the rows are saved: the unit rows
# And numbers of each row: norm, largest entry, maximum and sum, positive and negatives' term, with places to spare.
NUMBERS = 16

cpu_kernels = pytest.mark.skipif(native.unavailable_reason() is not None, reason=f"{native.unavailable_reason()}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saves_the_rows_once_and_no_matrix(dtype: torch.dtype) -> None:
    rows, width = 2048, 32  # a matrix of logits has 64 times the numbers of the rows
    z1, z2 = (z.requires_grad_() for z in views(rows // 2, width, dtype=dtype))
    saved: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = nt_xent_loss(z1, z2, temperature=0.1)
    inputs = {z.untyped_storage().data_ptr() for z in (z1, z2)}
    sizes = [t.untyped_storage().nbytes() for address, t in saved.items() if address not in inputs]
    assert sum(sizes) <= 4 * (COPIES * rows * width + NUMBERS * rows)
    assert sum(sizes) >= 4 * rows * width  # the hooks saw something
    loss.backward()
    assert bool(z1.grad.isfinite().all())


@cpu_kernels
def test_peak_is_a_tenth_of_that_of_all_logits() -> None:
    """Forward and backward, each way in a fresh process. Of ours, some 16 MB do not depend on the number of rows."""
    rows = 6144
    case, device = nt_xent(rows), torch.device("cpu")
    ours, eager = (peak_megabytes(name, case, device)["peak memory"] for name in ("ldreg cpu", "eager"))
    assert eager > 2 * 4e-6 * rows**2  # the logits and their gradient: what was measured is eager's peak
    assert ours < eager / 10
