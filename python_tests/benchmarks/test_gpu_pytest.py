"""benchmarks/gpu_pytest.py: every GPU test belongs to one backend. Progress and lost devices: test_gpu_gate_time.py."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# Collects as on a machine with a GPU, and prints whose test each one is.
COLLECTING = """
import pytest, torch
from benchmarks import gpu_pytest
torch.cuda.is_available = lambda: True
torch.cuda.device_count = lambda: 1
torch.cuda.get_device_capability = lambda *_: (9, 0)

def pytest_collection_finish(session):
    for item in session.items:
        print("TEST", gpu_pytest.backend_of(item), item.nodeid)
"""


def collected(tmp_path: Path, *options: str) -> list[tuple[str, str]]:
    """(backend, test) of every GPU test that is selected, under a stand-in for a GPU."""
    (tmp_path / "collecting.py").write_text(COLLECTING)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)]), "PYTEST_ADDOPTS": ""}
    command = [sys.executable, "-m", "pytest", "python_tests/kernels", "python_tests/ops/test_knn.py", "-m", "gpu"]
    command += ["--collect-only", "-q", "-p", "no:cacheprovider", "-p", "benchmarks.gpu_pytest", "-p", "collecting"]
    env.pop("TRITON_INTERPRET", None)
    ran = subprocess.run([*command, *options], cwd=ROOT, env=env, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    found = [line.split(" ", 2)[1:] for line in ran.stdout.splitlines() if line.startswith("TEST ")]
    return [(backend, test) for backend, test in found]


def test_both_backends_together_are_all_gpu_tests(tmp_path: Path) -> None:
    everything, cuda = collected(tmp_path), collected(tmp_path, "--ldreg-backend", "cuda")
    triton = [found for found in everything if found[0] == "triton"]
    assert {backend for backend, _ in everything} == {"cuda", "triton"}
    assert [found for found in everything if found[0] == "cuda"] == cuda
    assert len(cuda) + len(triton) == len(everything)
    # Whose they are, by where they stand and by their parameter.
    files = {"test_cuda.py": "cuda", "test_triton.py": "triton", "test_triton_launch.py": "triton"}
    for backend, test in everything:
        parameters = test.partition("[")[2]
        assert files.get(file_of(test), backend) == backend, test
        for other in {"cuda", "triton"} - {backend}:
            assert not parameters.startswith((f"{other}-", f"{other}]")), test
    assert {test.partition("::")[0].rsplit("/", 1)[-1] for _, test in everything} >= {
        *files,
        "test_gpu.py",
        "test_knn.py",
    }
