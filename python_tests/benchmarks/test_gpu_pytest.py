"""benchmarks/gpu_pytest.py: every GPU test belongs to one backend. Progress and lost devices: test_gpu_gate_time.py."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# Collects as on a machine with a GPU, and prints whose test each one is, taken or left.
COLLECTING = """
import torch
from benchmarks import gpu_pytest
torch.cuda.is_available = lambda: True
torch.cuda.device_count = lambda: 1
torch.cuda.get_device_capability = lambda *_: (9, 0)

def pytest_deselected(items):
    for item in items:
        if item.get_closest_marker("gpu"):
            print("LEFT", gpu_pytest.backend_of(item), item.nodeid)

def pytest_collection_finish(session):
    for item in session.items:
        print("TAKEN", gpu_pytest.backend_of(item), item.nodeid)
"""
FILES = {"kernels/test_cuda.py": "cuda", "kernels/test_triton.py": "triton", "kernels/test_triton_launch.py": "triton"}
BOTH = ("kernels/test_gpu.py", "ops/test_knn.py")


def test_every_gpu_test_belongs_to_one_backend(tmp_path: Path) -> None:
    (tmp_path / "collecting.py").write_text(COLLECTING)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)]), "PYTEST_ADDOPTS": ""}
    env.pop("TRITON_INTERPRET", None)
    command = [sys.executable, "-m", "pytest", *(f"python_tests/{file}" for file in (*FILES, *BOTH)), "-m", "gpu", "-q"]
    command += ["--collect-only", "-p", "no:cacheprovider", "-p", "benchmarks.gpu_pytest", "-p", "collecting"]
    ran = subprocess.run([*command, "--ldreg-backend", "cuda"], cwd=ROOT, env=env, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    lines = [line.split(" ", 2) for line in ran.stdout.splitlines() if line.startswith(("TAKEN ", "LEFT "))]
    assert {(taken, backend) for taken, backend, _ in lines} == {("TAKEN", "cuda"), ("LEFT", "triton")}
    seen = set()
    for _, backend, test in lines:  # by where it stands, and by its parameter
        file = test.partition("::")[0].removeprefix("python_tests/")
        seen.add((file, backend))
        assert FILES.get(file, backend) == backend, test
        other = "triton" if backend == "cuda" else "cuda"
        assert not test.partition("[")[2].startswith((f"{other}-", f"{other}]")), test
    assert seen == {*FILES.items(), *((file, backend) for file in BOTH for backend in ("cuda", "triton"))}
