"""benchmarks/gpu_gate.sh where time runs out: caps, kernels that never return, lost devices, a gate that is killed.

Where a test hangs or loses its device, pytest is the real one, with the options of the gate.
"""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

from pretended_gpu import NEEDED, arguments, tools, verdict

from benchmarks import gate_page

pytestmark = NEEDED


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
    result = pretended("--tests", "--backend", "cuda", "--cap", "tests-cuda=3", TESTS=found)
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
    others = ("--cap", "answers-cuda=0", "--cap", "initcheck-cuda=0")
    result = pretended("second", "--cap", "racecheck-cuda=3", *others, ANSWERS=hangs)
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


def test_whoever_kills_the_gate_is_left_with_a_page(tmp_path: Path) -> None:
    python, path = tools(tmp_path / "tools")
    given = ("--backend", "cuda", "--cap", "tests-cuda=8")
    begun = arguments(tmp_path / "out", *given, python=python, PATH=path, TESTS="exec sleep 5")
    page = tmp_path / "out" / "summary.md"
    with subprocess.Popen(**begun, stdout=subprocess.DEVNULL) as running:
        deadline = time.monotonic() + 60
        while not (page.exists() and "tests-cuda was running" in page.read_text()) and time.monotonic() < deadline:
            time.sleep(0.1)
        running.kill()
    title, *rest = page.read_text().splitlines()
    assert title == "# GPU gate: NOT AT ITS END, tests-cuda was running"
    assert any(line.startswith("| answers-cuda | passed |") for line in rest)
