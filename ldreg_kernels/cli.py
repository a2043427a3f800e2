"""The command line: `ldreg train`, `verify`, `demo`, `data`, `bench`, `doctor`.

Exit codes: 0 done (verify: every check passed; demo: fused and naive training begin alike, and MinLID lowers rank and
LID), 1 that does not hold or training failed, 2 the request was wrong. `ldreg bench` belongs to a checkout:
benchmarks/cli.py answers it.
Heavy imports (torch and everything on it) are inside the commands, so that `ldreg --help` answers at once.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

try:
    import typer
    from rich.console import Console
except ImportError as error:
    raise SystemExit(
        f"ldreg: {error.name} is not installed. The command line needs an extra: pip install 'ldreg_kernels[train]'"
    ) from None

if TYPE_CHECKING:
    from .trainer.config import TrainConfig

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
    help="LDReg (local intrinsic dimensionality regularisation): train, verify, demo, data, bench, doctor.",
)
console = Console()
errors = Console(stderr=True)

ConfigFile = Annotated[
    Path | None, typer.Argument(help="Configuration, .json, .toml or .yaml; left out: the defaults.")
]
Method = Annotated[str | None, typer.Option(help="simclr, byol or mae; short for --set method.name=.")]
Preset = Annotated[str | None, typer.Option(help="A recipe under the configuration, such as simclr-tuned.")]
Dataset = Annotated[
    str | None, typer.Option(help="digits, fashion-mnist, cifar10, ...; short for --set data.dataset=.")
]
Root = Annotated[Path | None, typer.Option(help="Folder of the data set; short for --set data.root=.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", help="One setting, e.g. --set regularisers.0.weight=0.01; repeatable."),
]
Epochs = Annotated[int | None, typer.Option(help="Epochs; short for --set epochs=.")]
Seed = Annotated[int | None, typer.Option(help="Seed; short for --set seed=.")]


@app.command()
def train(
    config: ConfigFile = None,
    method: Method = None,
    preset: Preset = None,
    dataset: Dataset = None,
    root: Root = None,
    set_: Overrides = None,
    epochs: Epochs = None,
    seed: Seed = None,
    regulariser: Annotated[
        str | None, typer.Option("--regulariser", "--regularizer", help="none, ldreg, ldreg-naive or minlid.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Run folder.")] = Path("runs/train"),
    resume: Annotated[bool, typer.Option(help="Continue the run in --out with its own configuration.")] = False,
    overwrite: Annotated[bool, typer.Option(help="Replace the run in --out.")] = False,
) -> None:
    """Train an encoder with SimCLR, BYOL or MAE and the LID regulariser, evaluate it, and keep everything in a run
    folder.
    """
    with _errors_as_exit_codes():
        from .trainer.engine import prepare
        from .trainer.engine import train as run_training
        from .trainer.plots import plot_run
        from .trainer.run_folder import RunFolder
        from .trainer.terminal import progress_bars, results_table

        if resume:
            given = (config, method, preset, dataset, root, set_, epochs, seed, regulariser, overwrite or None)
            _refuse_settings_with_resume(*given)
            folder, settings = RunFolder.open(out)
            run = prepare(settings)
        else:
            flags = _flags(method=method, dataset=dataset, root=root, epochs=epochs, seed=seed)
            settings = _settings(config, preset, set_, flags, regulariser)
            RunFolder.check(out, overwrite=overwrite)
            run = prepare(settings)  # what is wrong with the request is found here, with the old run still in place
            folder = RunFolder.create(out, settings, overwrite=overwrite)
        name = " + ".join([settings.method.name, *(r.name for r in settings.regularisers)])
        with progress_bars(console) as watch:
            result = run_training(settings, folder, observers=[watch(name)], resume=resume, prepared=run)
        plot_run(folder.plots / "run.png", result.steps, result.geometries)
        console.print(results_table(f"Frozen encoder, held-out {settings.data.dataset}", {name: result.final}))
        for line in result.unreadable:
            errors.print(f"not read: {line}", style="yellow", markup=False)
        console.print(f"Run folder: {folder.path}")


@app.command()
def verify(
    config: ConfigFile = None,
    method: Method = None,
    preset: Preset = None,
    dataset: Dataset = None,
    root: Root = None,
    set_: Overrides = None,
    epochs: Epochs = 4,
    seed: Seed = None,
    out: Annotated[Path, typer.Option(help="Folder for verification.json and verification.png.")] = Path("runs/verify"),
) -> None:
    """Check that the fused regulariser equals the naive one, step by step and over whole trainings of a method."""
    with _errors_as_exit_codes():
        from .trainer.terminal import progress_bars, verdict_lines, verdict_table
        from .trainer.verify import verify as run_verification

        flags = _flags(method=method, dataset=dataset, root=root, epochs=epochs, seed=seed)
        settings = _settings(config, preset, set_, flags)
        with progress_bars(console) as watch:
            report = run_verification(settings, out, watch=watch)
        console.print(verdict_table(report, settings.method.name))
        for line in verdict_lines(report):
            console.print(line)
        console.print(f"[bold]{'Verified' if report.passed else 'VERIFICATION FAILED'}[/bold]: {out}/verification.json")
        if not report.passed:
            raise typer.Exit(1)


@app.command()
def demo(
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Epochs of each run; left out: what fits six minutes.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of all runs.")] = 0,
    dataset: Annotated[
        str | None, typer.Option(help="Left out: fashion-mnist if it is on this machine, else digits.")
    ] = None,
    root: Root = None,
    out: Annotated[Path, typer.Option(help="Folder for the runs, the figures and demo.json.")] = Path("runs/demo"),
) -> None:
    """SimCLR, BYOL and MAE on real images, each without a regulariser, with LDReg naive and with LDReg fused. Minutes
    on two cores.
    """
    with _errors_as_exit_codes():
        from .trainer.demo import demo_cases, demo_table, run_demo
        from .trainer.run_folder import require_writable
        from .trainer.terminal import progress_bars

        require_writable(out)
        cases = demo_cases(dataset=dataset, root=root, epochs=epochs, seed=seed)
        with progress_bars(console) as watch:
            result = run_demo(out, cases, watch=watch)
        console.print(demo_table(result))
        for sentence in result.sentences():
            console.print(f"- {sentence}")
        console.print(f"Figures: {out}/losses.png, {out}/lid_and_rank.png, {out}/spectra.png")
        if not (result.lowered and result.agree):
            raise typer.Exit(1)


@app.command()
def data(
    name: Annotated[
        str, typer.Argument(help="digits, fashion-mnist, mnist5k, patches, cifar10, cifar100, folder, ...")
    ],
) -> None:
    """Say where a data set is looked for, how to get it, its size and its licence. Nothing is downloaded."""
    with _errors_as_exit_codes():
        from .trainer.data.instructions import how_to_get

        console.print(how_to_get(name), markup=False, highlight=False, soft_wrap=True)


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


def _flags(**values: Any) -> dict[str, Any]:
    """The short options that were given, by the settings they stand for."""
    names = {"method": "method.name", "dataset": "data.dataset", "root": "data.root"}
    return {names.get(n, n): str(v) if isinstance(v, Path) else v for n, v in values.items() if v is not None}


def _settings(
    config: Path | None,
    preset: str | None,
    overrides: list[str] | None,
    flags: dict[str, Any],
    regulariser: str | None = None,
) -> TrainConfig:
    from .trainer.config import load_config, parse_override

    given = flags | dict(parse_override(text) for text in overrides or [])
    if regulariser == "none":
        given["regularisers"] = []
    settings = load_config(config, given, preset=preset)
    return settings if regulariser in (None, "none") else settings.with_regulariser(regulariser)


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
        from .trainer.checkpoint import CheckpointError
        from .trainer.config import ConfigError
        from .trainer.engine import NonFiniteLossError
        from .trainer.regularisers import NoBackendError
        from .trainer.run_folder import RunFolderError, RunFolderWarning
    except ImportError as error:  # the extra is missing, or half of it
        _say(error)
        raise typer.Exit(2) from None
    try:
        with _notes_in_one_line(RunFolderWarning):
            yield
    except (ConfigError, NoBackendError, RunFolderError, FileNotFoundError) as error:
        _say(error)
        raise typer.Exit(2) from None
    except (NonFiniteLossError, CheckpointError, OSError) as error:  # diverged; unreadable images, a full disk
        _say(error)
        raise typer.Exit(1) from None


@contextmanager
def _notes_in_one_line(ours: type[Warning]) -> Iterator[None]:
    """Warnings of our own are said as errors are, without the place in the source that they come from."""
    with warnings.catch_warnings():
        others = warnings.showwarning
        warnings.simplefilter("always", ours)

        def show(message: Any, category: Any, filename: str, lineno: int, file: Any = None, line: Any = None) -> None:
            if issubclass(category, ours):
                errors.print(f"ldreg: {message}", style="yellow", markup=False, soft_wrap=True)
            else:
                others(message, category, filename, lineno, file, line)

        warnings.showwarning = show
        yield


def _say(error: Exception) -> None:
    errors.print(f"ldreg: {error}", style="red", markup=False, soft_wrap=True)


if __name__ == "__main__":
    main()
