"""The numbers of training steps, read from the device once every `log_every` steps and never in between.

Every step leaves a row of 0-d tensors where they are; a reading stacks the rows, fetches them in one transfer, and
turns them into records. NaN and Inf are found there, with the step they arose in.
"""

from __future__ import annotations

import math
import time as clock
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..metrics import effective_rank
from .methods.base import Output, Time
from .regularisers import Total

_RANK_ROWS = 256  # rows of a batch whose effective rank is shown: a hint on the way, not a measurement


class NonFiniteLossError(RuntimeError):
    """The loss became NaN or Inf; the message says at which step."""


@dataclass(frozen=True)
class Step:
    """What an observer is handed after every optimiser step. Reading its tensors waits for the device."""

    time: Time
    output: Output  # detached


@dataclass(frozen=True)
class Window:
    """What an observer is handed whenever the log has been read.

    Attributes:
        records: one for each step since the last window.
        time: of the last of them.
        images_per_second: over these steps; evaluation, checkpoints and observers are left out.
    """

    records: Sequence[Mapping[str, Any]]
    time: Time
    images_per_second: float


class Observer:
    """Somebody who watches a run; overrides what it wants to see."""

    def step(self, step: Step) -> None:
        """After every step."""

    def window(self, window: Window) -> None:
        """After every reading of the log."""


@dataclass
class StepLog:
    """Collects steps and hands them out in windows.

    Attributes:
        every: steps between two readings.
        epoch_steps: steps of an epoch, which ends with a reading: what follows stands for steps found finite.
        batch_size: images in a step.
        observers: who is told.
    """

    every: int
    epoch_steps: int
    batch_size: int
    observers: Sequence[Observer]
    _rows: list[tuple[Time, float, dict[str, Tensor]]] = field(default_factory=list)
    _features: Tensor | None = None
    _started: float = field(default_factory=clock.perf_counter)

    def due(self, time: Time) -> bool:
        """Whether the log will be read after this step."""
        finished = time.step + 1
        return finished % self.every == 0 or finished % self.epoch_steps == 0

    def add(self, time: Time, learning_rate: float, output: Output, total: Total) -> None:
        """Keep a step's numbers on the device; read them if it is time to.

        Args:
            time: of the step.
            learning_rate: that it used.
            output: of the method.
            total: the loss and its terms, after the backward pass.

        Raises:
            NonFiniteLossError: a loss since the last reading is NaN or Inf.
        """
        self._rows.append((time, learning_rate, step_numbers(output, total)))
        self._features = output.features.detach()
        step, began = Step(time, detached(output)), clock.perf_counter()
        for observer in self.observers:
            observer.step(step)
        self._started += clock.perf_counter() - began  # what observers do is no part of a step
        if self.due(time):
            self._read()

    def _read(self) -> None:
        flat = [value.detach().float() for _, _, numbers in self._rows for value in numbers.values()]
        values = iter(torch.stack(flat).tolist())  # all numbers of all steps in one transfer
        elapsed = clock.perf_counter() - self._started
        records = []
        for time, learning_rate, numbers in self._rows:
            record: dict[str, Any] = {"kind": "step", "step": time.step, "epoch": time.epoch}
            record |= {name: next(values) for name in numbers} | {"lr": learning_rate}
            if "degenerate" in record:
                record["degenerate"] = int(record["degenerate"])
            records.append(record)
        bad = next((r for r in records if not math.isfinite(r["loss"])), None)
        if bad is None and self._features is not None and bool(torch.isfinite(self._features).all()):
            records[-1]["batch_effective_rank"] = effective_rank(self._features[:_RANK_ROWS], variant="cov")
        window = Window(records, self._rows[-1][0], self.batch_size * len(records) / elapsed)
        self._rows = []
        for observer in self.observers:
            observer.window(window)
        if bad is not None:
            raise NonFiniteLossError(f"the loss is {bad['loss']} in epoch {bad['epoch']}, step {bad['step']}")
        self._started = clock.perf_counter()

    def restart_clock(self) -> None:
        """Leave out the time since the last reading: something else than training took it."""
        self._started = clock.perf_counter()


def detached(output: Output) -> Output:
    """An output without its graph.

    Args:
        output: of a method.

    Returns:
        The same tensors, detached.
    """
    projections = None if output.projections is None else output.projections.detach()
    return output._replace(loss=output.loss.detach(), features=output.features.detach(), projections=projections)


def step_numbers(output: Output, total: Total) -> dict[str, Tensor]:
    """What a step leaves in the log, as 0-d tensors.

    `loss` is what was minimised, `ssl_loss` the method's part, `regulariser` R without its weight, `lid` the geometric
    mean over the usable rows of the batch, `degenerate` how many are not. Further regularisers have a number behind
    the name. `weight` appears where a ratio sets it, `gradient_ratio` in the steps in which it was measured.

    Args:
        output: of the method.
        total: of the step, after backward.

    Returns:
        Names and values, on the device.
    """
    loss = total.loss.detach()
    numbers = {"loss": loss, "ssl_loss": output.loss.detach()}
    for i, (term, weight) in enumerate(zip(total.terms, total.weights, strict=True)):
        end = f"_{i + 1}" if i else ""
        numbers[f"regulariser{end}"] = term.value
        if isinstance(weight, Tensor):
            numbers["loss"] = numbers["loss"] + weight * term.value
            numbers[f"weight{end}"] = weight
        if term.stats is not None and not i:
            numbers["lid"] = _geometric_mean(term.stats.lid)
            numbers["degenerate"] = torch.as_tensor(term.stats.degenerate)
    if total.ratio is not None:
        numbers["gradient_ratio"] = total.ratio
    return numbers | dict(output.logs)


def _geometric_mean(lid: Tensor) -> Tensor:
    """exp(mean ln LID) over the rows whose LID exists; NaN if there are none. No synchronisation."""
    usable = torch.isfinite(lid) & (lid > 0)
    return (torch.where(usable, lid, 1).log().sum() / usable.sum()).exp()
