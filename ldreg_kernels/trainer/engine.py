"""The training loop: one epoch that reads in a minute, and the few lines around it.

    total loss = ssl loss + beta * R(encoder features of both views)

accelerate brings the device, mixed precision, data-parallel wrapping and state saving. The engine prints
nothing and draws nothing: whoever wants to watch a run passes observers, functions that are handed every
step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, set_seed
from torch import Tensor
from transformers import get_cosine_schedule_with_warmup

from . import checkpoint
from .augmentation import build_augmentation
from .config import OptimiserConfig, TrainConfig
from .data import ImageData, load_data, training_loader
from .evaluation import Evaluation, Geometry, encode, evaluate, measure_geometry
from .methods import SimCLR, build_method
from .regulariser import Regulariser, build_regulariser
from .run_folder import RunFolder


class NonFiniteLossError(RuntimeError):
    """The loss became NaN or Inf; the message says at which step."""


@dataclass(frozen=True)
class Step:
    """What an observer is handed after every optimiser step."""

    epoch: int
    index: int  # counted over the whole run, from 0
    steps: int  # in the whole run
    numbers: dict[str, float]  # loss, ssl_loss, regulariser, lid, ...: see `_numbers`
    features: Tensor  # [2N, D] encoder outputs that the regulariser saw, detached

    def record(self) -> dict[str, Any]:
        """The numbers with their place in the run, as one line of the log."""
        return {"kind": "step", "step": self.index, "epoch": self.epoch, **self.numbers}


Observer = Callable[[Step], None]


@dataclass
class TrainingRun:
    """Everything that a run in progress consists of, as `prepare` puts it together."""

    config: TrainConfig
    data: ImageData
    accelerator: Accelerator
    method: SimCLR
    optimiser: Any
    scheduler: Any
    loader: Any
    augment: Any
    regulariser: Regulariser | None
    progress: checkpoint.Progress = field(default_factory=checkpoint.Progress)

    @property
    def encoder(self) -> torch.nn.Module:
        """The online encoder, out of whatever accelerate wrapped around the method."""
        encoder: torch.nn.Module = self.accelerator.unwrap_model(self.method).encoder
        return encoder

    @property
    def steps(self) -> int:
        """Optimiser steps in the whole run."""
        return self.config.epochs * len(self.loader)


@dataclass(frozen=True)
class TrainingResult:
    """The curves and the final numbers of a finished run.

    Attributes:
        steps: one dict per optimiser step.
        geometries: one dict per evaluated epoch: effective rank and LID of held-out features.
        final: probe and k-NN accuracy and geometry of the finished encoder.
        spectrum: [min(M, D)] covariance eigenvalues of the held-out features, largest first.
    """

    steps: list[dict[str, Any]]
    geometries: list[dict[str, Any]]
    final: Evaluation
    spectrum: list[float]


def train_one_epoch(run: TrainingRun, epoch: int, observers: Sequence[Observer] = ()) -> None:
    """One pass over the training images.

    Args:
        run: what to train; its weights change.
        epoch: index of this epoch, from 0.
        observers: called after every step.

    Raises:
        NonFiniteLossError: the loss is NaN or Inf.
    """
    run.method.train()
    # The order of the images depends on (seed, epoch) alone, so a resumed run sees the same.
    run.loader.set_epoch(epoch)
    beta = run.config.regulariser.weight if epoch >= run.config.regulariser.warmup_epochs else 0.0

    for (images,) in run.loader:
        view1, view2 = run.augment(images), run.augment(images)  # [N, C, H, W] each
        ssl_loss, features = run.method(view1, view2)  # [], [2N, D]

        if run.regulariser is None:
            loss, value, stats = ssl_loss, None, None
        else:
            # During warm-up R is computed and logged, but neither it nor its gradient is added.
            value, stats = run.regulariser(features if beta else features.detach())
            loss = ssl_loss + beta * value if beta else ssl_loss

        index = run.progress.step
        if not torch.isfinite(loss):
            raise NonFiniteLossError(f"the loss is {loss.item()} in epoch {epoch}, step {index}")
        learning_rate = run.scheduler.get_last_lr()[0]
        run.accelerator.backward(loss)
        run.optimiser.step()
        run.scheduler.step()
        run.optimiser.zero_grad()

        run.progress.step += 1
        numbers = _numbers(loss, ssl_loss, value, stats) | {"lr": learning_rate}
        step = Step(epoch, index, run.steps, numbers, features.detach())
        for observe in observers:
            observe(step)
    run.progress.epoch = epoch + 1


def _numbers(loss: Tensor, ssl_loss: Tensor, value: Tensor | None, stats: Any) -> dict[str, float]:
    """What a step leaves in the log; `lid` is the geometric mean over the batch's usable rows."""
    numbers = {"loss": loss.item(), "ssl_loss": ssl_loss.item()}
    if value is not None:
        usable = stats.lid[torch.isfinite(stats.lid) & (stats.lid > 0)]
        numbers["regulariser"] = value.item()
        numbers["lid"] = usable.log().mean().exp().item()
        numbers["degenerate"] = int(stats.degenerate)
    return numbers


def prepare(config: TrainConfig, regulariser: Regulariser | None = None) -> TrainingRun:
    """Build everything a run needs, seeded; nothing is trained yet.

    Args:
        config: the run.
        regulariser: used in place of the configured one (a comparison hands in its own); None builds the
            configured one.

    Returns:
        The run, on its device, at epoch 0.

    Raises:
        ConfigError: the data are too few for the configuration.
        NoBackendError: no backend here computes the regulariser.
    """
    set_seed(config.seed)
    accelerator = Accelerator(
        cpu=config.device == "cpu",
        mixed_precision=config.precision,
        dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True, data_seed=config.seed),
    )
    data = load_data(config.data, config.seed)
    loader = training_loader(data, config.batch_size)
    method = build_method(config, channels=data.train_images.shape[1])
    optimiser = build_optimiser(config.optimiser, method)
    # Lengths before `prepare`: accelerate steps the scheduler once per process for every global step.
    scheduler = get_cosine_schedule_with_warmup(
        optimiser, config.optimiser.warmup_epochs * len(loader), config.epochs * len(loader)
    )
    method, optimiser, scheduler, loader = accelerator.prepare(method, optimiser, scheduler, loader)
    if regulariser is None:
        regulariser = build_regulariser(config.regulariser, accelerator.device)
    run = TrainingRun(
        config=config,
        data=data,
        accelerator=accelerator,
        method=method,
        optimiser=optimiser,
        scheduler=scheduler,
        loader=loader,
        augment=build_augmentation(config.augmentation).to(accelerator.device),
        regulariser=regulariser,
    )
    accelerator.register_for_checkpointing(run.progress)
    return run


def build_optimiser(config: OptimiserConfig, method: torch.nn.Module) -> torch.optim.Optimizer:
    """AdamW or SGD over the parameters; biases and normalisation scales get no weight decay.

    Args:
        config: name and rates.
        method: whose parameters to train.

    Returns:
        The optimiser.
    """
    trained = [p for p in method.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum)
    return torch.optim.AdamW(groups, lr=config.lr)


def train(
    config: TrainConfig,
    folder: RunFolder | None = None,
    *,
    observers: Sequence[Observer] = (),
    regulariser: Regulariser | None = None,
    resume: bool = False,
) -> TrainingResult:
    """Train, measuring LID and effective rank of held-out features on the way, and evaluate at the end.

    Args:
        config: the run.
        folder: where the configuration, metrics, checkpoint and encoder go; None writes nothing.
        observers: called after every step.
        regulariser: used in place of the configured one.
        resume: continue from the checkpoint in `folder`.

    Returns:
        Curves and final numbers; after `resume`, including what was recorded before the interruption.

    Raises:
        NonFiniteLossError: training diverged.
        ConfigError, NoBackendError: as `prepare`.
        FileNotFoundError: `resume` without a checkpoint.
    """
    run = prepare(config, regulariser)
    steps: list[dict[str, Any]] = []
    geometries: list[dict[str, Any]] = []
    if resume:
        if folder is None:
            raise ValueError("resume needs a run folder")
        checkpoint.restore(run.accelerator, folder.checkpoint)
        steps, geometries = folder.rewind(run.progress.step)

    def record(step: Step) -> None:
        steps.append(step.record())
        if folder is not None:
            folder.log(steps[-1])

    for epoch in range(run.progress.epoch, config.epochs):
        train_one_epoch(run, epoch, (record, *observers))
        if (epoch + 1) % config.evaluation.every_epochs == 0:
            geometry = _held_out_geometry(run)
            geometries.append({"kind": "geometry", "step": run.progress.step, "epoch": epoch, **geometry.numbers()})
            if folder is not None:
                folder.log(geometries[-1])
        if folder is not None and _checkpoint_is_due(config, epoch):
            checkpoint.save(run.accelerator, folder.checkpoint)

    final = evaluate(run.encoder, run.data, config.evaluation, run.accelerator.device)
    if folder is not None and run.accelerator.is_main_process:
        checkpoint.export_encoder(folder.encoder, run.encoder, config)
        folder.finish(final.numbers(), final.spectrum)
    return TrainingResult(steps, geometries, final, final.spectrum)


def _checkpoint_is_due(config: TrainConfig, epoch: int) -> bool:
    every = config.checkpoint_every_epochs
    return every > 0 and ((epoch + 1) % every == 0 or epoch + 1 == config.epochs)


def _held_out_geometry(run: TrainingRun) -> Geometry:
    features = encode(run.encoder, run.data.test_images, run.accelerator.device)  # [M, D]
    return measure_geometry(features, run.config.evaluation)
