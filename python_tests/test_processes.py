"""`processes.once`: pytest's workers start the ranks of a file once between them."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import processes
import pytest


def check() -> None:
    """Never run: what stands in for `run_checks` says what became of it."""


class Factory:
    """Of the base folder of one worker, as pytest-xdist names it."""

    def __init__(self, folder) -> None:
        self.folder = folder

    def getbasetemp(self):
        self.folder.mkdir(exist_ok=True)
        return self.folder


@pytest.mark.parametrize(("workers", "starts"), [(True, 1), (False, 2)], ids=["xdist", "two runs"])
def test_workers_start_the_ranks_once_between_them(tmp_path, monkeypatch, workers: bool, starts: int) -> None:
    """Two at the same time, and one later; without xdist the folder beside is that of another run."""
    started, both = [], threading.Barrier(2)

    def slow(checks, world):
        started.append(world)
        time.sleep(0.2)  # the other one is at the lock by then
        return processes.Checks([{"check": ""}, {"check": "what went wrong"}])

    monkeypatch.setattr(processes, "run_checks", slow)
    if workers:
        monkeypatch.setenv("PYTEST_XDIST_WORKER", "gw0")
    else:
        monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)

    def worker(name: str) -> processes.Checks:
        both.wait()
        return processes.once([check], 2, Factory(tmp_path / name))

    with ThreadPoolExecutor(2) as pool:
        outcomes = list(pool.map(worker, ["popen-gw0", "popen-gw1"]))
    outcomes.append(processes.once([check], 2, Factory(tmp_path / "popen-gw0")))
    assert started == [2] * starts
    for outcome in outcomes:
        with pytest.raises(AssertionError, match="rank 1 of 2: what went wrong"):
            outcome.assert_passed(check)
