"""A training small enough for a test: a narrow ResNet-18, half of the digits, two epochs of five steps."""

from __future__ import annotations

from collections.abc import Iterator

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


@pytest.fixture
def tiny() -> TrainConfig:
    return make_config(
        {
            "epochs": 2,
            "batch_size": 128,
            "device": "cpu",
            "data": {"test_fraction": 0.6},  # 718 images to train on, 1079 held out
            "encoder": {"width": 8},
            "projector": {"hidden_dim": 64, "output_dim": 32},
            "regulariser": {"k": 16},
            "evaluation": {"lid_k": 16},
        }
    )
