"""How long did it take, how many launches, how much memory: one contender, one case, inside one process.

    trial = Trial(contender, case, torch.device("cuda"))   # builds inputs, calls once, checks the answer
    trial.milliseconds(20)                                 # 20 calls

Time is that of a call with inputs it has not just seen: they rotate over several buffers, and on a GPU the L2 cache is
overwritten before every call. CUDA is timed with events, or with the clock around a device-wide synchronisation for
libraries that work on a stream of their own; the CPU with `perf_counter`. Whose turn it is, session.py decides.
"""

from __future__ import annotations

import gc
import itertools
import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from timeit import timeit

import torch
from torch import Tensor

from .cases import Case
from .contenders import Answer, Contender
from .gate import check
from .searches import UnavailableError

PILOT_SHARE = 32  # a pilot runs one query in so many
LONG_MS = 1000.0  # a call as long as this needs no second one to warm up
POOL_BYTES = 4e9  # of GPU memory that a contender may keep while others have their turn
MEGABYTE = 1e6


class OutOfMemoryError(Exception):
    """A call wanted more memory than there is; the message says how much there was."""


class Trial:
    """One contender on one case: built, called once and checked; ready to be timed.

    Args:
        contender: who.
        case: what.
        device: where.
        limit: seconds that one call may take, judged by a pilot where the contender asks for one.

    Raises:
        UnavailableError: the library is missing, cannot do the case, or would take longer than `limit`.
        WrongAnswerError: the answer did not pass the gate.
        OutOfMemoryError: it did not fit.
    """

    def __init__(self, contender: Contender, case: Case, device: torch.device, limit: float = math.inf) -> None:
        self.contender, self.case, self.device = contender, case, device
        self.inputs = [case.inputs(seed, device) for seed in range(_copies(case, device))]
        self.rotation = itertools.cycle(self.inputs)
        self.flush = torch.empty(_flush_bytes(device), dtype=torch.uint8, device=device)
        try:
            self.call = contender.build(case)
            if contender.pilot:
                pilot(lambda x, y: self._timed(x, y)[1], *self.inputs[0], limit)
            answer, self.first_call_ms = self._timed(*self.inputs[0])
            self.errors = check(case, *self.inputs[0], answer, exact=contender.ours) if contender.checked else {}
            del answer
            if contender.compiles or self.first_call_ms < LONG_MS:
                self._timed(*self.inputs[-1])  # the call after it finds caches, pools and autotuning settled
        except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is one of the latter
            _raise_out_of_memory(error, device)
            raise
        self._share_memory()

    def milliseconds(self, calls: int = 1) -> list[float]:
        """Time of each of so many calls."""
        if self.device.type == "cuda":
            self._timed(*next(self.rotation))  # the GPU's clock and torch's memory pool are up again
        times = [self._timed(*next(self.rotation))[1] for _ in range(calls)]
        self._share_memory()
        return times

    def peak_memory(self) -> float | None:
        """MB that torch's allocator held beyond the inputs during one call; None where torch does not allocate."""
        if self.device.type != "cuda" or self.contender.own_stream:
            return None
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        answer = self.call(*self.inputs[0])
        torch.cuda.synchronize()
        del answer
        return (torch.cuda.max_memory_allocated() - before) / MEGABYTE

    def launches(self) -> int | None:
        """Kernels started by one call, counted by torch's profiler; None on the CPU."""
        if self.device.type != "cuda":
            return None
        activities = [torch.profiler.ProfilerActivity.CUDA, torch.profiler.ProfilerActivity.CPU]
        with torch.profiler.profile(activities=activities) as profile:
            self.call(*self.inputs[0])
            torch.cuda.synchronize()
        events = [event for event in profile.events() or () if str(event.device_type).endswith("CUDA")]
        return sum(not event.name.startswith(("Memcpy", "Memset")) for event in events)

    def close(self) -> None:
        """Give the inputs and everything cached back."""
        self.inputs, self.rotation = [], itertools.cycle(())
        del self.call, self.flush
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _share_memory(self) -> None:
        """Contenders of one GPU have a process each, so what this one's pool keeps, the next one cannot have."""
        if self.device.type == "cuda" and torch.cuda.memory_reserved() > POOL_BYTES:
            torch.cuda.empty_cache()

    def _timed(self, x: Tensor, y: Tensor | None) -> tuple[Answer, float]:
        if self.device.type == "cuda":
            return self._timed_by_events(x, y) if not self.contender.own_stream else self._timed_by_clock(x, y)
        start = time.perf_counter()
        answer = self.call(x, y)
        return answer, 1e3 * (time.perf_counter() - start)

    def _timed_by_events(self, x: Tensor, y: Tensor | None) -> tuple[Answer, float]:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.flush.zero_()  # and while the GPU is busy with it, the first kernels queue up behind `start`
        start.record()
        answer = self.call(x, y)
        end.record()
        end.synchronize()
        return answer, start.elapsed_time(end)

    def _timed_by_clock(self, x: Tensor, y: Tensor | None) -> tuple[Answer, float]:
        self.flush.zero_()
        torch.cuda.synchronize()
        start = time.perf_counter()
        answer = self.call(x, y)
        torch.cuda.synchronize()
        return answer, 1e3 * (time.perf_counter() - start)


def pilot(milliseconds: Callable[[Tensor, Tensor | None], float], x: Tensor, y: Tensor | None, limit: float) -> None:
    """Give up on a call that would take longer than `limit` seconds, judged by a part of its queries.

    Raises:
        UnavailableError: with what was seen.
    """
    part = x[: max(1, len(x) // PILOT_SHARE)].clone()
    everything = x if y is None else y
    milliseconds(part, everything)  # compiles
    seconds = milliseconds(part, everything) / 1e3
    if seconds * len(x) / len(part) > limit:
        raise UnavailableError(f"over the limit of {limit:g} s: {seconds:.2g} s for {len(part)} of {len(x)} queries")


def _copies(case: Case, device: torch.device) -> int:
    """How many sets of inputs: on a GPU as many as L2 cannot hold three times over, between 2 and 8; 2 on a CPU."""
    if device.type != "cuda":
        return 2
    size = case.N * case.D * (4 if case.dtype == "float32" else 2)
    return min(8, max(2, 3 * _l2_bytes(device) // size))


def _flush_bytes(device: torch.device) -> int:
    """The CPU's caches are not flushed: contenders take turns there, which has the same effect."""
    return 3 * _l2_bytes(device) if device.type == "cuda" else 0


def _l2_bytes(device: torch.device) -> int:
    return int(torch.cuda.get_device_properties(device).L2_cache_size)


def _raise_out_of_memory(error: BaseException, device: torch.device) -> None:
    """Raise an `OutOfMemoryError` if that is what an error means; torch has several ways to say so."""
    if not isinstance(error, (MemoryError, torch.OutOfMemoryError)) and "t allocate memory" not in str(error):
        return
    if device.type != "cuda":
        raise OutOfMemoryError("out of memory") from error
    total = torch.cuda.get_device_properties(device).total_memory
    raise OutOfMemoryError(f"out of memory at {total / 1e9:.0f} GB") from error


# ------------------------------------------------------------------------------------------------- CPU memory


def peak_resident_memory(contender: Contender, case: Case, limit: float = math.inf) -> float:
    """MB of resident memory that one call adds to its inputs at the peak: for a process of its own, on Linux.

    The baseline is taken before the first call at this shape, so that memory kept between calls counts; the peak is
    that of the second call, so that compiling does not. Libraries are loaded by a call on few rows before.

    Raises:
        UnavailableError, OutOfMemoryError: as `Trial`; also where the system does not report resident memory.
    """
    status = Path("/proc/self/status")
    if not status.exists():
        raise UnavailableError("resident memory is read from /proc, which this system does not have")
    small = replace(case, B=case.k_max + 1, N=case.k_max + 1)
    contender.build(small)(*small.inputs(0, torch.device("cpu")))
    inputs = case.inputs(0, torch.device("cpu"))
    call = contender.build(case)
    if contender.pilot:
        pilot(lambda x, y: 1e3 * timeit(lambda: call(x, y), number=1), *inputs, limit)
    gc.collect()
    before = _status_mb(status, "VmRSS")
    try:
        call(*inputs)
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark counts from here
        call(*inputs)
    except (MemoryError, RuntimeError) as error:
        _raise_out_of_memory(error, torch.device("cpu"))
        raise
    return _status_mb(status, "VmHWM") - before


def _status_mb(status: Path, field: str) -> float:
    line = next(line for line in status.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024 / MEGABYTE
