"""`ldreg demo`: four trainings on digits from one seed, one table, three figures.

    none          NT-Xent alone
    ldreg-naive   + beta * R, R = -mean ln LID, by cdist, sort and autograd
    ldreg         the same R by the fused op
    minlid        + R with the sign turned: pushes LID down, and with it the rank; shows the mechanism

What it shows: fused and naive training agree, the fused regulariser costs less, and LID controls the collapse of
dimensions. What it does not show: that LDReg improves accuracy. One seed on 1347 small images cannot; differences
of the first three rows are of the size of the noise.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..kernels.reference import published_lid
from .config import TrainConfig, make_config
from .engine import Observer, Step, TrainingResult, train
from .plots import plot_geometry, plot_losses, plot_spectra
from .regulariser import Regulariser, build_regulariser, milliseconds
from .run_folder import RunFolder, environment, write_json

CASES: dict[str, dict[str, Any]] = {
    "none": {"regulariser.name": "none"},
    "ldreg-naive": {"regulariser.name": "ldreg-naive", "regulariser.weight": 0.1},
    "ldreg": {"regulariser.name": "ldreg", "regulariser.weight": 0.1},
    "minlid": {"regulariser.name": "minlid", "regulariser.weight": 1.0},
}


@dataclass(frozen=True)
class Demo:
    """What the four runs gave.

    Attributes:
        results: curves and final numbers of each run.
        milliseconds: median time of the regulariser, forward and backward, by run, and of the published form
            under "published". All are timed in turn on the features of the same steps, so that a machine that
            is slow for a while is slow for all of them.
    """

    results: dict[str, TrainingResult]
    milliseconds: dict[str, float]

    @property
    def collapsed(self) -> bool:
        """Whether MinLID visibly did what it is there to show, against no regulariser: effective rank at least a fifth
        lower (seeds alone move it by about that much), and a lower LID.
        """
        plain, minlid = self._geometry("none"), self._geometry("minlid")
        lower_rank = minlid.effective_rank < 0.8 * plain.effective_rank
        return lower_rank and minlid.lid_geometric_mean < plain.lid_geometric_mean

    def sentences(self) -> list[str]:
        """What may be read from the table, no more."""
        naive, fused = self.results["ldreg-naive"].steps, self.results["ldreg"].steps
        gap = max(abs(a["loss"] - b["loss"]) for a, b in zip(naive[:5], fused[:5], strict=True))
        fused_ms = self.milliseconds["ldreg"]
        times = f"fused {fused_ms:.1f} ms" + "".join(
            f"; {label} {self.milliseconds[name]:.1f} ms, {self.milliseconds[name] / fused_ms:.1f} times as long"
            for name, label in (
                ("published", "as published (matrix-product cdist, sort, autograd)"),
                ("ldreg-naive", "reference (exact cdist, sort, autograd)"),
            )
        )
        verb = "collapsed" if self.collapsed else "did NOT collapse"
        plain, minlid = self._geometry("none"), self._geometry("minlid")
        return [
            f"Fused and naive losses differ by at most {gap:.1e} over the first 5 steps; later they part as "
            "any two trainings do that differ by a rounding (`ldreg verify` measures it).",
            f"Forward and backward of the regulariser on 2N rows, timed in turn on the same features: {times}.",
            f"MinLID {verb}: effective rank {plain.effective_rank:.1f} to {minlid.effective_rank:.1f}, "
            f"LID {plain.lid_geometric_mean:.2f} to {minlid.lid_geometric_mean:.2f}.",
            "One seed, small images: differences between the first three rows are of the size of the noise "
            "and prove nothing about accuracy.",
        ]

    def _geometry(self, name: str) -> Any:
        return self.results[name].final.geometry


class RegulariserClock:
    """An observer that times every way to compute the regulariser, in turn, on the features of every step.

    Args:
        config: what the runs have in common.
    """

    def __init__(self, config: TrainConfig) -> None:
        self._config = config
        self._computations: dict[str, Callable[[Tensor], Tensor]] = {}
        self._samples: dict[str, list[float]] = {}

    def __call__(self, step: Step) -> None:
        """Time each once.

        Args:
            step: what the engine hands out.
        """
        if not self._computations:  # the first step tells the device
            self._computations = _computations(self._config, step.features.device)
        for name, compute in self._computations.items():
            self._samples.setdefault(name, []).append(milliseconds(compute, step.features))

    def medians(self) -> dict[str, float]:
        """Median milliseconds by name; a median, because the first calls are cold."""
        return {name: statistics.median(samples) for name, samples in self._samples.items()}


def _computations(config: TrainConfig, device: torch.device) -> dict[str, Callable[[Tensor], Tensor]]:
    """Every regulariser of `CASES`, and the published form, as functions of the features."""

    def as_published(features: Tensor) -> Tensor:
        return -published_lid(features, features.detach(), config.regulariser.k).log().mean()

    computations: dict[str, Callable[[Tensor], Tensor]] = {"published": as_published}
    for name, changes in CASES.items():
        regulariser = build_regulariser(config.derive(changes).regulariser, device)
        if regulariser is not None:
            computations[name] = partial(_value, regulariser)
    return computations


def _value(regulariser: Regulariser, features: Tensor) -> Tensor:
    return regulariser(features)[0]


def demo_config(*, epochs: int = 10, seed: int = 0) -> TrainConfig:
    """What the four runs have in common: ResNet-18, 256 images per step, so 512 rows for the regulariser.

    Args:
        epochs: of each run.
        seed: of each run.

    Returns:
        The configuration; `CASES` says what differs.
    """
    # No checkpoints: a demo is not resumed, and each would be 130 MB.
    return make_config({"seed": seed, "epochs": epochs, "checkpoint_every_epochs": 0})


def run_demo(folder: Path, config: TrainConfig, *, watch: Callable[[str], Observer] | None = None) -> Demo:
    """Train the four cases and write their folders, the figures and demo.json.

    Args:
        folder: everything goes here; earlier demo runs in it are replaced.
        config: what the runs have in common.
        watch: gives an observer for each run.

    Returns:
        The results.

    Raises:
        NoBackendError: no fused backend runs here.
    """
    results = {}
    clock = RegulariserClock(config)
    for name, changes in CASES.items():
        case = config.derive(changes)
        run = RunFolder.create(folder / name, case, overwrite=True)
        observers = [watch(name)] if watch else []
        if name == "ldreg":
            observers.append(clock)
        results[name] = train(case, run, observers=observers)
    demo = Demo(results, clock.medians())
    _write(folder, demo)
    return demo


def _write(folder: Path, demo: Demo) -> None:
    results = demo.results
    plot_losses(folder / "losses.png", {name: results[name].steps for name in ("ldreg-naive", "ldreg")})
    plot_geometry(folder / "lid_and_rank.png", {name: r.geometries for name, r in results.items()})
    plot_spectra(folder / "spectra.png", {name: r.spectrum for name, r in results.items()})
    write_json(
        folder / "demo.json",
        {
            "table": {name: result.final.numbers() for name, result in results.items()},
            "regulariser_ms_per_step": demo.milliseconds,
            "says": demo.sentences(),
            "environment": environment(),
        },
    )
