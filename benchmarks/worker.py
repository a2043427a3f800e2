"""One process per contender. The parent's half, `Worker`, sends requests; the child's half, `main`, answers them.

A process of its own keeps contenders apart: one that hangs is stopped, one that runs out of memory takes nobody with
it, two OpenMP libraries never meet, and another commit's package can stand beside this one (compare.py). Requests and
replies are one line of JSON each, over the child's standard input and output; whatever else the child prints goes to a
file, of which the end is shown if it dies.
"""

from __future__ import annotations

import gc
import json
import math
import os
import resource
import select
import subprocess
import sys
import tempfile
import time
import traceback
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import torch

from .cases import Case
from .contenders import Contender, named
from .gate import WrongAnswerError
from .harness import OutOfMemoryError, Trial, peak_resident_memory
from .isa import environment
from .records import ROOT
from .roofline import measure_rates
from .searches import UnavailableError

START_SECONDS = 120.0  # to import torch and the contender's library on a busy machine


class NoMeasurementError(Exception):
    """Nothing was measured; the message is what the tables show: missing, wrong, out of memory, over the limit, failed.

    Attributes:
        details: a traceback, where somebody should read it.
    """

    def __init__(self, state: str, details: str = "") -> None:
        super().__init__(state)
        self.details = details


class Worker:
    """The parent's handle of one contender's process, which the first request starts, also after a stop.

    Args:
        contender: its name.
        device: "cpu" or "cuda".
        threads: CPU threads of torch and of every OpenMP library.
        package: the checkout whose ldreg_kernels is measured.
        memory_limit: bytes of data the process may have; 0 for no limit.
        isa: the instruction set of our CPU kernels; empty for what this process' environment says.
    """

    def __init__(
        self, contender: str, device: str, threads: int, package: Path = ROOT, memory_limit: int = 0, isa: str = ""
    ) -> None:
        self.contender, self.isa = contender, isa
        self._arguments = [contender, device, str(threads), str(memory_limit)]
        self._package = package
        self.deadline = math.inf  # on time.monotonic(); no answer is waited for longer
        self._process: subprocess.Popen[str] | None = None
        self._printed: IO[str] = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 (lives as long as the handle)

    def prepare(self, case: Case, limit: float) -> dict[str, float]:
        """Build the contender for a case, call it, check the answer.

        Args:
            case: what.
            limit: seconds one call may take.

        Returns:
            The answer's errors, and `expected` ms for a call.

        Raises:
            NoMeasurementError: there is nothing to time, with the reason.
        """
        found: dict[str, float] = self._ask(START_SECONDS + 3 * limit, do="prepare", case=case.to_dict(), limit=limit)
        return found

    def milliseconds(self, calls: int, limit: float) -> list[float]:
        """Time of each of so many calls of the prepared case."""
        found: list[float] = self._ask(60 + calls * limit, do="time", calls=calls)
        return found

    def start(self) -> None:
        """Start the process, which then imports what it needs; the first answer waits for that."""
        self._started()

    def peak_memory(self) -> float | None:
        """MB on a GPU: `harness.Trial.peak_memory`."""
        found: float | None = self._ask(120, do="peak_memory")
        return found

    def kernels(self) -> list[str] | None:
        """Names of the kernels of one call, on a GPU."""
        found: list[str] | None = self._ask(120, do="kernels")
        return found

    def release(self) -> None:
        """Give the memory of the prepared case back; a process that does not manage ends."""
        if self._process is not None:
            try:
                self._ask(60, do="release")
            except NoMeasurementError:
                self.stop()

    def resident_memory(self, case: Case, limit: float) -> float:
        """MB that one call adds at the peak: `harness.peak_resident_memory`."""
        found: float = self._ask(START_SECONDS + 3 * limit, do="resident", case=case.to_dict(), limit=limit)
        return found

    def rates(self) -> dict[str, Any]:
        """The fields of `roofline.Rates`."""
        found: dict[str, Any] = self._ask(START_SECONDS, do="rates")
        return found

    def stop(self) -> None:
        """End the process, whatever it is doing."""
        if self._process is not None:
            self._process.kill()
            with suppress(subprocess.TimeoutExpired):  # stuck in a driver; there is nothing to wait for
                self._process.communicate(timeout=10)
            self._process = None

    def _ask(self, seconds: float, **request: Any) -> Any:
        process = self._started()
        assert process.stdin is not None
        assert process.stdout is not None
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise NoMeasurementError("not reached: the run's time was over")
        with suppress(BrokenPipeError):  # it is dead, which is noticed below
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
        if not select.select([process.stdout], [], [], min(seconds, left))[0]:
            self.stop()
            cut = "not reached: the run's time was over" if left < seconds else f"no answer within {seconds:.0f} s"
            raise NoMeasurementError(cut)
        line = process.stdout.readline()
        if not line.endswith("\n"):
            self._explain_death(process)
        reply = json.loads(line)
        if "state" not in reply:
            return reply["value"]
        if reply.get("broken"):
            self.stop()
        raise NoMeasurementError(reply["state"], reply.get("details", ""))

    def _started(self) -> subprocess.Popen[str]:
        if self._process is None:
            # `benchmarks` always comes from this checkout, `ldreg_kernels` from the one that is measured.
            program = (
                f"import sys; sys.path.insert(0, {str(ROOT)!r}); import benchmarks; "
                f"sys.path.insert(0, {str(self._package)!r}); from benchmarks.worker import main; main()"
            )
            self._process = subprocess.Popen(
                [sys.executable, "-c", program, *self._arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._printed,
                text=True,
                env={**environment(self.isa), "OMP_NUM_THREADS": self._arguments[2]},
            )
        return self._process

    def _explain_death(self, process: subprocess.Popen[str]) -> None:
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=10)  # its output ends before it does
        code = process.poll()
        self.stop()
        if code == -9:  # nobody but the system's out-of-memory killer sends it
            raise NoMeasurementError("out of memory: ended by the system")
        self._printed.seek(0)
        raise NoMeasurementError(f"failed: the process ended with code {code}", self._printed.read()[-2000:])


# ------------------------------------------------------------------------------------------------- the child


def main() -> None:
    """Answer requests until standard input ends."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not be taken for a reply
    contender, device, threads, memory_limit = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    if memory_limit:
        resource.setrlimit(resource.RLIMIT_DATA, (memory_limit, memory_limit))
    torch.set_num_threads(threads)
    child = _Child(named(contender), torch.device(device))
    for line in sys.stdin:
        replies.write(json.dumps(child.answer(**json.loads(line))) + "\n")
        replies.flush()


class _Child:
    """The contender, and the case it is prepared for."""

    def __init__(self, contender: Contender, device: torch.device) -> None:
        self.contender, self.device = contender, device
        self.trial: Trial | None = None

    def answer(self, do: str, **arguments: Any) -> dict[str, Any]:
        """The reply to one request: {"value": ...}; or {"state": ...}, with "details" where something went wrong, and
        "broken" where this process is not to be trusted any more.
        """
        try:
            return {"value": getattr(self, f"do_{do}")(**arguments)}
        except (UnavailableError, OutOfMemoryError) as error:
            reply = {"state": str(error)}
        except WrongAnswerError as error:
            reply = {"state": f"wrong: {error}"}
        except Exception as error:
            # After an illegal access every later call on the same CUDA context fails too.
            state = f"failed: {type(error).__name__}: {error}"[:200]
            return {"state": state, "details": traceback.format_exc(), "broken": self.device.type == "cuda"}
        gc.collect()  # what the call held is still there, and others want the GPU's memory
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return reply

    def do_prepare(self, case: dict[str, Any], limit: float) -> dict[str, float]:
        self.do_release()
        self.trial = Trial(self.contender, Case(**case), self.device, limit)
        return {**self.trial.errors, "expected": self.trial.expected_ms}

    def do_time(self, calls: int) -> list[float]:
        assert self.trial is not None
        return self.trial.milliseconds(calls)

    def do_peak_memory(self) -> float | None:
        assert self.trial is not None
        return self.trial.peak_memory()

    def do_kernels(self) -> list[str] | None:
        assert self.trial is not None
        return self.trial.kernels()

    def do_release(self) -> None:
        if self.trial is not None:
            self.trial.close()
            self.trial = None

    def do_resident(self, case: dict[str, Any], limit: float) -> float:
        return peak_resident_memory(self.contender, Case(**case), limit)

    def do_rates(self) -> dict[str, Any]:
        return asdict(measure_rates(self.device))
