"""A small self-supervised training that every client repeats: data, model, objective, and the plain loop that is right.

    loss = |predictor(f_1) - f_2|^2 + weight R([f_1; f_2]),      f_v = encoder(view v)

A client draws batches in its own way and says which rows it took, so the plain loop can take the same ones: of two
processes, those of both. No BatchNorm: it is not the same in two processes.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import ldreg_kernels as ldk

# 64 rows and a last batch of 3: k = 24 is more than the 5 other features that it has.
BATCH, LAST, K = 32, 3, 24
ROWS = 2 * BATCH + LAST
PIXELS, FEATURES = 16, 20
WEIGHT, RATE = 0.2, 0.2

# Float32, the same operations in another order (gradients of two processes are averaged): a few roundings of 6e-8.
SAME = {"rtol": 1e-6, "atol": 1e-6}


class Views(torch.utils.data.Dataset):
    """Two views of every row, and which row it is."""

    def __init__(self, rows: int = ROWS) -> None:
        generator = torch.Generator().manual_seed(7)
        hidden = torch.randn(2 * ROWS, 5, generator=generator) @ torch.randn(5, PIXELS, generator=generator)
        noise = torch.randn(2, 2 * ROWS, PIXELS, generator=generator)
        self.first, self.second = (hidden + 0.3 * noise)[:, :rows]  # [rows, PIXELS] each

    def __len__(self) -> int:
        return len(self.first)

    def __getitem__(self, row: int | Sequence[int]) -> dict[str, Tensor]:
        return {"first": self.first[row], "second": self.second[row], "row": torch.tensor(row)}


class Predicting(nn.Module):
    """Two linear layers that make features, and one that predicts those of the other view."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            self.encoder = nn.Sequential(nn.Linear(PIXELS, 32), nn.Tanh(), nn.Linear(32, FEATURES))
            self.predictor = nn.Linear(FEATURES, FEATURES)

    def forward(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Features [2 B, FEATURES] of both views, predictions [B, FEATURES] of the first's."""
        features = self.encoder(torch.cat([first, second]))
        return features, self.predictor(features[: len(first)])


class WithMomentum(nn.Module):
    """The same with everything inside, as in BYOL: targets by a second encoder, whose features are references too."""

    def __init__(self, ldreg: nn.Module) -> None:
        super().__init__()
        self.online = Predicting()
        self.target = copy.deepcopy(self.online.encoder).requires_grad_(False)
        self.ldreg = ldreg

    def forward(self, first: Tensor, second: Tensor, share: float = 1.0) -> Tensor:
        """The loss; `share` is the weight of this rank's rows in the mean over all."""
        features, predictions = self.online(first, second)
        with torch.no_grad(), torch.autocast("cpu", enabled=False):  # float32 targets
            targets = self.target(torch.cat([first, second]))
        return share * F.mse_loss(predictions, targets[len(first) :]) + self.ldreg(features, targets)

    @torch.no_grad()
    def update_target(self) -> None:
        for moving, online in zip(self.target.parameters(), self.online.encoder.parameters(), strict=True):
            moving.lerp_(online, 0.2)


def objective(features: Tensor, predictions: Tensor, ldreg: nn.Module) -> Tensor:
    """The loss of one batch."""
    return F.mse_loss(predictions, features[len(predictions) :].detach()) + ldreg(features)


def regulariser(**options) -> ldk.LDRegLoss:
    """What every client trains with."""
    return ldk.LDRegLoss(k=K, weight=WEIGHT, **options)


class Trained(NamedTuple):
    """What a training leaves behind."""

    batches: list[list[int]]  # rows, step by step
    losses: list[float]
    neighbours: list[int]  # used for a row
    parameters: list[Tensor]


def parameters(model: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def plain(batches: Iterable[Sequence[int]], *, weight: float = WEIGHT) -> Trained:
    """The loop without a client, in one process, on these rows."""
    data, model, ldreg = Views(2 * ROWS), Predicting(), regulariser(gather=False)
    ldreg.weight = weight
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    taken, losses, neighbours = [], [], []
    for rows in batches:
        loss = objective(*model(data.first[rows], data.second[rows]), ldreg)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        taken.append(list(rows))
        losses.append(loss.item())
        neighbours.append(ldreg.stats.k)
    return Trained(taken, losses, neighbours, parameters(model))


def assert_trained_alike(found: Trained, expected: Trained) -> None:
    """The same losses, neighbours and parameters."""
    assert found.neighbours == expected.neighbours
    torch.testing.assert_close(torch.tensor(found.losses), torch.tensor(expected.losses), **SAME)
    torch.testing.assert_close(found.parameters, expected.parameters, **SAME)


def assert_ldreg_mattered(found: Trained) -> None:
    """Every parameter of the encoder ends elsewhere without the regulariser, by far more than any tolerance."""
    without = plain(found.batches, weight=0.0)
    for with_it, without_it in zip(found.parameters[:4], without.parameters[:4], strict=True):
        assert (with_it - without_it).abs().max() > 1e-3
