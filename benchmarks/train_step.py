"""What the regulariser costs inside a training step: SimCLR with ResNet-50 or ViT-B on synthetic images.

    f = encoder(two views),  total = NT-Xent(projector(f)) + 0.01 R(f),  backward, optimiser

Three variants of one step: `none` (no R), `naive` (the published form: cdist, sort, autograd, and two more passes for
the LIDs that the published training logs at every step) and `fused` (one call of `ldreg_loss`, the same LIDs from the
same pass). They take turns within every round, on the same weights and the same images, because the speed of a shared
machine drifts.

Nothing is timed before the first step's features gave the right answer (`check`). Augmentation, data loading and
several processes are not part of the step; the networks are transformers' own with random weights.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.util import find_spec
from itertools import count

import torch
from torch import Tensor

import ldreg_kernels as ldk
from ldreg_kernels.kernels.reference import mle, mom, published_lid

from .gate import ROUNDING, ROWS, WrongAnswerError, contract_share, gradient_error
from .records import Row
from .simclr_step import Regulariser, StepCase, Track, TrainStep

VARIANTS = ("none", "naive", "fused")
MIN_ROUNDS = 2
CALLS_ALONE = 3  # of the regulariser in each round: it takes a hundredth of a step, and one call is at chance's mercy
# After the step that gives the gate its features. A GPU chooses algorithms and grows its memory pool in the first ones.
WARM_UP_ROUNDS = {"cpu": 0, "cuda": 3}


# ------------------------------------------------------------------------------------------------- variants


def naive(features: Tensor, k: int, track: Track) -> tuple[Tensor, list[Tensor]]:
    """The published form: one pass of cdist and sort for R, one more for every LID that is logged."""
    x = features.float()  # the paper's distances are float32
    references = x.detach()
    value = -published_lid(x, references, k).log().mean()
    with torch.no_grad():
        return value, [published_lid(references, references, tracked_k, name) for name, tracked_k in track]


def fused(features: Tensor, k: int, track: Track) -> tuple[Tensor, list[Tensor]]:
    """The fused op: everything from one pass."""
    value, stats = ldk.ldreg_loss(features, k=k, track=track, return_stats=True)
    return value, list(stats.tracked.values())


def fused_reason(device: torch.device) -> str | None:
    """Why no fused backend runs on this device, or None. `auto` would take the reference there."""
    found = ldk.backends()
    reasons = {name: found[name] for name in (("cpu",) if device.type == "cpu" else ("cuda", "triton"))}
    return None if None in reasons.values() else "; ".join(f"{name}: {reason}" for name, reason in reasons.items())


def regularisers(device: torch.device) -> dict[str, Regulariser | None]:
    """The variants that run on this device; `none` has no regulariser."""
    found: dict[str, Regulariser | None] = {"none": None, "naive": naive}
    return found if fused_reason(device) else {**found, "fused": fused}


# ------------------------------------------------------------------------------------------------- the gate

# Of R: the mean of ln LID, each LID within a few 1e-6; relative where R is above 1.
LOSS = 2e-5
# The published form takes its distances from a float32 matrix product: 4e-7 off on features like these, 1e-2 on
# collapsed ones, where it computes something else and its time is no comparison.
PUBLISHED_LOSS = 1e-3
ESTIMATE = {"mom": mom, "mle": mle}


def check(features: Tensor, case: StepCase, device: torch.device) -> str:
    """Refuse to time a wrong answer: R of both forms, logged LIDs and gradient of ours, all against float64.

    Returns:
        Why the published form is not to be timed on these features; empty if it is.

    Raises:
        WrongAnswerError: ours is wrong: what is off, by how much, and what was allowed.
    """
    longest = max([case.k + 1, *(k for _, k in case.track)])
    d = ldk.knn(features.double(), k=longest, backend="reference").distances  # [B, longest]
    truth = -float(mom(d[:, : case.k]).log().mean())
    off, allowed = abs(_answer(naive, features, case)[0] - truth), PUBLISHED_LOSS * max(1.0, abs(truth))
    naive_is_wrong = "" if off <= allowed else f"wrong: R off by {off:.1e} from float64, {allowed:.1e} allowed"
    if fused_reason(device):
        return naive_is_wrong
    value, logged, gradient = _answer(fused, features, case)
    _within("fused: R", abs(value - truth), LOSS * max(1.0, abs(truth)))
    for (name, k), ours in zip(case.track, logged, strict=True):
        share = contract_share(ours.double(), ESTIMATE[name](d[:, :k]))
        _within(f"fused: in units of what is allowed, the LIDs {name} {k} are", share, 1.0)
    _check_gradient(gradient, features, case)
    return naive_is_wrong


def _check_gradient(gradient: Tensor, features: Tensor, case: StepCase) -> None:
    """Some rows of dR / d features [B, D]."""
    rows = torch.linspace(0, case.batch - 1, min(ROWS, case.batch), device=features.device).long()
    error, allowed = gradient_error(gradient[rows], features.double(), rows, case.k, case.batch)
    _within("fused: the gradient", error, allowed + ROUNDING[str(features.dtype).removeprefix("torch.")])


def _answer(regulariser: Regulariser, features: Tensor, case: StepCase) -> tuple[float, list[Tensor], Tensor]:
    """R, the logged LIDs and the gradient of R."""
    leaf = features.detach().clone().requires_grad_()
    value, logged = regulariser(leaf, case.k, case.track)
    (gradient,) = torch.autograd.grad(value, leaf)
    return float(value.detach()), logged, gradient


def _within(what: str, error: float, allowed: float) -> None:
    if not error <= allowed:  # NaN is not within anything
        raise WrongAnswerError(f"{what} off by {error:.1e} from float64, {allowed:.1e} allowed; not timed")


# ------------------------------------------------------------------------------------------------- timing


@dataclass
class Samples:
    """One variant's measurements, one per round."""

    step: list[float] = field(default_factory=list)  # ms
    regulariser: list[float] = field(default_factory=list)  # ms, empty for `none`
    peak: list[float] = field(default_factory=list)  # MB, empty on a CPU


def milliseconds(run: Callable[[], object], device: torch.device) -> float:
    """Time of one call; on a GPU between two events on its stream."""
    if device.type == "cpu":
        start = time.perf_counter()
        run()
        return 1e3 * (time.perf_counter() - start)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)


def take_turn(step: TrainStep, index: int, regulariser: Regulariser | None, into: Samples) -> None:
    """One variant's turn in round `index`: a whole step, then the regulariser alone on that step's features.

    Inside the step autograd interleaves the regulariser's backward with the network's, so it cannot be timed there;
    forward and backward on detached features are exactly its own work.
    """
    device, case = step.device, step.case
    features: list[Tensor] = []
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    into.step.append(milliseconds(lambda: features.append(step.run(index, regulariser)), device))
    if device.type == "cuda":
        into.peak.append(torch.cuda.max_memory_allocated(device) / 1e6)
    if regulariser is not None:
        leaf = features[0].clone().requires_grad_()
        alone = partial(_forward_and_backward, regulariser, leaf, case)
        into.regulariser.append(statistics.median(milliseconds(alone, device) for _ in range(CALLS_ALONE)))


def _forward_and_backward(regulariser: Regulariser, features: Tensor, case: StepCase) -> None:
    features.grad = None  # as in the step, nothing is there to add to
    regulariser(features, case.k, case.track)[0].backward()


def sample(case: StepCase, device: torch.device, seconds: float) -> tuple[int, dict[str, Samples], str]:
    """Feature width D, every variant's samples from rounds that end with the budget, set-up included, and what `check`
    says of the published form.
    """
    deadline = time.perf_counter() + seconds
    step = TrainStep(case, device)
    features = step.run(0, None)
    naive_is_wrong = check(features, case, device)
    variants = {name: r for name, r in regularisers(device).items() if not (name == "naive" and naive_is_wrong)}
    for _ in range(WARM_UP_ROUNDS[device.type]):
        for regulariser in variants.values():
            take_turn(step, 0, regulariser, Samples())
    found = {name: Samples() for name in variants}
    for index in count():
        if index >= MIN_ROUNDS and time.perf_counter() >= deadline:
            break
        names = list(variants)
        for name in names[index % len(names) :] + names[: index % len(names)]:  # nobody is always first
            take_turn(step, index, variants[name], found[name])
    return features.shape[1], found, naive_is_wrong


# ------------------------------------------------------------------------------------------------- rows


def measure_step(case: StepCase, device: torch.device, seconds: float) -> list[Row]:
    """Time a case for about `seconds`, and never less than two rounds.

    Args:
        case: the step.
        device: "cpu", or "cuda" with this process's current GPU.
        seconds: budget; a round that began before its end is finished.

    Returns:
        Rows per variant: time; peak memory on a GPU; for `naive` and `fused` the regulariser's share of the step; for
        `none` and `naive` the ratio to `fused`. What cannot run gives `state` rows with the reason.

    Raises:
        WrongAnswerError: see `check`.
    """
    # dtype: of the network's products. The losses are float32 everywhere.
    dtype = "bfloat16" if device.type == "cuda" else "float32"
    base = Row("train-step", "train_step", "", case.batch, case.batch, 0, case.k, dtype, case.mode, "state")
    if find_spec("transformers") is None:
        return [replace(base, backend=name, note="transformers is not installed") for name in VARIANTS]
    try:
        D, samples, naive_is_wrong = sample(case, device, seconds)
    except torch.OutOfMemoryError:
        return [replace(base, backend=name, note="ran out of GPU memory") for name in VARIANTS]
    base = replace(base, D=D)
    rows = [row for name in samples for row in _rows_of(name, samples, case, base)]
    if naive_is_wrong:
        rows.append(replace(base, backend="naive", note=naive_is_wrong))
    reason = fused_reason(device)
    return rows if reason is None else [*rows, replace(base, backend="fused", note=f"no fused backend: {reason}")]


def _rows_of(name: str, samples: dict[str, Samples], case: StepCase, base: Row) -> list[Row]:
    own, ours = samples[name], samples.get("fused")
    base = replace(base, backend=name, note="" if name == "none" else case.note)
    rows = [summary(base, "time", "ms", own.step)]
    if own.peak:
        everything = replace(base, note="the whole step: weights, optimiser and images included")
        rows.append(summary(everything, "peak memory", "MB", own.peak))
    if own.regulariser:
        alone = statistics.median(own.regulariser)
        note = "; ".join(filter(None, [f"{alone:.3g} ms alone", base.note]))
        share = alone / statistics.median(own.step)  # of medians from the same rounds, so without a spread of its own
        repetitions = len(own.step)
        rows.append(replace(base, statistic="share", unit="1", value=share, repetitions=repetitions, note=note))
    if ours is not None and name != "fused":
        rows.append(summary(base, "ratio", "1", _over(own.step, ours.step)))
    return rows


def _over(a: list[float], b: list[float]) -> list[float]:
    return [x / y for x, y in zip(a, b, strict=True)]


def summary(base: Row, statistic: str, unit: str, values: list[float]) -> Row:
    """The median, with the 20th and 80th percentiles."""
    fifths = statistics.quantiles(values, n=5, method="inclusive")
    middle = statistics.median(values)
    spread = {"value": middle, "low": fifths[0], "high": fifths[-1], "repetitions": len(values)}
    return replace(base, statistic=statistic, unit=unit, **spread)  # type: ignore[arg-type]
