"""Fashion-MNIST's IDX files: read, found, and refused when anything about them is wrong."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from ldreg_kernels.trainer.config.base import ConfigError
from ldreg_kernels.trainer.config.data import DataConfig
from ldreg_kernels.trainer.data import ImageData, labels_of, load_data
from ldreg_kernels.trainer.data.files import folders

FILES = {"train-images-idx3": 3, "train-labels-idx1": 1, "t10k-images-idx3": 3, "t10k-labels-idx1": 1}


def idx(values: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
    return header + values.astype(np.uint8).tobytes()


def write(folder: Path) -> dict[str, np.ndarray]:
    """Twelve training and five test images."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    content = {}
    for name, axes in FILES.items():
        count = 12 if name.startswith("train") else 5
        shape = (count, 28, 28) if axes == 3 else (count,)
        content[name] = generator.integers(0, 256 if axes == 3 else 10, shape)
        (folder / f"{name}-ubyte.gz").write_bytes(gzip.compress(idx(content[name])))
    return content


def load(root: Path | None) -> ImageData:
    return load_data(DataConfig(dataset="fashion-mnist", root=root))


def test_images_and_labels_are_those_of_the_files(tmp_path: Path) -> None:
    content = write(tmp_path)
    data = load(tmp_path)
    assert (data.name, data.classes, data.channels, data.image_size) == ("fashion-mnist", 10, 1, (28, 28))
    for part, prefix in ((data.train, "train"), (data.test, "t10k")):
        images = np.stack([np.asarray(part.image(i)) for i in range(len(part))])
        assert np.array_equal(images, content[f"{prefix}-images-idx3"])
        assert np.array_equal(labels_of(part), content[f"{prefix}-labels-idx1"])


def test_found_in_an_unpacked_package_and_in_the_environments_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "unpacked" / "usr/share/datasets/fashion-mnist")
    assert len(load(tmp_path / "unpacked").train) == 12
    write(tmp_path / "sets" / "fashion-mnist")
    monkeypatch.setenv("LDREG_DATA", str(tmp_path / "sets"))
    assert len(load(None).train) == 12


def test_a_missing_set_names_the_folders_and_the_command(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path)
    message = str(caught.value)
    assert message.startswith(f"data.root: no fashion-mnist in {tmp_path} or ")
    assert "`ldreg data fashion-mnist`" in message
    assert "\n" not in message


GOOD_IMAGES = idx(np.zeros((12, 28, 28)))
DAMAGE = {
    "truncated gzip": ("train-images-idx3", gzip.compress(GOOD_IMAGES)[:-10], "cannot be unpacked"),
    "not gzip": ("train-images-idx3", GOOD_IMAGES, "cannot be unpacked"),
    "broken deflate": ("train-images-idx3", gzip.compress(GOOD_IMAGES)[:10] + b"\xff" * 40, "cannot be unpacked"),
    "empty": ("train-images-idx3", gzip.compress(b""), "is not an IDX file"),
    "wrong magic": ("t10k-images-idx3", gzip.compress(b"\1" + idx(np.zeros((5, 28, 28)))[1:]), "is not an IDX file"),
    "other type": ("t10k-labels-idx1", gzip.compress(b"\0\0\x0d\1" + idx(np.zeros(5))[4:]), "is not an IDX file"),
    "header alone": ("train-images-idx3", gzip.compress(GOOD_IMAGES[:10]), "is not an IDX file"),
    "one byte less": ("train-images-idx3", gzip.compress(GOOD_IMAGES[:-1]), "must hold .* got 9407 bytes"),
    "one byte more": ("train-labels-idx1", gzip.compress(idx(np.zeros(12)) + b"\0"), "must hold .* got 13 bytes"),
    "wrong size": ("train-images-idx3", gzip.compress(idx(np.zeros((12, 27, 28)))), "28 x 28 pixels"),
    "labels as images": ("train-images-idx3", gzip.compress(idx(np.zeros(12))), "28 x 28 pixels"),
    "no images": ("train-images-idx3", gzip.compress(idx(np.zeros((0, 28, 28)))), "28 x 28 pixels"),
    "wrong count": ("train-labels-idx1", gzip.compress(idx(np.zeros(11))), "must hold 12 labels"),
    "unknown class": ("t10k-labels-idx1", gzip.compress(idx(np.full(5, 10))), "labels must be below 10, got 10"),
    "gone": ("t10k-labels-idx1", None, "this file is missing"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_named(tmp_path: Path, damage: str) -> None:
    name, content, reason = DAMAGE[damage]
    write(tmp_path)
    path = tmp_path / f"{name}-ubyte.gz"
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=reason) as caught:
        load(tmp_path)
    assert str(path) in str(caught.value)
    assert "`ldreg data fashion-mnist`" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_published_set() -> None:
    if not any((place / "train-images-idx3-ubyte.gz").is_file() for place in folders("fashion-mnist", None)):
        pytest.skip("Fashion-MNIST is not on this machine: see `ldreg data fashion-mnist`")
    data = load(None)
    assert np.bincount(labels_of(data.train)).tolist() == [6000] * 10
    assert np.bincount(labels_of(data.test)).tolist() == [1000] * 10
    assert data.train.image(0).size == (28, 28)
