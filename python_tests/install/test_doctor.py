"""`ldreg doctor`: its exit code, its words for a missing backend, and that a wrong kernel does not pass."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
import typer

import ldreg_kernels as ldk
from ldreg_kernels import cli, doctor, doctor_gpu
from ldreg_kernels.kernels import tuning


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """main() on a machine with the given backends, each with the given self-test error (or exception)."""

    def run(backends: dict[str, str | None], **errors: float | Exception) -> int:
        def self_test(name: str) -> float:
            error = errors.get(name, 0.5)
            if isinstance(error, Exception):
                raise error
            return error

        monkeypatch.setattr(ldk, "backends", lambda: backends)
        monkeypatch.setattr(doctor, "_self_test", self_test)
        monkeypatch.setattr(doctor, "_environment", lambda: {"torch_version": "any"})
        return doctor.main()

    return run


def test_healthy_without_a_gpu(pretend: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert pretend({"cuda": "no NVIDIA driver is installed", "cpu": None, "reference": None}) == 0
    out = capsys.readouterr().out
    assert "missing: no NVIDIA driver is installed" in out
    assert "ok, self-test error at 50% of the tolerance" in out
    assert out.endswith("Healthy.\n")


def test_the_cpu_backend_may_not_be_missing(pretend: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert pretend({"cpu": "the extension was not built", "reference": None}) == 1
    assert "NOT healthy" in capsys.readouterr().out


@pytest.mark.parametrize("error", [1.1, float("nan"), float("inf")])
def test_a_wrong_answer_is_a_failure(pretend: Callable[..., int], error: float) -> None:
    assert pretend({"cpu": None, "reference": None}, cpu=error) == 1


def test_a_crash_is_reported_and_the_rest_still_checked(
    pretend: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert pretend({"cuda": None, "cpu": None}, cuda=RuntimeError("illegal address")) == 1
    out = capsys.readouterr().out
    assert "FAILED: RuntimeError: illegal address" in out
    assert "ok, self-test" in out


def test_the_self_test_notices_a_wrong_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    real = ldk.lid
    assert doctor._self_test("reference") <= 1

    def slightly_off(x: torch.Tensor, **options: object) -> torch.Tensor:
        result = real(x, **options)
        return result if x.dtype == torch.float64 else result * (1 + 1e-4)

    monkeypatch.setattr(ldk, "lid", slightly_off)
    assert doctor._self_test("reference") > 1


def test_the_command_agrees_with_this_installation() -> None:
    result = subprocess.run([sys.executable, "-m", "ldreg_kernels.doctor"], capture_output=True, text=True)
    expected = 0 if ldk.backends()["cpu"] is None else 1
    assert result.returncode == expected, result.stdout + result.stderr
    assert result.stderr == ""
    for name in ("torch_version", "_cpu", "_cuda", *ldk.backends()):
        assert name in result.stdout


def test_a_build_without_cuda_says_so() -> None:
    program = (
        "import sys\n"
        "sys.modules['ldreg_kernels._cuda'] = None\n"  # importing it raises ModuleNotFoundError
        "import ldreg_kernels.doctor as doctor\n"
        "print(doctor.ldk.backends()['cuda'], doctor._cuda_build(), sep='|')"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    backend, module = result.stdout.strip().split("|")
    assert backend == "the CUDA extension was not built: nvcc was not found, or LDREG_BUILD_CUDA was 0"
    assert module == "not built: nvcc was not found, or LDREG_BUILD_CUDA was 0"


# ---------------------------------------------------------------- ldreg doctor --gpu


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """doctor.main(gpu=True) on a machine whose GPU backends are processes that run these programs."""

    def run(seconds: float = 60.0, **programs: str) -> int:
        backends = {name: None if name in programs else "no NVIDIA driver is installed" for name in ("cuda", "triton")}
        monkeypatch.setattr(ldk, "backends", lambda: backends)
        monkeypatch.setattr(doctor_gpu.dispatch, "devices", lambda name: ("cuda",))
        monkeypatch.setattr(doctor_gpu, "LIMITS", dict.fromkeys(("cuda", "triton"), seconds))
        monkeypatch.setattr(doctor_gpu, "_command", lambda name: [sys.executable, "-c", SAY + programs[name]])
        monkeypatch.setattr(doctor, "_environment", lambda: {"nvidia_driver_version": "570.1"})
        return doctor.main(gpu=True)

    return run


SAY = "import json, os, sys, time\ndef say(**line): print(json.dumps(line), flush=True)\n"
RIGHT = "for i in range(3): say(problem=i); say(problem=i, errors={'LID': 0.5})\n"


def test_without_a_gpu_nothing_is_checked_and_the_reason_is_given(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ldk, "backends", lambda: {"cuda": "no NVIDIA driver is installed", "triton": "no CUDA device"})
    with pytest.raises(typer.Exit) as end:
        cli.doctor(gpu=True)  # what `ldreg doctor --gpu` calls
    assert end.value.exit_code == 1
    assert capsys.readouterr().out.splitlines() == [
        "cuda: not checked: no NVIDIA driver is installed",
        "triton: not checked: no CUDA device",
        "No GPU backend can run here, so nothing was checked.",
    ]


def test_an_emulated_backend_is_no_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(ldk, "backends", lambda: {"cuda": None, "triton": None})
    monkeypatch.setattr(doctor_gpu.dispatch, "devices", lambda name: ("cpu",))
    assert doctor.main(gpu=True) == 1
    assert "cuda: not checked: it runs on the CPU" in capsys.readouterr().out


def test_right_answers_are_healthy(stand_in: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert stand_in(cuda="print('a library greets')\n" + RIGHT) == 0
    out = capsys.readouterr().out
    assert "cuda (700, 700, 512, 32) float32, tiles of the batch with itself: ok, LID at 0.5 of the tolerance" in out
    assert "triton: not checked: no NVIDIA driver is installed" in out
    assert out.endswith("Healthy.\n")


@pytest.mark.parametrize("share", [1.01, float("nan"), float("inf")])
def test_a_wrong_answer_on_a_gpu_is_reported(
    stand_in: Callable[..., int], share: float, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = f"say(problem=0); say(problem=0, errors={{'loss': 0.1, 'gradient': float('{share}')}})\n"
    assert stand_in(cuda=wrong + RIGHT.replace("range(3)", "range(1, 3)"), triton=RIGHT) == 1
    out = capsys.readouterr().out
    report = out.partition("Please report this:")[2]
    assert f"FAILED, gradient at {share:.3g} of the tolerance" in report
    for part in ("backend", "cuda", "(97, 97, 33, 11) float32, every pair", ldk.__version__, "570.1", "_cuda"):
        assert part in report
    assert "triton (97, 97, 33, 11) float32, every pair: ok" in out  # the other one had its turn, in its own process
    assert "Healthy" not in out


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        (
            "say(problem=0); say(problem=0, failure='AcceleratorError: illegal address', details='Traceback: x.cu')",
            [
                "(97, 97, 33, 11)",
                "FAILED: AcceleratorError: illegal address",
                "stays with its process",
                "| Traceback: x.cu",
            ],
        ),
        ("say(problem=0); time.sleep(60)", ["(97, 97, 33, 11)", "FAILED: no answer within 1 s: a kernel that hangs"]),
        (  # three lines at once, and silence
            "lines = {'problem': 0}, {'problem': 0, 'errors': {'LID': 0.5}}, {'problem': 1}\n"
            "print(*map(json.dumps, lines), sep=chr(10), flush=True); time.sleep(60)",
            ["(700, 700, 512, 32)", "FAILED: no answer within 1 s"],
        ),
        (
            "say(problem=0); say(problem=0, errors={'LID': 0.5}); say(problem=1); print('Xid 31', file=sys.stderr); "
            "sys.stderr.flush(); os.abort()",
            ["(700, 700, 512, 32)", "FAILED: the process ended with code -6", "| Xid 31"],
        ),
    ],
    ids=["exception", "hang", "hang later", "death"],
)
def test_what_a_gpu_can_do_to_a_process_names_backend_and_problem(
    stand_in: Callable[..., int], capsys: pytest.CaptureFixture[str], program: str, expected: list[str]
) -> None:
    assert stand_in(seconds=1.0, cuda=program) == 1
    report = capsys.readouterr().out.partition("Please report this:")[2]
    for part in ("cuda", *expected):
        assert part in report, report


def test_the_three_problems_are_right_on_the_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    found = doctor_gpu.outcomes("cpu", 120.0)  # the child itself
    assert [outcome.problem for outcome in found] == list(doctor_gpu.PROBLEMS)
    assert all(outcome.ok for outcome in found), [str(outcome) for outcome in found]
    assert set(found[0].errors) == {"distances", "LID", "LID in the loss", "loss", "gradient"}


def test_an_exception_in_the_child_becomes_an_outcome(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # for a process that is asked for a GPU all the same
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    (found,) = doctor_gpu.outcomes("triton", 120.0)
    assert (found.ok, found.problem) == (False, doctor_gpu.PROBLEMS[0])
    assert "Error" in found.failure
    assert "Traceback" in found.details


def test_the_three_problems_take_the_kernels_three_ways() -> None:
    def way(problem: doctor_gpu.Problem) -> tuple[str, bool]:
        name = str(problem.dtype).removeprefix("torch.")
        blocks = tuning.choose(tuning.Shape(problem.B, problem.N, problem.D, problem.k, name, 90))
        return blocks.path, blocks.append

    assert [way(problem) for problem in doctor_gpu.PROBLEMS] == [("direct", False), ("tiles", False), ("tiles", True)]
    assert all(problem.N % 128 for problem in doctor_gpu.PROBLEMS)  # something is left over at the end of a tile


def test_a_wrong_kernel_does_not_pass_the_gpu_check(monkeypatch: pytest.MonkeyPatch) -> None:
    real, problem, cpu = ldk.lid, doctor_gpu.PROBLEMS[0], torch.device("cpu")
    assert max(doctor_gpu.errors(problem, "cpu", cpu).values()) <= 1

    def slightly_off(x: torch.Tensor, *args: object, backend: str, **options: object) -> torch.Tensor:
        return real(x, *args, backend=backend, **options) * (1 if backend == "reference" else 1 + 1e-4)

    monkeypatch.setattr(ldk, "lid", slightly_off)
    assert doctor_gpu.errors(problem, "cpu", cpu)["LID"] > 1
