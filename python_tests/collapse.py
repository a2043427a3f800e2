"""How large the gradient of each loss is at and near collapse: the table of docs/collapse.md.

    python python_tests/collapse.py [--write]

A batch is 64 embeddings with 32 features: two views of 32 images. A loss that takes two views gets the halves. What is
not the embedding (predictors: the identity; momentum networks: a copy; prototypes, masked patches) stays the same.
To add a loss, add a line to LOSSES.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable, Iterable
from pathlib import Path

if __name__ == "__main__":  # a script sees its own folder only
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor

from ldreg_kernels import losses
from ldreg_kernels.losses.cosine import unit_rows

PAGE = Path(__file__).resolve().parents[1] / "docs" / "collapse.md"
IMAGES, FEATURES = 32, 32
ZERO = 1e-12  # float64: what is 0 on paper comes out as 1e-14 or less
ROUNDING = 1e6  # what is larger is a rounding error divided by itself, and differs from machine to machine


def _normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _two_views(images: Tensor, noise: float) -> Tensor:
    """[2 IMAGES, FEATURES or 1]: each image twice, with independent noise."""
    both = images.repeat(2, 1)
    return both + noise * _normal(*both.shape, seed=1)


_COMMON = _normal(1, FEATURES, seed=2).expand(IMAGES, FEATURES)
_SIGNS = _normal(IMAGES, 1, seed=3).sign().repeat(2, 1)
_LINE = _SIGNS * (1 + _normal(2 * IMAGES, 1, seed=10).abs()) * _normal(1, FEATURES, seed=4)  # no row is short
STATES = {
    "healthy": _two_views(_normal(IMAGES, FEATURES, seed=5), 0.3),
    "collapse": _two_views(_COMMON, 0.0),
    "near collapse": _two_views(_COMMON, 1e-3),
    "rank 1": _LINE,
    "near rank 1": _LINE + 1e-3 * _normal(*_LINE.shape, seed=6),
}

_PROTOTYPES = unit_rows(_normal(16, FEATURES, seed=7))
_PATCHES = _normal(4, 16, FEATURES, seed=8)


def _predicted(loss: Callable[..., Tensor], x: Tensor) -> Tensor:
    return loss(*x.chunk(2), *x.detach().chunk(2))


LOSSES: dict[str, Callable[[Tensor], Tensor]] = {
    "nt_xent_loss": lambda x: losses.nt_xent_loss(*x.chunk(2)),
    "info_nce_loss": lambda x: losses.info_nce_loss(*x.chunk(2)),
    "nnclr_loss": lambda x: losses.nnclr_loss(*x.detach().chunk(2), *x.chunk(2)),
    "sigmoid_loss": lambda x: losses.sigmoid_loss(*x.chunk(2), scale=10.0, bias=-10.0),
    "byol_loss": lambda x: _predicted(losses.byol_loss, x),
    "simsiam_loss": lambda x: _predicted(losses.simsiam_loss, x),
    "swav_loss": lambda x: losses.swav_loss([unit_rows(view) @ _PROTOTYPES.T for view in x.chunk(2)]),
    "mae_loss": lambda x: losses.mae_loss(x.view_as(_PATCHES), _PATCHES, torch.ones(4, 16), norm_pix=False),
    "alignment_loss": lambda x: losses.alignment_loss(*x.chunk(2)),
    "uniformity_loss": losses.uniformity_loss,
    "koleo_loss": losses.koleo_loss,
    "sigreg_loss": lambda x: losses.sigreg_loss(x, generator=torch.Generator().manual_seed(9)),
    "LDRegLoss": lambda x: losses.LDRegLoss(k=16)(x),
}


def gradients(name: str) -> dict[str, tuple[float, float]]:
    """In each state the Frobenius norm of the gradient, and of its part that differs between rows (minus its mean)."""
    loss = LOSSES[name]
    found = {}
    for state, rows in STATES.items():
        x = rows.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(x), x)
        found[state] = (float(gradient.norm()), float((gradient - gradient.mean(dim=0)).norm()))
    return found


def render() -> str:
    """The page."""
    found = {name: gradients(name) for name in LOSSES}
    lines = [["loss", *STATES], ["---"] * (1 + len(STATES))]
    lines += [[f"`{name}`", *(f"{_shown(a)} / {_shown(b)}" for a, b in row.values())] for name, row in found.items()]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    ratios = {name: row["near collapse"][1] / row["healthy"][1] for name, row in found.items()}
    reading = _READING.format(
        zero=_listed(name for name, row in found.items() if row["collapse"][1] < ZERO),
        weak=_listed(name for name, ratio in ratios.items() if ratio < 0.1),
        strong=_listed(name for name, ratio in ratios.items() if ratio > 10),
    )
    return _PAGE.format(table=table, reading=textwrap.fill(reading, 120))


def _shown(value: float) -> str:
    if value > ROUNDING:
        return f"> {ROUNDING:.0e}"
    return "0" if value < ZERO else f"{value:.2e}"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


_PAGE = """# Gradients at collapse

Frobenius norm of the gradient by a batch of embeddings (two views of 32 images, 32 features, float64, fixed seed), and
after the slash of its part that differs between rows, the only one that can pull rows apart. 0 is less than 1e-12.
`python python_tests/collapse.py --write` writes this page, and a test compares it.

*healthy*: random rows; *collapse*: all rows equal; *near collapse*: with noise of 1e-3 on each number; *rank 1*:
multiples, of both signs, of one row; *near rank 1*: with noise of 1e-3. The predictors of BYOL and SimSiam are the
identity, their targets the other view; SwAV has 16 random prototypes, MAE random targets; k is 16 in LDReg.

{table}

{reading}
"""

_READING = """How to read it: where the number after the slash is 0 at collapse, the loss cannot leave it, since equal
rows have equal gradients ({zero}); near collapse, it hardly pulls rows apart, or not at all, where that number is less
than a tenth of the healthy one ({weak}), and it does so the harder the nearer rows are where it is more than ten times
that ({strong})."""


if __name__ == "__main__":
    page = render()
    if "--write" in sys.argv:
        PAGE.parent.mkdir(exist_ok=True)
        PAGE.write_text(page, encoding="utf-8")
    print(page, end="")
