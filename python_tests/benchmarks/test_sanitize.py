"""benchmarks/sanitize.py: right answers pass, a wrong one is seen, what cannot run says why."""

from __future__ import annotations

import pytest
import torch

import ldreg_kernels as ldk
from benchmarks import sanitize


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_right_answers_pass(backend: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert sanitize.main(["--backend", backend]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert len(lines) == len(sanitize.SHAPES)
    assert last == f"{len(lines)} checked, 0 wrong"


@pytest.mark.parametrize("operation", ["knn", "lid", "ldreg_loss"])
def test_one_wrong_row_is_seen(
    operation: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = getattr(ldk, operation)

    def wrong(x: torch.Tensor, y: torch.Tensor | None = None, **options: object) -> object:
        if options["backend"] == "cpu":
            x = torch.cat([x[:1] * 1.1, x[1:]])
        return right(x, y, **options)

    monkeypatch.setattr(ldk, operation, wrong)
    monkeypatch.setattr(sanitize, "SHAPES", sanitize.SHAPES[1:2])
    assert sanitize.main(["--backend", "cpu"]) == sanitize.WRONG
    assert "WRONG, worst is" in capsys.readouterr().out


def test_a_backend_that_cannot_run_says_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ldk, "backends", lambda: {"cuda": "no GPU", "cpu": None})
    monkeypatch.setattr(sanitize, "probe_reason", lambda: "not built")
    assert sanitize.main(["--backend", "cuda"]) == sanitize.NOTHING_TO_RUN
    assert capsys.readouterr().out.splitlines()[:2] == [
        "not reached: cuda: formulas: not built",
        "not reached: cuda: knn, lid and ldreg_loss: no GPU",
    ]
    assert sanitize.main(["--backend", "cpu", "--list"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == f"cpu: {sanitize.SHAPES[0]}"


@pytest.mark.parametrize("shape", [shape for shape in sanitize.SHAPES if shape.data == "normal"], ids=str)
def test_no_rounding_exchanges_neighbours(shape: sanitize.Shape) -> None:
    # Gradients are compared although exchanging the k-th neighbour changes them: so it must stand apart.
    given = sanitize.inputs(shape, torch.device("cpu")).reference()
    most = shape.N - (shape.own != "none")
    k = min(shape.k + 1, most)  # one more than is used, where there is one more
    d = ldk.knn(given.x, given.y, k=k, self_index=given.own, backend="reference").distances
    assert (d.diff(dim=1)[:, shape.k - 2 :] > 1e-5 * d[:, -1:]).all()


def test_not_finite_values_must_be_in_their_places() -> None:
    truth = torch.tensor([1.0, torch.nan, torch.inf], dtype=torch.float64)
    assert sanitize.error(truth.clone(), truth) == 0.0
    assert sanitize.error(truth.nan_to_num(1.0), truth) == float("inf")
    assert sanitize.error(truth.flip(0), truth) == float("inf")
    assert sanitize.error(torch.zeros(0), torch.zeros(0)) == 0.0
