"""What training with the regularisers does on Fashion-MNIST: accuracy and geometry, not time.

    python -m benchmarks.pretraining [--root FOLDER] [--method simclr ...] [--seed 0 ...] [--out benchmarks/results]

5,000 training and 3,000 held-out images, 10 epochs: the size of a pilot in which SimCLR's linear probe was at 80 %. For
each method: no regulariser, LDReg (0.1), MinLID (1). Controls: raw pixels, the random network. Two statements are
judged, for SimCLR, and the exit code says whether they hold for every seed:

    the probe without a regulariser is within 2 points of 80 %;
    MinLID lowers the effective rank below half.

`ldreg data fashion-mnist` says how to get the images. Rows are appended to FOLDER/pretraining.csv.
"""

from __future__ import annotations

import argparse
import csv
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console

from ldreg_kernels.trainer.config import TrainConfig, make_config
from ldreg_kernels.trainer.demo import Case, controls
from ldreg_kernels.trainer.engine import train
from ldreg_kernels.trainer.evaluation import Evaluation
from ldreg_kernels.trainer.terminal import progress_bars, results_table

from .records import Run

FILE_NAME = "pretraining.csv"
REGULARISERS = ("none", "ldreg", "minlid")


def config(method: str, regulariser: str, seed: int, root: Path | None) -> TrainConfig:
    """One training."""
    settings = {
        "method.name": method,
        "seed": seed,
        "epochs": 10,
        "checkpoint_every_epochs": 0,
        "data.dataset": "fashion-mnist",
        "data.train_images": 5000,
        "data.test_images": 3000,
    }
    if root is not None:
        settings["data.root"] = str(root)
    base = make_config({}, settings)
    return (
        base.with_regulariser("minlid", weight=1.0) if regulariser == "minlid" else base.with_regulariser(regulariser)
    )


def judge(finals: dict[str, Evaluation]) -> list[tuple[str, bool]]:
    """The two statements, with their figures, for one seed of SimCLR."""
    none, minlid = finals["none"], finals["minlid"]
    probe, ranks = 100 * none.probe_accuracy, (none.geometry.effective_rank, minlid.geometry.effective_rank)
    return [
        (f"SimCLR's probe is within 2 points of 80: {probe:.1f}", abs(probe - 80) <= 2),
        (f"MinLID lowers effective rank below half: {ranks[0]:.1f} to {ranks[1]:.1f}", ranks[1] < ranks[0] / 2),
    ]


def append(path: Path, run: Run, method: str, regulariser: str, seed: int, final: Evaluation) -> None:
    """One row, behind those that are there."""
    row = {"method": method, "regulariser": regulariser, "seed": seed, **final.numbers(), **asdict(run)}
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, row, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(row)


def main(arguments: list[str] | None = None) -> int:
    """Train, print, append; 1 if a statement does not hold."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pretraining", description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path)
    parser.add_argument("--method", nargs="+", default=["simclr"], choices=["simclr", "byol", "mae"])
    parser.add_argument("--seed", nargs="+", type=int, default=[0])
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    options = parser.parse_args(arguments)
    console, path = Console(), options.out / FILE_NAME
    run = Run.start("cpu" if not torch.cuda.is_available() else "cuda", torch.get_num_threads())
    rows: dict[str, Evaluation] = {}
    statements: list[tuple[str, bool]] = []
    with progress_bars(console) as watch:
        for method in options.method:
            for seed in options.seed:
                finals = {}
                for regulariser in REGULARISERS:
                    name = f"{method} {regulariser} (seed {seed})"
                    training = config(method, regulariser, seed, options.root)
                    finals[regulariser] = rows[name] = train(training, observers=[watch(name)]).final
                    append(path, run, method, regulariser, seed, rows[name])
                statements += judge(finals) if method == "simclr" else []
    cases = [Case(m, "none", config(m, "none", options.seed[0], options.root)) for m in options.method]
    for name, final in controls(cases).items():
        rows[name] = final
        append(path, run, name, "none", options.seed[0], final)
    console.print(results_table("Frozen encoders, held-out Fashion-MNIST", rows))
    for statement, holds in statements:
        console.print(f"{'holds' if holds else 'DOES NOT HOLD'}: {statement}")
    return 0 if all(holds for _, holds in statements) else 1


if __name__ == "__main__":
    sys.exit(main())
