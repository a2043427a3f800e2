"""Several gloo processes on this machine, for what happens between ranks.

`run` calls one function in every process and returns what each rank returned. Starting a process takes seconds
(importing torch), so tests with many small checks hand them all to one start: `run_checks`, whose `Checks` says of each
what went wrong on which rank. `tests_of` makes a test of each check; `once` sees to it that pytest's workers, which
share them out, do not all start the processes.

The functions are found again by file and name, so they live at the top level of a test module; in them the process
group is initialised, and `dist.get_rank()` says who one is. Arguments and results travel by pickle.
"""

from __future__ import annotations

import fcntl
import importlib.util
import inspect
import os
import pickle
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
# A collective that another rank never joins ends with an error, well before `run` loses its patience.
COLLECTIVE_SECONDS = 90
# Once one rank has failed, how long the others may take to notice before they are killed.
GRACE_SECONDS = 5


def run(function: Callable[..., Any], world: int, *args: Any, limit: float = 240) -> list[Any]:
    """`function(*args)` in each of `world` processes.

    Args:
        function: a top-level function of a module that has a file.
        world: how many processes.
        args: what every process passes on; picklable.
        limit: seconds until all processes are killed.

    Returns:
        The results, in the order of ranks.

    Raises:
        AssertionError: a process failed or time ran out; with the output of all ranks, the first to fail first.
    """
    with tempfile.TemporaryDirectory(prefix="ldreg-ranks-") as folder:
        call = (inspect.getfile(function), function.__qualname__, args)
        Path(folder, "call").write_bytes(pickle.dumps(call))
        ranks = [_start(folder, rank, world) for rank in range(world)]
        try:
            first = _wait(ranks, limit)
        finally:
            for process in ranks:
                process.kill()  # nothing happens to those that have ended
                process.wait()
        if first is not None:
            raise AssertionError(_story(folder, ranks, first, function.__qualname__, limit))
        return [pickle.loads(Path(folder, f"result{rank}").read_bytes()) for rank in range(world)]


class Checks:
    """What became of checks that ran in one start of several processes."""

    def __init__(self, outcomes: list[dict[str, str]]) -> None:
        self._outcomes = outcomes  # one of each rank: name -> what went wrong, "" if nothing

    def assert_passed(self, check: Callable[[], None]) -> None:
        """Fail with the tracebacks of the ranks on which `check` failed."""
        outcomes = [outcome.get(check.__name__, "not run") for outcome in self._outcomes]
        wrong = [f"rank {rank} of {len(outcomes)}: {text}" for rank, text in enumerate(outcomes) if text]
        assert not wrong, "\n\n".join(wrong)


def run_checks(checks: Sequence[Callable[[], None]], world: int, limit: float = 240) -> Checks:
    """Every check in every one of `world` processes, one after another.

    All stop at the first that fails on any rank, whose partners may be in the middle of a collective call.
    """
    files = {inspect.getfile(check) for check in checks}
    assert len(files) == 1, files
    names = [check.__name__ for check in checks]
    try:
        return Checks(run(_each, world, files.pop(), names, limit=limit))
    except AssertionError as crash:  # told by every check, rather than raised here and tried again for each
        return Checks([dict.fromkeys(names, str(crash))])


def once(checks: Sequence[Callable[[], None]], world: int, tmp_path_factory: pytest.TempPathFactory) -> Checks:
    """`run_checks` by the worker of pytest that asks first; the others wait for it and read what came out."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # of all workers of this test run
    name = os.path.relpath(inspect.getfile(checks[0]), ROOT).replace(os.sep, "-")
    with Path(folder, f"{name}.outcome").open("a+b") as kept:
        fcntl.flock(kept, fcntl.LOCK_EX)
        kept.seek(0)
        if found := kept.read():
            return pickle.loads(found)
        outcome = run_checks(checks, world)
        kept.write(pickle.dumps(outcome))
    return outcome


def tests_of(checks: Sequence[Callable[[], None]], world: int) -> Callable[..., None]:
    """A test of each check, by its name: `test_in_three_processes = tests_of(CHECKS, 3)`."""

    @pytest.mark.parametrize("check", checks, ids=lambda check: check.__name__)
    def test(check: Callable[[], None], tmp_path_factory: pytest.TempPathFactory) -> None:
        once(checks, world, tmp_path_factory).assert_passed(check)

    return test


def _each(file: str, names: list[str]) -> dict[str, str]:
    import torch.distributed as dist

    module, outcome = _load(file), {}
    for name in names:
        print(name, flush=True)  # the last one is where a crash was
        try:
            getattr(module, name)()
            dist.barrier()  # fails where a partner has given up, so that all ranks stop at the same check
            outcome[name] = ""
        except Exception:
            return dict.fromkeys(names, f"not run, because {name} failed") | outcome | {name: traceback.format_exc()}
    return outcome


def _start(folder: str, rank: int, world: int) -> subprocess.Popen:
    environment = dict(os.environ, OMP_NUM_THREADS="1", PYTHONPATH=os.pathsep.join([str(ROOT), *sys.path]))
    if sys.platform == "linux":  # a host name that does not resolve is none of our business
        environment.setdefault("GLOO_SOCKET_IFNAME", "lo")
    with Path(folder, f"output{rank}").open("wb") as output:
        command = [sys.executable, str(Path(__file__).resolve()), folder, str(rank), str(world)]
        return subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT, cwd=ROOT)


def _wait(ranks: list[subprocess.Popen], limit: float) -> int | None:
    """Until all have ended or time is up; the rank that failed first, None if none did."""
    deadline, first = time.monotonic() + limit, None
    while any(process.poll() is None for process in ranks):
        failed = [rank for rank, process in enumerate(ranks) if process.poll() not in (None, 0)]
        if failed and first is None:
            first, deadline = failed[0], min(deadline, time.monotonic() + GRACE_SECONDS)
        if time.monotonic() > deadline:
            return first if first is not None else next(r for r, process in enumerate(ranks) if process.poll() is None)
        time.sleep(0.02)
    return first if first is not None else next((r for r, process in enumerate(ranks) if process.returncode), None)


def _story(folder: str, ranks: list[subprocess.Popen], first: int, name: str, limit: float) -> str:
    parts = [f"{name} failed in {len(ranks)} processes, first on rank {first}"]
    for rank in sorted(range(len(ranks)), key=lambda rank: rank != first):
        code = ranks[rank].returncode
        # Killed by us: it did not end by itself.
        how = f"did not end (within {limit} s, or {GRACE_SECONDS} s after the first)" if code == -9 else f"exit {code}"
        output = Path(folder, f"output{rank}").read_text(errors="replace")
        parts.append(f"----- rank {rank}: {how}\n{output[-6000:]}")
    return "\n".join(parts)


def _load(file: str) -> Any:
    spec = importlib.util.spec_from_file_location(Path(file).stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # so that dataclasses and pickles of its classes find it
    spec.loader.exec_module(module)
    return module


def _main(folder: str, rank: int, world: int) -> None:
    import torch
    import torch.distributed as dist

    file, name, args = pickle.loads(Path(folder, "call").read_bytes())
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=COLLECTIVE_SECONDS),
    )
    if Path(file).resolve() == Path(__file__).resolve():
        result = _each(*args)
    else:
        result = getattr(_load(file), name)(*args)
        dist.barrier()  # nobody leaves while another still talks to it
    Path(folder, f"result{rank}").write_bytes(pickle.dumps(result))
    dist.destroy_process_group()


if __name__ == "__main__":
    _main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
