"""What the bench_*.py files share: one trial under pytest-benchmark's clock, the device's figures in `extra_info`.

pytest-benchmark times one contender after the other, so its table is for watching one of them over commits
(`--benchmark-save`, `--benchmark-compare`). For ratios between contenders use `ldreg bench`, where they take turns.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from .cases import Case
from .contenders import Contender, contenders
from .gate import WrongAnswerError
from .harness import OutOfMemoryError, Trial
from .records import commit, hardware, versions
from .searches import UnavailableError

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CALLS = 10


def everyone() -> tuple[Contender, ...]:
    """All contenders of this machine's device."""
    return contenders(DEVICE.type)


def benchmark_trial(benchmark: Any, contender: Contender, case: Case) -> None:
    """Check, then time one contender; a contender that is missing or wrong is skipped with the reason.

    Wrong answers of this package's own backends fail.
    """
    try:
        trial = Trial(contender, case, DEVICE, limit=5.0)
    except (UnavailableError, OutOfMemoryError) as state:
        pytest.skip(str(state))
    except WrongAnswerError as wrong:
        if contender.ours:
            raise
        pytest.skip(f"wrong answer, not timed: {wrong}")
    benchmark.group = str(case)
    benchmark.extra_info.update(case=str(case), op=case.op, backend=contender.name, commit=commit())
    benchmark.extra_info.update(hardware=hardware(DEVICE.type, torch.get_num_threads()), versions=versions())
    benchmark.extra_info.update(trial.errors)
    if DEVICE.type == "cuda":
        low, median, high = np.percentile(trial.milliseconds(CALLS), (20, 50, 80)).tolist()
        benchmark.extra_info.update({"device ms": median, "device ms p20": low, "device ms p80": high})
        benchmark.extra_info.update({"peak memory MB": trial.peak_memory(), "kernels": trial.kernels()})

    def call() -> None:
        trial.call(*next(trial.rotation))
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()  # pytest-benchmark's clock is the host's

    benchmark.pedantic(call, rounds=CALLS)
    trial.close()
