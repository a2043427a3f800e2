"""The training loop: one epoch that reads in a minute, and the few lines around it.

    total loss = ssl loss + sum of beta_r R_r(encoder features)

accelerate brings the device, mixed precision and wrapping. Everything random in a step is a function of (seed, step,
rank), every schedule a function of the time, so a run has no state beside weights, optimiser and the number of steps.
The engine prints nothing and draws nothing: whoever wants to watch a run passes observers.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from . import checkpoint
from .config import ConfigError, TrainConfig
from .data import ImageData, ImageSource, load_data
from .data.loader import RawBatch, TrainingLoader, training_loader
from .evaluation import Clean, Encoded, Evaluation, Geometry, encode, judge, measure_geometry
from .methods import VIEWS_PER_IMAGE, Batch, Method, Time, build_method
from .optim import LearningRate, build_optimiser, learning_rate, set_learning_rate
from .randomness import seeded
from .recorder import Recorder
from .regularisers import Regulariser, add_terms, build_regulariser
from .run_folder import RunFolder
from .step_log import NonFiniteLossError, Observer, Step, StepLog, Window
from .views import DeviceViews, build_views

__all__ = ["NonFiniteLossError", "Observer", "Step", "TrainingResult", "TrainingRun", "Window", "prepare", "train"]

_WEIGHTS, _STEP = 0, 1  # purposes of random numbers


@dataclass
class TrainingRun:
    """Everything that a run in progress consists of, as `prepare` puts it together."""

    config: TrainConfig
    data: ImageData
    accelerator: Accelerator
    method: Any  # a Method, in whatever accelerate wraps around it
    optimiser: Any
    learning_rate: LearningRate
    loader: TrainingLoader
    views: DeviceViews
    image_size: int  # side of the views in pixels
    clean: Clean
    regularisers: Sequence[Regulariser]
    progress: checkpoint.Progress = field(default_factory=checkpoint.Progress)
    unreadable: set[str] = field(default_factory=set)  # one line per image that could not be read so far

    @property
    def bare_method(self) -> Method:
        """The method without what accelerate wraps around it."""
        method: Method = self.accelerator.unwrap_model(self.method)
        return method

    @property
    def steps(self) -> int:
        """Optimiser steps in the whole run."""
        return self.config.epochs * len(self.loader)


@dataclass(frozen=True)
class TrainingResult:
    """The curves and the final numbers of a finished run.

    Attributes:
        steps: one record per optimiser step.
        geometries: one record per evaluated epoch: effective rank and LID of held-out features.
        final: probe and k-NN accuracy and geometry of the finished encoder.
        images_per_second: the median over the windows of the log; NaN if nothing was trained.
        unreadable: names of images that could not be decoded.
    """

    steps: list[dict[str, Any]]
    geometries: list[dict[str, Any]]
    final: Evaluation
    images_per_second: float
    unreadable: list[str]


def train_one_epoch(run: TrainingRun, epoch: int, log: StepLog) -> None:
    """One pass over the training images.

    Args:
        run: what to train; its weights change.
        epoch: index of this epoch, from 0.
        log: is given every step.

    Raises:
        NonFiniteLossError: the loss is NaN or Inf.
    """
    run.method.train()
    log.restart_clock()
    method, accelerator = run.bare_method, run.accelerator
    for raw in run.loader.epoch(epoch):
        time = Time(run.progress.step, run.steps, epoch)
        rate = set_learning_rate(run.optimiser, run.learning_rate, time)
        method.before_step(time)
        # Views, masks and dropout: the same at this step whatever came before, and others on every rank.
        with seeded(accelerator.device, run.config.seed, _STEP, time.step, accelerator.process_index):
            output = run.method(_on_device(run, raw).views, time)
        total = add_terms(output, run.regularisers, time, measure=log.due(time))
        accelerator.backward(total.loss)
        method.after_backward(time)
        run.optimiser.step()
        run.optimiser.zero_grad()
        method.after_step(time)
        run.progress.step += 1
        log.add(time, rate, output, total)
    run.progress.epoch = epoch + 1


def _on_device(run: TrainingRun, raw: RawBatch) -> Batch:
    for reason in raw.unreadable:
        if reason not in run.unreadable:
            run.unreadable.add(reason)
            warnings.warn(f"{reason}; another image takes its place", stacklevel=2)
    device = run.accelerator.device
    # From pageable memory the copy would make the host wait for the device.
    pinned = [view.pin_memory() for view in raw.views] if device.type == "cuda" else raw.views
    images = [view.to(device, non_blocking=True) for view in pinned]
    return Batch(run.views(images), raw.labels, raw.index)


def prepare(config: TrainConfig, regularisers: Sequence[Regulariser] | None = None) -> TrainingRun:
    """Build everything a run needs, seeded; nothing is trained yet.

    Args:
        config: the run.
        regularisers: used in place of the configured ones (a comparison hands in its own).

    Returns:
        The run, on its device, at epoch 0.

    Raises:
        ConfigError: the data do not fit the configuration, or there are several processes.
        NoBackendError: no backend here computes a regulariser.
    """
    _refuse_several_processes()
    # accelerate keeps device and precision of a process once for all; a second run may want others.
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(cpu=config.device == "cpu", mixed_precision=config.precision)
    _refuse_what_the_device_cannot_do(config, accelerator.device)
    data = load_data(config.data)
    _refuse_too_few_images(config, data)
    views = build_views(
        config.augmentation, method=config.method.name, view_count=VIEWS_PER_IMAGE[config.method.name], data=data
    )
    loader = training_loader(
        data.train, views.crops, batch_size=config.batch_size, seed=config.seed, workers=config.data.workers
    )
    with seeded(accelerator.device, config.seed, _WEIGHTS):
        method = build_method(config, channels=data.channels, image_size=views.image_size)
    optimiser = build_optimiser(config.optimiser, method.parameter_groups(), method)
    method, optimiser = accelerator.prepare(method, optimiser)
    if regularisers is None:
        regularisers = [build_regulariser(r, accelerator.device) for r in config.regularisers]
    device_views = views.device.to(accelerator.device)
    run = TrainingRun(
        config=config,
        data=data,
        accelerator=accelerator,
        method=method,
        optimiser=optimiser,
        learning_rate=learning_rate(config.optimiser, config.batch_size, len(loader)),
        loader=loader,
        views=device_views,
        image_size=views.image_size,
        clean=Clean(views.clean_crop, device_views, accelerator.device, config.data.workers),
        regularisers=regularisers,
    )
    accelerator.register_for_checkpointing(run.progress)
    return run


def _refuse_what_the_device_cannot_do(config: TrainConfig, device: torch.device) -> None:
    if config.device == "cuda" and device.type != "cuda":
        raise ConfigError("device: cuda was asked for, and torch finds no GPU")
    if config.precision == "fp16" and device.type == "cpu":
        raise ConfigError("precision: fp16 needs a GPU (accelerate would train on in float32); a CPU has no and bf16")


def _refuse_too_few_images(config: TrainConfig, data: ImageData) -> None:
    for name, k, images, part in (
        ("lid_k", config.evaluation.lid_k, len(data.test) - 1, "held-out images besides the one that is asked for"),
        ("knn_k", config.evaluation.knn_k, len(data.train), "training images"),
    ):
        if k > images:
            raise ConfigError(f"evaluation.{name}: must be at most {images}, the number of {part}, got {k}")


def _refuse_several_processes() -> None:
    # Before accelerate joins them: features and batch statistics are not gathered, and every process would write.
    processes = os.environ.get("WORLD_SIZE", "1")
    if processes != "1":
        raise ConfigError(
            f"WORLD_SIZE: the trainer runs in one process for now, got {processes}: features are not gathered over "
            "processes yet, and training on without would silently be another computation"
        )


def train(
    config: TrainConfig,
    folder: RunFolder | None = None,
    *,
    observers: Sequence[Observer] = (),
    regularisers: Sequence[Regulariser] | None = None,
    resume: bool = False,
    prepared: TrainingRun | None = None,
) -> TrainingResult:
    """Train, measuring LID and effective rank of held-out features on the way, and evaluate at the end.

    Args:
        config: the run.
        folder: where the configuration, metrics, checkpoint and encoder go; None writes nothing.
        observers: watch the run.
        regularisers: used in place of the configured ones.
        resume: continue from the checkpoint in `folder`.
        prepared: what `prepare(config, regularisers)` gave, if it was called before.

    Returns:
        Curves and final numbers; after `resume`, including what was recorded before the interruption.

    Raises:
        NonFiniteLossError: training diverged.
        ConfigError, NoBackendError: as `prepare`.
        FileNotFoundError: `resume` without a checkpoint.
        CheckpointError: no checkpoint can be read, or one cannot be written.
    """
    run = prepared or prepare(config, regularisers)
    recorder = Recorder(folder)
    if resume:
        if folder is None:
            raise ValueError("resume needs a run folder")
        checkpoint.restore(folder.checkpoints, _parts(run))
        recorder.steps, recorder.geometries = folder.rewind(run.progress.step)

    log = step_log(run, [recorder, *observers])
    for epoch in range(run.progress.epoch, config.epochs):
        train_one_epoch(run, epoch, log)
        if (epoch + 1) % config.evaluation.every_epochs == 0:
            recorder.add_geometry(run.progress.step, epoch, held_out_geometry(run))
        if folder is not None and _checkpoint_is_due(config, epoch):
            checkpoint.save(run.accelerator, folder.checkpoints, run.progress.step)

    if folder is not None:
        checkpoint.export_encoder(
            folder.encoder, run.bare_method.encoder, config, channels=run.data.channels, image_size=run.image_size
        )
    final = judge(_finite_features(run, run.data.train), _finite_features(run, run.data.test), config.evaluation)
    unreadable = sorted(run.unreadable | set(final.unreadable))
    speed = recorder.images_per_second
    if folder is not None and not (math.isnan(speed) and folder.summary.exists()):  # resumed at its very end
        measured = {} if math.isnan(speed) else {"images_per_second": speed}
        folder.finish(final.numbers() | measured | {"unreadable": unreadable}, final.spectrum)
    return TrainingResult(recorder.steps, recorder.geometries, final, speed, unreadable)


def step_log(run: TrainingRun, observers: Sequence[Observer]) -> StepLog:
    """The log that `train_one_epoch` fills: read every `log_every` steps and at the end of an epoch.

    Args:
        run: in progress.
        observers: who is told.

    Returns:
        The log.
    """
    return StepLog(run.config.log_every, len(run.loader), run.config.batch_size, observers)


def _parts(run: TrainingRun) -> checkpoint.Parts:
    parts: dict[str, Any] = {
        checkpoint.WEIGHTS: run.bare_method.load_state_dict,
        checkpoint.OPTIMISER: run.optimiser.load_state_dict,
        checkpoint.PROGRESS: run.progress.load_state_dict,
    }
    scaler = run.accelerator.scaler
    return parts if scaler is None else parts | {checkpoint.SCALER: scaler.load_state_dict}


def _checkpoint_is_due(config: TrainConfig, epoch: int) -> bool:
    every = config.checkpoint_every_epochs
    return every > 0 and ((epoch + 1) % every == 0 or epoch + 1 == config.epochs)


def held_out_geometry(run: TrainingRun) -> Geometry:
    """LID and effective rank of the held-out images' features.

    Args:
        run: in progress.

    Returns:
        The numbers.
    """
    return measure_geometry(_finite_features(run, run.data.test).features, run.config.evaluation)


def _finite_features(run: TrainingRun, source: ImageSource) -> Encoded:
    encoded = encode(run.bare_method.encoder, source, run.clean)
    if not torch.isfinite(encoded.features).all():  # the last step broke the weights, after its loss was computed
        raise NonFiniteLossError(f"features of clean images are not finite after step {run.progress.step - 1}")
    return encoded
