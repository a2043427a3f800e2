"""All blocks of the Triton sums over pairs, compiled ahead of time for the GPUs that they are for.

What is compiled: triton_pairs_compile.py, in a process of its own, without the interpreter. Nothing is run.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
KIB = 1024
# The blocks for "any other" GPU are compiled for 8.0, and are to fit 8.6, 8.9 and 12.0 as well.
SHARED_LIMIT = {80: 99 * KIB, 90: 227 * KIB, 100: 227 * KIB}
TENSOR_CORES = {80: "mma.sync", 90: "wgmma.mma_async", 100: "tcgen05.mma"}
REGISTERS = 64 * KIB  # of a multiprocessor

pytestmark = [
    pytest.mark.slow,
    pytest.mark.alone,  # it keeps two cores busy by itself, once for the whole file
    pytest.mark.timeout(300),  # forty kernels, one or two seconds of a core each
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed"),
]


@pytest.fixture(scope="module")
def kernels() -> list[dict]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    paths = [ROOT, ROOT / "python_tests", os.environ.get("PYTHONPATH")]
    environment["PYTHONPATH"] = os.pathsep.join(str(path) for path in paths if path)
    command = [sys.executable, "python_tests/triton_pairs_compile.py"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert {kernel["capability"] for kernel in found} == set(SHARED_LIMIT)
    assert {kernel["kernel"] for kernel in found} == {"sums", "join", "gradient"}
    return found


def test_nothing_is_spilled(kernels: list[dict]) -> None:
    assert [k for k in kernels if k["spilled"] or k["spill_instructions"]] == []


def test_shared_memory_fits(kernels: list[dict]) -> None:
    assert [k for k in kernels if k["shared"] > SHARED_LIMIT[k["capability"]]] == []


def test_tiles_are_multiplied_by_tensor_cores(kernels: list[dict]) -> None:
    """By wgmma on Hopper, and that asynchronously. A kernel that Triton gives up on is a trap, and has none."""
    tiles = [k for k in kernels if k["kernel"] != "join"]
    assert [k for k in tiles if TENSOR_CORES[k["capability"]] not in k["matrix"] or k["serialized"]] == []


def test_there_are_no_atomics(kernels: list[dict]) -> None:
    """Their order would be another one at every run."""
    assert [k for k in kernels if k["atomics"]] == []


def test_two_programs_share_a_multiprocessor(kernels: list[dict]) -> None:
    """Rows of 128 columns, but for sums of float32 rows: one multiplies while the other takes exponentials."""
    found = [k for k in kernels if k["P"] == 128 and k["capability"] == 90 and k["kernel"] != "join"]
    found = [k for k in found if k["dtype"] == "bfloat16" or (k["dtype"], k["kernel"]) == ("float32", "gradient")]
    assert len(found) >= 8
    for k in found:
        assert 2 * k["registers"] * 32 * k["warps"] <= REGISTERS
        assert 2 * (k["shared"] + KIB) <= SHARED_LIMIT[90] + KIB
