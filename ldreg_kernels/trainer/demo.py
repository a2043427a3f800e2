"""`ldreg demo`: SimCLR, BYOL and MAE on real images, one table, three figures.

    none          the method's own loss
    ldreg-naive   + beta * R, R = -mean ln LID, by cdist, sort and autograd
    ldreg         the same R by the fused op
    minlid        + R with the sign turned (SimCLR): pushes LID down, and with it the rank; shows the mechanism
    controls      raw pixels, and the same networks with random weights

What it shows: fused and naive training agree for every method, the fused regulariser costs less, and LID controls the
collapse of dimensions. What it does not show: that LDReg improves accuracy. One seed on a few thousand small images
cannot; the controls say how much of each number comes for free.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, nn

from ..kernels.reference import published_lid
from .comparison import RegulariserClock
from .config import TrainConfig, make_config
from .data import load_data
from .data.files import folders
from .engine import TrainingResult, prepare, train
from .evaluation import Evaluation, encode, judge
from .methods.base import Output
from .plots import plot_geometry, plot_losses, plot_spectra
from .regularisers import Regulariser, build_regulariser
from .run_folder import RunFolder, environment, write_json
from .step_log import Observer, Step
from .terminal import results_table

METHODS = ("simclr", "byol", "mae")
REGULARISERS = ("none", "ldreg-naive", "ldreg")

_FIRST, _GAP = 3, 1e-3  # steps in which fused and naive losses are held against each other, and how far apart

# Sizes that fit ten runs into six minutes of two cores.
_SIZES: dict[str, dict[str, Any]] = {
    "fashion-mnist": {
        "data.train_images": 2560,
        "data.test_images": 1500,
        "epochs": 6,
        "evaluation.every_epochs": 2,
    },
    "digits": {},
}


@dataclass(frozen=True)
class Case:
    """One training of the demo."""

    method: str
    regulariser: str  # none, ldreg-naive, ldreg or minlid
    config: TrainConfig

    @property
    def name(self) -> str:
        """Of its folder and its row."""
        return f"{self.method}-{self.regulariser}"


@dataclass(frozen=True)
class Demo:
    """What the runs gave.

    Attributes:
        cases: what was trained.
        results: curves and final numbers of each, by the case's name.
        controls: raw pixels and random networks.
        milliseconds: for each method, the median time of the regulariser, forward and backward: "published",
            "ldreg-naive" and "ldreg", timed in turn on the features of the same steps.
    """

    cases: Sequence[Case]
    results: Mapping[str, TrainingResult]
    controls: Mapping[str, Evaluation]
    milliseconds: Mapping[str, Mapping[str, float]]

    @property
    def agree(self) -> bool:
        """Whether fused and naive training go together in the first steps of every method, before roundings have grown.

        They grow about tenfold per step (checks.py): from 1e-6 they stay below 1e-3 for three. `ldreg verify` is the
        proof, this the sign that something is broken.
        """
        return all(self.gap(method) < _GAP for method in self.milliseconds)

    @property
    def lowered(self) -> bool:
        """Whether MinLID visibly did what it is there to show, against no regulariser: effective rank at least a fifth
        lower (seeds alone move it by about that much), and a lower LID.
        """
        plain, minlid = (self.results[f"simclr-{name}"].final.geometry for name in ("none", "minlid"))
        lower_rank = minlid.effective_rank < 0.8 * plain.effective_rank
        return lower_rank and minlid.lid_geometric_mean < plain.lid_geometric_mean

    def gap(self, method: str) -> float:
        """The largest difference of the naive and the fused loss over the first steps."""
        naive, fused = (self.results[f"{method}-{name}"].steps for name in ("ldreg-naive", "ldreg"))
        return max(abs(a["loss"] - b["loss"]) for a, b in zip(naive[:_FIRST], fused[:_FIRST], strict=True))

    def sentences(self) -> list[str]:
        """What may be read from the table, no more."""
        methods = list(self.milliseconds)
        gaps = ", ".join(f"{method} {self.gap(method):.1e}" for method in methods)
        times = "; ".join(
            f"{method} fused {ms['ldreg']:.1f} ms, as published {ms['published']:.1f} ms "
            f"({ms['published'] / ms['ldreg']:.1f} times), reference {ms['ldreg-naive']:.1f} ms"
            for method, ms in self.milliseconds.items()
        )
        plain, minlid = (self.results[f"simclr-{name}"].final.geometry for name in ("none", "minlid"))
        what = "lowered" if self.lowered else "did NOT lower by a fifth"
        return [
            f"Fused and naive losses differ over the first {_FIRST} steps by at most: {gaps}"
            f"{'' if self.agree else f', which is MORE THAN {_GAP:g}'}. Later they part as any two trainings do that "
            "differ by a rounding (`ldreg verify` measures it).",
            f"Forward and backward of the regulariser, timed in turn on the same features: {times}.",
            f"MinLID {what}: effective rank {plain.effective_rank:.1f} to {minlid.effective_rank:.1f}, "
            f"LID {plain.lid_geometric_mean:.2f} to {minlid.lid_geometric_mean:.2f}.",
            "One seed: whether LDReg changes accuracy cannot be read from this table. The controls (raw pixels, random "
            "networks) say what comes without any training.",
        ]


def demo_cases(
    *, dataset: str | None = None, root: Path | None = None, epochs: int | None = None, seed: int = 0
) -> list[Case]:
    """The trainings of the demo.

    Args:
        dataset: its name; None takes Fashion-MNIST if it is on this machine, else digits.
        root: its folder.
        epochs: of each run; None takes what fits six minutes of two cores.
        seed: of each run.

    Returns:
        Ten cases.

    Raises:
        ConfigError: the data set is not there.
    """
    if dataset is None:
        here = root is not None or any(place.is_dir() for place in folders("fashion-mnist", None))
        dataset = "fashion-mnist" if here else "digits"
    changes = _SIZES.get(dataset, _SIZES["fashion-mnist"]) | {"data.dataset": dataset, "seed": seed}
    changes |= {"data.root": str(root)} if root is not None else {}
    changes |= {"epochs": epochs} if epochs is not None else {}
    cases = []
    for method in METHODS:
        # No checkpoints: a demo is not resumed.
        config = make_config({}, {"method.name": method, "checkpoint_every_epochs": 0, **changes})
        cases += [Case(method, name, config.with_regulariser(name)) for name in REGULARISERS]
        if method == "simclr":
            cases.append(Case(method, "minlid", config.with_regulariser("minlid", weight=1.0)))
    load_data(cases[0].config.data)  # fails now rather than after the first bar
    return cases


def run_demo(folder: Path, cases: Sequence[Case], *, watch: Callable[[str], Observer] | None = None) -> Demo:
    """Train the cases and write their folders, the figures and demo.json.

    Args:
        folder: everything goes here; earlier demo runs in it are replaced.
        cases: what to train.
        watch: gives an observer for each run.

    Returns:
        The results.

    Raises:
        NoBackendError: no fused backend runs here.
        RunFolderError: a folder that is in the way holds something that is not a run.
    """
    for case in cases:  # now rather than after the first trainings
        RunFolder.check(folder / case.name, overwrite=True)
    results, milliseconds = {}, {}
    for case in cases:
        run = RunFolder.create(folder / case.name, case.config, overwrite=True)
        observers = [watch(case.name)] if watch else []
        clock = _Clock(case.config)
        if case.regulariser == "ldreg":
            observers.append(clock)
        results[case.name] = train(case.config, run, observers=observers)
        if case.regulariser == "ldreg":
            milliseconds[case.method] = clock.medians()
    demo = Demo(cases, results, controls(cases), milliseconds)
    _write(folder, demo)
    return demo


def controls(cases: Sequence[Case]) -> dict[str, Evaluation]:
    """The same numbers for raw pixels, and for each encoder of the cases with random weights.

    Args:
        cases: whose data and encoders are meant.

    Returns:
        Evaluations by name.
    """
    found: dict[str, Evaluation] = {}
    for case in cases:
        name = f"random {case.config.encoder.name}"
        if name in found:
            continue
        run = prepare(case.config, regularisers=[])
        networks: dict[str, nn.Module] = {name: run.bare_method.encoder}
        if not found:
            networks = {"raw pixels": nn.Flatten(), **networks}
        for control, network in networks.items():
            train_part, test_part = (encode(network, part, run.clean) for part in (run.data.train, run.data.test))
            found[control] = judge(train_part, test_part, case.config.evaluation)
    return found


def demo_table(demo: Demo) -> Table:
    """One row for each run and each control.

    Args:
        demo: the results.

    Returns:
        The table.
    """
    times = {
        case.name: f"{demo.milliseconds[case.method][case.regulariser]:.1f}"
        for case in demo.cases
        if case.regulariser in demo.milliseconds.get(case.method, {})
    }
    dataset = demo.cases[0].config.data.dataset
    rows = {name: result.final for name, result in demo.results.items()} | dict(demo.controls)
    return results_table(f"Frozen encoders, held-out {dataset}", rows, {"LID term, ms": times})


class _Clock(Observer):
    """Times the published form, the reference and the fused op on the outputs of a run's steps.

    Args:
        config: with one regulariser.
    """

    def __init__(self, config: TrainConfig) -> None:
        self._config = config
        self._clock: RegulariserClock | None = None

    def step(self, step: Step) -> None:
        """Time each once."""
        if self._clock is None:  # the first step tells the device
            self._clock = RegulariserClock(_computations(self._config, step.output.features.device))
        self._clock.step(step)

    def medians(self) -> dict[str, float]:
        """Median milliseconds by name."""
        return self._clock.medians() if self._clock is not None else {}


def _computations(config: TrainConfig, device: torch.device) -> dict[str, Callable[[Output], Tensor]]:
    k = config.regularisers[0].k

    def as_published(output: Output) -> Tensor:
        references = [output.features.detach()]
        if output.extra_references is not None:
            references.append(output.extra_references)
        return -published_lid(output.features, torch.cat(references), k).log().mean()

    def value(name: str) -> Callable[[Output], Tensor]:
        regulariser: Regulariser = build_regulariser(config.with_regulariser(name).regularisers[0], device)
        return lambda output: regulariser(output).value

    return {"published": as_published, "ldreg-naive": value("ldreg-naive"), "ldreg": value("ldreg")}


def _write(folder: Path, demo: Demo) -> None:
    results = demo.results

    def by_method(names: Sequence[str]) -> dict[str, dict[str, TrainingResult]]:
        return {
            m: {n: results[f"{m}-{n}"] for n in names if f"{m}-{n}" in results}
            for m in dict.fromkeys(case.method for case in demo.cases)
        }

    every = (*REGULARISERS, "minlid")
    curves = by_method(("ldreg-naive", "ldreg"))
    plot_losses(folder / "losses.png", {m: {n: r.steps for n, r in runs.items()} for m, runs in curves.items()})
    runs = by_method(every)
    plot_geometry(folder / "lid_and_rank.png", {m: {n: r.geometries for n, r in rs.items()} for m, rs in runs.items()})
    plot_spectra(folder / "spectra.png", {m: {n: r.final.spectrum for n, r in rs.items()} for m, rs in runs.items()})
    write_json(
        folder / "demo.json",
        {
            "table": {name: result.final.numbers() for name, result in results.items()}
            | {name: control.numbers() for name, control in demo.controls.items()},
            "regulariser_ms_per_step": demo.milliseconds,
            "says": demo.sentences(),
            "environment": environment(),
        },
    )
