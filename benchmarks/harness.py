"""How long did it take, how many launches, how much memory: one contender, one case, inside one process.

    trial = Trial(contender, case, torch.device("cuda"))   # builds inputs, calls, checks the answer
    trial.milliseconds(20)                                 # 20 calls

The inputs rotate over several buffers. On a GPU the L2 cache is overwritten before every call, which is timed with
events on torch's stream, where every contender works; on a CPU nothing is flushed, and the clock is `perf_counter`.
Whose turn it is, session.py decides.
"""

from __future__ import annotations

import gc
import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from timeit import timeit
from typing import Any

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
    """One contender on one case: built, called and checked; ready to be timed.

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
        with out_of_memory_named(device):
            self.call = contender.build(case)
            self.inputs = [case.inputs(seed, device) for seed in range(_copies(case, device))]
            self.rotation = itertools.cycle(self.inputs)
            self.flush = torch.empty(_flush_bytes(device), dtype=torch.uint8, device=device)
            # Before the first call: what a contender keeps between calls counts as its memory.
            self.allocated = torch.cuda.memory_allocated() if device.type == "cuda" else 0
            if contender.pilot:
                pilot(lambda x, y: self._timed(x, y)[1], *self.inputs[0], limit)
            answer, self.expected_ms = self._timed(*self.inputs[0])
            self.errors = check(case, *self.inputs[0], answer, exact=contender.ours) if contender.checked else {}
            del answer
            if contender.compiles or self.expected_ms < LONG_MS:
                _, self.expected_ms = self._timed(*self.inputs[-1])  # caches, pools and autotuning have settled
        self._share_memory()

    def milliseconds(self, calls: int = 1) -> list[float]:
        """Time of each of so many calls."""
        with out_of_memory_named(self.device):
            if self.device.type == "cuda":
                self._timed(*next(self.rotation))  # the GPU's clock and torch's memory pool are up again
            times = [self._timed(*next(self.rotation))[1] for _ in range(calls)]
        self._share_memory()
        return times

    def peak_memory(self) -> float | None:
        """MB that torch's allocator held beyond the inputs during one call; None where it is not the one that does."""
        if self.device.type != "cuda" or self.contender.own_memory:
            return None
        with out_of_memory_named(self.device):
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self.call(*self.inputs[0])
            torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - self.allocated) / MEGABYTE

    def kernels(self) -> list[str] | None:
        """Names of the kernels that one call starts, by torch's profiler; None where it saw none, as on a CPU."""
        if self.device.type != "cuda":
            return None
        activities = [torch.profiler.ProfilerActivity.CUDA, torch.profiler.ProfilerActivity.CPU]
        with torch.profiler.profile(activities=activities) as profile, out_of_memory_named(self.device):
            self.call(*self.inputs[0])
            torch.cuda.synchronize()
        return kernel_names(profile.events() or ()) or None

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
        if self.device.type != "cuda":
            begin = time.perf_counter()
            answer = self.call(x, y)
            return answer, 1e3 * (time.perf_counter() - begin)
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.flush.zero_()  # and while the GPU is busy with it, the first kernels queue up behind `start`
        start.record()
        answer = self.call(x, y)
        end.record()
        end.synchronize()
        return answer, start.elapsed_time(end)


def kernel_names(events: Iterable[Any]) -> list[str]:
    """The kernels among a profile's events: on the device, neither copies nor the ranges that compilers annotate."""
    on_device = (event for event in events if str(event.device_type).endswith("CUDA"))
    return [
        event.name
        for event in on_device
        if not event.name.startswith(("Memcpy", "Memset")) and not getattr(event, "is_user_annotation", False)
    ]


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
    return 3 * _l2_bytes(device) if device.type == "cuda" else 0


def _l2_bytes(device: torch.device) -> int:
    return int(torch.cuda.get_device_properties(device).L2_cache_size)


@contextmanager
def out_of_memory_named(device: torch.device) -> Iterator[None]:
    """An `OutOfMemoryError` for whatever inside means that: torch, cuBLAS and allocators have several words for it."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        words = ("t allocate memory", "out of memory", "ALLOC_FAILED")
        if not isinstance(error, MemoryError) and not any(word in str(error) for word in words):
            raise
        if device.type != "cuda":
            raise OutOfMemoryError("out of memory") from error
        free, total = torch.cuda.mem_get_info()
        had = free + torch.cuda.memory_reserved()
        raise OutOfMemoryError(f"out of memory at {had / 1e9:.0f} GB of {total / 1e9:.0f} GB") from error


# ------------------------------------------------------------------------------------------------- CPU memory


def peak_resident_memory(contender: Contender, case: Case, limit: float = math.inf) -> float:
    """MB of resident memory that one call adds to its inputs at the peak: for a process of its own, on Linux.

    The baseline is taken before the first call at this shape, so that memory kept between calls counts; the peak is
    that of the second call, so that compiling does not. Libraries are loaded by a call on few rows before.

    Raises:
        UnavailableError, OutOfMemoryError: as `Trial`; also where the system does not report resident memory.
    """
    small = replace(case, B=case.k_max + 1, N=case.k_max + 1)
    contender.build(small)(*small.inputs(0, torch.device("cpu")))
    inputs = case.inputs(0, torch.device("cpu"))
    call = contender.build(case)
    if contender.pilot:
        pilot(lambda x, y: 1e3 * timeit(lambda: call(x, y), number=1), *inputs, limit)
    return resident_peak(lambda: call(*inputs))[0]


def resident_peak(call: Callable[[], object]) -> tuple[float, float]:
    """MB of resident memory that the second of two calls adds at the peak to what was there before the first, and MB
    that this process, for which that should be all, then has.

    Raises:
        UnavailableError: the system does not report resident memory.
        OutOfMemoryError: there was not enough.
    """
    status = Path("/proc/self/status")
    if not status.exists():
        raise UnavailableError("resident memory is read from /proc, which this system does not have")
    gc.collect()
    before = _status_mb(status, "VmRSS")
    with out_of_memory_named(torch.device("cpu")):
        call()
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark counts from here
        call()
    peak = _status_mb(status, "VmHWM")
    return peak - before, peak


def _status_mb(status: Path, field: str) -> float:
    line = next(line for line in status.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024 / MEGABYTE
