"""The small training as each client documents it: Lightning, accelerate, transformers' Trainer. CPU, no logs, no files.

They are imported when they are used, because importing one takes seconds. Where torchrun's environment variables are
set, each trains in several processes.
"""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
from clients.training import BATCH, RATE, Predicting, Trained, Views, objective, parameters, regulariser
from torch.utils.data import DataLoader

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing here asks the hub for anything


def world() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def lightning(folder: str, batch: int = BATCH, data: Views | None = None, *, compiled: bool = False) -> Trained:
    """LightningModule and Trainer.fit; in several processes DDPStrategy."""
    import pytorch_lightning as pl
    from pytorch_lightning.strategies import DDPStrategy

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.ldreg = Predicting(), regulariser()
            self.loss = torch.compile(self.forward, fullgraph=True) if compiled else self.forward
            self.batches: list[list[int]] = []
            self.losses: list[float] = []
            self.neighbours: list[int] = []

        def forward(self, first, second):
            return objective(*self.model(first, second), self.ldreg)

        def training_step(self, batch, batch_idx):
            loss = self.loss(batch["first"], batch["second"])
            self.log("lid", self.ldreg.stats.geometric_mean)
            self.batches.append(batch["row"].tolist())
            self.losses.append(loss.item())
            self.neighbours.append(self.ldreg.stats.k)
            return loss

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=RATE)

    several = world() > 1
    module = Module()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its advice: workers of the loader, a logger, the length of an epoch
        warnings.filterwarnings("error", module="ldreg_kernels")
        trainer = pl.Trainer(
            accelerator="cpu",
            devices=world(),
            strategy=DDPStrategy(process_group_backend="gloo", find_unused_parameters=False) if several else "auto",
            max_epochs=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        trainer.fit(module, DataLoader(data or Views(), batch_size=batch, shuffle=True))
    assert trainer.callback_metrics["lid"] > 0
    return Trained(module.batches, module.losses, module.neighbours, parameters(module.model))


def accelerate(folder: str, batch: int = BATCH, data: Views | None = None) -> Trained:
    """Accelerator.prepare and Accelerator.backward."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState

    accelerator = Accelerator(cpu=True)
    try:
        model, ldreg = Predicting(), regulariser()
        optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
        loader = DataLoader(data or Views(), batch_size=batch, shuffle=True)
        model, optimizer, loader = accelerator.prepare(model, optimizer, loader)  # DDP wants no loss without parameters
        batches, losses, neighbours = [], [], []
        for one in loader:
            loss = objective(*model(one["first"], one["second"]), ldreg)
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
            batches.append(one["row"].tolist())
            losses.append(loss.item())
            neighbours.append(ldreg.stats.k)
        assert accelerator.num_processes == world()
        return Trained(batches, losses, neighbours, parameters(accelerator.unwrap_model(model)))
    finally:  # it is shared by all of the process
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()


def transformers(folder: str, batch: int = BATCH, data: Views | None = None) -> Trained:
    """A subclass of Trainer with a compute_loss of its own."""
    from accelerate.state import AcceleratorState, GradientState
    from transformers import Trainer, TrainingArguments

    class WithLDReg(Trainer):
        def __init__(self, *args, **options) -> None:
            super().__init__(*args, **options)
            self.ldreg = regulariser()
            self.batches: list[list[int]] = []
            self.losses: list[float] = []
            self.neighbours: list[int] = []

        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            outputs = model(inputs["first"], inputs["second"])
            loss = objective(*outputs, self.ldreg)
            self.batches.append(inputs["row"].tolist())
            self.losses.append(loss.item())
            self.neighbours.append(self.ldreg.stats.k)
            return (loss, outputs) if return_outputs else loss

    try:
        arguments = TrainingArguments(
            output_dir=folder,
            use_cpu=True,
            per_device_train_batch_size=batch,
            num_train_epochs=1,
            learning_rate=RATE,
            lr_scheduler_type="constant",
            optim="sgd",
            max_grad_norm=0.0,  # it clips at 1 by default
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            remove_unused_columns=False,
        )
        model = Predicting()
        trainer = WithLDReg(model, arguments, train_dataset=data or Views())
        trainer.train()
        assert arguments.world_size == world()
        return Trained(trainer.batches, trainer.losses, trainer.neighbours, parameters(model))
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()


CLIENTS: dict[str, Callable[..., Trained]] = {
    "pytorch_lightning": lightning,
    "accelerate": accelerate,
    "transformers": transformers,
}

# For parametrize: without importing any.
PRESENT = [
    pytest.param(
        client,
        marks=pytest.mark.skipif(
            importlib.util.find_spec(client) is None, reason=f'{client} is not installed: pip install ".[test]"'
        ),
    )
    for client in CLIENTS
]
