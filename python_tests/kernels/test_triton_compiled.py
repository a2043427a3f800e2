"""Every shipped Triton configuration, compiled ahead of time in a process of its own, without the interpreter.

What is compiled, and for which GPUs: benchmarks/compiled.py. The committed figures are those of this version. The
oldest version that the backend is made for compiles one configuration of each kind, and both what tests force on a GPU.
"""

from __future__ import annotations

import csv
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
COMMITTED = ROOT / "benchmarks" / "results" / "triton_kernels.csv"
OLDEST = "3.6.0"  # of Triton; it comes with torch 2.10 and 2.11
KIB = 1024
SHARED_LIMIT = {"80": 163 * KIB, "90": 227 * KIB, "100": 227 * KIB}
CONFIGURATION = ("kernel", "path", "mode", "dtype", "B", "N", "D", "k", "capability")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.alone,  # it keeps two cores busy by itself, once for the whole file
    pytest.mark.timeout(600),  # thirty kernels, ten seconds of a core each
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed"),
]


def read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def python(*command: str, first: Path | None = None) -> subprocess.CompletedProcess:
    """Run without the interpreter; packages in the folder `first` come before installed ones."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    paths = [first, ROOT, ROOT / "python_tests", os.environ.get("PYTHONPATH")]
    environment["PYTHONPATH"] = os.pathsep.join(str(path) for path in paths if path)
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def check(tmp_path_factory):
    """(finished process, rows)."""
    path = tmp_path_factory.mktemp("compiled") / "kernels.csv"
    done = python("-m", "benchmarks.compiled", "--write", str(path))
    return done, read(path) if path.exists() else []


@pytest.fixture(scope="module")
def oldest() -> Path:
    """A folder with that version of Triton, fetched once. Nothing else in it, and nothing is installed."""
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    folder = ROOT / "build" / f"triton-{OLDEST}-{tag}"
    if not (folder / "triton" / "__init__.py").exists():
        wanted = ["--no-deps", "--only-binary", ":all:", "--target", str(folder), f"triton=={OLDEST}"]
        done = python("-m", "pip", "install", "--quiet", "--disable-pip-version-check", *wanted)
        if done.returncode:
            shutil.rmtree(folder, ignore_errors=True)
            pytest.skip(f"Triton {OLDEST} could not be fetched: {done.stderr.strip()[-300:]}")
    return folder


def test_every_requirement_is_met(check):
    done, _ = check
    assert done.returncode == 0, done.stdout + done.stderr


def test_nothing_is_spilled(check):
    _, rows = check
    assert rows
    assert [row for row in rows if row["spilled_bytes"] != "0" or row["spill_instructions"] != "0"] == []


def test_shared_memory_fits(check):
    _, rows = check
    assert rows
    assert [row for row in rows if int(row["shared_bytes"]) > SHARED_LIMIT[row["capability"]]] == []


@pytest.mark.parametrize(
    ("capability", "instructions"), [("80", ["mma.sync"]), ("90", ["wgmma"]), ("100", ["tcgen05", "mma.sync"])]
)
def test_tiles_are_multiplied_by_tensor_cores(check, capability, instructions):
    _, rows = check
    tiles = [row["matrix"] for row in rows if row["path"] == "tiles" and row["capability"] == capability]
    assert len(tiles) >= 5
    assert all(any(name in matrix for name in instructions) and "serialized" not in matrix for matrix in tiles), tiles


def test_both_paths_are_compiled_for_every_capability(check):
    _, rows = check
    assert {(row["capability"], row["path"]) for row in rows} == {
        (c, p) for c in SHARED_LIMIT for p in ("tiles", "direct")
    }


def test_committed_file_is_up_to_date(check):
    _, rows = check
    committed = read(COMMITTED)

    def configurations(of):
        return [tuple(row[name] for name in CONFIGURATION) for row in of]

    assert configurations(committed) == configurations(rows)
    if rows[0]["triton"] == committed[0]["triton"]:  # another version's compiler may come to other figures
        assert committed == rows, "run python -m benchmarks.compiled --write"


# ------------------------------------------------------------------------------------------------- the oldest version


def test_the_oldest_version_compiles_everything(oldest: Path) -> None:
    """On Hopper; it has to meet the same requirements, nothing spilled among them."""
    done = python("-m", "benchmarks.compiled", "--capability", "90", first=oldest)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(f"| {OLDEST}\n") == 13, done.stdout


def test_the_oldest_version_compiles_what_tests_force(oldest: Path) -> None:
    done = python("python_tests/triton_compile.py", first=oldest)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith(f"Triton {OLDEST}: ")


def test_the_installed_version_compiles_what_tests_force() -> None:
    done = python("python_tests/triton_compile.py")
    assert done.returncode == 0, done.stdout + done.stderr
