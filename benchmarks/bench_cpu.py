"""CPU benchmark of the LDReg op: ratios against the published form and a plain matrix product, measured in one run.

    python benchmarks/bench_cpu.py                 # every case, two threads, table and benchmarks/results/cpu.json
    python benchmarks/bench_cpu.py --case train    # one case
    python benchmarks/bench_cpu.py --memory        # peak extra memory only

A time is taken only after the answer was checked against float64 (`gate`). Contenders alternate within every
repetition and only the ratios of one repetition are compared, because the speed of a shared machine drifts; the medians
of both are reported. It does not compare with other libraries (faiss, KeOps) and it does not use a GPU.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

import torch
from torch import Tensor

import ldreg_kernels as ldk
from ldreg_kernels.kernels import native, reference

RESULTS = Path(__file__).parent / "results" / "cpu.json"
MEMORY_SHAPE = (16384, 16384, 512, 64)


@dataclass(frozen=True)
class Case:
    """One shape: B queries, N references (the queries and others), D features, k neighbours, LIDs logged beside."""

    name: str
    B: int
    N: int
    D: int
    k: int
    track: tuple[tuple[str, int], ...] = ()


CASES = (
    Case("train", 4096, 4096, 2048, 64),
    Case("wide", 8192, 8192, 512, 64),
    Case("small", 1024, 4096, 128, 32),
    Case("tracked", 2048, 2048, 768, 64, (("mle", 32), ("mle", 512))),
)


def features(case: Case) -> tuple[Tensor, Tensor | None]:
    """Queries [B, D], and the references [N, D] that begin with them, or None where they are the same rows."""
    rows = torch.randn(case.N, case.D, generator=torch.Generator().manual_seed(0))
    return rows[: case.B].clone(), None if case.N == case.B else rows


def fused_step(case: Case, x: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor]:
    """Loss and gradient by the package, with every tracked LID."""
    x = x.detach().requires_grad_()
    value = ldk.ldreg_loss(x, y, k=case.k, self_index=None if y is None else 0, track=case.track, backend="cpu")
    value.backward()
    assert x.grad is not None
    return value.detach(), x.grad


def published_step(case: Case, x: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor]:
    """Loss and gradient by cdist + sort + autograd, one more pass for every tracked LID."""
    x = x.detach().requires_grad_()
    references = x.detach() if y is None else y
    value = -reference.published_lid(x, references, case.k).log().mean()
    value.backward()
    with torch.no_grad():
        for estimator, k in case.track:
            reference.published_lid(x, references, k, estimator)
    assert x.grad is not None
    return value.detach(), x.grad


def gate(case: Case, x: Tensor, y: Tensor | None) -> None:
    """Refuse to time a wrong answer: loss, gradient and tracked LIDs of 64 rows against float64."""
    rows = torch.arange(0, case.B, case.B // 64)
    own = x[rows].requires_grad_()
    everything = x if y is None else y
    arguments = {"k": case.k, "self_index": rows, "track": case.track, "return_stats": True}
    value, stats = ldk.ldreg_loss(own, everything, backend="cpu", **arguments)
    (grad,) = torch.autograd.grad(value, own)
    exact = own.detach().double().requires_grad_()
    value64, stats64 = ldk.ldreg_loss(exact, everything.double(), backend="reference", **arguments)
    (grad64,) = torch.autograd.grad(value64, exact)
    for name, ours, truth in [
        ("lid", stats.lid, stats64.lid),
        *((f"track {key}", stats.tracked[key], stats64.tracked[key]) for key in case.track),
    ]:
        # The contract of precision="exact"; above LID 20 what 2e-7 in a float32 distance makes of it.
        allowed = (1 + truth) * (2e-7 * truth).clamp(min=4e-6)
        error = float(((ours - truth).abs() / allowed).max())
        if not error < 1:
            raise SystemExit(f"{case.name}: {name} has {error:.1f} times the error allowed against float64; not timed")
    error = float((grad.double() - grad64).norm() / grad64.norm())
    if not error < 1e-5:
        raise SystemExit(f"{case.name}: the gradient is off by {error:.1e} from float64; not timed")
    # And the whole-batch call that is timed: its rows must be these rows.
    whole = ldk.lid(x, y, k=case.k, self_index=None if y is None else 0, backend="cpu")[rows]
    if not torch.equal(whole, stats.lid):
        raise SystemExit(f"{case.name}: the whole batch and a part of it disagree; not timed")


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def measure(case: Case, repetitions: int) -> dict[str, object]:
    """Median times in ms and median ratios of one case."""
    x, y = features(case)
    gate(case, x, y)
    references = x if y is None else y
    contenders: dict[str, Callable[[], object]] = {
        "fused": lambda: fused_step(case, x, y),
        "published": lambda: published_step(case, x, y),
        "mm": lambda: torch.mm(x, references.T),
    }
    for run in contenders.values():  # warm-up
        run()
    rounds = [{name: seconds(run) for name, run in contenders.items()} for _ in range(repetitions)]
    return {
        **asdict(case),
        **{f"{name}_ms": round(1e3 * statistics.median(r[name] for r in rounds), 2) for name in contenders},
        "speedup": round(statistics.median(r["published"] / r["fused"] for r in rounds), 2),
        "against_mm": round(statistics.median(r["fused"] / r["mm"] for r in rounds), 3),
        "repetitions": repetitions,
    }


def peak_memory(form: str) -> None:
    """In a process of its own: print the peak resident memory, in MB, that one step adds to its inputs."""
    case = Case("memory", *MEMORY_SHAPE)
    step = {"fused": fused_step, "published": published_step}[form]
    small = Case("warm-up", 256, 256, 16, 8)
    step(small, *features(small))
    x, y = features(case)

    def status(field: str) -> float:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(field):
                return int(line.split()[1]) / 1024
        raise SystemExit(f"/proc/self/status has no {field}")

    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = status("VmRSS")
    step(case, x, y)
    print(round(status("VmHWM") - before, 1))


def memory() -> dict[str, object]:
    """Peak extra memory of both forms, each in a fresh process."""
    found: dict[str, object] = {"shape": MEMORY_SHAPE}
    for form in ("fused", "published"):
        command = [sys.executable, __file__, "--peak", form, "--threads", str(torch.get_num_threads())]
        found[f"{form}_mb"] = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found


def provenance() -> dict[str, object]:
    """What the numbers depend on."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=RESULTS.parent
    )
    model = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "date": date.today().isoformat(),
        "commit": commit.stdout.strip() or "unknown",
        "cpu": model[0].split(":")[1].strip() if model else platform.processor(),
        "isa": native.isa(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def main() -> None:
    """Measure, print a table, write the results file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", action="append", choices=[c.name for c in CASES], help="only these cases")
    parser.add_argument("--memory", action="store_true", help="only the peak memory")
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help=f"where to write JSON (default for a full run: {RESULTS})")
    parser.add_argument("--peak", choices=["fused", "published"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.peak:
        peak_memory(arguments.peak)
        return

    result: dict[str, object] = provenance()
    print(", ".join(f"{key} {value}" for key, value in result.items()))
    if not arguments.memory:
        print(f"{'(B, N, D, k)':28} {'fused ms':>10} {'published ms':>13} {'mm ms':>8} {'speed-up':>9} {'/ mm':>6}")
        rows = []
        for case in CASES:
            if arguments.case and case.name not in arguments.case:
                continue
            row = measure(case, arguments.repetitions)
            rows.append(row)
            shape = f"({case.B}, {case.N}, {case.D}, {case.k})" + (" +track" if case.track else "")
            print(
                f"{shape:28} {row['fused_ms']:>10} {row['published_ms']:>13} {row['mm_ms']:>8} "
                f"{row['speedup']:>8}x {row['against_mm']:>6}",
                flush=True,
            )
        result["cases"] = rows
    if not arguments.case:
        result["memory"] = memory()
        print("peak extra memory (MB):", result["memory"])
    out = arguments.out or (RESULTS if not arguments.case and not arguments.memory else None)
    if out is not None:
        out.write_text(json.dumps(result, indent=2) + "\n")
        print(f"wrote {out}")


if __name__ == "__main__":
    main()
