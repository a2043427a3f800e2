"""The figures of a run, a comparison and the demo, as PNG files.

Colours are Okabe and Ito's, which colour-blind readers can tell apart; lines that should coincide differ in
width and dash, so that the lower one stays visible. Figures are made without pyplot, so nothing is global and
no display is needed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

Records = Sequence[Mapping[str, Any]]

_STYLES: dict[str, dict[str, Any]] = {
    "none": {"color": "#555555", "linestyle": "-", "linewidth": 2},
    "ldreg-naive": {"color": "#56B4E9", "linestyle": "-", "linewidth": 5},
    "ldreg": {"color": "#0072B2", "linestyle": "--", "linewidth": 2},
    "minlid": {"color": "#D55E00", "linestyle": "-", "linewidth": 2},
}
_LABELS = {
    "none": "no regulariser",
    "ldreg-naive": "LDReg, naive",
    "ldreg": "LDReg, fused",
    "minlid": "MinLID, fused",
}


def plot_run(path: Path, steps: Records, geometries: Records) -> None:
    """Loss per step, and LID and effective rank of held-out features over time, of one run.

    Args:
        path: the PNG.
        steps: step records.
        geometries: geometry records.
    """
    figure, ((left, middle, right),) = _grid(1, 3)
    left.plot(_column(steps, "step"), _column(steps, "loss"), color="#0072B2", label="total")
    left.plot(_column(steps, "step"), _column(steps, "ssl_loss"), color="#E69F00", linestyle="--", label="method's own")
    _name(left, "Training loss", "optimiser step", "loss", legend=True)
    _geometry_panels(middle, right, {"": geometries})
    _save(figure, path)


def plot_losses(path: Path, methods: Mapping[str, Mapping[str, Records]]) -> None:
    """Total loss per step of naive and fused training, and how far apart the two curves are; a row for each method.

    Args:
        path: the PNG.
        methods: step records under "ldreg-naive" and "ldreg", by method.
    """
    figure, grid = _grid(len(methods), 2)
    for (method, runs), (left, right) in zip(methods.items(), grid, strict=True):
        for name, steps in runs.items():
            left.plot(_column(steps, "step"), _column(steps, "loss"), label=_LABELS[name], **_STYLES[name])
        _name(left, f"{method}: training loss, same seed", "optimiser step", "total loss", legend=True)
        naive, fused = runs["ldreg-naive"], runs["ldreg"]
        gap = [abs(a["loss"] - b["loss"]) for a, b in zip(naive, fused, strict=True)]
        right.semilogy(_column(naive, "step"), _positive(gap), color="#0072B2", marker=".", linewidth=1)
        _name(right, f"{method}: |naive - fused| (zeros left out)", "optimiser step", "difference of the loss")
    _save(figure, path)


def plot_geometry(path: Path, methods: Mapping[str, Mapping[str, Records]]) -> None:
    """Geometric-mean LID and effective rank of held-out features over time, one line per run, a row for each method.

    Args:
        path: the PNG.
        methods: geometry records by run, by method.
    """
    figure, grid = _grid(len(methods), 2)
    for (method, runs), (left, right) in zip(methods.items(), grid, strict=True):
        _geometry_panels(left, right, runs, f"{method}: ")
    _save(figure, path)


def plot_spectra(path: Path, methods: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
    """Covariance spectra of held-out features, logarithmic, one line per run, a panel for each method.

    Args:
        path: the PNG.
        methods: eigenvalues, largest first, by run, by method.
    """
    figure, (panels,) = _grid(1, len(methods))
    for (method, spectra), axes in zip(methods.items(), panels, strict=True):
        for name, spectrum in spectra.items():
            # Each relative to its own largest value: the overall scale of the features carries no information
            # about rank.
            floor = 1e-12 * spectrum[0]  # below: rounding of a float32 encoder
            visible = [value / spectrum[0] for value in spectrum if value > floor]
            axes.semilogy(range(1, len(visible) + 1), visible, label=_LABELS[name], **_STYLES[name])
        _name(
            axes,
            f"{method}: spectrum of the feature covariance",
            "index k, largest first",
            "singular value relative to the largest",
            legend=True,
        )
    _save(figure, path)


def plot_verification(
    path: Path, steps: Records, drifts: Mapping[str, Sequence[float]], limits: Mapping[str, float]
) -> None:
    """Differences of value and gradient per step, and how far whole trainings drift apart.

    Args:
        path: the PNG.
        steps: one mapping per step with "step", "value_difference" and "gradient_difference".
        drifts: curves of |loss difference| per step, by label.
        limits: horizontal lines, by label, in the left panel.
    """
    figure, ((left, right),) = _grid(1, 2)
    index = _column(steps, "step")
    left.semilogy(
        index, _positive(_column(steps, "gradient_difference")), color="#0072B2", marker=".", label="gradient"
    )
    left.semilogy(index, _positive(_column(steps, "value_difference")), color="#E69F00", marker=".", label="value R")
    for label, limit in limits.items():
        left.axhline(limit, color="#D55E00", linestyle=":", label=label)
    _name(
        left,
        "Fused against naive float64, same features",
        "optimiser step",
        "relative difference",
        legend=True,
    )
    colours = ("#0072B2", "#999999", "#D55E00")
    for (label, drift), colour in zip(drifts.items(), colours, strict=False):
        right.semilogy(range(len(drift)), _positive(drift), color=colour, marker=".", label=label)
    _name(
        right,
        "Two trainings from one seed",
        "optimiser step",
        "difference of the total loss",
        legend=True,
    )
    _save(figure, path)


def _geometry_panels(lid_axes: Axes, rank_axes: Axes, runs: Mapping[str, Records], title: str = "") -> None:
    for name, records in runs.items():
        style = _STYLES.get(name, _STYLES["ldreg"] | {"linestyle": "-"})
        epochs = [record["epoch"] + 1 for record in records]
        lid_axes.plot(epochs, _column(records, "lid_geometric_mean"), label=_LABELS.get(name), **style)
        rank_axes.plot(epochs, _column(records, "effective_rank"), label=_LABELS.get(name), **style)
    several = len(runs) > 1
    _name(lid_axes, f"{title}LID, held-out images", "epoch", "geometric-mean LID (dimensions)", legend=several)
    _name(rank_axes, f"{title}effective rank, held-out images", "epoch", "effective rank (dimensions)", legend=several)


def _column(records: Records, name: str) -> list[float]:
    values = (record.get(name) for record in records)
    return [math.nan if value is None else float(value) for value in values]


def _positive(values: Sequence[float]) -> list[float]:
    """Zeros have no place on a logarithmic axis; they are left out rather than drawn at an invented
    height.
    """
    return [value if value > 0 else math.nan for value in values]


def _grid(rows: int, columns: int) -> tuple[Figure, list[list[Axes]]]:
    figure = Figure(figsize=(6.0 * columns, 4.5 * rows), layout="constrained")
    return figure, [
        [figure.add_subplot(rows, columns, r * columns + c + 1) for c in range(columns)] for r in range(rows)
    ]


def _name(axes: Axes, title: str, x: str, y: str, *, legend: bool = False) -> None:
    axes.set_title(title, fontsize=14)
    axes.set_xlabel(x, fontsize=13)
    axes.set_ylabel(y, fontsize=13)
    axes.tick_params(labelsize=12)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))  # steps, epochs and indices are whole numbers
    axes.grid(alpha=0.3)
    if legend:
        axes.legend(fontsize=12)


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
