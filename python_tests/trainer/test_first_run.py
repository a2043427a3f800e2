"""The first command of a newcomer, as it is typed: each method trains on digits in well under a minute."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from ldreg_kernels.trainer.run_folder import read_records

LIMIT = 40.0  # seconds on two cores, imports, evaluation and figures included


@pytest.mark.alone
@pytest.mark.slow
@pytest.mark.parametrize("method", ["simclr", "byol", "mae"])
def test_train_takes_under_forty_seconds_and_learns(method: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ldreg_kernels.cli", "train", "--method", method, "--out", str(tmp_path / "run")]
    started = time.monotonic()
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    elapsed = time.monotonic() - started
    assert finished.returncode == 0, finished.stderr
    steps = [r for r in read_records(tmp_path / "run" / "metrics.jsonl") if r["kind"] == "step"]
    assert len(steps) == 50
    first, last = (sum(s["ssl_loss"] for s in part) / 5 for part in (steps[:5], steps[-5:]))
    assert last < 0.9 * first
    assert all(s["gradient_ratio"] > 0 for s in steps if "gradient_ratio" in s)
    assert elapsed < LIMIT
