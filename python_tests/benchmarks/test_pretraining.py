"""The statements of the Fashion-MNIST trainings follow the numbers, and rows are only ever added."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

pytest.importorskip("pydantic", reason="the trainer needs the whole extra [train]")

from benchmarks import pretraining
from benchmarks.records import Run
from ldreg_kernels.trainer.evaluation import Evaluation, Geometry


def evaluation(probe: float, rank: float) -> Evaluation:
    return Evaluation(probe, 0.7, Geometry(rank, 7.0, 7.5, 1.0, 0), [1.0], 3000)


@pytest.mark.parametrize(
    ("probe", "ranks", "holds"),
    [
        (0.815, (10.0, 4.9), [True, True]),
        (0.825, (10.0, 5.1), [False, False]),
        (0.775, (8.0, 3.0), [False, True]),
    ],
)
def test_statements(probe: float, ranks: tuple[float, float], holds: list[bool]) -> None:
    finals = {"none": evaluation(probe, ranks[0]), "minlid": evaluation(0.7, ranks[1])}
    assert [held for _, held in pretraining.judge(finals)] == holds


def test_rows_are_appended_under_one_header(tmp_path: Path) -> None:
    path, run = tmp_path / "new" / pretraining.FILE_NAME, Run.start("cpu", 1)
    for seed in (0, 1):
        pretraining.append(path, run, "simclr", "ldreg", seed, evaluation(0.8, 9.0))
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(r["method"], r["regulariser"], r["seed"], r["effective_rank"]) for r in rows] == [
        ("simclr", "ldreg", "0", "9.0"),
        ("simclr", "ldreg", "1", "9.0"),
    ]
    assert all(r["commit"] and r["hardware"] for r in rows)


def test_trainings_differ_in_the_regulariser_alone() -> None:
    none, ldreg, minlid = (pretraining.config("byol", name, 3, None) for name in pretraining.REGULARISERS)
    assert none.regularisers == ()
    assert (ldreg.regularisers[0].name, minlid.regularisers[0].name, minlid.regularisers[0].weight) == (
        *("ldreg", "minlid"),
        1.0,
    )
    same = [c.model_dump(exclude={"regularisers"}) for c in (none, ldreg, minlid)]
    assert same[0] == same[1] == same[2]
