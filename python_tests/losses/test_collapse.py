"""The gradients of all losses at and near collapse: what docs/collapse.md prints, and what it may be read to say."""

from __future__ import annotations

import re

import collapse
import pytest
import torch

from ldreg_kernels import losses

NUMBER = re.compile(r"\d\.\d\de[+-]\d\d")


def test_every_loss_has_a_line() -> None:
    assert {name for name in losses.__all__ if name.endswith("_loss")} <= set(collapse.LOSSES)


def test_the_page_is_what_the_losses_give() -> None:
    """Word for word, and numbers of three digits within 1 % (torch's normals differ between machines in the last)."""
    written, computed = collapse.PAGE.read_text(encoding="utf-8"), collapse.render()
    command = "run python python_tests/collapse.py --write"
    assert NUMBER.sub("#", written) == NUMBER.sub("#", computed), command
    numbers = [[float(number) for number in NUMBER.findall(page)] for page in (written, computed)]
    assert numbers[0] == pytest.approx(numbers[1], rel=0.01), command


def test_states_are_what_they_are_called() -> None:
    ranks = {name: int(torch.linalg.matrix_rank(rows, rtol=1e-8)) for name, rows in collapse.STATES.items()}
    assert ranks == {"healthy": 32, "collapse": 1, "near collapse": 32, "rank 1": 1, "near rank 1": 32}
    assert all(rows.shape == (64, 32) for rows in collapse.STATES.values())
    assert bool((collapse.STATES["collapse"] == collapse.STATES["collapse"][0]).all())


ZERO, SMALL, LIKE, LARGE = "0", "less than a tenth", "of the same order", "more than ten times"


def order(value: float, healthy: float) -> str:
    if value < collapse.ZERO:
        return ZERO
    return SMALL if value < healthy / 10 else LARGE if value > 10 * healthy else LIKE


@pytest.mark.parametrize(
    ("name", "whole", "between_rows"),
    [
        # The gradient at collapse and near it, and its part that differs between rows, against that of healthy rows.
        ("nt_xent_loss", (ZERO, SMALL), (ZERO, SMALL)),
        ("info_nce_loss", (ZERO, SMALL), (ZERO, SMALL)),
        ("nnclr_loss", (ZERO, SMALL), (ZERO, SMALL)),
        ("sigmoid_loss", (ZERO, SMALL), (ZERO, SMALL)),
        ("alignment_loss", (ZERO, SMALL), (ZERO, SMALL)),
        ("uniformity_loss", (ZERO, SMALL), (ZERO, SMALL)),
        ("byol_loss", (ZERO, SMALL), (ZERO, SMALL)),
        ("simsiam_loss", (ZERO, SMALL), (ZERO, SMALL)),
        ("swav_loss", (LIKE, LIKE), (ZERO, SMALL)),
        ("mae_loss", (LIKE, LIKE), (LIKE, LIKE)),
        ("koleo_loss", (ZERO, LARGE), (ZERO, LARGE)),
        ("sigreg_loss", (LIKE, LIKE), (ZERO, SMALL)),
        ("LDRegLoss", (ZERO, LARGE), (ZERO, LARGE)),
    ],
)
def test_orders_of_magnitude(name: str, whole: tuple[str, str], between_rows: tuple[str, str]) -> None:
    found = collapse.gradients(name)
    for part, expected in enumerate((whole, between_rows)):
        healthy = found["healthy"][part]
        assert tuple(order(found[state][part], healthy) for state in ("collapse", "near collapse")) == expected


def test_rank_1_is_a_minimum_of_losses_of_cosines() -> None:
    """Cosines are +-1, where they are flat; KoLeo sees rows that are equal up to rounding."""
    cosines = ("nt_xent_loss", "info_nce_loss", "nnclr_loss", "sigmoid_loss", "alignment_loss", "uniformity_loss")
    for name in (*cosines, "byol_loss", "simsiam_loss"):
        assert collapse.gradients(name)["rank 1"][0] < collapse.ZERO
    assert collapse.gradients("koleo_loss")["rank 1"][0] > collapse.ROUNDING
