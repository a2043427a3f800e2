"""The command line of the benchmarks: `ldreg bench`.

Exit codes: 0 measured, 1 a backend of this package gave a wrong answer or failed, 2 the request was wrong.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import typer

from .cases import GRID, Case, suites
from .compare import compare
from .contenders import Contender, contenders
from .isa import instruction_sets
from .records import FILE_NAME, RESULTS, ROOT, RecordFile, Run
from .report import save_plots, update_readme, write_report
from .session import Options, Session
from .simclr_step import step_cases

TRAIN_STEP = "train-step"
FULL = Options("cpu", 1, rounds=7, patience=20.0, limit=30.0)
QUICK = Options("cpu", 1, rounds=3, patience=1.5, limit=1.5, seconds=165.0)
GRID_SECONDS = 300.0  # that a quick run gets on top, where the grid is asked for

app = typer.Typer(add_completion=False, pretty_exceptions_show_locals=False)


@app.command()
def bench(
    quick: Annotated[bool, typer.Option("--quick", help="A selection: three minutes on two CPU cores.")] = False,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; default: cuda if there is one.")] = None,
    suite: Annotated[
        list[str] | None,
        typer.Option(
            help="headline, k, n, memory, rivals (GPU), train-step: default all; grid on request. Repeatable."
        ),
    ] = None,
    contender: Annotated[
        list[str] | None, typer.Option(help="Only this contender, or all whose name begins so; repeatable.")
    ] = None,
    isa: Annotated[
        list[str] | None,
        typer.Option(help="Instruction set of our CPU kernels; all: every one this machine executes. Repeatable."),
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads of every contender; default: all.")] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="Turns of every contender; default 7, quick 3.")] = None,
    seconds: Annotated[
        float | None, typer.Option(help="Time for the run; cases it does not reach are named. Default none, quick 165.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the results; default runs/bench.")] = None,
    report: Annotated[
        bool, typer.Option("--report", help="Measure nothing: page, plots and README from benchmarks/results.")
    ] = False,
    compare_with: Annotated[
        str | None, typer.Option("--compare", metavar="REV", help="Time another commit beside this checkout.")
    ] = None,
    list_only: Annotated[bool, typer.Option("--list", help="Name cases and contenders, measure nothing.")] = False,
) -> None:
    """Time this package against every library that can do the same job, and against the hardware's floor.

    A time is taken only after the answer was checked against float64. Contenders take turns, and ratios compare times
    of one round. Every measurement becomes a row of OUT/measurements.csv; OUT/report.html shows them.
    """
    if report:
        _report(out or RESULTS)
        return
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    chosen = _suites(device, suite, quick=quick)
    taking_part = _contenders(device, contender)
    isas = _instruction_sets(device, isa or [])
    if list_only:
        _list(chosen, taking_part)
        return
    if device == "cuda" and not torch.cuda.is_available():
        raise typer.BadParameter("torch sees no CUDA device", param_hint="--device")

    effort = QUICK if quick else FULL
    options = replace(
        effort,
        device=device,
        threads=threads or torch.get_num_threads(),
        rounds=rounds or effort.rounds,
        seconds=effort.seconds + (GRID_SECONDS if GRID in chosen else 0.0) if seconds is None else seconds,
    )
    if compare_with is not None:
        cases = [case for name in suite or ["headline"] for case in chosen[name]]
        compare(compare_with, cases, taking_part, options, typer.echo, isas)
        return
    out = out or Path("runs/bench")
    if out.resolve() == RESULTS and (quick or contender or seconds):
        raise typer.BadParameter("benchmarks/results is for complete suites; choose another folder", param_hint="--out")
    session = _measure(chosen, taking_part, options, isas, out, quick=quick)
    for line in session.not_reached:
        typer.echo(f"not reached: {line}")
    raise typer.Exit(1 if session.wrong else 0)


def _measure(
    chosen: dict[str, tuple[Case, ...]],
    taking_part: tuple[Contender, ...],
    options: Options,
    isas: tuple[str, ...],
    out: Path,
    *,
    quick: bool,
) -> Session:
    torch.set_num_threads(options.threads)  # of this process, which runs the training steps
    runs = {isa: Run.start(options.device, options.threads, isa) for isa in isas}
    for run in runs.values():
        typer.echo(f"{run.hardware}; {run.versions}; commit {run.commit}")
    with Session(runs, RecordFile(out / FILE_NAME), options, taking_part, typer.echo) as session:
        try:
            if any(cases for name, cases in chosen.items() if name != GRID):  # which is shown beside no floor
                session.measure_rates()
            for name, cases in chosen.items():
                if name == "memory":
                    session.measure_memory(name, cases)
                elif name == TRAIN_STEP:
                    session.measure_train_steps(name, step_cases(options.device, quick=quick))
                else:
                    session.measure(name, cases)
        finally:  # an interrupted run is worth reading too
            if session.rows:
                typer.echo(f"wrote {write_report(out)}")
    return session


def _report(folder: Path) -> None:
    try:
        typer.echo(f"wrote {write_report(folder)}")
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--out") from None
    if folder.resolve() == RESULTS:  # the published results: those of a private run belong into nobody's README
        for path in save_plots(folder):
            typer.echo(f"wrote {path}")
        changed = update_readme(ROOT / "README.md", folder)
        typer.echo("README.md: " + ("tables regenerated" if changed else "tables were up to date"))


def _suites(device: str, wanted: list[str] | None, *, quick: bool) -> dict[str, tuple[Case, ...]]:
    """The suites of a device that were asked for; the training steps, which are no `Case`, with an empty list.

    The grid is left out unless it is named: sixty cases would take the time of all others.
    """
    if device not in ("cpu", "cuda"):
        raise typer.BadParameter(f"must be cpu or cuda, got {device!r}", param_hint="--device")
    found = {**suites(device, quick=quick), TRAIN_STEP: ()}
    for name in wanted or ():
        if name not in found:
            raise typer.BadParameter(f"must be one of {', '.join(found)}, got {name!r}", param_hint="--suite")
    return {name: cases for name, cases in found.items() if (name in wanted if wanted else name != GRID)}


def _contenders(device: str, wanted: list[str] | None) -> tuple[Contender, ...]:
    everyone = contenders(device)
    for name in wanted or ():
        if not any(c.name.startswith(name) for c in everyone):
            names = ", ".join(c.name for c in everyone)
            raise typer.BadParameter(f"{name!r} is none of {names}", param_hint="--contender")
    whole = {c.name for c in everyone}  # "published" is that one, and not "published compiled" as well
    begins = tuple(name for name in wanted or () if name not in whole)
    return tuple(c for c in everyone if not wanted or c.name in wanted or (begins and c.name.startswith(begins)))


def _instruction_sets(device: str, wanted: list[str]) -> tuple[str, ...]:
    """Those that were asked for, the widest first; "" stands for what the environment says."""
    if not wanted:
        return ("",)
    if device != "cpu":
        raise typer.BadParameter("is for --device cpu", param_hint="--isa")
    found = instruction_sets()
    for name in wanted:
        if name not in (*found, "all"):
            words = f"must be all or one of {', '.join(found)}, which this machine executes; got {name!r}"
            raise typer.BadParameter(words, param_hint="--isa")
    return tuple(isa for isa in found if isa in wanted or "all" in wanted)


def _list(chosen: dict[str, tuple[Case, ...]], taking_part: tuple[Contender, ...]) -> None:
    for name, cases in chosen.items():
        typer.echo(name)
        for case in cases:
            typer.echo(f"  {case}")
    typer.echo("contenders: " + ", ".join(c.name for c in taking_part))
