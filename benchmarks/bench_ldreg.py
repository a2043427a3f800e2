"""Loss with gradient, and the LIDs a training logs, through pytest-benchmark: `pytest benchmarks/bench_ldreg.py`."""

from __future__ import annotations

from typing import Any

import pytest

from .cases import Case
from .contenders import Contender
from .pytest_support import benchmark_trial, everyone

CASES = (
    Case(1024, 4096, 128, 32),
    Case(1024, 1024, 512, 64, dtype="bfloat16"),
    Case(1024, 1024, 512, 64, "tracked"),
)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("contender", everyone(), ids=lambda contender: contender.name)
def bench_ldreg(benchmark: Any, case: Case, contender: Contender) -> None:
    benchmark_trial(benchmark, contender, case)
