"""k nearest neighbours through pytest-benchmark: `pytest benchmarks/bench_knn.py`."""

from __future__ import annotations

from typing import Any

import pytest

from .cases import Case
from .contenders import Contender
from .pytest_support import benchmark_trial, everyone

CASES = (Case(1024, 4096, 128, 32, "forward"),)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("contender", everyone(), ids=lambda contender: contender.name)
def bench_knn(benchmark: Any, case: Case, contender: Contender) -> None:
    benchmark_trial(benchmark, contender, case)
