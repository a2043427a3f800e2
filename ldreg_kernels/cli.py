"""The command line: `ldreg train`, `ldreg verify`, `ldreg demo`, `ldreg bench`, `ldreg doctor`.

Exit codes: 0 done (and, for verify and demo, the claim holds), 1 it does not hold or training failed, 2 the request
was wrong. `ldreg bench` belongs to a checkout: benchmarks/cli.py answers it.
Heavy imports (torch and everything on it) are inside the commands, so that `ldreg --help` answers at once.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

try:
    import typer
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.table import Table
except ImportError as error:
    raise SystemExit(
        f"ldreg: {error.name} is not installed. The command line needs an extra: pip install 'ldreg_kernels[train]'"
    ) from None

if TYPE_CHECKING:
    from .trainer.config import TrainConfig
    from .trainer.engine import Observer, Step, TrainingResult
    from .trainer.verify import Report

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
    help="LDReg (local intrinsic dimensionality regularisation): train, verify, demo, bench, doctor.",
)
console = Console()
errors = Console(stderr=True)

ConfigFile = Annotated[Path | None, typer.Argument(help="Configuration, .json or .toml; left out: the defaults.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", help="One setting, e.g. --set regulariser.weight=0.01; repeatable."),
]
Epochs = Annotated[int | None, typer.Option(help="Epochs; short for --set epochs=.")]
Seed = Annotated[int | None, typer.Option(help="Seed; short for --set seed=.")]


@app.command()
def train(
    config: ConfigFile = None,
    set_: Overrides = None,
    epochs: Epochs = None,
    seed: Seed = None,
    regulariser: Annotated[str | None, typer.Option(help="none, ldreg, ldreg-naive or minlid.")] = None,
    out: Annotated[Path, typer.Option(help="Run folder.")] = Path("runs/train"),
    resume: Annotated[bool, typer.Option(help="Continue the run in --out with its own configuration.")] = False,
    overwrite: Annotated[bool, typer.Option(help="Replace the run in --out.")] = False,
) -> None:
    """Train an encoder with SimCLR and the LID regulariser, evaluate it, and keep everything in a run
    folder.
    """
    with _errors_as_exit_codes():
        from .trainer.engine import train as run_training
        from .trainer.plots import plot_run
        from .trainer.run_folder import RunFolder

        if resume:
            _refuse_settings_with_resume(config, set_, epochs, seed, regulariser)
            folder, settings = RunFolder.open(out)
        else:
            settings = _settings(config, set_, epochs, seed, regulariser)
            folder = RunFolder.create(out, settings, overwrite=overwrite)
        with _progress() as watch:
            result = run_training(settings, folder, observers=[watch(settings.regulariser.name)], resume=resume)
        plot_run(folder.plots / "run.png", result.steps, result.geometries)
        console.print(_table({settings.regulariser.name: result}))
        console.print(f"Run folder: {folder.path}")


@app.command()
def verify(
    config: ConfigFile = None,
    set_: Overrides = None,
    epochs: Epochs = 4,
    seed: Seed = None,
    out: Annotated[Path, typer.Option(help="Folder for verification.json and verification.png.")] = Path("runs/verify"),
) -> None:
    """Check that the fused regulariser equals the naive one, step by step and over whole trainings."""
    with _errors_as_exit_codes():
        from .trainer.verify import verify as run_verification

        settings = _settings(config, set_, epochs, seed)
        with _progress() as watch:
            report = run_verification(settings, out, watch=watch)
        console.print(_verdict(report))
        tied, rows = report.tied_rows
        console.print(f"{tied} of {rows} rows have a tied k-th neighbour; their gradients were not judged.")
        console.print(f"[bold]{'Verified' if report.passed else 'VERIFICATION FAILED'}[/bold]: {out}/verification.json")
        if not report.passed:
            raise typer.Exit(1)


@app.command()
def demo(
    epochs: Annotated[int, typer.Option(min=1, help="Epochs of each of the four runs.")] = 10,
    seed: Annotated[int, typer.Option(min=0, help="Seed of all four runs.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder for the runs, the figures and demo.json.")] = Path("runs/demo"),
) -> None:
    """Four trainings on handwritten digits: no regulariser, LDReg naive, LDReg fused, MinLID. Minutes on two
    cores.
    """
    with _errors_as_exit_codes():
        from .trainer.demo import demo_config, run_demo

        with _progress() as watch:
            result = run_demo(out, demo_config(epochs=epochs, seed=seed), watch=watch)
        console.print(_table(result.results, result.milliseconds))
        for sentence in result.sentences():
            console.print(f"- {sentence}")
        console.print(f"Figures: {out}/losses.png, {out}/lid_and_rank.png, {out}/spectra.png")
        if not result.collapsed:
            raise typer.Exit(1)


# Everything behind `bench`, --help included, is for the benchmarks' own command line.
@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})
def bench(context: typer.Context) -> None:
    """Time the kernels against other libraries and the hardware's floor (needs a checkout of the repository)."""
    checkout = Path(__file__).resolve().parent.parent
    if not (checkout / "benchmarks" / "cli.py").is_file():
        errors.print(
            f"ldreg: there is no benchmarks folder beside {checkout / 'ldreg_kernels'}: it is not part of an installed "
            "package. Clone the repository and run `make bench` there.",
            style="red",
            markup=False,
        )
        raise typer.Exit(2)
    sys.path.insert(0, str(checkout))
    try:
        benchmarks = importlib.import_module("benchmarks.cli")
    except ImportError as error:
        errors.print(f"ldreg: {error}. Benchmarks need an extra: pip install '.[bench]'", style="red", markup=False)
        raise typer.Exit(2) from None
    benchmarks.app(context.args, prog_name="ldreg bench")


@app.command()
def doctor(
    gpu: Annotated[
        bool, typer.Option("--gpu", help="Only the GPU backends: three problems each, and what to report if one fails.")
    ] = False,
) -> None:
    """Report the environment and every backend, and run a small self-test."""
    from . import doctor as module

    raise typer.Exit(module.main(gpu=gpu))


def main() -> None:
    """Entry point of the `ldreg` command."""
    app()


def _settings(
    config: Path | None,
    overrides: list[str] | None,
    epochs: int | None,
    seed: int | None,
    regulariser: str | None = None,
) -> TrainConfig:
    from .trainer.config import load_config, parse_override

    flags = {"epochs": epochs, "seed": seed, "regulariser.name": regulariser}
    values: dict[str, Any] = {name: value for name, value in flags.items() if value is not None}
    values.update(parse_override(text) for text in overrides or [])
    return load_config(config, values)


def _refuse_settings_with_resume(*settings: Any) -> None:
    from .trainer.config import ConfigError

    if any(setting not in (None, []) for setting in settings):
        raise ConfigError("--resume takes the configuration of the run it continues; leave the other settings out")


@contextmanager
def _errors_as_exit_codes() -> Iterator[None]:
    """Turn the failures a user can act on into one line and an exit code; let real bugs keep their
    traceback.
    """
    try:
        from .trainer.config import ConfigError
        from .trainer.engine import NonFiniteLossError
        from .trainer.regulariser import NoBackendError
        from .trainer.run_folder import RunFolderError
    except ImportError as error:  # the extra is missing, or half of it
        errors.print(f"ldreg: {error}", style="red", markup=False)
        raise typer.Exit(2) from None
    try:
        yield
    except (ConfigError, NoBackendError, RunFolderError, FileNotFoundError) as error:
        errors.print(f"ldreg: {error}", style="red", markup=False)
        raise typer.Exit(2) from None
    except NonFiniteLossError as error:
        errors.print(f"ldreg: {error}", style="red", markup=False)
        raise typer.Exit(1) from None


@contextmanager
def _progress() -> Iterator[Callable[[str], Observer]]:
    """A rich progress display; yields a function that adds a bar and returns the observer that moves it."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.3f}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:

        def watch(name: str) -> Observer:
            task = progress.add_task(name, total=None, loss=float("nan"))

            def observe(step: Step) -> None:
                progress.update(task, completed=step.index + 1, total=step.steps, loss=step.numbers["loss"])

            return observe

        yield watch


def _table(results: dict[str, TrainingResult], milliseconds: dict[str, float] | None = None) -> Table:
    table = Table(title="Frozen encoder, held-out digits")
    table.add_column("run", no_wrap=True)
    for heading in ("probe acc. %", "k-NN acc. %", "effective rank", "geo-mean LID"):
        table.add_column(heading, justify="right")
    if milliseconds is not None:
        table.add_column("LID term ms/step", justify="right")
    for name, result in results.items():
        final, geometry = result.final, result.final.geometry
        cells = [name, f"{100 * final.probe_accuracy:.1f}", f"{100 * final.knn_accuracy:.1f}"]
        cells += [f"{geometry.effective_rank:.1f}", f"{geometry.lid_geometric_mean:.2f}"]
        if milliseconds is not None:
            taken = milliseconds.get(name)
            cells.append("-" if taken is None else f"{taken:.1f}")
        table.add_row(*cells)
    return table


def _verdict(report: Report) -> Table:
    table = Table(title="Fused against naive")
    table.add_column("check")
    table.add_column("measured", justify="right")
    table.add_column("limit", justify="right")
    table.add_column("")
    for check in report.checks:
        verdict = "[green]ok[/green]" if check.passed else "[bold red]FAILED[/bold red]"
        table.add_row(check.name, f"{check.measured:.3g}", f"{check.limit:.3g}", verdict)
    return table


if __name__ == "__main__":
    main()
