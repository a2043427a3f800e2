"""The demo on tiny configurations: every row, three figures, and no sentence that the numbers do not carry."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from ldreg_kernels.trainer.config import ConfigError, TrainConfig
from ldreg_kernels.trainer.demo import Case, demo_cases, demo_table, run_demo
from ldreg_kernels.trainer.run_folder import RunFolderError

NAMES = [
    *("simclr-none", "simclr-ldreg-naive", "simclr-ldreg", "simclr-minlid"),
    *("byol-none", "byol-ldreg-naive", "byol-ldreg", "mae-none", "mae-ldreg-naive", "mae-ldreg"),
]


def test_demo_writes_its_table_and_figures(tiny_of: Callable[..., TrainConfig], tmp_path: Path) -> None:
    cases = [
        Case(case.method, case.regulariser, config.with_regulariser(case.regulariser))
        for case in demo_cases(dataset="digits")
        for config in [tiny_of(case.method, epochs=1, checkpoint_every_epochs=0)]
    ]
    demo = run_demo(tmp_path, cases)
    assert list(demo.results) == NAMES
    assert list(demo.controls) == ["raw pixels", "random conv", "random vit-micro"]
    for figure in ("losses.png", "lid_and_rank.png", "spectra.png"):
        assert (tmp_path / figure).read_bytes().startswith(b"\x89PNG")
    written = json.loads((tmp_path / "demo.json").read_text())
    assert set(written["table"]) == {*NAMES, *demo.controls}
    assert demo_table(demo).row_count == 13
    assert set(demo.milliseconds) == {"simclr", "byol", "mae"}
    for method, times in demo.milliseconds.items():
        assert set(times) == {"published", "ldreg-naive", "ldreg"}
        assert all(value > 0 for value in times.values())
        assert demo.gap(method) < 1e-4
        naive, fused = (demo.results[f"{method}-{name}"].steps[0]["loss"] for name in ("ldreg-naive", "ldreg"))
        assert fused == pytest.approx(naive, abs=1e-6)
    # The verdict follows the numbers, whichever way they went in one epoch.
    plain, minlid = (demo.results[f"simclr-{name}"].final.geometry for name in ("none", "minlid"))
    fell = minlid.effective_rank < 0.8 * plain.effective_rank and minlid.lid_geometric_mean < plain.lid_geometric_mean
    assert demo.lowered == fell
    assert demo.agree
    assert any("did NOT lower" in sentence for sentence in demo.sentences()) == (not fell)


def test_what_is_in_the_way_of_the_last_run_is_refused_before_the_first(
    tiny_of: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    cases = [Case("simclr", name, tiny_of("simclr").with_regulariser(name)) for name in ("none", "ldreg")]
    (tmp_path / "simclr-ldreg").mkdir()
    (tmp_path / "simclr-ldreg" / "thesis.tex").touch()
    with pytest.raises(RunFolderError, match=r"^--out: .*simclr-ldreg is not empty and is not a run folder"):
        run_demo(tmp_path, cases)
    assert [path.name for path in tmp_path.iterdir()] == ["simclr-ldreg"]


def test_the_data_set_is_what_the_machine_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ldreg_kernels.trainer.demo.folders", lambda dataset, root: [tmp_path / "absent"])
    cases = demo_cases(epochs=3, seed=4)
    assert [case.name for case in cases] == NAMES
    assert {(c.config.data.dataset, c.config.epochs, c.config.seed) for c in cases} == {("digits", 3, 4)}
    with pytest.raises(ConfigError, match="ldreg data fashion-mnist"):
        demo_cases(root=tmp_path)  # said to be there, and is not
