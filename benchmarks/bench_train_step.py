"""The SimCLR step with and without the regulariser, through pytest-benchmark: small images, one or two seconds a step.

    pytest benchmarks/bench_train_step.py

For a look and for `--benchmark-compare`. Here the variants run one after another, so on a shared machine their ratios
drift; numbers to quote come from `train_step.py`, where they take turns.
"""

from __future__ import annotations

from functools import cache
from itertools import count

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from .records import hardware
from .simclr_step import NETWORKS, Network, StepCase, TrainStep
from .train_step import VARIANTS, Samples, check, fused_reason, regularisers, take_turn

pytest.importorskip("transformers", reason="the networks come from transformers: install the extra [train]")


@cache
def checked_step(network: Network, device: str) -> TrainStep:
    """One step for all variants of a network, built once, its answers checked."""
    case = StepCase(network, 34, 32)  # the smallest batch with 64 neighbours and one to spare
    step = TrainStep(case, torch.device(device))
    check(step.run(0, None), case, step.device)
    return step


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("network", NETWORKS)
def bench_train_step(benchmark: BenchmarkFixture, network: Network, variant: str) -> None:
    """One optimisation step; `extra_info` has the machine, the shape and the regulariser's share."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    reason = fused_reason(torch.device(device)) if variant == "fused" else None
    if reason is not None:
        pytest.skip(f"no fused backend: {reason}")
    step = checked_step(network, device)
    regulariser = regularisers(step.device)[variant]
    index = count()

    def run() -> None:
        step.run(next(index), regulariser)
        if device == "cuda":
            torch.cuda.synchronize()

    benchmark.pedantic(run, rounds=3, warmup_rounds=1)
    samples = Samples()
    take_turn(step, 0, regulariser, samples)
    benchmark.group = step.case.mode
    benchmark.extra_info |= {
        "hardware": hardware(device, torch.get_num_threads()),
        "features": step.case.batch,
        "k": step.case.k,
        "regulariser_share": round(samples.regulariser[0] / samples.step[0], 4) if samples.regulariser else 0.0,
    }
    if samples.peak:
        benchmark.extra_info["peak_memory_mb"] = round(samples.peak[0])
