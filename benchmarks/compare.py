"""`ldreg bench --compare REV`: did this checkout become slower than another commit?

The other commit is checked out into a temporary folder and built there. Two workers with the same benchmark code and
different packages take turns; the ratio of a case is the median over rounds of this checkout's time over the
other's. Nothing is recorded: whoever asks is about to change something again.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import typer

from .cases import Case
from .contenders import Contender
from .records import ROOT
from .session import Options, entrants
from .worker import NoMeasurementError, Worker

CALLS = 3  # in a turn, of which the median counts


def compare(
    revision: str,
    cases: Sequence[Case],
    taking_part: Sequence[Contender],
    options: Options,
    say: Callable[[str], None],
    isas: Sequence[str] = ("",),
) -> None:
    """Print the ratio of times, this checkout over `revision`, for every case and backend.

    Args:
        revision: anything git understands.
        cases: what to time.
        taking_part: of whom this package's backends are compared.
        options: device, threads, rounds and limit.
        say: prints a line.
        isas: instruction sets of the CPU kernels; "" for what the environment says.
    """
    with checkout(revision, options.device, say) as other:
        say(f"time of this checkout / time of {revision}: median of {options.rounds} rounds, 20th to 80th percentile")
        ours = (contender for contender in taking_part if contender.ours)
        for entrant in (entrant for contender in ours for entrant in entrants(contender, isas)):
            this, that = (
                Worker(entrant.name, options.device, options.threads, package=package, isa=entrant.isa)
                for package in (ROOT, other)
            )
            try:
                for case in cases:
                    say(f"  {entrant!s:14} {case!s:44} {_ratio(this, that, case, options)}")
            finally:
                this.stop()
                that.stop()


def _ratio(this: Worker, that: Worker, case: Case, options: Options) -> str:
    times: dict[Worker, list[float]] = {this: [], that: []}
    try:
        for worker in times:
            worker.prepare(case, options.limit)
        for index in range(options.rounds):
            for worker, taken in list(times.items())[:: 1 if index % 2 else -1]:  # nobody is always first
                taken.append(float(np.median(worker.milliseconds(CALLS, options.limit))))
    except NoMeasurementError as state:
        return str(state)
    ratios = np.array(times[this]) / np.array(times[that])
    low, median, high = np.percentile(ratios, (20, 50, 80))
    return (
        f"{median:.3f} ({low:.3f} to {high:.3f}), {np.median(times[this]):.1f} against {np.median(times[that]):.1f} ms"
    )


@contextmanager
def checkout(revision: str, device: str, say: Callable[[str], None]) -> Iterator[Path]:
    """A built checkout of another commit, removed afterwards.

    Raises:
        typer.BadParameter: git does not know the revision.
    """
    known = subprocess.run(
        ["git", "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}"], cwd=ROOT, capture_output=True, text=True
    )
    if known.returncode != 0:
        raise typer.BadParameter(f"git knows no commit {revision!r}", param_hint="--compare")
    with tempfile.TemporaryDirectory(prefix="ldreg-compare-") as temporary:
        folder = Path(temporary) / "checkout"
        run_in(ROOT, ["git", "worktree", "add", "--quiet", "--detach", str(folder), known.stdout.strip()])
        try:
            say(f"building {revision} ({known.stdout[:10]})")
            with_cuda = "0" if device == "cpu" else "1"
            run_in(folder, [sys.executable, "setup.py", "-q", "build_ext", "--inplace"], LDREG_BUILD_CUDA=with_cuda)
            yield folder
        finally:
            run_in(ROOT, ["git", "worktree", "remove", "--force", str(folder)])


def run_in(folder: Path, command: list[str], **environment: str) -> None:
    """Run a command in a folder, importing nothing from anywhere else.

    Raises:
        SystemExit: it failed, with what it printed.
    """
    env = {**os.environ, "PYTHONPATH": "", **environment}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=env)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
