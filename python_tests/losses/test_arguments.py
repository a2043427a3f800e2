"""What all losses refuse, by the argument's name: other devices, layouts, dtypes, numbers out of range.

And temperatures that torch.compile makes symbols of.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ldreg_kernels import losses

ROWS = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
OTHERS = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))


def swav(first: Tensor, second: Tensor, queue: Tensor) -> Tensor:
    return losses.swav_loss([first, second], queue_scores=[queue, ROWS])


# A loss, and the names of its tensors in order.
CALLS: dict[str, tuple[Callable[..., Tensor], tuple[str, ...]]] = {
    "nt_xent": (lambda a, b, c: losses.nt_xent_loss(a, b, negatives=c), ("z1", "z2", "negatives")),
    "info_nce": (losses.info_nce_loss, ("query", "key", "negatives")),
    "nnclr": (losses.nnclr_loss, ("nn1", "nn2", "p1", "p2")),
    "sigmoid": (lambda a, b: losses.sigmoid_loss(a, b, scale=10.0, bias=-10.0), ("z1", "z2")),
    "uniformity": (losses.uniformity_loss, ("x",)),
    "alignment": (losses.alignment_loss, ("x", "y")),
    "byol": (losses.byol_loss, ("p1", "p2", "z1", "z2")),
    "simsiam": (losses.simsiam_loss, ("p1", "p2", "z1", "z2")),
    "swav": (swav, (r"scores\[0\]", r"scores\[1\]", r"queue_scores\[0\]")),
    "koleo": (losses.koleo_loss, ("x", "y")),
    "sigreg": (losses.sigreg_loss, ("x",)),
}
EVERY = pytest.mark.parametrize(
    ("loss", "names", "which"),
    [(loss, names, i) for loss, names in CALLS.values() for i in range(len(names))],
    ids=[f"{key} {name}" for key, (_, names) in CALLS.items() for name in names],
)


def with_one(names: tuple[str, ...], which: int, other: Tensor) -> list[Tensor]:
    return [other if i == which else ROWS for i in range(len(names))]


@EVERY
def test_another_device_is_named(loss: Callable[..., Tensor], names: tuple[str, ...], which: int) -> None:
    """Of the first argument the device is the call's, so it is the second that differs."""
    if len(names) == 1:
        pytest.skip("one tensor: nothing to differ from")
    with pytest.raises(ValueError, match=rf"{names[max(which, 1)]} must be on the device of"):
        loss(*with_one(names, which, ROWS.to("meta")))


@EVERY
def test_a_sparse_tensor_is_named(loss: Callable[..., Tensor], names: tuple[str, ...], which: int) -> None:
    with pytest.raises(TypeError, match=rf"{names[which]} must be a dense \(strided\) tensor, got layout"):
        loss(*with_one(names, which, ROWS.to_sparse()))


@EVERY
def test_eight_bits_are_refused_by_name(loss: Callable[..., Tensor], names: tuple[str, ...], which: int) -> None:
    with pytest.raises(TypeError, match=rf"{names[which]} must be float32, float64, bfloat16 or float16, got"):
        loss(*with_one(names, which, ROWS.to(torch.float8_e4m3fn)))


TEMPERATURES = {
    "nt_xent": lambda t: losses.nt_xent_loss(ROWS, OTHERS, temperature=t),
    "info_nce": lambda t: losses.info_nce_loss(ROWS, OTHERS, temperature=t),
    "nnclr": lambda t: losses.nnclr_loss(ROWS, OTHERS, OTHERS, ROWS, temperature=t),
    "sigmoid": lambda t: losses.sigmoid_loss(ROWS, OTHERS, scale=1 / t, bias=-t),
    "uniformity": lambda t: losses.uniformity_loss(ROWS, t=t),
    "swav": lambda t: losses.swav_loss([ROWS, OTHERS], temperature=t),
}


@pytest.mark.parametrize("name", TEMPERATURES)
def test_a_temperature_that_changes_is_compiled_twice_at_most(name: str) -> None:
    """Once with the first value as a constant, once with a symbol for all others."""
    torch._dynamo.reset()
    graphs = []

    def count(graph, _):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(TEMPERATURES[name], fullgraph=True, backend=count)
    for t in (0.1, 0.2, 0.05, 0.01, 0.3, 1 / 30, 0.5, 0.6, 0.7, 3.0):
        torch.testing.assert_close(compiled(t), TEMPERATURES[name](t))
    assert len(graphs) <= 2


@pytest.mark.parametrize("name", TEMPERATURES)
@pytest.mark.parametrize("bad", [1e-40, 1e-300, 1e39])
def test_numbers_that_float32_does_not_hold_are_refused_by_name(name: str, bad: float) -> None:
    with pytest.raises(
        ValueError, match=r"^(temperature|scale|t) must be in \[1e-37, 1e37\], so that float32 holds it"
    ):
        TEMPERATURES[name](bad)


def test_a_bias_that_float32_does_not_hold_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"^bias must be in \[-1e37, 1e37\], so that float32 holds it, got 1e\+39"):
        losses.sigmoid_loss(ROWS, OTHERS, scale=10.0, bias=1e39)
