"""Trainings small enough for a test: narrow networks, half of the digits, two epochs of five steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from ldreg_kernels.trainer.config import TrainConfig, make_config


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Networks this small gain nothing from threads, and lose a lot when others want the same cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def tiny_config(method: str, **overrides: Any) -> TrainConfig:
    """A tiny training of a method; overrides have `__` for the dots."""
    encoder = {"encoder.patch_size": 4} if method == "mae" else {"encoder.width": 8}
    heads = {} if method == "mae" else {"method.projector.hidden_dim": 64, "method.projector.output_dim": 32}
    return make_config(
        {},
        {
            "method.name": method,
            "epochs": 2,
            "batch_size": 128,
            "device": "cpu",
            "log_every": 3,
            "data.test_fraction": 0.6,  # 718 images to train on, 1079 held out
            "regularisers.0.k": 16,
            "evaluation.lid_k": 16,
            **encoder,
            **heads,
            **{name.replace("__", "."): value for name, value in overrides.items()},
        },
    )


@pytest.fixture
def tiny() -> TrainConfig:
    """SimCLR."""
    return tiny_config("simclr")


@pytest.fixture(scope="session")
def tiny_of() -> Callable[..., TrainConfig]:
    """Any method, with changes."""
    return tiny_config
