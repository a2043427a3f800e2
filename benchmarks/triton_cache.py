"""Triton's kernels compiled ahead, for the machine with the GPU: the second half of gpu_bundle.sh.

    python -m benchmarks.triton_cache record SET ARCH >FILE   what the calls of a plan launch; with torch, any Python
    python -m benchmarks.triton_cache compile FILE DIR        compile it into DIR/triton.tar.gz; with that machine's
                                                              Python and Triton, and without torch

SET is first or second (with first): the shapes of sanitize.py; those of test_gpu.py and of `ldreg bench --quick`. They
are recorded on tensors without memory, as compiled.py does. Then Triton's own launcher is run under a driver that knows
only the GPU's name, up to the moment where it would launch: so keys and options are those of a real call. At last every
launch has to be found in what was written.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import io
import itertools
import json
import multiprocessing
import os
import pickle
import sys
import tarfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parent.parent
TRITON_CACHE = "triton.tar.gz"
KEPT = (".json", ".cubin")  # of a kernel's files; the others are there to be read by people


@dataclass(frozen=True)
class Pointer:
    """A tensor as far as Triton compiles for it."""

    dtype: str  # "torch.float32"
    offset: int  # bytes beyond an aligned address

    def data_ptr(self) -> int:
        """An address aligned as the tensor's."""
        return self.offset


@dataclass(frozen=True)
class Launch:
    """A kernel by name, and what it is launched with."""

    kernel: str
    arguments: tuple[Any, ...]
    options: dict[str, Any]


# ------------------------------------------------------------------------------------------------- recording


def calls(which: str) -> Iterator[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    """(op, fields of the problem, its other arguments) of everything that a plan runs on Triton."""
    from . import cases, sanitize

    no_track: tuple[tuple[str, int], ...] = ()
    for s in sanitize.SHAPES:
        dtype = str(s.dtype).removeprefix("torch.")
        own = {"batch": 0, "offset": min(7, s.N - s.B), "map": "map", "none": None}[s.own]
        fields = (s.B, s.N, s.D, s.k, dtype, own, s.own == "batch", s.strided)
        yield "knn", fields, {}
        yield "lid", fields, {"track": no_track}
        yield "ldreg", fields, {"track": s.track}
    if which == "first":
        return
    sys.path.insert(0, str(ROOT / "python_tests"))
    gpu_tests = importlib.import_module("kernels.test_gpu")
    full = itertools.product((True, False), gpu_tests.FULL_ROWS, gpu_tests.FULL_COLUMNS, gpu_tests.DTYPES)
    for same, N, D, dtype in full:
        fields = (N, N, D, gpu_tests.FULL_K, str(dtype).removeprefix("torch."), 0, same, False)
        yield "knn", fields, {}
        yield "lid", fields, {"track": no_track}
    for B, N, D, k in gpu_tests.SHAPES:
        fields = (B, N, D, k, "float32", 0 if B == N else None, B == N, False)
        yield "knn", fields, {}
        yield "lid", fields, {"track": no_track, "need_grad": False}
        yield "ldreg", fields, {"track": (("mle", 8),)}
        yield "ldreg", fields, {"track": no_track}
    for case in dict.fromkeys(case for suite in cases.suites("cuda", quick=True).values() for case in suite):
        if not isinstance(case, cases.Case):
            continue
        fields = (case.B, case.N, case.D, case.k, case.dtype, 0, case.B == case.N, False)
        given = {"track": case.track, "need_grad": case.mode != "lid", "estimator": cases.LID_ESTIMATOR}
        yield {"forward": "knn", "lid": "lid"}.get(case.mode, "ldreg"), fields, given


def problem(B: int, N: int, D: int, k: int, dtype: str, own: Any, same: bool, strided: bool) -> Any:
    """The call's tensors on the device "meta"."""
    import torch

    from ldreg_kernels.kernels.contract import Problem

    def features(rows: int) -> torch.Tensor:
        wide = torch.empty(rows, D + 5 * strided, dtype=getattr(torch, dtype), device="meta")
        return wide[:, 3:-2] if strided else wide

    x = features(B)
    row_of_y = torch.empty(B, dtype=torch.int64, device="meta")
    return Problem(x, x if same else features(N), k, row_of_y if own == "map" else own)


def launch_of(op: str, fields: tuple[Any, ...], given: dict[str, Any], capability: int) -> Launch:
    """What this call of the Triton backend launches, by compiled.py's recorder."""
    from ldreg_kernels.kernels import triton_backend

    from . import compiled

    knn, estimator, need_grad = triton_backend.knn, given.get("estimator", "mom"), given.get("need_grad", True)
    functions: dict[str, Callable[[], object]] = {
        "knn": lambda: knn(problem(*fields)),
        "lid": lambda: triton_backend.lid(problem(*fields), estimator, given["track"], need_grad),
        "ldreg": lambda: triton_backend.ldreg(problem(*fields), "mom", "l1", None, "mean", given["track"], True),
    }
    any_case = compiled.Case(8, 8, 8, 2, mode="knn")  # under its mocks, this call takes the place of `knn`
    with mock.patch.object(triton_backend, "knn", side_effect=lambda _: functions[op]()):
        recorded = compiled.launch_of(any_case, capability)
    assert recorded.arguments is not None
    return Launch(recorded.kernel.fn.__name__, without_tensors(recorded.arguments), recorded.options or {})


def without_tensors(value: Any) -> Any:
    """The same with a Pointer for every tensor, in tuples of tuples."""
    if hasattr(value, "data_ptr"):
        return Pointer(str(value.dtype), value.storage_offset() * value.element_size() % 16)
    if isinstance(value, tuple):
        items = [without_tensors(item) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    return value


def record(which: str, architecture: str) -> int:
    """Write the launches to standard output."""
    capability = int(architecture.rstrip("a"))
    launches = []
    for op, fields, given in calls(which):
        try:
            launches.append(launch_of(op, fields, given, capability))
        except ValueError as error:  # a shape that the backend refuses is no kernel
            print(f"{op} {fields}: {error}", file=sys.stderr)
    sys.stdout.buffer.write(pickle.dumps(launches))
    return 0


# ------------------------------------------------------------------------------------------------- compiling


def without_torch() -> None:
    """Let the device code be imported: it needs Triton, and the names `torch` and `ldreg_kernels`."""
    torch = ModuleType("torch")
    torch.Tensor = type("Tensor", (), {})  # type: ignore[attr-defined]
    sys.modules.setdefault("torch", torch)
    for name in ("ldreg_kernels", "ldreg_kernels.kernels"):  # less what is in their __init__.py
        package = ModuleType(name)
        package.__path__ = [str(ROOT / name.replace(".", "/"))]
        sys.modules.setdefault(name, package)


def pretend(capability: int) -> None:
    """Make this Triton's GPU."""
    import triton
    from triton.backends.compiler import GPUTarget

    target = GPUTarget("cuda", capability, 32)
    driver = {"get_current_target": lambda: target, "get_current_device": lambda: 0, "get_current_stream": lambda _: 0}
    triton.runtime.driver.set_active(SimpleNamespace(**driver))


def prepare(launch: Launch) -> None:
    """All of a launch but the launch: Triton looks for the kernel in its cache, and compiles it if it is not there."""
    fused = importlib.import_module("ldreg_kernels.kernels.triton_fused")
    getattr(fused, launch.kernel).run(*launch.arguments, grid=(1,), warmup=True, **launch.options)


def attempt(file: Path, index: int, capability: int) -> str | None:
    """Compile one launch of a file in a process of its own; why it does not compile, or None."""
    without_torch()
    pretend(capability)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            prepare(pickle.loads(file.read_bytes())[index])
    except Exception as error:  # whatever a compiler has to say
        return f"{type(error).__name__}: {error}"
    return None


def kernels(launches: list[Launch]) -> list[str]:
    """For every launch what tells its kernel from others; nothing is compiled."""
    from triton.runtime.jit import JITFunction

    seen: list[str] = []

    def note(kernel: Any, key: str, *_: object) -> None:
        seen.append(f"{kernel} {key}")

    with mock.patch.object(JITFunction, "_do_compile", note):
        for launch in launches:
            prepare(launch)
    return seen


def compile_all(file: Path, folder: Path, jobs: int, capability: int) -> int:
    """Compile every kernel of a file once, in a cache that is kept beside the folder, and pack it."""
    without_torch()
    import triton
    from triton.runtime.cache import triton_key

    cache = folder.with_name(f"{folder.name}.work") / "triton"
    os.environ["TRITON_CACHE_DIR"] = str(cache)
    pretend(capability)
    launches: list[Launch] = pickle.loads(file.read_bytes())
    keys = kernels(launches)
    first = {key: keys.index(key) for key in keys}
    print(f"{len(launches)} launches, {len(first)} kernels", flush=True)
    wrong = set()
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        reasons = pool.map(attempt, [file] * len(first), first.values(), [capability] * len(first))
        for (key, index), reason in zip(first.items(), reasons, strict=True):
            print(f"{launches[index].kernel}: {reason or 'compiled'}", flush=True)
            if reason is not None:
                wrong.add(key)

    found: dict[str, bool] = {}  # kernels, and whether they were in the cache

    def heard(*, metadata: dict[str, Any], cache_hit: bool, **_: object) -> None:
        found[metadata["hash"]] = cache_hit

    with mock.patch.object(triton.knobs.compilation, "listener", heard):
        for launch, key in zip(launches, keys, strict=True):
            if key not in wrong:
                prepare(launch)
    if len(found) != len(first) - len(wrong) or not all(found.values()):
        print(f"gpu_bundle: {sum(found.values())} of {len(first)} kernels were found again", file=sys.stderr)
        return 1
    names = {key_folder(name) for name in found}
    with tarfile.open(folder / TRITON_CACHE, "w:gz") as archive:
        for path in sorted(cache.glob("*/*")):
            if path.parent.name in names and path.suffix in KEPT:
                archive.add(path, path.relative_to(cache).as_posix())
    about = {"version": triton.__version__, "key": hashlib.sha256(triton_key().encode()).hexdigest()}
    (folder / "triton.json").write_text(json.dumps({**about, "kernels": len(found)}))
    if wrong:
        print(f"gpu_bundle: {len(wrong)} kernels do not compile, and are left out", file=sys.stderr)
    return 1 if wrong else 0


def key_folder(name: str) -> str:
    """The folder of a kernel in Triton's cache."""
    from triton.runtime.cache import get_cache_manager

    return Path(get_cache_manager(name).cache_dir).name


def main(arguments: list[str] | None = None) -> int:
    """The command line at the top of this file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.triton_cache", description="Kernels compiled ahead.")
    commands = parser.add_subparsers(dest="command", required=True)
    recording = commands.add_parser("record")
    recording.add_argument("which", choices=("first", "second"))
    recording.add_argument("architecture")
    compiling = commands.add_parser("compile")
    compiling.add_argument("file", type=Path)
    compiling.add_argument("folder", type=Path)
    compiling.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="kernels compiled at once")
    compiling.add_argument("--capability", type=int, default=90)
    options = parser.parse_args(arguments)
    if options.command == "record":
        return record(options.which, options.architecture)
    return compile_all(options.file.absolute(), options.folder.absolute(), options.jobs, options.capability)


if __name__ == "__main__":
    # Under its whole name, which is what is in the file and what other processes know it by.
    sys.exit(importlib.import_module("benchmarks.triton_cache").main())
