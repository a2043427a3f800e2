"""What the command line shows of a run: progress bars while it trains, tables when it is done.

A bar has the loss, the batch's LID and effective rank, images per second and the time left; it moves whenever the log
is read. Where output is not a terminal there are no bars, so that a log file stays readable.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from .evaluation import Evaluation
from .step_log import Observer, Window
from .verify import Report

Watch = Callable[[str], Observer]


class ProgressBar(Observer):
    """Moves a bar, which appears with the first numbers: a run that fails before leaves none behind.

    Args:
        progress: where the bar is drawn.
        name: beside it.
    """

    def __init__(self, progress: Progress, name: str) -> None:
        self._progress, self._name = progress, name
        self._task: TaskID | None = None

    def window(self, window: Window) -> None:
        """Show the newest numbers."""
        last = window.records[-1]
        numbers = [f"loss {last['loss']:.3f}"]
        if last.get("lid") is not None:
            numbers.append(f"LID {last['lid']:.1f}")
        if "batch_effective_rank" in last:
            numbers.append(f"rank {last['batch_effective_rank']:.1f}")
        numbers.append(f"{window.images_per_second:.0f} images/s")
        if self._task is None:
            self._task = self._progress.add_task(self._name, total=window.time.steps, numbers="")
        self._progress.update(self._task, completed=window.time.step + 1, numbers=", ".join(numbers))


@contextmanager
def progress_bars(console: Console) -> Iterator[Watch]:
    """A display for several runs.

    Args:
        console: where to draw; nothing is drawn unless it is a terminal.

    Yields:
        A function that adds a bar by its name and returns the observer that moves it.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("{task.fields[numbers]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        yield lambda name: ProgressBar(progress, name)


def results_table(
    title: str, results: Mapping[str, Evaluation], columns: Mapping[str, Mapping[str, str]] | None = None
) -> Table:
    """Final numbers, a row for each run.

    Args:
        title: of the table.
        results: by name of the run.
        columns: further columns: heading to {run: cell}.

    Returns:
        The table.
    """
    table = Table(title=title)
    table.add_column("run", no_wrap=True)
    more = columns or {}
    for heading in ("probe %", "k-NN %", "effective rank", "geo-mean LID", *more):
        table.add_column(heading, justify="right")
    for name, final in results.items():
        cells = [f"{100 * final.probe_accuracy:.1f}", f"{100 * final.knn_accuracy:.1f}"]
        cells += [f"{final.geometry.effective_rank:.1f}", f"{final.geometry.lid_geometric_mean:.2f}"]
        table.add_row(name, *cells, *(column.get(name, "-") for column in more.values()))
    return table


def verdict_table(report: Report, method: str) -> Table:
    """The checks of a verification.

    Args:
        report: of `verify`.
        method: that was trained.

    Returns:
        The table.
    """
    table = Table(title=f"{method}: fused against naive")
    table.add_column("check")
    table.add_column("measured", justify="right")
    table.add_column("limit", justify="right")
    table.add_column("")
    for check in report.checks:
        verdict = "[green]ok[/green]" if check.passed else "[bold red]FAILED[/bold red]"
        table.add_row(check.name, f"{check.measured:.3g}", f"{check.limit:.3g}", verdict)
    return table


def verdict_lines(report: Report) -> list[str]:
    """What stands below the table.

    Args:
        report: of `verify`.

    Returns:
        Lines.
    """
    tied, rows = report.tied_rows
    lines = [f"{tied} of {rows} rows have a tied k-th neighbour; their gradients were not judged."]
    if report.cost is not None:
        cost: Any = report.cost
        naive, fused = cost.shares
        lines.append(
            f"The regulariser's share of a step: naive {100 * naive:.2g} % ({cost.naive:.1f} ms), "
            f"fused {100 * fused:.2g} % ({cost.fused:.1f} ms)."
        )
    return lines
