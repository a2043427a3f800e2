"""What gpu_gate.sh adds to pytest, with `-p benchmarks.gpu_pytest`. Needs pytest-xdist to be of use.

    --ldreg-backend NAME    only tests of this backend; repeatable
    LDREG_TEST_PROGRESS     a file to which every worker writes, at once, what it starts and finishes; for gate_page.py,
                            since a worker that hangs or dies says nothing, and its output is lost

After every test marked `gpu` the device is waited for. An error then is one that no later call of this process
survives, so the process is ended: xdist replaces it, and the tests after it get a new context.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator

import pytest

STICKY = 3  # exit code of a process whose context is lost
GPU_BACKENDS = ("cuda", "triton")
BACKENDS = (*GPU_BACKENDS, "cpu", "reference")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--ldreg-backend", action="append", choices=BACKENDS, help="only tests of this backend; repeatable"
    )


# ------------------------------------------------------------------------------------------------- selection


def backend_of(item: pytest.Item) -> str | None:
    """Whose test it is, by its parameter or else its name. A GPU test of both or of neither is Triton's, which is last.

    So every GPU test belongs to one backend, and no test has to be told apart by hand.
    """
    callspec = getattr(item, "callspec", None)
    for value in callspec.params.values() if callspec else ():
        if isinstance(value, str) and value in BACKENDS:
            return value
    name = item.nodeid.partition("[")[0]
    named = [backend for backend in GPU_BACKENDS if backend in name]
    if len(named) == 1:
        return named[0]
    return "triton" if item.get_closest_marker("gpu") else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    wanted = config.getoption("--ldreg-backend")
    if not wanted:
        return
    kept = [item for item in items if backend_of(item) in wanted]
    config.hook.pytest_deselected(items=[item for item in items if backend_of(item) not in wanted])
    items[:] = kept


# ------------------------------------------------------------------------------------------------- progress


def note(event: str, *words: str) -> None:
    """One line, in one write: event, worker, seconds since 1970, words."""
    path = os.environ.get("LDREG_TEST_PROGRESS")
    if path is None:
        return
    fields = (event, os.environ.get("PYTEST_XDIST_WORKER", "main"), f"{time.time():.1f}", *words)
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(file, ("\t".join(" ".join(field.split()) for field in fields) + "\n").encode())
    os.close(file)


def lost_context() -> str | None:
    """What the device has to say if it is lost for this process."""
    torch = sys.modules.get("torch")
    if torch is None or not (torch.cuda.is_available() and torch.cuda.is_initialized()):
        return None
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        return str(error)[:300]
    return None


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    note("started", item.nodeid)
    outcome = yield
    if item.get_closest_marker("gpu") and (error := lost_context()):
        note("lost", item.nodeid, error)
        os._exit(STICKY)
    note("finished", item.nodeid)
    return outcome
