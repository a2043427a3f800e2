"""README's table of losses: every loss is there with its module, and what it says of saved memory is measured."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ldreg_kernels import losses

README = (Path(__file__).resolve().parents[2] / "README.md").read_text()
N, D, K = 256, 64, 40


def rows(*shape: int, grad: bool = True) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).requires_grad_(grad)


def constant(*shape: int) -> Tensor:
    return rows(*shape, grad=False)


# A call, and how many numbers README says it keeps, but for a few a row.
CALLS = {
    "nt_xent_loss": (lambda f: f(rows(N, D), rows(N, D)), 2 * N * D),
    "info_nce_loss": (lambda f: f(rows(N, D), constant(N, D), constant(8 * N, D)), 4 * N * D + 8 * N * D),
    "nnclr_loss": (lambda f: f(constant(N, D), constant(N, D), rows(N, D), rows(N, D)), 4 * N * D),
    "sigmoid_loss": (lambda f: f(rows(N, D), rows(N, D), scale=10.0, bias=-10.0), 2 * N * D),
    "uniformity_loss": (lambda f: f(rows(N, D)), N * D),
    "alignment_loss": (lambda f: f(rows(N, D), rows(N, D)), 3 * N * D),
    "byol_loss": (lambda f: f(rows(N, D), rows(N, D), constant(N, D), constant(N, D)), 4 * N * D),
    "simsiam_loss": (lambda f: f(rows(N, D), rows(N, D), constant(N, D), constant(N, D)), 4 * N * D),
    "swav_loss": (lambda f: f([rows(N, K), rows(N, K), rows(N, K)]), (3 + 2) * N * K),
    "mae_loss": (lambda f: f(rows(N, 9, D), constant(N, 9, D), torch.ones(N, 9), norm_pix=True), N * 9 * D),
    "koleo_loss": (lambda f: f(rows(N, D), topk=1), 2 * N * D),
    "sigreg_loss": (lambda f: f(rows(N, D), directions=128), N * 128 + 128 * D),
}


def saved_numbers(name: str) -> int:
    """Float32 numbers in the storages that autograd keeps, each counted once."""
    kept = {}

    def keep(t: Tensor) -> Tensor:
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes() // 4
        return t

    call, _ = CALLS[name]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        call(getattr(losses, name))
    return sum(kept.values())


def test_every_loss_is_in_the_table_with_its_module() -> None:
    lines = re.findall(r"^\| `(\w+_loss)`.*?\((.*?)\)", README, flags=re.MULTILINE)
    assert {name for name, _ in lines} == {name for name in losses.__all__ if name.endswith("_loss")} == set(CALLS)
    for _, modules in lines:
        assert set(re.findall(r"\w+", modules)) <= set(losses.__all__)


@pytest.mark.parametrize("name", CALLS)
def test_saved_for_backward(name: str) -> None:
    """Within a few numbers a row of what README says; the N x N logits would be 4 N D more."""
    expected = CALLS[name][1]
    assert 0.9 * expected <= saved_numbers(name) <= expected + 30 * N
