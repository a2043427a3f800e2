"""`ldreg verify`: is training with the fused regulariser the same as training with the naive one, for this method?

Three questions, from sharp to blunt; the answer is yes only if every check passes.

1. On the same features, and with the method's extra references, at every step of a run: do value and gradient agree
   with the naive computation in float64? Limits from the precision contract: 1e-5 for R, 1e-5 in L2 for the gradient
   given the neighbours.
2. From one seed, do two trainings stay together? Training is chaotic: a difference of one rounding grows
   about tenfold per step at first and is as large as the batch noise after a dozen, so no fixed limit on late
   losses means anything. The yardstick is training against itself: naive again, three times, from initial
   weights changed by 1e-7 relative, about one unit in the last place. In the first epochs, fused may drift
   from naive at most ten times (one step of growth) as far as the worst of the three did up to the same step.
   This sees a gradient that does not arrive, has the wrong sign or the wrong scale where the weight beta
   makes it matter; errors of a per cent are the business of question 1. At step 0 the weights are equal: so
   must be the losses.
3. Are the finished encoders equally good? Accuracies on M held-out images may differ by three standard errors
   of a difference, effective rank and LID by fixed shares. The weakest check: it notices a run that went
   wrong, not an imprecise one.

Beside the verdict: the share of a training step that the regulariser takes, naive and fused.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from .checks import Check, Curve, Tolerances, allowed_drift, curve_checks, drift, final_checks, step_checks
from .comparison import RegulariserClock, StepComparison, compare
from .config import ConfigError, TrainConfig
from .engine import prepare, step_log, train, train_one_epoch
from .methods.base import Output
from .plots import plot_verification
from .randomness import derive
from .recorder import Recorder
from .regularisers import Regulariser, build_regulariser
from .run_folder import environment, require_writable, write_json
from .step_log import Observer, Step

Watch = Callable[[str], Observer]  # the name of a training -> an observer that shows its progress


@dataclass(frozen=True)
class Cost:
    """What a step costs, in milliseconds, and the part of it that is the regulariser.

    The step is that of the fused training. The regulariser is timed alone, forward and backward, naive and fused in
    turn, on the features of the same steps. A step with the naive form is worked out: this one, less the fused, plus
    the naive.
    """

    step: float
    naive: float
    fused: float

    @property
    def shares(self) -> tuple[float, float]:
        """The regulariser's share of a step, naive and fused."""
        return self.naive / (self.step - self.fused + self.naive), self.fused / self.step


@dataclass(frozen=True)
class Report:
    """Everything a verification found."""

    checks: list[Check]
    steps: list[StepComparison]
    finals: dict[str, dict[str, float]] = field(default_factory=dict)  # numbers of each training
    cost: Cost | None = None

    @property
    def passed(self) -> bool:
        """Whether every check passed, and there was something to check."""
        return bool(self.steps) and all(check.passed for check in self.checks)

    @property
    def tied_rows(self) -> tuple[int, int]:
        """Rows left out of the gradient comparison, and rows in all."""
        return sum(s.unjudged for s in self.steps), sum(s.rows for s in self.steps)


def verify(
    config: TrainConfig,
    folder: Path | None = None,
    *,
    fused: Regulariser | None = None,
    watch: Watch | None = None,
    tolerances: Tolerances | None = None,
) -> Report:
    """Train both ways, measure how far training drifts by itself, and compare; see the top of the file.

    Args:
        config: the run; the name of its one regulariser is replaced by `ldreg` and `ldreg-naive`.
        folder: verification.json and verification.png go here; None writes nothing.
        fused: what is under test; None takes the fused op.
        watch: gives an observer for each training.
        tolerances: limits.

    Returns:
        The report; `report.passed` is the verdict.

    Raises:
        ConfigError: there is not exactly one regulariser, it is not added in the first epochs, or its backend is the
            reference, which would be compared with itself.
        RunFolderError: the folder cannot be written.
        NoBackendError: no fused backend runs here.
    """
    if len(config.regularisers) != 1:
        raise ConfigError(f"regularisers: exactly one can be verified, got {len(config.regularisers)}")
    if fused is None and config.regularisers[0].backend == "reference":
        raise ConfigError("regularisers.0.backend: must not be reference here, it would be compared with itself")
    if folder is not None:
        require_writable(folder)
    limits = tolerances or Tolerances()
    regulariser = config.regularisers[0]
    if not regulariser.weight or regulariser.warmup_epochs >= min(limits.drift_epochs, config.epochs):
        raise ConfigError(
            "regularisers.0: must be added in the first epochs, or two trainings without it would be compared; got "
            f"weight={regulariser.weight}, warmup_epochs={regulariser.warmup_epochs}"
        )
    naive_config, fused_config = config.with_regulariser("ldreg-naive"), config.with_regulariser("ldreg")
    comparer = StepComparer(naive_config, fused_config, fused, limits)

    def watching(name: str) -> list[Observer]:
        return [watch(name)] if watch else []

    fused_run = train(
        fused_config,
        regularisers=None if fused is None else [fused],
        observers=[comparer, *watching("fused, compared with naive")],
    )
    naive_run = train(naive_config, observers=watching("naive"))
    yardsticks = [
        yardstick(
            naive_config,
            limits,
            seed,
            watching(f"naive, weights changed by {limits.perturbation:g} ({seed + 1})"),
        )
        for seed in range(limits.yardsticks)
    ]
    checks = [
        *step_checks(comparer.steps, limits),
        *curve_checks(naive_run.steps, fused_run.steps, yardsticks, limits),
        *final_checks(naive_run.final, fused_run.final, limits),
    ]
    finals = {"naive": naive_run.final.numbers(), "fused": fused_run.final.numbers()}
    step_milliseconds = 1e3 * config.batch_size / fused_run.images_per_second
    report = Report(checks, comparer.steps, finals, Cost(step_milliseconds, **comparer.clock.medians()))
    if folder is not None:
        _write(folder, report, config, limits, naive_run.steps, fused_run.steps, yardsticks)
    return report


class StepComparer(Observer):
    """Compares fused and naive on every step's output, and times both.

    Args:
        naive_config: a run with the naive regulariser.
        fused_config: the same run with the fused one.
        fused: what is under test, in place of the configured one.
        limits: the gap below which a row is not judged.
    """

    def __init__(
        self,
        naive_config: TrainConfig,
        fused_config: TrainConfig,
        fused: Regulariser | None,
        limits: Tolerances,
    ) -> None:
        self.steps: list[StepComparison] = []
        self.clock = RegulariserClock({})
        self._configs = (naive_config.regularisers[0], fused_config.regularisers[0])
        self._given = fused
        self._pair: tuple[Regulariser, Regulariser] | None = None
        self._gap = limits.gap

    def step(self, step: Step) -> None:
        """Compare on the output of a step."""
        if self._pair is None:  # the first step tells the device
            naive, fused = (build_regulariser(config, step.output.features.device) for config in self._configs)
            self._pair = naive, self._given or fused
            self.clock = RegulariserClock({"naive": _value(self._pair[0]), "fused": _value(self._pair[1])})
        self.steps.append(compare(step.time.step, step.output, *self._pair, k=self._configs[0].k, gap=self._gap))
        self.clock.step(step)


def _value(regulariser: Regulariser) -> Callable[[Output], Tensor]:
    return lambda output: regulariser(output).value


def yardstick(config: TrainConfig, limits: Tolerances, seed: int, observers: Sequence[Observer] = ()) -> Curve:
    """The first epochs of a training from weights that were changed by about one rounding.

    Args:
        config: the training.
        limits: size of the change, and how many epochs.
        seed: of the change; the run's own random numbers are not touched.
        observers: watch the training.

    Returns:
        Step records.
    """
    run = prepare(config)
    with torch.no_grad():
        for parameter in run.method.parameters():
            # The noise follows from what is in the tensor, so that a momentum network that begins as a copy stays one:
            # references at 1e-7 from their queries would be another training, not the same one 1e-7 apart.
            content = zlib.crc32(parameter.cpu().numpy().tobytes())
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(derive(seed, content)))
            parameter.mul_(1 + limits.perturbation * noise.to(parameter.device))
    recorder = Recorder()
    log = step_log(run, [recorder, *observers])
    for epoch in range(min(limits.drift_epochs, config.epochs)):
        train_one_epoch(run, epoch, log)
    return recorder.steps


def _write(
    folder: Path,
    report: Report,
    config: TrainConfig,
    limits: Tolerances,
    naive: Curve,
    fused: Curve,
    yardsticks: Sequence[Curve],
) -> None:
    write_json(
        folder / "verification.json",
        {
            "passed": report.passed,
            "checks": [{**asdict(check), "passed": check.passed} for check in report.checks],
            "tolerances": asdict(limits),
            "finals": report.finals,
            "cost_milliseconds": None if report.cost is None else asdict(report.cost),
            "steps": [step.numbers() for step in report.steps],
            "curves": {"naive": naive, "fused": fused, "yardsticks": yardsticks},
            "config": config.model_dump(mode="json"),
            "environment": environment(),
        },
    )
    plot_verification(
        folder / "verification.png",
        [step.numbers() for step in report.steps],
        {
            "fused against naive": drift(naive, fused),
            "naive against itself, 1e-7 apart": drift(naive, yardsticks[0]),
            "allowed": allowed_drift(naive, yardsticks, limits),
        },
        {f"limit {limits.value:g}": limits.value},
    )
