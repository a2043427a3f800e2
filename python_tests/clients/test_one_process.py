"""LDRegLoss in other people's training loops, one process: each client trains as the plain loop does, bit for bit or
nearly, through a last batch with fewer rows than neighbours; mixed precision, torch.compile, and copies of a module.
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
    K,
    LAST,
    RATE,
    ROWS,
    SAME,
    Predicting,
    Views,
    assert_ldreg_mattered,
    assert_trained_alike,
    objective,
    plain,
    regulariser,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*k = 24:UserWarning")  # said once in a process, of the last batch


@pytest.mark.slow  # importing the client
@pytest.mark.parametrize("client", runs.CLIENTS)
def test_client_trains_as_the_plain_loop(client, tmp_path):
    pytest.importorskip(client, reason=f'needs the package: pip install ".[test]" ({client})')
    torch.manual_seed(11)  # of the order of rows
    found = runs.CLIENTS[client](str(tmp_path))
    assert [len(rows) for rows in found.batches] == [BATCH, BATCH, LAST]
    assert sorted(sum(found.batches, [])) == list(range(ROWS))
    assert all(math.isfinite(loss) for loss in found.losses)
    assert_trained_alike(found, plain(found.batches))
    assert_ldreg_mattered(found)


@pytest.mark.slow
def test_lightning_step_compiled_as_one_graph(tmp_path):
    pytest.importorskip("pytorch_lightning", reason='needs the package: pip install ".[test]"')
    found = runs.lightning(str(tmp_path), data=Views(2 * BATCH), compiled=True)
    assert_trained_alike(found, plain(found.batches))
