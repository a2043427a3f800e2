"""LDRegLoss in other people's training loops, one process: each client trains as the plain loop does, through a last
batch with fewer rows than neighbours; mixed precision, torch.compile, and copies of a module that has been used.
"""

from __future__ import annotations

import copy
import io
import math
import pickle

import pytest
import torch
from clients import runs
from clients.training import (
    BATCH,
    LAST,
    RATE,
    ROWS,
    SAME,
    K,
    Predicting,
    Views,
    WithMomentum,
    assert_ldreg_mattered,
    assert_trained_alike,
    objective,
    parameters,
    plain,
    regulariser,
)

pytestmark = pytest.mark.filterwarnings("ignore:k is 24, but a batch has only:UserWarning")  # said once in a process


@pytest.mark.slow  # importing the client
@pytest.mark.parametrize("client", runs.PRESENT)
def test_client_trains_as_the_plain_loop(client, tmp_path):
    torch.manual_seed(11)  # of the order of rows
    found = runs.CLIENTS[client](str(tmp_path))
    assert [len(rows) for rows in found.batches] == [BATCH, BATCH, LAST]
    assert found.neighbours == [K, K, 2 * LAST - 1]
    assert sorted(row for batch in found.batches for row in batch) == list(range(ROWS))
    assert all(math.isfinite(loss) for loss in found.losses)
    assert_trained_alike(found, plain(found.batches))
    assert_ldreg_mattered(found)


@pytest.mark.slow
@pytest.mark.parametrize("client", runs.PRESENT[:1])
def test_compiled_as_one_graph_in_lightning(client, tmp_path):
    found = runs.CLIENTS[client](str(tmp_path), compiled=True)
    assert found.neighbours == [K, K, 2 * LAST - 1]
    assert_trained_alike(found, plain(found.batches))


def test_a_scaled_loss_gives_the_same_steps_and_an_infinite_batch_none():
    batches = [list(range(BATCH)), list(range(BATCH, 2 * BATCH)), list(range(2 * BATCH, ROWS))]
    data, model, ldreg = Views(), Predicting(), regulariser()
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)

    def step(rows, shift=0.0):
        loss = objective(*model(data.first[rows] + shift, data.second[rows]), ldreg)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    for rows in batches:
        step(rows)
    torch.testing.assert_close(parameters(model), plain(batches).parameters, **SAME)

    before = parameters(model)
    step(batches[0], shift=float("nan"))
    assert scaler.get_scale() < 2.0**12
    assert all(torch.equal(one, other) for one, other in zip(parameters(model), before, strict=True))
    step(batches[0])
    assert not torch.equal(parameters(model)[0], before[0])


class Widened(torch.nn.Module):
    """The regulariser on what autocast hands out, made float32 by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.ldreg = regulariser()

    def forward(self, features, targets):
        assert (features.dtype, targets.dtype) == (torch.bfloat16, torch.float32)
        with torch.autocast("cpu", enabled=False):
            return self.ldreg(features.float(), targets)


def test_autocast_trains_on_bfloat16_features_beside_float32_references():
    data, models = Views(), [WithMomentum(regulariser()), WithMomentum(Widened())]
    optimizers = [torch.optim.SGD(model.parameters(), lr=RATE) for model in models]
    for rows in torch.arange(ROWS).split(BATCH):
        losses = []
        for model, optimizer in zip(models, optimizers, strict=True):
            with torch.autocast("cpu", torch.bfloat16):
                loss = model(data.first[rows], data.second[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            model.update_target()
            losses.append(loss.detach())
        assert losses[0].dtype == torch.float32
        torch.testing.assert_close(*losses, **SAME)
    torch.testing.assert_close(parameters(models[0]), parameters(models[1]), **SAME)


def saved_and_loaded(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "torch.save": saved_and_loaded,
}


@pytest.mark.parametrize("how", COPIES)
def test_a_used_module_is_copied_and_goes_on_alike(how):
    data, model = Views(), WithMomentum(regulariser())
    one, other = torch.arange(ROWS).split(BATCH)[:2]
    model(data.first[one], data.second[one]).backward()
    twin = COPIES[how](model)
    assert torch.equal(twin.ldreg.stats.lid, model.ldreg.stats.lid)
    losses = [each(data.first[other], data.second[other]) for each in (model, twin)]
    assert torch.equal(*losses)
    gradients = [
        torch.autograd.grad(loss, each.online.encoder[0].weight)
        for loss, each in zip(losses, (model, twin), strict=True)
    ]
    assert torch.equal(gradients[0][0], gradients[1][0])


def test_a_checkpoint_holds_nothing_of_the_regulariser():
    model, fresh = (WithMomentum(regulariser()) for _ in range(2))
    data = Views(BATCH)
    model(data.first, data.second).backward()
    state = model.state_dict()
    assert not [name for name in state if "ldreg" in name]
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    fresh.load_state_dict(torch.load(file, weights_only=True))  # strict
