"""The demo on a tiny configuration: four rows, three figures, and no sentence that the numbers do not
carry.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ldreg_kernels.trainer.config import TrainConfig
from ldreg_kernels.trainer.demo import CASES, run_demo


def test_demo_writes_its_table_and_figures(tiny: TrainConfig, tmp_path: Path) -> None:
    demo = run_demo(tmp_path, tiny.derive({"checkpoint_every_epochs": 0, "epochs": 1}))
    assert list(demo.results) == list(CASES) == ["none", "ldreg-naive", "ldreg", "minlid"]
    for figure in ("losses.png", "lid_and_rank.png", "spectra.png"):
        assert (tmp_path / figure).read_bytes().startswith(b"\x89PNG")
    written = json.loads((tmp_path / "demo.json").read_text())
    assert set(written["table"]) == set(CASES)
    assert set(demo.milliseconds) == {"published", "ldreg-naive", "ldreg", "minlid"}
    assert all(value > 0 for value in demo.milliseconds.values())
    naive, fused = (demo.results[name].steps[0]["loss"] for name in ("ldreg-naive", "ldreg"))
    assert fused == pytest.approx(naive, abs=1e-6)
    # The verdict follows the numbers, whichever way they went in one epoch.
    plain, minlid = (demo.results[name].final.geometry for name in ("none", "minlid"))
    fell = minlid.effective_rank < plain.effective_rank and minlid.lid_geometric_mean < plain.lid_geometric_mean
    assert demo.collapsed == fell
    assert any("did NOT collapse" in sentence for sentence in demo.sentences()) == (not fell)
