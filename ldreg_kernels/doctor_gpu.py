"""`ldreg doctor --gpu`: the smallest check of a GPU that is worth something, and what to report if it fails.

Three problems that take the kernels' three ways: every pair at once, tiles of a batch that searches itself, tiles and
lists with more references than queries. Neighbours, LID, loss and gradient of each are compared with float64, computed
by the reference on the CPU. Each backend has a process of its own: after an illegal access everything else in that
process fails too, and a kernel that hangs can only be stopped from outside. Needs torch alone; it measures no speed.

    python -m ldreg_kernels.doctor_gpu BACKEND    the process of one backend: a line of JSON before and after each step
"""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import ldreg_kernels as ldk
from ldreg_kernels.kernels import dispatch

# Seconds for one problem, by backend. Its kernels take milliseconds; Triton compiles three of them first, where its
# cache is empty, and the slowest take 40 s.
LIMITS = {"cuda": 60.0, "triton": 240.0}
STICKY = (
    "A CUDA error stays with its process: whatever this backend ran afterwards there says nothing. "
    "CUDA_LAUNCH_BLOCKING=1 names the call, compute-sanitizer the instruction."
)


@dataclass(frozen=True)
class Problem:
    """B queries, N references that begin with the queries, D features, k neighbours."""

    B: int
    N: int
    D: int
    k: int
    dtype: torch.dtype
    way: str  # through the kernels

    def __str__(self) -> str:
        return f"({self.B}, {self.N}, {self.D}, {self.k}) {str(self.dtype).removeprefix('torch.')}, {self.way}"

    def inputs(self) -> tuple[Tensor, Tensor | None]:
        """Normal x [B, D] and y [N, D] on the CPU."""
        rows = torch.randn(self.N, self.D, generator=torch.Generator().manual_seed(self.N)).to(self.dtype)
        return (rows, None) if self.B == self.N else (rows[: self.B].clone(), rows)


PROBLEMS = (
    Problem(97, 97, 33, 11, torch.float32, "every pair"),
    Problem(700, 700, 512, 32, torch.float32, "tiles of the batch with itself"),  # 60 rows beyond a multiple of 128
    Problem(131, 8209, 129, 20, torch.bfloat16, "tiles and lists, more references"),
)


# ------------------------------------------------------------------------------------------------- the child


def main(backend: str) -> None:
    """Solve every problem on this backend, and say so line by line."""
    device = torch.device(dispatch.devices(backend)[0])
    for index, problem in enumerate(PROBLEMS):
        _say(problem=index)
        try:
            _say(problem=index, errors=errors(problem, backend, device))
        except Exception as error:  # whatever a broken kernel raises
            _say(problem=index, failure=f"{type(error).__name__}: {error}", details=traceback.format_exc())
            return


def _say(**line: Any) -> None:
    print(json.dumps(line), flush=True)


def errors(problem: Problem, backend: str, device: torch.device) -> dict[str, float]:
    """The worst error of every answer as a share of what the contract of precision="exact" allows."""
    x, y = problem.inputs()
    truth = _answers(x.double(), None if y is None else y.double(), problem.k, "reference")
    found = _answers(x.to(device), None if y is None else y.to(device), problem.k, backend)
    if device.type == "cuda":
        torch.cuda.synchronize()
    lid = truth["LID"]
    # LID is conditioned by 1 + LID: from LID 20 on by what 2e-7 in a distance makes of it (the README's limits).
    allowed_lid = (1 + lid) * (2e-7 * lid).clamp(min=4e-6)
    rounding = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}.get(problem.dtype, 0.0)
    allowed_gradient = max(1e-5, 1e-7 * (1 + float(lid.max()))) + rounding
    untied = _untied(x.double(), None if y is None else y.double(), problem.k)
    gradient = (found["gradient"] - truth["gradient"])[untied].norm() / truth["gradient"][untied].norm()
    shares = {
        "distances": ((found["distances"] - truth["distances"]).abs() / truth["distances"]).max() / 1e-6,
        "LID": ((found["LID"] - lid).abs() / allowed_lid).max(),
        "LID in the loss": ((found["LID in the loss"] - lid).abs() / allowed_lid).max(),
        "loss": (found["loss"] - truth["loss"]).abs() / 2e-5,
        "gradient": gradient / allowed_gradient,
    }
    return {name: float(share) for name, share in shares.items()}


def _untied(x: Tensor, y: Tensor | None, k: int) -> Tensor:
    """Mask [B] of the rows whose k-th neighbour stands apart: where two tie, either gradient is right."""
    found = ldk.knn(x, y, k=k + 1, self_index=None if y is None else 0, backend="reference")
    last = found.distances[:, k - 2 :]  # before it, the k-th, behind it
    return (last.diff(dim=1) > 2e-6 * last[:, :-1]).all(1)


def _answers(x: Tensor, y: Tensor | None, k: int, backend: str) -> dict[str, Tensor]:
    """Everything the three operations return, in float64 on the CPU."""
    own = None if y is None else 0
    found = ldk.knn(x, y, k=k, self_index=own, backend=backend)
    lid = ldk.lid(x, y, k=k, self_index=own, backend=backend)
    x = x.detach().requires_grad_()
    loss, stats = ldk.ldreg_loss(x, y, k=k, self_index=own, backend=backend, return_stats=True)
    loss.backward()
    assert x.grad is not None
    parts = {"distances": found.distances, "LID": lid, "LID in the loss": stats.lid, "loss": loss, "gradient": x.grad}
    return {name: part.detach().double().cpu() for name, part in parts.items()}


# ------------------------------------------------------------------------------------------------- the parent


@dataclass(frozen=True)
class Outcome:
    """How one backend did on one problem."""

    problem: Problem
    errors: dict[str, float]
    failure: str = ""  # an exception, a hang, a death
    details: str = ""

    @property
    def ok(self) -> bool:
        """All answers within the contract; a NaN is not."""
        return not self.failure and all(share <= 1 for share in self.errors.values())

    def __str__(self) -> str:
        if self.failure:
            return f"FAILED: {self.failure}"
        # Not Python's max(), which may skip a NaN.
        worst = max(self.errors, key=lambda name: self.errors[name] if self.errors[name] >= 0 else float("inf"))
        return f"{'ok' if self.ok else 'FAILED'}, {worst} at {self.errors[worst]:.3g} of the tolerance"


def outcomes(backend: str, seconds: float) -> list[Outcome]:
    """Every problem on one backend, in a process of its own that is ended where it does not answer in time."""
    found: list[Outcome] = []
    with tempfile.TemporaryFile("w+", errors="replace") as printed:
        process = subprocess.Popen(_command(backend), stdout=subprocess.PIPE, stderr=printed, text=True)
        try:
            for line in _lines(process, seconds):
                problem = PROBLEMS[line["problem"]]
                if "errors" in line:
                    found.append(Outcome(problem, line["errors"]))
                elif "failure" in line:
                    found.append(Outcome(problem, {}, line["failure"], line["details"]))
            state = f"the process ended with code {process.wait(seconds)}"
        except TimeoutError:
            state = f"no answer within {seconds:.0f} s: a kernel that hangs, or a compiler"
        finally:
            process.kill()
            with suppress(subprocess.TimeoutExpired):  # stuck in the driver; there is nothing to wait for
                process.wait(timeout=10)
        if len(found) < len(PROBLEMS) and not (found and found[-1].failure):
            printed.seek(0)
            found.append(Outcome(PROBLEMS[len(found)], {}, state, printed.read()[-2000:]))
    return found


def _command(backend: str) -> list[str]:
    return [sys.executable, "-m", "ldreg_kernels.doctor_gpu", backend]


def _lines(process: subprocess.Popen[str], seconds: float) -> Iterator[dict[str, Any]]:
    """What the process says, until it ends.

    Raises:
        TimeoutError: it said nothing for so long.
    """
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def read() -> None:  # until the process ends, which it may never do
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                lines.put(line)
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    try:
        while (line := lines.get(timeout=seconds)) is not None:
            if line.startswith("{"):  # libraries print too
                yield json.loads(line)
    except queue.Empty:
        raise TimeoutError from None


def check(environment: dict[str, str]) -> int:
    """Print how every GPU backend does; the exit code.

    Args:
        environment: lines for the report of a failure, by name.

    Returns:
        0 where at least one backend ran and all answers were right, else 1.
    """
    ran, failed = 0, False
    for backend, seconds in LIMITS.items():
        reason = ldk.backends()[backend]
        if reason is None and "cuda" not in dispatch.devices(backend):
            reason = "it runs on the CPU in this process, emulated: that says nothing about a GPU"
        if reason is not None:
            print(f"{backend}: not checked: {reason}")
            continue
        begin = time.monotonic()
        results = outcomes(backend, seconds)
        ran += 1
        for result in results:
            print(f"{backend} {result.problem}: {result}")
        print(f"{backend}: {time.monotonic() - begin:.0f} s")
        if not all(result.ok for result in results):
            failed = True
            print(_report(backend, next(result for result in results if not result.ok), environment))
    if not ran:
        print("No GPU backend can run here, so nothing was checked.")
    elif not failed:
        print("Healthy.")
    return 0 if ran and not failed else 1


def _report(backend: str, outcome: Outcome, environment: dict[str, str]) -> str:
    """What somebody who was not there needs to know, ready to be pasted."""
    lines = ["", "Please report this:", f"  {'backend':<22} {backend}", f"  {'problem':<22} {outcome.problem}"]
    lines += [f"  {'outcome':<22} {outcome}"]
    lines += [f"  {name:<22} {value}" for name, value in {**_versions(), **environment}.items()]
    lines += [f"  {name:<22} {share:.3g} of the tolerance" for name, share in outcome.errors.items()]
    if outcome.failure:
        lines += [f"  {STICKY}"]
    return "\n".join([*lines, *(f"  | {line}" for line in outcome.details.splitlines()), ""])


def _versions() -> dict[str, str]:
    """The package, its commit where it is a checkout, and the GPU."""
    found = {"ldreg_kernels": f"{ldk.__version__}{_commit()}"}
    with suppress(Exception):  # the driver may be what is broken; the report is made all the same
        major, minor = torch.cuda.get_device_capability()
        found["GPU"] = f"{torch.cuda.get_device_name()}, compute capability {major}.{minor}"
    with suppress(ImportError):
        import triton

        found["triton"] = str(triton.__version__)
    return found


def _commit() -> str:
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return ""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    with suppress(OSError, subprocess.CalledProcessError):
        return (
            ", commit " + subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout.strip()
        )
    return ""


if __name__ == "__main__":
    main(sys.argv[1])
