"""The sdist, and the wheel built from it in isolation: no torch while building, and what it holds works."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOT_SOURCE = shutil.ignore_patterns(".*", "build", "dist", "runs", "*.egg-info", "*.so", "__pycache__", "results")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy: the checkout's own build/ must neither help nor be touched."""
    if not (ROOT / "setup.py").exists():
        pytest.skip(f"no source tree at {ROOT}")
    source = tmp_path_factory.mktemp("source") / "ldreg_kernels"
    shutil.copytree(ROOT, source, ignore=NOT_SOURCE)
    target = tmp_path_factory.mktemp("wheel")
    env = {**os.environ, "LDREG_BUILD_CUDA": "0"}  # the CUDA part has its own tests, and takes its minutes
    run([sys.executable, "setup.py", "-q", "sdist", "--dist-dir", str(target)], cwd=source, env=env)
    sdist = next(target.glob("*.tar.gz"))
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", str(target), str(sdist)]
    run(pip, cwd=target, env=env)
    return next(target.glob("*.whl"))


def run(command: list[str], **options: object) -> str:
    """stdout of a command that has to succeed."""
    result = subprocess.run(command, capture_output=True, text=True, **options)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.mark.slow
def test_holds_the_package_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert any(name.startswith("ldreg_kernels/_cpu.") for name in names)
    assert not any("_cuda." in name and name.endswith(".so") for name in names)
    assert "ldreg_kernels/py.typed" in names
    assert {name.split("/")[0].partition("-")[0] for name in names} == {"ldreg_kernels"}
    metadata = next(name for name in names if name.endswith("METADATA"))
    text = zipfile.ZipFile(wheel).read(metadata).decode()
    assert "Requires-Dist: torch>=2.10" in text.splitlines()


@pytest.mark.slow
def test_works_when_installed(wheel: Path, tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--target", str(tmp_path), str(wheel)]
    run(pip, cwd=tmp_path)
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}  # comes before an editable install's finder
    report = run([sys.executable, "-m", "ldreg_kernels.doctor"], env=env, cwd=tmp_path)
    assert f"in {tmp_path}" in report
